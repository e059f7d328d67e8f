//! Strings of the caller's that end an answer.

use std::sync::Arc;

/// Where an answer ends besides where the model ends it: before the first of some strings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStrings(Arc<[String]>);

impl StopStrings {
    /// Empty strings end nothing.
    pub fn new(strings: impl IntoIterator<Item = String>) -> Self {
        Self(strings.into_iter().filter(|string| !string.is_empty()).collect())
    }

    /// The part of a text that is the answer, if one of the strings stands in it.
    pub(crate) fn cut<'t>(&self, text: &'t str) -> Option<&'t str> {
        self.0.iter().filter_map(|string| text.find(string.as_str())).min().map(|place| &text[..place])
    }

    /// The beginning of a text that none of the strings can take away, whatever follows.
    pub(crate) fn settled<'t>(&self, text: &'t str) -> &'t str {
        let begins = |string: &String| {
            let mut lengths = string.char_indices().map(|(length, _)| length).rev();
            lengths.find(|&length| text.ends_with(&string[..length])).unwrap_or(0)
        };
        let doubtful = self.0.iter().map(begins).max().unwrap_or(0);
        &text[..text.len() - doubtful]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(strings.iter().map(|string| (*string).to_owned()))
    }

    #[test]
    fn an_answer_ends_before_the_first_string() {
        for (strings, text, cut) in [
            (&["octo"][..], "An octopus.", Some("An ")),
            (&["pus", "octo"], "An octopus.", Some("An ")),
            (&["ab", "bc"], "aabc", Some("a")),
            (&["é✓"], "café✓", Some("caf")),
            (&["octagon"], "An octopus.", None),
            (&["An"], "An octopus.", Some("")),
            (&[""], "An octopus.", None),
            (&[], "An octopus.", None),
        ] {
            assert_eq!(stops(strings).cut(text), cut, "{strings:?}");
        }
    }

    #[test]
    fn what_may_become_a_string_is_held_back() {
        for (strings, text, settled) in [
            (&["octo"][..], "An oc", "An "),
            (&["octo", "n o"], "An oc", "An "),
            (&["octo", "n oct"], "An oc", "A"),
            (&["é✓"], "café", "caf"),
            (&["aab"], "aaa", "a"),
            (&["pus!"], "An octopus.", "An octopus."),
            (&[], "An octopus", "An octopus"),
        ] {
            assert_eq!(stops(strings).settled(text), settled, "{strings:?}");
        }
    }
}
