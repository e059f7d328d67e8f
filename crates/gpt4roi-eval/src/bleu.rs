//! BLEU-1 to BLEU-4: how many runs of up to four words are in a reference, too.
//!
//! As `Bleu` of pycocoevalcap computes it: counts are summed over the corpus before anything is divided,
//! and a sample's length is compared with its closest reference.
//!
//! Source: K. Papineni and others, “BLEU: a method for automatic evaluation of machine translation”, ACL 2002.

use std::{collections::BTreeMap, ops::AddAssign};

use crate::captions::Sample;

/// What a corpus' BLEU is made of; sums of these are a corpus' counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BleuCounts {
    /// Runs of 1 to 4 words that a reference has, too; each as often as the reference that has it most often.
    matches: [usize; 4],
    /// Runs of 1 to 4 words.
    runs: [usize; 4],
    /// Words.
    words: usize,
    /// Words of the reference closest in length, the shorter of two as close.
    reference_words: usize,
}

impl BleuCounts {
    /// Counts one sample.
    pub fn of(sample: &Sample) -> Self {
        let words = sample.prediction.len();
        let lengths = sample.references.iter().map(Vec::len);
        let mut counts = Self {
            words,
            reference_words: lengths.min_by_key(|length| (length.abs_diff(words), *length)).unwrap_or(0),
            ..Self::default()
        };
        for n in 0..4 {
            let most =
                sample.references.iter().map(|reference| runs(reference, n + 1)).reduce(most).unwrap_or_default();
            let said = runs(&sample.prediction, n + 1);
            counts.runs[n] = said.values().sum();
            counts.matches[n] = said.iter().map(|(run, count)| *count.min(most.get(run).unwrap_or(&0))).sum();
        }
        counts
    }

    /// BLEU-1 to BLEU-4, in 0..1.
    pub fn score(&self) -> [f64; 4] {
        // They keep divisions from zero in the reference, and are part of its scores.
        const SMALL: f64 = 1e-9;
        const TINY: f64 = 1e-15;
        let ratio = (self.words as f64 + TINY) / (self.reference_words as f64 + SMALL);
        let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
        let mut product = 1.0;
        std::array::from_fn(|n| {
            product *= (self.matches[n] as f64 + TINY) / (self.runs[n] as f64 + SMALL);
            product.powf(1.0 / (n + 1) as f64) * brevity
        })
    }
}

impl AddAssign for BleuCounts {
    fn add_assign(&mut self, other: Self) {
        for n in 0..4 {
            self.matches[n] += other.matches[n];
            self.runs[n] += other.runs[n];
        }
        self.words += other.words;
        self.reference_words += other.reference_words;
    }
}

/// The runs of `n` words, and how often each occurs.
pub(crate) fn runs(words: &[String], n: usize) -> BTreeMap<&[String], usize> {
    let mut runs = BTreeMap::new();
    words.windows(n).for_each(|run| *runs.entry(run).or_default() += 1);
    runs
}

/// Every run as often as in the list that has it most often.
fn most<'w>(
    mut left: BTreeMap<&'w [String], usize>,
    right: BTreeMap<&'w [String], usize>,
) -> BTreeMap<&'w [String], usize> {
    for (run, count) in right {
        let known = left.entry(run).or_default();
        *known = count.max(*known);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-6, "{got}, expected {expected}");
    }

    #[test]
    fn shares_of_runs_are_averaged_by_their_product() {
        // Of 4 words 3 are right, of 3 pairs 2, of 2 triples 1, and the run of four is not; as long as the reference.
        let counts = BleuCounts::of(&Sample::of("a red cat sleeps", &["a red cat sits"]));
        let [one, two, three, four] = counts.score();
        close(one, 0.75);
        close(two, (0.75f64 * 2.0 / 3.0).sqrt());
        close(three, (0.75f64 * 2.0 / 3.0 * 0.5).cbrt());
        assert!(four < 1e-3, "{four}");
    }

    #[test]
    fn a_word_counts_as_often_as_the_reference_that_has_it_most_often() {
        // The example of the paper: seven times `the` is right twice.
        let references = ["the cat is on the mat", "there is a cat on the mat"];
        let counts = BleuCounts::of(&Sample::of("the the the the the the the", &references));
        assert_eq!((counts.matches[0], counts.runs[0]), (2, 7));
    }

    #[test]
    fn a_short_answer_is_held_against_the_closest_reference() {
        // Of references of 4 and 8 words the one of 4 is closer to 3: the penalty is exp(1 - 4/3).
        let counts = BleuCounts::of(&Sample::of("a b c", &["a b c d e f g h", "a b c d"]));
        close(counts.score()[0], (1.0f64 - 4.0 / 3.0).exp());
    }

    #[test]
    fn an_empty_answer_is_worth_nothing() {
        assert!(BleuCounts::of(&Sample::of("", &["a b"])).score().iter().all(|score| *score < 1e-6));
    }
}
