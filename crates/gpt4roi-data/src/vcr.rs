//! VCR, visual commonsense reasoning, as records: which of four answers is right, and then which of four reasons.
//!
//! Format: the readme that is packed with version 1.0 of <https://visualcommonsense.com>. A line of `train.jsonl`,
//! `val.jsonl` or `test.jsonl` is a question about a picture in `vcr1images`, where a JSON file beside each picture has
//! the boxes of its objects.
//!
//! The words around the regions are those with which GPT4RoI was trained on VCR (`VCRDataset` in its
//! `gpt4roi/datasets/vcr.py`): all objects first, and then each by its class and region. There, by mistake, a mention
//! has the class of the next object; here it has its own. And there the region's features stand at the beginning alone;
//! here each mention in the question brings them again, as everywhere in this program.

use std::{
    collections::HashMap,
    fs,
    io::BufRead,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use gpt4roi::{RegionId, prompt::Piece};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::DataError,
    records::{
        Dialogue, DialogueRound, Entry, Gathering, Id, Picture, Place, RecordError, RecordOptions, StatedSize,
        each_line, round_of_options, round_question,
    },
    sentence::sentence,
};

/// What is asked behind the right answer.
const WHY: &str = "Why?";

/// A line; what it has besides plays no part.
#[derive(Deserialize)]
struct Line {
    annot_id: Option<Id>,
    img_fn: String,
    metadata_fn: PathBuf,
    /// The class of each object.
    objects: Vec<String>,
    question: Vec<Token>,
    answer_choices: Vec<Vec<Token>>,
    /// Which answer is right, from 0. The test set has no labels.
    answer_label: Option<usize>,
    rationale_choices: Vec<Vec<Token>>,
    rationale_label: Option<usize>,
}

/// What a sentence consists of.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a word or a list of objects, which are numbers from 0")]
enum Token {
    Word(String),
    Objects(Vec<usize>),
}

/// The file beside a picture.
#[derive(Deserialize)]
struct Metadata {
    /// Left, top, right and bottom in pixels, and how sure the detector was; in the order of the objects.
    boxes: Vec<[f64; 5]>,
    #[serde(default)]
    width: Value,
    #[serde(default)]
    height: Value,
}

/// One dialogue for each line. The conversation goes on with the right answer, whatever the model chose.
pub(crate) fn read(file: &Arc<Path>, reader: impl BufRead, options: &RecordOptions) -> Result<Vec<Picture>, DataError> {
    let mut gathering = Gathering::new(file, options);
    let mut boxes = Boxes { folder: gathering.folder().to_owned(), known: HashMap::new() };
    each_line(file, reader, |number, place, line: Line| {
        let ids: Vec<RegionId> = (1..).map(RegionId).take(line.objects.len()).collect();
        let rounds = rounds(&line, &ids).map_err(|error| place.clone().error(error))?;
        let (boxes, stated_size) = boxes.of(&line).map_err(|error| place.clone().error(error))?;
        let id = line.annot_id.map_or_else(|| number.to_string(), |id| id.to_string());
        let regions = ids.into_iter().zip(boxes).collect();
        gathering.add(&line.img_fn, Dialogue { id, place, regions, stated_size, rounds });
        Ok(())
    })?;
    Ok(gathering.finish())
}

/// A first question, behind the names of all regions, so that the model sees those that it does not mention. GPT4RoI
/// learned this beginning, without a space behind it.
pub(crate) fn question_about_all(regions: &[RegionId], typed: &str) -> Result<Vec<Piece>, RecordError> {
    let question = round_question(1, typed, regions)?;
    if regions.is_empty() {
        return Ok(question);
    }
    let names: Vec<String> = regions.iter().map(RegionId::to_string).collect();
    round_question(1, &format!("Given {} in the image,{}", names.join(","), typed.trim()), regions)
}

fn rounds(line: &Line, ids: &[RegionId]) -> Result<Vec<DialogueRound>, RecordError> {
    let objects = Objects { classes: &line.objects, ids };
    let question = question_about_all(ids, &objects.sentence("question", &line.question)?)?;
    let answers = objects.sentences("answer_choices", &line.answer_choices)?;
    let right = labelled("answer_label", &answers, line.answer_label)?;
    let answer = DialogueRound { said: right.clone(), ..round_of_options(1, question, answers, right)? };
    let reasons = objects.sentences("rationale_choices", &line.rationale_choices)?;
    let right = labelled("rationale_label", &reasons, line.rationale_label)?;
    Ok(vec![answer, round_of_options(2, round_question(2, WHY, ids)?, reasons, right)?])
}

fn labelled(field: &'static str, choices: &[String], label: Option<usize>) -> Result<Option<String>, RecordError> {
    let Some(label) = label else { return Ok(None) };
    let choice = choices.get(label).cloned();
    choice.map(Some).ok_or(RecordError::Number { field, number: label, count: choices.len(), of: "choices" })
}

/// What a sentence may mention.
struct Objects<'a> {
    classes: &'a [String],
    ids: &'a [RegionId],
}

