//! What a model answered, as a file: one line of JSON for each round.

use std::{
    fmt, fs,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use gpt4roi::choices::ScoredChoice;
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// What is wrong with a file of predictions.
#[derive(Debug, thiserror::Error)]
pub enum PredictionError {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not what it should be.
    #[error("{}, line {line}: expected a prediction, {{\"id\", \"round\", \"image\", \"question\", \"prediction\", \
             \"answers\"}}, got {got:?}: {reason}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// How the line begins.
        got: String,
        /// What the parser says.
        reason: serde_json::Error,
    },
}

/// One answer of a model. Other fields of its line are not looked at.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Prediction {
    /// Which dialogue it is of: a string, or a whole number.
    #[serde(deserialize_with = "text_or_number")]
    pub id: String,
    /// Which round of the dialogue, from 1.
    #[serde(default = "first_round")]
    pub round: usize,
    /// The picture, as the data names it.
    pub image: String,
    /// What was asked.
    pub question: String,
    /// What the model answered.
    pub prediction: String,
    /// What would have been right; nothing if nobody said.
    #[serde(default)]
    pub answers: Vec<String>,
    /// How probable each of the given choices is; empty if the model answered in its own words.
    #[serde(default)]
    pub choices: Vec<ScoredChoice>,
}

/// Reads a file of predictions. Empty lines are skipped.
pub fn read(path: &Path) -> Result<Vec<Prediction>, PredictionError> {
    let failed = |source| PredictionError::File { path: path.into(), source };
    let lines = BufReader::new(fs::File::open(path).map_err(failed)?).lines();
    let mut predictions = Vec::new();
    for (number, line) in (1..).zip(lines) {
        let line = line.map_err(failed)?;
        if !line.trim().is_empty() {
            let wrong =
                |reason| PredictionError::Line { path: path.into(), line: number, got: beginning(&line), reason };
            predictions.push(serde_json::from_str(&line).map_err(wrong)?);
        }
    }
    Ok(predictions)
}

fn beginning(line: &str) -> String {
    line.chars().take(60).collect()
}

fn first_round() -> usize {
    1
}

/// Ids of other programs' files are strings or numbers.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Id;
    impl Visitor<'_> for Id {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a whole number")
        }

        fn visit_str<E: Error>(self, id: &str) -> Result<String, E> {
            Ok(id.into())
        }

        fn visit_u64<E: Error>(self, id: u64) -> Result<String, E> {
            Ok(id.to_string())
        }

        fn visit_i64<E: Error>(self, id: i64) -> Result<String, E> {
            Ok(id.to_string())
        }
    }
    deserializer.deserialize_any(Id)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read_text(text: &str) -> Result<Vec<Prediction>, PredictionError> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("writes");
        read(file.path())
    }

    #[test]
    fn a_line_is_a_prediction() {
        let text = concat!(
            r#"{"id": 7, "round": 2, "image": "a.png", "regions": [{"id": 1, "bbox": [0, 0, 4, 4]}], "#,
            r#""question": "What is <region1>?", "prediction": "A dog.", "probability": 0.9, "answers": ["A cat."]}"#,
            "\n\n",
            r#"{"id": "b", "image": "b.png", "question": "Why?", "prediction": "", "choices": "#,
            r#"[{"text": "a", "log_probability": -1.5, "tokens": 4}, "#,
            r#"{"text": "b", "log_probability": null, "tokens": 3, "complete": false}]}"#,
        );
        let [first, second] = &read_text(text).expect("reads")[..] else { panic!("two lines") };
        assert_eq!((first.id.as_str(), first.round, first.answers.len()), ("7", 2, 1));
        assert_eq!((second.id.as_str(), second.round, second.answers.len()), ("b", 1, 0));
        let choices: Vec<_> = second.choices.iter().map(|it| (&*it.text, it.log_probability, it.complete)).collect();
        assert_eq!(choices, [("a", -1.5, true), ("b", f64::NEG_INFINITY, false)]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let good = r#"{"id": "b", "image": "b.png", "question": "Why?", "prediction": ""}"#;
        let cases = [
            (r#"{"id": "a", "image": "b.png", "question": "Why?"}"#, "missing field `prediction`"),
            (r#"{"id": 1.5, "image": "b.png", "question": "Why?", "prediction": ""}"#, "a string or a whole number"),
            ("not json", "expected"),
            (r#"{"id": "a", "image": "b", "question": "", "prediction": "", "answers": "a"}"#, "a sequence"),
        ];
        for (line, expected) in cases {
            let error = read_text(&format!("{good}\n{line}\n")).expect_err(line).to_string();
            assert!(error.contains("line 2") && error.contains(expected), "{error}");
        }
        let error = read(Path::new("nowhere.jsonl")).expect_err("no file").to_string();
        assert!(error.contains("nowhere.jsonl"), "{error}");
    }
}
