//! Regions and image tokens that begin as words.
//!
//! CLIP has seen its pictures beside captions, and Vicuna knows that a word in one place is the same word in another:
//! what the published model starts from is near to the answers before its first step. A model that starts from nothing
//! would have to learn for every kind alone that a vector stands for a cat, that "cat" is said about it, and that the
//! question's "cat" is the same. Here all kinds share these three from the start:
//!
//! - What a frame of the residual stream shows of a name's embedding is what its kind looks like to the tower
//!   ([`crate::looks`]): k = Wᵀ·e. A region shows its k in a frame of its own, R·k, and a patch in another, P·k; so they
//!   are told from the word and from each other.
//! - Words share a direction, and image tokens another, of which patches of the background hold little else: a word
//!   that finds no patch showing it finds the background, and that can be told.
//! - Attention begins by copying and comparing ([`crate::comparing`]).
//! - Answers are scored by the embeddings as they stand where they were copied from text, M·e, or from a region of that
//!   name, M·R·Wᵀ·e.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use gpt4roi::Config;
use nalgebra::{Cholesky, DMatrix};

use crate::{
    comparing::begin_attention,
    error::{Result, TrainError},
    init::{InitChoices, Initializer, LLAMA_STD},
    language::KINDS,
    looks::Looks,
};

const EMBEDDINGS: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const PROJECTOR: [&str; 2] = ["model.mm_projector.weight", "model.mm_projector.bias"];
/// Leads from regions to the language model, `[D, C]`.
const UPDIMS: &str = "model.spi_module.roi_align.updims.weight";
/// How long what all words share is, as a part of an embedding's length.
const SHARED: f64 = 0.2;
/// And how long it is in image tokens, as a part of a kind's length.
const BACKGROUND: f64 = 1.0;
/// Two names may be made of the same tokens; this much of a name's own variance lets them differ.
const RIDGE: f64 = 0.05;

/// Channels of a region vector for what it shows: those that are not for its place.
///
/// # Errors
/// If there are none, or not fewer than the language model is wide: nothing keeps kinds and background apart.
pub fn content_channels(config: &Config, choices: &InitChoices) -> Result<usize> {
    let (content, width) = (config.region.dim.saturating_sub(choices.place_channels), config.llama.hidden_size);
    if (1..width).contains(&content) {
        return Ok(content);
    }
    let expected = format!("1 to {} channels of content, less than the language model is wide", width - 1);
    Err(refusal(expected, content.to_string()))
}

/// Adds first values of token embeddings, of the kinds' vectors and the layer behind them, of the projector, of the
/// language model's attention and of its head. `names` has the tokens of each kind's name.
///
/// # Errors
/// If a language model is there already.
pub fn begin_as_words(
    taken: &mut BTreeMap<String, Tensor>,
    initializer: &Initializer,
    config: &Config,
    choices: &InitChoices,
    names: &[Vec<u32>],
    looks: &Looks,
) -> Result<()> {
    if taken.contains_key(EMBEDDINGS) {
        let got = "one that is taken from a checkpoint";
        return Err(refusal("a language model that starts from nothing".into(), got.into()));
    }
    let (width, dim) = (config.llama.hidden_size, config.region.dim);
    let deviation = if choices.embeddings > 0.0 { choices.embeddings } else { LLAMA_STD };
    let updims = initializer.tensor(UPDIMS, &[width, dim], &Device::Cpu)?;
    let updims = orthonormal_columns(&updims, looks.bias.elem_count())?;
    let frames = Frames::draw(initializer, &updims, looks.bias.elem_count())?;

    let embeddings = initializer.tensor(EMBEDDINGS, &[config.llama.vocab_size, width], &Device::Cpu)?;
    let embeddings = frames.named(&embeddings, names, &(&looks.kinds * deviation)?)?;
    let kinds = names.iter().map(|name| frames.kind(name, &embeddings, dim)).collect::<Result<Vec<_>>>()?;
    for layer in 0..config.llama.num_hidden_layers {
        begin_attention(taken, initializer, &config.llama, layer, &frames)?;
    }
    taken.insert(KINDS.into(), Tensor::stack(&kinds, 0)?);
    taken.insert(UPDIMS.into(), updims);
    taken.extend(PROJECTOR.map(String::from).into_iter().zip(frames.projector(looks)?));
    taken.insert(HEAD.into(), (frames.said(&embeddings)? * (LLAMA_STD / deviation))?);
    taken.insert(EMBEDDINGS.into(), frames.looking_for_background(&embeddings)?);
    Ok(())
}

fn refusal(expected: String, got: String) -> TrainError {
    TrainError::Value { stage: "init".into(), field: "words_over".into(), expected, got }
}

