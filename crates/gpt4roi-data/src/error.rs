//! What can go wrong here.

/// Scenes, questions, records or batches that can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A setting is out of its range.
    #[error("setting `{setting}`: expected {expected}, got {got}")]
    Setting {
        /// Which one, by its name in the file.
        setting: &'static str,
        /// What would do.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// The embedded artwork is damaged.
    #[error("artwork `{slug}`: {reason}")]
    Artwork {
        /// Which drawing.
        slug: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A conversation can't be rendered.
    #[error("conversation {index}: {source}")]
    Prompt {
        /// Which one of those given.
        index: usize,
        /// Why.
        source: gpt4roi::prompt::PromptError,
    },
    /// Conversations that can't share one sequence.
    #[error("packing: {0}")]
    Packing(String),
    /// A picture can't be written.
    #[error("{path}: {source}")]
    Picture {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: image::ImageError,
    },
    /// A file that would be written over.
    #[error("{} exists already", path.display())]
    Exists {
        /// Which one.
        path: std::path::PathBuf,
    },
    /// An entry of a file of records is not as it should be.
    #[error("{place}: {source}")]
    Record {
        /// Which one.
        place: crate::records::Place,
        /// What is wrong with it.
        source: crate::records::RecordError,
    },
    /// A picture that records are about can't be opened.
    #[error("{source} (asked for in {place})")]
    OwnPicture {
        /// Where it was first asked for.
        place: String,
        /// Which file, and why.
        source: gpt4roi::image::ImageError,
    },
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
