//! `q6_k`: six bits a weight in groups of 16, whose scales have eight bits.

use crate::{
    interleave::WORD,
    quant_block::{BlockFormat, LANES, Panel, halves, lanes},
};
#[cfg(target_arch = "x86_64")]
use crate::{quant_lanes::add_row, quant_product::Totals, quant_rows::RowStretch};

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

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn add_row_avx512(tile: &[u8], x: &RowStretch, totals: &mut Totals) {
        avx512::add_row(tile, x, totals);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_row_avx2(tile: &[u8], x: &RowStretch, totals: &mut Totals) {
        avx2::add_row(tile, x, totals);
    }
}

// One row of activations straight from a tile.
#[cfg(target_arch = "x86_64")]
add_row! { |tile, x, totals| {
    let words = tile.as_chunks::<WORD>().0;
    let d = load_halves(&tile[Q6K::WORDS * WORD..]);
    // Two bits of `top` go on top of four of `low`.
    let with_top = |low, top| or(masked(low, 0x0f), masked(top, 0x30));
    let mut sum = load(totals);
    for (half, x_values) in x.values.as_chunks::<128>().0.iter().enumerate() {
        let mut dots = [splat(0); 8];
        for (group, dots) in dots.iter_mut().enumerate() {
            *dots = splat(x.starts[8 * half + group]);
        }
        for word in 0..WORDS {
            let first = load_words(&words[2 * WORDS * half + word]);
            let second = load_words(&words[2 * WORDS * half + WORDS + word]);
            let high = load_words(&words[HIGH + WORDS * half + word]);
            let quarters = [
                with_top(first, shift_left::<4>(high)),
                with_top(second, shift_left::<2>(high)),
                with_top(shift_right::<4>(first), high),
                with_top(shift_right::<4>(second), shift_right::<2>(high)),
            ];
            for (quarter, values) in quarters.into_iter().enumerate() {
                let dots = &mut dots[2 * quarter + word / 4];
                *dots = add_products(*dots, values, four_columns(x_values, WORDS * quarter + word));
            }
        }
        for (group, dots) in dots.into_iter().enumerate() {
            let place = 8 * half + group;
            let scale = signed_byte_as_float(load_words(&words[SCALES + place / 4]), place % 4);
            sum = add_scaled(sum, dots, multiply(d, scale), x.scales[place / 2]);
        }
    }
    store(sum, totals);
} }
