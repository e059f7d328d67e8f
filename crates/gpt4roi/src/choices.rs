//! Questions with given answers: which of them the model would give, and how probable it finds each.
//!
//! The probability of a choice is that of the model writing exactly it as its whole answer, up to the signal that ends
//! an answer: the product of the probabilities of its tokens behind the question.

use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    asked::{Asked, Rendered, question_text},
    batch::Reading,
    chat::{AskOptions, Chat, ResolvedRegion, UNKNOWN},
    choice_tree::{ChoiceTree, Room, Score, Walk},
    describe::Shared,
    error::Result,
    generate::GenerateError,
    kv_cache::Branch,
    model::Gpt4Roi,
    prompt::TURN,
    shape::Shape,
};

/// The answers to choose between: at least two, all different. White space at their ends does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    texts: Vec<String>,
    /// How the model says each.
    wordings: Vec<String>,
}

/// Texts that are no choices. They are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChoicesError {
    /// There is nothing to choose between.
    #[error("expected at least 2 choices, got {got}")]
    TooFew {
        /// How many there are.
        got: usize,
    },
    /// A choice says nothing.
    #[error("choice {number}: expected words, got none")]
    Empty {
        /// Which one.
        number: usize,
    },
    /// Two choices are the same.
    #[error("choice {number}: expected one that differs from the others, got {text:?} as in choice {first}")]
    Repeated {
        /// Which one.
        number: usize,
        /// Which one it repeats.
        first: usize,
        /// What it says.
        text: String,
    },
    /// A choice that no answer can be, since it holds the signal that ends one.
    #[error("choice {number}: expected a text without {TURN:?}, which ends an answer, got {text:?}")]
    Unwritable {
        /// Which one.
        number: usize,
        /// What it says.
        text: String,
    },
}

impl Choices {
    /// The given texts, in their order. The model says them as they are.
    ///
    /// # Errors
    /// If there are fewer than two, if one is empty or repeats another, or if one contains `###`.
    pub fn new(texts: impl IntoIterator<Item = impl AsRef<str>>) -> std::result::Result<Self, ChoicesError> {
        let texts = trimmed(texts);
        check(&texts)?;
        Ok(Self { wordings: texts.clone(), texts })
    }

    /// Labels, each with what the model says where it means that: `octopus` with `An octopus.`, for one that answers in
    /// sentences. What is scored, and what a conversation goes on with, are the wordings; what is reported, the labels.
    ///
    /// # Errors
    /// As [`Self::new`], of labels and of wordings.
    pub fn worded<L: AsRef<str>, W: AsRef<str>>(
        choices: impl IntoIterator<Item = (L, W)>,
    ) -> std::result::Result<Self, ChoicesError> {
        let (labels, wordings): (Vec<L>, Vec<W>) = choices.into_iter().unzip();
        let (texts, wordings) = (trimmed(labels), trimmed(wordings));
        check(&texts)?;
        check(&wordings)?;
        Ok(Self { texts, wordings })
    }

    /// What is reported of each, without white space at the ends.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// What the model says for each.
    pub fn wordings(&self) -> &[String] {
        &self.wordings
    }
}

fn trimmed(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    texts.into_iter().map(|text| text.as_ref().trim().to_owned()).collect()
}

fn check(texts: &[String]) -> std::result::Result<(), ChoicesError> {
    if texts.len() < 2 {
        return Err(ChoicesError::TooFew { got: texts.len() });
    }
    let mut known = HashSet::new();
    for (number, text) in (1..).zip(texts) {
        if text.is_empty() {
            return Err(ChoicesError::Empty { number });
        }
        if text.contains(TURN) {
            return Err(ChoicesError::Unwritable { number, text: text.clone() });
        }
        if !known.insert(text) {
            let first = 1 + texts.iter().position(|other| other == text).unwrap_or(0);
            return Err(ChoicesError::Repeated { number, first, text: text.clone() });
        }
    }
    Ok(())
}

/// How far choices are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scoring {
    /// All of them, to their last tokens.
    #[default]
    All,
    /// A choice is given up once it is so much less probable than another that all that are given up come to less than
    /// 0.0001 of the whole: every share is exact to that, and of a thousand labels few are read to their ends.
    Likely,
}