impl Objects<'_> {
    fn sentences(&self, field: &'static str, choices: &[Vec<Token>]) -> Result<Vec<String>, RecordError> {
        choices.iter().map(|choice| self.sentence(field, choice)).collect()
    }

    fn sentence(&self, field: &'static str, tokens: &[Token]) -> Result<String, RecordError> {
        let word = |token: &Token| match token {
            Token::Word(word) => Ok(word.clone()),
            Token::Objects(numbers) => self.mention(field, numbers),
        };
        Ok(sentence(&tokens.iter().map(word).collect::<Result<Vec<_>, _>>()?))
    }

    /// `person at region1`, or several of these.
    fn mention(&self, field: &'static str, numbers: &[usize]) -> Result<String, RecordError> {
        let name = |&number: &usize| match (self.classes.get(number), self.ids.get(number)) {
            (Some(class), Some(id)) => Ok(format!("{class} at region{}", id.0)),
            _ => Err(RecordError::Number { field, number, count: self.classes.len(), of: "objects" }),
        };
        let mut names = numbers.iter().map(name).collect::<Result<Vec<_>, _>>()?;
        let last = names.pop().unwrap_or_default();
        Ok(if names.is_empty() { last } else { format!("{} and {last}", names.join(", ")) })
    }
}

/// Boxes, xyxy, and the size of the picture that they are of.
type Boxed = (Vec<[f64; 4]>, Option<Arc<StatedSize>>);

/// The boxes of all pictures so far: several questions are about one picture.
struct Boxes {
    folder: PathBuf,
    known: HashMap<PathBuf, Metadata>,
}

impl Boxes {
    /// The boxes of a line's objects.
    fn of(&mut self, line: &Line) -> Result<Boxed, RecordError> {
        let (name, objects) = (&line.metadata_fn, line.objects.len());
        if objects == 0 {
            return Ok((Vec::new(), None));
        }
        let path = self.folder.join(name);
        let refused = |reason: String| RecordError::Metadata { path: path.clone(), reason };
        if !self.known.contains_key(name) {
            if !name.components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(refused("expected a path inside the folder of the pictures".into()));
            }
            let bytes = fs::read(&path).map_err(|error| refused(error.to_string()))?;
            let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
            self.known.insert(name.clone(), metadata);
        }
        let Metadata { boxes, width, height } = &self.known[name];
        if boxes.len() < objects {
            return Err(refused(format!("boxes: expected one for each of {objects} objects, got {}", boxes.len())));
        }
        let place = Place { file: path.into(), entry: Entry::Whole };
        let boxes = boxes[..objects].iter().map(|&[x1, y1, x2, y2, _]| [x1, y1, x2, y2]);
        Ok((boxes.collect(), StatedSize::new(&place, &line.img_fn, width, height)))
    }
}

#[cfg(test)]
mod tests {
    use gpt4roi::ImageSize;

    use super::*;
    use crate::{Records, records::Form};

