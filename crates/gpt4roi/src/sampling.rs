//! From logits to the next token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely one.
    Greedy,
    /// Temperature, then top-k, then softmax, then top-p, then a draw.
    Random {
        /// Divides the logits; above 0.
        temperature: f64,
        /// Keeps the k most likely tokens; 0 keeps all.
        top_k: usize,
        /// Keeps the most likely tokens that together reach this probability; 1 keeps all.
        top_p: f64,
        /// Where the draws begin.
        seed: u64,
    },
}

impl Sampling {
    /// The original demo's settings: temperature 0.2, and top-k 50 because that was the default of
    /// the library it used.
    pub fn original(seed: u64) -> Self {
        Self::Random { temperature: 0.2, top_k: 50, top_p: 1.0, seed }
    }
}

/// Logits or settings that no token can be drawn from.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A setting outside its range.
    #[error("sampling: {setting} must be {expected}, got {got}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What would be accepted.
        expected: &'static str,
        /// What was given.
        got: f64,
    },
    /// A logit that is not a number, or infinitely large.
    #[error("the logit of token {token} is {value}, expected a finite number")]
    NotFinite {
        /// The token.
        token: usize,
        /// Its logit: NaN or +∞.
        value: f32,
    },
    /// No token is possible: every logit is −∞, or there is none.
    #[error("none of {tokens} tokens is possible: every logit is -inf")]
    Impossible {
        /// How many logits there were.
        tokens: usize,
    },
    /// A token that there are no logits of.
    #[error("expected a token below {tokens}, of which there are logits, got {token}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// How many logits there were.
        tokens: usize,
    },
}

/// A token and how sure the model was of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token's id.
    pub token: u32,
    /// The natural logarithm of its probability by the model itself, before temperature and cuts.
    pub log_probability: f64,
}

/// Draws tokens, one after the other; the same seed and logits give the same tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    random: Option<Random>,
}

#[derive(Clone, Debug)]
struct Random {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the beginning of its draws.
    ///
    /// # Errors
    /// [`SamplingError::Setting`] if the temperature is not finite and above 0, or top-p not in (0, 1].
    pub fn new(sampling: &Sampling) -> Result<Self, SamplingError> {
        let &Sampling::Random { temperature, top_k, top_p, seed } = sampling else {
            return Ok(Self { random: None });
        };
        if !(temperature.is_finite() && temperature > 0.0) {
            let expected = "a finite number above 0 (0 is what greedy decoding is for)";
            return Err(SamplingError::Setting { setting: "temperature", expected, got: temperature });
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(SamplingError::Setting { setting: "top-p", expected: "above 0 and at most 1", got: top_p });
        }
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Ok(Self { random: Some(Random { temperature, top_k, top_p, rng }) })
    }

    /// The next token. Equal logits are ordered by id, so that nothing is left to chance but the draw.
    ///
    /// # Shapes
    /// logits `[V]`; −∞ means that a token is impossible
    ///
    /// # Errors
    /// [`SamplingError::NotFinite`] and [`SamplingError::Impossible`]: a broken model must end the
    /// answer, not colour it.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Choice, SamplingError> {
        let probabilities = LogProbabilities::new(logits)?;
        let best = probabilities.best;
        let token = match &mut self.random {
            None => best as u32,
            Some(random) => random.draw(logits, logits[best]) as u32,
        };
        Ok(Choice { token, log_probability: probabilities.of(token)? })
    }
}

/// How probable the model finds each token, by its logits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogProbabilities<'a> {
    logits: &'a [f32],
    /// The token with the largest logit.
    best: usize,
    /// The logarithm of the sum of what all tokens weigh, beside the most likely one.
    log_sum: f64,
}

impl<'a> LogProbabilities<'a> {
    /// # Shapes
    /// logits `[V]`; −∞ means that a token is impossible
    ///
    /// # Errors
    /// [`SamplingError::NotFinite`] and [`SamplingError::Impossible`].
    pub(crate) fn new(logits: &'a [f32]) -> Result<Self, SamplingError> {
        let best = most_likely(logits)?;
        let log_sum = logits.iter().map(|&logit| above(logit, logits[best]).exp()).sum::<f64>().ln();
        Ok(Self { logits, best, log_sum })
    }

