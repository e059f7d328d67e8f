//! Vision towers under other names than Hugging Face's: OpenAI's own and OpenCLIP's.
//!
//! Sources: `clip/model.py` of OpenAI CLIP, `src/open_clip/transformer.py` of OpenCLIP, and
//! `convert_clip_original_pytorch_to_hf.py` of transformers.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::Device;
use serde_json::{Value, json};

use crate::{
    convert::{ConvertError, ConvertResult, read_json},
    stream::StreamedTensor,
    weights::{Checkpoint, TensorStore, WeightsError},
};

/// A vision tower under Hugging Face's names, with its configuration.
#[derive(Debug)]
pub struct Tower {
    /// `vision_model.…`.
    pub tensors: Vec<StreamedTensor>,
    /// The fields of CLIP's vision `config.json`, with `image_mean` and `image_std` if they are given.
    pub config: Value,
}

impl Tower {
    /// Opens a directory, or a file with its configuration beside it.
    ///
    /// What counts is the names inside: those of Hugging Face's CLIP need `config.json`, OpenCLIP's
    /// `open_clip_config.json`, OpenAI's nothing.
    ///
    /// # Errors
    /// If files are missing or damaged, or the names are of no known kind.
    pub fn open(path: &Path) -> ConvertResult<Self> {
        let (directory, store) = if path.is_dir() {
            (path, open_directory(path)?)
        } else {
            (path.parent().unwrap_or(path), Checkpoint::open_file(path, &Device::Cpu)?)
        };
        let store: Arc<dyn TensorStore> = Arc::new(store);
        let of_vision = |prefix: &'static str| {
            let tensors = StreamedTensor::all(&store).into_iter().filter(move |tensor| tensor.name.starts_with(prefix));
            tensors.map(|tensor| (tensor.name.clone(), tensor)).collect::<BTreeMap<_, _>>()
        };
        let (hugging_face, original) = (of_vision("vision_model."), of_vision("visual."));
        if !hugging_face.is_empty() {
            let positions = "vision_model.embeddings.position_ids";
            let tensors = hugging_face.into_values().filter(|tensor| tensor.name != positions).collect();
            return Ok(Self { tensors, config: hugging_face_config(directory)? });
        }
        if original.is_empty() {
            return Err(ConvertError::UnknownTower { path: path.to_owned() });
        }
        let is_openai = store.stored().iter().any(|tensor| tensor.name == "input_resolution");
        let config = if is_openai { openai_config(&original)? } else { openclip_config(directory, &original)? };
        Ok(Self { tensors: renamed(original)?, config })
    }
}

/// A directory in Hugging Face's layout, or one as OpenCLIP publishes it.
fn open_directory(directory: &Path) -> ConvertResult<Checkpoint> {
    let files = ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"];
    let own = files.map(|file| directory.join(file)).into_iter().find(|file| file.is_file());
    Ok(match (Checkpoint::open(directory, &Device::Cpu), own) {
        (Err(WeightsError::NoWeights { .. }), Some(file)) => Checkpoint::open_file(file, &Device::Cpu)?,
        (checkpoint, _) => checkpoint?,
    })
}

fn hugging_face_config(directory: &Path) -> ConvertResult<Value> {
    let mut config = read_json(&directory.join("config.json"))?;
    if let Some(vision) = config.get_mut("vision_config") {
        config = vision.take();
    }
    let preprocessor = directory.join("preprocessor_config.json");
    if preprocessor.is_file() {
        let given = read_json(&preprocessor)?;
        for field in ["image_mean", "image_std"] {
            if let Some(value) = given.get(field) {
                config[field] = value.clone();
            }
        }
    }
    Ok(config)
}

/// OpenAI's towers: heads are 64 wide.
fn openai_config(tensors: &BTreeMap<String, StreamedTensor>) -> ConvertResult<Value> {
    let mut config = dimensions(tensors)?;
    let width = config["hidden_size"].as_u64().unwrap_or(0);
    config["num_attention_heads"] = (width / 64).into();
    config["hidden_act"] = "quick_gelu".into();
    Ok(config)
}

/// OpenCLIP's towers: only its own configuration tells how wide a head is and which GELU it was trained with.
fn openclip_config(directory: &Path, tensors: &BTreeMap<String, StreamedTensor>) -> ConvertResult<Value> {
    let given = read_json(&directory.join("open_clip_config.json"))?;
    let (model, preprocess) = (&given["model_cfg"], &given["preprocess_cfg"]);
    let mut config = dimensions(tensors)?;
    let width = config["hidden_size"].as_u64().unwrap_or(0);
    let head = model["vision_cfg"]["head_width"].as_u64().filter(|head| *head > 0).unwrap_or(64);
    config["num_attention_heads"] = (width / head).into();
    config["hidden_act"] = if model["quick_gelu"] == json!(true) { "quick_gelu" } else { "gelu" }.into();
    for (field, value) in [("image_mean", &preprocess["mean"]), ("image_std", &preprocess["std"])] {
        if !value.is_null() {
            config[field] = value.clone();
        }
    }
    Ok(config)
}

