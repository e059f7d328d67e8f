//! A model as llama.cpp's convention splits it: `NAME-q4_k.gguf`, a plain LLaMA that llama.cpp itself
//! can load, and `mmproj-NAME.gguf` with vision tower, projector and region module.
//!
//! The language model's file has llama.cpp's keys and names, the tokenizer included; added tokens are
//! control tokens, which text can't spell, and rows of the vocabulary without a token are unused ones.
//! The other file has llama.cpp's keys and names for the tower (`v.…`) and the projector (`mm.0.…`);
//! the region module's tensors are `region.` and their published name. Three keys are our own:
//!
//! | key | value |
//! |---|---|
//! | `gpt4roi.config` | `config.json` |
//! | `gpt4roi.vision_config` | the tower's `config.json`, with `image_mean` and `image_std` |
//! | `gpt4roi.piece_count` | how many tokens are SentencePiece's; the ones behind were added |

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};

use crate::{
    config::{Activation, Config},
    convert::{ConvertError, ConvertResult},
    error::{Error, Result},
    ggml_type::GgmlType,
    gguf::{Array, Gguf, GgufPlan, GgufTensor, GgufWriter, Value},
    gguf_names::{gguf_row, is_interleaved, published_row, to_gguf, to_published},
    quantize::{Quantization, RoundingError},
    sentencepiece::{Kind, Piece, Roles, SentencePiece, byte_of},
    shards::halves,
    staging::file_error,
    stream::StreamedTensor,
    tokenizer::Tokenizer,
    weights::{StoredTensor, TensorSource, TensorStore, WeightsError, WeightsResult},
};

const CONFIG: &str = "gpt4roi.config";
const VISION_CONFIG: &str = "gpt4roi.vision_config";
const PIECE_COUNT: &str = "gpt4roi.piece_count";

const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";

/// The two files of a model, open.
#[derive(Debug)]
pub struct GgufPair {
    language: Arc<Gguf>,
    projector: Arc<Gguf>,
}

impl GgufPair {
    /// Opens both files.
    ///
    /// # Errors
    /// If one is missing, damaged, or of another kind.
    pub fn open(language: &Path, projector: &Path) -> Result<Self> {
        let open = |path: &Path, architecture: &str| -> Result<Arc<Gguf>> {
            let gguf = Gguf::open(path)?;
            let got = text(&gguf, "general.architecture")?;
            if got != architecture {
                return Err(unexpected(&gguf, "general.architecture", architecture, got));
            }
            Ok(Arc::new(gguf))
        };
        Ok(Self { language: open(language, "llama")?, projector: open(projector, "clip")? })
    }

    /// The two files that `path` stands for: the language model's, with its projector beside it, or a
    /// directory with one of each.
    ///
    /// # Errors
    /// If there is no such pair, or more than one.
    pub fn find(path: &Path) -> Result<(PathBuf, PathBuf)> {
        let directory = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let (projectors, languages) = gguf_files(directory)?;
        let language =
            if path.is_dir() { the_only(directory, "a language model NAME-q4_k.gguf", &languages)? } else { path };
        let own = file_name(language).rsplit_once('-').map(|(name, _)| format!("mmproj-{name}.gguf"));
        let own = projectors.iter().find(|projector| Some(file_name(projector)) == own);
        let projector = match own {
            Some(own) => own,
            None => the_only(directory, "a projector mmproj-NAME.gguf", &projectors)?,
        };
        Ok((language.to_owned(), projector.to_owned()))
    }

    /// All dimensions.
    ///
    /// # Errors
    /// If they are missing or impossible, or the language model's file has others.
    pub fn config(&self) -> Result<Config> {
        let config = Config::from_json(text(&self.projector, CONFIG)?, text(&self.projector, VISION_CONFIG)?, None)?;
        let llama = &config.llama;
        for (key, expected) in [
            ("llama.block_count", llama.num_hidden_layers),
            ("llama.embedding_length", llama.hidden_size),
            ("llama.attention.head_count", llama.num_attention_heads),
        ] {
            let got = number(&self.language, key)?;
            if got != expected as u64 {
                return Err(unexpected(&self.language, key, expected, got));
            }
        }
        Ok(config)
    }

