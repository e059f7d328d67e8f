//! The language model: LLaMA's decoder over embeddings, with rotary positions and a key/value cache.

use candle_core::{DType, Device, Result, Tensor};

use crate::{
    config::LlamaConfig,
    drafter::DEFAULT_DRAFT,
    kv_cache::{Branch, KvCache},
    layers::{AttentionMask, Linear, Matrix, RmsNorm, Rotary, Tail, attention, branched_attention, swiglu},
    low_rank::LowRank,
    recomputed::recomputed,
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
    vocabulary: usize,
    device: Device,
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
        let device = embed_tokens.device();
        let rotary = Rotary::new(head, config.max_position_embeddings, config.rope_theta, &device)
            .map_err(|source| WeightsError::Tensor { name: "rotary_emb".into(), source })?;
        Ok(Self {
            layers: (0..config.num_hidden_layers)
                .map(|index| DecoderLayer::load(&layers.at(index), config))
                .collect::<WeightsResult<_>>()?,
            norm: RmsNorm::load(&model.at("norm"), width, config.rms_norm_eps)?,
            lm_head: Linear::load_without_bias(&weights.at("lm_head"), width, vocab)?,
            embed_tokens,
            rotary,
            vocabulary: vocab,
            device,
        })
    }

    /// An empty cache for this model: in float16 beside quantised weights, whose error is far larger than that of
    /// rounded keys and values.
    pub fn new_cache(&self) -> KvCache {
        match self.layers.iter().flat_map(DecoderLayer::linear).any(Linear::is_quantized) {
            true => KvCache::in_halves(self.layers.len()),
            false => KvCache::new(self.layers.len()),
        }
    }

    /// The longest sequence that has positions.
    pub fn max_positions(&self) -> usize {
        self.rotary.positions()
    }

    /// Tokens that there are.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Tokens that are drafted ahead at most where nothing else is asked for. On the CPU the numbers of a token behind
    /// quantised weights are the same bits whatever is read along, and memory is what a step waits for; elsewhere sums
    /// may be rounded otherwise, so that nothing is drafted unasked.
    pub fn default_draft(&self) -> usize {
        let mut linear = self.layers.iter().flat_map(DecoderLayer::linear).chain([&self.lm_head]);
        if self.device.is_cpu() && linear.all(Linear::is_row_by_row) { DEFAULT_DRAFT } else { 0 }
    }

    /// The device that computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of the linear layers: what is read for every token, however many are read together.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flat_map(DecoderLayer::linear).chain([&self.lm_head]).map(Linear::bytes).sum()
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
        self.read(embeds, &positions, |index, heads, q, k, v| {
            let (keys, values) = cache.append(index, &k, &v)?;
            if keys.dtype() == q.dtype() {
                return attention(&q, &keys, &values, heads, &AttentionMask::Causal);
            }
            // As the only branch: there, rounded keys and values are widened head by head, never all at once.
            let queries = q.dim(1)?;
            branched_attention(&q, None, &[Tail { keys, values, queries }], heads)
        })
    }

    /// Reads whole sequences at once, without a cache: what training needs. Layers whose weights are packed or changed
    /// remember their inputs alone, and nothing but their changes can learn.
    ///
    /// # Shapes
    /// embeds `[1, T, H]`, positions `[T]` (u32) → `[1, T, H]`, normalised
    pub fn forward_packed(&self, embeds: &Tensor, positions: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        if self.layers.iter().all(DecoderLayer::is_dense) {
            return self.read(embeds, positions, |_, heads, q, k, v| attention(&q, &k, &v, heads, mask));
        }
        let step = |x: Tensor, layer: &DecoderLayer| recomputed(layer, &x, &self.rotary, positions, mask);
        self.norm.forward(&self.layers.iter().try_fold(embeds.clone(), step)?)
    }

    /// Continues many sequences in one pass, each by as many new tokens as stand beside it: every weight
    /// is read once for all of them, and so is a prefix that sequences next to each other share. If it
    /// fails, some layers hold the new tokens and some do not, until they are truncated.
    ///
    /// # Shapes
    /// embeds `[1, T, H]`, the new tokens of one branch after those of the other, at least one each →
    /// `[1, T, H]`, normalised
    pub fn forward_branches(&self, embeds: &Tensor, branches: &mut [(&mut Branch, usize)]) -> Result<Tensor> {
        let places = branches.iter().flat_map(|(branch, new)| (0..*new).map(|i| (branch.len() + i) as u32));
        let positions = Tensor::from_iter(places, embeds.device())?;
        self.read(embeds, &positions, |index, heads, q, k, v| attend_branches(branches, index, heads, &q, &k, &v))
    }

    /// All layers, then the norm. `attend` gets the layer's number, the heads, and q, k, v of the new
    /// tokens, and says what they look at.
    fn read(
        &self,
        embeds: &Tensor,
        positions: &Tensor,
        mut attend: impl FnMut(usize, usize, Tensor, Tensor, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let step = |x: Tensor, (index, layer): (usize, &DecoderLayer)| {
            layer.forward(&x, &self.rotary, positions, |q, k, v| attend(index, layer.heads, q, k, v))
        };
        let x = self.layers.iter().enumerate().try_fold(embeds.clone(), step)?;
        self.norm.forward(&x)
    }

    /// In f32, whatever the layers compute in.
    ///
    /// # Shapes
    /// `[.., H]` → `[.., V]`
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(hidden)?.to_dtype(DType::F32)
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
            let attend = |q: Tensor, k: Tensor, v: Tensor| attention(&q, &k, &v, layer.heads, &AttentionMask::Causal);
            *x = layer.forward(x, &rotary, &positions, attend)?;
        }
    }
    let norm = RmsNorm::load(&model.at("norm"), width, config.rms_norm_eps)?;
    let lm_head = Linear::load_without_bias(&weights.at("lm_head"), width, vocab)?;
    Ok(states.iter().map(|x| lm_head.forward(&norm.forward(x)?)?.squeeze(0)).collect::<Result<_>>()?)
}

