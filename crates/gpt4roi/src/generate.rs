//! The decoding loop, over ids alone.

use std::ops::ControlFlow;

use candle_core::{Result as TensorResult, Tensor};

use crate::{
    drafter::{Ahead, Draft, Drafter, Told},
    kv_cache::KvCache,
    llama::Llama,
    sampling::{Sampler, SamplingError},
};

/// Generation that can't go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The model's logits or the sampler's settings allow no token.
    #[error("token {step} of the answer: {source}")]
    Sampling {
        /// How many tokens had been generated.
        step: usize,
        /// What was wrong.
        source: SamplingError,
    },
    /// A prompt that can't be continued.
    #[error(
        "a sequence of {tokens} tokens, of which {unread} are to be read: expected at least 1 to be read and {max} in all at most"
    )]
    Prompt {
        /// Tokens of the prompt, those of a shared prefix included.
        tokens: usize,
        /// How many of them were not read yet.
        unread: usize,
        /// The model's positions.
        max: usize,
    },
    /// The tensor engine failed.
    #[error("token {step} of the answer: {source}")]
    Tensor {
        /// How many tokens had been generated.
        step: usize,
        /// Why.
        source: candle_core::Error,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model opened the next turn (`###`), or wrote a string that was to end the answer.
    Stop,
    /// The model wrote its end-of-sequence token.
    Eos,
    /// The limit of new tokens, or the context, was reached.
    Length,
    /// The caller wanted no more.
    Cancelled,
}

/// Why a caller ends a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The text is complete.
    Stop,
    /// Nobody wants the rest.
    Cancel,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Every token drawn, the last one included, whatever ended the generation.
    pub ids: Vec<u32>,
    /// For each of them, the logarithm of its probability by the model itself.
    pub log_probabilities: Vec<f64>,
    /// How many of the tokens came as drafted, so that the network was not run for each of them.
    pub drafted: usize,
    /// Why it ended.
    pub finish: FinishReason,
}

/// When a generation ends of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The end-of-sequence token.
    pub eos: u32,
    /// Tokens at most.
    pub max_new_tokens: usize,
}

/// A language model that stands behind a prompt. The loop needs no more of it, and tests put a
/// scripted one in its place.
pub trait Decoder {
    /// Reads the prompt.
    ///
    /// # Shapes
    /// → logits `[V]` of the first new token
    fn prefill(&mut self) -> TensorResult<Vec<f32>>;

    /// Reads one more token.
    ///
    /// # Shapes
    /// → logits `[V]` of the token behind it
    fn step(&mut self, token: u32) -> TensorResult<Vec<f32>>;

    /// How many tokens came as drafted, where drafts are read along.
    fn drafted(&self) -> usize {
        0
    }
}

/// Draws token after token. `on_token` sees each as it comes (an end-of-sequence token is not shown)
/// and decides whether to go on: only a caller knows what the ids read like.
///
/// # Errors
/// If the engine fails, or if a logit is no number.
pub fn generate(
    decoder: &mut impl Decoder,
    sampler: &mut Sampler,
    limits: Limits,
    mut on_token: impl FnMut(u32) -> ControlFlow<Halt>,
) -> Result<Generation, GenerateError> {
    let (mut ids, mut log_probabilities) = (Vec::new(), Vec::new());
    let finish = loop {
        let step = ids.len();
        if step >= limits.max_new_tokens {
            break FinishReason::Length;
        }
        let logits = match ids.last() {
            None => decoder.prefill(),
            Some(&token) => decoder.step(token),
        };
        let logits = logits.map_err(|source| GenerateError::Tensor { step, source })?;
        let choice = sampler.sample(&logits).map_err(|source| GenerateError::Sampling { step, source })?;
        ids.push(choice.token);
        log_probabilities.push(choice.log_probability);
        if choice.token == limits.eos {
            break FinishReason::Eos;
        }
        match on_token(choice.token) {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(Halt::Stop) => break FinishReason::Stop,
            ControlFlow::Break(Halt::Cancel) => break FinishReason::Cancelled,
        }
    };
    Ok(Generation { ids, log_probabilities, drafted: decoder.drafted(), finish })
}

