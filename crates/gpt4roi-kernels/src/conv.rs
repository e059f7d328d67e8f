//! The 3×3 convolution with stride 1 and one ring of zeros, as nine matrix products.
//!
//! Maps are first laid out as `[channels, places]`, with one zero behind every row and a row of zeros
//! behind every map, so that the left neighbour of a first column, like the right one of a last, is a
//! zero. Then each of the nine taps reads the same matrix at a fixed distance, and is one product
//! with the tap's weights. Nothing is unfolded; a map of 14×14 costs 15 % more products than it
//! has values, larger ones less.

use crate::{
    gemm::{MatMut, MatRef, gemm, gemm_serial},
    parallel::{map_chunks, map_indices, threads},
    simd::sum,
};

const TAPS: usize = 9;

/// The dimensions of one convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv3x3Shape {
    /// Maps.
    pub batch: usize,
    /// Channels that come in.
    pub input: usize,
    /// Channels that go out.
    pub output: usize,
    /// Rows of a map, in and out.
    pub height: usize,
    /// Columns of a map, in and out.
    pub width: usize,
}

impl Conv3x3Shape {
    fn grid(&self) -> Grid {
        Grid { batch: self.batch, height: self.height, width: self.width }
    }

    fn weights(&self) -> usize {
        self.output * self.input * TAPS
    }
}

/// y\[b, o\] = Σ over c of weight\[o, c\] ⋆ x\[b, c\], plus bias\[o\].
///
/// # Shapes
/// x `[batch, input, height, width]`, weight `[output, input, 3, 3]`, bias `[output]`, out
/// `[batch, output, height, width]`
///
/// # Panics
/// If the lengths do not fit.
pub fn conv3x3(x: &[f32], weight: &[f32], bias: Option<&[f32]>, shape: Conv3x3Shape, out: &mut [f32]) {
    assert_eq!(weight.len(), shape.weights(), "{shape:?}");
    assert!(bias.is_none_or(|bias| bias.len() == shape.output), "{shape:?}");
    let taps = split_taps(weight, shape, |tap, o, c| (tap, o * shape.input + c));
    convolve(x, &taps, bias, (shape.input, shape.output), shape.grid(), out);
}

/// The gradient of [`conv3x3`] with respect to x: the convolution of `grad` with the weights turned
/// by half a turn.
///
/// # Panics
/// If the lengths do not fit.
pub fn conv3x3_backward_input(weight: &[f32], grad: &[f32], shape: Conv3x3Shape, grad_x: &mut [f32]) {
    assert_eq!(weight.len(), shape.weights(), "{shape:?}");
    let taps = split_taps(weight, shape, |tap, o, c| (TAPS - 1 - tap, c * shape.output + o));
    convolve(grad, &taps, None, (shape.output, shape.input), shape.grid(), grad_x);
}

/// The gradients of [`conv3x3`] with respect to weight and, where asked for, bias; both are written.
///
/// # Panics
/// If the lengths do not fit.
pub fn conv3x3_backward_weight(
    x: &[f32],
    grad: &[f32],
    shape: Conv3x3Shape,
    grad_weight: &mut [f32],
    grad_bias: Option<&mut [f32]>,
) {
    let Conv3x3Shape { input, output, .. } = shape;
    let grid = shape.grid();
    assert_eq!((x.len(), grad.len()), (grid.values(input), grid.values(output)), "{shape:?}");
    assert_eq!(grad_weight.len(), shape.weights(), "{shape:?}");
    let (x, padded_grad) = (grid.pad(x, input), grid.pad(grad, output));
    let mut tap_grads = vec![0.0; shape.weights()];
    for (tap, target) in tap_grads.chunks_exact_mut((output * input).max(1)).enumerate() {
        // The zeros of the gradient's layout drop all products that are no part of the map.
        let (stride, places) = (grid.stride(), grid.places());
        let left = MatRef::strided(&padded_grad[grid.margin()..], (output, places), (stride, 1));
        let right = MatRef::strided(&x[grid.distance(tap)..], (input, places), (stride, 1));
        gemm(1.0, left, right.transposed(), 0.0, MatMut::new(target, output, input));
    }
    for (index, target) in grad_weight.iter_mut().enumerate() {
        *target = tap_grads[index % TAPS * output * input + index / TAPS];
    }
    if let Some(grad_bias) = grad_bias {
        assert_eq!(grad_bias.len(), output, "{shape:?}");
        grad_bias.fill(0.0);
        let maps = grad.chunks_exact((shape.height * shape.width).max(1));
        for (index, map) in maps.enumerate() {
            grad_bias[index % output] += sum_map(map);
        }
    }
}

