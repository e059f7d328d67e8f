//! Visual7W, as records: four boxes to point at, or four answers to tell.
//!
//! Format: `dataset_v7w_pointing.json` and `dataset_v7w_telling.json` of <https://ai.stanford.edu/~yukez/visual7w>, as
//! `common/data_provider.py` of its toolkit reads them, where the right answer is one of four candidates and the three
//! others are listed beside it. In the first file they are ids of its `boxes`.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap, HashSet},
    io::Read,
    path::Path,
    sync::Arc,
};

use gpt4roi::RegionId;
use serde::Deserialize;

use crate::{
    error::DataError,
    records::{
        Dialogue, DialogueRound, Entry, Gathering, Id, Picture, Place, RecordError, RecordOptions, read_json,
        round_of_options,
    },
    vcr::question_about_all,
};

#[derive(Deserialize)]
struct Visual7w {
    images: Vec<Asked>,
    /// Of the file of pointing alone.
    boxes: Option<Vec<Candidate>>,
}

/// A picture.
#[derive(Deserialize)]
struct Asked {
    filename: String,
    split: String,
    qa_pairs: Vec<Pair>,
}

/// A question. Its answers are words, or numbers of boxes.
#[derive(Deserialize)]
struct Pair {
    qa_id: Id,
    question: String,
    answer: Id,
    /// The wrong ones.
    multiple_choices: Vec<Id>,
}

/// A box in pixels.
#[derive(Deserialize)]
struct Candidate {
    box_id: Id,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// As a dialogue has them.
type Regions = Vec<(RegionId, [f64; 4])>;

/// One dialogue for each question, of all splits or of one.
pub(crate) fn read(file: &Arc<Path>, reader: impl Read, options: &RecordOptions) -> Result<Vec<Picture>, DataError> {
    let visual7w: Visual7w = read_json(file, reader)?;
    let boxes = visual7w.boxes.into_iter().flatten();
    let boxes: HashMap<Id, [f64; 4]> =
        boxes.map(|it| (it.box_id, [it.x, it.y, it.x + it.width, it.y + it.height])).collect();
    let mut gathering = Gathering::new(file, options);
    for Asked { filename, qa_pairs, .. } in of_split(visual7w.images, options.split.as_deref())? {
        for pair in qa_pairs {
            let id = pair.qa_id.to_string();
            let place = Place { file: file.clone(), entry: Entry::Question(id.clone()) };
            let asked = match pair.answer {
                Id::Number(_) => point(&pair, &boxes),
                Id::Text(_) => tell(&pair).map(|round| (Vec::new(), round)),
            };
            let (regions, round) = asked.map_err(|error| place.clone().error(error))?;
            gathering.add(&filename, Dialogue { id, place, regions, stated_size: None, rounds: vec![round] });
        }
    }
    Ok(gathering.finish())
}

fn of_split(images: Vec<Asked>, split: Option<&str>) -> Result<Vec<Asked>, DataError> {
    let Some(split) = split else { return Ok(images) };
    let known: BTreeSet<&str> = images.iter().map(|image| image.split.as_str()).collect();
    if !known.contains(split) {
        let expected = format!("one of the file's, {}", known.into_iter().collect::<Vec<_>>().join(", "));
        return Err(DataError::Setting { setting: "split", expected, got: split.into() });
    }
    Ok(images.into_iter().filter(|image| image.split == split).collect())
}

/// A box of four is the answer. They are numbered from left to right: numbers in the file's order, or in that of the
/// ids, might tell which is right.
fn point(pair: &Pair, boxes: &HashMap<Id, [f64; 4]>) -> Result<(Regions, DialogueRound), RecordError> {
    let mut seen = HashSet::new();
    let ids = candidates(pair).filter(|id| seen.insert(*id));
    let mut candidates = ids.map(|id| Ok((id, known(boxes, id)?))).collect::<Result<Vec<_>, RecordError>>()?;
    candidates.sort_by(|(_, one), (_, other)| from_left(one, other));
    let regions: Vec<RegionId> = (1..).map(RegionId).take(candidates.len()).collect();
    let name = |region: &RegionId| format!("region{}", region.0);
    let right =
        candidates.iter().zip(&regions).find(|((id, _), _)| **id == pair.answer).map(|(_, region)| name(region));
    let question = question_about_all(&regions, &pair.question)?;
    let round = round_of_options(1, question, regions.iter().map(name).collect(), right)?;
    let boxes = regions.into_iter().zip(candidates.into_iter().map(|(_, xyxy)| xyxy)).collect();
    Ok((boxes, round))
}

/// By the left edge, and then by the upper one, the right one and the lower one.
fn from_left(one: &[f64; 4], other: &[f64; 4]) -> Ordering {
    one.iter()
        .zip(other)
        .map(|(edge, other)| edge.total_cmp(other))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// Words are the answer, about the whole picture. They stand in alphabetical order.
fn tell(pair: &Pair) -> Result<DialogueRound, RecordError> {
    let mut options: Vec<String> = candidates(pair).map(|answer| answer.to_string().trim().to_owned()).collect();
    let right = options.first().cloned();
    options.sort();
    round_of_options(1, question_about_all(&[], &pair.question)?, options, right)
}

/// The right one first.
fn candidates(pair: &Pair) -> impl Iterator<Item = &Id> {
    std::iter::once(&pair.answer).chain(&pair.multiple_choices)
}

fn known(boxes: &HashMap<Id, [f64; 4]>, id: &Id) -> Result<[f64; 4], RecordError> {
    let dangling = || RecordError::Dangling { field: "answer", expected: "boxes", got: id.to_string() };
    boxes.get(id).copied().ok_or_else(dangling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Records, records::Form};

    const POINTING: &str = r#"{"dataset": "visual7w-pointing", "images": [
        {"image_id": 7, "filename": "v7w_7.jpg", "split": "test", "qa_pairs": [
            {"qa_id": 70, "image_id": 7, "question": "Which pizza is round?", "type": "which", "answer": 1,
             "multiple_choices": [2, 3, 4]}]},
        {"image_id": 8, "filename": "v7w_8.jpg", "split": "train", "qa_pairs": [
            {"qa_id": 80, "image_id": 8, "question": "Which one flies?", "type": "which", "answer": 3,
             "multiple_choices": [4, 4, 1]}]}],
        "boxes": [
            {"box_id": 1, "name": "pizza", "x": 50, "y": 20, "width": 10, "height": 30},
            {"box_id": 2, "name": "plate", "x": 90, "y": 0, "width": 5, "height": 5},
            {"box_id": 3, "name": "table", "x": 50, "y": 10, "width": 40, "height": 40},
            {"box_id": 4, "name": "chair", "x": -1, "y": 60, "width": 12, "height": 12}]}"#;

