//! A question on its way to the model, in three steps: as it was said; rendered, for which nobody has to
//! look at the picture; and asked, with a box for every region.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use candle_core::Tensor;

use crate::{
    bbox::{BBox, ImageSize, RegionId},
    chat::{Answer, AskOptions, ChatError, Origin, Region, ResolvedRegion},
    choices::Choices,
    drafter::{Drafter, Told},
    error::Result,
    generate::{Generation, Limits},
    image_cache::EncodedImage,
    mention::{self, Part},
    model::Gpt4Roi,
    point::{self, PointBox},
    prompt::{self, Encoded, Piece, Round},
    sampling::Sampler,
    shape::Shape,
    stop::StopStrings,
    zoom::{self, Reading, Zoom},
};

/// A part of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Words in which mentions and coordinates count, as [`mention::parse`] reads them.
    Text(String),
    /// Words that stay words, whatever they look like.
    Literal(String),
    /// A region.
    Region(RegionId),
}

/// A round that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What was asked.
    pub question: Vec<Said>,
    /// What was answered.
    pub answer: String,
}

/// A region before anybody looked at the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Declared {
    id: RegionId,
    shape: Shape,
    origin: Origin,
}

impl From<&Region> for Declared {
    fn from(region: &Region) -> Self {
        Self { id: region.id, shape: Shape::Box(region.bbox), origin: region.origin }
    }
}

/// A conversation whose last question is open, with all that is known of it before the picture is looked
/// at: whether it can be asked, and how many tokens it has.
#[derive(Clone, Debug)]
pub struct Rendered {
    size: ImageSize,
    rounds: Arc<[Round]>,
    declared: Vec<Declared>,
    encoded: Arc<Encoded>,
    reading: Reading,
    point_box: PointBox,
    sampler: Sampler,
    limits: Limits,
    draft: Option<usize>,
    stop: StopStrings,
}

impl Rendered {
    /// A question behind the rounds that were answered before it, about a picture of the given size.
    ///
    /// Regions may have any numbers from 1. Coordinates become regions with the lowest numbers that are
    /// free, in the order in which they were said.
    ///
    /// # Errors
    /// If the question is empty, mentions a region that does not exist, holds an impossible box, or
    /// leaves no room for an answer; if two regions have one number; if settings are out of range.
    pub fn new(
        model: &Gpt4Roi,
        size: ImageSize,
        regions: &[(RegionId, Shape)],
        rounds: &[Exchange],
        question: &[Said],
        options: &AskOptions,
    ) -> Result<Self> {
        let mut declared = declare(regions)?;
        let mut rendered = Vec::with_capacity(rounds.len() + 1);
        for Exchange { question, answer } in rounds {
            let question = pieces(question, &mut declared, size)?;
            rendered.push(Round { question, answer: Some(answer.clone()) });
        }
        rendered.push(Round { question: pieces(question, &mut declared, size)?, answer: None });
        Self::from_rounds(model, size, rendered, declared, options)
    }

    pub(crate) fn from_rounds(
        model: &Gpt4Roi,
        size: ImageSize,
        rounds: Vec<Round>,
        declared: Vec<Declared>,
        options: &AskOptions,
    ) -> Result<Self> {
        let (config, tokenizer) = (&model.config, &model.tokenizer);
        let sampler = Sampler::new(&options.sampling)?;
        let point_box = options.point_box.unwrap_or_else(|| PointBox::of(&config.region));
        point_box.check()?;
        let encoded = prompt::encode(&rounds, tokenizer, config.vision.patches(), options.text_mode)?
            .with_region_tokens(config.region.tokens);
        let context = config.llama.max_position_embeddings;
        encoded.check_length(context, 1)?;
        let max_new_tokens = options.max_new_tokens.min(context - encoded.ids.len());
        Ok(Self {
            size,
            rounds: rounds.into(),
            declared,
            encoded: Arc::new(encoded),
            reading: options.reading(),
            point_box,
            sampler,
            limits: Limits { eos: tokenizer.special().eos, max_new_tokens },
            draft: options.draft,
            stop: options.stop.clone(),
        })
    }

    /// The same question with another shape for one of its regions.
    pub fn about(&self, id: RegionId, shape: Shape) -> Self {
        let mut about = self.clone();
        for declared in about.declared.iter_mut().filter(|declared| declared.id == id) {
            (declared.shape, declared.origin) = (shape, origin_of(&shape));
        }
        about
    }