/// A choice, and how probable the model finds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredChoice {
    /// What it says, or its label.
    pub text: String,
    /// The natural logarithm of the probability that the model's answer is this text, or its wording, and nothing else. The highest that
    /// it can be, if the choice was given up. −∞, which JSON has as `null`, if the model can't write it.
    #[serde(deserialize_with = "impossible_if_null")]
    pub log_probability: f64,
    /// Its tokens, those of the role's name and of the signal that ends an answer included.
    pub tokens: usize,
    /// Whether it was scored to its end.
    #[serde(default = "complete", skip_serializing_if = "Clone::clone")]
    pub complete: bool,
}

fn complete() -> bool {
    true
}

fn impossible_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NEG_INFINITY))
}

impl ScoredChoice {
    /// The mean logarithm of its tokens' probabilities, in which a longer text is at no disadvantage.
    pub fn mean_log_probability(&self) -> f64 {
        self.log_probability / self.tokens.max(1) as f64
    }
}

/// What was chosen, and what it is an answer to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// The question with every mention and coordinate written as `<regionN>`.
    pub question: String,
    /// The regions that the question mentions, in the order of their first mention.
    pub regions: Vec<ResolvedRegion>,
    /// The choices in their order, at least two.
    pub choices: Vec<ScoredChoice>,
    /// Tokens of the whole prompt, the picture's included.
    pub prompt_tokens: usize,
    /// How many of them had been read before, and were not read again.
    pub reused_tokens: usize,
}

impl Chosen {
    /// The place of the most probable choice; of equals, the first.
    pub fn best(&self) -> usize {
        first_highest(self.choices.iter().map(|choice| choice.log_probability))
    }

    /// As [`best_by_token`] says.
    pub fn best_by_token(&self) -> Option<usize> {
        best_by_token(&self.choices)
    }

    /// What the most probable choice says, or its label.
    pub fn text(&self) -> &str {
        self.choices.get(self.best()).map_or("", |choice| &choice.text)
    }

