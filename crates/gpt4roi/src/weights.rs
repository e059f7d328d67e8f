//! Tensors by the names of the published checkpoint.
//!
//! The model asks for each tensor by name and shape. Where it comes from (files, an initialiser, a
//! trainer's variables) is the business of a [`TensorSource`]. [`Checkpoint`] is the one that reads
//! files: safetensors itself, torch pickles with the help of `torch_pickle`.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Tensor};
use gpt4roi_kernels::{HalfError, QuantError};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use safetensors::Dtype;
use serde::de::{MapAccess, Visitor};

use crate::{layers::Matrix, precision::Precision, torch_pickle};

/// The result of taking tensors out of a checkpoint.
pub type WeightsResult<T> = Result<T, WeightsError>;

/// A checkpoint that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The model needs a tensor that is not there.
    #[error("tensor `{name}` is missing (expected shape {expected:?})")]
    Missing {
        /// Its full name.
        name: String,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Its full name.
        name: String,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A tensor holds numbers of a kind that weights don't come in.
    #[error("tensor `{name}` in {} holds {got:?}, expected F16, BF16 or F32", file.display())]
    DType {
        /// Its full name.
        name: String,
        /// Where it is stored.
        file: PathBuf,
        /// What it holds.
        got: Dtype,
    },
    /// The engine failed while a tensor was made or converted.
    #[error("tensor `{name}`: {source}")]
    Tensor {
        /// Its full name.
        name: String,
        /// Why.
        source: candle_core::Error,
    },
    /// Blocks of a quantised tensor are damaged.
    #[error("tensor `{name}`: {source}")]
    Quantized {
        /// Its full name.
        name: String,
        /// What is wrong.
        source: QuantError,
    },
    /// A tensor can't be kept in 16 bits.
    #[error("tensor `{name}`: {source}")]
    Half {
        /// Its full name.
        name: String,
        /// Why.
        source: HalfError,
    },
    /// The tensors of a checkpoint are not those of the model.
    #[error("the checkpoint does not fit its configuration: {0}")]
    Unfit(Box<LoadReport>),
    /// A directory holds no weights in a known format.
    #[error("{}: no weights; expected one of {}", directory.display(), WEIGHT_FILES.join(", "))]
    NoWeights {
        /// The directory.
        directory: PathBuf,
    },
    /// A file of weights can't be read.
    #[error("{}: {source}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of weights contradicts its own format.
    #[error("{}: {what}", file.display())]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// What is wrong, where.
        what: String,
    },
}

/// Hands out tensors by full name, in f32.
pub trait TensorSource: Send + Sync {
    /// The tensor of this name, which must have this shape.
    ///
    /// # Errors
    /// If there is none, or if it has another shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor>;

    /// The weight `[output, input]` of a linear layer or of an embedding. A source whose matrices are stored
    /// in blocks hands them out as they are; all others, and whoever wants to train them, have tensors.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    fn matrix(&self, name: &str, shape: [usize; 2]) -> WeightsResult<Matrix> {
        self.tensor(name, &shape).map(Matrix::Dense)
    }
}

/// A source that knows all it has, and reads it piece by piece.
pub trait TensorStore: TensorSource {
    /// What is stored, by name.
    fn stored(&self) -> Vec<StoredTensor>;

    /// A stretch of a tensor's numbers in f32, row by row.
    ///
    /// # Errors
    /// If there is no such tensor, it is shorter, or it does not hold floats.
    fn piece(&self, name: &str, elements: Range<usize>) -> WeightsResult<Vec<f32>>;
}

/// The extents of tensors by their names.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// What a store says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its published name.
    pub name: String,
    /// What kind of numbers: `F16`, `BF16`, `F32`, …, or ggml's `q4_k`, ….
    pub numbers: String,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// Where it lies.
    pub file: PathBuf,
}

/// A place in the tree of names, from which a layer takes its tensors.
#[derive(Clone)]
pub struct Weights {
    source: Arc<dyn TensorSource>,
    prefix: String,
    precision: Precision,
}

impl Weights {
    /// The root of a source.
    pub fn new(source: Arc<dyn TensorSource>) -> Self {
        Self { source, prefix: String::new(), precision: Precision::F32 }
    }

