//! Who watches a run.

use std::{ops::ControlFlow, path::Path};

use indicatif::{ProgressBar, ProgressStyle};

use crate::log::Record;

/// Is told what happens. The trainer itself prints nothing.
pub trait Progress {
    /// A run begins at `step` of `steps`.
    fn started(&mut self, stage: &str, step: u64, steps: u64) {
        let _ = (stage, step, steps);
    }

    /// So many steps are done. To break is to stop: a checkpoint is written and the run ends.
    fn step(&mut self, step: u64) -> ControlFlow<()> {
        let _ = step;
        ControlFlow::Continue(())
    }

    /// A line went to the log.
    fn record(&mut self, record: &Record) {
        let _ = record;
    }

    /// A checkpoint is on the disk.
    fn checkpoint(&mut self, path: &Path) {
        let _ = path;
    }

    /// The run ended.
    fn finished(&mut self) {}
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}

/// A bar with loss, rate and time left, drawn on standard error if that is a terminal.
#[derive(Debug, Default)]
pub struct Bar {
    bar: Option<ProgressBar>,
}

impl Progress for Bar {
    fn started(&mut self, stage: &str, step: u64, steps: u64) {
        let template = "{prefix} {bar:30} {pos}/{len} [{elapsed} < {eta}] {msg}";
        let bar = ProgressBar::new(steps).with_prefix(stage.to_string()).with_position(step);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.reset_eta();
        self.bar = Some(bar);
    }

    fn step(&mut self, step: u64) -> ControlFlow<()> {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
        ControlFlow::Continue(())
    }

    fn record(&mut self, record: &Record) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("loss {:.4}, {:.1} pictures/s", record.loss, record.pictures_per_second));
        }
    }

    fn finished(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon(); // it stays where it is, also where the run was stopped
        }
    }
}
