//! From a stage file to a trainer.

use std::{path::PathBuf, sync::Arc};

use candle_core::Device;
use gpt4roi::{Config, weights::Weights};
use gpt4roi_data::Scenes;

use crate::{
    checkpoint::{ModelFiles, read_sources},
    config::StageConfig,
    error::{Result, TrainError},
    init::Initializer,
    objective::{Objective, ObjectiveConfig, Patches},
    parameters::Parameters,
    scenes::SceneSource,
    trainer::Trainer,
};

/// Builds data, network and trainer of a stage. Everything it writes goes below `out`.
///
/// # Errors
/// If a file is missing or damaged, or if the stage asks for what can't be.
pub fn open(stage: StageConfig, out: impl Into<PathBuf>) -> Result<Trainer> {
    stage.check()?;
    let device = Device::Cpu;
    let config = model_config(&stage)?;
    let scenes: Arc<dyn SceneSource> =
        Arc::new(Scenes::new(stage.scenes.clone()).map_err(|error| TrainError::Data(error.to_string()))?);
    let initializer = Initializer::new(stage.seed, &config, stage.init.choices.clone());
    let taken = read_sources(&stage.init.from, &stage.init.fresh)?;
    let parameters = Parameters::new(stage.trainable.clone(), taken, initializer, &device);
    let weights = Weights::new(parameters.clone());
    let objective: Box<dyn Objective> = match &stage.objective {
        ObjectiveConfig::Patches(patches) => {
            Box::new(Patches::load(&weights, &config, scenes, patches.clone(), &device)?)
        }
    };
    let files = ModelFiles { config, tokenizer: stage.model.tokenizer.clone() };
    Trainer::new(stage, parameters, objective, files, out)
}

fn model_config(stage: &StageConfig) -> Result<Config> {
    let vocab_size = 0;
    Ok(stage.model.preset.config(vocab_size))
}
