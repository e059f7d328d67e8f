//! Checkpoint files of other kinds: torch pickles, read without executing anything.
//!
//! `torch.save` writes a zip archive: one member `data.pkl` describes the tensors, the others hold
//! their bytes. A pickle is a program for a small stack machine, and a general one may call any
//! function of Python's. The machine here knows the few instructions that `torch.save` emits and, of
//! all functions, only those of `Global`; at anything else it stops and says what was asked for. It
//! finds out where the tensors lie. Their bytes are read later, by [`crate::weights`].
//!
//! `torch.jit.save` (TorchScript, in which OpenAI published CLIP) writes the same archive with code beside it. The
//! code is left alone; the pickle holds a tree of modules in the place of the dictionary, and a tensor's name is the
//! path to it.
//!
//! Sources: the comments of CPython's `pickletools.py` for the instructions, `torch/serialization.py`,
//! `torch/_utils.py` and `torch/jit/_pickle.py` for what stands behind the names.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{Read, Seek, SeekFrom},
};

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use crate::weights::TensorEntry;

/// Longest `data.pkl`. That of the 7B takes some 100 kB; the limit bounds what a hostile one can make
/// the machine allocate.
const MAX_PICKLE: u64 = 4 << 20;

/// Bytes of all names together; those of the 7B take some 30 kB. A pickle may say a name once and use it often.
const MAX_NAMES: usize = 4 << 20;

/// Dimensions of a tensor; the published models have four at most. A pickle may say a shape once and use it often.
const MAX_DIMENSIONS: usize = 8;

/// The tensors of a torch checkpoint, by name.
///
/// # Errors
/// In words, without the name of the file.
pub(crate) fn torch_tensors(file: &mut (impl Read + Seek)) -> Result<Vec<(String, TensorEntry)>, String> {
    let archive = Archive::read(file)?;
    let mut machine = Machine::default();
    let root = machine.run(&archive.pickle)?;
    let mut tensors = Vec::new();
    for (name, view) in machine.named_tensors(root)? {
        let storage = &machine.storages[view.storage];
        let member = archive.storages.get(storage.key);
        let entry = member.ok_or_else(|| format!("the archive has no storage {:?}", storage.key));
        let entry = entry.and_then(|member| view.entry(storage, member));
        let entry = entry.map_err(|what| format!("tensor `{name}`: {what}"))?;
        tensors.push((name, entry));
    }
    Ok(tensors)
}

/// What of the zip archive matters.
struct Archive {
    pickle: Vec<u8>,
    /// By key, where each storage's bytes lie in the file.
    storages: HashMap<String, Member>,
}

/// Where the bytes of an archive's member lie in the file.
#[derive(Clone, Copy)]
struct Member {
    start: u64,
    size: u64,
}

impl Archive {
    /// All members stand below one folder, whose name is the archive's.
    fn read(file: &mut (impl Read + Seek)) -> Result<Self, String> {
        let length = file.seek(SeekFrom::End(0)).map_err(|error| error.to_string())?;
        let members = members(file, length)?;
        let mut folders = members.keys().filter_map(|name| name.strip_suffix("data.pkl"));
        let folder = folders.find(|folder| folder.is_empty() || folder.ends_with('/'));
        let folder = folder.ok_or("the archive has no data.pkl; it is no checkpoint of torch's")?.to_owned();
        let of = |name: &str| members.get(&format!("{folder}{name}")).copied();
        if let Some(order) = of("byteorder") {
            let order = read(file, order, 16)?;
            if order != b"little" {
                return Err(format!("byte order {:?}, expected \"little\"", String::from_utf8_lossy(&order)));
            }
        }
        let pickle = of("data.pkl").ok_or("the archive has no data.pkl")?;
        let pickle = read(file, pickle, MAX_PICKLE)?;
        let prefix = format!("{folder}data/");
        let storages = members.iter().filter_map(|(name, member)| Some((name.strip_prefix(&prefix)?.into(), *member)));
        Ok(Self { pickle, storages: storages.collect() })
    }
}