    /// A line in the published form, with what is not needed here.
    const LINE: &str = r#"{"movie": "A_MOVIE", "objects": ["person", "person", "car"], "interesting_scores": [-1, 0],
        "answer_likelihood": "possible", "img_fn": "lsmdc_A_MOVIE/a@0.jpg", "metadata_fn": "lsmdc_A_MOVIE/a@0.json",
        "answer_orig": "No, 1 isn't.", "question_orig": "Does 1 live with 2 and 3?", "rationale_orig": "1's coat is wet.",
        "question": ["Does", [0], "live", "with", [1, 2], "?"],
        "answer_choices": [["Yes", ",", [1], "does", "."], ["No", ",", [0], "isn", "'", "t", "."], ["Maybe", "."],
            ["They", "all", "do", ":", [2, 1, 0], "."]],
        "answer_label": 1,
        "rationale_choices": [["It", "is", "late", "."], ["It", "rains", "."], [[0], "'", "s", "coat", "is", "wet", "."],
            ["It", "rains", "."]],
        "rationale_label": 2, "answer_sources": [1, 0, 2, 3], "img_id": "val-0", "question_number": 1,
        "annot_id": "val-1", "match_fold": "val-0", "match_index": 1}"#;

    const METADATA: &str = r#"{"boxes": [[1.5, 2, 30, 40, 0.99], [5, 6, 70, 80, 0.9], [0, 0, 9, 9, 0.5]], "segms": [[], [], []],
        "names": ["person", "person", "car"], "width": 200, "height": 100}"#;

    /// Reads lines in a folder with the metadata beside the picture.
    fn open(lines: &str, metadata: &str) -> Result<Records, DataError> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("lsmdc_A_MOVIE")).unwrap();
        fs::write(folder.path().join("lsmdc_A_MOVIE/a@0.json"), metadata).unwrap();
        let options = RecordOptions { images: Some(folder.path().into()), ..RecordOptions::default() };
        Records::from_bytes(Path::new("val.jsonl"), lines.replace('\n', " ").as_bytes(), &options)
    }

    fn changed(from: &str, to: &str) -> String {
        assert!(LINE.contains(from), "{from}");
        LINE.replace(from, to)
    }

    #[test]
    fn a_question_is_asked_and_then_why() {
        let records = open(LINE, METADATA).unwrap();
        assert_eq!(records.form(), Form::Vcr);
        let [picture] = records.pictures() else { panic!("{records:?}") };
        assert!(picture.path.ends_with("lsmdc_A_MOVIE/a@0.jpg"));
        let [dialogue] = picture.dialogues.as_slice() else { panic!("{picture:?}") };
        assert_eq!((dialogue.id.as_str(), dialogue.place.to_string().as_str()), ("val-1", "val.jsonl, line 1"));
        let boxes = [[1.5, 2.0, 30.0, 40.0], [5.0, 6.0, 70.0, 80.0], [0.0, 0.0, 9.0, 9.0]];
        assert_eq!(dialogue.regions, [1, 2, 3].map(RegionId).into_iter().zip(boxes).collect::<Vec<_>>());

        let [what, why] = dialogue.rounds.as_slice() else { panic!("{dialogue:?}") };
        let typed = "Given <region1>,<region2>,<region3> in the image,Does person at <region1> live with \
                     person at <region2> and car at <region3>?";
        assert_eq!(what.typed(), typed);
        let choices = [
            "Yes, person at region2 does.",
            "No, person at region1 isn't.",
            "Maybe.",
            "They all do: car at region3, person at region2 and person at region1.",
        ];
        assert_eq!(what.choices, choices);
        assert_eq!(what.answers, ["No, person at region1 isn't."]);
        assert_eq!(what.said.as_deref(), Some("No, person at region1 isn't."));
        assert_eq!(why.typed(), "Why?");
        assert_eq!(why.choices, ["It is late.", "It rains.", "person at region1's coat is wet."], "each once");
        assert_eq!((why.answers.as_slice(), &why.said), (&["person at region1's coat is wet.".to_owned()][..], &None));
    }

    #[test]
    fn boxes_are_of_a_picture_of_the_size_beside_them() {
        let records = open(LINE, METADATA).unwrap();
        let boxes = |width, height| records.pictures()[0].dialogues[0].boxes(ImageSize { width, height });
        assert_eq!(boxes(200, 100).unwrap().len(), 3);
        let error = boxes(400, 200).unwrap_err().to_string();
        let expected = "lsmdc_A_MOVIE/a@0.json: width and height: expected 400×200, the size of lsmdc_A_MOVIE/a@0.jpg, got \
                        200×100";
        assert!(error.ends_with(expected), "{error}");
    }

    #[test]
    fn without_labels_there_are_choices_and_no_answers() {
        let line = changed(r#""answer_label": 1,"#, "").replace(r#""rationale_label": 2, "#, "");
        let records = open(&line, METADATA).unwrap();
        for round in &records.pictures()[0].dialogues[0].rounds {
            assert!(round.choices.len() > 2 && round.answers.is_empty() && round.said.is_none(), "{round:?}");
        }
    }

    #[test]
    fn what_a_line_lacks_or_mistakes_is_named() {
        for (line, expected) in [
            (
                changed(r#"["Does", [0], "live", "with", [1, 2], "?"]"#, "[]"),
                "round 1: question: expected words, got none",
            ),
            (changed("[0], \"live\"", "[3], \"live\""), "question: expected one of the 3 objects, from 0, got 3"),
            (
                changed("[1], \"does\"", "[-1], \"does\""),
                "expected a word or a list of objects, which are numbers from 0",
            ),
            (
                changed(r#""answer_label": 1"#, r#""answer_label": 4"#),
                "answer_label: expected one of the 4 choices, from 0, got 4",
            ),
            (changed(r#"["Maybe", "."]"#, r#"[""]"#), "round 1: choices: number 3: expected words, got none"),
            (changed(r#""img_fn""#, r#""img""#), "missing field `img_fn`"),
            (changed("a@0.json", "b@0.json"), "metadata_fn: "),
            (changed("lsmdc_A_MOVIE/a@0.json", "../a@0.json"), "expected a path inside the folder of the pictures"),
        ] {
            let error = open(&line, METADATA).unwrap_err().to_string();
            assert!(error.starts_with("val.jsonl, line 1: ") && error.contains(expected), "{error}");
        }
        let error = open(&changed("a@0.json", "b@0.json"), METADATA).unwrap_err().to_string();
        assert!(error.contains("lsmdc_A_MOVIE/b@0.json: "), "{error}");
        let error = open(LINE, r#"{"boxes": [[1, 2, 3, 4, 0.5]]}"#).unwrap_err().to_string();
        assert!(error.ends_with("a@0.json: boxes: expected one for each of 3 objects, got 1"), "{error}");
        let error = open(LINE, r#"{"boxes": [[1, 2, 3, 4]]}"#).unwrap_err().to_string();
        assert!(error.contains("a@0.json: invalid length 4"), "{error}");
    }
}
