//! Regions that begin as words.
//!
//! CLIP has seen its pictures beside captions, and Vicuna knows that a word in one place is the same word in another:
//! what the published model starts from is near to the answers before its first step. A model that starts from nothing
//! would have to learn for every kind alone that a vector stands for a cat, that "cat" is said about it, and that the
//! question's "cat" is the same. Here all kinds share these three from the start, because attention begins as what
//! training makes of it (after "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828):
//!
//! - A kind's vector k is what a frame of the residual stream shows of its name's embedding e: k = Wᵀ·e. A region shows
//!   its k in a frame of its own, R·k, and is so told from the word.
//! - Each layer copies what it attends to, turned by one rotation M: what a token has copied is told from what it is.
//! - Heads come in fours. In the first, regions look for the words for them; in the second, words for the regions that
//!   show them; in the third, tokens for those that have copied the same (what stood behind this number before?); in the
//!   fourth, what has been copied for what is the same.
//! - Answers are scored by the embeddings as they stand where they were copied from text, M·e, or from a region of that
//!   name, M·R·Wᵀ·e.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use gpt4roi::{Config, config::LlamaConfig};

use crate::{
    error::{Result, TrainError},
    init::{InitChoices, Initializer, LLAMA_STD},
    language::KINDS,
};

const EMBEDDINGS: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// Leads from regions to the language model, `[D, C]`.
pub(crate) const UPDIMS: &str = "model.spi_module.roi_align.updims.weight";

/// Adds first values of the kinds' vectors, of the layer behind them, of the language model's attention and of its
/// head. `names` has the tokens of each kind's name.
///
/// # Errors
/// If a language model is there already, or a region has no channels for its content, or more than the language model
/// is wide: no layer keeps them apart.
pub fn begin_as_words(
    taken: &mut BTreeMap<String, Tensor>,
    initializer: &Initializer,
    config: &Config,
    choices: &InitChoices,
    names: &[Vec<u32>],
) -> Result<()> {
    let (width, dim) = (config.llama.hidden_size, config.region.dim);
    let content = dim.saturating_sub(choices.place_channels);
    check(taken, content, width)?;
    let embeddings = initializer.tensor(EMBEDDINGS, &[config.llama.vocab_size, width], &Device::Cpu)?;
    let updims = orthonormal_columns(&initializer.tensor(UPDIMS, &[width, dim], &Device::Cpu)?, content)?;
    let frames = Frames::draw(initializer, &updims, content)?;
    let kinds = names.iter().map(|name| frames.kind(name, &embeddings, dim)).collect::<Result<Vec<_>>>()?;
    for layer in 0..config.llama.num_hidden_layers {
        begin_attention(taken, initializer, &config.llama, layer, &frames)?;
    }
    let deviation = if choices.embeddings > 0.0 { choices.embeddings } else { LLAMA_STD };
    taken.insert(KINDS.into(), Tensor::stack(&kinds, 0)?);
    taken.insert(HEAD.into(), (frames.said(&embeddings)? * (LLAMA_STD / deviation))?);
    taken.insert(UPDIMS.into(), updims);
    Ok(())
}

fn check(taken: &BTreeMap<String, Tensor>, content: usize, width: usize) -> Result<()> {
    let refuse = |expected: String, got: String| {
        Err(TrainError::Value { stage: "init".into(), field: "choices.words".into(), expected, got })
    };
    if !(1..=width).contains(&content) {
        let expected = format!("1 to {width} channels of content, the width of the language model");
        return refuse(expected, content.to_string());
    }
    if taken.contains_key(EMBEDDINGS) {
        let expected = "a language model that starts from nothing";
        return refuse(expected.into(), "one that is taken from a checkpoint".into());
    }
    Ok(())
}

/// Where things stand in the residual stream; columns are as long as 1 and perpendicular within each frame.
struct Frames {
    /// What of a word's embedding makes a kind's vector, `[D, content]`.
    words: Tensor,
    /// The content of a region, `[D, content]`.
    regions: Tensor,
    /// What is copied of a token, `[D, D]`.
    copies: Tensor,
}

impl Frames {
    /// The regions' frame is given: the first columns of the layer that leads to them.
    ///
    /// # Shapes
    /// updims `[D, C]`
    fn draw(initializer: &Initializer, updims: &Tensor, content: usize) -> Result<Self> {
        let (width, dim) = updims.dims2()?;
        let drawn = |name: &str, columns| initializer.tensor(name, &[width, columns], &Device::Cpu);
        let first = |matrix: &Tensor| matrix.narrow(1, 0, content)?.contiguous();
        Ok(Self {
            words: first(&orthonormal_columns(&drawn("words", dim)?, content)?)?,
            regions: first(updims)?,
            copies: orthonormal_columns(&drawn("copies", width)?, width)?,
        })
    }

