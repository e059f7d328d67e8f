//! Sixteen lanes in two registers.

use std::arch::x86_64::*;

use crate::{interleave::WORD, quant_block::LANES, quant_product::Totals};

/// Sixteen words.
pub(crate) type Words = [__m256i; 2];
/// Sixteen numbers.
pub(crate) type Floats = [__m256; 2];

/// A number in every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn splat(value: i32) -> Words {
    [_mm256_set1_epi32(value); 2]
}

/// One word of every row.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_words(bytes: &[u8; WORD]) -> Words {
    let [first, second]: &[[u8; WORD / 2]; 2] = bytes.as_chunks().0.as_array().expect("two halves");
    // SAFETY: Each array has the 32 bytes.
    unsafe { [_mm256_loadu_si256(first.as_ptr().cast()), _mm256_loadu_si256(second.as_ptr().cast())] }
}

/// Sixteen half-precision numbers.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn load_halves(bytes: &[u8]) -> Floats {
    let bytes: &[u8; 2 * LANES] = bytes.first_chunk().expect("two bytes a row");
    let [first, second]: &[[u8; LANES]; 2] = bytes.as_chunks().0.as_array().expect("two halves");
    // SAFETY: Each array has the sixteen bytes.
    let halves = unsafe { [_mm_loadu_si128(first.as_ptr().cast()), _mm_loadu_si128(second.as_ptr().cast())] };
    [_mm256_cvtph_ps(halves[0]), _mm256_cvtph_ps(halves[1])]
}

/// The half-precision number in the low half of every word.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn low_halves([first, second]: Words) -> Floats {
    [low_halves_of_eight(first), low_halves_of_eight(second)]
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn low_halves_of_eight(words: __m256i) -> __m256 {
    let words = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
    let packed = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    _mm256_cvtph_ps(packed)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load(totals: &Totals) -> Floats {
    let [first, second]: &[[f32; LANES / 2]; 2] = totals.as_chunks().0.as_array().expect("two halves");
    // SAFETY: Each array has the eight lanes.
    unsafe { [_mm256_loadu_ps(first.as_ptr()), _mm256_loadu_ps(second.as_ptr())] }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn store(sum: Floats, totals: &mut Totals) {
    let [first, second]: &mut [[f32; LANES / 2]; 2] = totals.as_chunks_mut().0.as_mut_array().expect("two halves");
    // SAFETY: Each array has room for the eight lanes.
    unsafe {
        _mm256_storeu_ps(first.as_mut_ptr(), sum[0]);
        _mm256_storeu_ps(second.as_mut_ptr(), sum[1]);
    }
}

/// The sums of each row so far.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_rows<const N: usize>(totals: &[Totals; N]) -> [Floats; N] {
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    for (sum, totals) in sums.iter_mut().zip(totals) {
        *sum = load(totals);
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn store_rows<const N: usize>(sums: [Floats; N], totals: &mut [Totals; N]) {
    for (sum, totals) in sums.into_iter().zip(totals) {
        store(sum, totals);
    }
}

/// The bits of `mask` in every byte.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn masked(words: Words, mask: u8) -> Words {
    let mask = _mm256_set1_epi32(i32::from_ne_bytes([mask; 4]));
    [_mm256_and_si256(words[0], mask), _mm256_and_si256(words[1], mask)]
}

#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn or(a: Words, b: Words) -> Words {
    [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
}

/// Whole words are shifted: what comes over from a neighbouring byte has to be masked away.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn shift_right<const BITS: i32>(words: Words) -> Words {
    [_mm256_srli_epi32::<BITS>(words[0]), _mm256_srli_epi32::<BITS>(words[1])]
}

/// As [`shift_right`].
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn shift_left<const BITS: i32>(words: Words) -> Words {
    [_mm256_slli_epi32::<BITS>(words[0]), _mm256_slli_epi32::<BITS>(words[1])]
}

/// A byte of every word.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn byte_as_float(words: Words, byte: usize) -> Floats {
    let bits = _mm_cvtsi32_si128(8 * byte as i32);
    let [first, second] = [_mm256_srl_epi32(words[0], bits), _mm256_srl_epi32(words[1], bits)];
    let mask = _mm256_set1_epi32(255);
    [_mm256_cvtepi32_ps(_mm256_and_si256(first, mask)), _mm256_cvtepi32_ps(_mm256_and_si256(second, mask))]
}

/// The same for bytes with a sign.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn signed_byte_as_float(words: Words, byte: usize) -> Floats {
    let bits = _mm_cvtsi32_si128(24 - 8 * byte as i32);
    let [first, second] = [_mm256_sll_epi32(words[0], bits), _mm256_sll_epi32(words[1], bits)];
    [_mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(first)), _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(second))]
}

/// Four columns of a row of activations in every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn four_columns<const COLUMNS: usize>(values: &[i8; COLUMNS], word: usize) -> __m256i {
    let values = values.as_chunks::<4>().0[word].map(|value| value as u8);
    _mm256_set1_epi32(i32::from_le_bytes(values))
}

/// Adds the products of four columns. Weights have no sign, and may be up to 127, so that 16 bits hold the sum of two
/// products.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn add_products(dots: Words, weights: Words, columns: __m256i) -> Words {
    [add_by_pairs(dots[0], weights[0], columns), add_by_pairs(dots[1], weights[1], columns)]
}

/// What sums of [`add_signed_products`] start from, given what they would start from with an offset of 128.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn signed_start(_start: i32) -> Words {
    splat(0)
}

/// Adds the products of four columns of weights with a sign, which goes over to the activations.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn add_signed_products(dots: Words, weights: Words, columns: __m256i) -> Words {
    let [first, second] = weights;
    [
        add_by_pairs(dots[0], _mm256_abs_epi8(first), _mm256_sign_epi8(columns, first)),
        add_by_pairs(dots[1], _mm256_abs_epi8(second), _mm256_sign_epi8(columns, second)),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_by_pairs(dots: __m256i, weights: __m256i, columns: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(weights, columns);
    _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn multiply(a: Floats, b: Floats) -> Floats {
    [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
}

/// sum + dots·scale·x_scale, rounded as with a panel.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn add_scaled(sum: Floats, dots: Words, scale: Floats, x_scale: f32) -> Floats {
    let scaled = multiply([_mm256_cvtepi32_ps(dots[0]), _mm256_cvtepi32_ps(dots[1])], scale);
    let x_scale = _mm256_set1_ps(x_scale);
    [_mm256_fmadd_ps(scaled[0], x_scale, sum[0]), _mm256_fmadd_ps(scaled[1], x_scale, sum[1])]
}

/// sum − min·x_sum, rounded as with a panel.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn subtract_min(sum: Floats, min: Floats, x_sum: f32) -> Floats {
    let x_sum = _mm256_set1_ps(x_sum);
    [_mm256_fnmadd_ps(min[0], x_sum, sum[0]), _mm256_fnmadd_ps(min[1], x_sum, sum[1])]
}
