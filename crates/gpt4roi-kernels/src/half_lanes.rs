//! Vector code for products with rows of 16-bit numbers, said once for every kind of registers.
//!
//! The modules differ in what a register holds and in how it is loaded, widened and computed with; `products!` says
//! what is made of that.

use crate::{half_matrix::HalfFormat, half_product::ROWS, remembered::StridedRows};

/// Registers of columns whose sums stay where they are while all rows go by.
const BESIDE: usize = 8;

/// A format that is known when a loop is compiled.
trait Stored {
    const FORMAT: HalfFormat;
}

impl Stored for half::f16 {
    const FORMAT: HalfFormat = HalfFormat::F16;
}

impl Stored for half::bf16 {
    const FORMAT: HalfFormat = HalfFormat::Bf16;
}

/// Writes a module's `dots` and `add_rows`, of as many columns as whole registers hold.
macro_rules! products {
    ($features:literal) => {
        /// The products of four rows of weights with every row of x. Returns of how many columns they are.
        ///
        /// # Shapes
        /// weights: four of `[columns]`; x `[n, columns]` → sums `[n, 4]`
        #[target_feature(enable = $features)]
        pub(crate) fn dots(format: HalfFormat, weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]]) -> usize {
            match format {
                HalfFormat::F16 => dots_in::<half::f16>(weights, x, sums),
                HalfFormat::Bf16 => dots_in::<half::bf16>(weights, x, sums),
            }
            weights[0].len() / LANES * LANES
        }

        #[target_feature(enable = $features)]
        fn dots_in<S: Stored>(weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]]) {
            let columns = weights[0].len();
            let (many, few) = sums.as_chunks_mut::<TOGETHER>();
            let (of_many, of_few) = x.split_at(many.len() * TOGETHER * columns);
            for (x, sums) in of_many.chunks_exact(TOGETHER * columns).zip(many) {
                dots_of_rows::<S, TOGETHER>(weights, x, sums);
            }
            for (x, sums) in of_few.chunks_exact(columns).zip(few.as_chunks_mut::<1>().0) {
                dots_of_rows::<S, 1>(weights, x, sums);
            }
        }

        #[inline(never)]
        #[target_feature(enable = $features)]
        fn dots_of_rows<S: Stored, const N: usize>(weights: [&[u16]; ROWS], x: &[f32], sums: &mut [[f32; ROWS]; N]) {
            let columns = weights[0].len();
            let weights = weights.map(|row| row.as_chunks().0);
            let x: [_; N] = std::array::from_fn(|row| x[row * columns..][..columns].as_chunks().0);
            let mut totals = [[splat(0.0); ROWS]; N];
            for register in 0..columns / LANES {
                let mut wide = [splat(0.0); ROWS];
                for (wide, weights) in wide.iter_mut().zip(weights) {
                    *wide = load_wide::<S>(&weights[register]);
                }
                for (totals, x) in totals.iter_mut().zip(x) {
                    let x = load(&x[register]);
                    for (total, wide) in totals.iter_mut().zip(wide) {
                        *total = multiply_add(wide, x, *total);
                    }
                }
            }
            for (sums, totals) in sums.iter_mut().zip(totals) {
                for (sum, total) in sums.iter_mut().zip(totals) {
                    *sum = total_of(total);
                }
            }
        }

        /// Adds every row, times its weight. Returns of how many columns.
        ///
        /// # Shapes
        /// rows `[n, columns]`, weights `[n]` → out `[columns]`
        ///
        /// # Safety
        /// The last row has to end inside the slice.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn add_rows(
            format: HalfFormat,
            rows: StridedRows<'_, u16>,
            weights: &[f32],
            out: &mut [f32],
        ) -> usize {
            let out = &mut out[..rows.columns / LANES * LANES];
            // SAFETY: As the caller promises; `out` ends with the last whole register of a row's columns.
            match format {
                HalfFormat::F16 => unsafe { add_rows_in::<half::f16>(rows, weights, out) },
                HalfFormat::Bf16 => unsafe { add_rows_in::<half::bf16>(rows, weights, out) },
            }
            out.len()
        }

        /// # Safety
        /// As for `add_rows`; and a row has to have at least as many columns as `out`.
        #[target_feature(enable = $features)]
        unsafe fn add_rows_in<S: Stored>(rows: StridedRows<'_, u16>, weights: &[f32], out: &mut [f32]) {
            let (many, few) = out.as_chunks_mut::<LANES>().0.as_chunks_mut::<BESIDE>();
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
        /// As for `add_rows`; and every row has to have N registers of columns from `start` on.
        #[inline(never)]
        #[target_feature(enable = $features)]
        unsafe fn add_columns<S: Stored, const N: usize>(
            rows: StridedRows<'_, u16>,
            start: usize,
            weights: &[f32],
            out: &mut [[f32; LANES]; N],
        ) {
            let mut totals = [splat(0.0); N];
            for (total, out) in totals.iter_mut().zip(&*out) {
                *total = load(out);
            }
            for (row, &weight) in weights.iter().enumerate() {
                let weight = splat(weight);
                for (register, total) in totals.iter_mut().enumerate() {
                    let place = row * rows.stride + start + register * LANES;
                    // SAFETY: The caller promises the columns, and that the last row ends inside the slice.
                    let bits = unsafe { &*rows.values.as_ptr().add(place).cast() };
                    *total = multiply_add(weight, load_wide::<S>(bits), *total);
                }
            }
            for (out, total) in out.iter_mut().zip(totals) {
                store(total, out);
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    products!("avx512f,avx2");

    type Floats = __m512;
    const LANES: usize = 16;
    /// Rows of x whose sums stay in registers together.
    const TOGETHER: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn splat(value: f32) -> Floats {
        _mm512_set1_ps(value)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32; LANES]) -> Floats {
        // SAFETY: The array has the sixteen lanes.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(values: Floats, out: &mut [f32; LANES]) {
        // SAFETY: The array has room for the sixteen lanes.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx2")]
    fn load_wide<S: Stored>(bits: &[u16; LANES]) -> Floats {
        // SAFETY: The array has the 32 bytes.
        let bits = unsafe { _mm256_loadu_si256(bits.as_ptr().cast()) };
        match S::FORMAT {
            HalfFormat::F16 => _mm512_cvtph_ps(bits),
            HalfFormat::Bf16 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn multiply_add(a: Floats, b: Floats, sum: Floats) -> Floats {
        _mm512_fmadd_ps(a, b, sum)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn total_of(values: Floats) -> f32 {
        _mm512_reduce_add_ps(values)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    products!("avx2,fma,f16c");

    type Floats = __m256;
    const LANES: usize = 8;
    /// Rows of x whose sums stay in registers together.
    const TOGETHER: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn splat(value: f32) -> Floats {
        _mm256_set1_ps(value)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(values: &[f32; LANES]) -> Floats {
        // SAFETY: The array has the eight lanes.
        unsafe { _mm256_loadu_ps(values.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(values: Floats, out: &mut [f32; LANES]) {
        // SAFETY: The array has room for the eight lanes.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn load_wide<S: Stored>(bits: &[u16; LANES]) -> Floats {
        // SAFETY: The array has the sixteen bytes.
        let bits = unsafe { _mm_loadu_si128(bits.as_ptr().cast()) };
        match S::FORMAT {
            HalfFormat::F16 => _mm256_cvtph_ps(bits),
            HalfFormat::Bf16 => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn multiply_add(a: Floats, b: Floats, sum: Floats) -> Floats {
        _mm256_fmadd_ps(a, b, sum)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn total_of(values: Floats) -> f32 {
        let mut lanes = [0.0; LANES];
        store(values, &mut lanes);
        lanes.iter().sum()
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon {
    use std::arch::aarch64::*;

    use super::*;

    products!("neon");

    /// Two registers, so that 16-bit numbers are loaded by the whole register, and a single row has enough sums to add
    /// to while others are on their way.
    type Floats = [float32x4_t; 2];
    const LANES: usize = 8;
    /// Rows of x whose sums stay in registers together.
    const TOGETHER: usize = 2;

    #[inline]
    #[target_feature(enable = "neon")]
    fn splat(value: f32) -> Floats {
        [vdupq_n_f32(value); 2]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn load(values: &[f32; LANES]) -> Floats {
        // SAFETY: The array has the eight lanes.
        unsafe { [vld1q_f32(values.as_ptr()), vld1q_f32(values[4..].as_ptr())] }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn store(values: Floats, out: &mut [f32; LANES]) {
        // SAFETY: The array has room for the eight lanes.
        unsafe {
            vst1q_f32(out.as_mut_ptr(), values[0]);
            vst1q_f32(out[4..].as_mut_ptr(), values[1]);
        }
    }

    /// Every processor of this architecture has instructions that widen half precision; those that compute in it came
    /// later.
    #[inline]
    #[target_feature(enable = "neon")]
    fn load_wide<S: Stored>(bits: &[u16; LANES]) -> Floats {
        // SAFETY: The array has the eight numbers.
        let bits = unsafe { vld1q_u16(bits.as_ptr()) };
        match S::FORMAT {
            HalfFormat::F16 => {
                let halves = vreinterpretq_f16_u16(bits);
                [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)]
            }
            HalfFormat::Bf16 => {
                let words = [vshll_n_u16::<16>(vget_low_u16(bits)), vshll_high_n_u16::<16>(bits)];
                [vreinterpretq_f32_u32(words[0]), vreinterpretq_f32_u32(words[1])]
            }
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn multiply_add(a: Floats, b: Floats, sum: Floats) -> Floats {
        [vfmaq_f32(sum[0], a[0], b[0]), vfmaq_f32(sum[1], a[1], b[1])]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn total_of(values: Floats) -> f32 {
        vaddvq_f32(vaddq_f32(values[0], values[1]))
    }
}
