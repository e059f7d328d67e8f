//! What a parameter is before anything was learned.
//!
//! The region module's and the language model's rules are the original's (its code re-initialises
//! missing linear layers with LLaMA's rule), but for two things: normal values beyond two deviations
//! are drawn again, without making up for the spread that this takes away (0.88 of it is left), and
//! the language model's layers that write to the residual stream are scaled down by depth, as GPT-2's
//! are. The tower's rules follow CLIP in spirit: fan-in scaled, and scaled down by depth likewise.

use candle_core::{Device, Result, Tensor};
use gpt4roi::Config;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde::{Deserialize, Serialize};

use crate::language::KINDS;

/// The width of LLaMA's normal distribution.
pub(crate) const LLAMA_STD: f64 = 0.02;

/// A distribution that a tensor is drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// The same value everywhere.
    Constant(f32),
    /// A normal of mean 0 and this standard deviation, of which what lies beyond two deviations is drawn again: what
    /// comes out has 0.88 of it.
    Normal(f64),
    /// Evenly between −x and x.
    Uniform(f64),
    /// `lead` in the first `count` places, `rest` behind them.
    Split {
        /// The first value.
        lead: f32,
        /// How many places have it.
        count: usize,
        /// The other value.
        rest: f32,
    },
}

/// Choices of an initialisation that the original does not make.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitChoices {
    /// The last so many channels of the region vector start out for the box, the others for what it
    /// shows. In a narrow vector the box is drowned otherwise, and relations are not learned.
    #[serde(default)]
    pub place_channels: usize,
    /// The deviation of token embeddings; 0: LLaMA's. In a small model that is little beside what a layer of
    /// attention adds, and later layers do not see which token they stand at.
    #[serde(default)]
    pub embeddings: f64,
}

/// Draws every parameter from a generator of its own, so that neither order nor presence of others
/// changes it.
#[derive(Clone, Debug)]
pub struct Initializer {
    seed: u64,
    choices: InitChoices,
    tower_layers: usize,
    llama_layers: usize,
    /// What each input convolution reads: the tower's channels and two coordinates.
    input_width: usize,
}

impl Initializer {
    /// For a model of these dimensions.
    pub fn new(seed: u64, config: &Config, choices: InitChoices) -> Self {
        Self {
            seed,
            choices,
            tower_layers: config.vision.num_hidden_layers,
            llama_layers: config.llama.num_hidden_layers,
            input_width: config.input_width(),
        }
    }

    /// The first value of the parameter `name`.
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let mut rng = ChaCha8Rng::seed_from_u64(mix(self.seed, hash(name)));
        let count = shape.iter().product();
        let mut values = draw(self.distribution(name, shape), count, &mut rng);
        if name == KINDS {
            self.clear_place_channels(&mut values, shape);
        }
        Tensor::from_vec(values, shape, device)
    }

    /// The rule for the parameter `name`.
    pub fn distribution(&self, name: &str, shape: &[usize]) -> Distribution {
        let vector = shape.len() == 1;
        let fan_in = shape.iter().skip(1).product::<usize>().max(1) as f64;
        let ends = |suffix: &str| name.ends_with(suffix);
        if let (Some(part), true) = (name.split_once("pos_embedd."), self.choices.place_channels > 0) {
            return self.box_embedding(part.1, shape, fan_in);
        }
        if ends("lora_A.weight") {
            return Distribution::Uniform(1.0 / fan_in.sqrt()); // as PEFT draws them
        }
        if ends("lora_B.weight") {
            return Distribution::Constant(0.0); // a change begins with none
        }
        if vector && ends("weight") {
            return Distribution::Constant(1.0); // every one-dimensional weight is a norm's
        }
        if name.contains("input_conv") {
            return Distribution::Uniform(1.0 / (self.input_width as f64).sqrt()); // PyTorch's convolution
        }
        if ends("bias") {
            return Distribution::Constant(0.0);
        }
        if name == "model.embed_tokens.weight" && self.choices.embeddings > 0.0 {
            return Distribution::Normal(self.choices.embeddings);
        }
        if name.starts_with("vision_model.") {
            return Distribution::Normal(self.tower_std(name, fan_in));
        }
        if name == KINDS {
            return Distribution::Normal(1.0); // stands in for region features, whose scale is 1
        }
        if name.contains("fuse_convs") {
            // Kaiming, fan out, ReLU.
            let fan_out = shape[0] * shape.iter().skip(2).product::<usize>();
            return Distribution::Normal((2.0 / fan_out as f64).sqrt());
        }
        if name.contains("pconvs") {
            return Distribution::Normal(0.01);
        }
        if ends("o_proj.weight") || ends("down_proj.weight") {
            return Distribution::Normal(LLAMA_STD / (2.0 * self.llama_layers as f64).sqrt());
        }
        Distribution::Normal(LLAMA_STD)
    }

    /// The box embedding of a model that starts from nothing.
    ///
    /// Small weights without bias, as the original draws them, make it almost the same for all boxes: the
    /// LayerNorm behind takes away the scale, and what is left of the direction hardly differs. Here the
    /// hinges of the first ReLU are spread over the picture, so that boxes differ from the first step.
    fn box_embedding(&self, part: &str, shape: &[usize], fan_in: f64) -> Distribution {
        const SPREAD: f64 = 2.0;
        match part {
            "0.weight" => Distribution::Normal(SPREAD),
            "0.bias" => Distribution::Uniform(SPREAD),
            "3.weight" => Distribution::Normal((2.0 / fan_in).sqrt()),
            "5.weight" => {
                let count = shape.iter().product::<usize>().saturating_sub(self.choices.place_channels);
                Distribution::Split { lead: 0.1, count, rest: 5.0 }
            }
            norm if norm.ends_with("weight") => Distribution::Constant(1.0),
            _ => Distribution::Constant(0.0),
        }
    }

    /// What is looked up for a kind stands in the channels for content.
    fn clear_place_channels(&self, values: &mut [f32], shape: &[usize]) {
        let width = shape.last().copied().unwrap_or(1);
        let content = width.saturating_sub(self.choices.place_channels);
        values.chunks_exact_mut(width).for_each(|row| row[content..].fill(0.0));
    }

    fn tower_std(&self, name: &str, fan_in: f64) -> f64 {
        if name.contains("position_embedding") || name.contains("class_embedding") {
            return 0.1;
        }
        let std = 1.0 / fan_in.sqrt();
        if name.ends_with("out_proj.weight") || name.ends_with("fc2.weight") {
            return std / (2.0 * self.tower_layers as f64).sqrt();
        }
        std
    }
}

