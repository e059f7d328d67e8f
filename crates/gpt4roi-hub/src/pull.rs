//! A model from the hub, whole.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::{
    cache::Cache,
    client::Client,
    config::HubConfig,
    error::{HubError, Result},
    fetch::Fetch,
    listing::{self, Listing, RemoteFile},
    model::ModelRef,
    partial::{OpenStorage, open_file},
    progress::Progress,
    select::Selection,
};

/// A hub and the cache that its models go to.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    client: Client,
    cache: Cache,
    pub(crate) open: OpenStorage,
}

/// A model that is in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The commit that the revision means.
    pub commit: String,
    /// The directory of its files.
    pub snapshot: PathBuf,
    /// The files.
    pub files: Vec<PulledFile>,
}

/// A file of a model that is in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledFile {
    /// Where it lies in the snapshot.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Whether it had to be downloaded.
    pub downloaded: bool,
}

impl Hub {
    /// The hub of a configuration. Nothing is connected yet.
    ///
    /// # Errors
    /// If the endpoint is no address.
    pub fn new(config: HubConfig) -> Result<Self> {
        let (client, cache) = (Client::new(&config)?, Cache::new(&config.cache));
        Ok(Self { config, client, cache, open: open_file })
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Brings the files of a model into the cache, those that are not there yet. Offline: looks for them there.
    ///
    /// What a branch means is written down when everything is there, so that a pull that was cut off leaves the
    /// branch as it was.
    ///
    /// # Errors
    /// If the hub refuses, a file can't be had or written. What has come so far is kept for the next time.
    pub fn pull(&self, model: &ModelRef, selection: &Selection, progress: &dyn Progress) -> Result<Pulled> {
        if self.config.offline {
            return self.offline(model);
        }
        let Listing { commit, files } = self.list(model, progress, selection)?;
        let fetch = Fetch {
            client: &self.client,
            cache: &self.cache,
            retry: &self.config.retry,
            open: self.open,
            model,
            commit: &commit,
            progress,
            stop: AtomicBool::new(false),
        };
        let missing = missing(&fetch, &files);
        progress.planned(&missing);
        in_parallel(self.config.connections, &missing, |file| fetch.bring(file), &fetch.stop)?;
        for file in &files {
            self.cache.link(&model.id, &commit, &file.path, &file.digest)?;
        }
        self.cache.set_ref(model, &commit)?;
        let downloaded: HashSet<_> = missing.iter().map(|file| &file.digest).collect();
        let pulled = files.iter().map(|file| PulledFile {
            path: file.path.clone(),
            size: file.size,
            downloaded: downloaded.contains(&file.digest),
        });
        Ok(Pulled { snapshot: self.cache.snapshot(&model.id, &commit), files: pulled.collect(), commit })
    }

    /// The files that are selected of a revision.
    fn list(&self, model: &ModelRef, progress: &dyn Progress, selection: &Selection) -> Result<Listing> {
        let mut tries = self.config.retry.begin(0);
        loop {
            let error = match listing::fetch(&self.client, model) {
                Ok(all) => return Ok(Listing { files: selection.choose(model, &all)?, commit: all.commit }),
                Err(error) => error,
            };
            let Some(wait) = tries.wait(&error, 0) else { return Err(error) };
            progress.retrying(&error, wait);
            (self.config.retry.sleep)(wait);
        }
    }

    fn offline(&self, model: &ModelRef) -> Result<Pulled> {
        let absent = |_| HubError::Offline { model: model.to_string(), cache: self.cache.root().to_owned() };
        let snapshot = self.cache.find(model).map_err(absent)?;
        let commit = self.cache.commit(model).unwrap_or_default();
        let files = self.cache.files(&model.id, &commit)?.into_iter();
        let files = files.map(|file| PulledFile { path: file.path, size: file.size, downloaded: false }).collect();
        Ok(Pulled { commit, snapshot, files })
    }
}

/// The contents that are not there, each once.
fn missing(fetch: &Fetch<'_>, files: &[RemoteFile]) -> Vec<RemoteFile> {
    let mut seen = HashSet::new();
    files.iter().filter(|file| seen.insert(&file.digest) && !fetch.is_there(file)).cloned().collect()
}

/// Does something with every item, several at a time and at least one, until one fails.
fn in_parallel<T: Sync>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<()> + Sync,
    stop: &AtomicBool,
) -> Result<()> {
    let queue = Mutex::new(items.iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let failure = Mutex::new(None);
    let worker = || {
        while let Some(item) = next().filter(|_| !stop.load(Ordering::Acquire)) {
            if let Err(error) = work(item) {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                stop.store(true, Ordering::Release);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads.max(1).min(items.len()) {
            scope.spawn(worker);
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
