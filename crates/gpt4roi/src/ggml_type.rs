//! The number formats of ggml: plain floats, and blocks of small integers with a shared scale.
//!
//! Sources: `ggml.h` (`ggml_type`) and `ggml-common.h` (the blocks) of llama.cpp.

use std::fmt;

use candle_core::{
    Device, Result, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};
use gpt4roi_kernels::HalfFormat;
use rayon::prelude::*;

/// How the numbers of a tensor are stored. Blocks lie along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum GgmlType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit floats with the exponent of 32-bit ones.
    BF16,
    /// 4 bits, a scale per 32.
    Q4_0,
    /// 4 bits, a scale and a minimum per 32.
    Q4_1,
    /// 5 bits, a scale per 32.
    Q5_0,
    /// 5 bits, a scale and a minimum per 32.
    Q5_1,
    /// 8 bits, a scale per 32.
    Q8_0,
    /// 2 bits, blocks of 256.
    Q2K,
    /// 3 bits, blocks of 256.
    Q3K,
    /// 4 bits, blocks of 256: a 6-bit scale and minimum per 32.
    Q4K,
    /// 5 bits, blocks of 256.
    Q5K,
    /// 6 bits, blocks of 256: an 8-bit scale per 16.
    Q6K,
}

impl GgmlType {
    const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The type with this number in GGUF files.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// Its number in GGUF files.
    pub fn id(self) -> u32 {
        self.layout().0
    }

    /// Its name, as in `q4_k`.
    pub fn name(self) -> &'static str {
        self.layout().1
    }

    /// Numbers in one block; 1 for plain floats.
    pub fn block_len(self) -> usize {
        self.layout().2
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.layout().3
    }

    /// Whether numbers lose precision beyond that of a float.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of so many numbers; `None` if they do not fill blocks or there are too many.
    pub fn size_of(self, count: usize) -> Option<usize> {
        let blocks = count.is_multiple_of(self.block_len()).then_some(count / self.block_len())?;
        blocks.checked_mul(self.block_bytes())
    }

    /// Rounds numbers to this type, on all threads of the current pool.
    ///
    /// # Errors
    /// If the numbers do not fill blocks.
    pub fn quantize(self, values: &[f32]) -> Result<Vec<u8>> {
        let pieces: Result<Vec<Vec<u8>>> = values.par_chunks(PIECE).map(|piece| self.quantize_piece(piece)).collect();
        Ok(pieces?.concat())
    }

    /// Widens stored numbers to f32, on all threads of the current pool.
    ///
    /// # Errors
    /// If the bytes are not whole blocks.
    pub fn dequantize(self, bytes: &[u8]) -> Result<Vec<f32>> {
        let blocks = bytes.len() / self.block_bytes();
        if blocks * self.block_bytes() != bytes.len() {
            candle_core::bail!("{} bytes where blocks of {} are expected", bytes.len(), self.block_bytes());
        }
        let mut values = vec![0.0; blocks * self.block_len()];
        let pieces = bytes.par_chunks(PIECE / self.block_len() * self.block_bytes());
        let each = values.par_chunks_mut(PIECE).zip(pieces);
        each.try_for_each(|(values, bytes)| self.dequantize_piece(bytes, values))?;
        Ok(values)
    }

    fn quantize_piece(self, values: &[f32]) -> Result<Vec<u8>> {
        let values = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
        Ok(QTensor::quantize(&values, self.layout().4)?.data()?.into_owned())
    }

    fn dequantize_piece(self, bytes: &[u8], values: &mut [f32]) -> Result<()> {
        match self {
            Self::F32 => {
                bytes.as_chunks().0.iter().zip(values).for_each(|(bytes, value)| *value = f32::from_le_bytes(*bytes))
            }
            Self::F16 => widen(HalfFormat::F16, bytes, values),
            Self::BF16 => widen(HalfFormat::Bf16, bytes, values),
            _ => values.copy_from_slice(&self.dequantize_blocks(bytes)?),
        }
        Ok(())
    }

    fn dequantize_blocks(self, bytes: &[u8]) -> Result<Vec<f32>> {
        // The engine reads blocks in place, and they hold numbers of up to four bytes.
        let mut copy = vec![0; bytes.len() + 3];
        let start = copy.as_ptr().align_offset(4).min(3);
        copy[start..start + bytes.len()].copy_from_slice(bytes);
        let storage = QStorage::from_data(copy[start..start + bytes.len()].into(), &Device::Cpu, self.layout().4)?;
        let count = bytes.len() / self.block_bytes() * self.block_len();
        QTensor::new(storage, count)?.dequantize(&Device::Cpu)?.to_vec1()
    }

    /// Number in files, name, numbers per block, bytes per block, and the engine's name.
    fn layout(self) -> (u32, &'static str, usize, usize, GgmlDType) {
        match self {
            Self::F32 => (0, "f32", 1, 4, GgmlDType::F32),
            Self::F16 => (1, "f16", 1, 2, GgmlDType::F16),
            Self::BF16 => (30, "bf16", 1, 2, GgmlDType::BF16),
            Self::Q4_0 => (2, "q4_0", 32, 18, GgmlDType::Q4_0),
            Self::Q4_1 => (3, "q4_1", 32, 20, GgmlDType::Q4_1),
            Self::Q5_0 => (6, "q5_0", 32, 22, GgmlDType::Q5_0),
            Self::Q5_1 => (7, "q5_1", 32, 24, GgmlDType::Q5_1),
            Self::Q8_0 => (8, "q8_0", 32, 34, GgmlDType::Q8_0),
            Self::Q2K => (10, "q2_k", 256, 84, GgmlDType::Q2K),
            Self::Q3K => (11, "q3_k", 256, 110, GgmlDType::Q3K),
            Self::Q4K => (12, "q4_k", 256, 144, GgmlDType::Q4K),
            Self::Q5K => (13, "q5_k", 256, 176, GgmlDType::Q5K),
            Self::Q6K => (14, "q6_k", 256, 210, GgmlDType::Q6K),
        }
    }
}

