//! Sixteen rows of weights times a few rows of activations, for each kind of processor.

use crate::{
    quant_block::{ACTIVATION_GROUP, BlockFormat, LANES, Panel},
    quant_rows::RowStretch,
};

/// The products of sixteen rows of weights with one row of activations.
pub(crate) type Totals = [f32; LANES];

/// At most so many rows of activations are multiplied together, so that their sums stay in registers.
pub(crate) const ROWS_TOGETHER: usize = 12;

/// The instructions that a product may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Dot products of bytes in 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// Products of bytes, added by pairs, in 256-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Dot products of bytes in 128-bit registers.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// Products of bytes, added by pairs, in 128-bit registers.
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
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni");
            [(Self::Avx512Vnni, avx512), (Self::Avx2, has!("avx2") && has!("fma") && has!("f16c"))]
        };
        #[cfg(target_arch = "aarch64")]
        let vector = [(Self::NeonDot, std::arch::is_aarch64_feature_detected!("dotprod")), (Self::Neon, true)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let vector = [];
        vector.into_iter().filter(|(_, there)| *there).map(|(level, _)| level).chain([Self::Portable])
    }

    /// The best that this processor has.
    pub(crate) fn best() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }

    /// Adds the products of one stretch: `tiles` of sixteen rows, and `groups` groups of columns of `x`.
    pub(crate) fn add_stretch<F: BlockFormat>(
        self,
        tiles: &[u8],
        groups: usize,
        x: &[RowStretch],
        panel: &mut Panel,
        totals: &mut [Totals],
    ) {
        assert_eq!(x.len(), totals.len());
        assert!(groups * ACTIVATION_GROUP <= x.first().map_or(0, |x| x.values.len()));
        match self {
            // SAFETY: A level that is not portable comes from `available`, which has asked the processor.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => unsafe { avx512::add_stretch::<F>(tiles, groups, x, panel, totals) },
            // SAFETY: As above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::add_stretch::<F>(tiles, groups, x, panel, totals) },
            // SAFETY: As above.
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => unsafe { neon_dot::add_stretch::<F>(tiles, groups, x, panel, totals) },
            // SAFETY: As above.
            #[cfg(target_arch = "aarch64")]
            Self::Neon => unsafe { neon::add_stretch::<F>(tiles, groups, x, panel, totals) },
            Self::Portable => {
                F::unpack(tiles, panel);
                x.iter().zip(totals).for_each(|(x, totals)| portable::<F>(panel, groups, x, totals));
            }
        }
    }
}

/// The reference: what the other levels compute, in plain loops.
fn portable<F: BlockFormat>(panel: &Panel, groups: usize, x: &RowStretch, totals: &mut Totals) {
    for part in 0..groups * ACTIVATION_GROUP / F::GROUP {
        let group = part * F::GROUP / ACTIVATION_GROUP;
        let mut dots = [x.starts[part]; LANES];
        for column in part * F::GROUP..(part + 1) * F::GROUP {
            let weights = &panel.values[column / 4 * 4 * LANES..][..4 * LANES];
            for lane in 0..LANES {
                dots[lane] += i32::from(weights[4 * lane + column % 4]) * i32::from(x.values[column]);
            }
        }
        for lane in 0..LANES {
            totals[lane] += panel.scales[part][lane] * dots[lane] as f32 * x.scales[group];
            if F::HAS_MIN {
                totals[lane] -= panel.mins[part][lane] * x.sums[group];
            }
        }
    }
}

