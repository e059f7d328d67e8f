//! Accuracy on rendered scenes, by question type, with controls.
//!
//! Every scene is asked one question of each type, as a user would ask it: through [`Chat`], each question
//! as the first of a conversation of its own, besides a dialogue of three rounds. Scenes come from the test split, whose pairs of kinds never meet in training.
//! An answer is right if it says what [`Conversation::is_correct`] asks for, word for word where a name is asked.

use std::{collections::BTreeMap, sync::Arc};

use gpt4roi::{
    BBox, Chat, Gpt4Roi, Image, ImageSize,
    chat::AskOptions,
    image_cache::EncodedImage,
    point::{Growth, PointBox},
    zoom::Zoom,
};
use gpt4roi_data::{
    Conversation, DataError, QuestionMix, QuestionType, Questions, Scene, SceneConfig, Scenes, Split, Style,
    descriptions::{full_description, judge},
};
use image::{Rgb, RgbImage};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::{
    calibration::{Calibration, Confident, calibration},
    descriptions::{DescriptionReport, DescriptionTally},
    metrics::{Accuracy, Tally},
    play::{judged, options, play, words},
    plot::{Curve, Panel},
};

/// The question types that are reported, in this order.
const ASKED: [QuestionType; 6] = [
    QuestionType::Name,
    QuestionType::Multi,
    QuestionType::Relation,
    QuestionType::Position,
    QuestionType::YesNo,
    QuestionType::Point,
];

/// Questions that can only be answered by the numbers of several regions.
const BY_NUMBER: [QuestionType; 2] = [QuestionType::Recall, QuestionType::Which];

/// Below this, an object's longer side (in pixels of a 224-pixel picture) makes it small.
const SMALL: f64 = 36.0 / 224.0;

/// From this on, it is large.
const LARGE: f64 = 90.0 / 224.0;

/// Classes of sizes by the longer side in pixels of a 224-pixel picture: up to 36, 60, 90, and larger.
const PIXEL_CLASSES: [(f64, &str); 4] = [(36.0, "0-36"), (60.0, "36-60"), (90.0, "60-90"), (f64::INFINITY, "90-224")];

/// Rounds of the dialogues that are reported.
const ROUNDS: usize = 3;

/// From a point to each side of the small box that training puts around it, as a share of the picture's side.
pub(crate) const REACH: f64 = 0.03;

/// The ways from a point to a box, by their names in the report.
pub(crate) const POINT_BOXES: [(&str, PointBox); 2] =
    [("grown", PointBox::Grown(Growth::STANDARD)), ("around", PointBox::Around { reach: REACH })];

/// What can stop an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The scenes can't be made.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model failed at a question.
    #[error(transparent)]
    Model(#[from] gpt4roi::Error),
}

/// What to measure on.
#[derive(Clone, Debug, PartialEq)]
pub struct SceneEvalConfig {
    /// Scenes of another seed are others.
    pub seed: u64,
    /// Scenes, and questions of each type.
    pub count: usize,
    /// The first so many kinds of the pool; those that the model was trained on.
    pub kinds: usize,
    /// Whether small regions are looked at more closely.
    pub zoom: Zoom,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SceneReport {
    /// As asked for.
    pub seed: u64,
    /// As asked for.
    pub count: usize,
    /// As asked for.
    pub kinds: usize,
    /// By question type.
    pub questions: BTreeMap<&'static str, Accuracy>,
    /// Names of small (longer side below 36 of 224 pixels), medium and large (90 and more) regions.
    pub by_size: BTreeMap<&'static str, Accuracy>,
    /// The same names by four classes of the longer side, in pixels of 224: `0-36`, `36-60`, `60-90`, `90-224`.
    pub by_pixels: BTreeMap<&'static str, Accuracy>,
    /// Detailed descriptions of a region, claim by claim.
    pub descriptions: DescriptionReport,
    /// Conversations of three rounds.
    pub dialogue: DialogueReport,
    /// Of several regions: what the one of this number is (`recall`), which one shows this (`which`).
    pub by_number: BTreeMap<&'static str, Accuracy>,
    /// Whether answers are right as often as the model is sure of them, by question type; `all` has all of these.
    pub calibration: BTreeMap<&'static str, Calibration>,
    /// The ways from a point to a box: a box that grows over what looks alike, a small box around the point, and
    /// for comparison the true box.
    pub point_boxes: BTreeMap<&'static str, PointBoxReport>,
    /// Names in the art style that no training scene shows.
    pub held_out_style: Accuracy,
    /// What has to fail if answers come from the regions.
    pub controls: Controls,
}

/// Conversations of three rounds, in which the model's own answers stand, right or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DialogueReport {
    /// Dialogues in which all rounds are right.
    pub all_rounds: Accuracy,
    /// The first, second and third answers.
    pub by_round: [Accuracy; ROUNDS],
}

