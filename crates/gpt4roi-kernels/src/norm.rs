//! Layer, root-mean-square and group normalisation.

use crate::{
    parallel::map_chunks,
    simd::{sum, sum2},
};

/// Rows that one task takes; also the order in which gradients of weights are summed, so that it does
/// not depend on the number of threads.
const ROWS: usize = 64;

/// Each row of `weight.len()` values: (x − mean) / √(variance + eps) · weight + bias.
///
/// # Panics
/// If the lengths do not fit.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let size = row_size(x, weight, out);
    assert_eq!(bias.len(), size);
    map_chunks(out, ROWS * size, |index, out| {
        layer_norm_rows(&x[index * ROWS * size..][..out.len()], weight, bias, eps, out);
    });
}

wide! {
    fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let size = weight.len();
        for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
            let (mean, scale) = moments(x, eps);
            for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (x - mean) * scale * weight + bias;
            }
        }
    }
}

/// The mean of a row, and 1 / √(variance + eps).
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let share = 1.0 / x.len() as f32;
    let mean = sum(x, |x| x) * share;
    let variance = sum(x, |x| (x - mean) * (x - mean)) * share;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// The gradients of [`layer_norm`]: that of x is written, those of weight and bias are added.
///
/// # Panics
/// If the lengths do not fit.
pub fn layer_norm_backward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    grad: &[f32],
    grad_x: &mut [f32],
    grad_weight: &mut [f32],
    grad_bias: &mut [f32],
) {
    let size = row_size(x, weight, grad_x);
    assert_eq!((grad.len(), grad_weight.len(), grad_bias.len()), (x.len(), size, size));
    let parts = map_chunks(grad_x, ROWS * size, |index, grad_x| {
        let place = index * ROWS * size..index * ROWS * size + grad_x.len();
        let mut parts = (vec![0.0; size], vec![0.0; size]);
        let (grad_weight, grad_bias) = (&mut parts.0, &mut parts.1);
        layer_norm_backward_rows(&x[place.clone()], weight, eps, &grad[place], grad_x, grad_weight, grad_bias);
        parts
    });
    for (weight, bias) in parts {
        add(grad_weight, &weight);
        add(grad_bias, &bias);
    }
}

wide! {
    fn layer_norm_backward_rows(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        grad: &[f32],
        grad_x: &mut [f32],
        grad_weight: &mut [f32],
        grad_bias: &mut [f32],
    ) {
        let size = weight.len();
        let share = 1.0 / size as f32;
        let mut normal = vec![0.0; size];
        for ((x, grad), grad_x) in x.chunks_exact(size).zip(grad.chunks_exact(size)).zip(grad_x.chunks_exact_mut(size)) {
            let (mean, scale) = moments(x, eps);
            for i in 0..size {
                normal[i] = (x[i] - mean) * scale;
                grad_weight[i] += grad[i] * normal[i];
                grad_bias[i] += grad[i];
                grad_x[i] = grad[i] * weight[i];
            }
            let along_one = sum(grad_x, |g| g) * share;
            let along_normal = sum2(grad_x, &normal, |g, n| g * n) * share;
            for (g, &n) in grad_x.iter_mut().zip(&normal) {
                *g = scale * (*g - along_one - n * along_normal);
            }
        }
    }
}

/// Each row of `weight.len()` values: x / √(mean of x² + eps) · weight.
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let size = row_size(x, weight, out);
    map_chunks(out, ROWS * size, |index, out| {
        rms_norm_rows(&x[index * ROWS * size..][..out.len()], weight, eps, out);
    });
}

wide! {
    fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let size = weight.len();
        for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
            let scale = 1.0 / (sum(x, |x| x * x) / size as f32 + eps).sqrt();
            for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * weight;
            }
        }
    }
}

/// The gradients of [`rms_norm`]: that of x is written, that of weight is added.
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    grad: &[f32],
    grad_x: &mut [f32],
    grad_weight: &mut [f32],
) {
    let size = row_size(x, weight, grad_x);
    assert_eq!((grad.len(), grad_weight.len()), (x.len(), size));
    let parts = map_chunks(grad_x, ROWS * size, |index, grad_x| {
        let place = index * ROWS * size..index * ROWS * size + grad_x.len();
        let mut part = vec![0.0; size];
        rms_norm_backward_rows(&x[place.clone()], weight, eps, &grad[place], grad_x, &mut part);
        part
    });
    parts.iter().for_each(|part| add(grad_weight, part));
}

wide! {
    fn rms_norm_backward_rows(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        grad: &[f32],
        grad_x: &mut [f32],
        grad_weight: &mut [f32],
    ) {
        let size = weight.len();
        let share = 1.0 / size as f32;
        for ((x, grad), grad_x) in x.chunks_exact(size).zip(grad.chunks_exact(size)).zip(grad_x.chunks_exact_mut(size)) {
            let scale = 1.0 / (sum(x, |x| x * x) * share + eps).sqrt();
            for i in 0..size {
                grad_weight[i] += grad[i] * x[i] * scale;
                grad_x[i] = grad[i] * weight[i];
            }
            let along = sum2(grad_x, x, |g, x| g * x) * share * scale * scale;
            for (g, &x) in grad_x.iter_mut().zip(x) {
                *g = scale * (*g - x * along);
            }
        }
    }
}

