//! Stage 0 of the language model: conversations about pictures whose regions are symbols.
//!
//! The published model starts from Vicuna. A model that starts from nothing learns its language from
//! the same conversations as later, with one difference: what a region shows is not read from the
//! picture but looked up, a vector per kind with noise on it. So the language model learns names,
//! places and relations before the region module exists, and that module later has vectors to aim at.

use candle_core::{Device, Tensor};
use gpt4roi::{Config, Image, Network, config::VisionConfig, weights::Weights};
use gpt4roi_data::QuestionMix;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    conversations::Conversations,
    error::Result,
    init::truncated_normal,
    objective::{Metrics, Objective, Outcome},
};

/// Settings of [`Language`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageConfig {
    /// The deviation of the noise on what a region shows; the vectors start with deviation 1.
    pub noise: f64,
    /// The last so many channels are left to the box and get a tenth of the noise.
    #[serde(default)]
    pub place_channels: usize,
    /// How often the token counts with which the words of an answer begin; yes or no is decided there.
    #[serde(default = "once")]
    pub first_token: f64,
    /// What is asked.
    pub questions: QuestionMix,
}

pub(crate) fn once() -> f64 {
    1.0
}

/// Conversations with symbols for regions.
#[derive(Debug)]
pub struct Language {
    network: Network,
    /// A vector for each kind: `[kinds, C]`.
    kinds: Tensor,
    conversations: Conversations,
    vision: VisionConfig,
    config: LanguageConfig,
    device: Device,
}

impl Language {
    /// Takes the network's tensors and the kinds' vectors, `aux.kinds`.
    pub fn load(
        weights: &Weights,
        model: &Config,
        conversations: Conversations,
        config: LanguageConfig,
        device: &Device,
    ) -> Result<Self> {
        let kinds = conversations.scenes.kinds();
        Ok(Self {
            network: Network::load(model, weights, weights)?,
            kinds: weights.get(KINDS, &[kinds, model.region.dim])?,
            conversations,
            vision: model.vision.clone(),
            config,
            device: device.clone(),
        })
    }

    /// # Shapes
    /// → `[count, channels]`
    fn noise(&self, count: usize, channels: usize, rng: &mut ChaCha8Rng) -> candle_core::Result<Tensor> {
        let content = channels.saturating_sub(self.config.place_channels);
        let values = (0..count * channels).map(|place| {
            let scale = if place % channels < content { 1.0 } else { 0.1 };
            (truncated_normal(rng) * self.config.noise * scale) as f32
        });
        Tensor::from_vec(values.collect(), (count, channels), &self.device)
    }
}

/// A vector for each kind, what the language model is taught to understand.
pub(crate) const KINDS: &str = "aux.kinds";

impl Objective for Language {
    fn outcome(&self, index: u64) -> Result<Option<Outcome>> {
        let Some(mut talk) = self.conversations.talk(index)? else { return Ok(None) };
        let pixels = Image::from_rgb(talk.scene.image.clone()).pixel_values(&self.vision, &self.device)?;
        let image = self.network.encode_image(&pixels)?;
        let kinds = Tensor::from_slice(&talk.kinds, talk.kinds.len(), &self.device)?;
        let features = self.kinds.index_select(&kinds, 0)?;
        let noise = self.noise(talk.kinds.len(), features.dim(1)?, &mut talk.rng)?;
        let head = &self.network.region.head;
        let regions = head.placed(&(features + noise)?, &talk.boxes(&self.device)?)?;
        let mut metrics = Metrics::default();
        let loss = talk.loss(&self.network, &image.image_tokens, &regions, self.config.first_token, &mut metrics)?;
        Ok(Some(Outcome { loss, weight: talk.targets(), metrics }))
    }
}
