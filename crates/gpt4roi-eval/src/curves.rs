//! How accuracy falls: with more regions asked about at once, and with boxes that do not fit.
//!
//! Each curve is measured on the same scenes, objects and draws at all of its points, so that points of a
//! curve differ by what the axis counts and by nothing else.

use std::collections::BTreeMap;

use gpt4roi::{
    BBox, Chat, Gpt4Roi, Image,
    bbox::RegionId,
    chat::{Answer, AskOptions},
};
use gpt4roi_data::{AnswerKey, Kind, QuestionType, Scene, SceneConfig, Scenes, Split, questions::jitter};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::{
    metrics::{Accuracy, Tally},
    play::options,
    plot::{Curve, Panel},
    scenes::{EvalError, POINT_BOXES, SceneEvalConfig},
};

/// How many regions are asked about at once.
const REGIONS: [usize; 9] = [1, 2, 3, 4, 6, 8, 10, 12, 16];

/// By which shares of a box's side each of its edges is moved, at most.
const JITTER: [f64; 7] = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3];

/// By which shares of a box's side each of its edges is moved outwards, at most: nobody who circles a thing
/// cuts it, and a quick hand leaves room.
const LOOSENESS: [f64; 6] = [0.0, 0.1, 0.2, 0.3, 0.5, 1.0];

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurveReport {
    /// As asked for.
    pub seed: u64,
    /// As asked for.
    pub count: usize,
    /// As asked for.
    pub kinds: usize,
    /// Names of so many regions asked about in one question, on scenes of up to 16 objects of 20 to 56 pixels.
    pub regions_at_once: Vec<RegionsPoint>,
    /// Names, if each edge of the box is moved by up to this share of the box's side.
    pub jitter: Vec<BoxPoint>,
    /// Names, if the box is that of a loose outline: each edge moved outwards by up to this share of the side.
    pub outline: Vec<BoxPoint>,
    /// Names, if only a point on the object is given: a box that grows over what looks alike, or a small box around it.
    pub point: BTreeMap<&'static str, BoxPoint>,
}

/// Names of several regions asked about at once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RegionsPoint {
    /// How many.
    pub regions: usize,
    /// How many of the regions get their name.
    pub each: Accuracy,
    /// How many of the questions are answered with all names right.
    pub all: Accuracy,
}

/// Names of regions whose boxes do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BoxPoint {
    /// The share that the curve counts; 0 for points.
    pub share: f64,
    /// The mean of intersection over union with the true box.
    pub mean_iou: f64,
    /// How many names are right.
    pub name: Accuracy,
}

#[derive(Clone, Copy, Debug, Default)]
struct BoxTally {
    iou: f64,
    name: Tally,
}

#[derive(Clone, Copy, Debug, Default)]
struct RegionsTally {
    each: Tally,
    all: Tally,
}

#[derive(Default)]
struct Tallies {
    regions: [RegionsTally; REGIONS.len()],
    jitter: [BoxTally; JITTER.len()],
    outline: [BoxTally; LOOSENESS.len()],
    point: [BoxTally; POINT_BOXES.len()],
}

/// Measures all curves on `config.count` scenes each. `each` is called after each scene, from any thread.
///
/// # Errors
/// If scenes can't be made or the model fails.
pub fn measure(model: &Gpt4Roi, config: &SceneEvalConfig, each: &(dyn Fn() + Sync)) -> Result<CurveReport, EvalError> {
    let usual = SceneConfig { kinds: config.kinds, split: Split::Test, seed: config.seed, ..SceneConfig::default() };
    let most = REGIONS[REGIONS.len() - 1];
    let crowd = SceneConfig { objects: (most, most), object_size: (20.0, 56.0), ..usual.clone() };
    let options = options(config.zoom);
    let survey = Survey { model, usual: Scenes::new(usual)?, crowd: Scenes::new(crowd)?, options, seed: config.seed };
    let scenes = (0..config.count as u64).into_par_iter().map(|index| {
        let tallies = survey.scene(index);
        each();
        tallies
    });
    let scenes: Result<Vec<Tallies>, EvalError> = scenes.collect();
    Ok(scenes?.into_iter().fold(Tallies::default(), Tallies::merge).report(config))
}