    /// The same weights, kept in so many bits; without this, it is f32.
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The subtree `name`, e.g. `weights.at("model").at("layers.0")`.
    pub fn at(&self, name: impl fmt::Display) -> Self {
        let prefix = format!("{}{name}.", self.prefix);
        Self { source: self.source.clone(), prefix, precision: self.precision }
    }

    /// The tensor `name` of this subtree.
    ///
    /// # Errors
    /// See [`TensorSource::tensor`].
    pub fn get(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        let name = format!("{}{name}", self.prefix);
        let tensor = self.source.tensor(&name, shape)?;
        self.precision.tensor(tensor).map_err(|source| WeightsError::Tensor { name, source })
    }

    /// The matrix `name` of this subtree, quantised if the source has it so.
    ///
    /// # Errors
    /// See [`TensorSource::tensor`].
    pub fn get_matrix(&self, name: &str, shape: [usize; 2]) -> WeightsResult<Matrix> {
        let name = format!("{}{name}", self.prefix);
        self.precision.matrix(&name, self.source.matrix(&name, shape)?)
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// A source that only writes down what it is asked for, and hands out zeros that take no memory.
///
/// A network loaded from it yields the names and shapes of all its parameters.
#[derive(Debug, Default)]
pub struct Census {
    asked: Mutex<Shapes>,
}

impl Census {
    /// The shapes asked for so far, by name.
    pub fn asked(&self) -> Shapes {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl TensorSource for Census {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), shape.to_vec());
        Tensor::zeros((), DType::F32, &Device::Cpu)
            .and_then(|zero| zero.broadcast_as(shape))
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
    }
}

/// The files that weights may lie in, in the order in which they are looked for.
const WEIGHT_FILES: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// The tensors of one directory or of one file in memory.
///
/// Opening reads headers only. A tensor is read when it is asked for, and goes from the file to f32
/// piece by piece, so that no checkpoint is ever held twice.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, (usize, TensorEntry)>,
    notes: BTreeMap<String, String>,
    device: Device,
}

/// How one tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// What kind of numbers.
    pub dtype: Dtype,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// Elements from one index of each dimension to the next; `None` where they lie row by row.
    pub(crate) strides: Option<Vec<usize>>,
    /// Byte of the file at which the first element lies.
    pub(crate) offset: u64,
}

impl TensorEntry {
    fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Checkpoint {
    /// Opens the weights of a directory: `model.safetensors`, or `pytorch_model.bin`, or the shards
    /// that the index of either names.
    ///
    /// # Errors
    /// If there are none, a shard is missing or a file is damaged.
    pub fn open(directory: impl AsRef<Path>, device: &Device) -> WeightsResult<Self> {
        let directory = directory.as_ref();
        let file = WEIGHT_FILES.map(|name| directory.join(name)).into_iter().find(|file| file.is_file());
        let file = file.ok_or_else(|| WeightsError::NoWeights { directory: directory.to_owned() })?;
        if file.extension().is_some_and(|extension| extension == "json") {
            Self::open_shards(directory, &file, device)
        } else {
            Self::from_files(vec![WeightFile::open(file)?], device)
        }
    }

    /// Opens one file: safetensors, or a torch pickle if it ends in `.bin`, `.pt` or `.pth`.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn open_file(file: impl Into<PathBuf>, device: &Device) -> WeightsResult<Self> {
        Self::from_files(vec![WeightFile::open(file.into())?], device)
    }

