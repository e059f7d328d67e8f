//! Tensors too large to hold: known by name and shape, computed a piece at a time while they are written.

use std::{collections::BTreeMap, fmt, ops::Range, path::PathBuf, sync::Arc};

use candle_core::{Device, Tensor};
use half::{f16, slice::HalfFloatSliceExt};

use crate::weights::{StoredTensor, TensorSource, TensorStore, WeightsError, WeightsResult};

/// Numbers in memory at a time: 16 MiB of f32. A multiple of every block of ggml's types.
pub const PIECE: usize = 1 << 22;

type Read = dyn Fn(Range<usize>) -> WeightsResult<Vec<f32>> + Send + Sync;

/// A tensor that is read, or computed from others that are read, a piece at a time.
pub struct StreamedTensor {
    /// Its published name.
    pub name: String,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    read: Box<Read>,
}

impl StreamedTensor {
    /// A tensor whose numbers (any stretch of them, row by row) are what `read` returns.
    pub fn new(
        name: impl Into<String>,
        shape: &[usize],
        read: impl Fn(Range<usize>) -> WeightsResult<Vec<f32>> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), read: Box::new(read) }
    }

    /// Every tensor of a store.
    pub fn all(store: &Arc<dyn TensorStore>) -> Vec<Self> {
        store.stored().into_iter().map(|tensor| Self::stored(store, tensor)).collect()
    }

    /// A tensor as a store has it.
    pub fn stored(store: &Arc<dyn TensorStore>, tensor: StoredTensor) -> Self {
        let (store, source) = (store.clone(), tensor.name.clone());
        Self::new(tensor.name, &tensor.shape, move |range| store.piece(&source, range))
    }

    /// Numbers that look random and depend on name and place only, where real weights can't be had: for
    /// tests and measurements. They are spread over `centre ± reach`.
    pub fn noise(name: &str, shape: &[usize], centre: f32, reach: f32) -> Self {
        let seed = name.bytes().fold(0u64, |seed, byte| mixed(seed ^ u64::from(byte)));
        let value = move |element| (mixed(seed ^ element as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        Self::new(name, shape, move |range| Ok(range.map(|element| centre + reach * value(element)).collect()))
    }

    /// The same numbers under another name.
    pub fn renamed(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Some of its rows, counted along the first dimension; a tensor without dimensions has one.
    pub fn rows(self, rows: Range<usize>) -> Self {
        let width = self.row_width();
        let (name, mut shape) = (self.name.clone(), vec![rows.len()]);
        shape.extend(self.shape.iter().skip(1));
        let offset = rows.start * width;
        Self::new(name, &shape, move |range| self.read(range.start + offset..range.end + offset))
    }

    /// Its rows in another order: row `r` of the result is row `order(r)` of this.
    pub fn reordered(self, order: impl Fn(usize) -> usize + Send + Sync + 'static) -> Self {
        let (name, shape, width) = (self.name.clone(), self.shape.clone(), self.row_width());
        Self::new(name, &shape, move |range| {
            let mut values = Vec::with_capacity(range.len());
            let mut at = range.start;
            while at < range.end {
                let (row, column) = (at / width, at % width);
                let end = range.end.min((row + 1) * width);
                let start = order(row) * width + column;
                values.extend(self.read(start..start + end - at)?);
                at = end;
            }
            Ok(values)
        })
    }

    /// What a store would say of it.
    pub(crate) fn header(&self) -> StoredTensor {
        let (name, shape) = (self.name.clone(), self.shape.clone());
        StoredTensor { name, numbers: String::new(), shape, file: PathBuf::new() }
    }

    fn row_width(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// How many numbers it has.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// A stretch of its numbers, row by row.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn read(&self, elements: Range<usize>) -> WeightsResult<Vec<f32>> {
        (self.read)(elements)
    }

    /// All its numbers, [`PIECE`] at a time.
    pub fn pieces(&self) -> impl Iterator<Item = WeightsResult<Vec<f32>>> {
        let count = self.count();
        (0..count).step_by(PIECE).map(move |start| self.read(start..count.min(start + PIECE)))
    }
}

/// Streamed tensors in the place of files.
pub(crate) struct Streamed(BTreeMap<String, StreamedTensor>);

impl Streamed {
    pub(crate) fn store(tensors: Vec<StreamedTensor>) -> Arc<dyn TensorStore> {
        Arc::new(Self(tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()))
    }

    fn named(&self, name: &str) -> WeightsResult<&StreamedTensor> {
        self.0.get(name).ok_or_else(|| WeightsError::Missing { name: name.to_owned(), expected: Vec::new() })
    }
}

impl TensorSource for Streamed {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        let tensor = self.named(name)?;
        if tensor.shape != shape {
            let (expected, got) = (shape.to_vec(), tensor.shape.clone());
            return Err(WeightsError::Shape { name: name.to_owned(), expected, got });
        }
        Tensor::from_vec(tensor.read(0..tensor.count())?, shape, &Device::Cpu)
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
    }
}

impl TensorStore for Streamed {
    fn stored(&self) -> Vec<StoredTensor> {
        self.0.values().map(StreamedTensor::header).collect()
    }

    fn piece(&self, name: &str, elements: Range<usize>) -> WeightsResult<Vec<f32>> {
        self.named(name)?.read(elements)
    }
}

impl fmt::Debug for StreamedTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamedTensor").field("name", &self.name).field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// SplitMix64's output function: neighbouring numbers become unlike ones.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Replaces numbers by the nearest ones of half precision, ties to even.
pub(crate) fn round_to_half(values: &mut [f32]) {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    halves.convert_to_f32_slice(values);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers 0, 1, 2, … in this shape.
    fn counting(shape: &[usize]) -> StreamedTensor {
        StreamedTensor::new("x", shape, |range| Ok(range.map(|value| value as f32).collect()))
    }

    #[test]
    fn rows_can_be_cut_out_and_reordered() {
        let cut = counting(&[4, 3]).rows(1..3).renamed("y");
        assert_eq!((cut.name.as_str(), cut.shape.as_slice()), ("y", [2, 3].as_slice()));
        assert_eq!(cut.read(0..6).unwrap(), [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let turned = counting(&[3, 2]).reordered(|row| 2 - row);
        assert_eq!(turned.read(0..6).unwrap(), [4.0, 5.0, 2.0, 3.0, 0.0, 1.0]);
        assert_eq!(turned.read(1..4).unwrap(), [5.0, 2.0, 3.0], "a stretch may begin and end within a row");
    }

    #[test]
    fn a_number_without_dimensions_is_one_row() {
        let row = counting(&[]).rows(0..1);
        assert_eq!((row.shape.as_slice(), row.read(0..1).unwrap()), (&[1][..], vec![0.0]));
        let same = counting(&[]).reordered(|row| row);
        assert!(same.shape.is_empty());
        assert_eq!(same.read(0..1).unwrap(), [0.0]);
    }

    #[test]
    fn pieces_are_bounded_and_complete() {
        let count = 2 * PIECE + 7;
        let lengths: Vec<usize> = counting(&[count]).pieces().map(|piece| piece.unwrap().len()).collect();
        assert_eq!(lengths, [PIECE, PIECE, 7]);
    }
}
