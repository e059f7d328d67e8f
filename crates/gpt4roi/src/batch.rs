//! Many sequences decoding together.

use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};

use crate::{
    generate::{FinishReason, GenerateError, Generation, Halt, Limits},
    kv_cache::{Branch, KvCache},
    llama::Llama,
    sampling::Sampler,
};

/// Sequences that advance by one token each with every [`Self::step`]. All go through the layers as the
/// rows of one matrix, so that a step reads each weight once however many they are; those added one
/// after the other behind the same prefix also read that once.
///
/// Sequences come and go between steps; the batch decides nothing about when. Each draws with a sampler
/// of its own and sees nothing of the others: whom it shares a batch with never changes what it says,
/// but for the rounding of sums in another order.
#[derive(Debug)]
pub struct DecodeBatch<'m> {
    llama: &'m Llama,
    /// Those behind the same prefix stand together.
    sequences: Vec<Sequence>,
    added: u64,
}

/// A sequence of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// What joins a batch: a prompt in two parts, and how to go on behind it.
#[derive(Debug)]
pub struct NewSequence {
    /// The beginning, read before and shared by reference; may be empty.
    pub prefix: Arc<KvCache>,
    /// The rest, which the next step reads: `[1, T, H]`, T at least 1.
    pub embeds: Tensor,
    /// Draws the tokens.
    pub sampler: Sampler,
    /// When to end; the model's positions may end it earlier.
    pub limits: Limits,
}

/// What a step did to one sequence.
#[derive(Debug)]
pub enum Event {
    /// It drew a token and goes on; never the end-of-sequence token.
    Token(u32),
    /// It ended, and has left the batch.
    Finished(Generation),
    /// Its numbers were none, and it has left the batch; the others are not concerned.
    Failed(GenerateError),
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    branch: Branch,
    /// The part of the prompt that was not read yet.
    unread: Option<Tensor>,
    sampler: Sampler,
    limits: Limits,
    ids: Vec<u32>,
    log_probabilities: Vec<f64>,
}

impl<'m> DecodeBatch<'m> {
    /// A batch without sequences.
    pub fn new(llama: &'m Llama) -> Self {
        Self { llama, sequences: Vec::new(), added: 0 }
    }

    /// Sequences that have not ended.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Bytes of the sequences' own keys and values; prefixes belong to whoever holds them.
    pub fn bytes(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.branch.own().bytes()).sum()
    }

    /// Adds a sequence; the next step reads its prompt, together with whatever else it reads.
    ///
    /// # Errors
    /// [`GenerateError::Prompt`] if nothing is to be read or the prompt has more tokens than the model
    /// positions.
    pub fn add(&mut self, new: NewSequence) -> Result<SequenceId, GenerateError> {
        let NewSequence { prefix, embeds, sampler, limits } = new;
        let unread = embeds.dim(1).map_err(|source| GenerateError::Tensor { step: 0, source })?;
        let (tokens, max) = (prefix.len() + unread, self.llama.max_positions());
        if unread == 0 || tokens > max {
            return Err(GenerateError::Prompt { tokens, unread, max });
        }
        let id = SequenceId(self.added);
        self.added += 1;
        // The last token is never read, so it needs no position.
        let max_new_tokens = limits.max_new_tokens.min(max - tokens + 1);
        let sequence = Sequence {
            id,
            branch: Branch::new(prefix),
            unread: Some(embeds),
            sampler,
            limits: Limits { max_new_tokens, ..limits },
            ids: Vec::new(),
            log_probabilities: Vec::new(),
        };
        let beside = self.sequences.iter().rposition(|other| other.branch.is_beside(&sequence.branch));
        self.sequences.insert(beside.map_or(self.sequences.len(), |place| place + 1), sequence);
        Ok(id)
    }

    /// Advances every sequence by one token; those whose limit is reached end instead. For each there
    /// is one event, in an order that means nothing.
    ///
    /// # Errors
    /// If the engine fails, which concerns no single sequence: all are then as they were before.
    pub fn step(&mut self) -> Result<Vec<(SequenceId, Event)>, GenerateError> {
        let logits = self.read()?;
        let mut logits = logits.iter();
        let mut events = Vec::with_capacity(self.sequences.len());
        self.sequences.retain_mut(|sequence| {
            let event = match sequence.is_full() {
                true => Event::Finished(sequence.end(FinishReason::Length)),
                false => sequence.draw(logits.next().map_or(&[], Vec::as_slice)),
            };
            let goes_on = matches!(event, Event::Token(_));
            events.push((sequence.id, event));
            goes_on
        });
        Ok(events)
    }

    /// Ends a sequence between two tokens; none if it is not in the batch (any more).
    pub fn end(&mut self, id: SequenceId, why: Halt) -> Option<Generation> {
        let place = self.sequences.iter().position(|sequence| sequence.id == id)?;
        let finish = match why {
            Halt::Stop => FinishReason::Stop,
            Halt::Cancel => FinishReason::Cancelled,
        };
        Some(self.sequences.remove(place).end(finish))
    }

    /// The logits `[V]` of the next token of each sequence that is not full.
    fn read(&mut self) -> Result<Vec<Vec<f32>>, GenerateError> {
        let mut going: Vec<_> = self.sequences.iter_mut().filter(|sequence| !sequence.is_full()).collect();
        let step = going.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
        if going.is_empty() {
            return Ok(Vec::new());
        }
        let before: Vec<_> = going.iter().map(|sequence| sequence.branch.own().len()).collect();
        let logits = read(self.llama, &mut going);
        for (sequence, length) in going.iter_mut().zip(before) {
            match &logits {
                Ok(_) => sequence.unread = None,
                Err(_) => sequence.branch.own_mut().truncate(length),
            }
        }
        logits.map_err(|source| GenerateError::Tensor { step, source })
    }
}

