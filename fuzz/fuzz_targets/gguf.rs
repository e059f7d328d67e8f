//! A GGUF file is an error, or all its tensors can be read.

#![no_main]

use gpt4roi::gguf::Gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(gguf) = Gguf::from_bytes("fuzz.gguf", bytes.to_vec()) {
        for tensor in gguf.tensors() {
            let _ = tensor.dequantize();
        }
    }
});
