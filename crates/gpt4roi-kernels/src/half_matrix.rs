//! Weights in 16 bits, and their product with rows of activations in f32.
//!
//! Half of the memory of f32, and half of the reading, which is what a single row of activations waits for. The weights
//! are widened in registers; nothing else is rounded.

use std::ops::{Deref, Range};

use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use memmap2::MmapMut;
use rayon::prelude::*;

use crate::{
    half_product::{Level, ROWS},
    large_memory::large_memory,
    level::Level as PanelLevel,
    linear::{add_by_panels, turn},
    panel::PANEL,
    parallel::{SharedRows, for_each_index},
    row_panels::multiply_by_rows,
    shared_bytes::SharedBytes,
};

/// How 16-bit weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HalfFormat {
    /// IEEE 754 half precision: eleven significant bits, up to 65504.
    F16,
    /// The upper half of an f32: eight significant bits, its whole range.
    Bf16,
}

impl HalfFormat {
    /// The nearest numbers of this format, as bits.
    fn narrow(self, values: &[f32], bits: &mut [u16]) {
        match self {
            Self::F16 => bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values),
            Self::Bf16 => bits.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(values),
        }
    }

    /// The numbers behind bits.
    ///
    /// # Panics
    /// If there are not as many values as bits.
    pub fn widen(self, bits: &[u16], values: &mut [f32]) {
        match self {
            Self::F16 => bits.reinterpret_cast::<f16>().convert_to_f32_slice(values),
            Self::Bf16 => bits.reinterpret_cast::<bf16>().convert_to_f32_slice(values),
        }
    }
}

/// Weights that are no 16-bit matrix.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum HalfError {
    /// The weights are too few or too many.
    #[error("{got} weights for a matrix of {rows}×{columns}")]
    Length {
        /// Rows of the matrix.
        rows: usize,
        /// Weights of a row.
        columns: usize,
        /// Weights given.
        got: usize,
    },
    /// A weight is larger than any number of the format.
    #[error("row {row}, column {column}: {value} is out of the range of {format:?}")]
    Range {
        /// How the weights are stored.
        format: HalfFormat,
        /// Row of the matrix.
        row: usize,
        /// Column of the matrix.
        column: usize,
        /// The weight.
        value: f32,
    },
    /// The system has no memory for the weights.
    #[error("no memory for {bytes} bytes of weights")]
    Memory {
        /// Bytes needed.
        bytes: usize,
    },
}

/// Weights W `[rows, columns]` of a linear layer, in 16 bits each.
#[derive(Debug)]
pub struct HalfMatrix {
    format: HalfFormat,
    rows: usize,
    columns: usize,
    bits: Bits, // u16, row by row
}

/// Where the bits of a matrix lie: at an even address.
#[derive(Debug)]
enum Bits {
    Own(MmapMut),
    Stored(SharedBytes),
}

impl Deref for Bits {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Stored(bytes) => bytes,
        }
    }
}

impl HalfMatrix {
    /// Rounds weights to the nearest of the format; weights that are stored in it anyway stay as they are.
    ///
    /// # Shapes
    /// weights `[rows, columns]`
    ///
    /// # Errors
    /// If their number does not fit, or a finite weight would become infinite.
    pub fn from_f32(format: HalfFormat, rows: usize, columns: usize, weights: &[f32]) -> Result<Self, HalfError> {
        if rows.checked_mul(columns) != Some(weights.len()) {
            return Err(HalfError::Length { rows, columns, got: weights.len() });
        }
        let bytes = 2 * weights.len();
        let mut memory = large_memory(bytes).map_err(|_| HalfError::Memory { bytes })?;
        // SAFETY: Any two bytes are a u16. The memory begins at a page, so that no byte stands before the first.
        let (_, bits, _) = unsafe { memory.align_to_mut::<u16>() };
        let row = columns.max(1);
        bits.par_chunks_mut(row).zip(weights.par_chunks(row)).enumerate().try_for_each(|(row, (bits, weights))| {
            format.narrow(weights, bits);
            let lost =
                weights.iter().zip(&*bits).position(|(weight, bits)| weight.is_finite() && format.is_infinite(*bits));
            match lost {
                Some(column) => Err(HalfError::Range { format, row, column, value: weights[column] }),
                None => Ok(()),
            }
        })?;
        Ok(Self { format, rows, columns, bits: Bits::Own(memory) })
    }

