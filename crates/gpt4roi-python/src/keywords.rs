//! Keyword arguments: each is taken by whoever knows it, and what is left then is an error.

use std::fmt::Display;

use gpt4roi::{
    chat::AskOptions,
    choices::Scoring,
    sampling::{Sampler, Sampling},
    stop::StopStrings,
    zoom::Zoom,
};
use pyo3::{
    conversion::FromPyObjectOwned,
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyDict, PyString},
};

use crate::failure::Failure;

/// Keyword arguments that nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Keywords<'py>(Option<Bound<'py, PyDict>>);

impl<'py> Keywords<'py> {
    /// Those of a call, whose own dictionary this is.
    pub(crate) fn new(dict: Option<Bound<'py, PyDict>>) -> Self {
        Self(dict)
    }

    /// Takes one as it is; none if it was not given, or as Python's None.
    pub(crate) fn object(&self, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(dict) = &self.0 else { return Ok(None) };
        let object = dict.get_item(name)?;
        if object.is_some() {
            dict.del_item(name)?;
        }
        Ok(object.filter(|object| !object.is_none()))
    }

    /// Takes one; none as with [`Self::object`].
    ///
    /// # Errors
    /// If it is no `T`.
    pub(crate) fn take<T: FromPyObjectOwned<'py>>(&self, name: &str) -> PyResult<Option<T>> {
        let Some(object) = self.object(name)? else { return Ok(None) };
        let py = object.py();
        object.extract::<T>().map(Some).map_err(|error| {
            let error: PyErr = error.into();
            let message = format!("{name}: {}", error.value(py));
            match error.is_instance_of::<PyTypeError>(py) {
                true => PyTypeError::new_err(message),
                false => PyValueError::new_err(message),
            }
        })
    }

    /// Makes sure that none is left.
    ///
    /// # Errors
    /// If one is that nobody knows.
    pub(crate) fn finish(self) -> PyResult<()> {
        let left = self.0.as_ref().and_then(|dict| dict.keys().iter().next());
        left.map_or(Ok(()), |name| Err(PyTypeError::new_err(format!("unexpected keyword argument '{name}'"))))
    }

    /// Takes everything about how a question is answered.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub(crate) fn ask_options(&self) -> PyResult<AskOptions> {
        let mut options = AskOptions { sampling: self.sampling()?, zoom: self.zoom()?, ..AskOptions::default() };
        if let Some(tokens) = self.take("max_new_tokens")? {
            options.max_new_tokens = tokens;
        }
        if options.max_new_tokens == 0 {
            return Err(PyValueError::new_err("max_new_tokens: expected at least 1, got 0"));
        }
        options.draft = self.take("draft")?;
        options.stop = self.stop()?;
        Ok(options)
    }

    /// Takes everything about how given answers are scored.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub(crate) fn choice_options(&self) -> PyResult<AskOptions> {
        let scoring = match self.take::<String>("scoring")?.as_deref() {
            None | Some("all") => Scoring::All,
            Some("likely") => Scoring::Likely,
            Some(other) => return Err(out_of_range("scoring", &format!("expected all or likely, got {other}"))),
        };
        Ok(AskOptions { scoring, zoom: self.zoom()?, ..AskOptions::default() })
    }

    /// Takes how much memory many sequences together may need.
    pub(crate) fn batch_bytes(&self, options: AskOptions) -> PyResult<AskOptions> {
        let batch_bytes = self.take("batch_bytes")?.unwrap_or(options.batch_bytes);
        Ok(AskOptions { batch_bytes, ..options })
    }

    fn sampling(&self) -> PyResult<Sampling> {
        let temperature = self.take("temperature")?.unwrap_or(0.0);
        let (top_k, top_p, seed) = (self.take("top_k")?, self.take("top_p")?, self.take("seed")?);
        if temperature == 0.0 {
            return Ok(Sampling::Greedy);
        }
        let (top_k, top_p, seed) = (top_k.unwrap_or(50), top_p.unwrap_or(1.0), seed.unwrap_or(0));
        let sampling = Sampling::Random { temperature, top_k, top_p, seed };
        Sampler::new(&sampling).map_err(|error| Failure::from(gpt4roi::Error::from(error)))?;
        Ok(sampling)
    }

    fn stop(&self) -> PyResult<StopStrings> {
        let Some(stop) = self.object("stop")? else { return Ok(StopStrings::default()) };
        // A text is itself a sequence of texts, and not what is meant.
        if stop.is_instance_of::<PyString>() {
            return Ok(StopStrings::new([stop.extract()?]));
        }
        let strings: PyResult<Vec<String>> = stop.try_iter()?.map(|string| string?.extract()).collect();
        Ok(StopStrings::new(strings?))
    }

    fn zoom(&self) -> PyResult<Zoom> {
        let zoom = self.take::<String>("zoom")?.map(|zoom| zoom.parse());
        Ok(zoom.transpose().map_err(|error| out_of_range("zoom", &error))?.unwrap_or_default())
    }
}

fn out_of_range(name: &str, error: &dyn Display) -> PyErr {
    PyValueError::new_err(format!("{name}: {error}"))
}