/// LLaMA with a cache and the embeddings that come behind what the cache holds.
#[derive(Debug)]
pub struct LlamaDecoder<'a> {
    /// The language model.
    pub llama: &'a Llama,
    /// Keys and values of everything read; grows by the prompt and each token stepped over.
    pub cache: &'a mut KvCache,
    /// The part of the prompt that the cache does not hold: `[1, T, H]`, T at least 1.
    pub embeds: &'a Tensor,
}

impl LlamaDecoder<'_> {
    /// # Shapes
    /// embeds `[1, T, H]` → logits `[V]` behind each of the last `count` tokens
    fn read(&mut self, embeds: &Tensor, count: usize) -> TensorResult<Vec<Vec<f32>>> {
        let hidden = self.llama.forward(embeds, self.cache)?.squeeze(0)?;
        let last = hidden.narrow(0, hidden.dim(0)? - count, count)?;
        self.llama.logits(&last)?.to_vec2()
    }

    fn read_tokens(&mut self, tokens: &[u32]) -> TensorResult<Vec<Vec<f32>>> {
        let ids = Tensor::from_slice(tokens, tokens.len(), self.embeds.device())?;
        self.read(&self.llama.embed(&ids)?.unsqueeze(0)?, tokens.len())
    }
}

impl Decoder for LlamaDecoder<'_> {
    fn prefill(&mut self) -> TensorResult<Vec<f32>> {
        only(self.read(self.embeds, 1)?)
    }

    fn step(&mut self, token: u32) -> TensorResult<Vec<f32>> {
        only(self.read_tokens(&[token])?)
    }
}

fn only(mut logits: Vec<Vec<f32>>) -> TensorResult<Vec<f32>> {
    match logits.pop() {
        Some(first) => Ok(first),
        None => candle_core::bail!("no logits behind what was read"),
    }
}

/// The same, with a draft of the next tokens read along with each that was drawn.
#[derive(Debug)]
pub(crate) struct DraftingDecoder<'a> {
    /// Behind an answer, its cache may hold what was drafted in vain.
    decoder: LlamaDecoder<'a>,
    /// None drafts nothing.
    drafter: Option<&'a Drafter>,
    /// Tokens of a draft at most.
    most: usize,
    told: Told,
    ahead: Ahead,
    drafted: usize,
}

impl<'a> DraftingDecoder<'a> {
    pub(crate) fn new(decoder: LlamaDecoder<'a>, drafter: Option<&'a Drafter>, told: Told, most: usize) -> Self {
        Self { decoder, drafter, most, told, ahead: Ahead::default(), drafted: 0 }
    }

    /// An answer's last token is not read any more, but learned.
    pub(crate) fn conclude(mut self, last: Option<&u32>) {
        last.into_iter().for_each(|&token| self.hear(token));
    }

    fn hear(&mut self, token: u32) {
        if let Some(drafter) = self.drafter {
            drafter.hear(&mut self.told, token);
        }
    }
}

