//! Rows of 16-bit numbers, multiplied with few rows of activations or mixed into one, for each kind of processor.

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
        #[cfg(not(target_arch = "x86_64"))]
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
        match self {
            _ if columns == 0 => {}
            // SAFETY: A level that is not portable comes from `available`, which has asked the processor.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::dots(format, weights, x, sums) },
            // SAFETY: As above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::dots(format, weights, x, sums) },
            Self::Portable => add_portable(format, weights, (x, columns), 0, sums),
        }
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
        match self {
            // SAFETY: A level that is not portable comes from `available`, which has asked the processor; the rows lie
            // inside the slice.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::add_rows(format, rows, weights, out) },
            // SAFETY: As above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::add_rows(format, rows, weights, out) },
            Self::Portable => add_rows_portable(format, rows, weights, 0, out),
        }
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

/// A format that is known when a loop is compiled.
#[cfg(target_arch = "x86_64")]
trait Stored {
    const FORMAT: HalfFormat;
}

#[cfg(target_arch = "x86_64")]
struct F16;

#[cfg(target_arch = "x86_64")]
impl Stored for F16 {
    const FORMAT: HalfFormat = HalfFormat::F16;
}

#[cfg(target_arch = "x86_64")]
struct Bf16;

#[cfg(target_arch = "x86_64")]
impl Stored for Bf16 {
    const FORMAT: HalfFormat = HalfFormat::Bf16;
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    const LANES: usize = 16;
    /// Rows of x whose sums stay in registers together.
    const TOGETHER: usize = 4;

