//! A small language model that drafts for a large one (speculative decoding): a LLaMA with the same words, which reads the
//! text and sees nothing of the picture.
//!
//! Such models are published for LLaMA and Vicuna, with tens of millions of parameters, and `gpt4roi train` makes them of
//! people's own conversations.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{Device, Result as TensorResult, Tensor};

use crate::{
    config::LlamaConfig,
    error::{Error, Result},
    gguf_language::GgufLanguage,
    kv_cache::KvCache,
    llama::Llama,
    precision::Precision,
    sentencepiece::SentencePiece,
    tokenizer::Tokenizer,
    weights::{Checkpoint, Weights},
};

/// A model that drafts, and how the tokens of both are called by the other.
#[derive(Debug)]
pub struct DraftModel {
    llama: Llama,
    /// By the large model's ids; none for what this one does not have.
    own: Vec<Option<u32>>,
    /// By this one's ids.
    foreign: Vec<Option<u32>>,
    /// The text that was begun last: prompts begin alike, those of one conversation or picture above all.
    last: Mutex<Beginning>,
}

/// Tokens that a text begins with, and the cache behind them.
#[derive(Clone, Debug)]
struct Beginning {
    ids: Vec<u32>,
    cache: KvCache,
}

impl DraftModel {
    /// Of the tokens of a draft model so many in a hundred have to be the large model's, or it reads other words.
    const SHARED_PERCENT: usize = 90;

    /// Opens a directory with `config.json`, weights and `tokenizer.model`, and `added_tokens.json` if tokens were added,
    /// or a GGUF file of a LLaMA. `tokenizer` is that of the model which it drafts for. Weights that are not quantised
    /// are kept in 16 bits: nothing that is said depends on them.
    ///
    /// # Errors
    /// If a file is missing or damaged, if it is no LLaMA, or if its tokens are others.
    pub fn open(path: &Path, tokenizer: &Tokenizer, device: &Device) -> Result<Self> {
        let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
        let (llama, tokens) = if is_gguf { open_gguf(path, device)? } else { open_directory(path, device)? };
        let shared = shared_tokens(&tokens, tokenizer);
        let needed = (tokens.len() * Self::SHARED_PERCENT).div_ceil(100);
        if shared.len() < needed {
            return Err(Error::config(
                format!("{}, the tokens of a draft model", path.display()),
                format!("at least {needed} of {} that the model has, too", tokens.len()),
                shared.len().to_string(),
            ));
        }
        let mut own = vec![None; tokenizer.vocab_size()];
        let mut foreign = vec![None; llama.vocabulary()];
        for (token, other) in shared {
            own[other as usize] = Some(token);
            foreign[token as usize] = Some(other);
        }
        // What the picture's patches look like is nothing that it knows.
        own[tokenizer.special().im_patch as usize] = None;
        let last = Mutex::new(Beginning { ids: Vec::new(), cache: llama.new_cache() });
        Ok(Self { llama, own, foreign, last })
    }

    /// The cache of the beginning that was read last, as far as this text begins with it, its last token aside: reading
    /// that tells what comes next.
    fn begun(&self, text: &[u32]) -> KvCache {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let most = text.len().saturating_sub(1);
        let alike = last.ids.iter().zip(&text[..most]).take_while(|(one, other)| one == other).count();
        let mut cache = last.cache.clone();
        cache.truncate(alike);
        cache
    }

    /// Keeps a beginning for the texts that come next. Nothing that is written here can be left half done.
    fn keep(&self, beginning: Beginning) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = beginning;
    }
}

/// Ids of the same tokens, first this vocabulary's, then the tokenizer's.
fn shared_tokens(tokens: &[String], tokenizer: &Tokenizer) -> Vec<(u32, u32)> {
    let theirs: HashMap<&str, u32> = (0..tokenizer.vocab_size() as u32).map(|id| (tokenizer.piece(id), id)).collect();
    (0..).zip(tokens).filter_map(|(id, token)| Some((id, *theirs.get(&**token)?))).collect()
}

fn open_directory(directory: &Path, device: &Device) -> Result<(Llama, Vec<String>)> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|source| Error::file(path, source))
    };
    let config = LlamaConfig::from_json(&String::from_utf8_lossy(&read("config.json")?))?;
    let pieces = SentencePiece::from_bytes(&read("tokenizer.model")?)?;
    let mut tokens: Vec<String> = pieces.pieces().iter().map(|piece| piece.text.to_string()).collect();
    let path = directory.join("added_tokens.json");
    if path.is_file() {
        tokens.extend(added_tokens(&path, &read("added_tokens.json")?, tokens.len())?);
    }
    let weights = Weights::new(Arc::new(Checkpoint::open(directory, device)?)).in_precision(Precision::Bf16);
    loaded(directory.to_owned(), &weights, &config, tokens)
}

