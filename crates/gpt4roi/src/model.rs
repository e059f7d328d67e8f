//! The whole model: tower, projector, region module and language model, put together.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Result as TensorResult, Tensor};

use crate::{
    adapter::{Adapter, adapted},
    clip::ClipVision,
    config::Config,
    error::{Error, Result},
    fingerprint::Fingerprint,
    gguf_pair::GgufPair,
    layers::Linear,
    llama::Llama,
    precision::Precision,
    region::RegionModule,
    tokenizer::Tokenizer,
    weights::{
        Census, Checkpoint, LoadReport, Shapes, TensorStore, Weights, is_leftover_of_model, is_leftover_of_tower,
    },
};

/// The network: tensors in, tensors out. It knows nothing of text or files.
#[derive(Debug)]
pub struct Network {
    /// The CLIP tower.
    pub clip: ClipVision,
    /// From the tower's width to the language model's.
    pub projector: Linear,
    /// Boxes to embeddings.
    pub region: RegionModule,
    /// The language model.
    pub llama: Llama,
    level_states: Vec<usize>,
}

/// What one picture comes to, computed once however many questions follow.
#[derive(Clone, Debug)]
pub struct ImageFeatures {
    /// The hidden states behind the levels, ascending, with the class token: `[1, 1 + patches, Cv]`.
    pub states: Vec<Tensor>,
    /// The patches as the language model sees them: `[patches, H]`.
    pub image_tokens: Tensor,
}

impl Network {
    /// Takes the tower's tensors (`vision_model.…`) from one source and all others (`model.…`,
    /// `lm_head.…`) from another, as the published files are split.
    pub fn load(config: &Config, tower: &Weights, model: &Weights) -> Result<Self> {
        let level_states = config.level_states()?;
        let depth = level_states.last().copied().unwrap_or(0);
        let (vision, text) = (config.vision.hidden_size, config.llama.hidden_size);
        Ok(Self {
            clip: ClipVision::load(tower, &config.vision, depth)?,
            projector: Linear::load(&model.at("model.mm_projector"), vision, text)?,
            region: RegionModule::load(&model.at("model.spi_module"), config)?,
            llama: Llama::load(model, &config.llama)?,
            level_states,
        })
    }

    /// What a network of these dimensions asks for: of the model's files, and of the tower's.
    ///
    /// # Errors
    /// If the dimensions are impossible.
    pub fn needs(config: &Config) -> Result<(Shapes, Shapes)> {
        let (of_model, of_tower) = (Arc::new(Census::default()), Arc::new(Census::default()));
        Self::load(config, &Weights::new(of_tower.clone()), &Weights::new(of_model.clone()))?;
        Ok((of_model.asked(), of_tower.asked()))
    }

    /// # Shapes
    /// pixel_values `[1, 3, S, S]`
    pub fn encode_image(&self, pixel_values: &Tensor) -> TensorResult<ImageFeatures> {
        let all = self.clip.forward(pixel_values)?;
        let states: Vec<_> = self.level_states.iter().map(|&index| all[index].clone()).collect();
        let image_tokens = self.projector.forward(&patches(&states[states.len() - 1])?)?.squeeze(0)?;
        Ok(ImageFeatures { states, image_tokens })
    }

    /// The pyramid of one picture, finest level first.
    pub fn pyramid(&self, image: &ImageFeatures) -> TensorResult<Vec<Tensor>> {
        let states: TensorResult<Vec<_>> = image.states.iter().map(patches).collect();
        self.region.pyramid.forward(&states?)
    }

    /// One embedding per box, or as many as a region has tokens. What is cut out of the maps is far larger than what
    /// becomes of it, so that many boxes are taken [a few at a time](crate::region::RegionHead::boxes_at_once).
    ///
    /// # Shapes
    /// maps from [`Self::pyramid`]; boxes `[N, 4]` normalised xyxy, f32 or f16 → `[N·tokens, H]`
    pub fn encode_regions(&self, maps: &[Tensor], boxes: &Tensor) -> TensorResult<Tensor> {
        let head = &self.region.head;
        some_rows_at_a_time(boxes, head.boxes_at_once(), |boxes| head.forward(&head.pool(maps, boxes)?, boxes))
    }

