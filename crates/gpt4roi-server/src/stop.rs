//! Strings of a client's that end an answer.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use crate::{
    fault::{Fault, Result},
    limits::{Few, FewVisitor, MAX_STOPS},
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

/// Passes text on up to the first of some strings. What may be the beginning of one is held back.
#[derive(Debug, Default)]
pub(crate) struct StopStrings {
    strings: Vec<String>,
    held: String,
    matched: bool,
}

impl StopStrings {
    /// # Errors
    /// If there are too many, or an empty one.
    pub(crate) fn new(stops: Option<&Stops>) -> Result<Self> {
        let strings = match stops {
            None => &[],
            Some(Stops(few)) => few.all("stop", "too_many_stops")?,
        };
        if strings.iter().any(String::is_empty) {
            return Err(Fault::Value { param: "stop".into(), expected: "strings that are not empty".into() });
        }
        Ok(Self { strings: strings.to_vec(), ..Self::default() })
    }

    /// Takes text, and gives what can be shown of all that was taken.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.held += text;
        let first = self.strings.iter().filter_map(|string| self.held.find(string.as_str())).min();
        if let Some(place) = first {
            self.matched = true;
            self.held.truncate(place);
            return std::mem::take(&mut self.held);
        }
        let kept = self.held.split_off(self.held.len() - self.doubtful());
        std::mem::replace(&mut self.held, kept)
    }

    /// Whether one was found. Nothing should be pushed any more.
    pub(crate) fn matched(&self) -> bool {
        self.matched
    }

    /// What was held back.
    pub(crate) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end that a string may begin with.
    fn doubtful(&self) -> usize {
        let begins = |string: &String| {
            let ends = string.char_indices().map(|(place, _)| place).rev();
            ends.into_iter().find(|&length| self.held.ends_with(&string[..length])).unwrap_or(0)
        };
        self.strings.iter().map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::tests::from_json;

    fn cut(stops: &str, pieces: &[&str]) -> (Vec<String>, String, bool) {
        let mut stops = StopStrings::new(Some(&from_json(stops).unwrap())).unwrap();
        let mut shown = Vec::new();
        for piece in pieces {
            shown.push(stops.push(piece));
            if stops.matched() {
                break;
            }
        }
        let rest = stops.rest();
        (shown, rest, stops.matched())
    }

    #[test]
    fn text_passes_up_to_the_first_stop() {
        for (stops, pieces, shown, rest, matched) in [
            (r#""octo""#, &["An oc", "topus."][..], &["An ", ""][..], "", true),
            (r#"["pus", "octo"]"#, &["An octopus."], &["An "], "", true),
            (r#"".""#, &["An", " octopus", "."], &["An", " octopus", ""], "", true),
            (r#""octagon""#, &["An octo", "pus."], &["An oct", "opus."], "", false),
            (r#""pus!""#, &["An octopus"], &["An octo"], "pus", false),
            (r#"["ab", "bc"]"#, &["a", "a", "bc"], &["", "a", ""], "", true),
            (r#""é✓""#, &["caf", "é", "✓"], &["caf", "", ""], "", true),
            ("[]", &["An"], &["An"], "", false),
        ] {
            let got = cut(stops, pieces);
            assert_eq!(
                (got.0.iter().map(String::as_str).collect::<Vec<_>>(), got.1.as_str(), got.2),
                (shown.to_vec(), rest, matched),
                "{stops}"
            );
        }
    }

    #[test]
    fn impossible_stops_are_refused() {
        let new = |text: &str| StopStrings::new(Some(&from_json(text).unwrap()));
        assert!(matches!(new(r#"["a", "b", "c", "d", "e"]"#), Err(Fault::TooMany { got: 5, .. })));
        assert!(matches!(new(r#""""#), Err(Fault::Value { .. })));
        assert!(from_json::<Stops>("7").is_err());
    }
}