    /// What is asked.
    pub(crate) fn question(&self) -> &[Piece] {
        self.rounds.last().map_or(&[], |round| &round.question)
    }

    /// Tokens of the whole prompt, the picture's included.
    pub fn tokens(&self) -> usize {
        self.encoded.ids.len()
    }

    /// For each choice, the tokens that the model writes if that is its answer.
    ///
    /// # Errors
    /// [`PromptError::TooLong`](prompt::PromptError::TooLong) if the longest does not fit behind the question.
    pub(crate) fn scripts(&self, model: &Gpt4Roi, choices: &Choices) -> Result<Vec<Vec<u32>>> {
        let write = |text: &String| prompt::written_answer(text, &model.tokenizer);
        let scripts: Vec<Vec<u32>> = choices.wordings().iter().map(write).collect();
        let longest = scripts.iter().map(Vec::len).max().unwrap_or(0);
        self.encoded.check_length(model.config.llama.max_position_embeddings, longest)?;
        Ok(scripts)
    }

    /// Tokens up to the end of the picture. They are the same in every conversation about it, since what
    /// the conversation is and the picture come first.
    pub fn picture_end(&self) -> usize {
        self.encoded.patches.end + 1
    }

    /// Tokens before the first mention of a region; all but the last if it is not mentioned, since the
    /// last is always left to be read. They do not depend on where the region lies.
    pub fn before(&self, id: RegionId) -> usize {
        let mentions = self.encoded.regions.iter().filter(|(_, mentioned)| *mentioned == id);
        mentions.map(|&(place, _)| place as usize).min().unwrap_or(self.tokens() - 1)
    }

    /// How many closer looks it takes at most, each of which costs a run of the tower and a pyramid: one for each
    /// small box that is mentioned, however often, and one for each point around which a box is yet to be grown.
    pub fn close_ups(&self, model: &Gpt4Roi) -> usize {
        let mentioned: BTreeSet<RegionId> = self.encoded.regions.iter().map(|(_, id)| *id).collect();
        let (mut small, mut points): (Vec<BBox>, usize) = (Vec::new(), 0);
        for declared in self.declared.iter().filter(|declared| mentioned.contains(&declared.id)) {
            let reading = self.reading_of(declared.origin);
            match declared.shape {
                Shape::Box(bbox) | Shape::Polygon(bbox) | Shape::Mask(bbox) => {
                    if reading.looks_closely(&bbox, self.size, model) && !small.contains(&bbox) {
                        small.push(bbox);
                    }
                }
                Shape::Point(_) => points += usize::from(reading.zoom != Zoom::Off),
            }
        }
        small.len() + points
    }

    /// Draws the answer's tokens.
    pub fn sampler(&self) -> Sampler {
        self.sampler.clone()
    }

    /// When the answer ends of its own accord.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How many tokens are drafted ahead at most; none if nothing was said about it.
    pub fn draft(&self) -> Option<usize> {
        self.draft
    }

    /// What ends the answer besides.
    pub fn stop(&self) -> &StopStrings {
        &self.stop
    }

    /// Looks at the picture: boxes are grown around points.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn locate(&self, image: &EncodedImage) -> Result<Asked> {
        let located = self.declared.iter().map(|declared| declared.locate(image, &self.point_box));
        let regions = located.collect::<Result<Vec<_>>>()?;
        let prompt = self.slots(&regions)?;
        Ok(Asked { rendered: self.clone(), regions, prompt })
    }

    /// The prompt, with the regions in their places.
    fn slots(&self, regions: &[Region]) -> Result<Vec<Slot>> {
        let mut slots: Vec<Slot> = self.encoded.ids.iter().copied().map(Slot::Token).collect();
        for &(place, id) in &self.encoded.regions {
            let region = regions.iter().find(|region| region.id == id);
            let region = region.ok_or(ChatError::UnknownRegion { id, declared: regions.len() })?;
            if let Some(slot) = slots.get_mut(place as usize) {
                *slot = Slot::Region(region.bbox, self.reading_of(region.origin));
            }
        }
        Ok(slots)
    }

    /// How the box of a region is read that came from there. One around a point says where a thing is, and nothing of
    /// how large it is: a closer look would show a part of it.
    fn reading_of(&self, origin: Origin) -> Reading {
        let place_only = origin == Origin::Point && matches!(self.point_box, PointBox::Around { .. });
        Reading { zoom: if place_only { Zoom::Off } else { self.reading.zoom }, ..self.reading }
    }
}

