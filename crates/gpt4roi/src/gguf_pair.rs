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
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use gpt4roi_kernels::{HalfFormat, HalfMatrix};

pub use crate::gguf_names::stored_row;
use crate::{
    config::Config,
    error::{Error, Result},
    ggml_type::GgmlType,
    gguf::{Array, Gguf, GgufTensor, Value},
    gguf_names::{is_interleaved, to_published},
    layers::Matrix,
    sentencepiece::{Kind, Piece, Roles, SentencePiece, byte_of},
    tokenizer::Tokenizer,
    weights::{StoredTensor, TensorSource, TensorStore, WeightsError, WeightsResult},
};

pub(crate) const CONFIG: &str = "gpt4roi.config";
pub(crate) const VISION_CONFIG: &str = "gpt4roi.vision_config";
pub(crate) const PIECE_COUNT: &str = "gpt4roi.piece_count";

pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(crate) const SCORES: &str = "tokenizer.ggml.scores";
pub(crate) const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
pub(crate) const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
pub(crate) const BOS: &str = "tokenizer.ggml.bos_token_id";
pub(crate) const EOS: &str = "tokenizer.ggml.eos_token_id";
pub(crate) const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";

// `llama_token_type` of llama.cpp.
pub(crate) const NORMAL: i32 = 1;
pub(crate) const UNKNOWN_PIECE: i32 = 2;
pub(crate) const CONTROL: i32 = 3;
pub(crate) const UNUSED: i32 = 5;
pub(crate) const BYTE: i32 = 6;

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
        let files = [&self.language, &self.projector];
        let all = GgufWeights::of(&files, llama.hidden_size / llama.num_attention_heads, device)?;
        let (tower, model) = all.places.into_iter().partition(|(name, _)| name.starts_with("vision_model."));
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
    /// All tensors of these files; a head of the language model has so many rows.
    pub(crate) fn of(files: &[&Arc<Gguf>], head: usize, device: &Device) -> Result<Self> {
        let mut places = BTreeMap::new();
        for &gguf in files {
            for tensor in gguf.tensors() {
                let name = to_published(tensor.name).unwrap_or_else(|| tensor.name.to_owned());
                let head = is_interleaved(&name).then_some(head);
                let place = Place { gguf: gguf.clone(), name: tensor.name.to_owned(), head };
                if places.insert(name, place).is_some() {
                    let what = format!("tensor `{}` stands there twice", tensor.name);
                    return Err(WeightsError::Corrupt { file: gguf.path().to_owned(), what }.into());
                }
            }
        }
        Ok(Self { places, device: device.clone() })
    }

    /// A tensor as it is stored, by its published name; and, if the two halves of each head of it are
    /// interleaved, how many rows a head has: the published row `r` is then row [`stored_row`] of it.
    pub fn blocks(&self, name: &str) -> Option<(GgufTensor<'_>, Option<usize>)> {
        let place = self.places.get(name)?;
        Some((place.gguf.tensor(&place.name)?, place.head))
    }
}

impl GgufWeights {
    /// A tensor as it is stored, of the shape that is asked for.
    fn stored_as(&self, name: &str, shape: &[usize]) -> WeightsResult<(GgufTensor<'_>, Option<usize>)> {
        match self.blocks(name) {
            None => Err(WeightsError::Missing { name: name.to_owned(), expected: shape.to_vec() }),
            Some((stored, _)) if stored.shape != shape => {
                let (expected, got) = (shape.to_vec(), stored.shape.to_vec());
                Err(WeightsError::Shape { name: name.to_owned(), expected, got })
            }
            Some(found) => Ok(found),
        }
    }

    /// A matrix of 16-bit numbers where it lies in the file, or a copy of it if its rows stand in another order there;
    /// `None` for other numbers and on other devices.
    fn half_matrix(&self, name: &str, [rows, columns]: [usize; 2]) -> WeightsResult<Option<Matrix>> {
        let Some(place) = self.places.get(name).filter(|_| self.device.is_cpu()) else { return Ok(None) };
        let (Some(stored), Some(bytes)) = (place.gguf.tensor(&place.name), place.gguf.shared_bytes(&place.name)) else {
            return Ok(None);
        };
        let format = match stored.kind {
            GgmlType::F16 => HalfFormat::F16,
            GgmlType::BF16 => HalfFormat::Bf16,
            _ => return Ok(None),
        };
        let bytes = match place.head {
            None => bytes,
            Some(head) => {
                let row = |row| &stored.bytes[2 * columns * stored_row(row, head)..][..2 * columns];
                (0..rows).map(row).collect::<Vec<_>>().concat().into()
            }
        };
        HalfMatrix::stored(format, rows, columns, bytes)
            .map(|matrix| Some(Matrix::Half(Arc::new(matrix))))
            .map_err(|source| WeightsError::Half { name: name.to_owned(), source })
    }