/// Multiplies as many rows as one of the numbers says straight from their tiles, and returns; other numbers of rows go on
/// behind it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! straight_from_tiles {
    ($add_rows:ident, ($tiles:ident, $x:ident, $totals:ident), $($rows:literal)*) => {$(
        if let (Some(x), Some(totals)) = ($x.as_array::<$rows>(), $totals.as_mut_array::<$rows>()) {
            // SAFETY: The features of the function around it are those that it needs.
            return unsafe { F::$add_rows($tiles, x, totals) };
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::quant_lanes::prefetch;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn add_stretch<F: BlockFormat>(
        tiles: &[u8],
        groups: usize,
        x: &[RowStretch],
        panel: &mut Panel,
        totals: &mut [Totals],
    ) {
        prefetch(tiles);
        straight_from_tiles!(add_rows_avx512, (tiles, x, totals), 1 2 3 4 5 6 7 8);
        F::unpack(tiles, panel);
        let (many, few) = x.as_chunks::<ROWS_TOGETHER>();
        let (many_totals, few_totals) = totals.as_chunks_mut::<ROWS_TOGETHER>();
        for (x, totals) in many.iter().zip(many_totals) {
            add_rows::<F, ROWS_TOGETHER>(panel, groups, x, totals);
        }
        let ((fours, ones), (four_totals, one_totals)) = (few.as_chunks::<4>(), few_totals.as_chunks_mut::<4>());
        for (x, totals) in fours.iter().zip(four_totals) {
            add_rows::<F, 4>(panel, groups, x, totals);
        }
        for (x, totals) in ones.as_chunks::<1>().0.iter().zip(one_totals.as_chunks_mut::<1>().0) {
            add_rows::<F, 1>(panel, groups, x, totals);
        }
    }

    /// One register has four columns of sixteen rows of weights; four columns of a row of activations go
    /// to all of its lanes.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add_rows<F: BlockFormat, const N: usize>(
        panel: &Panel,
        groups: usize,
        x: &[RowStretch; N],
        totals: &mut [Totals; N],
    ) {
        let mut sums = [_mm512_setzero_ps(); N];
        for (sum, totals) in sums.iter_mut().zip(&*totals) {
            *sum = load(totals);
        }
        for part in 0..groups * ACTIVATION_GROUP / F::GROUP {
            let group = part * F::GROUP / ACTIVATION_GROUP;
            let mut dots = [_mm512_setzero_si512(); N];
            for (dot, x) in dots.iter_mut().zip(x) {
                *dot = _mm512_set1_epi32(x.starts[part]);
            }
            for word in 0..F::GROUP / 4 {
                let word = part * F::GROUP / 4 + word;
                let weights = word_of_weights(panel, word);
                for (dot, x) in dots.iter_mut().zip(x) {
                    *dot = _mm512_dpbusd_epi32(*dot, weights, word_of_row(x, word));
                }
            }
            let scale = load(&panel.scales[part]);
            for ((sum, dot), x) in sums.iter_mut().zip(dots).zip(x) {
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale);
                *sum = _mm512_fmadd_ps(scaled, _mm512_set1_ps(x.scales[group]), *sum);
            }
            if F::HAS_MIN {
                let min = load(&panel.mins[part]);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = _mm512_fnmadd_ps(min, _mm512_set1_ps(x.sums[group]), *sum);
                }
            }
        }
        for (totals, sum) in totals.iter_mut().zip(sums) {
            // SAFETY: The array has room for the sixteen lanes.
            unsafe { _mm512_storeu_ps(totals.as_mut_ptr(), sum) };
        }
    }

    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32; LANES]) -> __m512 {
        // SAFETY: The array has the sixteen lanes.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[target_feature(enable = "avx512f")]
    fn word_of_weights(panel: &Panel, word: usize) -> __m512i {
        let values: &[u8; 4 * LANES] = &panel.values.as_chunks().0[word];
        // SAFETY: The array has the 64 bytes.
        unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    fn word_of_row(x: &RowStretch, word: usize) -> __m512i {
        let values: &[i8; 4] = &x.values.as_chunks().0[word];
        // SAFETY: The array has the four bytes.
        _mm512_broadcastd_epi32(unsafe { _mm_loadu_si32(values.as_ptr().cast()) })
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::quant_lanes::prefetch_ahead;

    const HALF: usize = LANES / 2;
    /// Bytes asked for ahead of one row's products: two tiles of `q4_k`.
    const AHEAD: usize = 2 * 144 * LANES;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn add_stretch<F: BlockFormat>(
        tiles: &[u8],
        groups: usize,
        x: &[RowStretch],
        panel: &mut Panel,
        totals: &mut [Totals],
    ) {
        if x.len() <= 4 {
            prefetch_ahead(tiles, AHEAD);
        }
        straight_from_tiles!(add_rows_avx2, (tiles, x, totals), 1 2 3 4);
        F::unpack(tiles, panel);
        let ((fours, ones), (four_totals, one_totals)) = (x.as_chunks::<4>(), totals.as_chunks_mut::<4>());
        for half in 0..2 {
            for (x, totals) in fours.iter().zip(&mut *four_totals) {
                add_rows::<F, 4>(panel, half, groups, x, totals);
            }
            for (x, totals) in ones.as_chunks::<1>().0.iter().zip(one_totals.as_chunks_mut::<1>().0) {
                add_rows::<F, 1>(panel, half, groups, x, totals);
            }
        }
    }

    /// How many words can be multiplied before 16 bits are too few for the sum of a pair of columns. The largest
    /// activation is 127.
    const fn words_before_widening<F: BlockFormat>() -> usize {
        let largest_weight = if F::IS_SHIFTED { 128 } else { F::LARGEST as usize };
        let words = i16::MAX as usize / (2 * 127 * largest_weight);
        if words < F::GROUP / 4 { words } else { F::GROUP / 4 }
    }

    /// Eight of the sixteen rows of weights. Bytes are multiplied and added by pairs into 16 bits, which are widened as
    /// seldom as they may be.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn add_rows<F: BlockFormat, const N: usize>(
        panel: &Panel,
        half: usize,
        groups: usize,
        x: &[RowStretch; N],
        totals: &mut [Totals; N],
    ) {
        const { assert!((F::GROUP / 4) % words_before_widening::<F>() == 0, "a group ends where pairs are widened") };
        let ones = _mm256_set1_epi16(1);
        let mut sums = [_mm256_setzero_ps(); N];
        for (sum, totals) in sums.iter_mut().zip(&*totals) {
            *sum = load(totals, half);
        }
        for part in 0..groups * ACTIVATION_GROUP / F::GROUP {
            let group = part * F::GROUP / ACTIVATION_GROUP;
            let mut dots = [_mm256_setzero_si256(); N];
            // Shifted weights get their sign back below: nothing has to be taken away for their offset.
            if F::OFFSET > 0 && !F::IS_SHIFTED {
                for (dot, x) in dots.iter_mut().zip(x) {
                    *dot = _mm256_set1_epi32(x.starts[part]);
                }
            }
            let (start, end) = (part * F::GROUP / 4, (part + 1) * F::GROUP / 4);
            for start in (start..end).step_by(words_before_widening::<F>()) {
                let mut pairs = [_mm256_setzero_si256(); N];
                for word in start..start + words_before_widening::<F>() {
                    let weights = word_of_weights(panel, half, word);
                    for (pairs, x) in pairs.iter_mut().zip(x) {
                        *pairs = _mm256_add_epi16(*pairs, pairs_of_products::<F>(weights, word_of_row(x, word)));
                    }
                }
                for (dot, pairs) in dots.iter_mut().zip(pairs) {
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
                }
            }
            let scale = load(&panel.scales[part], half);
            for ((sum, dot), x) in sums.iter_mut().zip(dots).zip(x) {
                let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), scale);
                *sum = _mm256_fmadd_ps(scaled, _mm256_set1_ps(x.scales[group]), *sum);
            }
            if F::HAS_MIN {
                let min = load(&panel.mins[part], half);
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum = _mm256_fnmadd_ps(min, _mm256_set1_ps(x.sums[group]), *sum);
                }
            }
        }
        for (totals, sum) in totals.iter_mut().zip(sums) {
            let half: &mut [f32; HALF] = &mut totals.as_chunks_mut().0[half];
            // SAFETY: The array has room for the eight lanes.
            unsafe { _mm256_storeu_ps(half.as_mut_ptr(), sum) };
        }
    }

    /// The products of two columns each, added. One factor of the instruction has no sign: where weights have one, it
    /// goes over to the activations.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pairs_of_products<F: BlockFormat>(weights: __m256i, values: __m256i) -> __m256i {
        if F::IS_SHIFTED {
            let weights = _mm256_xor_si256(weights, _mm256_set1_epi8(i8::MIN));
            _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(values, weights))
        } else {
            _mm256_maddubs_epi16(weights, values)
        }
    }

    #[target_feature(enable = "avx2")]
    fn load(values: &[f32; LANES], half: usize) -> __m256 {
        let values: &[f32; HALF] = &values.as_chunks().0[half];
        // SAFETY: The array has the eight lanes.
        unsafe { _mm256_loadu_ps(values.as_ptr()) }
    }

    #[target_feature(enable = "avx2")]
    fn word_of_weights(panel: &Panel, half: usize, word: usize) -> __m256i {
        let values: &[u8; 4 * HALF] = &panel.values.as_chunks().0[2 * word + half];
        // SAFETY: The array has the 32 bytes.
        unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn word_of_row(x: &RowStretch, word: usize) -> __m256i {
        let values: &[i8; 4] = &x.values.as_chunks().0[word];
        // SAFETY: The array has the four bytes.
        _mm256_broadcastd_epi32(unsafe { _mm_loadu_si32(values.as_ptr().cast()) })
    }
}

