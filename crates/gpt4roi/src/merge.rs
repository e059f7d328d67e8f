//! The tensors of a model out of the files that are published: a base with a delta, a language model
//! with a projector.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    convert::{ConvertError, ConvertResult},
    stream::{StreamedTensor, round_to_half},
    weights::{TensorStore, WeightsError, is_leftover_of_model},
};

/// The two matrices with a row per token, which grow with the vocabulary.
const PER_TOKEN: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// LLaMA plus the published difference.
///
/// A tensor of both is their sum, computed and rounded in float16 as the original's scripts do. What
/// only the delta has, the projector and the region module, is taken as it is, and so are the rows of
/// tokens that the base does not know.
///
/// Source: `scripts/apply_delta.py` and `make_delta.py` of GPT4RoI.
///
/// # Errors
/// If one has a tensor that needs a counterpart in the other, or their shapes differ elsewhere.
pub fn merge(base: &Arc<dyn TensorStore>, delta: &Arc<dyn TensorStore>) -> ConvertResult<Vec<StreamedTensor>> {
    let mut of_base = by_name(base);
    let mut merged = Vec::new();
    for delta in by_name(delta).into_values() {
        merged.push(match of_base.remove(&delta.name) {
            Some(base) => sum(base, delta)?,
            None if is_ours(&delta.name) => delta,
            None => return Err(ConvertError::NoCounterpart { name: delta.name, owner: "delta", other: "base" }),
        });
    }
    match of_base.into_keys().next() {
        Some(name) => Err(ConvertError::NoCounterpart { name, owner: "base", other: "delta" }),
        None => Ok(merged),
    }
}

/// Whether GPT4RoI added this tensor to LLaMA.
fn is_ours(name: &str) -> bool {
    name.starts_with("model.mm_projector.") || name.starts_with("model.spi_module.")
}

fn by_name(store: &Arc<dyn TensorStore>) -> BTreeMap<String, StreamedTensor> {
    let needed = StreamedTensor::all(store).into_iter().filter(|tensor| !is_leftover_of_model(&tensor.name));
    needed.map(|tensor| (tensor.name.clone(), tensor)).collect()
}

fn sum(base: StreamedTensor, delta: StreamedTensor) -> ConvertResult<StreamedTensor> {
    let grows = PER_TOKEN.contains(&delta.name.as_str())
        && matches!((base.shape.as_slice(), delta.shape.as_slice()), (&[old, a], &[new, b]) if a == b && old <= new);
    if base.shape != delta.shape && !grows {
        let (name, expected, got) = (delta.name, base.shape, delta.shape);
        return Err(WeightsError::Shape { name, expected, got }.into());
    }
    let (name, shape, shared) = (delta.name.clone(), delta.shape.clone(), base.count());
    Ok(StreamedTensor::new(name, &shape, move |range| {
        let mut of_base = base.read(range.start.min(shared)..range.end.min(shared))?;
        let mut values = delta.read(range)?;
        round_to_half(&mut of_base);
        round_to_half(&mut values);
        values.iter_mut().zip(of_base).for_each(|(value, base)| *value += base);
        round_to_half(&mut values);
        Ok(values)
    }))
}

/// A language model with LLaVA's projector: where training of the region module starts.
///
/// The vocabulary grows to `rows` tokens. A new token's rows are the mean of all old ones, and the
/// input rows of `<im_start>` and `<im_end>`, the last two tokens, come from the projector's file if
/// it has them. (The original draws the rows of `<im_patch>` at random, which no input ever uses.)
///
/// # Errors
/// If the projector's file has other tensors, or a matrix is missing.
pub fn with_projector(
    base: &Arc<dyn TensorStore>,
    projector: &Arc<dyn TensorStore>,
    rows: usize,
) -> ConvertResult<Vec<StreamedTensor>> {
    let mut tensors = by_name(base);
    let mut of_projector = by_name(projector);
    for name in ["model.mm_projector.weight", "model.mm_projector.bias"] {
        let tensor = of_projector.remove(name).or_else(|| of_projector.remove(name.strip_prefix("model.")?));
        let missing = || WeightsError::Missing { name: name.to_owned(), expected: Vec::new() };
        tensors.insert(name.to_owned(), tensor.ok_or_else(missing)?.renamed(name));
    }
    let mut frame = of_projector.remove(PER_TOKEN[0]);
    if let Some(name) = of_projector.into_keys().next() {
        return Err(ConvertError::NoCounterpart { name, owner: "projector's file", other: "model" });
    }
    for name in PER_TOKEN {
        let missing = || WeightsError::Missing { name: name.to_owned(), expected: Vec::new() };
        let matrix = tensors.remove(name).ok_or_else(missing)?;
        tensors.insert(name.to_owned(), grown(matrix, rows, frame.take())?);
    }
    Ok(tensors.into_values().collect())
}

