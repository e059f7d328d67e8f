//! Keys and values of the tokens already read, layer by layer.

use candle_core::{Result, Tensor};

/// Grows with the conversation; a new question costs only its own tokens.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl KvCache {
    /// An empty cache for so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers] }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.layers.first().and_then(Option::as_ref).map_or(0, |(k, _)| k.dims()[1])
    }

    /// Whether nothing has been read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything from token `length` on.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        if length >= self.len() {
            return Ok(());
        }
        for layer in &mut self.layers {
            *layer = match layer.take() {
                Some((k, v)) if length > 0 => Some((k.narrow(1, 0, length)?, v.narrow(1, 0, length)?)),
                _ => None,
            };
        }
        Ok(())
    }

    /// Adds the keys and values of new tokens to one layer and returns all of that layer.
    ///
    /// # Shapes
    /// k and v `[B, T, H]` → `[B, length + T, H]`
    pub(crate) fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let all = match &self.layers[layer] {
            Some((old_k, old_v)) => (Tensor::cat(&[old_k, &k], 1)?, Tensor::cat(&[old_v, &v], 1)?),
            None => (k, v),
        };
        self.layers[layer] = Some(all.clone());
        Ok(all)
    }
}
