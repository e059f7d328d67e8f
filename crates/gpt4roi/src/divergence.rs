//! What rounding its weights does to a language model: how far its next-token distributions move.

use candle_core::{D, Device, Tensor};
use serde::Serialize;

use crate::{error::Result, llama::logits_layer_by_layer, model::ModelFiles, tokenizer::Tokenizer, weights::Weights};

/// What is read to compare two models: texts of the kind that this one was made for.
const PROMPTS: [&str; 6] = [
    "A chat between a curious human and an artificial intelligence assistant.\n\n### Human: What is region1 doing?\n### ",
    "### Human: What is region1?\n### Assistant: It is a red car, parked at the side of the road.\n### ",
    "### Human: How does region1 relate to region2?\n### Assistant: region1 is to the left of region2.\n### ",
    "### Human: Describe the picture in detail.\n### Assistant: A man in a blue shirt is riding a brown horse \
     along the beach. Behind him two dogs are running, and the sun is setting over the sea.\n### ",
    "### Human: Is there a cat in region3?\n### Assistant: No, there is no cat in region3, it is a small dog.\n### ",
    "The quick brown fox jumps over the lazy dog. In 1969 two people walked on the Moon for the first time.",
];

/// How far the next-token distributions of one model are from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// How many distributions were compared: one behind each token of the fixed prompts.
    pub positions: usize,
    /// Kullback–Leibler divergence of the other model from the reference, in nats, on average.
    pub mean_kl: f64,
    /// The largest of them.
    pub largest_kl: f64,
    /// Share of positions at which both find the same token most likely.
    pub same_top_token: f64,
}

impl Divergence {
    /// Compares the language models of two sets of files, on the same tokens.
    ///
    /// One layer of one model is in memory at a time, so that any model can be compared anywhere.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the two have different dimensions.
    pub fn of(reference: &ModelFiles, other: &ModelFiles) -> Result<Self> {
        let prompts = prompts(&reference.tokenizer()?);
        let (expected, got) = (logits(reference, &prompts)?, logits(other, &prompts)?);
        let mut sum = Self { positions: 0, mean_kl: 0.0, largest_kl: 0.0, same_top_token: 0.0 };
        for (expected, got) in expected.iter().zip(&got) {
            sum.add(expected, got)?;
        }
        let positions = sum.positions.max(1) as f64;
        Ok(Self { mean_kl: sum.mean_kl / positions, same_top_token: sum.same_top_token / positions, ..sum })
    }

    /// Adds up positions.
    ///
    /// # Shapes
    /// both `[T, V]`
    fn add(&mut self, expected: &Tensor, got: &Tensor) -> Result<()> {
        let (log_p, log_q) = (log_softmax(expected)?, log_softmax(got)?);
        let kl = (log_p.exp()? * (&log_p - &log_q)?)?.sum(D::Minus1)?.to_vec1::<f64>()?;
        let (p, q) = (log_p.argmax(D::Minus1)?.to_vec1::<u32>()?, log_q.argmax(D::Minus1)?.to_vec1::<u32>()?);
        self.positions += kl.len();
        self.mean_kl += kl.iter().sum::<f64>();
        self.largest_kl = kl.into_iter().fold(self.largest_kl, f64::max);
        self.same_top_token += p.iter().zip(&q).filter(|(p, q)| p == q).count() as f64;
        Ok(())
    }
}

fn prompts(tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let ids = |text: &str| [vec![tokenizer.special().bos], tokenizer.encode_text(text)].concat();
    PROMPTS.into_iter().map(ids).collect()
}

fn logits(files: &ModelFiles, prompts: &[Vec<u32>]) -> Result<Vec<Tensor>> {
    let (model, _) = files.stores(&Device::Cpu)?;
    logits_layer_by_layer(&Weights::new(model), &files.config()?.llama, prompts)
}

/// In double precision: the differences of good roundings are small.
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.to_dtype(candle_core::DType::F64)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4·ln(3/2) + 1/4·ln(1/2).
    #[test]
    fn divergences_are_what_the_formula_says() {
        let logits = |p: [f64; 4]| Tensor::new(&p.map(f64::ln), &Device::Cpu).unwrap().reshape((2, 2)).unwrap();
        let mut sum = Divergence { positions: 0, mean_kl: 0.0, largest_kl: 0.0, same_top_token: 0.0 };
        sum.add(&logits([3.0, 1.0, 1.0, 4.0]), &logits([0.5, 0.4999, 4.0, 1.0])).unwrap();
        let first = 0.75 * (1.5f64).ln() + 0.25 * (0.5f64).ln();
        let second = 0.2 * (0.25f64).ln() + 0.8 * (4.0f64).ln();
        assert_eq!((sum.positions, sum.same_top_token), (2, 1.0));
        assert!((sum.largest_kl - second).abs() < 1e-3 && (sum.mean_kl - first - second).abs() < 1e-3, "{sum:?}");
    }
}
