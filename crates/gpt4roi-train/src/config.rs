//! Stages as data: everything that one run of the trainer needs, read from TOML.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use gpt4roi::Config;
use gpt4roi_data::SceneConfig;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Result, TrainError},
    init::InitChoices,
    objective::ObjectiveConfig,
    optimizer::{Group, OptimizerConfig, Rule},
    schedule::Schedule,
};

/// One stage of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// What the stage is called in logs and messages.
    pub name: String,
    /// The model's dimensions.
    pub model: ModelConfig,
    /// Beginnings of the names of all parameters that learn.
    pub trainable: Vec<String>,
    /// Where the other parameters, and the first values of these, come from.
    #[serde(default)]
    pub init: InitConfig,
    /// Updates of the parameters.
    pub steps: u64,
    /// Pictures per update.
    pub batch: usize,
    /// Decides every random choice of the stage.
    pub seed: u64,
    /// Worker threads; 0 means one per core. The result does not depend on it.
    #[serde(default)]
    pub threads: usize,
    /// How gradients become updates.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// Longer gradients are scaled down to this norm.
    pub clip_norm: f64,
    /// So many steps in a row may be skipped for a gradient that is not finite.
    #[serde(default = "bad_steps")]
    pub max_bad_steps: u32,
    /// When to write checkpoints.
    pub checkpoint: CheckpointConfig,
    /// A line in the log every so many steps.
    #[serde(default = "log_every")]
    pub log_every: u64,
    /// The pictures.
    pub scenes: SceneConfig,
    /// What is learned from them.
    pub objective: ObjectiveConfig,
}

/// Whose dimensions the model has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A built-in set of dimensions.
    pub preset: Preset,
    /// A directory with `tokenizer.model` and `added_tokens.json`, relative to the working directory.
    /// Only a stage that trains nothing but the tower can do without.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// What the region module has that the preset's has not, by the fields of `"region"` in `config.json`: pieces left
    /// out, other sizes. See [`gpt4roi::config::RegionConfig`].
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub region: serde_json::Map<String, serde_json::Value>,
}

/// A built-in set of dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The embedded model; its vocabulary is the tokenizer's.
    Nano,
    /// The embedded model with a tower and a region module two thirds as wide.
    Pico,
    /// The published model.
    #[serde(rename = "gpt4roi-7b")]
    Gpt4roi7b,
    /// The published language model behind a ViT-H/14 tower.
    #[serde(rename = "gpt4roi-7b-vit-h14")]
    Gpt4roi7bVitH14,
}

impl Preset {
    /// The dimensions, for a vocabulary of so many tokens where the preset leaves it open.
    pub fn config(self, vocab_size: usize) -> Config {
        match self {
            Self::Nano => Config::nano(vocab_size),
            Self::Pico => Config::pico(vocab_size),
            Self::Gpt4roi7b => Config::gpt4roi_7b(),
            Self::Gpt4roi7bVitH14 => Config::gpt4roi_7b_vit_h14(),
        }
    }
}

/// First values of the parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitConfig {
    /// Checkpoints to take tensors from; a later one replaces what an earlier one had.
    #[serde(default)]
    pub from: Vec<Source>,
    /// Beginnings of names that are drawn afresh even if a checkpoint has them. Beside a checkpoint, all that it
    /// does not have must be named here, and frozen parameters in any case: nothing is random by mistake.
    #[serde(default)]
    pub fresh: Vec<String>,
    /// Factors for tensors that were taken, by the beginnings of their names. A model that starts from nothing
    /// keeps token embeddings far smaller than what attention adds to them, and so forgets which token it
    /// stands at; made larger, they come through.
    #[serde(default)]
    pub scale: BTreeMap<String, f64>,
    /// Scenes over which the tower's hidden states are measured before the first step. Its scale is
    /// then made 1, and mean and deviation of each channel are folded into the fresh layers that read
    /// them. 0: nothing of the kind.
    #[serde(default)]
    pub standardize_over: u64,
    /// Scenes over which looks are measured before the first step, so that a language model that starts from nothing
    /// begins with regions and image tokens as words. See [`crate::words`]. 0: nothing of the kind.
    #[serde(default)]
    pub words_over: u64,
    /// Choices that the original does not make.
    #[serde(default)]
    pub choices: InitChoices,
}

