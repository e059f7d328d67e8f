//! From a stage file to a trainer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use gpt4roi::{Config, tokenizer::Tokenizer, weights::Weights};
use gpt4roi_data::{QuestionMix, Questions, Scenes};

use crate::{
    checkpoint::{ModelFiles, read_sources},
    config::StageConfig,
    conversations::Conversations,
    error::{Result, TrainError},
    init::Initializer,
    objective::{Converse, Language, Objective, ObjectiveConfig, Patches},
    parameters::Parameters,
    standardize::standardize,
    trainer::Trainer,
};

/// Builds data, network and trainer of a stage. Everything it writes goes below `out`.
///
/// # Errors
/// If a file is missing or damaged, or if the stage asks for what can't be.
pub fn open(stage: StageConfig, out: impl Into<PathBuf>) -> Result<Trainer> {
    stage.check()?;
    let tokenizer = stage.model.tokenizer.as_deref().map(read_tokenizer).transpose()?;
    let config = stage.model.preset.config(tokenizer.as_ref().map_or(0, Tokenizer::vocab_size));
    assemble(stage, config, tokenizer, out.into())
}

/// The same for a model of any dimensions.
pub(crate) fn assemble(
    stage: StageConfig,
    config: Config,
    tokenizer: Option<Tokenizer>,
    out: PathBuf,
) -> Result<Trainer> {
    let scenes = Arc::new(Scenes::new(stage.scenes.clone()).map_err(data)?);
    let initializer = Initializer::new(stage.seed, &config, stage.init.choices.clone());
    let mut taken = read_sources(&stage.init.from, &stage.init.fresh)?;
    scale(&mut taken, &stage.init.scale)?;
    if stage.init.standardize_over > 0 {
        standardize(&mut taken, &initializer, &config, scenes.as_ref(), stage.init.standardize_over)?;
    }
    let parameters = Parameters::new(stage.trainable.clone(), taken, initializer, &Device::Cpu);
    let weights = Weights::new(parameters.clone());
    let objective = objective(&stage, &weights, &config, scenes, tokenizer)?;
    let files = ModelFiles { config, tokenizer: stage.model.tokenizer.clone() };
    Trainer::new(stage, parameters, objective, files, out)
}

fn scale(taken: &mut BTreeMap<String, Tensor>, factors: &BTreeMap<String, f64>) -> Result<()> {
    for (prefix, factor) in factors {
        for (_, tensor) in taken.iter_mut().filter(|(name, _)| name.starts_with(prefix)) {
            *tensor = (&*tensor * *factor)?;
        }
    }
    Ok(())
}

fn objective(
    stage: &StageConfig,
    weights: &Weights,
    config: &Config,
    scenes: Arc<Scenes>,
    tokenizer: Option<Tokenizer>,
) -> Result<Box<dyn Objective>> {
    let device = &Device::Cpu;
    let conversations = |mix: &QuestionMix| {
        let tokenizer = tokenizer.ok_or_else(|| TrainError::Value {
            stage: stage.name.clone(),
            field: "model.tokenizer".into(),
            expected: "a directory with tokenizer.model and added_tokens.json".into(),
            got: "none".into(),
        })?;
        let questions = Questions::new(mix.clone(), scenes.kinds()).map_err(data)?;
        let (seed, patches) = (stage.seed, config.vision.patches());
        Ok::<_, TrainError>(Conversations { scenes: scenes.clone(), questions, tokenizer, seed, patches })
    };
    Ok(match &stage.objective {
        ObjectiveConfig::Patches(settings) => {
            Box::new(Patches::load(weights, config, scenes, settings.clone(), device)?)
        }
        ObjectiveConfig::Language(settings) => {
            let conversations = conversations(&settings.questions)?;
            Box::new(Language::load(weights, config, conversations, settings.clone(), device)?)
        }
        ObjectiveConfig::Conversation(settings) => {
            let conversations = conversations(&settings.questions)?;
            Box::new(Converse::load(weights, config, conversations, settings.clone(), device)?)
        }
    })
}

pub(crate) fn read_tokenizer(directory: &Path) -> Result<Tokenizer> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|source| TrainError::file(path, source))
    };
    let added_tokens = String::from_utf8_lossy(&read("added_tokens.json")?).into_owned();
    let tokenizer = Tokenizer::from_bytes(&read("tokenizer.model")?, &added_tokens);
    tokenizer.map_err(|error| gpt4roi::Error::from(error).into())
}

fn data(error: gpt4roi_data::DataError) -> TrainError {
    TrainError::Data(error.to_string())
}
