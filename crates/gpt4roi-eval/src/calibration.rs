//! How far a model's confidence can be trusted.
//!
//! An answer's confidence is the geometric mean of its tokens' probabilities, as
//! [`Answer::probability`](gpt4roi::chat::Answer::probability) has it.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::metrics::{Accuracy, Tally};

/// Bins of the reliability curve, of equal width. Ten are the custom.
const BINS: usize = 10;

/// Where the coverage curve is measured: most answers of a trained model are nearly certain.
const THRESHOLDS: [f64; 13] = [0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999];

/// Samples drawn to learn how sure the calibration error is.
const RESAMPLES: usize = 400;

/// An answer with its confidence, and whether it is right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confident {
    /// Confidence, in 0..=1.
    pub probability: f64,
    /// Whether the answer is right.
    pub right: bool,
}

/// How confidence and accuracy go together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Answers.
    pub n: usize,
    /// Expected calibration error: the mean over all answers of how far the accuracy of their bin is from its mean
    /// confidence.
    ///
    /// Source: C. Guo et al., “On calibration of modern neural networks”, ICML 2017.
    pub ece: f64,
    /// 95 % interval of the error, by the bootstrap (percentiles of resamples with a fixed seed).
    pub ece_ci95: [f64; 2],
    /// By confidence; bins without an answer are left out.
    pub reliability: Vec<ReliabilityBin>,
    /// What is left, and how good it is, if answers below a threshold are withheld.
    pub coverage: Vec<CoveragePoint>,
}

/// Answers of about the same confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReliabilityBin {
    /// The least confidence in the bin.
    pub from: f64,
    /// Confidence from here on is in the next bin; the last bin has 1, too.
    pub to: f64,
    /// The mean confidence of its answers.
    pub mean_probability: f64,
    /// How often they are right.
    #[serde(flatten)]
    pub accuracy: Accuracy,
}

/// What a threshold comes to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CoveragePoint {
    /// Answers of less confidence are withheld.
    pub threshold: f64,
    /// The share of questions that get an answer.
    pub coverage: f64,
    /// How often these answers are right.
    #[serde(flatten)]
    pub accuracy: Accuracy,
}

/// Sums up.
pub fn calibration(answers: &[Confident]) -> Calibration {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut errors: Vec<f64> = (0..if answers.is_empty() { 0 } else { RESAMPLES })
        .map(|_| {
            let drawn = answers.iter().map(|_| answers[rng.random_range(0..answers.len())]);
            calibration_error(&reliability(&drawn.collect::<Vec<_>>()))
        })
        .collect();
    errors.sort_by(f64::total_cmp);
    let percentile = |share: f64| errors.get((share * errors.len() as f64) as usize).copied();
    let bins = reliability(answers);
    Calibration {
        n: answers.len(),
        ece: calibration_error(&bins),
        ece_ci95: [percentile(0.025).unwrap_or(0.0), percentile(0.975).unwrap_or(1.0)],
        reliability: bins,
        coverage: THRESHOLDS.map(|threshold| coverage(answers, threshold)).into(),
    }
}

fn reliability(answers: &[Confident]) -> Vec<ReliabilityBin> {
    let mut bins = [(Tally::default(), 0.0); BINS];
    for Confident { probability, right } in answers {
        let (tally, sum) = &mut bins[((probability * BINS as f64) as usize).min(BINS - 1)];
        tally.add(*right);
        *sum += probability;
    }
    let edge = |index: usize| index as f64 / BINS as f64;
    let bin = |(index, (tally, sum)): (usize, (Tally, f64))| {
        let accuracy = tally.accuracy();
        let mean_probability = sum / accuracy.n as f64;
        (accuracy.n > 0).then_some(ReliabilityBin {
            from: edge(index),
            to: edge(index + 1),
            mean_probability,
            accuracy,
        })
    };
    bins.into_iter().enumerate().filter_map(bin).collect()
}

fn calibration_error(bins: &[ReliabilityBin]) -> f64 {
    let all: usize = bins.iter().map(|bin| bin.accuracy.n).sum();
    let gap = |bin: &ReliabilityBin| bin.accuracy.n as f64 * (bin.accuracy.accuracy - bin.mean_probability).abs();
    bins.iter().map(gap).sum::<f64>() / all.max(1) as f64
}

fn coverage(answers: &[Confident], threshold: f64) -> CoveragePoint {
    let mut kept = Tally::default();
    answers.iter().filter(|answer| answer.probability >= threshold).for_each(|answer| kept.add(answer.right));
    let accuracy = kept.accuracy();
    CoveragePoint { threshold, coverage: accuracy.n as f64 / answers.len().max(1) as f64, accuracy }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(given: &[(f64, bool)]) -> Vec<Confident> {
        given.iter().map(|&(probability, right)| Confident { probability, right }).collect()
    }

    /// Two answers of 0.9 and 1.0, one of them right: half against 0.95. Two of 0.25, none right: 0 against
    /// 0.25. On the mean that is (2·0.45 + 2·0.25) / 4 = 0.35.
    #[test]
    fn the_error_is_the_mean_gap_between_confidence_and_accuracy() {
        let report = calibration(&answers(&[(0.9, true), (1.0, false), (0.25, false), (0.25, false)]));
        assert_eq!(report.n, 4);
        assert!((report.ece - 0.35).abs() < 1e-12, "{}", report.ece);
        assert!(report.ece_ci95[0] <= report.ece && report.ece <= report.ece_ci95[1], "{:?}", report.ece_ci95);
        let bins: Vec<_> = report.reliability.iter().map(|bin| (bin.from, bin.accuracy.n)).collect();
        assert_eq!(bins, [(0.2, 2), (0.9, 2)]);
    }

    #[test]
    fn a_threshold_withholds_what_is_below_it() {
        let report = calibration(&answers(&[(0.95, true), (0.9, true), (0.6, false), (0.1, false)]));
        let at = |threshold: f64| {
            let point = report.coverage.iter().find(|point| point.threshold == threshold).unwrap();
            (point.coverage, point.accuracy.accuracy)
        };
        assert_eq!((at(0.0), at(0.5), at(0.9), at(0.95)), ((1.0, 0.5), (0.75, 2.0 / 3.0), (0.5, 1.0), (0.25, 1.0)));
        assert_eq!(at(0.99), (0.0, 0.0));
    }

    #[test]
    fn confidence_that_is_kept_has_no_error() {
        let kept = [(0.5, true), (0.5, false), (1.0, true)];
        assert!(calibration(&answers(&kept)).ece < 1e-12);
        let nothing = calibration(&[]);
        assert_eq!((nothing.n, nothing.ece, nothing.ece_ci95), (0, 0.0, [0.0, 1.0]));
        assert!(nothing.reliability.is_empty());
    }
}
