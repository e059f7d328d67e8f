//! Products with a matrix that lies in panels: the inner loop of convolution and of long linear layers.
//!
//! A panel holds [`PANEL`] columns of the right matrix, row after row, so that the loop over the inner dimension
//! reads it straight through, while one value of each of a few rows of the left matrix is spread over a register.
//! The sums stay in registers from the first to the last product.

use pulp::{Simd, WithSimd};

use crate::level::Level;

/// Columns of a panel: two registers of AVX-512.
pub(crate) const PANEL: usize = 32;

/// Rows of a matrix, `stride` values from one to the next, each of them followed by nothing that matters.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) stride: usize,
}

/// out = left·panel.
///
/// # Shapes
/// left: `rows` of at least `depth` values; panel `[depth, 32]`, out `[rows, 32]`
pub(crate) fn multiply_panel(level: Level, left: Rows<'_>, panel: &[f32], out: &mut [f32]) {
    let (panel, rest) = panel.as_chunks();
    let (out, beyond) = out.as_chunks_mut();
    assert!(rest.is_empty() && beyond.is_empty() && out.len() == left.rows);
    assert!(left.rows == 0 || (left.rows - 1) * left.stride + panel.len() <= left.values.len());
    level.run(PanelProduct { left, panel, out });
}

struct PanelProduct<'a> {
    left: Rows<'a>,
    panel: &'a [[f32; PANEL]],
    out: &'a mut [[f32; PANEL]],
}

impl WithSimd for PanelProduct<'_> {
    type Output = ();

    /// Two registers of sums per row, and as many rows as leave registers for the operands.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let done = if S::REGISTER_COUNT >= 32 { self.rows::<S, 12>(simd, 0) } else { self.rows::<S, 6>(simd, 0) };
        let done = self.rows::<S, 4>(simd, done);
        self.rows::<S, 1>(simd, done);
    }
}

impl PanelProduct<'_> {
    /// Computes rows from `first` on, `ROWS` at a time, and returns the first row that is left over.
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize>(&mut self, simd: S, first: usize) -> usize {
        let mut row = first;
        while row + ROWS <= self.left.rows {
            for column in (0..PANEL).step_by(2 * S::F32_LANES) {
                self.tile::<S, ROWS>(simd, row, column);
            }
            row += ROWS;
        }
        row
    }

    /// A tile of the product: `ROWS` rows, two registers of columns.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize>(&mut self, simd: S, row: usize, column: usize) {
        let lanes = S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
        for (k, line) in self.panel.iter().enumerate() {
            let (low, _) = S::as_simd_f32s(&line[column..]);
            let right = [low[0], low[1]];
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `multiply_panel` has checked that the last row holds as many values as the panel
                // has lines, and `rows` that there are `ROWS` rows from `row` on.
                let left = unsafe { *self.left.values.get_unchecked((row + r) * self.left.stride + k) };
                let left = simd.splat_f32s(left);
                sums[0] = simd.mul_add_e_f32s(left, right[0], sums[0]);
                sums[1] = simd.mul_add_e_f32s(left, right[1], sums[1]);
            }
        }
        for (out, sums) in self.out[row..].iter_mut().zip(sums) {
            let (out, _) = S::as_mut_simd_f32s(&mut out[column..column + 2 * lanes]);
            out.copy_from_slice(&sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, values};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_level_agrees_with_the_definition(rows in 0usize..40, depth in 0usize..40, gap in 0usize..5, seed: u64) {
            let stride = depth + gap;
            let (left, panel) = (values(rows * stride, seed), values(depth * PANEL, seed ^ 1));
            let expected: Vec<f32> = (0..rows * PANEL)
                .map(|i| (0..depth).map(|k| left[i / PANEL * stride + k] * panel[k * PANEL + i % PANEL]).sum())
                .collect();
            for level in Level::all() {
                let mut out = vec![f32::NAN; rows * PANEL];
                multiply_panel(level, Rows { values: &left, rows, stride }, &panel, &mut out);
                assert_close(&out, &expected, 1e-5);
            }
        }
    }
}
