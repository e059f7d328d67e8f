//! Stages as data: everything that one run of the trainer needs, read from TOML.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use gpt4roi::Config;
use gpt4roi_data::SceneConfig;
use serde::{Deserialize, Serialize};

use crate::{
    adapter::AdapterSettings,
    error::{Result, TrainError},
    init::InitChoices,
    model_name::ModelName,
    objective::{ConverseConfig, ObjectiveConfig, TextConfig},
    optimizer::{Group, OptimizerConfig, Rule},
    records::RecordsConfig,
    schedule::Schedule,
};

/// One stage of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// What the stage is called in logs and messages.
    pub name: String,
    /// The model's dimensions.
    #[serde(default)]
    pub model: ModelConfig,
    /// Beginnings of the names of all parameters that learn. Beside an adapter there may be none.
    #[serde(default)]
    pub trainable: Vec<String>,
    /// Learns changes beside the model of `model.like`, whose own tensors stay as they are, but for those that
    /// `trainable` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterSettings>,
    /// Where the other parameters, and the first values of these, come from.
    #[serde(default)]
    pub init: InitConfig,
    /// Updates of the parameters. Left out, or 0, where `epochs` says how long.
    #[serde(default)]
    pub steps: u64,
    /// How often each picture of `records` goes by, in the place of `steps`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epochs: u64,
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
    /// The pictures, if they are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenes: Option<SceneConfig>,
    /// The pictures, if they are people's own. Conversations alone are learned from them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<RecordsConfig>,
    /// What is learned from them.
    pub objective: ObjectiveConfig,
}

/// Whose dimensions the model has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A built-in set of dimensions.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// In its place a model, whose dimensions and tokenizer the model has. What an adapter is trained beside may also be
    /// a pair of GGUF files; without a name it is the embedded model.
    #[serde(default)]
    pub like: Option<ModelName>,
    /// Beside a preset, a model whose tokenizer is taken, or a directory with no more than its `tokenizer.model` and
    /// `added_tokens.json`. Only a stage that trains nothing but the tower can do without.
    #[serde(default)]
    pub tokenizer: Option<ModelName>,
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
    /// A language model alone that drafts for another one; its vocabulary is the tokenizer's.
    Draft,
}

