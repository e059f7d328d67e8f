//! What went wrong, as Python is told.

use std::{io, path::PathBuf};

use gpt4roi::{image::ImageError, sampling::SamplingError};
use pyo3::{
    PyErr, create_exception,
    exceptions::{PyException, PyOSError, PyValueError},
};

create_exception!(
    gpt4roi,
    Error,
    PyException,
    "What the model or its files can't do. Arguments that can't be are a ValueError or a TypeError, and files that \
     can't be read an OSError."
);

/// Why a call fails that reached the library.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The library's own.
    #[error(transparent)]
    Library(#[from] gpt4roi::Error),
    /// One of many regions can't be; counted from 0, as Python does.
    #[error("{place}[{index}]: {source}")]
    Region {
        /// The argument.
        place: &'static str,
        /// Which one of it.
        index: usize,
        /// What is wrong with it.
        source: gpt4roi::Error,
    },
    /// A question that asks about no region, where each is to be asked about.
    #[error("question: expected <region1> in it, which stands for each region in turn, got {0:?}")]
    AboutNothing(String),
    /// A text that names no model.
    #[error("{0}")]
    NoModel(String),
    /// The cache of models can't be looked at.
    #[error(transparent)]
    Hub(#[from] gpt4roi_hub::HubError),
    /// The device can't be had.
    #[error(transparent)]
    Device(#[from] gpt4roi::device::DeviceError),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Library(error.into())
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::Library(error) => of_library(error, message),
            Failure::Region { .. } | Failure::AboutNothing(_) => PyValueError::new_err(message),
            Failure::NoModel(_) | Failure::Hub(_) | Failure::Device(_) => Error::new_err(message),
        }
    }
}

fn of_library(error: gpt4roi::Error, message: String) -> PyErr {
    use gpt4roi::Error as Library;
    match error {
        Library::Image(ImageError::File { path, source }) | Library::File { path, source } => {
            of_file(path, &source).unwrap_or_else(|| Error::new_err(message))
        }
        Library::Sampling(SamplingError::Setting { .. })
        | Library::Box(_)
        | Library::Shape(_)
        | Library::Mask(_)
        | Library::Mention(_)
        | Library::Prompt(_)
        | Library::Chat(_)
        | Library::Choices(_) => PyValueError::new_err(message),
        _ => Error::new_err(message),
    }
}

/// Python's own error for a file, such as FileNotFoundError, if the system gave a number.
fn of_file(path: PathBuf, source: &io::Error) -> Option<PyErr> {
    let number = source.raw_os_error()?;
    let message = source.to_string();
    // Python writes the number itself.
    let message = message.split(" (os error").next().unwrap_or_default().to_owned();
    Some(PyOSError::new_err((number, message, path.into_os_string())))
}

/// A computation that ended without a result, which only a defect of the library does.
pub(crate) fn vanished() -> PyErr {
    Error::new_err("the computation ended without a result; what went wrong stands on standard error")
}
