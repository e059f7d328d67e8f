//! Synonyms: words that share one of WordNet's sets, by themselves or by their base forms.
//!
//! A table has two lines for each entry. Those of the irregular words are a base form and its other forms; those of the
//! sets are a word and the numbers of its sets.

use std::collections::HashMap;

use crate::meteor_tables::WrongLine;

/// Endings, and what a base form has in their place, in the order in which METEOR tries them.
///
/// Source: WordNet's “rules of detachment” for nouns, verbs and adjectives, morphy(7WN).
const ENDINGS: [(&str, &str); 20] = [
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("s", ""),
    ("ies", "y"),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", "e"),
    ("ing", ""),
    ("er", ""),
    ("est", ""),
    ("er", "e"),
    ("est", "e"),
];

/// Words with the numbers of their sets, ascending.
#[derive(Debug, Default)]
pub(crate) struct Synonyms(HashMap<String, Vec<u32>>);

/// WordNet as far as METEOR looks at it.
#[derive(Debug, Default)]
pub(crate) struct WordNet<'t> {
    bases: HashMap<&'t str, Vec<&'t str>>,
    sets: HashMap<&'t str, Vec<u32>>,
}

impl Synonyms {
    /// The sets of a word and of its base forms, ascending.
    pub(crate) fn sets(&self, word: &str) -> &[u32] {
        self.0.get(word).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Whether words of these sets are synonyms.
pub(crate) fn have_one_in_common(one: &[u32], other: &[u32]) -> bool {
    one.iter().any(|set| other.binary_search(set).is_ok())
}

impl<'t> WordNet<'t> {
    /// Adds the table of irregular words.
    pub(crate) fn add_irregular(&mut self, table: &'t str) -> Result<(), WrongLine> {
        for (_, [base, forms]) in entries(table)? {
            for form in forms.split_ascii_whitespace() {
                self.bases.entry(form).or_default().push(base);
            }
        }
        Ok(())
    }

    /// Adds the table of sets.
    pub(crate) fn add_sets(&mut self, table: &'t str) -> Result<(), WrongLine> {
        for (line, [word, numbers]) in entries(table)? {
            let read: Result<_, _> = numbers.split_ascii_whitespace().map(str::parse).collect();
            let wrong = |_| WrongLine { line, expected: "the numbers of sets of synonyms", got: numbers.into() };
            self.sets.insert(word, read.map_err(wrong)?);
        }
        Ok(())
    }

    /// What is to be known of some words.
    pub(crate) fn synonyms<'w>(&self, words: impl Iterator<Item = &'w str>) -> Synonyms {
        let of = |word: &'w str| {
            let sets = self.sets_of(word);
            (!sets.is_empty()).then(|| (word.to_owned(), sets))
        };
        Synonyms(words.filter_map(of).collect())
    }

    /// The sets of a word and of its base forms.
    fn sets_of(&self, word: &str) -> Vec<u32> {
        let own = self.sets.get(word);
        let of_bases: Vec<_> = match self.bases.get(word) {
            Some(bases) => bases.iter().filter_map(|base| self.sets.get(base)).collect(),
            None => self.regular_base(word).into_iter().collect(),
        };
        let mut sets: Vec<u32> = own.into_iter().chain(of_bases).flatten().copied().collect();
        sets.sort_unstable();
        sets.dedup();
        sets
    }

    /// The sets of the first base form that has any.
    fn regular_base(&self, word: &str) -> Option<&Vec<u32>> {
        if word.ends_with("ss") || word.chars().count() <= 2 {
            return None;
        }
        let base = |(ending, instead): &(&str, &str)| Some(word.strip_suffix(ending)?.to_owned() + instead);
        ENDINGS.iter().filter_map(base).find_map(|base| self.sets.get(base.as_str()))
    }
}

/// Entries of two lines, with the number of the second, from 1.
fn entries(table: &str) -> Result<Vec<(usize, [&str; 2])>, WrongLine> {
    let lines: Vec<&str> = table.lines().collect();
    match lines.as_chunks() {
        (entries, []) => Ok((1..).map(|entry| 2 * entry).zip(entries.iter().copied()).collect()),
        _ => Err(WrongLine { line: lines.len() + 1, expected: "the second line of an entry", got: String::new() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IRREGULAR: &str = "man\nmen\nfoot\nfeet\nlie\nlying lain\nlay\nlain\n";
    const SETS: &str =
        "man\n7 8\nperson\n8\ncat\n1\nkitty\n1\nbase\n2\nbas\n3\npass\n4\npas\n5\nlie\n6\nlay\n9\nas\n10\na\n11\n";

    fn words() -> WordNet<'static> {
        let mut words = WordNet::default();
        words.add_irregular(IRREGULAR).expect("entries are whole");
        words.add_sets(SETS).expect("entries are whole");
        words
    }

    #[test]
    fn sets_are_those_of_the_word_and_of_its_base_forms() {
        let words = words();
        let cases: [(&str, &[u32]); 8] = [
            ("man", &[7, 8]),
            // Irregular words have the base forms that are listed, and no others.
            ("men", &[7, 8]),
            ("feet", &[]),
            ("lain", &[6, 9]),
            // A regular word has the first base form that WordNet knows: `base` by the first rule, not `bas` by another.
            ("bases", &[2]),
            // Neither what ends in `ss` nor what is shorter than three letters has one.
            ("pass", &[4]),
            ("as", &[10]),
            ("cats", &[1]),
        ];
        for (word, expected) in cases {
            assert_eq!(words.sets_of(word), expected, "{word}");
        }
    }

    #[test]
    fn synonyms_share_a_set() {
        let synonyms = words().synonyms(["cats", "kitty", "men", "person", "base", "zebra"].into_iter());
        let are_synonyms = |one, other| have_one_in_common(synonyms.sets(one), synonyms.sets(other));
        assert!(are_synonyms("cats", "kitty") && are_synonyms("person", "men"));
        assert!(!are_synonyms("cats", "base") && !are_synonyms("zebra", "zebra"));
        assert!(!are_synonyms("cats", "cat"), "only words that were named are known");
    }

    #[test]
    fn a_table_in_another_form_is_refused_with_its_line() {
        let wrong = |table: &'static str| {
            let WrongLine { line, got, .. } = WordNet::default().add_sets(table).expect_err("it is wrong");
            (line, got)
        };
        assert_eq!(wrong("cat\n1\ndog\nnone 2\n"), (4, "none 2".into()));
        assert_eq!(wrong("cat\n1\ndog\n"), (4, String::new()));
        assert!(WordNet::default().add_irregular("foot\n").is_err());
    }
}
