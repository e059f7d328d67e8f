//! Quantised weights: from files, without a detour through floats, and random ones to measure with.

use std::sync::Arc;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QMatMul, QStorage, QTensor},
};
use gpt4roi_kernels::{QuantError, QuantFormat, QuantMatrix};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    ggml_type::GgmlType,
    gguf::GgufTensor,
    gguf_names,
    layers::Matrix,
    quantize::Quantization,
    random_weights::RandomWeights,
    weights::{StoredTensor, TensorSource, WeightsError, WeightsResult},
};

impl GgufTensor<'_> {
    /// The tensor as a matrix to compute with, whose row i is row `order(i)` of the file; `None` if no kernel
    /// computes with numbers of this type, or if it is no matrix.
    ///
    /// # Errors
    /// If its blocks are damaged.
    pub fn quant_matrix(&self, order: impl Fn(usize) -> usize + Sync) -> Result<Option<QuantMatrix>, QuantError> {
        let (Some(format), &[rows, columns]) = (quant_format(self.kind), self.shape) else { return Ok(None) };
        QuantMatrix::with_row_order(format, rows, columns, self.bytes, order).map(Some)
    }

    /// As [`Self::quant_matrix`], in the engine's own layout, which any device can compute with.
    ///
    /// # Errors
    /// If the device fails.
    pub fn engine_matrix(
        &self,
        order: impl Fn(usize) -> usize,
        device: &Device,
    ) -> candle_core::Result<Option<QMatMul>> {
        let (Some(format), &[rows, columns]) = (quant_format(self.kind), self.shape) else { return Ok(None) };
        let row_bytes = self.bytes.len() / rows.max(1);
        let mut blocks = Vec::with_capacity(self.bytes.len());
        for row in (0..rows).map(order) {
            blocks.extend_from_slice(&self.bytes[row * row_bytes..][..row_bytes]);
        }
        engine_matrix(format, [rows, columns], blocks, device).map(Some)
    }
}

impl StoredTensor {
    /// Bytes that the tensor takes once it is loaded: those of the file where layers compute with its blocks or, in
    /// GGUF, its 16-bit numbers, of f32 elsewhere.
    pub fn loaded_bytes(&self) -> u64 {
        let kind = [GgmlType::Q4K, GgmlType::Q6K, GgmlType::Q8_0].into_iter().find(|kind| kind.name() == self.numbers);
        let is_half = [GgmlType::F16, GgmlType::BF16].iter().any(|kind| kind.name() == self.numbers);
        let blocks = match (kind.and_then(quant_format), &self.shape[..]) {
            (Some(format), &[rows, columns]) => format.bytes(rows, columns),
            (None, &[rows, columns]) if is_half => rows.checked_mul(columns).and_then(|count| count.checked_mul(2)),
            _ => None,
        };
        blocks.unwrap_or_else(|| 4 * self.shape.iter().product::<usize>()) as u64
    }
}

/// The kernels' name for a type that they compute with.
fn quant_format(kind: GgmlType) -> Option<QuantFormat> {
    Some(match kind {
        GgmlType::Q4K => QuantFormat::Q4K,
        GgmlType::Q6K => QuantFormat::Q6K,
        GgmlType::Q8_0 => QuantFormat::Q8_0,
        _ => return None,
    })
}

fn engine_matrix(
    format: QuantFormat,
    shape: [usize; 2],
    blocks: Vec<u8>,
    device: &Device,
) -> candle_core::Result<QMatMul> {
    let kind = match format {
        QuantFormat::Q4K => GgmlDType::Q4K,
        QuantFormat::Q6K => GgmlDType::Q6K,
        QuantFormat::Q8_0 => GgmlDType::Q8_0,
    };
    QMatMul::from_qtensor(QTensor::new(QStorage::from_data(blocks.into(), device, kind)?, (shape[0], shape[1]))?)
}

/// Weights that mean nothing, for measuring: random blocks where rows are a whole number of them, and
/// [`RandomWeights`] elsewhere.
#[derive(Debug)]
pub struct RandomQuantized {
    format: QuantFormat,
    layers: usize,
    floats: RandomWeights,
    device: Device,
}

impl RandomQuantized {
    /// For a language model of so many layers. `Q4K` stands for the mixture `Q4_K_M` of llama.cpp.
    pub fn new(format: QuantFormat, layers: usize) -> Self {
        Self { format, layers, floats: RandomWeights::new(0), device: Device::Cpu }
    }

    /// The same weights on another device.
    pub fn on(self, device: &Device) -> Self {
        Self { floats: self.floats.on(device), device: device.clone(), ..self }
    }

    /// The format that a file of this kind has a matrix in; `None` if no kernel computes with it there.
    fn format_of(&self, name: &str, shape: [usize; 2]) -> Option<QuantFormat> {
        match self.format {
            QuantFormat::Q4K => quant_format(Quantization::Q4K.kind(&gguf_names::to_gguf(name)?, &shape, self.layers)),
            other => Some(other),
        }
    }
}

