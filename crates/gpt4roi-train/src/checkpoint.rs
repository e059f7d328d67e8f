//! Checkpoints: model directories in the published layout, with what the trainer needs to go on.
//!
//! A checkpoint is written into a temporary directory, every file and the directory are synced, and
//! then it is renamed. A directory named `step-…` is therefore complete, whenever the process died.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use gpt4roi::{
    Config,
    adapter::{self, AdapterConfig, model_name, stored_name},
    config::LlamaConfig,
    model::{ModelFiles as Files, tower_directory},
    nano::NANO,
    staging::{self, rename_directory},
    tokenizer::Tokenizer,
    weights::{self, TensorSource, WeightsError, WeightsResult, is_leftover_of_model, is_leftover_of_tower},
};
use serde::{Deserialize, Serialize};

use crate::{
    config::{InitConfig, StageConfig},
    error::{Result, TrainError},
    model_name::ModelName,
    parameters::{begins, check_prefixes},
};

/// The language model, the projector and the region module.
const MODEL: &str = "model.safetensors";
/// The vision tower.
const TOWER: &str = "vision_tower/model.safetensors";
/// Moments and auxiliary parameters.
const STATE: &str = "trainer.safetensors";
/// Begins the name of a complete checkpoint; its step follows.
const STEP: &str = "step-";
/// Counters.
const COUNTERS: &str = "trainer.json";

/// Where the trainer stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Updates made.
    pub updates: u64,
    /// Steps skipped for a gradient that was not finite.
    pub skipped: u64,
    /// How many of these were the last ones.
    pub skipped_in_a_row: u32,
    /// Seconds of training, earlier runs included.
    pub seconds: f64,
    /// The stage, as [`crate::StageConfig::identity`] gives it.
    pub stage: serde_json::Value,
}

/// A checkpoint in memory.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// All parameters by name; `vision_model.…` and `aux.…` go to files of their own.
    pub parameters: Tensors,
    /// The optimizer's moments, as [`crate::optimizer::Optimizer::state`] names them.
    pub moments: Tensors,
    /// Where the trainer stands.
    pub counters: Counters,
}

/// What a checkpoint is, besides numbers.
#[derive(Clone, Debug)]
pub enum Form {
    /// A model.
    Model(ModelFiles),
    /// An adapter of a model that lies elsewhere.
    Adapter(AdapterFiles),
    /// A language model alone.
    Language(LanguageFiles),
}

/// Files that belong to a model but not to a step.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The dimensions.
    pub config: Config,
    /// The tokenizer, unless the model is a tower alone.
    pub tokenizer: Option<TokenizerFiles>,
}

/// What belongs to an adapter but not to a step.
#[derive(Clone, Debug)]
pub struct AdapterFiles {
    /// How what it learned is put to use.
    pub config: AdapterConfig,
    /// The model that it is trained beside, as [`adapter::Adapter::base`] gives it.
    pub base: Option<String>,
}

/// What belongs to a language model alone but not to a step.
#[derive(Clone, Debug)]
pub struct LanguageFiles {
    /// The dimensions.
    pub config: LlamaConfig,
    /// The tokenizer.
    pub tokenizer: TokenizerFiles,
}

/// The tokenizer's files. They are in memory, since a run may outlive the directory that it took them from.
#[derive(Clone, Debug)]
pub struct TokenizerFiles {
    /// `tokenizer.model`.
    pub model: Vec<u8>,
    /// `added_tokens.json`.
    pub added_tokens: String,
}

const TOKENIZER: &str = "tokenizer.model";
const ADDED_TOKENS: &str = "added_tokens.json";

impl TokenizerFiles {
    /// Those of a model, which is no pair of GGUF files: they have the tokenizer in another form.
    ///
    /// # Errors
    /// If it is one, or if a file can't be read.
    pub fn of(files: &Files) -> Result<Self> {
        match files {
            Files::Embedded(files) => {
                Ok(Self { model: files.tokenizer.to_vec(), added_tokens: files.added_tokens.to_owned() })
            }
            Files::Directory(directory) => Self::read(directory),
            Files::Gguf { language: file, .. } | Files::Adapted { adapter: file, .. } => {
                let expected = "expected a model directory in the published layout";
                Err(TrainError::checkpoint(file, format!("{expected}; beside GGUF files an adapter can be trained")))
            }
        }
    }