/// The regions that exist from the beginning.
fn declare(regions: &[(RegionId, Shape)]) -> Result<Vec<Declared>> {
    let mut declared: Vec<Declared> = Vec::with_capacity(regions.len());
    for &(id, shape) in regions {
        check_number(id, declared.iter().map(|other| other.id))?;
        declared.push(Declared { id, shape, origin: origin_of(&shape) });
    }
    Ok(declared)
}

/// # Errors
/// If the number is 0 or among those that are there.
pub(crate) fn check_number(id: RegionId, mut there: impl Iterator<Item = RegionId>) -> Result<()> {
    if id.0 == 0 {
        return Err(ChatError::RegionZero.into());
    }
    if there.any(|other| other == id) {
        return Err(ChatError::RepeatedRegion { id }.into());
    }
    Ok(())
}

pub(crate) fn origin_of(shape: &Shape) -> Origin {
    match shape {
        Shape::Box(_) => Origin::Given,
        Shape::Point(_) => Origin::Point,
        Shape::Polygon(_) => Origin::Polygon,
        Shape::Mask(_) => Origin::Mask,
    }
}

/// The box that the model reads of a shape.
pub(crate) fn box_of(shape: Shape, image: &EncodedImage, point_box: &PointBox) -> Result<BBox> {
    match shape {
        Shape::Box(bbox) | Shape::Polygon(bbox) | Shape::Mask(bbox) => Ok(bbox),
        Shape::Point(point) => point::box_at(image.features(), point, point_box),
    }
}

impl Declared {
    fn locate(&self, image: &EncodedImage, point_box: &PointBox) -> Result<Region> {
        Ok(Region { id: self.id, bbox: box_of(self.shape, image, point_box)?, origin: self.origin })
    }
}

/// A question's pieces; what stands there as coordinates joins the regions.
pub(crate) fn pieces(question: &[Said], declared: &mut Vec<Declared>, size: ImageSize) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    for said in question {
        match said {
            Said::Literal(text) => pieces.push(Piece::Text(text.clone())),
            Said::Region(id) if declared.iter().any(|region| region.id == *id) => pieces.push(Piece::Region(*id)),
            Said::Region(id) => return Err(ChatError::UnknownRegion { id: *id, declared: declared.len() }.into()),
            Said::Text(text) => {
                let known: Vec<_> = declared.iter().map(|region| region.id).collect();
                for part in mention::parse(text, &known, size)? {
                    pieces.push(match part {
                        Part::Text(text) => Piece::Text(text),
                        Part::Mention(id) => Piece::Region(id),
                        Part::Box(bbox) => Piece::Region(push(declared, Shape::Box(bbox), Origin::Coordinates)),
                        Part::Point(point) => Piece::Region(push(declared, Shape::Point(point), Origin::Point)),
                    });
                }
            }
        }
    }
    Ok(pieces)
}

/// The lowest number that none of these has.
pub(crate) fn lowest_free(there: impl Iterator<Item = RegionId> + Clone) -> RegionId {
    let is_free = |number: &u32| there.clone().all(|id| id.0 != *number);
    RegionId((1..=u32::MAX).find(is_free).unwrap_or(u32::MAX))
}

/// Adds a region under the lowest number that is free.
fn push(declared: &mut Vec<Declared>, shape: Shape, origin: Origin) -> RegionId {
    let id = lowest_free(declared.iter().map(|region| region.id));
    declared.push(Declared { id, shape, origin });
    id
}

/// A question, and where everything lies that it is about.
#[derive(Clone, Debug)]
pub struct Asked {
    pub(crate) rendered: Rendered,
    pub(crate) regions: Vec<Region>,
    pub(crate) prompt: Vec<Slot>,
}

impl Asked {
    /// What was rendered.
    pub fn rendered(&self) -> &Rendered {
        &self.rendered
    }

    /// All regions: those given, then those that coordinates made.
    pub fn regions(&self) -> Vec<ResolvedRegion> {
        self.regions.iter().map(|region| region.resolved(self.rendered.size)).collect()
    }

