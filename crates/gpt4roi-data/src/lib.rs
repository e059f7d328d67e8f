//! gpt4roi-data.
#![allow(missing_docs)]
mod background;
pub mod error;
pub mod kinds;
pub mod scenes;
mod sprite;

pub use crate::{
    error::DataError,
    kinds::{Kind, Style},
    scenes::{PatchLabel, Scene, SceneConfig, SceneObject, Scenes, Split},
};
