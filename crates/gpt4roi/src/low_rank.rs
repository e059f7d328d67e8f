//! A change of a matrix that is a product of two thin ones: LoRA.
//!
//! Source: E. J. Hu et al., “LoRA: Low-Rank Adaptation of Large Language Models”, 2021, arXiv 2106.09685.

use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::layers::linear;

/// What is added to a matrix W `[output, input]`: scale·B·A.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// A, `[rank, input]`.
    pub down: Tensor,
    /// B, `[output, rank]`.
    pub up: Tensor,
    /// What their product is multiplied by: alpha/rank, or alpha/√rank where the rank is to be stabilised.
    pub scale: f64,
}

impl LowRank {
    /// What it adds to x·Wᵀ.
    ///
    /// # Shapes
    /// x `[.., input]` → `[.., output]`
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        let [down, up] = [&self.down, &self.up].map(|factor| factor.to_dtype(x.dtype()));
        linear(&linear(x, &down?, None)?, &up?, None)? * self.scale
    }

    /// What it adds to the rows of W with these numbers.
    ///
    /// # Shapes
    /// ids `[T]` (u32) → `[T, input]`
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        self.up.index_select(ids, 0)?.matmul(&self.down)? * self.scale
    }

    /// W with what it adds.
    ///
    /// # Shapes
    /// weight `[output, input]` → the same
    pub fn added_to(&self, weight: &Tensor) -> Result<Tensor> {
        let change = (self.up.matmul(&self.down)? * self.scale)?;
        weight + change.to_dtype(weight.dtype())?
    }

    /// What it adds to a stretch of W, row by row.
    pub(crate) fn piece(&self, elements: Range<usize>) -> Result<Vec<f32>> {
        let input = self.down.dim(1)?;
        let rows = elements.start / input..elements.end.div_ceil(input);
        let some = (self.up.narrow(0, rows.start, rows.len())?.matmul(&self.down)? * self.scale)?;
        let mut values = some.flatten_all()?.to_vec1::<f32>()?;
        values.drain(..elements.start - rows.start * input);
        values.truncate(elements.len());
        Ok(values)
    }

    /// Memory that the two factors take, in bytes.
    pub fn bytes(&self) -> usize {
        [&self.down, &self.up].map(|factor| factor.elem_count() * factor.dtype().size_in_bytes()).iter().sum()
    }
}
