//! A file of predictions: JSON lines, one for each round that was asked.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    mem,
    path::{Path, PathBuf},
};

use anyhow::Context;
use gpt4roi::{
    Choices,
    chat::Answer,
    choices::{Chosen, ScoredChoice},
};
use gpt4roi_data::{Dialogue, DialogueRound, Picture, Records};
use serde::{Deserialize, Serialize};

use crate::{ask, choices, failure::Refusal};

/// The file while it grows. Every line is written at once, so that an interrupted run loses none.
#[derive(Debug)]
pub(crate) struct Predictions {
    path: PathBuf,
    file: File,
    /// Who answers.
    model: String,
    /// Where the last whole line ends.
    end: u64,
    /// Which questions have been answered, and on which lines.
    answered: HashMap<Key, Vec<usize>>,
    found: usize,
}

/// A line.
#[derive(Debug, Serialize, Deserialize)]
struct Line<P> {
    #[serde(flatten)]
    prediction: P,
    /// Whose answer it is, as the command line calls it.
    model: String,
}

/// An answer, and what it is an answer to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Prediction {
    /// That of the dialogue.
    pub(crate) id: String,
    /// Counted from 1.
    round: usize,
    /// As the records name it.
    image: String,
    regions: Vec<AskedRegion>,
    question: String,
    #[serde(flatten)]
    pub(crate) said: Said,
    /// Which answers are right, if the records say so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    answers: Vec<String>,
}

/// What the model said.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Said {
    /// Its answer, or the most probable choice.
    pub(crate) prediction: String,
    /// The geometric mean of its tokens' probabilities, 0 to 1; none without tokens. Of a choice its share among the
    /// choices.
    pub(crate) probability: Option<f64>,
    /// How probable each choice is, if the answer was one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    choices: Vec<ScoredChoice>,
}

/// A region, with its box as the records have it: xyxy in pixels.
#[derive(Debug, Serialize, Deserialize)]
struct AskedRegion {
    id: u32,
    bbox: [f64; 4],
}

/// What was asked.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    id: String,
    round: usize,
    image: String,
    /// Boxes in thousandths of a pixel, so that it does not matter how a number is written.
    regions: Vec<(u32, [i64; 4])>,
    question: String,
    choices: Vec<String>,
    answers: Vec<String>,
}

/// What has not been asked yet about a picture.
#[derive(Debug)]
pub(crate) struct Outstanding<'a> {
    pub(crate) picture: &'a Picture,
    pub(crate) dialogues: Vec<Unanswered<'a>>,
}

/// A dialogue of which rounds have not been answered yet.
#[derive(Debug)]
pub(crate) struct Unanswered<'a> {
    pub(crate) dialogue: &'a Dialogue,
    /// Counted from 0; at least one.
    pub(crate) rounds: Vec<usize>,
}

impl Predictions {
    /// Opens the file of a model's answers, which is made if need be, and reads what is in it. Nothing is changed yet.
    ///
    /// # Errors
    /// If it can't be read or written, or holds anything but answers of that model.
    pub(crate) fn open(path: &Path, model: String) -> anyhow::Result<Self> {
        let named = || path.display().to_string();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.with_context(named)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(named)?;
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let mut answered: HashMap<Key, Vec<usize>> = HashMap::new();
        let lines = lines(path, &bytes[..end])?;
        let found = lines.len();
        for (number, Line { prediction, model: other }) in lines {
            if other != model {
                return Err(not_ours(
                    path,
                    &format!("line {number}"),
                    &format!("{other} answered, and now {model} does"),
                ));
            }
            answered.entry(prediction.key()).or_default().push(number);
        }
        if !may_begin_a_line(&bytes[end..]) {
            return Err(not_ours(path, "the last line", "it is of another kind"));
        }
        Ok(Self { path: path.to_owned(), file, model, end: end as u64, answered, found })
    }

    /// How many answers there were when the file was opened.
    pub(crate) fn found(&self) -> usize {
        self.found
    }