struct Survey<'a> {
    model: &'a Gpt4Roi,
    usual: Scenes,
    crowd: Scenes,
    options: AskOptions,
    seed: u64,
}

impl Survey<'_> {
    fn scene(&self, index: u64) -> Result<Tallies, EvalError> {
        let mut tallies = Tallies::default();
        self.boxes(index, &mut tallies)?;
        self.regions(index, &mut tallies)?;
        Ok(tallies)
    }

    /// Randomness for a scene: the same at every point of a curve.
    fn rng(&self, index: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(index);
        rng
    }

    fn boxes(&self, index: u64, tallies: &mut Tallies) -> Result<(), EvalError> {
        let scene = self.usual.scene(index);
        let mut chat = self.chat(&scene)?;
        let object = self.rng(index).random_range(0..scene.objects.len());
        let true_box = scene.objects[object].bbox;
        let key = AnswerKey::Name(self.usual.kinds()[scene.objects[object].kind].clone());
        let mut ask = |bbox: BBox, tally: &mut BoxTally| -> Result<(), EvalError> {
            let answer = self.ask(&mut chat, &[bbox], "What is <region1>?")?;
            tally.add(bbox.iou(&true_box), key.accepts(&answer.text));
            Ok(())
        };
        for (share, tally) in JITTER.into_iter().zip(&mut tallies.jitter) {
            ask(jitter(true_box, share, &mut self.rng(index)), tally)?;
        }
        for (share, tally) in LOOSENESS.into_iter().zip(&mut tallies.outline) {
            ask(loosened(true_box, share, &mut self.rng(index)), tally)?;
        }
        self.points(&scene, object, &mut chat, &mut tallies.point, &mut self.rng(index))
    }

    fn points(
        &self,
        scene: &Scene,
        object: usize,
        chat: &mut Chat<'_>,
        tallies: &mut [BoxTally],
        rng: &mut ChaCha8Rng,
    ) -> Result<(), EvalError> {
        let Some(point) = scene.visible_point(object, rng) else { return Ok(()) };
        let (true_box, kind) = (scene.objects[object].bbox, scene.objects[object].kind);
        let key = AnswerKey::Name(self.usual.kinds()[kind].clone());
        for ((_, point_box), tally) in POINT_BOXES.into_iter().zip(tallies) {
            chat.clear();
            let options = AskOptions { point_box: Some(point_box), ..self.options.clone() };
            let answer = chat.ask_with(&format!("What is at ({:.3}, {:.3})?", point.x, point.y), &options)?;
            let iou = chat.regions().first().map_or(0.0, |region| region.bbox.iou(&true_box));
            tally.add(iou, key.accepts(&answer.text));
        }
        Ok(())
    }

    /// The first so many objects of a crowded scene. A scene in which fewer found room is left out from there on.
    fn regions(&self, index: u64, tallies: &mut Tallies) -> Result<(), EvalError> {
        let scene = self.crowd.scene(index);
        let mut chat = self.chat(&scene)?;
        for (count, tally) in REGIONS.into_iter().zip(&mut tallies.regions) {
            let Some(objects) = scene.objects.get(..count) else { break };
            let boxes: Vec<BBox> = objects.iter().map(|object| object.bbox).collect();
            let kinds: Vec<&Kind> = objects.iter().map(|object| &self.crowd.kinds()[object.kind]).collect();
            let answer = self.ask(&mut chat, &boxes, &names_question(count))?;
            tally.add(&answer.text, &kinds);
        }
        Ok(())
    }

    fn chat(&self, scene: &Scene) -> Result<Chat<'_>, EvalError> {
        Ok(Chat::new(self.model, &Image::from_rgb(scene.image.clone()))?)
    }

    fn ask(&self, chat: &mut Chat<'_>, boxes: &[BBox], question: &str) -> Result<Answer, EvalError> {
        chat.clear();
        boxes.iter().for_each(|bbox| _ = chat.add_region(*bbox));
        Ok(chat.ask_with(question, &self.options)?)
    }
}

