//! Quantised weights in a layout for vector registers, and their product with rows of activations.

use std::ops::Range;

use memmap2::MmapMut;
use rayon::prelude::*;

use crate::{
    interleave::SixteenRows,
    large_memory::large_memory,
    level::Level as PanelLevel,
    panel::PANEL,
    parallel::for_each_index,
    q4_k::Q4K,
    q6_k::Q6K,
    q8_0::Q8_0,
    quant_block::{ACTIVATION_GROUP, BlockFormat, LANES, Panel, STRETCH, is_finite_half},
    quant_product::{Level, ROWS_TOGETHER, Totals},
    quant_rows::quantize_rows,
    row_panels::multiply_by_rows,
};

/// How quantised weights are stored: block formats of llama.cpp, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// 4.5 bits a weight: blocks of 256, groups of 32 with a scale and a min.
    Q4K,
    /// 6.5625 bits a weight: blocks of 256, groups of 16 with a scale.
    Q6K,
    /// 8.5 bits a weight: blocks of 32 with a scale.
    Q8_0,
}

impl QuantFormat {
    /// Columns that a block holds.
    pub const fn block_columns(self) -> usize {
        match self {
            Self::Q4K => Q4K::COLUMNS,
            Self::Q6K => Q6K::COLUMNS,
            Self::Q8_0 => Q8_0::COLUMNS,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4K => Q4K::BYTES,
            Self::Q6K => Q6K::BYTES,
            Self::Q8_0 => Q8_0::BYTES,
        }
    }

    /// Bytes of a matrix; `None` if its rows are no whole number of blocks, or if they are more than memory
    /// can hold.
    pub fn bytes(self, rows: usize, columns: usize) -> Option<usize> {
        let blocks = columns.is_multiple_of(self.block_columns()).then_some(columns / self.block_columns())?;
        rows.checked_mul(blocks)?.checked_mul(self.block_bytes())
    }
}

/// Bytes that are no quantised matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantError {
    /// A row has to be a whole number of blocks.
    #[error("rows of {columns} weights, expected a multiple of {} for {format:?}", format.block_columns())]
    Columns {
        /// How the weights are stored.
        format: QuantFormat,
        /// Weights of a row.
        columns: usize,
    },
    /// The bytes are too few or too many.
    #[error("{got} bytes for {rows}×{columns} weights in {format:?}, expected {expected}")]
    Length {
        /// How the weights are stored.
        format: QuantFormat,
        /// Rows of the matrix.
        rows: usize,
        /// Weights of a row.
        columns: usize,
        /// Bytes that such a matrix takes.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A scale is infinite or NaN.
    #[error("row {row}, block {block}: a scale is not finite")]
    Scale {
        /// Row of the matrix.
        row: usize,
        /// Block of the row.
        block: usize,
    },
    /// The system has no memory for the weights.
    #[error("no memory for {bytes} bytes of weights")]
    Memory {
        /// Bytes needed.
        bytes: usize,
    },
}

/// Weights W `[rows, columns]` of a linear layer, in the bits of their block format.
///
/// Sixteen rows are interleaved; the last ones are filled up with zeros. Otherwise the matrix takes the
/// memory that its blocks took, and they are not needed any longer.
#[derive(Debug)]
pub struct QuantMatrix {
    format: QuantFormat,
    rows: usize,
    columns: usize,
    tiles: MmapMut, // [rows/16, columns/block, 16 interleaved blocks]
}

impl QuantMatrix {
    /// Takes blocks row by row, as GGUF files have them.
    ///
    /// # Errors
    /// If the bytes are not those of such a matrix.
    pub fn new(format: QuantFormat, rows: usize, columns: usize, blocks: &[u8]) -> Result<Self, QuantError> {
        Self::with_row_order(format, rows, columns, blocks, |row| row)
    }