    /// What the records ask and the file does not answer, for every picture, and makes the file ready to go on: a last
    /// line that was cut off goes. `vocabulary` is what can be answered where the records say nothing of it.
    ///
    /// # Errors
    /// If the file has an answer to something that the records do not ask. It is then left as it was.
    pub(crate) fn outstanding<'a>(
        &mut self,
        records: &'a Records,
        vocabulary: Option<&Choices>,
    ) -> anyhow::Result<Vec<Outstanding<'a>>> {
        let mut answered = mem::take(&mut self.answered);
        let mut left = |picture, dialogue: &'a Dialogue| {
            let is_left = |round: &usize| {
                let key = Key::new(picture, dialogue, *round, vocabulary);
                answered.get_mut(&key).and_then(Vec::pop).is_none()
            };
            Unanswered { dialogue, rounds: (0..dialogue.rounds.len()).filter(is_left).collect() }
        };
        let outstanding = records.pictures().iter().map(|picture| {
            let dialogues = picture.dialogues.iter().map(|dialogue| left(picture, dialogue));
            Outstanding { picture, dialogues: dialogues.filter(|left| !left.rounds.is_empty()).collect() }
        });
        let outstanding = outstanding.collect();
        if let Some(line) = answered.into_values().flatten().min() {
            return Err(not_ours(&self.path, &format!("line {line}"), "nothing in the data asks for it"));
        }
        self.file.set_len(self.end).and_then(|()| self.file.seek(SeekFrom::End(0))).with_context(|| self.named())?;
        Ok(outstanding)
    }

    /// Adds a line.
    pub(crate) fn write(&mut self, prediction: &Prediction) -> anyhow::Result<()> {
        let line = Line { prediction, model: self.model.clone() };
        let line = format!("{}\n", serde_json::to_string(&line)?);
        self.file.write_all(line.as_bytes()).with_context(|| self.named())
    }

    fn named(&self) -> String {
        self.path.display().to_string()
    }
}

/// All predictions of a file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Prediction>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(lines(path, &bytes)?.into_iter().map(|(_, line)| line.prediction).collect())
}

/// The lines with their numbers.
fn lines(path: &Path, bytes: &[u8]) -> anyhow::Result<Vec<(usize, Line<Prediction>)>> {
    let lines = (1..).zip(bytes.split_inclusive(|&byte| byte == b'\n'));
    let read = |(number, line): (usize, &[u8])| match serde_json::from_slice(line) {
        Ok(line) => Ok((number, line)),
        Err(error) => Err(not_ours(path, &format!("line {number}"), &error.to_string())),
    };
    lines.map(read).collect()
}

/// Whether a line that was cut off may have been one of this program's. What is not will not be thrown away.
fn may_begin_a_line(rest: &[u8]) -> bool {
    const BEGINNING: &[u8] = br#"{"id":""#;
    rest.starts_with(BEGINNING) || BEGINNING.starts_with(rest)
}

fn not_ours(path: &Path, line: &str, why: &str) -> anyhow::Error {
    Refusal::failure(format!(
        "{}, {line}: expected a prediction from the same data and model, but {why}",
        path.display()
    ))
    .hint("--out with the name of a new file begins anew; one file holds what one command asks")
    .into()
}

impl Prediction {
    /// The line for what was said in a round, which is counted from 0.
    pub(crate) fn new(picture: &Picture, dialogue: &Dialogue, round: usize, said: Said) -> Self {
        let asked = &dialogue.rounds[round];
        Self {
            id: dialogue.id.clone(),
            round: round + 1,
            image: picture.name.clone(),
            regions: dialogue.regions.iter().map(|&(id, bbox)| AskedRegion { id: id.0, bbox }).collect(),
            question: asked.typed(),
            said,
            answers: asked.answers.clone(),
        }
    }

    fn key(&self) -> Key {
        Key {
            id: self.id.clone(),
            round: self.round,
            image: self.image.clone(),
            regions: self.regions.iter().map(|region| (region.id, in_thousandths(region.bbox))).collect(),
            question: self.question.clone(),
            choices: self.said.choices.iter().map(|choice| choice.text.clone()).collect(),
            answers: self.answers.clone(),
        }
    }
}

