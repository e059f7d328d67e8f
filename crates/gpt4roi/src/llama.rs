//! The language model: LLaMA's decoder over embeddings, with rotary positions and a key/value cache.

use candle_core::{Result, Tensor};

use crate::{
    config::LlamaConfig,
    kv_cache::KvCache,
    layers::{AttentionMask, Linear, Matrix, RmsNorm, Rotary, attention, swiglu},
    weights::{Weights, WeightsError, WeightsResult},
};

/// LLaMA with its token embedding and its output layer.
#[derive(Debug)]
pub struct Llama {
    embed_tokens: Matrix, // [V, H]
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Linear,
    rotary: Rotary,
}

impl Llama {
    /// Takes `model.embed_tokens`, `model.layers`, `model.norm` and `lm_head`. The rotary frequencies
    /// of published checkpoints are rounded to float16; they are computed afresh.
    pub fn load(weights: &Weights, config: &LlamaConfig) -> WeightsResult<Self> {
        let (vocab, width) = (config.vocab_size, config.hidden_size);
        let model = weights.at("model");
        let layers = model.at("layers");
        let embed_tokens = model.get_matrix("embed_tokens.weight", [vocab, width])?;
        let head = width / config.num_attention_heads;
        let rotary = Rotary::new(head, config.max_position_embeddings, config.rope_theta, embed_tokens.device())
            .map_err(|source| WeightsError::Tensor { name: "rotary_emb".into(), source })?;
        Ok(Self {
            layers: (0..config.num_hidden_layers)
                .map(|index| DecoderLayer::load(&layers.at(index), config))
                .collect::<WeightsResult<_>>()?,
            norm: RmsNorm::load(&model.at("norm"), width, config.rms_norm_eps)?,
            lm_head: Linear::load_without_bias(&weights.at("lm_head"), width, vocab)?,
            embed_tokens,
            rotary,
        })
    }

    /// An empty cache for this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.layers.len())
    }

    /// # Shapes
    /// ids `[T]` (u32) → `[T, H]`
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embed_tokens.rows(ids)
    }

    /// Continues behind what the cache holds: reads new embeddings and remembers them.
    ///
    /// # Shapes
    /// embeds `[1, T, H]` → `[1, T, H]`, normalised, ready for [`Self::logits`]
    pub fn forward(&self, embeds: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let (start, length) = (cache.len() as u32, embeds.dim(1)? as u32);
        let positions = Tensor::arange(start, start + length, embeds.device())?;
        let step = |x: Tensor, (index, layer): (usize, &DecoderLayer)| {
            layer.forward(&x, &self.rotary, &positions, &AttentionMask::Causal, Some((index, &mut *cache)))
        };
        let x = self.layers.iter().enumerate().try_fold(embeds.clone(), step)?;
        self.norm.forward(&x)
    }

    /// Reads whole sequences at once, without a cache: what training needs.
    ///
    /// # Shapes
    /// embeds `[1, T, H]`, positions `[T]` (u32) → `[1, T, H]`, normalised
    pub fn forward_packed(&self, embeds: &Tensor, positions: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        let step = |x: Tensor, layer: &DecoderLayer| layer.forward(&x, &self.rotary, positions, mask, None);
        let x = self.layers.iter().try_fold(embeds.clone(), step)?;
        self.norm.forward(&x)
    }

    /// # Shapes
    /// `[.., H]` → `[.., V]`
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(hidden)
    }
}

/// What a model makes of whole sequences, with one of its layers in memory at a time: slow, but any
/// model fits.
///
/// # Shapes
/// for each sequence of T ids → `[T, V]`
pub(crate) fn logits_layer_by_layer(
    weights: &Weights,
    config: &LlamaConfig,
    sequences: &[Vec<u32>],
) -> crate::error::Result<Vec<Tensor>> {
    let (vocab, width) = (config.vocab_size, config.hidden_size);
    let (model, head) = (weights.at("model"), width / config.num_attention_heads);
    let embed_tokens = model.get("embed_tokens.weight", &[vocab, width])?;
    let device = embed_tokens.device().clone();
    let rotary = Rotary::new(head, config.max_position_embeddings, config.rope_theta, &device)?;
    let embed = |ids: &Vec<u32>| embed_tokens.index_select(&Tensor::new(ids.as_slice(), &device)?, 0)?.unsqueeze(0);
    let mut states = sequences.iter().map(embed).collect::<Result<Vec<_>>>()?;
    drop(embed_tokens);
    for index in 0..config.num_hidden_layers {
        let layer = DecoderLayer::load(&model.at("layers").at(index), config)?;
        for x in &mut states {
            let positions = Tensor::arange(0, x.dim(1)? as u32, &device)?;
            *x = layer.forward(x, &rotary, &positions, &AttentionMask::Causal, None)?;
        }
    }
    let norm = RmsNorm::load(&model.at("norm"), width, config.rms_norm_eps)?;
    let lm_head = Linear::load_without_bias(&weights.at("lm_head"), width, vocab)?;
    Ok(states.iter().map(|x| lm_head.forward(&norm.forward(x)?)?.squeeze(0)).collect::<Result<_>>()?)
}

/// Attention, then a gated feed-forward part, each added to what came in.
#[derive(Debug)]
struct DecoderLayer {
    input_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    heads: usize,
}

impl DecoderLayer {
    fn load(weights: &Weights, config: &LlamaConfig) -> WeightsResult<Self> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.rms_norm_eps);
        let (attention, mlp) = (weights.at("self_attn"), weights.at("mlp"));
        Ok(Self {
            input_layernorm: RmsNorm::load(&weights.at("input_layernorm"), width, eps)?,
            q_proj: Linear::load_without_bias(&attention.at("q_proj"), width, width)?,
            k_proj: Linear::load_without_bias(&attention.at("k_proj"), width, width)?,
            v_proj: Linear::load_without_bias(&attention.at("v_proj"), width, width)?,
            o_proj: Linear::load_without_bias(&attention.at("o_proj"), width, width)?,
            post_attention_layernorm: RmsNorm::load(&weights.at("post_attention_layernorm"), width, eps)?,
            gate_proj: Linear::load_without_bias(&mlp.at("gate_proj"), width, inner)?,
            up_proj: Linear::load_without_bias(&mlp.at("up_proj"), width, inner)?,
            down_proj: Linear::load_without_bias(&mlp.at("down_proj"), inner, width)?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        positions: &Tensor,
        mask: &AttentionMask,
        cache: Option<(usize, &mut KvCache)>,
    ) -> Result<Tensor> {
        let seen = self.input_layernorm.forward(x)?;
        let q = rotary.forward(&self.q_proj.forward(&seen)?, self.heads, positions)?;
        let k = rotary.forward(&self.k_proj.forward(&seen)?, self.heads, positions)?;
        let v = self.v_proj.forward(&seen)?;
        let (k, v) = match cache {
            Some((layer, cache)) => cache.append(layer, k, v)?,
            None => (k, v),
        };
        let x = (x + self.o_proj.forward(&attention(&q, &k, &v, self.heads, mask)?)?)?;
        &x + self.feed_forward(&self.post_attention_layernorm.forward(&x)?)?
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down_proj.forward(&swiglu(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?)
    }
}
