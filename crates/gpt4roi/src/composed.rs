//! The layers as compositions of the engine's own differentiable operations: on any device, in any
//! floating-point type. On a CPU in f32 kernels take their place, and are tested against them.

use candle_core::{D, Device, Result, Tensor};

use crate::layers::{self, AttentionMask, Tail};

pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
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

pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normal.broadcast_mul(weight)?.broadcast_add(bias)
}

pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

pub(crate) fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let grouped = x.reshape((batch, groups, channels / groups * height * width))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
    let variance = centred.sqr()?.mean_keepdim(2)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape(x.shape())?;
    let per_channel = (1, channels, 1, 1);
    normal.broadcast_mul(&weight.reshape(per_channel)?)?.broadcast_add(&bias.reshape(per_channel)?)
}

pub(crate) fn conv3x3(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.conv2d(weight, 1, 1, 1, 1)?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, bias.elem_count(), 1, 1))?),
        None => Ok(y),
    }
}

pub(crate) fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    let gate = ((x * -1.702)?.exp()? + 1.0)?;
    x / gate
}

pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    x.relu()
}

pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: &AttentionMask) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let split = |x: &Tensor, length| x.reshape((batch, length, heads, width / heads))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    let scores = (q.matmul(&k.transpose(2, 3)?)? * (heads as f64 / width as f64).sqrt())?;
    let scores = match mask {
        AttentionMask::Full => scores,
        mask => scores.broadcast_add(&additive(mask, queries, keys, q.device())?.to_dtype(scores.dtype())?)?,
    };
    let mixed = softmax(&scores)?.matmul(&v)?; // [B, heads, Tq, D]
    mixed.transpose(1, 2)?.reshape((batch, queries, width))
}

/// Scores against the prefix in one product for all queries, and those against each tail beside them.
pub(crate) fn branched_attention(
    q: &Tensor,
    prefix: Option<&(Tensor, Tensor)>,
    tails: &[Tail],
    heads: usize,
) -> Result<Tensor> {
    let (_, queries, width) = q.dims3()?;
    let split = |x: &Tensor| x.reshape((x.dim(1)?, heads, width / heads))?.transpose(0, 1)?.contiguous();
    let q = (split(q)? * (heads as f64 / width as f64).sqrt())?; // [heads, Σ queries, D]
    let prefix = prefix.map(|(k, v)| Ok::<_, candle_core::Error>((split(k)?, split(v)?))).transpose()?;
    let shared = prefix.as_ref().map(|(k, _)| q.matmul(&k.transpose(1, 2)?)).transpose()?;
    let mut mixed = Vec::with_capacity(tails.len());
    let mut first = 0;
    for tail in tails {
        let (k, v) = (split(&tail.keys)?, split(&tail.values)?);
        let own = q.narrow(1, first, tail.queries)?.matmul(&k.transpose(1, 2)?)?; // [heads, queries, tokens]
        let mask = additive(&AttentionMask::Causal, tail.queries, k.dim(1)?, q.device())?;
        let own = own.broadcast_add(&mask.to_dtype(own.dtype())?)?;
        mixed.push(match (&shared, &prefix) {
            (Some(shared), Some((_, prefix_v))) => {
                let seen = shared.dim(2)?;
                let weights = softmax(&Tensor::cat(&[&shared.narrow(1, first, tail.queries)?, &own], 2)?)?;
                let of_prefix = weights.narrow(2, 0, seen)?.contiguous()?.matmul(prefix_v)?;
                (of_prefix + weights.narrow(2, seen, k.dim(1)?)?.contiguous()?.matmul(&v)?)?
            }
            _ => softmax(&own)?.matmul(&v)?,
        });
        first += tail.queries;
    }
    Tensor::cat(&mixed, 1)?.transpose(0, 1)?.reshape((1, queries, width))
}

/// The mask as a matrix `[Tq, Tk]` of 0 and −∞.
fn additive(mask: &AttentionMask, queries: usize, keys: usize, device: &Device) -> Result<Tensor> {
    let mut matrix = vec![f32::NEG_INFINITY; queries * keys];
    for (i, row) in matrix.chunks_exact_mut(keys).enumerate() {
        let (shared, own) = mask.visible(i, queries, keys);
        row[shared].fill(0.0);
        row[own].fill(0.0);
    }
    Tensor::from_vec(matrix, (queries, keys), device)
}

pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    x.broadcast_div(&x.sum_keepdim(D::Minus1)?)
}

/// cos and sin `[T, D/2]`, the rows of the tokens' places.
pub(crate) fn rotary(x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, length, width) = x.dims3()?;
    let half = width / heads / 2;
    let shape = (1, length, 1, half);
    let (cos, sin) = (cos.reshape(shape)?, sin.reshape(shape)?);
    let x = x.reshape((batch, length, heads, 2 * half))?;
    let (near, far) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let turned_near = (near.broadcast_mul(&cos)? - far.broadcast_mul(&sin)?)?;
    let turned_far = (far.broadcast_mul(&cos)? + near.broadcast_mul(&sin)?)?;
    Tensor::cat(&[turned_near, turned_far], 3)?.reshape((batch, length, width))
}

pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let of_target = shifted.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?;
    (shifted.exp()?.sum(1)?.log()? - of_target)?.sum_all()
}

/// Two products with interpolation matrices.
pub(crate) fn resize_bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    let down = interpolation(h, height, x.device())?.to_dtype(x.dtype())?; // [height, h]
    let across = interpolation(w, width, x.device())?.to_dtype(x.dtype())?.t()?; // [w, width]
    let wide = x.reshape((batch * channels * h, w))?.matmul(&across)?; // [B·C·h, width]
    let columns = wide.reshape((batch * channels, h, width))?;
    down.broadcast_left(batch * channels)?.matmul(&columns)?.reshape((batch, channels, height, width))
}

pub(crate) fn scale_shuffle(own: &Tensor, coarser: &Tensor, finer: &Tensor) -> Result<Tensor> {
    let (_, channels, height, width) = own.dims4()?;
    let quarter = channels / 4;
    let keep = channels - 2 * quarter;
    let from_coarser = layers::resize_bilinear(&coarser.narrow(1, keep + quarter, quarter)?, height, width)?;
    let from_finer = layers::resize_bilinear(&finer.narrow(1, keep, quarter)?, height, width)?;
    Tensor::cat(&[&own.narrow(1, 0, keep)?, &from_coarser, &from_finer], 1)
}

/// The matrix `[to, from]` of bilinear weights with aligned corners.
fn interpolation(from: usize, to: usize, device: &Device) -> Result<Tensor> {
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
