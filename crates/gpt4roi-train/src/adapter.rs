//! Training beside a model that stays as it is: changes of low rank, and whole tensors where a stage names them.
//!
//! The model may be quantised, so that a 7B is tuned in the memory that it takes to ask it. What comes out is an
//! adapter, see [`gpt4roi::adapter`].

use std::{collections::BTreeSet, fmt, sync::Arc};

use candle_core::{Device, Tensor};
use gpt4roi::{
    adapter::{AdapterConfig, CONFIG},
    layers::Matrix,
    model::ModelFiles,
    precision::Precision,
    weights::{TensorSource, TensorStore, Weights, WeightsResult},
};
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::last_or_self,
    config::{Source, StageConfig},
    error::Result,
    model_name::ModelName,
};

/// What is learned beside the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSettings {
    /// The inner dimension of the changes.
    pub rank: usize,
    /// Their weight, times the rank.
    pub alpha: f64,
    /// Which layers of the language model change, by the last parts of their names. None, where other things learn.
    #[serde(default = "all_layers")]
    pub targets: Vec<String>,
    /// In how many bits matrices are kept that do not learn, unless they are stored in fewer.
    #[serde(default)]
    pub base_dtype: Precision,
}

/// The linear layers of a decoder layer.
const LAYERS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn all_layers() -> Vec<String> {
    LAYERS.map(String::from).into()
}

impl AdapterSettings {
    pub(crate) fn check(&self, stage: &StageConfig) -> Result<()> {
        let refuse = |field: &str, expected: &str, got: &str| Err(stage.refusal(field, expected, got));
        if let Some(unknown) = self.targets.iter().find(|target| !LAYERS.contains(&target.as_str())) {
            return refuse("adapter.targets", &format!("some of {}", LAYERS.join(", ")), &format!("`{unknown}`"));
        }
        if self.targets.is_empty() && stage.trainable.is_empty() {
            return refuse("adapter.targets", "a layer, or something in `trainable`", "neither");
        }
        if self.rank == 0 {
            return refuse("adapter.rank", "at least 1", "0");
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return refuse("adapter.alpha", "more than 0", &self.alpha.to_string());
        }
        check_beside(stage)
    }

    /// Refuses a source of first values that would not be read as what it is: a whole model, unless the stage says what
    /// is taken of it beside the layers, and an adapter whose changes have another weight.
    pub(crate) fn check_source(&self, stage: &StageConfig, source: &Source) -> Result<()> {
        let refuse = |expected: &str, got: &str| {
            let got = format!("{got} in {}", source.path);
            Err(stage.refusal("init.from", expected, &got))
        };
        let path = last_or_self(source.path.place())?;
        if !path.join(CONFIG).is_file() {
            let of_layers = source.take.is_empty() || source.take.iter().any(|prefix| overlap(prefix, "model.layers."));
            let expected = "an adapter, or with `take` what is not in `model.layers.`";
            return if of_layers { refuse(expected, "a model") } else { Ok(()) };
        }
        let config = AdapterConfig::open(&path)?;
        let (expected, got) = (self.alpha / self.rank as f64, config.scale());
        if (expected - got).abs() > 1e-9 * expected {
            let expected = format!("an adapter whose changes are multiplied by {expected}, which is alpha / rank");
            return refuse(&expected, &format!("one with {got}"));
        }
        Ok(())
    }

    /// What stands beside the weights of an adapter of this stage.
    pub(crate) fn config(&self, stage: &StageConfig) -> AdapterConfig {
        let replaced: Vec<_> = stage.trainable.iter().map(|prefix| prefix.trim_end_matches('.').to_owned()).collect();
        let base = stage.model.like.clone().unwrap_or_else(ModelName::embedded);
        AdapterConfig::new(self.rank, self.alpha, &self.targets, &replaced, &base.to_string())
    }
}

/// Refuses what only a stage that makes a model of its own can ask for.
fn check_beside(stage: &StageConfig) -> Result<()> {
    let refuse = |field: &str, expected: &str, got: &str| Err(stage.refusal(field, expected, got));
    if stage.model.preset.is_some() {
        return refuse("model", "`like`, the model that the adapter is trained beside", "a preset");
    }
    if !stage.model.region.is_empty() {
        let expected = "none beside an adapter, which is opened with the model's own config.json";
        return refuse("model.region", expected, "some");
    }
    if let Some(prefix) = stage.trainable.iter().find(|prefix| overlap(prefix, "model.layers.")) {
        let expected = "none of `model.layers.`, which learn through the adapter";
        return refuse("trainable", expected, &format!("`{prefix}`"));
    }
    let init = &stage.init;
    if init.standardize_over > 0 || init.words_over > 0 || !init.scale.is_empty() {
        return refuse("init", "no `scale`, `standardize_over` and `words_over` beside an adapter", "some");
    }
    Ok(())
}

