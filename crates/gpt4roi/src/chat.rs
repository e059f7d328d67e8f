//! A conversation about one picture.

use std::{ops::ControlFlow, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    asked::{self, Asked, Rendered, Said, Slot, lowest_free, pieces, question_text},
    bbox::{BBox, BoxPrecision, ImageSize, RegionId},
    choices::Scoring,
    drafter::Drafter,
    error::Result,
    generate::{DraftingDecoder, FinishReason, Generation, Halt, LlamaDecoder, generate},
    image::Image,
    image_cache::EncodedImage,
    kv_cache::KvCache,
    model::Gpt4Roi,
    point::PointBox,
    prompt::{Round, TURN, TextMode},
    sampling::Sampling,
    shape::Shape,
    stop::StopStrings,
    tokenizer::{TextStream, Tokenizer},
    zoom::{Reading, Zoom},
};

/// A question that a conversation can't take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// A region is mentioned that does not exist.
    #[error("{id} does not exist, expected one of {declared} regions")]
    UnknownRegion {
        /// The region.
        id: RegionId,
        /// How many there are.
        declared: usize,
    },
    /// A region has the number 0.
    #[error("region0: expected a number from 1")]
    RegionZero,
    /// Two regions have the same number.
    #[error("{id} is declared twice, expected a number of its own for every region")]
    RepeatedRegion {
        /// The region.
        id: RegionId,
    },
}

/// Where a region came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It was added by hand, as a box.
    Given,
    /// Its box stood in a question.
    Coordinates,
    /// A point was given by hand or stood in a question, and a box was grown around it.
    Point,
    /// A polygon or a lasso was drawn, and this is the smallest box around it.
    Polygon,
    /// A mask was given, and this is the smallest box around what it marks.
    Mask,
}

/// A region of the conversation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// Its number.
    pub id: RegionId,
    /// Its box.
    pub bbox: BBox,
    /// Where it came from.
    pub origin: Origin,
}

/// A region as it is reported and saved.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedRegion {
    /// Its number, from 1.
    pub id: u32,
    /// Its box, xyxy in pixels of the picture.
    #[serde(rename = "box")]
    pub pixels: [f64; 4],
    /// Where it came from.
    pub origin: Origin,
}

/// How a question is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct AskOptions {
    /// Tokens at most; the context may end an answer earlier.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What ends an answer besides, and is no part of it.
    pub stop: StopStrings,
    /// How words are read that look like structure.
    pub text_mode: TextMode,
    /// In which precision boxes reach the model.
    pub box_precision: BoxPrecision,
    /// How a point becomes a box, if not as the model's training did it.
    pub point_box: Option<PointBox>,
    /// Whether small regions are looked at more closely.
    pub zoom: Zoom,
    /// How far given choices are scored.
    pub scoring: Scoring,
    /// How many tokens are drafted ahead at most, by what was said before, and read along; see
    /// [`drafter`](crate::drafter). It changes no answer. If nothing is said, as
    /// [`Drafter::default_draft`].
    pub draft: Option<usize>,
    /// When many regions are described together, or many choices scored: how many bytes the keys and values of the
    /// sequences may take that are read at the same time, beyond those of the prefix that they share. One sequence
    /// runs in any case.
    pub batch_bytes: usize,
}

impl Default for AskOptions {
    /// Greedy, at most 512 tokens, boxes in full precision, all choices to their ends, 1 GiB for a batch.
    fn default() -> Self {
        Self {
            max_new_tokens: 512,
            sampling: Sampling::Greedy,
            stop: StopStrings::default(),
            text_mode: TextMode::Literal,
            box_precision: BoxPrecision::F32,
            point_box: None,
            zoom: Zoom::Off,
            scoring: Scoring::All,
            draft: None,
            batch_bytes: 1 << 30,
        }
    }
}

impl AskOptions {
    pub(crate) fn reading(&self) -> Reading {
        Reading { precision: self.box_precision, zoom: self.zoom }
    }
}

/// What is said instead of an answer that the model is not sure of.
pub const UNKNOWN: &str = "I do not know.";

/// An answer, and what it is an answer to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// What the model said, without role name and stop signal.
    pub text: String,
    /// The question with every mention and coordinate written as `<regionN>`.
    pub question: String,
    /// The regions that the question mentions, in the order of their first mention.
    pub regions: Vec<ResolvedRegion>,
    /// Tokens of the whole prompt, the picture's included.
    pub prompt_tokens: usize,
    /// How many of them had been read before, and were not read again.
    pub reused_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// How many of them came as drafted, so that the network was not run for each of them.
    pub drafted_tokens: usize,
    /// Why the answer ended.
    pub finish: FinishReason,
    /// The mean logarithm of the tokens' probabilities; none without tokens.
    pub mean_log_probability: Option<f64>,
}

impl Answer {
    /// How sure the model is of its words, in 0..=1: the geometric mean of the tokens' probabilities. None
    /// without tokens.
    pub fn probability(&self) -> Option<f64> {
        self.mean_log_probability.map(f64::exp)
    }

