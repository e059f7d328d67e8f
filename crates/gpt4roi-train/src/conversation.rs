//! Stages 1 and 2: conversations about regions that are read from the picture.
//!
//! Besides the language model's loss there may be two of the region features' own: that they tell
//! kinds apart, and that they meet the vectors that the language model already understands. With these
//! alone, stage 1 needs no language model at all and costs a fraction.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use gpt4roi::{Config, Network, config::VisionConfig, model::ImageFeatures, weights::Weights};
use gpt4roi_data::QuestionMix;
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    language::KINDS,
    lesson::{Lesson, Lessons},
    loss::{correct, cross_entropy},
    objective::{Metrics, Objective, Outcome},
};

/// The cosine of equal directions becomes this logit.
const COSINE_SCALE: f64 = 12.0;

/// Settings of [`Converse`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConverseConfig {
    /// The weight of the language model's loss; at 0 it isn't even run.
    pub language: f64,
    /// The weight of telling kinds apart by the cosine with each kind's vector.
    #[serde(default)]
    pub class: f64,
    /// The weight of the mean squared distance from the kind's vector.
    #[serde(default)]
    pub distance: f64,
    /// How often the token counts with which the words of an answer begin; yes or no is decided there.
    #[serde(default = "crate::language::once")]
    pub first_token: f64,
    /// What is asked about scenes; records bring their own questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<QuestionMix>,
}

impl ConverseConfig {
    /// Whether the features have a loss of their own, for which the kinds of objects must be known.
    pub(crate) fn needs_kinds(&self) -> bool {
        self.class > 0.0 || self.distance > 0.0
    }
}

/// Conversations about pictures.
pub struct Converse {
    network: Network,
    /// A vector for each kind, if the features have a loss of their own: `[kinds, C]`.
    kinds: Option<Tensor>,
    lessons: Arc<dyn Lessons>,
    vision: VisionConfig,
    config: ConverseConfig,
    device: Device,
}

impl std::fmt::Debug for Converse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Converse").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What the network makes of the boxes of a lesson.
struct Regions {
    /// `[N, 4]`
    boxes: Tensor,
    /// `[N·tokens, C]`
    features: Tensor,
}

impl Converse {
    /// Takes the network's tensors and, if a loss needs them, the vectors of so many kinds, `aux.kinds`.
    pub fn load(
        weights: &Weights,
        model: &Config,
        lessons: Arc<dyn Lessons>,
        kinds: usize,
        config: ConverseConfig,
        device: &Device,
    ) -> Result<Self> {
        let kinds = config.needs_kinds().then(|| weights.get(KINDS, &[kinds, model.region.dim])).transpose()?;
        Ok(Self {
            network: Network::load(model, weights, weights)?,
            kinds,
            lessons,
            vision: model.vision.clone(),
            config,
            device: device.clone(),
        })
    }

    /// Nothing where no question is about a region.
    fn regions(&self, lesson: &Lesson, image: &ImageFeatures, metrics: &mut Metrics) -> Result<Option<Regions>> {
        if lesson.packed.boxes.is_empty() {
            return Ok(None);
        }
        let (maps, boxes) = (self.network.pyramid(image)?, lesson.boxes(&self.device)?);
        let head = &self.network.region.head;
        let fused = head.fuse(&head.pool(&maps, &boxes)?)?;
        let features = head.flatten(&fused)?;
        observe(&fused, &features, metrics)?;
        Ok(Some(Regions { boxes, features }))
    }

    /// The losses of the features themselves.
    fn feature_loss(&self, lesson: &Lesson, regions: &Regions, metrics: &mut Metrics) -> Result<Option<Tensor>> {
        let Some(kinds) = &self.kinds else { return Ok(None) };
        let (features, count) = (&regions.features, lesson.kinds.len());
        let logits = (direction(features)?.matmul(&direction(kinds)?.t()?)? * COSINE_SCALE)?;
        let right = correct(&logits, &lesson.kinds)?;
        metrics.add("class_accuracy", right.iter().filter(|&&right| right).count() as f64, count as f64);
        let class = cross_entropy(&logits, &lesson.kinds, &vec![1.0 / count as f32; count])?;
        metrics.add("class_loss", f64::from(class.to_scalar::<f32>()?), 1.0);
        let own = kinds.index_select(&Tensor::from_slice(&lesson.kinds, count, &self.device)?, 0)?.detach();
        let distance = (features - own)?.sqr()?.mean_all()?;
        metrics.add("distance", f64::from(distance.to_scalar::<f32>()?), 1.0);
        Ok(Some(((class * self.config.class)? + (distance * self.config.distance)?)?))
    }
}

impl Converse {
    fn language_loss(
        &self,
        lesson: &Lesson,
        image: &ImageFeatures,
        regions: Option<&Regions>,
        metrics: &mut Metrics,
    ) -> Result<Option<Tensor>> {
        if self.config.language <= 0.0 {
            return Ok(None);
        }
        let head = &self.network.region.head;
        let tokens = regions.map(|regions| head.placed(&regions.features, &regions.boxes)).transpose()?;
        let (seen, first) = (Some(&image.image_tokens), self.config.first_token);
        let loss = lesson.loss(&self.network, seen, tokens.as_ref(), first, metrics)?;
        let targets = lesson.targets();
        metrics.add("language_loss", f64::from(loss.to_scalar::<f32>()?) * targets, targets);
        Ok(Some((loss * self.config.language)?))
    }
}

impl Objective for Converse {
    fn outcome(&self, index: u64) -> Result<Option<Outcome>> {
        let Some(lesson) = self.lessons.lesson(index)? else { return Ok(None) };
        let image = self.network.encode_image(&lesson.picture.open()?.pixel_values(&self.vision, &self.device)?)?;
        let mut metrics = Metrics::default();
        let regions = self.regions(&lesson, &image, &mut metrics)?;
        let of_features = regions.as_ref().map(|regions| self.feature_loss(&lesson, regions, &mut metrics));
        let of_language = self.language_loss(&lesson, &image, regions.as_ref(), &mut metrics);
        let loss = match (of_features.transpose()?.flatten(), of_language?) {
            (Some(features), Some(language)) => Some((features + language)?),
            (features, language) => features.or(language),
        };
        Ok(loss.map(|loss| Outcome { loss, weight: lesson.targets(), whole: lesson.whole, metrics }))
    }
}

/// Two early signs of a region module that dies: units that no input reaches, and features that grow.
fn observe(fused: &Tensor, features: &Tensor, metrics: &mut Metrics) -> Result<()> {
    let active = fused.detach().gt(0.0)?.to_dtype(candle_core::DType::F32)?.mean_all()?.to_scalar::<f32>()?;
    metrics.add("active_units", f64::from(active), 1.0);
    let square = features.detach().sqr()?.mean_all()?.to_scalar::<f32>()?;
    metrics.add("feature_rms", f64::from(square.sqrt()), 1.0);
    Ok(())
}

/// Rows of length 1.
///
/// # Shapes
/// `[N, C]` → `[N, C]`
fn direction(rows: &Tensor) -> candle_core::Result<Tensor> {
    rows.broadcast_div(&(rows.sqr()?.sum_keepdim(D::Minus1)? + 1e-6)?.sqrt()?)
}
