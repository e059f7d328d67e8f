//! Tokens drafted ahead of the model, and checked by it several at a time (speculative decoding).
//!
//! Reading a few tokens together costs little more than reading one, since the weights are read once for all of them. So
//! with each token that was drawn, a draft of the next ones is read: how texts went on before behind the same words
//! (n-grams, also known as prompt lookup), or how a small language model would go on ([`DraftModel`]), whichever is the
//! more probable. A drafted token counts only if it is the one that is drawn then, from the same logits as ever. Drafts
//! change how long an answer takes, and not what it is.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::Result as TensorResult;

use crate::{
    draft_model::{DraftModel, DraftReading},
    llama::Llama,
};

/// Tokens that a draft looks back at, at most.
const LONGEST: usize = 4;

/// Tokens of a draft at most, where drafts are worth it and nothing else is asked for: with two cores, reading one of
/// them more costs a tenth to three tenths of a step (`docs/performance.md`).
pub const DEFAULT_DRAFT: usize = 3;

/// Drafts by what was said before: in a conversation by its questions and answers, and wherever many answers come from the
/// same model, by all of them. A clone learns from the same texts as the original, and drafts by them.
#[derive(Clone, Debug, Default)]
pub struct Drafter {
    phrases: Arc<Mutex<Phrases>>,
    model: Option<Arc<DraftModel>>,
}

impl Drafter {
    /// A token is read along if it comes with this probability, judged by those before it. It makes a step longer by a
    /// tenth to three tenths where memory is what a step waits for.
    const WORTH: f32 = 0.35;

    /// One that has read nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that has read nothing, and that asks a small model, too.
    pub fn with_model(model: impl Into<Arc<DraftModel>>) -> Self {
        Self { model: Some(model.into()), ..Self::default() }
    }

    /// Tokens that are drafted ahead for this model at most where nothing else is asked for: if there is a small model,
    /// somebody wants drafts.
    pub fn default_draft(&self, llama: &Llama) -> usize {
        if self.model.is_some() { DEFAULT_DRAFT } else { llama.default_draft() }
    }

    /// A text that begins.
    pub(crate) fn begin(&self) -> Told {
        Told { tail: Tail::default(), reading: self.model.clone().map(DraftReading::new) }
    }

    /// Learns how a text goes on that the model did not write.
    pub(crate) fn read(&self, told: &mut Told, token: u32) {
        self.phrases().learn(told.tail, token);
        told.push(token);
    }

    /// Learns how the model goes on, and from that how often it says again what came before.
    pub(crate) fn hear(&self, told: &mut Told, token: u32) {
        let mut phrases = self.phrases();
        phrases.judge(told.tail, token);
        phrases.learn(told.tail, token);
        told.push(token);
    }

    /// The next tokens, as far as they are likely enough to be worth their while, at most so many. Of texts that another
    /// model wrote, only tokens come that are in this one's vocabulary.
    ///
    /// # Errors
    /// If the engine fails under the small model.
    pub(crate) fn draft(&self, told: &mut Told, most: usize, vocabulary: usize) -> TensorResult<Draft> {
        let (mut draft, mut tail, mut odds) = (Draft::new(), told.tail, 1.0);
        let mut guesses = told.reading.as_mut().map(DraftReading::guesses);
        while draft.len() < most {
            let known = self.phrases().likely(tail);
            let guessed = match &mut guesses {
                Some(guesses) => guesses.next(draft.back().copied())?,
                None => None,
            };
            let likely = known.into_iter().chain(guessed).max_by(|(_, one), (_, other)| one.total_cmp(other));
            let Some((token, probability)) = likely else { break };
            odds *= probability;
            if odds < Self::WORTH || token as usize >= vocabulary {
                break;
            }
            draft.push_back(token);
            tail.push(token);
        }
        Ok(draft)
    }

    /// Nothing that is written here can be left half done.
    fn phrases(&self) -> MutexGuard<'_, Phrases> {
        self.phrases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A text as far as it was told: what drafts begin behind.
#[derive(Clone, Debug, Default)]
pub struct Told {
    tail: Tail,
    /// On its way into the small model, if there is one.
    reading: Option<DraftReading>,
}

impl Told {
    /// A token that was learned from before.
    pub(crate) fn push(&mut self, token: u32) {
        self.tail.push(token);
        self.note(token);
    }

    /// Something stands here that is no word, a region or a part of the picture. Phrases do not reach across it; the
    /// small model reads the token that it stands in the place of.
    pub(crate) fn see(&mut self, token: u32) {
        self.tail = Tail::default();
        self.note(token);
    }