    /// What the model said, or [`UNKNOWN`] if it is less sure than `least`. An answer without tokens says nothing in
    /// any case.
    pub fn text_if_sure(&self, least: f64) -> &str {
        if self.probability().is_some_and(|probability| probability < least) { UNKNOWN } else { &self.text }
    }
}

/// A conversation, ready to be saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// Width and height of the picture, in pixels.
    pub image_size: [u32; 2],
    /// All regions.
    pub regions: Vec<ResolvedRegion>,
    /// Questions and answers.
    pub rounds: Vec<TranscriptRound>,
}

/// One round of a [`Transcript`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranscriptRound {
    /// The question, with regions as `<regionN>`.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// What [`Chat::undo`] took back.
#[derive(Clone, Debug, PartialEq)]
pub enum Undone {
    /// A region that no round has mentioned yet.
    Region(Region),
    /// A round, with the regions that its coordinates had made.
    Round(TranscriptRound),
}

/// Questions and answers about one picture, which is encoded once.
///
/// Rounds are kept as they were said, and the prompt is rendered from them anew for every question;
/// what of it was read before is not read again. Whatever fails leaves the conversation as it was.
///
/// ```no_run
/// # fn main() -> gpt4roi::Result<()> {
/// use gpt4roi::{BBox, Chat, Gpt4Roi, Image};
///
/// let model = Gpt4Roi::open("models/gpt4roi-7b", &candle_core::Device::Cpu)?;
/// let image = Image::open("street.jpg", 100_000_000)?;
/// let mut chat = Chat::new(&model, &image)?;
/// let rider = chat.add_region(BBox::from_pixels([40., 60., 210., 300.], image.size())?);
/// let answer = chat.ask(&format!("What is {rider} doing?"))?;
/// # let _ = answer; Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Chat<'m> {
    pub(crate) model: &'m Gpt4Roi,
    pub(crate) image: Arc<EncodedImage>,
    regions: Vec<Region>,
    turns: Vec<Turn>,
    memory: Memory,
    pub(crate) drafter: Drafter,
}

/// A round that was answered.
#[derive(Clone, Debug)]
struct Turn {
    round: Round,
    /// Regions that existed before it was asked.
    regions_before: usize,
    /// The same with those that its coordinates made.
    regions_after: usize,
}

