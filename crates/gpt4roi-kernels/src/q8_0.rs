//! `q8_0`: eight bits a weight in groups of 32.

use crate::quant_block::{BlockFormat, LANES, Panel, halves, interleave};

/// llama.cpp's `block_q8_0` (`ggml/src/ggml-common.h`), 8.5 bits a weight:
///
/// | bytes | what |
/// |---|---|
/// | 0..2 | d, half precision |
/// | 2..34 | 32 columns, signed |
///
/// A weight is `d·q`.
///
/// A tile has d of sixteen rows, then the values word by word interleaved, 128 added to each so that they
/// are unsigned.
#[derive(Debug)]
pub(crate) struct Q8_0;

const COLUMNS: usize = 32;

impl BlockFormat for Q8_0 {
    const COLUMNS: usize = COLUMNS;
    const BYTES: usize = 2 + COLUMNS;
    const HALVES: &'static [usize] = &[0];
    const GROUP: usize = COLUMNS;
    const OFFSET: u8 = 128;
    const HAS_MIN: bool = false;

    fn pack(blocks: [&[u8]; LANES], tile: &mut [u8]) {
        let (d, values) = tile.split_at_mut(2 * LANES);
        for (lane, block) in blocks.iter().enumerate() {
            d[2 * lane..][..2].copy_from_slice(&block[..2]);
        }
        interleave(blocks.map(|block| &block[2..]), values);
        values.iter_mut().for_each(|value| *value ^= 128);
    }

    #[inline(always)]
    fn unpack(tiles: &[u8], panel: &mut Panel) {
        let parts = panel.values.chunks_exact_mut(COLUMNS * LANES).zip(&mut panel.scales);
        for (tile, (out, scales)) in tiles.chunks_exact(LANES * Self::BYTES).zip(parts) {
            let (d, values) = tile.split_at(2 * LANES);
            *scales = halves(d);
            out.copy_from_slice(values);
        }
    }
}
