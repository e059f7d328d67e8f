//! What the model said, as Python sees it.

use gpt4roi::{
    chat::{Answer, ResolvedRegion},
    choices::Chosen,
    generate::FinishReason,
};
use pyo3::{prelude::*, types::PyString};

use crate::region::PyRegion;

/// An answer. `str(answer)` is what the model said.
#[pyclass(name = "Answer", module = "gpt4roi", frozen)]
#[derive(Debug)]
pub(crate) struct PyAnswer(pub(crate) Answer);

#[pymethods]
impl PyAnswer {
    /// What the model said.
    #[getter]
    fn text(&self) -> &str {
        &self.0.text
    }

    /// The question, with every mention and coordinate written as `<regionN>`.
    #[getter]
    fn question(&self) -> &str {
        &self.0.question
    }

    /// The regions that the question mentions, in the order of their first mention.
    #[getter]
    fn regions(&self) -> Vec<PyRegion> {
        regions(&self.0.regions)
    }

    /// How sure the model is of its words, 0 to 1: the geometric mean of its tokens' probabilities. None without
    /// tokens.
    #[getter]
    fn probability(&self) -> Option<f64> {
        self.0.probability()
    }

    /// The mean natural logarithm of its tokens' probabilities. None without tokens.
    #[getter]
    fn mean_log_probability(&self) -> Option<f64> {
        self.0.mean_log_probability
    }

    /// Why the answer ended: "stop" where it was complete, "eos" at the model's end-of-sequence token, "length" where
    /// there was no room for more.
    #[getter]
    fn finish(&self) -> &'static str {
        match self.0.finish {
            FinishReason::Stop => "stop",
            FinishReason::Eos => "eos",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }

    /// Tokens of the whole prompt, the picture's included.
    #[getter]
    fn prompt_tokens(&self) -> usize {
        self.0.prompt_tokens
    }

    /// How many of the prompt's tokens had been read before, and were not read again.
    #[getter]
    fn reused_tokens(&self) -> usize {
        self.0.reused_tokens
    }

    /// Tokens that the model wrote.
    #[getter]
    fn generated_tokens(&self) -> usize {
        self.0.generated_tokens
    }

    /// How many of them came as drafted, so that the network was not run for each of them.
    #[getter]
    fn drafted_tokens(&self) -> usize {
        self.0.drafted_tokens
    }

    /// What the model said, or "I do not know." if its probability is below `least`.
    fn text_if_sure(&self, least: f64) -> &str {
        self.0.text_if_sure(least)
    }

    fn __str__(&self) -> &str {
        &self.0.text
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let probability = self.0.probability().map_or("None".into(), |probability| format!("{probability:.3}"));
        Ok(format!("Answer({}, probability={probability}, finish='{}')", quoted(py, self.text())?, self.finish()))
    }
}

/// Which of the given answers the model finds the most probable. `str(chosen)` is that answer.
#[pyclass(name = "Chosen", module = "gpt4roi", frozen)]
#[derive(Debug)]
pub(crate) struct PyChosen(pub(crate) Chosen);

#[pymethods]
impl PyChosen {
    /// The most probable choice, or its label.
    #[getter]
    fn text(&self) -> &str {
        self.0.text()
    }

    /// The place of the most probable choice among the choices, from 0.
    #[getter]
    fn best(&self) -> usize {
        self.0.best()
    }

    /// The share of the most probable choice, 0 to 1, if the answer is one of them.
    #[getter]
    fn probability(&self) -> f64 {
        self.0.probability()
    }

    /// How near the choices come to what the model itself writes, 0 to 1. Where it is small, the model would write none
    /// of them, and their shares compare what it has hardly an opinion of.
    #[getter]
    fn likeness(&self) -> f64 {
        self.0.likeness()
    }

    /// All choices, in their order.
    #[getter]
    fn choices(&self) -> Vec<PyScoredChoice> {
        let scored = self.0.choices.iter().zip(self.0.probabilities());
        let choice = |(choice, probability): (&gpt4roi::choices::ScoredChoice, f64)| PyScoredChoice {
            text: choice.text.clone(),
            probability,
            log_probability: choice.log_probability,
            tokens: choice.tokens,
            complete: choice.complete,
        };
        scored.map(choice).collect()
    }

    /// The question, with every mention and coordinate written as `<regionN>`.
    #[getter]
    fn question(&self) -> &str {
        &self.0.question
    }

    /// The regions that the question mentions, in the order of their first mention.
    #[getter]
    fn regions(&self) -> Vec<PyRegion> {
        regions(&self.0.regions)
    }

    /// Tokens of the whole prompt, the picture's included.
    #[getter]
    fn prompt_tokens(&self) -> usize {
        self.0.prompt_tokens
    }

    /// How many of the prompt's tokens had been read before, and were not read again.
    #[getter]
    fn reused_tokens(&self) -> usize {
        self.0.reused_tokens
    }

    /// The most probable choice, or "I do not know." if its share is below `least`.
    fn text_if_sure(&self, least: f64) -> &str {
        self.0.text_if_sure(least)
    }

    fn __str__(&self) -> &str {
        self.0.text()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (probability, choices) = (self.0.probability(), self.0.choices.len());
        Ok(format!("Chosen({}, probability={probability:.3}, of {choices} choices)", quoted(py, self.text())?))
    }
}

/// A choice, and how probable the model finds it.
#[pyclass(name = "ScoredChoice", module = "gpt4roi", frozen, get_all)]
#[derive(Clone, Debug)]
pub(crate) struct PyScoredChoice {
    /// What it says, or its label.
    text: String,
    /// Its share among the choices, 0 to 1; all shares come to 1.
    probability: f64,
    /// The natural logarithm of the probability that the model's answer is this text and nothing else.
    log_probability: f64,
    /// Its tokens.
    tokens: usize,
    /// Whether it was scored to its end. If not, `log_probability` is the highest that it can be.
    complete: bool,
}

#[pymethods]
impl PyScoredChoice {
    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("ScoredChoice({}, probability={:.3})", quoted(py, &self.text)?, self.probability))
    }
}

/// A text as Python writes it.
pub(crate) fn quoted(py: Python<'_>, text: &str) -> PyResult<String> {
    Ok(PyString::new(py, text).repr()?.to_string())
}

fn regions(resolved: &[ResolvedRegion]) -> Vec<PyRegion> {
    resolved.iter().map(PyRegion::from).collect()
}