/// "What is <region1>?", "What are <region1>, <region2> and <region3>?"
fn names_question(regions: usize) -> String {
    let mentions: Vec<String> = (1..=regions as u32).map(|id| RegionId(id).to_string()).collect();
    match mentions.split_last() {
        Some((last, [])) => format!("What is {last}?"),
        Some((last, first)) => format!("What are {} and {last}?", first.join(", ")),
        None => String::new(),
    }
}

/// Each edge further out by up to `share` of the box's side, inside the picture.
fn loosened(bbox: BBox, share: f64, rng: &mut impl Rng) -> BBox {
    let [x1, y1, x2, y2] = bbox.normalized();
    let (width, height) = (share * (x2 - x1), share * (y2 - y1));
    let [left, top, right, bottom]: [f64; 4] = std::array::from_fn(|_| rng.random());
    let edges = [x1 - width * left, y1 - height * top, x2 + width * right, y2 + height * bottom];
    BBox::from_normalized_clipped(edges).unwrap_or(bbox)
}

impl BoxTally {
    fn add(&mut self, iou: f64, right: bool) {
        self.iou += iou;
        self.name.add(right);
    }

    fn merge(&mut self, other: &Self) {
        self.iou += other.iou;
        self.name.merge(other.name);
    }

    fn report(&self, share: f64) -> BoxPoint {
        let name = self.name.accuracy();
        BoxPoint { share, mean_iou: self.iou / name.n.max(1) as f64, name }
    }
}

impl RegionsTally {
    /// One region is named as alone, several as "region1 is a cat, region2 is a dog."
    fn add(&mut self, answer: &str, kinds: &[&Kind]) {
        let (key, right) = match kinds {
            [kind] => {
                let key = AnswerKey::Name((*kind).clone());
                let right = usize::from(key.accepts(answer));
                (key, right)
            }
            _ => {
                let ids = (1..).map(RegionId);
                let key = AnswerKey::Names(ids.zip(kinds.iter().map(|kind| (*kind).clone())).collect());
                let right = key.regions_named(answer);
                (key, right)
            }
        };
        self.each.merge(Tally::of(right, kinds.len()));
        self.all.add(key.accepts(answer));
    }
}

impl Tallies {
    fn merge(mut self, other: Self) -> Self {
        for (tally, more) in self.regions.iter_mut().zip(&other.regions) {
            tally.each.merge(more.each);
            tally.all.merge(more.all);
        }
        let add = |tallies: &mut [BoxTally], more: &[BoxTally]| {
            tallies.iter_mut().zip(more).for_each(|(tally, more)| tally.merge(more));
        };
        add(&mut self.jitter, &other.jitter);
        add(&mut self.outline, &other.outline);
        add(&mut self.point, &other.point);
        self
    }

    fn report(&self, config: &SceneEvalConfig) -> CurveReport {
        let regions = REGIONS.iter().zip(&self.regions);
        let point = |(&regions, tally): (&usize, &RegionsTally)| RegionsPoint {
            regions,
            each: tally.each.accuracy(),
            all: tally.all.accuracy(),
        };
        let curve = |shares: &[f64], tallies: &[BoxTally]| {
            shares.iter().zip(tallies).map(|(share, tally)| tally.report(*share)).collect()
        };
        CurveReport {
            seed: config.seed,
            count: config.count,
            kinds: config.kinds,
            regions_at_once: regions.map(point).collect(),
            jitter: curve(&JITTER, &self.jitter),
            outline: curve(&LOOSENESS, &self.outline),
            point: POINT_BOXES.iter().zip(&self.point).map(|((way, _), tally)| (*way, tally.report(0.0))).collect(),
        }
    }
}