wide! {
    fn sum_map(map: &[f32]) -> f32 {
        sum(map, |x| x)
    }
}

/// `[output, input, 3, 3]` as nine matrices, each value at the tap and place that `target` says.
fn split_taps(weight: &[f32], shape: Conv3x3Shape, target: impl Fn(usize, usize, usize) -> (usize, usize)) -> Vec<f32> {
    let mut taps = vec![0.0; weight.len()];
    let size = shape.output * shape.input;
    for (pair, values) in weight.as_chunks::<TAPS>().0.iter().enumerate() {
        let (o, c) = (pair / shape.input, pair % shape.input);
        for (tap, &value) in values.iter().enumerate() {
            let (tap, place) = target(tap, o, c);
            taps[tap * size + place] = value;
        }
    }
    taps
}

/// Columns that are computed together: so many that nine taps add to a result which stays in the
/// cache.
fn columns_at_once(output: usize) -> usize {
    (1 << 15) / output.max(1)
}

/// Nine products for each stretch of places. `taps` is `[9, output, input]`.
fn convolve(
    x: &[f32],
    taps: &[f32],
    bias: Option<&[f32]>,
    (input, output): (usize, usize),
    grid: Grid,
    out: &mut [f32],
) {
    assert_eq!((x.len(), out.len()), (grid.values(input), grid.values(output)));
    if out.is_empty() {
        return;
    }
    let x = grid.pad(x, input);
    let places = grid.places();
    let columns = columns_at_once(output).clamp(256, 2048).min(places.div_ceil(threads())).max(1);
    let stretches = map_indices(places.div_ceil(columns), |index| {
        let start = index * columns;
        let length = columns.min(places - start);
        let mut y = vec![0.0; output * length];
        let mut beta = 0.0;
        if let Some(bias) = bias {
            beta = 1.0;
            for (row, &bias) in y.chunks_exact_mut(length).zip(bias) {
                row.fill(bias);
            }
        }
        for (tap, weight) in taps.chunks_exact((output * input).max(1)).enumerate() {
            let seen = &x[grid.distance(tap) + start..];
            let seen = MatRef::strided(seen, (input, length), (grid.stride(), 1));
            let weight = MatRef::new(weight, output, input);
            gemm_serial(1.0, weight, seen, beta, MatMut::new(&mut y, output, length));
            beta = 1.0;
        }
        y
    });
    grid.gather(&stretches, columns, output, out);
}

/// How maps are laid out with their zeros.
#[derive(Clone, Copy)]
struct Grid {
    batch: usize,
    height: usize,
    width: usize,
}

impl Grid {
    /// Values of so many channels without any zeros around.
    fn values(&self, channels: usize) -> usize {
        self.batch * channels * self.height * self.width
    }

    /// Zeros in front of and behind each channel: a row and one more.
    fn margin(&self) -> usize {
        self.width + 2
    }

    /// Places of one map.
    fn area(&self) -> usize {
        (self.height + 1) * (self.width + 1)
    }

    /// Places of one channel.
    fn places(&self) -> usize {
        self.batch * self.area()
    }

    /// From one channel to the next.
    fn stride(&self) -> usize {
        self.places() + 2 * self.margin()
    }

    /// Where a tap finds its value for place 0.
    fn distance(&self, tap: usize) -> usize {
        self.margin() + tap / 3 * (self.width + 1) + tap % 3 - (self.width + 1) - 1
    }

    /// `[batch, channels, height, width]` with zeros, as `[channels, stride]`.
    fn pad(&self, x: &[f32], channels: usize) -> Vec<f32> {
        let mut padded = vec![0.0; channels * self.stride()];
        map_chunks(&mut padded, self.stride(), |channel, padded| {
            for index in 0..self.batch {
                let map = &x[(index * channels + channel) * self.height * self.width..];
                let target = &mut padded[self.margin() + index * self.area()..];
                for row in 0..self.height {
                    target[row * (self.width + 1)..][..self.width]
                        .copy_from_slice(&map[row * self.width..][..self.width]);
                }
            }
        });
        padded
    }

