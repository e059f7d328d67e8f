//! A whole run of the model, recorded tensor by tensor, to compare one implementation with another.
//!
//! A [`Case`] is a conversation about one picture, to be played exactly as the original would: words
//! that look like structure are what the original makes of them, decoding is greedy, the stop signal
//! is first looked for behind the second token, and answers are tidied up in the original's way. The
//! one difference is that a region belongs to its mention by number, not by order.

use std::{collections::BTreeMap, fmt::Display, ops::ControlFlow};

use candle_core::{Device, Result as TensorResult, Tensor};
use serde::Deserialize;

use crate::{
    bbox::{BBox, BoxPrecision, RegionId},
    error::{Error, Result},
    generate::{Decoder, FinishReason, Generation, Halt, Limits, LlamaDecoder, generate},
    image::Image,
    mention::{self, MentionError, Part},
    model::{Gpt4Roi, ImageFeatures},
    prompt::{self, Piece, Round, TURN, TextMode},
    sampling::{Sampler, Sampling},
    tokenizer::{Tokenizer, is_python_space},
};

/// What the original says when the model wrote nothing.
const NO_ANSWER: &str = "There is internal error. Please click 'Clear All' and try again.";

/// A conversation to play, as `case.json` has it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Case {
    /// The picture's file, beside `case.json`.
    pub image: String,
    /// By region number: xyxy in pixels of the picture.
    #[serde(default)]
    pub boxes: BTreeMap<u32, [f64; 4]>,
    /// The rounds.
    pub turns: Vec<CaseTurn>,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// The precision in which boxes reach the model.
    pub box_precision: CasePrecision,
    /// Level k of the pyramid is recorded at every `level_stride[k]`-th row and column.
    pub level_stride: Vec<usize>,
}

/// One round of a [`Case`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CaseTurn {
    /// What is asked. `<regionN>` and `<N>` mention region N.
    pub question: String,
    /// Goes into the history in place of the model's own answer.
    pub reply: Option<String>,
}

/// [`BoxPrecision`], by the names of `case.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CasePrecision {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
}

impl From<CasePrecision> for BoxPrecision {
    fn from(precision: CasePrecision) -> Self {
        match precision {
            CasePrecision::F32 => Self::F32,
            CasePrecision::F16 => Self::F16,
        }
    }
}

/// What a case came to.
#[derive(Debug)]
pub struct Trace {
    /// The recorded tensors by name. Ids and answer of the last round have plain names, those of
    /// earlier rounds begin with `round.N.`
    pub tensors: BTreeMap<String, Tensor>,
    /// The rounds in order.
    pub rounds: Vec<TracedRound>,
}

/// One round of a [`Trace`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedRound {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// What the model said, tidied up.
    pub answer: String,
    /// Why it ended.
    pub finish: FinishReason,
}

/// Plays a case and records it.
///
/// # Errors
/// If a region is mentioned that has no box, a box does not fit the picture, a round leaves no room
/// for its answer, or the engine fails.
pub fn trace(model: &Gpt4Roi, case: &Case, image: &Image) -> Result<Trace> {
    let mut trace = Trace { tensors: BTreeMap::new(), rounds: Vec::new() };
    let pixel_values = image.pixel_values(&model.config.vision, &model.device)?;
    let features = model.network.encode_image(&pixel_values)?;
    for (index, state) in model.config.level_states()?.iter().zip(&features.states) {
        trace.tensors.insert(format!("vision.hidden.{index}"), state.clone());
    }
    trace.tensors.insert("pixel_values".into(), pixel_values);
    trace.tensors.insert("image_tokens".into(), features.image_tokens.clone());

    let questions = case.turns.iter().map(|turn| pieces(&turn.question, case)).collect::<Result<Vec<_>>>()?;
    let regions = trace.regions(model, case, image, &features, &mentioned(&questions))?;
    let mut rounds = Vec::new();
    for (index, (turn, question)) in case.turns.iter().zip(questions).enumerate() {
        rounds.push(Round { question, answer: None });
        let prefix = if index + 1 == case.turns.len() { String::new() } else { format!("round.{}.", index + 1) };
        let answer = trace.round(model, case, &features, regions.as_ref(), &rounds, &prefix)?;
        rounds[index].answer = Some(turn.reply.clone().unwrap_or(answer));
    }
    Ok(trace)
}

