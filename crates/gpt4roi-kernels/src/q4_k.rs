//! `q4_k`: four bits a weight in groups of 32, whose scales and mins have six bits.

use crate::quant_block::{BlockFormat, LANES, Panel, halves, interleave};

/// llama.cpp's `block_q4_K` (`ggml/src/ggml-common.h`), 4.5 bits a weight:
///
/// | bytes | what |
/// |---|---|
/// | 0..2 | d, half precision |
/// | 2..4 | dmin, half precision |
/// | 4..16 | scale and min of eight groups, six bits each (see [`group_factors`]) |
/// | 16..144 | per 64 columns 32 bytes: the first 32 columns in their low halves, the others in the high ones |
///
/// A weight is `d·scale·q − dmin·min`.
///
/// A tile has d and dmin of sixteen rows, then the factors (see [`pack_factors`]), then the values, word
/// by word interleaved.
#[derive(Debug)]
pub(crate) struct Q4K;

const GROUPS: usize = 8;
const FACTORS: usize = 2 * GROUPS;
const FACTOR_BYTES: usize = FACTORS * LANES * 6 / 8;

impl BlockFormat for Q4K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 144;
    const HALVES: &'static [usize] = &[0, 2];
    const GROUP: usize = 32;
    const OFFSET: u8 = 0;
    const HAS_MIN: bool = true;

    fn pack(blocks: [&[u8]; LANES], tile: &mut [u8]) {
        let (d, rest) = tile.split_at_mut(2 * LANES);
        let (dmin, rest) = rest.split_at_mut(2 * LANES);
        let (factors, values) = rest.split_at_mut(FACTOR_BYTES);
        for (lane, block) in blocks.iter().enumerate() {
            d[2 * lane..][..2].copy_from_slice(&block[..2]);
            dmin[2 * lane..][..2].copy_from_slice(&block[2..4]);
        }
        let by_row = blocks.map(|block| group_factors(&block[4..16]));
        pack_factors(&by_row, factors);
        interleave(blocks.map(|block| &block[16..]), values);
    }

    #[inline(always)]
    fn unpack(tile: &[u8], panel: &mut Panel) {
        let (d, rest) = tile.split_at(2 * LANES);
        let (dmin, rest) = rest.split_at(2 * LANES);
        let (factors, values) = rest.split_at(FACTOR_BYTES);
        let (d, dmin, factors) = (halves(d), halves(dmin), unpack_factors(factors));
        for group in 0..GROUPS {
            for lane in 0..LANES {
                panel.scales[group][lane] = d[lane] * f32::from(factors[group][lane]);
                panel.mins[group][lane] = dmin[lane] * f32::from(factors[GROUPS + group][lane]);
            }
        }
        // Eight words have the low and high halves of 32 columns each.
        const HALF: usize = 8 * 4 * LANES;
        for (packed, out) in values.chunks_exact(HALF).zip(panel.values.chunks_exact_mut(2 * HALF)) {
            let (low, high) = out.split_at_mut(HALF);
            for ((packed, low), high) in packed.iter().zip(low).zip(high) {
                *low = packed & 15;
                *high = packed >> 4;
            }
        }
    }
}

/// The scales of eight groups, then their mins. The first four of both lie in the low six bits of bytes
/// 0..4 and 4..8; of the others four bits lie in bytes 8..12 and two on top of the former.
fn group_factors(packed: &[u8]) -> [u8; FACTORS] {
    std::array::from_fn(|index| {
        let (kind, group) = (index / GROUPS, index % GROUPS);
        match group {
            0..4 => packed[4 * kind + group] & 63,
            _ => (packed[4 + group] >> (4 * kind) & 15) | packed[4 * kind + group - 4] >> 6 << 4,
        }
    })
}

/// Sixteen factors of sixteen rows, six bits each: twelve in the low bits of twelve vectors, the other four
/// in pieces of two bits on top of three vectors each.
fn pack_factors(rows: &[[u8; FACTORS]; LANES], out: &mut [u8]) {
    for (index, vector) in out.chunks_exact_mut(LANES).enumerate() {
        for (out, row) in vector.iter_mut().zip(rows) {
            *out = row[index] | (row[12 + index / 3] >> (2 * (index % 3)) & 3) << 6;
        }
    }
}

/// The inverse of [`pack_factors`]; by factor, then by row.
#[inline(always)]
fn unpack_factors(packed: &[u8]) -> [[u8; LANES]; FACTORS] {
    let (vectors, _) = packed.as_chunks::<LANES>();
    let mut out = [[0; LANES]; FACTORS];
    for lane in 0..LANES {
        for index in 0..12 {
            out[index][lane] = vectors[index][lane] & 63;
        }
        for index in 0..4 {
            let top = |part: usize| vectors[3 * index + part][lane] >> 6;
            out[12 + index][lane] = top(0) | top(1) << 2 | top(2) << 4;
        }
    }
    out
}
