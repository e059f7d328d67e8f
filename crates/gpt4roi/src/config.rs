//! Every dimension of the model, read from `config.json` and the vision tower's own configuration.
//!
//! Nothing else in the library knows a number of the published model: the 7B is one preset, a
//! ViT-H/14 tower another, the embedded `nano` a third.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// All dimensions of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The language model.
    pub llama: LlamaConfig,
    /// The CLIP vision tower.
    pub vision: VisionConfig,
    /// The region module: pyramid, RoIAlign and head.
    pub region: RegionConfig,
    /// Which hidden state of the tower feeds the projector, counted from the end when negative
    /// (`mm_vision_select_layer`; the original's is −2). The levels of the pyramid are this one and
    /// every third before it.
    pub select_layer: i64,
}

/// LLaMA's dimensions, by the names of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// Rows of the token embedding and of the output layer, added tokens included.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the gated feed-forward part.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; LLaMA-1 has as many for keys and values.
    pub num_attention_heads: usize,
    /// Added to the mean square inside RMSNorm.
    #[serde(default = "default_rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Longest sequence, prompt and answer together.
    #[serde(default = "default_max_position_embeddings")]
    pub max_position_embeddings: usize,
}

/// CLIP's vision dimensions, by the names of its `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Encoder layers, counting those behind the last hidden state in use.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Which GELU the tower was trained with.
    #[serde(default)]
    pub hidden_act: Activation,
    /// Side of the square picture that the tower sees, in pixels.
    pub image_size: usize,
    /// Side of one patch, in pixels.
    pub patch_size: usize,
    /// Added to the variance inside LayerNorm.
    #[serde(default = "default_layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// Mean of each colour channel of the training pictures, in 0..1.
    #[serde(default = "clip_mean")]
    pub image_mean: [f32; 3],
    /// Standard deviation of each colour channel of the training pictures.
    #[serde(default = "clip_std")]
    pub image_std: [f32; 3],
}

/// The tower's activation: `quick_gelu` in OpenAI's weights, exact `gelu` in OpenCLIP's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·sigmoid(1.702·x).
    #[default]
    QuickGelu,
    /// x·Φ(x), with the error function.
    Gelu,
}

/// Dimensions of the region module, `"region"` in `config.json`; absent ones are the original's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegionConfig {
    /// Channels of every map of the pyramid.
    pub dim: usize,
    /// Levels of the pyramid, finest first.
    pub levels: usize,
    /// Upsampling factor of each level over the patch grid; empty means 2^(levels−1) … 2, 1.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scales: Vec<usize>,
    /// Rounds of scale shuffle and convolution.
    pub fuse_rounds: usize,
    /// Groups of the GroupNorm after each of these convolutions.
    pub gn_groups: usize,
    /// Side of the grid that RoIAlign cuts out of each level.
    pub roi_size: usize,
    /// Sample points per bin and axis.
    pub sampling_ratio: usize,
    /// Width inside the box embedding.
    pub pos_hidden: usize,
    /// Whether the maps know where they are: two channels of coordinates beside the tower's.
    #[serde(skip_serializing_if = "is_original")]
    pub coordinates: bool,
    /// Whether levels exchange channels with their neighbours before each round's convolution.
    #[serde(skip_serializing_if = "is_original")]
    pub shuffle: bool,
    /// Whether an embedding of the box itself is added to what it shows.
    #[serde(skip_serializing_if = "is_original")]
    pub box_embedding: bool,
    /// Tokens per region, a square number: RoIAlign's grid is cut into so many cells, each of which becomes a token. The
    /// original has one, into which the whole grid is flattened.
    #[serde(skip_serializing_if = "is_one")]
    pub tokens: usize,
    /// If training put a small box around every point: from the point to each side, as a fraction of
    /// width and height. Absent, a box is grown around what lies at the point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point_reach: Option<f64>,
}