/// Where things stand in the residual stream; columns are as long as 1 and perpendicular within each frame.
pub(crate) struct Frames {
    /// What of a word's embedding makes a kind's vector, `[D, content]`.
    pub(crate) words: Tensor,
    /// What all words share, `[D, 1]`.
    pub(crate) shared: Tensor,
    /// The content of a region, `[D, content]`.
    pub(crate) regions: Tensor,
    /// What a patch shows, `[D, content]`.
    pub(crate) patches: Tensor,
    /// What image tokens share, and those of the background have little else, `[D, 1]`.
    pub(crate) background: Tensor,
    /// What is copied of a token, `[D, D]`.
    pub(crate) copies: Tensor,
}

impl Frames {
    /// The regions' frame is given: the first columns of the layer that leads to them.
    ///
    /// # Shapes
    /// updims `[D, C]`
    fn draw(initializer: &Initializer, updims: &Tensor, content: usize) -> Result<Self> {
        let width = updims.dim(0)?;
        let drawn = |name: &str, columns: usize| {
            orthonormal_columns(&initializer.tensor(name, &[width, columns], &Device::Cpu)?, columns)
        };
        let (words, patches) = (drawn("words", content + 1)?, drawn("patches", content + 1)?);
        let part = |frame: &Tensor, from, count| frame.narrow(1, from, count)?.contiguous();
        Ok(Self {
            words: part(&words, 0, content)?,
            shared: part(&words, content, 1)?,
            regions: part(updims, 0, content)?,
            patches: part(&patches, 0, content)?,
            background: part(&patches, content, 1)?,
            copies: drawn("copies", width)?,
        })
    }

