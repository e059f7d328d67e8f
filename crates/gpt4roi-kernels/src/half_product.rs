//! Rows of 16-bit numbers, multiplied with few rows of activations or mixed into one, for each kind of processor.

#[cfg(target_arch = "aarch64")]
use crate::half_lanes::neon;
#[cfg(target_arch = "x86_64")]
use crate::half_lanes::{avx2, avx512};
use crate::{half_matrix::HalfFormat, remembered::StridedRows, simd::sum2};

/// Rows of weights that are multiplied together.
pub(crate) const ROWS: usize = 4;

/// The instructions that a product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Registers of sixteen values.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Registers of eight values, and instructions that widen half precision.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Registers of four values, and instructions that widen half precision.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// What every processor has.
    Portable,
}

impl Level {
    /// All that this processor has, best first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let vector = {
            use std::arch::is_x86_feature_detected as has;
            let avx512 = has!("avx512f") && has!("avx2");
            [(Self::Avx512, avx512), (Self::Avx2, has!("avx2") && has!("fma") && has!("f16c"))]
        };
        #[cfg(target_arch = "aarch64")]
        let vector = [(Self::Neon, true)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let vector = [];
        vector.into_iter().filter(|(_, there)| *there).map(|(level, _)| level).chain([Self::Portable])
    }

    /// The best that this processor has.
    pub(crate) fn best() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }

    /// The products of four rows of weights with every row of x.
    ///
    /// # Shapes
    /// weights: four of `[columns]`; x `[n, columns]` → sums `[n, 4]`
    pub(crate) fn dots(self, format: HalfFormat, weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]]) {
        let columns = weights[0].len();
        assert!(weights.iter().all(|row| row.len() == columns) && x.len() == columns * sums.len());
        sums.fill([0.0; ROWS]);
        if columns == 0 {
            return;
        }
        let done = match self {
            // SAFETY: A level that is not portable comes from `available`, which has asked the processor.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::dots(format, weights, x, sums) },
            // SAFETY: As above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::dots(format, weights, x, sums) },
            // SAFETY: Every processor of this architecture has NEON.
            #[cfg(target_arch = "aarch64")]
            Self::Neon => unsafe { neon::dots(format, weights, x, sums) },
            Self::Portable => 0,
        };
        add_portable(format, weights, (x, columns), done, sums);
    }

    /// The product of one x with every row.
    ///
    /// # Shapes
    /// rows `[n, columns]`, x `[columns]` → out `[n]`
    pub(crate) fn score(self, format: HalfFormat, rows: StridedRows<'_, u16>, x: &[f32], out: &mut [f32]) {
        for (index, out) in out.chunks_mut(ROWS).enumerate() {
            let four = std::array::from_fn(|row| rows.row(index * ROWS + row.min(out.len() - 1)));
            let mut sums = [[0.0; ROWS]];
            self.dots(format, four, x, &mut sums);
            out.copy_from_slice(&sums[0][..out.len()]);
        }
    }

    /// Adds every row, times its weight.
    ///
    /// # Shapes
    /// rows `[n, columns]`, weights `[n]` → out `[columns]`
    pub(crate) fn add_rows(self, format: HalfFormat, rows: StridedRows<'_, u16>, weights: &[f32], out: &mut [f32]) {
        assert!(out.len() == rows.columns && rows.columns <= rows.stride);
        let Some(last) = weights.len().checked_sub(1) else { return };
        assert!(last * rows.stride + rows.columns <= rows.values.len(), "{} rows in {rows:?}", weights.len());
        let done = match self {
            // SAFETY: A level that is not portable comes from `available`, which has asked the processor; the rows lie
            // inside the slice.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::add_rows(format, rows, weights, out) },
            // SAFETY: As above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::add_rows(format, rows, weights, out) },
            // SAFETY: Every processor of this architecture has NEON; the rows lie inside the slice.
            #[cfg(target_arch = "aarch64")]
            Self::Neon => unsafe { neon::add_rows(format, rows, weights, out) },
            Self::Portable => 0,
        };
        add_rows_portable(format, rows, weights, done, out);
    }
}