    /// The mean embedding of a name's tokens in the words' frame, at deviation 1; 0 in the channels for the place.
    ///
    /// # Shapes
    /// embeddings `[vocabulary, D]` → `[C]`
    fn kind(&self, name: &[u32], embeddings: &Tensor, channels: usize) -> Result<Tensor> {
        let tokens = Tensor::from_slice(name, name.len(), &Device::Cpu)?;
        let mean = embeddings.index_select(&tokens, 0)?.mean_keepdim(0)?;
        let seen = mean.matmul(&self.words)?.squeeze(0)?;
        let content = seen.elem_count();
        let seen = seen.broadcast_div(&seen.sqr()?.mean_all()?.sqrt()?)?;
        Ok(seen.pad_with_zeros(0, 0, channels - content)?)
    }

    /// Each word as it stands where it was copied from text, and from a region of that name.
    ///
    /// # Shapes
    /// `[vocabulary, D]` → the same
    fn said(&self, embeddings: &Tensor) -> candle_core::Result<Tensor> {
        let shown = embeddings.matmul(&self.words)?.matmul(&self.regions.t()?)?;
        (embeddings + shown)?.matmul(&self.copies.t()?)
    }

    /// What a head's queries and keys read.
    ///
    /// # Shapes
    /// → `[n, D]` each, of the same n
    fn compared(&self, head: usize) -> candle_core::Result<[Tensor; 2]> {
        let (words, regions) = (self.words.t()?, self.regions.t()?);
        let (copied, own) = (self.copies.t()?, Tensor::eye(self.copies.dim(0)?, self.copies.dtype(), &Device::Cpu)?);
        Ok(match head % 4 {
            0 => [regions, words],
            1 => [words, regions],
            2 => [own, copied],
            _ => [copied, own],
        })
    }
}

/// One layer's four projections: values V and outputs M·Vᵀ; queries A·F and keys A·G for what the head compares.
fn begin_attention(
    taken: &mut BTreeMap<String, Tensor>,
    initializer: &Initializer,
    llama: &LlamaConfig,
    layer: usize,
    frames: &Frames,
) -> Result<()> {
    let (width, heads) = (llama.hidden_size, llama.num_attention_heads);
    let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}_proj.weight");
    let drawn = |part: &str| initializer.tensor(&name(part), &[width, width], &Device::Cpu);
    // Normal matrices of this factor keep lengths on average.
    let keeping = |inputs: usize| 1.0 / (LLAMA_STD * (inputs as f64).sqrt());

    let value = (drawn("v")? * keeping(width))?;
    taken.insert(name("o"), frames.copies.matmul(&value.t()?)?);
    taken.insert(name("v"), value);

    let (mut queries, mut keys) = (Vec::new(), Vec::new());
    for head in 0..heads {
        let [query, key] = frames.compared(head)?;
        let inputs = query.dim(0)?;
        let read = drawn("q")?.narrow(0, head * (width / heads), width / heads)?.narrow(1, 0, inputs)?.contiguous()?;
        let read = (read * keeping(inputs))?;
        queries.push(read.matmul(&query.contiguous()?)?);
        keys.push(read.matmul(&key.contiguous()?)?);
    }
    taken.insert(name("q"), Tensor::cat(&queries, 0)?);
    taken.insert(name("k"), Tensor::cat(&keys, 0)?);
    Ok(())
}