impl Preset {
    /// The dimensions, for a vocabulary of so many tokens where the preset leaves it open.
    pub fn config(self, vocab_size: usize) -> Config {
        match self {
            Self::Nano => Config::nano(vocab_size),
            Self::Pico => Config::pico(vocab_size),
            Self::Gpt4roi7b => Config::gpt4roi_7b(),
            Self::Gpt4roi7bVitH14 => Config::gpt4roi_7b_vit_h14(),
            Self::Draft => Config::draft(vocab_size),
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
    /// The output directory of a stage, whose last checkpoint counts, or a model: the embedded one, or a directory with
    /// safetensors or torch pickles, whole or in shards, and the tower in a directory of its own.
    pub path: ModelName,
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
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
        let failed = |what: &str, error: toml::de::Error| {
            let message = format!("{what}{}", error.to_string().trim_end());
            TrainError::Stage { path: path.into(), message }
        };
        // Read as it is first: messages then point into the file.
        let mut stage: Self = toml::from_str(&text).map_err(|error| failed("", error))?;
        if !changes.is_empty() {
            let mut table: toml::Table = toml::from_str(&text).map_err(|error| failed("", error))?;
            for change in changes {
                let read = toml::from_str(change).map_err(|error| failed(&format!("change `{change}`: "), error));
                merge(&mut table, read?);
            }
            let all = format!("with the changes `{}`: ", changes.join("`, `"));
            stage = table.try_into().map_err(|error| failed(&all, error))?;
        }
        stage.check()?;
        Ok(stage)
    }

    /// Puts each model where `place_of` finds it by its name, but for the embedded one, which needs no place.
    ///
    /// # Errors
    /// That of `place_of`.
    pub fn locate<E>(
        &mut self,
        place_of: impl Fn(&Path) -> std::result::Result<PathBuf, E>,
    ) -> std::result::Result<(), E> {
        let ModelConfig { like, tokenizer, .. } = &mut self.model;
        let sources = self.init.from.iter_mut().map(|source| &mut source.path);
        like.iter_mut().chain(tokenizer).chain(sources).try_for_each(|name| name.locate(&place_of))
    }

    /// Refuses values that would only fail later, or never.
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &str, expected: &str, got: String| {
            Err(TrainError::Value { stage: self.name.clone(), field: field.into(), expected: expected.into(), got })
        };
        if self.batch == 0 {
            return refuse("batch", "at least 1", "0".into());
        }
        if self.trainable.is_empty() && self.adapter.is_none() {
            return refuse("trainable", "at least one beginning of a name", "none".into());
        }
        if self.clip_norm.is_nan() || self.clip_norm <= 0.0 {
            return refuse("clip_norm", "more than 0", self.clip_norm.to_string());
        }
        let rates = [("optimizer.adamw.lr", Some(self.optimizer.adamw.lr))].into_iter();
        let rates = rates.chain([("optimizer.muon.lr", self.optimizer.muon.as_ref().map(|muon| muon.lr))]);
        for (field, rate) in rates {
            if let Some(rate) = rate.filter(|rate| !rate.is_finite() || *rate < 0.0) {
                return refuse(field, "a number, 0 or more", rate.to_string());
            }
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
        self.check_model()?;
        self.adapter.as_ref().map_or(Ok(()), |adapter| adapter.check(self))?;
        self.check_source()
    }

    fn check_model(&self) -> Result<()> {
        let ModelConfig { preset, like, tokenizer, .. } = &self.model;
        if self.adapter.is_none() && preset.is_some() == like.is_some() {
            let got = if like.is_some() { "both" } else { "neither" };
            return Err(self.refusal("model", "either `preset` or `like`", got));
        }
        let is_draft = *preset == Some(Preset::Draft);
        if is_draft != matches!(self.objective, ObjectiveConfig::Text(_)) || (is_draft && self.adapter.is_some()) {
            let expected = "\"draft\" where the objective is \"text\", without an adapter, and nowhere else";
            return Err(self.refusal("model.preset", expected, if is_draft { "it" } else { "another" }));
        }
        if like.is_some() && tokenizer.is_some() {
            return Err(self.refusal("model.tokenizer", "none beside `like`, which has its own", "one"));
        }
        Ok(())
    }

    /// Scenes know everything about their pictures; records know what was written down.
    fn check_source(&self) -> Result<()> {
        match (&self.scenes, &self.records) {
            (Some(_), None) => self.check_scenes(),
            (None, Some(records)) => self.check_records(records),
            (scenes, _) => {
                let got = if scenes.is_some() { "both" } else { "neither" };
                Err(self.refusal("scenes", "either `[scenes]` or `[records]`", got))
            }
        }
    }

    fn check_scenes(&self) -> Result<()> {
        if self.steps == 0 || self.epochs > 0 {
            let got = format!("{} steps and {} epochs", self.steps, self.epochs);
            return Err(self.refusal("steps", "at least 1, and no `epochs`, since scenes have no end", &got));
        }
        match &self.objective {
            ObjectiveConfig::Conversation(ConverseConfig { questions: None, .. })
            | ObjectiveConfig::Text(TextConfig { questions: None }) => {
                Err(self.refusal("objective.questions", "what is asked about scenes", "none"))
            }
            _ => Ok(()),
        }
    }

    fn check_records(&self, records: &RecordsConfig) -> Result<()> {
        let refuse = |field: &str, expected: &str, got: &str| Err(self.refusal(field, expected, got));
        if (self.steps == 0) == (self.epochs == 0) {
            let got = format!("{} and {}", self.steps, self.epochs);
            return refuse("steps", "either `steps` or `epochs` of at least 1", &got);
        }
        if records.files.is_empty() || records.dialogues_per_picture == 0 {
            return refuse("records", "at least one file, and one dialogue per picture", &format!("{records:?}"));
        }
        if self.init.standardize_over > 0 || self.init.words_over > 0 {
            return refuse("init", "no `standardize_over` and no `words_over`: those are measured over scenes", "some");
        }
        let settings = match &self.objective {
            ObjectiveConfig::Conversation(settings) => settings,
            ObjectiveConfig::Text(TextConfig { questions: None }) => return Ok(()),
            ObjectiveConfig::Text(_) => {
                return refuse("objective.questions", "none: records bring their own questions", "some");
            }
            _ => {
                return refuse(
                    "objective.kind",
                    "\"conversation\" or \"text\", what can be learned from records",
                    "another",
                );
            }
        };
        if settings.needs_kinds() {
            return refuse("objective", "`class` and `distance` of 0: records do not tell kinds", "more");
        }
        if settings.language <= 0.0 {
            return refuse("objective.language", "more than 0", &settings.language.to_string());
        }
        if settings.questions.is_some() {
            return refuse("objective.questions", "none: records bring their own questions", "some");
        }
        Ok(())
    }

    /// Patches of a picture, as conversations about it are written down.
    pub(crate) fn patches(&self, config: &Config) -> usize {
        match self.objective {
            ObjectiveConfig::Text(_) => 0,
            _ => config.vision.patches(),
        }
    }

    pub(crate) fn refusal(&self, field: &str, expected: &str, got: &str) -> TrainError {
        let [field, expected, got] = [field, expected, got].map(String::from);
        TrainError::Value { stage: self.name.clone(), field, expected, got }
    }

    /// Puts as many steps in the place of `epochs` as so many pictures take, rounded up.
    pub(crate) fn count_steps(&mut self, pictures: usize) {
        if self.epochs > 0 {
            let epochs = std::mem::take(&mut self.epochs);
            self.steps = epochs.saturating_mul(pictures as u64).div_ceil(self.batch as u64);
        }
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
    use crate::tiny;

    fn configs() -> Vec<PathBuf> {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let directories = ["", "nano", "ablation"].map(|name| configs.join(name));
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

    /// A place of its own changes no name: what is written down of a stage is what somebody called its models.
    #[test]
    fn models_are_looked_for_by_their_names() {
        let path = configs().into_iter().find(|path| path.ends_with("own-data.toml")).unwrap();
        let from = r#"init.from=[{ path = "org/other@main" }, { path = "./embedded" }]"#;
        let mut stage = StageConfig::open_with(&path, &[from.to_owned()]).unwrap();
        stage.locate(|name| Ok::<_, TrainError>(Path::new("cache").join(name))).unwrap();
        let [like, other, directory] =
            [stage.model.like.as_ref().unwrap(), &stage.init.from[0].path, &stage.init.from[1].path];
        assert_eq!((like, like.place()), (&ModelName::embedded(), Path::new("embedded")));
        assert_eq!((other.to_string().as_str(), other.place()), ("org/other@main", Path::new("cache/org/other@main")));
        assert!(!directory.is_embedded() && directory.place() == Path::new("cache/./embedded"));
        let written = serde_json::to_value(&stage).unwrap();
        assert_eq!(written["init"]["from"][0]["path"], "org/other@main");
        let refused = stage.locate(|name| Err(name.to_owned())).unwrap_err();
        assert_eq!(refused, Path::new("org/other@main"));
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
        assert_eq!((changed.seed, changed.scenes.unwrap().kinds), (9, 5));
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
        let read = "change `seed`: TOML parse error at line 1, column 5\n";
        for (change, says) in [
            ("sed=9", "with the changes `sed=9`: unknown field `sed`"),
            ("seed", read),
            ("scenes.kind=5", "`scenes.kind=5`: unknown field `kind`"),
            ("steps=0", "steps"),
        ] {
            let error = open(&[change]).unwrap_err().to_string();
            assert!(error.contains(says) && !error.ends_with('\n'), "{change}: {error}");
        }
    }

    #[test]
    fn records_have_no_end_of_steps_and_no_kinds() {
        let good = || tiny::stage_of_records(&["a.jsonl".into()]);
        type Spoil = fn(&mut StageConfig);
        let cases: [(&str, Spoil); 8] = [
            ("steps", |stage| stage.epochs = 2),
            ("steps", |stage| stage.steps = 0),
            ("scenes", |stage| stage.scenes = Some(SceneConfig::default())),
            ("records", |stage| stage.records.as_mut().unwrap().files.clear()),
            ("init", |stage| stage.init.words_over = 1),
            ("objective.kind", |stage| stage.objective = tiny::language()),
            ("objective", |stage| stage.objective = tiny::conversation()),
            ("objective.questions", |stage| {
                let ObjectiveConfig::Conversation(settings) = &mut stage.objective else { panic!("it converses") };
                settings.questions = Some(gpt4roi_data::QuestionMix::default());
            }),
        ];
        good().check().unwrap();
        for (field, spoil) in cases {
            let mut stage = good();
            spoil(&mut stage);
            let error = stage.check().unwrap_err();
            assert!(matches!(&error, TrainError::Value { field: got, .. } if got == field), "{field}: {error}");
        }
        let mut stage = StageConfig { steps: 0, epochs: 3, batch: 2, ..good() };
        stage.check().unwrap();
        stage.count_steps(5); // 15 pictures, two at a time
        assert_eq!(stage.steps, 8);
    }

    #[test]
    fn impossible_values_are_refused() {
        let good = || crate::tiny::stage(crate::tiny::patches(), &["vision_model."]);
        type Spoil = fn(&mut StageConfig);
        let cases: [(&str, Spoil); 12] = [
            ("steps", |stage| stage.steps = 0),
            ("batch", |stage| stage.batch = 0),
            ("trainable", |stage| stage.trainable.clear()),
            ("clip_norm", |stage| stage.clip_norm = f64::NAN),
            ("optimizer.adamw.lr", |stage| stage.optimizer.adamw.lr = -1.0),
            ("optimizer.muon.lr", |stage| stage.optimizer.muon.as_mut().unwrap().lr = f64::INFINITY),
            ("checkpoint", |stage| stage.checkpoint.keep = 0),
            ("steps", |stage| stage.epochs = 2),
            ("scenes", |stage| stage.scenes = None),
            ("model", |stage| stage.model.preset = None),
            ("model", |stage| stage.model.like = Some("models/nano".into())),
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
