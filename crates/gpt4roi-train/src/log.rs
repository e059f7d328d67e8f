//! The log of a stage: one JSON object per line.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::replace,
    error::{Result, TrainError},
};

/// What one step, or several between two lines of the log, came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done.
    pub step: u64,
    /// The mean loss over the pictures since the last line.
    pub loss: f64,
    /// The full rate times this was used in the last step.
    pub lr_factor: f64,
    /// The norm of the last gradient, before clipping.
    pub grad_norm: f64,
    /// Means over the pictures since the last line.
    pub metrics: BTreeMap<String, f64>,
    /// Pictures per second since the last line.
    pub pictures_per_second: f64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Steps skipped so far for a gradient that was not finite.
    pub skipped: u64,
}

/// A log file being written.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    records: Vec<Record>,
}

impl Log {
    /// Continues the log at `path` behind `step`: what a later, lost part of an earlier run wrote is
    /// dropped. Step 0 begins anew.
    pub fn open(path: impl Into<PathBuf>, step: u64) -> Result<Self> {
        let path = path.into();
        // The lines are kept as they are: numbers that went through a parser may differ in the last digit.
        let (mut kept, mut records) = (String::new(), Vec::new());
        for (line, record) in parse(&text(&path)?).filter(|(_, record)| record.step <= step) {
            kept.push_str(line);
            kept.push('\n');
            records.push(record);
        }
        replace(&path, kept.as_bytes())?;
        Ok(Self { path, records })
    }

    /// Appends a line.
    pub fn append(&mut self, record: Record) -> Result<()> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.path)
            .and_then(|mut file| file.write_all(line(&record).as_bytes()))
            .map_err(|source| TrainError::file(&self.path, source))?;
        self.records.push(record);
        Ok(())
    }

    /// All lines.
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

/// Reads a log; a last line that was cut off is left out, a missing file is empty.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    Ok(parse(&text(path)?).map(|(_, record)| record).collect())
}

/// The whole lines of a log.
fn parse(text: &str) -> impl Iterator<Item = (&str, Record)> {
    text.lines().map_while(|line| Some((line, serde_json::from_str(line).ok()?)))
}

fn text(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|source| TrainError::file(path, source)),
    }
}

fn line(record: &Record) -> String {
    let mut line = serde_json::to_string(record).unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record { step, loss: 1.0 / step as f64, ..Record::default() }
    }

    #[test]
    fn a_log_goes_on_behind_the_checkpoint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.jsonl");
        let mut log = Log::open(&path, 0).unwrap();
        for step in 1..=5 {
            log.append(record(step)).unwrap();
        }
        let mut log = Log::open(&path, 3).unwrap();
        log.append(record(4)).unwrap();
        assert_eq!(read(&path).unwrap(), [record(1), record(2), record(3), record(4)]);
        assert_eq!(log.records(), read(&path).unwrap());
    }
}
