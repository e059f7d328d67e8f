//! What every request handler needs.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{body::Body, http::HeaderMap};
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};

use crate::{
    auth::Keys,
    body::{self, Received},
    engine::{Engine, Reply},
    fault::{Fault, Result},
    fetch::Fetcher,
    limits::{Held, Limits, Memory, Times},
    metrics::{Metrics, Tally},
    origin::Gate,
    pictures::Pictures,
    updates::Updates,
};

/// The server's parts; cheap to clone.
pub(crate) type App = Arc<Parts>;

/// The server's parts.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    /// The model's name.
    pub(crate) model: String,
    /// Its adapter's name.
    pub(crate) adapter: Option<String>,
    pub(crate) pictures: Pictures,
    /// How long they are kept.
    pub(crate) keep: std::time::Duration,
    pub(crate) keys: Keys,
    pub(crate) gate: Gate,
    pub(crate) page: bool,
    pub(crate) fetcher: Option<Fetcher>,
    pub(crate) limits: Limits,
    pub(crate) times: Times,
    pub(crate) memory: Memory,
    /// Pictures that are decoded at a time.
    pub(crate) decoding: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    /// When the server began, in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) phase: watch::Sender<Phase>,
}

/// Where the server stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It takes requests.
    Serving,
    /// It was told to stop, and answers what it took.
    Draining,
    /// What is still running ends now.
    Ending,
}

impl Parts {
    /// Reads a question's body as JSON. What it takes in memory is held as long as the second value. Under
    /// overload most questions are refused, which has to cost less than an answer; so those are not parsed,
    /// nor are their pictures decoded.
    ///
    /// # Errors
    /// See [`body`]; if the model is not ready, the server stops, or the queue is full.
    pub(crate) async fn json<T>(&self, headers: &HeaderMap, body: Body) -> Result<(T, Held)>
    where
        T: DeserializeOwned + Send + 'static,
    {
        if let Err(fault) = self.check_ready() {
            body::discard(headers, body, &self.limits, &self.times).await;
            return Err(fault);
        }
        let Received { bytes, mut held } = body::receive(body, &self.limits, &self.times, &self.memory).await?;
        self.engine.check_room()?;
        // The words in a body stand beside it while it is parsed, and a picture's file beside its data URL after that.
        held.join(self.memory.take(bytes.len())?);
        Ok((body::json(headers, bytes).await?, held))
    }

    /// Does what takes the processor for long, such as decoding a picture, off the threads that serve
    /// connections, little at a time.
    ///
    /// # Errors
    /// That of the work, or if the server stops.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = self.decoding.clone().acquire_owned().await.map_err(|_| Fault::Stopping)?;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        done.await.map_err(|_| Fault::Engine)?
    }

    /// What becomes of a request to the engine; `held` is kept until its end.
    pub(crate) fn updates(&self, reply: Reply, held: Held, tally: Arc<Tally>) -> Updates {
        Updates::new(reply, held, tally, self.times.ping, self.phase.subscribe(), self.metrics.first_text())
    }

    /// When a request that comes now has to be answered.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.times.answer
    }

    /// # Errors
    /// If a request names another model than the one that is served.
    pub(crate) fn check_model(&self, model: Option<&str>) -> Result<()> {
        match model {
            Some(model) if model != self.model => {
                Err(Fault::ModelNotFound { param: "model", model: short(model), served: self.model.clone() })
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// If the model is not ready, or the server stops.
    pub(crate) fn check_ready(&self) -> Result<()> {
        if *self.phase.borrow() != Phase::Serving {
            Err(Fault::Stopping)
        } else if self.engine.is_ready() {
            Ok(())
        } else {
            Err(Fault::NotReady)
        }
    }
}

/// The beginning of what a client wrote, for an answer to quote.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Seconds since 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Digits that no other answer has.
pub(crate) fn unique() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Every state has keys of its own, drawn from the system's randomness once and counted on from there.
    RandomState::new().build_hasher().finish()
}