    /// Token embeddings, with patches and regions in the places of their tokens.
    ///
    /// Each of `parts` is a tensor `[N, H]` and the places `[N]` its rows go to; places are distinct.
    ///
    /// # Shapes
    /// ids `[T]` (u32) → `[1, T, H]`
    pub fn splice(&self, ids: &Tensor, parts: &[(&Tensor, &[u32])]) -> TensorResult<Tensor> {
        let text = self.llama.embed(ids)?;
        let length = ids.elem_count();
        // One gather out of [text; part; part; …] keeps the gradient of every part.
        let mut source: Vec<u32> = (0..length as u32).collect();
        let mut rows = vec![text];
        let mut offset = length as u32;
        for (part, places) in parts {
            if part.dim(0)? != places.len() {
                candle_core::bail!("{} places for {} vectors", places.len(), part.dim(0)?);
            }
            for &place in *places {
                let Some(slot) = source.get_mut(place as usize) else {
                    candle_core::bail!("place {place} lies behind the last of {length} tokens");
                };
                *slot = offset;
                offset += 1;
            }
            rows.push(part.to_dtype(rows[0].dtype())?);
        }
        let order = Tensor::from_vec(source, length, ids.device())?;
        Tensor::cat(&rows, 0)?.index_select(&order, 0)?.unsqueeze(0)
    }
}

/// What `compute` makes of at most so many rows at a time, one after the other.
fn some_rows_at_a_time(
    rows: &Tensor,
    most: usize,
    compute: impl Fn(&Tensor) -> TensorResult<Tensor>,
) -> TensorResult<Tensor> {
    let count = rows.dim(0)?;
    if count <= most {
        return compute(rows);
    }
    let part = |first: usize| compute(&rows.narrow(0, first, most.min(count - first))?);
    Tensor::cat(&(0..count).step_by(most).map(part).collect::<TensorResult<Vec<_>>>()?, 0)
}

/// Without the class token.
///
/// # Shapes
/// `[B, 1 + patches, Cv]` → `[B, patches, Cv]`
fn patches(state: &Tensor) -> TensorResult<Tensor> {
    state.narrow(1, 1, state.dim(1)? - 1)
}

/// A model ready to use: the network with its tokenizer and its configuration.
#[derive(Debug)]
pub struct Gpt4Roi {
    /// The network.
    pub network: Network,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// All dimensions.
    pub config: Config,
    /// Where the tensors are.
    pub device: Device,
}

impl Gpt4Roi {
    /// Opens a model directory in the published layout, a directory with a pair of GGUF files, or the
    /// pair that a GGUF file belongs to.
    ///
    /// # Errors
    /// If a file is missing or damaged, or if tensors, tokenizer and configuration do not fit
    /// together.
    pub fn open(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::from_files(&ModelFiles::at(path.as_ref())?, device)
    }

    /// Puts a model together from its files.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_files(files: &ModelFiles, device: &Device) -> Result<Self> {
        Self::load(files, device, Precision::F32)
    }

    /// Puts a model together from its files, with its weights in so many bits.
    ///
    /// # Errors
    /// As [`Self::open`], and if a weight is out of the precision's range.
    pub fn load(files: &ModelFiles, device: &Device, precision: Precision) -> Result<Self> {
        let config = files.config()?;
        let tokenizer = files.tokenizer()?;
        check_vocabulary(&config, &tokenizer)?;
        let (model, tower) = files.stores(device)?;
        report(&config, &*model, &*tower)?.strict()?;
        let [tower, model] = [Weights::new(tower), Weights::new(model)].map(|weights| weights.in_precision(precision));
        let network = Network::load(&config, &tower, &model)?;
        Ok(Self { network, tokenizer, config, device: device.clone() })
    }
}

/// The files that make up a model.
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// On disk: `config.json`, weights, `tokenizer.model`, `added_tokens.json` and the directory of
    /// the vision tower.
    Directory(PathBuf),
    /// On disk, as [`crate::gguf_pair`] describes them.
    Gguf {
        /// `NAME-q4_k.gguf`: the language model with its tokenizer.
        language: PathBuf,
        /// `mmproj-NAME.gguf`: vision tower, projector and region module.
        projector: PathBuf,
    },
    /// In memory.
    Embedded(EmbeddedModel),
    /// Any of these with an adapter.
    Adapted {
        /// The files of the model.
        base: Box<Self>,
        /// The directory of the adapter.
        adapter: PathBuf,
    },
}

