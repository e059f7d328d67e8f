//! What has to hold whatever the bytes are: the bodies of the fuzz targets.
//!
//! Each body takes bytes that anybody could have sent and panics if something happens that must never
//! happen; an error is a fine end. `fuzz/` runs them under libFuzzer, which needs a nightly compiler;
//! `tests/seeds.rs` runs every seed and a fixed number of mutations of seeds through the same bodies,
//! on every change.

mod models;
mod pictures;
mod questions;
mod records;
mod regions;
mod requests;

pub use crate::{
    models::{gguf, pickle, safetensors},
    pictures::{mask, picture},
    questions::{mentions, prompt},
    records::records,
    regions::{coordinates, rle},
    requests::{chat, data_url},
};

/// A body and its name: that of its seeds' folder and of its file in `fuzz/fuzz_targets`.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// In small letters.
    pub name: &'static str,
    /// The body.
    pub run: fn(&[u8]),
}

/// All bodies.
pub const TARGETS: [Target; 12] = [
    Target { name: "picture", run: picture },
    Target { name: "mask", run: mask },
    Target { name: "rle", run: rle },
    Target { name: "coordinates", run: coordinates },
    Target { name: "mentions", run: mentions },
    Target { name: "prompt", run: prompt },
    Target { name: "data_url", run: data_url },
    Target { name: "chat", run: chat },
    Target { name: "records", run: records },
    Target { name: "safetensors", run: safetensors },
    Target { name: "pickle", run: pickle },
    Target { name: "gguf", run: gguf },
];