impl Default for RegionConfig {
    fn default() -> Self {
        Self {
            dim: 1024,
            levels: 4,
            scales: Vec::new(),
            fuse_rounds: 5,
            gn_groups: 64,
            roi_size: 14,
            sampling_ratio: 2,
            pos_hidden: 256,
            coordinates: true,
            shuffle: true,
            box_embedding: true,
            tokens: 1,
            point_reach: None,
        }
    }
}

impl RegionConfig {
    /// The upsampling factor of each level over the patch grid, finest first.
    pub fn scales(&self) -> Vec<usize> {
        if self.scales.is_empty() {
            (0..self.levels).rev().map(|level| 1 << level).collect()
        } else {
            self.scales.clone()
        }
    }

    /// Cells along one side of RoIAlign's grid, of which each becomes a token.
    pub fn cells(&self) -> usize {
        self.tokens.isqrt()
    }
}

impl VisionConfig {
    /// Patches along one side of the picture.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of one picture.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }
}

impl Config {
    /// The published GPT4RoI-7B with its ViT-L/14 tower.
    ///
    /// Sources: `config.json` of `openai/clip-vit-large-patch14` and of LLaMA-7B.
    pub fn gpt4roi_7b() -> Self {
        Self {
            llama: LlamaConfig {
                vocab_size: 32006,
                hidden_size: 4096,
                intermediate_size: 11008,
                num_hidden_layers: 32,
                num_attention_heads: 32,
                rms_norm_eps: default_rms_norm_eps(),
                rope_theta: default_rope_theta(),
                max_position_embeddings: default_max_position_embeddings(),
            },
            vision: VisionConfig {
                hidden_size: 1024,
                num_hidden_layers: 24,
                num_attention_heads: 16,
                intermediate_size: 4096,
                hidden_act: Activation::QuickGelu,
                image_size: 224,
                patch_size: 14,
                layer_norm_eps: default_layer_norm_eps(),
                image_mean: clip_mean(),
                image_std: clip_std(),
            },
            region: RegionConfig::default(),
            select_layer: -2,
        }
    }

    /// The same language model behind a ViT-H/14 tower as OpenCLIP trains it: hidden states 22, 25,
    /// 28 and 31 of 32 layers, exact GELU.
    ///
    /// Source: `config.json` of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`.
    pub fn gpt4roi_7b_vit_h14() -> Self {
        let mut config = Self::gpt4roi_7b();
        config.vision = VisionConfig {
            hidden_size: 1280,
            num_hidden_layers: 32,
            num_attention_heads: 16,
            intermediate_size: 5120,
            hidden_act: Activation::Gelu,
            ..config.vision
        };
        config
    }

    /// The embedded model: the same architecture, small enough to travel inside the binary.
    ///
    /// Its coarse maps are enough for scenes of drawn objects, so the pyramid stops at twice the
    /// patch grid.
    pub fn nano(vocab_size: usize) -> Self {
        Self {
            llama: LlamaConfig {
                vocab_size,
                hidden_size: 192,
                intermediate_size: 512,
                num_hidden_layers: 4,
                num_attention_heads: 4,
                ..Self::gpt4roi_7b().llama
            },
            vision: VisionConfig {
                hidden_size: 192,
                num_hidden_layers: 12,
                num_attention_heads: 6,
                intermediate_size: 768,
                ..Self::gpt4roi_7b().vision
            },
            region: RegionConfig {
                dim: 96,
                scales: vec![2, 2, 1, 1],
                fuse_rounds: 3,
                gn_groups: 16,
                pos_hidden: 96,
                point_reach: Some(0.03),
                ..RegionConfig::default()
            },
            select_layer: -2,
        }
    }

    /// The embedded model with a tower and a region module two thirds as wide: less than half the work per picture.
    /// What the ablations are made with.
    pub fn pico(vocab_size: usize) -> Self {
        let nano = Self::nano(vocab_size);
        Self {
            vision: VisionConfig { hidden_size: 128, num_attention_heads: 4, intermediate_size: 512, ..nano.vision },
            region: RegionConfig { dim: 64, pos_hidden: 64, ..nano.region },
            ..nano
        }
    }

