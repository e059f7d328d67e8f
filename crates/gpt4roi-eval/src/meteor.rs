//! METEOR 1.5 for English with its first two stages: equal words, and words of the same stem.
//!
//! The whole METEOR also matches synonyms and paraphrases, by tables of 60 MB that are not part of this program, and
//! is higher for it; [`NAME`] says so. With `-m 'exact stem'` and `-norm`, METEOR 1.5 computes what stands here, and
//! `tests/captions.rs` compares the two.
//!
//! Source: M. Denkowski and A. Lavie, “Meteor universal: language specific translation evaluation for any target
//! language”, 2014, and the program of that paper.

use std::{collections::BTreeSet, ops::AddAssign};

use rust_stemmers::{Algorithm, Stemmer};

use crate::{captions::Sample, meteor_align::align, meteor_words::normalised};

/// What the score is to be called.
pub const NAME: &str = "METEOR (exact, stem)";

/// How much recall counts against precision.
const ALPHA: f64 = 0.85;
/// How the penalty grows with the number of pieces.
const BETA: f64 = 0.2;
/// The largest penalty.
const GAMMA: f64 = 0.6;
/// How much words with a meaning of their own count against function words.
const DELTA: f64 = 0.75;
/// What a match is worth: of equal words, and of equal stems.
const WEIGHTS: [f64; 2] = [1.0, 0.6];

/// Words with hardly a meaning of their own: those that METEOR 1.5 lists for English.
const FUNCTION_WORDS: &str = "the , . to of and a in that for \" is on 's it with was as said at he by be from have \
    has are his but an this not i will ’ they ) -rrb- ( -lrb- who their had we which were been more or s its would \
    about new one after you : also up when there than $ all out her people she year two - can if last first “ over \
    other ” into some what so -- no time years could ? 't — '";

/// Computes METEOR of samples.
#[expect(missing_debug_implementations, reason = "a stemmer has none")]
pub struct Meteor {
    stemmer: Stemmer,
    function_words: BTreeSet<&'static str>,
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
    matched: [[usize; 2]; 2],
}

impl Default for Meteor {
    fn default() -> Self {
        Self::new()
    }
}

impl Meteor {
    /// Gets the stemmer and the list of function words ready.
    pub fn new() -> Self {
        let function_words = FUNCTION_WORDS.split_whitespace().collect();
        Self { stemmer: Stemmer::create(Algorithm::English), function_words }
    }

    /// Counts a sample against the reference that it scores best with.
    pub fn counts(&self, sample: &Sample) -> MeteorCounts {
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
        let matches = align(prediction, reference, |word| self.stemmer.stem(word).into_owned());
        let mut counts = MeteorCounts {
            prediction: self.side(prediction),
            reference: self.side(reference),
            chunks: matches.chunks(),
        };
        for found in matches.pairs() {
            let kind = |word: &String| usize::from(self.is_function_word(word));
            counts.prediction.matched[found.stage][kind(&prediction[found.prediction])] += 1;
            counts.reference.matched[found.stage][kind(&reference[found.reference])] += 1;
        }
        counts
    }

    fn side(&self, words: &[String]) -> Side {
        let function_words = words.iter().filter(|word| self.is_function_word(word)).count();
        Side { words: words.len(), function_words, matched: [[0; 2]; 2] }
    }

    fn is_function_word(&self, word: &str) -> bool {
        self.function_words.contains(word)
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
        Meteor::new().counts(&Sample::of(prediction, references)).score()
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
        let meteor = Meteor::new();
        let mut sum = meteor.counts(&Sample::of("red cat", &["red cat"]));
        let mut all = MeteorCounts::default();
        all += sum;
        sum = meteor.counts(&Sample::of("big dog", &["small bird"]));
        all += sum;
        // Two of four words; the perfect sample adds no piece, so nothing is punished.
        close(all.score(), 0.5);
    }
}
