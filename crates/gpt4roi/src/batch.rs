//! Many sequences decoding together.

use candle_core::{Result as TensorResult, Tensor};

use crate::{
    drafter::{Ahead, Draft, Drafter, Told},
    generate::{FinishReason, GenerateError, Generation, Halt, Limits},
    kv_cache::Branch,
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
///
/// While they are few, drafts of what comes next can be read along ([`Self::drafting`]); as long as a step can be taken
/// from what was read ahead, none of them is read on.
#[derive(Debug)]
pub struct DecodeBatch<'m> {
    llama: &'m Llama,
    drafting: Option<Drafting>,
    /// Those behind the same prefix stand together.
    sequences: Vec<Sequence>,
    added: u64,
}

/// By what, and how far ahead.
#[derive(Debug)]
struct Drafting {
    drafter: Drafter,
    most: usize,
}

/// A sequence of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// A prompt on its way into the model: a branch that holds what was read of it, and the rest.
#[derive(Clone, Debug)]
pub struct Reading {
    branch: Branch,
    unread: Tensor, // [1, T, H]
}

impl Reading {
    /// What the branch holds was read; `unread` follows it.
    ///
    /// # Shapes
    /// unread `[1, T, H]`
    pub fn new(branch: Branch, unread: Tensor) -> Self {
        Self { branch, unread }
    }

    /// The same unread tokens behind another branch.
    pub fn behind(self, branch: Branch) -> Self {
        Self { branch, ..self }
    }

    /// What was read.
    pub fn branch(&self) -> &Branch {
        &self.branch
    }

    /// How many tokens were not read yet.
    pub fn unread(&self) -> usize {
        self.unread.dims().get(1).copied().unwrap_or(0)
    }

    /// Reads on by at most so many tokens: a long prompt in pieces, between which others get their turn.
    ///
    /// # Errors
    /// If the engine fails; nothing more is then read than before.
    pub fn read(&mut self, llama: &Llama, most: usize) -> Result<(), GenerateError> {
        let (now, length) = (self.unread().min(most), self.branch.own().len());
        if now == 0 {
            return Ok(());
        }
        match self.advance(llama, now) {
            Ok(rest) => self.unread = rest,
            Err(source) => {
                self.branch.own_mut().truncate(length);
                return Err(GenerateError::Tensor { step: 0, source });
            }
        }
        Ok(())
    }

    /// Reads so many tokens.
    ///
    /// # Shapes
    /// → `[1, rest, H]`, what is left
    fn advance(&mut self, llama: &Llama, tokens: usize) -> TensorResult<Tensor> {
        llama.forward_branches(&self.unread.narrow(1, 0, tokens)?, &mut [(&mut self.branch, tokens)])?;
        self.unread.narrow(1, tokens, self.unread.dim(1)? - tokens)
    }

    /// What holds the tokens that were read, and those that were not.
    ///
    /// # Shapes
    /// → unread `[1, T, H]`
    pub(crate) fn into_parts(self) -> (Branch, Tensor) {
        (self.branch, self.unread)
    }
}

/// What joins a batch: a prompt, and how to go on behind it.
#[derive(Debug)]
pub struct NewSequence {
    /// The prompt; the next step reads what is unread of it, at least one token.
    pub reading: Reading,
    /// Draws the tokens.
    pub sampler: Sampler,
    /// When to end; the model's positions may end it earlier.
    pub limits: Limits,
    /// What drafts begin behind: the prompt.
    pub told: Told,
}

/// What a step did to one sequence.
#[derive(Debug)]
pub enum Event {
    /// It drew a token and goes on; never the end-of-sequence token.
    Token(u32),
    /// It ended, and has left the batch.
    Finished(Ended),
    /// Its numbers were none, and it has left the batch; the others are not concerned.
    Failed(GenerateError),
}