    const TELLING: &str = r#"{"dataset": "visual7w-telling", "images": [
        {"image_id": 9, "filename": "v7w_9.jpg", "split": "val", "qa_pairs": [
            {"qa_id": 90, "image_id": 9, "question": "How many kites are there?", "type": "how", "answer": "Two.",
             "multiple_choices": ["Three.", "None.", "Two. "]}]}]}"#;

    fn open(file: &str, split: Option<&str>) -> Result<Records, DataError> {
        let options = RecordOptions { split: split.map(String::from), ..RecordOptions::default() };
        Records::from_bytes(Path::new("v7w/dataset.json"), file.as_bytes(), &options)
    }

    #[test]
    fn one_of_four_boxes_is_pointed_at() {
        let records = open(POINTING, None).unwrap();
        assert_eq!(records.form(), Form::Visual7w);
        let [seven, eight] = records.pictures() else { panic!("{records:?}") };
        assert_eq!(seven.path, Path::new("v7w/v7w_7.jpg"));
        let dialogue = &seven.dialogues[0];
        assert_eq!(
            (dialogue.id.as_str(), dialogue.place.to_string().as_str()),
            ("70", "v7w/dataset.json, question 70")
        );
        // From left to right, and of two that begin at the same place the upper one.
        let boxes =
            [[-1.0, 60.0, 11.0, 72.0], [50.0, 10.0, 90.0, 50.0], [50.0, 20.0, 60.0, 50.0], [90.0, 0.0, 95.0, 5.0]];
        assert_eq!(dialogue.regions, (1..).map(RegionId).zip(boxes).collect::<Vec<_>>());
        let round = &dialogue.rounds[0];
        let typed = "Given <region1>,<region2>,<region3>,<region4> in the image,Which pizza is round?";
        assert_eq!(round.typed(), typed);
        assert_eq!(round.choices, ["region1", "region2", "region3", "region4"]);
        assert_eq!((round.answers.as_slice(), &round.said), (&["region3".to_owned()][..], &None));
        let round = &eight.dialogues[0].rounds[0];
        assert_eq!(round.choices, ["region1", "region2", "region3"], "a box that is listed twice is one");
        assert_eq!(round.answers, ["region2"]);
    }

    #[test]
    fn one_of_four_answers_is_told() {
        let records = open(TELLING, Some("val")).unwrap();
        let dialogue = &records.pictures()[0].dialogues[0];
        assert!(dialogue.regions.is_empty());
        let round = &dialogue.rounds[0];
        assert_eq!(round.typed(), "How many kites are there?");
        assert_eq!(
            (round.choices.as_slice(), round.answers.as_slice()),
            (&["None.", "Three.", "Two."].map(String::from)[..], &["Two.".to_owned()][..])
        );
    }

    #[test]
    fn a_split_is_taken_or_all() {
        let names = |split| {
            let records = open(POINTING, split).unwrap();
            records.pictures().iter().map(|picture| picture.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(None), ["v7w_7.jpg", "v7w_8.jpg"]);
        assert_eq!(names(Some("test")), ["v7w_7.jpg"]);
        assert_eq!(names(Some("train")), ["v7w_8.jpg"]);
        let error = open(POINTING, Some("val")).unwrap_err().to_string();
        assert_eq!(error, "setting `split`: expected one of the file's, test, train, got val");
    }

    #[test]
    fn what_refers_to_nothing_or_is_missing_is_named() {
        let error = |file: &str, from: &str, to: &str| {
            assert!(file.contains(from));
            open(&file.replace(from, to), None).unwrap_err().to_string()
        };
        let told = error(POINTING, "[2, 3, 4]", "[2, 3, 5]");
        let expected = "v7w/dataset.json, question 70: answer: expected the id of one of the file's boxes, got 5";
        assert_eq!(told, expected);
        let told = error(TELLING, r#"["Three.", "None.", "Two. "]"#, r#"["Two."]"#);
        assert_eq!(told, "v7w/dataset.json, question 90: round 1: choices: expected at least two, got 1");
        let told = error(POINTING, "Which pizza is round?", " ");
        assert_eq!(told, "v7w/dataset.json, question 70: round 1: question: expected words, got none");
        let told = error(TELLING, "How many kites are there?", " ");
        assert_eq!(told, "v7w/dataset.json, question 90: round 1: question: expected words, got none");
        let told = error(TELLING, "\"answer\"", "\"right\"");
        assert!(
            told.contains("v7w/dataset.json, line 4: column ") && told.contains("missing field `answer`"),
            "{told}"
        );
    }
}
