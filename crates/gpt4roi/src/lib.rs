//! GPT4RoI: an image, regions of it and a question go in, an answer comes out.
//!
//! The modules stand in the order in which data flows. No network, no terminal, no global state.
//!
//! ```
//! use candle_core::Device;
//! use gpt4roi::{BBox, Chat, Gpt4Roi, Image, image::DEFAULT_MAX_PIXELS};
//!
//! let model = Gpt4Roi::nano(&Device::Cpu)?; // the embedded model; or Gpt4Roi::open("models/gpt4roi-7b", …)
//! let image = Image::open("../../docs/example.png", DEFAULT_MAX_PIXELS)?;
//! let mut chat = Chat::new(&model, &image)?; // the picture is encoded once
//! let thing = chat.add_region(BBox::from_pixels([8.0, 14.0, 54.0, 59.0], image.size())?);
//! assert_eq!(chat.ask(&format!("What is {thing}?"))?.text, "An octopus.");
//! assert_eq!(chat.ask("Where is region 1?")?.text, "At the top left.");
//! # Ok::<(), gpt4roi::Error>(())
//! ```

pub mod config;
pub mod device;
pub mod error;

pub mod bbox;
pub mod coordinates;
pub mod mention;
pub mod shape;

pub mod image;
mod whole_file;

pub mod prompt;
mod sentencepiece;
pub mod tokenizer;

mod channels_last;
pub mod clip;
mod composed;
pub mod layers;
pub mod low_rank;
mod ops;
pub mod region;
pub mod roi_align;

pub mod kv_cache;
pub mod llama;
mod recomputed;

pub mod adapter;
pub mod image_cache;
pub mod model;
pub mod model_choice;
pub mod nano;

pub mod batch;
pub mod draft_model;
pub mod drafter;
pub mod generate;
pub mod sampling;

pub mod asked;
pub mod chat;
mod choice_tree;
pub mod choices;
pub mod describe;
pub mod point;
pub mod prefix_cache;
pub mod stop;
pub mod trace;
pub mod zoom;

pub mod cost;
pub mod ggml_type;
pub mod gguf;
pub mod gguf_language;
pub mod precision;
pub mod quantized;
pub mod random_weights;
mod torch_pickle;
pub mod weights;

pub mod clip_names;
pub mod convert;
pub mod divergence;
pub mod fingerprint;
mod gguf_export;
mod gguf_names;
pub mod gguf_pair;
pub mod merge;
pub mod quantize;
pub mod self_test;
mod shards;
pub mod staging;
pub mod stream;

#[cfg(test)]
mod tiny;

pub use crate::{
    bbox::{BBox, ImageSize, RegionId},
    chat::Chat,
    choices::Choices,
    config::Config,
    device::DeviceChoice,
    error::{Error, Result},
    image::Image,
    model::{Gpt4Roi, Network},
    precision::Precision,
};