    /// As [`Self::new`], but row i of the matrix is row `order(i)` of the blocks.
    ///
    /// # Errors
    /// As [`Self::new`].
    ///
    /// # Panics
    /// If `order` names a row that is not there.
    pub fn with_row_order(
        format: QuantFormat,
        rows: usize,
        columns: usize,
        blocks: &[u8],
        order: impl Fn(usize) -> usize + Sync,
    ) -> Result<Self, QuantError> {
        if !columns.is_multiple_of(format.block_columns()) {
            return Err(QuantError::Columns { format, columns });
        }
        let expected = format.bytes(rows, columns).unwrap_or(usize::MAX);
        if blocks.len() != expected {
            return Err(QuantError::Length { format, rows, columns, expected, got: blocks.len() });
        }
        let bytes = format.bytes(rows.next_multiple_of(LANES), columns).unwrap_or(usize::MAX);
        let mut tiles = large_memory(bytes).map_err(|_| QuantError::Memory { bytes })?;
        match format {
            QuantFormat::Q4K => pack::<Q4K>(columns, blocks, &order, rows, &mut tiles),
            QuantFormat::Q6K => pack::<Q6K>(columns, blocks, &order, rows, &mut tiles),
            QuantFormat::Q8_0 => pack::<Q8_0>(columns, blocks, &order, rows, &mut tiles),
        }?;
        Ok(Self { format, rows, columns, tiles })
    }

    /// How the weights are stored.
    pub fn format(&self) -> QuantFormat {
        self.format
    }

    /// Outputs of the layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of the layer.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Memory that the weights take, in bytes.
    pub fn bytes(&self) -> usize {
        self.tiles.len()
    }

    /// y = x·Wᵀ. The activations are quantised to eight bits, with a scale for every 32 of a row.
    ///
    /// # Shapes
    /// x `[n, columns]` → y `[n, rows]`
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn product(&self, x: &[f32], y: &mut [f32]) {
        self.product_at(Level::best(), x, y);
    }

    /// What the inputs of the layer get of its outputs' gradient: grad·W, with nothing rounded.
    ///
    /// # Shapes
    /// grad `[n, rows]` → grad_x `[n, columns]`
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn product_backward(&self, grad: &[f32], grad_x: &mut [f32]) {
        self.product_backward_at(PanelLevel::best(), grad, grad_x);
    }

