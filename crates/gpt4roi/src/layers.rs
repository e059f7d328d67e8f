//! The layers that tower, region module and language model are made of.
//!
//! Each is differentiable with respect to its inputs and parameters, so that one forward serves
//! inference and training.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Result, Tensor, quantized::QMatMul};
use gpt4roi_kernels::{HalfMatrix, QuantMatrix};

use crate::{
    composed,
    low_rank::LowRank,
    ops,
    weights::{Weights, WeightsResult},
};

/// The weight of a linear layer or of an embedding, `[output, input]`.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// Numbers, through which gradients flow.
    Dense(Tensor),
    /// Numbers of 16 bits on a CPU, which stay as they are: gradients pass through to what is multiplied with them.
    Half(Arc<HalfMatrix>),
    /// Blocks of small integers, likewise.
    Quantized(Arc<QuantMatrix>),
    /// Blocks of small integers on any device, computed with by the engine. To ask for a gradient through them is an
    /// error.
    Blocks(QMatMul),
    /// Any of these with a change beside it, through which gradients flow.
    Changed {
        /// What stays as it is.
        base: Arc<Self>,
        /// What is added to it.
        change: Arc<LowRank>,
    },
}

impl Matrix {
    /// x·Wᵀ + b.
    ///
    /// # Shapes
    /// x `[.., input]`, bias `[output]` → `[.., output]`
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let product = match self {
            Self::Dense(weight) => return linear(x, weight, bias),
            Self::Half(weight) => ops::packed_linear(x, weight)?,
            Self::Quantized(weight) => ops::packed_linear(x, weight)?,
            Self::Blocks(weight) => weight.forward(&x.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(x.dtype())?,
            Self::Changed { base, change } => return base.product(x, bias)? + change.product(x)?,
        };
        match bias {
            Some(bias) => product.broadcast_add(&bias.to_dtype(x.dtype())?),
            None => Ok(product),
        }
    }

    /// The rows of these numbers.
    ///
    /// # Shapes
    /// ids `[T]` (u32) → `[T, input]`
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => weight.index_select(ids, 0),
            Self::Half(weight) => ops::packed_rows(&**weight, ids),
            Self::Quantized(weight) => ops::packed_rows(&**weight, ids),
            Self::Blocks(weight) => weight.embedding(ids),
            Self::Changed { base, change } => base.rows(ids)? + change.rows(ids)?,
        }
    }

    /// Memory that the numbers take, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) | Self::Blocks(QMatMul::Tensor(weight) | QMatMul::TensorF16(weight)) => {
                weight.elem_count() * weight.dtype().size_in_bytes()
            }
            Self::Half(weight) => weight.bytes(),
            Self::Quantized(weight) => weight.bytes(),
            Self::Blocks(QMatMul::QTensor(weight)) => weight.storage_size_in_bytes(),
            Self::Changed { base, change } => base.bytes() + change.bytes(),
        }
    }

    /// The same with something added, which is kept beside it.
    pub fn changed_by(self, change: LowRank) -> Self {
        Self::Changed { base: Arc::new(self), change: Arc::new(change) }
    }

    /// Whether the numbers are blocks of small integers that the project's kernels compute with, changed or not.
    fn is_quantized(&self) -> bool {
        match self {
            Self::Changed { base, .. } => base.is_quantized(),
            _ => matches!(self, Self::Quantized(_)),
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(weight) | Self::Blocks(QMatMul::Tensor(weight) | QMatMul::TensorF16(weight)) => {
                weight.device().clone()
            }
            Self::Half(_) | Self::Quantized(_) => Device::Cpu,
            Self::Blocks(QMatMul::QTensor(weight)) => weight.device(),
            Self::Changed { base, .. } => base.device(),
        }
    }
}

