//! Files that hold a model.

use candle_core::Device;
use gpt4roi::{
    gguf::Gguf,
    weights::{Checkpoint, TensorSource},
};

/// A GGUF file is an error, or all its tensors can be read.
pub fn gguf(bytes: &[u8]) {
    if let Ok(gguf) = Gguf::from_bytes("hostile.gguf", bytes.to_vec()) {
        for tensor in gguf.tensors() {
            let _ = tensor.dequantize();
        }
    }
}

/// A safetensors file is an error, or all its tensors can be read or are refused.
pub fn safetensors(bytes: &[u8]) {
    checkpoint("model.safetensors", bytes);
}

/// A torch checkpoint is an error, or all its tensors can be read or are refused.
pub fn pickle(bytes: &[u8]) {
    checkpoint("pytorch_model.bin", bytes);
}

fn checkpoint(name: &str, bytes: &[u8]) {
    if let Ok(checkpoint) = Checkpoint::from_bytes(name, bytes.to_vec(), &Device::Cpu) {
        for (name, entry, _) in checkpoint.tensors() {
            let _ = checkpoint.tensor(name, &entry.shape);
        }
    }
}
