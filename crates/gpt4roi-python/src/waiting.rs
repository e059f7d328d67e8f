//! Waiting for what is computed on a thread of its own, while the interpreter goes on.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use pyo3::prelude::*;

use crate::failure::{Failure, vanished};

/// How long Ctrl-C may go unheard.
pub(crate) const TURN: Duration = Duration::from_millis(50);

/// Whoever waits for a result.
#[derive(Debug)]
pub(crate) struct Asker(Weak<()>);

impl Asker {
    /// Whether nobody waits any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Computes on a thread of its own. Python's other threads go on meanwhile; Ctrl-C ends the waiting at once, and `work`
/// can see that by its [`Asker`].
pub(crate) fn compute<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce(&Asker) -> Result<T, Failure> + Send + 'static,
) -> PyResult<T> {
    let waiting = Arc::new(());
    let asker = Asker(Arc::downgrade(&waiting));
    let (result, mut results) = mpsc::sync_channel(1);
    // Nobody minds a result that nobody waits for.
    spawn(move || _ = result.send(work(&asker)))?;
    loop {
        py.check_signals()?;
        let results = &mut results;
        match py.detach(move || results.recv_timeout(TURN)) {
            Ok(result) => return Ok(result?),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(vanished()),
        }
    }
}

/// Begins to compute.
pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("gpt4roi".into()).spawn(work).map(drop)
}

/// Takes a lock that a computation may hold for long. Python's other threads go on meanwhile, and Ctrl-C is heard.
pub(crate) fn lock_patiently<'l, T: Send>(py: Python<'_>, mutex: &'l Mutex<T>) -> PyResult<MutexGuard<'l, T>> {
    const PAUSE: Duration = Duration::from_millis(2);
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => py.detach(|| thread::sleep(PAUSE)),
        }
        py.check_signals()?;
    }
}

/// Takes a lock. Whatever panicked under it has changed nothing of what it guards, or all of it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
