//! The layers that tower, region module and language model are made of.
//!
//! Each is differentiable with respect to its inputs and parameters, so that one forward serves
//! inference and training.

use candle_core::{D, Result, Tensor};

use crate::weights::{Weights, WeightsResult};

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
    let (output, input) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let rows = x.elem_count() / input;
    let y = x.reshape((rows, input))?.matmul(&weight.t()?)?;
    if let Some(last) = shape.last_mut() {
        *last = output;
    }
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(shape)
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
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normal = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        normal.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
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
        let square = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(square + self.eps)?.sqrt()?)?.broadcast_mul(&self.weight)
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
        let (batch, channels, height, width) = x.dims4()?;
        let grouped = x.reshape((batch, self.groups, channels / self.groups * height * width))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
        let variance = centred.sqr()?.mean_keepdim(2)?;
        let normal = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?.reshape(x.shape())?;
        let per_channel = (1, channels, 1, 1);
        normal.broadcast_mul(&self.weight.reshape(per_channel)?)?.broadcast_add(&self.bias.reshape(per_channel)?)
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
    let y = x.conv2d(weight, 1, 1, 1, 1)?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, bias.elem_count(), 1, 1))?),
        None => Ok(y),
    }
}

/// x·sigmoid(1.702·x), the approximation that OpenAI trained CLIP with.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    let gate = ((x * -1.702)?.exp()? + 1.0)?;
    x / gate
}

/// x·Φ(x), exact.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

/// silu(gate)·up, the gated feed-forward of LLaMA.
///
/// # Shapes
/// both `[.., N]` → the same
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
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
    let (batch, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let split = |x: &Tensor, length| x.reshape((batch, length, heads, width / heads))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    let scores = (q.matmul(&k.transpose(2, 3)?)? * (heads as f64 / width as f64).sqrt())?;
    let scores = match mask {
        AttentionMask::Full => scores,
        mask => scores.broadcast_add(&additive(mask, queries, keys, q.device())?)?,
    };
    let mixed = softmax(&scores)?.matmul(&v)?; // [B, heads, Tq, D]
    mixed.transpose(1, 2)?.reshape((batch, queries, width))
}

/// The mask as a matrix `[Tq, Tk]` of 0 and −∞.
fn additive(mask: &AttentionMask, queries: usize, keys: usize, device: &candle_core::Device) -> Result<Tensor> {
    let mut matrix = vec![f32::NEG_INFINITY; queries * keys];
    for (i, row) in matrix.chunks_exact_mut(keys).enumerate() {
        let (shared, own) = mask.visible(i, queries, keys);
        row[shared].fill(0.0);
        row[own].fill(0.0);
    }
    Tensor::from_vec(matrix, (queries, keys), device)
}

/// Softmax over the last dimension, with a backward that reaches the input.
///
/// # Shapes
/// `[.., N]` → the same
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    x.broadcast_div(&x.sum_keepdim(D::Minus1)?)
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
        let (batch, length, width) = x.dims3()?;
        let half = width / heads / 2;
        let shape = (1, length, 1, half);
        let cos = self.cos.index_select(positions, 0)?.reshape(shape)?;
        let sin = self.sin.index_select(positions, 0)?.reshape(shape)?;
        let x = x.reshape((batch, length, heads, 2 * half))?;
        let (near, far) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let turned_near = (near.broadcast_mul(&cos)? - far.broadcast_mul(&sin)?)?;
        let turned_far = (far.broadcast_mul(&cos)? + near.broadcast_mul(&sin)?)?;
        Tensor::cat(&[turned_near, turned_far], 3)?.reshape((batch, length, width))
    }
}

/// Bilinear resizing in which corners fall on corners (`align_corners=True`), as two products with
/// interpolation matrices, so that gradients flow.
///
/// # Shapes
/// `[B, C, h, w]` → `[B, C, height, width]`
pub fn resize_bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    if (h, w) == (height, width) {
        return Ok(x.clone());
    }
    let down = interpolation(h, height, x.device())?; // [height, h]
    let across = interpolation(w, width, x.device())?.t()?; // [w, width]
    let wide = x.reshape((batch * channels * h, w))?.matmul(&across)?; // [B·C·h, width]
    let columns = wide.reshape((batch * channels, h, width))?;
    down.broadcast_left(batch * channels)?.matmul(&columns)?.reshape((batch, channels, height, width))
}

/// The matrix `[to, from]` of bilinear weights with aligned corners.
fn interpolation(from: usize, to: usize, device: &candle_core::Device) -> Result<Tensor> {
    let mut matrix = vec![0f32; to * from];
    let step = if to > 1 { (from - 1) as f32 / (to - 1) as f32 } else { 0.0 };
    for (target, row) in matrix.chunks_exact_mut(from).enumerate() {
        let place = target as f32 * step;
        let low = (place as usize).min(from - 1);
        let share = place - low as f32;
        row[low] += 1.0 - share;
        row[(low + 1).min(from - 1)] += share;
    }
    Tensor::from_vec(matrix, (to, from), device)
}
