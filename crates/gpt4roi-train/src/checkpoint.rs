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
use gpt4roi::Config;
use serde::{Deserialize, Serialize};

use crate::{
    config::Source,
    error::{Result, TrainError},
    parameters::begins,
};

/// The language model, the projector and the region module.
const MODEL: &str = "model.safetensors";
/// The vision tower.
const TOWER: &str = "vision_tower/model.safetensors";
/// Moments and auxiliary parameters.
const STATE: &str = "trainer.safetensors";
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
    pub parameters: BTreeMap<String, Tensor>,
    /// The optimizer's moments.
    pub moments: BTreeMap<String, Tensor>,
    /// Where the trainer stands.
    pub counters: Counters,
}

/// Files that belong to a model but not to a step.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The dimensions.
    pub config: Config,
    /// A directory with the tokenizer's files.
    pub tokenizer: Option<PathBuf>,
}

impl Checkpoint {
    /// Writes `step-…` into `directory` and removes all but the last `keep` checkpoints there.
    pub fn write(&self, directory: &Path, files: &ModelFiles, keep: usize) -> Result<PathBuf> {
        let name = format!("step-{:08}", self.counters.step);
        let (target, temporary) = (directory.join(&name), directory.join(format!(".{name}.partial")));
        remove(&temporary)?;
        create(&temporary.join("vision_tower"))?;
        write_model(&temporary, &self.parameters, files, DType::F32)?;
        let mut state: BTreeMap<String, Tensor> = self.moments.clone();
        state.extend(self.parameters.iter().filter(|(name, _)| is_aux(name)).map(|(n, t)| (n.clone(), t.clone())));
        write_tensors(&temporary.join(STATE), &state)?;
        write_json(&temporary.join(COUNTERS), &serde_json::to_value(&self.counters).unwrap_or_default())?;
        sync_directory(&temporary.join("vision_tower"))?;
        sync_directory(&temporary)?;
        remove(&target)?; // the same step, written before a resume from an earlier one
        fs::rename(&temporary, &target).map_err(|source| TrainError::file(&target, source))?;
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
        let (parameters, moments) = read_parameters(path)?;
        Ok(Self { parameters, moments, counters })
    }
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
        if entry.file_name().to_string_lossy().starts_with("step-") {
            found.push(entry.path());
        }
    }
    found.sort(); // the numbers have leading zeros
    Ok(found)
}

/// The tensors that a stage starts from.
///
/// # Errors
/// If a source is no checkpoint, no model and no output of a stage.
pub fn read_sources(sources: &[Source], fresh: &[String]) -> Result<BTreeMap<String, Tensor>> {
    let mut taken = BTreeMap::new();
    for source in sources {
        let path = last_or_self(&source.path)?;
        let (parameters, _) = read_parameters(&path)?;
        if parameters.is_empty() {
            return Err(TrainError::checkpoint(path, "neither a model, nor a stage's output with a checkpoint"));
        }
        let wanted = |name: &str| (source.take.is_empty() || begins(name, &source.take)) && !begins(name, fresh);
        taken.extend(parameters.into_iter().filter(|(name, _)| wanted(name)));
    }
    Ok(taken)
}

/// The last checkpoint of the stage whose output directory `path` is, or `path` itself.
pub fn last_or_self(path: &Path) -> Result<PathBuf> {
    Ok(complete(&path.join("checkpoints"))?.pop().unwrap_or_else(|| path.into()))
}

/// Parameters, and what else the trainer kept.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

pub(crate) fn read_parameters(path: &Path) -> Result<(Tensors, Tensors)> {
    let mut parameters = BTreeMap::new();
    for file in [MODEL, TOWER] {
        parameters.extend(read_tensors(&path.join(file))?);
    }
    let (aux, moments) = read_tensors(&path.join(STATE))?.into_iter().partition(|(name, _)| is_aux(name));
    parameters.extend::<Tensors>(aux);
    Ok((parameters, moments))
}

/// A file's tensors in f32; none if there is no such file.
fn read_tensors(path: &Path) -> Result<Tensors> {
    if !path.exists() {
        return Ok(Tensors::new());
    }
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|error| TrainError::checkpoint(path, error.to_string()))?;
    tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?))).collect()
}

/// `config.json`, the weights, the tower and the tokenizer.
pub(crate) fn write_model(directory: &Path, parameters: &Tensors, files: &ModelFiles, dtype: DType) -> Result<()> {
    let (tower, rest): (Tensors, Tensors) = parameters
        .iter()
        .filter(|(name, _)| !is_aux(name))
        .map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?)))
        .collect::<Result<Tensors>>()?
        .into_iter()
        .partition(|(name, _)| name.starts_with("vision_model."));
    create(&directory.join("vision_tower"))?;
    write_tensors(&directory.join(TOWER), &tower)?;
    write_json(&directory.join("vision_tower/config.json"), &files.config.tower_to_json())?;
    if !rest.is_empty() {
        write_tensors(&directory.join(MODEL), &rest)?;
        write_json(&directory.join("config.json"), &files.config.to_json())?;
    }
    if let Some(tokenizer) = &files.tokenizer {
        for name in ["tokenizer.model", "added_tokens.json"] {
            let path = tokenizer.join(name);
            let bytes = fs::read(&path).map_err(|source| TrainError::file(&path, source))?;
            write(&directory.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// Parameters that a stage needs and the model does not.
fn is_aux(name: &str) -> bool {
    name.starts_with("aux.")
}

fn write_tensors(path: &Path, tensors: &Tensors) -> Result<()> {
    let bytes = safetensors::serialize(tensors, None::<HashMap<_, _>>)
        .map_err(|error| TrainError::checkpoint(path, error.to_string()))?;
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
    File::open(directory).and_then(|file| file.sync_all()).map_err(|source| TrainError::file(directory, source))
}