/// The contents of a model's files.
#[derive(Clone, Copy)]
pub struct EmbeddedModel {
    /// `config.json`.
    pub config: &'static str,
    /// `model.safetensors`: language model, projector and region module.
    pub model: &'static [u8],
    /// `tokenizer.model`.
    pub tokenizer: &'static [u8],
    /// `added_tokens.json`.
    pub added_tokens: &'static str,
    /// `vision_tower/config.json`.
    pub tower_config: &'static str,
    /// `vision_tower/preprocessor_config.json`; CLIP's colour statistics if there is none.
    pub preprocessor_config: Option<&'static str>,
    /// `vision_tower/model.safetensors`.
    pub tower: &'static [u8],
}

impl std::fmt::Debug for EmbeddedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedModel").field("config", &self.config).finish_non_exhaustive()
    }
}

impl ModelFiles {
    /// The model that a path stands for: a directory in the published layout, a directory with a pair
    /// of GGUF files, or the language model's file of such a pair.
    ///
    /// # Errors
    /// If GGUF files are meant and there is no pair, or more than one.
    pub fn at(path: &Path) -> Result<Self> {
        let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension == "gguf");
        let holds_gguf = |path: &Path| {
            let mut entries = path.read_dir().into_iter().flatten().flatten();
            !path.join("config.json").is_file() && entries.any(|entry| is_gguf(&entry.path()))
        };
        if !is_gguf(path) && !holds_gguf(path) {
            return Ok(Self::Directory(path.to_owned()));
        }
        let (language, projector) = GgufPair::find(path)?;
        Ok(Self::Gguf { language, projector })
    }

    /// The same model with the changes of the adapter in this directory.
    pub fn with_adapter(self, directory: impl Into<PathBuf>) -> Self {
        Self::Adapted { base: Box::new(self), adapter: directory.into() }
    }

    /// All dimensions.
    ///
    /// # Errors
    /// If a configuration is missing, damaged or impossible.
    pub fn config(&self) -> Result<Config> {
        match self {
            Self::Directory(directory) => {
                let tower = tower_directory(directory)?;
                let preprocessor = tower.join("preprocessor_config.json");
                let preprocessor = preprocessor.is_file().then(|| read_text(&preprocessor)).transpose()?;
                let (model, tower) = (directory.join("config.json"), tower.join("config.json"));
                Config::from_json(&read_text(&model)?, &read_text(&tower)?, preprocessor.as_deref())
            }
            Self::Gguf { language, projector } => GgufPair::open(language, projector)?.config(),
            Self::Embedded(files) => Config::from_json(files.config, files.tower_config, files.preprocessor_config),
            Self::Adapted { base, .. } => base.config(),
        }
    }

    /// The tokenizer with the model's added tokens.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(match self {
            Self::Directory(directory) => {
                let path = directory.join("tokenizer.model");
                let model = std::fs::read(&path).map_err(|source| Error::file(path, source))?;
                Tokenizer::from_bytes(&model, &read_text(&directory.join("added_tokens.json"))?)?
            }
            Self::Gguf { language, projector } => GgufPair::open(language, projector)?.tokenizer()?,
            Self::Embedded(files) => Tokenizer::from_bytes(files.tokenizer, files.added_tokens)?,
            Self::Adapted { base, .. } => return base.tokenizer(),
        })
    }

    /// What loading would find: which tensors are used, left aside, unknown, missing or of another
    /// shape. Reads headers only.
    ///
    /// # Errors
    /// If a file is missing or damaged; not if the tensors do not fit.
    pub fn report(&self) -> Result<LoadReport> {
        let (model, tower) = self.stores(&Device::Cpu)?;
        report(&self.config()?, &*model, &*tower)
    }

    /// Whether the adapter was trained beside another model, as far as both tell. Such an adapter may be of use all the
    /// same, beside a model that was trained a little further, so that it opens.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn mismatch(&self) -> Result<Option<AdapterMismatch>> {
        let Self::Adapted { base, adapter: directory } = self else { return Ok(None) };
        let adapter = Adapter::open_headers(directory, &Device::Cpu)?;
        let Some(expected) = adapter.base().map(str::to_owned) else { return Ok(None) };
        let got = Fingerprint::of_vectors(base)?.to_string();
        if got == expected {
            return Ok(None);
        }
        let name = adapter.config().base_model_name_or_path.clone();
        Ok(Some(AdapterMismatch { adapter: directory.clone(), name, expected, got }))
    }

    /// The weights: all but the tower's, and the tower's.
    ///
    /// # Errors
    /// If a file is missing or damaged, or if an adapter changes or brings what the model does not have.
    pub fn stores(&self, device: &Device) -> Result<(Arc<dyn TensorStore>, Arc<dyn TensorStore>)> {
        let (model, tower) = match self {
            Self::Directory(directory) => {
                (Checkpoint::open(directory, device)?, Checkpoint::open(tower_directory(directory)?, device)?)
            }
            Self::Gguf { language, projector } => {
                let (model, tower) = GgufPair::open(language, projector)?.weights(device)?;
                return Ok((Arc::new(model), Arc::new(tower)));
            }
            Self::Embedded(files) => (
                Checkpoint::from_bytes("model.safetensors", files.model, device)?,
                Checkpoint::from_bytes("vision_tower/model.safetensors", files.tower, device)?,
            ),
            Self::Adapted { base, adapter } => {
                let (model, tower) = base.stores(device)?;
                let needed = || {
                    let (model, tower) = Network::needs(&base.config()?)?;
                    Ok(model.into_iter().chain(tower).collect())
                };
                return adapted(model, tower, Adapter::open(adapter, device)?, needed);
            }
        };
        Ok((Arc::new(model), Arc::new(tower)))
    }
}

