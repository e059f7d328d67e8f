//! Decoder layers that remember no more than their inputs while they learn: what else a gradient needs is computed
//! again, so that a layer's activations are in memory only while its turn lasts.
//!
//! Source: T. Chen, B. Xu, C. Zhang and C. Guestrin, “Training Deep Nets with Sublinear Memory Cost”, 2016,
//! arXiv 1604.06174.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Storage, Tensor, Var};

use crate::{
    layers::{AttentionMask, Rotary, attention},
    llama::DecoderLayer,
    ops::slice,
};

/// What a layer makes of whole sequences. Gradients reach the input and the factors of the layer's changes, and
/// nothing else of the layer.
///
/// # Shapes
/// x `[1, T, H]`, positions `[T]` (u32) → `[1, T, H]`
pub(crate) fn recomputed(
    layer: &DecoderLayer,
    x: &Tensor,
    rotary: &Rotary,
    positions: &Tensor,
    mask: &AttentionMask,
) -> Result<Tensor> {
    let factors = layer.factors()?;
    let (layer, rotary, positions, mask) = (layer.clone(), rotary.clone(), positions.clone(), mask.clone());
    x.contiguous()?.apply_op2(&factors, Recomputed { layer, rotary, positions, mask })
}

struct Recomputed {
    layer: DecoderLayer,
    rotary: Rotary,
    positions: Tensor,
    mask: AttentionMask,
}

impl Recomputed {
    fn forward(&self, x: &Tensor, factors: &Tensor) -> Result<Tensor> {
        let layer = self.layer.with_factors(factors)?;
        let attend = |q: Tensor, k: Tensor, v: Tensor| attention(&q, &k, &v, layer.heads(), &self.mask);
        layer.forward(x, &self.rotary, &self.positions, attend)
    }
}

impl CustomOp2 for Recomputed {
    fn name(&self) -> &'static str {
        "recomputed"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        factors: &CpuStorage,
        of_factors: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let device = self.positions.device();
        let x = Tensor::from_slice(slice(x, layout)?, layout.shape(), device)?;
        let factors = Tensor::from_slice(slice(factors, of_factors)?, of_factors.shape(), device)?;
        let y = self.forward(&x, &factors)?.contiguous()?;
        let (storage, _) = y.storage_and_layout();
        match &*storage {
            Storage::Cpu(values) => Ok((values.clone(), y.shape().clone())),
            _ => candle_core::bail!("expected a layer on the CPU, got one on {:?}", y.device()),
        }
    }

    fn bwd(&self, x: &Tensor, factors: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let variable = |of: &Tensor| Ok::<_, candle_core::Error>(Var::from_tensor(&of.copy()?)?.into_inner());
        let factors = variable(factors)?;
        let x = if x.track_op() { variable(x)? } else { x.detach() };
        let store = (self.forward(&x, &factors)? * grad)?.sum_all()?.backward()?;
        Ok((store.get(&x).cloned(), store.get(&factors).cloned()))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use candle_core::Device;

    use super::*;
    use crate::{
        config::Config,
        layers::Matrix,
        low_rank::LowRank,
        random_weights::RandomWeights,
        weights::{TensorSource, Weights, WeightsResult},
    };

    /// Random weights, each matrix with a change whose factors are variables.
    struct Changed(BTreeMap<String, [Var; 2]>);

    fn noise(name: &str, rows: usize, columns: usize) -> Var {
        Var::from_tensor(&RandomWeights::new(4).tensor(name, &[rows, columns]).unwrap()).unwrap()
    }

    impl TensorSource for Changed {
        fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
            RandomWeights::new(3).tensor(name, shape)
        }

        fn matrix(&self, name: &str, shape: [usize; 2]) -> WeightsResult<Matrix> {
            let [down, up] = self.0[name].each_ref().map(|factor| factor.as_tensor().clone());
            Ok(Matrix::Dense(self.tensor(name, &shape)?).changed_by(LowRank { down, up, scale: 0.5 }))
        }
    }

    #[test]
    fn gradients_are_those_of_a_layer_that_remembers_everything() {
        let config = Config::nano(70).llama;
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let shapes = [
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", width, width),
            ("self_attn.v_proj", width, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", inner, width),
            ("mlp.up_proj", inner, width),
            ("mlp.down_proj", width, inner),
        ];
        let factors = shapes.map(|(name, output, input)| {
            let [down, up] = ["A", "B"].map(|factor| format!("{name}.{factor}"));
            (format!("{name}.weight"), [noise(&down, 3, input), noise(&up, output, 3)])
        });
        let source = Arc::new(Changed(factors.into()));
        let layer = DecoderLayer::load(&Weights::new(source.clone()), &config).unwrap();
        let rotary = Rotary::new(width / layer.heads(), 64, 1e4, &Device::Cpu).unwrap();
        let positions = Tensor::arange(0u32, 9, &Device::Cpu).unwrap();
        let mask = AttentionMask::Causal;
        let x = Var::from_tensor(&noise("x", 9, width).unsqueeze(0).unwrap()).unwrap();
        let direction = noise("direction", 9, width).unsqueeze(0).unwrap();

        let attend = |q: Tensor, k: Tensor, v: Tensor| attention(&q, &k, &v, layer.heads(), &mask);
        let remembered = layer.forward(x.as_tensor(), &rotary, &positions, attend).unwrap();
        let again = recomputed(&layer, x.as_tensor(), &rotary, &positions, &mask).unwrap();
        let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(&again), numbers(&remembered));

        let gradients = |y: &Tensor| (y * &direction).unwrap().sum_all().unwrap().backward().unwrap();
        let (expected, got) = (gradients(&remembered), gradients(&again));
        for var in source.0.values().flatten().chain([&x]) {
            let [expected, got] = [&expected, &got].map(|store| numbers(store.get(var.as_tensor()).unwrap()));
            assert!(expected.iter().any(|value| *value != 0.0));
            let apart = expected.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{apart}");
        }
    }
}