/// Makes the first `count` columns as long as 1 and perpendicular, one after the other (Gram and Schmidt), so that the
/// transpose undoes them.
fn orthonormal_columns(matrix: &Tensor, count: usize) -> Result<Tensor> {
    let mut columns = matrix.t()?.to_vec2::<f32>()?;
    for place in 0..count {
        let (before, rest) = columns.split_at_mut(place);
        let column = &mut rest[0];
        for other in before {
            let along = dot(column, other);
            column.iter_mut().zip(other).for_each(|(value, other)| *value -= along * *other);
        }
        let length = dot(column, column).sqrt();
        column.iter_mut().for_each(|value| *value /= length);
    }
    Ok(Tensor::new(columns, &Device::Cpu)?.t()?.contiguous()?)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    fn begin(config: &Config, choices: &InitChoices, names: &[Vec<u32>]) -> Result<BTreeMap<String, Tensor>> {
        let mut taken = BTreeMap::new();
        begin_as_words(&mut taken, &Initializer::new(4, config, choices.clone()), config, choices, names)?;
        Ok(taken)
    }

    /// Four heads, and room enough for a hundred words to be told apart.
    fn config() -> Config {
        let mut config = tiny::config(100);
        (config.llama.hidden_size, config.llama.num_attention_heads, config.region.dim) = (128, 4, 64);
        config
    }

    fn embeddings(config: &Config, choices: &InitChoices) -> Tensor {
        let shape = [config.llama.vocab_size, config.llama.hidden_size];
        Initializer::new(4, config, choices.clone()).tensor(EMBEDDINGS, &shape, &Device::Cpu).unwrap()
    }

    /// The first layer's projection.
    fn projection(taken: &BTreeMap<String, Tensor>, part: &str) -> Tensor {
        taken[&format!("model.layers.0.self_attn.{part}_proj.weight")].t().unwrap()
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    /// The mean cosine of rows at the same place, and of rows at different ones.
    fn likeness(a: &Tensor, b: &Tensor) -> (f32, f32) {
        let (a, b) = (a.to_vec2::<f32>().unwrap(), b.to_vec2::<f32>().unwrap());
        let mean = |shift: usize| (0..a.len()).map(|at| cosine(&a[at], &b[(at + shift) % b.len()])).sum::<f32>();
        (mean(0) / a.len() as f32, mean(1) / a.len() as f32)
    }

    /// A kind for each word; what comes out of a region of it.
    fn regions(taken: &BTreeMap<String, Tensor>) -> Tensor {
        taken[KINDS].matmul(&taken[UPDIMS].t().unwrap()).unwrap()
    }

    fn a_kind_per_word() -> Vec<Vec<u32>> {
        (0..100).map(|word| vec![word]).collect()
    }

    #[test]
    fn copied_words_and_regions_are_said() {
        let (config, choices) = (config(), InitChoices { embeddings: 0.7, ..InitChoices::default() });
        let taken = begin(&config, &choices, &a_kind_per_word()).unwrap();
        let copy = |x: &Tensor| x.matmul(&projection(&taken, "v")).unwrap().matmul(&projection(&taken, "o")).unwrap();
        for (what, x) in [("words", embeddings(&config, &choices)), ("regions", regions(&taken))] {
            let (own, other) = likeness(&copy(&x), &taken[HEAD]);
            assert!(own > 0.35 && other.abs() < 0.05, "{what}: {own} {other}");
        }
        // Gaussian values keep 1/√2 of the direction, and a word is one of two parts of its row.
        let head = taken[HEAD].to_vec2::<f32>().unwrap();
        let deviation = (head.iter().map(|row| dot(row, row)).sum::<f32>() / 100.0 / 128.0).sqrt();
        assert!((0.02..0.03).contains(&deviation), "as large as LLaMA's: {deviation}");
    }

    /// In the first head a region's query matches the key of the word for it, in the second the other way round; the
    /// third and fourth compare what a token is with what another has copied. Nothing matches itself.
    #[test]
    fn heads_look_for_the_same_in_another_room() {
        let (config, choices) = (config(), InitChoices { embeddings: 0.7, ..InitChoices::default() });
        let taken = begin(&config, &choices, &a_kind_per_word()).unwrap();
        let (words, regions) = (embeddings(&config, &choices), regions(&taken));
        let copies = words.matmul(&projection(&taken, "v")).unwrap().matmul(&projection(&taken, "o")).unwrap();
        let seen = |part: &str, x: &Tensor, head: usize| {
            x.matmul(&projection(&taken, part).narrow(1, 32 * head, 32).unwrap()).unwrap()
        };
        let pairs = [(&regions, &words), (&words, &regions), (&words, &copies), (&copies, &words)];
        for (head, (query, key)) in pairs.into_iter().enumerate() {
            let (own, other) = likeness(&seen("q", query, head), &seen("k", key, head));
            assert!(own > 0.5 && other.abs() < 0.1, "head {head}: {own} {other}");
            for x in [query, key] {
                let (own, _) = likeness(&seen("q", x, head), &seen("k", x, head));
                assert!(own.abs() < 0.1, "head {head} and itself: {own}");
            }
        }
    }

    /// A name of several words is their mean, at deviation 1.
    #[test]
    fn a_name_of_two_words_is_half_of_each() {
        let config = config();
        let names = [vec![3], vec![5], vec![3, 5]];
        let taken = begin(&config, &InitChoices::default(), &names).unwrap();
        let kinds = taken[KINDS].to_vec2::<f32>().unwrap();
        assert!(kinds.iter().all(|kind| (dot(kind, kind) - 64.0).abs() < 1e-3));
        let both: Vec<f32> = kinds[0].iter().zip(&kinds[1]).map(|(a, b)| a + b).collect();
        assert!(cosine(&kinds[2], &both) > 0.98);
    }

    #[test]
    fn channels_for_the_place_stay_free() {
        let choices = InitChoices { place_channels: 3, words: true, ..InitChoices::default() };
        let taken = begin(&tiny::config(8), &choices, &[vec![3]]).unwrap();
        let row = taken[KINDS].to_vec2::<f32>().unwrap().remove(0);
        let (content, place) = row.split_at(row.len() - 3);
        assert!(content.iter().all(|value| *value != 0.0) && place == [0.0; 3], "{row:?}");
    }

    #[test]
    fn more_content_than_width_and_none_are_refused() {
        for (dim, place_channels) in [(129, 0), (64, 64)] {
            let mut config = config();
            config.region.dim = dim;
            let error = begin(&config, &InitChoices { place_channels, ..InitChoices::default() }, &[]).unwrap_err();
            assert!(error.to_string().contains("1 to 128 channels of content"), "{error}");
        }
    }

    #[test]
    fn a_language_model_that_is_there_is_not_overwritten() {
        let (config, choices) = (config(), InitChoices::default());
        let mut taken = BTreeMap::from([(EMBEDDINGS.to_owned(), embeddings(&config, &choices))]);
        let initializer = Initializer::new(4, &config, choices.clone());
        let error = begin_as_words(&mut taken, &initializer, &config, &choices, &[]).unwrap_err();
        assert!(error.to_string().contains("starts from nothing"), "{error}");
        assert_eq!(taken.len(), 1);
    }
}
