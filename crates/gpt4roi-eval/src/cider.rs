//! CIDEr: runs of words that a corpus has rarely say more than those that it has everywhere.
//!
//! As `Cider` of pycocoevalcap computes it, which is the CIDEr-D of the paper: every run of one to four words is
//! weighed by how few samples have it among their references, counts are clipped to the reference's, and a Gaussian
//! of σ = 6 punishes other lengths. **A score depends on the whole corpus**: the same answer scores otherwise among
//! others, and one sample alone scores zero, because whatever stands in every sample weighs nothing.
//!
//! Source: R. Vedantam, C. L. Zitnick and D. Parikh, “CIDEr: consensus-based image description evaluation”, CVPR 2015.

use std::collections::{BTreeMap, BTreeSet};

use crate::{bleu::runs, captions::Sample};

/// The width of the Gaussian over differences of length.
const SIGMA: f64 = 6.0;

/// CIDEr of every sample of a corpus, in 0..10. The corpus' score is the mean.
pub fn cider(corpus: &[Sample]) -> Vec<f64> {
    let weights = Weights::of(corpus);
    corpus
        .iter()
        .map(|sample| {
            let said = weights.weigh(&sample.prediction);
            let likeness = sample.references.iter().map(|reference| said.likeness(&weights.weigh(reference)));
            10.0 * likeness.sum::<f64>() / sample.references.len().max(1) as f64
        })
        .collect()
}

/// How much the runs of a corpus weigh.
struct Weights<'c> {
    /// In how many samples some reference has a run.
    samples_with: BTreeMap<&'c [String], usize>,
    /// The logarithm of the number of samples.
    of_all: f64,
}

/// A caption's runs by length, each as often as it occurs times its weight.
struct Weighed<'w> {
    by_length: [BTreeMap<&'w [String], f64>; 4],
    norms: [f64; 4],
    /// Pairs of words: the reference counts these where the paper says words.
    length: f64,
}

impl<'c> Weights<'c> {
    fn of(corpus: &'c [Sample]) -> Self {
        let mut samples_with = BTreeMap::new();
        for sample in corpus {
            let all = sample.references.iter().flat_map(|reference| (1..=4).flat_map(|n| reference.windows(n)));
            all.collect::<BTreeSet<_>>().into_iter().for_each(|run| *samples_with.entry(run).or_default() += 1);
        }
        Self { samples_with, of_all: (corpus.len() as f64).ln() }
    }

    fn weigh<'w>(&self, words: &'w [String]) -> Weighed<'w> {
        let by_length = std::array::from_fn(|n| {
            let weighed = |(run, count)| (run, count as f64 * self.weight(run));
            runs(words, n + 1).into_iter().map(weighed).collect::<BTreeMap<&[String], f64>>()
        });
        let norms =
            std::array::from_fn(|n: usize| by_length[n].values().map(|value| value * value).sum::<f64>().sqrt());
        Weighed { by_length, norms, length: words.len().saturating_sub(1) as f64 }
    }

    /// A run that no reference has weighs as if one had it.
    fn weight(&self, run: &[String]) -> f64 {
        self.of_all - (self.samples_with.get(run).copied().unwrap_or(1) as f64).ln()
    }
}

impl Weighed<'_> {
    /// The mean over the lengths of runs of how alike two captions are, in 0..1.
    fn likeness(&self, reference: &Self) -> f64 {
        let longer = self.length - reference.length;
        let penalty = (-longer * longer / (2.0 * SIGMA * SIGMA)).exp();
        (0..4).map(|n| self.cosine(reference, n) * penalty).sum::<f64>() / 4.0
    }

    fn cosine(&self, reference: &Self, n: usize) -> f64 {
        let norms = self.norms[n] * reference.norms[n];
        if norms == 0.0 {
            return 0.0;
        }
        let shared =
            self.by_length[n].iter().filter_map(|(run, value)| Some((value, reference.by_length[n].get(run)?)));
        shared.map(|(value, other)| value.min(*other) * other).sum::<f64>() / norms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_every_sample_weighs_nothing() {
        assert_eq!(cider(&[Sample::of("a red cat", &["a red cat"])]), [0.0]);
    }

    #[test]
    fn a_perfect_answer_of_four_rare_words_scores_ten() {
        let corpus = [Sample::of("a b c d", &["a b c d"]), Sample::of("e f g h", &["e f g h"])];
        let scores = cider(&corpus);
        assert!(scores.iter().all(|score| (score - 10.0).abs() < 1e-9), "{scores:?}");
    }

    #[test]
    fn shorter_runs_count_for_less() {
        // Two rare words each: words and pairs are all right, runs of three and four there are none, so half of ten.
        let corpus = [Sample::of("a b", &["a b"]), Sample::of("c d", &["c d"])];
        let scores = cider(&corpus);
        assert!(scores.iter().all(|score| (score - 5.0).abs() < 1e-9), "{scores:?}");
    }

    #[test]
    fn a_longer_answer_is_punished_by_the_gaussian() {
        // Of words `a` alone is shared: cosine 1/2 (four words against one), pairs differ by three.
        let corpus = [Sample::of("a x y z", &["a"]), Sample::of("b", &["c"])];
        let expected = 10.0 / 4.0 * 0.5 * (-9.0f64 / 72.0).exp();
        let scores = cider(&corpus);
        assert!((scores[0] - expected).abs() < 1e-9, "{scores:?}, expected {expected}");
        assert_eq!(scores[1], 0.0);
    }
}