impl Decoder for DraftingDecoder<'_> {
    fn prefill(&mut self) -> TensorResult<Vec<f32>> {
        self.decoder.prefill()
    }

    fn step(&mut self, token: u32) -> TensorResult<Vec<f32>> {
        self.hear(token);
        if let Some(logits) = self.ahead.behind(token) {
            self.drafted += 1;
            return Ok(logits);
        }
        let LlamaDecoder { llama, cache, .. } = &mut self.decoder;
        cache.truncate(cache.len() - self.ahead.len());
        let room = llama.max_positions().saturating_sub(cache.len() + 1);
        let draft = match self.drafter {
            Some(drafter) => drafter.draft(&mut self.told, self.most.min(room), llama.vocabulary())?,
            None => Draft::new(),
        };
        let tokens: Vec<u32> = [token].into_iter().chain(draft.iter().copied()).collect();
        let mut logits = self.decoder.read_tokens(&tokens)?.into_iter();
        let first = logits.next().into_iter().collect();
        self.ahead = Ahead::new(draft, logits);
        only(first)
    }

    fn drafted(&self) -> usize {
        self.drafted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Sampling;

    const EOS: u32 = 2;

    /// Says its script, whatever it reads, and notes what it read.
    struct Scripted {
        script: Vec<u32>,
        read: Vec<Option<u32>>,
    }

    impl Scripted {
        fn new(script: &[u32]) -> Self {
            Self { script: script.to_vec(), read: Vec::new() }
        }

        fn next(&mut self, token: Option<u32>) -> TensorResult<Vec<f32>> {
            let Some(&wanted) = self.script.get(self.read.len()) else { candle_core::bail!("the script is over") };
            self.read.push(token);
            // Token 99 stands for a model that broke.
            Ok((0..10).map(|id| if wanted == 99 { f32::NAN } else { f32::from(u8::from(id == wanted)) }).collect())
        }
    }

    impl Decoder for Scripted {
        fn prefill(&mut self) -> TensorResult<Vec<f32>> {
            self.next(None)
        }
        fn step(&mut self, token: u32) -> TensorResult<Vec<f32>> {
            self.next(Some(token))
        }
    }

    fn run(
        model: &mut Scripted,
        max_new_tokens: usize,
        on_token: impl FnMut(u32) -> ControlFlow<Halt>,
    ) -> Result<Generation, GenerateError> {
        let mut sampler = Sampler::new(&Sampling::Greedy).unwrap();
        generate(model, &mut sampler, Limits { eos: EOS, max_new_tokens }, on_token)
    }

    #[test]
    fn every_way_to_end() {
        struct Case {
            script: &'static [u32],
            max: usize,
            /// The caller breaks at this token.
            halt: Option<(u32, Halt)>,
            ids: &'static [u32],
            shown: &'static [u32],
            finish: FinishReason,
        }
        use FinishReason::{Cancelled, Eos, Length, Stop};
        let cases = [
            Case { script: &[5, 6, EOS, 7], max: 9, halt: None, ids: &[5, 6, EOS], shown: &[5, 6], finish: Eos },
            Case { script: &[EOS], max: 9, halt: None, ids: &[EOS], shown: &[], finish: Eos },
            Case { script: &[5, 6, 7], max: 2, halt: None, ids: &[5, 6], shown: &[5, 6], finish: Length },
            Case { script: &[], max: 0, halt: None, ids: &[], shown: &[], finish: Length },
            Case {
                script: &[5, 6, 7],
                max: 9,
                halt: Some((6, Halt::Stop)),
                ids: &[5, 6],
                shown: &[5, 6],
                finish: Stop,
            },
            Case { script: &[5, 6], max: 9, halt: Some((5, Halt::Cancel)), ids: &[5], shown: &[5], finish: Cancelled },
            // At the limit the caller's word counts: the text is complete all the same.
            Case { script: &[5, 6], max: 2, halt: Some((6, Halt::Stop)), ids: &[5, 6], shown: &[5, 6], finish: Stop },
        ];
        for Case { script, max, halt, ids, shown, finish } in cases {
            let (mut model, mut seen) = (Scripted::new(script), Vec::new());
            let generation = run(&mut model, max, |token| {
                seen.push(token);
                match halt {
                    Some((at, why)) if at == token => ControlFlow::Break(why),
                    _ => ControlFlow::Continue(()),
                }
            })
            .unwrap();
            assert_eq!((&generation.ids[..], generation.finish), (ids, finish), "{script:?}");
            assert_eq!(generation.log_probabilities.len(), ids.len());
            assert_eq!(seen, shown, "{script:?}");
        }
    }

    #[test]
    fn each_token_is_read_once_and_the_last_never() {
        let mut model = Scripted::new(&[4, 5, 6, EOS]);
        run(&mut model, 9, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(model.read, [None, Some(4), Some(5), Some(6)]);
    }

    #[test]
    fn a_broken_model_ends_the_answer_with_an_error_that_says_where() {
        let mut seen = Vec::new();
        let error = run(&mut Scripted::new(&[4, 5, 99, 6]), 9, |token| {
            seen.push(token);
            ControlFlow::Continue(())
        })
        .unwrap_err();
        assert_eq!(seen, [4, 5]);
        assert_eq!(error.to_string(), "token 2 of the answer: the logit of token 0 is NaN, expected a finite number");
        let error = run(&mut Scripted::new(&[4]), 9, |_| ControlFlow::Continue(())).unwrap_err();
        // The engine may add a stack trace.
        assert!(error.to_string().starts_with("token 1 of the answer: the script is over"), "{error}");
    }
}
