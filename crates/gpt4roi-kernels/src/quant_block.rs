//! What the block formats of quantised weights have in common.
//!
//! A block holds some columns of one row. Sixteen rows are interleaved into a *tile*, so that a vector
//! register holds the same four columns of sixteen rows and sums need no shuffling. A tile has the very
//! bits of its sixteen blocks in another order; it takes the place of them.

use crate::{
    interleave::{SixteenRows, WORD},
    quant_product::Level,
};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::{quant_product::Totals, quant_rows::RowStretch};

/// Rows of a tile: the 32-bit lanes of the widest registers.
pub(crate) const LANES: usize = 16;

/// Columns that are unpacked at a time: the longest block.
pub(crate) const STRETCH: usize = 256;

/// Columns of activations that share a scale.
pub(crate) const ACTIVATION_GROUP: usize = 32;

/// A layout of quantised weights. A weight is `scale·(q − OFFSET) − min`, where q is an unsigned byte and
/// scale and min belong to its group of columns.
pub(crate) trait BlockFormat: Sync {
    /// Columns of a block; divides [`STRETCH`].
    const COLUMNS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Where in a block its 32-bit words begin. At the other end or in front of them may stand one half-precision
    /// number.
    const WORDS_AT: usize;
    /// How many words a block has.
    const WORDS: usize = Self::BYTES / 4;
    /// Where in a block its half-precision scales lie.
    const HALVES: &'static [usize];
    /// Columns of a group; divides [`ACTIVATION_GROUP`].
    const GROUP: usize;
    /// What the quantised value 0 is stored as.
    const OFFSET: u8;
    /// The largest value that is stored.
    const LARGEST: u8;
    /// Whether stored values exceed a signed byte. Without their offset they are signed bytes.
    const IS_SHIFTED: bool = Self::LARGEST > 127;
    /// Whether groups have a min.
    const HAS_MIN: bool;

    /// Makes a tile of the blocks that begin at the byte `start` of sixteen rows: word by word, then the
    /// half-precision number that is no part of a word, if there is one.
    #[inline]
    fn interleave(level: Level, rows: &SixteenRows<'_>, start: usize, tile: &mut [u8]) {
        let (words, halves) = tile.split_at_mut(Self::WORDS * WORD);
        rows.interleave(level, start + Self::WORDS_AT, Self::WORDS, words);
        if Self::BYTES % 4 == 2 {
            let at = if Self::WORDS_AT == 0 { Self::WORDS * 4 } else { 0 };
            rows.two_bytes(start + at, halves);
        }
    }

    /// Takes the tiles of a stretch apart.
    fn unpack(tiles: &[u8], panel: &mut Panel);

    /// Adds the products of the tiles of a stretch with a few rows of activations, as a panel would give them.
    ///
    /// # Safety
    /// The processor has to have AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    unsafe fn add_rows_avx512<const N: usize>(tiles: &[u8], x: &[RowStretch; N], totals: &mut [Totals; N]);

    /// As [`Self::add_rows_avx512`].
    ///
    /// # Safety
    /// The processor has to have AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn add_rows_avx2<const N: usize>(tiles: &[u8], x: &[RowStretch; N], totals: &mut [Totals; N]);

    /// Adds the products of the tiles of a stretch with a few rows of activations, as a panel would give them.
    ///
    /// # Safety
    /// The processor has to have dot products of bytes.
    #[cfg(target_arch = "aarch64")]
    unsafe fn add_rows_neon_dot<const N: usize>(tiles: &[u8], x: &[RowStretch; N], totals: &mut [Totals; N]);

    /// As [`Self::add_rows_neon_dot`].
    ///
    /// # Safety
    /// The processor has to have NEON.
    #[cfg(target_arch = "aarch64")]
    unsafe fn add_rows_neon<const N: usize>(tiles: &[u8], x: &[RowStretch; N], totals: &mut [Totals; N]);
}

/// A stretch of sixteen rows, ready to be multiplied.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Panel {
    /// `[STRETCH/4, 16, 4]`: four columns of every row, then the next four.
    pub(crate) values: [u8; LANES * STRETCH],
    /// The scale of every row, by group.
    pub(crate) scales: [[f32; LANES]; LANES],
    /// What is subtracted from every weight of a row, by group.
    pub(crate) mins: [[f32; LANES]; LANES],
}

impl Panel {
    pub(crate) fn new() -> Self {
        Self { values: [0; LANES * STRETCH], scales: [[0.0; LANES]; LANES], mins: [[0.0; LANES]; LANES] }
    }

    /// The weights of one row, from a column at which a group of activations begins.
    pub(crate) fn widen<F: BlockFormat>(&self, lane: usize, first: usize, out: &mut [f32]) {
        for (group, out) in out.chunks_mut(F::GROUP).enumerate() {
            let start = first + group * F::GROUP;
            let scale = self.scales[start / F::GROUP][lane];
            let min = if F::HAS_MIN { self.mins[start / F::GROUP][lane] } else { 0.0 };
            for (four, out) in out.chunks_mut(4).enumerate() {
                let stored = &self.values[((start / 4 + four) * LANES + lane) * 4..][..4];
                for (q, out) in stored.iter().zip(out) {
                    *out = scale * (f32::from(*q) - f32::from(F::OFFSET)) - min;
                }
            }
        }
    }
}

/// One word of every row of a tile.
#[inline(always)]
pub(crate) fn lanes(words: &[u8], word: usize) -> [u32; LANES] {
    let mut out = [0; LANES];
    for (out, bytes) in out.iter_mut().zip(words[word * WORD..].as_chunks::<4>().0) {
        *out = u32::from_le_bytes(*bytes);
    }
    out
}

/// Half-precision numbers, little-endian. They have to be finite.
#[inline(always)]
pub(crate) fn halves(bytes: &[u8]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = half(u16::from_le_bytes(*bytes));
    }
    out
}

/// A finite half-precision number. A shift puts its exponent and fraction in place, and a product corrects
/// the exponent, which holds for subnormal numbers as well; the compiler makes vector code of it.
#[inline(always)]
pub(crate) fn half(bits: u16) -> f32 {
    const TWO_TO_112: f32 = f32::from_bits(239 << 23);
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * TWO_TO_112;
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// Whether a half-precision number is neither infinite nor NaN.
pub(crate) fn is_finite_half(bytes: [u8; 2]) -> bool {
    u16::from_le_bytes(bytes) & 0x7c00 != 0x7c00
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_is_converted_exactly() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits);
            assert_eq!(is_finite_half(bits.to_le_bytes()), expected.is_finite());
            if expected.is_finite() {
                assert_eq!(half(bits).to_bits(), expected.to_f32().to_bits(), "{bits:#x}");
            }
        }
    }
}