/// A sequence that has left its batch.
#[derive(Debug)]
pub struct Ended {
    /// What it said.
    pub generation: Generation,
    /// What was read of it: the prompt, and what it said but for the last token.
    pub branch: Branch,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    branch: Branch,
    /// Tokens of the prompt that belong to the branch.
    prompt: usize,
    /// The part of the prompt that was not read yet.
    unread: Option<Tensor>,
    /// What the next token is drawn from, once it was read.
    logits: Option<Vec<f32>>,
    /// What was read behind it.
    ahead: Ahead,
    told: Told,
    sampler: Sampler,
    limits: Limits,
    ids: Vec<u32>,
    log_probabilities: Vec<f64>,
    /// How many of the ids came as drafted.
    drafted: usize,
}

impl<'m> DecodeBatch<'m> {
    /// A batch without sequences.
    pub fn new(llama: &'m Llama) -> Self {
        Self { llama, drafting: None, sequences: Vec::new(), added: 0 }
    }

    /// Reads drafts along, of so many tokens for each sequence at most. A drafter that others use, too, drafts by what
    /// it learns from them.
    pub fn drafting(self, drafter: Drafter, most: usize) -> Self {
        let drafting = (most > 0).then_some(Drafting { drafter, most });
        Self { drafting, ..self }
    }

    /// By what it drafts, if it does.
    pub fn drafter(&self) -> Option<&Drafter> {
        self.drafting.as_ref().map(|drafting| &drafting.drafter)
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
        let NewSequence { reading, sampler, limits, told } = new;
        let unread = reading.unread();
        let Reading { branch, unread: embeds } = reading;
        let (tokens, max) = (branch.len() + unread, self.llama.max_positions());
        if unread == 0 || tokens > max {
            return Err(GenerateError::Prompt { tokens, unread, max });
        }
        let id = SequenceId(self.added);
        self.added += 1;
        // The last token is never read, so it needs no position.
        let max_new_tokens = limits.max_new_tokens.min(max - tokens + 1);
        let sequence = Sequence {
            id,
            prompt: branch.own().len() + unread,
            branch,
            unread: Some(embeds),
            logits: None,
            ahead: Ahead::default(),
            told,
            sampler,
            limits: Limits { max_new_tokens, ..limits },
            ids: Vec::new(),
            log_probabilities: Vec::new(),
            drafted: 0,
        };
        let beside = self.sequences.iter().rposition(|other| other.branch.is_beside(&sequence.branch));
        self.sequences.insert(beside.map_or(self.sequences.len(), |place| place + 1), sequence);
        Ok(id)
    }

    /// Advances every sequence by one token; those whose limit is reached end instead. For each there
    /// is one event, in an order that means nothing. Where some have read ahead, these advance, and the others wait.
    ///
    /// # Errors
    /// If the engine fails, which concerns no single sequence: all are then as they were before.
    pub fn step(&mut self) -> Result<Vec<(SequenceId, Event)>, GenerateError> {
        if self.sequences.iter().all(|sequence| sequence.is_full() || sequence.logits.is_none()) {
            self.read()?;
        }
        let drafter = self.drafting.as_ref().map(|drafting| &drafting.drafter);
        let mut events = Vec::with_capacity(self.sequences.len());
        self.sequences.retain_mut(|sequence| {
            let event = match sequence.logits.take() {
                _ if sequence.is_full() => Event::Finished(sequence.end(FinishReason::Length)),
                Some(logits) => sequence.draw(&logits, drafter),
                None => return true,
            };
            let goes_on = matches!(event, Event::Token(_));
            events.push((sequence.id, event));
            goes_on
        });
        Ok(events)
    }

    /// Ends a sequence between two tokens; none if it is not in the batch (any more).
    pub fn end(&mut self, id: SequenceId, why: Halt) -> Option<Ended> {
        let place = self.sequences.iter().position(|sequence| sequence.id == id)?;
        let finish = match why {
            Halt::Stop => FinishReason::Stop,
            Halt::Cancel => FinishReason::Cancelled,
        };
        Some(self.sequences.remove(place).end(finish))
    }