impl Key {
    /// That of the line for a round, which is counted from 0.
    fn new(picture: &Picture, dialogue: &Dialogue, round: usize, vocabulary: Option<&Choices>) -> Self {
        let asked = &dialogue.rounds[round];
        Self {
            id: dialogue.id.clone(),
            round: round + 1,
            image: picture.name.clone(),
            regions: dialogue.regions.iter().map(|&(id, bbox)| (id.0, in_thousandths(bbox))).collect(),
            question: asked.typed(),
            choices: choice_texts(asked, vocabulary),
            answers: asked.answers.clone(),
        }
    }
}

/// What can be answered in a round: its own choices, or else the vocabulary, or nothing for free text.
pub(crate) fn choice_texts(asked: &DialogueRound, vocabulary: Option<&Choices>) -> Vec<String> {
    match vocabulary {
        Some(vocabulary) if asked.choices.is_empty() => vocabulary.texts().to_vec(),
        _ => asked.choices.iter().map(|choice| choice.trim().to_owned()).collect(),
    }
}

fn in_thousandths(bbox: [f64; 4]) -> [i64; 4] {
    bbox.map(|edge| (1000.0 * edge).round() as i64)
}

impl Said {
    /// `abstain` is the least probability of an answer that is told.
    pub(crate) fn of_answer(answer: &Answer, abstain: Option<f64>) -> Self {
        let prediction = ask::told(answer, abstain).to_owned();
        Self { prediction, probability: answer.probability(), choices: Vec::new() }
    }

    /// `abstain` is the least share of a choice that is told.
    pub(crate) fn of_chosen(chosen: &Chosen, abstain: Option<f64>) -> Self {
        let prediction = choices::told(chosen, abstain).to_owned();
        Self { prediction, probability: Some(chosen.probability()), choices: chosen.choices.clone() }
    }
}

impl Outstanding<'_> {
    /// How many answers are missing.
    pub(crate) fn answers(&self) -> usize {
        self.dialogues.iter().map(|dialogue| dialogue.rounds.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gpt4roi_eval::predictions::{Prediction as Scored, read as read_to_score};
    use serde_json::Value;

    use super::*;

    /// Whatever of a line can be scored is read as it was written; the other fields are for other readers.
    #[test]
    fn lines_are_scored_as_they_were_written() {
        let choice = |(text, log_probability, complete): (&str, f64, bool)| ScoredChoice {
            text: text.into(),
            log_probability,
            tokens: 7,
            complete,
        };
        let choices: Vec<_> =
            [("A \"kettle\".\n", -0.1, true), ("Ein Kübel.", f64::NEG_INFINITY, true), ("A pan.", -31.5, false)]
                .map(choice)
                .into();
        let chosen = Prediction {
            id: "33".into(),
            round: 2,
            image: "kitchen/1.png".into(),
            regions: vec![AskedRegion { id: 1, bbox: [40.0, 60.5, 210.0, 300.0] }],
            question: "What is <region1>?".into(),
            said: Said { prediction: choices[0].text.clone(), probability: Some(0.9), choices: choices.clone() },
            answers: vec!["A pan.".into(), "Ein Kübel.".into()],
        };
        let free = Prediction {
            id: "one".into(),
            round: 1,
            image: "2.png".into(),
            regions: Vec::new(),
            question: "Why?".into(),
            said: Said { prediction: String::new(), probability: None, choices: Vec::new() },
            answers: Vec::new(),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions.jsonl");
        let mut predictions = Predictions::open(&path, "embedded".into()).unwrap();
        [&chosen, &free].into_iter().for_each(|prediction| predictions.write(prediction).unwrap());

        let scored = |Prediction { id, round, image, regions: _, question, said, answers }: Prediction| {
            let Said { prediction, probability: _, choices } = said;
            Scored { id, round, image, question, prediction, answers, choices }
        };
        assert_eq!(read_to_score(&path).unwrap(), [chosen, free].map(scored));
        let text = fs::read_to_string(&path).unwrap();
        let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let written: BTreeSet<&str> = first.as_object().unwrap().keys().map(String::as_str).collect();
        let read = ["id", "round", "image", "question", "prediction", "answers", "choices"];
        let unread = ["regions", "probability", "model"];
        assert_eq!(written, read.into_iter().chain(unread).collect());
    }
}