/// An adapter beside another model than the one that it was trained beside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}: expected the model that it was trained beside{}, with the vectors {expected}, got one with {got}",
    adapter.display(),
    name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default()
)]
pub struct AdapterMismatch {
    /// The directory of the adapter.
    pub adapter: PathBuf,
    /// How the model was called that it was trained beside.
    pub name: Option<String>,
    /// The [fingerprint of the vectors](Fingerprint::of_vectors) of that model.
    pub expected: String,
    /// That of this one.
    pub got: String,
}

/// Where the tower lies that `config.json` names: a directory, or for a name on a model hub, which
/// nothing here downloads, `vision_tower` beside `config.json`.
///
/// # Errors
/// If there is no `config.json`, or no tower in either place.
pub fn tower_directory(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("config.json");
    let config: serde_json::Value = serde_json::from_str(&read_text(&path)?)
        .map_err(|error| Error::config(path.display().to_string(), "JSON".into(), error.to_string()))?;
    let named = config.get("mm_vision_tower").and_then(|name| name.as_str()).unwrap_or("vision_tower");
    let places = [directory.join(named), directory.join("vision_tower")];
    places.into_iter().find(|place| place.join("config.json").is_file()).ok_or_else(|| {
        Error::config(
            format!("{}, \"mm_vision_tower\"", path.display()),
            format!("a directory, or its files in {}", directory.join("vision_tower").display()),
            format!("{named:?}, which is not there (download the vision tower's config.json and weights)"),
        )
    })
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::file(path, source))
}

/// Every id needs a row of the embedding. A few rows more are customary padding.
fn check_vocabulary(config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    const PADDING: usize = 64;
    let (rows, ids) = (config.llama.vocab_size, tokenizer.vocab_size());
    if (ids..ids + PADDING).contains(&rows) {
        return Ok(());
    }
    Err(Error::config(
        "config.json, \"vocab_size\"",
        format!("{ids}, the tokens of tokenizer.model and added_tokens.json"),
        rows.to_string(),
    ))
}

