//! From the files that others publish to a model that opens: merged, renamed, rounded, packed.
//!
//! [`Parts`] says where every tensor comes from; nothing is read before it is written, and then a
//! piece at a time, so that a checkpoint of any size passes through little memory. Output appears
//! whole or not at all.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Device;
use serde_json::{Value, json};

pub use crate::clip_names::Tower;
use crate::{
    adapter::{Adapter, adapted},
    config::Config,
    error::Result,
    gguf_export::{write_language, write_projector},
    merge::{merge, with_projector},
    model::{Network, tower_directory},
    quantize::{Quantization, RoundingError},
    sentencepiece::SentencePiece,
    shards::{SHARD_BYTES, write_safetensors},
    staging::{Staging, file_error},
    stream::{Streamed, StreamedTensor},
    tokenizer::{Tokenizer, TokenizerError},
    weights::{
        Checkpoint, LoadReport, Shapes, StoredTensor, TensorStore, WeightsError, is_leftover_of_model,
        is_leftover_of_tower,
    },
};

/// The result of a conversion's steps.
pub type ConvertResult<T> = std::result::Result<T, ConvertError>;

/// What can't be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// Two sets of tensors that belong together do not fit.
    #[error("tensor `{name}` of the {owner} has no counterpart in the {other}")]
    NoCounterpart {
        /// Its full name.
        name: String,
        /// Who has it.
        owner: &'static str,
        /// Who lacks it.
        other: &'static str,
    },
    /// A number that the target can't hold.
    #[error("tensor `{name}` holds {value}, which is no number of {kind}")]
    NotFinite {
        /// Its full name.
        name: String,
        /// The number.
        value: f32,
        /// What it was to become.
        kind: &'static str,
    },
    /// A file of weights that is no CLIP tower.
    #[error("{}: expected the tensors of a CLIP tower, `vision_model.…` or `visual.…`, got none", path.display())]
    UnknownTower {
        /// Which file or directory.
        path: PathBuf,
    },
    /// Something that the target needs was not given.
    #[error("the {missing} is missing, which {target} needs")]
    Incomplete {
        /// What.
        missing: &'static str,
        /// What for.
        target: &'static str,
    },
    /// There is something at the place of the output already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The place.
        path: PathBuf,
    },
    /// Another process is writing the same output.
    #[error("{} is being written by another process", path.display())]
    InUse {
        /// The place.
        path: PathBuf,
    },
    /// What would be replaced is no model, or has something beside it.
    #[error("{}: expected nothing but a model to replace, got {}", path.display(), others.join(", "))]
    Foreign {
        /// The place.
        path: PathBuf,
        /// What lies there and belongs to no model, a few of them.
        others: Vec<String>,
    },
    /// A checkpoint can't be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A configuration is no JSON, or lacks a field.
    #[error("{}: {what}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The tokenizer's files are missing or damaged.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// What happens to an output that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfExists {
    /// It stays, and the conversion is refused.
    Refuse,
    /// It is replaced once the new one is complete, if it is a model and nothing else.
    Replace,
}

/// Everything that makes up a model, unread.
#[derive(Debug)]
pub struct Parts {
    /// Language model, projector and region module, by their published names.
    pub model: Vec<StreamedTensor>,
    /// `config.json`.
    pub config: Value,
    /// The tokenizer's files and whatever else is copied as it is.
    pub files: BTreeMap<&'static str, Vec<u8>>,
    /// The vision tower, if it was given.
    pub tower: Option<Tower>,
}

/// Files beside the weights that belong to a model; the first two make the tokenizer.
pub(crate) const COPIED: [&str; 5] = [
    "tokenizer.model",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
];

impl Parts {
    /// A model directory in the published layout.
    ///
    /// # Errors
    /// If files are missing or damaged.
    pub fn directory(directory: &Path) -> ConvertResult<Self> {
        let store = open(directory)?;
        let mut model = StreamedTensor::all(&store);
        model.retain(|tensor| !is_leftover_of_model(&tensor.name));
        Self { model, ..Self::beside(directory)? }.with_tower_of(directory)
    }

    /// LLaMA and the published delta; configuration and tokenizer are the delta's.
    ///
    /// # Errors
    /// If files are missing or damaged, or do not belong together.
    pub fn merged(base: &Path, delta: &Path) -> ConvertResult<Self> {
        let model = merge(&open(base)?, &open(delta)?)?;
        Self { model, ..Self::beside(delta)? }.with_tower_of(delta)
    }

