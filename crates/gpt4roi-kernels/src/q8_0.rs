//! `q8_0`: eight bits a weight in groups of 32.

use crate::{
    interleave::WORD,
    quant_block::{BlockFormat, LANES, Panel, halves},
    quant_lanes::{add_rows, add_rows_methods},
};

/// llama.cpp's `block_q8_0` (`ggml/src/ggml-common.h`), 8.5 bits a weight:
///
/// | bytes | what |
/// |---|---|
/// | 0..2 | d, half precision |
/// | 2..34 | 32 columns, signed |
///
/// A weight is `d·q`. Products want unsigned bytes: 128 is added to each.
#[derive(Debug)]
pub(crate) struct Q8_0;

const COLUMNS: usize = 32;

impl BlockFormat for Q8_0 {
    const COLUMNS: usize = COLUMNS;
    const BYTES: usize = 2 + COLUMNS;
    const WORDS_AT: usize = 2;
    const HALVES: &'static [usize] = &[0];
    const GROUP: usize = COLUMNS;
    const OFFSET: u8 = 128;
    const LARGEST: u8 = 255;
    const HAS_MIN: bool = false;

    #[inline(always)]
    fn unpack(tiles: &[u8], panel: &mut Panel) {
        let parts = panel.values.chunks_exact_mut(COLUMNS * LANES).zip(&mut panel.scales);
        for (tile, (out, scales)) in tiles.chunks_exact(LANES * Self::BYTES).zip(parts) {
            let (values, d) = tile.split_at(Self::WORDS * WORD);
            *scales = halves(d);
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value ^ 128);
        }
    }

    add_rows_methods! {}
}

// A few rows of activations straight from tiles.
add_rows! { |tiles, x, totals| {
    let mut sums = load_rows(totals);
    for (group, tile) in tiles.as_chunks::<{ LANES * Q8_0::BYTES }>().0.iter().enumerate() {
        let (values, d) = tile.split_at(Q8_0::WORDS * WORD);
        let mut dots = [splat(0); N];
        for (dots, x) in dots.iter_mut().zip(x) {
            *dots = signed_start(x.starts[group]);
        }
        for (word, values) in values.as_chunks::<WORD>().0.iter().enumerate() {
            let values = load_words(values);
            for (dots, x) in dots.iter_mut().zip(x) {
                *dots = add_signed_products(*dots, values, four_columns(&x.values, Q8_0::WORDS * group + word));
            }
        }
        let scale = load_halves(d);
        for ((sum, dots), x) in sums.iter_mut().zip(dots).zip(x) {
            *sum = add_scaled(*sum, dots, scale, x.scales[group]);
        }
    }
    store_rows(sums, totals);
} }
