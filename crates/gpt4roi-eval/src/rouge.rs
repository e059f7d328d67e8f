//! ROUGE-L: the longest sequence of words that an answer and a reference share, gaps allowed.
//!
//! As `Rouge` of pycocoevalcap computes it: the best precision and the best recall over all references, which may
//! be those of different ones, in a mean that weighs recall by β = 1.2.
//!
//! Source: C.-Y. Lin, “ROUGE: a package for automatic evaluation of summaries”, 2004.

use crate::captions::Sample;

/// The weight of recall.
const BETA: f64 = 1.2;

/// ROUGE-L of one sample, in 0..1. A corpus' score is the mean over its samples.
pub fn rouge_l(sample: &Sample) -> f64 {
    let (mut precision, mut recall) = (0.0f64, 0.0f64);
    for reference in &sample.references {
        let shared = shared(&sample.prediction, reference) as f64;
        precision = precision.max(shared / length(&sample.prediction));
        recall = recall.max(shared / length(reference));
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

/// Words. The reference splits an empty caption into one empty word.
fn length(words: &[String]) -> f64 {
    words.len().max(1) as f64
}

/// The length of the longest common subsequence.
fn shared(left: &[String], right: &[String]) -> usize {
    if left.is_empty() && right.is_empty() {
        return 1; // the empty word of both
    }
    let mut row = vec![0; right.len() + 1];
    for word in left {
        let mut diagonal = 0;
        for (at, other) in right.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == other { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(sample: &Sample, expected: f64) {
        let got = rouge_l(sample);
        assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
    }

    #[test]
    fn words_may_have_others_between_them() {
        // `police the gunman`: 3 of 4 words on both sides, so every mean is 3/4.
        close(&Sample::of("police end the gunman", &["police kill the gunman"]), 0.75);
        // In another order only two of four follow each other.
        close(&Sample::of("the gunman kill police", &["police kill the gunman"]), 0.5);
    }

    #[test]
    fn precision_and_recall_may_come_from_different_references() {
        // `a b` is all of the answer in the first reference and all of the second's only word is in the answer.
        close(&Sample::of("a b", &["a b c d", "b"]), 1.0);
    }

    #[test]
    fn recall_weighs_more() {
        // Precision 1/2, recall 1: 2.44 · 0.5 / (1 + 1.44 · 0.5).
        close(&Sample::of("a b", &["a"]), 2.44 * 0.5 / 1.72);
        close(&Sample::of("a", &["b"]), 0.0);
        close(&Sample::of("", &["b"]), 0.0);
    }
}
