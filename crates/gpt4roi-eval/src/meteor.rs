//! METEOR 1.5 for English: words of a prediction stand for words of a reference where they are equal, have the same
//! stem, are synonyms, or are in phrases that paraphrase each other.
//!
//! The last two stages need tables of 60 MB that are not part of this program. Without them METEOR has its first two
//! stages only, and is lower; [`MeteorScore`] tells the two apart. With `-norm`, METEOR 1.5 computes what stands here,
//! without tables for `-m 'exact stem'`; `tests/captions.rs` compares both.
//!
//! Source: M. Denkowski and A. Lavie, “Meteor universal: language specific translation evaluation for any target
//! language”, 2014, and the program of that paper.

use std::{collections::BTreeSet, ops::AddAssign};

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    captions::Sample,
    meteor_align::align,
    meteor_match::{Matcher, Span},
    meteor_tables::MeteorTables,
    meteor_words::normalised,
};

/// How much recall counts against precision.
const ALPHA: f64 = 0.85;
/// How the penalty grows with the number of pieces.
const BETA: f64 = 0.2;
/// The largest penalty.
const GAMMA: f64 = 0.6;
/// How much words with a meaning of their own count against function words.
const DELTA: f64 = 0.75;
/// What a matched word is worth, by the stage that matched it.
const WEIGHTS: [f64; 4] = [1.0, 0.6, 0.8, 0.6];

/// Words with hardly a meaning of their own: those that METEOR 1.5 lists for English.
const FUNCTION_WORDS: &str = "the , . to of and a in that for \" is on 's it with was as said at he by be from have \
    has are his but an this not i will ’ they ) -rrb- ( -lrb- who their had we which were been more or s its would \
    about new one after you : also up when there than $ all out her people she year two - can if last first “ over \
    other ” into some what so -- no time years could ? 't — '";

/// Computes METEOR of samples.
#[expect(missing_debug_implementations, reason = "a stemmer has none")]
pub struct Meteor {
    matcher: Matcher,
    function_words: BTreeSet<&'static str>,
}

/// Something of METEOR, by the stages that it was computed with. The two kinds of scores can't be compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum MeteorScore<T> {
    /// With equal words and equal stems.
    #[serde(rename = "meteor_exact_stem")]
    ExactStem(T),
    /// With synonyms and paraphrases, too, as papers have it.
    #[serde(rename = "meteor")]
    Whole(T),
}

/// What METEOR is made of; sums of these are a corpus' counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MeteorCounts {
    prediction: Side,
    reference: Side,
    /// Pieces that follow each other on both sides.
    chunks: usize,
}

/// Words of one side, and how many of them are matched.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Side {
    words: usize,
    function_words: usize,
    /// By stage: words with a meaning of their own, and function words.
    matched: [[usize; 2]; WEIGHTS.len()],
}

impl Default for Meteor {
    fn default() -> Self {
        Self::new()
    }
}

impl Meteor {
    /// METEOR with its first two stages.
    pub fn new() -> Self {
        Self::by(Matcher::new(None))
    }

    /// METEOR with all four stages, for the samples that the tables were read for.
    pub fn with_tables(tables: MeteorTables) -> Self {
        Self::by(Matcher::new(Some(tables)))
    }

    fn by(matcher: Matcher) -> Self {
        Self { matcher, function_words: FUNCTION_WORDS.split_whitespace().collect() }
    }

    /// Counts each sample against the reference that it scores best with.
    pub fn counts(&self, samples: &[Sample]) -> MeteorScore<Vec<MeteorCounts>> {
        let counts = samples.par_iter().map(|sample| self.best(sample)).collect();
        if self.matcher.has_tables() { MeteorScore::Whole(counts) } else { MeteorScore::ExactStem(counts) }
    }

    fn best(&self, sample: &Sample) -> MeteorCounts {
        let prediction = normalised(&sample.prediction);
        let mut best: Option<(f64, MeteorCounts)> = None;
        for reference in &sample.references {
            let counts = self.against(&prediction, &normalised(reference));
            let score = counts.score();
            if best.is_none_or(|(known, _)| score > known) {
                best = Some((score, counts));
            }
        }
        best.map(|(_, counts)| counts).unwrap_or_default()
    }

    fn against(&self, prediction: &[String], reference: &[String]) -> MeteorCounts {
        let alignment = align(&self.matcher.candidates(prediction, reference));
        let mut counts = MeteorCounts {
            prediction: self.side(prediction),
            reference: self.side(reference),
            chunks: alignment.chunks(),
        };
        for found in alignment.matches() {
            let stage = found.stage as usize;
            self.count(&mut counts.prediction.matched[stage], prediction, found.prediction);
            self.count(&mut counts.reference.matched[stage], reference, found.reference);
        }
        counts
    }

    fn side(&self, words: &[String]) -> Side {
        let function_words = words.iter().filter(|word| self.is_function_word(word)).count();
        Side { words: words.len(), function_words, matched: Default::default() }
    }

