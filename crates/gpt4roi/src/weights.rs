//! Tensors by the names of the published checkpoint.
//!
//! The model asks for each tensor by name and shape. Where it comes from (files, an initialiser, a
//! trainer's variables) is the business of a [`TensorSource`].

use std::sync::Arc;

use candle_core::Tensor;

/// The result of taking tensors out of a checkpoint.
pub type WeightsResult<T> = Result<T, WeightsError>;

/// A checkpoint that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The model needs a tensor that is not there.
    #[error("tensor `{name}` is missing (expected shape {expected:?})")]
    Missing {
        /// Its full name.
        name: String,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Its full name.
        name: String,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// The engine failed while a tensor was made or converted.
    #[error("tensor `{name}`: {source}")]
    Tensor {
        /// Its full name.
        name: String,
        /// Why.
        source: candle_core::Error,
    },
}

/// Hands out tensors by full name, in f32.
pub trait TensorSource: Send + Sync {
    /// The tensor of this name, which must have this shape.
    ///
    /// # Errors
    /// If there is none, or if it has another shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor>;
}

/// A place in the tree of names, from which a layer takes its tensors.
#[derive(Clone)]
pub struct Weights {
    source: Arc<dyn TensorSource>,
    prefix: String,
}

impl Weights {
    /// The root of a source.
    pub fn new(source: Arc<dyn TensorSource>) -> Self {
        Self { source, prefix: String::new() }
    }

    /// The subtree `name`, e.g. `weights.at("model").at("layers.0")`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { source: self.source.clone(), prefix: format!("{}{name}.", self.prefix) }
    }

    /// The tensor `name` of this subtree.
    ///
    /// # Errors
    /// See [`TensorSource::tensor`].
    pub fn get(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        self.source.tensor(&format!("{}{name}", self.prefix), shape)
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