impl Trace {
    /// Records maps, cut-outs and vectors of all regions of the conversation, in the order given.
    ///
    /// # Shapes
    /// → `[N, H]`, or nothing without regions
    fn regions(
        &mut self,
        model: &Gpt4Roi,
        case: &Case,
        image: &Image,
        features: &ImageFeatures,
        order: &[RegionId],
    ) -> Result<Option<Tensor>> {
        if order.is_empty() {
            return Ok(None);
        }
        let of = |id: &RegionId| {
            let pixels = case.boxes.get(&id.0).copied();
            Ok(BBox::from_pixels(pixels.ok_or_else(|| without_box(id))?, image.size())?)
        };
        let boxes = order.iter().map(of).collect::<Result<Vec<_>>>()?;
        let boxes = BBox::tensor(&boxes, case.box_precision.into(), &model.device)?;
        let maps = model.network.pyramid(features)?;
        let rois = model.network.region.head.pool(&maps, &boxes)?;
        let tokens = model.network.region.head.forward(&rois, &boxes)?;
        for (level, (map, roi)) in maps.iter().zip(&rois).enumerate() {
            let stride = case.level_stride.get(level).copied().unwrap_or(1);
            self.tensors.insert(format!("region.level.{level}"), every(map, stride)?);
            self.tensors.insert(format!("region.roi.{level}"), roi.clone());
        }
        self.tensors.insert("region.tokens".into(), tokens.clone());
        Ok(Some(tokens))
    }

    /// Plays and records the last of `rounds`, and returns its answer.
    fn round(
        &mut self,
        model: &Gpt4Roi,
        case: &Case,
        features: &ImageFeatures,
        regions: Option<&Tensor>,
        rounds: &[Round],
        prefix: &str,
    ) -> Result<String> {
        let encoded = prompt::encode(rounds, &model.tokenizer, model.config.vision.patches(), TextMode::Compat)?
            .with_region_tokens(model.config.region.tokens);
        encoded.check_length(model.config.llama.max_position_embeddings, case.max_new_tokens)?;
        let patch_places: Vec<u32> = encoded.patches.clone().map(|place| place as u32).collect();
        let region_places: Vec<u32> = encoded.regions.iter().map(|(place, _)| *place).collect();
        let known = regions.map(|tokens| tokens.narrow(0, 0, region_places.len())).transpose()?;
        let mut parts: Vec<(&Tensor, &[u32])> = vec![(&features.image_tokens, &patch_places)];
        parts.extend(known.as_ref().map(|tokens| (tokens, region_places.as_slice())));
        let ids = Tensor::from_slice(&encoded.ids, encoded.ids.len(), &model.device)?;
        let embeds = model.network.splice(&ids, &parts)?;

        let (generation, tail) = write(model, &embeds, case.max_new_tokens)?;
        let answer = tidy(&model.tokenizer.decode(&generation.ids));
        self.tensors.insert("logits.tail".into(), tail);
        self.tensors.insert(format!("{prefix}input_ids"), integers(&encoded.ids)?);
        self.tensors.insert(format!("{prefix}output_ids"), integers(&generation.ids)?);
        let letters = Tensor::from_slice(answer.as_bytes(), answer.len(), &Device::Cpu)?;
        self.tensors.insert(format!("{prefix}answer"), letters);
        let round = TracedRound { prompt_tokens: encoded.ids.len(), answer: answer.clone(), finish: generation.finish };
        self.rounds.push(round);
        Ok(answer)
    }
}

/// Splits a question at its mentions, `<regionN>` and `<N>`. What the original asks when nothing was
/// typed is up to [`prompt::encode`].
fn pieces(question: &str, case: &Case) -> Result<Vec<Piece>> {
    let declared: Vec<RegionId> = case.boxes.keys().copied().map(RegionId).collect();
    let parts = mention::parse_as_original(question, &declared).map_err(|error| match error {
        MentionError::UnknownRegion { mention, .. } => without_box(mention),
        other => other.into(),
    })?;
    let piece = |part| match part {
        Part::Text(text) => Some(Piece::Text(text)),
        Part::Mention(region) => Some(Piece::Region(region)),
        // The original knows no coordinates.
        Part::Box(_) | Part::Point(_) => None,
    };
    Ok(parts.into_iter().filter_map(piece).collect())
}

fn without_box(mention: impl Display) -> Error {
    Error::config("\"boxes\"", format!("a box for {mention}"), "none".into())
}

/// All regions of a conversation, in the order of their first mention.
fn mentioned(questions: &[Vec<Piece>]) -> Vec<RegionId> {
    let mut order = Vec::new();
    for piece in questions.iter().flatten() {
        if let Piece::Region(id) = piece
            && !order.contains(id)
        {
            order.push(*id);
        }
    }
    order
}

