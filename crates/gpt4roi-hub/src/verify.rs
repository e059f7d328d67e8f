//! Looking whether the contents of a cache are what their names say.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use crate::{
    digest::Digest,
    error::{HubError, Result},
    inventory::CachedModel,
    removal::remove,
};

/// A content to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Where it lies.
    pub content: PathBuf,
    /// The files of snapshots that show it.
    pub shown: Vec<PathBuf>,
    /// Bytes.
    pub size: u64,
    /// What its name says, if it says something.
    digest: Option<Digest>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The content is what its name says.
    Intact,
    /// The content is another.
    Damaged {
        /// What its name says.
        expected: Digest,
        /// What it is.
        got: Digest,
    },
    /// The content is gone.
    Missing,
    /// Its name says no digest.
    Unknown,
}

impl CachedModel {
    /// The contents of all revisions, each once.
    pub fn checks(&self) -> Vec<Check> {
        let mut checks: BTreeMap<&Path, Check> = BTreeMap::new();
        for revision in &self.revisions {
            for file in &revision.files {
                let new = || Check {
                    content: file.content.clone(),
                    shown: Vec::new(),
                    size: file.size,
                    digest: file.digest(),
                };
                checks.entry(&file.content).or_insert_with(new).shown.push(revision.snapshot.join(&file.path));
            }
        }
        checks.into_values().collect()
    }
}

impl Check {
    /// Reads the content.
    ///
    /// # Errors
    /// If it is there and can't be read.
    pub fn run(&self) -> Result<State> {
        if !self.content.exists() {
            return Ok(State::Missing);
        }
        let Some(expected) = &self.digest else { return Ok(State::Unknown) };
        let mut content = File::open(&self.content).map_err(HubError::file(&self.content))?;
        let mut hasher = expected.hasher(self.size);
        hasher.update_from(&mut content).map_err(HubError::file(&self.content))?;
        Ok(match hasher.finish() {
            got if got == *expected => State::Intact,
            got => State::Damaged { expected: expected.clone(), got },
        })
    }

    /// Removes the content and the files that show it, so that the next pull downloads it again.
    ///
    /// # Errors
    /// If a file can't be removed.
    pub fn discard(&self) -> Result<()> {
        self.shown.iter().chain([&self.content]).try_for_each(|path| remove(path))
    }
}
