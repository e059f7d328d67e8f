//! The learning rate over the steps of a stage.

use serde::{Deserialize, Serialize};

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// It stays.
    Constant,
    /// In a straight line.
    Linear,
    /// Along half a cosine wave.
    Cosine,
}

/// A warm-up from zero, then a decay to a floor at the last step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Steps over which the rate rises in a straight line.
    #[serde(default)]
    pub warmup: u64,
    /// How it falls afterwards.
    pub decay: Decay,
    /// The share of the full rate that is left at the end.
    #[serde(default)]
    pub floor: f64,
}

impl Schedule {
    /// The share of the full rate at `step` of `steps`, counted from 0.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let rest = steps.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / rest as f64).min(1.0);
        let left = match self.decay {
            Decay::Constant => return 1.0,
            Decay::Linear => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.floor + (1.0 - self.floor) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_then_decays_to_the_floor() {
        let schedule = |decay, floor| Schedule { warmup: 4, decay, floor };
        let cases = [
            (schedule(Decay::Constant, 0.0), 9, 1.0),
            (schedule(Decay::Linear, 0.0), 0, 0.25),
            (schedule(Decay::Linear, 0.0), 3, 1.0),
            (schedule(Decay::Linear, 0.0), 4, 1.0),
            (schedule(Decay::Linear, 0.0), 8, 0.5), // half of the 8 steps behind the warm-up
            (schedule(Decay::Linear, 0.1), 8, 0.55),
            (schedule(Decay::Cosine, 0.0), 6, 0.5 * (1.0 + std::f64::consts::FRAC_1_SQRT_2)),
            (schedule(Decay::Cosine, 0.2), 8, 0.6),
            (schedule(Decay::Cosine, 0.2), 12, 0.2),
            (schedule(Decay::Cosine, 0.2), 99, 0.2),
        ];
        for (schedule, step, expected) in cases {
            let factor = schedule.factor(step, 12);
            assert!((factor - expected).abs() < 1e-12, "{schedule:?} at {step}: {factor}, expected {expected}");
        }
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_full_rate() {
        let schedule = Schedule { warmup: 0, decay: Decay::Cosine, floor: 0.0 };
        assert_eq!(schedule.factor(0, 10), 1.0);
    }
}
