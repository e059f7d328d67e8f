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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, assert_gradient, values};
    use proptest::prelude::*;

    const EPS: f32 = 0.01;

    /// Each span of `span` values brought to mean 0 and variance 1, in f64.
    fn normalised(x: &[f32], span: usize) -> Vec<f64> {
        let mut out = Vec::new();
        for x in x.chunks_exact(span) {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / span as f64;
            let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / span as f64;
            out.extend(x.iter().map(|&x| (f64::from(x) - mean) / (variance + f64::from(EPS)).sqrt()));
        }
        out
    }

    fn affine(normal: &[f64], weight: &[f32], bias: &[f32], area: usize) -> Vec<f32> {
        let channel = |index: usize| index / area % weight.len();
        let value = |(index, n): (usize, &f64)| (n * f64::from(weight[channel(index)])) as f32 + bias[channel(index)];
        normal.iter().enumerate().map(value).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn layer_norm_agrees_with_its_definition(rows in 1usize..150, size in 1usize..40, seed: u64) {
            let (x, grad) = (values(rows * size, seed), values(rows * size, seed ^ 1));
            let (weight, bias) = (values(size, seed ^ 2), values(size, seed ^ 3));
            let reference =
                |x: &[f32], weight: &[f32], bias: &[f32]| affine(&normalised(x, size), weight, bias, 1);
            let mut out = vec![f32::NAN; x.len()];
            layer_norm(&x, &weight, &bias, EPS, &mut out);
            assert_close(&out, &reference(&x, &weight, &bias), 1e-5);

            let mut grads = (vec![f32::NAN; x.len()], vec![0.0; size], vec![0.0; size]);
            layer_norm_backward(&x, &weight, EPS, &grad, &mut grads.0, &mut grads.1, &mut grads.2);
            let places = 0..size.min(4);
            // Differences need a value that bends little within a step.
            if size > 4 {
                assert_gradient(&x, &grad, &grads.0, places.clone(), |x| reference(x, &weight, &bias));
            }
            assert_gradient(&weight, &grad, &grads.1, places.clone(), |weight| reference(&x, weight, &bias));
            assert_gradient(&bias, &grad, &grads.2, places, |bias| reference(&x, &weight, bias));
        }

        #[test]
        fn rms_norm_agrees_with_its_definition(rows in 1usize..150, size in 5usize..40, seed: u64) {
            let (x, grad) = (values(rows * size, seed), values(rows * size, seed ^ 1));
            let weight = values(size, seed ^ 2);
            let reference = |x: &[f32], weight: &[f32]| -> Vec<f32> {
                x.chunks_exact(size)
                    .flat_map(|x| {
                        let square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / size as f64;
                        let scale = 1.0 / (square + f64::from(EPS)).sqrt();
                        x.iter().zip(weight).map(move |(&x, &w)| (f64::from(x) * scale * f64::from(w)) as f32)
                    })
                    .collect()
            };
            let mut out = vec![f32::NAN; x.len()];
            rms_norm(&x, &weight, EPS, &mut out);
            assert_close(&out, &reference(&x, &weight), 1e-5);

            let (mut grad_x, mut grad_weight) = (vec![f32::NAN; x.len()], vec![0.0; size]);
            rms_norm_backward(&x, &weight, EPS, &grad, &mut grad_x, &mut grad_weight);
            assert_gradient(&x, &grad, &grad_x, 0..4, |x| reference(x, &weight));
            assert_gradient(&weight, &grad, &grad_weight, 0..4, |weight| reference(&x, weight));
        }

        #[test]
        fn group_norm_agrees_with_its_definition(
            (batch, groups, per_group, area) in (1usize..4, 1usize..4, 1usize..4, 5usize..40), seed: u64
        ) {
            let channels = groups * per_group;
            let shape = GroupNormShape { channels, groups, area };
            let length = batch * channels * area;
            let (x, grad) = (values(length, seed), values(length, seed ^ 1));
            let (weight, bias) = (values(channels, seed ^ 2), values(channels, seed ^ 3));
            let reference = |x: &[f32], weight: &[f32], bias: &[f32]| {
                affine(&normalised(x, per_group * area), weight, bias, area)
            };
            let mut out = vec![f32::NAN; length];
            group_norm(&x, &weight, &bias, shape, EPS, &mut out);
            assert_close(&out, &reference(&x, &weight, &bias), 1e-5);

            let mut grads = (vec![f32::NAN; length], vec![0.0; channels], vec![0.0; channels]);
            group_norm_backward(&x, &weight, shape, EPS, &grad, &mut grads.0, &mut grads.1, &mut grads.2);
            assert_gradient(&x, &grad, &grads.0, 0..4, |x| reference(x, &weight, &bias));
            assert_gradient(&weight, &grad, &grads.1, 0..channels, |weight| reference(&x, weight, &bias));
            assert_gradient(&bias, &grad, &grads.2, 0..channels, |bias| reference(&x, &weight, bias));
        }
    }
}
