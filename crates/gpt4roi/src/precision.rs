//! In how many bits weights are kept, and what is computed with them.

use std::{fmt, str::FromStr, sync::Arc};

use candle_core::{DType, Result, Tensor};
use gpt4roi_kernels::{HalfFormat, HalfMatrix};
use serde::{Deserialize, Serialize};

use crate::{
    layers::Matrix,
    ops::values,
    weights::{WeightsError, WeightsResult},
};

/// In how many bits the numbers of a model are kept.
///
/// On a CPU this concerns the matrices of linear layers and embeddings, which are nearly all of a language model; they
/// are widened in registers, and everything else is computed in f32. On another device all weights and activations are
/// of this type, norms and softmax excepted. Quantised weights stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// IEEE 754 half precision, in which GPT4RoI and LLaMA were published.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Precision {
    /// All of them, the widest first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The engine's name.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// A tensor that layers compute with.
    pub(crate) fn tensor(self, tensor: Tensor) -> Result<Tensor> {
        match (self, tensor.device().is_cpu()) {
            (Self::F32, _) | (_, true) => Ok(tensor),
            _ => tensor.to_dtype(self.dtype()),
        }
    }

    /// The weight of a linear layer or of an embedding.
    pub(crate) fn matrix(self, name: &str, matrix: Matrix) -> WeightsResult<Matrix> {
        let Matrix::Dense(weight) = matrix else { return Ok(matrix) };
        let error = |source| WeightsError::Tensor { name: name.to_owned(), source };
        let format = match self {
            Self::F32 => return Ok(Matrix::Dense(weight)),
            _ if !weight.device().is_cpu() => return self.tensor(weight).map(Matrix::Dense).map_err(error),
            Self::F16 => HalfFormat::F16,
            Self::Bf16 => HalfFormat::Bf16,
        };
        let weight = weight.contiguous().map_err(error)?;
        let (rows, columns) = weight.dims2().map_err(error)?;
        HalfMatrix::from_f32(format, rows, columns, &values(&weight).map_err(error)?)
            .map(|matrix| Matrix::Half(Arc::new(matrix)))
            .map_err(|source| WeightsError::Half { name: name.to_owned(), source })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dtype().as_str())
    }
}

/// A text that names no precision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected f32, f16 or bf16, got {0}")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(text: &str) -> std::result::Result<Self, UnknownPrecision> {
        let named = Self::ALL.into_iter().find(|precision| precision.to_string() == text);
        named.ok_or_else(|| UnknownPrecision(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{
        config::Config,
        llama::Llama,
        random_weights::RandomWeights,
        weights::{TensorSource, Weights},
    };

    #[test]
    fn precisions_are_called_as_everywhere() {
        for (text, precision) in [("f32", Precision::F32), ("f16", Precision::F16), ("bf16", Precision::Bf16)] {
            assert_eq!((text.parse(), precision.to_string().as_str()), (Ok(precision), text));
        }
        let error = "f64".parse::<Precision>().unwrap_err();
        assert_eq!(error.to_string(), "expected f32, f16 or bf16, got f64");
    }

    fn logits(weights: &Weights) -> (Llama, Tensor) {
        let llama = Llama::load(weights, &Config::nano(70).llama).unwrap();
        let ids = Tensor::arange(0u32, 40, &Device::Cpu).unwrap();
        let embeds = llama.embed(&ids).unwrap().unsqueeze(0).unwrap();
        let hidden = llama.forward(&embeds, &mut llama.new_cache()).unwrap();
        let logits = llama.logits(&hidden).unwrap();
        (llama, logits)
    }

    fn relative_error(got: &Tensor, expected: &Tensor) -> f32 {
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        norm(&(got - expected).unwrap()) / norm(expected)
    }

    /// Random weights as a checkpoint in half precision has them.
    struct Rounded(RandomWeights, DType);

    impl TensorSource for Rounded {
        fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
            let rounded = self.0.tensor(name, shape)?.to_dtype(self.1).and_then(|half| half.to_dtype(DType::F32));
            rounded.map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
        }
    }

    /// Weights that were stored in 16 bits lose nothing, so that only sums are rounded differently; other ones lose
    /// their last bits. Both take half of the memory.
    #[test]
    fn sixteen_bits_take_half_of_the_memory_and_compute_the_same() {
        let exact = Weights::new(Arc::new(RandomWeights::new(3)));
        let (wide, expected) = logits(&exact);
        for (precision, loss) in [(Precision::F16, 1e-3), (Precision::Bf16, 1e-2)] {
            let (llama, got) = logits(&exact.clone().in_precision(precision));
            assert_eq!(2 * llama.bytes(), wide.bytes());
            let error = relative_error(&got, &expected);
            assert!(error > 1e-6 && error < loss, "{precision}: {error}");

            let stored = Weights::new(Arc::new(Rounded(RandomWeights::new(3), precision.dtype())));
            let error = relative_error(&logits(&stored.clone().in_precision(precision)).1, &logits(&stored).1);
            assert!(error < 1e-5, "{precision}: {error}");
        }
    }

    #[test]
    fn a_weight_beyond_half_precision_is_named() {
        let large = Matrix::Dense(Tensor::new(&[[1f32, 1e6]], &Device::Cpu).unwrap());
        let error = Precision::F16.matrix("lm_head.weight", large.clone()).unwrap_err().to_string();
        assert_eq!(error, "tensor `lm_head.weight`: row 0, column 1: 1000000 is out of the range of F16");
        assert!(Precision::Bf16.matrix("lm_head.weight", large).is_ok());
    }
}
