//! Four rows of 16-bit weights times a few rows of activations, for each kind of processor.

use crate::{half_matrix::HalfFormat, simd::sum2};

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