    /// A language model (Vicuna) and LLaVA's projector: where training begins. There is no region
    /// module; the trainer makes it.
    ///
    /// # Errors
    /// If files are missing or damaged, or do not belong together.
    pub fn starting_point(base: &Path, projector: &Path) -> ConvertResult<Self> {
        let projector: Arc<dyn TensorStore> = Arc::new(Checkpoint::open_file(projector, &Device::Cpu)?);
        let mut parts = Self::beside(base)?;
        let added = parts.add_tokens()?;
        parts.model = with_projector(&open(base)?, &projector, added)?;
        let width = parts.model.iter().find(|tensor| tensor.name == "model.mm_projector.weight");
        let width = width.and_then(|tensor| tensor.shape.last().copied());
        let rows = parts.model.iter().find(|tensor| tensor.name == "lm_head.weight").map(|tensor| tensor.shape[0]);
        for (field, value) in [
            ("model_type", json!("llava")),
            ("vocab_size", json!(rows)),
            ("mm_vision_tower", json!("openai/clip-vit-large-patch14")),
            ("use_mm_proj", json!(true)),
            ("mm_hidden_size", json!(width)),
            ("mm_vision_select_layer", json!(-2)),
            ("mm_use_im_start_end", json!(true)),
            ("tie_word_embeddings", json!(false)),
        ] {
            parts.config[field] = value;
        }
        Ok(parts)
    }

    /// A model of these dimensions whose weights are noise, where real ones can't be had: for tests and
    /// measurements. Norms are close to one, and signals keep their size from layer to layer.
    ///
    /// # Errors
    /// If the dimensions are impossible.
    pub fn noise(config: &Config, tokenizer: &[u8], added_tokens: &str) -> Result<Self> {
        let (of_model, of_tower) = Network::needs(config)?;
        let noise = |(name, shape): (String, Vec<usize>)| {
            let inputs = shape[1..].iter().product::<usize>().max(1);
            let is_norm = shape.len() == 1 && name.ends_with(".weight");
            let (centre, reach) = if is_norm { (1.0, 0.1) } else { (0.0, (3.0 / inputs as f32).sqrt()) };
            let reach = if name.ends_with(".bias") { 0.1 } else { reach };
            StreamedTensor::noise(&name, &shape, centre, reach)
        };
        let all = |shapes: Shapes| shapes.into_iter().map(noise).collect();
        let files = [(COPIED[0], tokenizer.to_vec()), (COPIED[1], added_tokens.as_bytes().to_vec())];
        Ok(Self {
            model: all(of_model),
            config: config.to_json(),
            files: files.into(),
            tower: Some(Tower { tensors: all(of_tower), config: config.tower_to_json() }),
        })
    }

    /// The same with the changes of an adapter.
    ///
    /// # Errors
    /// If the adapter changes a matrix that is not there, or has another shape, or brings a tensor that a model of these
    /// dimensions has no use for, which can't be told without a vision tower.
    pub fn adapted(mut self, adapter: Adapter) -> Result<Self> {
        let of_tower = self.tower.as_mut().map(|tower| std::mem::take(&mut tower.tensors)).unwrap_or_default();
        let model = std::mem::take(&mut self.model);
        let needed = || {
            let (model, tower) = Network::needs(&self.dimensions("an adapter that brings tensors")?)?;
            Ok(model.into_iter().chain(tower).collect())
        };
        let (model, of_tower) = adapted(Streamed::store(model), Streamed::store(of_tower), adapter, needed)?;
        self.model = StreamedTensor::all(&model);
        if let Some(tower) = &mut self.tower {
            tower.tensors = StreamedTensor::all(&of_tower);
        }
        Ok(self)
    }

    /// The same with this tower.
    pub fn with_tower(self, tower: Tower) -> Self {
        Self { tower: Some(tower), ..self }
    }

    /// Writes a model directory: safetensors in float16, sharded if they are large.
    ///
    /// # Errors
    /// If the output exists, or is more than a model to replace; if a number does not fit, or reading or writing fails.
    pub fn write_directory(mut self, out: &Path, if_exists: IfExists) -> ConvertResult<()> {
        let staging = Staging::new(out, if_exists)?;
        let directory = staging.path();
        if let Some(tower) = &self.tower {
            let folder = directory.join("vision_tower");
            std::fs::create_dir(&folder).map_err(file_error(&folder))?;
            write_json(&folder.join("config.json"), &tower.config)?;
            write_safetensors(&folder, &tower.tensors, SHARD_BYTES)?;
            self.config["mm_vision_tower"] = "vision_tower".into();
        }
        write_json(&directory.join("config.json"), &self.config)?;
        for (name, bytes) in &self.files {
            let path = directory.join(name);
            std::fs::write(&path, bytes).map_err(file_error(&path))?;
        }
        write_safetensors(directory, &self.model, SHARD_BYTES)?;
        // What was read may be what is replaced, and Windows moves no directory whose files are mapped.
        drop(self);
        staging.commit()
    }

