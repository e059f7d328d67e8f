//! Rows of gradients times packed weights as they stand: what a linear layer's inputs get of its outputs' gradient.
//!
//! Some columns of some rows of the weights are widened at a time, into panels that stay in the second cache until all
//! rows of gradients have met them.

use std::ops::Range;

use crate::{
    level::Level,
    panel::{PANEL, Rows, multiply_panel},
    parallel::{SharedRows, for_each_index_in, map_chunks},
};

/// Columns that one task takes: what the blocks of quantised weights are taken apart by.
pub(crate) const COLUMNS: usize = 256;
/// Rows that are widened at a time: with as many columns they take a megabyte.
const ROWS: usize = 1024;

/// y = x·W, where `widen` writes some rows and columns of W into panels `[columns/32, rows, 32]`; what it leaves
/// alone behind the last column does not matter. Ranges of rows begin at multiples of 1024, ranges of columns at
/// multiples of 256.
///
/// # Shapes
/// x `[n, rows]` → y `[n, columns]`
pub(crate) fn multiply_by_rows(
    level: Level,
    x: &[f32],
    (rows, columns): (usize, usize),
    widen: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync + Send,
    y: &mut [f32],
) {
    let n = x.len() / rows.max(1);
    assert_eq!((x.len(), y.len()), (n * rows, n * columns), "{n} rows times {rows}×{columns}");
    // A gap behind each row: rows at a distance of a power of two would meet in one set of the cache.
    let stride = rows + 16;
    let mut spaced = vec![0.0; n * stride];
    map_chunks(&mut spaced, stride, |row, out| out[..rows].copy_from_slice(&x[row * rows..][..rows]));
    y.fill(0.0);
    let y = SharedRows::new(y, columns);
    let room = || (vec![0.0; ROWS * COLUMNS], vec![0.0; n * PANEL]);
    for_each_index_in(columns.div_ceil(COLUMNS), room, |(panels, products), index| {
        let columns = index * COLUMNS..columns.min((index + 1) * COLUMNS);
        for first in (0..rows).step_by(ROWS) {
            let depth = first..rows.min(first + ROWS);
            let left = Rows { values: &spaced[first..], rows: n, stride };
            widen(depth.clone(), columns.clone(), panels);
            let starts = columns.clone().step_by(PANEL);
            for (start, panel) in starts.zip(panels.chunks_exact(depth.len() * PANEL)) {
                multiply_panel(level, left, panel, products);
                let outputs = start..columns.end.min(start + PANEL);
                for (row, products) in products.chunks_exact(PANEL).enumerate() {
                    // SAFETY: Each task writes to its own columns.
                    let y = unsafe { y.row(row, outputs.clone()) };
                    y.iter_mut().zip(products).for_each(|(y, product)| *y += *product);
                }
            }
        }
    });
}
