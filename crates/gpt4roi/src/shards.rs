//! Safetensors in shards, written as a stream, with the index that says where each tensor is.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use half::{f16, slice::HalfFloatSliceExt};
use serde_json::json;

use crate::{
    convert::{ConvertError, ConvertResult},
    staging::file_error,
    stream::StreamedTensor,
};

/// Bytes of one file, unless a single tensor is larger: the customary five gigabytes.
pub(crate) const SHARD_BYTES: usize = 5_000_000_000;

/// Writes tensors in float16 to `model.safetensors`, or to as many files as it takes and
/// `model.safetensors.index.json`.
///
/// # Errors
/// If a number is too large for float16 or none at all, or reading or writing fails.
pub(crate) fn write_safetensors(directory: &Path, tensors: &[StreamedTensor], shard_bytes: usize) -> ConvertResult<()> {
    let shards = shards(tensors, shard_bytes);
    if let [all] = shards.as_slice() {
        return write_shard(&directory.join("model.safetensors"), all);
    }
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write_shard(&directory.join(&name), shard)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.as_str(), name.clone())));
    }
    let total_size: usize = tensors.iter().map(bytes).sum();
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let path = directory.join("model.safetensors.index.json");
    std::fs::write(&path, format!("{index:#}\n")).map_err(file_error(&path))
}

/// Whether [`write_safetensors`] gives a file this name.
pub(crate) fn is_weights(name: &str) -> bool {
    let number = |digits: &str| digits.len() >= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let shard = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let is_shard = shard.and_then(|shard| shard.split_once("-of-")).is_some_and(|(n, all)| number(n) && number(all));
    is_shard || ["model.safetensors", "model.safetensors.index.json"].contains(&name)
}

fn bytes(tensor: &StreamedTensor) -> usize {
    2 * tensor.count()
}

/// Tensors in their order, as many to a shard as fit.
fn shards(tensors: &[StreamedTensor], shard_bytes: usize) -> Vec<Vec<&StreamedTensor>> {
    let mut shards = vec![Vec::new()];
    let mut room = shard_bytes;
    for tensor in tensors {
        let last = shards.len() - 1;
        if bytes(tensor) > room && !shards[last].is_empty() {
            shards.push(Vec::new());
            room = shard_bytes;
        }
        room = room.saturating_sub(bytes(tensor));
        if let Some(last) = shards.last_mut() {
            last.push(tensor);
        }
    }
    shards
}

fn write_shard(path: &Path, tensors: &[&StreamedTensor]) -> ConvertResult<()> {
    let file = File::create(path).map_err(file_error(path))?;
    let mut out = BufWriter::new(file);
    out.write_all(&header(tensors)).map_err(file_error(path))?;
    for tensor in tensors {
        for piece in tensor.pieces() {
            out.write_all(&halves(&tensor.name, &piece?)?).map_err(file_error(path))?;
        }
    }
    out.flush().map_err(file_error(path))
}

/// Length and JSON of a safetensors file, padded so that the data begins at a multiple of 8.
fn header(tensors: &[&StreamedTensor]) -> Vec<u8> {
    let mut entries = BTreeMap::from([("__metadata__", json!({ "format": "pt" }))]);
    let mut start = 0;
    for tensor in tensors {
        let end = start + bytes(tensor);
        let entry = json!({ "dtype": "F16", "shape": tensor.shape, "data_offsets": [start, end] });
        entries.insert(&tensor.name, entry);
        start = end;
    }
    let mut json = json!(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    [(json.len() as u64).to_le_bytes().as_slice(), &json].concat()
}

/// Numbers in float16, little-endian.
///
/// # Errors
/// If one of them is too large, or no number.
pub(crate) fn halves(name: &str, values: &[f32]) -> ConvertResult<Vec<u8>> {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    match halves.iter().position(|half| !half.is_finite()) {
        Some(at) => Err(ConvertError::NotFinite { name: name.to_owned(), value: values[at], kind: "f16" }),
        None => Ok(halves.iter().flat_map(|half| half.to_le_bytes()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::weights::{Checkpoint, TensorSource};

    fn tensor(name: &str, values: &[f32]) -> StreamedTensor {
        let values = values.to_vec();
        StreamedTensor::new(name, &[values.len()], move |range| Ok(values[range].to_vec()))
    }

    #[test]
    fn shards_are_read_back_through_their_index() {
        let tensors = [tensor("a", &[1.0, 2.0]), tensor("b", &[3.0]), tensor("c", &[4.0; 9]), tensor("d", &[5.0])];
        for (limit, files) in [(1000, 1), (6, 3), (1, 4)] {
            let directory = tempfile::tempdir().unwrap();
            write_safetensors(directory.path(), &tensors, limit).unwrap();
            let written = std::fs::read_dir(directory.path()).unwrap();
            let written: Vec<_> = written.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            assert!(written.iter().all(|name| is_weights(name)), "{written:?}");
            let shards = written.iter().filter(|name| name.ends_with(".safetensors"));
            assert_eq!(shards.count(), files, "at most {limit} bytes each");
            let checkpoint = Checkpoint::open(directory.path(), &Device::Cpu).unwrap();
            for expected in &tensors {
                let got = checkpoint.tensor(&expected.name, &expected.shape).unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(got, expected.read(0..expected.count()).unwrap());
            }
        }
    }

    #[test]
    fn names_that_only_look_like_weights() {
        for name in
            ["lora.safetensors", "model-1-of-2.safetensors", "model-00001-of-0000x.safetensors", "model-best", ""]
        {
            assert!(!is_weights(name), "{name}");
        }
    }

    #[test]
    fn numbers_beyond_half_precision_are_refused_by_tensor() {
        let directory = tempfile::tempdir().unwrap();
        for value in [65520.0, f32::NAN, f32::NEG_INFINITY] {
            let tensors = [tensor("a", &[1.0, value])];
            let error = write_safetensors(directory.path(), &tensors, 1000).unwrap_err().to_string();
            assert!(error.contains("tensor `a`"), "{error}");
        }
        assert!(halves("a", &[65519.0, -65504.0]).is_ok());
    }
}
