//! GGUF, the file format of llama.cpp: metadata, then tensors, in one file.
//!
//! A file is mapped, not read, so that opening four gigabytes takes neither the time nor the memory
//! of a copy. Everything that a file claims about itself is checked before it is believed.
//!
//! Source: `docs/gguf.md` of ggml.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
};

use gpt4roi_kernels::{MappedFile, SharedBytes};

use crate::{
    ggml_type::GgmlType,
    weights::{WeightsError, WeightsResult},
};

const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: usize = 32;
const MAX_DIMENSIONS: usize = 4;

/// Longest metadata with the table of tensors. That of a 7B takes one megabyte; the limit bounds
/// what a hostile file can make the reader allocate.
const MAX_HEADER: usize = 256 << 20;

/// An open GGUF file.
pub struct Gguf {
    path: PathBuf,
    bytes: Arc<Bytes>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

enum Bytes {
    Mapped(MappedFile),
    InMemory(Cow<'static, [u8]>),
}

/// What the table says about one tensor, checked.
#[derive(Debug)]
struct Entry {
    kind: GgmlType,
    shape: Vec<usize>,
    start: usize,
    size: usize,
}

/// One tensor of a file, as it is stored.
#[derive(Clone, Copy, Debug)]
pub struct GgufTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// What its numbers are.
    pub kind: GgmlType,
    /// Extent of each dimension, the outermost first, as everywhere here (the file has the innermost first).
    pub shape: &'a [usize],
    /// Its blocks, row by row.
    pub bytes: &'a [u8],
}

impl Gguf {
    /// Maps a file and checks it.
    ///
    /// # Errors
    /// If it can't be read, is no GGUF, or contradicts itself.
    pub fn open(path: impl Into<PathBuf>) -> WeightsResult<Self> {
        let path = path.into();
        match MappedFile::open(&path) {
            Ok(file) => Self::read(path, Bytes::Mapped(file)),
            Err(source) => Err(WeightsError::File { file: path, source }),
        }
    }

    /// Takes a whole file that is in memory already.
    ///
    /// # Errors
    /// If it is damaged; `name` stands for it in the message.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> WeightsResult<Self> {
        Self::read(name.into(), Bytes::InMemory(bytes.into()))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A value by its key.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A tensor by its name.
    pub fn tensor(&self, name: &str) -> Option<GgufTensor<'_>> {
        self.tensors.get_key_value(name).map(|(name, entry)| self.tensor_at(name, entry))
    }