    /// Reads the files of a directory.
    pub fn read(directory: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read(&path).map_err(|source| TrainError::file(path, source))
        };
        let added_tokens = String::from_utf8_lossy(&read(ADDED_TOKENS)?).into_owned();
        Ok(Self { model: read(TOKENIZER)?, added_tokens })
    }

    /// The tokenizer that they describe.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::from_bytes(&self.model, &self.added_tokens);
        tokenizer.map_err(|error| gpt4roi::Error::from(error).into())
    }

    fn write(&self, directory: &Path) -> Result<()> {
        write(&directory.join(TOKENIZER), &self.model)?;
        write(&directory.join(ADDED_TOKENS), self.added_tokens.as_bytes())
    }
}

impl Checkpoint {
    /// Writes `step-…` into `directory` and removes all but the last `keep` checkpoints there.
    pub fn write(&self, directory: &Path, form: &Form, keep: usize) -> Result<PathBuf> {
        let name = format!("{STEP}{:08}", self.counters.step);
        let (target, temporary) = (directory.join(&name), directory.join(format!(".{name}.partial")));
        remove(&temporary)?;
        create(&temporary)?;
        form.write(&temporary, &self.parameters, DType::F32)?;
        let mut state = self.moments.clone();
        state.extend(self.parameters.iter().filter(|(name, _)| is_aux(name)).map(|(n, t)| (n.clone(), t.clone())));
        write_tensors(&temporary.join(STATE), &state, None)?;
        write_json(&temporary.join(COUNTERS), &serde_json::to_value(&self.counters).unwrap_or_default())?;
        sync_directory(&temporary)?;
        remove(&target)?; // the same step, written before a resume from an earlier one
        rename_directory(&temporary, &target).map_err(|source| TrainError::file(&target, source))?;
        sync_directory(directory)?;
        for old in complete(directory)?.iter().rev().skip(keep) {
            remove(old)?;
        }
        Ok(target)
    }

    /// Reads all of a checkpoint.
    pub fn read(path: &Path) -> Result<Self> {
        let counters = path.join(COUNTERS);
        let text = fs::read_to_string(&counters).map_err(|source| TrainError::file(&counters, source))?;
        let counters =
            serde_json::from_str(&text).map_err(|error| TrainError::checkpoint(counters, error.to_string()))?;
        let state = open_file(&path.join(STATE))?.map(|state| read_tensors(&state, is_moment)).transpose()?;
        Ok(Self { parameters: read_parameters(path)?, moments: state.unwrap_or_default(), counters })
    }
}

/// Refuses a checkpoint that another stage wrote.
pub(crate) fn refuse_other_stage(path: &Path, counters: &Counters, stage: &StageConfig) -> Result<()> {
    let identity = as_written(&stage.identity());
    if counters.stage == identity {
        return Ok(());
    }
    let field = first_difference(&counters.stage, &identity);
    Err(TrainError::checkpoint(path, format!("it belongs to another stage: `{field}` differs")))
}

/// What reading a value back gives: a number's last digit may be another.
fn as_written(value: &serde_json::Value) -> serde_json::Value {
    serde_json::from_str(&value.to_string()).unwrap_or_default()
}