    /// The weights of one row.
    ///
    /// # Shapes
    /// out `[columns]`
    ///
    /// # Panics
    /// If there is no such row, or the length does not fit.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.columns, "weights of a row");
        match self.format {
            QuantFormat::Q4K => self.unpack_row::<Q4K>(row, out),
            QuantFormat::Q6K => self.unpack_row::<Q6K>(row, out),
            QuantFormat::Q8_0 => self.unpack_row::<Q8_0>(row, out),
        }
    }

    fn product_at(&self, level: Level, x: &[f32], y: &mut [f32]) {
        if self.columns == 0 {
            y.fill(0.0);
            return;
        }
        let n = x.len() / self.columns;
        assert_eq!(
            (x.len(), y.len()),
            (n * self.columns, n * self.rows),
            "{n} rows times {}×{}",
            self.rows,
            self.columns
        );
        match self.format {
            QuantFormat::Q4K => self.product_in::<Q4K>(level, x, y),
            QuantFormat::Q6K => self.product_in::<Q6K>(level, x, y),
            QuantFormat::Q8_0 => self.product_in::<Q8_0>(level, x, y),
        }
    }

    fn product_in<F: BlockFormat>(&self, level: Level, x: &[f32], y: &mut [f32]) {
        // Weights are unpacked once for so many rows of activations, which stay in the cache that all cores share.
        const CACHED: usize = 1 << 21;
        let at_once = (CACHED / self.columns).next_multiple_of(ROWS_TOGETHER).max(ROWS_TOGETHER);
        let chunks = x.chunks(at_once * self.columns).zip(y.chunks_mut((at_once * self.rows).max(1)));
        chunks.for_each(|(x, y)| self.product_of_chunk::<F>(level, x, y));
    }

    fn product_of_chunk<F: BlockFormat>(&self, level: Level, x: &[f32], y: &mut [f32]) {
        let n = x.len() / self.columns;
        let x = quantize_rows::<F>(x, self.columns);
        let y = OutputColumns { values: y.as_mut_ptr(), rows: n, width: self.rows };
        for_each_index(self.rows.div_ceil(LANES), n * self.rows * self.columns, |index| {
            let mut totals = vec![[0.0; LANES]; n];
            let mut panel = Panel::new();
            let stretches = self.tiles_of(index).chunks(LANES * F::BYTES * (STRETCH / F::COLUMNS));
            for ((stretch, tiles), x) in stretches.enumerate().zip(x.chunks_exact(n)) {
                let groups = STRETCH.min(self.columns - stretch * STRETCH) / ACTIVATION_GROUP;
                level.add_stretch::<F>(tiles, groups, x, &mut panel, &mut totals);
            }
            // SAFETY: Each index is visited once, so nobody else writes to these columns, and `y` stays
            // borrowed until all are done.
            unsafe { y.write(index * LANES, &totals) };
        });
    }

    fn product_backward_at(&self, level: PanelLevel, grad: &[f32], grad_x: &mut [f32]) {
        let widen = |rows: Range<usize>, columns: Range<usize>, panels: &mut [f32]| match self.format {
            QuantFormat::Q4K => self.widen::<Q4K>(rows, columns, panels),
            QuantFormat::Q6K => self.widen::<Q6K>(rows, columns, panels),
            QuantFormat::Q8_0 => self.widen::<Q8_0>(rows, columns, panels),
        };
        multiply_by_rows(level, grad, (self.rows, self.columns), widen, grad_x);
    }

    /// Some rows, from a whole tile on, of one stretch of columns: as panels `[columns/32, rows, 32]`.
    fn widen<F: BlockFormat>(&self, rows: Range<usize>, columns: Range<usize>, panels: &mut [f32]) {
        let stretch_bytes = LANES * F::BYTES * (STRETCH / F::COLUMNS);
        let mut panel = Panel::new();
        for first in rows.clone().step_by(LANES) {
            let tiles = self.tiles_of(first / LANES).chunks(stretch_bytes).nth(columns.start / STRETCH);
            F::unpack(tiles.unwrap_or_default(), &mut panel);
            let parts = panels.chunks_exact_mut(rows.len() * PANEL).take(columns.len() / PANEL);
            for (part, out) in parts.enumerate() {
                let out = out[(first - rows.start) * PANEL..].chunks_exact_mut(PANEL);
                out.take(LANES).enumerate().for_each(|(lane, out)| panel.widen::<F>(lane, part * PANEL, out));
            }
        }
    }

    fn unpack_row<F: BlockFormat>(&self, row: usize, out: &mut [f32]) {
        let mut panel = Panel::new();
        let stretches = self.tiles_of(row / LANES).chunks(LANES * F::BYTES * (STRETCH / F::COLUMNS));
        for (tiles, out) in stretches.zip(out.chunks_mut(STRETCH)) {
            F::unpack(tiles, &mut panel);
            panel.widen::<F>(row % LANES, 0, out);
        }
    }

    /// The tiles of sixteen rows.
    fn tiles_of(&self, index: usize) -> &[u8] {
        let length = LANES * self.columns / self.format.block_columns() * self.format.block_bytes();
        &self.tiles[index * length..][..length]
    }
}