/// Attention, then a gated feed-forward part, each added to what came in.
#[derive(Clone, Debug)]
pub(crate) struct DecoderLayer {
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
    pub(crate) fn load(weights: &Weights, config: &LlamaConfig) -> WeightsResult<Self> {
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

    pub(crate) fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        positions: &Tensor,
        attend: impl FnOnce(Tensor, Tensor, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let seen = self.input_layernorm.forward(x)?;
        let q = rotary.forward(&self.q_proj.forward(&seen)?, self.heads, positions)?;
        let k = rotary.forward(&self.k_proj.forward(&seen)?, self.heads, positions)?;
        let v = self.v_proj.forward(&seen)?;
        let x = (x + self.o_proj.forward(&attend(q, k, v)?)?)?;
        &x + self.feed_forward(&self.post_attention_layernorm.forward(&x)?)?
    }

    pub(crate) fn heads(&self) -> usize {
        self.heads
    }

    fn linear(&self) -> [&Linear; 7] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, &self.gate_proj, &self.up_proj, &self.down_proj]
    }

    fn linear_mut(&mut self) -> [&mut Linear; 7] {
        let Self { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = self;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }

    /// Whether gradients can flow through all of its matrices.
    fn is_dense(&self) -> bool {
        self.linear().into_iter().all(Linear::is_dense)
    }

    /// The factors of all changes, one behind the other.
    ///
    /// # Shapes
    /// `[N]`
    pub(crate) fn factors(&self) -> Result<Tensor> {
        let changes = self.linear().into_iter().filter_map(Linear::change);
        let factors = changes.flat_map(|change| [&change.down, &change.up]).map(Tensor::flatten_all);
        match &factors.collect::<Result<Vec<_>>>()?[..] {
            [] => Tensor::zeros(0, DType::F32, &self.q_proj.device()),
            factors => Tensor::cat(factors, 0),
        }
    }

    /// The same layer with other [`Self::factors`].
    pub(crate) fn with_factors(&self, factors: &Tensor) -> Result<Self> {
        let (mut layer, mut at) = (self.clone(), 0);
        let mut next = |like: &Tensor| {
            let part = factors.narrow(0, at, like.elem_count())?.reshape(like.shape());
            at += like.elem_count();
            part
        };
        for linear in layer.linear_mut() {
            if let Some(change) = linear.change() {
                let change = LowRank { down: next(&change.down)?, up: next(&change.up)?, scale: change.scale };
                linear.set_change(change);
            }
        }
        Ok(layer)
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down_proj.forward(&swiglu(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?)
    }
}

/// Each branch remembers its new tokens; neighbours behind the same prefix then attend together.
fn attend_branches(
    branches: &mut [(&mut Branch, usize)],
    layer: usize,
    heads: usize,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<Tensor> {
    let mut tails = Vec::with_capacity(branches.len());
    let mut first = 0;
    for (branch, new) in branches.iter_mut() {
        let (k, v) = (k.narrow(1, first, *new)?, v.narrow(1, first, *new)?);
        let (keys, values) = branch.own_mut().append(layer, &k, &v)?;
        tails.push(Tail { keys, values, queries: *new });
        first += *new;
    }
    let mut attended = Vec::new();
    let (mut first, mut tails) = (0, &tails[..]);
    for beside in branches.chunk_by(|(a, _), (b, _)| a.is_beside(b)) {
        let (own, rest) = tails.split_at(beside.len());
        let queries = own.iter().map(|tail| tail.queries).sum();
        let prefix = beside[0].0.prefix().layer(layer)?;
        attended.push(branched_attention(&q.narrow(1, first, queries)?, prefix.as_ref(), own, heads)?);
        (first, tails) = (first + queries, rest);
    }
    Tensor::cat(&attended, 1)
}
