//! How models are named: `ORG/NAME`, and with a revision `ORG/NAME@REV`.

use std::{fmt, str::FromStr};

use crate::error::HubError;

/// The name of a repository, `ORG/NAME`, or `NAME` for one of the few that belong to nobody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelId(String);

/// A model, perhaps at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    /// Which repository.
    pub id: ModelId,
    /// A branch, tag or commit, if one was given.
    pub revision: Option<String>,
}

/// The revision that is meant when none is given.
pub const DEFAULT_REVISION: &str = "main";

impl ModelId {
    /// As the hub writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its directory in the cache: `models--ORG--NAME`.
    pub fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }

    /// The model whose directory this is.
    pub fn from_folder(folder: &str) -> Option<Self> {
        folder.strip_prefix("models--")?.replace("--", "/").parse().ok()
    }
}

impl ModelRef {
    /// The revision, or the default one.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }
}

/// Whether this is a whole commit hash, which never changes its meaning.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.id),
            None => write!(f, "{}", self.id),
        }
    }
}

/// The hub's own rules, `validate_repo_id` of Python's `huggingface_hub`. They make [`ModelId::folder`] reversible
/// and keep it one harmless directory name.
impl FromStr for ModelId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let refuse = |reason| Err(HubError::Name { text: text.to_owned(), reason });
        if text.split('/').count() > 2 {
            return refuse("expected ORG/NAME");
        }
        for part in text.split('/') {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if part.is_empty() || part.len() > 96 || !part.chars().all(known) {
                return refuse("expected 1 to 96 letters, digits, `-`, `_` and `.` on either side of one `/`");
            }
            if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
                return refuse("neither part begins or ends with `-` or `.`");
            }
        }
        if text.contains("--") || text.contains("..") {
            return refuse("`--` and `..` do not occur");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Git's rules for the names of branches, as far as they keep a name from being another path.
impl FromStr for ModelRef {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (id, revision) = text.split_once('@').map_or((text, None), |(id, revision)| (id, Some(revision)));
        let harmless = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+');
        if revision.is_some_and(|revision| !revision.split('/').all(harmless) || !revision.chars().all(known)) {
            let reason = "expected a branch, tag or commit behind the `@`";
            return Err(HubError::Name { text: text.to_owned(), reason });
        }
        Ok(Self { id: id.parse()?, revision: revision.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_a_revision() {
        for (text, id, revision) in [
            ("shilongz/GPT4RoI-7B-delta-V0", "shilongz/GPT4RoI-7B-delta-V0", "main"),
            ("gpt2", "gpt2", "main"),
            ("a/b@v1.0", "a/b", "v1.0"),
            ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
        ] {
            let model: ModelRef = text.parse().unwrap();
            assert_eq!((model.id.as_str(), model.revision()), (id, revision));
            assert_eq!(model.to_string(), text);
            assert_eq!(ModelId::from_folder(&model.id.folder()), Some(model.id));
        }
    }

    #[test]
    fn what_could_be_another_path_is_no_name() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "../a",
            "a/..",
            "a/.b",
            "a--b/c",
            "a/b c",
            "a\\b",
            "-a/b",
            "a/b.",
            "a/b@",
            "a/b@..",
            "a/b@../../x",
            "a/b@x//y",
            "a/b@/x",
            "a/b@x y",
            "a/b@.hidden",
            "a/b@x\0",
            "ä/b",
        ] {
            let error = text.parse::<ModelRef>().unwrap_err().to_string();
            assert!(error.contains("names no model"), "{text}: {error}");
        }
    }

    #[test]
    fn commits_are_forty_small_hex_digits() {
        assert!(is_commit(&"0a".repeat(20)));
        for other in ["main".to_owned(), "0a".repeat(19), "0A".repeat(20), "0g".repeat(20), "0a".repeat(21)] {
            assert!(!is_commit(&other), "{other}");
        }
    }
}
