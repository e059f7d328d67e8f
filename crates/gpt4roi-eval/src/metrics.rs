//! Shares of right answers and how sure they are.

use serde::Serialize;

/// A share of right answers with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Right answers over all answers; 0 when none was asked for.
    pub accuracy: f64,
    /// Answers.
    pub n: usize,
    /// Wilson's 95 % interval `[low, high]`.
    pub ci95: [f64; 2],
}

/// Counts right answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    right: usize,
    all: usize,
}

impl Tally {
    /// Counts one answer.
    pub fn add(&mut self, right: bool) {
        self.right += usize::from(right);
        self.all += 1;
    }

    /// So many right ones of so many.
    pub fn of(right: usize, all: usize) -> Self {
        Self { right, all }
    }

    /// Counts another tally's answers, too.
    pub fn merge(&mut self, other: Self) {
        self.right += other.right;
        self.all += other.all;
    }

    /// The share and its interval.
    pub fn accuracy(&self) -> Accuracy {
        let share = if self.all == 0 { 0.0 } else { self.right as f64 / self.all as f64 };
        Accuracy { accuracy: share, n: self.all, ci95: wilson(self.right, self.all) }
    }
}

/// Wilson's score interval at 95 %: unlike the usual normal interval it stays within 0..1 and is
/// right for shares near either end.
///
/// Source: E. B. Wilson, “Probable inference, the law of succession, and statistical inference”,
/// JASA 22 (1927).
fn wilson(right: usize, all: usize) -> [f64; 2] {
    if all == 0 {
        return [0.0, 1.0];
    }
    const Z: f64 = 1.959_963_984_540_054; // the 97.5 % point of the normal distribution
    let (n, share) = (all as f64, right as f64 / all as f64);
    let scale = 1.0 + Z * Z / n;
    let centre = (share + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_matches_statsmodels() {
        // statsmodels.stats.proportion.proportion_confint(right, all, method="wilson")
        let cases = [
            ((8, 10), [0.490_162_47, 0.943_317_84]),
            ((0, 10), [0.0, 0.277_532_79]),
            ((10, 10), [0.722_467_21, 1.0]),
            ((425, 500), [0.816_038_92, 0.878_624_04]),
        ];
        for ((right, all), expected) in cases {
            let got = wilson(right, all);
            assert!(
                (0..2).all(|i| (got[i] - expected[i]).abs() < 1e-6),
                "{right}/{all}: {got:?}, expected {expected:?}"
            );
        }
    }

    #[test]
    fn nothing_asked_says_nothing() {
        assert_eq!(Tally::default().accuracy(), Accuracy { accuracy: 0.0, n: 0, ci95: [0.0, 1.0] });
    }

    #[test]
    fn tallies_add_up() {
        let (mut a, mut b) = (Tally::default(), Tally::default());
        a.add(true);
        b.add(false);
        b.add(true);
        a.merge(b);
        assert_eq!((a.accuracy().n, a.right), (3, 2));
    }
}