    /// Writes a directory NAME with `NAME-q4_k.gguf` and `mmproj-NAME.gguf`, and says how far each
    /// tensor is off, the worst first.
    ///
    /// # Errors
    /// If the output exists, or is more than a model to replace; if something is missing, a number does not fit, or
    /// reading or writing fails.
    pub fn write_gguf(
        self,
        out: &Path,
        if_exists: IfExists,
        language: Quantization,
        projector: Quantization,
    ) -> Result<Vec<RoundingError>> {
        let (config, tokenizer) = (self.checked_config()?, self.tokenizer()?);
        let depth = config.level_states()?.last().copied().unwrap_or(0);
        let tower = self.tower.map(|tower| tower.tensors).unwrap_or_default();
        let tower = tower.into_iter().filter(|tensor| !is_leftover_of_tower(&tensor.name, depth));
        let (seeing, speaking): (Vec<_>, Vec<_>) = self
            .model
            .into_iter()
            .partition(|tensor| tensor.name.starts_with("model.mm_projector.") || is_region(tensor));
        let staging = Staging::new(out, if_exists)?;
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let file = staging.path().join(format!("{name}-{}.gguf", language.name()));
        let mut errors = write_language(&file, speaking, &config, &tokenizer, language)?;
        let file = staging.path().join(format!("mmproj-{name}.gguf"));
        errors.extend(write_projector(&file, tower.chain(seeing).collect(), &config, &tokenizer, projector)?);
        staging.commit()?;
        errors.sort_by(|a, b| b.relative_rms.total_cmp(&a.relative_rms));
        Ok(errors)
    }

    /// All dimensions, once every tensor that a model of them needs is there and nothing else is.
    fn checked_config(&self) -> Result<Config> {
        let config = self.dimensions("a GGUF file")?;
        let depth = config.level_states()?.last().copied().unwrap_or(0);
        let (of_model, of_tower) = Network::needs(&config)?;
        let tower = self.tower.as_ref().map(|tower| stored(&tower.tensors)).unwrap_or_default();
        LoadReport::new(&stored(&self.model), &of_model, is_leftover_of_model)
            .and(LoadReport::new(&tower, &of_tower, |name| is_leftover_of_tower(name, depth)))
            .strict()?;
        Ok(config)
    }

    /// All dimensions, which `target` needs.
    fn dimensions(&self, target: &'static str) -> Result<Config> {
        let missing = ConvertError::Incomplete { missing: "vision tower", target };
        let tower = self.tower.as_ref().ok_or(missing)?;
        Config::from_json(&self.config.to_string(), &tower.config.to_string(), None)
    }

    fn tokenizer(&self) -> ConvertResult<Tokenizer> {
        let missing = |missing| ConvertError::Incomplete { missing, target: "a GGUF file" };
        let model = self.files.get(COPIED[0]).ok_or_else(|| missing("tokenizer.model"))?;
        let added = self.files.get(COPIED[1]).ok_or_else(|| missing("added_tokens.json"))?;
        Ok(Tokenizer::from_bytes(model, &String::from_utf8_lossy(added))?)
    }

    /// `config.json` and the files to copy, without tensors.
    fn beside(directory: &Path) -> ConvertResult<Self> {
        let mut files = BTreeMap::new();
        for name in COPIED {
            let path = directory.join(name);
            if path.is_file() {
                files.insert(name, std::fs::read(&path).map_err(file_error(&path))?);
            }
        }
        Ok(Self { model: Vec::new(), config: read_json(&directory.join("config.json"))?, files, tower: None })
    }

    /// Takes the tower that lies beside a model, if it does.
    fn with_tower_of(self, directory: &Path) -> ConvertResult<Self> {
        match tower_directory(directory) {
            Ok(tower) => Ok(self.with_tower(Tower::open(&tower)?)),
            Err(_) => Ok(self), // --tower may still name one
        }
    }