impl<'m> Chat<'m> {
    /// Encodes the picture.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn new(model: &'m Gpt4Roi, image: &Image) -> Result<Self> {
        Ok(Self::with_image(model, Arc::new(EncodedImage::new(model, image)?)))
    }

    /// About a picture that this model has encoded before, as an
    /// [`ImageCache`](crate::image_cache::ImageCache) hands them out.
    pub fn with_image(model: &'m Gpt4Roi, image: Arc<EncodedImage>) -> Self {
        let (memory, drafter) = (Memory::new(model), Drafter::new());
        Self { model, image, regions: Vec::new(), turns: Vec::new(), memory, drafter }
    }

    /// Drafts by what others have said, too, who use the same drafter: where many pictures are asked about alike, answers
    /// resemble each other.
    pub fn drafting_by(self, drafter: &Drafter) -> Self {
        Self { drafter: drafter.clone(), ..self }
    }

    /// Declares a region; its id displays as the mention that questions use.
    pub fn add_region(&mut self, bbox: BBox) -> RegionId {
        push_region(&mut self.regions, bbox, Origin::Given)
    }

    /// Declares a box under a number of its own, where [`Self::add_region`] takes the lowest that is free. Numbers may be
    /// left out.
    ///
    /// # Errors
    /// If the number is 0 or that of another region.
    pub fn declare_region(&mut self, id: RegionId, bbox: BBox) -> Result<()> {
        asked::check_number(id, self.regions.iter().map(|region| region.id))?;
        self.regions.push(Region { id, bbox, origin: Origin::Given });
        Ok(())
    }

    /// Declares a region of any shape. Around a point a box is grown as the model's training did it.
    ///
    /// # Errors
    /// If the engine fails. Nothing is declared then.
    pub fn add_shape(&mut self, shape: Shape) -> Result<RegionId> {
        let point_box = PointBox::of(&self.model.config.region);
        let bbox = asked::box_of(shape, &self.image, &point_box)?;
        Ok(push_region(&mut self.regions, bbox, asked::origin_of(&shape)))
    }

    /// All regions, in the order in which they came to be.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Forgets regions and rounds, and begins anew with the same picture, which stays encoded.
    pub fn clear(&mut self) {
        self.regions.clear();
        self.turns.clear();
    }

    /// Takes the latest thing back: a region added since the last round, or else that round.
    pub fn undo(&mut self) -> Option<Undone> {
        let answered = self.turns.last().map_or(0, |turn| turn.regions_after);
        if self.regions.len() > answered {
            return self.regions.pop().map(Undone::Region);
        }
        let turn = self.turns.pop()?;
        self.regions.truncate(turn.regions_before);
        Some(Undone::Round(saved(&turn.round)))
    }

    /// Answers greedily; see [`Self::ask_streaming`].
    ///
    /// # Errors
    /// As [`Self::ask_streaming`].
    pub fn ask(&mut self, question: &str) -> Result<Answer> {
        self.ask_with(question, &AskOptions::default())
    }

    /// Answers all at once; see [`Self::ask_streaming`].
    ///
    /// # Errors
    /// As [`Self::ask_streaming`].
    pub fn ask_with(&mut self, question: &str, options: &AskOptions) -> Result<Answer> {
        self.ask_streaming(question, options, |_| ControlFlow::Continue(()))
    }

    /// Answers a question. Regions are mentioned as `<region1>`; coordinates become new regions, and
    /// a box is grown around a point.
    ///
    /// `on_text` is called after every token with what it adds to the answer, which may be nothing.
    /// If it breaks, the answer ends there as [`FinishReason::Cancelled`], and the conversation goes
    /// on as if the question had never been asked.
    ///
    /// # Errors
    /// If the question is empty, mentions a region that does not exist, holds an impossible box, or
    /// leaves no room for an answer; if sampling settings are out of range or the model's numbers
    /// are none. The conversation is then as it was before.
    pub fn ask_streaming(
        &mut self,
        question: &str,
        options: &AskOptions,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let asked = self.asked(question, options)?;
        let answer = self.respond(&asked, on_text)?;
        if answer.finish != FinishReason::Cancelled {
            self.conclude(asked, answer.text.clone());
        }
        Ok(answer)
    }

    /// The conversation goes on as if the last answer had been another one; without an answer nothing happens. For a
    /// question that builds on what is right, whatever the model said.
    pub fn replace_answer(&mut self, answer: &str) {
        if let Some(turn) = self.turns.last_mut() {
            turn.round.answer = Some(answer.to_owned());
        }
    }

    /// The conversation so far.
    pub fn transcript(&self) -> Transcript {
        Transcript {
            image_size: [self.image.size().width, self.image.size().height],
            regions: self.regions.iter().map(|region| region.resolved(self.image.size())).collect(),
            rounds: self.turns.iter().map(|turn| saved(&turn.round)).collect(),
        }
    }

    /// A question behind the conversation so far, of which it becomes no part yet.
    pub(crate) fn asked(&self, question: &str, options: &AskOptions) -> Result<Asked> {
        let (size, mut declared) = (self.image.size(), self.regions.iter().map(Into::into).collect());
        let question = pieces(&[Said::Text(question.to_owned())], &mut declared, size)?;
        let mut rounds: Vec<Round> = self.turns.iter().map(|turn| turn.round.clone()).collect();
        rounds.push(Round { question, answer: None });
        Rendered::from_rounds(self.model, size, rounds, declared, options)?.locate(&self.image)
    }

    /// The question and its answer become a part of the conversation, and so do the regions that it made.
    pub(crate) fn conclude(&mut self, asked: Asked, answer: String) {
        let round = Round { question: asked.rendered().question().to_vec(), answer: Some(answer) };
        let (regions_before, regions_after) = (self.regions.len(), asked.regions.len());
        self.turns.push(Turn { round, regions_before, regions_after });
        self.regions = asked.regions;
    }

    /// Reads and generates. Of the conversation only the memory of what was read changes, and that never
    /// changes an answer.
    fn respond(&mut self, asked: &Asked, mut on_text: impl FnMut(&str) -> ControlFlow<()>) -> Result<Answer> {
        let (rendered, tokens) = (asked.rendered(), asked.rendered().tokens());
        let reused = self.memory.recall(&asked.prompt, tokens - 1);
        let embeds = asked.embed(self.model, &self.image, reused..tokens)?;
        let (mut sampler, limits) = (rendered.sampler(), rendered.limits());
        let mut stream = AnswerStream::new(&self.model.tokenizer, rendered.stop());
        let llama = &self.model.network.llama;
        let decoder = LlamaDecoder { llama, cache: &mut self.memory.cache, embeds: &embeds };
        let most = rendered.draft().unwrap_or_else(|| self.drafter.default_draft(llama));
        let drafter = (most > 0).then_some(&self.drafter);
        let told = asked.show(drafter, reused);
        let mut decoder = DraftingDecoder::new(decoder, drafter, told, most);
        let generated = generate(&mut decoder, &mut sampler, limits, |token| {
            let complete = stream.push(token);
            match (on_text(stream.fresh()), complete) {
                (ControlFlow::Break(()), _) => ControlFlow::Break(Halt::Cancel),
                (_, true) => ControlFlow::Break(Halt::Stop),
                (_, false) => ControlFlow::Continue(()),
            }
        });
        let mut generation = match generated {
            Ok(generation) => {
                decoder.conclude(generation.ids.last());
                generation
            }
            Err(error) => {
                self.memory = Memory::new(self.model);
                return Err(error.into());
            }
        };
        self.memory.remember(asked.prompt.clone(), &generation.ids);
        let (text, rest) = stream.finish(&mut generation);
        if generation.finish != FinishReason::Cancelled {
            // What was held back is shown now; there is nothing left that could be cancelled.
            let _ = on_text(&rest);
        }
        Ok(asked.answer(reused, &generation, text))
    }

    /// Reads a prompt's first `length` tokens, as far as they were not read before, and shares what was
    /// read of them; also returns how many had been read before.
    pub(crate) fn read_prefix(&mut self, asked: &Asked, length: usize) -> Result<(Arc<KvCache>, usize)> {
        let reused = self.memory.recall(&asked.prompt, length);
        if reused < length {
            let embeds = asked.embed(self.model, &self.image, reused..length)?;
            if let Err(error) = self.model.network.llama.forward(&embeds, &mut self.memory.cache) {
                self.memory = Memory::new(self.model);
                return Err(error.into());
            }
            self.memory.remember(asked.prompt[..length].to_vec(), &[]);
        }
        Ok((Arc::new(self.memory.cache.clone()), reused))
    }
}