    /// The tokenizer with the model's added tokens.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let gguf = &*self.language;
        let (Some(Array::String(tokens)), Some(Array::F32(scores)), Some(Array::I32(types))) =
            (array(gguf, TOKENS), array(gguf, SCORES), array(gguf, TOKEN_TYPES))
        else {
            return Err(unexpected(gguf, TOKENS, "tokens with scores and types", "others"));
        };
        let count = number(&self.projector, PIECE_COUNT)? as usize;
        if tokens.len() != scores.len() || tokens.len() != types.len() || count > tokens.len() {
            let got = format!("{}, {} and {}", tokens.len(), scores.len(), types.len());
            return Err(unexpected(gguf, TOKENS, format!("{count} pieces, as many scores and types"), got));
        }
        let piece = |id: usize| -> Result<Piece> {
            let kind = match types[id] {
                NORMAL => Kind::Normal,
                UNKNOWN_PIECE => Kind::Unknown,
                CONTROL => Kind::Control,
                BYTE => Kind::Byte(byte_of(&tokens[id])?),
                other => return Err(unexpected(gguf, TOKEN_TYPES, "a type of SentencePiece's", other)),
            };
            Ok(Piece { text: tokens[id].as_str().into(), score: scores[id], kind })
        };
        let id = |key| number(gguf, key).map(|id| u32::try_from(id).unwrap_or(u32::MAX));
        let roles = Roles { unknown: id(UNKNOWN)?, bos: id(BOS)?, eos: id(EOS)? };
        let dummy_prefix = !matches!(gguf.metadata(SPACE_PREFIX), Some(Value::Bool(false)));
        let pieces = (0..count).map(piece).collect::<Result<_>>()?;
        let added = (count..tokens.len()).take_while(|id| types[*id] != UNUSED);
        let added = added.map(|id| (tokens[id].clone(), id as u32)).collect();
        Ok(Tokenizer::new(SentencePiece::from_pieces(pieces, roles, dummy_prefix)?, added)?)
    }

    /// Language model, projector and region module under their published names, and the tower.
    ///
    /// # Errors
    /// If a configuration is missing, or both files have a tensor of the same name.
    pub fn weights(&self, device: &Device) -> Result<(GgufWeights, GgufWeights)> {
        let llama = self.config()?.llama;
        let head = llama.hidden_size / llama.num_attention_heads;
        let (mut model, mut tower) = (BTreeMap::new(), BTreeMap::new());
        for gguf in [&self.language, &self.projector] {
            for tensor in gguf.tensors() {
                let name = to_published(tensor.name).unwrap_or_else(|| tensor.name.to_owned());
                let half = if name.starts_with("vision_model.") { &mut tower } else { &mut model };
                let head = is_interleaved(&name).then_some(head);
                let place = Place { gguf: gguf.clone(), name: tensor.name.to_owned(), head };
                if half.insert(name, place).is_some() {
                    let what = format!("tensor `{}` stands in both files", tensor.name);
                    return Err(WeightsError::Corrupt { file: gguf.path().to_owned(), what }.into());
                }
            }
        }
        let weights = |places| GgufWeights { places, device: device.clone() };
        Ok((weights(model), weights(tower)))
    }
}

/// Tensors of GGUF files under their published names, and with their rows in the published order.
#[derive(Debug)]
pub struct GgufWeights {
    places: BTreeMap<String, Place>,
    device: Device,
}

#[derive(Debug)]
struct Place {
    gguf: Arc<Gguf>,
    /// In the file.
    name: String,
    /// If the two halves of each head are interleaved: rows of a head.
    head: Option<usize>,
}

impl GgufWeights {
    /// A tensor as it is stored, by its published name; and, if the two halves of each head of it are
    /// interleaved, how many rows a head has: the published row `r` is then row [`stored_row`] of it.
    pub fn blocks(&self, name: &str) -> Option<(GgufTensor<'_>, Option<usize>)> {
        let place = self.places.get(name)?;
        Some((place.gguf.tensor(&place.name)?, place.head))
    }
}

/// Where llama.cpp's order of rows puts the published row `row` of queries or keys, whose heads have
/// `head` rows.
pub fn stored_row(row: usize, head: usize) -> usize {
    gguf_row(row, head)
}