/// The model beneath an adapter.
pub(crate) struct Base {
    /// All but the tower, and the tower.
    stores: [(BTreeSet<String>, Arc<dyn TensorStore>); 2],
    settings: AdapterSettings,
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Base").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The two factors of a change.
pub(crate) struct Factors {
    /// What stands in front of `.lora_A.weight` and `.lora_B.weight`.
    pub(crate) layer: String,
    pub(crate) rank: usize,
    pub(crate) scale: f64,
}

impl Base {
    pub(crate) fn open(files: &ModelFiles, settings: AdapterSettings) -> Result<Self> {
        let (model, tower) = files.stores(&Device::Cpu)?;
        let named = |store: Arc<dyn TensorStore>| {
            (store.stored().into_iter().map(|tensor| tensor.name).collect::<BTreeSet<_>>(), store)
        };
        Ok(Self { stores: [named(model), named(tower)], settings })
    }

    /// A tensor of the model in f32, if the model has it.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Option<Tensor>> {
        self.store(name).map(|store| store.tensor(name, shape)).transpose()
    }

    /// A matrix of the model as it is kept, if the model has it.
    pub(crate) fn matrix(&self, name: &str, shape: [usize; 2]) -> WeightsResult<Option<Matrix>> {
        let kept = |store: &Arc<dyn TensorStore>| {
            let source: Arc<dyn TensorSource> = store.clone();
            Weights::new(source).in_precision(self.settings.base_dtype).get_matrix(name, shape)
        };
        self.store(name).map(kept).transpose()
    }

    /// Whether a change of the matrix `name` is learned, and how it is made up.
    pub(crate) fn factors(&self, name: &str) -> Option<Factors> {
        let layer = name.strip_suffix(".weight").filter(|layer| layer.starts_with("model.layers."))?;
        let last = layer.rsplit('.').next()?;
        let AdapterSettings { rank, alpha, targets, .. } = &self.settings;
        let scale = alpha / *rank as f64;
        targets.iter().any(|target| target == last).then(|| Factors { layer: layer.to_owned(), rank: *rank, scale })
    }

    fn store(&self, name: &str) -> Option<&Arc<dyn TensorStore>> {
        self.stores.iter().find(|(names, _)| names.contains(name)).map(|(_, store)| store)
    }
}