    /// Gives the model's own tokens ids behind those that exist, in the original's order of training.
    /// Returns how many tokens there are now.
    fn add_tokens(&mut self) -> ConvertResult<usize> {
        let missing = ConvertError::Incomplete { missing: "tokenizer.model", target: "a starting point" };
        let pieces = SentencePiece::from_bytes(self.files.get(COPIED[0]).ok_or(missing)?)?.len();
        let added = self.files.get(COPIED[1]).map_or("{}".into(), |added| String::from_utf8_lossy(added).into_owned());
        let mut added: BTreeMap<String, u32> = serde_json::from_str(&added).map_err(TokenizerError::from)?;
        let mut next = added.values().map(|id| id + 1).max().unwrap_or(0).max(pieces as u32);
        for token in ["[PAD]", "<im_patch>", "<bbox>", "<point>", "<im_start>", "<im_end>"] {
            if !added.contains_key(token) {
                added.insert(token.to_owned(), next);
                next += 1;
            }
        }
        self.files.insert(COPIED[1], format!("{:#}\n", json!(added)).into_bytes());
        Ok(next as usize)
    }
}

fn is_region(tensor: &StreamedTensor) -> bool {
    tensor.name.starts_with("model.spi_module.")
}

fn open(directory: &Path) -> ConvertResult<Arc<dyn TensorStore>> {
    Ok(Arc::new(Checkpoint::open(directory, &Device::Cpu)?))
}

fn stored(tensors: &[StreamedTensor]) -> Vec<StoredTensor> {
    tensors.iter().map(StreamedTensor::header).collect()
}

pub(crate) fn read_json(path: &Path) -> ConvertResult<Value> {
    let text = std::fs::read_to_string(path).map_err(file_error(path))?;
    let value = serde_json::from_str(&text).map_err(|error| error.to_string());
    value
        .and_then(|value: Value| if value.is_object() { Ok(value) } else { Err("expected an object".to_owned()) })
        .map_err(|what| ConvertError::Json { path: path.to_owned(), what })
}

