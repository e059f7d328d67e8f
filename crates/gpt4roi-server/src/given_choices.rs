//! Answers that a client gives to choose between, and how what was chosen is told.

use gpt4roi::{
    Choices,
    choices::{Chosen, ScoredChoice},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    fault::{Fault, Result},
    generation::Wishes,
    limits::{Few, MAX_CHOICES, MAX_TEXT, Unit},
};

/// The request's `choices`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct GivenChoices(Few<GivenChoice, MAX_CHOICES>);

/// A choice as it is said, or with a label.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string, or an object with text and wording")]
enum GivenChoice {
    Said(String),
    Labelled { text: String, wording: String },
}

impl GivenChoice {
    /// The label, and what the model says.
    fn parts(&self) -> (&str, &str) {
        match self {
            Self::Said(text) => (text, text),
            Self::Labelled { text, wording } => (text, wording),
        }
    }
}

impl GivenChoices {
    /// # Errors
    /// If there are too few or too many, if one is empty or repeats another, or if something is wished of how tokens are
    /// drawn, since none are.
    pub(crate) fn read(&self, wishes: &Wishes) -> Result<Choices> {
        let choices = self.0.all("choices", Unit::Choices)?.iter().map(GivenChoice::parts);
        let length = |(text, wording): (&str, &str)| text.chars().count().max(wording.chars().count());
        let characters: usize = choices.clone().map(length).sum();
        if characters > MAX_TEXT {
            return Err(Fault::TooMany {
                param: "choices".into(),
                unit: Unit::Characters,
                most: MAX_TEXT,
                got: characters,
            });
        }
        if wishes.temperature.is_some_and(|temperature| temperature != 0.0) {
            return Err(Fault::Unsupported { param: "temperature".into(), why: NOTHING_IS_DRAWN });
        }
        let field = |message| Fault::Field { param: Some("choices".into()), message };
        Choices::worded(choices).map_err(|error| field(error.to_string()))
    }
}

/// Why what is said of drawing and ending an answer has no place beside given answers.
pub(crate) const NOTHING_IS_DRAWN: &str = "where choices are given, one of them is the answer";

/// What there is to tell of what was chosen: the share of the best, and all choices in the order of the request.
pub(crate) fn told(chosen: &Chosen) -> Value {
    let shares = chosen.probabilities();
    let choices: Vec<Value> = chosen.choices.iter().zip(&shares).map(|(choice, share)| one(choice, *share)).collect();
    json!({"probability": chosen.probability(), "choices": choices})
}

fn one(choice: &ScoredChoice, share: f64) -> Value {
    let ScoredChoice { text, log_probability, tokens, complete } = choice;
    json!({
        "text": text, "probability": share, "log_probability": log_probability, "tokens": tokens, "complete": complete,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::tests::from_json;

    fn read(choices: &Value, wishes: Wishes) -> Result<Choices> {
        from_json::<GivenChoices>(&choices.to_string())?.read(&wishes)
    }

    #[test]
    fn impossible_choices_are_refused() {
        let none = Wishes::default();
        assert_eq!(read(&json!(["a", " b "]), none).unwrap().texts(), ["a", "b"]);
        let labelled = read(&json!([{"text": "cat", "wording": "A cat."}, "A dog."]), none).unwrap();
        assert_eq!((labelled.texts()[0].as_str(), labelled.wordings()[0].as_str()), ("cat", "A cat."));
        assert_eq!((&labelled.texts()[1], &labelled.wordings()[1]), (&"A dog.".into(), &"A dog.".into()));
        for (choices, wishes, expected) in [
            (json!(["a"]), none, "choices: expected at least 2 choices, got 1"),
            (json!(["a", ""]), none, "choices: choice 2: expected words, got none"),
            (
                json!(["a", "b", "a "]),
                none,
                r#"choices: choice 3: expected one that differs from the others, got "a" as in choice 1"#,
            ),
            (json!(vec!["a"; 1001]), none, "choices: expected at most 1000 choices, got 1001"),
            (json!(["a", "b".repeat(16_000)]), none, "choices: expected at most 16000 characters, got 16001"),
            (
                json!(["a", "b"]),
                Wishes { temperature: Some(0.5), ..none },
                "temperature is not supported: where choices are given, one of them is the answer",
            ),
        ] {
            assert_eq!(read(&choices, wishes).unwrap_err().to_string(), expected);
        }
        assert!(from_json::<GivenChoices>(r#"["a", 7]"#).is_err());
    }

    #[test]
    fn shares_come_to_one_and_what_was_given_up_says_so() {
        let choice = |text: &str, probability: f64, complete| ScoredChoice {
            text: text.into(),
            log_probability: probability.ln(),
            tokens: 3,
            complete,
        };
        let choices = vec![choice("a", 0.1, true), choice("b", 0.3, true), choice("c", 0.0, false)];
        let chosen =
            Chosen { question: String::new(), regions: Vec::new(), choices, prompt_tokens: 1, reused_tokens: 0 };
        let told = told(&chosen);
        let share = |value: &Value| (1e6 * value.as_f64().unwrap()).round();
        assert_eq!(share(&told["probability"]), 750_000.0);
        let choices = told["choices"].as_array().unwrap();
        assert_eq!(choices.iter().map(|choice| share(&choice["probability"])).sum::<f64>(), 1e6);
        assert_eq!((&choices[2]["complete"], &choices[2]["log_probability"]), (&json!(false), &Value::Null));
    }
}
