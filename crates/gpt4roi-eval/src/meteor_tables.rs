//! The tables that METEOR 1.5 finds synonyms and paraphrases in, as its program comes with them.
//!
//! The program's jar holds WordNet's synonyms (`meteor_synonyms.rs`); the paraphrases are a compressed file beside it
//! (`meteor_paraphrases.rs`). Nothing of the jar is run. Little of the 270 MB that they unpack to can matter to given
//! captions; what can't is dropped while it is read.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use zip::{ZipArchive, result::ZipError};

use crate::{
    captions::Sample,
    meteor_paraphrases::{Paraphrases, Phrases},
    meteor_synonyms::{Synonyms, WordNet},
    meteor_words::normalised,
};

/// METEOR's program, of which only the synonyms are read.
const JAR: &str = "meteor-1.5.jar";
/// Where the paraphrases lie beside it.
const PARAPHRASES: &str = "data/paraphrase-en.gz";
/// In the jar: base forms of irregular words.
const IRREGULAR: &str = "synonym/english.exceptions";
/// In the jar: words, and the sets of synonyms that each belongs to.
const SETS: &str = "synonym/english.synsets";

/// What is wrong with METEOR's tables.
#[derive(Debug, thiserror::Error)]
pub enum MeteorTableError {
    /// One of the two files is missing or can't be opened.
    #[error("{}: expected a folder with {JAR} and {PARAPHRASES} in it, got for {file}: {source}", folder.display())]
    File {
        /// Where it was looked for.
        folder: PathBuf,
        /// Which file.
        file: &'static str,
        /// Why it can't be opened.
        source: io::Error,
    },
    /// The jar is no jar.
    #[error("{}: expected a jar, which is a zip archive, got: {source}", jar.display())]
    Jar {
        /// Which file.
        jar: PathBuf,
        /// What the archive says.
        source: ZipError,
    },
    /// The jar lacks a table, or it is damaged.
    #[error("{}: expected METEOR's table {member} in it, got: {source}", jar.display())]
    Member {
        /// Which file.
        jar: PathBuf,
        /// Which member of it.
        member: &'static str,
        /// Why it can't be read.
        source: io::Error,
    },
    /// The paraphrases can't be read to their end.
    #[error("{}: expected paraphrases as a gzip file of UTF-8 lines, got: {source}", file.display())]
    Gzip {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A table does not have the form that it should have.
    #[error("{}, line {line} of {table}: expected {expected}, got {got:?}", file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// Which table of it.
        table: &'static str,
        /// Which line, from 1.
        line: usize,
        /// What should stand there.
        expected: &'static str,
        /// What does; empty at the end of the file.
        got: String,
    },
}

/// A line of a table that is not what it should be.
#[derive(Debug)]
pub(crate) struct WrongLine {
    /// From 1.
    pub(crate) line: usize,
    pub(crate) expected: &'static str,
    pub(crate) got: String,
}

/// Why a table that is read while it is unpacked can't be used.
#[derive(Debug)]
pub(crate) enum Unreadable {
    Io(io::Error),
    Line(WrongLine),
}

/// Synonyms and paraphrases: what METEOR's tables say that matters to some samples.
#[derive(Debug)]
pub struct MeteorTables {
    pub(crate) synonyms: Synonyms,
    pub(crate) paraphrases: Paraphrases,
}

impl MeteorTables {
    /// Reads of the tables in a folder what can matter to `samples`. For other samples they are of no use: these would
    /// score too low.
    ///
    /// The folder holds `meteor-1.5.jar` and `data/paraphrase-en.gz`, as pycocoevalcap's folder `meteor` and METEOR 1.5
    /// itself do.
    ///
    /// # Errors
    /// If one of the files is missing, damaged, or not in the form that METEOR 1.5 has it in.
    pub fn read(folder: &Path, samples: &[Sample]) -> Result<Self, MeteorTableError> {
        let open = |file| {
            let failed = |source| MeteorTableError::File { folder: folder.into(), file, source };
            File::open(folder.join(file)).map_err(failed)
        };
        let (jar, paraphrases) = (open(JAR)?, open(PARAPHRASES)?);
        let phrases = phrases(samples);
        Ok(Self {
            synonyms: synonyms(&folder.join(JAR), jar, &phrases)?,
            paraphrases: read_paraphrases(&folder.join(PARAPHRASES), paraphrases, &phrases)?,
        })
    }
}

impl WrongLine {
    fn of(self, file: &Path, table: &'static str) -> MeteorTableError {
        let Self { line, expected, got } = self;
        MeteorTableError::Line { file: file.into(), table, line, expected, got: got.chars().take(60).collect() }
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn phrases(samples: &[Sample]) -> Phrases {
    let mut phrases = Phrases::default();
    for sample in samples {
        for caption in sample.references.iter().chain([&sample.prediction]) {
            phrases.add(&normalised(caption));
        }
    }
    phrases
}

fn synonyms(path: &Path, jar: File, phrases: &Phrases) -> Result<Synonyms, MeteorTableError> {
    let jar = ZipArchive::new(BufReader::new(jar));
    let mut jar = jar.map_err(|source| MeteorTableError::Jar { jar: path.into(), source })?;
    let mut table = |member| {
        let mut text = String::new();
        let read = jar.by_name(member).map_err(io::Error::from).and_then(|mut file| file.read_to_string(&mut text));
        read.map(|_| text).map_err(|source| MeteorTableError::Member { jar: path.into(), member, source })
    };
    let (irregular, sets) = (table(IRREGULAR)?, table(SETS)?);
    let mut words = WordNet::default();
    words.add_irregular(&irregular).map_err(|wrong| wrong.of(path, IRREGULAR))?;
    words.add_sets(&sets).map_err(|wrong| wrong.of(path, SETS))?;
    Ok(words.synonyms(phrases.words()))
}

fn read_paraphrases(path: &Path, file: File, phrases: &Phrases) -> Result<Paraphrases, MeteorTableError> {
    let unpacked = MultiGzDecoder::new(BufReader::new(file));
    Paraphrases::read(BufReader::with_capacity(1 << 16, unpacked), phrases).map_err(|unreadable| match unreadable {
        Unreadable::Io(source) => MeteorTableError::Gzip { file: path.into(), source },
        Unreadable::Line(wrong) => wrong.of(path, "paraphrases"),
    })
}