    fn note(&mut self, token: u32) {
        if let Some(reading) = &mut self.reading {
            reading.push(token);
        }
    }
}

/// The last tokens of a text; fewer, where it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tail {
    tokens: [u32; LONGEST],
    length: usize,
}

impl Tail {
    fn push(&mut self, token: u32) {
        self.tokens.rotate_left(1);
        self.tokens[LONGEST - 1] = token;
        self.length = LONGEST.min(self.length + 1);
    }

    /// The last `length` tokens, for any length that the text has, longest first.
    fn ends(self) -> impl Iterator<Item = Phrase> {
        (1..=self.length).rev().map(move |length| {
            let mut tokens = [u32::MAX; LONGEST];
            tokens[LONGEST - length..].copy_from_slice(&self.tokens[LONGEST - length..]);
            Phrase { tokens, length }
        })
    }
}

/// Some tokens in a row: the last ones of the array, whose others are alike in all phrases of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Phrase {
    tokens: [u32; LONGEST],
    length: usize,
}

/// Tokens that may come next, one behind the other.
pub(crate) type Draft = VecDeque<u32>;

/// What came last behind phrases, and how often it then came again.
#[derive(Debug)]
struct Phrases {
    recent: HashMap<Phrase, u32>,
    /// What was learned before that, and has not come again since.
    earlier: HashMap<Phrase, u32>,
    /// By the length of the phrase: how often what came behind it before comes again, of late.
    odds: [f32; LONGEST],
}

impl Default for Phrases {
    /// Longer phrases are worth more from the beginning.
    fn default() -> Self {
        Self { recent: HashMap::new(), earlier: HashMap::new(), odds: [0.2, 0.4, 0.6, 0.7] }
    }
}

impl Phrases {
    /// Phrases to a half of the memory, in which one takes 30 to 60 bytes.
    const MOST: usize = 1 << 17;

    fn learn(&mut self, tail: Tail, token: u32) {
        for phrase in tail.ends() {
            self.recent.insert(phrase, token);
        }
        if self.recent.len() >= Self::MOST {
            self.earlier = mem::take(&mut self.recent);
        }
    }

    fn judge(&mut self, tail: Tail, token: u32) {
        if let Some((expected, length)) = self.next(tail) {
            let odds = &mut self.odds[length - 1];
            *odds += (f32::from(u8::from(token == expected)) - *odds) / 32.0;
        }
    }

    /// What most likely comes next, and how likely.
    fn likely(&self, tail: Tail) -> Option<(u32, f32)> {
        self.next(tail).map(|(token, length)| (token, self.odds[length - 1]))
    }

    /// What came last behind the longest phrase that is known, and the length of that.
    fn next(&self, tail: Tail) -> Option<(u32, usize)> {
        tail.ends().find_map(|phrase| {
            let token = self.recent.get(&phrase).or_else(|| self.earlier.get(&phrase))?;
            Some((*token, phrase.length))
        })
    }
}

/// Logits that were read behind drafted tokens, and count if these come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ahead {
    drafted: Draft,
    logits: VecDeque<Vec<f32>>,
}

impl Ahead {
    /// # Shapes
    /// logits: `[V]` behind each token of the draft
    pub(crate) fn new(drafted: Draft, logits: impl IntoIterator<Item = Vec<f32>>) -> Self {
        Self { drafted, logits: logits.into_iter().collect() }
    }

    /// Tokens that were read, and of which it is not known whether they come.
    pub(crate) fn len(&self) -> usize {
        self.drafted.len()
    }

