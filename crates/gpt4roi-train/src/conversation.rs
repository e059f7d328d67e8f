//! Stages 1 and 2: conversations about regions that are read from the picture.
//!
//! Besides the language model's loss there may be two of the region features' own: that they tell
//! kinds apart, and that they meet the vectors that the language model already understands. With these
//! alone, stage 1 needs no language model at all and costs a fraction.

use candle_core::{D, Device, Tensor};
use gpt4roi::{Config, Image, Network, config::VisionConfig, weights::Weights};
use gpt4roi_data::QuestionMix;
use serde::{Deserialize, Serialize};

use crate::{
    conversations::{Conversations, Talk},
    error::Result,
    language::KINDS,
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
    /// What is asked.
    pub questions: QuestionMix,
}

/// Conversations about pictures.
#[derive(Debug)]
pub struct Converse {
    network: Network,
    /// A vector for each kind, if the features have a loss of their own: `[kinds, C]`.
    kinds: Option<Tensor>,
    conversations: Conversations,
    vision: VisionConfig,
    config: ConverseConfig,
    device: Device,
}

impl Converse {
    /// Takes the network's tensors and, if a loss needs them, the kinds' vectors, `aux.kinds`.
    pub fn load(
        weights: &Weights,
        model: &Config,
        conversations: Conversations,
        config: ConverseConfig,
        device: &Device,
    ) -> Result<Self> {
        let shape = [conversations.scenes.kinds(), model.region.dim];
        let needs_kinds = config.class > 0.0 || config.distance > 0.0;
        Ok(Self {
            network: Network::load(model, weights, weights)?,
            kinds: needs_kinds.then(|| weights.get(KINDS, &shape)).transpose()?,
            conversations,
            vision: model.vision.clone(),
            config,
            device: device.clone(),
        })
    }

    /// The losses of the features themselves.
    fn feature_loss(&self, talk: &Talk, features: &Tensor, metrics: &mut Metrics) -> Result<Option<Tensor>> {
        let Some(kinds) = &self.kinds else { return Ok(None) };
        let count = talk.kinds.len();
        let logits = (direction(features)?.matmul(&direction(kinds)?.t()?)? * COSINE_SCALE)?;
        let right = correct(&logits, &talk.kinds)?;
        metrics.add("class_accuracy", right.iter().filter(|&&right| right).count() as f64, count as f64);
        let class = cross_entropy(&logits, &talk.kinds, &vec![1.0 / count as f32; count])?;
        metrics.add("class_loss", f64::from(class.to_scalar::<f32>()?), 1.0);
        let own = kinds.index_select(&Tensor::from_slice(&talk.kinds, count, &self.device)?, 0)?.detach();
        let distance = (features - own)?.sqr()?.mean_all()?;
        metrics.add("distance", f64::from(distance.to_scalar::<f32>()?), 1.0);
        Ok(Some(((class * self.config.class)? + (distance * self.config.distance)?)?))
    }
}

impl Objective for Converse {
    fn outcome(&self, index: u64) -> Result<Option<Outcome>> {
        let Some(talk) = self.conversations.talk(index)? else { return Ok(None) };
        let pixels = Image::from_rgb(talk.scene.image.clone()).pixel_values(&self.vision, &self.device)?;
        let image = self.network.encode_image(&pixels)?;
        let (maps, boxes) = (self.network.pyramid(&image)?, talk.boxes(&self.device)?);
        let head = &self.network.region.head;
        let fused = head.fuse(&head.pool(&maps, &boxes)?)?;
        let features = head.flatten(&fused)?;
        let mut metrics = Metrics::default();
        observe(&fused, &features, &mut metrics)?;
        let mut loss = self.feature_loss(&talk, &features, &mut metrics)?;
        if self.config.language > 0.0 {
            let tokens = head.placed(&features, &boxes)?;
            let (seen, first) = (Some(&image.image_tokens), self.config.first_token);
            let language = talk.loss(&self.network, seen, &tokens, first, &mut metrics)?;
            metrics.add("language_loss", f64::from(language.to_scalar::<f32>()?) * talk.targets(), talk.targets());
            let language = (language * self.config.language)?;
            loss = Some(match loss {
                Some(loss) => (loss + language)?,
                None => language,
            });
        }
        Ok(loss.map(|loss| Outcome { loss, weight: talk.targets(), metrics }))
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
