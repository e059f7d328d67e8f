//! Scores of captions against references: BLEU, ROUGE-L, CIDEr and METEOR.
//!
//! `tests/captions.rs` holds each against pycocoevalcap 1.2.

use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rayon::prelude::*;
use serde::Serialize;

use crate::{
    bleu::BleuCounts,
    cider::cider,
    meteor::{Meteor, MeteorCounts, MeteorScore},
    ptb::PtbTokenizer,
    rouge::rouge_l,
};

/// How many corpora are drawn for an interval.
const RESAMPLES: u64 = 1000;

/// An answer and what it is compared with, as words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The words of the answer.
    pub prediction: Vec<String>,
    /// The words of each reference; one at least.
    pub references: Vec<Vec<String>>,
}

/// The scores of one answer, on the scale of [`CaptionScores`].
///
/// CIDEr weighs words by the corpus that the answer was scored in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SampleScores {
    /// BLEU-1 to BLEU-4.
    pub bleu: [f64; 4],
    /// ROUGE-L.
    pub rouge_l: f64,
    /// CIDEr.
    pub cider: f64,
    /// METEOR.
    #[serde(flatten)]
    pub meteor: MeteorScore<f64>,
}

/// The scores of a corpus: 0..1 each, but CIDEr, which is 0..10. Papers print all of them times 100.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CaptionScores {
    /// BLEU-1 to BLEU-4, of counts that are summed over the corpus.
    pub bleu: [Estimate; 4],
    /// The mean of ROUGE-L.
    pub rouge_l: Estimate,
    /// The mean of CIDEr. It depends on the references of the whole corpus.
    pub cider: Estimate,
    /// METEOR of counts that are summed over the corpus.
    #[serde(flatten)]
    pub meteor: MeteorScore<Estimate>,
}

/// A score and how sure it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// The score.
    pub score: f64,
    /// The percentile bootstrap's 95 % interval `[low, high]` over samples.
    ///
    /// Source: P. Koehn, “Statistical significance tests for machine translation evaluation”, EMNLP 2004.
    pub ci95: [f64; 2],
}

/// A corpus with everything counted that its scores are made of.
#[derive(Debug)]
pub struct Corpus {
    bleu: Vec<BleuCounts>,
    rouge_l: Vec<f64>,
    cider: Vec<f64>,
    meteor: MeteorScore<Vec<MeteorCounts>>,
}

impl Sample {
    /// Cuts an answer and its references into words.
    pub fn new(tokenizer: &PtbTokenizer, prediction: &str, references: &[String]) -> Self {
        let words = |caption: &String| tokenizer.words(caption);
        Self { prediction: tokenizer.words(prediction), references: references.iter().map(words).collect() }
    }

    /// Cuts at spaces.
    #[cfg(test)]
    pub(crate) fn of(prediction: &str, references: &[&str]) -> Self {
        let words = |caption: &str| caption.split_whitespace().map(str::to_owned).collect();
        Self { prediction: words(prediction), references: references.iter().map(|caption| words(caption)).collect() }
    }
}

impl Corpus {
    /// Counts a corpus.
    pub fn new(samples: &[Sample], meteor: &Meteor) -> Self {
        Self {
            bleu: samples.iter().map(BleuCounts::of).collect(),
            rouge_l: samples.iter().map(rouge_l).collect(),
            cider: cider(samples),
            meteor: meteor.counts(samples),
        }
    }

    /// The scores of each sample.
    pub fn samples(&self) -> Vec<SampleScores> {
        let of = |at: usize| SampleScores {
            bleu: self.bleu[at].score(),
            rouge_l: self.rouge_l[at],
            cider: self.cider[at],
            meteor: self.meteor.with(self.meteor.value()[at].score()),
        };
        (0..self.rouge_l.len()).map(of).collect()
    }

    /// The scores of the corpus, with intervals from a thousand corpora drawn from it.
    ///
    /// A corpus that is drawn keeps the weights that CIDEr gives to words here.
    pub fn scores(&self, seed: u64) -> CaptionScores {
        let all = self.score(0..self.rouge_l.len());
        let drawn: Vec<[f64; 7]> = (0..RESAMPLES).into_par_iter().map(|index| self.resample(seed, index)).collect();
        let [bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider, meteor] = std::array::from_fn(|which| {
            let scores = drawn.iter().map(|scores| scores[which]).collect();
            Estimate { score: all[which], ci95: middle(scores) }
        });
        CaptionScores { bleu: [bleu_1, bleu_2, bleu_3, bleu_4], rouge_l, cider, meteor: self.meteor.with(meteor) }
    }

    /// The scores of a corpus of the same size, drawn from this one with replacement.
    fn resample(&self, seed: u64, index: u64) -> [f64; 7] {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        let count = self.rouge_l.len();
        self.score((0..count).map(|_| rng.random_range(0..count)))
    }

    /// BLEU-1 to BLEU-4, ROUGE-L, CIDEr and METEOR of some samples.
    fn score(&self, samples: impl Iterator<Item = usize>) -> [f64; 7] {
        let (mut bleu, mut meteor) = (BleuCounts::default(), MeteorCounts::default());
        let (mut rouge_l, mut cider, mut count) = (0.0, 0.0, 0.0f64);
        for at in samples {
            bleu += self.bleu[at];
            meteor += self.meteor.value()[at];
            rouge_l += self.rouge_l[at];
            cider += self.cider[at];
            count += 1.0;
        }
        let [bleu_1, bleu_2, bleu_3, bleu_4] = bleu.score();
        let count = count.max(1.0);
        [bleu_1, bleu_2, bleu_3, bleu_4, rouge_l / count, cider / count, meteor.score()]
    }
}

/// What is left of scores without the lowest and the highest fortieth.
fn middle(mut scores: Vec<f64>) -> [f64; 2] {
    scores.sort_by(f64::total_cmp);
    let out = scores.len() / 40;
    [scores[out], scores[scores.len() - 1 - out]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_the_score_and_narrows_with_more_samples() {
        let right = Sample::of("a b c d", &["a b c d"]);
        let wrong = Sample::of("e f g h", &["i j k l"]);
        let width = |times: usize| {
            let samples = [vec![right.clone(); times], vec![wrong.clone(); times]].concat();
            let Estimate { score, ci95: [low, high] } = Corpus::new(&samples, &Meteor::new()).scores(1).rouge_l;
            assert!((score - 0.5).abs() < 1e-12 && low < 0.5 && 0.5 < high, "{low} {score} {high}");
            high - low
        };
        // The width follows the root of the number of samples: ten times as many, a third.
        let ratio = width(20) / width(200);
        assert!((2.5..4.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn an_interval_is_the_same_every_time() {
        let samples = [Sample::of("a b", &["a c"]), Sample::of("d", &["d"]), Sample::of("e", &["f"])];
        let corpus = Corpus::new(&samples, &Meteor::new());
        assert_eq!(corpus.scores(3), corpus.scores(3));
        assert_ne!(corpus.scores(3).bleu[0].ci95, [0.0; 2]);
    }

    #[test]
    fn the_middle_leaves_out_a_fortieth_on_either_side() {
        assert_eq!(middle((0..1000).map(f64::from).collect()), [25.0, 974.0]);
    }
}