    /// All tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = GgufTensor<'_>> {
        self.tensors.iter().map(|(name, entry)| self.tensor_at(name, entry))
    }

    /// Gives the memory of a tensor's bytes back to the system; when they are touched they come from the file again.
    pub fn release(&self, name: &str) {
        if let (Bytes::Mapped(file), Some(entry)) = (&*self.bytes, self.tensors.get(name)) {
            file.release(entry.start..entry.start + entry.size);
        }
    }

    /// The bytes of a tensor, which keep the file open.
    pub(crate) fn shared_bytes(&self, name: &str) -> Option<SharedBytes> {
        let entry = self.tensors.get(name)?;
        Some(SharedBytes::new(self.bytes.clone(), entry.start..entry.start + entry.size))
    }

    fn tensor_at<'a>(&'a self, name: &'a str, entry: &'a Entry) -> GgufTensor<'a> {
        let bytes = &self.bytes[entry.start..entry.start + entry.size];
        GgufTensor { name, kind: entry.kind, shape: &entry.shape, bytes }
    }

    fn read(path: PathBuf, bytes: Bytes) -> WeightsResult<Self> {
        match read_header(&bytes) {
            Ok((metadata, tensors)) => Ok(Self { path, bytes: Arc::new(bytes), metadata, tensors }),
            Err(what) => Err(WeightsError::Corrupt { file: path, what }),
        }
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (values, tensors) = (self.metadata.len(), self.tensors.len());
        write!(f, "Gguf({}, {values} values, {tensors} tensors)", self.path.display())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file,
            Self::InMemory(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl GgufTensor<'_> {
    /// Rows: all dimensions but the last. A single number is one row.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Numbers of one row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// All numbers in f32, row by row.
    ///
    /// # Errors
    /// If the engine refuses.
    pub fn dequantize(&self) -> candle_core::Result<Vec<f32>> {
        self.kind.dequantize(self.bytes)
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, Entry>);

/// Reads and checks everything but the tensors' numbers.
fn read_header(bytes: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { bytes: &bytes[..bytes.len().min(MAX_HEADER)], at: 0 };
    if cursor.array::<4>().ok() != Some(MAGIC) {
        return Err("it does not begin with the letters GGUF".to_owned());
    }
    match u32::from_le_bytes(cursor.array()?) {
        2 | VERSION => {}
        version => return Err(format!("GGUF version {version}, expected 2 or {VERSION} (little-endian)")),
    }
    let (tensors, values) = (cursor.count(MIN_TENSOR)?, cursor.count(MIN_VALUE)?);
    let mut metadata = BTreeMap::new();
    for _ in 0..values {
        let key = cursor.string()?;
        let value = cursor.value().map_err(|what| format!("`{key}`: {what}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("`{key}` stands there twice"));
        }
    }
    let mut claims = Vec::with_capacity(tensors);
    for _ in 0..tensors {
        let name = cursor.string()?;
        claims.push(
            cursor.claim().map(|claim| (name.clone(), claim)).map_err(|what| format!("tensor `{name}`: {what}"))?,
        );
    }
    let alignment = alignment(&metadata)?;
    let data = cursor.at.next_multiple_of(alignment);
    Ok((metadata, checked(claims, alignment, data, bytes.len())?))
}

/// Least bytes of a tensor in the table: an empty name, no dimensions, type and offset.
const MIN_TENSOR: usize = 8 + 4 + 4 + 8;
/// Least bytes of a value with its key: an empty key, a type, one byte.
const MIN_VALUE: usize = 8 + 4 + 1;

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize, String> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(bytes)) if bytes.is_power_of_two() && *bytes <= 1 << 20 => Ok(*bytes as usize),
        Some(other) => Err(format!("`{ALIGNMENT_KEY}`: expected a power of two up to 2^20, got {other:?}")),
    }
}

/// What the table says about one tensor: type, shape, and the offset behind the beginning of the data.
struct Claim {
    kind: GgmlType,
    shape: Vec<usize>,
    offset: u64,
}

/// Turns claims into places inside the file, none of which overlap.
fn checked(
    claims: Vec<(String, Claim)>,
    alignment: usize,
    data: usize,
    length: usize,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut tensors = BTreeMap::new();
    for (name, Claim { kind, shape, offset }) in claims {
        let about = |what: String| format!("tensor `{name}` of {kind} {shape:?}: {what}");
        let count = shape.iter().try_fold(1usize, |count, extent| count.checked_mul(*extent));
        let size = count.filter(|_| shape.last().unwrap_or(&1).is_multiple_of(kind.block_len()));
        let size = size.and_then(|count| kind.size_of(count));
        let size = size.ok_or_else(|| about("its rows are not whole blocks, or it has too many".to_owned()))?;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(about(format!("offset {offset} is not a multiple of {alignment}")));
        }
        let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
        let start = start.filter(|start| start.checked_add(size).is_some_and(|end| end <= length));
        let start = start.ok_or_else(|| {
            about(format!("{size} bytes from {offset} on, behind the first {data} bytes of a file of {length}"))
        })?;
        let entry = Entry { kind, shape, start, size };
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor `{name}` stands there twice"));
        }
    }
    let mut places: Vec<_> =
        tensors.iter().map(|(name, entry)| (entry.start, entry.start + entry.size, name)).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("tensors `{}` and `{}` overlap", pair[0].2, pair[1].2)),
        None => Ok(tensors),
    }
}

