//! `q6_k`: six bits a weight in groups of 16, whose scales have eight bits.

use crate::{
    interleave::WORD,
    quant_block::{BlockFormat, LANES, Panel, halves, lanes},
    quant_lanes::{add_rows, add_rows_methods},
};

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
#[derive(Debug)]
pub(crate) struct Q6K;

const GROUPS: usize = 16;
/// Words of 32 columns.
const WORDS: usize = 8;
/// The first word of the high bits, and that of the scales.
const HIGH: usize = 32;
const SCALES: usize = 48;

impl BlockFormat for Q6K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 210;
    const WORDS_AT: usize = 0;
    const HALVES: &'static [usize] = &[208];
    const GROUP: usize = 16;
    const OFFSET: u8 = 32;
    const LARGEST: u8 = 63;
    const HAS_MIN: bool = false;

    #[inline(always)]
    fn unpack(tile: &[u8], panel: &mut Panel) {
        let (words, d) = tile.split_at(Self::WORDS * WORD);
        let d = halves(d);
        for (group, out) in panel.scales.iter_mut().enumerate().take(GROUPS) {
            let scales = lanes(words, SCALES + group / 4);
            for lane in 0..LANES {
                // The group's byte comes to the top, and back with its sign.
                let scale = (scales[lane] << (24 - 8 * (group % 4))) as i32 >> 24;
                out[lane] = d[lane] * scale as f32;
            }
        }
        /// Bytes of 32 columns of every row.
        const PART: usize = WORDS * WORD;
        for half in 0..2 {
            let (low, high) = (&words[2 * half * PART..][..2 * PART], &words[HIGH * WORD + half * PART..][..PART]);
            let out = &mut panel.values[4 * half * PART..][..4 * PART];
            for i in 0..PART {
                let (first, second, high) = (low[i], low[PART + i], high[i]);
                out[i] = first & 15 | (high & 3) << 4;
                out[PART + i] = second & 15 | (high & 12) << 2;
                out[2 * PART + i] = first >> 4 | high & 48;
                out[3 * PART + i] = second >> 4 | high >> 2 & 48;
            }
        }
    }

    add_rows_methods! {}
}

// A few rows of activations straight from a tile.
add_rows! { |tile, x, totals| {
    let words = tile.as_chunks::<WORD>().0;
    let d = load_halves(&tile[Q6K::WORDS * WORD..]);
    // Two bits of `top` go on top of four of `low`.
    let with_top = |low, top| or(masked(low, 0x0f), masked(top, 0x30));
    let mut sums = load_rows(totals);
    // One group after the other, as a panel has them, though a word holds columns of several.
    for group in 0..GROUPS {
        let (half, quarter) = (group / 8, group % 8 / 2);
        let low = |word: usize| load_words(&words[2 * WORDS * half + word]);
        let high = |word: usize| load_words(&words[HIGH + WORDS * half + word]);
        let mut dots = [splat(0); N];
        for (dots, x) in dots.iter_mut().zip(x) {
            *dots = splat(x.starts[group]);
        }
        for place in 0..WORDS / 2 {
            let word = WORDS / 2 * (group % 2) + place;
            let weights = match quarter {
                0 => with_top(low(word), shift_left::<4>(high(word))),
                1 => with_top(low(WORDS + word), shift_left::<2>(high(word))),
                2 => with_top(shift_right::<4>(low(word)), high(word)),
                _ => with_top(shift_right::<4>(low(WORDS + word)), shift_right::<2>(high(word))),
            };
            for (dots, x) in dots.iter_mut().zip(x) {
                *dots = add_products(*dots, weights, four_columns(&x.values, WORDS / 2 * group + place));
            }
        }
        let scale = multiply(d, signed_byte_as_float(load_words(&words[SCALES + group / 4]), group % 4));
        for ((sum, dots), x) in sums.iter_mut().zip(dots).zip(x) {
            *sum = add_scaled(*sum, dots, scale, x.scales[group / 2]);
        }
    }
    store_rows(sums, totals);
} }