/// Whether a name can begin with both.
fn overlap(a: &str, b: &str) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Whether a parameter of this name is a factor of a change.
pub(crate) fn is_factor(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use gpt4roi::{
        Gpt4Roi,
        adapter::{Adapter, CONFIG},
        convert::{IfExists, Parts},
        fingerprint::Fingerprint,
        quantize::Quantization,
        stream::StreamedTensor,
    };

    use super::*;
    use crate::{
        error::TrainError,
        export::export,
        progress::Silent,
        stage::{open, resume},
        tiny,
        trainer::Trainer,
    };

    fn run(trainer: Result<Trainer>) {
        let mut trainer = trainer.unwrap_or_else(|error| panic!("{error}"));
        trainer.run(&|| Duration::ZERO, &mut Silent).unwrap_or_else(|error| panic!("{error}"));
    }

    fn last(out: &Path) -> std::path::PathBuf {
        crate::checkpoint::last_or_self(out).unwrap()
    }

    fn names(checkpoint: &Path) -> Vec<String> {
        crate::checkpoint::read_parameters(checkpoint).unwrap().into_keys().collect()
    }

    /// What a model with an adapter computes is what the trainer's network computed last.
    fn logits(files: &ModelFiles) -> Vec<f32> {
        let model = Gpt4Roi::from_files(files, &Device::Cpu).unwrap();
        let llama = &model.network.llama;
        let ids = Tensor::arange(5u32, 25, &Device::Cpu).unwrap();
        let embeds = llama.embed(&ids).unwrap().unsqueeze(0).unwrap();
        let hidden = llama.forward(&embeds, &mut llama.new_cache()).unwrap();
        llama.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_run_writes_what_it_learned_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let [base, out, adapter] = ["base", "out", "adapter"].map(|name| place.path().join(name));
        tiny::write_model(&base);
        let before = fs::read(base.join("model.safetensors")).unwrap();
        run(open(StageConfig { steps: 2, ..tiny::stage_of_adapter(&base, &["model.mm_projector."]) }, &out));
        let names = names(&last(&out));
        let of_layers = |name: &&String| name.starts_with("model.layers.");
        assert!(names.iter().filter(of_layers).all(|name| is_factor(name)), "{names:?}");
        assert_eq!(names.iter().filter(of_layers).count(), 2 * 3 * 2, "two factors of three layers, twice");
        let others: Vec<_> = names.iter().filter(|name| !of_layers(name)).map(String::as_str).collect();
        assert_eq!(others, ["model.mm_projector.bias", "model.mm_projector.weight"]);

        export(&out, &adapter, IfExists::Refuse).unwrap();
        assert_eq!(before, fs::read(base.join("model.safetensors")).unwrap(), "the model's files changed");
        let files = ModelFiles::at(&base).unwrap();
        let vectors = Fingerprint::of_vectors(&files).unwrap().to_string();
        assert_eq!(Adapter::open(&adapter, &Device::Cpu).unwrap().base(), Some(vectors.as_str()));
        let (plain, adapted) = (logits(&files), logits(&files.with_adapter(&adapter)));
        assert!(plain.iter().zip(&adapted).any(|(a, b)| (a - b).abs() > 1e-4), "nothing was learned");
        export(&out, &adapter, IfExists::Replace).unwrap();
        fs::write(adapter.join("notes.txt"), b"mine").unwrap();
        let error = export(&out, &adapter, IfExists::Replace).unwrap_err().to_string();
        assert!(error.ends_with("got notes.txt"), "{error}");
    }

    #[test]
    fn resuming_equals_not_stopping_bit_for_bit() {
        struct Until(u64);
        impl crate::progress::Progress for Until {
            fn step(&mut self, step: u64) -> std::ops::ControlFlow<()> {
                match step == self.0 {
                    true => std::ops::ControlFlow::Break(()),
                    false => std::ops::ControlFlow::Continue(()),
                }
            }
        }
        let place = tempfile::tempdir().unwrap();
        let [base, whole, parts] = ["base", "whole", "parts"].map(|name| place.path().join(name));
        tiny::write_model(&base);
        let stage = || tiny::stage_of_adapter(&base, &["model.spi_module."]);
        run(open(stage(), &whole));
        open(stage(), &parts).unwrap().run(&|| Duration::ZERO, &mut Until(3)).unwrap();
        run(Ok(resume(stage(), &parts).unwrap().unwrap()));
        for name in [gpt4roi::adapter::WEIGHTS, CONFIG, "trainer.safetensors", "trainer.json"] {
            let [a, b] = [&whole, &parts].map(|out| fs::read(last(out).join(name)).unwrap());
            assert!(a == b, "{name} differs");
        }
    }

    #[test]
    fn a_run_goes_on_beside_its_own_model_alone() {
        let place = tempfile::tempdir().unwrap();
        let [base, moved, other, out] = ["base", "moved", "other", "out"].map(|name| place.path().join(name));
        tiny::write_model(&base);
        run(open(StageConfig { steps: 2, ..tiny::stage_of_adapter(&base, &[]) }, &out));
        let beside = |base: &Path| resume(StageConfig { steps: 2, ..tiny::stage_of_adapter(base, &[]) }, &out);
        let mut parts = Parts::directory(&base).unwrap();
        let twice = |tensor: StreamedTensor| {
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            StreamedTensor::new(name, &shape, move |range| Ok(tensor.read(range)?.iter().map(|x| 2.0 * x).collect()))
        };
        parts.model = parts.model.into_iter().map(twice).collect();
        parts.write_directory(&other, IfExists::Refuse).unwrap();
        fs::rename(&base, &moved).unwrap();
        beside(&moved).unwrap().unwrap();
        let error = beside(&other).unwrap_err().to_string();
        assert!(error.contains("step-00000002: expected a model with the vectors"), "{error}");
    }

    /// A run may begin with what another learned, and keeps of it what it does not train.
    #[test]
    fn one_run_goes_on_where_another_ended() {
        let place = tempfile::tempdir().unwrap();
        let [base, first, second] = ["base", "first", "second"].map(|name| place.path().join(name));
        tiny::write_model(&base);
        let stage = |trainable| StageConfig { steps: 1, ..tiny::stage_of_adapter(&base, trainable) };
        run(open(stage(&["model.spi_module."]), &first));
        let mut later = stage(&[]);
        later.init.from = vec![crate::config::Source { path: first.clone().into(), take: Vec::new() }];
        run(open(later, &second));
        let read = |out: &Path| crate::checkpoint::read_parameters(&last(out)).unwrap();
        let (before, after) = (read(&first), read(&second));
        for (name, tensor) in &before {
            let same = (tensor - &after[name]).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            let same = same.to_scalar::<f32>().unwrap() == 0.0;
            assert_eq!(same, !is_factor(name), "{name}");
        }
    }

    /// Nothing of what was learned is lost, or counts otherwise than it did.
    #[test]
    fn a_run_refuses_what_it_would_not_go_on_from() {
        let place = tempfile::tempdir().unwrap();
        let [base, first, second] = ["base", "first", "second"].map(|name| place.path().join(name));
        tiny::write_model(&base);
        let stage = || StageConfig { steps: 1, ..tiny::stage_of_adapter(&base, &[]) };
        run(open(stage(), &first));
        let refusal = |path: &Path, take: &[&str], change: &dyn Fn(&mut AdapterSettings)| {
            let mut stage = stage();
            let take = take.iter().map(|prefix| prefix.to_string()).collect();
            stage.init.from = vec![Source { path: path.into(), take }];
            change(stage.adapter.as_mut().unwrap());
            open(stage, &second).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(refusal(&first, &[], &|_| ()), "");
        assert_eq!(refusal(&base, &["model.mm_projector."], &|_| ()), "", "which only tells what it begins with");
        for (path, change, expected) in [
            (&base, (&|_: &mut AdapterSettings| ()) as &dyn Fn(&mut AdapterSettings), "expected an adapter"),
            (&first, &|settings| settings.alpha = 3.0, "multiplied by 1, which is alpha / rank, got one with 2"),
            (&first, &|settings| settings.targets = vec!["q_proj".into()], "which would be lost"),
        ] {
            let refusal = refusal(path, &[], change);
            assert!(refusal.contains(expected), "{refusal}");
        }
    }

    /// The paper's first stage: the region module, which the model lacks, learns in front of a language model that
    /// stays as it is.
    #[test]
    fn a_region_module_is_trained_beside_a_model_without_one() {
        let place = tempfile::tempdir().unwrap();
        let [base, out, adapter] = ["base", "out", "adapter"].map(|name| place.path().join(name));
        let files = tiny::tokenizer_files();
        let config = tiny::config(tiny::tokenizer().vocab_size());
        let mut parts = Parts::noise(&config, &files.model, &files.added_tokens).unwrap();
        parts.model.retain(|tensor| !tensor.name.starts_with("model.spi_module."));
        parts.write_directory(&base, IfExists::Refuse).unwrap();

        let region = ["model.spi_module."];
        let mut stage = StageConfig { steps: 2, ..tiny::stage_of_adapter(&base, &region) };
        let settings = stage.adapter.as_mut().unwrap();
        (settings.targets, settings.base_dtype) = (Vec::new(), Precision::Bf16);
        let error = open(stage.clone(), &out).unwrap_err();
        assert!(matches!(error, TrainError::Drawn { .. }), "{error}");
        stage.init.fresh = region.map(String::from).into();
        run(open(stage, &out));
        assert!(names(&last(&out)).iter().all(|name| name.starts_with(region[0])));
        export(&out, &adapter, IfExists::Refuse).unwrap();
        let files = ModelFiles::at(&base).unwrap();
        assert!(Gpt4Roi::from_files(&files, &Device::Cpu).is_err(), "it has no region module of its own");
        Gpt4Roi::from_files(&files.with_adapter(&adapter), &Device::Cpu).unwrap();
    }

    /// The embedded model's blocks stay as they are.
    #[test]
    fn a_quantised_model_is_tuned_beside_its_file() {
        let place = tempfile::tempdir().unwrap();
        let [base, out] = ["nano", "out"].map(|name| place.path().join(name));
        let parts = Parts::directory(&tiny::models()).unwrap();
        parts.write_gguf(&base, IfExists::Refuse, Quantization::Q8_0, Quantization::F16).unwrap();
        let mut stage = tiny::stage_of_adapter(&base, &[]);
        (stage.steps, stage.batch) = (2, 1);
        run(open(stage, &out));
        assert!(names(&last(&out)).iter().all(|name| is_factor(name)));
        let records = crate::log::read(&out.join("log.jsonl")).unwrap();
        assert!(records.iter().all(|record| record.loss.is_finite() && record.grad_norm > 0.0));
    }

    #[test]
    fn impossible_adapters_are_refused_by_field() {
        type Spoil = fn(&mut StageConfig);
        let cases: [(&str, Spoil); 8] = [
            ("adapter.targets", |stage| stage.adapter.as_mut().unwrap().targets.clear()),
            ("adapter.targets", |stage| stage.adapter.as_mut().unwrap().targets.push("lm_head".into())),
            ("adapter.rank", |stage| stage.adapter.as_mut().unwrap().rank = 0),
            ("adapter.alpha", |stage| stage.adapter.as_mut().unwrap().alpha = f64::NAN),
            ("model", |stage| stage.model.preset = Some(crate::config::Preset::Nano)),
            ("trainable", |stage| stage.trainable = vec!["model.".into()]),
            ("model.region", |stage| drop(stage.model.region.insert("shuffle".into(), false.into()))),
            ("init", |stage| stage.init.words_over = 3),
        ];
        let good = || tiny::stage_of_adapter(Path::new("base"), &[]);
        good().check().unwrap();
        for (field, spoil) in cases {
            let mut stage = good();
            spoil(&mut stage);
            let error = stage.check().unwrap_err();
            assert!(matches!(&error, TrainError::Value { field: got, .. } if got == field), "{field}: {error}");
        }
    }
}