/// Looks for all that the network asks for.
fn report(config: &Config, model: &dyn TensorStore, tower: &dyn TensorStore) -> Result<LoadReport> {
    let depth = config.level_states()?.last().copied().unwrap_or(0);
    let (of_model, of_tower) = Network::needs(config)?;
    let tower = LoadReport::new(&tower.stored(), &of_tower, |name| is_leftover_of_tower(name, depth));
    Ok(LoadReport::new(&model.stored(), &of_model, is_leftover_of_model).and(tower))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// One of the models that `reference/make_golden.py` makes.
    const GOLDEN: EmbeddedModel = EmbeddedModel {
        config: include_str!("../tests/golden/openclip/config.json"),
        model: include_bytes!("../tests/golden/openclip/model.safetensors"),
        tokenizer: include_bytes!("../tests/golden/openclip/tokenizer.model"),
        added_tokens: include_str!("../tests/golden/openclip/added_tokens.json"),
        tower_config: include_str!("../tests/golden/openclip/vision_tower/config.json"),
        preprocessor_config: Some(include_str!("../tests/golden/openclip/vision_tower/preprocessor_config.json")),
        tower: include_bytes!("../tests/golden/openclip/vision_tower/model.safetensors"),
    };

    /// The same model on disk, with another `config.json`.
    fn directory(config: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
        fs::create_dir(directory.path().join("vision_tower")).unwrap();
        write("config.json", config.as_bytes());
        write("model.safetensors", GOLDEN.model);
        write("tokenizer.model", GOLDEN.tokenizer);
        write("added_tokens.json", GOLDEN.added_tokens.as_bytes());
        write("vision_tower/config.json", GOLDEN.tower_config.as_bytes());
        write("vision_tower/model.safetensors", GOLDEN.tower);
        directory
    }

    fn error_of(directory: &Path) -> String {
        Gpt4Roi::open(directory, &Device::Cpu).unwrap_err().to_string()
    }

    #[test]
    fn a_model_in_memory_is_the_one_on_disk() {
        let pixels = Tensor::rand(-1f32, 1., (1, 3, 35, 35), &Device::Cpu).unwrap();
        let tokens = |model: Gpt4Roi| {
            let features = model.network.encode_image(&pixels).unwrap();
            features.image_tokens.to_vec2::<f32>().unwrap()
        };
        let on_disk = directory(GOLDEN.config);
        let on_disk = tokens(Gpt4Roi::open(on_disk.path(), &Device::Cpu).unwrap());
        let files = ModelFiles::Embedded(GOLDEN);
        assert_eq!(on_disk, tokens(Gpt4Roi::from_files(&files, &Device::Cpu).unwrap()));
    }

    #[test]
    fn a_tower_named_as_on_a_hub_lies_beside() {
        let config = GOLDEN.config.replace("\"vision_tower\"", "\"openai/clip-vit-large-patch14\"");
        let directory = directory(&config);
        assert!(Gpt4Roi::open(directory.path(), &Device::Cpu).is_ok());
        fs::rename(directory.path().join("vision_tower"), directory.path().join("tower")).unwrap();
        let error = error_of(directory.path());
        for part in ["mm_vision_tower", "openai/clip-vit-large-patch14", "download the vision tower"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn files_that_do_not_fit_together_are_refused() {
        for (from, to, expected) in [
            ("\"vocab_size\": 806", "\"vocab_size\": 805", "\"vocab_size\": expected 806"),
            ("\"vocab_size\": 806", "\"vocab_size\": 870", "got 870"),
            ("\"vocab_size\": 806", "\"vocab_size\": 808", "`lm_head.weight` expected [808, 16], got [806, 16]"),
            (
                "\"num_hidden_layers\": 3",
                "\"num_hidden_layers\": 4",
                "9 missing: `model.layers.3.input_layernorm.weight`",
            ),
            ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2", "unknown: `model.layers.2."),
            (
                "\"pos_hidden\": 10",
                "\"pos_hidden\": 11",
                "of another shape: `model.spi_module.roi_align.pos_embedd.0.bias`",
            ),
        ] {
            let config = GOLDEN.config.replace(from, to);
            assert_ne!(config, GOLDEN.config);
            let error = error_of(directory(&config).path());
            assert!(error.contains(expected), "{error}, not {expected}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        for name in ["config.json", "tokenizer.model", "added_tokens.json", "model.safetensors"] {
            let directory = directory(GOLDEN.config);
            fs::remove_file(directory.path().join(name)).unwrap();
            let error = error_of(directory.path());
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn rows_are_computed_some_at_a_time_and_stay_in_order() {
        for (count, parts) in [(0, vec![0]), (2, vec![2]), (3, vec![3]), (4, vec![3, 1]), (7, vec![3, 3, 1])] {
            let rows = Tensor::from_iter((0..count).map(|i| i as f32), &Device::Cpu).unwrap();
            let rows = rows.reshape((count, 1)).unwrap();
            let seen = std::cell::RefCell::new(Vec::new());
            let doubled = some_rows_at_a_time(&rows, 3, |rows| {
                seen.borrow_mut().push(rows.dim(0)?);
                rows * 2.0
            });
            let doubled: Vec<f32> = doubled.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(doubled, (0..count).map(|i| 2.0 * i as f32).collect::<Vec<_>>());
            assert_eq!(seen.into_inner(), parts);
        }
    }

    #[test]
    fn a_report_lists_what_is_left_aside() {
        let report = ModelFiles::Embedded(GOLDEN).report().unwrap().strict().unwrap();
        let ignored = [
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.layers.1.self_attn.rotary_emb.inv_freq",
            "model.layers.2.self_attn.rotary_emb.inv_freq",
            "vision_model.post_layernorm.bias",
            "vision_model.post_layernorm.weight",
        ];
        assert_eq!(report.ignored, ignored);
    }
}
