//! Paraphrases: phrases that were translated alike, from METEOR's table of five million.
//!
//! The table has three lines for each: a probability, which METEOR does not use, a phrase, and what can stand for it.

use std::{
    collections::{HashMap, HashSet},
    io::{self, BufRead},
};

use crate::{
    meteor_match::{Span, places_of},
    meteor_tables::{Unreadable, WrongLine},
};

/// What can stand for phrases: words, with a space between two.
#[derive(Debug, Default)]
pub(crate) struct Paraphrases {
    /// In the order of the table, which decides between matches that are as good.
    of: HashMap<Box<str>, Vec<Box<str>>>,
    /// Words of the longest phrase that something can stand for.
    longest: usize,
}

/// The words of captions, and which stand side by side: other phrases can't be met in them.
#[derive(Debug, Default)]
pub(crate) struct Phrases {
    words: HashMap<String, u32>,
    neighbours: HashSet<(u32, u32)>,
}

impl Paraphrases {
    /// Reads a table, and keeps of it what has phrases on both sides that captions may have.
    pub(crate) fn read(table: impl BufRead, phrases: &Phrases) -> Result<Self, Unreadable> {
        let mut kept = Self::default();
        let mut table = Table { lines: table, line: 0 };
        let [mut probability, mut phrase, mut other] = [const { String::new() }; 3];
        while table.next(&mut probability)? {
            if probability.parse::<f64>().is_err() {
                return Err(table.wrong("a probability", probability));
            }
            table.next_phrase(&mut phrase)?;
            table.next_phrase(&mut other)?;
            if phrases.may_have(&phrase) && phrases.may_have(&other) {
                kept.add(&phrase, &other);
            }
        }
        Ok(kept)
    }

    fn add(&mut self, phrase: &str, other: &str) {
        let joined = |line: &str| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ").into_boxed_str();
        self.longest = self.longest.max(phrase.split_ascii_whitespace().count());
        self.of.entry(joined(phrase)).or_default().push(joined(other));
    }

    /// Phrases of one caption with phrases of another that can stand for them.
    pub(crate) fn pairs(&self, one: &[String], other: &[String]) -> Vec<(Span, Span)> {
        let mut pairs = Vec::new();
        let begins = places_of(other);
        for start in 0..one.len() {
            let mut phrase = String::new();
            for (words, word) in (1..=self.longest).zip(&one[start..]) {
                if words > 1 {
                    phrase.push(' ');
                }
                phrase += word;
                for paraphrase in self.of.get(phrase.as_str()).into_iter().flatten() {
                    pairs.extend(places(paraphrase, other, &begins).map(|place| (Span { start, words }, place)));
                }
            }
        }
        pairs
    }
}

/// Where a caption has a phrase; `begins` says where its words stand.
fn places<'a>(
    phrase: &'a str,
    caption: &'a [String],
    begins: &'a HashMap<&str, Vec<usize>>,
) -> impl Iterator<Item = Span> + 'a {
    let words = phrase.split(' ').count();
    let has = move |start: &&usize| {
        let rest = caption[**start..].iter().map(String::as_str);
        rest.take(words).eq(phrase.split(' '))
    };
    let first = phrase.split(' ').next().unwrap_or_default();
    begins.get(first).into_iter().flatten().filter(has).map(move |&start| Span { start, words })
}

impl Phrases {
    /// Adds those of a caption.
    pub(crate) fn add(&mut self, caption: &[String]) {
        let ids: Vec<u32> = caption.iter().map(|word| self.id(word)).collect();
        self.neighbours.extend(ids.windows(2).map(|pair| (pair[0], pair[1])));
    }

    fn id(&mut self, word: &str) -> u32 {
        if let Some(id) = self.words.get(word) {
            return *id;
        }
        let id = self.words.len() as u32;
        self.words.insert(word.into(), id);
        id
    }

    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        self.words.keys().map(String::as_str)
    }

    /// Whether a phrase has only words, and only neighbours, that stand in captions.
    fn may_have(&self, phrase: &str) -> bool {
        let mut before = None;
        phrase.split_ascii_whitespace().all(|word| {
            let id = self.words.get(word).copied();
            let left = std::mem::replace(&mut before, id);
            id.is_some_and(|id| left.is_none_or(|left| self.neighbours.contains(&(left, id))))
        })
    }
}

/// The lines of a table, counted.
struct Table<R> {
    lines: R,
    line: usize,
}

impl<R: BufRead> Table<R> {
    /// Reads the next line, without what ends it. False if there is none.
    fn next(&mut self, line: &mut String) -> io::Result<bool> {
        line.clear();
        self.line += 1;
        let read = self.lines.read_line(line)?;
        line.truncate(line.trim_ascii_end().len());
        Ok(read > 0)
    }

    fn next_phrase(&mut self, line: &mut String) -> Result<(), Unreadable> {
        self.next(line)?;
        if line.is_empty() { Err(self.wrong("a phrase", std::mem::take(line))) } else { Ok(()) }
    }

    fn wrong(&self, expected: &'static str, got: String) -> Unreadable {
        Unreadable::Line(WrongLine { line: self.line, expected, got })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "0.5\na lot of\nmany\n0.25\na lot of\nlots of\n1.0E-3\nmany\na lot of\n0.1\nof a\nunmet words\n";

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn phrases(captions: &[&str]) -> Phrases {
        let mut phrases = Phrases::default();
        captions.iter().for_each(|caption| phrases.add(&words(caption)));
        phrases
    }

    fn read(table: &str, captions: &[&str]) -> Paraphrases {
        Paraphrases::read(table.as_bytes(), &phrases(captions)).expect("the table is whole")
    }

    #[test]
    fn phrases_are_found_where_they_stand() {
        let paraphrases = read(TABLE, &["i have a lot of cats", "lots of many cats and many dogs"]);
        let (one, other) = (words("i have a lot of cats"), words("lots of many cats and many dogs"));
        let span = |start, words| Span { start, words };
        // In the order of the table: `many` twice, then `lots of`.
        let expected = [(span(2, 3), span(2, 1)), (span(2, 3), span(5, 1)), (span(2, 3), span(0, 2))];
        assert_eq!(paraphrases.pairs(&one, &other), expected);
        assert_eq!(paraphrases.pairs(&other, &one), [(span(2, 1), span(2, 3)), (span(5, 1), span(2, 3))]);
    }

    #[test]
    fn what_no_caption_can_have_is_not_kept() {
        let kept = |captions: &[&str]| read(TABLE, captions).of.values().map(Vec::len).sum::<usize>();
        assert_eq!(kept(&["a lot of cats", "many"]), 2);
        assert_eq!(kept(&["a lot", "lot of", "many"]), 2, "neighbours are known, not runs of three");
        assert_eq!(kept(&["a lot", "of lots", "many"]), 0);
        assert_eq!(kept(&[]), 0);
    }

    #[test]
    fn a_table_in_another_form_is_refused_with_its_line() {
        let wrong = |table: &str| match Paraphrases::read(table.as_bytes(), &Phrases::default()) {
            Err(Unreadable::Line(WrongLine { line, expected, got })) => (line, expected, got),
            other => panic!("expected a wrong line, got {other:?}"),
        };
        assert_eq!(wrong("0.5\na\nb\nno number\n"), (4, "a probability", "no number".into()));
        assert_eq!(wrong("0.5\na\n \n"), (3, "a phrase", String::new()));
        assert_eq!(wrong("0.5\na"), (3, "a phrase", String::new()));
    }
}