fn draw(distribution: Distribution, count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    match distribution {
        Distribution::Constant(value) => vec![value; count],
        Distribution::Normal(std) => (0..count).map(|_| (truncated_normal(rng) * std) as f32).collect(),
        Distribution::Uniform(bound) => (0..count).map(|_| rng.random_range(-bound..=bound) as f32).collect(),
        Distribution::Split { lead, count: leading, rest } => {
            (0..count).map(|place| if place < leading { lead } else { rest }).collect()
        }
    }
}

/// Box and Muller's transform; what lies beyond two standard deviations is drawn again.
pub(crate) fn truncated_normal(rng: &mut ChaCha8Rng) -> f64 {
    loop {
        let (radius, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        let value = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
        if value.abs() <= 2.0 {
            return value;
        }
    }
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One well-spread number out of two (SplitMix64's finaliser).
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initializer(seed: u64, place_channels: usize) -> Initializer {
        Initializer::new(seed, &Config::gpt4roi_7b(), InitChoices { place_channels, ..InitChoices::default() })
    }

    fn values(initializer: &Initializer, name: &str, shape: &[usize]) -> Vec<f32> {
        initializer.tensor(name, shape, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_value_depends_on_seed_and_name_alone() {
        let name = "model.layers.0.self_attn.q_proj.weight";
        let one = values(&initializer(1, 0), name, &[8, 8]);
        assert_eq!(one, values(&initializer(1, 0), name, &[8, 8]));
        assert_ne!(one, values(&initializer(2, 0), name, &[8, 8]));
        assert_ne!(one, values(&initializer(1, 0), "model.layers.1.self_attn.q_proj.weight", &[8, 8]));
    }

    /// The original's rules for the region module and LLaMA's, of which the last is scaled by depth.
    #[test]
    fn rules_follow_the_original() {
        let region = "model.spi_module";
        let cases: [(String, &[usize], Distribution); 9] = [
            (format!("{region}.roi_align.pconvs.1.weight"), &[1024, 1024, 3, 3], Distribution::Normal(0.01)),
            (format!("{region}.roi_align.pconvs.1.bias"), &[1024], Distribution::Constant(0.0)),
            (format!("{region}.roi_align.flatten_linear.weight"), &[1024, 200_704], Distribution::Normal(0.02)),
            (format!("{region}.roi_align.pos_embedd.0.weight"), &[256, 4], Distribution::Normal(0.02)),
            (format!("{region}.roi_align.pos_embedd.5.weight"), &[1024], Distribution::Constant(1.0)),
            (format!("{region}.mlvl_fuse.fuse_convs.0.gn.weight"), &[1024], Distribution::Constant(1.0)),
            // Kaiming: √(2 / (1024·9)).
            (
                format!("{region}.mlvl_fuse.fuse_convs.0.conv.weight"),
                &[1024, 1024, 3, 3],
                Distribution::Normal((2f64 / 9216.0).sqrt()),
            ),
            // PyTorch's convolution: 1/√fan-in.
            (format!("{region}.mlvl_fuse.input_conv.0.bias"), &[1024], Distribution::Uniform(1.0 / 1026f64.sqrt())),
            // 32 layers write twice each to the residual stream.
            ("model.layers.3.mlp.down_proj.weight".into(), &[4096, 11008], Distribution::Normal(0.02 / 8.0)),
        ];
        for (name, shape, expected) in cases {
            assert_eq!(initializer(1, 0).distribution(&name, shape), expected, "{name}");
        }
    }

    #[test]
    fn normal_values_have_the_deviation_of_a_normal_cut_at_two() {
        let values = values(&initializer(3, 0), "model.embed_tokens.weight", &[100, 100]);
        let variance = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        // Var = 1 − 2·2·φ(2)/(2Φ(2) − 1) = 0.7737 for deviation 1.
        assert!((variance.sqrt() / LLAMA_STD - 0.7737f64.sqrt()).abs() < 0.02, "{}", variance.sqrt());
        assert!(values.iter().all(|v| v.abs() <= 2.0 * LLAMA_STD as f32));
    }

    #[test]
    fn token_embeddings_are_as_large_as_chosen() {
        let rule = |embeddings| {
            let choices = InitChoices { embeddings, ..InitChoices::default() };
            let initializer = Initializer::new(1, &Config::gpt4roi_7b(), choices);
            initializer.distribution("model.embed_tokens.weight", &[32006, 4096])
        };
        assert_eq!(rule(0.0), Distribution::Normal(LLAMA_STD));
        assert_eq!(rule(0.7), Distribution::Normal(0.7));
    }

    #[test]
    fn kinds_leave_channels_to_the_place() {
        let rows = values(&initializer(1, 3), KINDS, &[2, 8]);
        for row in rows.chunks_exact(8) {
            assert!(row[..5].iter().all(|v| *v != 0.0) && row[5..].iter().all(|v| *v == 0.0), "{row:?}");
        }
    }
}