impl CurveReport {
    /// Two panels for [`crate::plot::draw`].
    pub fn panels(&self) -> Vec<Panel> {
        let name = QuestionType::Name.name();
        let regions = |name: &str, share: fn(&RegionsPoint) -> Accuracy| Curve {
            name: name.into(),
            points: self.regions_at_once.iter().map(|point| (point.regions as f64, share(point))).collect(),
        };
        let boxes = |name: &str, points: &[BoxPoint]| Curve {
            name: name.into(),
            points: points.iter().map(|point| (100.0 * point.share, point.name)).collect(),
        };
        let panel = |title: &str, x: &str, curves| Panel {
            title: title.into(),
            x: x.into(),
            y: format!("{name} right"),
            curves,
        };
        vec![
            panel(
                "Many regions in one question",
                "regions",
                vec![regions("each region", |point| point.each), regions("all of them", |point| point.all)],
            ),
            panel(
                "Boxes that do not fit",
                "% of the box's side by which an edge is off, at most",
                vec![boxes("jitter", &self.jitter), boxes("loose outline", &self.outline)],
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bbox() -> BBox {
        BBox::from_normalized([0.4, 0.4, 0.6, 0.5]).unwrap()
    }

    #[test]
    fn a_loose_outline_never_cuts_its_object() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for share in LOOSENESS {
            let loose = loosened(bbox(), share, &mut rng);
            assert_eq!(loose.union(&bbox()), loose);
            let [x1, y1, x2, y2] = loose.normalized();
            assert!(x1 >= 0.4 - 0.2 * share - 1e-9 && x2 <= 0.6 + 0.2 * share + 1e-9);
            assert!(y1 >= 0.4 - 0.1 * share - 1e-9 && y2 <= 0.5 + 0.1 * share + 1e-9);
        }
        let corner = BBox::from_normalized([0.0, 0.0, 1.0, 0.5]).unwrap();
        assert!(loosened(corner, 1.0, &mut rng).normalized()[3] > 0.5);
    }

    /// More jitter moves the same edges further the same way: the curve compares like with like.
    #[test]
    fn the_draws_are_the_same_at_every_point_of_a_curve() {
        let moved = |share: f64| jitter(bbox(), share, &mut ChaCha8Rng::seed_from_u64(5)).normalized();
        for (edge, (few, many)) in bbox().normalized().into_iter().zip(moved(0.1).into_iter().zip(moved(0.2))) {
            assert!((2.0 * (few - edge) - (many - edge)).abs() < 1e-9, "{edge} {few} {many}");
        }
    }

    #[test]
    fn questions_name_every_region() {
        assert_eq!(names_question(1), "What is <region1>?");
        assert_eq!(names_question(3), "What are <region1>, <region2> and <region3>?");
    }

    #[test]
    fn each_region_counts_and_so_does_the_whole() {
        let kinds = gpt4roi_data::kinds::pool().unwrap();
        let mut tally = RegionsTally::default();
        let answer = format!("region1 is {}, region2 is {}.", kinds[0].phrase(), kinds[2].phrase());
        tally.add(&answer, &[&kinds[0], &kinds[1]]);
        tally.add(&answer, &[&kinds[0], &kinds[2]]);
        tally.add(&kinds[0].phrase(), &[&kinds[0]]);
        assert_eq!((tally.each, tally.all), (Tally::of(4, 5), Tally::of(2, 3)));
    }

    #[test]
    fn a_report_has_every_point_even_if_nothing_was_asked() {
        let config = SceneEvalConfig { seed: 1, count: 0, kinds: 64, zoom: Default::default() };
        let report = Tallies::default().report(&config);
        assert_eq!(report.regions_at_once.last().unwrap().regions, 16);
        assert_eq!((report.jitter.len(), report.jitter[6].share, report.point.len()), (7, 0.3, 2));
        assert_eq!(report.panels().len(), 2);
    }
}