/// How good the boxes are that points become.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PointBoxReport {
    /// The mean of intersection over union with the true box.
    pub mean_iou: f64,
    /// How often it is above one half.
    pub iou_above_half: Accuracy,
    /// How often the object in the box is named right.
    pub name: Accuracy,
}

/// Names asked with the evidence taken away; a model that guesses reaches about 1/kinds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Controls {
    /// The region's vector is that of another region, of another kind.
    pub swapped_regions: Accuracy,
    /// The picture is uniformly grey, the box is where the object was.
    pub blank_picture: Accuracy,
}

/// The tallies of one scene, or of many.
#[derive(Default)]
struct Tallies {
    questions: BTreeMap<&'static str, Tally>,
    by_size: BTreeMap<&'static str, Tally>,
    by_pixels: BTreeMap<&'static str, Tally>,
    descriptions: DescriptionTally,
    all_rounds: Tally,
    by_round: [Tally; ROUNDS],
    by_number: BTreeMap<&'static str, Tally>,
    answers: BTreeMap<&'static str, Vec<Confident>>,
    point_boxes: BTreeMap<&'static str, PointBoxTally>,
    held_out_style: Tally,
    swapped_regions: Tally,
    blank_picture: Tally,
}

#[derive(Default)]
struct PointBoxTally {
    iou: f64,
    above_half: Tally,
    name: Tally,
}

/// Asks a model about `config.count` scenes. `each` is called after each scene, from any thread.
///
/// # Errors
/// If scenes can't be made or the model fails.
pub fn evaluate(model: &Gpt4Roi, config: &SceneEvalConfig, each: &(dyn Fn() + Sync)) -> Result<SceneReport, EvalError> {
    let scenes = |style| {
        let config =
            SceneConfig { kinds: config.kinds, style, split: Split::Test, seed: config.seed, ..SceneConfig::default() };
        Scenes::new(config)
    };
    let (drawn, held_out) = (scenes(Style::Noto)?, scenes(Style::Fluent)?);
    let mix = QuestionMix { dialogue_rounds: (ROUNDS, ROUNDS), ..QuestionMix::default() };
    let questions = Questions::new(mix, drawn.kinds())?;
    let options = options(config.zoom);
    let ImageSize { width, height } = drawn.image_size();
    let blank = Image::from_rgb(RgbImage::from_pixel(width, height, Rgb([128; 3])));
    let blank = Arc::new(EncodedImage::new(model, &blank)?);
    let exam = Exam { model, questions, drawn, held_out, blank, options, seed: config.seed };
    let scenes = (0..config.count as u64).into_par_iter().map(|index| {
        let tallies = exam.scene(index);
        each();
        tallies
    });
    // Added up in the scenes' order, so that sums do not depend on who was faster.
    let scenes: Result<Vec<Tallies>, EvalError> = scenes.collect();
    Ok(scenes?.into_iter().fold(Tallies::default(), Tallies::merge).report(config))
}

struct Exam<'a> {
    model: &'a Gpt4Roi,
    questions: Questions,
    drawn: Scenes,
    held_out: Scenes,
    /// A grey picture: the same for all scenes, so it is encoded once.
    blank: Arc<EncodedImage>,
    options: AskOptions,
    seed: u64,
}

