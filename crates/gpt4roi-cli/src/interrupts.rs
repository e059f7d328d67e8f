//! Ctrl-C, where it means "stop this" and not "leave".

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::runtime::{Builder, Runtime};

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
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
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

#[cfg(unix)]
fn presses() -> io::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
}

#[cfg(windows)]
fn presses() -> io::Result<tokio::signal::windows::CtrlC> {
    tokio::signal::windows::ctrl_c()
}