/// y = x·Wᵀ + b.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight` `[output, input]` and `bias` `[output]`.
    pub fn load(weights: &Weights, input: usize, output: usize) -> WeightsResult<Self> {
        let bias = Some(weights.get("bias", &[output])?);
        Ok(Self { weight: weights.get_matrix("weight", [output, input])?, bias })
    }

    /// Takes `weight` `[output, input]` alone.
    pub fn load_without_bias(weights: &Weights, input: usize, output: usize) -> WeightsResult<Self> {
        Ok(Self { weight: weights.get_matrix("weight", [output, input])?, bias: None })
    }

    /// Whether the weight is blocks of small integers that the project's kernels compute with.
    pub fn is_quantized(&self) -> bool {
        self.weight.is_quantized()
    }

    /// Where it lies.
    pub(crate) fn device(&self) -> Device {
        self.weight.device()
    }

    /// Whether gradients can flow through the weight itself.
    pub(crate) fn is_dense(&self) -> bool {
        matches!(self.weight, Matrix::Dense(_))
    }

    /// What is added to the weight, if it is changed.
    pub(crate) fn change(&self) -> Option<&LowRank> {
        match &self.weight {
            Matrix::Changed { change, .. } => Some(change),
            _ => None,
        }
    }

    /// Puts another change in the place of the one that it has.
    pub(crate) fn set_change(&mut self, new: LowRank) {
        if let Matrix::Changed { change, .. } = &mut self.weight {
            *change = Arc::new(new);
        }
    }

    /// Whether a row of activations comes to the same bits whatever rows are read along with it.
    pub fn is_row_by_row(&self) -> bool {
        matches!(self.weight, Matrix::Quantized(_))
    }

    /// Memory that the weight takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// # Shapes
    /// `[.., input]` → `[.., output]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.product(x, self.bias.as_ref())
    }
}

/// x·Wᵀ + b.
///
/// # Shapes
/// x `[.., input]`, weight `[output, input]`, bias `[output]` → `[.., output]`
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match ops::serve(&[x, weight]) {
        true => ops::linear(x, weight, bias),
        false => composed::linear(x, weight, bias),
    }
}

/// Normalises the last dimension to mean 0 and variance 1, then scales and shifts.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes `weight` and `bias`, both `[size]`.
    pub fn load(weights: &Weights, size: usize, eps: f64) -> WeightsResult<Self> {
        Ok(Self { weight: weights.get("weight", &[size])?, bias: weights.get("bias", &[size])?, eps })
    }

    /// # Shapes
    /// `[.., size]` → the same
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match ops::serve(&[x, &self.weight, &self.bias]) {
            true => ops::layer_norm(x, &self.weight, &self.bias, self.eps),
            false => composed::layer_norm(x, &self.weight, &self.bias, self.eps),
        }
    }
}

/// Divides the last dimension by its root mean square, then scales.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Takes `weight` `[size]`.
    pub fn load(weights: &Weights, size: usize, eps: f64) -> WeightsResult<Self> {
        Ok(Self { weight: weights.get("weight", &[size])?, eps })
    }

    /// # Shapes
    /// `[.., size]` → the same
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match ops::serve(&[x, &self.weight]) {
            true => ops::rms_norm(x, &self.weight, self.eps),
            false => composed::rms_norm(x, &self.weight, self.eps),
        }
    }
}

/// Normalises each group of channels over its whole map, then scales and shifts each channel.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
}

impl GroupNorm {
    /// Takes `weight` and `bias`, both `[channels]`.
    pub fn load(weights: &Weights, groups: usize, channels: usize, eps: f64) -> WeightsResult<Self> {
        let (weight, bias) = (weights.get("weight", &[channels])?, weights.get("bias", &[channels])?);
        Ok(Self { weight, bias, groups, eps })
    }

    /// # Shapes
    /// `[B, C, H, W]` → the same
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (&self.weight, &self.bias);
        match ops::serve(&[x, weight, bias]) {
            true => ops::group_norm(x, weight, bias, self.groups, self.eps),
            false => composed::group_norm(x, weight, bias, self.groups, self.eps),
        }
    }
}

/// A 3×3 convolution with stride 1 and one ring of zeros around the map.
#[derive(Clone, Debug)]
pub struct Conv3x3 {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

impl Conv3x3 {
    /// Takes `weight` `[output, input, 3, 3]` and `bias` `[output]`.
    pub fn load(weights: &Weights, input: usize, output: usize) -> WeightsResult<Self> {
        let bias = Some(weights.get("bias", &[output])?);
        Ok(Self { weight: weights.get("weight", &[output, input, 3, 3])?, bias })
    }

    /// Takes `weight` `[output, input, 3, 3]` alone.
    pub fn load_without_bias(weights: &Weights, input: usize, output: usize) -> WeightsResult<Self> {
        Ok(Self { weight: weights.get("weight", &[output, input, 3, 3])?, bias: None })
    }

    /// # Shapes
    /// `[B, input, H, W]` → `[B, output, H, W]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv3x3(x, &self.weight, self.bias.as_ref())
    }
}