/// Every `stride`-th row and column of a map.
///
/// # Shapes
/// `[1, C, h, w]` → `[1, C, ⌈h/stride⌉, ⌈w/stride⌉]`
fn every(map: &Tensor, stride: usize) -> Result<Tensor> {
    let chosen = |extent: usize| {
        let indices: Vec<u32> = (0..extent as u32).step_by(stride.max(1)).collect();
        Tensor::from_slice(&indices, indices.len(), map.device())
    };
    let (_, _, height, width) = map.dims4()?;
    Ok(map.index_select(&chosen(height)?, 2)?.index_select(&chosen(width)?, 3)?)
}

fn integers(ids: &[u32]) -> TensorResult<Tensor> {
    Tensor::from_iter(ids.iter().map(|id| i64::from(*id)), &Device::Cpu)
}

/// Decodes greedily; also returns the logits `[4, V]` of the prompt's last four positions.
fn write(model: &Gpt4Roi, embeds: &Tensor, max_new_tokens: usize) -> Result<(Generation, Tensor)> {
    let mut cache = model.network.llama.new_cache();
    let decoder = LlamaDecoder { llama: &model.network.llama, cache: &mut cache, embeds };
    let mut recorder = Recorder { decoder, tail: None };
    let mut stop = StopSignal { tokenizer: &model.tokenizer, ids: Vec::new() };
    let limits = Limits { eos: model.tokenizer.special().eos, max_new_tokens };
    let generation = generate(&mut recorder, &mut Sampler::new(&Sampling::Greedy)?, limits, |token| stop.see(token))?;
    let tail = recorder.tail.ok_or_else(|| Error::config("\"max_new_tokens\"", "at least 1".into(), "0".into()))?;
    Ok((generation, tail))
}

/// A decoder that keeps the logits of the prompt's last positions.
struct Recorder<'a> {
    decoder: LlamaDecoder<'a>,
    tail: Option<Tensor>,
}

impl Decoder for Recorder<'_> {
    fn prefill(&mut self) -> TensorResult<Vec<f32>> {
        const POSITIONS: usize = 4;
        let LlamaDecoder { llama, cache, embeds } = &mut self.decoder;
        let hidden = llama.forward(embeds, cache)?.squeeze(0)?;
        let length = hidden.dim(0)?;
        let shown = length.min(POSITIONS);
        let logits = llama.logits(&hidden.narrow(0, length - shown, shown)?.contiguous()?)?;
        self.tail = Some(logits.clone());
        logits.get(shown - 1)?.to_vec1()
    }

    fn step(&mut self, token: u32) -> TensorResult<Vec<f32>> {
        self.decoder.step(token)
    }
}

/// Looks for `###` in all that was written, from the second token on.
struct StopSignal<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
}

impl StopSignal<'_> {
    fn see(&mut self, token: u32) -> ControlFlow<Halt> {
        self.ids.push(token);
        if self.ids.len() > 1 && self.tokenizer.decode(&self.ids).contains(TURN) {
            return ControlFlow::Break(Halt::Stop);
        }
        ControlFlow::Continue(())
    }
}

/// What the model wrote → the answer that the original keeps.
fn tidy(written: &str) -> String {
    let written = written.trim_matches(is_python_space);
    let answer = written.strip_suffix(TURN).unwrap_or(written).trim_matches(is_python_space);
    let answer = if answer.is_empty() { NO_ANSWER } else { answer };
    answer.replace("Assistant: ", "").replace("Assistant:", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mentions_are_cut_out_of_a_question_and_need_a_box() {
        let case = Case {
            image: String::new(),
            boxes: [1, 2, 7].map(|number| (number, [0.0, 0.0, 1.0, 1.0])).into(),
            turns: Vec::new(),
            max_new_tokens: 1,
            box_precision: CasePrecision::F32,
            level_stride: Vec::new(),
        };
        let region = |number| Piece::Region(RegionId(number));
        let (colour, mark) = (Piece::Text("What colour is ".into()), Piece::Text("?".into()));
        assert_eq!(pieces("What colour is <7>?", &case).unwrap(), [colour, region(7), mark]);
        let error = pieces("Is <region3> at (0.5, 0.5)?", &case).unwrap_err().to_string();
        assert_eq!(error, "\"boxes\": expected a box for <region3>, got none");
        let questions = [pieces("<2> or <region1>?", &case).unwrap(), pieces("<region2> and <7>", &case).unwrap()];
        assert_eq!(mentioned(&questions), [RegionId(2), RegionId(1), RegionId(7)]);
    }

    #[test]
    fn answers_are_tidied_up_as_the_original_does() {
        for (written, expected) in [
            ("Assistant: a dog\n###", "a dog"),
            ("a dog ### ", "a dog"),
            ("a ### b", "a ### b"),
            ("Assistant:", ""),
            (" ###", NO_ANSWER),
            ("", NO_ANSWER),
        ] {
            assert_eq!(tidy(written), expected, "{written:?}");
        }
    }
}
