//! The layers as compositions of the engine's own differentiable operations: on any device, in any
//! floating-point type. On a CPU in f32 kernels take their place, and are tested against them.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::layers::{self, AttentionMask, Tail};

/// The product is computed in the weight's type.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let rows = x.elem_count() / input;
    let y = x.to_dtype(weight.dtype())?.reshape((rows, input))?.matmul(&weight.t()?)?;
    if let Some(last) = shape.last_mut() {
        *last = output;
    }
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(shape)?.to_dtype(x.dtype())
}

/// As many bits as sums of many numbers need: at least 32.
fn widened(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = widened(x)?;
    let (weight, bias) = (weight.to_dtype(wide.dtype())?, bias.to_dtype(wide.dtype())?);
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normal.broadcast_mul(&weight)?.broadcast_add(&bias)?.to_dtype(x.dtype())
}

pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = widened(x)?;
    let square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    wide.broadcast_div(&(square + eps)?.sqrt()?)?.broadcast_mul(&weight.to_dtype(wide.dtype())?)?.to_dtype(x.dtype())
}

pub(crate) fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let grouped = widened(x)?.reshape((batch, groups, channels / groups * height * width))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
    let variance = centred.sqr()?.mean_keepdim(2)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape(x.shape())?;
    let per_channel = |x: &Tensor| x.to_dtype(normal.dtype())?.reshape((1, channels, 1, 1));
    normal.broadcast_mul(&per_channel(weight)?)?.broadcast_add(&per_channel(bias)?)?.to_dtype(x.dtype())
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
    let split =
        |x: &Tensor| x.to_dtype(q.dtype())?.reshape((x.dim(1)?, heads, width / heads))?.transpose(0, 1)?.contiguous();
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
    let wide = widened(x)?;
    let powers = wide.broadcast_sub(&wide.max_keepdim(D::Minus1)?.detach())?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?.to_dtype(x.dtype())
}