/// Bytes, and the place they are read at.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let taken = self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| {
            format!("{count} bytes from byte {} on, where the header can't reach beyond {}", self.at, self.bytes.len())
        })?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "a number is cut off".to_owned())
    }

    /// How many things of at least `least` bytes follow. More than fit are refused before room is
    /// made for them.
    fn count(&mut self, least: usize) -> Result<usize, String> {
        let count = u64::from_le_bytes(self.array()?);
        let most = (self.bytes.len() - self.at) / least;
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= most)
            .ok_or_else(|| format!("{count} entries claimed at byte {}, where at most {most} can follow", self.at))
    }

    fn string(&mut self) -> Result<String, String> {
        let count = self.count(1)?;
        let text = str::from_utf8(self.take(count)?);
        text.map(str::to_owned).map_err(|error| format!("text before byte {}: {error}", self.at))
    }

    fn claim(&mut self) -> Result<Claim, String> {
        let dimensions = u32::from_le_bytes(self.array()?) as usize;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!("{dimensions} dimensions, expected at most {MAX_DIMENSIONS}"));
        }
        let mut shape = (0..dimensions)
            .map(|_| {
                let extent = u64::from_le_bytes(self.array()?);
                let extent = usize::try_from(extent).ok().filter(|extent| *extent > 0);
                extent.ok_or_else(|| "a dimension of 0, or one that is too large".to_owned())
            })
            .collect::<Result<Vec<_>, String>>()?;
        shape.reverse();
        let kind = u32::from_le_bytes(self.array()?);
        let kind =
            GgmlType::from_id(kind).ok_or_else(|| format!("numbers of ggml's type {kind}, which is not known"))?;
        Ok(Claim { kind, shape, offset: u64::from_le_bytes(self.array()?) })
    }
}

/// Defines [`Value`] and [`Array`] with the numbers that both can hold.
macro_rules! values {
    ($($name:ident $number:ty = $id:literal),*) => {
        /// A value of a file's metadata. Types matter: llama.cpp insists on them.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Value {
            $($name($number),)*
            Bool(bool),
            String(String),
            Array(Array),
        }

        /// An array of a file's metadata. Arrays of arrays, which nobody writes, are refused.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Array {
            $($name(Vec<$number>),)*
            Bool(Vec<bool>),
            String(Vec<String>),
        }

        impl Cursor<'_> {
            fn value(&mut self) -> Result<Value, String> {
                match u32::from_le_bytes(self.array()?) {
                    $($id => Ok(Value::$name(<$number>::from_le_bytes(self.array()?))),)*
                    BOOL => self.bool().map(Value::Bool),
                    STRING => self.string().map(Value::String),
                    ARRAY => self.list().map(Value::Array),
                    kind => Err(format!("a value of type {kind}, which is not known")),
                }
            }

            fn list(&mut self) -> Result<Array, String> {
                match u32::from_le_bytes(self.array()?) {
                    $($id => {
                        let numbers = self.count(size_of::<$number>())?;
                        let numbers = (0..numbers).map(|_| self.array().map(<$number>::from_le_bytes));
                        numbers.collect::<Result<_, _>>().map(Array::$name)
                    })*
                    BOOL => {
                        let flags = self.count(1)?;
                        (0..flags).map(|_| self.bool()).collect::<Result<_, _>>().map(Array::Bool)
                    }
                    STRING => {
                        let texts = self.count(8)?;
                        (0..texts).map(|_| self.string()).collect::<Result<_, _>>().map(Array::String)
                    }
                    kind => Err(format!("an array of type {kind}, which is not known or not allowed")),
                }
            }
        }

        impl Value {
            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(number) => {
                        out.extend(u32::to_le_bytes($id));
                        out.extend(number.to_le_bytes());
                    })*
                    Self::Bool(flag) => {
                        out.extend(BOOL.to_le_bytes());
                        out.push(u8::from(*flag));
                    }
                    Self::String(text) => {
                        out.extend(STRING.to_le_bytes());
                        write_string(text, out);
                    }
                    Self::Array(array) => {
                        out.extend(ARRAY.to_le_bytes());
                        array.write(out);
                    }
                }
            }
        }

        impl Array {
            fn write(&self, out: &mut Vec<u8>) {
                let head = |kind: u32, count: usize, out: &mut Vec<u8>| {
                    out.extend(kind.to_le_bytes());
                    out.extend((count as u64).to_le_bytes());
                };
                match self {
                    $(Self::$name(numbers) => {
                        head($id, numbers.len(), out);
                        out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
                    })*
                    Self::Bool(flags) => {
                        head(BOOL, flags.len(), out);
                        out.extend(flags.iter().map(|flag| u8::from(*flag)));
                    }
                    Self::String(texts) => {
                        head(STRING, texts.len(), out);
                        texts.iter().for_each(|text| write_string(text, out));
                    }
                }
            }
        }
    };
}

