//! Answers that a client gives to choose between, and how what was chosen is told.

use std::fmt;

use gpt4roi::{
    Choices,
    choices::{Chosen, ScoredChoice},
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Value, json};

use crate::{
    fault::{Fault, Result},
    generation::Wishes,
    limits::{Few, MAX_CHOICES, MAX_SCORED, MAX_TEXT, Unit},
};

/// The request's `choices`.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct GivenChoices(Few<GivenChoice, MAX_CHOICES>);

/// A choice: its label, and what the model says, which is the same if there is no label.
#[derive(Debug, Deserialize)]
struct Labelled {
    text: String,
    wording: String,
}

/// A string, or an object with `text` and `wording`.
#[derive(Debug)]
struct GivenChoice(Labelled);

impl<'de> Deserialize<'de> for GivenChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ChoiceVisitor;
        impl<'de> Visitor<'de> for ChoiceVisitor {
            type Value = GivenChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or an object with text and wording")
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<GivenChoice, E> {
                Ok(GivenChoice(Labelled { text: text.to_owned(), wording: text.to_owned() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> std::result::Result<GivenChoice, A::Error> {
                Labelled::deserialize(MapAccessDeserializer::new(fields)).map(GivenChoice)
            }
        }
        deserializer.deserialize_any(ChoiceVisitor)
    }
}

impl GivenChoices {
    /// # Errors
    /// If they are too many for so many regions, each of which is told how probable all of them are.
    pub(crate) fn check_regions(&self, regions: usize) -> Result<()> {
        let (most, got) = (MAX_SCORED / regions.max(1), self.0.total());
        if got > most {
            return Err(Fault::TooMany { param: "choices".into(), unit: Unit::Choices, most, got });
        }
        Ok(())
    }

    /// # Errors
    /// If there are too few or too many, if one is empty or repeats another, or if something is wished of how tokens are
    /// drawn, since none are.
    pub(crate) fn read(&self, wishes: &Wishes) -> Result<Choices> {
        let choices = self.0.all("choices", Unit::Choices)?.iter();
        let choices = choices.map(|GivenChoice(Labelled { text, wording })| (text.as_str(), wording.as_str()));
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
        for (text, expected) in [
            (r#"["a", 7]"#, "[1]: invalid type: integer `7`, expected a string, or an object with text and wording"),
            (r#"["a", {"text": "b"}]"#, "[1]: missing field `wording`"),
            (r#"["a", {"text": "b", "wording": [[1]]}]"#, "[1].wording: invalid type: sequence, expected a string"),
        ] {
            let error = from_json::<GivenChoices>(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
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
