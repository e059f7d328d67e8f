//! What lies in a cache.

use std::{
    collections::BTreeSet,
    fs::{self, Metadata},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    cache::{Cache, is_hard_link},
    digest::Digest,
    error::{HubError, Result},
    model::{ModelId, ModelRef, is_commit},
};

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// Its name.
    pub id: ModelId,
    /// Where everything of it lies.
    pub folder: PathBuf,
    /// Its revisions, by commit.
    pub revisions: Vec<CachedRevision>,
    /// Bytes of all contents, each counted once, and of partial files.
    pub bytes: u64,
    /// Bytes of files that are not whole yet.
    pub partial_bytes: u64,
    /// When one of its files was last read, as far as the file system keeps that.
    pub last_used: Option<SystemTime>,
}

/// A revision in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedRevision {
    /// The commit.
    pub commit: String,
    /// The branches and tags that meant it when they were pulled.
    pub refs: Vec<String>,
    /// The directory of its files.
    pub snapshot: PathBuf,
    /// Its files, by path.
    pub files: Vec<CachedFile>,
}

/// A file of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedFile {
    /// Where it lies in the snapshot, with `/` on every system.
    pub path: String,
    /// Bytes; 0 if the content is gone.
    pub size: u64,
    /// Where the content lies: in the model's `blobs` if the file links there, or else the file itself, even if it
    /// is a link to something that is not the cache's.
    pub content: PathBuf,
    /// Whether there is a content.
    pub is_there: bool,
}

impl CachedRevision {
    /// Bytes of all its contents.
    pub fn bytes(&self) -> u64 {
        let mut seen = BTreeSet::new();
        self.files.iter().filter(|file| seen.insert(&file.content)).map(|file| file.size).sum()
    }
}

impl CachedFile {
    /// The digest that the content should have, if its name says one.
    pub fn digest(&self) -> Option<Digest> {
        Digest::from_hex(self.content.file_name()?.to_str()?)
    }
}

impl Cache {
    /// All models, by name. A cache that does not exist holds none.
    ///
    /// # Errors
    /// If a directory can't be read.
    pub fn models(&self) -> Result<Vec<CachedModel>> {
        let names = names(self.root())?;
        names.iter().filter_map(|name| ModelId::from_folder(name)).map(|id| self.model(&id)).collect()
    }

    /// One model.
    ///
    /// # Errors
    /// If it is not there or can't be read.
    pub fn model(&self, id: &ModelId) -> Result<CachedModel> {
        let folder = self.folder(id);
        if !folder.is_dir() {
            return Err(HubError::NotCached { model: id.to_string(), cache: self.root().to_owned() });
        }
        let refs = self.refs(id)?;
        let commits = names(&folder.join("snapshots"))?.into_iter().filter(|name| is_commit(name));
        let revisions: Vec<_> = commits.map(|commit| self.revision(id, commit, &refs)).collect::<Result<_>>()?;
        let (mut bytes, mut partial_bytes, mut last_used) = (0, 0, None);
        for (path, content) in contents(&folder, &revisions)? {
            bytes += content.len();
            if path.extension().is_some_and(|extension| extension == "incomplete") {
                partial_bytes += content.len();
            }
            last_used = last_used.max(content.accessed().ok());
        }
        Ok(CachedModel { id: id.clone(), folder, revisions, bytes, partial_bytes, last_used })
    }

    fn revision(&self, id: &ModelId, commit: String, refs: &[(String, String)]) -> Result<CachedRevision> {
        let snapshot = self.snapshot(id, &commit);
        let refs = refs.iter().filter(|(_, meant)| *meant == commit).map(|(name, _)| name.clone()).collect();
        Ok(CachedRevision { refs, files: self.files(id, &commit)?, snapshot, commit })
    }

    /// The files of a commit, by path.
    pub(crate) fn files(&self, id: &ModelId, commit: &str) -> Result<Vec<CachedFile>> {
        let (snapshot, blobs) = (self.snapshot(id, commit), self.folder(id).join("blobs"));
        let file = |path: String| {
            let shown = snapshot.join(&path);
            let blob = linked(&shown).filter(|content| content.parent() == Some(&blobs));
            let blob = blob.or_else(|| hard_linked(&shown, &blobs));
            let size = fs::metadata(&shown).ok().map(|content| content.len());
            CachedFile { path, size: size.unwrap_or(0), content: blob.unwrap_or(shown), is_there: size.is_some() }
        };
        Ok(walk(&snapshot)?.into_iter().map(file).collect())
    }

    /// Branches and tags with the commits that they meant.
    fn refs(&self, id: &ModelId) -> Result<Vec<(String, String)>> {
        let refs = self.folder(id).join("refs");
        let meaning = |path: String| {
            let model = ModelRef { id: id.clone(), revision: Some(path.clone()) };
            Some((path, self.commit(&model)?))
        };
        Ok(walk(&refs)?.into_iter().filter_map(meaning).collect())
    }
}

/// What a link leads to, without `..`.
fn linked(link: &Path) -> Option<PathBuf> {
    let mut path = link.parent()?.to_owned();
    for part in fs::read_link(link).ok()?.components() {
        match part {
            std::path::Component::ParentDir => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    Some(path)
}

/// The content that a file is another name of.
fn hard_linked(shown: &Path, blobs: &Path) -> Option<PathBuf> {
    let size = fs::symlink_metadata(shown).ok().filter(Metadata::is_file)?.len();
    let of_this_size = |blob: &PathBuf| fs::metadata(blob).is_ok_and(|blob| blob.len() == size);
    let contents = names(blobs).ok()?.into_iter().map(|name| blobs.join(name)).filter(of_this_size);
    contents.into_iter().find(|blob| is_hard_link(shown, blob))
}

/// Everything of a model that takes room, each once: its blobs, and files of snapshots that are no links to them. What
/// links lead to elsewhere takes no room here.
fn contents(folder: &Path, revisions: &[CachedRevision]) -> Result<Vec<(PathBuf, Metadata)>> {
    let blobs = folder.join("blobs");
    let mut paths: BTreeSet<PathBuf> = names(&blobs)?.iter().map(|name| blobs.join(name)).collect();
    paths.extend(revisions.iter().flat_map(|revision| &revision.files).map(|file| file.content.clone()));
    Ok(paths.into_iter().filter_map(|path| fs::symlink_metadata(&path).ok().map(|content| (path, content))).collect())
}

/// The paths of all files below a directory, in order, with `/` between their names. Links are not followed, not even
/// one in the directory's place.
fn walk(directory: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    if !is_directory(directory) {
        return Ok(paths);
    }
    for name in names(directory)? {
        let path = directory.join(&name);
        if is_directory(&path) {
            paths.extend(walk(&path)?.iter().map(|below| format!("{name}/{below}")));
        } else {
            paths.push(name);
        }
    }
    Ok(paths)
}

/// Whether it is a directory and no link to one.
pub(crate) fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|entry| entry.is_dir())
}

/// The names in a directory, in order; none if there is no directory.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(HubError::file(directory)(error)),
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = entries.map(name).collect::<io::Result<_>>().map_err(HubError::file(directory))?;
    names.sort();
    Ok(names)
}