    /// Changes embeddings as little as it takes for each name, the mean of its tokens, to say what its kind looks like.
    ///
    /// # Shapes
    /// embeddings `[vocabulary, D]`, looks `[kinds, content]` → as embeddings
    fn named(&self, embeddings: &Tensor, names: &[Vec<u32>], looks: &Tensor) -> Result<Tensor> {
        let (vocabulary, _) = embeddings.dims2()?;
        let mut means = DMatrix::<f64>::zeros(names.len(), vocabulary);
        for (kind, name) in names.iter().enumerate() {
            name.iter().for_each(|token| means[(kind, *token as usize)] += 1.0 / name.len() as f64);
        }
        let wanted = (matrix(looks)? - &means * matrix(&embeddings.matmul(&self.words)?)?).map(|x| x * (1.0 + RIDGE));
        let alike = &means * means.transpose() + DMatrix::identity(names.len(), names.len()) * RIDGE;
        let alike = Cholesky::new(alike)
            .ok_or_else(|| refusal("names that a matrix of finite numbers can stand for".into(), "others".into()))?;
        let change = means.tr_mul(&alike.solve(&wanted));
        let rows: Vec<f32> = change.transpose().iter().map(|x| *x as f32).collect();
        let change = Tensor::from_vec(rows, change.shape(), &Device::Cpu)?;
        Ok((embeddings + change.matmul(&self.words.t()?)?)?)
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

    /// The projector's weight and bias.
    ///
    /// # Shapes
    /// → `[D, width of the tower]`, `[D]`
    fn projector(&self, looks: &Looks) -> candle_core::Result<[Tensor; 2]> {
        let length = (looks.bias.elem_count() as f64).sqrt();
        let shown = self.patches.matmul(&looks.bias.unsqueeze(1)?)?;
        Ok([self.patches.matmul(&looks.weight)?, (shown + (&self.background * (BACKGROUND * length))?)?.squeeze(1)?])
    }

    /// Each word as it stands where it was copied from text, and from a region of that name.
    ///
    /// # Shapes
    /// `[vocabulary, D]` → the same
    fn said(&self, embeddings: &Tensor) -> candle_core::Result<Tensor> {
        let shown = embeddings.matmul(&self.words)?.matmul(&self.regions.t()?)?;
        (embeddings + shown)?.matmul(&self.copies.t()?)
    }

    /// Gives each word as much as any other of what all share.
    ///
    /// # Shapes
    /// `[vocabulary, D]` → the same
    fn looking_for_background(&self, embeddings: &Tensor) -> candle_core::Result<Tensor> {
        let length = embeddings.sqr()?.sum_keepdim(1)?.mean_all()?.sqrt()?;
        let missing = embeddings.matmul(&self.shared)?.neg()?.broadcast_add(&(length * SHARED)?)?;
        embeddings + missing.matmul(&self.shared.t()?)?
    }
}

/// `[rows, columns]`
fn matrix(tensor: &Tensor) -> Result<DMatrix<f64>> {
    let (rows, columns) = tensor.dims2()?;
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    Ok(DMatrix::from_row_iterator(rows, columns, values.into_iter().map(f64::from)))
}

/// Makes the first `count` columns as long as 1 and perpendicular, one after the other (Gram and Schmidt), so that the
/// transpose undoes them.
pub(crate) fn orthonormal_columns(matrix: &Tensor, count: usize) -> candle_core::Result<Tensor> {
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
    Tensor::new(columns, &Device::Cpu)?.t()?.contiguous()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    const CONTENT: usize = 64;

    /// Four heads, and room enough for a hundred words to be told apart.
    fn config() -> Config {
        let mut config = tiny::config(100);
        (config.llama.hidden_size, config.llama.num_attention_heads, config.region.dim) = (128, 4, CONTENT);
        config
    }

    fn choices() -> InitChoices {
        InitChoices { embeddings: 0.7, ..InitChoices::default() }
    }

    /// Kinds that look like anything, to a tower whose channels are those of looks.
    fn looks(kinds: usize, content: usize) -> Looks {
        let initializer = Initializer::new(9, &config(), InitChoices::default());
        Looks {
            kinds: initializer.tensor(KINDS, &[kinds, content], &Device::Cpu).unwrap(),
            weight: Tensor::eye(content, candle_core::DType::F32, &Device::Cpu).unwrap(),
            bias: Tensor::zeros(content, candle_core::DType::F32, &Device::Cpu).unwrap(),
        }
    }

    fn begin(config: &Config, choices: &InitChoices, names: &[Vec<u32>]) -> BTreeMap<String, Tensor> {
        let mut taken = BTreeMap::new();
        let initializer = Initializer::new(4, config, choices.clone());
        let looks = looks(names.len(), content_channels(config, choices).unwrap());
        begin_as_words(&mut taken, &initializer, config, choices, names, &looks).unwrap();
        taken
    }

    /// A layer's projection.
    fn projection(taken: &BTreeMap<String, Tensor>, layer: usize, part: &str) -> Tensor {
        taken[&format!("model.layers.{layer}.self_attn.{part}_proj.weight")].t().unwrap()
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    /// The mean of a measure over rows at the same place, and over rows at different ones.
    fn compare(a: &Tensor, b: &Tensor, measure: impl Fn(&[f32], &[f32]) -> f32) -> (f32, f32) {
        let (a, b) = (a.to_vec2::<f32>().unwrap(), b.to_vec2::<f32>().unwrap());
        let mean = |shift: usize| (0..a.len()).map(|at| measure(&a[at], &b[(at + shift) % b.len()])).sum::<f32>();
        (mean(0) / a.len() as f32, mean(1) / a.len() as f32)
    }

    /// What comes out of a region of each kind.
    fn regions(taken: &BTreeMap<String, Tensor>) -> Tensor {
        taken[KINDS].matmul(&taken[UPDIMS].t().unwrap()).unwrap()
    }

    /// What comes out of patches that look like this.
    fn patches(taken: &BTreeMap<String, Tensor>, looks: &Tensor) -> Tensor {
        let [weight, bias] = PROJECTOR.map(|name| &taken[name]);
        looks.matmul(&weight.t().unwrap()).unwrap().broadcast_add(bias).unwrap()
    }

    /// At deviation 1, as behind a layer's norm.
    fn normed(x: &Tensor) -> Tensor {
        x.broadcast_div(&x.sqr().unwrap().mean_keepdim(1).unwrap().sqrt().unwrap()).unwrap()
    }

    fn a_kind_per_word() -> Vec<Vec<u32>> {
        (0..100).map(|word| vec![word]).collect()
    }

    /// The names of three kinds share a token; what they look like comes out all the same.
    #[test]
    fn names_say_what_their_kinds_look_like() {
        let taken = begin(&config(), &choices(), &[vec![3], vec![5, 6], vec![7, 3]]);
        let (own, other) = compare(&taken[KINDS], &looks(3, CONTENT).kinds, cosine);
        assert!(own > 0.95 && other < 0.3, "{own} {other}");
        let kinds = taken[KINDS].to_vec2::<f32>().unwrap();
        assert!(kinds.iter().all(|kind| (dot(kind, kind) - CONTENT as f32).abs() < 1e-3), "of deviation 1");
    }

    #[test]
    fn copied_words_and_regions_are_said() {
        let taken = begin(&config(), &choices(), &a_kind_per_word());
        let copy =
            |x: &Tensor| x.matmul(&projection(&taken, 0, "v")).unwrap().matmul(&projection(&taken, 0, "o")).unwrap();
        for (what, x) in [("words", &taken[EMBEDDINGS]), ("regions", &regions(&taken))] {
            let (own, other) = compare(&copy(x), &taken[HEAD], cosine);
            assert!(own > 0.35 && other.abs() < 0.05, "{what}: {own} {other}");
        }
        // Gaussian values keep 1/√2 of the direction, and a word is one of two parts of its row.
        let head = taken[HEAD].to_vec2::<f32>().unwrap();
        let deviation = (head.iter().map(|row| dot(row, row)).sum::<f32>() / 100.0 / 128.0).sqrt();
        assert!((0.02..0.03).contains(&deviation), "as large as LLaMA's: {deviation}");
    }

    /// The logits of what is at the same place, and of what is not.
    fn logits(taken: &BTreeMap<String, Tensor>, layer: usize, head: usize, query: &Tensor, key: &Tensor) -> (f32, f32) {
        let seen = |part: &str, x: &Tensor| {
            x.matmul(&projection(taken, layer, part).narrow(1, 32 * head, 32).unwrap()).unwrap()
        };
        compare(&seen("q", query), &seen("k", key), |q, k| dot(q, k) / 32f32.sqrt())
    }

    /// In the first head a word's query matches the key of a patch that shows it, in the second that of a region; the
    /// third and fourth compare what a token is with what another has copied, where something has been copied.
    #[test]
    fn heads_look_for_the_same_in_another_room() {
        let taken = begin(&config(), &choices(), &a_kind_per_word());
        let words = normed(&taken[EMBEDDINGS]);
        let (regions, patches) = (normed(&regions(&taken)), normed(&patches(&taken, &looks(100, CONTENT).kinds)));
        let copied = words.matmul(&projection(&taken, 0, "v")).unwrap();
        let copies = copied.matmul(&projection(&taken, 0, "o")).unwrap();
        let sought = [
            [(&words, &patches), (&words, &regions), (&words, &patches), (&words, &patches)],
            [(&words, &patches), (&words, &regions), (&words, &copies), (&copies, &words)],
        ];
        for (layer, heads) in sought.into_iter().enumerate() {
            for (head, (query, key)) in heads.into_iter().enumerate() {
                let (own, other) = logits(&taken, layer, head, query, key);
                assert!(own > other + 3.0, "layer {layer}, head {head}: {own} {other}");
                let (itself, _) = logits(&taken, layer, head, query, query);
                assert!(itself < own - 3.0, "layer {layer}, head {head} and itself: {itself}, {own}");
            }
        }
        for (layer, head) in [(0, 1), (1, 1), (1, 2)] {
            let (own, other) = logits(&taken, layer, head, &words, &patches);
            assert!(own < -2.0 && other < -2.0, "layer {layer}, head {head} is drawn to pictures: {own} {other}");
        }
    }

    /// A word prefers a patch that shows it to the background, and the background to a patch that shows something else.
    #[test]
    fn words_without_a_patch_find_the_background() {
        let taken = begin(&config(), &choices(), &a_kind_per_word());
        let (words, kinds) = (normed(&taken[EMBEDDINGS]), looks(100, CONTENT).kinds);
        let nothing = kinds.zeros_like().unwrap();
        for head in [0, 2, 3] {
            let (own, other) = logits(&taken, 0, head, &words, &normed(&patches(&taken, &kinds)));
            let (background, _) = logits(&taken, 0, head, &words, &normed(&patches(&taken, &nothing)));
            assert!(own > background && background > other, "head {head}: {own} {background} {other}");
        }
    }

    #[test]
    fn channels_for_the_place_stay_free() {
        let choices = InitChoices { place_channels: 3, ..InitChoices::default() };
        let taken = begin(&tiny::config(8), &choices, &[vec![3]]);
        let row = taken[KINDS].to_vec2::<f32>().unwrap().remove(0);
        let (content, place) = row.split_at(row.len() - 3);
        assert!(content.iter().all(|value| *value != 0.0) && place == [0.0; 3], "{row:?}");
    }

    #[test]
    fn more_content_than_width_and_none_are_refused() {
        for (dim, place_channels) in [(128, 0), (64, 64)] {
            let mut config = config();
            config.region.dim = dim;
            let choices = InitChoices { place_channels, ..InitChoices::default() };
            let error = content_channels(&config, &choices).unwrap_err().to_string();
            assert!(error.contains("1 to 127 channels of content"), "{error}");
        }
    }

    #[test]
    fn a_language_model_that_is_there_is_not_overwritten() {
        let (config, choices) = (config(), InitChoices::default());
        let initializer = Initializer::new(4, &config, choices.clone());
        let embeddings = initializer.tensor(EMBEDDINGS, &[100, 128], &Device::Cpu).unwrap();
        let mut taken = BTreeMap::from([(EMBEDDINGS.to_owned(), embeddings)]);
        let names = a_kind_per_word();
        let error = begin_as_words(&mut taken, &initializer, &config, &choices, &names, &looks(100, CONTENT));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("starts from nothing"), "{error}");
        assert_eq!(taken.len(), 1);
    }
}