/// cos and sin `[T, D/2]`, the rows of the tokens' places.
pub(crate) fn rotary(x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (batch, length, width) = x.dims3()?;
    let half = width / heads / 2;
    let shape = (1, length, 1, half);
    let turn = |angles: &Tensor| angles.reshape(shape)?.to_dtype(x.dtype());
    let (cos, sin) = (turn(cos)?, turn(sin)?);
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

/// Bilinear samples on an even grid are two products as well: along each axis a bin is a sum of lines of the map, of the
/// same lines for all channels.
pub(crate) fn roi_align(
    map: &Tensor,
    boxes: &[[f32; 4]],
    spatial_scale: f64,
    size: usize,
    sampling_ratio: usize,
) -> Result<Tensor> {
    let (_, channels, height, width) = map.dims4()?;
    let count = boxes.len();
    if count == 0 {
        return Tensor::zeros((0, channels, size, size), map.dtype(), map.device());
    }
    let bins = |low: usize, lines: usize| {
        let rows = boxes.iter().flat_map(|edges| {
            let [start, end] = [edges[low], edges[low + 2]].map(|edge| edge * spatial_scale as f32 - 0.5);
            bins_of_lines(start, end, lines, size, sampling_ratio)
        });
        Tensor::from_iter(rows, map.device())?.reshape((count, size, lines))?.to_dtype(map.dtype())
    };
    let (down, across) = (bins(1, height)?, bins(0, width)?);
    let lines = map.squeeze(0)?.transpose(0, 1)?.reshape((height, channels * width))?;
    let rows = down.reshape((count * size, height))?.matmul(&lines)?; // [N·size, C·W]
    let rows = rows.reshape((count, size * channels, width))?;
    let pooled = rows.matmul(&across.transpose(1, 2)?.contiguous()?)?; // [N, size·C, size]
    pooled.reshape((count, size, channels, size))?.transpose(1, 2)?.contiguous()
}

/// The matrix `[size, lines]` that makes bins of lines, the first of which lies at 0: the mean over the sample points of
/// a bin, each a share of the two lines next to it. Points further than one line outside count as zero.
fn bins_of_lines(start: f32, end: f32, lines: usize, size: usize, sampling_ratio: usize) -> Vec<f32> {
    let (bin, last) = ((end - start) / size as f32, (lines - 1) as f32);
    let mut matrix = vec![0.0; size * lines];
    for (index, row) in matrix.chunks_exact_mut(lines).enumerate() {
        for point in 0..sampling_ratio {
            let place = start + bin * (index as f32 + (point as f32 + 0.5) / sampling_ratio as f32);
            if (-1.0..=lines as f32).contains(&place) {
                let place = place.clamp(0.0, last);
                let share = place.fract() / sampling_ratio as f32;
                row[place as usize] += 1.0 / sampling_ratio as f32 - share;
                row[(place as usize + 1).min(lines - 1)] += share;
            }
        }
    }
    matrix
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::Config,
        model::Network,
        ops,
        random_weights::RandomWeights,
        weights::{TensorSource, Weights, WeightsError, WeightsResult},
    };

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Boxes of any place, beyond the map as well, and of no or negative extent.
        #[test]
        fn pooled_boxes_are_those_of_the_kernel(
            (height, width, channels) in (1usize..9, 1usize..9, 1usize..4),
            (size, sampling_ratio) in (1usize..4, 1usize..4),
            boxes in prop::collection::vec(prop::array::uniform4(-9f32..25.0), 0..4),
        ) {
            let map = Tensor::randn(0f32, 1.0, (1, channels, height, width), &Device::Cpu).unwrap();
            let expected = ops::roi_align(&map, boxes.clone(), 0.5, size, sampling_ratio).unwrap();
            let got = roi_align(&map, &boxes, 0.5, size, sampling_ratio).unwrap();
            prop_assert_eq!(got.dims(), expected.dims());
            for (got, expected) in flat(&got).into_iter().zip(flat(&expected)) {
                prop_assert!((got - expected).abs() < 1e-5, "{} {}", got, expected);
            }
        }
    }

    /// The same weights in another type, which no kernel takes.
    struct Typed(RandomWeights, DType);

    impl TensorSource for Typed {
        fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
            let typed = self.0.tensor(name, shape)?.to_dtype(self.1);
            typed.map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
        }
    }

    /// Picture, regions, prompt and three tokens behind it: everything that an answer is made of.
    fn answer(dtype: DType, tokens: usize) -> Vec<(&'static str, Tensor)> {
        let mut config = Config::pico(70);
        config.vision.image_size = 70; // 5 patches along a side
        config.region.tokens = tokens;
        let weights = Weights::new(Arc::new(Typed(RandomWeights::new(5), dtype)));
        let network = Network::load(&config, &weights, &weights).unwrap();
        let pixels = Tensor::arange(0f32, 3.0 * 70.0 * 70.0, &Device::Cpu).unwrap();
        let pixels = (pixels * 0.37).unwrap().sin().unwrap().reshape((1, 3, 70, 70)).unwrap();
        let boxes = Tensor::new(&[[0.1f32, 0.2, 0.7, 0.6], [0.0, 0.0, 1.0, 1.0]], &Device::Cpu).unwrap();
        let image = network.encode_image(&pixels).unwrap();
        let maps = network.pyramid(&image).unwrap();
        let regions = network.encode_regions(&maps, &boxes).unwrap();
        let ids = Tensor::arange(0u32, 40, &Device::Cpu).unwrap();
        let (places, region_places): (Vec<u32>, Vec<u32>) = ((3..28).collect(), (29..29 + 2 * tokens as u32).collect());
        let prompt = network.splice(&ids, &[(&image.image_tokens, &places), (&regions, &region_places)]).unwrap();
        let mut cache = network.llama.new_cache();
        let mut logits = Vec::new();
        for part in [prompt.narrow(1, 0, 37).unwrap(), prompt.narrow(1, 37, 3).unwrap()] {
            logits.push(network.llama.logits(&network.llama.forward(&part, &mut cache).unwrap()).unwrap());
        }
        vec![("map", maps[0].clone()), ("regions", regions), ("logits", Tensor::cat(&logits, 1).unwrap())]
    }

    /// What another device computes with: no kernel takes these types, so that every layer is a composition. (On a CPU
    /// the engine has no products in bf16.)
    #[test]
    fn a_whole_network_of_compositions_answers_as_the_kernels_do() {
        for (dtype, tokens, tolerance) in [(DType::F64, 1, 1e-5), (DType::F16, 1, 2e-2), (DType::F16, 4, 2e-2)] {
            for ((name, got), (_, expected)) in answer(dtype, tokens).iter().zip(&answer(DType::F32, tokens)) {
                let (got, expected) = (flat(got), flat(expected));
                let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                let error =
                    norm(&mut got.iter().zip(&expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
                assert!(error < tolerance, "{name} in {dtype:?}, {tokens} tokens: {error}");
            }
        }
    }
}
