//! From a checkpoint to a model to ship: half precision, no trainer's state.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use gpt4roi::model::ModelFiles as Files;

use crate::{
    checkpoint::{self, ModelFiles, last_or_self},
    error::{Result, TrainError},
};

/// Writes the model of `source` (a checkpoint, or the output directory of a stage) to `target` in
/// float16: weights, tower, configurations and tokenizer.
///
/// # Errors
/// If `source` holds no whole model, or a weight too large for float16.
pub fn export(source: &Path, target: &Path) -> Result<()> {
    let path = last_or_self(source)?;
    let files = ModelFiles { config: Files::Directory(path.clone()).config()?, tokenizer: Some(path.clone()) };
    let (parameters, _) = checkpoint::read_parameters(&path)?;
    for (name, tensor) in &parameters {
        if !fits(tensor)? {
            return Err(TrainError::checkpoint(&path, format!("`{name}` has values beyond float16")));
        }
    }
    checkpoint::create(target)?;
    checkpoint::write_model(target, &parameters, &files, DType::F16)?;
    gpt4roi::Gpt4Roi::open(target, &Device::Cpu)?; // strict: nothing missing, nothing left over
    Ok(())
}

/// Whether every value stays finite in float16.
fn fits(tensor: &Tensor) -> Result<bool> {
    let largest = tensor.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
    Ok(largest <= 65504.0)
}

#[cfg(test)]
mod tests {
    use candle_core::safetensors::load;

    use super::*;
    use crate::{StageConfig, progress::Silent, tiny};

    #[test]
    fn a_stage_becomes_a_model_that_opens() {
        let directory = tempfile::tempdir().unwrap();
        let (out, model) = (directory.path().join("out"), directory.path().join("model"));
        let stage = StageConfig { steps: 1, batch: 1, ..tiny::stage(tiny::conversation(), &["model.", "lm_head."]) };
        tiny::trainer(stage, &out).unwrap().run(&|| std::time::Duration::ZERO, &mut Silent).unwrap();
        export(&out, &model).unwrap();
        let tensors = load(model.join("model.safetensors"), &Device::Cpu).unwrap();
        assert!(tensors.values().all(|tensor| tensor.dtype() == DType::F16));
        assert!(!tensors.keys().any(|name| name.starts_with("aux.")));
        assert!(!model.join("trainer.safetensors").exists());
    }

    #[test]
    fn what_float16_cannot_hold_is_found() {
        let fits_at = |value: f32| fits(&Tensor::new(&[1.0, value], &Device::Cpu).unwrap()).unwrap();
        assert!(fits_at(-65504.0));
        assert!(!fits_at(-70000.0) && !fits_at(f32::INFINITY));
    }
}
