//! What the block formats of quantised weights have in common.
//!
//! A block holds some columns of one row. Sixteen rows are interleaved into a *tile*, so that a vector
//! register holds the same four columns of sixteen rows and sums need no shuffling. A tile has the very
//! bits of its sixteen blocks in another order; it takes the place of them.

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
    /// Where in a block its half-precision scales lie.
    const HALVES: &'static [usize];
    /// Columns of a group; divides [`ACTIVATION_GROUP`].
    const GROUP: usize;
    /// What the quantised value 0 is stored as.
    const OFFSET: u8;
    /// Whether groups have a min.
    const HAS_MIN: bool;

    /// Interleaves the blocks of sixteen rows.
    fn pack(blocks: [&[u8]; LANES], tile: &mut [u8]);

    /// Takes the tiles of a stretch apart.
    fn unpack(tiles: &[u8], panel: &mut Panel);
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

    /// The weight of one row in one column.
    pub(crate) fn weight<F: BlockFormat>(&self, lane: usize, column: usize) -> f32 {
        let q = self.values[(column / 4 * LANES + lane) * 4 + column % 4];
        let value = self.scales[column / F::GROUP][lane] * (f32::from(q) - f32::from(F::OFFSET));
        if F::HAS_MIN { value - self.mins[column / F::GROUP][lane] } else { value }
    }
}

/// Writes the 32-bit words of sixteen rows: the first of every row, then the second, and so on.
pub(crate) fn interleave(rows: [&[u8]; LANES], out: &mut [u8]) {
    for (lane, row) in rows.iter().enumerate() {
        for (word, group) in row.as_chunks::<4>().0.iter().zip(out.chunks_exact_mut(4 * LANES)) {
            group[4 * lane..][..4].copy_from_slice(word);
        }
    }
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
fn half(bits: u16) -> f32 {
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

    #[test]
    fn words_are_interleaved() {
        let rows: Vec<[u8; 8]> = (0..LANES as u8).map(|row| [row, 1, 2, 3, row, 5, 6, 7]).collect();
        let mut out = [0; 128];
        interleave(std::array::from_fn(|lane| rows[lane].as_slice()), &mut out);
        assert_eq!(out[..8], [0, 1, 2, 3, 1, 1, 2, 3]);
        assert_eq!(out[64 + 15 * 4..], [15, 5, 6, 7]);
    }
}