    /// Whether two questions about one picture have their first `length` tokens in common.
    pub fn begins_like(&self, other: &Self, length: usize) -> bool {
        self.prompt.get(..length).is_some_and(|beginning| other.prompt.starts_with(beginning))
    }

    /// What the language model reads in the place of some of the prompt's tokens. A region that has several is not cut
    /// in two.
    ///
    /// # Shapes
    /// → `[1, range, H]`
    ///
    /// # Errors
    /// If the engine fails.
    pub fn embed(&self, model: &Gpt4Roi, image: &EncodedImage, range: Range<usize>) -> Result<Tensor> {
        let boxes = boxes_in(&self.prompt[range.clone()], model.config.region.tokens);
        let vectors = match boxes.is_empty() {
            true => None,
            false => Some(zoom::encode_boxes(model, image, &boxes)?),
        };
        self.splice(model, image, range, vectors.as_ref())
    }

    /// Looks at all that [`Self::embed`] needs of the picture, a piece per `next`: the pyramid, if a region is read from
    /// it, then a crop for each region that is looked at closely. The picture keeps what was found, so that whoever
    /// stops between two pieces loses none.
    ///
    /// # Errors
    /// Of a piece, if the engine fails.
    pub fn look(&self, model: &Gpt4Roi, image: &EncodedImage, range: Range<usize>) -> impl Iterator<Item = Result<()>> {
        zoom::look(model, image, boxes_in(&self.prompt[range], model.config.region.tokens))
    }

    /// Tells a drafter the prompt, of which it learns from token `start` on. Without a drafter nobody looks at that.
    pub fn show(&self, drafter: Option<&Drafter>, start: usize) -> Told {
        let Some(drafter) = drafter else { return Told::default() };
        let (mut told, encoded) = (drafter.begin(), &self.rendered.encoded);
        for (place, slot) in self.prompt.iter().enumerate() {
            match *slot {
                Slot::Token(token) if encoded.patches.contains(&place) => told.see(token),
                Slot::Token(token) if place < start => told.push(token),
                Slot::Token(token) => drafter.read(&mut told, token),
                Slot::Region(..) => told.see(encoded.ids[place]),
            }
        }
        told
    }

    /// The answer, with what it is an answer to.
    pub fn answer(&self, reused_tokens: usize, generation: &Generation, text: String) -> Answer {
        let generated_tokens = generation.ids.len();
        let sum: f64 = generation.log_probabilities.iter().sum();
        Answer {
            text,
            question: question_text(self.rendered.question()),
            regions: self.mentioned(),
            prompt_tokens: self.rendered.tokens(),
            reused_tokens,
            generated_tokens,
            drafted_tokens: generation.drafted,
            finish: generation.finish,
            mean_log_probability: (generated_tokens > 0).then(|| sum / generated_tokens as f64),
        }
    }

    /// The regions that the question mentions, in the order of their first mention.
    pub(crate) fn mentioned(&self) -> Vec<ResolvedRegion> {
        let mut mentioned: Vec<ResolvedRegion> = Vec::new();
        for piece in self.rendered.question() {
            if let Piece::Region(id) = piece
                && mentioned.iter().all(|region| region.id != id.0)
                && let Some(region) = self.regions.iter().find(|region| region.id == *id)
            {
                mentioned.push(region.resolved(self.rendered.size));
            }
        }
        mentioned
    }

    /// Some tokens of the prompt with patches in their places, and with the vectors of the regions
    /// mentioned there, if any are.
    ///
    /// # Shapes
    /// vectors `[mentions·tokens, H]` → `[1, range, H]`
    fn splice(
        &self,
        model: &Gpt4Roi,
        image: &EncodedImage,
        range: Range<usize>,
        vectors: Option<&Tensor>,
    ) -> Result<Tensor> {
        let encoded = &self.rendered.encoded;
        let ids = Tensor::from_slice(&encoded.ids[range.clone()], range.len(), &model.device)?;
        let place = |token: usize| (token - range.start) as u32;
        // Patches may have been read in part, when the words before them changed in their midst.
        let within = |token: usize| token.max(encoded.patches.start).min(encoded.patches.end);
        let (first, last) = (within(range.start), within(range.end));
        let patches = image.features().image_tokens.narrow(0, first - encoded.patches.start, last - first)?;
        let patch_places: Vec<u32> = (first..last).map(place).collect();
        let mentions = encoded.regions.iter().map(|&(token, _)| token as usize);
        let region_places: Vec<u32> = mentions.filter(|token| range.contains(token)).map(place).collect();
        let mut parts: Vec<(&Tensor, &[u32])> = Vec::new();
        if !patch_places.is_empty() {
            parts.push((&patches, &patch_places));
        }
        if let Some(vectors) = vectors {
            parts.push((vectors, &region_places));
        }
        Ok(model.network.splice(&ids, &parts)?)
    }
}

