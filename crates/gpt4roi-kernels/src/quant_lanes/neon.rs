//! Sixteen lanes in four registers, and products of bytes that are widened to sixteen bits.

use std::{arch::aarch64::*, array::from_fn};

use crate::{interleave::WORD, quant_block::LANES, quant_product::Totals};

/// Sixteen words.
pub(crate) type Words = [uint32x4_t; 4];
/// Sixteen sums of products.
pub(crate) type Dots = [int32x4_t; 4];
/// Sixteen numbers.
pub(crate) type Floats = [float32x4_t; 4];

/// A number in every lane.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn splat(value: i32) -> Dots {
    [vdupq_n_s32(value); 4]
}

/// One word of every row.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load_words(bytes: &[u8; WORD]) -> Words {
    let quarters: &[[u8; WORD / 4]; 4] = bytes.as_chunks().0.as_array().expect("four quarters");
    // SAFETY: Each array has the sixteen bytes.
    quarters.each_ref().map(|quarter| vreinterpretq_u32_u8(unsafe { vld1q_u8(quarter.as_ptr()) }))
}

/// Sixteen half-precision numbers.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load_halves(bytes: &[u8]) -> Floats {
    let bytes: &[u8; 2 * LANES] = bytes.first_chunk().expect("two bytes a row");
    let quarters: &[[u8; LANES / 2]; 4] = bytes.as_chunks().0.as_array().expect("four quarters");
    // SAFETY: Each array has the eight bytes.
    quarters.each_ref().map(|quarter| vcvt_f32_f16(vreinterpret_f16_u8(unsafe { vld1_u8(quarter.as_ptr()) })))
}

/// The half-precision number in the low half of every word.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn low_halves(words: Words) -> Floats {
    words.map(|words| vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(words))))
}

#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load(totals: &Totals) -> Floats {
    let quarters: &[[f32; LANES / 4]; 4] = totals.as_chunks().0.as_array().expect("four quarters");
    // SAFETY: Each array has the four lanes.
    quarters.each_ref().map(|quarter| unsafe { vld1q_f32(quarter.as_ptr()) })
}

#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn store(sum: Floats, totals: &mut Totals) {
    for (sum, quarter) in sum.into_iter().zip(totals.as_chunks_mut::<{ LANES / 4 }>().0) {
        // SAFETY: The array has room for the four lanes.
        unsafe { vst1q_f32(quarter.as_mut_ptr(), sum) };
    }
}

/// The sums of each row so far.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn load_rows<const N: usize>(totals: &[Totals; N]) -> [Floats; N] {
    totals.each_ref().map(|totals| load(totals))
}

#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn store_rows<const N: usize>(sums: [Floats; N], totals: &mut [Totals; N]) {
    for (sum, totals) in sums.into_iter().zip(totals) {
        store(sum, totals);
    }
}

/// The bits of `mask` in every byte.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn masked(words: Words, mask: u8) -> Words {
    let mask = vreinterpretq_u32_u8(vdupq_n_u8(mask));
    words.map(|words| vandq_u32(words, mask))
}

#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn or(a: Words, b: Words) -> Words {
    from_fn(|quarter| vorrq_u32(a[quarter], b[quarter]))
}

/// Whole words are shifted: what comes over from a neighbouring byte has to be masked away.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn shift_right<const BITS: i32>(words: Words) -> Words {
    words.map(|words| vshrq_n_u32::<BITS>(words))
}

/// As [`shift_right`].
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn shift_left<const BITS: i32>(words: Words) -> Words {
    words.map(|words| vshlq_n_u32::<BITS>(words))
}

/// Bytes to which 128 was added, with their sign.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn with_sign(words: Words) -> Words {
    let top_bits = vreinterpretq_u32_u8(vdupq_n_u8(128));
    words.map(|words| veorq_u32(words, top_bits))
}

/// A byte of every word.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn byte_as_float(words: Words, byte: usize) -> Floats {
    let (bits, mask) = (vdupq_n_s32(-8 * byte as i32), vdupq_n_u32(255));
    words.map(|words| vcvtq_f32_u32(vandq_u32(vshlq_u32(words, bits), mask)))
}

/// The same for bytes with a sign.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn signed_byte_as_float(words: Words, byte: usize) -> Floats {
    let bits = vdupq_n_s32(24 - 8 * byte as i32);
    words.map(|words| vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_s32(vreinterpretq_s32_u32(words), bits))))
}

/// Four columns of a row of activations in every lane of a register.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn four_columns<const COLUMNS: usize>(values: &[i8; COLUMNS], word: usize) -> int8x16_t {
    let values = values.as_chunks::<4>().0[word].map(|value| value as u8);
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(values)))
}

/// Adds the products of four columns. Weights have no sign, and may be up to 127.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn add_products(dots: Dots, weights: Words, columns: int8x16_t) -> Dots {
    from_fn(|quarter| add_by_pairs(dots[quarter], vreinterpretq_s8_u32(weights[quarter]), columns))
}

/// What sums of [`add_signed_products`] start from, given what they would start from with an offset of 128.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn signed_start(_start: i32) -> Dots {
    splat(0)
}

/// Adds the products of four columns of weights with a sign.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn add_signed_products(dots: Dots, weights: Words, columns: int8x16_t) -> Dots {
    add_products(dots, weights, columns)
}

/// Sixteen bits hold the sum of two products, since activations are at least −127.
#[inline]
#[target_feature(enable = "neon")]
fn add_by_pairs(dots: int32x4_t, weights: int8x16_t, columns: int8x16_t) -> int32x4_t {
    let low = vmull_s8(vget_low_s8(weights), vget_low_s8(columns));
    let high = vmull_high_s8(weights, columns);
    vpadalq_s16(dots, vpaddq_s16(low, high))
}

#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn multiply(a: Floats, b: Floats) -> Floats {
    from_fn(|quarter| vmulq_f32(a[quarter], b[quarter]))
}

/// sum + dots·scale·x_scale, rounded as with a panel.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn add_scaled(sum: Floats, dots: Dots, scale: Floats, x_scale: f32) -> Floats {
    let scaled = multiply(dots.map(|dots| vcvtq_f32_s32(dots)), scale);
    from_fn(|quarter| vfmaq_n_f32(sum[quarter], scaled[quarter], x_scale))
}

/// sum − min·x_sum, rounded as with a panel.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn subtract_min(sum: Floats, min: Floats, x_sum: f32) -> Floats {
    from_fn(|quarter| vfmsq_n_f32(sum[quarter], min[quarter], x_sum))
}
