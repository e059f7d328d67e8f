//! Brings one content from the hub into the cache: under a lock, from where an earlier try stopped, until its
//! digest is right.

use std::{
    fs::{self, File},
    mem,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    cache::{Cache, create_parent},
    client::{Answer, Client, ResumeFrom},
    error::{HubError, Result},
    listing::{RemoteFile, content_path},
    model::ModelRef,
    partial::{OpenStorage, Partial, partial_path},
    progress::Progress,
    retry::Retry,
};

/// What the downloads of one pull share.
pub(crate) struct Fetch<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a Cache,
    pub(crate) retry: &'a Retry,
    pub(crate) open: OpenStorage,
    pub(crate) model: &'a ModelRef,
    pub(crate) commit: &'a str,
    pub(crate) progress: &'a dyn Progress,
    /// Set when one of them failed; the others then stop.
    pub(crate) stop: AtomicBool,
}

/// Bytes that are read at once.
const CHUNK: usize = 1 << 18;

impl Fetch<'_> {
    /// Whether the content is there. One of another length is not the content.
    pub(crate) fn is_there(&self, file: &RemoteFile) -> bool {
        let blob = self.cache.blob(&self.model.id, &file.digest);
        fs::metadata(blob).is_ok_and(|blob| blob.is_file() && blob.len() == file.size)
    }

    /// Brings a content that is not there.
    pub(crate) fn bring(&self, file: &RemoteFile) -> Result<()> {
        let blob = self.cache.blob(&self.model.id, &file.digest);
        let _lock = self.lock(file)?;
        // While the lock was waited for, its holder may have done the work.
        if !self.is_there(file) {
            create_parent(&blob)?;
            let mut partial = Partial::open(file, partial_path(&blob, &file.digest), self.open)?;
            self.complete(file, &mut partial)?;
            partial.finish(&blob)?;
        }
        self.progress.finished(file);
        Ok(())
    }

    fn lock(&self, file: &RemoteFile) -> Result<File> {
        let (lock, taken) = self.cache.try_lock(&self.model.id, &file.digest)?;
        if !taken {
            self.progress.waiting(file);
            lock.lock().map_err(HubError::file(self.cache.locks(&self.model.id)))?;
        }
        Ok(lock)
    }

    /// Tries until the content is right, as long as that may help.
    fn complete(&self, file: &RemoteFile, partial: &mut Partial<'_>) -> Result<()> {
        let mut tries = self.retry.begin(partial.length());
        let (mut etag, mut was_damaged) = (None, false);
        loop {
            let Err(error) = self.attempt(file, partial, &mut etag) else { return Ok(()) };
            // Once, it may be the network, or what an earlier pull left. Twice, it is what the server has.
            if matches!(error, HubError::Damaged { .. }) && mem::replace(&mut was_damaged, true) {
                return Err(error);
            }
            let Some(wait) = tries.wait(&error, partial.length()) else { return Err(error) };
            self.progress.retrying(&error, wait);
            (self.retry.sleep)(wait);
        }
    }

    /// One request for what is missing. `etag` is that of the answer before, if there was one.
    fn attempt(&self, file: &RemoteFile, partial: &mut Partial<'_>, etag: &mut Option<String>) -> Result<()> {
        self.progress.reached(file, partial.length());
        if !partial.is_whole() {
            let mut answer = self.ask(file, partial, etag.as_deref())?;
            *etag = answer.strong_etag().map(str::to_owned);
            self.align(file, partial, &answer)?;
            self.receive(file, partial, &mut answer)?;
        }
        partial.check()
    }

    fn ask(&self, file: &RemoteFile, partial: &mut Partial<'_>, etag: Option<&str>) -> Result<Answer> {
        let path = content_path(self.model, self.commit, file);
        let what = format!("{}, {}", self.model, file.path);
        let answer = self.client.get(&path, ResumeFrom { offset: partial.length(), etag }, &what);
        if let Err(HubError::Status { status: 416, .. }) = answer {
            // The server's content ends before the partial one does: they are not the same.
            partial.restart()?;
        }
        answer
    }

    /// Makes sure that the body goes on where the partial file ends: a part has to fit, and the whole replaces it.
    fn align(&self, file: &RemoteFile, partial: &mut Partial<'_>, answer: &Answer) -> Result<()> {
        if answer.status == 206 {
            let range = answer.content_range();
            let (length, size) = (partial.length(), file.size);
            if !range.is_some_and(|(start, whole)| start == length && whole.is_none_or(|whole| whole == size)) {
                partial.restart()?;
                return Err(unfit(file, range.and_then(|(_, whole)| whole).unwrap_or(0)));
            }
        } else {
            partial.restart()?;
        }
        let missing = file.size - partial.length();
        match answer.content_length() {
            Some(length) if length != missing => Err(unfit(file, partial.length().saturating_add(length))),
            _ => Ok(()),
        }
    }

    fn receive(&self, file: &RemoteFile, partial: &mut Partial<'_>, answer: &mut Answer) -> Result<()> {
        let mut read = answer.reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.stop.load(Ordering::Acquire) {
                return Err(HubError::Stopped);
            }
            match read(&mut buffer)? {
                0 if partial.is_whole() => return Ok(()),
                0 => return Err(unfit(file, partial.length())),
                count => partial.write(&buffer[..count])?,
            }
            self.progress.reached(file, partial.length());
        }
    }
}

fn unfit(file: &RemoteFile, got: u64) -> HubError {
    HubError::Length { file: file.path.clone(), expected: file.size, got }
}