    /// The logits behind a token that was drawn, if it is the one that was drafted. If not, what is left was read in vain.
    pub(crate) fn behind(&mut self, token: u32) -> Option<Vec<f32>> {
        self.drafted.pop_front_if(|drafted| *drafted == token)?;
        self.logits.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: usize = 1 << 20;

    /// What a drafter that heard some texts says behind the beginning of another.
    fn drafted(heard: &[&[u32]], beginning: &[u32], most: usize) -> Vec<u32> {
        let drafter = Drafter::new();
        for text in heard {
            let mut told = Told::default();
            text.iter().for_each(|&token| drafter.hear(&mut told, token));
        }
        let mut told = Told::default();
        beginning.iter().for_each(|&token| told.push(token));
        drafter.draft(&mut told, most, VOCABULARY).unwrap().into()
    }

    #[test]
    fn a_text_is_drafted_as_it_went_on_before() {
        let text: Vec<u32> = (1..20).collect();
        for (heard, beginning, most, expected) in [
            // 0.7 for each behind four known ones, so that a third would come with 0.343 only.
            (&[&text[..]][..], &[3, 4, 5, 6][..], 3, &[7, 8][..]),
            (&[&text], &[3, 4, 5, 6], 1, &[7]),
            (&[&text], &[3, 4, 5, 6], 0, &[]),
            (&[&text], &[17, 18], 9, &[19]),
            // One token alone says little about the next: 0.2.
            (&[&text], &[5], 3, &[]),
            (&[&text], &[5, 30], 3, &[]),
            (&[&text], &[30, 31, 32, 33], 3, &[]),
            (&[], &[1, 2, 3, 4], 3, &[]),
            // What came last counts, behind the longest phrase that is known.
            (&[&[1, 2, 3, 4], &[1, 2, 3, 5]], &[1, 2, 3], 1, &[5]),
            (&[&[9, 1, 2, 3, 4], &[8, 1, 2, 3, 5]], &[9, 1, 2, 3], 1, &[4]),
            // Nothing goes over from one text to the next.
            (&[&[1, 2, 3], &[4, 5, 6]], &[1, 2, 3], 1, &[]),
        ] {
            assert_eq!(drafted(heard, beginning, most), expected, "{heard:?} {beginning:?}");
        }
    }

    #[test]
    fn drafts_are_as_long_as_they_come_true() {
        let cycle: Vec<u32> = (0..200).map(|i| i % 7).collect();
        assert_eq!(drafted(&[&cycle], &[0, 1, 2, 3], 3), [4, 5, 6]);
        // Behind 1, 2, 3, 4 it goes on differently each time: 0.7·(31/32)ⁿ falls below 0.35 at n = 22.
        for (times, expected) in [(20, 1), (26, 0)] {
            let restless: Vec<u32> = (0..times).flat_map(|i| [1, 2, 3, 4, 100 + i]).collect();
            assert_eq!(drafted(&[&restless], &[1, 2, 3, 4], 1).len(), expected, "{times}");
        }
    }

    /// What the model did not write says nothing about how it repeats itself.
    #[test]
    fn prompts_are_learned_and_not_judged() {
        let drafter = Drafter::new();
        for i in 0..100 {
            let mut told = Told::default();
            [1, 2, 3, 4, 100 + i].into_iter().for_each(|token| drafter.read(&mut told, token));
        }
        let mut told = Told::default();
        [1, 2, 3, 4].into_iter().for_each(|token| told.push(token));
        assert_eq!(drafter.draft(&mut told, 1, VOCABULARY).unwrap(), [199]);
    }

    /// One that another model wrote.
    #[test]
    fn a_token_that_the_model_does_not_have_is_not_drafted() {
        let drafter = Drafter::new();
        let mut told = Told::default();
        [1, 2, 3, 4, 5, 999, 6].into_iter().for_each(|token| drafter.hear(&mut told, token));
        let mut told = Told::default();
        [1, 2, 3, 4].into_iter().for_each(|token| told.push(token));
        assert_eq!(drafter.draft(&mut told, 2, 999).unwrap(), [5]);
        assert_eq!(drafter.draft(&mut told, 2, 1000).unwrap(), [5, 999]);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let drafter = Drafter::new();
        let mut told = Told::default();
        // Four phrases a token.
        let half = Phrases::MOST as u32 / 4;
        let knows = |first: u32| {
            let mut told = Told::default();
            (first..first + 4).for_each(|token| told.push(token));
            drafter.draft(&mut told, 1, VOCABULARY).unwrap() == [first + 4]
        };
        for token in 0..2 * half + 100 {
            drafter.hear(&mut told, token);
        }
        assert!(!knows(half / 2) && knows(3 * half / 2) && knows(2 * half + 50));
        let phrases = drafter.phrases();
        assert!(phrases.recent.len() + phrases.earlier.len() <= 2 * Phrases::MOST);
    }

    #[test]
    fn what_was_read_ahead_counts_as_far_as_it_comes() {
        let ahead = || Ahead::new([7, 8].into(), [vec![0.7], vec![0.8]]);
        for (said, got, left) in [
            (&[7, 8, 9][..], &[Some(vec![0.7]), Some(vec![0.8]), None][..], 0),
            (&[7, 9], &[Some(vec![0.7]), None], 1),
            (&[9], &[None], 2),
            (&[8], &[None], 2),
        ] {
            let mut ahead = ahead();
            assert_eq!(said.iter().map(|&token| ahead.behind(token)).collect::<Vec<_>>(), got, "{said:?}");
            assert_eq!(ahead.len(), left);
        }
    }
}
