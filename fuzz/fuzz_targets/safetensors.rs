//! A safetensors file is an error, or all its tensors can be read or are refused.

#![no_main]

use candle_core::Device;
use gpt4roi::weights::{Checkpoint, TensorSource};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(checkpoint) = Checkpoint::from_bytes("model.safetensors", bytes.to_vec(), &Device::Cpu) {
        for (name, entry, _) in checkpoint.tensors() {
            let _ = checkpoint.tensor(name, &entry.shape);
        }
    }
});