/// A matrix with more rows: copies of the mean row, the last of which `tail` replaces.
fn grown(matrix: StreamedTensor, rows: usize, tail: Option<StreamedTensor>) -> ConvertResult<StreamedTensor> {
    let &[old, width] = matrix.shape.as_slice() else {
        let (name, expected, got) = (matrix.name, vec![rows, 0], matrix.shape);
        return Err(WeightsError::Shape { name, expected, got }.into());
    };
    let mut last = Vec::new();
    if let Some(tail) = tail {
        if !matches!(*tail.shape, [new, columns] if columns == width && new <= rows.saturating_sub(old)) {
            let (name, expected, got) = (tail.name, vec![rows.saturating_sub(old), width], tail.shape);
            return Err(WeightsError::Shape { name, expected, got }.into());
        }
        last = tail.read(0..tail.count())?;
    }
    let means = (rows - old.min(rows)) * width - last.len();
    let mean = mean_row(&matrix, old, width)?;
    let new: Vec<f32> = mean.into_iter().cycle().take(means).chain(last).collect();
    let (name, kept) = (matrix.name.clone(), matrix.count());
    Ok(StreamedTensor::new(name, &[rows.max(old), width], move |range| {
        let mut values = matrix.read(range.start.min(kept)..range.end.min(kept))?;
        values.extend(&new[range.start.max(kept) - kept..range.end.max(kept) - kept]);
        Ok(values)
    }))
}

