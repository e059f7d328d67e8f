//! A draft model's only stage: to go on with answers, without seeing what they are about.
//!
//! What comes of it is a LLaMA alone, [`gpt4roi::draft_model`]. It learns from the same conversations as the model that it
//! drafts for, best of all from that model's own answers; in the place of the picture there is nothing, and in that of a
//! region the same token everywhere.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use gpt4roi::{config::LlamaConfig, llama::Llama, weights::Weights};
use gpt4roi_data::QuestionMix;
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    lesson::Lessons,
    objective::{Metrics, Objective, Outcome},
};

/// Settings of [`Text`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// What is asked about scenes; records bring their own questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<QuestionMix>,
}

/// Conversations as texts.
pub struct Text {
    llama: Llama,
    lessons: Arc<dyn Lessons>,
    device: Device,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("llama", &self.llama).finish_non_exhaustive()
    }
}

impl Text {
    /// Takes the language model's tensors. The lessons are those of pictures without patches.
    pub fn load(weights: &Weights, model: &LlamaConfig, lessons: Arc<dyn Lessons>, device: &Device) -> Result<Self> {
        Ok(Self { llama: Llama::load(weights, model)?, lessons, device: device.clone() })
    }
}

impl Objective for Text {
    fn outcome(&self, index: u64) -> Result<Option<Outcome>> {
        let Some(lesson) = self.lessons.lesson(index)? else { return Ok(None) };
        let ids = Tensor::from_slice(&lesson.packed.ids, lesson.packed.ids.len(), &self.device)?;
        let (embeds, mut metrics) = (self.llama.embed(&ids)?.unsqueeze(0)?, Metrics::default());
        let loss = lesson.loss_behind(&self.llama, &embeds, 1.0, &mut metrics)?;
        Ok(Some(Outcome { loss, weight: lesson.targets(), whole: true, metrics }))
    }
}