/// Numbers that one thread converts at a time; a multiple of every block.
const PIECE: usize = 1 << 16;

/// Widens 16-bit numbers, which may lie at odd addresses, a few at a time.
fn widen(format: HalfFormat, bytes: &[u8], values: &mut [f32]) {
    const FEW: usize = 512;
    let mut bits = [0; FEW];
    for (bytes, values) in bytes.as_chunks().0.chunks(FEW).zip(values.chunks_mut(FEW)) {
        bits.iter_mut().zip(bytes).for_each(|(bits, bytes)| *bits = u16::from_le_bytes(*bytes));
        format.widen(&bits[..values.len()], values);
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of each kind with simple fields, and what the formulas of `ggml-common.h` make of it.
    #[test]
    fn blocks_mean_what_their_formulas_say() {
        let (half, two) = ([0x00, 0x38], [0x00, 0x40]); // 0.5 and 2 in half precision
        let q8_0 = [&half[..], &[0xfe; 1], &[3; 31]].concat();
        let values = GgmlType::Q8_0.dequantize(&q8_0).unwrap();
        assert_eq!((values[0], values[1], values[31]), (-1.0, 1.5, 1.5));

        // Low nibbles are the first half, high ones the second, both less 8.
        let q4_0 = [&two[..], &[0x1f; 16]].concat();
        let values = GgmlType::Q4_0.dequantize(&q4_0).unwrap();
        assert_eq!((values[0], values[15], values[16], values[31]), (14.0, 14.0, -14.0, -14.0));

        // d·scale·q − dmin·min; in the first four sub-blocks scales and minima are 6 plain bits.
        let scales = [3, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0];
        let q4_k = [&two[..], &half, &scales, &[0x07; 128]].concat();
        let values = GgmlType::Q4K.dequantize(&q4_k).unwrap();
        assert_eq!((values[0], values[31], values[32]), (2.0 * 3.0 * 7.0 - 0.5 * 5.0, 39.5, 0.0));

        // d·scale·(q − 32), where q has 4 low bits and 2 high bits.
        let q6_k = [&[0x05; 128][..], &[0x02; 64], &[4; 16], &half].concat();
        let values = GgmlType::Q6K.dequantize(&q6_k).unwrap();
        assert_eq!(values[0], 0.5 * 4.0 * (5.0 + 32.0 - 32.0));
    }

    /// 1, −2 and the least number of each format, over more than one piece and from an odd address.
    #[test]
    fn floats_are_what_their_bits_say() {
        let least = f32::powi(2.0, -24);
        let cases = [
            (GgmlType::F16, [[0x00, 0x3c], [0x00, 0xc0], [0x01, 0x00]].concat(), [1.0, -2.0, least]),
            (GgmlType::BF16, [[0x80, 0x3f], [0x00, 0xc0], [0x01, 0x00]].concat(), [1.0, -2.0, f32::from_bits(1 << 16)]),
            (GgmlType::F32, [1.0f32, -2.0, 1e-45].map(f32::to_le_bytes).concat(), [1.0, -2.0, 1e-45]),
        ];
        for (kind, bytes, expected) in cases {
            let (bytes, expected) = (bytes.repeat(PIECE / 2), expected.repeat(PIECE / 2));
            assert_eq!(kind.dequantize(&bytes).unwrap(), expected, "{kind}");
            assert_eq!(kind.dequantize(&[&[7], &bytes[..]].concat()[1..]).unwrap(), expected, "{kind}");
            assert!(kind.dequantize(&bytes[1..]).is_err(), "{kind}");
        }
    }

    #[test]
    fn a_misplaced_block_is_read_all_the_same() {
        let block = GgmlType::Q4K.quantize(&(0..256).map(|value| value as f32).collect::<Vec<_>>()).unwrap();
        let expected = GgmlType::Q4K.dequantize(&block).unwrap();
        for shift in 0..5 {
            let shifted = [vec![0; shift], block.clone()].concat();
            assert_eq!(GgmlType::Q4K.dequantize(&shifted[shift..]).unwrap(), expected);
        }
    }

    #[test]
    fn what_fills_no_block_is_refused() {
        for kind in GgmlType::ALL.into_iter().filter(|kind| kind.is_quantized()) {
            assert!(kind.quantize(&[0.0; 31]).is_err() && kind.dequantize(&[0; 35]).is_err(), "{kind}");
            assert_eq!((kind.size_of(31), kind.size_of(usize::MAX)), (None, None), "{kind}");
        }
        assert_eq!(GgmlType::F32.size_of(usize::MAX), None);
        assert_eq!(GgmlType::Q6K.size_of(512), Some(420));
    }
}