/// What the shapes say.
fn dimensions(tensors: &BTreeMap<String, StreamedTensor>) -> ConvertResult<Value> {
    let shape = |name: &str| {
        let missing = || WeightsError::Missing { name: name.to_owned(), expected: Vec::new() };
        tensors.get(name).map(|tensor| tensor.shape.as_slice()).ok_or_else(missing)
    };
    let unfit = |name: &str, expected: &[usize], got: &[usize]| WeightsError::Shape {
        name: name.to_owned(),
        expected: expected.to_vec(),
        got: got.to_vec(),
    };
    let conv = shape("visual.conv1.weight")?;
    let &[width, 3, patch, _] = conv else {
        return Err(unfit("visual.conv1.weight", &[0, 3, 14, 14], conv).into());
    };
    let positions = shape("visual.positional_embedding")?;
    let grid = positions.first().map_or(0, |positions| positions.saturating_sub(1).isqrt());
    let fc = "visual.transformer.resblocks.0.mlp.c_fc.weight";
    let inner = shape(fc)?.first().copied().unwrap_or(0);
    let layer = |name: &String| name.strip_prefix("visual.transformer.resblocks.")?.split('.').next()?.parse().ok();
    let layers = tensors.keys().filter_map(layer).max().map_or(0, |last: usize| last + 1);
    Ok(json!({
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "patch_size": patch, "image_size": grid * patch,
    }))
}

/// Original name and Hugging Face's, both without the layer; `*` stands for `weight` or `bias`.
const OF_LAYER: [(&str, &str); 5] = [
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];

/// Queries, keys and values stand one below the other in one matrix; here each gets its own.
fn renamed(tensors: BTreeMap<String, StreamedTensor>) -> ConvertResult<Vec<StreamedTensor>> {
    let mut renamed = Vec::new();
    for (name, tensor) in tensors {
        let embedding = match name.as_str() {
            "visual.proj" => continue, // into the space of texts, which nobody needs
            "visual.class_embedding" => Some("embeddings.class_embedding"),
            "visual.positional_embedding" => Some("embeddings.position_embedding.weight"),
            "visual.conv1.weight" => Some("embeddings.patch_embedding.weight"),
            "visual.ln_pre.weight" => Some("pre_layrnorm.weight"),
            "visual.ln_pre.bias" => Some("pre_layrnorm.bias"),
            "visual.ln_post.weight" => Some("post_layernorm.weight"),
            "visual.ln_post.bias" => Some("post_layernorm.bias"),
            _ => None,
        };
        if let Some(embedding) = embedding {
            renamed.push(tensor.renamed(format!("vision_model.{embedding}")));
            continue;
        }
        let unknown = || ConvertError::NoCounterpart { name: name.clone(), owner: "tower", other: "model" };
        let rest = name.strip_prefix("visual.transformer.resblocks.").ok_or_else(unknown)?;
        let (layer, rest) = rest.split_once('.').ok_or_else(unknown)?;
        let layer = format!("vision_model.encoder.layers.{layer}");
        match rest {
            "attn.in_proj_weight" => renamed.extend(split(tensor, &layer, "weight")),
            "attn.in_proj_bias" => renamed.extend(split(tensor, &layer, "bias")),
            _ => {
                let new = OF_LAYER.iter().find_map(|(from, to)| Some(format!("{to}{}", rest.strip_prefix(from)?)));
                renamed.push(tensor.renamed(format!("{layer}.{}", new.ok_or_else(unknown)?)));
            }
        }
    }
    renamed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(renamed)
}

/// The three parts of a fused matrix or bias.
fn split(tensor: StreamedTensor, layer: &str, kind: &str) -> Vec<StreamedTensor> {
    let rows = tensor.shape.first().map_or(0, |rows| rows / 3);
    let tensor = Arc::new(tensor);
    let part = |(index, projection): (usize, &str)| {
        let whole = tensor.clone();
        let name = format!("{layer}.self_attn.{projection}.{kind}");
        let shared = StreamedTensor::new(name.as_str(), &tensor.shape, move |range| whole.read(range));
        shared.rows(name, index * rows..(index + 1) * rows)
    };
    ["q_proj", "k_proj", "v_proj"].into_iter().enumerate().map(part).collect()
}
