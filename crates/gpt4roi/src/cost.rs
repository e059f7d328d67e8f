//! How much arithmetic and memory traffic each stage needs, from the dimensions alone.
//!
//! A multiplication with its addition counts as two operations. Convolutions count as the sums that define them, so
//! that an algorithm which gets by with fewer shows as faster than the machine's ceiling. Traffic is what has to be
//! read at least once, the weights in f32, and the maps of the pyramid, which no cache holds; other activations count
//! for nothing.

use crate::{
    config::{Config, LlamaConfig, VisionConfig},
    error::Result,
};

/// What one stage needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations.
    pub operations: u64,
    /// Bytes to and from memory.
    pub bytes: u64,
}

/// Bytes of a value.
const F32: u64 = 4;

impl Cost {
    /// The tower, up to the last hidden state in use, for one picture.
    ///
    /// With T tokens, width W and M inside the feed-forward part, a layer takes 2·T·(4W² + 2WM) operations for its
    /// linear layers and 4·T²·W for attention.
    ///
    /// # Errors
    /// If the configuration has no such state.
    pub fn clip(config: &Config) -> Result<Self> {
        let VisionConfig { hidden_size, intermediate_size, patch_size, .. } = config.vision;
        let layers = config.level_states()?.last().copied().unwrap_or(0) as u64;
        let (width, inner) = (hidden_size as u64, intermediate_size as u64);
        let (patches, pixels) = (config.vision.patches() as u64, 3 * (patch_size * patch_size) as u64);
        let tokens = patches + 1;
        let weights = 4 * width * width + 2 * width * inner;
        Ok(Self {
            operations: 2 * patches * pixels * width + layers * (2 * tokens * weights + 4 * tokens * tokens * width),
            bytes: F32 * (pixels * width + layers * weights),
        })
    }

    /// The pyramid of one picture: the 1×1 convolutions on the patch grid, and per round a 3×3 convolution at every
    /// place of every level, 18·C² operations each. Each round reads its maps and writes them.
    pub fn pyramid(config: &Config) -> Self {
        let (dim, levels) = (config.region.dim as u64, config.region.levels as u64);
        let (rounds, seen) = (config.region.fuse_rounds as u64, config.input_width() as u64);
        let patches = config.vision.patches() as u64;
        let places: u64 = config.region.scales().iter().map(|&scale| patches * (scale * scale) as u64).sum();
        Self {
            operations: 2 * levels * patches * seen * dim + rounds * places * 18 * dim * dim,
            bytes: F32 * (levels * seen * dim + rounds * (9 * dim * dim + 2 * places * dim)),
        }
    }

    /// The head for so many regions: per level a 3×3 convolution on R² places, then one linear layer over all of them,
    /// the embedding of the box, and the projection of each token to the language model's width. Where a region has
    /// several tokens, the linear layer is smaller and used for each.
    pub fn region_head(config: &Config, regions: usize) -> Self {
        let (dim, levels) = (config.region.dim as u64, config.region.levels as u64);
        let bins = (config.region.roi_size * config.region.roi_size) as u64;
        let (hidden, text) = (config.region.pos_hidden as u64, config.llama.hidden_size as u64);
        let place = if config.region.box_embedding { 4 * hidden + hidden * dim } else { 0 };
        let tokens = config.region.tokens as u64;
        let linear = bins * dim * dim + place + tokens * dim * text;
        Self {
            operations: regions as u64 * (levels * bins * 18 * dim * dim + 2 * linear),
            bytes: F32 * (levels * 9 * dim * dim + bins / tokens * dim * dim + place + dim * text),
        }
    }

    /// The language model's part in reading `tokens` tokens behind a context of others, and the logits behind
    /// `answers` of them. What it reads, once, are so many bytes: its weights, and the keys and values of the context.
    ///
    /// A layer takes 2·T·(4W² + 3WM) operations for its linear layers, and 4·W for every pair of a token and another
    /// that it sees.
    pub fn language(config: &LlamaConfig, bytes: usize, context: usize, tokens: usize, answers: usize) -> Self {
        let (width, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
        let (layers, vocabulary) = (config.num_hidden_layers as u64, config.vocab_size as u64);
        let (context, tokens) = (context as u64, tokens as u64);
        let pairs = tokens * context + tokens * (tokens + 1) / 2;
        let linear = layers * tokens * (4 * width * width + 3 * width * inner) + answers as u64 * width * vocabulary;
        Self { operations: 2 * linear + layers * 4 * width * pairs, bytes: bytes as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(config: &Config, changes: serde_json::Value) -> Config {
        config.clone().with_region(changes.as_object().unwrap()).unwrap()
    }

    /// Against figures worked out by hand for the published model: 23 layers of 12·1024² weights over 257 tokens; five
    /// convolutions of 9·1024² weights over 21760 places; 0.82 GB of the linear layer over all bins.
    #[test]
    fn the_published_model_costs_what_its_dimensions_say() {
        let config = Config::gpt4roi_7b();
        let clip = Cost::clip(&config).unwrap();
        let attention = 23 * 4 * 257 * 257 * 1024;
        assert_eq!(clip.operations, 2 * 256 * 588 * 1024 + 23 * 2 * 257 * 12 * 1024 * 1024 + attention);
        assert_eq!(clip.bytes, 4 * (588 * 1024 + 23 * 12 * 1024 * 1024));

        let pyramid = Cost::pyramid(&config);
        assert_eq!(pyramid.operations, 2 * 4 * 256 * 1026 * 1024 + 5 * 2 * 9 * 1024 * 1024 * 21760);

        let head = Cost::region_head(&config, 4);
        assert_eq!(head.operations, 4 * Cost::region_head(&config, 1).operations);
        let tokens = Cost::region_head(&with(&config, serde_json::json!({"tokens": 4})), 1);
        assert_eq!(tokens.operations - Cost::region_head(&config, 1).operations, 2 * 3 * 1024 * 4096);
        let plain = with(&config, serde_json::json!({"coordinates": false, "box_embedding": false}));
        assert_eq!(pyramid.operations - Cost::pyramid(&plain).operations, 2 * 4 * 256 * 2 * 1024);
        let place = 2 * (4 * 256 + 256 * 1024);
        assert_eq!(Cost::region_head(&config, 1).operations - Cost::region_head(&plain, 1).operations, place);
        let linear = 200_704 * 1024 + 4 * 256 + 256 * 1024 + 1024 * 4096;
        assert_eq!(head.bytes, 4 * (4 * 9 * 1024 * 1024 + linear));

        // Two tokens behind ten see 11 and 12, themselves included.
        let two = Cost::language(&config.llama, 7, 10, 2, 1);
        let layer = 4 * 4096 * 4096 + 3 * 4096 * 11008;
        assert_eq!(two.operations, 2 * (2 * 32 * layer + 4096 * 32006) + 32 * 4 * 4096 * 23);
        assert_eq!(two.bytes, 7);
    }
}
