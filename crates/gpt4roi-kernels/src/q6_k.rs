//! `q6_k`: six bits a weight in groups of 16, whose scales have eight bits.

use crate::quant_block::{BlockFormat, LANES, Panel, halves, interleave};

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
/// A tile has low and high bits word by word interleaved, then the scales group by group, then d.
#[derive(Debug)]
pub(crate) struct Q6K;

const LOW: usize = 128;
const HIGH: usize = 64;
const GROUPS: usize = 16;

impl BlockFormat for Q6K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 210;
    const HALVES: &'static [usize] = &[LOW + HIGH + GROUPS];
    const GROUP: usize = 16;
    const OFFSET: u8 = 32;
    const HAS_MIN: bool = false;

    fn pack(blocks: [&[u8]; LANES], tile: &mut [u8]) {
        let (low, rest) = tile.split_at_mut(LOW * LANES);
        let (high, rest) = rest.split_at_mut(HIGH * LANES);
        let (scales, d) = rest.split_at_mut(GROUPS * LANES);
        interleave(blocks.map(|block| &block[..LOW]), low);
        interleave(blocks.map(|block| &block[LOW..LOW + HIGH]), high);
        for (lane, block) in blocks.iter().enumerate() {
            for group in 0..GROUPS {
                scales[group * LANES + lane] = block[LOW + HIGH + group];
            }
            d[2 * lane..][..2].copy_from_slice(&block[LOW + HIGH + GROUPS..]);
        }
    }

    #[inline(always)]
    fn unpack(tile: &[u8], panel: &mut Panel) {
        let (low, rest) = tile.split_at(LOW * LANES);
        let (high, rest) = rest.split_at(HIGH * LANES);
        let (scales, d) = rest.split_at(GROUPS * LANES);
        let d = halves(d);
        for (out, scales) in panel.scales.iter_mut().zip(scales.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                out[lane] = d[lane] * f32::from(scales[lane] as i8);
            }
        }
        // Eight words: 32 columns, whose bits lie together.
        const PART: usize = 8 * 4 * LANES;
        let halves =
            low.chunks_exact(2 * PART).zip(high.chunks_exact(PART)).zip(panel.values.chunks_exact_mut(4 * PART));
        for ((low, high), out) in halves {
            let (low0, low1) = low.split_at(PART);
            let (out0, out) = out.split_at_mut(PART);
            let (out1, out) = out.split_at_mut(PART);
            let (out2, out3) = out.split_at_mut(PART);
            for i in 0..PART {
                out0[i] = low0[i] & 15 | (high[i] & 3) << 4;
                out1[i] = low1[i] & 15 | (high[i] & 12) << 2;
                out2[i] = low0[i] >> 4 | high[i] & 48;
                out3[i] = low1[i] >> 4 | high[i] >> 2 & 48;
            }
        }
    }
}
