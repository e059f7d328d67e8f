//! `q4_k`: four bits a weight in groups of 32, whose scales and mins have six bits.

use crate::{
    interleave::WORD,
    quant_block::{BlockFormat, LANES, Panel, half, lanes},
    quant_lanes::{add_rows, add_rows_methods},
};

/// llama.cpp's `block_q4_K` (`ggml/src/ggml-common.h`), 4.5 bits a weight:
///
/// | bytes | what |
/// |---|---|
/// | 0..2 | d, half precision |
/// | 2..4 | dmin, half precision |
/// | 4..16 | scale and min of eight groups, six bits each (see [`Factors`]) |
/// | 16..144 | per 64 columns 32 bytes: the first 32 columns in their low halves, the others in the high ones |
///
/// A weight is `d·scale·q − dmin·min`.
#[derive(Debug)]
pub(crate) struct Q4K;

const GROUPS: usize = 8;
/// Words before the values.
const HEAD: usize = 4;
/// Words of 64 columns.
const WORDS: usize = 8;

impl BlockFormat for Q4K {
    const COLUMNS: usize = 256;
    const BYTES: usize = 144;
    const WORDS_AT: usize = 0;
    const HALVES: &'static [usize] = &[0, 2];
    const GROUP: usize = 32;
    const OFFSET: u8 = 0;
    const LARGEST: u8 = 15;
    const HAS_MIN: bool = true;

    #[inline(always)]
    fn unpack(tile: &[u8], panel: &mut Panel) {
        let (head, values) = tile.split_at(HEAD * WORD);
        let (factors, d) = (Factors::read(head), lanes(head, 0));
        for group in 0..GROUPS {
            let (scales, mins) = (factors.scales(group), factors.mins(group));
            for lane in 0..LANES {
                panel.scales[group][lane] = half(d[lane] as u16) * scales[lane];
                panel.mins[group][lane] = half((d[lane] >> 16) as u16) * mins[lane];
            }
        }
        const PART: usize = WORDS * WORD;
        for (packed, out) in values.chunks_exact(PART).zip(panel.values.chunks_exact_mut(2 * PART)) {
            let (low, high) = out.split_at_mut(PART);
            for ((packed, low), high) in packed.iter().zip(low).zip(high) {
                *low = packed & 15;
                *high = packed >> 4;
            }
        }
    }

    add_rows_methods! {}
}

/// The scales and mins of eight groups of every row, four to a word.
///
/// The first four scales and mins lie in the low six bits of bytes 0..4 and 4..8; of the others four bits lie in
/// bytes 8..12, scales in the low ones, and two on top of the former.
struct Factors {
    scales: [[u32; LANES]; 2],
    mins: [[u32; LANES]; 2],
}

impl Factors {
    #[inline(always)]
    fn read(head: &[u8]) -> Self {
        let (scales, mins, rest) = (lanes(head, 1), lanes(head, 2), lanes(head, 3));
        let mut factors = Self { scales: [[0; LANES]; 2], mins: [[0; LANES]; 2] };
        for lane in 0..LANES {
            factors.scales[0][lane] = scales[lane] & 0x3f3f_3f3f;
            factors.mins[0][lane] = mins[lane] & 0x3f3f_3f3f;
            factors.scales[1][lane] = rest[lane] & 0x0f0f_0f0f | scales[lane] >> 2 & 0x3030_3030;
            factors.mins[1][lane] = rest[lane] >> 4 & 0x0f0f_0f0f | mins[lane] >> 2 & 0x3030_3030;
        }
        factors
    }

    #[inline(always)]
    fn scales(&self, group: usize) -> [f32; LANES] {
        self.scales[group / 4].map(|word| (word >> (8 * (group % 4)) & 255) as f32)
    }

    #[inline(always)]
    fn mins(&self, group: usize) -> [f32; LANES] {
        self.mins[group / 4].map(|word| (word >> (8 * (group % 4)) & 255) as f32)
    }
}

// A few rows of activations straight from a tile.
add_rows! { |tile, x, totals| {
    let (head, values) = tile.as_chunks::<WORD>().0.split_at(HEAD);
    let halves = load_words(&head[0]);
    let (d, dmin) = (low_halves(halves), low_halves(shift_right::<16>(halves)));
    let (scales, mins, rest) = (load_words(&head[1]), load_words(&head[2]), load_words(&head[3]));
    let with_top = |low, top| or(masked(low, 0x0f), masked(shift_right::<2>(top), 0x30));
    let scales = [masked(scales, 0x3f), with_top(rest, scales)];
    let mins = [masked(mins, 0x3f), with_top(shift_right::<4>(rest), mins)];
    let mut sums = load_rows(totals);
    for (part, values) in values.as_chunks::<WORDS>().0.iter().enumerate() {
        let mut dots = [[splat(0); N]; 2];
        for (word, packed) in values.iter().enumerate() {
            let packed = load_words(packed);
            let nibbles = [masked(packed, 0x0f), masked(shift_right::<4>(packed), 0x0f)];
            for (group, dots) in dots.iter_mut().enumerate() {
                for (dots, x) in dots.iter_mut().zip(x) {
                    *dots = add_products(*dots, nibbles[group], four_columns(&x.values, WORDS * (2 * part + group) + word));
                }
            }
        }
        for (group, dots) in dots.into_iter().enumerate() {
            let group = 2 * part + group;
            let scale = multiply(d, byte_as_float(scales[group / 4], group % 4));
            let min = multiply(dmin, byte_as_float(mins[group / 4], group % 4));
            for ((sum, dots), x) in sums.iter_mut().zip(dots).zip(x) {
                *sum = subtract_min(add_scaled(*sum, dots, scale, x.scales[group]), min, x.sums[group]);
            }
        }
    }
    store_rows(sums, totals);
} }
