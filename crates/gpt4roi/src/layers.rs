//! The layers that tower, region module and language model are made of.
//!
//! Each is differentiable with respect to its inputs and parameters, so that one forward serves
//! inference and training.

use candle_core::{Result, Tensor};

use crate::{
    composed, ops,
    weights::{Weights, WeightsResult},
};

/// y = x·Wᵀ + b.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight` `[output, input]` and `bias` `[output]`.
    pub fn load(weights: &Weights, input: usize, output: usize) -> WeightsResult<Self> {
        let bias = Some(weights.get("bias", &[output])?);
        Ok(Self { weight: weights.get("weight", &[output, input])?, bias })
    }

    /// Takes `weight` `[output, input]` alone.
    pub fn load_without_bias(weights: &Weights, input: usize, output: usize) -> WeightsResult<Self> {
        Ok(Self { weight: weights.get("weight", &[output, input])?, bias: None })
    }

    /// # Shapes
    /// `[.., input]` → `[.., output]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
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
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
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
        composed::group_norm(x, &self.weight, &self.bias, self.groups, self.eps)
    }
}

/// A 3×3 convolution with stride 1 and one ring of zeros around the map.
#[derive(Clone, Debug)]
pub struct Conv3x3 {
    weight: Tensor,
    bias: Option<Tensor>,
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
    composed::conv3x3(x, weight, bias)
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
    composed::resize_bilinear(x, height, width)
}