    /// The natural logarithm of a token's probability; −∞ if it is impossible.
    ///
    /// # Errors
    /// [`SamplingError::UnknownToken`] if there is no logit of it.
    pub(crate) fn of(&self, token: u32) -> Result<f64, SamplingError> {
        let unknown = SamplingError::UnknownToken { token, tokens: self.logits.len() };
        let &logit = self.logits.get(token as usize).ok_or(unknown)?;
        Ok(above(logit, self.logits[self.best]) - self.log_sum)
    }
}

/// How far a logit lies above the largest one: 0 or less.
fn above(logit: f32, largest: f32) -> f64 {
    f64::from(logit) - f64::from(largest)
}

/// The index of the largest logit, after all of them were looked at.
fn most_likely(logits: &[f32]) -> Result<usize, SamplingError> {
    let mut best: Option<usize> = None;
    for (token, &value) in logits.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return Err(SamplingError::NotFinite { token, value });
        }
        if value > best.map_or(f32::NEG_INFINITY, |best| logits[best]) {
            best = Some(token);
        }
    }
    best.ok_or(SamplingError::Impossible { tokens: logits.len() })
}

impl Random {
    fn draw(&mut self, logits: &[f32], largest: f32) -> usize {
        // The largest logit is taken off before the division, so that a small temperature can't overflow.
        let weight = |token: usize| (above(logits[token], largest) / self.temperature).exp();
        let mut kept: Vec<(usize, f64)> = (0..logits.len()).map(|token| (token, weight(token))).collect();
        // The order of weights is that of logits; a stable sort leaves equal ones in the order of ids.
        kept.sort_by(|a, b| logits[b.0].total_cmp(&logits[a.0]));
        if self.top_k > 0 {
            kept.truncate(self.top_k);
        }
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let kept = nucleus(&kept, self.top_p * total);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.random::<f64>() * total;
        for &(token, weight) in kept {
            if left < weight {
                return token;
            }
            left -= weight;
        }
        // Rounding may leave a crumb behind the last token; it belongs to the most likely one.
        kept[0].0
    }
}