    /// A language model to draft for another one. Of the rest there is nothing to be drafted with.
    pub fn draft(vocab_size: usize) -> Self {
        let nano = Self::nano(vocab_size);
        let llama = LlamaConfig {
            hidden_size: 256,
            intermediate_size: 688,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            ..nano.llama
        };
        Self { llama, ..nano }
    }

    /// Channels that each input convolution of the pyramid reads: the tower's, and two coordinates.
    pub fn input_width(&self) -> usize {
        self.vision.hidden_size + if self.region.coordinates { 2 } else { 0 }
    }

    /// The hidden states that become the levels of the pyramid, ascending; the last one also feeds
    /// the projector. Index 0 is the input of the first layer.
    pub fn level_states(&self) -> Result<Vec<usize>> {
        let states = self.vision.num_hidden_layers as i64 + 1;
        let last = if self.select_layer < 0 { states + self.select_layer } else { self.select_layer };
        let first = last - 3 * (self.region.levels as i64 - 1);
        if first < 0 || last >= states || self.region.levels == 0 {
            return Err(Error::config(
                "mm_vision_select_layer",
                format!("{} levels, every third state up to {}", self.region.levels, self.select_layer),
                format!("a tower with {states} hidden states"),
            ));
        }
        Ok((first..=last).step_by(3).map(|state| state as usize).collect())
    }

    /// Reads `config.json` of the model, that of the tower, and the tower's
    /// `preprocessor_config.json` if there is one.
    ///
    /// # Errors
    /// Names the file, the field, what was expected and what stands there.
    pub fn from_json(model: &str, tower: &str, preprocessor: Option<&str>) -> Result<Self> {
        let model: serde_json::Value = parse("config.json", model)?;
        let mut tower: serde_json::Value = parse("vision_tower/config.json", tower)?;
        if let Some(vision) = tower.get_mut("vision_config") {
            tower = vision.take();
        }
        if let Some(text) = preprocessor {
            let given: serde_json::Value = parse("preprocessor_config.json", text)?;
            for field in ["image_mean", "image_std"] {
                if let (Some(value), Some(tower)) = (given.get(field), tower.as_object_mut()) {
                    tower.insert(field.into(), value.clone());
                }
            }
        }
        let region = match model.get("region") {
            None | Some(serde_json::Value::Null) => RegionConfig::default(),
            Some(given) => fields("config.json, \"region\"", given)?,
        };
        let select_layer = select_layer(&model)?;
        refuse_variants(&model)?;
        let config = Self {
            llama: fields("config.json", &model)?,
            vision: fields("vision_tower/config.json", &tower)?,
            region,
            select_layer,
        };
        config.check()?;
        Ok(config)
    }

    /// The same model with another region module: `changes` has the fields of `"region"` that differ.
    ///
    /// # Errors
    /// If a field is unknown, or no model can have these dimensions.
    pub fn with_region(mut self, changes: &serde_json::Map<String, serde_json::Value>) -> Result<Self> {
        let mut region = serde_json::json!(self.region);
        if let Some(fields) = region.as_object_mut() {
            fields.extend(changes.clone());
        }
        self.region = fields("region", &region)?;
        self.check()?;
        Ok(self)
    }

    /// `config.json` in the published layout.
    pub fn to_json(&self) -> serde_json::Value {
        let own = serde_json::json!({
            "architectures": ["SPILlavaMPTForCausalLM"],
            "model_type": "llava",
            "mm_vision_tower": "vision_tower",
            "use_mm_proj": true,
            "mm_hidden_size": self.vision.hidden_size,
            "mm_vision_select_layer": self.select_layer,
            "mm_use_im_start_end": true,
            "region": self.region,
        });
        extended(self.llama.to_json(), own)
    }

    /// The tower's `config.json`, with the colour statistics that CLIP keeps in a file of its own.
    pub fn tower_to_json(&self) -> serde_json::Value {
        let json = serde_json::json!({ "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model" });
        extended(json, serde_json::to_value(&self.vision).unwrap_or_default())
    }

