//! Taking models out of a cache.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{
    cache::Cache,
    digest::Digest,
    error::{HubError, Result},
    inventory::{CachedModel, CachedRevision, is_directory, names},
    model::{ModelId, ModelRef},
};

/// What would be removed. Nothing happens before [`Self::carry_out`].
#[derive(Debug)]
pub struct Removal {
    /// The commits that go.
    pub commits: Vec<String>,
    /// Bytes that become free.
    pub bytes: u64,
    /// Files and directories, what others refer to after what refers to it.
    paths: Vec<PathBuf>,
    /// While these are held, nobody downloads what is removed.
    _locks: Vec<File>,
}

impl Cache {
    /// What it takes to remove a revision, or without one the whole model.
    ///
    /// Contents that other revisions show stay, and so do partial files, which may belong to any. With its last
    /// revision a model goes as a whole.
    ///
    /// # Errors
    /// If it is not there, or another process is downloading it.
    pub fn removal(&self, model: &ModelRef) -> Result<Removal> {
        let cached = self.model(&model.id)?;
        let Some(revision) = &model.revision else { return self.removal_of_model(&cached) };
        let commit = self.commit(model);
        let absent = || HubError::NotCached { model: model.to_string(), cache: self.root().to_owned() };
        let found = cached
            .revisions
            .iter()
            .find(|known| Some(&known.commit) == commit.as_ref() || known.refs.contains(revision));
        match found.ok_or_else(absent)? {
            _ if cached.revisions.len() == 1 => self.removal_of_model(&cached),
            found => self.removal_of_revision(&cached, found),
        }
    }

    /// The locks' directory stays: whoever waits for one of them holds its file open, and would share the content with
    /// the next one, who makes a new file.
    fn removal_of_model(&self, cached: &CachedModel) -> Result<Removal> {
        let folder = |name| cached.folder.join(name);
        Ok(Removal {
            commits: cached.revisions.iter().map(|revision| revision.commit.clone()).collect(),
            bytes: cached.bytes,
            paths: vec![folder("refs"), folder("snapshots"), cached.folder.clone()],
            _locks: self.lock_partials(&cached.id)?,
        })
    }

    fn removal_of_revision(&self, cached: &CachedModel, gone: &CachedRevision) -> Result<Removal> {
        let contents = |revision: &CachedRevision| -> BTreeSet<PathBuf> {
            revision.files.iter().map(|file| file.content.clone()).collect()
        };
        let mut kept = BTreeSet::new();
        for revision in cached.revisions.iter().filter(|revision| revision.commit != gone.commit) {
            kept.extend(contents(revision));
        }
        let contents: Vec<_> = contents(gone).difference(&kept).cloned().collect();
        let bytes =
            contents.iter().filter_map(|path| fs::symlink_metadata(path).ok()).map(|content| content.len()).sum();
        let refs = gone.refs.iter().map(|name| cached.folder.join("refs").join(name));
        let paths = refs.chain([gone.snapshot.clone()]).chain(contents).collect();
        Ok(Removal { commits: vec![gone.commit.clone()], bytes, paths, _locks: Vec::new() })
    }

    /// The locks of all partial files.
    fn lock_partials(&self, id: &ModelId) -> Result<Vec<File>> {
        let blobs = self.folder(id).join("blobs");
        let mut locks = Vec::new();
        for name in names(&blobs)? {
            let Some(digest) = name.strip_suffix(".incomplete").and_then(Digest::from_hex) else { continue };
            match self.try_lock(id, &digest)? {
                (lock, true) => locks.push(lock),
                (_, false) => return Err(HubError::InUse { path: blobs.join(name) }),
            }
        }
        Ok(locks)
    }
}

impl Removal {
    /// Removes it. What refers to others goes first, so that an interruption leaves nothing that looks whole.
    ///
    /// # Errors
    /// If a file can't be removed.
    pub fn carry_out(self) -> Result<()> {
        self.paths.iter().try_for_each(|path| remove(path))
    }
}

/// Removes a file, a link or a whole directory. One that is gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = if is_directory(path) { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(HubError::file(path)),
    }
}