    /// Takes a whole file that is in memory already.
    ///
    /// # Errors
    /// If it is damaged; `name` stands for it in the message.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>, device: &Device) -> WeightsResult<Self> {
        Self::from_files(vec![WeightFile { path: name.into(), content: Content::Bytes(bytes.into()) }], device)
    }

    /// The stored tensors by name, each with its file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorEntry, &Path)> {
        self.tensors.iter().map(|(name, (file, entry))| (name.as_str(), entry, self.files[*file].path.as_path()))
    }

    /// What a safetensors file says about itself beside its tensors, in the texts of its `__metadata__`.
    pub fn note(&self, key: &str) -> Option<&str> {
        self.notes.get(key).map(String::as_str)
    }

    fn open_shards(directory: &Path, index: &Path, device: &Device) -> WeightsResult<Self> {
        let text = std::fs::read_to_string(index).map_err(unreadable(index))?;
        let shards = parse_index(&text).map_err(corrupt(index))?;
        let files = shards.values().collect::<BTreeSet<_>>();
        let files = files.iter().map(|shard| WeightFile::open(directory.join(shard)));
        let checkpoint = Self::from_files(files.collect::<WeightsResult<_>>()?, device)?;
        for (name, shard) in &shards {
            let found = checkpoint.tensors.get(name).map(|(file, _)| checkpoint.files[*file].path.as_path());
            if found != Some(&directory.join(shard)) {
                return Err(corrupt(index)(format!("tensor `{name}` is not in {shard}, where the index says it is")));
            }
        }
        Ok(checkpoint)
    }

    fn from_files(files: Vec<WeightFile>, device: &Device) -> WeightsResult<Self> {
        let mut tensors: BTreeMap<String, (usize, TensorEntry)> = BTreeMap::new();
        let mut notes = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            let contents = file.contents()?;
            notes.extend(contents.notes);
            for (name, entry) in contents.tensors {
                if let Some((other, _)) = tensors.get(&name) {
                    let what = format!("tensor `{name}` stands in {} as well", files[*other].path.display());
                    return Err(corrupt(&file.path)(what));
                }
                tensors.insert(name, (index, entry));
            }
        }
        Ok(Self { files, tensors, notes, device: device.clone() })
    }
}

impl TensorSource for Checkpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        let Some((_, entry)) = self.tensors.get(name) else {
            return Err(WeightsError::Missing { name: name.to_owned(), expected: shape.to_vec() });
        };
        if entry.shape != shape {
            let (expected, got) = (shape.to_vec(), entry.shape.clone());
            return Err(WeightsError::Shape { name: name.to_owned(), expected, got });
        }
        let values = self.piece(name, 0..entry.count())?;
        Tensor::from_vec(values, shape, &self.device)
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
    }
}

impl TensorStore for Checkpoint {
    fn stored(&self) -> Vec<StoredTensor> {
        let stored = |(name, entry, file): (&str, &TensorEntry, &Path)| StoredTensor {
            name: name.to_owned(),
            numbers: format!("{:?}", entry.dtype),
            shape: entry.shape.clone(),
            file: file.to_owned(),
        };
        self.tensors().map(stored).collect()
    }

    fn piece(&self, name: &str, elements: Range<usize>) -> WeightsResult<Vec<f32>> {
        let Some((file, entry)) = self.tensors.get(name) else {
            return Err(WeightsError::Missing { name: name.to_owned(), expected: Vec::new() });
        };
        let file = &self.files[*file];
        if !matches!(entry.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32) {
            return Err(WeightsError::DType { name: name.to_owned(), file: file.path.clone(), got: entry.dtype });
        }
        if elements.start > elements.end || elements.end > entry.count() {
            return Err(corrupt(&file.path)(format!("tensor `{name}` has no elements {elements:?}")));
        }
        file.values(entry, elements).map_err(unreadable(&file.path))
    }
}

