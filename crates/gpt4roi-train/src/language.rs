//! Stage 0 of the language model: conversations about pictures whose regions are symbols.
//!
//! The published model starts from Vicuna. A model that starts from nothing learns its language from
//! the same conversations as later, with one difference: what a region shows is not read from the
//! picture but looked up, a vector per kind with noise on it. So the language model learns names,
//! places and relations before the region module exists, and that module later has vectors to aim at.

use candle_core::{Device, Tensor};
use gpt4roi::{Config, Network, config::VisionConfig, weights::Weights};
use gpt4roi_data::QuestionMix;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    conversations::Conversations,
    error::Result,
    init::truncated_normal,
    lesson::{Lesson, Lessons},
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
    /// The share of conversations in which the model sees the picture beside the regions. In the others the picture's
    /// tokens are missing and nothing is asked that takes them: those cost less than half, and attention that has 256
    /// fewer places to look at finds the regions sooner.
    #[serde(default = "once")]
    pub pictures: f64,
    /// What is asked.
    pub questions: QuestionMix,
}

impl LanguageConfig {
    /// Whether the picture of an index is seen: evenly spread, so that each batch has its share.
    fn sees(&self, index: u64) -> bool {
        let seen = |pictures: u64| (pictures as f64 * self.pictures).floor();
        seen(index + 1) > seen(index)
    }
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
    /// → `[patches, H]`
    fn image_tokens(&self, lesson: &Lesson) -> Result<Tensor> {
        let pixels = lesson.picture.open()?.pixel_values(&self.vision, &self.device)?;
        Ok(self.network.encode_image(&pixels)?.image_tokens)
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
        let sees = self.config.sees(index);
        let conversations = &self.conversations;
        let lesson = if sees { conversations.lesson(index) } else { conversations.lesson_of_regions(index) };
        let Some(mut lesson) = lesson? else { return Ok(None) };
        let image_tokens = sees.then(|| self.image_tokens(&lesson)).transpose()?;
        let kinds = Tensor::from_slice(&lesson.kinds, lesson.kinds.len(), &self.device)?;
        let features = self.kinds.index_select(&kinds, 0)?;
        let noise = self.noise(lesson.kinds.len(), features.dim(1)?, &mut lesson.rng)?;
        let head = &self.network.region.head;
        let regions = head.placed(&(features + noise)?, &lesson.boxes(&self.device)?)?;
        let (mut metrics, first) = (Metrics::default(), self.config.first_token);
        let loss = lesson.loss(&self.network, image_tokens.as_ref(), Some(&regions), first, &mut metrics)?;
        Ok(Some(Outcome { loss, weight: lesson.targets(), whole: true, metrics }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{objective::ObjectiveConfig, tiny};

    #[test]
    fn pictures_are_seen_in_their_share_of_every_batch() {
        let ObjectiveConfig::Language(settings) = tiny::language() else { panic!("expected the language's settings") };
        for (pictures, expected) in [(0.0, [0, 0]), (0.25, [2, 2]), (0.375, [3, 3]), (1.0, [8, 8])] {
            let settings = LanguageConfig { pictures, ..settings.clone() };
            let seen = |batch: u64| (8 * batch..8 * (batch + 1)).filter(|index| settings.sees(*index)).count();
            assert_eq!([seen(0), seen(1000)], expected, "{pictures}");
        }
    }
}
