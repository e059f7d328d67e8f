//! Adapters: what training changed of a model, in files of their own beside it.
//!
//! An adapter is a directory as Hugging Face's PEFT writes it, `adapter_config.json` and `adapter_model.safetensors`.
//! It changes matrices by products of two thin ones ([`LowRank`]) and replaces other tensors whole, such as those of a
//! region module that was trained along. The model's own files stay as they are, quantised ones too.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    layers::Matrix,
    low_rank::LowRank,
    stream::PIECE,
    weights::{
        Checkpoint, Shapes, StoredTensor, TensorSource, TensorStore, WeightsError, WeightsResult, is_leftover_of_model,
        is_leftover_of_tower,
    },
};

/// The configuration's file.
pub const CONFIG: &str = "adapter_config.json";
/// The weights' file.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The weights' file of older adapters.
const PICKLE: &str = "adapter_model.bin";
/// Under which name the weights' file knows the model that they were trained beside. PEFT's own field is a name, which
/// may be another model's by now, and more fields than its own it warns of; what a file of weights says about itself it
/// passes over.
const BASE: &str = "gpt4roi.base";
/// What PEFT puts in front of the model's names.
const PREFIX: &str = "base_model.model.";
/// What PEFT puts into names and the model's own lack.
const WRAPPERS: [&str; 3] = ["base_layer", "default", "modules_to_save"];

/// `adapter_config.json`, as far as it matters here; PEFT's other fields have their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// `LORA`.
    pub peft_type: String,
    /// What the model is for.
    #[serde(default)]
    pub task_type: Option<String>,
    /// The model that was trained.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// The inner dimension of the products.
    pub r: usize,
    /// Their weight, times `r`.
    pub lora_alpha: f64,
    /// The last parts of the names of the layers that are changed.
    #[serde(default)]
    pub target_modules: serde_json::Value,
    /// Names of modules whose tensors are replaced whole.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Whether the products are divided by √r in the place of r.
    #[serde(default)]
    pub use_rslora: bool,
    /// Whether directions and lengths are changed apart, which nothing here does.
    #[serde(default)]
    pub use_dora: bool,
    /// How the factors began. Some ways take out of the model what they put into them, so that they belong to a changed
    /// model.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub init_lora_weights: serde_json::Value,
    /// Whether inputs are pooled first, likewise.
    #[serde(default)]
    pub use_qalora: bool,
    /// Behind which tokens alone the changes hold, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alora_invocation_tokens: Option<Vec<u32>>,
    /// Whether matrices are stored `[input, output]`, which LLaMA's are not.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Other ranks for some layers, which nothing here reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank_pattern: Option<serde_json::Map<String, serde_json::Value>>,
    /// Other weights for some layers, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha_pattern: Option<serde_json::Map<String, serde_json::Value>>,
}

impl AdapterConfig {
    /// Products of inner dimension `rank` for the layers `targets`, and modules that are replaced.
    pub fn new(rank: usize, alpha: f64, targets: &[String], replaced: &[String], base: &str) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base.into()),
            r: rank,
            lora_alpha: alpha,
            target_modules: targets.into(),
            modules_to_save: (!replaced.is_empty()).then(|| replaced.to_vec()),
            use_rslora: false,
            use_dora: false,
            init_lora_weights: serde_json::Value::Null,
            use_qalora: false,
            alora_invocation_tokens: None,
            fan_in_fan_out: false,
            rank_pattern: None,
            alpha_pattern: None,
        }
    }

    /// Reads the configuration of an adapter's directory.
    ///
    /// # Errors
    /// If it is missing or damaged, or of a kind that can't be computed with.
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(|source| Error::file(&path, source))?;
        let failed = |error: serde_json::Error| {
            Error::config(path.display().to_string(), "an adapter's configuration".into(), error.to_string())
        };
        let config: Self = serde_json::from_str(&text).map_err(failed)?;
        config.check(&path)?;
        Ok(config)
    }

    /// What the product of A and B is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.r as f64;
        self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// PiSSA, OLoRA, CorDA and LoftQ, each by the beginning of its name.
    fn begins_with_parts_of_the_model(&self) -> bool {
        let name = self.init_lora_weights.as_str().unwrap_or_default().to_lowercase();
        ["pissa", "olora", "corda", "loftq"].iter().any(|kind| name.starts_with(kind))
    }

    fn check(&self, path: &Path) -> Result<()> {
        let varies = |pattern: &Option<serde_json::Map<_, _>>| pattern.as_ref().is_some_and(|all| !all.is_empty());
        let unlike = [
            ("use_dora", self.use_dora),
            ("init_lora_weights", self.begins_with_parts_of_the_model()),
            ("use_qalora", self.use_qalora),
            ("alora_invocation_tokens", self.alora_invocation_tokens.is_some()),
            ("fan_in_fan_out", self.fan_in_fan_out),
            ("rank_pattern", varies(&self.rank_pattern)),
            ("alpha_pattern", varies(&self.alpha_pattern)),
        ];
        let refused = |field: &str, expected: &str, got: &str| {
            Err(Error::config(format!("{}, \"{field}\"", path.display()), expected.into(), got.into()))
        };
        match unlike.into_iter().find(|(_, set)| *set) {
            _ if self.peft_type != "LORA" => refused("peft_type", "LORA", &self.peft_type),
            _ if self.r == 0 => refused("r", "at least 1", "0"),
            Some((field, _)) => refused(field, "none, as in plain LoRA", "some"),
            None => Ok(()),
        }
    }
}