/// What became of every tensor of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Asked for and there.
    pub loaded: Vec<String>,
    /// Left aside: published files carry them, and the model does not need them.
    pub ignored: Vec<String>,
    /// There, and nobody knows what for.
    pub unused: Vec<String>,
    /// Asked for and not there, with the shape expected.
    pub missing: Vec<(String, Vec<usize>)>,
    /// There in another shape: name, shape expected, shape got.
    pub wrong_shape: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl LoadReport {
    /// Compares what is stored with what a network asks for, reading no tensor.
    ///
    /// `is_leftover` knows the names that published files carry and the network does not need.
    pub fn new(stored: &[StoredTensor], asked: &Shapes, is_leftover: impl Fn(&str) -> bool) -> Self {
        let mut report = Self::default();
        let shapes: BTreeMap<&str, &Vec<usize>> =
            stored.iter().map(|tensor| (tensor.name.as_str(), &tensor.shape)).collect();
        for (name, expected) in asked {
            match shapes.get(name.as_str()) {
                None => report.missing.push((name.clone(), expected.clone())),
                Some(got) if *got != expected => {
                    report.wrong_shape.push((name.clone(), expected.clone(), (*got).clone()));
                }
                Some(_) => report.loaded.push(name.clone()),
            }
        }
        for name in shapes.into_keys().filter(|name| !asked.contains_key(*name)) {
            let kind = if is_leftover(name) { &mut report.ignored } else { &mut report.unused };
            kind.push(name.to_owned());
        }
        report
    }

    /// This report and another one, e.g. of the vision tower's own files.
    pub fn and(mut self, other: Self) -> Self {
        self.loaded.extend(other.loaded);
        self.ignored.extend(other.ignored);
        self.unused.extend(other.unused);
        self.missing.extend(other.missing);
        self.wrong_shape.extend(other.wrong_shape);
        self
    }

    /// The report of a checkpoint that fits: nothing unused, missing or of a wrong shape.
    ///
    /// # Errors
    /// If it does not.
    pub fn strict(self) -> WeightsResult<Self> {
        if self.unused.is_empty() && self.missing.is_empty() && self.wrong_shape.is_empty() {
            Ok(self)
        } else {
            Err(WeightsError::Unfit(Box::new(self)))
        }
    }
}

/// Names the first few tensors of each kind of trouble, and counts them all.
impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = self.missing.iter().map(|(name, shape)| format!("`{name}` {shape:?}"));
        let wrong = self.wrong_shape.iter();
        let wrong = wrong.map(|(name, expected, got)| format!("`{name}` expected {expected:?}, got {got:?}"));
        let unused = self.unused.iter().map(|name| format!("`{name}`"));
        write!(f, "{} tensors loaded, {} left aside", self.loaded.len(), self.ignored.len())?;
        write_some(f, "missing", missing)?;
        write_some(f, "of another shape", wrong)?;
        write_some(f, "unknown", unused)
    }
}

fn write_some(f: &mut fmt::Formatter<'_>, what: &str, items: impl ExactSizeIterator<Item = String>) -> fmt::Result {
    const SHOWN: usize = 5;
    let count = items.len();
    if count == 0 {
        return Ok(());
    }
    write!(f, "; {count} {what}: {}", items.take(SHOWN).collect::<Vec<_>>().join(", "))?;
    if count > SHOWN { write!(f, " and {} more", count - SHOWN) } else { Ok(()) }
}

