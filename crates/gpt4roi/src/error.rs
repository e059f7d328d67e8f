//! What can go wrong, by concern. Each message says what, where, what was expected and what was got.

use crate::{
    bbox::BoxError,
    chat::ChatError,
    choices::ChoicesError,
    convert::ConvertError,
    generate::GenerateError,
    image::ImageError,
    mention::MentionError,
    prompt::PromptError,
    sampling::SamplingError,
    shape::{MaskError, ShapeError},
    tokenizer::TokenizerError,
    weights::WeightsError,
};

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything the library can refuse or fail at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration file lacks a field or holds an impossible value.
    #[error("{place}: expected {expected}, got {got}")]
    Config {
        /// File or field.
        place: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// A picture can't be read or is too large.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A box is empty, outside the picture or not a number.
    #[error(transparent)]
    Box(#[from] BoxError),
    /// An outline or a mask is around nothing.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A mask can't be read, or belongs to another picture.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// A question mentions a region that does not exist.
    #[error(transparent)]
    Mention(#[from] MentionError),
    /// A tokenizer's files are missing or damaged.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A conversation can't be rendered, or is too long.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A checkpoint is missing, damaged, or lacks, has too many or wrongly shaped tensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A checkpoint can't be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A conversation can't take a question.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// There is nothing to choose between.
    #[error(transparent)]
    Choices(#[from] ChoicesError),
    /// Settings of the sampler are out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Generation met a number that is none.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The tensor engine refused an operation.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl Error {
    /// A configuration that can't be: where, what was expected, what was got.
    pub fn config(place: impl Into<String>, expected: String, got: String) -> Self {
        Self::Config { place: place.into(), expected, got }
    }

    /// A file operation that failed.
    pub fn file(path: impl Into<std::path::PathBuf>, source: std::io::Error) -> Self {
        Self::File { path: path.into(), source }
    }
}