/// One pass over what each sequence has not read.
///
/// # Shapes
/// → N rows of logits `[V]`
fn read(llama: &Llama, sequences: &mut [&mut Sequence]) -> TensorResult<Vec<Vec<f32>>> {
    let unread = sequences.iter().map(|sequence| sequence.unread(llama)).collect::<TensorResult<Vec<_>>>()?;
    let tokens = unread.iter().map(|embeds| embeds.dim(1)).collect::<TensorResult<Vec<_>>>()?;
    let ends = tokens.iter().scan(0, |end, tokens| {
        *end += tokens;
        Some(*end as u32 - 1)
    });
    let last = Tensor::from_iter(ends, llama.device())?;
    let mut branches: Vec<_> = sequences.iter_mut().map(|sequence| &mut sequence.branch).zip(tokens).collect();
    let hidden = llama.forward_branches(&Tensor::cat(&unread, 1)?, &mut branches)?.squeeze(0)?;
    llama.logits(&hidden.index_select(&last, 0)?)?.to_vec2()
}

impl Sequence {
    fn is_full(&self) -> bool {
        self.ids.len() >= self.limits.max_new_tokens
    }

    /// # Shapes
    /// → `[1, T, H]`: the prompt's rest, or the last token
    fn unread(&self, llama: &Llama) -> TensorResult<Tensor> {
        match (&self.unread, self.ids.last()) {
            (None, Some(&token)) => llama.embed(&Tensor::new(&[token], llama.device())?)?.unsqueeze(0),
            (Some(embeds), _) => Ok(embeds.clone()),
            (None, None) => candle_core::bail!("a sequence whose prompt was read without drawing a token"),
        }
    }

    fn draw(&mut self, logits: &[f32]) -> Event {
        let choice = match self.sampler.sample(logits) {
            Ok(choice) => choice,
            Err(source) => return Event::Failed(GenerateError::Sampling { step: self.ids.len(), source }),
        };
        self.ids.push(choice.token);
        self.log_probabilities.push(choice.log_probability);
        if choice.token == self.limits.eos {
            return Event::Finished(self.end(FinishReason::Eos));
        }
        Event::Token(choice.token)
    }

    fn end(&mut self, finish: FinishReason) -> Generation {
        let (ids, log_probabilities) = (std::mem::take(&mut self.ids), std::mem::take(&mut self.log_probabilities));
        Generation { ids, log_probabilities, finish }
    }
}