impl TensorSource for GgufWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        let Some((stored, _)) = self.blocks(name) else {
            return Err(WeightsError::Missing { name: name.to_owned(), expected: shape.to_vec() });
        };
        if stored.shape != shape {
            let (expected, got) = (shape.to_vec(), stored.shape.to_vec());
            return Err(WeightsError::Shape { name: name.to_owned(), expected, got });
        }
        let values = self.piece(name, 0..shape.iter().product())?;
        Tensor::from_vec(values, shape, &self.device)
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
    }
}

impl TensorStore for GgufWeights {
    fn stored(&self) -> Vec<StoredTensor> {
        let stored = |(name, place): (&String, &Place)| {
            let tensor = place.gguf.tensor(&place.name)?;
            let (numbers, shape, file) = (tensor.kind.to_string(), tensor.shape.to_vec(), place.gguf.path().to_owned());
            Some(StoredTensor { name: name.clone(), numbers, shape, file })
        };
        self.places.iter().filter_map(stored).collect()
    }

    fn piece(&self, name: &str, elements: Range<usize>) -> WeightsResult<Vec<f32>> {
        let Some((tensor, head)) = self.blocks(name) else {
            return Err(WeightsError::Missing { name: name.to_owned(), expected: Vec::new() });
        };
        let error = |source| WeightsError::Tensor { name: name.to_owned(), source };
        let columns = tensor.columns();
        if elements.start >= elements.end || elements.end > tensor.rows() * columns {
            return Ok(Vec::new());
        }
        let rows = elements.start / columns..elements.end.div_ceil(columns);
        let width = tensor.bytes.len() / tensor.rows();
        let bytes = |rows: Range<usize>| &tensor.bytes[rows.start * width..rows.end * width];
        let values = match head {
            None => tensor.kind.dequantize(bytes(rows.clone())),
            Some(head) => {
                let stored = rows.clone().map(|row| gguf_row(row, head)).filter(|row| *row < tensor.rows());
                let stored: Vec<u8> = stored.flat_map(|row| bytes(row..row + 1)).copied().collect();
                tensor.kind.dequantize(&stored)
            }
        };
        let mut values = values.map_err(error)?;
        let start = elements.start - rows.start * columns;
        values.truncate(start + elements.len());
        Ok(values.split_off(start))
    }
}

/// Writes the language model: a plain LLaMA as llama.cpp reads it.
///
/// # Errors
/// If a number does not fit, or reading or writing fails.
pub(crate) fn write_language(
    path: &Path,
    tensors: Vec<StreamedTensor>,
    config: &Config,
    tokenizer: &Tokenizer,
    quantization: Quantization,
) -> ConvertResult<Vec<RoundingError>> {
    let head = config.llama.hidden_size / config.llama.num_attention_heads;
    let in_file_order = |tensor: StreamedTensor| {
        if is_interleaved(&tensor.name) { tensor.reordered(move |row| published_row(row, head)) } else { tensor }
    };
    let mut metadata = general("llama", path, quantization);
    metadata.extend(language_metadata(config));
    metadata.extend(tokenizer_metadata(tokenizer, config.llama.vocab_size));
    let layers = config.llama.num_hidden_layers;
    write(path, &metadata, tensors.into_iter().map(in_file_order).collect(), quantization, layers)
}

/// Writes vision tower, projector and region module, with all that it takes to rebuild the configuration.
///
/// # Errors
/// As [`write_language`].
pub(crate) fn write_projector(
    path: &Path,
    tensors: Vec<StreamedTensor>,
    config: &Config,
    tokenizer: &Tokenizer,
    quantization: Quantization,
) -> ConvertResult<Vec<RoundingError>> {
    let mut metadata = general("clip", path, quantization);
    metadata.extend(vision_metadata(config));
    metadata.push((CONFIG, Value::String(config.to_json().to_string())));
    metadata.push((VISION_CONFIG, Value::String(config.tower_to_json().to_string())));
    metadata.push((PIECE_COUNT, Value::U32(tokenizer.sentencepiece().len() as u32)));
    write(path, &metadata, tensors, quantization, 0)
}

fn general(architecture: &str, path: &Path, quantization: Quantization) -> Vec<(&'static str, Value)> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    vec![
        ("general.architecture", architecture.into()),
        ("general.name", (&*name).into()),
        ("general.file_type", Value::U32(quantization.file_type())),
        ("general.quantization_version", Value::U32(2)),
    ]
}

