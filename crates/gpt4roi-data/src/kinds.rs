//! The kinds of objects that scenes show: names, facts and drawings.

use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};

use crate::error::DataError;

static ASSETS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../assets");

/// An art style: who drew the objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// Noto Emoji by Google (Apache-2.0).
    #[default]
    Noto,
    /// Fluent Emoji, flat, by Microsoft (MIT). Nothing is trained on it: it shows how far a model's
    /// knowledge carries.
    Fluent,
}

/// A kind of object and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// The drawing's file name, without its ending.
    pub slug: String,
    /// "cat", "scissors".
    pub name: String,
    /// "pair of", for names that can't be counted; otherwise empty.
    pub measure: String,
    /// "animal".
    pub category: String,
    /// Main colour of the Noto drawing.
    pub color: String,
    /// What it does or is for, as an infinitive without "to": "hunt mice", "cut paper".
    pub purpose: String,
}

impl Kind {
    /// "a cat", "a pair of scissors".
    pub fn phrase(&self) -> String {
        with_article(&join(&[&self.measure, &self.name]))
    }

    /// "a yellow cat", "a pair of red scissors".
    pub fn colored_phrase(&self) -> String {
        with_article(&join(&[&self.measure, &self.color, &self.name]))
    }
}

fn join(words: &[&str]) -> String {
    words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ")
}

/// "an owl", "a unicorn".
pub(crate) fn with_article(words: &str) -> String {
    let vowel = words.starts_with(['a', 'e', 'i', 'o', 'u']) && !words.starts_with("uni");
    format!("{} {words}", if vowel { "an" } else { "a" })
}

/// All kinds, in the order in which models learn them: a model of n kinds knows the first n.
pub fn pool() -> Result<Vec<Kind>, DataError> {
    let file = "kinds.json";
    let text = ASSETS.get_file(file).map(include_dir::File::contents).unwrap_or_default();
    serde_json::from_slice(text).map_err(|error| DataError::Artwork { slug: file.into(), reason: error.to_string() })
}

/// The SVG document of a kind.
pub(crate) fn drawing(slug: &str, style: Style) -> Result<&'static [u8], DataError> {
    let folder = match style {
        Style::Noto => "noto",
        Style::Fluent => "fluent",
    };
    ASSETS
        .get_file(format!("{folder}/{slug}.svg"))
        .map(include_dir::File::contents)
        .ok_or_else(|| DataError::Artwork { slug: slug.into(), reason: format!("not in assets/{folder}") })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rayon::prelude::*;

    use super::*;
    use crate::sprite::Sprite;

    #[test]
    fn every_kind_is_complete_and_distinct() {
        let pool = pool().expect("the list is sound");
        assert!(pool.len() >= 200, "expected 200 kinds and more, got {}", pool.len());
        assert_eq!(pool.iter().map(|kind| &kind.name).collect::<HashSet<_>>().len(), pool.len());
        assert_eq!(pool.iter().map(|kind| &kind.slug).collect::<HashSet<_>>().len(), pool.len());
        for kind in &pool {
            for field in [&kind.name, &kind.category, &kind.color, &kind.purpose] {
                let plain = |letter: char| letter.is_ascii_lowercase() || letter == ' ' || letter == '-';
                assert!(!field.is_empty() && field.chars().all(plain), "{kind:?}");
            }
        }
    }

    #[test]
    fn every_drawing_of_both_styles_shows_something() {
        for style in [Style::Noto, Style::Fluent] {
            pool().expect("the list is sound").par_iter().for_each(|kind| {
                let drawn = drawing(&kind.slug, style).and_then(|svg| Sprite::draw(svg, 40));
                assert!(drawn.is_ok(), "{} {style:?}: {:?}", kind.slug, drawn.err());
            });
        }
    }

    #[test]
    fn phrases_have_the_right_article() {
        let kind = |name: &str, measure: &str| Kind {
            slug: String::new(),
            name: name.into(),
            measure: measure.into(),
            category: String::new(),
            color: "orange".into(),
            purpose: String::new(),
        };
        for (name, measure, phrase, colored) in [
            ("cat", "", "a cat", "an orange cat"),
            ("owl", "", "an owl", "an orange owl"),
            ("unicorn", "", "a unicorn", "an orange unicorn"),
            ("scissors", "pair of", "a pair of scissors", "a pair of orange scissors"),
            ("corn", "ear of", "an ear of corn", "an ear of orange corn"),
        ] {
            assert_eq!(
                (kind(name, measure).phrase(), kind(name, measure).colored_phrase()),
                (phrase.into(), colored.into())
            );
        }
    }
}