impl Region {
    pub(crate) fn resolved(&self, size: ImageSize) -> ResolvedRegion {
        ResolvedRegion { id: self.id.0, pixels: self.bbox.pixels(size), origin: self.origin }
    }
}

fn push_region(regions: &mut Vec<Region>, bbox: BBox, origin: Origin) -> RegionId {
    let id = lowest_free(regions.iter().map(|region| region.id));
    regions.push(Region { id, bbox, origin });
    id
}

fn saved(round: &Round) -> TranscriptRound {
    TranscriptRound { question: question_text(&round.question), answer: round.answer.clone().unwrap_or_default() }
}

/// The key/value cache and what it was read from.
#[derive(Debug)]
struct Memory {
    cache: KvCache,
    read: Vec<Slot>,
}

impl Memory {
    fn new(model: &Gpt4Roi) -> Self {
        Self { cache: model.network.llama.new_cache(), read: Vec::new() }
    }

    /// Keeps the longest beginning that the prompt shares with what was read, of at most `most` tokens,
    /// and returns its length. A prompt's last token has to be left to be read: its logits are the
    /// answer's beginning.
    fn recall(&mut self, prompt: &[Slot], most: usize) -> usize {
        let common = self.read.iter().zip(prompt).take(most).take_while(|(read, wanted)| read == wanted).count();
        self.read.truncate(common);
        self.cache.truncate(common);
        common
    }

    /// Notes what the cache holds after an answer. The last token of an answer was not read, unless as a draft; whatever
    /// was drafted behind it is forgotten.
    fn remember(&mut self, prompt: Vec<Slot>, answer: &[u32]) {
        self.read = prompt;
        self.read.extend(answer.iter().map(|&token| Slot::Token(token)));
        let read = self.read.len() - usize::from(!answer.is_empty());
        self.cache.truncate(read);
        self.read.truncate(self.cache.len());
    }
}

/// The model writes who speaks; prompts leave the role's name to it.
const ROLE: &str = "Assistant:";

/// What the model wrote, without stop signal and role name, and without the beginning of one where the limit came in
/// between; `A` and `As` are words.
pub fn tidy(output: &str) -> String {
    let answer = output.split(TURN).next().unwrap_or_default().trim();
    if answer.len() > "As".len() && ROLE.starts_with(answer) {
        return String::new();
    }
    answer.replace(&format!("{ROLE} "), "").replace(ROLE, "")
}

/// Turns tokens into text that can be shown at once: what a later token might take away is held back.
#[derive(Debug)]
pub struct AnswerStream<'t> {
    tokens: TextStream<'t>,
    stop: StopStrings,
    decoded: String,
    shown: String,
    /// The whole answer, if one of the strings ended it.
    stopped: Option<String>,
}

impl<'t> AnswerStream<'t> {
    /// An answer without tokens.
    pub fn new(tokenizer: &'t Tokenizer, stop: &StopStrings) -> Self {
        let (decoded, shown) = (String::new(), String::new());
        Self { tokens: tokenizer.stream(), stop: stop.clone(), decoded, shown, stopped: None }
    }

    /// Takes one token; true if the answer is complete.
    pub fn push(&mut self, token: u32) -> bool {
        self.decoded += &self.tokens.push(token);
        self.stopped = self.stop.cut(&tidy(settled(&self.decoded))).map(str::to_owned);
        self.stopped.is_some() || self.decoded.contains(TURN)
    }

    /// What can be shown since the last call.
    pub fn fresh(&mut self) -> &str {
        let before = self.shown.len();
        let visible = self.stopped.clone().unwrap_or_else(|| {
            let text = tidy(settled(&self.decoded));
            self.stop.settled(&text).to_owned()
        });
        if visible.starts_with(&self.shown) {
            self.shown = visible;
        }
        &self.shown[before..]
    }

    /// The whole answer, and the part of it that was not shown yet. Where the last token that was allowed completed one
    /// of the strings, while it was held back, that string ended the answer and not the limit.
    pub fn finish(mut self, generation: &mut Generation) -> (String, String) {
        self.decoded += &self.tokens.finish();
        let whole = tidy(&self.decoded);
        let stopped = self.stopped.or_else(|| self.stop.cut(&whole).map(str::to_owned));
        if stopped.is_some() && generation.finish == FinishReason::Length {
            generation.finish = FinishReason::Stop;
        }
        let text = stopped.unwrap_or(whole);
        let rest = text.strip_prefix(&self.shown).unwrap_or_default().to_owned();
        (text, rest)
    }
}