    /// Refuses dimensions that no model can have, before anything is computed with them.
    fn check(&self) -> Result<()> {
        let Self { llama, vision, region, .. } = self;
        llama.check()?;
        check_extents(&[
            ("vision hidden_size", vision.hidden_size),
            ("vision num_hidden_layers", vision.num_hidden_layers),
            ("vision intermediate_size", vision.intermediate_size),
            ("vision image_size", vision.image_size),
            ("region.dim", region.dim),
            ("region.roi_size", region.roi_size),
            ("region.sampling_ratio", region.sampling_ratio),
            ("region.pos_hidden", region.pos_hidden),
            ("region.tokens", region.tokens),
            ("region.scales", region.scales.iter().copied().max().unwrap_or(1)),
            // No convolution without a round is fine.
            ("region.fuse_rounds", region.fuse_rounds.max(1)),
        ])?;
        // Unless `scales` says otherwise, each level is twice as fine as the next: powers of two have an end.
        if !(1..=MAX_LEVELS).contains(&region.levels) {
            return Err(Error::config("region.levels", format!("1 to {MAX_LEVELS}"), region.levels.to_string()));
        }
        divides("vision num_attention_heads", self.vision.num_attention_heads, self.vision.hidden_size)?;
        divides("patch_size", self.vision.patch_size, self.vision.image_size)?;
        divides("region.gn_groups", self.region.gn_groups, self.region.dim)?;
        divides("region.tokens, its root", region.cells(), region.roi_size)?;
        if region.cells() * region.cells() != region.tokens {
            return Err(Error::config("region.tokens", "a square number".into(), region.tokens.to_string()));
        }
        let scales = self.region.scales();
        if scales.len() != self.region.levels || scales.contains(&0) {
            return Err(Error::config(
                "region.scales",
                format!("{} factors of at least 1", self.region.levels),
                format!("{scales:?}"),
            ));
        }
        if self.region.dim < 4 || self.region.roi_size == 0 || self.region.sampling_ratio == 0 {
            return Err(Error::config(
                "region",
                "dim of at least 4, roi_size and sampling_ratio of at least 1".into(),
                format!("{:?}", self.region),
            ));
        }
        self.check_sizes()?;
        self.level_states().map(|_| ())
    }

    /// Refuses tensors that no memory holds, before a part of the network asks for one.
    fn check_sizes(&self) -> Result<()> {
        let Self { llama, vision, region, .. } = self;
        let (grid, seen) = (vision.grid(), self.input_width());
        let cell = region.roi_size / region.cells();
        let finest = grid.saturating_mul(region.scales().into_iter().max().unwrap_or(1));
        check_tensors(&[
            ("the picture", &[3, vision.image_size, vision.image_size]),
            ("the patch embedding", &[vision.hidden_size, 3, vision.patch_size, vision.patch_size]),
            ("the tower's positions", &[vision.hidden_size, grid, grid]),
            ("the tower's attention", &[vision.hidden_size, vision.hidden_size]),
            ("the tower's feed-forward part", &[vision.hidden_size, vision.intermediate_size]),
            ("the projector", &[vision.hidden_size, llama.hidden_size]),
            ("the pyramid's input", &[region.dim, seen]),
            ("the pyramid's convolution", &[region.dim, region.dim, 3, 3]),
            ("the pyramid's finest map", &[region.dim, finest, finest]),
            ("what is cut out for a region", &[region.levels, region.dim, region.roi_size, region.roi_size]),
            (
                "the sample points of a region",
                &[region.roi_size, region.sampling_ratio, region.roi_size, region.sampling_ratio],
            ),
            ("what flattens a region", &[region.dim, region.dim, cell, cell]),
            ("the box embedding", &[region.dim, region.pos_hidden]),
            ("a region's token", &[region.dim, llama.hidden_size]),
        ])
    }
}