    /// Weights that are stored in this format, little-endian, row by row: they stay where they are, in a file that is
    /// mapped into memory for instance. Those at an odd address are copied, and so are all on a machine with the other
    /// order of bytes.
    ///
    /// # Errors
    /// If their number does not fit.
    pub fn stored(format: HalfFormat, rows: usize, columns: usize, bytes: SharedBytes) -> Result<Self, HalfError> {
        let expected = rows.checked_mul(columns).and_then(|weights| weights.checked_mul(2));
        if expected != Some(bytes.len()) {
            return Err(HalfError::Length { rows, columns, got: bytes.len() / 2 });
        }
        let bits = if cfg!(target_endian = "little") && (bytes.as_ptr() as usize).is_multiple_of(2) {
            Bits::Stored(bytes)
        } else {
            let mut own = large_memory(bytes.len()).map_err(|_| HalfError::Memory { bytes: bytes.len() })?;
            for (own, stored) in own.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
                *own = u16::from_le_bytes(*stored).to_ne_bytes();
            }
            Bits::Own(own)
        };
        Ok(Self { format, rows, columns, bits })
    }

    /// How the weights are stored.
    pub fn format(&self) -> HalfFormat {
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
        self.bits.len()
    }

    /// y = x·Wᵀ.
    ///
    /// # Shapes
    /// x `[n, columns]` → y `[n, rows]`
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn product(&self, x: &[f32], y: &mut [f32]) {
        /// Up to so many rows of activations, a product is bound by reading the weights.
        const FEW: usize = 16;
        let n = self.check(x, y);
        if y.is_empty() {
            return;
        }
        if n <= FEW { self.stream(Level::best(), x, y) } else { self.multiply_panels(PanelLevel::best(), x, y) }
    }

    /// What the inputs of the layer get of its outputs' gradient: grad·W.
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
        self.format.widen(self.rows_of(row..row + 1), out);
    }

    /// The number of rows of activations.
    fn check(&self, x: &[f32], y: &[f32]) -> usize {
        let n = x.len() / self.columns.max(1);
        let expected = (n * self.columns, n * self.rows);
        assert_eq!((x.len(), y.len()), expected, "{n} rows times {}×{}", self.rows, self.columns);
        n
    }

    /// For few rows of activations: the weights pass by once, against all of them.
    fn stream(&self, level: Level, x: &[f32], y: &mut [f32]) {
        /// Rows of weights that one task takes.
        const TASK: usize = 4 * ROWS;
        let n = self.check(x, y);
        let y = SharedRows::new(y, self.rows);
        for_each_index(self.rows.div_ceil(TASK), n * self.rows * self.columns, |task| {
            for first in (task * TASK..self.rows.min((task + 1) * TASK)).step_by(ROWS) {
                let rows = first..self.rows.min(first + ROWS);
                let mut sums = vec![[0.0; ROWS]; n];
                // Where fewer rows are left, the last stands in for those missing.
                let weights = std::array::from_fn(|i| self.row_bits((first + i).min(self.rows - 1)));
                level.dots(self.format, weights, x, &mut sums);
                for (row, sums) in sums.iter().enumerate() {
                    // SAFETY: Each task writes to its own columns, one group of them after the other.
                    let y = unsafe { y.row(row, rows.clone()) };
                    y.copy_from_slice(&sums[..rows.len()]);
                }
            }
        });
    }

    /// For many rows of activations: some rows of weights are widened, and used often enough to be worth it.
    fn multiply_panels(&self, level: PanelLevel, x: &[f32], y: &mut [f32]) {
        y.fill(0.0);
        let panel = |rows: Range<usize>, panel: &mut [f32]| {
            let mut wide = vec![0.0; rows.len() * self.columns];
            self.format.widen(self.rows_of(rows), &mut wide);
            turn(&wide, self.columns, panel);
        };
        add_by_panels(level, x, (self.columns, self.rows), panel, y);
    }

    fn product_backward_at(&self, level: PanelLevel, grad: &[f32], grad_x: &mut [f32]) {
        let widen = |rows: Range<usize>, columns: Range<usize>, panels: &mut [f32]| {
            let starts = columns.clone().step_by(PANEL);
            for (start, panel) in starts.zip(panels.chunks_exact_mut(rows.len() * PANEL)) {
                let some = start..columns.end.min(start + PANEL);
                for (row, out) in rows.clone().zip(panel.chunks_exact_mut(PANEL)) {
                    self.format.widen(&self.row_bits(row)[some.clone()], &mut out[..some.len()]);
                }
            }
        };
        multiply_by_rows(level, grad, (self.rows, self.columns), widen, grad_x);
    }

    fn row_bits(&self, row: usize) -> &[u16] {
        self.rows_of(row..row + 1)
    }

    fn rows_of(&self, rows: Range<usize>) -> &[u16] {
        // SAFETY: Any two bytes are a u16. The address is even, so that no byte stands before the first.
        let (_, bits, _) = unsafe { self.bits.align_to() };
        &bits[rows.start * self.columns..rows.end * self.columns]
    }
}