/// An adapter, which is no more than its files: its numbers were looked through, and are read when they are asked for.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    config: AdapterConfig,
    tensors: Checkpoint,
    /// By the published name of the matrix that changes.
    changes: BTreeMap<String, Change>,
    /// By the published name of the tensor that is replaced: its name here.
    replaced: BTreeMap<String, String>,
}

/// Where the factors of a change stand.
#[derive(Debug)]
struct Change {
    down: String,
    up: String,
    rank: usize,
    /// Of the matrix that changes.
    shape: [usize; 2],
}

impl Adapter {
    /// Opens the directory of an adapter.
    ///
    /// All of its numbers are looked through: one that is none would show in every answer, and as a fault of the model.
    ///
    /// # Errors
    /// If a file is missing or damaged, or if the adapter is of a kind that can't be computed with, changes nothing, or
    /// holds what is no number.
    pub fn open(directory: &Path, device: &Device) -> Result<Self> {
        let adapter = Self::open_headers(directory, device)?;
        adapter.check_numbers()?;
        Ok(adapter)
    }

    /// The same, with no look at its numbers.
    pub(crate) fn open_headers(directory: &Path, device: &Device) -> Result<Self> {
        let config = AdapterConfig::open(directory)?;
        let path = [WEIGHTS, PICKLE].map(|name| directory.join(name)).into_iter().find(|path| path.is_file());
        let path = path.unwrap_or_else(|| directory.join(WEIGHTS));
        let tensors = Checkpoint::open_file(&path, device)?;
        let (mut factors, mut replaced) = (BTreeMap::<_, Factors>::new(), BTreeMap::new());
        for tensor in tensors.stored() {
            match Part::of(&tensor.name) {
                Some(Part::Down(matrix)) => factors.entry(matrix).or_default().down = Some(tensor),
                Some(Part::Up(matrix)) => factors.entry(matrix).or_default().up = Some(tensor),
                Some(Part::Whole(name)) => drop(replaced.insert(name, tensor.name)),
                None => {
                    let expected = format!("`{PREFIX}….lora_A.weight`, `….lora_B.weight`, or a tensor of the model");
                    let what = format!("expected {expected}, got `{}`", tensor.name);
                    return Err(WeightsError::Corrupt { file: path, what }.into());
                }
            }
        }
        let change = |(matrix, factors): (String, Factors)| match factors.change(config.r) {
            Some(change) => Ok((matrix, change)),
            None => {
                let what = format!("`{matrix}`: expected lora_A [{r}, input] and lora_B [output, {r}]", r = config.r);
                Err(WeightsError::Corrupt { file: path.clone(), what })
            }
        };
        let changes: BTreeMap<_, _> = factors.into_iter().map(change).collect::<WeightsResult<_>>()?;
        if changes.is_empty() && replaced.is_empty() {
            let what = "expected changes of matrices, or tensors of the model, got neither".into();
            return Err(WeightsError::Corrupt { file: path, what }.into());
        }
        Ok(Self { config, path, tensors, changes, replaced })
    }