impl Exam<'_> {
    /// All questions about one scene, and its twin in the other style.
    fn scene(&self, index: u64) -> Result<Tallies, EvalError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(index);
        let mut tallies = Tallies::default();
        let scene = self.drawn.scene(index);
        let mut chat = Chat::new(self.model, &Image::from_rgb(scene.image.clone()))?;
        for question_type in ASKED {
            let Some(asked) = self.questions.ask_one(question_type, &scene, &mut rng) else { continue };
            let answer = judged(&play(&mut chat, &asked, &self.options)?, &asked);
            tallies.questions.entry(question_type.name()).or_default().add(answer.right);
            tallies.answers.entry(question_type.name()).or_default().push(answer);
            if question_type == QuestionType::Name {
                let bbox = &asked.regions[0].1;
                tallies.by_size.entry(size_class(bbox)).or_default().add(answer.right);
                tallies.by_pixels.entry(pixel_class(bbox)).or_default().add(answer.right);
                self.controls(&scene, &mut chat, &asked, &mut tallies)?;
            }
            if question_type == QuestionType::Point {
                self.point_boxes(&scene, &mut chat, &asked, &mut tallies)?;
            }
        }
        let twin = self.held_out.scene(index);
        if let Some(asked) = self.questions.ask_one(QuestionType::Name, &twin, &mut rng) {
            let mut chat = Chat::new(self.model, &Image::from_rgb(twin.image.clone()))?;
            tallies.held_out_style.add(self.is_right(&mut chat, &asked, &asked)?);
        }
        // Drawn last, so that what was drawn before stays as it was in earlier editions of this report.
        self.description(&scene, &mut chat, &mut tallies, &mut rng)?;
        self.dialogue(&scene, &mut chat, &mut tallies, &mut rng)?;
        for question_type in BY_NUMBER {
            let Some(asked) = self.questions.ask_one(question_type, &scene, &mut rng) else { continue };
            let right = self.is_right(&mut chat, &asked, &asked)?;
            tallies.by_number.entry(question_type.name()).or_default().add(right);
        }
        Ok(tallies)
    }

    /// Whether what is said to one conversation would be right in another.
    fn is_right(&self, chat: &mut Chat<'_>, asked: &Conversation, wanted: &Conversation) -> gpt4roi::Result<bool> {
        Ok(judged(&play(chat, asked, &self.options)?, wanted).right)
    }

    fn description(
        &self,
        scene: &Scene,
        chat: &mut Chat<'_>,
        tallies: &mut Tallies,
        rng: &mut ChaCha8Rng,
    ) -> Result<(), EvalError> {
        let asked = self.questions.ask_one(QuestionType::Detail, scene, rng);
        let Some(asked) = asked.filter(|asked| !asked.regions.is_empty()) else { return Ok(()) };
        let (object, kinds) = (asked.regions[0].2, self.drawn.kinds());
        let answers = play(chat, &asked, &self.options)?;
        let said = answers.last().map_or("", |answer| &answer.text);
        tallies.descriptions.add(&judge(said, scene, kinds, object), &full_description(scene, kinds, object));
        Ok(())
    }

    fn dialogue(
        &self,
        scene: &Scene,
        chat: &mut Chat<'_>,
        tallies: &mut Tallies,
        rng: &mut ChaCha8Rng,
    ) -> Result<(), EvalError> {
        let Some(asked) = self.questions.ask_one(QuestionType::Dialogue, scene, rng) else { return Ok(()) };
        let answers = play(chat, &asked, &self.options)?;
        let right: Vec<bool> =
            asked.answer_keys().iter().zip(&answers).map(|(key, answer)| key.accepts(&answer.text)).collect();
        tallies.all_rounds.add(right.len() == ROUNDS && !right.contains(&false));
        tallies.by_round.iter_mut().zip(right).for_each(|(tally, right)| tally.add(right));
        Ok(())
    }

    /// The same name question with the evidence taken away.
    fn controls(
        &self,
        scene: &Scene,
        chat: &mut Chat<'_>,
        asked: &Conversation,
        tallies: &mut Tallies,
    ) -> Result<(), EvalError> {
        let kind = scene.objects[asked.regions[0].2].kind;
        if let Some(other) = scene.objects.iter().find(|object| object.kind != kind) {
            let mut swapped = asked.clone();
            swapped.regions[0].1 = other.bbox;
            tallies.swapped_regions.add(self.is_right(chat, &swapped, asked)?);
        }
        let mut blank = Chat::with_image(self.model, self.blank.clone());
        tallies.blank_picture.add(self.is_right(&mut blank, asked, asked)?);
        Ok(())
    }

    /// The same point question, its box found in each of the ways.
    fn point_boxes(
        &self,
        scene: &Scene,
        chat: &mut Chat<'_>,
        asked: &Conversation,
        tallies: &mut Tallies,
    ) -> Result<(), EvalError> {
        let Some((_, _, object)) = asked.regions.first() else { return Ok(()) };
        let true_box = scene.objects[*object].bbox;
        let mut add = |way, bbox: BBox, answer: &str| {
            let tally = tallies.point_boxes.entry(way).or_default();
            tally.add(bbox.iou(&true_box), asked.is_correct(answer));
        };
        for (way, point_box) in POINT_BOXES {
            chat.clear();
            let options = AskOptions { point_box: Some(point_box), ..self.options.clone() };
            let answer = chat.ask_with(&words(&asked.rounds[0].question, asked), &options)?;
            if let Some(region) = chat.regions().first() {
                add(way, region.bbox, &answer.text);
            }
        }
        chat.clear();
        let region = chat.add_region(true_box);
        let answer = chat.ask_with(&format!("What is at {region}?"), &self.options)?;
        add("true_box", true_box, &answer.text);
        Ok(())
    }
}