    /// Reads on in each sequence that is not full.
    fn read(&mut self) -> Result<(), GenerateError> {
        let mut going: Vec<_> = self.sequences.iter_mut().filter(|sequence| !sequence.is_full()).collect();
        let step = going.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
        if going.is_empty() {
            return Ok(());
        }
        let drafts = match &self.drafting {
            Some(drafting) => drafting.drafts(&mut going, self.llama.vocabulary()),
            None => Ok(vec![Draft::new(); going.len()]),
        };
        let drafts = drafts.map_err(|source| GenerateError::Tensor { step, source })?;
        let before: Vec<_> = going.iter().map(|sequence| sequence.branch.own().len()).collect();
        match read(self.llama, &mut going, &drafts) {
            Ok(logits) => {
                let mut logits = logits.into_iter();
                for (sequence, draft) in going.into_iter().zip(drafts) {
                    sequence.unread = None;
                    sequence.logits = logits.next();
                    let count = draft.len();
                    sequence.ahead = Ahead::new(draft, logits.by_ref().take(count));
                }
                Ok(())
            }
            Err(source) => {
                going.into_iter().zip(before).for_each(|(sequence, length)| sequence.branch.own_mut().truncate(length));
                Err(GenerateError::Tensor { step, source })
            }
        }
    }
}

impl Drafting {
    /// Tokens that are read together for little more than one.
    const FEW: usize = 8;

    /// A draft for each sequence, as far as all of them together are few; none that reaches behind its limit.
    fn drafts(&self, sequences: &mut [&mut Sequence], vocabulary: usize) -> TensorResult<Vec<Draft>> {
        let unread: usize = sequences.iter().map(|sequence| sequence.unread_tokens()).sum();
        let each = self.most.min(Self::FEW.saturating_sub(unread) / sequences.len());
        let draft = |sequence: &mut &mut Sequence| match sequence.unread {
            Some(_) => Ok(Draft::new()),
            None => {
                let most = each.min(sequence.tokens_left() - 1);
                self.drafter.draft(&mut sequence.told, most, vocabulary)
            }
        };
        sequences.iter_mut().map(draft).collect()
    }
}

/// One pass over what each sequence has not read, and its draft.
///
/// # Shapes
/// → rows of logits `[V]`: for each sequence the one behind what it had not read, and one behind each token of its draft
fn read(llama: &Llama, sequences: &mut [&mut Sequence], drafts: &[Draft]) -> TensorResult<Vec<Vec<f32>>> {
    let unread = sequences.iter().zip(drafts).map(|(sequence, draft)| sequence.unread(llama, draft));
    let unread = unread.collect::<TensorResult<Vec<_>>>()?;
    let tokens = unread.iter().map(|embeds| embeds.dim(1)).collect::<TensorResult<Vec<_>>>()?;
    let mut end = 0;
    let wanted = tokens.iter().zip(drafts).flat_map(|(tokens, draft)| {
        end += *tokens as u32;
        end - 1 - draft.len() as u32..end
    });
    let wanted = Tensor::from_iter(wanted.collect::<Vec<_>>(), llama.device())?;
    let mut branches: Vec<_> = sequences.iter_mut().map(|sequence| &mut sequence.branch).zip(tokens).collect();
    let hidden = llama.forward_branches(&Tensor::cat(&unread, 1)?, &mut branches)?.squeeze(0)?;
    llama.logits(&hidden.index_select(&wanted, 0)?)?.to_vec2()
}

impl Sequence {
    fn is_full(&self) -> bool {
        self.tokens_left() == 0
    }

    fn tokens_left(&self) -> usize {
        self.limits.max_new_tokens.saturating_sub(self.ids.len())
    }

    /// Of the prompt, or behind it the one that was drawn last.
    fn unread_tokens(&self) -> usize {
        self.unread.as_ref().map_or(1, |embeds| embeds.dims()[1])
    }

    /// # Shapes
    /// → `[1, T, H]`
    fn unread(&self, llama: &Llama, draft: &Draft) -> TensorResult<Tensor> {
        match (&self.unread, self.ids.last()) {
            (Some(embeds), _) => Ok(embeds.clone()),
            (None, Some(&token)) => {
                let tokens = Tensor::from_iter([token].into_iter().chain(draft.iter().copied()), llama.device())?;
                llama.embed(&tokens)?.unsqueeze(0)
            }
            (None, None) => candle_core::bail!("a sequence whose prompt was read without drawing a token"),
        }
    }