    /// `[batch, channels, height, width]` out of stretches `[channels, columns]` of places.
    fn gather(&self, stretches: &[Vec<f32>], columns: usize, channels: usize, out: &mut [f32]) {
        map_chunks(out, self.height * self.width, |index, map| {
            let (batch, channel) = (index / channels, index % channels);
            for (row, target) in map.chunks_exact_mut(self.width).enumerate() {
                let mut place = batch * self.area() + row * (self.width + 1);
                let mut target = target;
                while !target.is_empty() {
                    let stretch = &stretches[place / columns];
                    let length = stretch.len() / channels;
                    let within = place % columns;
                    let run = target.len().min(length - within);
                    let (now, later) = target.split_at_mut(run);
                    now.copy_from_slice(&stretch[channel * length + within..][..run]);
                    place += run;
                    target = later;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, assert_gradient, values};
    use proptest::prelude::*;

    /// The convolution by its definition.
    fn reference(x: &[f32], weight: &[f32], bias: &[f32], shape: Conv3x3Shape) -> Vec<f32> {
        let Conv3x3Shape { batch, input, output, height, width } = shape;
        let mut out = Vec::new();
        for b in 0..batch {
            for (o, &bias) in bias.iter().enumerate() {
                for (row, column) in (0..height).flat_map(|row| (0..width).map(move |column| (row, column))) {
                    let mut total = f64::from(bias);
                    for (c, tap) in (0..input).flat_map(|c| (0..TAPS).map(move |tap| (c, tap))) {
                        let (y, x_) = ((row + tap / 3).wrapping_sub(1), (column + tap % 3).wrapping_sub(1));
                        if y < height && x_ < width {
                            let value = x[((b * input + c) * height + y) * width + x_];
                            total += f64::from(value) * f64::from(weight[(o * input + c) * TAPS + tap]);
                        }
                    }
                    out.push(total as f32);
                }
            }
        }
        assert_eq!(out.len(), batch * output * height * width);
        out
    }

    fn shapes() -> impl Strategy<Value = Conv3x3Shape> {
        (1usize..4, 1usize..6, 1usize..6, 1usize..10, 1usize..10)
            .prop_map(|(batch, input, output, height, width)| Conv3x3Shape { batch, input, output, height, width })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_convolution_agrees_with_its_definition(shape in shapes(), seed: u64) {
            let x = values(shape.batch * shape.input * shape.height * shape.width, seed);
            let (weight, bias) = (values(shape.weights(), seed ^ 1), values(shape.output, seed ^ 2));
            let mut out = vec![f32::NAN; shape.batch * shape.output * shape.height * shape.width];
            conv3x3(&x, &weight, Some(&bias), shape, &mut out);
            assert_close(&out, &reference(&x, &weight, &bias, shape), 1e-5);
            conv3x3(&x, &weight, None, shape, &mut out);
            assert_close(&out, &reference(&x, &weight, &vec![0.0; shape.output], shape), 1e-5);
        }

        #[test]
        fn the_gradients_agree_with_differences(shape in shapes(), seed: u64) {
            let x = values(shape.batch * shape.input * shape.height * shape.width, seed);
            let (weight, bias) = (values(shape.weights(), seed ^ 1), values(shape.output, seed ^ 2));
            let grad = values(shape.batch * shape.output * shape.height * shape.width, seed ^ 3);
            let mut grad_x = vec![f32::NAN; x.len()];
            conv3x3_backward_input(&weight, &grad, shape, &mut grad_x);
            assert_gradient(&x, &grad, &grad_x, 0..x.len().min(12), |x| reference(x, &weight, &bias, shape));
            let (mut grad_weight, mut grad_bias) = (vec![f32::NAN; weight.len()], vec![f32::NAN; bias.len()]);
            conv3x3_backward_weight(&x, &grad, shape, &mut grad_weight, Some(&mut grad_bias));
            let places = 0..weight.len().min(12);
            assert_gradient(&weight, &grad, &grad_weight, places, |weight| reference(&x, weight, &bias, shape));
            assert_gradient(&bias, &grad, &grad_bias, 0..bias.len(), |bias| reference(&x, &weight, bias, shape));
        }
    }

    /// More places than are computed at once, so that stretches meet within a row.
    #[test]
    fn a_map_of_many_stretches_agrees_with_its_definition() {
        for (batch, height, width) in [(1, 40, 77), (9, 14, 14), (3, 1, 1000)] {
            let shape = Conv3x3Shape { batch, input: 2, output: 130, height, width };
            let x = values(batch * 2 * height * width, 1);
            let (weight, bias) = (values(shape.weights(), 2), values(130, 3));
            let mut out = vec![0.0; batch * 130 * height * width];
            conv3x3(&x, &weight, Some(&bias), shape, &mut out);
            assert_close(&out, &reference(&x, &weight, &bias, shape), 1e-5);
        }
    }

    #[test]
    fn a_single_one_spreads_into_the_kernel_turned_by_half_a_turn() {
        let shape = Conv3x3Shape { batch: 1, input: 1, output: 1, height: 3, width: 3 };
        let weight: Vec<f32> = (1..=9).map(|i| i as f32).collect();
        let mut out = [0.0; 9];
        conv3x3(&[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], &weight, None, shape, &mut out);
        assert_eq!(out, [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]);
    }
}