/// Whether published language-model files carry this tensor although nobody needs it: a table of
/// rotary frequencies, rounded to float16, that is computed afresh.
pub fn is_leftover_of_model(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

/// Whether a published vision tower carries this tensor although a network of `depth` tower layers
/// does not need it: later layers, the norm behind them, position numbers, and the other parts of a
/// whole CLIP.
pub fn is_leftover_of_tower(name: &str, depth: usize) -> bool {
    let layer = name.strip_prefix("vision_model.encoder.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
    layer.is_some_and(|layer: usize| layer >= depth)
        || name.starts_with("text_model.")
        || name.starts_with("vision_model.post_layernorm.")
        || matches!(
            name,
            "vision_model.embeddings.position_ids"
                | "visual_projection.weight"
                | "text_projection.weight"
                | "logit_scale"
        )
}

/// What a file of weights holds.
#[derive(Debug)]
struct Contents {
    tensors: Vec<(String, TensorEntry)>,
    notes: BTreeMap<String, String>,
}

/// A file of weights, open.
#[derive(Debug)]
struct WeightFile {
    path: PathBuf,
    content: Content,
}

impl WeightFile {
    fn open(path: PathBuf) -> WeightsResult<Self> {
        let file = File::open(&path).map_err(unreadable(&path))?;
        Ok(Self { path, content: Content::File(Mutex::new(file)) })
    }

    /// Reads the table of contents; the extension tells which kind.
    fn contents(&self) -> WeightsResult<Contents> {
        let mut reader = self.content.reader();
        if ["bin", "pt", "pth"].iter().any(|torch| self.path.extension().is_some_and(|own| own == *torch)) {
            let tensors = torch_pickle::torch_tensors(&mut reader).map_err(corrupt(&self.path))?;
            return Ok(Contents { tensors, notes: BTreeMap::new() });
        }
        let length = reader.seek(SeekFrom::End(0)).and_then(|length| reader.rewind().map(|()| length));
        let length = length.map_err(unreadable(&self.path))?;
        safetensors_contents(&mut reader, length).map_err(corrupt(&self.path))
    }

    /// A stretch of a tensor's elements in f32, row by row.
    fn values(&self, entry: &TensorEntry, elements: Range<usize>) -> io::Result<Vec<f32>> {
        let Some(strides) = &entry.strides else {
            let start = (elements.start * entry.dtype.bitsize() / 8) as u64;
            return self.read(entry.dtype, entry.offset + start, elements.len());
        };
        let last = entry.shape.iter().zip(strides).map(|(extent, stride)| (extent - 1) * stride).sum::<usize>();
        let span = self.read(entry.dtype, entry.offset, last + 1)?;
        Ok(gather(&span, &entry.shape, strides, elements))
    }

    /// `count` numbers from byte `offset` on, in f32.
    fn read(&self, dtype: Dtype, offset: u64, count: usize) -> io::Result<Vec<f32>> {
        const PIECE: usize = 1 << 16; // numbers converted at a time
        let mut reader = self.content.reader();
        reader.seek(SeekFrom::Start(offset))?;
        let mut values = vec![0f32; count];
        let mut bytes = vec![0u8; count.min(PIECE) * dtype.bitsize() / 8];
        for piece in values.chunks_mut(PIECE) {
            let bytes = &mut bytes[..piece.len() * dtype.bitsize() / 8];
            reader.read_exact(bytes)?;
            widen(dtype, bytes, piece);
        }
        Ok(values)
    }
}

/// Little-endian numbers to f32; both slices hold equally many.
fn widen(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    let pairs = bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        Dtype::F16 => pairs.map(f16::from_le_bytes).collect::<Vec<_>>().convert_to_f32_slice(values),
        Dtype::BF16 => pairs.map(bf16::from_le_bytes).collect::<Vec<_>>().convert_to_f32_slice(values),
        _ => {
            for (value, four) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            }
        }
    }
}

/// Lays a stretch of a strided tensor out row by row.
fn gather(span: &[f32], shape: &[usize], strides: &[usize], elements: Range<usize>) -> Vec<f32> {
    let place = |element: usize| {
        let dimensions = shape.iter().zip(strides).rev();
        dimensions
            .fold((element, 0), |(rest, place), (extent, stride)| (rest / extent, place + rest % extent * stride))
            .1
    };
    elements.map(|element| span[place(element)]).collect()
}

