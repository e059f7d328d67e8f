//! Trains GPT4RoI in stages.
//!
//! A stage is a TOML file: which parameters learn, from what, how long. See [`StageConfig`].

pub mod checkpoint;
pub mod config;
pub mod conversation;
pub mod conversations;
pub mod curve;
pub mod error;
pub mod export;
pub mod init;
pub mod language;
pub mod log;
pub mod loss;
pub mod muon;
pub mod objective;
pub mod optimizer;
pub mod parameters;
pub mod patches;
pub mod progress;
pub mod scenes;
pub mod schedule;
pub mod stage;
pub mod standardize;
#[cfg(test)]
mod tiny;
pub mod trainer;

pub use crate::{
    config::StageConfig,
    error::{Result, TrainError},
    export::export,
    progress::{Bar, Progress, Silent},
    stage::open,
    trainer::Trainer,
};
