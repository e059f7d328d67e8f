//! Adapters against PEFT: `reference/make_adapter_golden.py` has written what is read and expected here.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use gpt4roi::{
    Gpt4Roi,
    adapter::{Adapter, AdapterConfig, CONFIG, WEIGHTS, notes, stored_name},
    config::Config,
    convert::{IfExists, Parts},
    fingerprint::Fingerprint,
    layers::{AttentionMask, Matrix},
    llama::Llama,
    low_rank::LowRank,
    model::ModelFiles,
    quantize::Quantization,
    stream::StreamedTensor,
    tokenizer::Tokenizer,
    weights::{TensorSource, TensorStore, Weights, WeightsResult},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn expected() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden("adapter/expected.safetensors"), &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (numbers(got), numbers(expected));
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    let apart = norm(&mut got.iter().zip(&expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
    assert!(apart < tolerance, "{what}: relative error {apart}");
}

fn logits(llama: &Llama, ids: &Tensor) -> Tensor {
    let embeds = llama.embed(ids).unwrap().unsqueeze(0).unwrap();
    let hidden = llama.forward(&embeds, &mut llama.new_cache()).unwrap();
    llama.logits(&hidden).unwrap().squeeze(0).unwrap()
}

fn open(files: &ModelFiles) -> Gpt4Roi {
    Gpt4Roi::from_files(files, &Device::Cpu).unwrap()
}

#[test]
fn a_model_with_an_adapter_computes_what_peft_computes() {
    let (expected, base) = (expected(), ModelFiles::Directory(golden("clip")));
    let plain = logits(&open(&base).network.llama, &expected["ids"]);
    let adapted = logits(&open(&base.with_adapter(golden("adapter"))).network.llama, &expected["ids"]);
    assert_close("logits", &adapted, &expected["logits"], 1e-5);
    let apart = numbers(&(plain - adapted).unwrap()).into_iter().fold(0f32, |most, d| most.max(d.abs()));
    assert!(apart > 0.1, "the adapter changes hardly anything: {apart}");
}

#[test]
fn a_model_that_an_adapter_was_added_to_for_good_computes_the_same() {
    let (place, expected) = (tempfile::tempdir().unwrap(), expected());
    let out = place.path().join("merged");
    let adapter = Adapter::open(&golden("adapter"), &Device::Cpu).unwrap();
    let parts = Parts::directory(&golden("clip")).unwrap().adapted(adapter).unwrap();
    parts.write_directory(&out, IfExists::Refuse).unwrap();
    let merged = logits(&open(&ModelFiles::at(&out).unwrap()).network.llama, &expected["ids"]);
    assert_close("logits", &merged, &expected["logits"], 2e-3); // rounded to float16
}

/// The changes stand beside weights that stay in 16 bits, in a file that stays as it is.
#[test]
fn weights_that_stay_packed_are_changed_beside_them() {
    let (place, expected) = (tempfile::tempdir().unwrap(), expected());
    let out = place.path().join("pair");
    let parts = Parts::directory(&golden("clip")).unwrap();
    parts.write_gguf(&out, IfExists::Refuse, Quantization::F16, Quantization::F16).unwrap();
    let files = ModelFiles::at(&out).unwrap().with_adapter(golden("adapter"));
    let adapted = open(&files).network.llama;
    assert_close("logits", &logits(&adapted, &expected["ids"]), &expected["logits"], 2e-3);
    let packed = open(&ModelFiles::at(&out).unwrap()).network.llama;
    assert!(adapted.bytes() < 2 * packed.bytes(), "{} and {} bytes", adapted.bytes(), packed.bytes());
}

/// The golden model with the adapter's tensors as variables: what a trainer sees.
struct Learning {
    base: Arc<dyn TensorStore>,
    stored: HashMap<String, Tensor>,
    scale: f64,
    variables: Mutex<HashMap<String, Var>>,
}

impl Learning {
    fn variable(&self, name: &str) -> Option<Tensor> {
        let var = Var::from_tensor(self.stored.get(&stored_name(name))?).unwrap();
        self.variables.lock().unwrap().insert(stored_name(name), var.clone());
        Some(var.as_tensor().clone())
    }
}

impl TensorSource for Learning {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        self.variable(name).map_or_else(|| self.base.tensor(name, shape), Ok)
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> WeightsResult<Matrix> {
        let weight = Matrix::Dense(self.tensor(name, &shape)?);
        let layer = name.strip_suffix(".weight").unwrap();
        let [down, up] = ["A", "B"].map(|factor| self.variable(&format!("{layer}.lora_{factor}.weight")));
        match (down, up) {
            (Some(down), Some(up)) => Ok(weight.changed_by(LowRank { down, up, scale: self.scale })),
            _ => Ok(weight),
        }
    }
}

fn mean_cross_entropy(logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let length = ids.dim(0)?;
    let (logits, next) = (logits.narrow(0, 0, length - 1)?, ids.narrow(0, 1, length - 1)?);
    let log_sum = logits.log_sum_exp(D::Minus1)?;
    let chosen = logits.gather(&next.unsqueeze(1)?, 1)?.squeeze(1)?;
    (log_sum - chosen)?.mean_all()
}

#[test]
fn gradients_are_those_of_peft() {
    let expected = expected();
    let config: Config = ModelFiles::Directory(golden("clip")).config().unwrap();
    let (base, _) = ModelFiles::Directory(golden("clip")).stores(&Device::Cpu).unwrap();
    let source = Arc::new(Learning {
        base,
        stored: candle_core::safetensors::load(golden("adapter").join(WEIGHTS), &Device::Cpu).unwrap(),
        scale: AdapterConfig::open(&golden("adapter")).unwrap().scale(),
        variables: Mutex::default(),
    });
    let llama = Llama::load(&Weights::new(source.clone()), &config.llama).unwrap();
    let ids = &expected["ids"];
    let positions = Tensor::arange(0, ids.dim(0).unwrap() as u32, &Device::Cpu).unwrap();
    let embeds = llama.embed(ids).unwrap().unsqueeze(0).unwrap();
    let hidden = llama.forward_packed(&embeds, &positions, &AttentionMask::Causal).unwrap();
    let logits = llama.logits(&hidden).unwrap().squeeze(0).unwrap();
    assert_close("logits", &logits, &expected["logits"], 1e-5);
    let store = mean_cross_entropy(&logits, ids).unwrap().backward().unwrap();
    let variables = source.variables.lock().unwrap();
    assert_eq!(variables.len(), 2 * 7 * 2 + 1, "two factors of seven layers, twice, and the output layer");
    for (name, var) in variables.iter() {
        let gradient = store.get(var.as_tensor()).unwrap_or_else(|| panic!("none for {name}"));
        assert_close(name, gradient, &expected[&format!("gradient.{name}")], 1e-4);
    }
}

/// An adapter like the golden one, but for some of its configuration, or of its tensors.
fn spoiled(place: &Path, fields: &serde_json::Value, change: impl Fn(&mut HashMap<String, Tensor>)) -> String {
    let (text, directory) = (std::fs::read_to_string(golden("adapter").join(CONFIG)).unwrap(), place.join("adapter"));
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    fields.as_object().unwrap().iter().for_each(|(field, value)| config[field] = value.clone());
    let mut tensors = candle_core::safetensors::load(golden("adapter").join(WEIGHTS), &Device::Cpu).unwrap();
    change(&mut tensors);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(CONFIG), config.to_string()).unwrap();
    candle_core::safetensors::save(&tensors, directory.join(WEIGHTS)).unwrap();
    let files = ModelFiles::Directory(golden("clip")).with_adapter(&directory);
    Gpt4Roi::from_files(&files, &Device::Cpu).unwrap_err().to_string()
}

