//! GPT4RoI: an image, regions of it and a question go in, an answer comes out.
//!
//! The modules stand in the order in which data flows. No network, no terminal, no global state.

pub mod config;
pub mod error;

pub mod bbox;
pub mod mention;

pub mod image;

pub mod prompt;
mod sentencepiece;
pub mod tokenizer;

pub mod clip;
mod composed;
pub mod layers;
mod ops;
pub mod region;
pub mod roi_align;

pub mod kv_cache;
pub mod llama;

pub mod model;
pub mod nano;

pub mod generate;
pub mod sampling;

pub mod chat;
pub mod point;
pub mod trace;

pub mod convert;
pub mod weights;

pub use crate::{
    bbox::{BBox, ImageSize, RegionId},
    chat::Chat,
    config::Config,
    error::{Error, Result},
    image::Image,
    model::{Gpt4Roi, Network},
};