    fn count(&self, [content, function]: &mut [usize; 2], words: &[String], matched: Span) {
        for word in &words[matched.range()] {
            *(if self.is_function_word(word) { &mut *function } else { &mut *content }) += 1;
        }
    }

    fn is_function_word(&self, word: &str) -> bool {
        self.function_words.contains(word)
    }
}

impl<T> MeteorScore<T> {
    /// What the score is to be called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ExactStem(_) => "METEOR (exact, stem)",
            Self::Whole(_) => "METEOR",
        }
    }

    /// What it holds, whichever it is.
    pub fn value(&self) -> &T {
        let (Self::ExactStem(value) | Self::Whole(value)) = self;
        value
    }

    /// Something else by the same stages.
    pub(crate) fn with<U>(&self, value: U) -> MeteorScore<U> {
        match self {
            Self::ExactStem(_) => MeteorScore::ExactStem(value),
            Self::Whole(_) => MeteorScore::Whole(value),
        }
    }
}

impl MeteorCounts {
    /// METEOR, in 0..1.
    pub fn score(&self) -> f64 {
        let (precision, recall) = (self.prediction.share(), self.reference.share());
        let mean = 1.0 / ((1.0 - ALPHA) / precision + ALPHA / recall);
        let matched = (self.prediction.all_matched() + self.reference.all_matched()) as f64 / 2.0;
        let pieces = if self.is_perfect() { 0.0 } else { self.chunks as f64 / matched };
        let score = mean * (1.0 - GAMMA * pieces.powf(BETA));
        if score.is_nan() { 0.0 } else { score.max(0.0) }
    }

    /// One piece that is all of both sides.
    fn is_perfect(&self) -> bool {
        self.chunks == 1
            && self.prediction.all_matched() == self.prediction.words
            && self.reference.all_matched() == self.reference.words
    }
}

impl AddAssign for MeteorCounts {
    fn add_assign(&mut self, other: Self) {
        // A perfect sample is not in pieces, and adds none to a corpus.
        self.chunks += if other.is_perfect() { 0 } else { other.chunks };
        self.prediction += other.prediction;
        self.reference += other.reference;
    }
}

impl Side {
    /// The share of words that are matched, by their weights.
    fn share(&self) -> f64 {
        let weighed = |content: f64, function: f64| DELTA * content + (1.0 - DELTA) * function;
        let matched = self.matched.iter().zip(WEIGHTS);
        let matched = matched.map(|([content, function], weight)| weight * weighed(*content as f64, *function as f64));
        matched.sum::<f64>() / weighed((self.words - self.function_words) as f64, self.function_words as f64)
    }

    fn all_matched(&self) -> usize {
        self.matched.iter().flatten().sum()
    }
}

impl AddAssign for Side {
    fn add_assign(&mut self, other: Self) {
        self.words += other.words;
        self.function_words += other.function_words;
        for (sum, more) in self.matched.iter_mut().flatten().zip(other.matched.iter().flatten()) {
            *sum += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(prediction: &str, references: &[&str]) -> f64 {
        counts(&[Sample::of(prediction, references)])[0].score()
    }

    fn counts(samples: &[Sample]) -> Vec<MeteorCounts> {
        Meteor::new().counts(samples).value().clone()
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
    }

    #[test]
    fn equal_captions_score_one() {
        close(score("red cat sleeps", &["red cat sleeps"]), 1.0);
    }

    #[test]
    fn a_word_of_the_same_stem_is_worth_less() {
        // One content word each way, matched at 0.6. One piece of one word costs γ, unless it is everything.
        close(score("cats", &["cat"]), 0.6);
        close(score("cats red", &["cat blue"]), 0.3 * (1.0 - GAMMA));
    }

    #[test]
    fn pieces_are_punished() {
        // All four words are matched in two pieces: 1 - γ (2/4)^β.
        close(score("black cat red dog", &["red dog black cat"]), 1.0 - GAMMA * 0.5f64.powf(BETA));
    }

    #[test]
    fn function_words_count_for_less() {
        // `the` weighs a third of `cat`: precision and recall are 0.25 of 0.25 + 0.75.
        close(score("the cat", &["the dog"]), 0.25 * (1.0 - GAMMA));
    }

    #[test]
    fn the_best_reference_counts() {
        close(score("red cat", &["dog", "red cat", "bird"]), 1.0);
        close(score("", &["dog"]), 0.0);
    }

    #[test]
    fn a_corpus_is_scored_by_its_sums() {
        let samples = [Sample::of("red cat", &["red cat"]), Sample::of("big dog", &["small bird"])];
        let mut all = MeteorCounts::default();
        counts(&samples).into_iter().for_each(|counts| all += counts);
        // Two of four words; the perfect sample adds no piece, so nothing is punished.
        close(all.score(), 0.5);
    }
}