/// The reference: what the other levels compute, with weights that are widened some at a time. Adds the products of
/// the columns from `start` on.
fn add_portable(
    format: HalfFormat,
    weights: [&[u16]; ROWS],
    (x, columns): (&[f32], usize),
    start: usize,
    sums: &mut [[f32; ROWS]],
) {
    const STRETCH: usize = 256;
    let mut wide = [0.0; STRETCH];
    for (row, weights) in weights.iter().enumerate() {
        for (index, bits) in weights[start..].chunks(STRETCH).enumerate() {
            let wide = &mut wide[..bits.len()];
            format.widen(bits, wide);
            for (sums, x) in sums.iter_mut().zip(x.chunks_exact(columns)) {
                sums[row] += sum2(wide, &x[start + index * STRETCH..][..bits.len()], |w, x| w * x);
            }
        }
    }
}

/// The reference. Adds the columns from `start` on.
fn add_rows_portable(format: HalfFormat, rows: StridedRows<'_, u16>, weights: &[f32], start: usize, out: &mut [f32]) {
    const STRETCH: usize = 256;
    let mut wide = [0.0; STRETCH];
    for (row, &weight) in weights.iter().enumerate() {
        for (bits, out) in rows.row(row)[start..].chunks(STRETCH).zip(out[start..].chunks_mut(STRETCH)) {
            let wide = &mut wide[..bits.len()];
            format.widen(bits, wide);
            out.iter_mut().zip(wide).for_each(|(out, wide)| *out += weight * *wide);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16, slice::HalfFloatSliceExt};
    use proptest::prelude::*;

    use super::*;
    use crate::test_values::values;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Against sums in f64 of the rounded numbers; what lies between the rows is no number.
        #[test]
        fn strided_rows_are_scored_and_mixed(rows in 0usize..12, columns in 1usize..300, between in 0usize..20, seed: u64) {
            let stride = columns + between;
            let mut stored = vec![f16::NAN; (rows * stride).saturating_sub(between)];
            for (row, values) in stored.chunks_mut(stride).zip(values(rows * columns, seed).chunks(columns)) {
                row[..columns].convert_from_f32_slice(values);
            }
            let at = |row: usize, column: usize| stored[row * stride + column].to_f64();
            let (x, weights, before) = (values(columns, seed ^ 1), values(rows, seed ^ 2), values(columns, seed ^ 3));
            let dot = |row| (0..columns).map(|column| at(row, column) * f64::from(x[column])).sum::<f64>();
            let mixed = |column| {
                let shares = weights.iter().enumerate().map(|(row, &weight)| at(row, column) * f64::from(weight));
                shares.sum::<f64>() + f64::from(before[column])
            };
            for level in Level::available() {
                let view = StridedRows { values: stored.reinterpret_cast(), columns, stride };
                let (mut scores, mut out) = (vec![f32::NAN; rows], before.clone());
                level.score(HalfFormat::F16, view, &x, &mut scores);
                level.add_rows(HalfFormat::F16, view, &weights, &mut out);
                let near = |got: f32, expected: f64| (f64::from(got) - expected).abs() < 3e-5;
                prop_assert!(scores.iter().enumerate().all(|(row, &got)| near(got, dot(row))), "{level:?}: {scores:?}");
                prop_assert!(out.iter().enumerate().all(|(column, &got)| near(got, mixed(column))), "{level:?}: {out:?}");
            }
        }
    }

    /// A product with one, added to a zero, is the number: subnormal, infinite and what is none included.
    #[test]
    fn every_number_is_widened_as_it_is() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let rows = StridedRows { values: &all, columns: all.len(), stride: all.len() };
        let number = |format, bits| match format {
            HalfFormat::F16 => f16::from_bits(bits).to_f32(),
            HalfFormat::Bf16 => bf16::from_bits(bits).to_f32(),
        };
        for format in [HalfFormat::F16, HalfFormat::Bf16] {
            for level in Level::available() {
                let mut out = vec![-0.0; all.len()];
                level.add_rows(format, rows, &[1.0], &mut out);
                for (&bits, got) in all.iter().zip(out) {
                    let expected = number(format, bits);
                    let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
                    assert!(same, "{level:?} {format:?} {bits:#06x}: {got}, expected {expected}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "3 rows in")]
    fn rows_behind_the_end_are_refused() {
        let rows = StridedRows { values: &[0; 40], columns: 16, stride: 16 };
        Level::best().add_rows(HalfFormat::F16, rows, &[1.0; 3], &mut [0.0; 16]);
    }
}