fn language_metadata(config: &Config) -> Vec<(&'static str, Value)> {
    let llama = &config.llama;
    let count = |number: usize| Value::U32(number as u32); // the configuration bounds them all
    vec![
        ("llama.vocab_size", count(llama.vocab_size)),
        ("llama.context_length", count(llama.max_position_embeddings)),
        ("llama.embedding_length", count(llama.hidden_size)),
        ("llama.block_count", count(llama.num_hidden_layers)),
        ("llama.feed_forward_length", count(llama.intermediate_size)),
        ("llama.attention.head_count", count(llama.num_attention_heads)),
        ("llama.attention.head_count_kv", count(llama.num_attention_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(llama.rms_norm_eps as f32)),
        ("llama.rope.dimension_count", count(llama.hidden_size / llama.num_attention_heads)),
        ("llama.rope.freq_base", Value::F32(llama.rope_theta as f32)),
    ]
}

// `llama_token_type` of llama.cpp.
const NORMAL: i32 = 1;
const UNKNOWN_PIECE: i32 = 2;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

fn tokenizer_metadata(tokenizer: &Tokenizer, rows: usize) -> Vec<(&'static str, Value)> {
    /// What llama.cpp's converter gives tokens that no merge makes.
    const NEVER: f32 = -1000.0;
    let (mut tokens, mut scores, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for piece in tokenizer.sentencepiece().pieces() {
        tokens.push(piece.text.to_string());
        scores.push(piece.score);
        types.push(match piece.kind {
            Kind::Normal => NORMAL,
            Kind::Unknown => UNKNOWN_PIECE,
            Kind::Control => CONTROL,
            Kind::Byte(_) => BYTE,
        });
    }
    let padding = (tokenizer.vocab_size()..rows).map(|row| (format!("[UNUSED{row}]"), UNUSED));
    for (token, kind) in tokenizer.added().iter().map(|token| (token.clone(), CONTROL)).chain(padding) {
        tokens.push(token);
        scores.push(NEVER);
        types.push(kind);
    }
    let special = tokenizer.special();
    vec![
        ("tokenizer.ggml.model", "llama".into()),
        ("tokenizer.ggml.pre", "default".into()),
        (TOKENS, Value::Array(Array::String(tokens))),
        (SCORES, Value::Array(Array::F32(scores))),
        (TOKEN_TYPES, Value::Array(Array::I32(types))),
        (BOS, Value::U32(special.bos)),
        (EOS, Value::U32(special.eos)),
        (UNKNOWN, Value::U32(tokenizer.sentencepiece().unknown())),
        ("tokenizer.ggml.padding_token_id", Value::U32(special.pad)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
        (SPACE_PREFIX, Value::Bool(tokenizer.sentencepiece().has_dummy_prefix())),
    ]
}

fn vision_metadata(config: &Config) -> Vec<(&'static str, Value)> {
    let vision = &config.vision;
    let count = |number: usize| Value::U32(number as u32);
    // llama.cpp takes the tower's last state, so its layers end where the projector reads.
    let layers = config.level_states().ok().and_then(|states| states.last().copied()).unwrap_or(0);
    vec![
        ("clip.has_vision_encoder", Value::Bool(true)),
        ("clip.projector_type", "mlp".into()),
        ("clip.use_gelu", Value::Bool(vision.hidden_act == Activation::Gelu)),
        ("clip.vision.image_size", count(vision.image_size)),
        ("clip.vision.patch_size", count(vision.patch_size)),
        ("clip.vision.embedding_length", count(vision.hidden_size)),
        ("clip.vision.feed_forward_length", count(vision.intermediate_size)),
        ("clip.vision.block_count", count(layers)),
        ("clip.vision.attention.head_count", count(vision.num_attention_heads)),
        ("clip.vision.attention.layer_norm_epsilon", Value::F32(vision.layer_norm_eps as f32)),
        ("clip.vision.projection_dim", count(config.llama.hidden_size)),
        ("clip.vision.image_mean", Value::Array(Array::F32(vision.image_mean.to_vec()))),
        ("clip.vision.image_std", Value::Array(Array::F32(vision.image_std.to_vec()))),
    ]
}

/// Writes tensors under their names in GGUF, each as the recipe says, a piece at a time.
fn write(
    path: &Path,
    metadata: &[(&str, Value)],
    tensors: Vec<StreamedTensor>,
    quantization: Quantization,
    layers: usize,
) -> ConvertResult<Vec<RoundingError>> {
    let plan = |tensor: &StreamedTensor| {
        let unknown = || ConvertError::NoCounterpart { name: tensor.name.clone(), owner: "model", other: "GGUF file" };
        let name = to_gguf(&tensor.name).ok_or_else(unknown)?;
        let kind = quantization.kind(&name, &tensor.shape, layers);
        Ok(GgufPlan { name, kind, shape: tensor.shape.clone() })
    };
    let plans = tensors.iter().map(plan).collect::<ConvertResult<Vec<_>>>()?;
    let failed = file_error(path);
    let out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(&failed)?);
    let mut writer = GgufWriter::new(out, metadata, &plans).map_err(&failed)?;
    let mut errors = Vec::with_capacity(tensors.len());
    for (tensor, GgufPlan { name, kind, .. }) in tensors.iter().zip(&plans) {
        writer.begin(name).map_err(&failed)?;
        let (mut lost, mut all) = (0.0, 0.0);
        for piece in tensor.pieces() {
            let values = piece?;
            let bytes = rounded(&tensor.name, &values, *kind)?;
            let back = kind.dequantize(&bytes).map_err(|source| engine_error(&tensor.name, source))?;
            for (value, back) in values.iter().zip(back) {
                lost += f64::from(value - back).powi(2);
                all += f64::from(*value).powi(2);
            }
            writer.write(&bytes).map_err(&failed)?;
        }
        let relative_rms = if all == 0.0 { 0.0 } else { (lost / all).sqrt() };
        let (name, numbers) = (tensor.name.clone(), tensor.count());
        errors.push(RoundingError { name, kind: kind.name(), numbers, relative_rms });
    }
    writer.finish().map_err(&failed)?;
    Ok(errors)
}

/// Numbers as a type's blocks. What is no number, or too large, has no place in them.
fn rounded(name: &str, values: &[f32], kind: GgmlType) -> ConvertResult<Vec<u8>> {
    if kind == GgmlType::F16 {
        return halves(name, values);
    }
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(ConvertError::NotFinite { name: name.to_owned(), value: *value, kind: kind.name() });
    }
    kind.quantize(values).map_err(|source| engine_error(name, source))
}

fn engine_error(name: &str, source: candle_core::Error) -> ConvertError {
    WeightsError::Tensor { name: name.to_owned(), source }.into()
}

/// The projectors and the language models of a directory.
fn gguf_files(directory: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let entries = std::fs::read_dir(directory).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.map_err(|source| Error::file(directory, source))?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "gguf"));
    files.sort();
    Ok(files.into_iter().partition(|file| file_name(file).starts_with("mmproj-")))
}