/// A checkpoint and what is taken from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The output directory of a stage, whose last checkpoint counts, or a model directory: safetensors or torch
    /// pickles, whole or in shards, with the tower in a directory of its own.
    pub path: PathBuf,
    /// Beginnings of the names taken; empty means all.
    #[serde(default)]
    pub take: Vec<String>,
}

/// When checkpoints are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// After every so many steps.
    pub every_steps: u64,
    /// And when the last is so many seconds old; 0 means never.
    #[serde(default)]
    pub every_seconds: u64,
    /// How many are kept.
    #[serde(default = "keep")]
    pub keep: usize,
}

fn merge(table: &mut toml::Table, changes: toml::Table) {
    for (key, change) in changes {
        match (table.get_mut(&key), change) {
            (Some(toml::Value::Table(table)), toml::Value::Table(changes)) => merge(table, changes),
            (_, change) => drop(table.insert(key, change)),
        }
    }
}

fn bad_steps() -> u32 {
    10
}

fn log_every() -> u64 {
    1
}

fn keep() -> usize {
    2
}

impl StageConfig {
    /// Reads a stage file.
    ///
    /// # Errors
    /// If it can't be read, has unknown or missing fields, or values that can't be.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &[])
    }

    /// Reads a stage file and changes values: each change is a line of TOML, such as `seed = 2` or
    /// `model.region.shuffle = false`. A table is changed field by field, everything else is replaced.
    ///
    /// # Errors
    /// As [`Self::open`], and if a change is not TOML.
    pub fn open_with(path: impl AsRef<Path>, changes: &[String]) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| TrainError::file(path, source))?;
        let failed = |error: toml::de::Error| TrainError::Stage { path: path.into(), message: error.to_string() };
        // Read as it is first: messages then point into the file.
        let mut stage: Self = toml::from_str(&text).map_err(failed)?;
        if !changes.is_empty() {
            let mut table: toml::Table = toml::from_str(&text).map_err(failed)?;
            for change in changes {
                merge(&mut table, toml::from_str(change).map_err(failed)?);
            }
            stage = table.try_into().map_err(failed)?;
        }
        stage.check()?;
        Ok(stage)
    }

    /// Refuses values that would only fail later, or never.
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &str, expected: &str, got: String| {
            Err(TrainError::Value { stage: self.name.clone(), field: field.into(), expected: expected.into(), got })
        };
        if self.steps == 0 {
            return refuse("steps", "at least 1", "0".into());
        }
        if self.batch == 0 {
            return refuse("batch", "at least 1", "0".into());
        }
        if self.trainable.is_empty() {
            return refuse("trainable", "at least one beginning of a name", "none".into());
        }
        if self.clip_norm.is_nan() || self.clip_norm <= 0.0 {
            return refuse("clip_norm", "more than 0", self.clip_norm.to_string());
        }
        if self.checkpoint.every_steps == 0 || self.checkpoint.keep == 0 {
            return refuse("checkpoint", "every_steps and keep of at least 1", format!("{:?}", self.checkpoint));
        }
        if self.log_every == 0 {
            return refuse("log_every", "at least 1", "0".into());
        }
        let wants_muon = |group: &&Group| group.rule == Some(Rule::Muon);
        if let (None, Some(group)) = (&self.optimizer.muon, self.optimizer.groups.iter().find(wants_muon)) {
            let expected = format!("a table, since the group of `{}` follows muon", group.prefix);
            return refuse("optimizer.muon", &expected, "none".into());
        }
        if let ObjectiveConfig::Language(settings) = &self.objective
            && !(0.0..=1.0).contains(&settings.pictures)
        {
            return refuse("objective.pictures", "0 to 1", settings.pictures.to_string());
        }
        Ok(())
    }

    /// What decides the result: all fields but those that only say where, how often and on how many
    /// threads. A checkpoint can be continued by a stage for which this is the same.
    pub fn identity(&self) -> serde_json::Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = json.as_object_mut() {
            for field in ["threads", "checkpoint", "log_every", "max_bad_steps", "model", "init"] {
                fields.remove(field);
            }
            // A checkpoint of another region module may have the same shapes.
            if !self.model.region.is_empty() {
                fields.insert("region".into(), self.model.region.clone().into());
            }
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs() -> Vec<PathBuf> {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let directories = ["nano", "ablation"].map(|name| configs.join(name));
        let mut paths: Vec<_> = directories
            .iter()
            .flat_map(|directory| std::fs::read_dir(directory).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths
    }

    #[test]
    fn the_stages_of_the_repository_can_be_read() {
        assert!(configs().len() >= 8);
        for path in configs() {
            StageConfig::open(&path).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn a_misspelt_field_is_refused_by_name() {
        let path = configs().into_iter().find(|path| path.ends_with("nano/0-tower.toml")).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        for (right, wrong) in
            [("\nbatch =", "\nbatches ="), ("background =", "backgroud ="), ("momentum =", "momentun =")]
        {
            let error = toml::from_str::<StageConfig>(&text.replace(right, wrong)).unwrap_err().to_string();
            assert!(error.contains(wrong.trim_matches(['\n', ' ', '='])), "{error}");
        }
    }

    #[test]
    fn values_are_changed_one_by_one() {
        let path = configs().into_iter().find(|path| path.ends_with("nano/2-joint.toml")).unwrap();
        let (plain, open) = (StageConfig::open(&path).unwrap(), |changes: &[&str]| {
            let changes: Vec<String> = changes.iter().map(|change| change.to_string()).collect();
            StageConfig::open_with(&path, &changes)
        });
        let changed = open(&["seed=9", "model.region.shuffle=false", "scenes.kinds = 5"]).unwrap();
        assert_eq!((changed.seed, changed.scenes.kinds), (9, 5));
        assert_eq!(serde_json::json!(changed.model.region), serde_json::json!({"shuffle": false}));
        assert_eq!(
            (changed.model.tokenizer, changed.optimizer),
            (plain.model.tokenizer.clone(), plain.optimizer.clone())
        );
        assert_ne!(
            open(&["model.region.shuffle=false"]).unwrap().identity(),
            plain.identity(),
            "a checkpoint of another region module is not gone on from"
        );
        for change in ["sed=9", "seed", "scenes.kind=5", "steps=0"] {
            assert!(open(&[change]).is_err(), "{change}");
        }
    }

    #[test]
    fn impossible_values_are_refused() {
        let good = || crate::tiny::stage(crate::tiny::patches(), &["vision_model."]);
        type Spoil = fn(&mut StageConfig);
        let cases: [(&str, Spoil); 6] = [
            ("steps", |stage| stage.steps = 0),
            ("batch", |stage| stage.batch = 0),
            ("trainable", |stage| stage.trainable.clear()),
            ("clip_norm", |stage| stage.clip_norm = f64::NAN),
            ("checkpoint", |stage| stage.checkpoint.keep = 0),
            ("optimizer.muon", |stage| {
                let group = Group { prefix: "a.".into(), lr_scale: 1.0, weight_decay: None, rule: Some(Rule::Muon) };
                (stage.optimizer.muon, stage.optimizer.groups) = (None, vec![group]);
            }),
        ];
        assert!(good().check().is_ok());
        for (field, spoil) in cases {
            let mut stage = good();
            spoil(&mut stage);
            let error = stage.check().unwrap_err();
            assert!(matches!(&error, TrainError::Value { field: got, .. } if got == field), "{error}");
        }
    }
}