impl TensorSource for RandomQuantized {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        self.floats.tensor(name, shape)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> WeightsResult<Matrix> {
        let [rows, columns] = shape;
        let format = self.format_of(name, shape);
        let Some((format, bytes)) = format.and_then(|format| Some((format, format.bytes(rows, columns)?))) else {
            return self.tensor(name, &shape).map(Matrix::Dense);
        };
        let blocks = random_blocks(format, bytes, columns, name);
        if !self.device.is_cpu() {
            return engine_matrix(format, shape, blocks, &self.device)
                .map(Matrix::Blocks)
                .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source });
        }
        QuantMatrix::new(format, rows, columns, &blocks)
            .map(|matrix| Matrix::Quantized(Arc::new(matrix)))
            .map_err(|source| WeightsError::Quantized { name: name.to_owned(), source })
    }
}

/// Blocks whose weights have a spread of about 1/√columns, so that activations neither grow nor vanish.
fn random_blocks(format: QuantFormat, bytes: usize, columns: usize, name: &str) -> Vec<u8> {
    let seed = name.bytes().fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut blocks = vec![0; bytes];
    ChaCha8Rng::seed_from_u64(seed).fill(&mut blocks[..]);
    // Scales and mins of groups are random too; the spread of their products with the values is given.
    let (halves, spread): (&[usize], f32) = match format {
        QuantFormat::Q4K => (&[0, 2], 350.0),
        QuantFormat::Q6K => (&[208], 1370.0),
        QuantFormat::Q8_0 => (&[0], 74.0),
    };
    let scale = half::f16::from_f32(1.0 / (spread * (columns as f32).sqrt())).to_le_bytes();
    for block in blocks.chunks_exact_mut(format.block_bytes()) {
        for &place in halves {
            block[place..place + 2].copy_from_slice(&scale);
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, llama::Llama, weights::Weights};

    #[test]
    fn loaded_tensors_take_their_blocks_or_four_bytes_a_number() {
        let bytes = |numbers: &str, shape: &[usize]| {
            let stored = StoredTensor {
                name: "weight".into(),
                numbers: numbers.into(),
                shape: shape.into(),
                file: "model.gguf".into(),
            };
            stored.loaded_bytes()
        };
        // A block of q4_k has 256 numbers in 144 bytes, one of q8_0 has 32 in 34.
        let cases = [
            ("q4_k", &[2, 256][..], 2 * 144),
            ("q8_0", &[3, 64], 3 * 2 * 34),
            ("q8_0", &[2, 4, 3, 32], 2 * 4 * 3 * 32 * 4), // a convolution is computed in f32
            ("f16", &[2, 256], 2 * 256 * 2),
            ("bf16", &[256], 256 * 4),
            ("F16", &[2, 256], 2 * 256 * 4), // safetensors
            ("F16", &[7], 7 * 4),
        ];
        for (numbers, shape, expected) in cases {
            assert_eq!(bytes(numbers, shape), expected, "{numbers} {shape:?}");
        }
    }

    #[test]
    fn blocks_of_a_file_become_a_matrix_in_the_order_asked_for() {
        // Three rows of one block, of which row r has the scale 2ʳ⁻³ and the values 0, 1, 2, …
        let block = |row: i32| {
            let scale = half::f16::from_f32(2f32.powi(row - 3)).to_le_bytes();
            scale.into_iter().chain(0..32).collect::<Vec<u8>>()
        };
        let bytes: Vec<u8> = (0..3).flat_map(block).collect();
        let stored = GgufTensor { name: "w", kind: GgmlType::Q8_0, shape: &[3, 32], bytes: &bytes };
        let matrix = stored.quant_matrix(|row| 2 - row).unwrap().unwrap();
        for (row, scale) in [(0, 0.5), (1, 0.25), (2, 0.125)] {
            let mut out = [0.0; 32];
            matrix.row(row, &mut out);
            assert_eq!((out[0], out[3], out[31]), (0.0, 3.0 * scale, 31.0 * scale));
        }
        let floats = GgufTensor { kind: GgmlType::F32, shape: &[3, 1], bytes: &[0; 12], ..stored };
        assert!(floats.quant_matrix(|row| row).unwrap().is_none());
    }

    /// The engine rounds activations to eight bits as the kernels do, in other groups.
    #[test]
    fn the_engine_computes_what_the_kernels_compute() {
        let (rows, columns) = (48, 512);
        for kind in [GgmlType::Q4K, GgmlType::Q6K, GgmlType::Q8_0] {
            let format = quant_format(kind).unwrap();
            let bytes = random_blocks(format, format.bytes(rows, columns).unwrap(), columns, "w");
            let stored = GgufTensor { name: "w", kind, shape: &[rows, columns], bytes: &bytes };
            let order = |row: usize| rows - 1 - row;
            let ours = Matrix::Quantized(Arc::new(stored.quant_matrix(order).unwrap().unwrap()));
            let engine = Matrix::Blocks(stored.engine_matrix(order, &Device::Cpu).unwrap().unwrap());
            assert_eq!((ours.bytes(), ours.device().is_cpu()), (engine.bytes(), engine.device().is_cpu()));

            let ids = Tensor::new(&[3u32, 47, 0], &Device::Cpu).unwrap();
            let rows_of = |matrix: &Matrix| matrix.rows(&ids).unwrap().to_vec2::<f32>().unwrap().concat();
            for (got, expected) in rows_of(&engine).into_iter().zip(rows_of(&ours)) {
                assert!((got - expected).abs() < 1e-6, "{kind}: {got}, {expected}");
            }
            let x = Tensor::randn(0f32, 1.0, (1, 5, columns), &Device::Cpu).unwrap();
            let bias = Tensor::ones(rows, candle_core::DType::F32, &Device::Cpu).unwrap();
            let product = |matrix: &Matrix| matrix.product(&x, Some(&bias)).unwrap().flatten_all().unwrap();
            for (got, expected) in
                product(&engine).to_vec1::<f32>().unwrap().into_iter().zip(product(&ours).to_vec1::<f32>().unwrap())
            {
                assert!((got - expected).abs() < 0.05, "{kind}: {got}, {expected}");
            }
        }
    }

    /// Activations are rounded on the way, which gradients take no notice of.
    #[test]
    fn gradients_through_blocks_are_those_through_their_weights() {
        let (rows, columns) = (48, 512);
        let format = QuantFormat::Q4K;
        let blocks = random_blocks(format, format.bytes(rows, columns).unwrap(), columns, "w");
        let packed = Matrix::Quantized(Arc::new(QuantMatrix::new(format, rows, columns, &blocks).unwrap()));
        let dense = packed.rows(&Tensor::arange(0u32, rows as u32, &Device::Cpu).unwrap()).unwrap();
        let noise = |name: &str, width: usize| RandomWeights::new(2).tensor(name, &[3, 5, width]).unwrap();
        let direction = noise("direction", rows);
        let gradient = |matrix: &Matrix| {
            let x = candle_core::Var::from_tensor(&noise("x", columns)).unwrap();
            let along = (matrix.product(x.as_tensor(), None).unwrap() * &direction).unwrap().sum_all().unwrap();
            let store = along.backward().unwrap();
            store.get(x.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (got, expected) = (gradient(&packed), gradient(&Matrix::Dense(dense)));
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-6, "{got}, {expected}");
        }
        assert!(expected.iter().any(|value| value.abs() > 1e-2));
    }

    /// As llama.cpp's `use_more_bits` has it, for numbers of layers that are no multiple of eight, too.
    #[test]
    fn half_of_the_sensitive_matrices_get_six_bits() {
        let six = |layers: usize, name: &str| {
            let source = RandomQuantized::new(QuantFormat::Q4K, layers);
            source.format_of(name, [256, 256]).unwrap() == QuantFormat::Q6K
        };
        let favoured = |layers: usize| -> Vec<usize> {
            let down = |layer: &usize| six(layers, &format!("model.layers.{layer}.mlp.down_proj.weight"));
            (0..layers).filter(down).collect()
        };
        assert_eq!(favoured(32), [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert_eq!(favoured(12), [0, 3, 6, 9, 10, 11]);
        assert!(six(32, "lm_head.weight") && !six(32, "model.embed_tokens.weight"));
        assert!(!six(32, "model.layers.0.mlp.up_proj.weight") && six(32, "model.layers.0.self_attn.v_proj.weight"));
    }

    #[test]
    fn a_random_language_model_computes_numbers_of_a_sane_size() {
        let mut config = Config::nano(70).llama;
        (config.hidden_size, config.intermediate_size, config.num_hidden_layers) = (256, 512, 2);
        for format in [QuantFormat::Q4K, QuantFormat::Q8_0] {
            let weights = Weights::new(Arc::new(RandomQuantized::new(format, 2)));
            let llama = Llama::load(&weights, &config).unwrap();
            let ids = Tensor::new(&[3u32, 69, 0], &Device::Cpu).unwrap();
            let embeds = llama.embed(&ids).unwrap().unsqueeze(0).unwrap();
            let hidden = llama.forward(&embeds, &mut llama.new_cache()).unwrap();
            let logits: Vec<f32> = llama.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(logits.len(), 3 * 70);
            let square = logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32;
            assert!((0.1..10.0).contains(&square), "{format:?}: {square}");
        }
    }
}
