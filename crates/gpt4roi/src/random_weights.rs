//! Weights of any size out of a small table, to measure with where no checkpoint is at hand.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::weights::{TensorSource, WeightsError, WeightsResult};

/// Hands out weights that keep a network's activations in range, without drawing each of them.
///
/// A matrix repeats a table of uniform random values, from another place for every name, scaled to variance
/// 1 / inputs. Vectors named `weight`, those of norms, are ones, biases zeros.
#[derive(Debug)]
pub struct RandomWeights {
    table: Vec<f32>,
    device: Device,
}

/// Not a multiple of any layer's width, so that no two rows of a matrix are alike.
const TABLE: usize = 1_000_003;

impl RandomWeights {
    /// The same weights for the same seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self { table: (0..TABLE).map(|_| rng.random_range(-1.0..1.0)).collect(), device: Device::Cpu }
    }

    /// The same weights on another device.
    pub fn on(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        match shape {
            [_] if name.ends_with("weight") => vec![1.0; count],
            [_] => vec![0.0; count],
            _ => {
                let inputs: usize = shape.iter().skip(1).product();
                let scale = (3.0 / inputs.max(1) as f32).sqrt(); // uniform values in ±1 have variance 1/3
                let start = name.bytes().fold(0usize, |sum, byte| (sum * 31 + usize::from(byte)) % TABLE);
                let scaled: Vec<f32> = self.table.iter().map(|value| value * scale).collect();
                let mut values = Vec::with_capacity(count);
                values.extend_from_slice(&scaled[start..][..count.min(TABLE - start)]);
                while values.len() < count {
                    values.extend_from_slice(&scaled[..TABLE.min(count - values.len())]);
                }
                values
            }
        }
    }
}

impl TensorSource for RandomWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        Tensor::from_vec(self.values(name, shape), shape, &self.device)
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_repeat_and_keep_the_variance() {
        let weights = RandomWeights::new(1);
        let first = weights.values("a.weight", &[1200, 1000]);
        assert_eq!(first, RandomWeights::new(1).values("a.weight", &[1200, 1000]));
        assert_ne!(first[..10], weights.values("b.weight", &[1200, 1000])[..10]);
        let variance = first.iter().map(|x| x * x).sum::<f32>() / first.len() as f32;
        assert!((variance * 1000.0 - 1.0).abs() < 0.01, "{variance}");
        assert_eq!(weights.values("norm.weight", &[3]), [1.0; 3]);
        assert_eq!(weights.values("norm.bias", &[3]), [0.0; 3]);
    }
}