/// Writes `add_stretch` for processors with dot products of bytes, and for those without.
#[cfg(target_arch = "aarch64")]
macro_rules! neon_product {
    ($level:ident, $straight:ident, $features:literal) => {
        mod $level {
            use super::*;
            use crate::{interleave::WORD, quant_lanes::$level::*};

            #[target_feature(enable = $features)]
            pub(super) fn add_stretch<F: BlockFormat>(
                tiles: &[u8],
                groups: usize,
                x: &[RowStretch],
                panel: &mut Panel,
                totals: &mut [Totals],
            ) {
                // The sums of four rows of `q4_k`, of which a word has columns of two groups, would fill all registers.
                straight_from_tiles!($straight, (tiles, x, totals), 1 2 3);
                F::unpack(tiles, panel);
                let ((fours, ones), (four_totals, one_totals)) = (x.as_chunks::<4>(), totals.as_chunks_mut::<4>());
                for (x, totals) in fours.iter().zip(four_totals) {
                    add_rows::<F, 4>(panel, groups, x, totals);
                }
                for (x, totals) in ones.as_chunks::<1>().0.iter().zip(one_totals.as_chunks_mut::<1>().0) {
                    add_rows::<F, 1>(panel, groups, x, totals);
                }
            }

            #[inline(never)]
            #[target_feature(enable = $features)]
            fn add_rows<F: BlockFormat, const N: usize>(
                panel: &Panel,
                groups: usize,
                x: &[RowStretch; N],
                totals: &mut [Totals; N],
            ) {
                let words = panel.values.as_chunks::<WORD>().0;
                let mut sums = load_rows(totals);
                for part in 0..groups * ACTIVATION_GROUP / F::GROUP {
                    let group = part * F::GROUP / ACTIVATION_GROUP;
                    let mut dots = [splat(0); N];
                    // Shifted weights get their sign back below: nothing has to be taken away for their offset.
                    if F::OFFSET > 0 && !F::IS_SHIFTED {
                        for (dots, x) in dots.iter_mut().zip(x) {
                            *dots = splat(x.starts[part]);
                        }
                    }
                    for word in part * F::GROUP / 4..(part + 1) * F::GROUP / 4 {
                        let weights = load_words(&words[word]);
                        let weights = if F::IS_SHIFTED { with_sign(weights) } else { weights };
                        for (dots, x) in dots.iter_mut().zip(x) {
                            *dots = add_products(*dots, weights, four_columns(&x.values, word));
                        }
                    }
                    let scale = load(&panel.scales[part]);
                    for ((sum, dots), x) in sums.iter_mut().zip(dots).zip(x) {
                        *sum = add_scaled(*sum, dots, scale, x.scales[group]);
                    }
                    if F::HAS_MIN {
                        let min = load(&panel.mins[part]);
                        for (sum, x) in sums.iter_mut().zip(x) {
                            *sum = subtract_min(*sum, min, x.sums[group]);
                        }
                    }
                }
                store_rows(sums, totals);
            }
        }
    };
}

#[cfg(target_arch = "aarch64")]
neon_product!(neon_dot, add_rows_neon_dot, "neon,dotprod");
#[cfg(target_arch = "aarch64")]
neon_product!(neon, add_rows_neon, "neon");