fn size_class(bbox: &BBox) -> &'static str {
    let [x1, y1, x2, y2] = bbox.normalized();
    match (x2 - x1).max(y2 - y1) {
        side if side < SMALL => "small",
        side if side < LARGE => "medium",
        _ => "large",
    }
}

fn pixel_class(bbox: &BBox) -> &'static str {
    let [x1, y1, x2, y2] = bbox.normalized();
    let side = 224.0 * (x2 - x1).max(y2 - y1);
    let class = PIXEL_CLASSES.iter().find(|(below, _)| side < *below);
    class.map_or("", |(_, name)| name)
}

impl PointBoxTally {
    fn add(&mut self, iou: f64, right: bool) {
        self.iou += iou;
        self.above_half.add(iou > 0.5);
        self.name.add(right);
    }

    fn merge(&mut self, other: Self) {
        self.iou += other.iou;
        self.above_half.merge(other.above_half);
        self.name.merge(other.name);
    }

    fn report(&self) -> PointBoxReport {
        let name = self.name.accuracy();
        PointBoxReport { mean_iou: self.iou / name.n.max(1) as f64, iou_above_half: self.above_half.accuracy(), name }
    }
}

impl Tallies {
    fn merge(mut self, other: Self) -> Self {
        let by_name = [
            (&mut self.questions, other.questions),
            (&mut self.by_size, other.by_size),
            (&mut self.by_pixels, other.by_pixels),
            (&mut self.by_number, other.by_number),
        ];
        for (tallies, more) in by_name {
            more.into_iter().for_each(|(name, tally)| tallies.entry(name).or_default().merge(tally));
        }
        self.descriptions.merge(other.descriptions);
        self.all_rounds.merge(other.all_rounds);
        self.by_round.iter_mut().zip(other.by_round).for_each(|(tally, more)| tally.merge(more));
        for (name, answers) in other.answers {
            self.answers.entry(name).or_default().extend(answers);
        }
        for (way, tally) in other.point_boxes {
            self.point_boxes.entry(way).or_default().merge(tally);
        }
        self.held_out_style.merge(other.held_out_style);
        self.swapped_regions.merge(other.swapped_regions);
        self.blank_picture.merge(other.blank_picture);
        self
    }

