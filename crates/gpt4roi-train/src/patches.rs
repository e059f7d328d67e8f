//! Stage 0 of the tower: classify every patch, and every object by the mean of its patches.
//!
//! The published model starts from CLIP. A model that starts from nothing needs another teacher: the
//! exact annotation of drawn scenes. Heads on all hidden states that the region module will read
//! keep the early ones useful, too.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use gpt4roi::{
    Config, Image,
    clip::ClipVision,
    config::VisionConfig,
    layers::{LayerNorm, Linear},
    weights::{Weights, WeightsResult},
};
use gpt4roi_data::{PatchLabel, Scene};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    loss::{correct, cross_entropy},
    objective::{Metrics, Objective, Outcome},
    scenes::SceneSource,
};

/// Settings of [`Patches`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchesConfig {
    /// The weight of hidden states before the last one used; that one has 1.
    #[serde(default = "early")]
    pub early: f64,
    /// The weight of background patches; those of objects have 1.
    #[serde(default = "background")]
    pub background: f64,
    /// The weight of whole objects, each the mean of what its box covers.
    #[serde(default = "objects")]
    pub objects: f64,
}

fn early() -> f64 {
    0.33
}

fn background() -> f64 {
    0.3
}

fn objects() -> f64 {
    0.5
}

impl Default for PatchesConfig {
    fn default() -> Self {
        Self { early: early(), background: background(), objects: objects() }
    }
}

/// Dense classification of the tower's hidden states.
pub struct Patches {
    clip: ClipVision,
    heads: Vec<Head>,
    object_head: Linear,
    states: Vec<usize>,
    vision: VisionConfig,
    kinds: usize,
    scenes: Arc<dyn SceneSource>,
    config: PatchesConfig,
    device: Device,
}

impl std::fmt::Debug for Patches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patches").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Standardises a hidden state and classifies each of its patches.
#[derive(Debug)]
struct Head {
    norm: LayerNorm,
    linear: Linear,
    weight: f64,
}

impl Head {
    fn load(weights: &Weights, width: usize, classes: usize, weight: f64) -> WeightsResult<Self> {
        Ok(Self {
            norm: LayerNorm::load(&weights.at("norm"), width, 1e-5)?,
            linear: Linear::load(&weights.at("linear"), width, classes)?,
            weight,
        })
    }
}

impl Patches {
    /// Takes the tower's tensors and the heads, `aux.patches.…`.
    pub fn load(
        weights: &Weights,
        model: &Config,
        scenes: Arc<dyn SceneSource>,
        config: PatchesConfig,
        device: &Device,
    ) -> Result<Self> {
        let states = model.level_states()?;
        let (width, kinds) = (model.vision.hidden_size, scenes.kinds());
        let aux = weights.at("aux.patches");
        let last = states.len() - 1;
        let head = |level: usize| {
            let weight = if level == last { 1.0 } else { config.early };
            Head::load(&aux.at(level), width, kinds + 1, weight)
        };
        Ok(Self {
            clip: ClipVision::load(weights, &model.vision, states[last])?,
            heads: (0..states.len()).map(head).collect::<WeightsResult<_>>()?,
            object_head: Linear::load(&aux.at("object"), width, kinds)?,
            states,
            vision: model.vision.clone(),
            kinds,
            scenes,
            config,
            device: device.clone(),
        })
    }

    fn targets(&self, scene: &Scene) -> PatchTargets {
        let mut targets = PatchTargets::default();
        for (place, label) in scene.patch_labels(self.vision.patch_size).into_iter().enumerate() {
            let class = match label {
                PatchLabel::Kind(kind) => kind,
                PatchLabel::Background => self.kinds,
                PatchLabel::Ignore => continue,
            };
            targets.places.push(place as u32 + 1); // behind the class token
            targets.classes.push(class as u32);
        }
        targets.weigh(self.kinds as u32, self.config.background);
        targets
    }