/// A 3×3 convolution, stride 1, zero padding 1.
///
/// # Shapes
/// x `[B, I, H, W]`, weight `[O, I, 3, 3]`, bias `[O]` → `[B, O, H, W]`
pub fn conv3x3(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match ops::serve(&[x, weight]) {
        true => ops::conv3x3(x, weight, bias),
        false => composed::conv3x3(x, weight, bias),
    }
}

/// x·sigmoid(1.702·x), the approximation that OpenAI trained CLIP with.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    match ops::serve(&[x]) {
        true => ops::quick_gelu(x),
        false => composed::quick_gelu(x),
    }
}

/// x·Φ(x), exact.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    match ops::serve(&[x]) {
        true => ops::gelu(x),
        false => composed::gelu(x),
    }
}

/// The larger of x and 0, with gradient 0 at 0.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    match ops::serve(&[x]) {
        true => ops::relu(x),
        false => composed::relu(x),
    }
}

/// silu(gate)·up, the gated feed-forward of LLaMA.
///
/// # Shapes
/// both `[.., N]` → the same
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match ops::serve(&[gate, up]) {
        true => ops::swiglu(gate, up),
        false => composed::swiglu(gate, up),
    }
}

/// Which keys a query may look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttentionMask {
    /// All of them.
    Full,
    /// Those up to its own place; the queries are the last of the keys.
    Causal,
    /// A shared prefix of so many keys, and in its own branch those up to its own place. Queries and
    /// keys are the same tokens; `starts[i]` is where the branch of token i begins, and within the
    /// prefix attention is causal. Several conversations about one picture are one such sequence.
    Branches {
        /// Tokens that all branches see.
        prefix: usize,
        /// For each token, where its branch begins.
        starts: std::sync::Arc<[usize]>,
    },
}

impl AttentionMask {
    /// The keys that query `i` of `queries` may see among `keys`: two ranges, the first from 0.
    pub fn visible(&self, i: usize, queries: usize, keys: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        match self {
            Self::Full => (0..keys, keys..keys),
            Self::Causal => (0..keys - queries + i + 1, keys..keys),
            Self::Branches { prefix, starts } if i >= *prefix => (0..*prefix, starts[i]..i + 1),
            Self::Branches { .. } => (0..i + 1, keys..keys),
        }
    }
}

/// Softmax attention, each head on its own slice of the channels.
///
/// # Shapes
/// q `[B, Tq, heads·D]`, k and v `[B, Tk, heads·D]` → `[B, Tq, heads·D]`; scores are scaled by 1/√D
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: &AttentionMask) -> Result<Tensor> {
    match ops::serve(&[q, k, v]) {
        true => ops::attention(q, k, v, heads, mask),
        false => composed::attention(q, k, v, heads, mask),
    }
}

/// A sequence's own part of [`branched_attention`]: the keys and values of the tokens behind the shared
/// prefix, of which the last `queries` ask.
#[derive(Clone, Debug)]
pub struct Tail {
    /// `[1, tokens, H]`
    pub keys: Tensor,
    /// `[1, tokens, H]`
    pub values: Tensor,
    /// How many of the tokens ask, at least 1.
    pub queries: usize,
}

/// Causal attention of many sequences that begin alike. The prefix, if there is one, is neither copied
/// nor read once per sequence: all queries are scored against it together. No gradient flows.
///
/// # Shapes
/// q `[1, Σ queries, heads·D]`, one sequence after the other; prefix keys and values `[1, Tp, heads·D]`
/// → as q; scores are scaled by 1/√D. Keys and values may be in f16 where queries are in f32.
pub fn branched_attention(
    q: &Tensor,
    prefix: Option<&(Tensor, Tensor)>,
    tails: &[Tail],
    heads: usize,
) -> Result<Tensor> {
    let queries: usize = tails.iter().map(|tail| tail.queries).sum();
    let (batch, rows, width) = q.dims3()?;
    let lacking = tails.iter().any(|tail| tail.keys.dims().get(1).is_none_or(|&tokens| tokens < tail.queries));
    if (batch, rows) != (1, queries) || heads == 0 || width % heads != 0 || lacking {
        candle_core::bail!("branched_attention: {heads} heads, q {:?} for {queries} queries of {tails:?}", q.shape())
    }
    let own = tails.iter().flat_map(|tail| [&tail.keys, &tail.values]);
    let remembered: Vec<&Tensor> = own.chain(prefix.into_iter().flat_map(|(k, v)| [k, v])).collect();
    if let Some(misfit) = remembered.iter().find(|tensor| !matches!(tensor.dims(), &[1, _, w] if w == width)) {
        candle_core::bail!("branched_attention: expected [1, .., {width}], got {:?}", misfit.shape())
    }
    match ops::serve_branches(q, &remembered) {
        true => ops::branched_attention(q, prefix, tails, heads),
        false => composed::branched_attention(q, prefix, tails, heads),
    }
}

