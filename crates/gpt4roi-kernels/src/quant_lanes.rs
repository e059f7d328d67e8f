//! Vector code for one row of activations times sixteen rows of weights, straight from their tiles.
//!
//! Decoding reads every weight once for every token. Taken apart into a [`Panel`](crate::quant_block::Panel) first,
//! a weight is stored and read again for a single product; here it goes from its tile through a register into the sum.
//! The arithmetic is that of the panel in the same order, so that a token's numbers do not depend on how many others
//! are computed with it.

use std::arch::x86_64::*;

use crate::{interleave::WORD, quant_block::LANES, quant_product::Totals};

/// sum + dots·scale·x_scale, rounded as with a panel.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn add_scaled(sum: __m512, dots: __m512i, scale: __m512, x_scale: f32) -> __m512 {
    _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale), _mm512_set1_ps(x_scale), sum)
}

/// Asks for a whole tile at once. Its lines would come one after the other otherwise, as far as the processor looks
/// ahead, and two cores would reach two thirds of what memory can give.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn prefetch(tile: &[u8]) {
    for line in tile.chunks(64) {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
    }
}

/// Four columns of a row of activations in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn four_columns<const COLUMNS: usize>(values: &[i8; COLUMNS], word: usize) -> __m512i {
    let values = values.as_chunks::<4>().0[word].map(|value| value as u8);
    _mm512_set1_epi32(i32::from_le_bytes(values))
}

/// A byte of every word.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn byte_as_float(words: __m512i, byte: usize) -> __m512 {
    let shifted = _mm512_srl_epi32(words, _mm_cvtsi32_si128(8 * byte as i32));
    _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
}

/// The same for bytes with a sign.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn signed_byte_as_float(words: __m512i, byte: usize) -> __m512 {
    let at_the_top = _mm512_sll_epi32(words, _mm_cvtsi32_si128(24 - 8 * byte as i32));
    _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(at_the_top))
}

/// The half-precision number in the low half of every word.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn low_halves(words: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words))
}

/// Sixteen half-precision numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load_halves(bytes: &[u8]) -> __m512 {
    let bytes: &[u8; 2 * LANES] = bytes.first_chunk().expect("two bytes a row");
    // SAFETY: The array has the 32 bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

/// One word of every row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load_words(bytes: &[u8; WORD]) -> __m512i {
    // SAFETY: The array has the 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load(totals: &Totals) -> __m512 {
    // SAFETY: The array has the sixteen lanes.
    unsafe { _mm512_loadu_ps(totals.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn store(sum: __m512, totals: &mut Totals) {
    // SAFETY: The array has room for the sixteen lanes.
    unsafe { _mm512_storeu_ps(totals.as_mut_ptr(), sum) };
}