fn pack<F: BlockFormat>(
    columns: usize,
    blocks: &[u8],
    order: &(impl Fn(usize) -> usize + Sync),
    rows: usize,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let row_bytes = columns / F::COLUMNS * F::BYTES;
    if row_bytes == 0 {
        return Ok(());
    }
    let (padding, level) = (vec![0; row_bytes], Level::best());
    out.par_chunks_exact_mut(LANES * row_bytes).enumerate().try_for_each(|(index, out)| {
        let of_lane: [&[u8]; LANES] = std::array::from_fn(|lane| match index * LANES + lane {
            row if row < rows => &blocks[order(row) * row_bytes..][..row_bytes],
            _ => &padding,
        });
        for (lane, blocks) in of_lane.iter().enumerate() {
            let damaged = blocks.chunks_exact(F::BYTES).position(|block| !has_finite_scales::<F>(block));
            if let Some(block) = damaged {
                return Err(QuantError::Scale { row: index * LANES + lane, block });
            }
        }
        let of_lane = SixteenRows::new(of_lane);
        for (block, tile) in out.chunks_exact_mut(LANES * F::BYTES).enumerate() {
            F::interleave(level, &of_lane, block * F::BYTES, tile);
        }
        Ok(())
    })
}

fn has_finite_scales<F: BlockFormat>(block: &[u8]) -> bool {
    F::HALVES.iter().all(|&place| is_finite_half([block[place], block[place + 1]]))
}

/// The results, of which each task writes some columns.
struct OutputColumns {
    values: *mut f32,
    rows: usize,
    width: usize,
}

// SAFETY: Tasks on several threads write through it, each to columns of its own (see `write`).
unsafe impl Sync for OutputColumns {}

