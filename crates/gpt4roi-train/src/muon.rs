//! Muon: momentum whose matrices are made orthogonal before they are applied.
//!
//! Source: Keller Jordan and others, "Muon: an optimizer for hidden layers in neural networks", 2024.

use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::optimizer::Rate;

/// Coefficients of the quintic iteration, chosen by the source for a steep start at zero.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// The optimizer of hidden matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Muon {
    /// The full learning rate.
    pub lr: f64,
    /// Decay of the mean of the gradient.
    #[serde(default = "momentum")]
    pub momentum: f64,
    /// Iterations that make the update orthogonal.
    #[serde(default = "iterations")]
    pub iterations: usize,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// How an update depends on the matrix's shape.
    #[serde(default)]
    pub scale: MuonScale,
}

/// How large the update of a matrix is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MuonScale {
    /// √max(1, rows/columns), the source's.
    #[default]
    Spectral,
    /// 0.2·√max(rows, columns): the root mean square of AdamW's updates, so that rates carry over
    /// (Liu and others, "Muon is scalable for LLM training", 2025).
    MatchAdamw,
}

fn momentum() -> f64 {
    0.95
}

fn iterations() -> usize {
    5
}

impl Muon {
    /// Changes `values`, a `rows × columns` matrix, in place.
    pub fn update(
        &self,
        values: &mut [f32],
        gradient: &[f32],
        mean: &mut [f32],
        (rows, columns): (usize, usize),
        rate: Rate,
    ) -> Result<()> {
        let momentum = self.momentum as f32;
        for (mean, &g) in mean.iter_mut().zip(gradient) {
            *mean += (1.0 - momentum) * (g - *mean);
        }
        // Nesterov's look ahead.
        let ahead = gradient.iter().zip(mean.iter()).map(|(g, mean)| g + momentum * (mean - g)).collect();
        let update = orthogonal(&Tensor::from_vec(ahead, (rows, columns), &Device::Cpu)?, self.iterations)?;
        let (rows, columns) = (rows as f64, columns as f64);
        let scale = match self.scale {
            MuonScale::Spectral => (rows / columns).max(1.0).sqrt(),
            MuonScale::MatchAdamw => 0.2 * rows.max(columns).sqrt(),
        };
        let (keep, step) = ((1.0 - rate.lr * rate.weight_decay) as f32, (rate.lr * scale) as f32);
        for (value, update) in values.iter_mut().zip(update.flatten_all()?.to_vec1::<f32>()?) {
            *value = *value * keep - step * update;
        }
        Ok(())
    }
}

/// A tensor's shape as a matrix: the first dimension against all others.
pub fn matrix(shape: &[usize]) -> (usize, usize) {
    (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product())
}

/// Brings all singular values near 1 by Newton and Schulz's iteration.
///
/// # Shapes
/// `[R, C]` → `[R, C]`
pub fn orthogonal(matrix: &Tensor, iterations: usize) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    if rows > columns {
        return orthogonal(&matrix.t()?.contiguous()?, iterations)?.t();
    }
    let norm = f64::from(matrix.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt());
    let mut x = (matrix / (norm + 1e-7))?;
    let [a, b, c] = QUINTIC;
    for _ in 0..iterations {
        let gram = x.matmul(&x.t()?)?;
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        x = ((&x * a)? + polynomial.matmul(&x)?)?;
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five iterations bring singular values from all over (0, 1) into a band around 1, by design not
    /// closer; on a diagonal matrix they are the diagonal.
    #[test]
    fn singular_values_come_near_one() {
        let values = [0.9f32, 0.3, 0.1, 0.05];
        let mut diagonal = vec![0f32; 16];
        for (i, value) in values.iter().enumerate() {
            diagonal[i * 5] = *value;
        }
        let matrix = Tensor::from_vec(diagonal, (4, 4), &Device::Cpu).unwrap();
        let result = orthogonal(&matrix, 5).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (place, value) in result.into_iter().enumerate() {
            let near = if place.is_multiple_of(5) { (0.6..1.3).contains(&value) } else { value.abs() < 1e-6 };
            assert!(near, "{place}: {value}");
        }
    }

    #[test]
    fn kernels_are_matrices_of_their_outputs() {
        assert_eq!(matrix(&[4, 3, 2, 2]), (4, 12));
        assert_eq!(matrix(&[4, 3]), (4, 3));
    }
}