    /// How probable each choice is if the answer is one of them: shares that come to 1. All are 0 if the model finds
    /// every choice impossible.
    pub fn probabilities(&self) -> Vec<f64> {
        let highest = self.choices.iter().map(|choice| choice.log_probability).fold(f64::NEG_INFINITY, f64::max);
        if highest == f64::NEG_INFINITY {
            return vec![0.0; self.choices.len()];
        }
        // Without the highest taken off, choices of many tokens would all come to 0.
        let weights: Vec<f64> = self.choices.iter().map(|choice| (choice.log_probability - highest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    /// The share of the most probable choice.
    pub fn probability(&self) -> f64 {
        self.probabilities().get(self.best()).copied().unwrap_or(0.0)
    }

    /// How near the choices come to what the model itself writes, 0 to 1: the highest geometric mean of the
    /// probabilities of a choice's tokens, of those that were scored to their ends. Where it is small, the model would
    /// write none of them, and shares compare what it has hardly an opinion of.
    pub fn likeness(&self) -> f64 {
        let scored = self.choices.iter().filter(|choice| choice.complete);
        scored.map(ScoredChoice::mean_log_probability).fold(f64::NEG_INFINITY, f64::max).exp()
    }

    /// What the most probable choice says, or [`UNKNOWN`] if its share is below `least`.
    pub fn text_if_sure(&self, least: f64) -> &str {
        if self.probability() < least { UNKNOWN } else { self.text() }
    }
}

/// The place of the choice with the highest [mean](ScoredChoice::mean_log_probability) over its tokens; of equals, the
/// first. None if there is none, or if one was given up, since nobody knows its mean.
pub fn best_by_token(choices: &[ScoredChoice]) -> Option<usize> {
    let known = !choices.is_empty() && choices.iter().all(|choice| choice.complete);
    known.then(|| first_highest(choices.iter().map(ScoredChoice::mean_log_probability)))
}

fn first_highest(values: impl Iterator<Item = f64>) -> usize {
    let mut highest: Option<(usize, f64)> = None;
    for (place, value) in values.enumerate() {
        if highest.is_none_or(|(_, most)| value > most) {
            highest = Some((place, value));
        }
    }
    highest.map_or(0, |(place, _)| place)
}

/// Choices as the tokens that a model writes for each.
#[derive(Debug)]
pub struct WrittenChoices {
    choices: Choices,
    scripts: Vec<Vec<u32>>,
    tree: Arc<ChoiceTree>,
}

impl WrittenChoices {
    /// For a question, or for others that have as many tokens.
    ///
    /// # Errors
    /// If the longest does not fit behind the question.
    pub fn new(model: &Gpt4Roi, question: &Rendered, choices: Choices) -> Result<Self> {
        let scripts = question.scripts(model, &choices)?;
        let tree = Arc::new(ChoiceTree::new(&scripts));
        Ok(Self { choices, scripts, tree })
    }

    fn scored(&self, scores: &[Score]) -> Vec<ScoredChoice> {
        let score = |((text, script), score): ((&String, &Vec<u32>), &Score)| ScoredChoice {
            text: text.clone(),
            log_probability: score.log_probability,
            tokens: script.len(),
            complete: score.complete,
        };
        self.choices.texts().iter().zip(&self.scripts).zip(scores).map(score).collect()
    }
}

/// Questions with the same choices, which are scored together. They come and go between steps; what a question's
/// choices come to depends on no other, but for the rounding of sums in another order.
#[derive(Debug)]
pub struct ChoiceBatch<'m> {
    written: Arc<WrittenChoices>,
    walk: Walk<'m>,
}

/// What became of a question: its choices in their order, or an error if the model's numbers are none.
pub type ScoredChoices = std::result::Result<Vec<ScoredChoice>, GenerateError>;

impl<'m> ChoiceBatch<'m> {
    /// A batch without questions.
    pub fn new(model: &'m Gpt4Roi, written: Arc<WrittenChoices>, scoring: Scoring) -> Self {
        let walk = Walk::new(&model.network.llama, written.tree.clone(), scoring);
        Self { written, walk }
    }

    /// Adds a question, of which at least the last token is unread; returns its number in this batch.
    pub fn add(&mut self, reading: Reading) -> usize {
        self.walk.add(reading)
    }

    /// Forgets a question.
    pub fn end(&mut self, question: usize) {
        self.walk.end(question);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.walk.is_empty()
    }

    /// Bytes of keys and values beyond those of shared prefixes.
    pub fn bytes(&self) -> usize {
        self.walk.bytes()
    }

    /// Reads on by at most so many tokens, a few more if one beginning of choices has more, while keys and values take
    /// no more than so many bytes beyond those of shared prefixes, if that can be. Returns the questions with which it
    /// is done, by their numbers; they have left the batch.
    ///
    /// # Errors
    /// If the engine fails, which ends all of its questions.
    pub fn step(
        &mut self,
        tokens: usize,
        bytes: usize,
    ) -> std::result::Result<Vec<(usize, ScoredChoices)>, GenerateError> {
        let done = self.walk.step(Room { tokens, bytes })?.into_iter();
        Ok(done.map(|(question, scores)| (question, scores.map(|scores| self.written.scored(&scores)))).collect())
    }

    /// Scores all questions to their ends; in the order in which they were added.
    fn run(mut self, bytes: usize) -> Result<Vec<ScoredChoices>> {
        /// More are no faster, and the logits of each take memory.
        const TOKENS: usize = 256;
        let mut done = BTreeMap::new();
        while !self.is_empty() {
            done.extend(self.step(TOKENS, bytes)?);
        }
        Ok(done.into_values().collect())
    }
}

impl Asked {
    /// What was chosen, with what it is an answer to.
    pub fn chosen(&self, reused_tokens: usize, choices: Vec<ScoredChoice>) -> Chosen {
        Chosen {
            question: question_text(self.rendered().question()),
            regions: self.mentioned(),
            choices,
            prompt_tokens: self.rendered().tokens(),
            reused_tokens,
        }
    }
}

impl Chat<'_> {
    /// Asks which of some answers is right. The most probable one becomes the answer in the conversation, as if the model
    /// had given it.
    ///
    /// The question is read once for all choices, and so is what choices begin with in common. How tokens are drawn and
    /// what ends an answer play no part; [`AskOptions::scoring`] says how far choices are scored.
    ///
    /// # Errors
    /// As [`Self::ask_streaming`], and if the longest choice does not fit behind the question. The conversation is then
    /// as it was before.
    pub fn choose(&mut self, question: &str, choices: &Choices, options: &AskOptions) -> Result<Chosen> {
        let asked = self.asked(question, options)?;
        let written = WrittenChoices::new(self.model, asked.rendered(), choices.clone())?;
        // The last token is left to be read: its logits are those of the choices' first.
        let (tokens, last) = (asked.rendered().tokens(), asked.rendered().tokens() - 1);
        let (prefix, reused) = self.read_prefix(&asked, last)?;
        let unread = asked.embed(self.model, &self.image, last..tokens)?;
        let mut batch = ChoiceBatch::new(self.model, Arc::new(written), options.scoring);
        batch.add(Reading::new(Branch::new(prefix), unread));
        let scored = batch.run(options.batch_bytes)?.pop().unwrap_or_else(|| Ok(Vec::new()))?;
        let chosen = asked.chosen(reused, scored);
        let wording = choices.wordings.get(chosen.best()).cloned().unwrap_or_default();
        self.conclude(asked, wording);
        Ok(chosen)
    }

    /// Asks which of some answers is right for each region and waits for all; see [`Self::choose_for_regions_streaming`].
    ///
    /// # Errors
    /// As there, and if the model's numbers are none for some region.
    pub fn choose_for_regions(
        &mut self,
        regions: &[impl Into<Shape> + Copy],
        question: &str,
        choices: &Choices,
        options: &AskOptions,
    ) -> Result<Vec<Chosen>> {
        let (mut all, mut failure) = (Vec::with_capacity(regions.len()), Ok(()));
        self.choose_for_regions_streaming(regions, question, choices, options, |_, chosen| match chosen {
            Ok(chosen) => {
                all.push(chosen);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Err(error);
                ControlFlow::Break(())
            }
        })?;
        failure?;
        Ok(all)
    }

    /// Asks which of some answers is right for each region, as if each were the first of a conversation. In the question
    /// the region is `<region1>`. The conversation itself is not touched.
    ///
    /// The picture and the words before the first mention of the region are read once for all, as
    /// [`Self::describe_regions`](Chat::describe_regions) does. `on_chosen` gets the index of each region with what was
    /// chosen, in their order; if it breaks, the rest is dropped. A region for which the model's numbers are none gets an
    /// error, and the others go on.
    ///
    /// # Errors
    /// If the question is empty, mentions a region that does not exist, holds an impossible box, or leaves no room for
    /// the longest choice; if the engine fails.
    pub fn choose_for_regions_streaming(
        &mut self,
        regions: &[impl Into<Shape> + Copy],
        question: &str,
        choices: &Choices,
        options: &AskOptions,
        mut on_chosen: impl FnMut(usize, Result<Chosen>) -> ControlFlow<()>,
    ) -> Result<()> {
        let shapes: Vec<Shape> = regions.iter().map(|&region| region.into()).collect();
        let Some(&first) = shapes.first() else { return Ok(()) };
        let shared = Shared::new(self, first, question, options)?;
        let written = Arc::new(WrittenChoices::new(self.model, &shared.rendered, choices.clone())?);
        let mut index = 0;
        // Regions are encoded some at a time, as where they are described.
        for shapes in shapes.chunks(self.model.network.region.head.boxes_at_once()) {
            let (asked, readings): (Vec<_>, Vec<_>) = shared.readings(self, shapes)?.into_iter().unzip();
            let mut batch = ChoiceBatch::new(self.model, written.clone(), options.scoring);
            readings.into_iter().for_each(|reading| _ = batch.add(reading));
            for (asked, scored) in asked.iter().zip(batch.run(options.batch_bytes)?) {
                let chosen = scored.map(|scored| asked.chosen(shared.reused(index), scored));
                if on_chosen(index, chosen.map_err(Into::into)).is_break() {
                    return Ok(());
                }
                index += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{
        bbox::BBox,
        error::Error,
        generate::{Decoder, LlamaDecoder, generate},
        image::{DEFAULT_MAX_PIXELS, Image},
        model::Gpt4Roi,
        prompt::{PromptError, written_answer},
        sampling::{LogProbabilities, Sampler, Sampling},
        tiny::{bbox, picture, short, tiny},
    };

    const QUESTION: &str = "What is <region1>?";

    fn choices(texts: &[&str]) -> Choices {
        Choices::new(texts).unwrap()
    }

    #[track_caller]
    fn assert_same(got: &[ScoredChoice], expected: &[ScoredChoice]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert_eq!((&got.text, got.tokens, got.complete), (&expected.text, expected.tokens, expected.complete));
            assert!((got.log_probability - expected.log_probability).abs() < 1e-4, "{got:?}, {expected:?}");
        }
    }

    #[test]
    fn what_can_not_be_chosen_is_refused() {
        assert_eq!(choices(&[" a", "b\n"]).texts(), ["a", "b"]);
        for (texts, expected) in [
            (&[][..], "expected at least 2 choices, got 0"),
            (&["a"], "expected at least 2 choices, got 1"),
            (&["a", " "], "choice 2: expected words, got none"),
            (&["a", "b", " a"], r#"choice 3: expected one that differs from the others, got "a" as in choice 1"#),
            (&["a###", "b"], r####"choice 1: expected a text without "###", which ends an answer, got "a###""####),
        ] {
            assert_eq!(Choices::new(texts).unwrap_err().to_string(), expected);
        }
    }

    /// The labels are reported, the wordings are scored, and the conversation goes on with what was said.
    #[test]
    fn labels_stand_for_what_the_model_says() {
        let (model, picture) = (tiny(), picture());
        let worded = Choices::worded([("cat", "a cat on a mat"), ("dog", " a dog ")]).unwrap();
        let (mut chat, mut plain) = (Chat::new(&model, &picture).unwrap(), Chat::new(&model, &picture).unwrap());
        let by_label = chat.choose("What is it?", &worded, &short()).unwrap();
        let by_wording = plain.choose("What is it?", &choices(&["a cat on a mat", "a dog"]), &short()).unwrap();
        let scores = |chosen: &Chosen| -> Vec<(f64, usize)> {
            chosen.choices.iter().map(|choice| (choice.log_probability, choice.tokens)).collect()
        };
        assert_eq!(scores(&by_label), scores(&by_wording));
        assert_eq!(by_label.choices.iter().map(|choice| &*choice.text).collect::<Vec<_>>(), ["cat", "dog"]);
        assert_eq!(chat.transcript(), plain.transcript());
        let error = Choices::worded([("cat", "A pet."), ("dog", "A pet.")]).unwrap_err();
        assert!(matches!(error, ChoicesError::Repeated { number: 2, first: 1, .. }), "{error}");
        assert!(matches!(Choices::worded([("cat", "a"), ("cat", "b")]), Err(ChoicesError::Repeated { .. })));
    }

    fn chosen(scores: &[(f64, usize)]) -> Chosen {
        let choice = |&(log_probability, tokens): &(f64, usize)| ScoredChoice {
            text: format!("{tokens} tokens"),
            log_probability,
            tokens,
            complete: true,
        };
        let choices = scores.iter().map(choice).collect();
        Chosen { question: String::new(), regions: Vec::new(), choices, prompt_tokens: 0, reused_tokens: 0 }
    }

    #[test]
    fn shares_come_to_one_however_small_the_probabilities_are() {
        // 0.2, 0.1 and 0.1 of all texts: a half and two quarters of the choices.
        let mut three = chosen(&[(0.1f64.ln(), 2), (0.2f64.ln(), 1), (0.1f64.ln(), 10)]);
        for (got, expected) in three.probabilities().into_iter().zip([0.25, 0.5, 0.25]) {
            assert!((got - expected).abs() < 1e-12);
        }
        assert_eq!((three.best(), three.text(), three.probability()), (1, "1 tokens", three.probabilities()[1]));
        assert_eq!((three.text_if_sure(0.49), three.text_if_sure(0.51)), ("1 tokens", UNKNOWN));
        // By token: ln 0.1 / 2, ln 0.2 / 1 and ln 0.1 / 10.
        assert_eq!(three.best_by_token(), Some(2));
        assert!((three.likeness() - 0.1f64.powf(0.1)).abs() < 1e-12);
        three.choices[0].complete = false;
        assert_eq!((three.best_by_token(), three.best()), (None, 1));
        // e⁻¹⁰⁰⁰ is 0 in any number format; 1 / (1 + 1/e) is not.
        let long = chosen(&[(-1001.0, 9), (-1000.0, 9)]);
        assert!((long.probability() - 1.0 / (1.0 + (-1f64).exp())).abs() < 1e-12);
        // Of equals the first.
        assert_eq!(chosen(&[(-2.0, 1), (-1.0, 1), (-1.0, 1)]).best(), 1);
        let impossible = chosen(&[(f64::NEG_INFINITY, 1), (f64::NEG_INFINITY, 1)]);
        assert_eq!((impossible.best(), impossible.probability(), impossible.likeness()), (0, 0.0, 0.0));
    }

    #[test]
    fn a_scored_choice_survives_json() {
        for (log_probability, complete, expected) in [
            (-1.5, true, r#"{"text":"3 tokens","log_probability":-1.5,"tokens":3}"#),
            (f64::NEG_INFINITY, false, r#"{"text":"3 tokens","log_probability":null,"tokens":3,"complete":false}"#),
        ] {
            let mut choice = chosen(&[(log_probability, 3)]).choices.remove(0);
            choice.complete = complete;
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(json, expected);
            assert_eq!(serde_json::from_str::<ScoredChoice>(&json).unwrap(), choice);
        }
    }

    /// The same by the other way that there is: each choice by itself, dictated token by token.
    fn dictated(chat: &Chat<'_>, asked: &Asked, choices: &Choices) -> Vec<ScoredChoice> {
        let llama = &chat.model.network.llama;
        let embeds = asked.embed(chat.model, &chat.image, 0..asked.rendered().tokens()).unwrap();
        let scripts = asked.rendered().scripts(chat.model, choices).unwrap();
        let dictate = |(text, script): (&String, &Vec<u32>)| {
            let mut cache = llama.new_cache();
            let mut decoder = LlamaDecoder { llama, cache: &mut cache, embeds: &embeds };
            let (mut logits, mut log_probability) = (decoder.prefill().unwrap(), 0.0);
            for &token in script {
                log_probability += LogProbabilities::new(&logits).unwrap().of(token).unwrap();
                logits = decoder.step(token).unwrap();
            }
            ScoredChoice { text: text.clone(), log_probability, tokens: script.len(), complete: true }
        };
        choices.texts().iter().zip(&scripts).map(dictate).collect()
    }

    #[test]
    fn choosing_is_dictating_every_choice_and_joins_the_conversation() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        chat.add_region(bbox([0.1, 0.2, 0.5, 0.9]));
        let choices = choices(&["a", "a cat", "a cat on a mat", "a dog", "dog"]);
        chat.ask_with(QUESTION, &short()).unwrap();
        for question in ["Is it [8, 6, 40, 30]?", "Is <region2> large?"] {
            let expected = dictated(&chat, &chat.asked(question, &short()).unwrap(), &choices);
            let chosen = chat.choose(question, &choices, &short()).unwrap();
            assert_same(&chosen.choices, &expected);
            assert_eq!(chosen.regions[0].id, 2);
            assert!(chosen.reused_tokens > model.config.vision.patches());
            assert_eq!(chat.transcript().rounds.last().unwrap().answer, chosen.text());
        }
        assert_eq!((chat.regions().len(), chat.transcript().rounds.len()), (2, 3));
        // Everything that was read is remembered as what it is.
        let mut again = Chat::new(&model, &picture).unwrap();
        again.add_region(bbox([0.1, 0.2, 0.5, 0.9]));
        let rounds = chat.transcript().rounds;
        for round in &rounds {
            again.ask_with(&round.question.replace("<region2>?", "[8, 6, 40, 30]?"), &short()).unwrap();
            again.replace_answer(&round.answer);
        }
        assert_eq!(again.transcript(), chat.transcript());
        let last = [&mut chat, &mut again].map(|chat| chat.ask_with("Why?", &short()).unwrap());
        crate::tiny::assert_same(&last[0], &last[1]);
    }

    #[test]
    fn what_can_not_be_asked_leaves_the_conversation_as_it_was() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        let few = choices(&["a", "b"]);
        for (question, choices) in
            [("", &few), ("What is <region1>?", &few), ("What?", &choices(&["a", &"b ".repeat(4000)]))]
        {
            chat.choose(question, choices, &short()).unwrap_err();
            let nobody = |_, _| panic!("nothing to choose");
            let region = [bbox([0.1, 0.2, 0.5, 0.9])];
            if question != QUESTION {
                chat.choose_for_regions_streaming(&region, question, choices, &short(), nobody).unwrap_err();
            }
            assert!(chat.transcript().rounds.is_empty());
        }
        let error = chat.choose("What?", &choices(&["a", &"b ".repeat(4000)]), &short()).unwrap_err();
        assert!(matches!(error, Error::Prompt(PromptError::TooLong { .. })), "{error}");
        assert!(chat.choose_for_regions(&[] as &[Shape], "What?", &few, &short()).unwrap().is_empty());
    }

    /// Each region in a conversation of its own, and many more regions than are encoded at once.
    #[test]
    fn regions_together_choose_what_each_would_alone() {
        let (model, picture) = (tiny(), picture());
        let place = |i: usize| ((i * 37 % 89) as f64 / 100.0, (i * 53 % 83) as f64 / 100.0);
        let boxes: Vec<BBox> = (0..20).map(place).map(|(x, y)| bbox([x, y, x + 0.1, y + 0.06])).collect();
        let choices = choices(&["a", "a cat", "a cat on a mat", "a dog", "dog"]);
        for batch_bytes in [0, usize::MAX] {
            let options = AskOptions { batch_bytes, ..short() };
            let mut chat = Chat::new(&model, &picture).unwrap();
            let all = chat.choose_for_regions(&boxes, QUESTION, &choices, &options).unwrap();
            assert_eq!(all.len(), boxes.len());
            assert!(chat.regions().is_empty() && chat.transcript().rounds.is_empty());
            for (bbox, chosen) in boxes.iter().zip(&all).step_by(6) {
                let mut one = Chat::new(&model, &picture).unwrap();
                one.add_region(*bbox);
                let alone = one.choose(QUESTION, &choices, &options).unwrap();
                assert_same(&chosen.choices, &alone.choices);
                assert_eq!((&chosen.question, &chosen.regions), (&alone.question, &alone.regions));
                assert_eq!(chosen.prompt_tokens, alone.prompt_tokens);
            }
        }
    }

    /// The embedded model's own answer, offered among others, is as probable as when it was given, token by token.
    #[test]
    fn the_models_own_answer_is_the_most_probable_of_choices() {
        let model = Gpt4Roi::nano(&Device::Cpu).unwrap();
        let image = Image::open("../../docs/example.png", DEFAULT_MAX_PIXELS).unwrap();
        let pixels = |xyxy| BBox::from_pixels(xyxy, image.size()).unwrap();
        let mut chat = Chat::new(&model, &image).unwrap();
        for xyxy in [[8., 14., 54., 59.], [109., 0., 181., 59.], [0., 78., 101., 186.]] {
            chat.add_region(pixels(xyxy));
        }
        let greedy = AskOptions::default();
        let wrong =
            ["A cat.", "Yes.", "It is to the left of region2.", "At the bottom right.", "A loaf of bread, a rocket."];
        for question in [
            "What is <region1>?",
            "What are <region2> and <region3>?",
            "Where is <region2>?",
            "Is <region1> a cat?",
            "Describe <region3> in detail.",
        ] {
            let asked = chat.asked(question, &greedy).unwrap();
            let embeds = asked.embed(&model, &chat.image, 0..asked.rendered().tokens()).unwrap();
            let mut cache = model.network.llama.new_cache();
            let mut decoder = LlamaDecoder { llama: &model.network.llama, cache: &mut cache, embeds: &embeds };
            let (mut sampler, mut stream) = (
                Sampler::new(&Sampling::Greedy).unwrap(),
                crate::chat::AnswerStream::new(&model.tokenizer, asked.rendered().stop()),
            );
            let stop = |token| match stream.push(token) {
                true => ControlFlow::Break(crate::generate::Halt::Stop),
                false => ControlFlow::Continue(()),
            };
            let mut generated = generate(&mut decoder, &mut sampler, asked.rendered().limits(), stop).unwrap();
            let (answer, _) = stream.finish(&mut generated);
            assert_eq!(written_answer(&answer, &model.tokenizer), generated.ids, "{answer}");

            let texts: Vec<&str> = wrong.into_iter().chain([&*answer]).collect();
            let chosen = chat.choose(question, &choices(&texts), &greedy).unwrap();
            assert_eq!((chosen.text(), chosen.best()), (&*answer, wrong.len()), "{question}");
            let own = &chosen.choices[chosen.best()];
            let sum: f64 = generated.log_probabilities.iter().sum();
            assert!((own.log_probability - sum).abs() < 1e-4, "{own:?}, {sum}");
            assert_eq!(own.tokens, generated.ids.len());
            chat.undo().unwrap();

            let likely =
                chat.choose(question, &choices(&texts), &AskOptions { scoring: Scoring::Likely, ..greedy.clone() });
            let likely = likely.unwrap();
            assert_eq!(likely.text(), answer);
            assert!((likely.probability() - chosen.probability()).abs() < 1e-4);
            chat.undo().unwrap();
        }
    }
}