/// [`Asked::embed`] for questions about one picture, each with its own stretch of tokens. All boxes are
/// encoded together, which is cheaper than one by one.
///
/// # Shapes
/// → per question `[1, range, H]`
///
/// # Errors
/// If the engine fails.
pub fn embed_all(model: &Gpt4Roi, image: &EncodedImage, asked: &[(&Asked, Range<usize>)]) -> Result<Vec<Tensor>> {
    let tokens = model.config.region.tokens;
    let boxes: Vec<_> = asked.iter().map(|(asked, range)| boxes_in(&asked.prompt[range.clone()], tokens)).collect();
    let all = boxes.concat();
    let vectors = match all.is_empty() {
        true => None,
        false => Some(zoom::encode_boxes(model, image, &all)?),
    };
    let mut first = 0;
    let embed = |((asked, range), boxes): (&(&Asked, Range<usize>), &Vec<_>)| {
        let own = vectors.as_ref().filter(|_| !boxes.is_empty());
        let own = own.map(|vectors| vectors.narrow(0, first, boxes.len() * tokens)).transpose()?;
        first += boxes.len() * tokens;
        asked.splice(model, image, range.clone(), own.as_ref())
    };
    asked.iter().zip(&boxes).map(embed).collect()
}

pub(crate) fn question_text(pieces: &[Piece]) -> String {
    let text = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Region(id) => id.to_string(),
    };
    pieces.iter().map(text).collect::<String>().trim().to_owned()
}

/// What stands at one place of a prompt. All patches belong to the one picture, so their id says all.
/// Regions share an id; their vectors depend on the box and how it is read, and on nothing else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Slot {
    Token(u32),
    Region(BBox, Reading),
}