    #[target_feature(enable = "avx512f,avx2")]
    pub(super) fn dots(format: HalfFormat, weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]]) {
        match format {
            HalfFormat::F16 => whole_registers::<F16>(weights, x, sums),
            HalfFormat::Bf16 => whole_registers::<Bf16>(weights, x, sums),
        }
        let columns = weights[0].len();
        add_portable(format, weights, (x, columns), columns / LANES * LANES, sums);
    }

    #[target_feature(enable = "avx512f,avx2")]
    fn whole_registers<S: Stored>(weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]]) {
        let columns = weights[0].len();
        let (many, few) = sums.as_chunks_mut::<TOGETHER>();
        let (of_many, of_few) = x.split_at(many.len() * TOGETHER * columns);
        for (x, sums) in of_many.chunks_exact(TOGETHER * columns).zip(many) {
            rows::<S, TOGETHER>(weights, x, sums);
        }
        for (x, sums) in of_few.chunks_exact(columns).zip(few.as_chunks_mut::<1>().0) {
            rows::<S, 1>(weights, x, sums);
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx2")]
    fn rows<S: Stored, const N: usize>(weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]; N]) {
        let columns = weights[0].len();
        let x: [&[f32]; N] = std::array::from_fn(|row| &x[row * columns..][..columns]);
        let mut totals = [[_mm512_setzero_ps(); ROWS]; N];
        for place in (0..columns / LANES).map(|register| register * LANES) {
            let mut wide = [_mm512_setzero_ps(); ROWS];
            for (wide, bits) in wide.iter_mut().zip(weights) {
                // SAFETY: Whole registers end before the row's last column.
                *wide = widen::<S>(unsafe { _mm256_loadu_si256(bits[place..].as_ptr().cast()) });
            }
            for (totals, x) in totals.iter_mut().zip(x) {
                // SAFETY: As above; a row of x has as many columns.
                let x = unsafe { _mm512_loadu_ps(x[place..].as_ptr()) };
                for (total, wide) in totals.iter_mut().zip(wide) {
                    *total = _mm512_fmadd_ps(wide, x, *total);
                }
            }
        }
        for (sums, totals) in sums.iter_mut().zip(totals) {
            for (sum, total) in sums.iter_mut().zip(totals) {
                *sum = _mm512_reduce_add_ps(total);
            }
        }
    }

    /// Registers of columns whose sums stay where they are while all rows go by.
    const BESIDE: usize = 8;

    /// # Safety
    /// The last row has to end inside the slice, and `out` to have a place for every column.
    #[target_feature(enable = "avx512f,avx2")]
    pub(super) unsafe fn add_rows(format: HalfFormat, rows: StridedRows<'_, u16>, weights: &[f32], out: &mut [f32]) {
        // SAFETY: As the caller promises.
        match format {
            HalfFormat::F16 => unsafe { add_registers::<F16>(rows, weights, out) },
            HalfFormat::Bf16 => unsafe { add_registers::<Bf16>(rows, weights, out) },
        }
        add_rows_portable(format, rows, weights, rows.columns / LANES * LANES, out);
    }

    /// # Safety
    /// As for `add_rows`.
    #[target_feature(enable = "avx512f,avx2")]
    unsafe fn add_registers<S: Stored>(rows: StridedRows<'_, u16>, weights: &[f32], out: &mut [f32]) {
        let whole = out.as_chunks_mut::<LANES>().0;
        let (many, few) = whole.as_chunks_mut::<BESIDE>();
        let first_of_few = many.len() * BESIDE * LANES;
        for (index, out) in many.iter_mut().enumerate() {
            // SAFETY: These columns are among the row's.
            unsafe { add_columns::<S, BESIDE>(rows, index * BESIDE * LANES, weights, out) };
        }
        for (index, out) in few.as_chunks_mut::<1>().0.iter_mut().enumerate() {
            // SAFETY: As above.
            unsafe { add_columns::<S, 1>(rows, first_of_few + index * LANES, weights, out) };
        }
    }

    /// # Safety
    /// In every row there have to be N registers of columns from `start` on.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx2")]
    unsafe fn add_columns<S: Stored, const N: usize>(
        rows: StridedRows<'_, u16>,
        start: usize,
        weights: &[f32],
        out: &mut [[f32; LANES]; N],
    ) {
        // SAFETY: An array of sixteen floats is a register.
        let mut totals = out.each_ref().map(|out| unsafe { _mm512_loadu_ps(out.as_ptr()) });
        for (row, &weight) in weights.iter().enumerate() {
            let weight = _mm512_set1_ps(weight);
            for (register, total) in totals.iter_mut().enumerate() {
                let place = row * rows.stride + start + register * LANES;
                // SAFETY: The caller promises the columns, and the last row ends inside the slice.
                let bits = unsafe { _mm256_loadu_si256(rows.values.as_ptr().add(place).cast()) };
                *total = _mm512_fmadd_ps(weight, widen::<S>(bits), *total);
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            // SAFETY: As above.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), total) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx2")]
    fn widen<S: Stored>(bits: __m256i) -> __m512 {
        match S::FORMAT {
            HalfFormat::F16 => _mm512_cvtph_ps(bits),
            HalfFormat::Bf16 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    const LANES: usize = 8;
    /// Rows of x whose sums stay in registers together.
    const TOGETHER: usize = 2;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn dots(format: HalfFormat, weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]]) {
        match format {
            HalfFormat::F16 => whole_registers::<F16>(weights, x, sums),
            HalfFormat::Bf16 => whole_registers::<Bf16>(weights, x, sums),
        }
        let columns = weights[0].len();
        add_portable(format, weights, (x, columns), columns / LANES * LANES, sums);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn whole_registers<S: Stored>(weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]]) {
        let columns = weights[0].len();
        let (many, few) = sums.as_chunks_mut::<TOGETHER>();
        let (of_many, of_few) = x.split_at(many.len() * TOGETHER * columns);
        for (x, sums) in of_many.chunks_exact(TOGETHER * columns).zip(many) {
            rows::<S, TOGETHER>(weights, x, sums);
        }
        for (x, sums) in of_few.chunks_exact(columns).zip(few.as_chunks_mut::<1>().0) {
            rows::<S, 1>(weights, x, sums);
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn rows<S: Stored, const N: usize>(weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]; N]) {
        let columns = weights[0].len();
        let x: [&[f32]; N] = std::array::from_fn(|row| &x[row * columns..][..columns]);
        let mut totals = [[_mm256_setzero_ps(); ROWS]; N];
        for place in (0..columns / LANES).map(|register| register * LANES) {
            let mut wide = [_mm256_setzero_ps(); ROWS];
            for (wide, bits) in wide.iter_mut().zip(weights) {
                // SAFETY: Whole registers end before the row's last column.
                *wide = widen::<S>(unsafe { _mm_loadu_si128(bits[place..].as_ptr().cast()) });
            }
            for (totals, x) in totals.iter_mut().zip(x) {
                // SAFETY: As above; a row of x has as many columns.
                let x = unsafe { _mm256_loadu_ps(x[place..].as_ptr()) };
                for (total, wide) in totals.iter_mut().zip(wide) {
                    *total = _mm256_fmadd_ps(wide, x, *total);
                }
            }
        }
        for (sums, totals) in sums.iter_mut().zip(totals) {
            for (sum, total) in sums.iter_mut().zip(totals) {
                *sum = total_of(total);
            }
        }
    }

    /// Registers of columns whose sums stay where they are while all rows go by.
    const BESIDE: usize = 8;

    /// # Safety
    /// The last row has to end inside the slice, and `out` to have a place for every column.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn add_rows(format: HalfFormat, rows: StridedRows<'_, u16>, weights: &[f32], out: &mut [f32]) {
        // SAFETY: As the caller promises.
        match format {
            HalfFormat::F16 => unsafe { add_registers::<F16>(rows, weights, out) },
            HalfFormat::Bf16 => unsafe { add_registers::<Bf16>(rows, weights, out) },
        }
        add_rows_portable(format, rows, weights, rows.columns / LANES * LANES, out);
    }

    /// # Safety
    /// As for `add_rows`.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_registers<S: Stored>(rows: StridedRows<'_, u16>, weights: &[f32], out: &mut [f32]) {
        let whole = out.as_chunks_mut::<LANES>().0;
        let (many, few) = whole.as_chunks_mut::<BESIDE>();
        let first_of_few = many.len() * BESIDE * LANES;
        for (index, out) in many.iter_mut().enumerate() {
            // SAFETY: These columns are among the row's.
            unsafe { add_columns::<S, BESIDE>(rows, index * BESIDE * LANES, weights, out) };
        }
        for (index, out) in few.as_chunks_mut::<1>().0.iter_mut().enumerate() {
            // SAFETY: As above.
            unsafe { add_columns::<S, 1>(rows, first_of_few + index * LANES, weights, out) };
        }
    }

    /// # Safety
    /// In every row there have to be N registers of columns from `start` on.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_columns<S: Stored, const N: usize>(
        rows: StridedRows<'_, u16>,
        start: usize,
        weights: &[f32],
        out: &mut [[f32; LANES]; N],
    ) {
        // SAFETY: An array of eight floats is a register.
        let mut totals = out.each_ref().map(|out| unsafe { _mm256_loadu_ps(out.as_ptr()) });
        for (row, &weight) in weights.iter().enumerate() {
            let weight = _mm256_set1_ps(weight);
            for (register, total) in totals.iter_mut().enumerate() {
                let place = row * rows.stride + start + register * LANES;
                // SAFETY: The caller promises the columns, and the last row ends inside the slice.
                let bits = unsafe { _mm_loadu_si128(rows.values.as_ptr().add(place).cast()) };
                *total = _mm256_fmadd_ps(weight, widen::<S>(bits), *total);
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            // SAFETY: As above.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), total) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen<S: Stored>(bits: __m128i) -> __m256 {
        match S::FORMAT {
            HalfFormat::F16 => _mm256_cvtph_ps(bits),
            HalfFormat::Bf16 => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn total_of(register: __m256) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: The array has room for the eight lanes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), register) };
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use half::{f16, slice::HalfFloatSliceExt};
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

    #[test]
    #[should_panic(expected = "3 rows in")]
    fn rows_behind_the_end_are_refused() {
        let rows = StridedRows { values: &[0; 40], columns: 16, stride: 16 };
        Level::best().add_rows(HalfFormat::F16, rows, &[1.0; 3], &mut [0.0; 16]);
    }
}
