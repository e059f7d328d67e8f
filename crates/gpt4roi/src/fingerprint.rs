//! A short name for the numbers of a model, to compare installations.

use std::{collections::BTreeMap, fmt};

use half::f16;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    error::Result,
    model::ModelFiles,
    stream::PIECE,
    weights::{TensorStore, WeightsResult},
};

/// SHA-256 over the tensors that a model computes with.
///
/// Two models have the same fingerprint exactly if every tensor has the same shape and the same
/// numbers, whatever files they lie in: shards, names of files, GGUF's order of rows and whether a
/// number is stored in f16 or in f32 make no difference; quantisation does.
///
/// It is the hash, in the order of published names, of each name, a zero byte, and the tensor's own
/// hash: of its extents as 64-bit integers and of its numbers as 32-bit floats, all little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a model's files; reads all of them.
    ///
    /// # Errors
    /// If a file is missing, damaged or holds other tensors than the model needs.
    pub fn of(files: &ModelFiles) -> Result<Self> {
        let needed = files.report()?.strict()?.loaded;
        Self::of_some(files, |name, _| needed.iter().any(|needed| needed == name), |number| number)
    }

    /// The fingerprint of a model's vectors alone, which are norms and biases, with their numbers in float16.
    ///
    /// Neither quantising a model nor halving its bits changes it, and it reads few numbers of the largest model. That
    /// two models have the same is no proof that they are one; that they have not shows that they were trained apart.
    /// It may be taken of a model that lacks something, such as a region module.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn of_vectors(files: &ModelFiles) -> Result<Self> {
        let needed = files.report()?.loaded;
        let is_vector = |name: &str, shape: &[usize]| shape.len() == 1 && needed.iter().any(|needed| needed == name);
        Self::of_some(files, is_vector, |number| f16::from_f32(number).to_f32())
    }

    /// Of the tensors that are wanted, with numbers as `number` makes them.
    fn of_some(
        files: &ModelFiles,
        wanted: impl Fn(&str, &[usize]) -> bool,
        number: impl Fn(f32) -> f32 + Sync,
    ) -> Result<Self> {
        let (model, tower) = files.stores(&candle_core::Device::Cpu)?;
        let mut tensors = BTreeMap::new();
        for store in [&model, &tower] {
            tensors.extend(store.stored().into_iter().map(|tensor| (tensor.name, (store, tensor.shape))));
        }
        tensors.retain(|name, (_, shape)| wanted(name, shape));
        let hash = |(name, (store, shape)): (String, (&_, Vec<usize>))| {
            tensor_hash(store, &name, &shape, &number).map(|hash| (name, hash))
        };
        let hashes = tensors.into_par_iter().map(hash).collect::<WeightsResult<BTreeMap<_, _>>>()?;
        let mut all = Sha256::new();
        for (name, hash) in hashes {
            all.update(name);
            all.update([0]);
            all.update(hash);
        }
        Ok(Self(all.finalize().into()))
    }
}

fn tensor_hash(
    store: &std::sync::Arc<dyn TensorStore>,
    name: &str,
    shape: &[usize],
    number: &impl Fn(f32) -> f32,
) -> WeightsResult<[u8; 32]> {
    let mut hash = Sha256::new();
    for extent in shape {
        hash.update((*extent as u64).to_le_bytes());
    }
    let count = shape.iter().product();
    for start in (0..count).step_by(PIECE) {
        let values = store.piece(name, start..count.min(start + PIECE))?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| number(*value).to_le_bytes()).collect();
        hash.update(bytes);
    }
    Ok(hash.finalize().into())
}

/// The first 128 bits, in hexadecimal.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..16].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        convert::{IfExists, Parts},
        stream::StreamedTensor,
    };

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openclip");

    fn fingerprint(parts: Parts) -> String {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        parts.write_directory(&out, IfExists::Refuse).unwrap();
        Fingerprint::of(&ModelFiles::Directory(out)).unwrap().to_string()
    }

    #[test]
    fn a_single_number_makes_another_model() {
        let parts = || Parts::directory(Path::new(GOLDEN)).unwrap();
        let golden = Fingerprint::of(&ModelFiles::Directory(GOLDEN.into())).unwrap().to_string();
        assert_eq!((fingerprint(parts()), golden.len()), (golden.clone(), 32), "copied number by number");
        let mut changed = parts();
        let norm = changed.model.iter().position(|tensor| tensor.name == "model.norm.weight").unwrap();
        let norm = changed.model.remove(norm);
        changed.model.push(StreamedTensor::new("model.norm.weight", &norm.shape.clone(), move |range| {
            let values = norm.read(range.clone())?;
            Ok(range.zip(values).map(|(at, value)| if at == 3 { 2.0 * value } else { value }).collect())
        }));
        assert_ne!(fingerprint(changed), golden);
    }
}
