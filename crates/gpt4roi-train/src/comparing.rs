//! Attention that begins by copying and comparing.
//!
//! Trained attention carries tokens along and compares them with each other; so attention may as well begin with that
//! (after "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828). Values and outputs copy what a token
//! attends to, turned by one rotation, so that what it has copied is told from what it is. Heads come in fours:
//!
//! 1. words look for the patches that show them,
//! 2. for the regions that show them,
//! 3. tokens look for those that have copied what they are (what stood behind this number before?),
//! 4. for those that are what they have copied.
//!
//! In the first layer nothing has been copied yet, so there the last two look for patches as well. What is compared
//! stands in the channels that rotary position embeddings turn slowly, so that a word finds its patches behind a whole
//! picture. The other channels begin as LLaMA's do.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use gpt4roi::config::LlamaConfig;

use crate::{
    init::{Initializer, LLAMA_STD},
    words::{Frames, orthonormal_columns},
};

/// Tokens of a picture and a question behind it.
const PICTURE: f64 = 300.0;
/// Tokens of a question.
const QUESTION: f64 = 20.0;

/// Adds the first values of one layer's four projections: values V and outputs M·Vᵀ; queries A·F and keys A·G for what
/// a head compares.
pub(crate) fn begin_attention(
    taken: &mut BTreeMap<String, Tensor>,
    initializer: &Initializer,
    llama: &LlamaConfig,
    layer: usize,
    frames: &Frames,
) -> Result<()> {
    let drawn = Drawn { initializer, llama, layer };
    let value = (drawn.matrix("v")? * (1.0 / (LLAMA_STD * (llama.hidden_size as f64).sqrt())))?; // keeps lengths
    taken.insert(drawn.name("o"), frames.copies.matmul(&value.t()?)?);
    taken.insert(drawn.name("v"), value);

    let heads = (0..llama.num_attention_heads).map(|head| query_and_key(&drawn, head, frames));
    let (queries, keys): (Vec<_>, Vec<_>) = heads.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    taken.insert(drawn.name("q"), Tensor::cat(&queries, 0)?);
    taken.insert(drawn.name("k"), Tensor::cat(&keys, 0)?);
    Ok(())
}

/// The rows of a head.
///
/// # Shapes
/// → `[head, D]` each
fn query_and_key(drawn: &Drawn<'_>, head: usize, frames: &Frames) -> Result<(Tensor, Tensor)> {
    let sought = Sought::by(drawn.layer, head);
    let [of_query, of_key] = sought.read(frames)?;
    let [in_query, in_key] = sought.common(frames)?;
    let head_dim = drawn.llama.hidden_size / drawn.llama.num_attention_heads;
    let turning = Turning::of(head_dim, drawn.llama.rope_theta, sought.reach());
    let directions = directions(drawn.initializer, &format!("{sought:?}"), of_query.dim(0)?)?;
    let directions = turning.spread(&directions, drawn.layer + head / 2)?;
    let rows = |part: &str, read: &Tensor, common: &Tensor| {
        let rows = drawn.matrix(part)?.narrow(0, head * head_dim, head_dim)?;
        with_row(&(directions.matmul(read)? + turning.fast_rows(&rows)?)?, head_dim / 2 - 1, common)
    };
    Ok(((rows("q", &of_query, &in_query)? * sought.sharpness())?, rows("k", &of_key, &in_key)?))
}

/// One layer's projections as LLaMA would begin with them.
struct Drawn<'a> {
    initializer: &'a Initializer,
    llama: &'a LlamaConfig,
    layer: usize,
}

impl Drawn<'_> {
    fn name(&self, part: &str) -> String {
        format!("model.layers.{}.self_attn.{part}_proj.weight", self.layer)
    }

    fn matrix(&self, part: &str) -> Result<Tensor> {
        self.initializer.tensor(&self.name(part), &[self.llama.hidden_size; 2], &Device::Cpu)
    }
}

/// What a head looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sought {
    /// Patches that show a word.
    Patches,
    /// Regions that show it.
    Regions,
    /// Tokens that have copied what a token is.
    Copied,
    /// Tokens that are what it has copied.
    Own,
}

impl Sought {
    fn by(layer: usize, head: usize) -> Self {
        match (layer, head % 4) {
            (_, 1) => Self::Regions,
            (1.., 2) => Self::Copied,
            (1.., 3) => Self::Own,
            _ => Self::Patches,
        }
    }

    /// What queries and keys read, `[n, D]` each, of the same n.
    fn read(self, frames: &Frames) -> Result<[Tensor; 2]> {
        let rows = |columns: &Tensor| columns.t()?.contiguous();
        let own = without(&identity(&frames.copies)?, &rows(&frames.shared)?)?;
        let own = without(&own, &rows(&frames.background)?)?;
        let copied = own.matmul(&rows(&frames.copies)?)?;
        Ok(match self {
            Self::Patches => [rows(&frames.words)?, rows(&frames.patches)?],
            Self::Regions => [rows(&frames.words)?, rows(&frames.regions)?],
            Self::Copied => [own, copied],
            Self::Own => [copied, own],
        })
    }