impl OutputColumns {
    /// Writes sixteen columns from `start` on, or those of them that are there.
    ///
    /// # Safety
    /// The values have to be there, and no other thread may use these columns meanwhile.
    unsafe fn write(&self, start: usize, totals: &[Totals]) {
        assert_eq!(totals.len(), self.rows);
        let count = LANES.min(self.width - start);
        for (row, totals) in totals.iter().enumerate() {
            // SAFETY: `row` is below `rows`, and `start + count` at most `width`. The rest is the caller's promise.
            unsafe { self.values.add(row * self.width + start).copy_from_nonoverlapping(totals.as_ptr(), count) };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_values::{assert_close, bytes, transposed_product, values};

    const FORMATS: [QuantFormat; 3] = [QuantFormat::Q4K, QuantFormat::Q6K, QuantFormat::Q8_0];

    /// Random blocks whose scales are about `scale`, so that nothing is infinite.
    fn blocks(format: QuantFormat, count: usize, scale: f32, seed: u64) -> Vec<u8> {
        let mut out = bytes(count * format.block_bytes(), seed);
        let scales = values(2 * count, seed ^ 1);
        for (block, scales) in out.chunks_exact_mut(format.block_bytes()).zip(scales.chunks(2)) {
            let halves: &[usize] = match format {
                QuantFormat::Q4K => &[0, 2],
                QuantFormat::Q6K => &[208],
                QuantFormat::Q8_0 => &[0],
            };
            for (&place, value) in halves.iter().zip(scales) {
                block[place..place + 2].copy_from_slice(&half::f16::from_f32(value * scale).to_le_bytes());
            }
        }
        out
    }

    /// The weights of blocks, as ggml-quants.c of llama.cpp says them: `dequantize_row_q4_K`, `…_q6_K` and
    /// `…_q8_0`.
    fn dequantized(format: QuantFormat, blocks: &[u8]) -> Vec<f32> {
        let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        let mut out = Vec::new();
        for block in blocks.chunks_exact(format.block_bytes()) {
            match format {
                QuantFormat::Q8_0 => out.extend(block[2..].iter().map(|&q| half(block) * f32::from(q as i8))),
                QuantFormat::Q4K => {
                    let (d, dmin, packed) = (half(block), half(&block[2..]), &block[4..16]);
                    for group in 0..8 {
                        let (scale, min) = match group {
                            0..4 => (packed[group] & 63, packed[group + 4] & 63),
                            _ => (
                                packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
                            ),
                        };
                        for l in 0..32 {
                            let q = block[16 + group / 2 * 32 + l] >> (4 * (group % 2)) & 15;
                            out.push(d * f32::from(scale) * f32::from(q) - dmin * f32::from(min));
                        }
                    }
                }
                QuantFormat::Q6K => {
                    let (low, high, scales, d) =
                        (&block[..128], &block[128..192], &block[192..208], half(&block[208..]));
                    for column in 0..256 {
                        let (part, quarter, l) = (column / 128, column % 128 / 32, column % 32);
                        let low = low[64 * part + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
                        let high = high[32 * part + l] >> (2 * quarter) & 3;
                        let q = i32::from(low | high << 4) - 32;
                        out.push(d * f32::from(scales[column / 16] as i8) * q as f32);
                    }
                }
            }
        }
        out
    }

    fn random(format: QuantFormat, rows: usize, columns: usize, seed: u64) -> (QuantMatrix, Vec<f32>) {
        let blocks = blocks(format, rows * columns / format.block_columns(), 0.01, seed);
        (QuantMatrix::new(format, rows, columns, &blocks).unwrap(), dequantized(format, &blocks))
    }

    /// x·Wᵀ in f64, and how far off it may be when activations are rounded: each is off by half of 1/127 of
    /// the largest of its group.
    fn reference(weights: &[f32], x: &[f32], columns: usize) -> Vec<(f64, f64)> {
        let mut out = Vec::new();
        for x in x.chunks(columns) {
            for weights in weights.chunks(columns) {
                let (mut sum, mut slack) = (0.0, 0.0);
                for (x, weights) in x.chunks(32).zip(weights.chunks(32)) {
                    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                    let magnitude: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
                    slack += f64::from(largest) * (0.5 / 127.0 + 1e-5) * magnitude;
                    sum += x.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
                }
                out.push((sum, slack));
            }
        }
        out
    }

    #[test]
    fn rows_are_what_ggml_says() {
        for format in FORMATS {
            let (rows, columns) = (19, 512);
            let (matrix, expected) = random(format, rows, columns, 3);
            for (row, expected) in expected.chunks(columns).enumerate() {
                let mut got = vec![f32::NAN; columns];
                matrix.row(row, &mut got);
                for (got, expected) in got.iter().zip(expected) {
                    assert!((got - expected).abs() <= 1e-6 * expected.abs().max(0.1), "{format:?}: {got}, {expected}");
                }
            }
        }
    }

    #[test]
    fn rows_can_be_put_in_another_order() {
        for format in FORMATS {
            let blocks = blocks(format, 20 * 512 / format.block_columns(), 0.01, 4);
            let plain = QuantMatrix::new(format, 20, 512, &blocks).unwrap();
            let turned = QuantMatrix::with_row_order(format, 20, 512, &blocks, |row| 19 - row).unwrap();
            let (mut a, mut b) = ([0.0; 512], [1.0; 512]);
            plain.row(2, &mut a);
            turned.row(17, &mut b);
            assert_eq!(a, b);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn products_agree_with_the_dequantised_weights(
            format in prop::sample::select(FORMATS.to_vec()),
            rows in 1usize..70,
            blocks in 1usize..4,
            n in 1usize..20,
            seed: u64,
        ) {
            let columns = blocks * format.block_columns();
            let (matrix, weights) = random(format, rows, columns, seed);
            let x = values(n * columns, seed ^ 7);
            let expected = reference(&weights, &x, columns);
            for level in Level::available() {
                let mut y = vec![f32::NAN; n * rows];
                matrix.product_at(level, &x, &mut y);
                for (&got, &(expected, slack)) in y.iter().zip(&expected) {
                    let error = (f64::from(got) - expected).abs();
                    prop_assert!(error <= slack, "{level:?} {format:?}: got {got}, expected {expected} ± {slack}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn gradients_agree_with_the_dequantised_weights(
            format in prop::sample::select(FORMATS.to_vec()),
            rows in 1usize..1100,
            blocks in 1usize..4,
            n in 1usize..15,
            seed: u64,
        ) {
            let columns = blocks * format.block_columns();
            let (matrix, weights) = random(format, rows, columns, seed);
            let grad = values(n * rows, seed ^ 7);
            let expected = transposed_product(&grad, &weights, columns);
            for level in PanelLevel::all() {
                let mut grad_x = vec![f32::NAN; n * columns];
                matrix.product_backward_at(level, &grad, &mut grad_x);
                assert_close(&grad_x, &expected, 1e-5 * (rows as f32).sqrt());
            }
        }
    }

    #[test]
    fn gradients_are_the_same_on_any_number_of_threads() {
        let (rows, columns, n) = (1100, 768, 30);
        let (matrix, _) = random(QuantFormat::Q6K, rows, columns, 10);
        let grad = values(n * rows, 11);
        let backward = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut grad_x = vec![f32::NAN; n * columns];
            pool.install(|| matrix.product_backward(&grad, &mut grad_x));
            grad_x
        };
        assert_eq!(backward(3), backward(1));
    }

    /// With scales of a power of two, whole activations of which the largest of each group is 127, and all
    /// numbers small enough for f32, nothing is rounded anywhere.
    #[test]
    fn the_integer_part_is_exact() {
        for format in FORMATS {
            let (rows, columns, n) = (35, 512, 13);
            let mut blocks = blocks(format, rows * columns / format.block_columns(), 0.01, 8);
            for block in blocks.chunks_exact_mut(format.block_bytes()) {
                let one = half::f16::from_f32(0.25).to_le_bytes();
                match format {
                    QuantFormat::Q4K => block[..4].copy_from_slice(&[one, one].concat()),
                    QuantFormat::Q6K => {
                        block[192..208].iter_mut().for_each(|scale| *scale = *scale as i8 as u8 % 5);
                        block[208..].copy_from_slice(&one);
                    }
                    QuantFormat::Q8_0 => block[..2].copy_from_slice(&one),
                }
            }
            let matrix = QuantMatrix::new(format, rows, columns, &blocks).unwrap();
            let weights = dequantized(format, &blocks);
            let mut x: Vec<f32> = values(n * columns, 9).iter().map(|x| (x * 20.0).round()).collect();
            x.chunks_mut(32).enumerate().for_each(|(index, group)| group[index % 32] = -127.0);
            let expected = reference(&weights, &x, columns);
            for level in Level::available() {
                let mut y = vec![f32::NAN; n * rows];
                matrix.product_at(level, &x, &mut y);
                for (&got, &(expected, _)) in y.iter().zip(&expected) {
                    assert_eq!(f64::from(got), expected, "{level:?} {format:?}");
                }
            }
        }
    }

    /// Sums of a few products are held in 16 bits.
    #[test]
    fn the_largest_values_do_not_overflow() {
        let columns = 256;
        for (format, fill) in FORMATS.into_iter().flat_map(|format| [0xff, 0x80, 0x7f].map(|fill| (format, fill))) {
            let mut blocks = vec![fill; 16 * columns / format.block_columns() * format.block_bytes()];
            for block in blocks.chunks_exact_mut(format.block_bytes()) {
                let quarter = half::f16::from_f32(0.25).to_le_bytes();
                match format {
                    QuantFormat::Q4K => block[..4].copy_from_slice(&[quarter, quarter].concat()),
                    QuantFormat::Q6K => block[208..].copy_from_slice(&quarter),
                    QuantFormat::Q8_0 => block[..2].copy_from_slice(&quarter),
                }
            }
            let matrix = QuantMatrix::new(format, 16, columns, &blocks).unwrap();
            let weights = dequantized(format, &blocks);
            let x: Vec<f32> = (0..8 * columns).map(|i| if i / columns % 2 == 0 { 127.0 } else { -127.0 }).collect();
            for (level, n) in Level::available().flat_map(|level| [1, 4, 8].map(|n| (level, n))) {
                let x = &x[(8 - n) * columns..];
                let mut y = vec![f32::NAN; 16 * n];
                matrix.product_at(level, x, &mut y);
                for (&got, (expected, _)) in y.iter().zip(reference(&weights, x, columns)) {
                    assert_eq!(f64::from(got), expected, "{level:?} {format:?} {fill:#x} {n} rows");
                }
            }
        }
    }

    #[test]
    fn threads_and_pieces_of_activations_change_nothing() {
        let (rows, columns, n) = (33, 8192, 150); // two pieces
        let (matrix, _) = random(QuantFormat::Q4K, rows, columns, 10);
        let x = values(n * columns, 11);
        let product = |threads: usize, n: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut y = vec![f32::NAN; n * rows];
            pool.install(|| matrix.product(&x[(150 - n) * columns..], &mut y));
            y
        };
        let expected = product(1, n);
        assert_eq!(product(3, n), expected);
        assert_eq!(product(3, 1), expected[149 * rows..]);
    }

    /// Decoding gives a token the numbers that reading it with others would, however many these are.
    #[test]
    fn a_row_by_itself_is_what_it_is_among_others() {
        for format in FORMATS {
            let (rows, columns, n) = (35, 768, 17);
            let (matrix, _) = random(format, rows, columns, 15);
            let x = values(n * columns, 16);
            for level in Level::available() {
                let mut together = vec![f32::NAN; n * rows];
                matrix.product_at(level, &x, &mut together);
                for few in 1..ROWS_TOGETHER {
                    let mut apart = vec![f32::NAN; n * rows];
                    for (x, y) in x.chunks(few * columns).zip(apart.chunks_mut(few * rows)) {
                        matrix.product_at(level, x, y);
                    }
                    assert_eq!(apart, together, "{level:?} {format:?} {few} rows");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_reaches_the_results_of_its_row_alone() {
        let (matrix, _) = random(QuantFormat::Q6K, 40, 256, 12);
        let mut x = vec![1.0; 3 * 256];
        x[256 + 77] = f32::NAN;
        for level in Level::available() {
            let mut y = vec![0.0; 3 * 40];
            matrix.product_at(level, &x, &mut y);
            let rows: Vec<&[f32]> = y.chunks(40).collect();
            assert!(rows[1].iter().all(|y| y.is_nan()), "{level:?}");
            assert!(rows[0].iter().chain(rows[2]).all(|y| y.is_finite()), "{level:?}");
        }
    }

    #[test]
    fn weights_take_no_more_memory_than_their_blocks() {
        for (format, bits) in [(QuantFormat::Q4K, 4.5), (QuantFormat::Q6K, 6.5625), (QuantFormat::Q8_0, 8.5)] {
            assert_eq!(random(format, 32, 512, 13).0.bytes() as f64, 32.0 * 512.0 * bits / 8.0);
        }
    }

    #[test]
    fn bytes_that_are_no_matrix_are_refused() {
        let message = |format, rows, columns, bytes: &[u8]| {
            QuantMatrix::new(format, rows, columns, bytes).unwrap_err().to_string()
        };
        let mut infinite = blocks(QuantFormat::Q4K, 6, 0.01, 14);
        infinite[3 * 144 + 2..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
        for (got, expected) in [
            (message(QuantFormat::Q6K, 1, 128, &[0; 210]), "rows of 128 weights, expected a multiple of 256 for Q6K"),
            (message(QuantFormat::Q8_0, 2, 32, &[0; 67]), "67 bytes for 2×32 weights in Q8_0, expected 68"),
            (message(QuantFormat::Q8_0, usize::MAX, 64, &[]), "0 bytes for"),
            (message(QuantFormat::Q4K, 3, 512, &infinite), "row 1, block 1: a scale is not finite"),
        ] {
            assert!(got.starts_with(expected), "{got}, not {expected}");
        }
    }

    #[test]
    fn matrices_may_be_empty() {
        let none = QuantMatrix::new(QuantFormat::Q8_0, 0, 32, &[]).unwrap();
        none.product(&[1.0; 64], &mut []);
        let mut y = [1.0; 3];
        QuantMatrix::new(QuantFormat::Q8_0, 3, 0, &[]).unwrap().product(&[], &mut y);
        assert_eq!(y, [0.0; 3]);
    }
}