    /// For each object, the share of each patch in its box, normalised to 1.
    ///
    /// # Shapes
    /// → `[objects, patches]`
    fn shares(&self, scene: &Scene) -> candle_core::Result<Tensor> {
        let grid = self.vision.grid();
        let mut values = Vec::with_capacity(scene.objects.len() * grid * grid);
        for object in &scene.objects {
            let [x1, y1, x2, y2] = object.bbox.normalized().map(|edge| edge * grid as f64);
            let overlap =
                |low: f64, high: f64, cell: usize| (high.min(cell as f64 + 1.0) - low.max(cell as f64)).max(0.0);
            let area = (x2 - x1) * (y2 - y1);
            for cell in 0..grid * grid {
                let share = overlap(x1, x2, cell % grid) * overlap(y1, y2, cell / grid) / area;
                values.push(share as f32);
            }
        }
        Tensor::from_vec(values, (scene.objects.len(), grid * grid), &self.device)
    }

    /// Cross-entropy of whole objects on the last state, already standardised.
    fn object_loss(&self, scene: &Scene, normal: &Tensor, metrics: &mut Metrics) -> Result<Tensor> {
        let patches = normal.narrow(0, 1, normal.dim(0)? - 1)?;
        let logits = self.object_head.forward(&self.shares(scene)?.matmul(&patches)?)?;
        let kinds: Vec<u32> = scene.objects.iter().map(|object| object.kind as u32).collect();
        let right = correct(&logits, &kinds)?;
        metrics.add("object_accuracy", count(&right), right.len() as f64);
        Ok(cross_entropy(&logits, &kinds, &vec![1.0 / kinds.len() as f32; kinds.len()])?)
    }
}

impl Objective for Patches {
    fn outcome(&self, index: u64) -> Result<Option<Outcome>> {
        let scene = self.scenes.scene(index)?;
        let targets = self.targets(&scene);
        if targets.places.is_empty() || scene.objects.is_empty() {
            return Ok(None);
        }
        let pixels = Image::from_rgb(scene.image.clone()).pixel_values(&self.vision, &self.device)?;
        let states = self.clip.forward(&pixels)?;
        let places = Tensor::from_slice(&targets.places, targets.places.len(), &self.device)?;
        let mut metrics = Metrics::default();
        let mut total = Tensor::zeros((), candle_core::DType::F32, &self.device)?;
        let mut weights = 0.0;
        for (level, (head, &state)) in self.heads.iter().zip(&self.states).enumerate() {
            let normal = head.norm.forward(&states[state].squeeze(0)?)?; // [1 + patches, Cv]
            let logits = head.linear.forward(&normal.index_select(&places, 0)?)?;
            let loss = cross_entropy(&logits, &targets.classes, &targets.weights)?;
            total = (total + (loss * head.weight)?)?;
            weights += head.weight;
            if level + 1 == self.heads.len() {
                targets.score(&logits, self.kinds as u32, &mut metrics)?;
                let rms = states[state].sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt();
                metrics.add("state_rms", f64::from(rms), 1.0);
                total = (total + (self.object_loss(&scene, &normal, &mut metrics)? * self.config.objects)?)?;
                weights += self.config.objects;
            }
        }
        Ok(Some(Outcome { loss: (total / weights)?, weight: 1.0, whole: true, metrics }))
    }
}

/// The labelled patches of a picture.
#[derive(Default)]
struct PatchTargets {
    /// Rows of a hidden state, class token included.
    places: Vec<u32>,
    classes: Vec<u32>,
    weights: Vec<f32>,
}

impl PatchTargets {
    /// Means over objects and over background, the latter scaled.
    fn weigh(&mut self, background: u32, scale: f64) {
        let behind = self.classes.iter().filter(|&&class| class == background).count();
        let before = self.classes.len() - behind;
        let weight = |class: &u32| {
            let (share, count) = if *class == background { (scale, behind) } else { (1.0, before) };
            (share / count as f64) as f32
        };
        self.weights = self.classes.iter().map(weight).collect();
    }

    fn score(&self, logits: &Tensor, background: u32, metrics: &mut Metrics) -> Result<()> {
        let right = correct(logits, &self.classes)?;
        for (right, class) in right.into_iter().zip(&self.classes) {
            let name = if *class == background { "background_accuracy" } else { "patch_accuracy" };
            metrics.add(name, f64::from(u8::from(right)), 1.0);
        }
        Ok(())
    }
}

fn count(right: &[bool]) -> f64 {
    right.iter().filter(|&&right| right).count() as f64
}