    fn calibration(&self) -> BTreeMap<&'static str, Calibration> {
        let all: Vec<Confident> = self.answers.values().flatten().copied().collect();
        let by_type = self.answers.iter().map(|(name, answers)| (*name, calibration(answers)));
        by_type.chain([("all", calibration(&all))]).collect()
    }

    fn report(&self, config: &SceneEvalConfig) -> SceneReport {
        let shares = |tallies: &BTreeMap<&'static str, Tally>, names: &[&'static str]| {
            let share = |name: &&'static str| (*name, tallies.get(name).copied().unwrap_or_default().accuracy());
            names.iter().map(share).collect()
        };
        SceneReport {
            seed: config.seed,
            count: config.count,
            kinds: config.kinds,
            questions: shares(&self.questions, &ASKED.map(QuestionType::name)),
            by_size: shares(&self.by_size, &["small", "medium", "large"]),
            by_pixels: shares(&self.by_pixels, &PIXEL_CLASSES.map(|(_, name)| name)),
            descriptions: self.descriptions.report(),
            dialogue: DialogueReport {
                all_rounds: self.all_rounds.accuracy(),
                by_round: self.by_round.map(|tally| tally.accuracy()),
            },
            by_number: shares(&self.by_number, &BY_NUMBER.map(QuestionType::name)),
            calibration: self.calibration(),
            point_boxes: self.point_boxes.iter().map(|(way, tally)| (*way, tally.report())).collect(),
            held_out_style: self.held_out_style.accuracy(),
            controls: Controls {
                swapped_regions: self.swapped_regions.accuracy(),
                blank_picture: self.blank_picture.accuracy(),
            },
        }
    }
}

impl SceneReport {
    /// Two panels for [`crate::plot::draw`]: accuracy over confidence, and over the share of questions that still get
    /// an answer.
    pub fn panels(&self) -> Vec<Panel> {
        let curve = |name: &str, points: fn(&Calibration) -> Vec<(f64, Accuracy)>| {
            let points = self.calibration.get(name).map(points).unwrap_or_default();
            Curve { name: if name == "all" { "all questions" } else { "names of a region" }.into(), points }
        };
        let panel = |title: &str, x: &str, points: fn(&Calibration) -> Vec<(f64, Accuracy)>| Panel {
            title: title.into(),
            x: x.into(),
            y: "right".into(),
            curves: ["all", QuestionType::Name.name()].map(|name| curve(name, points)).into(),
        };
        vec![
            panel("Reliability", "mean probability of the tokens", |calibration| {
                calibration.reliability.iter().map(|bin| (bin.mean_probability, bin.accuracy)).collect()
            }),
            panel("Coverage", "share of questions answered", |calibration| {
                let answered = calibration.coverage.iter().filter(|point| point.accuracy.n > 0);
                answered.map(|point| (point.coverage, point.accuracy)).collect()
            }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_split_at_36_and_90_of_224_pixels() {
        let side = |pixels: f64| BBox::from_normalized([0.0, 0.0, pixels / 224.0, 0.05]).unwrap();
        assert_eq!([35.0, 37.0, 89.0, 91.0].map(|s| size_class(&side(s))), ["small", "medium", "medium", "large"]);
        let classes = [10.0, 35.0, 37.0, 61.0, 91.0, 224.0].map(|s| pixel_class(&side(s)));
        assert_eq!(classes, ["0-36", "0-36", "36-60", "60-90", "90-224", "90-224"]);
    }

    /// Two boxes: one that is right, one that covers a quarter.
    #[test]
    fn boxes_of_points_are_compared_with_true_ones() {
        let mut tally = PointBoxTally::default();
        tally.add(1.0, true);
        tally.merge(PointBoxTally { iou: 0.25, ..PointBoxTally::default() });
        tally.above_half.add(false);
        tally.name.add(false);
        let report = tally.report();
        assert_eq!((report.mean_iou, report.iou_above_half.accuracy, report.name.accuracy), (0.625, 0.5, 0.5));
    }

    #[test]
    fn a_report_names_every_type_even_if_nothing_was_asked() {
        let report = Tallies::default().report(&SceneEvalConfig { seed: 1, count: 0, kinds: 64, zoom: Zoom::Off });
        let json = serde_json::to_value(&report).unwrap();
        for name in ["name", "multi", "relation", "position", "yes_no", "point"] {
            assert_eq!(json["questions"][name]["n"], 0);
        }
        assert_eq!(json["by_pixels"]["60-90"]["n"], 0);
        assert_eq!(json["dialogue"]["by_round"][2]["n"], 0);
        assert_eq!(json["by_number"]["recall"]["n"], 0);
        assert_eq!(json["descriptions"]["claims"]["relation"]["precision"]["n"], 0);
        assert_eq!(json["calibration"]["all"]["n"], 0);
        assert_eq!(json["controls"]["swapped_regions"]["ci95"], serde_json::json!([0.0, 1.0]));
    }
}