impl HalfFormat {
    fn is_infinite(self, bits: u16) -> bool {
        match self {
            Self::F16 => f16::from_bits(bits).is_infinite(),
            Self::Bf16 => bf16::from_bits(bits).is_infinite(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::test_values::{assert_close, transposed_product, values};

    const FORMATS: [HalfFormat; 2] = [HalfFormat::F16, HalfFormat::Bf16];

    /// Each weight by the definition of its format.
    fn rounded(format: HalfFormat, weights: &[f32]) -> Vec<f32> {
        let round = |weight: &f32| match format {
            HalfFormat::F16 => f16::from_f32(*weight).to_f32(),
            HalfFormat::Bf16 => bf16::from_f32(*weight).to_f32(),
        };
        weights.iter().map(round).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_way_agrees_with_the_rounded_weights(
            format in prop::sample::select(FORMATS.to_vec()),
            rows in 1usize..70,
            columns in 1usize..600,
            n in 1usize..20,
            seed: u64,
        ) {
            let weights = values(rows * columns, seed);
            let matrix = HalfMatrix::from_f32(format, rows, columns, &weights).unwrap();
            let (x, weights) = (values(n * columns, seed ^ 7), rounded(format, &weights));
            let expected: Vec<f64> = x.chunks(columns).flat_map(|x| {
                let dot = |w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
                weights.chunks(columns).map(dot).collect::<Vec<_>>()
            }).collect();
            let mut ways = Vec::new();
            for level in Level::available() {
                let mut y = vec![f32::NAN; n * rows];
                matrix.stream(level, &x, &mut y);
                ways.push((format!("{level:?}"), y));
            }
            for level in PanelLevel::all() {
                let mut y = vec![f32::NAN; n * rows];
                matrix.multiply_panels(level, &x, &mut y);
                ways.push((format!("panels, {level:?}"), y));
            }
            for (way, y) in ways {
                for (&got, &expected) in y.iter().zip(&expected) {
                    let error = (f64::from(got) - expected).abs();
                    prop_assert!(error < 1e-5 * (columns as f64).sqrt(), "{way} {format:?}: {got}, expected {expected}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn gradients_agree_with_the_rounded_weights(
            format in prop::sample::select(FORMATS.to_vec()),
            rows in 1usize..1100,
            columns in 1usize..300,
            n in 1usize..15,
            seed: u64,
        ) {
            let weights = values(rows * columns, seed);
            let matrix = HalfMatrix::from_f32(format, rows, columns, &weights).unwrap();
            let grad = values(n * rows, seed ^ 7);
            let expected = transposed_product(&grad, &rounded(format, &weights), columns);
            for level in PanelLevel::all() {
                let mut grad_x = vec![f32::NAN; n * columns];
                matrix.product_backward_at(level, &grad, &mut grad_x);
                assert_close(&grad_x, &expected, 1e-5 * (rows as f32).sqrt());
            }
        }
    }

    /// Every number of both formats, subnormal ones included, is widened exactly by every level.
    #[test]
    fn every_finite_number_is_widened_exactly() {
        for (format, limit) in [(HalfFormat::F16, 0x7c00), (HalfFormat::Bf16, 0x7f80)] {
            let mut all = [0.0];
            let weights: Vec<f32> = (0..=u16::MAX)
                .filter(|bits| bits & 0x7fff < limit)
                .map(|bits| {
                    format.widen(&[bits], &mut all);
                    all[0]
                })
                .collect();
            assert_eq!(weights, rounded(format, &weights));
            // Row by row sixteen numbers; column by column they are read with a one among zeros.
            let matrix = HalfMatrix::from_f32(format, weights.len() / 16, 16, &weights).unwrap();
            for level in Level::available() {
                for column in 0..16 {
                    let x: [f32; 16] = std::array::from_fn(|i| if i == column { 1.0 } else { 0.0 });
                    let mut y = vec![f32::NAN; weights.len() / 16];
                    matrix.stream(level, &x, &mut y);
                    let expected = weights.iter().skip(column).step_by(16);
                    assert!(y.iter().zip(expected).all(|(got, expected)| got == expected), "{level:?} {format:?}");
                }
            }
        }
    }

    #[test]
    fn stored_weights_are_those_of_their_bits_at_any_address() {
        for format in FORMATS {
            let (rows, columns) = (37, 150);
            let weights = rounded(format, &values(rows * columns, 4));
            let mut bits = vec![0; rows * columns];
            format.narrow(&weights, &mut bits);
            let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            let expected = HalfMatrix::from_f32(format, rows, columns, &weights).unwrap();
            for skipped in [0, 1, 2, 3] {
                let shifted = Arc::new([vec![7; skipped], bytes.clone()].concat());
                let stored = SharedBytes::new(shifted, skipped..skipped + bytes.len());
                let matrix = HalfMatrix::stored(format, rows, columns, stored).unwrap();
                for n in [1, 40] {
                    let x = values(n * columns, 5);
                    let (mut got, mut y) = (vec![f32::NAN; n * rows], vec![0.0; n * rows]);
                    matrix.product(&x, &mut got);
                    expected.product(&x, &mut y);
                    assert_eq!(got, y, "{format:?}, {n} rows, {skipped} bytes before them");
                }
            }
            let error = HalfMatrix::stored(format, rows, columns, bytes[2..].to_vec().into()).unwrap_err();
            assert_eq!(error, HalfError::Length { rows, columns, got: rows * columns - 1 });
        }
    }

    #[test]
    fn rows_are_the_weights_and_threads_change_nothing() {
        for format in FORMATS {
            let (rows, columns) = (37, 1500);
            let weights = rounded(format, &values(rows * columns, 3));
            let matrix = HalfMatrix::from_f32(format, rows, columns, &weights).unwrap();
            assert_eq!(matrix.bytes(), 2 * rows * columns);
            let mut row = vec![0.0; columns];
            matrix.row(36, &mut row);
            assert_eq!(row, weights[36 * columns..]);
            for n in [1, 16, 17, 40] {
                let x = values(n * columns, 4);
                let product = |threads: usize| {
                    let mut y = vec![f32::NAN; n * rows];
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| matrix.product(&x, &mut y));
                    y
                };
                assert_eq!(product(1), product(3));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_is_no_number_stays() {
        let matrix = |format, weights: &[f32]| HalfMatrix::from_f32(format, 1, 3, weights);
        assert_eq!(
            matrix(HalfFormat::F16, &[1.0, 65520.0, 2.0]).unwrap_err().to_string(),
            "row 0, column 1: 65520 is out of the range of F16"
        );
        assert!(matrix(HalfFormat::Bf16, &[1.0, 65520.0, 2.0]).is_ok());
        assert_eq!(matrix(HalfFormat::F16, &[1.0]).unwrap_err().to_string(), "1 weights for a matrix of 1×3");
        let mut row = [0.0; 3];
        matrix(HalfFormat::F16, &[f32::NAN, f32::INFINITY, 0.5]).unwrap().row(0, &mut row);
        assert!(row[0].is_nan() && row[1] == f32::INFINITY && row[2] == 0.5);
    }

    #[test]
    fn matrices_may_be_empty() {
        let none = HalfMatrix::from_f32(HalfFormat::F16, 0, 3, &[]).unwrap();
        none.product(&[1.0; 60], &mut []);
        let mut y = [1.0; 0];
        HalfMatrix::from_f32(HalfFormat::F16, 3, 0, &[]).unwrap().product(&[], &mut y);
    }
}
