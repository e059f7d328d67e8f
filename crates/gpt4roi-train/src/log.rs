//! The log of a stage: one JSON object per line.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    checkpoint::replace,
    error::{Result, TrainError},
};

/// What one step, or several between two lines of the log, came to.
///
/// JSON has no word for what is not finite: such a number is written as null, and read as not a number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done.
    pub step: u64,
    /// The mean loss over the pictures learned from since the last line; not a number if there were none.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// The full rate times this was used in the last step.
    pub lr_factor: f64,
    /// The norm of the last gradient, before clipping; not finite if the step was skipped for that.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Means over the pictures learned from since the last line.
    #[serde(deserialize_with = "numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// Pictures per second since the last line.
    pub pictures_per_second: f64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Steps skipped so far for a gradient that was not finite.
    pub skipped: u64,
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<BTreeMap<String, f64>, D::Error> {
    let read = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
    Ok(read.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
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

/// Reads a log; a line that was cut off is left out, a missing file is empty.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    Ok(parse(&text(path)?).map(|(_, record)| record).collect())
}

/// The whole lines of a log. One that is not does not take along those behind it.
fn parse(text: &str) -> impl Iterator<Item = (&str, Record)> {
    text.lines().filter_map(|line| Some((line, serde_json::from_str(line).ok()?)))
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

    #[test]
    fn a_line_that_is_not_finite_does_not_end_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.jsonl");
        let mut log = Log::open(&path, 0).unwrap();
        let metrics = BTreeMap::from([("accuracy".to_owned(), f64::NAN), ("rms".to_owned(), 2.0)]);
        log.append(record(1)).unwrap();
        log.append(Record { loss: f64::NAN, grad_norm: f64::INFINITY, metrics, ..record(2) }).unwrap();
        log.append(record(3)).unwrap();
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains(r#""loss":null"#), "{before}");
        let log = Log::open(&path, 3).unwrap();
        assert_eq!(log.records().iter().map(|record| record.step).collect::<Vec<_>>(), [1, 2, 3]);
        let broken = &log.records()[1];
        assert!(broken.loss.is_nan() && broken.grad_norm.is_nan() && broken.metrics["accuracy"].is_nan());
        assert_eq!(broken.metrics["rms"], 2.0);
        assert_eq!(fs::read_to_string(&path).unwrap(), before, "lines are kept as they were written");
    }
}
