//! The tower as a stage finds it, before the first step.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{Device, Tensor};
use gpt4roi::{Config, Image, clip::ClipVision, config::VisionConfig, weights::Weights};
use gpt4roi_data::Scene;

use crate::{error::Result, init::Initializer, parameters::Parameters};

/// A frozen tower that is asked what it makes of scenes.
#[derive(Debug)]
pub(crate) struct Tower {
    clip: ClipVision,
    states: Vec<usize>,
    vision: VisionConfig,
}

impl Tower {
    /// Takes the tower's tensors where `taken` has them, and draws the others.
    pub(crate) fn load(taken: &BTreeMap<String, Tensor>, initializer: &Initializer, config: &Config) -> Result<Self> {
        let source = Arc::new(Parameters::new(Vec::new(), taken.clone(), initializer.clone(), &Device::Cpu));
        let states = config.level_states()?;
        let depth = states.last().copied().unwrap_or(0);
        let clip = ClipVision::load(&Weights::new(source as Arc<_>), &config.vision, depth)?;
        Ok(Self { clip, states, vision: config.vision.clone() })
    }

    /// Hidden states that the region module reads.
    pub(crate) fn levels(&self) -> usize {
        self.states.len()
    }

    /// Channels of a patch.
    pub(crate) fn width(&self) -> usize {
        self.vision.hidden_size
    }

    /// Side of a patch in pixels.
    pub(crate) fn patch_size(&self) -> usize {
        self.vision.patch_size
    }

    /// The patches of a scene in the hidden states that the region module reads, earliest first.
    ///
    /// # Shapes
    /// → `[patches, width]` for each level
    pub(crate) fn patches(&self, scene: &Scene) -> Result<Vec<Vec<f32>>> {
        let pixels = Image::from_rgb(scene.image.clone()).pixel_values(&self.vision, &Device::Cpu)?;
        let all = self.clip.forward(&pixels)?;
        let patches = |&state: &usize| {
            all[state].squeeze(0)?.narrow(0, 1, self.vision.patches())?.contiguous()?.flatten_all()?.to_vec1()
        };
        Ok(self.states.iter().map(patches).collect::<candle_core::Result<_>>()?)
    }
}