/// Where the bytes of a file are.
enum Content {
    File(Mutex<File>),
    Bytes(Cow<'static, [u8]>),
}

impl Content {
    /// A reader of its own place; one file has one reader at a time.
    fn reader(&self) -> Box<dyn ReadSeek + '_> {
        match self {
            Self::File(file) => Box::new(Locked(file.lock().unwrap_or_else(PoisonError::into_inner))),
            Self::Bytes(bytes) => Box::new(io::Cursor::new(bytes.as_ref())),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(_) => f.write_str("File"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

/// What a file and bytes in memory have in common.
pub(crate) trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// A file for as long as nobody else may move its place.
struct Locked<'a>(std::sync::MutexGuard<'a, File>);

impl Read for Locked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for Locked<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// Where the index of a sharded checkpoint says that each tensor is.
fn parse_index(text: &str) -> Result<BTreeMap<String, String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match index.weight_map.values().find(|shard| Path::new(shard).file_name() != Some(shard.as_ref())) {
        Some(shard) => Err(format!("shard {shard:?} is not a file name")),
        None => Ok(index.weight_map),
    }
}

/// Longest safetensors header; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Reads and checks the header of a safetensors file of `length` bytes: 8 bytes of length, JSON, data.
fn safetensors_contents(reader: &mut impl Read, length: u64) -> Result<Contents, String> {
    let mut size = [0; 8];
    reader.read_exact(&mut size).map_err(|_| format!("{length} bytes are too short for a safetensors file"))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size > length - 8 {
        return Err(format!("a header of {size} bytes in a file of {length} (at most {MAX_HEADER} are allowed)"));
    }
    let mut header = vec![0; size as usize];
    reader.read_exact(&mut header).map_err(|error| format!("header: {error}"))?;
    let Header { mut entries, notes } = serde_json::from_slice(&header).map_err(|error| format!("header: {error}"))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let data = 8 + size;
    let mut end = 0; // of the data of the entries so far
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, HeaderEntry { dtype, shape, data_offsets: (from, to) }) in entries {
        if from != end || to < from || to > length - data {
            return Err(format!(
                "tensor `{name}` claims bytes {from}..{to}, expected them to begin at {end} and to end within {}",
                length - data
            ));
        }
        let count = shape.iter().try_fold(1u64, |count, extent| count.checked_mul(*extent as u64));
        let bits = count.and_then(|count| count.checked_mul(dtype.bitsize() as u64));
        if bits != (to - from).checked_mul(8) {
            return Err(format!("tensor `{name}` of {dtype:?} {shape:?} claims {} bytes", to - from));
        }
        end = to;
        tensors.push((name, TensorEntry { dtype, shape, strides: None, offset: data + from }));
    }
    if end != length - data {
        return Err(format!("{} bytes behind the last tensor", length - data - end));
    }
    Ok(Contents { tensors, notes })
}

/// The JSON of a safetensors file. A map would silently keep the last of equal names.
struct Header {
    entries: Vec<(String, HeaderEntry)>,
    notes: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct HeaderEntry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let (mut entries, mut names, mut notes) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("`{name}` stands there twice")));
                    }
                    if name == "__metadata__" {
                        notes = texts(map.next_value()?);
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header { entries, notes })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The fields of an object that are texts, as all of `__metadata__` should be. Nothing depends on what else is there.
fn texts(metadata: serde_json::Value) -> BTreeMap<String, String> {
    let serde_json::Value::Object(fields) = metadata else { return BTreeMap::new() };
    let text = |(key, value)| match value {
        serde_json::Value::String(text) => Some((key, text)),
        _ => None,
    };
    fields.into_iter().filter_map(text).collect()
}

fn unreadable(file: &Path) -> impl FnOnce(io::Error) -> WeightsError {
    move |source| WeightsError::File { file: file.to_owned(), source }
}

