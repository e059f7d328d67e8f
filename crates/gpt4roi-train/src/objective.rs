//! What a stage learns from a picture.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::Result;
pub use crate::{
    conversation::{Converse, ConverseConfig},
    language::{Language, LanguageConfig},
    patches::{Patches, PatchesConfig},
    text::{Text, TextConfig},
};

/// Turns the picture of a given index into a loss.
pub trait Objective: Send + Sync {
    /// The loss of one picture; none if nothing in it can be learned from.
    ///
    /// Everything random about it comes from `index` and the objective's own seed, so that a picture
    /// is the same whichever thread makes it and however often training was interrupted.
    fn outcome(&self, index: u64) -> Result<Option<Outcome>>;
}

/// What one picture came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The mean loss over the picture's targets, a scalar with its graph.
    pub loss: Tensor,
    /// How much the picture counts within its batch: the number of its targets.
    pub weight: f64,
    /// Whether all of the network has its part in the loss, so that every parameter that learns gets a gradient.
    pub whole: bool,
    /// What else is worth knowing.
    pub metrics: Metrics,
}

/// Named means, kept as sums and counts so that pictures can be added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<&'static str, (f64, f64)>);

impl Metrics {
    /// Adds `sum` over `count` observations.
    pub fn add(&mut self, name: &'static str, sum: f64, count: f64) {
        let entry = self.0.entry(name).or_default();
        entry.0 += sum;
        entry.1 += count;
    }

    /// Adds another's observations.
    pub fn merge(&mut self, other: &Self) {
        for (name, (sum, count)) in &other.0 {
            self.add(name, *sum, *count);
        }
    }

    /// The means, by name; names without an observation are left out.
    pub fn means(&self) -> BTreeMap<String, f64> {
        let seen = self.0.iter().filter(|(_, (_, count))| *count > 0.0);
        seen.map(|(name, (sum, count))| (name.to_string(), sum / count)).collect()
    }
}

/// Which objective, with its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ObjectiveConfig {
    /// Stage 0 of the tower: what kind of object each patch shows.
    Patches(PatchesConfig),
    /// Stage 0 of the language model: conversations with symbols for regions.
    Language(LanguageConfig),
    /// Stages 1 and 2: conversations about pictures.
    Conversation(ConverseConfig),
    /// A draft model's stage: conversations as texts.
    Text(TextConfig),
}