#[test]
fn an_adapter_of_another_kind_is_refused_by_its_field() {
    let place = tempfile::tempdir().unwrap();
    for (field, value, says) in [
        ("peft_type", "IA3".into(), "expected LORA, got IA3"),
        ("r", 0.into(), "expected at least 1, got 0"),
        ("use_dora", true.into(), "plain LoRA"),
        ("use_qalora", true.into(), "plain LoRA"),
        ("init_lora_weights", "pissa_niter_16".into(), "plain LoRA"),
        ("init_lora_weights", "olora".into(), "plain LoRA"),
        ("fan_in_fan_out", true.into(), "plain LoRA"),
        ("rank_pattern", serde_json::json!({"q_proj": 8}), "plain LoRA"),
        ("alora_invocation_tokens", serde_json::json!([3]), "plain LoRA"),
    ] {
        let error = spoiled(place.path(), &serde_json::json!({field: value}), |_| ());
        assert!(error.contains(&format!("\"{field}\"")) && error.contains(says), "{error}");
    }
}

/// PEFT writes down what it changes where that is the output layer. The change counts all the same.
#[test]
fn a_matrix_that_stands_beside_its_change_is_changed() {
    const LAYER: &str = "base_model.model.lm_head";
    let (place, files) = (tempfile::tempdir().unwrap(), ModelFiles::Directory(golden("clip")));
    let text = std::fs::read_to_string(golden("adapter").join(CONFIG)).unwrap();
    let plain = open(&files).network.llama;
    let head = files.stores(&Device::Cpu).unwrap().0;
    let vocabulary = plain.vocabulary();
    let head = head.tensor("lm_head.weight", &[vocabulary, 24]).unwrap();
    let (down, up) =
        (Tensor::ones((3, 24), DType::F32, &Device::Cpu), Tensor::ones((vocabulary, 3), DType::F32, &Device::Cpu));
    let factors = [("lora_A.weight", down.unwrap()), ("lora_B.weight", up.unwrap())];
    let ids = Tensor::arange(5u32, 15, &Device::Cpu).unwrap();
    let with = |tensors: &[(&str, Tensor)]| {
        let tensors: HashMap<_, _> =
            tensors.iter().map(|(name, tensor)| (format!("{LAYER}.{name}"), tensor.clone())).collect();
        std::fs::write(place.path().join(CONFIG), &text).unwrap();
        candle_core::safetensors::save(&tensors, place.path().join(WEIGHTS)).unwrap();
        logits(&open(&files.clone().with_adapter(place.path())).network.llama, &ids)
    };
    let alone = with(&factors);
    let beside = with(&[&factors[..], &[("base_layer.weight", head)]].concat());
    assert_close("logits", &beside, &alone, 1e-6);
    let difference =
        numbers(&(logits(&plain, &ids) - alone).unwrap()).into_iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(difference > 0.1, "{difference}");
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_the_tensor() {
    type Change = fn(&mut HashMap<String, Tensor>);
    fn zeros(shape: &[usize]) -> Tensor {
        Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
    }
    const LAYER: &str = "base_model.model.model.layers.1.self_attn.q_proj";
    let place = tempfile::tempdir().unwrap();
    fn with(value: f32) -> Tensor {
        Tensor::full(value, (3, 24), &Device::Cpu).unwrap()
    }
    let cases: [(&str, Change, &str); 9] = [
        (
            "one factor",
            |all| drop(all.remove(&format!("{LAYER}.lora_A.weight"))),
            "q_proj.weight`: expected lora_A [3, input]",
        ),
        (
            "two ranks",
            |all| drop(all.insert(format!("{LAYER}.lora_A.weight"), zeros(&[2, 24]))),
            "expected lora_A [3, input]",
        ),
        ("a width", |all| drop(all.insert(format!("{LAYER}.lora_A.weight"), zeros(&[3, 20]))), "which is [24, 24]"),
        (
            "a layer",
            |all| {
                for factor in ["lora_A", "lora_B"] {
                    all.insert(format!("base_model.model.model.layers.7.o_proj.{factor}.weight"), zeros(&[3, 3]));
                }
            },
            "`model.layers.7.o_proj.weight`, which it has not",
        ),
        (
            "an embedding",
            |all| drop(all.insert("base_model.model.model.embed_tokens.lora_embedding_A".into(), zeros(&[3, 3]))),
            "got `base_model.model.model.embed_tokens.lora_embedding_A`",
        ),
        (
            "a stranger",
            |all| drop(all.insert("base_model.model.model.stranger".into(), zeros(&[3]))),
            "expected tensors of the model, got one `model.stranger`",
        ),
        ("nothing", HashMap::clear, "adapter_model.safetensors: expected changes of matrices, or tensors of the model"),
        (
            "no number",
            |all| drop(all.insert(format!("{LAYER}.lora_A.weight"), with(f32::NAN))),
            "q_proj.lora_A.weight`: expected finite numbers, got NaN",
        ),
        (
            "too large a number",
            |all| drop(all.insert(format!("{LAYER}.lora_A.weight"), with(f32::NEG_INFINITY))),
            "q_proj.lora_A.weight`: expected finite numbers, got -inf",
        ),
    ];
    for (what, change, says) in cases {
        let error = spoiled(place.path(), &serde_json::json!({}), change);
        assert!(error.contains(says), "{what}: {error}");
    }
}

/// An adapter with these tensors alone, each of zeros.
fn bringing(place: &Path, tensors: &[(String, Vec<usize>)]) -> Adapter {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let tensors: HashMap<_, _> = tensors.iter().map(|(name, shape)| (stored_name(name), zeros(shape))).collect();
    std::fs::copy(golden("adapter").join(CONFIG), place.join(CONFIG)).unwrap();
    candle_core::safetensors::save(&tensors, place.join(WEIGHTS)).unwrap();
    Adapter::open(place, &Device::Cpu).unwrap()
}

/// What a network has no use for would make a model that does not open. A region module is of use to a model that has
/// none yet.
#[test]
fn what_a_model_has_no_use_for_is_not_added_to_it() {
    let (place, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let parts = || Parts::directory(&golden("clip")).unwrap();
    let error = |parts: Parts, tensors: &[(String, Vec<usize>)]| {
        parts.adapted(bringing(place.path(), tensors)).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let stranger = [("model.stranger".to_owned(), vec![3])];
    let refusal = error(parts(), &stranger);
    assert!(refusal.contains("expected tensors of the model, got one `model.stranger`, which it has not"), "{refusal}");
    let refusal = error(Parts { tower: None, ..parts() }, &stranger);
    assert!(refusal.contains("the vision tower is missing, which an adapter that brings tensors needs"), "{refusal}");
    let refusal = error(parts(), &[("model.norm.weight".to_owned(), vec![23])]);
    assert!(refusal.contains("got one `model.norm.weight` [23], which is [24]"), "{refusal}");

    let is_region = |name: &str| name.starts_with("model.spi_module.");
    let region: Vec<_> = parts().model.into_iter().filter(|tensor| is_region(&tensor.name)).collect();
    let region: Vec<_> = region.into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
    let mut start = parts();
    start.model.retain(|tensor| !is_region(&tensor.name));
    let whole = start.adapted(bringing(place.path(), &region)).unwrap();
    whole.write_directory(&out.path().join("whole"), IfExists::Refuse).unwrap();
    Gpt4Roi::open(out.path().join("whole"), &Device::Cpu).unwrap();
}

/// A model of random numbers, large enough for blocks of 8 bits, with the fourth number of a tensor changed.
fn with_number(name: &'static str, change: fn(f32) -> f32) -> Parts {
    let tokenizer = include_bytes!("data/tokenizer.model");
    let added_tokens = include_str!("data/added_tokens.json");
    let mut config = Config::pico(Tokenizer::from_bytes(tokenizer, added_tokens).unwrap().vocab_size());
    (config.llama.hidden_size, config.llama.intermediate_size, config.llama.num_hidden_layers) = (32, 64, 2);
    (config.vision.hidden_size, config.vision.intermediate_size, config.vision.image_size) = (16, 32, 56);
    (config.region.dim, config.region.gn_groups, config.region.fuse_rounds) = (8, 2, 1);
    (config.region.roi_size, config.region.pos_hidden) = (4, 8);
    let mut parts = Parts::noise(&config, tokenizer, added_tokens).unwrap();
    let at = parts.model.iter().position(|tensor| tensor.name == name).unwrap();
    let tensor = parts.model.remove(at);
    parts.model.push(StreamedTensor::new(name, &tensor.shape.clone(), move |range| {
        let values = tensor.read(range.clone())?;
        Ok(range.zip(values).map(|(at, value)| if at == 3 { change(value) } else { value }).collect())
    }));
    parts
}

/// A quantised model is another one, number by number, and was not trained apart from the one that it was made of.
#[test]
fn vectors_tell_what_was_trained_apart_and_not_what_was_quantised() {
    const NORM: &str = "model.norm.weight";
    let place = tempfile::tempdir().unwrap();
    let [model, pair] = ["model", "pair"].map(|name| place.path().join(name));
    let quantised = |parts: Parts| {
        parts.write_gguf(&pair, IfExists::Replace, Quantization::Q8_0, Quantization::Q8_0).unwrap();
        ModelFiles::at(&pair).unwrap()
    };
    let vectors = |files: &ModelFiles| Fingerprint::of_vectors(files).unwrap();
    with_number(NORM, |value| value).write_directory(&model, IfExists::Refuse).unwrap();
    let own = ModelFiles::Directory(model);
    let copy = quantised(with_number(NORM, |value| value));
    assert_ne!(Fingerprint::of(&copy).unwrap(), Fingerprint::of(&own).unwrap());
    for (name, change, same) in [
        (NORM, (|value| value) as fn(f32) -> f32, true),
        (NORM, |value| value * (1.0 + 1e-5), true), // less than float16 tells
        (NORM, |value| 2.0 * value, false),
        ("model.layers.0.self_attn.q_proj.weight", |value| 2.0 * value, true),
    ] {
        assert_eq!(vectors(&quantised(with_number(name, change))) == vectors(&own), same, "{name}");
    }
    // What a model lacks that is trained beside it.
    let mut without_region = with_number(NORM, |value| value);
    without_region.model.retain(|tensor| !tensor.name.starts_with("model.spi_module."));
    let start = place.path().join("start");
    without_region.write_directory(&start, IfExists::Refuse).unwrap();
    assert_ne!(vectors(&ModelFiles::Directory(start)), vectors(&own));
}

/// PEFT writes nothing of the kind, and of its adapters nobody knows more than the name of the model.
#[test]
fn an_adapter_knows_the_model_that_it_was_trained_beside() {
    let (place, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = ModelFiles::Directory(golden("clip"));
    assert_eq!(base.clone().with_adapter(golden("adapter")).mismatch().unwrap(), None);
    let vectors = Fingerprint::of_vectors(&base).unwrap().to_string();
    let with_note = |base: &str| {
        let tensors = candle_core::safetensors::load(golden("adapter").join(WEIGHTS), &Device::Cpu).unwrap();
        std::fs::copy(golden("adapter").join(CONFIG), place.path().join(CONFIG)).unwrap();
        let file = place.path().join(WEIGHTS);
        safetensors::serialize_to_file(&tensors, Some(notes(Some(base))), &file).unwrap();
    };
    with_note(&vectors);
    let quantised = out.path().join("tiny");
    let parts = Parts::directory(&golden("clip")).unwrap();
    parts.write_gguf(&quantised, IfExists::Refuse, Quantization::Q8_0, Quantization::F16).unwrap();
    for files in [base.clone(), ModelFiles::at(&quantised).unwrap()] {
        assert_eq!(files.with_adapter(place.path()).mismatch().unwrap(), None);
    }
    with_note("0123");
    let mismatch = base.with_adapter(place.path()).mismatch().unwrap().unwrap().to_string();
    assert!(mismatch.ends_with(&format!("with the vectors 0123, got one with {vectors}")), "{mismatch}");
}