/// In the order of their ids, as far as they follow those of the pieces without a gap.
fn added_tokens(path: &Path, text: &[u8], pieces: usize) -> Result<Vec<String>> {
    let added: BTreeMap<String, usize> = serde_json::from_slice(text)
        .map_err(|error| Error::config(path.display().to_string(), "ids of tokens".into(), error.to_string()))?;
    let by_id: BTreeMap<usize, String> = added.into_iter().map(|(token, id)| (id, token)).collect();
    let behind = by_id.range(pieces..).zip(pieces..).take_while(|((id, _), expected)| *id == expected);
    Ok(behind.map(|((_, token), _)| token.clone()).collect())
}

fn open_gguf(file: &Path, device: &Device) -> Result<(Llama, Vec<String>)> {
    let gguf = GgufLanguage::open(file)?;
    let (config, tokens) = (gguf.config()?, gguf.tokens()?.to_vec());
    let weights = Weights::new(Arc::new(gguf.weights(device)?)).in_precision(Precision::Bf16);
    loaded(file.to_owned(), &weights, &config, tokens)
}

fn loaded(
    place: PathBuf,
    weights: &Weights,
    config: &LlamaConfig,
    tokens: Vec<String>,
) -> Result<(Llama, Vec<String>)> {
    if tokens.len() > config.vocab_size {
        let place = format!("{}, \"vocab_size\"", place.display());
        return Err(Error::config(
            place,
            format!("at least its {} tokens", tokens.len()),
            config.vocab_size.to_string(),
        ));
    }
    Ok((Llama::load(weights, config)?, tokens))
}

/// A text on its way into a draft model.
#[derive(Clone, Debug)]
pub(crate) struct DraftReading {
    model: Arc<DraftModel>,
    cache: KvCache,
    /// Told, and not read yet.
    unread: Vec<u32>,
}

impl DraftReading {
    pub(crate) fn new(model: Arc<DraftModel>) -> Self {
        Self { cache: model.llama.new_cache(), model, unread: Vec::new() }
    }

    /// The next token of the text, by the large model's id. One that the small model does not have is left out.
    pub(crate) fn push(&mut self, token: u32) {
        self.unread.extend(self.model.own.get(token as usize).copied().flatten());
    }

    /// Begins a draft behind what was told.
    pub(crate) fn guesses(&mut self) -> Guesses<'_> {
        let told = self.cache.len() + self.unread.len();
        Guesses { reading: self, told }
    }

    /// Reads on.
    ///
    /// # Shapes
    /// → logits `[V]`; none where there is nothing to read or no room for it
    fn read(&mut self) -> TensorResult<Option<Vec<f32>>> {
        let model = self.model.clone();
        let llama = &model.llama;
        if self.unread.is_empty() || self.cache.len() + self.unread.len() > llama.max_positions() {
            return Ok(None);
        }
        let beginning = self.cache.is_empty().then(|| self.begin());
        let before = self.cache.len();
        let ids = Tensor::from_slice(&self.unread, self.unread.len(), llama.device())?;
        let hidden = llama.forward(&llama.embed(&ids)?.unsqueeze(0)?, &mut self.cache);
        let hidden = hidden.inspect_err(|_| self.cache.truncate(before))?.squeeze(0)?;
        self.unread.clear();
        if let Some(ids) = beginning {
            model.keep(Beginning { ids, cache: self.cache.clone() });
        }
        Ok(Some(llama.logits(&hidden.narrow(0, hidden.dim(0)? - 1, 1)?)?.squeeze(0)?.to_vec1()?))
    }

    /// Leaves out what the model has read of this text already. Returns all that is told.
    fn begin(&mut self) -> Vec<u32> {
        let ids = self.unread.clone();
        self.cache = self.model.begun(&ids);
        self.unread.drain(..self.cache.len());
        ids
    }
}

/// A draft that is written; it is forgotten in the end, whatever becomes of it.
pub(crate) struct Guesses<'a> {
    reading: &'a mut DraftReading,
    /// Tokens that are no draft.
    told: usize,
}

impl Guesses<'_> {
    /// What most likely comes next, by the large model's id, and how likely: behind the text, or behind what was drafted
    /// last. None where the small model has nothing to say.
    pub(crate) fn next(&mut self, drafted: Option<u32>) -> TensorResult<Option<(u32, f32)>> {
        drafted.into_iter().for_each(|token| self.reading.push(token));
        let Some(logits) = self.reading.read()? else { return Ok(None) };
        Ok(most_probable(&logits).and_then(|(token, odds)| Some((self.reading.model.foreign[token]?, odds))))
    }
}

impl Drop for Guesses<'_> {
    fn drop(&mut self) {
        let DraftReading { cache, unread, .. } = &mut *self.reading;
        cache.truncate(self.told);
        unread.truncate(self.told - cache.len());
    }
}