/// The members of a zip archive by name, without the code. All have to be stored as they are, as torch does.
fn members(file: &mut (impl Read + Seek), length: u64) -> Result<BTreeMap<String, Member>, String> {
    let mut archive = ZipArchive::new(file).map_err(|error| {
        format!("not a zip archive ({error}); files of torch before 1.6 have to be saved again by a newer one")
    })?;
    if archive.has_duplicate_names() {
        return Err("two members of the archive have the same name".to_owned());
    }
    let mut members = BTreeMap::new();
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(|error| format!("member {index} of the archive: {error}"))?;
        let name = member.name().map_err(|error| format!("member {index} of the archive: {error}"))?.into_owned();
        if name.split('/').nth(1) == Some("code") {
            continue;
        }
        let (start, size) = (member.data_start().unwrap_or(u64::MAX), member.size());
        if member.compression() != CompressionMethod::Stored || member.compressed_size() != size || member.encrypted() {
            return Err(format!("member {name} is compressed or encrypted, expected stored"));
        }
        if start.checked_add(size).is_none_or(|end| end > length) {
            return Err(format!("member {name} claims {size} bytes from {start} on in a file of {length}"));
        }
        members.insert(name, Member { start, size });
    }
    Ok(members)
}

/// The bytes of a member that may not be longer than `limit`.
fn read(file: &mut (impl Read + Seek), member: Member, limit: u64) -> Result<Vec<u8>, String> {
    if member.size > limit {
        return Err(format!("a member of {} bytes where at most {limit} are allowed", member.size));
    }
    let mut bytes = vec![0; member.size as usize];
    let read = file.seek(SeekFrom::Start(member.start)).and_then(|_| file.read_exact(&mut bytes));
    read.map(|()| bytes).map_err(|error| error.to_string())
}

