//! The work of a language model that `gpt4roi bench` measures.

use std::sync::Arc;

use candle_core::Tensor;
use gpt4roi::{
    batch::{DecodeBatch, NewSequence, Reading},
    config::LlamaConfig,
    cost::Cost,
    drafter::{DEFAULT_DRAFT, Told},
    generate::Limits,
    kv_cache::{Branch, KvCache},
    llama::Llama,
    sampling::{Sampler, Sampling},
    weights::Weights,
};

/// Tokens before an answer: a picture's 256 patches, and a question with what is said around it.
pub(crate) const CONTEXT: usize = 320;
/// Tokens of the question about one region.
const QUESTION: usize = 15;
/// Tokens of a caption.
pub(crate) const CAPTION: usize = 24;

/// A language model whose words mean nothing, since its weights do not.
pub(crate) struct LanguageModel {
    llama: Llama,
    config: LlamaConfig,
}

impl LanguageModel {
    pub(crate) fn load(weights: &Weights, config: &LlamaConfig) -> anyhow::Result<Self> {
        Ok(Self { llama: Llama::load(weights, config)?, config: config.clone() })
    }

    /// Reads a whole prompt, up to the logits behind it.
    pub(crate) fn prefill(&self) -> anyhow::Result<Tensor> {
        self.read(CONTEXT, &mut self.llama.new_cache())
    }

    pub(crate) fn prefill_cost(&self) -> Cost {
        Cost::language(&self.config, self.llama.bytes(), 0, CONTEXT, 1)
    }

    /// Keys and values of a prompt.
    pub(crate) fn context(&self) -> anyhow::Result<KvCache> {
        let mut cache = self.llama.new_cache();
        self.read(CONTEXT, &mut cache)?;
        Ok(cache)
    }

    /// Reads one token behind the prompt, and forgets it at the next call.
    pub(crate) fn decode(&self, context: &mut KvCache) -> anyhow::Result<Tensor> {
        context.truncate(CONTEXT);
        self.read(1, context)
    }

    /// Reads a draft along with one token behind the prompt, and forgets both at the next call.
    pub(crate) fn check_draft(&self, context: &mut KvCache) -> anyhow::Result<Tensor> {
        context.truncate(CONTEXT);
        let hidden = self.llama.forward(&self.embed(1 + DEFAULT_DRAFT)?, context)?;
        Ok(self.llama.logits(&hidden)?)
    }

    pub(crate) fn check_draft_cost(&self, context: &KvCache) -> Cost {
        Cost::language(&self.config, self.step_bytes(context), CONTEXT, 1 + DEFAULT_DRAFT, 1 + DEFAULT_DRAFT)
    }

    pub(crate) fn decode_cost(&self, context: &KvCache) -> Cost {
        Cost::language(&self.config, self.step_bytes(context), CONTEXT, 1, 1)
    }

    /// Reads a question about each of so many regions behind a common prompt, and answers all as one batch. No token
    /// ends an answer, so that all are equally long.
    pub(crate) fn captions(&self, prompt: &Arc<KvCache>, count: usize) -> anyhow::Result<()> {
        let mut batch = DecodeBatch::new(&self.llama);
        for _ in 0..count {
            batch.add(NewSequence {
                reading: Reading::new(Branch::new(prompt.clone()), self.embed(QUESTION)?),
                sampler: Sampler::new(&Sampling::Greedy)?,
                limits: Limits { eos: u32::MAX, max_new_tokens: CAPTION },
                told: Told::default(),
            })?;
        }
        while !batch.is_empty() {
            batch.step()?;
        }
        Ok(())
    }

    /// Every step reads the weights and the common prompt once, for all captions; what each has of its own is little.
    pub(crate) fn captions_cost(&self, prompt: &KvCache, count: usize) -> Cost {
        let behind = |own, tokens| Cost::language(&self.config, 0, CONTEXT + own, tokens, 1).operations;
        let answers: u64 = (0..CAPTION - 1).map(|own| behind(QUESTION + own, 1)).sum();
        let bytes = CAPTION * self.step_bytes(prompt);
        Cost { operations: count as u64 * (behind(0, QUESTION) + answers), bytes: bytes as u64 }
    }

    /// What a step reads: all weights, and the keys and values of the prompt.
    fn step_bytes(&self, context: &KvCache) -> usize {
        self.llama.bytes() + CONTEXT * context.bytes_per_token()
    }

    /// # Shapes
    /// → logits `[1, 1, V]` behind the last token
    fn read(&self, tokens: usize, cache: &mut KvCache) -> anyhow::Result<Tensor> {
        let hidden = self.llama.forward(&self.embed(tokens)?, cache)?;
        Ok(self.llama.logits(&hidden.narrow(1, tokens - 1, 1)?)?)
    }

    /// # Shapes
    /// → `[1, T, H]`
    fn embed(&self, tokens: usize) -> anyhow::Result<Tensor> {
        let ids = (0..tokens).map(|token| (7 * token % self.config.vocab_size) as u32);
        Ok(self.llama.embed(&Tensor::from_iter(ids, self.llama.device())?)?.unsqueeze(0)?)
    }
}

#[cfg(test)]
mod tests {
    use gpt4roi::{Config, random_weights::RandomWeights};

    use super::*;

    #[test]
    fn work_is_what_it_is_called() {
        let config = Config::nano(70).llama;
        let weights = Weights::new(Arc::new(RandomWeights::new(1)));
        let model = LanguageModel::load(&weights, &config).unwrap();
        assert_eq!(model.prefill().unwrap().dims(), [1, 1, 70]);
        let mut context = model.context().unwrap();
        let first: Vec<f32> = model.decode(&mut context).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(context.len(), CONTEXT + 1);
        let second: Vec<f32> = model.decode(&mut context).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!((context.len(), first), (CONTEXT + 1, second));
        assert_eq!(model.check_draft(&mut context).unwrap().dims(), [1, 1 + DEFAULT_DRAFT, 70]);
        assert_eq!(context.len(), CONTEXT + 1 + DEFAULT_DRAFT);
        model.captions(&Arc::new(model.context().unwrap()), 3).unwrap();
    }

    /// All captions together need the arithmetic of each, and read the weights as often as one.
    #[test]
    fn a_batch_shares_its_reading() {
        let weights = Weights::new(Arc::new(RandomWeights::new(1)));
        let model = LanguageModel::load(&weights, &Config::nano(70).llama).unwrap();
        let context = model.context().unwrap();
        let (one, many) = (model.captions_cost(&context, 1), model.captions_cost(&context, 16));
        assert_eq!((16 * one.operations, one.bytes), (many.operations, many.bytes));
        // 192·(4·192 + 3·512) weights in each of four layers, and 70 rows of 192, in four bytes each.
        assert_eq!(
            model.decode_cost(&context).bytes,
            4 * (4 * 192 * (4 * 192 + 3 * 512) + 70 * 192) + 4 * 4 * 2 * 192 * 320
        );
    }
}
