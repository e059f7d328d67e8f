//! What of a prediction could stand for what of a reference: METEOR's four stages.
//!
//! METEOR compares hashes of 32 bits in place of words and stems; words that are alike by accident differ here.

use std::{collections::HashMap, ops::Range};

use rust_stemmers::{Algorithm, Stemmer};

use crate::{meteor_synonyms::have_one_in_common, meteor_tables::MeteorTables};

/// By what a match was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Equal words.
    Exact,
    /// Words of the same stem.
    Stem,
    /// Words that are synonyms in WordNet.
    Synonym,
    /// Phrases that were translated alike.
    Paraphrase,
}

/// Words that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) words: usize,
}

/// Words that could stand for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) prediction: Span,
    pub(crate) reference: Span,
    pub(crate) stage: Stage,
}

/// For each word of a reference the matches that begin there, in the order of METEOR's search.
#[derive(Debug)]
pub(crate) struct Candidates {
    prediction_words: usize,
    places: Vec<Vec<Match>>,
}

/// Finds matches: by the first two stages, or by all four, which need tables.
pub(crate) struct Matcher {
    stemmer: Stemmer,
    tables: Option<MeteorTables>,
}

impl Matcher {
    pub(crate) fn new(tables: Option<MeteorTables>) -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English), tables }
    }

    pub(crate) fn has_tables(&self) -> bool {
        self.tables.is_some()
    }

    /// Everything that could stand for something.
    ///
    /// What two stages find stands there twice, as METEOR has it. The search then takes it for ambiguous, and leaves it
    /// out where nothing beside it matches: `car` alone is worth nothing for `automobile`.
    pub(crate) fn candidates(&self, prediction: &[String], reference: &[String]) -> Candidates {
        let mut found = Candidates::new(prediction.len(), reference.len());
        found.add_equal(Stage::Exact, prediction, reference, |_, _| true);
        if prediction == reference {
            // METEOR looks no further.
            return found;
        }
        let differ = |said: usize, wanted: usize| prediction[said] != reference[wanted];
        let stems =
            |words: &[String]| words.iter().map(|word| self.stemmer.stem(word).into_owned()).collect::<Vec<_>>();
        let (stems_said, stems_wanted) = (stems(prediction), stems(reference));
        found.add_equal(Stage::Stem, &stems_said, &stems_wanted, differ);
        if let Some(MeteorTables { synonyms, paraphrases }) = &self.tables {
            let sets = |words: &[String]| words.iter().map(|word| synonyms.sets(word)).collect::<Vec<_>>();
            let (sets_said, sets_wanted) = (sets(prediction), sets(reference));
            found.add_words(Stage::Synonym, |said, wanted| {
                have_one_in_common(sets_said[said], sets_wanted[wanted]) && differ(said, wanted)
            });
            // What the table says of the reference's phrases, then what it says of the prediction's.
            let stage = Stage::Paraphrase;
            for (reference, prediction) in paraphrases.pairs(reference, prediction) {
                found.add(Match { prediction, reference, stage });
            }
            for (prediction, reference) in paraphrases.pairs(prediction, reference) {
                found.add(Match { prediction, reference, stage });
            }
        }
        found
    }
}

/// Where each word stands, ascending.
pub(crate) fn places_of(words: &[String]) -> HashMap<&str, Vec<usize>> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    words.iter().enumerate().for_each(|(place, word)| places.entry(word).or_default().push(place));
    places
}

impl Candidates {
    pub(crate) fn new(prediction_words: usize, reference_words: usize) -> Self {
        Self { prediction_words, places: vec![Vec::new(); reference_words] }
    }

    pub(crate) fn add(&mut self, found: Match) {
        self.places[found.reference.start].push(found);
    }

    /// Adds the pairs of single words that are equal and `may_match`.
    fn add_equal(
        &mut self,
        stage: Stage,
        said: &[String],
        wanted: &[String],
        may_match: impl Fn(usize, usize) -> bool,
    ) {
        let said = places_of(said);
        for (reference, word) in wanted.iter().enumerate() {
            let equal = said.get(word.as_str()).into_iter().flatten();
            for &prediction in equal.filter(|prediction| may_match(**prediction, reference)) {
                self.add(Match { prediction: Span::word(prediction), reference: Span::word(reference), stage });
            }
        }
    }

    /// Adds the pairs of single words that match.
    fn add_words(&mut self, stage: Stage, matches: impl Fn(usize, usize) -> bool) {
        for reference in 0..self.places.len() {
            for prediction in (0..self.prediction_words).filter(|prediction| matches(*prediction, reference)) {
                self.add(Match { prediction: Span::word(prediction), reference: Span::word(reference), stage });
            }
        }
    }

    pub(crate) fn prediction_words(&self) -> usize {
        self.prediction_words
    }

    pub(crate) fn places(&self) -> &[Vec<Match>] {
        &self.places
    }
}

impl Span {
    fn word(start: usize) -> Self {
        Self { start, words: 1 }
    }

    pub(crate) fn end(self) -> usize {
        self.start + self.words
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.start..self.end()
    }
}