    /// What they read in one channel for itself, `[1, D]` each: words are drawn to image tokens where they look for
    /// patches. Otherwise they are turned away from them, or the few tokens of a question would be lost among the many
    /// of a picture.
    fn common(self, frames: &Frames) -> Result<[Tensor; 2]> {
        let drawn_to_pictures = if self == Self::Patches { 1.0 } else { -1.5 };
        Ok([(frames.shared.t()? * drawn_to_pictures)?, frames.background.t()?])
    }

    /// Over how many tokens.
    fn reach(self) -> f64 {
        if self == Self::Patches { PICTURE } else { QUESTION }
    }

    /// How much the best match is preferred: a factor of the logits.
    fn sharpness(self) -> f64 {
        if self == Self::Patches { 1.5 } else { 1.0 }
    }
}

fn identity(like: &Tensor) -> Result<Tensor> {
    Tensor::eye(like.dim(0)?, like.dtype(), &Device::Cpu)
}

/// The rows without what they have of a direction, `[1, D]` and as long as 1.
fn without(rows: &Tensor, direction: &Tensor) -> Result<Tensor> {
    rows - rows.matmul(&direction.t()?)?.matmul(direction)?
}

/// As many perpendicular directions as there are, `[n, n]`, a row each.
fn directions(initializer: &Initializer, name: &str, n: usize) -> Result<Tensor> {
    orthonormal_columns(&initializer.tensor(name, &[n, n], &Device::Cpu)?, n)?.t()?.contiguous()
}

/// A matrix with another row at `at`.
fn with_row(matrix: &Tensor, at: usize, row: &Tensor) -> Result<Tensor> {
    let behind = matrix.dim(0)? - at - 1;
    Tensor::cat(&[&matrix.narrow(0, 0, at)?, row, &matrix.narrow(0, at + 1, behind)?], 0)
}

/// Which of a head's channels turn slowly: by less than one radian over so many tokens. Channels i and i + d/2 are
/// turned together, by θ^(−2i/d) per token.
struct Turning {
    slow: Vec<bool>,
}

impl Turning {
    fn of(head_dim: usize, theta: f64, reach: f64) -> Self {
        let half = head_dim / 2;
        let slow = |channel: usize| reach * theta.powf(-((channel % half) as f64) / half as f64) < 1.0;
        Self { slow: (0..head_dim).map(slow).collect() }
    }

    /// Gives each slow channel a direction, in every layer others until all are used, and as long as if all channels
    /// had one.
    ///
    /// # Shapes
    /// directions `[n, n]` → `[d, n]`
    fn spread(&self, directions: &Tensor, layer: usize) -> Result<Tensor> {
        let (n, count) = (directions.dim(0)?, self.slow.iter().filter(|slow| **slow).count());
        let length = (self.slow.len() as f64 / count.max(1) as f64).sqrt();
        let mut next = layer * count;
        let rows = self.slow.iter().map(|slow| {
            let row = directions.narrow(0, next % n, 1)?;
            next += usize::from(*slow);
            row * if *slow { length } else { 0.0 }
        });
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    }

    /// # Shapes
    /// `[d, D]` → the same, with rows of 0 for slow channels
    fn fast_rows(&self, rows: &Tensor) -> Result<Tensor> {
        let fast: Vec<f32> = self.slow.iter().map(|slow| if *slow { 0.0 } else { 1.0 }).collect();
        rows.broadcast_mul(&Tensor::from_vec(fast, (self.slow.len(), 1), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four pairs turn by 1, 1/10, 1/100 and 1/1000 per token; over twenty tokens the last two stay below one radian.
    #[test]
    fn slow_channels_get_directions_until_all_are_used() {
        let turning = Turning::of(8, 10_000.0, 20.0);
        assert_eq!(turning.slow, [false, false, true, true, false, false, true, true]);
        let directions = identity(&Tensor::zeros((6, 6), candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
        for (layer, expected) in [(0, [0, 1, 2, 3]), (1, [4, 5, 0, 1])] {
            let rows = turning.spread(&directions, layer).unwrap().to_vec2::<f32>().unwrap();
            for (channel, direction) in [2, 3, 6, 7].into_iter().zip(expected) {
                let mut row = [0.0; 6];
                row[direction] = 2f32.sqrt();
                assert_eq!(rows[channel], row, "layer {layer}, channel {channel}");
            }
            assert_eq!([&rows[0], &rows[1], &rows[4], &rows[5]], [&[0.0; 6]; 4]);
        }
        let rows = Tensor::ones((8, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let fast = turning.fast_rows(&rows).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(fast, [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_direction_is_taken_away() {
        let rows = Tensor::new(&[[3f32, 4.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let left = without(&rows, &Tensor::new(&[[0f32, 1.0]], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(left.to_vec2::<f32>().unwrap(), [[3.0, 0.0], [1.0, 0.0]]);
    }

    #[test]
    fn a_row_is_replaced() {
        let matrix = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &Device::Cpu).unwrap();
        let row = Tensor::new(&[[7f32, 8.0]], &Device::Cpu).unwrap();
        let got = with_row(&matrix, 1, &row).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(got, [[1.0, 2.0], [7.0, 8.0], [5.0, 6.0]]);
    }
}
