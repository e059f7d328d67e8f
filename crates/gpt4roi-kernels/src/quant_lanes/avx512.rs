//! Sixteen lanes in one register.

use std::arch::x86_64::*;

use crate::{interleave::WORD, quant_block::LANES, quant_product::Totals};

/// Sixteen words.
pub(crate) type Words = __m512i;
/// Sixteen numbers.
pub(crate) type Floats = __m512;

/// A number in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn splat(value: i32) -> Words {
    _mm512_set1_epi32(value)
}

/// One word of every row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load_words(bytes: &[u8; WORD]) -> Words {
    // SAFETY: The array has the 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Sixteen half-precision numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load_halves(bytes: &[u8]) -> Floats {
    let bytes: &[u8; 2 * LANES] = bytes.first_chunk().expect("two bytes a row");
    // SAFETY: The array has the 32 bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

/// The half-precision number in the low half of every word.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn low_halves(words: Words) -> Floats {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load(totals: &Totals) -> Floats {
    // SAFETY: The array has the sixteen lanes.
    unsafe { _mm512_loadu_ps(totals.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn store(sum: Floats, totals: &mut Totals) {
    // SAFETY: The array has room for the sixteen lanes.
    unsafe { _mm512_storeu_ps(totals.as_mut_ptr(), sum) };
}

/// The sums of each row so far.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load_rows<const N: usize>(totals: &[Totals; N]) -> [Floats; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    for (sum, totals) in sums.iter_mut().zip(totals) {
        *sum = load(totals);
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn store_rows<const N: usize>(sums: [Floats; N], totals: &mut [Totals; N]) {
    for (sum, totals) in sums.into_iter().zip(totals) {
        store(sum, totals);
    }
}

/// The bits of `mask` in every byte.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn masked(words: Words, mask: u8) -> Words {
    _mm512_and_si512(words, _mm512_set1_epi32(i32::from_ne_bytes([mask; 4])))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn or(a: Words, b: Words) -> Words {
    _mm512_or_si512(a, b)
}

/// Whole words are shifted: what comes over from a neighbouring byte has to be masked away.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn shift_right<const BITS: u32>(words: Words) -> Words {
    _mm512_srli_epi32::<BITS>(words)
}

/// As [`shift_right`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn shift_left<const BITS: u32>(words: Words) -> Words {
    _mm512_slli_epi32::<BITS>(words)
}

/// A byte of every word.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn byte_as_float(words: Words, byte: usize) -> Floats {
    let shifted = _mm512_srl_epi32(words, _mm_cvtsi32_si128(8 * byte as i32));
    _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
}

/// The same for bytes with a sign.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn signed_byte_as_float(words: Words, byte: usize) -> Floats {
    let at_the_top = _mm512_sll_epi32(words, _mm_cvtsi32_si128(24 - 8 * byte as i32));
    _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(at_the_top))
}

/// Four columns of a row of activations in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn four_columns<const COLUMNS: usize>(values: &[i8; COLUMNS], word: usize) -> __m512i {
    let values = values.as_chunks::<4>().0[word].map(|value| value as u8);
    _mm512_set1_epi32(i32::from_le_bytes(values))
}

/// Adds the products of four columns. Weights have no sign, and may be up to 127.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(crate) fn add_products(dots: Words, weights: Words, columns: __m512i) -> Words {
    _mm512_dpbusd_epi32(dots, weights, columns)
}

/// What sums of [`add_signed_products`] start from, given what they would start from with an offset of 128.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn signed_start(start: i32) -> Words {
    splat(start)
}

/// Adds the products of four columns of weights with a sign, here as bytes without one, with an offset.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(crate) fn add_signed_products(dots: Words, weights: Words, columns: __m512i) -> Words {
    _mm512_dpbusd_epi32(dots, _mm512_xor_si512(weights, _mm512_set1_epi8(i8::MIN)), columns)
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn multiply(a: Floats, b: Floats) -> Floats {
    _mm512_mul_ps(a, b)
}

/// sum + dots·scale·x_scale, rounded as with a panel.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn add_scaled(sum: Floats, dots: Words, scale: Floats, x_scale: f32) -> Floats {
    _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale), _mm512_set1_ps(x_scale), sum)
}

/// sum − min·x_sum, rounded as with a panel.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn subtract_min(sum: Floats, min: Floats, x_sum: f32) -> Floats {
    _mm512_fnmadd_ps(min, _mm512_set1_ps(x_sum), sum)
}