    fn draw(&mut self, logits: &[f32], drafter: Option<&Drafter>) -> Event {
        let choice = match self.sampler.sample(logits) {
            Ok(choice) => choice,
            Err(source) => return Event::Failed(GenerateError::Sampling { step: self.ids.len(), source }),
        };
        self.ids.push(choice.token);
        self.log_probabilities.push(choice.log_probability);
        if let Some(drafter) = drafter {
            drafter.hear(&mut self.told, choice.token);
        }
        if choice.token == self.limits.eos {
            return Event::Finished(self.end(FinishReason::Eos));
        }
        self.logits = self.ahead.behind(choice.token);
        match self.logits {
            Some(_) => self.drafted += 1,
            None => self.forget_drafts(),
        }
        Event::Token(choice.token)
    }

    /// What was read is then the prompt, and what was said but for the last token.
    fn forget_drafts(&mut self) {
        self.ahead = Ahead::default();
        let said = self.ids.len().saturating_sub(1);
        self.branch.own_mut().truncate(self.prompt + said);
    }

    fn end(&mut self, finish: FinishReason) -> Ended {
        self.forget_drafts();
        let (ids, log_probabilities) = (std::mem::take(&mut self.ids), std::mem::take(&mut self.log_probabilities));
        let generation = Generation { ids, log_probabilities, drafted: self.drafted, finish };
        Ended { generation, branch: self.branch.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::{ops::ControlFlow, sync::Arc};

    use super::*;
    use crate::{
        generate::{LlamaDecoder, generate},
        kv_cache::KvCache,
        model::Gpt4Roi,
        sampling::{Sampling, SamplingError},
        tiny::tiny,
    };

    const NEVER: u32 = u32::MAX;

    /// A prompt of so many tokens, which `seed` chooses.
    fn prompt(model: &Gpt4Roi, tokens: usize, seed: u32) -> Tensor {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| 5 + (seed * 31 + i * 17) % 700).collect();
        model.network.llama.embed(&Tensor::new(ids, &model.device).unwrap()).unwrap().unsqueeze(0).unwrap()
    }

    fn read(model: &Gpt4Roi, embeds: &Tensor) -> Arc<KvCache> {
        let mut cache = model.network.llama.new_cache();
        model.network.llama.forward(embeds, &mut cache).unwrap();
        Arc::new(cache)
    }

    fn limits(max_new_tokens: usize) -> Limits {
        Limits { eos: NEVER, max_new_tokens }
    }

    /// What the same sequence comes to without a batch.
    fn alone(model: &Gpt4Roi, embeds: &Tensor, sampling: &Sampling, limits: Limits) -> Generation {
        let mut cache = model.network.llama.new_cache();
        let mut decoder = LlamaDecoder { llama: &model.network.llama, cache: &mut cache, embeds };
        let mut sampler = Sampler::new(sampling).unwrap();
        generate(&mut decoder, &mut sampler, limits, |_| ControlFlow::Continue(())).unwrap()
    }

    fn sequence(prefix: &Arc<KvCache>, embeds: &Tensor, sampling: &Sampling, limits: Limits) -> NewSequence {
        let sampler = Sampler::new(sampling).unwrap();
        NewSequence {
            reading: Reading::new(Branch::new(prefix.clone()), embeds.clone()),
            sampler,
            limits,
            told: Told::default(),
        }
    }

    /// Steps until all have ended, and returns how each did, by id.
    fn run(batch: &mut DecodeBatch<'_>) -> Vec<(SequenceId, Result<Generation, GenerateError>)> {
        let mut ended = Vec::new();
        while !batch.is_empty() {
            for (id, event) in batch.step().unwrap() {
                match event {
                    Event::Token(token) => assert_ne!(token, NEVER),
                    Event::Finished(end) => ended.push((id, Ok(end.generation))),
                    Event::Failed(error) => ended.push((id, Err(error))),
                }
            }
        }
        ended.sort_by_key(|(id, _)| *id);
        ended
    }

    #[track_caller]
    fn assert_same(got: &Generation, expected: &Generation) {
        assert_eq!((&got.ids, got.finish), (&expected.ids, expected.finish));
        for (got, expected) in got.log_probabilities.iter().zip(&expected.log_probabilities) {
            assert!((got - expected).abs() < 1e-4, "{got} {expected}");
        }
    }

    /// Two prefixes and none, prompts and answers of many lengths, greedy and not, joining at different
    /// times.
    #[test]
    fn every_sequence_says_what_it_would_say_alone() {
        let model = tiny();
        let none = Arc::new(model.network.llama.new_cache());
        let beginnings = [prompt(&model, 40, 1), prompt(&model, 23, 2)];
        let prefixes = beginnings.each_ref().map(|embeds| read(&model, embeds));
        let drawn = Sampling::Random { temperature: 2.0, top_k: 0, top_p: 1.0, seed: 7 };
        let mut batch = DecodeBatch::new(&model.network.llama);
        let (mut expected, mut ended) = (Vec::new(), Vec::new());
        for i in 0..9 {
            let rest = prompt(&model, 1 + i % 4, 10 + i as u32);
            let sampling = if i % 2 == 0 { &Sampling::Greedy } else { &drawn };
            let (prefix, whole) = match i % 3 {
                2 => (&none, rest.clone()),
                k => (&prefixes[k], Tensor::cat(&[&beginnings[k], &rest], 1).unwrap()),
            };
            let limits = limits(3 + 5 * (i % 5));
            let id = batch.add(sequence(prefix, &rest, sampling, limits)).unwrap();
            expected.push((id, alone(&model, &whole, sampling, limits)));
            if i % 4 == 3 {
                for (id, event) in batch.step().unwrap() {
                    if let Event::Finished(end) = event {
                        ended.push((id, Ok(end.generation)));
                    }
                }
            }
        }
        ended.extend(run(&mut batch));
        ended.sort_by_key(|(id, _)| *id);
        assert_eq!(ended.len(), expected.len());
        for ((id, got), (expected_id, expected)) in ended.into_iter().zip(expected) {
            assert_eq!(id, expected_id);
            assert_same(&got.unwrap(), &expected);
        }
        assert_eq!(batch.bytes(), 0);
    }

    #[test]
    fn sequences_end_each_in_its_own_way() {
        let model = tiny();
        let none = Arc::new(model.network.llama.new_cache());
        let embeds = prompt(&model, 6, 3);
        let whole = alone(&model, &embeds, &Sampling::Greedy, limits(8));
        // A token that the model says for the first time at this place.
        let place = (1..8).find(|&i| !whole.ids[..i].contains(&whole.ids[i])).unwrap();
        let eos = whole.ids[place];

        let mut batch = DecodeBatch::new(&model.network.llama);
        let mut add = |eos, max_new_tokens| {
            batch.add(sequence(&none, &embeds, &Sampling::Greedy, Limits { eos, max_new_tokens })).unwrap()
        };
        let (to_eos, to_limit, nothing) = (add(eos, 8), add(NEVER, 2), add(NEVER, 0));
        let (stopped, cancelled) = (add(NEVER, 8), add(NEVER, 8));
        batch.step().unwrap();
        let stop = batch.end(stopped, Halt::Stop).unwrap().generation;
        let cancel = batch.end(cancelled, Halt::Cancel).unwrap().generation;
        assert_eq!((&stop.ids[..], stop.finish), (&whole.ids[..1], FinishReason::Stop));
        assert_eq!((&cancel.ids[..], cancel.finish), (&whole.ids[..1], FinishReason::Cancelled));
        assert!(batch.end(stopped, Halt::Stop).is_none() && batch.end(nothing, Halt::Stop).is_none());

        let ended = run(&mut batch);
        let ended: Vec<_> = ended.into_iter().map(|(id, generation)| (id, generation.unwrap())).collect();
        let [(first, eos), (second, limit)] = &ended[..] else { panic!("{ended:?}") };
        assert_eq!((*first, &eos.ids[..], eos.finish), (to_eos, &whole.ids[..=place], FinishReason::Eos));
        assert_eq!((*second, &limit.ids[..], limit.finish), (to_limit, &whole.ids[..2], FinishReason::Length));
    }

    #[test]
    fn a_broken_sequence_takes_no_other_along() {
        let model = tiny();
        let prefix = read(&model, &prompt(&model, 12, 1));
        let (whole, broken) = (prompt(&model, 3, 2), prompt(&model, 3, 2).affine(f64::NAN, 0.0).unwrap());
        let mut batch = DecodeBatch::new(&model.network.llama);
        let ids = [&whole, &broken, &whole]
            .map(|embeds| batch.add(sequence(&prefix, embeds, &Sampling::Greedy, limits(5))).unwrap());
        let mut ended = run(&mut batch).into_iter();
        let mut next = |expected: SequenceId| ended.next().filter(|(id, _)| *id == expected).unwrap().1;
        let first = next(ids[0]).unwrap();
        let error = next(ids[1]).unwrap_err();
        let not_finite = |source: &SamplingError| matches!(source, SamplingError::NotFinite { .. });
        assert!(matches!(&error, GenerateError::Sampling { step: 0, source } if not_finite(source)), "{error}");
        assert_eq!(next(ids[2]).unwrap(), first);
        assert_eq!(first.ids.len(), 5);
    }

    #[test]
    fn prompts_that_do_not_fit_are_refused_and_answers_end_with_the_positions() {
        let model = tiny();
        let llama = &model.network.llama;
        let max = llama.max_positions();
        let prefix = read(&model, &prompt(&model, max - 3, 1));
        let mut batch = DecodeBatch::new(llama);
        for tokens in [0, 4] {
            let rest = prompt(&model, 4, 2).narrow(1, 0, tokens).unwrap();
            let error = batch.add(sequence(&prefix, &rest, &Sampling::Greedy, limits(9))).unwrap_err();
            assert!(matches!(error, GenerateError::Prompt { unread, .. } if unread == tokens), "{error}");
        }
        batch.add(sequence(&prefix, &prompt(&model, 2, 2), &Sampling::Greedy, limits(9))).unwrap();
        // The prompt leaves one position; the token at it is read, and one more is drawn behind it.
        let ended = run(&mut batch);
        assert_eq!(ended[0].1.as_ref().unwrap().ids.len(), 2);
    }

    #[test]
    fn a_step_that_fails_can_be_repeated() {
        let model = tiny();
        let prefix = read(&model, &prompt(&model, 12, 1));
        let rest = prompt(&model, 3, 2);
        let mut batch = DecodeBatch::new(&model.network.llama);
        let id = batch.add(sequence(&prefix, &rest, &Sampling::Greedy, limits(4))).unwrap();
        let misfit = Tensor::zeros((1, 2, 5), rest.dtype(), &model.device).unwrap();
        let wrong = batch.add(sequence(&prefix, &misfit, &Sampling::Greedy, limits(4))).unwrap();
        assert!(matches!(batch.step(), Err(GenerateError::Tensor { .. })));
        batch.end(wrong, Halt::Cancel).unwrap();
        let ended = run(&mut batch);
        let whole = Tensor::cat(&[&prompt(&model, 12, 1), &rest], 1).unwrap();
        assert_eq!(ended[0].0, id);
        assert_same(ended[0].1.as_ref().unwrap(), &alone(&model, &whole, &Sampling::Greedy, limits(4)));
    }

    fn told(tokens: &[u32]) -> Told {
        let mut told = Told::default();
        tokens.iter().for_each(|&token| told.push(token));
        told
    }

    /// A drafter that has heard these texts, each behind its beginning, so often that it drafts several tokens at a time.
    fn heard<'a>(texts: impl IntoIterator<Item = (&'a [u32], Vec<u32>)> + Clone) -> Drafter {
        let drafter = Drafter::new();
        for (beginning, text) in std::iter::repeat_n(texts, 20).flatten() {
            let mut told = told(beginning);
            text.into_iter().for_each(|token| drafter.hear(&mut told, token));
        }
        drafter
    }

    /// What is drafted comes in part: of each answer every fifth token is another one.
    #[test]
    fn drafts_change_no_answer() {
        let model = tiny();
        let prefix = read(&model, &prompt(&model, 40, 1));
        let drawn = Sampling::Random { temperature: 2.0, top_k: 0, top_p: 1.0, seed: 7 };
        for (count, sampling) in [(1, &Sampling::Greedy), (1, &drawn), (3, &Sampling::Greedy), (9, &drawn)] {
            let rests: Vec<_> = (0..count).map(|i| prompt(&model, 1 + i % 3, 20 + i as u32)).collect();
            let alone: Vec<_> = rests
                .iter()
                .map(|rest| {
                    let whole = Tensor::cat(&[&prompt(&model, 40, 1), rest], 1).unwrap();
                    alone(&model, &whole, sampling, limits(24))
                })
                .collect();
            let beginnings: Vec<_> = (0..count as u32).map(|i| [5000 + i, 6000]).collect();
            let spoiled =
                |ids: &[u32]| ids.iter().enumerate().map(|(i, id)| if i % 5 == 4 { 700 } else { *id }).collect();
            let texts = beginnings.iter().zip(&alone).map(|(beginning, got)| (&beginning[..], spoiled(&got.ids)));
            let mut batch = DecodeBatch::new(&model.network.llama).drafting(heard(texts), 3);
            for (rest, beginning) in rests.iter().zip(&beginnings) {
                let told = told(beginning);
                batch.add(NewSequence { told, ..sequence(&prefix, rest, sampling, limits(24)) }).unwrap();
            }
            let ended = run(&mut batch);
            for ((_, got), expected) in ended.iter().zip(&alone) {
                assert_same(got.as_ref().unwrap(), expected);
            }
            let drafted: usize = ended.iter().map(|(_, got)| got.as_ref().unwrap().drafted).sum();
            // Nine are too many for drafts; they are read with one of them at most in the end, when the others are gone.
            match count {
                9 => assert_eq!(drafted, 0),
                _ => assert!((8 * count..24 * count).contains(&drafted), "{drafted} of {count} answers"),
            }
        }
    }

    /// Wherever an answer ends, its branch holds what was said but for the last token: going on from there gives what a
    /// whole reading gives.
    #[test]
    fn an_answer_can_be_ended_anywhere_in_a_draft() {
        let model = tiny();
        let none = Arc::new(model.network.llama.new_cache());
        let embeds = prompt(&model, 6, 3);
        let whole = alone(&model, &embeds, &Sampling::Greedy, limits(12));
        let drafter = heard([(&[5000][..], whole.ids.clone())]);
        for steps in 1..12 {
            let mut batch = DecodeBatch::new(&model.network.llama).drafting(drafter.clone(), 3);
            let new = sequence(&none, &embeds, &Sampling::Greedy, limits(12));
            let id = batch.add(NewSequence { told: told(&[5000]), ..new }).unwrap();
            (0..steps).for_each(|_| assert_eq!(batch.step().unwrap().len(), 1));
            let Ended { generation, branch } = batch.end(id, Halt::Stop).unwrap();
            assert_eq!(generation.ids, whole.ids[..steps]);
            assert_eq!(branch.len(), 6 + steps - 1);
            let last = Tensor::new(&generation.ids[steps - 1..], &model.device).unwrap();
            let last = model.network.llama.embed(&last).unwrap().unsqueeze(0).unwrap();
            let mut on = DecodeBatch::new(&model.network.llama);
            let sampler = Sampler::new(&Sampling::Greedy).unwrap();
            let reading = Reading::new(branch, last);
            on.add(NewSequence { reading, sampler, limits: limits(12 - steps), told: Told::default() }).unwrap();
            assert_eq!(run(&mut on)[0].1.as_ref().unwrap().ids, whole.ids[steps..]);
        }
    }
}