fn corrupt(file: &Path) -> impl Fn(String) -> WeightsError {
    move |what| WeightsError::Corrupt { file: file.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// A safetensors file: header as given, then so many bytes of data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..data).map(|index| index as u8));
        bytes
    }

    const PAIR: &str = r#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},
        "b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"__metadata__":{"format":"pt"}}"#;

    fn open(bytes: Vec<u8>) -> WeightsResult<Checkpoint> {
        Checkpoint::from_bytes("some.safetensors", bytes, &Device::Cpu)
    }

    fn values(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Vec<f32> {
        checkpoint.tensor(name, shape).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_kind_of_float_becomes_f32() {
        let header = r#"{"f32":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "f16":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},
            "bf16":{"dtype":"BF16","shape":[1,2],"data_offsets":[12,16]},
            "i64":{"dtype":"I64","shape":[],"data_offsets":[16,24]},
            "none":{"dtype":"F32","shape":[0,7],"data_offsets":[24,24]}}"#;
        let mut bytes = file(header, 0);
        bytes.extend([1.5f32, -2.0].iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend([0x00, 0x3e, 0x00, 0xc0]); // 1.5 and -2 in half precision
        bytes.extend([0xc0, 0x3f, 0x00, 0xc0]); // and in bfloat16
        bytes.extend(7i64.to_le_bytes());
        let checkpoint = open(bytes).unwrap();
        for (name, shape) in [("f32", [2].as_slice()), ("f16", &[2]), ("bf16", &[1, 2])] {
            assert_eq!(values(&checkpoint, name, shape), [1.5, -2.0], "{name}");
        }
        assert_eq!(values(&checkpoint, "none", &[0, 7]), [0f32; 0]);
        let error = checkpoint.tensor("i64", &[]).unwrap_err().to_string();
        assert_eq!(error, "tensor `i64` in some.safetensors holds I64, expected F16, BF16 or F32");
        let error = checkpoint.tensor("f16", &[2, 1]).unwrap_err().to_string();
        assert_eq!(error, "tensor `f16` has shape [2], expected [2, 1]");
        let error = checkpoint.tensor("f64", &[1]).unwrap_err().to_string();
        assert_eq!(error, "tensor `f64` is missing (expected shape [1])");
    }

    #[test]
    fn long_tensors_are_read_whole() {
        let count = 3 * (1 << 16) + 5; // several pieces, the last one short
        let header = format!(r#"{{"x":{{"dtype":"F16","shape":[{count}],"data_offsets":[0,{}]}}}}"#, 2 * count);
        let mut bytes = file(&header, 0);
        bytes.extend((0..count).flat_map(|index| f16::from_f32((index % 2048) as f32).to_le_bytes()));
        let expected: Vec<f32> = (0..count).map(|index| (index % 2048) as f32).collect();
        assert_eq!(values(&open(bytes).unwrap(), "x", &[count]), expected);
    }

    #[test]
    fn what_a_file_says_about_itself_is_read_where_it_is_text() {
        let checkpoint = open(file(PAIR, 14)).unwrap();
        assert_eq!((checkpoint.note("format"), checkpoint.note("a")), (Some("pt"), None));
        let with = |metadata: &str| open(file(&PAIR.replace(r#"{"format":"pt"}"#, metadata), 14)).unwrap();
        assert_eq!(with(r#"{"format":7,"base":"x"}"#).note("format"), None);
        assert_eq!(with(r#"{"format":7,"base":"x"}"#).note("base"), Some("x"));
        assert_eq!(with("null").note("format"), None);
    }

    #[test]
    fn damaged_headers_are_refused() {
        let entry = |fields: &str| format!(r#"{{"a":{{{fields}}}}}"#);
        for (bytes, expected) in [
            (vec![1, 2, 3], "3 bytes are too short"),
            (u64::MAX.to_le_bytes().to_vec(), "a header of 18446744073709551615 bytes in a file of 8"),
            (file(PAIR, 14)[..100].to_vec(), "bytes in a file of 100"),
            (file("nonsense", 0), "header: expected ident"),
            (file("[]", 0), "expected tensors by name"),
            (file(PAIR, 13), "tensor `b` claims bytes 8..14, expected them to begin at 8 and to end within 13"),
            (file(PAIR, 15), "1 bytes behind the last tensor"),
            (file(&PAIR.replace("[8,14]", "[7,13]"), 14), "tensor `b` claims bytes 7..13, expected them to begin at 8"),
            (file(&PAIR.replace("[8,14]", "[9,15]"), 15), "tensor `b` claims bytes 9..15"),
            (file(&PAIR.replace("\"b\"", "\"a\""), 14), "`a` stands there twice"),
            (file(&entry(r#""dtype":"F32","shape":[2],"data_offsets":[0,7]"#), 7), "of F32 [2] claims 7 bytes"),
            (file(&entry(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#), 8), "tensor `a` claims bytes 8..0"),
            (file(&entry(r#""dtype":"F3","shape":[2],"data_offsets":[0,8]"#), 8), "unknown variant `F3`"),
            (file(&entry(r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#), 8), "invalid value: integer `-2`"),
            (
                file(&entry(r#""dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]"#), 8),
                "claims 8 bytes",
            ),
        ] {
            let error = open(bytes).unwrap_err().to_string();
            assert!(error.starts_with("some.safetensors: ") && error.contains(expected), "{error}, not {expected}");
        }
    }

    #[test]
    fn a_directory_may_hold_shards() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
        let open = || Checkpoint::open(directory.path(), &Device::Cpu);
        let error_of = || open().unwrap_err().to_string();
        assert!(error_of().contains("no weights; expected one of model.safetensors, "), "{}", error_of());

        let one = r#"{"c":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#;
        write("one.safetensors", &file(one, 2));
        write("two.safetensors", &file(PAIR, 14));
        let index =
            r#"{"metadata":{},"weight_map":{"a":"two.safetensors","b":"two.safetensors","c":"one.safetensors"}}"#;
        write("model.safetensors.index.json", index.as_bytes());
        let names: Vec<_> = open().unwrap().tensors().map(|(name, ..)| name.to_owned()).collect();
        assert_eq!(names, ["a", "b", "c"]);

        for (index, expected) in [
            (index.replace("\"a\"", "\"d\""), "tensor `d` is not in two.safetensors"),
            (index.replace("one.safetensors", "gone.safetensors"), "gone.safetensors"),
            (index.replace("one.safetensors", "../one.safetensors"), "shard \"../one.safetensors\" is not a file name"),
            ("{}".to_owned(), "missing field `weight_map`"),
        ] {
            write("model.safetensors.index.json", index.as_bytes());
            assert!(error_of().contains(expected), "{}", error_of());
        }
        write("model.safetensors.index.json", index.as_bytes());
        write("one.safetensors", &file(&one.replace("\"c\"", "\"a\""), 2));
        assert!(error_of().contains("tensor `a` stands in"), "{}", error_of());
    }

    #[test]
    fn the_report_tells_what_became_of_every_tensor() {
        let checkpoint = open(file(PAIR, 14)).unwrap();
        let asked = |names: &[(&str, &[usize])]| -> BTreeMap<String, Vec<usize>> {
            names.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
        };
        let report = LoadReport::new(&checkpoint.stored(), &asked(&[("a", &[2, 1]), ("b", &[3])]), |_| false);
        assert_eq!(report.clone().strict().unwrap().loaded, ["a", "b"]);
        assert_eq!(report.to_string(), "2 tensors loaded, 0 left aside");
        assert!(LoadReport::new(&checkpoint.stored(), &asked(&[("a", &[2, 1])]), |name| name == "b").strict().is_ok());

        let wrong =
            LoadReport::new(&checkpoint.stored(), &asked(&[("a", &[1, 2]), ("c", &[4]), ("d", &[])]), |_| false);
        assert_eq!(
            wrong.strict().unwrap_err().to_string(),
            "the checkpoint does not fit its configuration: 0 tensors loaded, 0 left aside; 2 missing: `c` [4], `d` []; \
             1 of another shape: `a` expected [1, 2], got [2, 1]; 1 unknown: `b`"
        );
        let many = LoadReport { unused: (0..7).map(|index| index.to_string()).collect(), ..LoadReport::default() };
        assert!(many.to_string().ends_with("7 unknown: `0`, `1`, `2`, `3`, `4` and 2 more"), "{many}");
    }

    #[test]
    fn leftovers_of_published_files_are_known() {
        assert!(is_leftover_of_model("model.layers.3.self_attn.rotary_emb.inv_freq"));
        assert!(!is_leftover_of_model("model.layers.3.self_attn.q_proj.weight"));
        for (name, expected) in [
            ("vision_model.encoder.layers.23.mlp.fc1.bias", true),
            ("vision_model.encoder.layers.22.mlp.fc1.bias", false),
            ("vision_model.embeddings.position_ids", true),
            ("vision_model.post_layernorm.weight", true),
            ("vision_model.pre_layrnorm.weight", false),
            ("text_model.final_layer_norm.weight", true),
            ("visual_projection.weight", true),
            ("text_projection.weight", true),
            ("logit_scale", true),
            ("vision_model.head.weight", false),
        ] {
            assert_eq!(is_leftover_of_tower(name, 23), expected, "{name}");
        }
    }

    #[test]
    fn a_census_takes_no_memory() {
        let census = Arc::new(Census::default());
        let huge = Weights::new(census.clone()).at("model").get("weight", &[1 << 20, 1 << 20]).unwrap();
        assert_eq!(huge.dims(), [1 << 20, 1 << 20]);
        assert_eq!(
            census.asked().into_iter().collect::<Vec<_>>(),
            [("model.weight".to_owned(), vec![1 << 20, 1 << 20])]
        );
    }

    proptest! {
        /// A damaged file is an error, or yields tensors that can be read.
        #[test]
        fn any_damage_ends_in_a_result(at in 0..file(PAIR, 14).len(), byte in any::<u8>(), cut in 0usize..300) {
            let mut bytes = file(PAIR, 14);
            bytes[at] = byte;
            bytes.truncate(bytes.len().min(cut));
            if let Ok(checkpoint) = open(bytes) {
                for (name, entry, _) in checkpoint.tensors() {
                    let _ = checkpoint.tensor(name, &entry.shape);
                }
            }
        }
    }
}
