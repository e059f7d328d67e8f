//! Keys and values as they are remembered, in 32 bits or in 16.

use std::ops::Range;

use half::{f16, slice::HalfFloatSliceExt};

use crate::{gemm::MatRef, half_matrix::HalfFormat, half_product::Level, simd::sum2};

/// A number in which keys and values are remembered.
pub trait Remembered: Copy + Send + Sync + sealed::Sealed {
    /// The product of one x with every row.
    ///
    /// # Shapes
    /// rows `[n, D]`, x `[D]` → out `[n]`
    #[doc(hidden)]
    fn score(rows: StridedRows<'_, Self>, x: &[f32], out: &mut [f32]);

    /// Adds every row, times its weight.
    ///
    /// # Shapes
    /// rows `[n, D]`, weights `[n]` → out `[D]`
    #[doc(hidden)]
    fn add_rows(rows: StridedRows<'_, Self>, weights: &[f32], out: &mut [f32]);

    /// Rows as f32, `[n, D]`: where they lie, or in `room`.
    #[doc(hidden)]
    fn widened<'a>(rows: StridedRows<'a, Self>, room: &'a mut Vec<f32>) -> MatRef<'a>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
}

/// Rows inside a slice, each `stride` behind the last: what one head remembers of some tokens.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a, T> {
    /// From the first row's first number to the last row's last one.
    pub(crate) values: &'a [T],
    /// Numbers of a row.
    pub(crate) columns: usize,
    /// From one row's first number to the next one's.
    pub(crate) stride: usize,
}

impl<'a, T> StridedRows<'a, T> {
    /// Some channels of tokens that have `width` of them.
    pub(crate) fn new(tokens: &'a [T], channels: Range<usize>, width: usize) -> Self {
        let values = match tokens.len() {
            0 => tokens,
            length => &tokens[channels.start..length - width + channels.end],
        };
        Self { values, columns: channels.len(), stride: width }
    }

    fn count(self) -> usize {
        (self.values.len() + self.stride - self.columns) / self.stride
    }

    pub(crate) fn row(self, row: usize) -> &'a [T] {
        &self.values[row * self.stride..][..self.columns]
    }
}

impl Remembered for f32 {
    fn score(rows: StridedRows<'_, Self>, x: &[f32], out: &mut [f32]) {
        score(rows, x, out);
    }

    fn add_rows(rows: StridedRows<'_, Self>, weights: &[f32], out: &mut [f32]) {
        add_rows(rows, weights, out);
    }

    fn widened<'a>(rows: StridedRows<'a, Self>, _: &'a mut Vec<f32>) -> MatRef<'a> {
        MatRef::strided(rows.values, (rows.count(), rows.columns), (rows.stride, 1))
    }
}

wide! {
    fn score(rows: StridedRows<'_, f32>, x: &[f32], out: &mut [f32]) {
        for (row, out) in out.iter_mut().enumerate() {
            *out = sum2(rows.row(row), x, |key, x| key * x);
        }
    }
}

wide! {
    fn add_rows(rows: StridedRows<'_, f32>, weights: &[f32], out: &mut [f32]) {
        for (row, &weight) in weights.iter().enumerate() {
            out.iter_mut().zip(rows.row(row)).for_each(|(out, value)| *out += weight * value);
        }
    }
}

impl Remembered for f16 {
    fn score(rows: StridedRows<'_, Self>, x: &[f32], out: &mut [f32]) {
        Level::best().score(HalfFormat::F16, rows.bits(), x, out);
    }

    fn add_rows(rows: StridedRows<'_, Self>, weights: &[f32], out: &mut [f32]) {
        Level::best().add_rows(HalfFormat::F16, rows.bits(), weights, out);
    }

    /// A head of some hundred tokens fits into a core's second cache, so that memory is read once and at half the width.
    fn widened<'a>(rows: StridedRows<'a, Self>, room: &'a mut Vec<f32>) -> MatRef<'a> {
        room.resize(rows.count() * rows.columns, 0.0);
        for (row, to) in room.chunks_exact_mut(rows.columns).enumerate() {
            rows.row(row).convert_to_f32_slice(to);
        }
        MatRef::new(room, rows.count(), rows.columns)
    }
}

impl<'a> StridedRows<'a, f16> {
    fn bits(self) -> StridedRows<'a, u16> {
        StridedRows { values: self.values.reinterpret_cast(), columns: self.columns, stride: self.stride }
    }
}