/// The boxes of the regions in a stretch of a prompt, in order, and how they are read; each has so many tokens.
fn boxes_in(prompt: &[Slot], tokens: usize) -> Vec<(BBox, Reading)> {
    let read = |slot: &Slot| match *slot {
        Slot::Region(bbox, reading) => Some((bbox, reading)),
        Slot::Token(_) => None,
    };
    prompt.iter().filter_map(read).step_by(tokens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bbox::{BoxPrecision, Point},
        chat::Chat,
        error::Error,
        tiny::{bbox, picture, short, tiny, tiny_with},
    };

    const BOXES: [[f64; 4]; 2] = [[0.1, 0.2, 0.5, 0.9], [0.4, 0.1, 0.9, 0.6]];

    fn text(text: &str) -> Vec<Said> {
        vec![Said::Text(text.into())]
    }

    fn rendered(
        model: &Gpt4Roi,
        regions: &[(u32, [f64; 4])],
        rounds: &[Exchange],
        question: &[Said],
    ) -> Result<Rendered> {
        let regions: Vec<_> = regions.iter().map(|&(id, xyxy)| (RegionId(id), Shape::Box(bbox(xyxy)))).collect();
        Rendered::new(model, picture().size(), &regions, rounds, question, &short())
    }

    /// A chat that is told round by round, and one that is told all at once.
    #[test]
    fn a_conversation_told_at_once_is_the_one_that_was_held() {
        let model = tiny();
        let mut chat = Chat::new(&model, &picture()).unwrap();
        BOXES.iter().for_each(|&xyxy| _ = chat.add_region(bbox(xyxy)));
        let mut rounds = Vec::new();
        for question in ["What is <region2>?", "Is [8, 6, 40, 30] left of region 1?", "Is <region3> at (0.5, 0.5)?"] {
            let answer = chat.ask_with(question, &short()).unwrap();
            let asked = rendered(&model, &[(1, BOXES[0]), (2, BOXES[1])], &rounds, &text(question)).unwrap();
            let asked = asked.locate(&chat.image).unwrap();
            assert_eq!(asked.rendered().tokens(), answer.prompt_tokens);
            assert_eq!(asked.regions, chat.regions());
            let generation =
                Generation { ids: Vec::new(), log_probabilities: Vec::new(), drafted: 0, finish: answer.finish };
            let report = asked.answer(0, &generation, String::new());
            assert_eq!((report.question, report.regions), (answer.question, answer.regions));
            rounds.push(Exchange { question: text(question), answer: answer.text });
        }
    }

    #[test]
    fn regions_have_any_numbers_and_coordinates_take_free_ones() {
        let model = tiny();
        let image = EncodedImage::new(&model, &picture()).unwrap();
        let question = [
            Said::Text(" Is ".into()),
            Said::Region(RegionId(7)),
            Said::Literal(" <region9> ".into()),
            Said::Text("[8, 6, 40, 30] or <region2> or [0.5, 0.5]? ".into()),
        ];
        let asked = rendered(&model, &[(7, BOXES[0]), (2, BOXES[1])], &[], &question).unwrap();
        let asked = asked.locate(&image).unwrap();
        let ids = asked.regions().iter().map(|region| (region.id, region.origin)).collect::<Vec<_>>();
        let expected = [(7, Origin::Given), (2, Origin::Given), (1, Origin::Coordinates), (3, Origin::Point)];
        assert_eq!(ids, expected);
        let generation = Generation {
            ids: vec![],
            log_probabilities: vec![],
            drafted: 0,
            finish: crate::generate::FinishReason::Eos,
        };
        let answer = asked.answer(0, &generation, String::new());
        assert_eq!(answer.question, "Is <region7> <region9> <region1> or <region2> or <region3>?");
        assert_eq!(answer.regions.iter().map(|region| region.id).collect::<Vec<_>>(), [7, 1, 2, 3]);
        // Forged structure in words of either kind stays words: one token for each region, no more.
        assert_eq!(asked.rendered.encoded.regions.len(), 4);
    }

    #[test]
    fn what_can_not_be_asked_is_known_without_the_picture() {
        let model = tiny();
        let box7 = [(7, BOXES[0])];
        let unknown = rendered(&model, &box7, &[], &[Said::Region(RegionId(1))]).unwrap_err();
        assert!(matches!(unknown, Error::Chat(ChatError::UnknownRegion { id: RegionId(1), declared: 1 })));
        let mentioned = rendered(&model, &box7, &[], &text("What is <region1>?")).unwrap_err();
        assert!(matches!(mentioned, Error::Mention(_)), "{mentioned}");
        let zero = rendered(&model, &[(0, BOXES[0])], &[], &text("What?")).unwrap_err();
        assert!(matches!(zero, Error::Chat(ChatError::RegionZero)));
        let twice = rendered(&model, &[(7, BOXES[0]), (7, BOXES[1])], &[], &text("What?")).unwrap_err();
        assert!(matches!(twice, Error::Chat(ChatError::RepeatedRegion { id: RegionId(7) })));
        let long = rendered(&model, &box7, &[], &text(&"what ".repeat(4000))).unwrap_err();
        assert!(matches!(long, Error::Prompt(prompt::PromptError::TooLong { .. })));
        for empty in ["", "  "] {
            assert!(matches!(rendered(&model, &box7, &[], &text(empty)), Err(Error::Prompt(_))));
        }
        let reach = PointBox::Around { reach: -0.1 };
        let options = AskOptions { point_box: Some(reach), ..short() };
        let pointless = Rendered::new(&model, picture().size(), &[], &[], &text("What?"), &options);
        assert!(matches!(pointless, Err(Error::Box(_))));
        // The highest number there is needs no number behind it.
        let highest = rendered(&model, &[(u32::MAX, BOXES[0])], &[], &text("Is [8, 6, 40, 30] it?")).unwrap();
        assert_eq!(highest.declared[1].id, RegionId(1));
    }

    #[test]
    fn a_declared_point_becomes_the_box_that_a_typed_one_does() {
        let model = tiny();
        let image = EncodedImage::new(&model, &picture()).unwrap();
        let shape = Shape::Point(Point::from_normalized([0.5, 0.75]).unwrap());
        let declared = [(RegionId(1), shape)];
        let size = picture().size();
        let asked = Rendered::new(&model, size, &declared, &[], &text("What is <region1>?"), &short()).unwrap();
        let typed = rendered(&model, &[], &[], &text("What is (0.5, 0.75)?")).unwrap();
        assert_eq!(asked.locate(&image).unwrap().prompt, typed.locate(&image).unwrap().prompt);
        let other = asked.about(RegionId(1), Shape::Box(bbox(BOXES[0]))).locate(&image).unwrap();
        assert_eq!((other.regions[0].bbox, other.regions[0].origin), (bbox(BOXES[0]), Origin::Given));
        let range = asked.before(RegionId(1))..asked.tokens();
        let asked = asked.locate(&image).unwrap();
        let together = embed_all(&model, &image, &[(&asked, range.clone()), (&other, range.clone())]).unwrap();
        for (asked, together) in [&asked, &other].into_iter().zip(together) {
            let alone = asked.embed(&model, &image, range.clone()).unwrap();
            assert_near(&alone, &together);
        }
    }

    fn assert_near(got: &Tensor, expected: &Tensor) {
        let difference = (got - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-4, "{difference}");
    }

    /// A glass of 20 of the tower's 56 pixels, in a picture of 80×60: boxes up to 28 pixels wide and 21 high are small.
    #[test]
    fn closer_looks_are_counted_before_anybody_looks() {
        let model = tiny();
        let glass = Zoom::Auto(zoom::Glass { below: 20.0, context: 2.0 });
        let (small, large) = (bbox([0.0, 0.0, 0.25, 0.3]), bbox([0.1, 0.1, 0.9, 0.9]));
        let regions = [(1, small), (2, large), (3, small)].map(|(id, bbox)| (RegionId(id), Shape::Box(bbox)));
        let count = |question: &str, zoom, point_box| {
            let options = AskOptions { zoom, point_box, ..short() };
            let rendered = Rendered::new(&model, picture().size(), &regions, &[], &text(question), &options);
            rendered.unwrap().close_ups(&model)
        };
        for (question, expected) in [
            ("What is <region2>?", 0),
            ("Is <region1> <region1> or <region3>?", 1),
            // The last is the first region once more: 20×18 pixels.
            ("What is in [0, 0, 70, 50], [4, 4, 20, 20], <region1> and [0, 0, 20, 18]?", 2),
        ] {
            assert_eq!(count(question, glass, None), expected, "{question}");
            assert_eq!(count(question, Zoom::Off, None), 0, "{question}");
        }
        let around = Some(PointBox::Around { reach: 0.03 });
        let points = "Is (0.5, 0.5) at (0.25, 0.25)?";
        assert_eq!((count(points, glass, around), count(points, glass, Some(PointBox::default()))), (0, 2));
    }

    /// Each mention takes the places of all its vectors, alone or beside other questions.
    #[test]
    fn regions_of_several_tokens_stand_in_a_row() {
        let (one, four) = (tiny(), tiny_with(|config| config.region.tokens = 4));
        let question = text("Is <region1> left of <region2>?");
        let ask =
            |model, boxes: [[f64; 4]; 2]| rendered(model, &[(1, boxes[0]), (2, boxes[1])], &[], &question).unwrap();
        let asked = ask(&four, BOXES);
        assert_eq!(asked.tokens(), ask(&one, BOXES).tokens() + 2 * 3);
        assert_eq!(asked.before(RegionId(1)), ask(&one, BOXES).before(RegionId(1)));

        let image = EncodedImage::new(&four, &picture()).unwrap();
        let range = asked.before(RegionId(1))..asked.tokens();
        let turned = [BOXES[1], BOXES[0]];
        let (asked, other) = (asked.locate(&image).unwrap(), ask(&four, turned).locate(&image).unwrap());
        let together = embed_all(&four, &image, &[(&asked, range.clone()), (&other, range.clone())]).unwrap();
        for ((asked, boxes), together) in [(&asked, BOXES), (&other, turned)].into_iter().zip(together) {
            assert_near(&together, &asked.embed(&four, &image, range.clone()).unwrap());
            for (number, xyxy) in [1, 2].into_iter().zip(boxes) {
                let vectors = image.encode_boxes(&four, &[bbox(xyxy)], BoxPrecision::F32).unwrap();
                let place = asked.rendered().before(RegionId(number)) - range.start;
                assert_near(&together.squeeze(0).unwrap().narrow(0, place, 4).unwrap(), &vectors);
            }
        }
    }
}
