//! The model that travels inside the library.
//!
//! It was trained by `gpt4roi-train` on drawn scenes and knows nothing of photographs; its card is
//! `models/nano/README.md`.

use candle_core::Device;

use crate::{
    error::Result,
    model::{EmbeddedModel, Gpt4Roi, ModelFiles},
};

/// The files of `models/nano`.
pub const NANO: EmbeddedModel = EmbeddedModel {
    config: include_str!("../../../models/nano/config.json"),
    model: include_bytes!("../../../models/nano/model.safetensors"),
    tokenizer: include_bytes!("../../../models/nano/tokenizer.model"),
    added_tokens: include_str!("../../../models/nano/added_tokens.json"),
    tower_config: include_str!("../../../models/nano/vision_tower/config.json"),
    preprocessor_config: None,
    tower: include_bytes!("../../../models/nano/vision_tower/model.safetensors"),
};

impl Gpt4Roi {
    /// The embedded model: nothing to download.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn nano(device: &Device) -> Result<Self> {
        Self::from_files(&ModelFiles::Embedded(NANO), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_model_opens_whole() {
        let report = ModelFiles::Embedded(NANO).report().unwrap().strict().unwrap();
        assert!(!report.loaded.is_empty());
    }

    #[test]
    fn the_embedded_model_keeps_its_size() {
        let bytes = NANO.model.len() + NANO.tower.len() + NANO.tokenizer.len();
        assert!(bytes <= 25_000_000, "{bytes} bytes, at most 25 MB may be embedded");
    }
}