/// The first field in which two stages differ.
fn first_difference(a: &serde_json::Value, b: &serde_json::Value) -> String {
    let names = |value: &serde_json::Value| {
        value.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    let differs = |name: &String| a.get(name) != b.get(name);
    names(a).into_iter().chain(names(b)).find(differs).unwrap_or_default()
}

/// The complete checkpoints in `directory`, oldest first; none if it does not exist.
pub fn complete(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(TrainError::file(directory, source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| TrainError::file(directory, source))?;
        found.extend(step_of(&entry.path()).map(|step| (step, entry.path())));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The step of a checkpoint, by the directory's name.
pub(crate) fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(STEP)?.parse().ok()
}

/// The tensors that the stage of this name starts from, in f32.
///
/// # Errors
/// If a source is no checkpoint, no model and no output of a stage, if a file of it is damaged, or if it has nothing of
/// what is to be taken.
pub fn read_sources(stage: &str, init: &InitConfig) -> Result<Tensors> {
    let mut taken = Tensors::new();
    for source in &init.from {
        let files = source_files(&source.path)?;
        let names = || files.iter().flat_map(|file| file.tensors().map(|(name, ..)| model_name(name).unwrap_or(name)));
        check_prefixes(stage, "init.from.take", &source.take, names)?;
        let wanted = |name: &str| (source.take.is_empty() || begins(name, &source.take)) && !begins(name, &init.fresh);
        for file in &files {
            taken.extend(read_tensors(file, |name| is_parameter(name) && wanted(name))?);
        }
    }
    Ok(taken)
}

/// Where the tensors stand that a stage begins with.
fn source_files(name: &ModelName) -> Result<Vec<weights::Checkpoint>> {
    if name.is_embedded() {
        let open = |(name, bytes)| weights::Checkpoint::from_bytes(name, bytes, &Device::Cpu);
        return Ok([(MODEL, NANO.model), (TOWER, NANO.tower)].map(open).into_iter().collect::<WeightsResult<_>>()?);
    }
    let path = last_or_self(name.place())?;
    match parameter_files(&path)? {
        files if files.is_empty() => {
            Err(TrainError::checkpoint(path, "neither a model, nor a stage's output with a checkpoint"))
        }
        files => Ok(files),
    }
}

/// The last checkpoint of the stage whose output directory `path` is, or `path` itself.
pub fn last_or_self(path: &Path) -> Result<PathBuf> {
    Ok(complete(&path.join("checkpoints"))?.pop().unwrap_or_else(|| path.into()))
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// All parameters of a model directory or of a checkpoint.
pub(crate) fn read_parameters(path: &Path) -> Result<Tensors> {
    let mut parameters = Tensors::new();
    for file in parameter_files(path)? {
        parameters.extend(read_tensors(&file, is_parameter)?);
    }
    Ok(parameters)
}

/// Where the parameters of a directory stand: the model's files, the tower's or an adapter's, and the trainer's. Of a
/// published model the last are missing, of a stage that trains the tower alone the first.
fn parameter_files(path: &Path) -> Result<Vec<weights::Checkpoint>> {
    let tower = tower_directory(path).unwrap_or_else(|_| path.join("vision_tower"));
    let of_trainer = [adapter::WEIGHTS, STATE].map(|name| open_file(&path.join(name)));
    let found = [open_weights(path), open_weights(&tower)].into_iter().chain(of_trainer);
    Ok(found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The weights of a directory, whole, in shards or pickled; none if it holds none.
fn open_weights(directory: &Path) -> Result<Option<weights::Checkpoint>> {
    match weights::Checkpoint::open(directory, &Device::Cpu) {
        Err(WeightsError::NoWeights { .. }) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

fn open_file(path: &Path) -> Result<Option<weights::Checkpoint>> {
    Ok(path.is_file().then(|| weights::Checkpoint::open_file(path, &Device::Cpu)).transpose()?)
}

/// The tensors that are wanted, in f32, by the model's names, also where they stand in an adapter.
fn read_tensors(file: &weights::Checkpoint, wanted: impl Fn(&str) -> bool) -> Result<Tensors> {
    let entries = file.tensors().map(|(stored, entry, _)| (model_name(stored).unwrap_or(stored), stored, entry));
    let wanted = entries.filter(|(name, ..)| wanted(name));
    wanted.map(|(name, stored, entry)| Ok((name.to_owned(), file.tensor(stored, &entry.shape)?))).collect()
}

/// Whether a network could ask for this tensor: it is no moment, and nothing that published files carry for others.
fn is_parameter(name: &str) -> bool {
    let any_depth = usize::MAX; // a stage may read all of a tower's layers
    !(is_moment(name) || is_leftover_of_model(name) || is_leftover_of_tower(name, any_depth))
}

impl Form {
    /// Writes all but the trainer's state.
    pub(crate) fn write(&self, directory: &Path, parameters: &Tensors, dtype: DType) -> Result<()> {
        match self {
            Self::Model(files) => write_model(directory, parameters, files, dtype),
            Self::Adapter(files) => write_adapter(directory, parameters, files, dtype),
            Self::Language(files) => write_language(directory, parameters, files, dtype),
        }
    }
}

/// `adapter_config.json` and the weights.
fn write_adapter(directory: &Path, parameters: &Tensors, files: &AdapterFiles, dtype: DType) -> Result<()> {
    let own = parameters.iter().filter(|(name, _)| !is_aux(name));
    let own = own.map(|(name, tensor)| Ok((stored_name(name), tensor.to_dtype(dtype)?))).collect::<Result<_>>()?;
    write_tensors(&directory.join(adapter::WEIGHTS), &own, Some(adapter::notes(files.base.as_deref())))?;
    write_json(&directory.join(adapter::CONFIG), &serde_json::to_value(&files.config).unwrap_or_default())
}

/// `config.json`, the weights and the tokenizer.
fn write_language(directory: &Path, parameters: &Tensors, files: &LanguageFiles, dtype: DType) -> Result<()> {
    let tensors = parameters.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?)));
    write_tensors(&directory.join(MODEL), &tensors.collect::<Result<_>>()?, None)?;
    write_json(&directory.join("config.json"), &files.config.to_json())?;
    files.tokenizer.write(directory)
}

/// `config.json`, the weights, the tower and the tokenizer.
fn write_model(directory: &Path, parameters: &Tensors, files: &ModelFiles, dtype: DType) -> Result<()> {
    let (tower, rest): (Tensors, Tensors) = parameters
        .iter()
        .filter(|(name, _)| !is_aux(name))
        .map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?)))
        .collect::<Result<Tensors>>()?
        .into_iter()
        .partition(|(name, _)| name.starts_with("vision_model."));
    create(&directory.join("vision_tower"))?;
    write_tensors(&directory.join(TOWER), &tower, None)?;
    write_json(&directory.join("vision_tower/config.json"), &files.config.tower_to_json())?;
    if !rest.is_empty() {
        write_tensors(&directory.join(MODEL), &rest, None)?;
        write_json(&directory.join("config.json"), &files.config.to_json())?;
    }
    files.tokenizer.as_ref().map_or(Ok(()), |tokenizer| tokenizer.write(directory))?;
    sync_directory(&directory.join("vision_tower"))
}

/// Parameters that a stage needs and the model does not.
fn is_aux(name: &str) -> bool {
    name.starts_with("aux.")
}

/// What the optimizer remembers of a parameter.
fn is_moment(name: &str) -> bool {
    name.starts_with("first.") || name.starts_with("second.")
}

/// Writes tensors, and what their file says about itself.
fn write_tensors(path: &Path, tensors: &Tensors, notes: Option<HashMap<String, String>>) -> Result<()> {
    let bytes =
        safetensors::serialize(tensors, notes).map_err(|error| TrainError::checkpoint(path, error.to_string()))?;
    write(path, &bytes)
}

fn write_json(path: &Path, json: &serde_json::Value) -> Result<()> {
    write(path, format!("{json:#}\n").as_bytes())
}

/// Writes and syncs a file.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let attempt = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    attempt().map_err(|source| TrainError::file(path, source))
}

