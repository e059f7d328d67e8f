//! METEOR with all of its stages against METEOR 1.5 itself, by the small tables that `reference/make_meteor_goldens.py`
//! wrote along with the scores; and tables that are not what they should be.

use std::{
    fs::{self, File},
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use gpt4roi_eval::{
    captions::{Corpus, Sample},
    meteor::{Meteor, MeteorScore},
    meteor_tables::{MeteorTableError, MeteorTables},
};
use serde::Deserialize;
use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

/// How far a score may be from the reference's.
const TOLERANCE: f64 = 1e-9;

const JAR: &str = "meteor-1.5.jar";
const PARAPHRASES: &str = "data/paraphrase-en.gz";

#[derive(Deserialize)]
struct Goldens {
    corpus: f64,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    prediction: String,
    references: Vec<String>,
    meteor: f64,
}

impl Item {
    fn sample(&self) -> Sample {
        let words = |text: &String| text.split_whitespace().map(str::to_owned).collect();
        Sample { prediction: words(&self.prediction), references: self.references.iter().map(words).collect() }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/meteor")
}

#[test]
fn scores_are_those_of_the_program() {
    let Goldens { corpus: expected, items } =
        serde_json::from_str(include_str!("data/meteor/goldens.json")).expect("the goldens are JSON");
    let samples: Vec<_> = items.iter().map(Item::sample).collect();
    let tables = MeteorTables::read(&folder(), &samples).expect("the tables are whole");
    let corpus = Corpus::new(&samples, &Meteor::with_tables(tables));
    for (Item { prediction, references, meteor: expected }, got) in items.iter().zip(corpus.samples()) {
        let MeteorScore::Whole(got) = got.meteor else { panic!("expected all four stages, got {:?}", got.meteor) };
        assert!((got - expected).abs() < TOLERANCE, "{prediction} | {references:?}: {got}, expected {expected}");
    }
    let got = corpus.scores(1).meteor.value().score;
    assert!((got - expected).abs() < TOLERANCE, "all together: {got}, expected {expected}");
}

/// A folder with copies of the tables, to damage them.
fn copied() -> TempDir {
    let place = TempDir::new().expect("a folder for the test");
    fs::create_dir(place.path().join("data")).unwrap();
    for file in [JAR, PARAPHRASES] {
        fs::copy(folder().join(file), place.path().join(file)).unwrap();
    }
    place
}

fn refused(folder: &Path) -> (MeteorTableError, String) {
    let error = MeteorTables::read(folder, &[]).expect_err("the tables are not what they should be");
    let message = error.to_string();
    (error, message)
}

#[test]
fn a_folder_without_the_files_is_refused() {
    let place = copied();
    fs::remove_file(place.path().join(PARAPHRASES)).unwrap();
    let (error, message) = refused(place.path());
    assert!(matches!(error, MeteorTableError::File { file: PARAPHRASES, .. }), "{error:?}");
    assert!(message.contains("expected a folder with meteor-1.5.jar and data/paraphrase-en.gz"), "{message}");
    let (error, _) = refused(&place.path().join("none"));
    assert!(matches!(error, MeteorTableError::File { file: JAR, .. }), "{error:?}");
}

#[test]
fn a_jar_that_is_none_or_lacks_a_table_is_refused() {
    let place = copied();
    let jar = place.path().join(JAR);
    fs::write(&jar, "no archive").unwrap();
    let (error, message) = refused(place.path());
    assert!(
        matches!(error, MeteorTableError::Jar { .. }) && message.contains("meteor-1.5.jar: expected a jar"),
        "{message}"
    );

    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    archive.start_file("synonym/english.exceptions", SimpleFileOptions::default()).unwrap();
    fs::write(&jar, archive.finish().unwrap().into_inner()).unwrap();
    let (error, message) = refused(place.path());
    assert!(matches!(error, MeteorTableError::Member { member: "synonym/english.synsets", .. }), "{error:?}");
    assert!(message.contains("expected METEOR's table synonym/english.synsets"), "{message}");

    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, table) in [("synonym/english.exceptions", ""), ("synonym/english.synsets", "cat\nno number\n")] {
        archive.start_file(name, SimpleFileOptions::default()).unwrap();
        archive.write_all(table.as_bytes()).unwrap();
    }
    fs::write(&jar, archive.finish().unwrap().into_inner()).unwrap();
    let (_, message) = refused(place.path());
    let expected =
        "meteor-1.5.jar, line 2 of synonym/english.synsets: expected the numbers of sets of synonyms, got \"no";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn damaged_paraphrases_are_refused() {
    let place = copied();
    let file = place.path().join(PARAPHRASES);
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() - 8] ^= 1; // The checksum of what is packed.
    for (what, damaged) in [("cut", &whole[..whole.len() / 2]), ("flipped", &flipped), ("no gzip", b"0.5\na\nb\n")] {
        fs::write(&file, damaged).unwrap();
        let (error, message) = refused(place.path());
        assert!(matches!(error, MeteorTableError::Gzip { .. }), "{what}: {error:?}");
        assert!(message.contains("paraphrase-en.gz: expected paraphrases as a gzip file"), "{what}: {message}");
    }
    let mut packed = GzEncoder::new(File::create(&file).unwrap(), Compression::default());
    packed.write_all(b"0.5\na\nb\nc\n").unwrap();
    packed.finish().unwrap();
    let (_, message) = refused(place.path());
    assert!(
        message.contains("paraphrase-en.gz, line 4 of paraphrases: expected a probability, got \"c\""),
        "{message}"
    );
}