/// Softmax over the last dimension, with a backward that reaches the input.
///
/// # Shapes
/// `[.., N]` → the same
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    composed::softmax(x)
}

/// The cross-entropy of each row of logits against its class, in nats, summed over the rows.
///
/// # Shapes
/// logits `[N, V]`, targets `[N]` (u32, below V) → scalar
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    match ops::serve(&[logits]) {
        true => ops::cross_entropy(logits, targets),
        false => composed::cross_entropy(logits, targets),
    }
}

/// Rotary position embedding: the cosines and sines of every position.
#[derive(Clone, Debug)]
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Tables `[positions, head/2]`; frequency i is theta^(−2i/head).
    pub fn new(head: usize, positions: usize, theta: f64, device: &candle_core::Device) -> Result<Self> {
        let mut table = Vec::with_capacity(positions * head / 2);
        for position in 0..positions {
            for i in 0..head / 2 {
                // The frequency is rounded to f32 first, as PyTorch's table is.
                let frequency = (1.0 / theta.powf(2.0 * i as f64 / head as f64)) as f32;
                table.push(position as f32 * frequency);
            }
        }
        let angles = Tensor::from_vec(table, (positions, head / 2), device)?;
        Ok(Self { cos: angles.cos()?, sin: angles.sin()? })
    }

    /// How many positions there are angles for.
    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Turns the two halves of each head against each other (`rotate_half`, as HF lays LLaMA out).
    ///
    /// # Shapes
    /// x `[B, T, heads·D]`, positions `[T]` (u32) → as x
    pub fn forward(&self, x: &Tensor, heads: usize, positions: &Tensor) -> Result<Tensor> {
        let (cos, sin) = (self.cos.index_select(positions, 0)?, self.sin.index_select(positions, 0)?);
        match ops::serve(&[x, &cos]) {
            true => ops::rotary(x, heads, cos, sin),
            false => composed::rotary(x, heads, &cos, &sin),
        }
    }
}

/// Bilinear resizing in which corners fall on corners (`align_corners=True`), as two products with
/// interpolation matrices, so that gradients flow.
///
/// # Shapes
/// `[B, C, h, w]` → `[B, C, height, width]`
pub fn resize_bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if (h, w) == (height, width) {
        return Ok(x.clone());
    }
    match ops::serve(&[x]) {
        true => ops::resize_bilinear(x, height, width),
        false => composed::resize_bilinear(x, height, width),
    }
}