/// Replaces a file as a whole: a reader sees the old one or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("partial");
    write(&temporary, bytes)?;
    fs::rename(&temporary, path).map_err(|source| TrainError::file(path, source))
}

pub(crate) fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|source| TrainError::file(directory, source))
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(TrainError::file(directory, error)),
        _ => Ok(()),
    }
}

/// Makes renames and new names in a directory survive a power cut.
fn sync_directory(directory: &Path) -> Result<()> {
    staging::sync_directory(directory).map_err(|source| TrainError::file(directory, source))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::config::Source;

    fn tensors(names: &[&str]) -> Tensors {
        let value = Tensor::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        names.iter().map(|name| (name.to_string(), value.clone())).collect()
    }

    fn read(from: &[(&Path, &[&str])], fresh: &[&str]) -> Result<Tensors> {
        let owned = |prefixes: &[&str]| prefixes.iter().map(|prefix| prefix.to_string()).collect();
        let from = from.iter().map(|(path, take)| Source { path: path.into(), take: owned(take) }).collect();
        read_sources("stage", &InitConfig { from, fresh: owned(fresh), ..InitConfig::default() })
    }

    /// A model of two shards, with a tower that torch has saved; the pickle also holds a table of positions.
    fn published(directory: &Path) {
        let name = |number| format!("model-0000{number}-of-00002.safetensors");
        write_tensors(&directory.join(name(1)), &tensors(&["lm_head.weight", "model.norm.weight"]), None).unwrap();
        write_tensors(&directory.join(name(2)), &tensors(&["model.layers.0.self_attn.rotary_emb.inv_freq"]), None)
            .unwrap();
        let map = json!({
            "lm_head.weight": name(1), "model.norm.weight": name(1),
            "model.layers.0.self_attn.rotary_emb.inv_freq": name(2),
        });
        write_json(&directory.join("model.safetensors.index.json"), &json!({ "weight_map": map })).unwrap();
        create(&directory.join("vision_tower")).unwrap();
        let saved = concat!(env!("CARGO_MANIFEST_DIR"), "/../gpt4roi/tests/data/torch.bin");
        fs::copy(saved, directory.join("vision_tower/pytorch_model.bin")).unwrap();
    }

    #[test]
    fn a_source_may_lie_in_shards_and_in_a_pickle() {
        let directory = tempfile::tempdir().unwrap();
        published(directory.path());
        let take = ["model.", "lm_head.", "half", "single"];
        let taken = read(&[(directory.path(), &take)], &["lm_head."]).unwrap();
        let names: BTreeSet<&str> = taken.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            BTreeSet::from(["model.norm.weight", "half", "single"]),
            "neither leftovers nor what is fresh"
        );
        assert_eq!(taken["model.norm.weight"].to_vec1::<f32>().unwrap(), [1.0, -2.0]);
        assert_eq!((taken["half"].dtype(), taken["half"].dims()), (DType::F32, &[2, 3, 4][..]));
    }

    #[test]
    fn a_later_source_replaces_what_an_earlier_one_had() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write_tensors(&first.path().join(MODEL), &tensors(&["a", "b"]), None).unwrap();
        let other = [("b".to_owned(), Tensor::new(&[7f32], &Device::Cpu).unwrap())];
        write_tensors(&second.path().join(MODEL), &other.into(), None).unwrap();
        let taken = read(&[(first.path(), &[]), (second.path(), &[])], &[]).unwrap();
        assert_eq!(taken["a"].dims(), [2]);
        assert_eq!(taken["b"].to_vec1::<f32>().unwrap(), [7.0]);
    }

    #[test]
    fn a_source_without_weights_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let error = read(&[(directory.path(), &[])], &[]).unwrap_err().to_string();
        assert!(error.contains("neither a model") && error.contains(&*directory.path().to_string_lossy()), "{error}");
    }

    #[test]
    fn a_beginning_that_a_source_does_not_have_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        write_tensors(&directory.path().join(MODEL), &tensors(&["model.a"]), None).unwrap();
        assert_eq!(read(&[(directory.path(), &["model."])], &[]).unwrap().len(), 1);
        let error = read(&[(directory.path(), &["model.", "modle."])], &[]).unwrap_err().to_string();
        assert!(error.contains("init.from.take") && error.contains("`modle.`"), "{error}");
    }
}