fn mean_row(matrix: &StreamedTensor, rows: usize, width: usize) -> ConvertResult<Vec<f32>> {
    let mut sums = vec![0f64; width];
    let mut at = 0;
    for piece in matrix.pieces() {
        for value in piece? {
            sums[at % width] += f64::from(value);
            at += 1;
        }
    }
    Ok(sums.into_iter().map(|sum| (sum / rows as f64) as f32).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use half::f16;

    use super::*;
    use crate::weights::Checkpoint;

    /// A store of float16 tensors.
    fn store(tensors: &[(&str, &[usize], &[f32])]) -> Arc<dyn TensorStore> {
        let tensors = tensors.iter().map(|(name, shape, values)| {
            let values: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
            (*name, Tensor::from_vec(values, *shape, &Device::Cpu).unwrap())
        });
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        candle_core::safetensors::save(&tensors.collect(), &path).unwrap();
        Arc::new(Checkpoint::from_bytes("x.safetensors", std::fs::read(path).unwrap(), &Device::Cpu).unwrap())
    }

    fn values(tensors: &[StreamedTensor], name: &str) -> Vec<f32> {
        let tensor = tensors.iter().find(|tensor| tensor.name == name).unwrap();
        tensor.read(0..tensor.count()).unwrap()
    }

    const NORM: &str = "model.norm.weight";

    #[test]
    fn sums_are_rounded_to_half_precision_ties_to_even() {
        // Above 2048 half precision has even numbers only: 2048 + 1 lies in the middle and goes to
        // 2048, 2050 + 1 to 2052; 2048 + 1.5 is nearer to 2050.
        let base = store(&[(NORM, &[4], &[2048.0, 2050.0, 2048.0, 0.1])]);
        let delta = store(&[(NORM, &[4], &[1.0, 1.0, 1.5, -0.1])]);
        assert_eq!(values(&merge(&base, &delta).unwrap(), NORM), [2048.0, 2052.0, 2050.0, 0.0]);
    }

    #[test]
    fn new_tokens_and_new_parts_are_taken_as_they_are() {
        let (embed, head) = (PER_TOKEN[0], PER_TOKEN[1]);
        let base = store(&[
            (embed, &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
            (head, &[2, 2], &[1.0, 1.0, 1.0, 1.0]),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", &[1], &[1.0]),
        ]);
        let delta = store(&[
            (embed, &[3, 2], &[10.0, 10.0, 10.0, 10.0, 7.0, 8.0]),
            (head, &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
            ("model.mm_projector.bias", &[1], &[5.0]),
            ("model.spi_module.roi_align.updims.bias", &[1], &[6.0]),
        ]);
        let merged = merge(&base, &delta).unwrap();
        assert_eq!(values(&merged, embed), [11.0, 12.0, 13.0, 14.0, 7.0, 8.0]);
        assert_eq!(values(&merged, head), [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(values(&merged, "model.mm_projector.bias"), [5.0]);
        assert_eq!(values(&merged, "model.spi_module.roi_align.updims.bias"), [6.0]);
        assert_eq!(merged.len(), 4, "rotary frequencies are computed, not merged");
    }

    #[test]
    fn files_that_are_no_base_and_delta_are_refused_by_tensor() {
        let one = |name, shape: &[usize]| store(&[(name, shape, &vec![0.0; shape.iter().product()])]);
        for (base, delta, expected) in [
            (one("a", &[1]), one("b", &[1]), "tensor `b` of the delta has no counterpart in the base"),
            (one("a", &[1]), one("model.mm_projector.bias", &[1]), "tensor `a` of the base has no counterpart"),
            (one("a", &[2]), one("a", &[3]), "tensor `a` has shape [3], expected [2]"),
            (one(PER_TOKEN[0], &[3, 2]), one(PER_TOKEN[0], &[2, 2]), "has shape [2, 2], expected [3, 2]"),
            (one(PER_TOKEN[0], &[2, 2]), one(PER_TOKEN[0], &[3, 1]), "has shape [3, 1], expected [2, 2]"),
        ] {
            let error = merge(&base, &delta).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}, not {expected}");
        }
    }

    #[test]
    fn a_projector_joins_a_language_model() {
        let (embed, head) = (PER_TOKEN[0], PER_TOKEN[1]);
        let base = store(&[(embed, &[2, 2], &[1.0, 2.0, 3.0, 6.0]), (head, &[2, 2], &[0.0, 0.0, 2.0, 4.0])]);
        let projector = store(&[
            (embed, &[2, 2], &[7.0, 7.0, 8.0, 8.0]),
            ("model.mm_projector.weight", &[2, 1], &[1.0, 2.0]),
            ("model.mm_projector.bias", &[2], &[3.0, 4.0]),
        ]);
        let tensors = with_projector(&base, &projector, 5).unwrap();
        assert_eq!(values(&tensors, embed), [1.0, 2.0, 3.0, 6.0, 2.0, 4.0, 7.0, 7.0, 8.0, 8.0]);
        assert_eq!(values(&tensors, head), [0.0, 0.0, 2.0, 4.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
        assert_eq!(values(&tensors, "model.mm_projector.weight"), [1.0, 2.0]);
        let error = with_projector(&base, &base, 5).unwrap_err().to_string();
        assert!(error.contains("`model.mm_projector.weight` is missing"), "{error}");
        let (weight, bias) = ("model.mm_projector.weight", "model.mm_projector.bias");
        let deep = store(&[(embed, &[1, 2, 9], &[0.0; 18]), (weight, &[2, 1], &[1.0, 2.0]), (bias, &[2], &[3.0, 4.0])]);
        let error = with_projector(&base, &deep, 5).unwrap_err().to_string();
        assert!(error.contains("has shape [1, 2, 9], expected [3, 2]"), "{error}");
    }
}