fn write_json(path: &Path, value: &Value) -> ConvertResult<()> {
    std::fs::write(path, format!("{value:#}\n")).map_err(file_error(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gpt4Roi;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openclip");

    fn golden() -> Parts {
        Parts::directory(Path::new(GOLDEN)).unwrap()
    }

    /// A model minus a base plus the base is the model. The halves of numbers of half precision and
    /// their sums are exact.
    #[test]
    fn a_base_and_a_delta_are_the_model_again() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        golden().write_directory(&at("model"), IfExists::Refuse).unwrap();
        let halved = |tensor: StreamedTensor| {
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            StreamedTensor::new(name, &shape, move |range| {
                Ok(tensor.read(range)?.into_iter().map(|value| value / 2.0).collect())
            })
        };
        let is_llama = |tensor: &StreamedTensor| !is_region(tensor) && !tensor.name.contains("mm_projector");
        // Tokens behind the tokenizer's pieces are unknown to the base.
        let cut = |tensor: StreamedTensor| {
            let rows = tensor.shape[0];
            if rows == 806 { tensor.rows(0..800) } else { tensor }
        };
        let mut base = Parts::directory(&at("model")).unwrap();
        base.model.retain(is_llama);
        base.model = base.model.into_iter().map(halved).map(cut).collect();
        base.write_directory(&at("base"), IfExists::Refuse).unwrap();
        let mut delta = Parts::directory(&at("model")).unwrap();
        delta.model = delta
            .model
            .into_iter()
            .map(|tensor| if !is_llama(&tensor) || tensor.shape[0] == 806 { tensor } else { halved(tensor) })
            .collect();
        delta.write_directory(&at("delta"), IfExists::Refuse).unwrap();

        let merged = Parts::merged(&at("base"), &at("delta")).unwrap();
        merged.write_directory(&at("merged"), IfExists::Refuse).unwrap();
        Gpt4Roi::open(at("merged"), &Device::Cpu).unwrap();
        let load =
            |name: &str| candle_core::safetensors::load(at(name).join("model.safetensors"), &Device::Cpu).unwrap();
        let (model, merged) = (load("model"), load("merged"));
        assert_eq!(model.len(), merged.len());
        let flat = |tensor: &candle_core::Tensor| {
            tensor.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for (name, model) in model {
            let (model, merged) = (flat(&model), flat(&merged[&name]));
            // Rows of old tokens: half of the model is the base's, all of it the delta's.
            let old =
                if name.contains("embed_tokens") || name.contains("lm_head") { model.len() / 806 * 800 } else { 0 };
            for (index, (model, merged)) in model.iter().zip(&merged).enumerate() {
                // Numbers so small that halves lose a bit are off by one unit of the smallest number.
                let expected = if index < old { 1.5 * model } else { *model };
                let unit = 2f32.powi(-24).max(expected.abs() * 2f32.powi(-11));
                assert!((merged - expected).abs() <= unit, "{name}: {merged}, not {expected}");
            }
        }
    }

    #[test]
    fn an_unfit_number_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        for quantization in [Quantization::F16, Quantization::Q4K] {
            let mut parts = golden();
            let last = parts.model.pop().unwrap();
            parts.model.push(StreamedTensor::new(last.name, &last.shape, |range| Ok(vec![f32::NAN; range.len()])));
            let error = parts.write_gguf(&out, IfExists::Refuse, quantization, Quantization::F16).unwrap_err();
            assert!(error.to_string().contains("holds NaN"), "{error}");
        }
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_a_whole_model_is_no_gguf() {
        let place = tempfile::tempdir().unwrap();
        let write = |parts: Parts| {
            let out = place.path().join("out");
            parts.write_gguf(&out, IfExists::Refuse, Quantization::F16, Quantization::F16).unwrap_err().to_string()
        };
        assert!(write(Parts { tower: None, ..golden() }).contains("the vision tower is missing"));
        assert!(write(Parts { files: BTreeMap::new(), ..golden() }).contains("the tokenizer.model is missing"));
        let mut lacking = golden();
        lacking.model.retain(|tensor| tensor.name != "model.norm.weight");
        assert!(write(lacking).contains("1 missing: `model.norm.weight`"));
    }

    /// No more than one piece of one tensor is asked for at a time, whatever the size.
    #[test]
    fn a_conversion_holds_one_piece_at_a_time() {
        use std::sync::Mutex;

        use crate::stream::PIECE;

        let place = tempfile::tempdir().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let large = StreamedTensor::new("model.norm.weight", &[PIECE + 5], move |range| {
            log.lock().unwrap().push(range.len());
            Ok(vec![1.0; range.len()])
        });
        let parts = Parts { model: vec![large], tower: None, ..golden() };
        parts.write_directory(&place.path().join("out"), IfExists::Refuse).unwrap();
        assert_eq!(*asked.lock().unwrap(), [PIECE, 5]);
    }

    #[test]
    fn training_starts_from_a_language_model_and_a_projector() {
        let place = tempfile::tempdir().unwrap();
        let (base, start) = (place.path().join("base"), place.path().join("start"));
        let (mut vicuna, mut projector) = (golden(), golden());
        vicuna.model.retain(|tensor| !is_region(tensor) && !tensor.name.contains("mm_projector"));
        vicuna.model = vicuna
            .model
            .into_iter()
            .map(|tensor| if tensor.shape[0] == 806 { tensor.rows(0..801) } else { tensor })
            .collect();
        vicuna.files.insert("added_tokens.json", b"{\"[PAD]\": 800}".to_vec());
        vicuna.write_directory(&base, IfExists::Refuse).unwrap();
        projector.model.retain(|tensor| tensor.name.contains("mm_projector"));
        projector.write_directory(&place.path().join("projector"), IfExists::Refuse).unwrap();
        let file = place.path().join("projector/model.safetensors");
        Parts::starting_point(&base, &file).unwrap().write_directory(&start, IfExists::Refuse).unwrap();

        let added: BTreeMap<String, u32> =
            serde_json::from_str(&std::fs::read_to_string(start.join("added_tokens.json")).unwrap()).unwrap();
        let ids = ["[PAD]", "<im_patch>", "<bbox>", "<point>", "<im_start>", "<im_end>"].map(|token| added[token]);
        assert_eq!(ids, [800, 801, 802, 803, 804, 805], "the original's order of training");
        let config = read_json(&start.join("config.json")).unwrap();
        assert_eq!((&config["vocab_size"], &config["mm_hidden_size"]), (&json!(806), &json!(12)));
        let start = Checkpoint::open(&start, &Device::Cpu).unwrap();
        let shapes: BTreeMap<_, _> = start.stored().into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        assert_eq!(shapes["model.embed_tokens.weight"], [806, 16]);
        assert!(shapes.contains_key("model.mm_projector.weight"));
    }
}