impl LlamaConfig {
    /// Reads `config.json` of a language model alone; fields that a LLaMA has none of play no part.
    ///
    /// # Errors
    /// Names the field, what was expected and what stands there.
    pub fn from_json(text: &str) -> Result<Self> {
        let model: serde_json::Value = parse("config.json", text)?;
        refuse_variants(&model)?;
        let config: Self = fields("config.json", &model)?;
        config.check()?;
        Ok(config)
    }

    /// `config.json` of a language model alone.
    pub fn to_json(&self) -> serde_json::Value {
        let json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "tie_word_embeddings": false,
            "bos_token_id": 1,
            "eos_token_id": 2,
        });
        extended(json, serde_json::to_value(self).unwrap_or_default())
    }

    /// Refuses dimensions that no model can have, and tensors that no memory holds.
    pub(crate) fn check(&self) -> Result<()> {
        let (vocab, width, inner) = (self.vocab_size, self.hidden_size, self.intermediate_size);
        check_extents(&[
            ("vocab_size", vocab),
            ("hidden_size", width),
            ("intermediate_size", inner),
            ("num_hidden_layers", self.num_hidden_layers),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        divides("num_attention_heads", self.num_attention_heads, width)?;
        let head = width / self.num_attention_heads;
        divides("2 (a head's width)", 2, head)?;
        check_tensors(&[
            ("the token embedding", &[vocab, width]),
            ("attention", &[width, width]),
            ("the feed-forward part", &[width, inner]),
            ("rotary positions", &[self.max_position_embeddings, head]),
        ])
    }
}

/// One object with the fields of another, whose values count where both have one.
fn extended(mut json: serde_json::Value, with: serde_json::Value) -> serde_json::Value {
    if let (Some(json), serde_json::Value::Object(with)) = (json.as_object_mut(), with) {
        json.extend(with);
    }
    json
}

fn check_extents(fields: &[(&str, usize)]) -> Result<()> {
    for &(field, value) in fields {
        let most = if field.starts_with("region") || field.ends_with("layers") { 1 << 14 } else { 1 << 20 };
        if !(1..=most).contains(&value) {
            return Err(Error::config(field, format!("1 to {most}"), value.to_string()));
        }
    }
    Ok(())
}

fn divides(field: &str, part: usize, whole: usize) -> Result<()> {
    if part == 0 || whole == 0 || !whole.is_multiple_of(part) {
        return Err(Error::config(field, format!("a divisor of {whole}"), part.to_string()));
    }
    Ok(())
}

fn check_tensors(tensors: &[(&str, &[usize])]) -> Result<()> {
    for (tensor, dimensions) in tensors {
        let numbers = dimensions.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
        if numbers.is_none_or(|numbers| numbers > MAX_NUMBERS) {
            let expected = format!("at most {MAX_NUMBERS} numbers");
            return Err(Error::config(*tensor, expected, format!("{dimensions:?}")));
        }
    }
    Ok(())
}

/// Levels of a pyramid; the original has four.
const MAX_LEVELS: usize = 16;

/// Numbers in one tensor: 4 GiB of f32. The largest of the published 7B has a fifth of that.
const MAX_NUMBERS: usize = 1 << 30;

/// Every published model names its layer. The original would take the last one where none is named, which is no
/// layer that a model was trained with.
fn select_layer(model: &serde_json::Value) -> Result<i64> {
    const FIELD: &str = "mm_vision_select_layer";
    let given = model.get(FIELD);
    let refuse = || {
        let got = given.map_or("nothing".into(), serde_json::Value::to_string);
        Error::config(format!("config.json, {FIELD:?}"), "an integer, such as -2".into(), got)
    };
    given.and_then(serde_json::Value::as_i64).ok_or_else(refuse)
}

/// Language models with something that this one does not have would compute, but compute nonsense.
fn refuse_variants(model: &serde_json::Value) -> Result<()> {
    let default = serde_json::Value::Null;
    let of = |field: &str| model.get(field).unwrap_or(&default);
    let heads = of("num_attention_heads");
    for (field, expected) in [
        ("hidden_act", &serde_json::json!("silu")),
        ("num_key_value_heads", heads),
        ("rope_scaling", &default),
        ("tie_word_embeddings", &serde_json::json!(false)),
    ] {
        let got = of(field);
        if !got.is_null() && got != expected {
            return Err(Error::config(format!("config.json, {field:?}"), expected.to_string(), got.to_string()));
        }
    }
    Ok(())
}

fn parse(file: &str, text: &str) -> Result<serde_json::Value> {
    serde_json::from_str(text).map_err(|error| Error::config(file, "JSON".into(), error.to_string()))
}

fn fields<T: serde::de::DeserializeOwned>(file: &str, value: &serde_json::Value) -> Result<T> {
    T::deserialize(value).map_err(|error| Error::config(file, "the fields of the model".into(), error.to_string()))
}

fn is_original(part: &bool) -> bool {
    *part
}

fn is_one(tokens: &usize) -> bool {
    *tokens == 1
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

fn default_rope_theta() -> f64 {
    10000.0
}

fn default_max_position_embeddings() -> usize {
    2048
}

fn default_layer_norm_eps() -> f64 {
    1e-5
}

fn clip_mean() -> [f32; 3] {
    [0.481_454_66, 0.457_827_5, 0.408_210_73]
}

fn clip_std() -> [f32; 3] {
    [0.268_629_54, 0.261_302_6, 0.275_777_1] // in f32 the published 0.26130258 and 0.27577711
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_every_third_state_up_to_the_selected_one() {
        assert_eq!(Config::gpt4roi_7b().level_states().unwrap(), [14, 17, 20, 23]);
        assert_eq!(Config::gpt4roi_7b_vit_h14().level_states().unwrap(), [22, 25, 28, 31]);
        assert_eq!(Config::nano(600).level_states().unwrap(), [2, 5, 8, 11]);
    }

    #[test]
    fn json_round_trip_keeps_every_dimension() {
        for config in [Config::gpt4roi_7b(), Config::gpt4roi_7b_vit_h14(), Config::nano(600), Config::pico(600)] {
            let (model, tower) = (config.to_json().to_string(), config.tower_to_json().to_string());
            assert_eq!(Config::from_json(&model, &tower, None).unwrap(), config);
        }
    }

    #[test]
    fn impossible_dimensions_are_refused_by_name() {
        let (mut model, tower) = (Config::nano(600).to_json(), Config::nano(600).tower_to_json());
        model["region"]["gn_groups"] = 7.into();
        let error = Config::from_json(&model.to_string(), &tower.to_string(), None).unwrap_err().to_string();
        assert!(error.contains("gn_groups") && error.contains('7') && error.contains("96"), "{error}");
        model["region"]["gn_groups"] = 16.into();
        model["region"]["colour"] = 1.into();
        let error = Config::from_json(&model.to_string(), &tower.to_string(), None).unwrap_err().to_string();
        assert!(error.contains("colour"), "{error}");
    }

    #[test]
    fn a_region_module_is_changed_piece_by_piece() {
        let change = |changes: serde_json::Value| Config::nano(600).with_region(changes.as_object().unwrap());
        let changed = change(serde_json::json!({"shuffle": false, "tokens": 4, "levels": 1, "scales": [1]})).unwrap();
        assert_eq!((changed.region.shuffle, changed.region.cells(), changed.region.coordinates), (false, 2, true));
        let (model, tower) = (changed.to_json().to_string(), changed.tower_to_json().to_string());
        assert_eq!(Config::from_json(&model, &tower, None).unwrap(), changed);
        for (changes, expected) in [
            (serde_json::json!({"shufle": false}), "shufle"),
            (serde_json::json!({"tokens": 2}), "a square number"),
            (serde_json::json!({"tokens": 9}), "a divisor of 14, got 3"),
            (serde_json::json!({"tokens": 0}), "region.tokens"),
            (serde_json::json!({"levels": 2}), "region.scales"),
        ] {
            let error = change(changes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// A reader that knows nothing of the switches reads what it always read.
    #[test]
    fn switches_that_are_not_used_are_not_written() {
        let json = Config::gpt4roi_7b().to_json()["region"].to_string();
        for field in ["coordinates", "shuffle", "box_embedding", "tokens"] {
            assert!(!json.contains(field), "{json}");
        }
    }

    #[test]
    fn the_layer_to_select_is_never_guessed() {
        let (given, tower) = (Config::nano(600).to_json(), Config::nano(600).tower_to_json().to_string());
        let read = |layer: Option<serde_json::Value>| {
            let mut model = given.clone();
            match layer {
                Some(layer) => model["mm_vision_select_layer"] = layer,
                None => drop(model.as_object_mut().unwrap().remove("mm_vision_select_layer")),
            }
            Config::from_json(&model.to_string(), &tower, None)
        };
        assert_eq!(read(Some((-1).into())).unwrap().level_states().unwrap(), [3, 6, 9, 12]);
        for (layer, got) in [
            (None, "nothing"),
            (Some("-1".into()), "\"-1\""),
            (Some((-1.0).into()), "-1.0"),
            (Some(serde_json::Value::Null), "null"),
        ] {
            let error = read(layer).unwrap_err().to_string();
            let expected =
                format!("config.json, \"mm_vision_select_layer\": expected an integer, such as -2, got {got}");
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn variants_of_llama_that_are_not_implemented_are_refused() {
        for (field, value) in [
            ("hidden_act", serde_json::json!("gelu")),
            ("num_key_value_heads", serde_json::json!(2)),
            ("rope_scaling", serde_json::json!({"type": "linear", "factor": 2.0})),
            ("tie_word_embeddings", serde_json::json!(true)),
        ] {
            let (mut model, tower) = (Config::nano(600).to_json(), Config::nano(600).tower_to_json());
            model[field] = value.clone();
            let error = Config::from_json(&model.to_string(), &tower.to_string(), None).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(&value.to_string()), "{error}");
        }
    }

    #[test]
    fn no_dimension_can_overflow_or_exhaust_memory() {
        let given = Config::nano(600).to_json();
        let tower = Config::nano(600).tower_to_json().to_string();
        for field in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"]
        {
            for value in [0u64, 1 << 40, u64::MAX] {
                let mut model = given.clone();
                model[field] = value.into();
                let error = Config::from_json(&model.to_string(), &tower, None).unwrap_err().to_string();
                assert!(error.contains(field) && error.contains(&value.to_string()), "{error}");
            }
        }
    }

    /// Each of these numbers is possible, and together they ask for up to terabytes.
    #[test]
    fn no_product_of_dimensions_can_exhaust_memory() {
        use serde_json::json;
        let large = 1 << 20;
        for (model, tower, expected) in [
            (json!({"hidden_size": large, "max_position_embeddings": large}), json!({}), "attention"),
            (json!({"vocab_size": large, "hidden_size": 4096}), json!({}), "the token embedding"),
            (
                json!({"max_position_embeddings": large, "hidden_size": 8192, "num_attention_heads": 4}),
                json!({}),
                "rotary positions",
            ),
            (json!({}), json!({"image_size": large, "patch_size": large}), "the picture"),
            (json!({}), json!({"image_size": 16384, "patch_size": 16384}), "the patch embedding"),
            (json!({}), json!({"image_size": 16384, "patch_size": 2}), "the tower's positions"),
            (json!({"region": {"scales": [16384, 2, 1, 1]}}), json!({}), "the pyramid's finest map"),
            (json!({"region": {"levels": 100}}), json!({}), "region.levels"),
            (json!({"region": {"roi_size": 16384}}), json!({}), "what is cut out for a region"),
        ] {
            let config = Config::nano(600);
            let changed = |mut given: serde_json::Value, changes: &serde_json::Value| {
                given.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
                given.to_string()
            };
            let (model, tower) = (changed(config.to_json(), &model), changed(config.tower_to_json(), &tower));
            let error = Config::from_json(&model, &tower, None).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{expected}: ")), "{error}, expected {expected}");
        }
    }
}
