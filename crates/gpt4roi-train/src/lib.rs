//! Trains GPT4RoI in stages.
//!
//! A stage is a TOML file: which parameters learn, from what, how long. See [`StageConfig`]; those of
//! the embedded model lie in `configs/nano`.
//!
//! ```no_run
//! use gpt4roi_train::{Bar, StageConfig, open, resume};
//!
//! let start = std::time::Instant::now();
//! let (stage, out) = (StageConfig::open("configs/nano/0-tower.toml")?, "runs/nano/0-tower");
//! let mut trainer = match resume(stage.clone(), out)? {
//!     Some(trainer) => trainer, // goes on where an earlier run stopped
//!     None => open(stage, out)?,
//! };
//! trainer.run(&|| start.elapsed(), &mut Bar::default())?;
//! # Ok::<(), gpt4roi_train::TrainError>(())
//! ```
//!
//! Data flows so: a scene, or a picture of somebody's own, becomes a [`lesson`]; an [`objective`] makes a loss of it; the [`trainer`] has
//! pictures computed on all cores and adds up their gradients; the [`optimizer`] changes the
//! [`parameters`] from which the network was built; [`checkpoint`], [`log`](mod@log) and [`curve`] write
//! down where things stand; [`export`](mod@export) makes a model of it.

pub mod adapter;
pub mod checkpoint;
pub mod comparing;
pub mod config;
pub mod conversation;
pub mod conversations;
pub mod curve;
pub mod error;
pub mod export;
pub mod init;
pub mod language;
pub mod lesson;
pub mod log;
pub mod looks;
pub mod loss;
pub mod model_name;
pub mod muon;
pub mod objective;
pub mod optimizer;
pub mod parameters;
pub mod patches;
pub mod progress;
pub mod records;
pub mod scenes;
pub mod schedule;
pub mod stage;
pub mod standardize;
pub mod text;
#[cfg(test)]
mod tiny;
mod tower;
pub mod trainer;
pub mod words;

pub use crate::{
    config::StageConfig,
    error::{Result, TrainError},
    export::export,
    model_name::ModelName,
    progress::{Bar, Progress, Silent},
    stage::{open, resume},
    trainer::Trainer,
};
