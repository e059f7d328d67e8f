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
            "attn.in_proj_weight" => renamed.extend(split(tensor, &layer, "weight")?),
            "attn.in_proj_bias" => renamed.extend(split(tensor, &layer, "bias")?),
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
fn split(tensor: StreamedTensor, layer: &str, kind: &str) -> ConvertResult<Vec<StreamedTensor>> {
    let fused = tensor.shape.first().copied().unwrap_or(0);
    let rows = fused / 3;
    if fused == 0 || fused != 3 * rows {
        let (name, expected, got) = (tensor.name, vec![3 * rows.max(1)], tensor.shape);
        return Err(WeightsError::Shape { name, expected, got }.into());
    }
    let tensor = Arc::new(tensor);
    let part = |(index, projection): (usize, &str)| {
        let whole = tensor.clone();
        let name = format!("{layer}.self_attn.{projection}.{kind}");
        let shared = StreamedTensor::new(name, &tensor.shape, move |range| whole.read(range));
        shared.rows(index * rows..(index + 1) * rows)
    };
    Ok(["q_proj", "k_proj", "v_proj"].into_iter().enumerate().map(part).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Tensor;

    use super::*;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openclip/vision_tower");

    /// The golden tower under OpenCLIP's names, queries, keys and values in one.
    fn originals() -> HashMap<String, Tensor> {
        let mut golden = candle_core::safetensors::load(format!("{GOLDEN}/model.safetensors"), &Device::Cpu).unwrap();
        let mut originals = HashMap::new();
        let layers = 0..golden.keys().filter(|name| name.ends_with("layer_norm1.bias")).count();
        for kind in ["weight", "bias"] {
            for layer in layers.clone() {
                let layer = format!("vision_model.encoder.layers.{layer}.self_attn");
                let mut take = |part| golden.remove(&format!("{layer}.{part}.{kind}")).unwrap();
                let fused = Tensor::cat(&[take("q_proj"), take("k_proj"), take("v_proj")], 0).unwrap();
                golden.insert(format!("{layer}.in_proj_{kind}"), fused);
            }
        }
        for (name, tensor) in golden {
            let name = name
                .replace("vision_model.encoder.layers", "visual.transformer.resblocks")
                .replace("vision_model.embeddings.class_embedding", "visual.class_embedding")
                .replace("vision_model.embeddings.patch_embedding", "visual.conv1")
                .replace("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding")
                .replace("vision_model.pre_layrnorm", "visual.ln_pre")
                .replace("vision_model.post_layernorm", "visual.ln_post")
                .replace("layer_norm", "ln_")
                .replace("self_attn", "attn")
                .replace("fc1", "c_fc")
                .replace("fc2", "c_proj");
            originals.insert(name, tensor);
        }
        originals.insert("visual.proj".into(), Tensor::zeros((16, 4), candle_core::DType::F32, &Device::Cpu).unwrap());
        originals.insert("text_projection".into(), Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).unwrap());
        originals
    }

    fn write(directory: &Path, tensors: &HashMap<String, Tensor>) -> std::path::PathBuf {
        let path = directory.join("open_clip_model.safetensors");
        candle_core::safetensors::save(tensors, &path).unwrap();
        path
    }

    #[test]
    fn openclip_s_tensors_are_hugging_face_s() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &originals());
        let error = Tower::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("open_clip_config.json"), "{error}");

        let golden = Tower::open(Path::new(GOLDEN)).unwrap();
        let head =
            golden.config["hidden_size"].as_u64().unwrap() / golden.config["num_attention_heads"].as_u64().unwrap();
        let config = json!({
            "model_cfg": { "vision_cfg": { "head_width": head } },
            "preprocess_cfg": { "mean": golden.config["image_mean"], "std": golden.config["image_std"] },
        });
        std::fs::write(directory.path().join("open_clip_config.json"), config.to_string()).unwrap();
        let tower = Tower::open(directory.path()).unwrap();
        let golden: BTreeMap<_, _> = golden.tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        assert_eq!(tower.tensors.len(), golden.len());
        for tensor in &tower.tensors {
            let expected = &golden[&tensor.name];
            assert_eq!(tensor.shape, expected.shape, "{}", tensor.name);
            let all = 0..tensor.count();
            assert_eq!(tensor.read(all.clone()).unwrap(), expected.read(all).unwrap(), "{}", tensor.name);
        }
    }

    /// Read from shapes and from OpenCLIP's own file, a tower has the fields that its `config.json` has.
    #[test]
    fn configurations_are_those_of_hugging_face() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &originals());
        let golden = Tower::open(Path::new(GOLDEN)).unwrap().config;
        let head = golden["hidden_size"].as_u64().unwrap() / golden["num_attention_heads"].as_u64().unwrap();
        let config = json!({ "model_cfg": { "vision_cfg": { "head_width": head } } });
        std::fs::write(directory.path().join("open_clip_config.json"), config.to_string()).unwrap();
        let tower = Tower::open(directory.path()).unwrap().config;
        for (field, value) in tower.as_object().unwrap() {
            assert_eq!(*value, golden[field], "{field}");
        }
        assert_eq!(tower.as_object().unwrap().len(), 7);
    }

    #[test]
    fn openai_s_towers_need_no_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let mut tensors = originals();
        tensors.insert("input_resolution".into(), Tensor::new(&[224i64], &Device::Cpu).unwrap());
        let tower = Tower::open(&write(directory.path(), &tensors)).unwrap();
        assert_eq!(tower.config["hidden_act"], "quick_gelu");
        assert!(tower.tensors.iter().all(|tensor| tensor.name.starts_with("vision_model.")));
    }

    #[test]
    fn what_can_t_be_cut_into_three_is_refused_by_name() {
        let cases: [(&[usize], &str); 2] =
            [(&[], "has shape [], expected [3]"), (&[16], "has shape [16], expected [15]")];
        for (shape, expected) in cases {
            let directory = tempfile::tempdir().unwrap();
            let mut tensors = originals();
            let bias = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
            tensors.insert("visual.transformer.resblocks.0.attn.in_proj_bias".into(), bias);
            tensors.insert("input_resolution".into(), Tensor::new(&[224i64], &Device::Cpu).unwrap());
            let error = Tower::open(&write(directory.path(), &tensors)).unwrap_err().to_string();
            assert!(error.contains("in_proj_bias") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn other_files_are_no_towers() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openclip/model.safetensors");
        let error = Tower::open(Path::new(model)).unwrap_err().to_string();
        assert!(error.contains("expected the tensors of a CLIP tower"), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let mut tensors = originals();
        tensors.insert("visual.attn_pool.query".into(), Tensor::new(&[1f32], &Device::Cpu).unwrap());
        tensors.insert("input_resolution".into(), Tensor::new(&[224i64], &Device::Cpu).unwrap());
        let error = Tower::open(&write(directory.path(), &tensors)).unwrap_err().to_string();
        assert!(error.contains("`visual.attn_pool.query` of the tower"), "{error}");
    }
}