    /// Whoever asked has the numbers in a form of their own; those of the file are not needed any longer.
    fn release(&self, name: &str) {
        if let Some(place) = self.places.get(name) {
            place.gguf.release(&place.name);
        }
    }
}

impl TensorSource for GgufWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        self.stored_as(name, shape)?;
        let values = self.piece(name, 0..shape.iter().product())?;
        Tensor::from_vec(values, shape, &self.device)
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> WeightsResult<Matrix> {
        let (stored, head) = self.stored_as(name, &shape)?;
        let order = |row| head.map_or(row, |head| stored_row(row, head));
        let blocks = if self.device.is_cpu() {
            let matrix = stored.quant_matrix(order);
            let matrix = matrix.map_err(|source| WeightsError::Quantized { name: name.to_owned(), source })?;
            matrix.map(|matrix| Matrix::Quantized(Arc::new(matrix)))
        } else {
            let matrix = stored.engine_matrix(order, &self.device);
            matrix.map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })?.map(Matrix::Blocks)
        };
        if let Some(blocks) = blocks {
            self.release(name);
            return Ok(blocks);
        }
        match self.half_matrix(name, shape)? {
            Some(half) => Ok(half),
            None => self.tensor(name, &shape).map(Matrix::Dense),
        }
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
        if elements.start > elements.end || elements.end > tensor.rows() * columns {
            let what = format!("tensor `{name}` has no elements {elements:?}");
            return Err(WeightsError::Corrupt { file: self.places[name].gguf.path().to_owned(), what });
        }
        if elements.is_empty() {
            return Ok(Vec::new());
        }
        let rows = elements.start / columns..elements.end.div_ceil(columns);
        let width = tensor.bytes.len() / tensor.rows();
        let bytes = |rows: Range<usize>| &tensor.bytes[rows.start * width..rows.end * width];
        let values = match head {
            None => tensor.kind.dequantize(bytes(rows.clone())),
            Some(head) => {
                let stored = rows.clone().map(|row| stored_row(row, head)).filter(|row| *row < tensor.rows());
                let stored: Vec<u8> = stored.flat_map(|row| bytes(row..row + 1)).copied().collect();
                tensor.kind.dequantize(&stored)
            }
        };
        let mut values = values.map_err(error)?;
        self.release(name);
        let start = elements.start - rows.start * columns;
        values.truncate(start + elements.len());
        values.drain(..start);
        Ok(values)
    }
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

pub(crate) fn text<'a>(gguf: &'a Gguf, key: &str) -> Result<&'a str> {
    let value = gguf.metadata(key);
    value.and_then(Value::as_str).ok_or_else(|| unexpected(gguf, key, "a text", value.map_or("nothing", |_| "another")))
}

pub(crate) fn number(gguf: &Gguf, key: &str) -> Result<u64> {
    let value = gguf.metadata(key);
    value
        .and_then(Value::as_u64)
        .ok_or_else(|| unexpected(gguf, key, "a count", value.map_or("nothing", |_| "another")))
}

pub(crate) fn array<'a>(gguf: &'a Gguf, key: &str) -> Option<&'a Array> {
    gguf.metadata(key).and_then(Value::as_array)
}

