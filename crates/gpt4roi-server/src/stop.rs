//! Strings of a client's that end an answer.

use std::fmt;

use gpt4roi::stop::StopStrings;
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use crate::{
    fault::{Fault, Result},
    limits::{Few, FewVisitor, MAX_STOPS, Unit},
};

/// One string, or a few.
#[derive(Debug)]
pub(crate) struct Stops(Few<String, MAX_STOPS>);

impl<'de> Deserialize<'de> for Stops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct StopsVisitor;
        impl<'de> Visitor<'de> for StopsVisitor {
            type Value = Stops;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Stops, E> {
                Ok(Stops(Few::one(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, strings: A) -> std::result::Result<Stops, A::Error> {
                FewVisitor(std::marker::PhantomData).visit_seq(strings).map(Stops)
            }
        }
        deserializer.deserialize_any(StopsVisitor)
    }
}

impl Stops {
    /// # Errors
    /// If there are too many, or an empty one.
    pub(crate) fn read(&self) -> Result<StopStrings> {
        let strings = self.0.all("stop", Unit::Stops)?;
        if strings.iter().any(String::is_empty) {
            return Err(Fault::Value { param: "stop".into(), expected: "strings that are not empty".into() });
        }
        Ok(StopStrings::new(strings.iter().cloned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::tests::from_json;

    fn read(text: &str) -> Result<StopStrings> {
        from_json::<Stops>(text)?.read()
    }

    #[test]
    fn one_string_or_a_few_end_an_answer() {
        let strings = |strings: &[&str]| StopStrings::new(strings.iter().map(|string| (*string).to_owned()));
        for (text, expected) in [(r#""octo""#, &["octo"][..]), (r#"["a", "bc"]"#, &["a", "bc"]), ("[]", &[])] {
            assert_eq!(read(text).unwrap(), strings(expected), "{text}");
        }
    }

    #[test]
    fn impossible_stops_are_refused() {
        assert!(matches!(read(r#"["a", "b", "c", "d", "e"]"#), Err(Fault::TooMany { got: 5, .. })));
        assert!(matches!(read(r#""""#), Err(Fault::Value { .. })));
        assert!(from_json::<Stops>("7").is_err());
    }
}
