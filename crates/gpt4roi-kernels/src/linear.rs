//! Linear layers: rows times the transpose of a weight matrix that lies as checkpoints store it.
//!
//! Many rows go through panels of the weights, which are turned on the way and stay in the cache. For few rows the
//! weights matter alone: they stream through once, against all rows.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::{
    gemm::{MatMut, MatRef, gemm},
    interleave::SixteenRows,
    level::Level,
    panel::{PANEL, Rows, multiply_panel},
    parallel::{SharedRows, for_each_index, for_each_index_in, map_chunks},
    quant_block::LANES,
    quant_product::Level as QuantLevel,
};

/// From so many rows on, a panel is used often enough to be worth turning.
const MANY_ROWS: usize = 64;
/// Up to so many rows, a product is bound by reading the weights.
const FEW_ROWS: usize = 16;
/// Inputs and outputs from which on the two ways beat the general product.
const WIDE: usize = 512;
/// For two rows or more, but few: what the general product packs is not worth packing.
const NARROW: usize = 128;

/// y += x·Wᵀ.
///
/// # Shapes
/// x `[rows, input]`, weight `[output, input]`, y `[rows, output]`
///
/// # Panics
/// If the lengths do not fit.
pub fn linear(x: &[f32], weight: &[f32], (input, output): (usize, usize), y: &mut [f32]) {
    let rows = check(x, weight, (input, output), y);
    match rows {
        2..=FEW_ROWS if input >= NARROW && output >= NARROW => few_rows(Level::best(), x, weight, (input, output), y),
        1 if input >= WIDE && output >= WIDE => few_rows(Level::best(), x, weight, (input, output), y),
        MANY_ROWS.. if input >= WIDE && output >= WIDE => many_rows(Level::best(), x, weight, (input, output), y),
        _ => {
            let weight = MatRef::new(weight, output, input).transposed();
            gemm(1.0, MatRef::new(x, rows, input), weight, 1.0, MatMut::new(y, rows, output));
        }
    }
}

/// The number of rows.
fn check(x: &[f32], weight: &[f32], (input, output): (usize, usize), y: &[f32]) -> usize {
    let rows = x.len() / input.max(1);
    assert_eq!((x.len(), weight.len(), y.len()), (rows * input, output * input, rows * output), "{input} to {output}");
    rows
}

fn many_rows(level: Level, x: &[f32], weight: &[f32], (input, output): (usize, usize), y: &mut [f32]) {
    check(x, weight, (input, output), y);
    let panel = |outputs: Range<usize>, panel: &mut [f32]| {
        turn(&weight[outputs.start * input..outputs.end * input], input, panel);
    };
    add_by_panels(level, x, (input, output), panel, y);
}

/// y += x·Wᵀ, where `panel` writes up to 32 rows of W as [`turn`] does.
pub(crate) fn add_by_panels(
    level: Level,
    x: &[f32],
    (input, output): (usize, usize),
    panel: impl Fn(Range<usize>, &mut [f32]) + Sync + Send,
    y: &mut [f32],
) {
    let rows = x.len() / input.max(1);
    // A gap behind each row: rows at a distance of a power of two would meet in one set of the cache.
    let stride = input + 16;
    let mut spaced = vec![0.0; rows * stride];
    map_chunks(&mut spaced, stride, |row, out| out[..input].copy_from_slice(&x[row * input..][..input]));
    let left = Rows { values: &spaced, rows, stride };
    let y = SharedRows::new(y, output);
    let room = || (vec![0.0; input * PANEL], vec![0.0; rows * PANEL]);
    for_each_index_in(output.div_ceil(PANEL), room, |(weights, products), index| {
        let outputs = index * PANEL..output.min((index + 1) * PANEL);
        panel(outputs.clone(), weights);
        multiply_panel(level, left, weights, products);
        for (row, products) in products.chunks_exact(PANEL).enumerate() {
            // SAFETY: Each task writes to its own columns.
            let y = unsafe { y.row(row, outputs.clone()) };
            y.iter_mut().zip(products).for_each(|(y, product)| *y += *product);
        }
    });
}

/// Up to 32 rows `[count, input]` as a panel `[input, 32]`. In columns without a row something stands that does not
/// matter.
pub(crate) fn turn(weight: &[f32], input: usize, panel: &mut [f32]) {
    const ROW: usize = 4 * PANEL; // bytes
    let last = (weight.len() / input.max(1)).saturating_sub(1);
    let row = |row: usize| bytes(&weight[row.min(last) * input..][..input]);
    for first in (0..=last).step_by(LANES) {
        SixteenRows::new(std::array::from_fn(|lane| row(first + lane))).interleave_apart(
            QuantLevel::best(),
            0,
            input,
            ROW,
            &mut bytes_mut(panel)[4 * first..],
        );
    }
}

fn bytes(values: &[f32]) -> &[u8] {
    // SAFETY: Any byte of an f32 is a u8, which may lie anywhere.
    unsafe { values.align_to().1 }
}

fn bytes_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: As above; and any four bytes are an f32.
    unsafe { values.align_to_mut().1 }
}

/// Rows of weights that one task takes.
const TASK: usize = 16;
/// Inputs at a time: so few that those of all rows stay in the cache.
const STRETCH: usize = 4096;
/// Rows of x, and rows of weights, whose products are summed in registers together.
const SIDE: usize = 4;
/// Products of values that lie in the caches, in the time that reading one from memory is said to take.
const PRODUCTS: usize = 64;

