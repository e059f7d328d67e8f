//! Cross-entropy, with its gradient in one pass.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

/// `Σᵢ weightᵢ · −log softmax(logitsᵢ)[targetᵢ]`.
///
/// # Shapes
/// logits `[N, V]` (f32), `N` targets below `V`, `N` weights → a scalar
///
/// # Errors
/// If the lengths differ or a target is no class.
pub fn cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    if targets.len() != rows || weights.len() != rows {
        candle_core::bail!("{rows} rows of logits, {} targets, {} weights", targets.len(), weights.len());
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= classes) {
        candle_core::bail!("target {target} of {classes} classes");
    }
    logits.contiguous()?.apply_op1(CrossEntropy { targets: targets.into(), weights: weights.into(), classes })
}

/// For each row, whether the largest logit is the target's.
///
/// # Shapes
/// logits `[N, V]`, `N` targets → `N` answers
pub fn correct(logits: &Tensor, targets: &[u32]) -> Result<Vec<bool>> {
    let best: Vec<u32> = logits.detach().argmax(1)?.to_vec1()?;
    Ok(best.iter().zip(targets).map(|(best, target)| best == target).collect())
}

struct CrossEntropy {
    targets: Vec<u32>,
    weights: Vec<f32>,
    classes: usize,
}

impl CrossEntropy {
    /// The largest logit of a row and the sum of e^(logit − largest).
    fn partition(row: &[f32]) -> (f32, f32) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (largest, row.iter().map(|logit| (logit - largest).exp()).sum())
    }

    fn rows<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = (&'a [f32], usize, f32)> {
        let targets = self.targets.iter().map(|&target| target as usize);
        logits.chunks_exact(self.classes).zip(targets).zip(&self.weights).map(|((row, target), &w)| (row, target, w))
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = slice(storage, layout)?;
        let loss: f64 = self
            .rows(logits)
            .map(|(row, target, weight)| {
                let (largest, sum) = Self::partition(row);
                f64::from(weight) * f64::from(sum.ln() + largest - row[target])
            })
            .sum();
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let scale = grad.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        let mut gradient = Vec::with_capacity(values.len());
        for (row, target, weight) in self.rows(&values) {
            let (largest, sum) = Self::partition(row);
            let start = gradient.len();
            gradient.extend(row.iter().map(|logit| scale * weight * (logit - largest).exp() / sum));
            gradient[start + target] -= scale * weight;
        }
        Tensor::from_vec(gradient, logits.shape(), logits.device()).map(Some)
    }
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("cross-entropy needs contiguous logits"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_number_of_classes() {
        let logits = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
        let loss = cross_entropy(&logits, &[0, 3], &[1.0, 0.5]).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 1.5 * 4f32.ln()).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn large_logits_stay_finite() {
        let logits = Tensor::new(&[[1000f32, -1000.0]], &Device::Cpu).unwrap();
        assert_eq!(cross_entropy(&logits, &[1], &[1.0]).unwrap().to_scalar::<f32>().unwrap(), 2000.0);
    }

    #[test]
    fn gradient_agrees_with_finite_differences() {
        let values = [0.3f32, -1.2, 0.7, 2.0, 0.1, -0.4];
        let (targets, weights) = ([2u32, 0], [0.7f32, 1.3]);
        let loss = |values: &[f32]| {
            let logits = Tensor::from_slice(values, (2, 3), &Device::Cpu).unwrap();
            cross_entropy(&logits, &targets, &weights).unwrap().to_scalar::<f32>().unwrap()
        };
        let logits = Var::from_slice(&values, (2, 3), &Device::Cpu).unwrap();
        let doubled = (cross_entropy(&logits, &targets, &weights).unwrap() * 2.0).unwrap();
        let gradient = doubled.backward().unwrap().get(&logits).unwrap().flatten_all().unwrap();
        for (i, analytic) in gradient.to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let mut moved = values;
            moved[i] += 1e-2;
            let above = loss(&moved);
            moved[i] -= 2e-2;
            let numeric = 2.0 * (above - loss(&moved)) / 2e-2;
            assert!((analytic - numeric).abs() < 1e-3, "{i}: {analytic} against {numeric}");
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let logits = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(cross_entropy(&logits, &[2], &[1.0]).is_err());
        assert!(cross_entropy(&logits, &[0, 1], &[1.0, 1.0]).is_err());
        assert!(cross_entropy(&logits, &[0], &[]).is_err());
    }
}