values!(U8 u8 = 0, I8 i8 = 1, U16 u16 = 2, I16 i16 = 3, U32 u32 = 4, I32 i32 = 5, F32 f32 = 6, U64 u64 = 10, I64 i64 = 11, F64 f64 = 12);

const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Cursor<'_> {
    fn bool(&mut self) -> Result<bool, String> {
        match self.array()? {
            [flag @ 0..=1] => Ok(flag == 1),
            [other] => Err(format!("{other} where a truth value, 0 or 1, is expected")),
        }
    }
}

impl Value {
    /// The value as a count, if it is an integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(number) => Some(number.into()),
            Self::U16(number) => Some(number.into()),
            Self::U32(number) => Some(number.into()),
            Self::U64(number) => Some(number),
            Self::I8(number) => number.try_into().ok(),
            Self::I16(number) => number.try_into().ok(),
            Self::I32(number) => number.try_into().ok(),
            Self::I64(number) => number.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a number with a fraction, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(number) => Some(number.into()),
            Self::F64(number) => Some(number),
            _ => None,
        }
    }

    /// The value as a text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// The value as an array, if it is one.
    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(array) = self { Some(array) } else { None }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// What a file will hold under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufPlan {
    /// The tensor's name.
    pub name: String,
    /// What its numbers will be.
    pub kind: GgmlType,
    /// Extent of each dimension, the outermost first.
    pub shape: Vec<usize>,
}