/// Maps `[batch, groups·channels_per_group, area]`.
#[derive(Clone, Copy, Debug)]
pub struct GroupNormShape {
    /// Channels of the map.
    pub channels: usize,
    /// Groups that these are divided into.
    pub groups: usize,
    /// Height times width.
    pub area: usize,
}

impl GroupNormShape {
    fn per_group(&self) -> usize {
        self.channels / self.groups
    }

    fn check(&self, x: &[f32], weight: &[f32], out: &[f32]) {
        assert!(self.groups > 0 && self.channels.is_multiple_of(self.groups), "{self:?}");
        assert_eq!(weight.len(), self.channels);
        assert_eq!(x.len(), out.len());
        assert!(x.len().is_multiple_of((self.channels * self.area).max(1)), "{} values for {self:?}", x.len());
    }
}

/// Each group of channels over its whole map, brought to mean 0 and variance 1; then each channel
/// scaled and shifted.
///
/// # Shapes
/// x and out `[batch, channels, area]`; weight and bias `[channels]`
///
/// # Panics
/// If the lengths do not fit.
pub fn group_norm(x: &[f32], weight: &[f32], bias: &[f32], shape: GroupNormShape, eps: f32, out: &mut [f32]) {
    shape.check(x, weight, out);
    assert_eq!(bias.len(), shape.channels);
    let (per_group, area) = (shape.per_group(), shape.area);
    map_chunks(out, per_group * area, |index, out| {
        let x = &x[index * per_group * area..][..out.len()];
        let first = index % shape.groups * per_group;
        group_norm_span(x, &weight[first..][..per_group], &bias[first..][..per_group], area, eps, out);
    });
}

wide! {
    fn group_norm_span(x: &[f32], weight: &[f32], bias: &[f32], area: usize, eps: f32, out: &mut [f32]) {
        let (mean, scale) = moments(x, eps);
        let maps = x.chunks_exact(area).zip(out.chunks_exact_mut(area));
        for ((x, out), (&weight, &bias)) in maps.zip(weight.iter().zip(bias)) {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = (x - mean) * scale * weight + bias;
            }
        }
    }
}

/// The gradients of [`group_norm`]: that of x is written, those of weight and bias are added.
///
/// # Panics
/// If the lengths do not fit.
#[allow(clippy::too_many_arguments)] // The operands and their gradients; a struct would only rename them.
pub fn group_norm_backward(
    x: &[f32],
    weight: &[f32],
    shape: GroupNormShape,
    eps: f32,
    grad: &[f32],
    grad_x: &mut [f32],
    grad_weight: &mut [f32],
    grad_bias: &mut [f32],
) {
    shape.check(x, weight, grad_x);
    assert_eq!((grad.len(), grad_weight.len(), grad_bias.len()), (x.len(), shape.channels, shape.channels));
    let (per_group, area) = (shape.per_group(), shape.area);
    let parts = map_chunks(grad_x, per_group * area, |index, grad_x| {
        let place = index * per_group * area..index * per_group * area + grad_x.len();
        let weight = &weight[index % shape.groups * per_group..][..per_group];
        group_norm_backward_span(&x[place.clone()], weight, area, eps, &grad[place], grad_x)
    });
    for (index, part) in parts.iter().enumerate() {
        for (channel, &(weight, bias)) in part.iter().enumerate() {
            grad_weight[index % shape.groups * per_group + channel] += weight;
            grad_bias[index % shape.groups * per_group + channel] += bias;
        }
    }
}

wide! {
    /// Writes the gradient of one group and returns those of weight and bias for each channel.
    fn group_norm_backward_span(
        x: &[f32],
        weight: &[f32],
        area: usize,
        eps: f32,
        grad: &[f32],
        grad_x: &mut [f32],
    ) -> Vec<(f32, f32)> {
        let (mean, scale) = moments(x, eps);
        let share = 1.0 / x.len() as f32;
        let maps = x.chunks_exact(area).zip(grad.chunks_exact(area));
        let channels: Vec<(f32, f32)> =
            maps.map(|(x, grad)| (sum2(x, grad, |x, g| (x - mean) * scale * g), sum(grad, |g| g))).collect();
        let weighted = channels.iter().zip(weight);
        let (along_normal, along_one) = weighted.fold((0.0, 0.0), |sums, (channel, &weight)| {
            (sums.0 + channel.0 * weight * share, sums.1 + channel.1 * weight * share)
        });
        let maps = x.chunks_exact(area).zip(grad.chunks_exact(area)).zip(grad_x.chunks_exact_mut(area));
        for (((x, grad), grad_x), &weight) in maps.zip(weight) {
            for ((out, &x), &g) in grad_x.iter_mut().zip(x).zip(grad) {
                *out = scale * (g * weight - along_one - (x - mean) * scale * along_normal);
            }
        }
        channels
    }
}

fn row_size(x: &[f32], weight: &[f32], out: &[f32]) -> usize {
    let size = weight.len();
    assert_eq!(x.len(), out.len());
    assert!(size > 0 && x.len().is_multiple_of(size), "{} values in rows of {size}", x.len());
    size
}

fn add(total: &mut [f32], part: &[f32]) {
    for (total, part) in total.iter_mut().zip(part) {
        *total += part;
    }
}
