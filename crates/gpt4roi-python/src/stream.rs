//! An answer that is read while the model writes it.

use std::sync::Arc;

use gpt4roi::chat::Answer;
use pyo3::prelude::*;

use crate::{
    answer::{PyAnswer, quoted},
    reply::Reply,
};

/// The pieces of an answer, as the model writes them: an iterator of texts.
///
/// The model goes no further than what is read here, as with a generator. An answer that is not read to its end, because
/// the loop was left, this was closed or Ctrl-C came, is dropped, and the conversation is as if the question had never
/// been asked.
#[pyclass(name = "Stream", module = "gpt4roi", frozen)]
#[derive(Debug)]
pub(crate) struct PyStream(pub(crate) Arc<Reply<Answer>>);

#[pymethods]
impl PyStream {
    /// The whole answer with all that is known of it. None before its last piece was read.
    #[getter]
    fn answer(&self) -> Option<PyAnswer> {
        self.0.answer().map(PyAnswer)
    }

    /// Drops the rest of the answer. Nothing happens if it was read to its end.
    fn close(&self) {
        self.0.close();
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<String>> {
        loop {
            match self.0.next(py)? {
                Some(piece) if piece.is_empty() => {}
                next => return Ok(next),
            }
        }
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyAny>) {
        self.0.close();
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let answer = self.0.answer().map_or(Ok("None".into()), |answer| quoted(py, &answer.text))?;
        Ok(format!("Stream(answer={answer})"))
    }
}