    /// # Errors
    /// Names the first tensor that holds what is no number.
    fn check_numbers(&self) -> WeightsResult<()> {
        for StoredTensor { name, shape, .. } in self.tensors.stored() {
            let count: usize = shape.iter().product();
            for start in (0..count).step_by(PIECE) {
                let values = self.tensors.piece(&name, start..count.min(start + PIECE))?;
                if let Some(value) = values.into_iter().find(|value| !value.is_finite()) {
                    let what = format!("tensor `{name}`: expected finite numbers, got {value}");
                    return Err(WeightsError::Corrupt { file: self.path.clone(), what });
                }
            }
        }
        Ok(())
    }

    /// Refuses an adapter that changes a matrix which is not among these, or has another shape, or that brings a tensor
    /// which is neither among these nor among what the network asks for. Of a model without a region module, an adapter
    /// may bring one.
    ///
    /// # Errors
    /// Names the first.
    fn check(&self, stored: &Shapes, needed: impl FnOnce() -> Result<Shapes>) -> Result<()> {
        let refused = |expected: &str, what: &str, shapes: &Shapes, name: &str, own: &[usize]| {
            let got = match shapes.get(name) {
                Some(shape) => format!("{what} `{name}` {own:?}, which is {shape:?}"),
                None => format!("{what} `{name}`, which it has not"),
            };
            Err(Error::config(self.path.display().to_string(), expected.into(), got))
        };
        for (name, Change { shape, .. }) in &self.changes {
            if stored.get(name).is_none_or(|stored| stored[..] != *shape) {
                return refused("changes of the model's own matrices", "one of", stored, name, shape);
            }
        }
        let any_depth = usize::MAX; // a tower's later layers are not left over if they are brought along
        let is_leftover = |name: &str| is_leftover_of_model(name) || is_leftover_of_tower(name, any_depth);
        let brought = self.replaced().filter(|tensor| stored.get(&tensor.name) != Some(&tensor.shape));
        let brought: Vec<_> = brought.filter(|tensor| !is_leftover(&tensor.name)).collect();
        if brought.is_empty() {
            return Ok(());
        }
        let needed = needed()?;
        match brought.iter().find(|tensor| needed.get(&tensor.name) != Some(&tensor.shape)) {
            Some(StoredTensor { name, shape, .. }) => refused("tensors of the model", "one", &needed, name, shape),
            None => Ok(()),
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The matrices that are changed, under their published names: rows and columns of each.
    pub fn changed(&self) -> impl Iterator<Item = (&str, [usize; 2])> {
        self.changes.iter().map(|(name, change)| (name.as_str(), change.shape))
    }

    /// [`Fingerprint::of_vectors`](crate::fingerprint::Fingerprint::of_vectors) of the model that it was trained beside,
    /// if that was written down.
    pub fn base(&self) -> Option<&str> {
        self.tensors.note(BASE)
    }

    /// The tensors that are replaced, under their published names.
    pub fn replaced(&self) -> impl Iterator<Item = StoredTensor> {
        let stored = self.tensors.stored().into_iter();
        let here: BTreeMap<_, _> = stored.map(|tensor| (tensor.name.clone(), tensor)).collect();
        let renamed = |(name, stored): (&String, StoredTensor)| StoredTensor { name: name.clone(), ..stored };
        self.replaced.iter().filter_map(move |(name, own)| Some((name, here.get(own)?.clone()))).map(renamed)
    }

    /// The change of a matrix, if it has one.
    fn change(&self, name: &str) -> WeightsResult<Option<LowRank>> {
        let Some(Change { down, up, rank, shape: [output, input] }) = self.changes.get(name) else { return Ok(None) };
        let (down, up) = (self.tensors.tensor(down, &[*rank, *input])?, self.tensors.tensor(up, &[*output, *rank])?);
        Ok(Some(LowRank { down, up, scale: self.config.scale() }))
    }
}

/// The factors of one change, as far as they were met.
#[derive(Default)]
struct Factors {
    down: Option<StoredTensor>,
    up: Option<StoredTensor>,
}

impl Factors {
    /// What they make up, if both are there and have this rank.
    fn change(self, expected: usize) -> Option<Change> {
        let (down, up) = (self.down?, self.up?);
        match (&down.shape[..], &up.shape[..]) {
            (&[rank, input], &[output, inner]) if [rank, inner] == [expected; 2] => {
                Some(Change { down: down.name, up: up.name, rank, shape: [output, input] })
            }
            _ => None,
        }
    }
}

/// What a tensor of an adapter's file is.
enum Part {
    /// A of the change of this matrix.
    Down(String),
    /// B of it.
    Up(String),
    /// What replaces this tensor.
    Whole(String),
}

impl Part {
    fn of(stored: &str) -> Option<Self> {
        let own = model_name(stored)?.split('.').filter(|part| !WRAPPERS.contains(part));
        let own = own.collect::<Vec<_>>().join(".");
        if let Some(layer) = own.strip_suffix(".lora_A.weight") {
            return Some(Self::Down(format!("{layer}.weight")));
        }
        if let Some(layer) = own.strip_suffix(".lora_B.weight") {
            return Some(Self::Up(format!("{layer}.weight")));
        }
        (!own.contains(".lora_")).then_some(Self::Whole(own))
    }
}

/// What the weights' file of an adapter says about itself: [`Adapter::base`], if it is known. More would stand in another
/// order each time, and no two files would be the same.
pub fn notes(base: Option<&str>) -> HashMap<String, String> {
    base.map(|base| (BASE.to_owned(), base.to_owned())).into_iter().collect()
}

/// The name under which an adapter's file has a tensor of a model, or a factor `….lora_A.weight` of a change.
pub fn stored_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The name that [`stored_name`] was made of, if it was.
pub fn model_name(stored: &str) -> Option<&str> {
    stored.strip_prefix(PREFIX)
}

/// A store with the changes of an adapter. PEFT may write down what it changes, too: then that is what changes.
struct Adapted {
    base: Arc<dyn TensorStore>,
    adapter: Arc<Adapter>,
    of_tower: bool,
}

/// Language model, projector and region module with the changes of an adapter, and the tower likewise.
///
/// `needed` says what the network asks for, and is only asked if that matters.
///
/// # Errors
/// If the adapter changes what neither has, or brings what the network does not ask for.
pub(crate) fn adapted(
    model: Arc<dyn TensorStore>,
    tower: Arc<dyn TensorStore>,
    adapter: Adapter,
    needed: impl FnOnce() -> Result<Shapes>,
) -> Result<(Arc<dyn TensorStore>, Arc<dyn TensorStore>)> {
    let stored = model.stored().into_iter().chain(tower.stored());
    adapter.check(&stored.map(|tensor| (tensor.name, tensor.shape)).collect(), needed)?;
    let adapter = Arc::new(adapter);
    let changed = |base, of_tower| Arc::new(Adapted { base, adapter: adapter.clone(), of_tower });
    Ok((changed(model, false), changed(tower, true)))
}

impl TensorSource for Adapted {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        let tensor = match self.adapter.replaced.get(name) {
            Some(here) => self.adapter.tensors.tensor(here, shape)?,
            None => self.base.tensor(name, shape)?,
        };
        match self.adapter.change(name)? {
            Some(change) => change.added_to(&tensor).map_err(failed(name)),
            None => Ok(tensor),
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> WeightsResult<Matrix> {
        if self.adapter.replaced.contains_key(name) {
            return self.tensor(name, &shape).map(Matrix::Dense);
        }
        match (self.base.matrix(name, shape)?, self.adapter.change(name)?) {
            (matrix, None) => Ok(matrix),
            (Matrix::Dense(weight), Some(change)) => change.added_to(&weight).map(Matrix::Dense).map_err(failed(name)),
            (packed, Some(change)) => Ok(packed.changed_by(change)),
        }
    }
}

impl TensorStore for Adapted {
    fn stored(&self) -> Vec<StoredTensor> {
        let replaced = self.adapter.replaced().filter(|tensor| is_of_tower(&tensor.name) == self.of_tower);
        let all = self.base.stored().into_iter().chain(replaced);
        // What is replaced comes later, and stays.
        let all: BTreeMap<_, _> = all.map(|tensor| (tensor.name.clone(), tensor)).collect();
        all.into_values().collect()
    }

    fn piece(&self, name: &str, elements: Range<usize>) -> WeightsResult<Vec<f32>> {
        let mut values = match self.adapter.replaced.get(name) {
            Some(here) => self.adapter.tensors.piece(here, elements.clone())?,
            None => self.base.piece(name, elements.clone())?,
        };
        if let Some(change) = self.adapter.change(name)? {
            let change = change.piece(elements).map_err(failed(name))?;
            values.iter_mut().zip(change).for_each(|(value, change)| *value += change);
        }
        Ok(values)
    }
}

fn is_of_tower(name: &str) -> bool {
    name.starts_with("vision_model.")
}

fn failed(name: &str) -> impl Fn(candle_core::Error) -> WeightsError {
    move |source| WeightsError::Tensor { name: name.to_owned(), source }
}
