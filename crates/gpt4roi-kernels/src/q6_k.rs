//! `q6_k`: six bits a weight in groups of 16, whose scales have eight bits.

use crate::quant_block::{BlockFormat, LANES, Panel, halves};

/// llama.cpp's `block_q6_K` (`ggml/src/ggml-common.h`), 6.5625 bits a weight:
///
/// | bytes | what |
/// |---|---|
/// | 0..128 | low four bits: per 128 columns 64 bytes; columns 0..64 in their low halves, 64..128 in the high ones |
/// | 128..192 | high two bits: per 128 columns 32 bytes; columns 0..32 in bits 0 and 1, the next 32 in bits 2 and 3, … |
/// | 192..208 | scales of sixteen groups, signed |
/// | 208..210 | d, half precision |
///
/// A weight is `d·scale·(q − 32)`.
///
/// A tile has three words of every row after each other, as [`Self::unpack`] needs them: two of low bits and
/// one of high bits; then the scales group by group, then d.
#[derive(Debug)]
pub(crate) struct Q6K;

/// Bytes of a block before the scales.
const VALUES: usize = 192;
const GROUPS: usize = 16;
/// Bytes of one word of every row.
const WORD: usize = 4 * LANES;
/// Words of 32 columns.
const WORDS: usize = 8;

impl BlockFormat for Q6K {
    const COLUMNS: usize = 256;
    const BYTES: usize = VALUES + GROUPS + 2;
    const HALVES: &'static [usize] = &[VALUES + GROUPS];
    const GROUP: usize = 16;
    const OFFSET: u8 = 32;
    const HAS_MIN: bool = false;

    fn pack(blocks: [&[u8]; LANES], tile: &mut [u8]) {
        let (values, rest) = tile.split_at_mut(VALUES * LANES);
        let (scales, d) = rest.split_at_mut(GROUPS * LANES);
        for (lane, block) in blocks.iter().enumerate() {
            for (index, out) in values.chunks_exact_mut(3 * WORD).enumerate() {
                let (half, word) = (index / WORDS, index % WORDS);
                let low = 64 * half + 4 * word;
                let high = 128 + 32 * half + 4 * word;
                for (place, from) in [low, low + 32, high].into_iter().enumerate() {
                    out[place * WORD + 4 * lane..][..4].copy_from_slice(&block[from..from + 4]);
                }
            }
            for group in 0..GROUPS {
                scales[group * LANES + lane] = block[VALUES + group];
            }
            d[2 * lane..][..2].copy_from_slice(&block[VALUES + GROUPS..]);
        }
    }

    #[inline(always)]
    fn unpack(tile: &[u8], panel: &mut Panel) {
        let (values, rest) = tile.split_at(VALUES * LANES);
        let (scales, d) = rest.split_at(GROUPS * LANES);
        let d = halves(&d[..2 * LANES]);
        for (out, scales) in panel.scales.iter_mut().zip(scales.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                out[lane] = d[lane] * f32::from(scales[lane] as i8);
            }
        }
        /// Bytes of 32 columns of every row.
        const PART: usize = WORDS * WORD;
        for (index, words) in values.chunks_exact(3 * WORD).enumerate() {
            let (half, word) = (index / WORDS, index % WORDS);
            let out = &mut panel.values[4 * PART * half + WORD * word..][..3 * PART + WORD];
            for i in 0..WORD {
                let (first, second, high) = (words[i], words[WORD + i], words[2 * WORD + i]);
                out[i] = first & 15 | (high & 3) << 4;
                out[PART + i] = second & 15 | (high & 12) << 2;
                out[2 * PART + i] = first >> 4 | high & 48;
                out[3 * PART + i] = second >> 4 | high >> 2 & 48;
            }
        }
    }
}