/// What a pickle may name. Everything else is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
    /// Any class of TorchScript's; only its attributes matter.
    Module,
    /// A list of numbers, made by a function of its own.
    BuildList,
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            (module, _) if module.split('.').next() == Some("__torch__") => Self::Module,
            ("torch.jit._pickle", "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist") => {
                Self::BuildList
            }
            ("torch", storage) => Self::Storage(match storage {
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "FloatStorage" => Dtype::F32,
                "DoubleStorage" => Dtype::F64,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                "ShortStorage" => Dtype::I16,
                "CharStorage" => Dtype::I8,
                "ByteStorage" => Dtype::U8,
                "BoolStorage" => Dtype::BOOL,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// A value on the stack. Containers are indices into the machine's tables: values are copied freely,
/// nothing owns anything, and no nesting, however deep, is ever followed.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Float,
    Text(&'a str),
    Tuple(usize),
    /// Lists carry nothing that matters.
    List,
    Dict(usize),
    /// A module, whose attributes are a dictionary.
    Module(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// One run of numbers that tensors are views of.
#[derive(Debug)]
struct Storage<'a> {
    dtype: Dtype,
    key: &'a str,
    elements: usize,
}

/// A tensor: part of a storage, in elements.
#[derive(Clone, Debug)]
struct View {
    storage: usize,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// Where this view lies in the file, once all its claims have proved true.
    fn entry(&self, storage: &Storage<'_>, member: &Member) -> Result<TensorEntry, String> {
        let Self { offset, shape, strides, .. } = self;
        let bytes = storage.dtype.bitsize() / 8;
        if storage.elements.checked_mul(bytes).is_none_or(|size| size as u64 > member.size) {
            let (key, elements) = (storage.key, storage.elements);
            return Err(format!("storage {key:?} claims {elements} elements of {bytes} bytes, has {}", member.size));
        }
        if shape.len() != strides.len() {
            return Err(format!("shape {shape:?} with strides {strides:?}"));
        }
        let count = shape.iter().try_fold(1usize, |count, extent| count.checked_mul(*extent));
        let reach = shape.iter().zip(strides).try_fold(*offset, |reach, (extent, stride)| {
            reach.checked_add(extent.saturating_sub(1).checked_mul(*stride)?)
        });
        let fits = match (count, reach) {
            (Some(0), _) => *offset <= storage.elements,
            (Some(count), Some(reach)) => count <= storage.elements && reach < storage.elements,
            _ => false,
        };
        if !fits {
            return Err(format!(
                "shape {shape:?} with strides {strides:?} from element {offset} on leads out of a storage of {}",
                storage.elements
            ));
        }
        Ok(TensorEntry {
            dtype: storage.dtype,
            strides: (count != Some(0) && !row_by_row(shape, strides)).then(|| strides.clone()),
            shape: shape.clone(),
            offset: member.start + (offset * bytes) as u64,
        })
    }
}

/// Whether elements lie one after the other in the order of their indices. The shape's product is
/// known to be small enough.
fn row_by_row(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1;
    shape.iter().zip(strides).rev().all(|(extent, stride)| {
        let fits = *extent == 1 || *stride == step;
        step *= extent;
        fits
    })
}

/// Names, of which there may be no more than [`MAX_NAMES`] bytes.
#[derive(Default)]
struct Names {
    bytes: usize,
}

impl Names {
    fn join(&mut self, path: &str, name: &str) -> Result<String, String> {
        self.bytes += path.len() + name.len() + 1;
        if self.bytes > MAX_NAMES {
            return Err(format!("the names of its tensors take more than {MAX_NAMES} bytes"));
        }
        Ok(format!("{path}{name}"))
    }
}

/// The stack machine.
#[derive(Debug, Default)]
struct Machine<'a> {
    stack: Vec<Value<'a>>,
    /// Heights of the stack at which marks stand.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    tuples: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    /// The attributes of each module.
    modules: Vec<Option<usize>>,
    storages: Vec<Storage<'a>>,
    tensors: Vec<View>,
}

impl<'a> Machine<'a> {
    /// Runs a program to its end and returns what it leaves.
    fn run(&mut self, program: &'a [u8]) -> Result<Value<'a>, String> {
        let mut code = Code { program, at: 0 };
        loop {
            let at = code.at;
            let step = self.step(&mut code);
            if let Some(root) = step.map_err(|what| format!("data.pkl, byte {at}: {what}"))? {
                return Ok(root);
            }
        }
    }

    /// Executes one instruction. The names in the comments are those of `pickletools.py`.
    fn step(&mut self, code: &mut Code<'a>) -> Result<Option<Value<'a>>, String> {
        let value = match code.byte()? {
            b'.' => return self.pop().map(Some), // STOP
            // PROTO
            0x80 => match code.byte()? {
                2 => return Ok(None),
                version => return Err(format!("pickle protocol {version}, expected 2")),
            },
            // MARK
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(None);
            }
            // BINPUT, LONG_BINPUT
            opcode @ (b'q' | b'r') => {
                let slot = if opcode == b'q' { code.byte()?.into() } else { u32::from_le_bytes(code.array()?) };
                let top = self.top()?;
                self.memo.insert(slot, top);
                return Ok(None);
            }
            // SETITEM
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.set_items(&[key, value]);
            }
            // SETITEMS
            b'u' => {
                let items = self.pop_to_mark()?;
                return self.set_items(&items);
            }
            // APPEND
            b'a' => {
                self.pop()?;
                return self.expect_list();
            }
            // APPENDS
            b'e' => {
                self.pop_to_mark()?;
                return self.expect_list();
            }
            // BUILD
            b'b' => {
                let attributes = self.pop()?;
                return self.build(attributes);
            }
            b'N' => Value::None,                                          // NONE
            0x88 | 0x89 => Value::Bool,                                   // NEWTRUE, NEWFALSE
            b'K' => Value::Int(code.byte()?.into()),                      // BININT1
            b'M' => Value::Int(u16::from_le_bytes(code.array()?).into()), // BININT2
            b'J' => Value::Int(i32::from_le_bytes(code.array()?).into()), // BININT
            0x8a => Value::Int(code.long()?),                             // LONG1
            b'G' => code.array::<8>().map(|_| Value::Float)?,             // BINFLOAT
            b'X' => Value::Text(code.text()?),                            // BINUNICODE
            b'c' => Value::Global(code.global()?),                        // GLOBAL
            b']' => Value::List,                                          // EMPTY_LIST
            b'}' => self.new_dict(),                                      // EMPTY_DICT
            b')' => self.new_tuple(Vec::new()),                           // EMPTY_TUPLE
            // TUPLE
            b't' => {
                let items = self.pop_to_mark()?;
                self.new_tuple(items)
            }
            // TUPLE1, TUPLE2, TUPLE3
            opcode @ 0x85..=0x87 => {
                let mut items = (0x85..=opcode).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.new_tuple(items)
            }
            // BINGET, LONG_BINGET
            opcode @ (b'h' | b'j') => {
                let slot = if opcode == b'h' { code.byte()?.into() } else { u32::from_le_bytes(code.array()?) };
                *self.memo.get(&slot).ok_or_else(|| format!("nothing was remembered as {slot}"))?
            }
            b'Q' => self.persistent()?, // BINPERSID
            b'R' => self.call()?,       // REDUCE
            0x81 => self.new_module()?, // NEWOBJ
            opcode => return Err(format!("instruction {opcode:#04x} is not one that torch emits")),
        };
        self.stack.push(value);
        Ok(None)
    }

    /// REDUCE: a function and its arguments become its result.
    fn call(&mut self) -> Result<Value<'a>, String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Global(function), Value::Tuple(arguments)) = (function, arguments) else {
            return Err(format!("a call of {function:?} with {arguments:?}"));
        };
        match (function, self.tuples[arguments].as_slice()) {
            (Global::OrderedDict, []) => Ok(self.new_dict()),
            (Global::BuildList, [Value::List]) => Ok(Value::List),
            // The rest says whether a gradient is wanted, and hooks.
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), ..]) => Ok(tensor),
            (
                Global::RebuildTensor,
                &[Value::Storage(storage), Value::Int(offset), Value::Tuple(shape), Value::Tuple(strides), ..],
            ) => {
                let view =
                    View { storage, offset: size(offset)?, shape: self.sizes(shape)?, strides: self.sizes(strides)? };
                self.tensors.push(view);
                Ok(Value::Tensor(self.tensors.len() - 1))
            }
            (function, arguments) => Err(format!("a call of {function:?} with {} odd arguments", arguments.len())),
        }
    }

    /// BINPERSID: `("storage", type, key, device, elements)` becomes a storage.
    fn persistent(&mut self) -> Result<Value<'a>, String> {
        let id = self.pop()?;
        let fields = if let Value::Tuple(fields) = id { self.tuples[fields].as_slice() } else { &[] };
        let &[
            Value::Text("storage"),
            Value::Global(Global::Storage(dtype)),
            Value::Text(key),
            Value::Text(_),
            Value::Int(elements),
        ] = fields
        else {
            return Err(format!("{id:?} {fields:?} is not the id of a storage"));
        };
        self.storages.push(Storage { dtype, key, elements: size(elements)? });
        Ok(Value::Storage(self.storages.len() - 1))
    }

    /// BUILD: the attributes of a module, or those of a state dict (`_metadata`), which nobody needs.
    fn build(&mut self, attributes: Value<'a>) -> Result<Option<Value<'a>>, String> {
        match (self.top()?, attributes) {
            (Value::Dict(_), _) => {}
            (Value::Module(module), Value::Dict(attributes)) => self.modules[module] = Some(attributes),
            (other, _) => return Err(format!("attributes for {other:?}, expected a dictionary")),
        }
        Ok(None)
    }

    /// The tensors of a dictionary or of a module, by name.
    fn named_tensors(&self, root: Value<'a>) -> Result<Vec<(String, &View)>, String> {
        match root {
            Value::Dict(root) => self.tensors_in(root),
            Value::Module(root) => self.tensors_below(root),
            other => Err(format!("the file holds {other:?}, expected a dictionary of tensors")),
        }
    }

    /// The tensors of a dictionary that holds nothing else.
    fn tensors_in(&self, root: usize) -> Result<Vec<(String, &View)>, String> {
        let mut names = Names::default();
        let named = self.dicts[root].iter().map(|item| match item {
            (Value::Text(name), Value::Tensor(tensor)) => Ok((names.join("", name)?, &self.tensors[*tensor])),
            (key, value) => Err(format!("the dictionary holds {key:?}: {value:?}, expected a name and its tensor")),
        });
        named.collect()
    }

    /// The tensors of a module and of all modules below it, named by the path to them. Attributes that are met
    /// again, because a module is held twice or holds itself, have their first name only.
    fn tensors_below(&self, root: usize) -> Result<Vec<(String, &View)>, String> {
        let (mut tensors, mut names, mut met) = (Vec::new(), Names::default(), HashSet::new());
        let mut open = vec![(root, String::new())];
        while let Some((module, path)) = open.pop() {
            let Some(attributes) = self.modules[module].filter(|attributes| met.insert(*attributes)) else { continue };
            for (key, value) in &self.dicts[attributes] {
                match (key, *value) {
                    (Value::Text(name), Value::Tensor(tensor)) => {
                        tensors.push((names.join(&path, name)?, &self.tensors[tensor]));
                    }
                    (Value::Text(name), Value::Module(module)) => open.push((module, names.join(&path, name)? + ".")),
                    _ => {}
                }
            }
        }
        Ok(tensors)
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Result<Option<Value<'a>>, String> {
        let Value::Dict(dict) = self.top()? else {
            return Err("items for what is no dictionary".to_owned());
        };
        let (pairs, []) = items.as_chunks() else {
            return Err("a key without a value".to_owned());
        };
        self.dicts[dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(None)
    }

    fn expect_list(&self) -> Result<Option<Value<'a>>, String> {
        match self.top()? {
            Value::List => Ok(None),
            other => Err(format!("appending to {other:?}")),
        }
    }

    fn new_tuple(&mut self, items: Vec<Value<'a>>) -> Value<'a> {
        self.tuples.push(items);
        Value::Tuple(self.tuples.len() - 1)
    }

    fn new_dict(&mut self) -> Value<'a> {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    /// NEWOBJ: a module. What its class is does not matter, nor how it would be made.
    fn new_module(&mut self) -> Result<Value<'a>, String> {
        let (Value::Tuple(_), Value::Global(Global::Module)) = (self.pop()?, self.pop()?) else {
            return Err("a new object that is no module".to_owned());
        };
        self.modules.push(None);
        Ok(Value::Module(self.modules.len() - 1))
    }

    /// The numbers of a shape or of strides.
    fn sizes(&self, tuple: usize) -> Result<Vec<usize>, String> {
        let tuple = &self.tuples[tuple];
        if tuple.len() > MAX_DIMENSIONS {
            return Err(format!("a tensor of {} dimensions, expected at most {MAX_DIMENSIONS}", tuple.len()));
        }
        let sizes = tuple.iter().map(|item| match item {
            Value::Int(value) => size(*value),
            other => Err(format!("{other:?} where a size is expected")),
        });
        sizes.collect()
    }

    /// The topmost value; those below a mark are out of reach.
    fn top(&self) -> Result<Value<'a>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }
}

