//! Which tensor is stored in which of ggml's types.

use serde::Serialize;

use crate::{ggml_type::GgmlType, gguf_names};

/// How a model is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Half precision.
    F16,
    /// 8 bits.
    Q8_0,
    /// 4 bits, and 6 where it matters most: llama.cpp's `Q4_K_M`.
    Q4K,
}

impl Quantization {
    /// Its name, as in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }

    /// `general.file_type`: llama.cpp's `LLAMA_FTYPE_MOSTLY_F16`, `…_Q8_0`, `…_Q4_K_M`.
    pub fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4K => 15,
        }
    }

    /// The type of a tensor, by its name in GGUF, of a language model with so many layers.
    ///
    /// Vectors, norms and positions stay f32. A row that does not fill blocks takes the next type
    /// with smaller blocks, at last f16.
    ///
    /// Source: `llama_tensor_get_type` and `tensor_type_fallback` in `llama-quant.cpp` of llama.cpp.
    pub fn kind(self, name: &str, shape: &[usize], layers: usize) -> GgmlType {
        let &[_, .., columns] = shape else { return GgmlType::F32 };
        if name.contains("_norm.") || name.contains("position_embd") {
            return GgmlType::F32;
        }
        let wanted = match self {
            Self::F16 => GgmlType::F16,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q4K if name == "output.weight" || is_worth_more(name, layers) => GgmlType::Q6K,
            Self::Q4K => GgmlType::Q4K,
        };
        let smaller = match wanted {
            GgmlType::Q4K => GgmlType::Q5_0,
            GgmlType::Q6K => GgmlType::Q8_0,
            other => other,
        };
        let fits = |kind: &GgmlType| columns.is_multiple_of(kind.block_len());
        [wanted, smaller].into_iter().find(fits).unwrap_or(GgmlType::F16)
    }
}

/// The tensors that get more bits: values and the feed-forward part's output in the first and the last
/// eighth of the layers and every third between.
fn is_worth_more(name: &str, layers: usize) -> bool {
    let Some(layer) = gguf_names::layer(name) else { return false };
    let sensitive = name.ends_with(".attn_v.weight") || name.ends_with(".ffn_down.weight");
    let eighth = layers / 8;
    sensitive && (layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2)
}

/// How far a tensor is off after rounding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundingError {
    /// Its published name.
    pub name: String,
    /// The type that it is stored in.
    pub kind: &'static str,
    /// How many numbers it has.
    pub numbers: usize,
    /// Root mean square of what was lost, relative to that of the tensor; 0 for a tensor of zeros.
    pub relative_rms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llama.cpp's `Q4_K_M` of a 7B: of 32 layers, 0–3 and 28–31 and 6, 9, …, 27 keep 6 bits.
    #[test]
    fn a_7b_has_the_types_that_llama_cpp_gives_it() {
        let six: Vec<usize> = (0..32)
            .filter(|layer| {
                let name = format!("blk.{layer}.ffn_down.weight");
                Quantization::Q4K.kind(&name, &[4096, 11008], 32) == GgmlType::Q6K
            })
            .collect();
        assert_eq!(six, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        for (name, shape, expected) in [
            ("token_embd.weight", [32006, 4096].as_slice(), GgmlType::Q4K),
            ("output.weight", &[32006, 4096], GgmlType::Q6K),
            ("output_norm.weight", &[4096], GgmlType::F32),
            ("blk.0.attn_norm.weight", &[4096], GgmlType::F32),
            ("blk.0.attn_v.weight", &[4096, 4096], GgmlType::Q6K),
            ("blk.4.attn_v.weight", &[4096, 4096], GgmlType::Q4K),
            ("blk.0.attn_q.weight", &[4096, 4096], GgmlType::Q4K),
            ("blk.0.ffn_gate.weight", &[11008, 4096], GgmlType::Q4K),
        ] {
            assert_eq!(Quantization::Q4K.kind(name, shape, 32), expected, "{name}");
        }
    }

    #[test]
    fn rows_that_fill_no_block_fall_back() {
        for (quantization, name, columns, expected) in [
            (Quantization::Q4K, "blk.0.attn_q.weight", 192, GgmlType::Q5_0),
            (Quantization::Q4K, "output.weight", 192, GgmlType::Q8_0),
            (Quantization::Q4K, "blk.0.attn_v.weight", 192, GgmlType::Q8_0),
            (Quantization::Q4K, "blk.0.attn_q.weight", 48, GgmlType::F16),
            (Quantization::Q8_0, "blk.0.attn_q.weight", 192, GgmlType::Q8_0),
            (Quantization::Q8_0, "region.mlvl_fuse.fuse_convs.0.conv.weight", 3, GgmlType::F16),
            (Quantization::F16, "blk.0.attn_q.weight", 256, GgmlType::F16),
        ] {
            assert_eq!(quantization.kind(name, &[8, columns], 8), expected, "{name} {columns}");
        }
    }
}