/// The place of the largest logit, and its probability; none if there is no number among them.
fn most_probable(logits: &[f32]) -> Option<(usize, f32)> {
    let (token, largest) = logits.iter().copied().enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other))?;
    let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    sum.is_finite().then_some((token, 1.0 / sum))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        chat::{AskOptions, Chat},
        convert::{IfExists, Parts},
        drafter::Drafter,
        model::Gpt4Roi,
        quantize::Quantization,
        tiny::{bbox, picture},
    };

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openclip");

    fn golden() -> (Gpt4Roi, Arc<DraftModel>) {
        let model = Gpt4Roi::open(GOLDEN, &Device::Cpu).unwrap();
        let draft_model = DraftModel::open(Path::new(GOLDEN), &model.tokenizer, &Device::Cpu).unwrap();
        (model, Arc::new(draft_model))
    }

    /// What comes behind some tokens, and how likely, by one reading of all of them.
    fn expected(model: &DraftModel, tokens: &[u32]) -> (u32, f32) {
        let ids = Tensor::new(tokens, &Device::Cpu).unwrap();
        let (llama, embeds) = (&model.llama, model.llama.embed(&ids).unwrap().unsqueeze(0).unwrap());
        let hidden = llama.forward(&embeds, &mut llama.new_cache()).unwrap().squeeze(0).unwrap();
        let logits = llama.logits(&hidden.narrow(0, tokens.len() - 1, 1).unwrap()).unwrap();
        let odds = logits.squeeze(0).unwrap().to_vec1::<f32>().unwrap().into_iter().map(|logit| f64::from(logit).exp());
        let (sum, best) = (odds.clone().sum::<f64>(), (0..).zip(odds).max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap());
        (best.0, (best.1 / sum) as f32)
    }

    fn told(model: &Arc<DraftModel>, tokens: &[u32]) -> DraftReading {
        let mut reading = DraftReading::new(model.clone());
        tokens.iter().for_each(|&token| reading.push(token));
        reading
    }

    /// Whatever was drafted before: it is forgotten, and a draft goes on behind what was told.
    #[test]
    fn it_goes_on_as_a_whole_reading_would() {
        let (_, model) = golden();
        let text = [1, 20, 35, 7, 44, 12, 30];
        let mut reading = told(&model, &text[..3]);
        for end in 3..=text.len() {
            let (mut guesses, mut read) = (reading.guesses(), text[..end].to_vec());
            let mut drafted = None;
            for _ in 0..3 {
                let (got, expected) = (guesses.next(drafted).unwrap().unwrap(), expected(&model, &read));
                assert_eq!(got.0, expected.0, "behind {read:?}");
                assert!((got.1 - expected.1).abs() < 1e-4, "{got:?} and {expected:?}");
                // Something that it would not have said.
                read.push(got.0 / 2 + 3);
                drafted = read.last().copied();
            }
            drop(guesses);
            text.get(end).into_iter().for_each(|&token| reading.push(token));
        }
    }

    /// Of each text the model reads what is new behind the longest beginning that it shares with the one before, and the
    /// last token in any case. A conversation that goes on behind a beginning does not change it for others.
    #[test]
    fn a_beginning_is_read_once() {
        let (_, model) = golden();
        let prompt = [1, 20, 35, 7];
        let with = |end: &[u32]| [&prompt, end].concat();
        for (text, known) in [
            (with(&[44, 12]), 0),
            (with(&[30, 9, 11]), 4),
            (with(&[30, 9]), 5),
            (with(&[30, 9]), 5),
            (with(&[30, 9, 50, 51]), 6),
            (vec![2, 20, 35], 0),
        ] {
            assert_eq!(model.begun(&text).len(), known, "{text:?}");
            let mut reading = told(&model, &text);
            let mut guesses = reading.guesses();
            let (mut read, mut drafted) = (text.clone(), None);
            for _ in 0..2 {
                let (got, expected) = (guesses.next(drafted).unwrap().unwrap(), expected(&model, &read));
                assert!(got.0 == expected.0 && (got.1 - expected.1).abs() < 1e-4, "{got:?} and {expected:?}");
                read.push(got.0);
                drafted = Some(got.0);
            }
            drop(guesses);
            assert_eq!(reading.cache.len() + reading.unread.len(), text.len());
        }
    }

    #[test]
    fn it_has_nothing_to_say_where_nothing_is_to_be_read_or_positions_end() {
        let (_, model) = golden();
        assert_eq!(told(&model, &[]).guesses().next(None).unwrap(), None);
        let most = model.llama.max_positions();
        let mut reading = told(&model, &vec![20; most]);
        let mut guesses = reading.guesses();
        assert!(guesses.next(None).unwrap().is_some());
        assert_eq!(guesses.next(Some(21)).unwrap(), None);
        drop(guesses);
        assert_eq!((reading.cache.len(), reading.unread.len()), (most, 0));
    }

    /// Both have the same tokens under other numbers: behind the pieces, the large one has a few more.
    #[test]
    fn tokens_are_told_by_their_text() {
        let (model, draft_model) = golden();
        let sentencepiece = fs::read(Path::new(GOLDEN).join("tokenizer.model")).unwrap();
        let added = model.tokenizer.added().to_vec();
        let first = model.tokenizer.sentencepiece().len();
        let shifted: BTreeMap<String, usize> =
            ["<new>".to_owned()].into_iter().chain(added.clone()).zip(first..).collect();
        let shifted = serde_json::to_string(&shifted).unwrap();
        let large = Tokenizer::from_bytes(&sentencepiece, &shifted).unwrap();
        let draft = Arc::new(DraftModel::open(Path::new(GOLDEN), &large, &Device::Cpu).unwrap());
        let bbox = model.tokenizer.special().bbox;
        assert_eq!(large.special().bbox, bbox + 1);
        let text = [1, 20, large.special().im_patch, first as u32, 35, large.special().bbox, 7];
        let expected = expected(&draft_model, &[1, 20, 35, bbox, 7]);
        let shift = u32::from(expected.0 >= first as u32);
        assert_eq!(told(&draft, &text).guesses().next(None).unwrap().unwrap().0, expected.0 + shift);
    }

    /// Numbers, dimensions and tokens are the same; 16 bits hold what was quantised from 16 bits.
    #[test]
    fn a_gguf_file_of_a_language_model_drafts_too() {
        let place = tempfile::tempdir().unwrap();
        let parts = Parts::directory(Path::new(GOLDEN)).unwrap();
        let out = place.path().join("tiny");
        parts.write_gguf(&out, IfExists::Replace, Quantization::Q8_0, Quantization::F16).unwrap();
        fs::remove_file(out.join("mmproj-tiny.gguf")).unwrap();
        let (model, directory) = golden();
        let file = DraftModel::open(&out.join("tiny-q8_0.gguf"), &model.tokenizer, &Device::Cpu).unwrap();
        assert_eq!((&file.own, &file.foreign), (&directory.own, &directory.foreign));
        let text = [1, 20, 35, 7, 44];
        let (got, wanted) = (expected(&file, &text), expected(&directory, &text));
        assert!((got.1 - wanted.1).abs() < 0.05 * wanted.1, "{got:?} and {wanted:?}");
    }

    #[test]
    fn what_can_not_draft_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let error = |tokenizer| DraftModel::open(place.path(), tokenizer, &Device::Cpu).unwrap_err().to_string();
        let (other, model) = (Gpt4Roi::nano(&Device::Cpu).unwrap(), Gpt4Roi::open(GOLDEN, &Device::Cpu).unwrap());
        for file in ["config.json", "tokenizer.model", "model.safetensors"] {
            let refusal = error(&model.tokenizer);
            assert!(refusal.contains(file), "before there is {file}: {refusal}");
            fs::copy(Path::new(GOLDEN).join(file), place.path().join(file)).unwrap();
        }
        assert!(DraftModel::open(place.path(), &model.tokenizer, &Device::Cpu).is_ok());
        let refusal = error(&other.tokenizer);
        assert!(refusal.contains("the tokens of a draft model: expected at least"), "{refusal}");
    }

    /// The model itself, without eyes: most of what it drafts does not come, and some does.
    #[test]
    fn a_draft_model_changes_no_answer() {
        let (model, draft_model) = golden();
        let options = |draft| AskOptions { max_new_tokens: 12, draft, ..AskOptions::default() };
        let talk = |drafter: &Drafter, draft| {
            let mut chat = Chat::new(&model, &picture()).unwrap().drafting_by(drafter);
            chat.add_region(bbox([0.1, 0.2, 0.5, 0.9]));
            let mut answers = vec![chat.ask_with("What is <region1>?", &options(draft)).unwrap()];
            answers.push(chat.ask_with("And what is it for?", &options(draft)).unwrap());
            let shapes = [bbox([0.1, 0.2, 0.5, 0.9]), bbox([0.3, 0.3, 0.4, 0.4])];
            answers.extend(chat.describe_regions(&shapes, "What is <region1>?", &options(draft)).unwrap());
            answers
        };
        let expected = talk(&Drafter::new(), Some(0));
        let drafter = Drafter::with_model(draft_model);
        let got = talk(&drafter, None);
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!((&got.text, got.generated_tokens), (&expected.text, expected.generated_tokens));
        }
        assert!(got.iter().map(|answer| answer.drafted_tokens).sum::<usize>() > 0);
    }
}