/// Writes a file from its beginning to its end: the table first, then tensor by tensor, each in as
/// many pieces as one likes.
#[derive(Debug)]
pub struct GgufWriter<W> {
    out: W,
    /// For each tensor not yet begun, the last one first: its name and its bytes.
    waiting: Vec<(String, usize)>,
    /// Bytes that the current tensor still lacks, and of padding behind it.
    missing: usize,
    padding: usize,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the metadata and the table of all tensors, which have to follow in this order.
    ///
    /// # Errors
    /// If a tensor can't be as planned, or writing fails.
    pub fn new(mut out: W, metadata: &[(&str, Value)], plan: &[GgufPlan]) -> io::Result<Self> {
        let mut header = [&MAGIC[..], &VERSION.to_le_bytes()].concat();
        header.extend((plan.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            write_string(key, &mut header);
            value.write(&mut header);
        }
        let mut offset = 0;
        let mut waiting = Vec::with_capacity(plan.len());
        for GgufPlan { name, kind, shape } in plan {
            let size = kind.size_of(shape.iter().product()).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("tensor `{name}`: {shape:?} are no blocks of {kind}"),
                )
            })?;
            write_string(name, &mut header);
            header.extend((shape.len() as u32).to_le_bytes());
            header.extend(shape.iter().rev().flat_map(|extent| (*extent as u64).to_le_bytes()));
            header.extend(kind.id().to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset += size.next_multiple_of(DEFAULT_ALIGNMENT);
            waiting.push((name.clone(), size));
        }
        waiting.reverse();
        header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
        out.write_all(&header)?;
        Ok(Self { out, waiting, missing: 0, padding: 0 })
    }

    /// Begins the next tensor, which must be this one.
    ///
    /// # Errors
    /// If another one is next, or the last one is not complete.
    pub fn begin(&mut self, name: &str) -> io::Result<()> {
        self.end_tensor()?;
        match self.waiting.pop() {
            Some((next, size)) if next == name => {
                self.missing = size;
                self.padding = size.next_multiple_of(DEFAULT_ALIGNMENT) - size;
                Ok(())
            }
            next => Err(io::Error::other(format!("tensor `{name}`, expected {next:?}"))),
        }
    }

    /// Writes the next bytes of the tensor last begun.
    ///
    /// # Errors
    /// If they are more than it has, or writing fails.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.missing = self
            .missing
            .checked_sub(bytes.len())
            .ok_or_else(|| io::Error::other(format!("{} bytes, expected at most {}", bytes.len(), self.missing)))?;
        self.out.write_all(bytes)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// If a tensor is missing, or writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_tensor()?;
        if let Some((name, _)) = self.waiting.last() {
            return Err(io::Error::other(format!("tensor `{name}` was not written")));
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn end_tensor(&mut self) -> io::Result<()> {
        if self.missing > 0 {
            return Err(io::Error::other(format!("a tensor lacks {} bytes", self.missing)));
        }
        self.out.write_all(&vec![0; std::mem::take(&mut self.padding)])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by `reference/gguf_golden.py` with the `gguf` package: blocks of every type, and what that
    /// package makes of them under the same name with `.f32` behind it.
    const GOLDEN: &[u8] = include_bytes!("../tests/data/golden.gguf");

    fn plan(name: &str, kind: GgmlType, shape: &[usize]) -> GgufPlan {
        GgufPlan { name: name.to_owned(), kind, shape: shape.to_vec() }
    }

    /// A file of two tensors with all kinds of values.
    fn small() -> Vec<u8> {
        let metadata = [
            ("general.architecture", "llama".into()),
            ("u8", Value::U8(1)),
            ("i64", Value::I64(-5)),
            ("f32", Value::F32(0.5)),
            ("f64", Value::F64(0.25)),
            ("bool", Value::Bool(true)),
            ("texts", Value::Array(Array::String(vec!["a".into(), String::new(), "▁b".into()]))),
            ("numbers", Value::Array(Array::I16(vec![-1, 2]))),
            ("flags", Value::Array(Array::Bool(vec![true, false]))),
        ];
        let plan = [plan("a", GgmlType::F32, &[2, 3]), plan("b", GgmlType::Q8_0, &[32])];
        let mut writer = GgufWriter::new(Vec::new(), &metadata, &plan).unwrap();
        writer.begin("a").unwrap();
        for value in 0..6u8 {
            writer.write(&f32::from(value).to_le_bytes()).unwrap();
        }
        writer.begin("b").unwrap();
        writer.write(&[7; 34]).unwrap();
        writer.finish().unwrap()
    }

    fn open(bytes: Vec<u8>) -> WeightsResult<Gguf> {
        Gguf::from_bytes("some.gguf", bytes)
    }

    #[test]
    fn what_is_written_is_read() {
        let gguf = open(small()).unwrap();
        assert_eq!(gguf.metadata("i64"), Some(&Value::I64(-5)));
        assert_eq!(gguf.metadata("u8").and_then(Value::as_u64), Some(1));
        assert_eq!(gguf.metadata("i64").and_then(Value::as_u64), None);
        assert_eq!(gguf.metadata("f32").and_then(Value::as_f64), Some(0.5));
        assert_eq!(gguf.metadata("general.architecture").and_then(Value::as_str), Some("llama"));
        let texts = Array::String(vec!["a".into(), String::new(), "▁b".into()]);
        assert_eq!(gguf.metadata("texts").and_then(Value::as_array), Some(&texts));
        assert_eq!(gguf.metadata.len(), 9);
        let a = gguf.tensor("a").unwrap();
        assert_eq!((a.shape, a.rows(), a.columns()), ([2, 3].as_slice(), 2, 3));
        assert_eq!(a.dequantize().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let b = gguf.tensor("b").unwrap();
        assert_eq!((b.kind, b.bytes, gguf.tensors().count()), (GgmlType::Q8_0, [7; 34].as_slice(), 2));
        assert!(gguf.tensor("c").is_none());
    }

    #[test]
    fn a_file_on_disk_is_the_one_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("small.gguf");
        std::fs::write(&path, small()).unwrap();
        assert_eq!(Gguf::open(&path).unwrap().tensor("b").unwrap().bytes, [7; 34]);
        assert!(Gguf::open(directory.path()).unwrap_err().to_string().contains(&*directory.path().to_string_lossy()));
    }

    #[test]
    fn blocks_of_every_type_are_those_of_the_gguf_package() {
        let gguf = Gguf::from_bytes("golden.gguf", GOLDEN).unwrap();
        let mut compared = 0;
        for tensor in gguf.tensors().filter(|tensor| !tensor.name.ends_with(".f32")) {
            assert_eq!(tensor.name, tensor.kind.name());
            let expected = gguf.tensor(&format!("{}.f32", tensor.name)).unwrap().dequantize().unwrap();
            let got = tensor.dequantize().unwrap();
            // A product less a minimum may be rounded once or twice.
            let unit = 1e-6 * expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() <= unit, "{}: {got}, not {expected}", tensor.name);
            }
            assert_eq!((got.len(), tensor.shape), (expected.len(), [3, 256].as_slice()));
            compared += 1;
        }
        assert_eq!(compared, 13);
        assert_eq!(gguf.metadata("golden.text").and_then(Value::as_str), Some("▁ä"));
    }

    /// The writer refuses what would not be a file.
    #[test]
    fn tensors_come_as_planned() {
        let writer = |plan: &[GgufPlan]| GgufWriter::new(Vec::new(), &[], plan);
        assert!(writer(&[plan("a", GgmlType::Q4K, &[2, 128])]).is_ok());
        assert!(writer(&[plan("a", GgmlType::Q4K, &[100])]).is_err());
        let two = [plan("a", GgmlType::F32, &[1]), plan("b", GgmlType::F32, &[1])];
        assert!(writer(&two).unwrap().begin("b").is_err());
        assert!(writer(&two).unwrap().finish().unwrap_err().to_string().contains("`a` was not written"));
        let mut begun = writer(&two).unwrap();
        begun.begin("a").unwrap();
        assert!(begun.write(&[0; 5]).is_err());
        let mut begun = writer(&two).unwrap();
        begun.begin("a").unwrap();
        begun.write(&[0; 3]).unwrap();
        assert!(begun.begin("b").unwrap_err().to_string().contains("lacks 1 bytes"));
    }

    /// A header by hand: version, counts, then what is given.
    fn header(version: u32, tensors: u64, values: u64, rest: &[&[u8]]) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &values.to_le_bytes()].concat();
        bytes.extend(rest.concat());
        bytes
    }

    fn claim(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_string(name, &mut bytes);
        bytes.extend((shape.len() as u32).to_le_bytes());
        bytes.extend(shape.iter().flat_map(|extent| extent.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    }

    fn value(key: &str, kind: u32, rest: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_string(key, &mut bytes);
        bytes.extend(kind.to_le_bytes());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn false_claims_are_refused_by_name() {
        let data: &[u8] = &[0; 256];
        let one = |claim: &[u8]| header(3, 1, 0, &[claim, data]);
        let key = |value: &[u8]| header(3, 0, 1, &[value, data]);
        let huge = u64::MAX.to_le_bytes();
        for (bytes, expected) in [
            (b"GGML".to_vec(), "does not begin with the letters GGUF"),
            (Vec::new(), "does not begin with the letters GGUF"),
            (header(1, 0, 0, &[]), "GGUF version 1, expected 2 or 3"),
            (header(3u32.swap_bytes(), 0, 0, &[]), "version 50331648"),
            (header(3, u64::MAX, 0, &[data]), "18446744073709551615 entries claimed"),
            (header(3, 0, 1 << 40, &[data]), "1099511627776 entries claimed"),
            (header(3, 0, 1, &[&huge, data]), "entries claimed"),
            (key(&value("k", 99, &[])), "`k`: a value of type 99"),
            (key(&value("k", 7, &[2])), "`k`: 2 where a truth value"),
            (key(&value("k", 8, &huge)), "`k`: 18446744073709551615 entries claimed"),
            (key(&value("k", 9, &[&9u32.to_le_bytes()[..], &huge].concat())), "`k`: an array of type 9"),
            (key(&value("k", 9, &[&8u32.to_le_bytes()[..], &huge].concat())), "`k`: 18446744073709551615 entries"),
            (key(&value("k", 9, &[&4u32.to_le_bytes()[..], &1000u64.to_le_bytes()].concat())), "`k`: 1000 entries"),
            (header(3, 0, 2, &[&value("k", 0, &[1]), &value("k", 0, &[1]), data]), "`k` stands there twice"),
            (key(&value(ALIGNMENT_KEY, 4, &3u32.to_le_bytes())), "expected a power of two"),
            (key(&value(ALIGNMENT_KEY, 4, &0u32.to_le_bytes())), "expected a power of two"),
            (one(&claim("t", &[1, 1, 1, 1, 1], 0, 0)), "tensor `t`: 5 dimensions"),
            (one(&claim("t", &[0], 0, 0)), "tensor `t`: a dimension of 0"),
            (one(&claim("t", &[1], 99, 0)), "tensor `t`: numbers of ggml's type 99"),
            (one(&claim("t", &[1 << 32, 1 << 32], 0, 0)), "tensor `t` of f32 [4294967296, 4294967296]"),
            (one(&claim("t", &[u64::MAX], 0, 0)), "tensor `t` of f32"),
            (one(&claim("t", &[100, 256], 12, 0)), "tensor `t` of q4_k [256, 100]: its rows are not whole blocks"),
            (one(&claim("t", &[4], 0, 8)), "offset 8 is not a multiple of 32"),
            (one(&claim("t", &[4], 0, u64::MAX - 31)), "tensor `t` of f32 [4]: 16 bytes from"),
            (one(&claim("t", &[4], 0, 1 << 20)), "tensor `t` of f32 [4]: 16 bytes from 1048576 on"),
            (one(&claim("t", &[1 << 20], 0, 0)), "tensor `t` of f32 [1048576]: 4194304 bytes from 0 on"),
            (
                header(3, 2, 0, &[&claim("t", &[9], 0, 0), &claim("u", &[1], 0, 32), data]),
                "tensors `t` and `u` overlap",
            ),
            (header(3, 2, 0, &[&claim("t", &[1], 0, 0), &claim("t", &[1], 0, 32), data]), "`t` stands there twice"),
        ] {
            let error = open(bytes).unwrap_err().to_string();
            assert!(error.starts_with("some.gguf: ") && error.contains(expected), "{error}, not {expected}");
        }
        assert!(open(header(2, 1, 0, &[&claim("t", &[4], 0, 0), data])).is_ok(), "version 2 differs in nothing");
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        let bytes = small();
        for length in 0..bytes.len() {
            // What pads the last tensor is nobody's loss.
            let complete = length >= bytes.len() - 30;
            assert_eq!(open(bytes[..length].to_vec()).is_ok(), complete, "{length} of {}", bytes.len());
        }
    }

    proptest! {
        /// A damaged file is an error, or yields tensors that can be read.
        #[test]
        fn any_damage_ends_in_a_result(
            changes in proptest::collection::vec((0..small().len(), any::<u8>()), 1..4),
            cut in 0usize..1000,
        ) {
            let mut bytes = small();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len().min(cut));
            if let Ok(gguf) = open(bytes) {
                for tensor in gguf.tensors() {
                    let _ = tensor.dequantize();
                }
            }
        }

        #[test]
        fn any_bytes_end_in_a_result(rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = open([&MAGIC[..], &VERSION.to_le_bytes(), &rest].concat());
        }
    }
}
