//! Questions that are answered with one of some given answers, while the model reads these.

use std::{collections::VecDeque, sync::Arc};

use gpt4roi::{
    Gpt4Roi,
    batch::Reading,
    choices::{ChoiceBatch, ScoredChoices, Scoring, WrittenChoices},
    generate::GenerateError,
};

/// The questions of all requests. Those of one request have the same choices and are read together; requests take
/// turns.
pub(crate) struct Choosing<'m> {
    model: &'m Gpt4Roi,
    turns: VecDeque<(u64, ChoiceBatch<'m>)>,
}

/// What a turn came to for a request: the questions with which it is done, by their numbers, or why all of its questions
/// have ended.
pub(crate) type Turn = (u64, Result<Vec<(usize, ScoredChoices)>, GenerateError>);

impl<'m> Choosing<'m> {
    pub(crate) fn new(model: &'m Gpt4Roi) -> Self {
        Self { model, turns: VecDeque::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Bytes of keys and values beyond those of beginnings.
    pub(crate) fn bytes(&self) -> usize {
        self.turns.iter().map(|(_, batch)| batch.bytes()).sum()
    }

    /// Adds a question of a request; returns its number among the questions of that request.
    pub(crate) fn add(&mut self, request: u64, choices: &Arc<WrittenChoices>, reading: Reading) -> usize {
        let place = self.turns.iter().position(|(other, _)| *other == request).unwrap_or_else(|| {
            self.turns.push_back((request, ChoiceBatch::new(self.model, choices.clone(), Scoring::Likely)));
            self.turns.len() - 1
        });
        self.turns[place].1.add(reading)
    }

    /// Lets go of a question.
    pub(crate) fn end(&mut self, request: u64, question: usize) {
        if let Some((_, batch)) = self.turns.iter_mut().find(|(other, _)| *other == request) {
            batch.end(question);
        }
        self.turns.retain(|(_, batch)| !batch.is_empty());
    }

    /// Reads on for the next request whose turn it is, by at most so many tokens, with so many bytes of keys and values.
    pub(crate) fn step(&mut self, tokens: usize, bytes: usize) -> Option<Turn> {
        let (request, mut batch) = self.turns.pop_front()?;
        let done = batch.step(tokens, bytes);
        if done.is_ok() && !batch.is_empty() {
            self.turns.push_back((request, batch));
        }
        Some((request, done))
    }
}
