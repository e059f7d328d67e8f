//! The cache that the hub's clients share:
//!
//! ```text
//! CACHE/models--ORG--NAME/blobs/DIGEST                the contents, each once
//!                        /snapshots/COMMIT/PATH       → ../../blobs/DIGEST, or a hard link to it
//!                        /refs/REVISION               the commit that a branch or tag meant last
//!      /.locks/models--ORG--NAME/DIGEST.lock          held while a content is downloaded
//! ```
//!
//! Source: ["Understand caching"](https://huggingface.co/docs/huggingface_hub/guides/manage-cache) of the hub's
//! documentation.

use std::{
    fs::{self, File, TryLockError},
    io, iter,
    path::{Path, PathBuf},
    process,
};

use same_file::is_same_file;

use crate::{
    digest::Digest,
    error::{HubError, Result},
    model::{ModelId, ModelRef, is_commit},
};

/// A cache directory, which need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in this directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a revision's files, if it is there.
    ///
    /// A commit names itself; what a branch or tag means was written down when it was last pulled.
    ///
    /// # Errors
    /// If it is not there.
    pub fn find(&self, model: &ModelRef) -> Result<PathBuf> {
        let commit = self.commit(model);
        let snapshot = commit.map(|commit| self.snapshot(&model.id, &commit)).filter(|snapshot| snapshot.is_dir());
        snapshot.ok_or_else(|| HubError::NotCached { model: model.to_string(), cache: self.root.clone() })
    }

    /// The commit that a revision means, as far as is known without the hub.
    pub fn commit(&self, model: &ModelRef) -> Option<String> {
        let revision = model.revision();
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder(&model.id).join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Where everything of a model lies.
    pub fn folder(&self, id: &ModelId) -> PathBuf {
        self.root.join(id.folder())
    }

    /// Where the files of a commit lie.
    pub fn snapshot(&self, id: &ModelId, commit: &str) -> PathBuf {
        self.folder(id).join("snapshots").join(commit)
    }

    /// Where a content lies.
    pub fn blob(&self, id: &ModelId, digest: &Digest) -> PathBuf {
        self.folder(id).join("blobs").join(digest.hex())
    }

    /// Where the locks of a model's contents lie.
    pub(crate) fn locks(&self, id: &ModelId) -> PathBuf {
        self.root.join(".locks").join(id.folder())
    }

    /// The lock without which no content is downloaded, and whether it was free to be taken. Dropping the file
    /// frees it.
    ///
    /// On Unix it is the same lock (`flock`) that Python's client takes.
    pub(crate) fn try_lock(&self, id: &ModelId, digest: &Digest) -> Result<(File, bool)> {
        let path = self.locks(id).join(format!("{}.lock", digest.hex()));
        create_parent(&path)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(HubError::file(&path))?;
        match file.try_lock() {
            Ok(()) => Ok((file, true)),
            Err(TryLockError::WouldBlock) => Ok((file, false)),
            Err(TryLockError::Error(error)) => Err(HubError::file(path)(error)),
        }
    }

    /// Shows a content as a file of a commit.
    pub(crate) fn link(&self, id: &ModelId, commit: &str, path: &str, digest: &Digest) -> Result<()> {
        let (link, blob) = (self.snapshot(id, commit).join(path), self.blob(id, digest));
        // Between the system's own separators: Windows follows no link with others.
        let up = iter::repeat_n("..", path.split('/').count() + 1);
        let target: PathBuf = up.chain(["blobs", digest.hex()]).collect();
        if fs::read_link(&link).is_ok_and(|present| present == target) || is_hard_link(&link, &blob) {
            return Ok(());
        }
        create_parent(&link)?;
        replace(&link, |new| symlink(&target, new).or_else(|_| fs::hard_link(&blob, new)).or_else(|_| copy(&blob, new)))
    }

    /// Writes down what a branch or tag means.
    pub(crate) fn set_ref(&self, model: &ModelRef, commit: &str) -> Result<()> {
        if model.revision() == commit {
            return Ok(());
        }
        let path = self.folder(&model.id).join("refs").join(model.revision());
        create_parent(&path)?;
        replace(&path, |new| fs::write(new, commit))
    }
}

pub(crate) fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(HubError::file(parent))
}

/// Makes a file under another name and moves it to its place, so that nobody sees half of it.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", process::id()));
    let new = path.with_file_name(name);
    let _ = fs::remove_file(&new); // left by a process of the same number that was killed
    make(&new).and_then(|()| fs::rename(&new, path)).map_err(HubError::file(path))
}

/// Whether a file is another name of a content, as where there are no symbolic links: on Windows they take a right that
/// few have.
pub(crate) fn is_hard_link(shown: &Path, blob: &Path) -> bool {
    fs::symlink_metadata(shown).is_ok_and(|shown| shown.is_file()) && is_same_file(shown, blob).unwrap_or(false)
}

/// The last resort, where there are neither symbolic nor hard links.
fn copy(blob: &Path, new: &Path) -> io::Result<()> {
    fs::copy(blob, new).map(|_| ())
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// One that is not followed is none: Windows can be told to follow no links on network drives.
#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)?;
    fs::metadata(link).map(drop).inspect_err(|_| _ = fs::remove_file(link))
}