/// The beginning of a text that no further token can take away: without what may become a stop signal
/// or a role's name.
fn settled(decoded: &str) -> &str {
    let text = decoded.trim_end_matches('#');
    let role = (1..=ROLE.len()).rev().find(|&letters| text.ends_with(&ROLE[..letters]));
    &text[..text.len() - role.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Tensor;

    use super::*;
    use crate::{
        bbox::Point,
        error::Error,
        model::Network,
        tiny::{Noise, assert_same, bbox, picture, short, tiny},
        weights::{TensorSource, Weights, WeightsResult},
    };

    #[test]
    fn later_rounds_read_only_what_is_new_and_answer_the_same() {
        let (model, picture) = (tiny(), picture());
        let (mut chat, mut forgetful) = (Chat::new(&model, &picture).unwrap(), Chat::new(&model, &picture).unwrap());
        let mut reused = Vec::new();
        for chat in [&mut chat, &mut forgetful] {
            chat.add_region(bbox([0.1, 0.2, 0.5, 0.9]));
            chat.add_region(bbox([0.4, 0.1, 0.9, 0.6]));
        }
        for question in ["What is <region2>?", "Is <region1> left of region 2?", "What is <region1> for?"] {
            forgetful.memory = Memory::new(&model);
            let (answer, anew) =
                (chat.ask_with(question, &short()).unwrap(), forgetful.ask_with(question, &short()).unwrap());
            assert_same(&answer, &anew);
            assert_eq!(anew.reused_tokens, 0);
            reused.push((answer.reused_tokens, answer.prompt_tokens));
        }
        assert_eq!(reused[0].0, 0);
        // The first round's prompt but for its open end is read once.
        assert!(reused[1].0 >= reused[0].1 - 2 && reused[2].0 >= reused[1].1 - 2, "{reused:?}");
        assert_eq!(chat.transcript(), forgetful.transcript());
    }

    /// Two conversations about the same with one drafter: the second one is drafted by the first. Each round goes on
    /// behind what the one before has left in the cache.
    #[test]
    fn drafts_change_no_answer_and_nothing_behind_it() {
        let (model, picture) = (tiny(), picture());
        let drawn = Sampling::Random { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 3 };
        for sampling in [Sampling::Greedy, drawn] {
            let undrafted = AskOptions { max_new_tokens: 20, sampling, draft: Some(0), ..AskOptions::default() };
            let drafted = AskOptions { draft: Some(3), ..undrafted.clone() };
            let talk = |drafter: &Drafter, options| {
                let mut chat = Chat::new(&model, &picture).unwrap().drafting_by(drafter);
                chat.add_region(bbox([0.1, 0.2, 0.5, 0.9]));
                ["What is <region1>?", "And what is around <region1>?", "What is <region1> for?"]
                    .map(|question| chat.ask_with(question, options).unwrap())
            };
            let expected = talk(&Drafter::new(), &undrafted);
            assert!(expected.iter().all(|answer| answer.drafted_tokens == 0));
            let drafter = Drafter::new();
            for round in 0..4 {
                let answers = talk(&drafter, &drafted);
                answers.iter().zip(&expected).for_each(|(answer, expected)| assert_same(answer, expected));
                let drafted: usize = answers.iter().map(|answer| answer.drafted_tokens).sum();
                assert!(round == 0 || drafted > 20, "{drafted} in round {round}");
            }
        }
    }

    /// Ten tokens were read: a prompt of five, two of three that were said, and three that were drafted in vain. An answer
    /// of which nothing was read, and a prompt that was read in part, take nothing that is not there.
    #[test]
    fn what_was_drafted_in_vain_is_not_remembered() {
        let model = tiny();
        let slots = |count: u32| (0..count).map(Slot::Token).collect::<Vec<_>>();
        for (said, remembered) in [(3, 7), (1, 5), (0, 5), (9, 10)] {
            let mut memory = Memory::new(&model);
            let embeds = Tensor::zeros((1, 10, model.config.llama.hidden_size), candle_core::DType::F32, &model.device);
            model.network.llama.forward(&embeds.unwrap(), &mut memory.cache).unwrap();
            memory.remember(slots(5), &(5..5 + said).collect::<Vec<_>>());
            assert_eq!((memory.cache.len(), memory.read), (remembered, slots(remembered as u32)), "{said}");
        }
    }

    #[test]
    fn every_shape_becomes_a_region_that_says_where_it_came_from() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        let (drawn, point) = (bbox([0.1, 0.2, 0.5, 0.9]), Point { x: 0.25, y: 0.75 });
        for shape in [Shape::Box(drawn), Shape::Point(point), Shape::Polygon(drawn), Shape::Mask(drawn)] {
            chat.add_shape(shape).unwrap();
        }
        let origins: Vec<_> = chat.regions().iter().map(|region| region.origin).collect();
        assert_eq!(origins, [Origin::Given, Origin::Point, Origin::Polygon, Origin::Mask]);
        assert!([0, 2, 3].iter().all(|&index| chat.regions()[index].bbox == drawn));

        let asked = chat.ask_with("What is at (0.25, 0.75)?", &short()).unwrap();
        let grown = chat.regions()[1].bbox;
        assert!(grown.contains(point));
        assert_eq!(asked.regions[0].pixels, grown.pixels(picture.size()), "as it grows in a question");
    }

    #[test]
    fn another_box_in_the_same_place_is_read_again() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        let ask = |chat: &mut Chat<'_>, xyxy| {
            chat.add_region(bbox(xyxy));
            chat.ask_with("What is <region1>?", &short()).unwrap()
        };
        let first = ask(&mut chat, [0.1, 0.1, 0.3, 0.4]);
        assert!(matches!(chat.undo(), Some(Undone::Round(_))));
        assert!(matches!(chat.undo(), Some(Undone::Region(_))));
        assert_eq!(chat.undo(), None);
        let second = ask(&mut chat, [0.5, 0.2, 0.9, 0.9]);
        let fresh = ask(&mut Chat::new(&model, &picture).unwrap(), [0.5, 0.2, 0.9, 0.9]);
        assert_same(&second, &fresh);
        assert_ne!(first.mean_log_probability, second.mean_log_probability);
        assert!(second.reused_tokens > 0);
    }

    #[test]
    fn coordinates_become_regions_and_undo_takes_them_along() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        chat.add_region(bbox([0.0, 0.0, 1.0, 1.0]));
        let grown = AskOptions { point_box: Some(PointBox::default()), ..short() };
        let answer = chat.ask_with("Is [8, 6, 40, 30] in <region1>, or at (0.5, 0.75)?", &grown).unwrap();
        assert_eq!(answer.question, "Is <region2> in <region1>, or at <region3>?");
        let origins: Vec<_> = answer.regions.iter().map(|region| (region.id, region.origin)).collect();
        assert_eq!(origins, [(2, Origin::Coordinates), (1, Origin::Given), (3, Origin::Point)]);
        assert_eq!(answer.regions[0].pixels, [8.0, 6.0, 40.0, 30.0]);
        let [x1, y1, x2, y2] = answer.regions[2].pixels;
        assert!(x1 < 40.0 && 40.0 < x2 && y1 < 45.0 && 45.0 < y2, "the point lies in its box");

        chat.ask_with("What is region 3?", &short()).unwrap();
        chat.add_region(bbox([0.2, 0.2, 0.3, 0.3]));
        assert_eq!(chat.regions().len(), 4);
        assert!(matches!(chat.undo(), Some(Undone::Region(Region { id: RegionId(4), .. }))));
        assert!(matches!(chat.undo(), Some(Undone::Round(round)) if round.question == "What is <region3>?"));
        assert_eq!(chat.regions().len(), 3);
        assert!(matches!(chat.undo(), Some(Undone::Round(_))));
        assert_eq!(chat.regions().len(), 1);

        // Without a wish of ours, the box is the one that this model's training put around points.
        let answer = chat.ask_with("What is at (0.5, 0.75)?", &short()).unwrap();
        let reach = model.config.region.point_reach.unwrap();
        let expected = [0.5 - reach, 0.75 - reach, 0.5 + reach, 0.75 + reach];
        assert_eq!(answer.regions[0].pixels, bbox(expected).pixels(picture.size()));
        chat.clear();
        assert_eq!(chat.transcript().rounds.len() + chat.regions().len(), 0);
    }

    /// As where all is declared at once: a number that is left out is nobody's, until coordinates take it.
    #[test]
    fn numbers_of_regions_may_be_left_out() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        let boxes = [(RegionId(3), bbox([0.1, 0.2, 0.5, 0.9])), (RegionId(1), bbox([0.5, 0.1, 0.9, 0.4]))];
        for (id, bbox) in boxes {
            chat.declare_region(id, bbox).unwrap();
        }
        for (id, told) in [(0, "region0: expected a number from 1"), (3, "<region3> is declared twice")] {
            assert!(chat.declare_region(RegionId(id), boxes[0].1).unwrap_err().to_string().starts_with(told));
        }
        let question = "What is region 2, <region3>, [8, 6, 40, 30]?";
        let shapes = boxes.map(|(id, bbox)| (id, Shape::Box(bbox)));
        let said = [Said::Text(question.into())];
        let expected = Rendered::new(&model, picture.size(), &shapes, &[], &said, &short()).unwrap();
        assert_eq!(chat.asked(question, &short()).unwrap().rendered().question(), expected.question());
        let answer = chat.ask_with(question, &short()).unwrap();
        let mentioned: Vec<_> = answer.regions.iter().map(|region| region.id).collect();
        assert_eq!(mentioned, [3, 2], "region 2 was words when it was said");
        assert_eq!(chat.add_region(boxes[0].1), RegionId(4));
        assert!(matches!(chat.undo(), Some(Undone::Region(region)) if region.id == RegionId(4)));
        assert!(matches!(chat.undo(), Some(Undone::Round(_))));
        assert_eq!(chat.regions().iter().map(|region| region.id).collect::<Vec<_>>(), [RegionId(3), RegionId(1)]);
    }

    #[test]
    fn what_fails_changes_nothing() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        chat.add_region(bbox([0.1, 0.2, 0.5, 0.9]));
        chat.ask_with("What is <region1>?", &short()).unwrap();
        let before = chat.transcript();
        let random = |temperature| Sampling::Random { temperature, top_k: 0, top_p: 1.0, seed: 0 };
        let broken = AskOptions { sampling: random(f64::NAN), ..short() };
        let long = "what ".repeat(4000);
        for (question, options) in [
            ("", short()),
            ("   ", short()),
            ("What is <region2>?", short()),
            ("What is [1, 2, 8000, 4]?", short()),
            ("What is [1, 2, 30, 40]?", broken),
            (&long, short()),
        ] {
            chat.ask_with(question, &options).unwrap_err();
            assert_eq!(chat.transcript(), before, "{question:.20}");
        }
        let again = chat.ask_with("What is region 1 for?", &short()).unwrap();
        let mut fresh = Chat::new(&model, &picture).unwrap();
        fresh.add_region(bbox([0.1, 0.2, 0.5, 0.9]));
        fresh.ask_with("What is <region1>?", &short()).unwrap();
        assert_same(&again, &fresh.ask_with("What is region 1 for?", &short()).unwrap());
    }

    /// Blanks around a question are no part of it, but they are of what was typed.
    #[test]
    fn an_error_names_the_place_as_it_was_typed() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        let error = chat.ask_with("\n  Is <region1> red? ", &short()).unwrap_err().to_string();
        assert!(error.starts_with("character 7: <region1> is not declared"), "{error}");
        chat.add_region(bbox([0.1, 0.2, 0.5, 0.9]));
        let (padded, bare) = ("\n  Is <region1> red? ", "Is <region1> red?");
        let answer = chat.ask_with(padded, &short()).unwrap();
        assert_eq!((answer.question.as_str(), chat.transcript().rounds[0].question.as_str()), (bare, bare));
        chat.undo();
        assert_same(&answer, &chat.ask_with(bare, &short()).unwrap());
    }

    #[test]
    fn broken_weights_end_the_answer_with_an_error() {
        struct Broken;
        impl TensorSource for Broken {
            fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
                let tensor = Noise.tensor(name, shape)?;
                Ok(if name == "lm_head.weight" { tensor.affine(f64::NAN, 0.0).unwrap() } else { tensor })
            }
        }
        let mut model = tiny();
        let weights = Weights::new(Arc::new(Broken));
        model.network = Network::load(&model.config, &weights, &weights).unwrap();
        let mut chat = Chat::new(&model, &picture()).unwrap();
        let error = chat.ask("What is [0.1, 0.1, 0.5, 0.5]?").unwrap_err();
        assert!(matches!(error, Error::Generate(_)), "{error}");
        assert!(chat.regions().is_empty() && chat.transcript().rounds.is_empty());
    }

    #[test]
    fn text_streams_and_a_break_cancels_without_a_trace() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        let options = AskOptions { max_new_tokens: 40, ..AskOptions::default() };
        let (mut streamed, mut calls) = (String::new(), 0);
        let answer = chat.ask_streaming("What do you see?", &options, |text| {
            calls += 1;
            streamed += text;
            ControlFlow::Continue(())
        });
        let answer = answer.unwrap();
        assert_eq!(streamed, answer.text);
        assert_eq!(calls, answer.generated_tokens + 1, "once per token, and once for what was held back");

        let before = chat.transcript();
        let mut calls = 0;
        let cancelled = chat.ask_streaming("And what is [0.1, 0.1, 0.5, 0.5]?", &options, |_| {
            calls += 1;
            if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let cancelled = cancelled.unwrap();
        assert_eq!((cancelled.finish, cancelled.generated_tokens, calls), (FinishReason::Cancelled, 3, 3));
        assert_eq!(chat.transcript(), before);
        assert!(chat.regions().is_empty());
    }

    /// The mean of the logarithms of 1/2 and 1/8 is that of 1/4.
    #[test]
    fn the_probability_of_an_answer_is_the_geometric_mean_of_its_tokens() {
        let (model, picture) = (tiny(), picture());
        let answer = Chat::new(&model, &picture).unwrap().ask_with("What do you see?", &short()).unwrap();
        let of = |mean_log_probability| Answer { mean_log_probability, ..answer.clone() };
        let quarter = of(Some((0.5f64.ln() + 0.125f64.ln()) / 2.0));
        assert!((quarter.probability().unwrap() - 0.25).abs() < 1e-12);
        assert_eq!((of(None).probability(), of(Some(0.0)).probability()), (None, Some(1.0)));
        assert_eq!((quarter.text_if_sure(0.3), quarter.text_if_sure(0.2)), (UNKNOWN, answer.text.as_str()));
        assert_eq!((of(None).text_if_sure(1.0), of(Some(0.0)).text_if_sure(1.0)), (&*answer.text, &*answer.text));
    }

    #[test]
    fn a_seed_repeats_an_answer() {
        let (model, picture) = (tiny(), picture());
        let ask = |seed| {
            let sampling = Sampling::Random { temperature: 5.0, top_k: 0, top_p: 1.0, seed };
            let options = AskOptions { sampling, ..short() };
            Chat::new(&model, &picture).unwrap().ask_with("What do you see?", &options).unwrap()
        };
        assert_eq!(ask(1), ask(1));
        assert_ne!(ask(1).mean_log_probability, ask(2).mean_log_probability);
    }

    #[test]
    fn a_transcript_survives_json() {
        let (model, picture) = (tiny(), picture());
        let mut chat = Chat::new(&model, &picture).unwrap();
        chat.ask_with("What is [8, 6, 40, 30]?", &short()).unwrap();
        let transcript = chat.transcript();
        let json = serde_json::to_string(&transcript).unwrap();
        assert_eq!(serde_json::from_str::<Transcript>(&json).unwrap(), transcript);
        assert!(json.contains(r#""image_size":[80,60]"#) && json.contains(r#""origin":"coordinates""#), "{json}");
    }

    #[test]
    fn answers_lose_role_and_stop_signal() {
        for (output, answer) in [
            ("Assistant: a red car\n###", "a red car"),
            (" Assistant:a red car", "a red car"),
            ("a red car ### Human: and", "a red car"),
            ("Assistant: one. Assistant: two", "one. two"),
            ("###", ""),
            ("", ""),
            ("Assistant", ""),
            (" Ass", ""),
            ("As", "As"),
            ("A", "A"),
            ("Assistants", "Assistants"),
        ] {
            assert_eq!(tidy(output), answer, "{output:?}");
        }
    }

    /// Token by token: what is shown, whether the answer is complete at its end, and whether the limit of tokens ended it if
    /// that was reached there.
    #[test]
    fn a_string_of_the_callers_ends_an_answer() {
        let model = tiny();
        let red = "An octopus. It is red.";
        for (said, strings, expected, is_complete, finish) in [
            (red, &["."][..], "An octopus", true, FinishReason::Stop),
            (red, &["octo"], "An ", true, FinishReason::Stop),
            (red, &["is red", "It"], "An octopus. ", true, FinishReason::Stop),
            (red, &["octagon", "red!"], "An octopus. It is red.", false, FinishReason::Length),
            (red, &[], "An octopus. It is red.", false, FinishReason::Length),
            // Held back, since a role's name begins like this.
            ("An octopus. Assist", &["Assist"], "An octopus. ", false, FinishReason::Stop),
            ("An octopus. Assist", &["Assists"], "An octopus. Assist", false, FinishReason::Length),
        ] {
            let ids = model.tokenizer.encode_text(said).into_iter().collect::<Vec<_>>();
            let stop = StopStrings::new(strings.iter().map(|string| (*string).to_owned()));
            let mut stream = AnswerStream::new(&model.tokenizer, &stop);
            let (mut shown, mut complete) = (String::new(), false);
            for &id in &ids {
                complete = stream.push(id);
                shown += stream.fresh();
                assert!(expected.starts_with(&shown), "{strings:?}: {shown}");
                if complete {
                    break;
                }
            }
            let (ids, log_probabilities) = (ids.clone(), vec![-0.1; ids.len()]);
            let mut generation = Generation { ids, log_probabilities, drafted: 0, finish: FinishReason::Length };
            let (text, rest) = stream.finish(&mut generation);
            assert_eq!((text.as_str(), complete), (expected, is_complete), "{strings:?}");
            assert_eq!(generation.finish, finish, "{said} {strings:?}");
            assert_eq!(shown + &rest, expected, "{strings:?}");
        }
    }

    /// At the limit of tokens an answer may end in what would have begun a stop string. It has not come, so that the limit
    /// ended the answer, which has every word.
    #[test]
    fn what_only_begins_a_stop_string_ends_no_answer() {
        let (model, picture) = (tiny(), picture());
        let ask = |stop: &str| {
            let options = AskOptions { stop: StopStrings::new([stop.to_owned()]), ..short() };
            let mut shown = String::new();
            let mut chat = Chat::new(&model, &picture).unwrap();
            let answer = chat.ask_streaming("What do you see?", &options, |text| {
                shown += text;
                ControlFlow::Continue(())
            });
            (answer.unwrap(), shown)
        };
        let (whole, _) = ask("");
        assert_eq!(whole.finish, FinishReason::Length);
        let last = whole.text.chars().next_back().unwrap().to_string();
        let (begun, shown) = ask(&format!("{last}, and more"));
        assert_eq!((&begun, &shown), (&whole, &whole.text));
        let (reached, shown) = ask(&last);
        assert_eq!((reached.finish, &shown), (FinishReason::Stop, &reached.text));
        assert_eq!(Some(reached.text.as_str()), whole.text.split(&last).next());
    }

    #[test]
    fn only_settled_text_is_shown() {
        for (decoded, shown) in [
            ("A", ""),
            ("Assis", ""),
            ("Assistant:", ""),
            ("Assistant: a c", "Assistant: a c"),
            ("a car\n##", "a car\n"),
            ("a car\n###", "a car\n"),
            ("a can", "a can"),
            ("a big As", "a big "),
        ] {
            assert_eq!(settled(decoded), shown, "{decoded:?}");
        }
    }
}
