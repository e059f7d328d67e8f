//! gpt4roi-data.
#![allow(missing_docs)]
pub mod answers;
mod background;
pub mod batch;
pub mod corpus;
pub mod error;
pub mod kinds;
pub mod questions;
pub mod scenes;
mod sprite;

pub use crate::{
    batch::{Packed, pack},
    questions::{Conversation, QuestionMix, QuestionType, Questions},
};
pub use crate::{
    error::DataError,
    kinds::{Kind, Style},
    scenes::{PatchLabel, Scene, SceneConfig, SceneObject, Scenes, Split},
};
