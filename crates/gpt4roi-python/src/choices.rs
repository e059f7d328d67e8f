//! Answers to choose between, as Python hands them over.

use gpt4roi::Choices;
use pyo3::{prelude::*, types::PyDict};

use crate::failure::Failure;

/// Takes texts, or labels with what the model says for each: pairs, or a dict.
///
/// # Errors
/// If they are none, or no choices.
pub(crate) fn read(object: &Bound<'_, PyAny>) -> PyResult<Choices> {
    let pairs = match object.cast::<PyDict>() {
        Ok(worded) => worded.items().into_any(),
        Err(_) => object.clone(),
    };
    let choice = |choice: PyResult<Bound<'_, PyAny>>| {
        let choice = choice?;
        match choice.extract::<String>() {
            Ok(text) => Ok((text.clone(), text)),
            Err(_) => choice.extract::<(String, String)>(),
        }
    };
    let pairs = pairs.try_iter()?.map(choice).collect::<PyResult<Vec<_>>>()?;
    Choices::worded(pairs).map_err(|error| Failure::from(gpt4roi::Error::from(error)).into())
}