fn few_rows(level: Level, x: &[f32], weight: &[f32], (input, output): (usize, usize), y: &mut [f32]) {
    let rows = check(x, weight, (input, output), y);
    let y = SharedRows::new(y, output);
    for_each_index(output.div_ceil(TASK), rows * weight.len() / PRODUCTS, |index| {
        let columns = index * TASK..output.min((index + 1) * TASK);
        let weight = &weight[columns.start * input..columns.end * input];
        let mut sums = vec![0.0; rows * columns.len()];
        level.run(Dots { x, weight, input, sums: &mut sums });
        for (row, sums) in sums.chunks_exact(columns.len()).enumerate() {
            // SAFETY: Each task writes to its own columns.
            let y = unsafe { y.row(row, columns.clone()) };
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
        }
    });
}

/// sums += x·Wᵀ, with few rows on both sides and many inputs.
struct Dots<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    input: usize,
    sums: &'a mut [f32],
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (rows, columns) = (self.x.len() / self.input, self.weight.len() / self.input);
        for start in (0..self.input).step_by(STRETCH) {
            let end = self.input.min(start + STRETCH);
            for column in (0..columns).step_by(SIDE) {
                for row in (0..rows).step_by(SIDE) {
                    match rows - row {
                        1 => self.tile::<S, 1>(simd, row, column, start..end),
                        2 => self.tile::<S, 2>(simd, row, column, start..end),
                        3 => self.tile::<S, 3>(simd, row, column, start..end),
                        _ => self.tile::<S, SIDE>(simd, row, column, start..end),
                    }
                }
            }
        }
    }
}

impl Dots<'_> {
    /// Up to R×4 dot products over some inputs. Where fewer rows of weights are left, the last stands in for those missing.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&mut self, simd: S, row: usize, column: usize, inputs: Range<usize>) {
        let columns = self.weight.len() / self.input;
        let left: [&[f32]; R] = std::array::from_fn(|i| stretch(self.x, row + i, self.input, &inputs));
        let right = [0, 1, 2, 3].map(|i| stretch(self.weight, (column + i).min(columns - 1), self.input, &inputs));
        let (lefts, rights) = (left.map(|x| S::as_simd_f32s(x)), right.map(|w| S::as_simd_f32s(w)));
        let mut sums = [[simd.splat_f32s(0.0); SIDE]; R];
        let length = lefts[0].0.len();
        let (left, right) = (lefts.map(|x| &x.0[..length]), rights.map(|w| &w.0[..length]));
        for k in 0..length {
            for (sums, left) in sums.iter_mut().zip(&left) {
                for (sum, right) in sums.iter_mut().zip(&right) {
                    *sum = simd.mul_add_e_f32s(left[k], right[k], *sum);
                }
            }
        }
        for (i, (sums, left)) in sums.into_iter().zip(&lefts).enumerate() {
            for (j, (sum, right)) in sums.into_iter().zip(&rights).enumerate().take(columns - column) {
                let rest: f32 = left.1.iter().zip(right.1).map(|(x, w)| x * w).sum();
                self.sums[(row + i) * columns + column + j] += simd.reduce_sum_f32s(sum) + rest;
            }
        }
    }
}

/// Some inputs of one row.
#[inline(always)]
fn stretch<'a>(x: &'a [f32], row: usize, input: usize, inputs: &Range<usize>) -> &'a [f32] {
    &x[row * input..][inputs.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, values};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_way_agrees_with_the_general_product(
            rows in 1usize..40, input in 1usize..100, output in 1usize..100, seed: u64,
        ) {
            let (x, weight) = (values(rows * input, seed), values(output * input, seed ^ 1));
            let old = values(rows * output, seed ^ 2);
            let mut expected = old.clone();
            let turned = MatRef::new(&weight, output, input).transposed();
            gemm(1.0, MatRef::new(&x, rows, input), turned, 1.0, MatMut::new(&mut expected, rows, output));
            for level in Level::all() {
                for way in [few_rows, many_rows] {
                    let mut y = old.clone();
                    way(level, &x, &weight, (input, output), &mut y);
                    assert_close(&y, &expected, 1e-5);
                }
            }
        }
    }

    /// More inputs than one stretch, and row counts on both sides of the limits.
    #[test]
    fn layers_agree_with_the_general_product() {
        let shapes = [(STRETCH + 700, WIDE + 5), (NARROW + 3, NARROW), (NARROW - 1, 400)];
        shapes.into_iter().for_each(|(input, output)| assert_agrees_with_the_general_product(input, output));
    }

    #[track_caller]
    fn assert_agrees_with_the_general_product(input: usize, output: usize) {
        let weight = values(output * input, 1);
        for rows in [0, 1, 3, FEW_ROWS, FEW_ROWS + 1, MANY_ROWS - 1, MANY_ROWS + 3] {
            let x = values(rows * input, 2);
            let (mut y, mut expected) = (vec![0.5; rows * output], vec![0.5; rows * output]);
            linear(&x, &weight, (input, output), &mut y);
            let turned = MatRef::new(&weight, output, input).transposed();
            gemm(1.0, MatRef::new(&x, rows, input), turned, 1.0, MatMut::new(&mut expected, rows, output));
            assert_close(&y, &expected, 1e-3);
        }
    }
}