fn the_only<'a>(directory: &Path, what: &str, files: &'a [PathBuf]) -> Result<&'a Path> {
    match files {
        [file] => Ok(file),
        _ => {
            let got: Vec<String> = files.iter().map(|file| file_name(file)).collect();
            let got = if got.is_empty() { "none".to_owned() } else { format!("{}; name one of them", got.join(", ")) };
            Err(Error::config(directory.display().to_string(), what.to_owned(), got))
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn text<'a>(gguf: &'a Gguf, key: &str) -> Result<&'a str> {
    let value = gguf.metadata(key);
    value.and_then(Value::as_str).ok_or_else(|| unexpected(gguf, key, "a text", value.map_or("nothing", |_| "another")))
}

fn number(gguf: &Gguf, key: &str) -> Result<u64> {
    let value = gguf.metadata(key);
    value
        .and_then(Value::as_u64)
        .ok_or_else(|| unexpected(gguf, key, "a count", value.map_or("nothing", |_| "another")))
}

fn array<'a>(gguf: &'a Gguf, key: &str) -> Option<&'a Array> {
    gguf.metadata(key).and_then(Value::as_array)
}

fn unexpected(gguf: &Gguf, key: &str, expected: impl ToString, got: impl ToString) -> Error {
    Error::config(format!("{}, `{key}`", gguf.path().display()), expected.to_string(), got.to_string())
}