fn size(value: i64) -> Result<usize, String> {
    value.try_into().map_err(|_| format!("{value} where a size is expected"))
}

/// A program, and the place it is read at.
struct Code<'a> {
    program: &'a [u8],
    at: usize,
}

impl<'a> Code<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let bytes = self.at.checked_add(count).and_then(|end| self.program.get(self.at..end));
        self.at += count;
        bytes.ok_or_else(|| "the program breaks off".to_owned())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.bytes(N)?.try_into().map_err(|_| "the program breaks off".to_owned())
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    /// An integer of a stated number of bytes, little-endian, in two's complement.
    fn long(&mut self) -> Result<i64, String> {
        let count = self.byte()?;
        let bytes = self.bytes(count.into())?;
        let sign = if bytes.last().is_some_and(|last| *last >= 0x80) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide.get_mut(..bytes.len()).ok_or_else(|| format!("an integer of {count} bytes"))?.copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let count = u32::from_le_bytes(self.array()?);
        str::from_utf8(self.bytes(count as usize)?).map_err(|error| error.to_string())
    }

    /// Two lines: module and name.
    fn global(&mut self) -> Result<Global, String> {
        let (module, name) = (self.line()?, self.line()?);
        let refused = || {
            format!("the pickle asks for `{module}.{name}`, which is not needed to read tensors and was not executed")
        };
        Global::named(module, name).ok_or_else(refused)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.program[self.at.min(self.program.len())..];
        let count = rest.iter().take(256).position(|byte| *byte == b'\n').ok_or("a name without an end")?;
        let line = self.bytes(count + 1)?;
        str::from_utf8(&line[..count]).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use candle_core::{DType, Device, Tensor};
    use proptest::prelude::*;
    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;
    use crate::weights::{Checkpoint, TensorSource};

    /// Made by `reference/torch_files.py`, which also wrote the same values as plain safetensors.
    const SAVED_BY_TORCH: &[u8] = include_bytes!("../tests/data/torch.bin");
    const SCRIPTED_BY_TORCH: &[u8] = include_bytes!("../tests/data/scripted.pt");
    const VALUES: &[u8] = include_bytes!("../tests/data/torch.safetensors");

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, bytes) in members {
            zip.start_file(*name, options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn error_of(members: &[(&str, &[u8])]) -> String {
        torch_tensors(&mut Cursor::new(archive(members))).unwrap_err()
    }

    /// A pickle of one tensor with this storage length, offset, shape and strides (all below 256).
    fn one_tensor(elements: u8, offset: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
        let mut code = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        code.extend(b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK");
        code.extend([elements, b't', b'Q', b'K', offset]);
        code.extend([b'K', shape[0], b'K', shape[1], 0x86, b'K', strides[0], b'K', strides[1], 0x86]);
        code.extend(b"\x89ccollections\nOrderedDict\n)RtRs.");
        code
    }

    #[test]
    fn tensors_saved_by_torch_have_its_values() {
        let got = torch_tensors(&mut Cursor::new(SAVED_BY_TORCH)).unwrap();
        let expected = Checkpoint::from_bytes("torch.safetensors", VALUES, &Device::Cpu).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("pytorch_model.bin"), SAVED_BY_TORCH).unwrap();
        let checkpoint = Checkpoint::open(directory.path(), &Device::Cpu).unwrap();
        let mut compared = 0;
        for (name, entry) in got {
            let Ok(expected) = expected.tensor(&name, &entry.shape) else {
                assert_eq!((name.as_str(), entry.dtype), ("position_ids", Dtype::I64));
                continue;
            };
            let tensor = checkpoint.tensor(&name, &entry.shape).unwrap();
            assert_eq!(tensor.dtype(), DType::F32);
            let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(&tensor), flat(&expected), "{name}");
            compared += 1;
        }
        assert_eq!(compared, 9);
    }

    /// As [`TowerOfModules` of the script](../../../reference/torch_files.py), which holds the values as well.
    #[test]
    fn tensors_of_a_scripted_module_are_named_by_their_paths() {
        let mut tensors = torch_tensors(&mut Cursor::new(SCRIPTED_BY_TORCH)).unwrap();
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        let listed: Vec<_> = tensors.iter().map(|(name, entry)| (name.as_str(), entry.dtype, &*entry.shape)).collect();
        let expected: [(&str, Dtype, &[usize]); 6] = [
            ("input_resolution", Dtype::I64, &[]),
            ("visual.class_embedding", Dtype::F32, &[4]),
            ("visual.conv1.weight", Dtype::F16, &[4, 3, 2, 2]),
            ("visual.ln_pre.bias", Dtype::F32, &[4]),
            ("visual.ln_pre.weight", Dtype::F32, &[4]),
            ("visual.transformer.0.weight", Dtype::F32, &[2, 4]),
        ];
        assert_eq!(listed, expected);
        let checkpoint = Checkpoint::from_bytes("scripted.pt", SCRIPTED_BY_TORCH.to_vec(), &Device::Cpu).unwrap();
        let read = |name: &str, shape: &[usize]| {
            checkpoint.tensor(name, shape).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(read("visual.class_embedding", &[4]), [0.5, -1.0, 2.0, 8.0]);
        let counted: Vec<f32> = (0..48).map(|i| i as f32).collect();
        assert_eq!(read("visual.conv1.weight", &[4, 3, 2, 2]), counted);
        assert_eq!(read("visual.transformer.0.weight", &[2, 4]), &counted[..8]);
    }

    /// GLOBAL, EMPTY_TUPLE, NEWOBJ.
    const MODULE: &[u8] = b"c__torch__\nM\n)\x81";

    /// BINUNICODE of a name shorter than 256 bytes.
    fn text(name: &str) -> Vec<u8> {
        [b"X", &[name.len() as u8, 0, 0, 0][..], name.as_bytes()].concat()
    }

    /// A pickle of one tensor of six numbers, from where its dictionary begins to behind the tensor.
    fn dict_of_one() -> Vec<u8> {
        let whole = one_tensor(6, 0, [2, 3], [3, 1]);
        whole[2..whole.len() - 1].to_vec()
    }

    fn names_of(pickle: &[&[u8]]) -> Result<Vec<String>, String> {
        let bytes = archive(&[("a/data.pkl", &pickle.concat()), ("a/data/0", &[0; 24])]);
        Ok(torch_tensors(&mut Cursor::new(bytes))?.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn a_module_that_is_held_twice_or_holds_itself_has_its_first_name() {
        // The outer, remembered as 1, holds itself as `a` and the inner, remembered as 0, as `b` and `c`.
        let (dict, [a, b, c]) = (dict_of_one(), ["a", "b", "c"].map(text));
        let inner = [MODULE, b"q\x00", &dict, b"b"].concat();
        let names = names_of(&[b"\x80\x02", MODULE, b"q\x01}(", &a, b"h\x01", &b, &inner, &c, b"h\x00", b"ub."]);
        assert_eq!(names.unwrap(), ["c.w"], "the module opened last is looked into first");
    }

    /// Small files whose names would fill any memory, or whose modules take for ever to look into.
    #[test]
    fn names_that_are_said_once_and_used_often_are_refused() {
        let long = [b"X\x00\x00\x10\x00", &vec![b'n'; 1 << 20][..], b"q\x02"].concat();
        let (item, dict) = (b"h\x02h\x03".repeat(100), dict_of_one());
        let tensor = [&dict[b"}X\x01\x00\x00\x00w".len()..dict.len() - 1], b"q\x03"].concat();
        let flat = names_of(&[b"\x80\x02}(", &long, &tensor, &item, b"u."]);
        assert!(flat.unwrap_err().contains("take more than 4194304 bytes"));

        let step = [MODULE, b"}", &text("module")].concat();
        let deep = names_of(&[b"\x80\x02", &step.repeat(5000), MODULE, &b"sb".repeat(5000), b"."]);
        assert!(deep.unwrap_err().contains("take more than 4194304 bytes"));

        // A thousand modules with the same attributes, one of which is a tensor.
        let shared = [MODULE, b"h\x05b"].concat();
        let held: Vec<u8> = (0..1000).flat_map(|i| [text(&i.to_string()), shared.clone()].concat()).collect();
        let names = names_of(&[b"\x80\x02", MODULE, b"}(", &text("w"), MODULE, &dict, b"q\x05b", &held, b"ub."]);
        assert_eq!(names.unwrap(), ["999.w"]);
    }

    /// A pickle of one tensor whose shape and strides are so many ones.
    fn tensor_of_ones(dimensions: usize) -> Vec<u8> {
        let flat = one_tensor(6, 0, [2, 3], [3, 1]);
        let tuples = [b'K', 2, b'K', 3, 0x86, b'K', 3, b'K', 1, 0x86];
        let at = flat.windows(tuples.len()).position(|window| window == tuples).unwrap();
        let ones = [b"(", &b"K\x01".repeat(dimensions)[..], b"t"].concat();
        [&flat[..at], &ones, &ones, &flat[at + tuples.len()..]].concat()
    }

    /// Twenty thousand tensors with one shape of sixty thousand numbers would take 19 GB, out of a pickle of 220 kB.
    #[test]
    fn a_shape_of_many_dimensions_is_refused_before_it_is_copied() {
        assert_eq!(names_of(&[&tensor_of_ones(MAX_DIMENSIONS)]).unwrap(), ["w"]);
        for dimensions in [MAX_DIMENSIONS + 1, 60_000] {
            let error = names_of(&[&tensor_of_ones(dimensions)]).unwrap_err();
            assert!(error.contains(&format!("a tensor of {dimensions} dimensions, expected at most 8")), "{error}");
        }
    }

    #[test]
    fn whatever_else_a_pickle_asks_for_is_refused_by_name() {
        for (pickle, expected) in [
            (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.".as_slice(), "`posix.system`"),
            (b"\x80\x02c__builtin__\neval\n", "`__builtin__.eval`"),
            (b"\x80\x02ctorch\nload\n", "`torch.load`"),
            (b"\x80\x02ccollections\nnamedtuple\n", "`collections.namedtuple`"),
            (b"\x80\x02cos\nsystem", "a name without an end"),
            (b"\x80\x04\x95\x00", "pickle protocol 4, expected 2"),
            (b"\x80\x02X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93", "instruction 0x93"),
            (b"\x80\x02(S'id'\nios\nsystem\n.", "instruction 0x53"),
            (b"\x80\x02ccollections\nOrderedDict\n)\x81", "a new object that is no module"),
            (b"\x80\x02c__torch__.clip\nVisual\n)R", "a call of Module with 0 odd arguments"),
            (b"\x80\x02ctorch\nHalfStorage\n)R", "a call of Storage(F16)"),
            (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R", "a call of OrderedDict with 1 odd arguments"),
        ] {
            let error = error_of(&[("archive/data.pkl", pickle)]);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn programs_that_make_no_sense_are_refused() {
        for (pickle, expected) in [
            (b"".as_slice(), "the program breaks off"),
            (b"\x80\x02", "breaks off"),
            (b"\x80\x02.", "the stack is empty"),
            (b"\x80\x02N.", "the file holds None"),
            (b"\x80\x02t", "no mark on the stack"),
            (b"\x80\x02N(.", "the stack is empty"),
            (b"\x80\x02h\x07", "nothing was remembered as 7"),
            (b"\x80\x02}(NuN", "a key without a value"),
            (b"\x80\x02NNNs", "items for what is no dictionary"),
            (b"\x80\x02NNa", "appending to None"),
            (b"\x80\x02NNb", "attributes for None"),
            (b"\x80\x02NQ", "is not the id of a storage"),
            (b"\x80\x02}K\x01K\x02s.", "expected a name and its tensor"),
            (b"\x80\x02X\xff\xff\xff\xff", "breaks off"),
            (b"\x80\x02X\x01\x00\x00\x00\xff", "utf-8"),
            (b"\x80\x02\x8a\x09\x01\x02\x03\x04\x05\x06\x07\x08\x09", "an integer of 9 bytes"),
        ] {
            let error = error_of(&[("archive/data.pkl", pickle)]);
            assert!(error.contains(expected), "{error}, expected {expected}");
        }
    }

    #[test]
    fn claims_beyond_a_storage_are_refused() {
        let of = |pickle: Vec<u8>| {
            let bytes = archive(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 24])]);
            torch_tensors(&mut Cursor::new(bytes))
        };
        assert_eq!(of(one_tensor(6, 0, [2, 3], [3, 1])).unwrap()[0].1.strides, None);
        assert_eq!(of(one_tensor(6, 0, [3, 2], [1, 3])).unwrap()[0].1.strides, Some(vec![1, 3]));
        assert_eq!(of(one_tensor(6, 3, [1, 3], [9, 1])).unwrap()[0].1.strides, None);
        assert_eq!(of(one_tensor(6, 6, [0, 3], [3, 1])).unwrap()[0].1.shape, [0, 3]);
        for (pickle, expected) in [
            (one_tensor(7, 0, [2, 3], [3, 1]), "claims 7 elements of 4 bytes, has 24"),
            (one_tensor(6, 1, [2, 3], [3, 1]), "leads out of a storage of 6"),
            (one_tensor(6, 0, [2, 3], [4, 1]), "leads out"),
            (one_tensor(6, 0, [200, 200], [0, 0]), "leads out"),
        ] {
            let error = of(pickle).unwrap_err();
            assert!(error.contains("tensor `w`") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_very_deep_pickle_is_harmless() {
        let mut pickle = b"\x80\x02)".to_vec();
        pickle.extend(std::iter::repeat_n(0x85, 1 << 20));
        pickle.push(b'.');
        let error = error_of(&[("archive/data.pkl", &pickle)]);
        assert!(error.contains("expected a dictionary"), "{error}");
    }

    #[test]
    fn archives_that_torch_does_not_write_are_refused() {
        let huge = vec![b')'; MAX_PICKLE as usize + 1];
        for (members, expected) in [
            (vec![("archive/weights.pkl", b"".as_slice())], "no data.pkl"),
            (vec![("a/data.pkl", b"."), ("a/byteorder", b"big")], "byte order \"big\""),
            (vec![("a/data.pkl", &huge)], "at most 4194304 are allowed"),
        ] {
            let error = error_of(&members);
            assert!(error.contains(expected), "{error}");
        }
        let error = torch_tensors(&mut Cursor::new(b"\x80\x02}q\x00.")).unwrap_err();
        assert!(error.contains("not a zip archive") && error.contains("torch before 1.6"), "{error}");
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        for length in (0..SAVED_BY_TORCH.len()).step_by(37) {
            assert!(torch_tensors(&mut Cursor::new(&SAVED_BY_TORCH[..length])).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_program_ends_in_a_result(pickle in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Machine::default().run(&pickle);
        }

        /// Random instructions of those that are known get deeper than random bytes.
        #[test]
        fn any_known_instructions_end_in_a_result(
            picked in proptest::collection::vec((0usize..26, any::<u8>()), 0..100),
        ) {
            let mut pickle = b"\x80\x02".to_vec();
            for (index, byte) in picked {
                let opcode = b"(qsuaebNKMJGXc]})th\x85\x86\x87QR\x88\x81"[index];
                pickle.push(opcode);
                match opcode {
                    b'c' if byte % 2 == 0 => pickle.extend(b"collections\nOrderedDict\n"),
                    b'c' => pickle.extend(b"__torch__.a\nB\n"),
                    b'X' => pickle.extend([1, 0, 0, 0, byte & 0x7f]),
                    b'q' | b'h' => pickle.push(byte % 8),
                    b'K' => pickle.push(byte),
                    _ => {}
                }
            }
            let mut machine = Machine::default();
            let _ = machine.run(&pickle).and_then(|root| machine.named_tensors(root).map(drop));
        }

        /// A damaged file is an error, or yields tensors that can be read.
        #[test]
        fn any_damage_ends_in_a_result(at in 0..SAVED_BY_TORCH.len(), byte in any::<u8>()) {
            let mut bytes = SAVED_BY_TORCH.to_vec();
            bytes[at] = byte;
            if let Ok(checkpoint) = Checkpoint::from_bytes("pytorch_model.bin", bytes, &Device::Cpu) {
                for (name, entry, _) in checkpoint.tensors() {
                    let _ = checkpoint.tensor(name, &entry.shape);
                }
            }
        }
    }
}
