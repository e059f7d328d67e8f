//! How a program is told to stop: Ctrl-C, where it means "stop this" and not "leave", and what other programs send.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::runtime::{Builder, Runtime};

use crate::failure::{STOPPED, tell};

/// Whether somebody pressed Ctrl-C. By default nobody listens, and it ends the program as ever.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    pressed: Arc<AtomicBool>,
    /// Listens as long as this lives.
    _listening: Option<Runtime>,
}

impl Interrupts {
    /// From now on Ctrl-C does not end the program any more.
    ///
    /// It is so when this returns, and must be before a line editor reads: that one sets a handler of its own and
    /// afterwards the one that it found, so that one set meanwhile would be lost.
    ///
    /// # Errors
    /// If no thread can be started to listen.
    pub(crate) fn listen() -> io::Result<Self> {
        let runtime = listener()?;
        let pressed = Arc::new(AtomicBool::new(false));
        let heard = pressed.clone();
        let mut presses = {
            let _inside = runtime.enter();
            presses()?
        };
        runtime.spawn(async move {
            while presses.recv().await.is_some() {
                heard.store(true, Relaxed);
            }
        });
        Ok(Self { pressed, _listening: Some(runtime) })
    }

    /// Whether it was pressed since this was asked last.
    pub(crate) fn take(&self) -> bool {
        self.pressed.swap(false, Relaxed)
    }
}

/// Whether somebody wants the program to stop, who is told at once what comes of it. Whoever wants it twice need not
/// wait: the program ends.
#[derive(Debug)]
pub(crate) struct StopRequest {
    asked: Arc<AtomicBool>,
    /// Listens as long as this lives.
    _listening: Runtime,
}

impl StopRequest {
    /// From now on a first request does not end the program any more; `notice` is told.
    ///
    /// # Errors
    /// If no thread can be started to listen.
    pub(crate) fn listen(notice: &'static str) -> io::Result<Self> {
        let runtime = listener()?;
        let asked = Arc::new(AtomicBool::new(false));
        let heard = asked.clone();
        let mut signals = {
            let _inside = runtime.enter();
            StopSignals::new()?
        };
        runtime.spawn(async move {
            signals.next().await;
            heard.store(true, Relaxed);
            tell(notice);
            signals.next().await;
            end_at_once();
        });
        Ok(Self { asked, _listening: runtime })
    }

    /// Whether it was asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }
}

#[expect(clippy::exit, reason = "whoever asked twice waits for nobody")]
fn end_at_once() -> ! {
    std::process::exit(STOPPED.into())
}

fn listener() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

/// By what a program is told to stop: Ctrl-C, and what other programs send, which is SIGTERM, or what comes nearest on
/// Windows, Ctrl-Break.
#[derive(Debug)]
pub(crate) struct StopSignals {
    presses: Presses,
    terminations: Terminations,
}

impl StopSignals {
    /// From now on these do not end the program any more. Needs a runtime around it.
    ///
    /// # Errors
    /// If the system does not let listen.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { presses: presses()?, terminations: terminations()? })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.presses.recv() => {}
            _ = self.terminations.recv() => {}
        }
    }
}

#[cfg(unix)]
type Presses = tokio::signal::unix::Signal;

#[cfg(unix)]
type Terminations = tokio::signal::unix::Signal;

#[cfg(windows)]
type Presses = tokio::signal::windows::CtrlC;

#[cfg(windows)]
type Terminations = tokio::signal::windows::CtrlBreak;

#[cfg(unix)]
fn terminations() -> io::Result<Terminations> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
}

#[cfg(windows)]
fn terminations() -> io::Result<Terminations> {
    tokio::signal::windows::ctrl_break()
}

#[cfg(unix)]
fn presses() -> io::Result<Presses> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
}

#[cfg(windows)]
fn presses() -> io::Result<Presses> {
    tokio::signal::windows::ctrl_c()
}