/// Lends a level of a pyramid channels of its neighbours. It keeps its first half; its third quarter
/// comes from the coarser level's fourth, its fourth from the finer level's third, both resized.
///
/// # Shapes
/// own `[B, C, h, w]`, the others `[B, C, .., ..]` → as own
pub fn scale_shuffle(own: &Tensor, coarser: &Tensor, finer: &Tensor) -> Result<Tensor> {
    match ops::serve(&[own, coarser, finer]) {
        true => ops::scale_shuffle(own, coarser, finer),
        false => composed::scale_shuffle(own, coarser, finer),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use gpt4roi_kernels::QuantFormat;

    use super::*;

    /// Trainable values between −1 and 1.
    fn var(shape: &[usize], seed: u64) -> Var {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[track_caller]
    fn assert_close(what: &str, got: &Tensor, expected: &Tensor) {
        assert_eq!(got.dims(), expected.dims(), "{what}");
        for (index, (got, expected)) in flat(got).into_iter().zip(flat(expected)).enumerate() {
            let error = (got - expected).abs();
            assert!(error <= 1e-4 * expected.abs().max(1.0), "{what} {index}: got {got}, expected {expected}");
        }
    }

    /// Both give the same values, and the same gradients of a random sum of them; the kernel's reach
    /// every variable.
    #[track_caller]
    fn assert_same(
        vars: &[&Var],
        kernel: impl Fn(&[&Tensor]) -> Result<Tensor>,
        reference: impl Fn(&[&Tensor]) -> Result<Tensor>,
    ) {
        let tensors: Vec<&Tensor> = vars.iter().map(|var| var.as_tensor()).collect();
        let (got, expected) = (kernel(&tensors).unwrap(), reference(&tensors).unwrap());
        assert_close("output", &got, &expected);
        let direction = var(expected.dims(), 99).detach();
        let gradients = |y: &Tensor| (y * &direction).unwrap().sum_all().unwrap().backward().unwrap();
        let (got, expected) = (gradients(&got), gradients(&expected));
        for (index, var) in vars.iter().enumerate() {
            let (got, expected) = (got.get(var).expect("a gradient"), expected.get(var).unwrap());
            assert_close(&format!("gradient {index}, value"), got, expected);
        }
    }

    fn branches(prefix: usize, lengths: &[usize]) -> AttentionMask {
        let mut starts: Vec<usize> = (0..prefix).map(|_| 0).collect();
        for &length in lengths {
            starts.extend(std::iter::repeat_n(starts.len(), length));
        }
        AttentionMask::Branches { prefix, starts: starts.into() }
    }

    #[test]
    fn linear_agrees_with_its_composition() {
        for (shape, output) in [(vec![1, 5, 7], 3), (vec![2, 4], 6), (vec![1, 1, 33], 65), (vec![70, 64], 128)] {
            let input = *shape.last().unwrap();
            let (x, w, b) = (var(&shape, 1), var(&[output, input], 2), var(&[output], 3));
            assert_same(
                &[&x, &w, &b],
                |t| linear(t[0], t[1], Some(t[2])),
                |t| composed::linear(t[0], t[1], Some(t[2])),
            );
            assert_same(&[&x, &w], |t| linear(t[0], t[1], None), |t| composed::linear(t[0], t[1], None));
        }
    }

    #[test]
    fn linear_takes_views() {
        let (x, w) = (var(&[6, 4, 5], 1), var(&[4, 3], 2));
        let view = |t: &[&Tensor]| Ok((t[0].transpose(1, 2)?.narrow(0, 1, 4)?, t[1].t()?));
        assert_same(
            &[&x, &w],
            |t| view(t).and_then(|(x, w)| linear(&x, &w, None)),
            |t| view(t).and_then(|(x, w)| composed::linear(&x.contiguous()?, &w.contiguous()?, None)),
        );
    }

    #[test]
    fn frozen_weights_get_no_gradient() {
        let (x, w, b) = (var(&[3, 4], 1), var(&[2, 4], 2).detach(), var(&[2], 3).detach());
        let grads = linear(&x, &w, Some(&b)).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some());
        assert!(grads.get(&w).is_none() && grads.get(&b).is_none());
        let grads = linear(&x.detach(), &var(&[2, 4], 2), None).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_none());
    }

    /// Blocks of `q8_0` with scales of 1/64 and weights between −2 and 2; and these weights.
    fn quantized(output: usize, input: usize) -> (Matrix, Tensor) {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let values: Vec<i8> = (0..output * input).map(|_| rng.random()).collect();
        let scale = half::f16::from_f32(1.0 / 64.0).to_le_bytes();
        let block = |values: &[i8]| scale.into_iter().chain(values.iter().map(|&q| q as u8)).collect::<Vec<_>>();
        let blocks: Vec<u8> = values.chunks(32).flat_map(block).collect();
        let matrix = QuantMatrix::new(QuantFormat::Q8_0, output, input, &blocks).unwrap();
        let weights: Vec<f32> = values.iter().map(|&q| f32::from(q) / 64.0).collect();
        (Matrix::Quantized(Arc::new(matrix)), Tensor::from_vec(weights, (output, input), &Device::Cpu).unwrap())
    }

    #[test]
    fn a_quantised_weight_computes_what_its_numbers_do() {
        let (matrix, weights) = quantized(33, 64);
        let bias = var(&[33], 3).detach();
        // Multiples of 1/127 of which each group has a 1: they are not rounded.
        let mut x: Vec<f32> = flat(&var(&[2, 5, 64], 1)).iter().map(|x| (127.0 * x).round() / 127.0).collect();
        x.chunks_mut(32).for_each(|group| group[5] = 1.0);
        let x = Tensor::from_vec(x, (2, 5, 64), &Device::Cpu).unwrap();
        for bias in [None, Some(&bias)] {
            let expected = linear(&x, &weights, bias).unwrap();
            assert_close("product", &matrix.product(&x, bias).unwrap(), &expected);
        }
        let ids = Tensor::new(&[32u32, 0, 32, 7], &Device::Cpu).unwrap();
        assert_close("rows", &matrix.rows(&ids).unwrap(), &weights.index_select(&ids, 0).unwrap());
    }

    #[test]
    fn a_quantised_weight_refuses_what_it_cannot_do() {
        let (matrix, _) = quantized(3, 64);
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        let narrow = message(matrix.product(&var(&[2, 63], 1), None));
        assert!(narrow.contains("expected [.., 64], got [2, 63]"), "{narrow}");
        let behind = message(matrix.rows(&Tensor::new(&[3u32], &Device::Cpu).unwrap()));
        assert!(behind.contains("row 3 of 3"), "{behind}");
        let wide = var(&[2, 64], 1).to_dtype(candle_core::DType::F64).unwrap();
        assert!(message(matrix.product(&wide, None)).contains("F64"));
    }

    #[test]
    fn norms_agree_with_their_compositions() {
        for (shape, size) in [(vec![2, 3, 8], 8), (vec![150, 33], 33), (vec![1, 1], 1)] {
            let (x, w, b) = (var(&shape, 1), var(&[size], 2), var(&[size], 3));
            let layer = |t: &[&Tensor]| LayerNorm { weight: t[1].clone(), bias: t[2].clone(), eps: 1e-3 };
            assert_same(&[&x, &w, &b], |t| layer(t).forward(t[0]), |t| composed::layer_norm(t[0], t[1], t[2], 1e-3));
            let rms = |t: &[&Tensor]| RmsNorm { weight: t[1].clone(), eps: 1e-3 };
            assert_same(&[&x, &w], |t| rms(t).forward(t[0]), |t| composed::rms_norm(t[0], t[1], 1e-3));
        }
    }

    #[test]
    fn group_norm_agrees_with_its_composition() {
        for (shape, groups) in [([2, 8, 3, 5], 4), ([1, 3, 4, 4], 3), ([3, 64, 14, 14], 16)] {
            let (x, w, b) = (var(&shape, 1), var(&[shape[1]], 2), var(&[shape[1]], 3));
            let layer = |t: &[&Tensor]| GroupNorm { weight: t[1].clone(), bias: t[2].clone(), groups, eps: 1e-3 };
            assert_same(
                &[&x, &w, &b],
                |t| layer(t).forward(t[0]),
                |t| composed::group_norm(t[0], t[1], t[2], groups, 1e-3),
            );
        }
    }

    #[test]
    fn conv3x3_agrees_with_its_composition() {
        for (shape, output) in [([1, 3, 5, 7], 4), ([3, 8, 14, 14], 6), ([1, 2, 1, 1], 2)] {
            let (x, w, b) = (var(&shape, 1), var(&[output, shape[1], 3, 3], 2), var(&[output], 3));
            assert_same(
                &[&x, &w, &b],
                |t| conv3x3(t[0], t[1], Some(t[2])),
                |t| composed::conv3x3(t[0], t[1], Some(t[2])),
            );
            assert_same(&[&x, &w], |t| conv3x3(t[0], t[1], None), |t| composed::conv3x3(t[0], t[1], None));
        }
        let (x, frozen) = (var(&[1, 2, 3, 3], 1), var(&[2, 2, 3, 3], 2).detach());
        let grads = conv3x3(&x, &frozen, None).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some() && grads.get(&frozen).is_none());
    }

    #[test]
    fn resizing_agrees_with_its_composition() {
        for (h, w, height, width) in [(3, 4, 7, 5), (16, 16, 32, 32), (32, 32, 16, 16), (1, 5, 4, 1)] {
            let x = var(&[2, 3, h, w], 1);
            assert_same(
                &[&x],
                |t| resize_bilinear(t[0], height, width),
                |t| composed::resize_bilinear(t[0], height, width),
            );
        }
    }

    #[test]
    fn the_scale_shuffle_agrees_with_its_composition() {
        let (fine, own, coarse) = (var(&[2, 9, 8, 6], 1), var(&[2, 9, 4, 5], 2), var(&[2, 9, 2, 5], 3));
        assert_same(
            &[&own, &coarse, &fine],
            |t| scale_shuffle(t[0], t[1], t[2]),
            |t| composed::scale_shuffle(t[0], t[1], t[2]),
        );
        // At an end of the pyramid a level lends to itself.
        assert_same(&[&own, &fine], |t| scale_shuffle(t[0], t[0], t[1]), |t| composed::scale_shuffle(t[0], t[0], t[1]));
    }

    #[test]
    fn activations_agree_with_their_compositions() {
        let x = Var::from_tensor(&(var(&[3, 50], 1).as_tensor() * 5.0).unwrap()).unwrap();
        assert_same(&[&x], |t| quick_gelu(t[0]), |t| composed::quick_gelu(t[0]));
        // x·(1 + erf(x/√2))/2, since the engine's own gelu_erf has a coarser gradient.
        let exact = |t: &[&Tensor]| (t[0] * 0.5)? * ((t[0] * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?;
        assert_same(&[&x], |t| gelu(t[0]), exact);
        assert_same(&[&x], |t| relu(t[0]), |t| composed::relu(t[0]));
        let up = var(&[3, 50], 2);
        assert_same(&[&x, &up], |t| swiglu(t[0], t[1]), |t| composed::swiglu(t[0], t[1]));
    }

    #[test]
    fn attention_agrees_with_its_composition() {
        let cases = [
            (1, 5, 5, 2, 3, AttentionMask::Full),
            (2, 70, 130, 2, 8, AttentionMask::Full),
            (1, 67, 67, 3, 4, AttentionMask::Causal),
            (2, 1, 9, 2, 4, AttentionMask::Causal),
            (1, 3, 90, 2, 4, AttentionMask::Causal),
            (1, 6, 6, 1, 2, branches(2, &[3, 1])),
            (1, 200, 200, 2, 8, branches(70, &[40, 3, 1, 60, 26])),
            (1, 90, 90, 1, 4, branches(0, &[64, 26])),
        ];
        for (batch, queries, keys, heads, dim, mask) in cases {
            let (q, k) = (var(&[batch, queries, heads * dim], 1), var(&[batch, keys, heads * dim], 2));
            let v = var(&[batch, keys, heads * dim], 3);
            assert_same(
                &[&q, &k, &v],
                |t| attention(t[0], t[1], t[2], heads, &mask),
                |t| composed::attention(t[0], t[1], t[2], heads, &mask),
            );
        }
    }

    /// Against plain causal attention of each sequence on its own.
    #[test]
    fn branches_attend_as_whole_sequences_do() {
        let (heads, width) = (2, 8);
        let tails = |lengths: &[(usize, usize)]| -> Vec<Tail> {
            let tail = |(seed, &(tokens, queries)): (usize, &(usize, usize))| Tail {
                keys: var(&[1, tokens, width], 10 + seed as u64).detach(),
                values: var(&[1, tokens, width], 20 + seed as u64).detach(),
                queries,
            };
            lengths.iter().enumerate().map(tail).collect()
        };
        let prefix = (var(&[1, 70, width], 1).detach(), var(&[1, 70, width], 2).detach());
        for (prefix, tails) in [
            (Some(&prefix), tails(&[(1, 1), (9, 1), (3, 1)])),
            (Some(&prefix), tails(&[(5, 5), (12, 1), (20, 7)])),
            (None, tails(&[(66, 66), (4, 2)])),
        ] {
            let q = var(&[1, tails.iter().map(|tail| tail.queries).sum(), width], 3).detach();
            let mut whole = Vec::new();
            let mut first = 0;
            for Tail { keys, values, queries } in &tails {
                let behind = |prefix: Option<&Tensor>, own| match prefix {
                    Some(prefix) => Tensor::cat(&[prefix, own], 1).unwrap(),
                    None => own.clone(),
                };
                let (k, v) = (behind(prefix.map(|(k, _)| k), keys), behind(prefix.map(|(_, v)| v), values));
                let q = q.narrow(1, first, *queries).unwrap();
                whole.push(composed::attention(&q, &k, &v, heads, &AttentionMask::Causal).unwrap());
                first += queries;
            }
            let expected = Tensor::cat(&whole, 1).unwrap();
            assert_close("kernel", &branched_attention(&q, prefix, &tails, heads).unwrap(), &expected);
            assert_close("composition", &composed::branched_attention(&q, prefix, &tails, heads).unwrap(), &expected);

            let half = |x: &Tensor| x.to_dtype(DType::F16).unwrap();
            let prefix = prefix.map(|(k, v)| (half(k), half(v)));
            let halves = |tail: &Tail| Tail { keys: half(&tail.keys), values: half(&tail.values), ..*tail };
            let tails: Vec<_> = tails.iter().map(halves).collect();
            let kernel = branched_attention(&q, prefix.as_ref(), &tails, heads).unwrap();
            let composition = composed::branched_attention(&q, prefix.as_ref(), &tails, heads).unwrap();
            assert_close("halves", &kernel, &composition);
        }
    }

    #[test]
    fn branches_that_do_not_fit_are_refused() {
        let tensor = |tokens, width| var(&[1, tokens, width], 1).detach();
        let tail =
            |tokens, width, queries| Tail { keys: tensor(tokens, width), values: tensor(tokens, width), queries };
        for (queries, tail, prefix_width) in
            [(2, tail(3, 8, 1), 8), (4, tail(3, 8, 4), 8), (1, tail(3, 6, 1), 8), (1, tail(3, 8, 1), 6)]
        {
            let prefix = (tensor(5, prefix_width), tensor(5, prefix_width));
            assert!(branched_attention(&tensor(queries, 8), Some(&prefix), &[tail], 2).is_err());
        }
    }

    #[test]
    fn attention_sums_gradients_of_one_tensor_in_three_roles() {
        let x = var(&[1, 9, 6], 1);
        let mask = AttentionMask::Causal;
        assert_same(
            &[&x],
            |t| attention(t[0], t[0], t[0], 2, &mask),
            |t| composed::attention(t[0], t[0], t[0], 2, &mask),
        );
    }

    #[test]
    fn a_branch_sees_the_prefix_and_itself() {
        // Tokens 0, 1 | 2, 3 | 4: two branches behind a prefix of two.
        let mask = branches(2, &[2, 1]);
        let visible: Vec<_> = (0..5).map(|i| mask.visible(i, 5, 5)).collect();
        let none = 5..5;
        let expected = [(0..1, none.clone()), (0..2, none.clone()), (0..2, 2..3), (0..2, 2..4), (0..2, 4..5)];
        assert_eq!(visible, expected);

        // What stands in branch one leaves branch two as it is.
        let (x, mut changed) = (var(&[1, 5, 4], 1), flat(&var(&[1, 5, 4], 1)));
        changed[2 * 4..4 * 4].fill(7.0);
        let changed = Tensor::from_vec(changed, (1, 5, 4), &Device::Cpu).unwrap();
        let attend = |x: &Tensor| flat(&attention(x, x, x, 2, &mask).unwrap());
        let (before, after) = (attend(&x), attend(&changed));
        assert_eq!(before[..2 * 4], after[..2 * 4]);
        assert_eq!(before[4 * 4..], after[4 * 4..]);
        assert_ne!(before[2 * 4..4 * 4], after[2 * 4..4 * 4]);
    }

    #[test]
    fn a_mask_for_another_length_is_refused() {
        let x = var(&[1, 4, 4], 1);
        let mask = branches(2, &[3]);
        assert!(attention(&x, &x, &x, 2, &mask).is_err());
        let keys = var(&[1, 3, 4], 1);
        assert!(attention(&x, &keys, &keys, 2, &AttentionMask::Causal).is_err());
        let starts: Arc<[usize]> = [0, 0, 3, 3].into();
        assert!(attention(&x, &x, &x, 2, &AttentionMask::Branches { prefix: 2, starts }).is_err());
    }

    #[test]
    fn rotary_agrees_with_its_composition() {
        let rotary = Rotary::new(6, 20, 10000.0, &Device::Cpu).unwrap();
        let positions = Tensor::new(&[3u32, 4, 19, 0, 4], &Device::Cpu).unwrap();
        let x = var(&[2, 5, 12], 1);
        let (cos, sin) =
            (rotary.cos.index_select(&positions, 0).unwrap(), rotary.sin.index_select(&positions, 0).unwrap());
        assert_same(&[&x], |t| rotary.forward(t[0], 2, &positions), |t| composed::rotary(t[0], 2, &cos, &sin));
    }

    #[test]
    fn cross_entropy_agrees_with_its_composition() {
        let logits = var(&[7, 30], 1);
        let targets = Tensor::new(&[0u32, 29, 3, 3, 7, 11, 28], &Device::Cpu).unwrap();
        assert_same(&[&logits], |t| cross_entropy(t[0], &targets), |t| composed::cross_entropy(t[0], &targets));
        // Equal logits leave ln V for each row.
        let even = cross_entropy(&Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap(), &{
            Tensor::new(&[1u32, 2], &Device::Cpu).unwrap()
        });
        assert!((even.unwrap().to_scalar::<f32>().unwrap() - 2.0 * 4f32.ln()).abs() < 1e-6);
        let none_such = Tensor::new(&[30u32; 7], &Device::Cpu).unwrap();
        assert!(cross_entropy(&logits, &none_such).is_err());
    }
}