pub(crate) fn unexpected(gguf: &Gguf, key: &str, expected: impl ToString, got: impl ToString) -> Error {
    Error::config(format!("{}, `{key}`", gguf.path().display()), expected.to_string(), got.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Gpt4Roi,
        convert::{IfExists, Parts},
        divergence::Divergence,
        fingerprint::Fingerprint,
        model::ModelFiles,
        quantize::Quantization,
    };

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openclip");

    /// The golden model as a pair in this precision, in a directory `tiny`.
    fn pair(place: &Path, quantization: Quantization) -> PathBuf {
        let out = place.join("tiny");
        let parts = Parts::directory(Path::new(GOLDEN)).unwrap();
        parts.write_gguf(&out, IfExists::Replace, quantization, Quantization::F16).unwrap();
        out
    }

    fn error_of(path: &Path) -> String {
        ModelFiles::at(path).and_then(|files| Gpt4Roi::from_files(&files, &Device::Cpu)).unwrap_err().to_string()
    }

    /// Names, order of rows, shapes and configuration survive: in half precision a pair and a directory
    /// of the same model have the same numbers.
    #[test]
    fn a_pair_is_the_model_that_it_was_made_of() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("half");
        Parts::directory(Path::new(GOLDEN)).unwrap().write_directory(&directory, IfExists::Refuse).unwrap();
        let (half, pair) =
            (ModelFiles::at(&directory).unwrap(), ModelFiles::at(&pair(place.path(), Quantization::F16)).unwrap());
        assert!(matches!(half, ModelFiles::Directory(_)) && matches!(pair, ModelFiles::Gguf { .. }));
        assert_eq!(Fingerprint::of(&half).unwrap(), Fingerprint::of(&pair).unwrap());
        assert_eq!(half.config().unwrap(), pair.config().unwrap());
        assert_eq!(Divergence::of(&half, &pair).unwrap().mean_kl, 0.0);
        let (half, pair) = (half.tokenizer().unwrap(), pair.tokenizer().unwrap());
        assert_eq!((half.special(), half.vocab_size()), (pair.special(), pair.vocab_size()));
        for text in ["What is region1 <bbox> doing?\n", "äöü 赤🐕 </s> [PAD]", "  two  spaces"] {
            assert_eq!(half.encode_text(text), pair.encode_text(text));
            assert_eq!(half.first_added_token(text), pair.first_added_token(text));
        }
    }

    #[test]
    fn quantised_models_open_too() {
        let place = tempfile::tempdir().unwrap();
        for quantization in [Quantization::Q8_0, Quantization::Q4K] {
            let out = pair(place.path(), quantization);
            let file = out.join(format!("tiny-{}.gguf", quantization.name()));
            Gpt4Roi::open(&file, &Device::Cpu).unwrap();
            Gpt4Roi::open(&out, &Device::Cpu).unwrap();
        }
    }

    /// In the published order, also where the file has another, and with the very numbers.
    #[test]
    fn sixteen_bits_stay_sixteen_bits() {
        let place = tempfile::tempdir().unwrap();
        let ModelFiles::Gguf { language, projector } = ModelFiles::at(&pair(place.path(), Quantization::F16)).unwrap()
        else {
            panic!("no pair")
        };
        let (model, _) = GgufPair::open(&language, &projector).unwrap().weights(&Device::Cpu).unwrap();
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"] {
            let name = format!("model.layers.1.{name}.weight");
            let shape: [usize; 2] = model.blocks(&name).unwrap().0.shape.try_into().unwrap();
            let Matrix::Half(half) = model.matrix(&name, shape).unwrap() else { panic!("{name} was widened") };
            let (whole, mut row) = (model.piece(&name, 0..shape[0] * shape[1]).unwrap(), vec![0.0; shape[1]]);
            for (index, expected) in whole.chunks(shape[1]).enumerate() {
                half.row(index, &mut row);
                assert_eq!(row, expected, "{name}, row {index}");
            }
        }
    }

    /// Any stretch of a tensor is the same stretch of the whole.
    #[test]
    fn pieces_of_interleaved_rows_are_parts_of_the_whole() {
        let place = tempfile::tempdir().unwrap();
        let ModelFiles::Gguf { language, projector } = ModelFiles::at(&pair(place.path(), Quantization::F16)).unwrap()
        else {
            panic!("no pair")
        };
        let (model, _) = GgufPair::open(&language, &projector).unwrap().weights(&Device::Cpu).unwrap();
        let name = "model.layers.1.self_attn.q_proj.weight";
        let whole = model.piece(name, 0..256).unwrap();
        for range in [0..1, 3..40, 15..17, 100..256, 7..7] {
            assert_eq!(model.piece(name, range.clone()).unwrap(), whole[range]);
        }
    }

    #[test]
    fn files_that_are_no_pair_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let out = pair(place.path(), Quantization::F16);
        let (language, projector) = (out.join("tiny-f16.gguf"), out.join("mmproj-tiny.gguf"));

        std::fs::copy(&language, out.join("other-f16.gguf")).unwrap();
        let error = error_of(&out);
        assert!(error.contains("other-f16.gguf, tiny-f16.gguf; name one of them"), "{error}");
        assert!(Gpt4Roi::open(&language, &Device::Cpu).is_ok());
        assert!(Gpt4Roi::open(out.join("other-f16.gguf"), &Device::Cpu).is_ok(), "the only projector there is");
        std::fs::remove_file(out.join("other-f16.gguf")).unwrap();

        std::fs::rename(&projector, out.join("mmproj-tiny.moved")).unwrap();
        let error = error_of(&language);
        assert!(error.contains("expected a projector mmproj-NAME.gguf, got none"), "{error}");
        std::fs::copy(&language, &projector).unwrap();
        let error = error_of(&language);
        assert!(error.contains("`general.architecture`: expected clip, got llama"), "{error}");
    }
}
