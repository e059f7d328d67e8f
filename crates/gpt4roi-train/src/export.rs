//! From a checkpoint to a model to ship: half precision, no trainer's state.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use gpt4roi::{
    adapter::{Adapter, CONFIG},
    config::LlamaConfig,
    convert::IfExists,
    draft_model::DraftModel,
    model::ModelFiles as Files,
    staging::Staging,
};

use crate::{
    checkpoint::{self, AdapterFiles, Form, LanguageFiles, ModelFiles, TokenizerFiles, last_or_self},
    error::{Result, TrainError},
};

/// Writes the model of `source` (a checkpoint, or the output directory of a stage) to `target` in
/// float16: weights, tower, configurations and tokenizer; or the adapter or the draft model, if it is one. It appears once it is complete.
///
/// # Errors
/// If `target` exists, or is more than a model to replace; if `source` holds no whole model, or a weight too large
/// for float16.
pub fn export(source: &Path, target: &Path, if_exists: IfExists) -> Result<()> {
    let staging = Staging::new(target, if_exists).map_err(gpt4roi::Error::from)?;
    let path = whole_model(source)?;
    let form = form(&path)?;
    let parameters = checkpoint::read_parameters(&path)?;
    for (name, tensor) in &parameters {
        if !fits(tensor)? {
            return Err(TrainError::checkpoint(&path, format!("`{name}` has values beyond float16")));
        }
    }
    form.write(staging.path(), &parameters, DType::F16)?;
    match form {
        // Strict: nothing missing, nothing left over.
        Form::Model(_) => drop(gpt4roi::Gpt4Roi::open(staging.path(), &Device::Cpu)?),
        // What it belongs to may lie elsewhere now.
        Form::Adapter(_) => drop(Adapter::open(staging.path(), &Device::Cpu)?),
        Form::Language(files) => {
            drop(DraftModel::open(staging.path(), &files.tokenizer.tokenizer()?, &Device::Cpu)?);
        }
    }
    Ok(staging.commit().map_err(gpt4roi::Error::from)?)
}

/// What the checkpoint in this directory is.
fn form(path: &Path) -> Result<Form> {
    if path.join(CONFIG).is_file() {
        let adapter = Adapter::open(path, &Device::Cpu)?;
        let (config, base) = (adapter.config().clone(), adapter.base().map(str::to_owned));
        return Ok(Form::Adapter(AdapterFiles { config, base }));
    }
    let tokenizer = TokenizerFiles::read(path)?;
    if !path.join("vision_tower").is_dir() {
        let file = path.join("config.json");
        let text = std::fs::read_to_string(&file).map_err(|source| TrainError::file(&file, source))?;
        return Ok(Form::Language(LanguageFiles { config: LlamaConfig::from_json(&text)?, tokenizer }));
    }
    let config = Files::Directory(path.into()).config()?;
    Ok(Form::Model(ModelFiles { config, tokenizer: Some(tokenizer) }))
}

/// The checkpoint that `source` is or holds, unless it is of a stage that makes no more than a part of a model.
fn whole_model(source: &Path) -> Result<PathBuf> {
    let path = last_or_self(source)?;
    let has_model = ["config.json", CONFIG].iter().any(|name| path.join(name).is_file());
    let has_tower = path.join("vision_tower").is_dir();
    let got = match (has_model, has_tower) {
        (true, _) => return Ok(path),
        (false, true) => "a vision tower alone, which later stages of training begin with",
        (false, false) if path.is_dir() => "a directory with neither config.json nor a checkpoint",
        (false, false) => "no directory",
    };
    Err(TrainError::checkpoint(path, format!("expected a run with a whole model, or a checkpoint of one, got {got}")))
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
        export(&out, &model, IfExists::Refuse).unwrap();
        let tensors = load(model.join("model.safetensors"), &Device::Cpu).unwrap();
        assert!(tensors.values().all(|tensor| tensor.dtype() == DType::F16));
        assert!(!tensors.keys().any(|name| name.starts_with("aux.")));
        assert!(!model.join("trainer.safetensors").exists());

        let again = export(&out, &model, IfExists::Refuse).unwrap_err().to_string();
        assert!(again.ends_with("model exists already"), "{again}");
        export(&out, &model, IfExists::Replace).unwrap();
        std::fs::write(model.join("notes.txt"), b"mine").unwrap();
        let more = export(&out, &model, IfExists::Replace).unwrap_err().to_string();
        assert!(more.ends_with("got notes.txt"), "{more}");
        let itself = export(&out, &out, IfExists::Replace).unwrap_err().to_string();
        assert!(itself.contains("checkpoints"), "a run is no model to replace: {itself}");
    }

    #[test]
    fn what_is_no_whole_model_is_called_by_its_name() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        std::fs::create_dir_all(at("tower/checkpoints/step-00000001/vision_tower")).unwrap();
        std::fs::create_dir_all(at("empty")).unwrap();
        for (run, got) in
            [("tower", "a vision tower alone"), ("empty", "a directory with neither"), ("none", "no directory")]
        {
            let error = export(&at(run), &at("out"), IfExists::Refuse).unwrap_err().to_string();
            assert!(error.contains(run) && error.contains(&format!("got {got}")), "{error}");
            assert!(!at("out").exists());
        }
    }

    #[test]
    fn what_float16_cannot_hold_is_found() {
        let fits_at = |value: f32| fits(&Tensor::new(&[1.0, value], &Device::Cpu).unwrap()).unwrap();
        assert!(fits_at(-65504.0));
        assert!(!fits_at(-70000.0) && !fits_at(f32::INFINITY));
    }
}
