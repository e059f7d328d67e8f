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
