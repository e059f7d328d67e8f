//! What can go wrong while training.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T> = std::result::Result<T, TrainError>;

/// Everything the trainer can refuse or fail at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A stage file can't be read as one.
    #[error("{path}: {message}")]
    Stage {
        /// The stage file.
        path: PathBuf,
        /// What is wrong with it, with line and column where known.
        message: String,
    },
    /// A value in a stage file can't be.
    #[error("stage `{stage}`, {field}: expected {expected}, got {got}")]
    Value {
        /// The stage's name.
        stage: String,
        /// Which field.
        field: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// A checkpoint can't be continued by this stage.
    #[error("{path}: {message}")]
    Checkpoint {
        /// The checkpoint directory, or a file in it.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// A run that begins anew would replace the checkpoints of another.
    #[error(
        "{path}: expected no checkpoints where a run begins, got those of a run up to step {step}; `--resume` goes on with it, another `--out` begins anew"
    )]
    Used {
        /// The output directory.
        path: PathBuf,
        /// The last step that was saved there.
        step: u64,
    },
    /// Tensors would begin with random values that nobody asked for.
    #[error(
        "stage `{stage}`: {count} tensors are in none of the checkpoints of `init.from` and not named by `init.fresh`; the first is `{first}`"
    )]
    Drawn {
        /// The stage's name.
        stage: String,
        /// How many.
        count: usize,
        /// The first by name.
        first: String,
    },
    /// A trainable parameter was not reached by the gradient of a batch.
    #[error("parameter `{name}` is trainable but the first batch that takes all of the network gave it no gradient")]
    NoGradient {
        /// The parameter.
        name: String,
    },
    /// The gradient was not a number for too many steps in a row.
    #[error("step {step}: the gradient was not finite for {in_a_row} steps in a row")]
    NotFinite {
        /// The last of these steps.
        step: u64,
        /// How many there were.
        in_a_row: u32,
    },
    /// No example of a batch had anything to learn from.
    #[error("step {step}: no picture of the batch has a target")]
    NothingToLearn {
        /// The step.
        step: u64,
    },
    /// Threads could not be started.
    #[error("worker threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The curve could not be drawn.
    #[error("{path}: {message}")]
    Curve {
        /// The picture.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// Scenes or questions could not be made.
    #[error("data: {0}")]
    Data(String),
    /// Conversations about pictures that are not there, about places outside of them, or longer than the model reads.
    #[error("expected records that fit their pictures and the model, got problems: {}{}", .first.len() + .more, listed(.first, *.more))]
    Records {
        /// The first of them, each with its file and its place there.
        first: Vec<String>,
        /// How many others there are.
        more: usize,
    },
    /// The model refused.
    #[error(transparent)]
    Model(Box<gpt4roi::Error>),
    /// The tensor engine refused an operation.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// A line for each, and one for those that are only counted.
fn listed(first: &[String], more: usize) -> String {
    let more = (more > 0).then(|| format!("and {more} more"));
    first.iter().chain(&more).map(|line| format!("\n  {line}")).collect()
}

impl TrainError {
    /// A file operation that failed.
    pub fn file(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::File { path: path.into(), source }
    }

    /// A checkpoint that can't be used.
    pub fn checkpoint(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.into(), message: message.into() }
    }
}

impl From<gpt4roi::Error> for TrainError {
    fn from(error: gpt4roi::Error) -> Self {
        Self::Model(Box::new(error))
    }
}

impl From<gpt4roi::weights::WeightsError> for TrainError {
    fn from(error: gpt4roi::weights::WeightsError) -> Self {
        gpt4roi::Error::from(error).into()
    }
}
