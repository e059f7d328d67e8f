//! A language model alone in a GGUF file, as llama.cpp takes it: a LLaMA without eyes.

use std::{path::Path, sync::Arc};

use candle_core::Device;

use crate::{
    config::LlamaConfig,
    error::Result,
    gguf::{Array, Gguf, Value},
    gguf_pair::{GgufWeights, TOKENS, array, number, text, unexpected},
};

/// The file, open.
#[derive(Debug)]
pub struct GgufLanguage(Arc<Gguf>);

impl GgufLanguage {
    /// Opens a file whose architecture is `llama`.
    ///
    /// # Errors
    /// If it is missing, damaged, or of another kind.
    pub fn open(file: &Path) -> Result<Self> {
        const ARCHITECTURE: &str = "general.architecture";
        let gguf = Gguf::open(file)?;
        match text(&gguf, ARCHITECTURE)? {
            "llama" => Ok(Self(Arc::new(gguf))),
            got => Err(unexpected(&gguf, ARCHITECTURE, "llama", got)),
        }
    }

    /// Its dimensions.
    ///
    /// # Errors
    /// If they are missing or impossible, or if heads share keys and values.
    pub fn config(&self) -> Result<LlamaConfig> {
        let count = |key: &str| number(&self.0, key).map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        let real = |key: &str| self.0.metadata(key).and_then(Value::as_f64);
        let heads = count("llama.attention.head_count")?;
        let shared = self.0.metadata("llama.attention.head_count_kv").and_then(Value::as_u64);
        if let Some(got) = shared.filter(|got| *got != heads as u64) {
            return Err(unexpected(&self.0, "llama.attention.head_count_kv", heads, got));
        }
        let config = LlamaConfig {
            vocab_size: self.tokens()?.len(),
            hidden_size: count("llama.embedding_length")?,
            intermediate_size: count("llama.feed_forward_length")?,
            num_hidden_layers: count("llama.block_count")?,
            num_attention_heads: heads,
            rms_norm_eps: real("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
            rope_theta: real("llama.rope.freq_base").unwrap_or(10000.0),
            max_position_embeddings: count("llama.context_length")?,
        };
        config.check()?;
        Ok(config)
    }

    /// What its tokens are called, by id.
    ///
    /// # Errors
    /// If that is missing.
    pub fn tokens(&self) -> Result<&[String]> {
        match array(&self.0, TOKENS) {
            Some(Array::String(tokens)) => Ok(tokens),
            _ => Err(unexpected(&self.0, TOKENS, "texts of tokens", "none")),
        }
    }

    /// Its tensors under their published names.
    ///
    /// # Errors
    /// If dimensions are missing, or a tensor stands there twice.
    pub fn weights(&self, device: &Device) -> Result<GgufWeights> {
        let config = self.config()?;
        GgufWeights::of(&[&self.0], config.hidden_size / config.num_attention_heads, device)
    }
}