/// The shortest beginning whose weights reach `mass`; at least one token.
fn nucleus(sorted: &[(usize, f64)], mass: f64) -> &[(usize, f64)] {
    let mut reached = 0.0;
    for (index, (_, weight)) in sorted.iter().enumerate() {
        reached += weight;
        if reached >= mass {
            return &sorted[..=index];
        }
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(temperature: f64, top_k: usize, top_p: f64, seed: u64) -> Sampling {
        Sampling::Random { temperature, top_k, top_p, seed }
    }

    fn draws(sampling: &Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..count).map(|_| sampler.sample(logits).unwrap().token).collect()
    }

    /// Logits whose softmax is 0.5, 0.3, 0.15, 0.05.
    fn known() -> [f32; 4] {
        [0.15f32, 0.5, 0.05, 0.3].map(f32::ln)
    }

    #[test]
    fn greedy_takes_the_largest_and_the_first_of_equals() {
        struct Case {
            logits: &'static [f32],
            token: u32,
        }
        let cases = [
            Case { logits: &[1.0], token: 0 },
            Case { logits: &[-3.0, -1.0, -2.0], token: 1 },
            Case { logits: &[2.0, 5.0, 5.0], token: 1 },
            Case { logits: &[f32::NEG_INFINITY, -1e30], token: 1 },
            Case { logits: &[f32::MIN, f32::MAX], token: 1 },
        ];
        for Case { logits, token } in cases {
            let choice = Sampler::new(&Sampling::Greedy).unwrap().sample(logits).unwrap();
            assert_eq!(choice.token, token, "{logits:?}");
            assert!(choice.log_probability <= 0.0, "{logits:?}");
        }
    }

    #[test]
    fn the_log_probability_is_the_models_own() {
        let greedy = Sampler::new(&Sampling::Greedy).unwrap().sample(&known()).unwrap();
        assert!((greedy.log_probability - 0.5f64.ln()).abs() < 1e-6);
        // Temperature and top-k change the draw, not what the model thought of the token.
        let cold = Sampler::new(&random(0.1, 1, 1.0, 0)).unwrap().sample(&known()).unwrap();
        assert!((cold.log_probability - 0.5f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_token_is_as_probable_as_its_logit_says() {
        let known = known();
        let probabilities = LogProbabilities::new(&known).unwrap();
        for (token, share) in [(0, 0.15f64), (2, 0.05)] {
            assert!((probabilities.of(token).unwrap() - share.ln()).abs() < 1e-6);
        }
        assert_eq!(probabilities.of(9), Err(SamplingError::UnknownToken { token: 9, tokens: 4 }));
        let impossible = [0.0, f32::NEG_INFINITY];
        assert_eq!(LogProbabilities::new(&impossible).unwrap().of(1), Ok(f64::NEG_INFINITY));
    }

    #[test]
    fn broken_logits_are_an_error_and_never_a_sample() {
        const INF: f32 = f32::INFINITY;
        for sampling in [Sampling::Greedy, random(1.0, 0, 1.0, 1), random(0.2, 50, 0.9, 1)] {
            let sample = |logits: &[f32]| Sampler::new(&sampling).unwrap().sample(logits);
            for (logits, token) in [
                (&[f32::NAN][..], 0),
                (&[1.0, f32::NAN, 3.0], 1),
                (&[9.0, 1.0, f32::NAN], 2),
                (&[INF], 0),
                (&[0.0, INF], 1),
                (&[-INF, INF], 1),
            ] {
                let error = sample(logits).unwrap_err();
                assert!(
                    matches!(error, SamplingError::NotFinite { token: t, .. } if t == token),
                    "{logits:?}: {error}"
                );
            }
            assert_eq!(sample(&[-INF, -INF]), Err(SamplingError::Impossible { tokens: 2 }));
            assert_eq!(sample(&[]), Err(SamplingError::Impossible { tokens: 0 }));
        }
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        for (sampling, name) in [
            (random(0.0, 0, 1.0, 0), "temperature"),
            (random(-1.0, 0, 1.0, 0), "temperature"),
            (random(f64::NAN, 0, 1.0, 0), "temperature"),
            (random(f64::INFINITY, 0, 1.0, 0), "temperature"),
            (random(1.0, 0, 0.0, 0), "top-p"),
            (random(1.0, 0, 1.1, 0), "top-p"),
            (random(1.0, 0, f64::NAN, 0), "top-p"),
        ] {
            let error = Sampler::new(&sampling).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        // 20,000 draws: the standard error of a share is at most 0.0036, so 0.015 is four of them.
        struct Case {
            sampling: Sampling,
            shares: [f64; 4],
        }
        let cases = [
            Case { sampling: random(1.0, 0, 1.0, 7), shares: [0.15, 0.5, 0.05, 0.3] },
            // Squared and normalised: 0.0225 + 0.25 + 0.0025 + 0.09 = 0.365.
            Case { sampling: random(0.5, 0, 1.0, 7), shares: [0.0616, 0.6849, 0.0068, 0.2466] },
            Case { sampling: random(1.0, 2, 1.0, 7), shares: [0.0, 0.625, 0.0, 0.375] },
            // 0.5 + 0.3 reach 0.8 minus rounding room; 0.79 needs both, 0.5 only the first.
            Case { sampling: random(1.0, 0, 0.79, 7), shares: [0.0, 0.625, 0.0, 0.375] },
            Case { sampling: random(1.0, 0, 0.49, 7), shares: [0.0, 1.0, 0.0, 0.0] },
            // Top-k comes before the softmax: of 0.625 and 0.375, the first reaches 0.6 alone.
            Case { sampling: random(1.0, 2, 0.6, 7), shares: [0.0, 1.0, 0.0, 0.0] },
            Case { sampling: random(1.0, 99, 1.0, 7), shares: [0.15, 0.5, 0.05, 0.3] },
        ];
        for Case { sampling, shares } in cases {
            let drawn = draws(&sampling, &known(), 20_000);
            for (token, share) in shares.into_iter().enumerate() {
                let got = drawn.iter().filter(|&&t| t as usize == token).count() as f64 / drawn.len() as f64;
                assert!((got - share).abs() < 0.015, "{sampling:?}: token {token} got {got}, expected {share}");
                assert!(share > 0.0 || got == 0.0, "{sampling:?}: token {token} was cut but drawn");
            }
        }
    }

    #[test]
    fn a_seed_fixes_the_draws() {
        let first = draws(&random(1.0, 0, 1.0, 3), &known(), 64);
        assert_eq!(first, draws(&random(1.0, 0, 1.0, 3), &known(), 64));
        assert_ne!(first, draws(&random(1.0, 0, 1.0, 4), &known(), 64));
    }

    #[test]
    fn extreme_temperatures_stay_numbers() {
        let logits = [1000.0, -1000.0, f32::NEG_INFINITY];
        assert_eq!(draws(&random(1e-300, 0, 1.0, 0), &logits, 8), [0; 8]);
        assert!(draws(&random(1e300, 0, 1.0, 0), &logits, 200).iter().all(|&token| token < 2));
    }
}
