//! Text to ids and back, with the ids of the original's slow tokenizer.

/// A tokenizer's files are missing or damaged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {}

/// SentencePiece plus the model's added tokens.
#[derive(Debug)]
pub struct Tokenizer {}

/// The ids of the tokens that the model gives a meaning of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins every sequence; 1 whatever the special-tokens map says.
    pub bos: u32,
    /// May end an answer.
    pub eos: u32,
    /// Fills a batch.
    pub pad: u32,
    /// One patch of the picture.
    pub im_patch: u32,
    /// One region.
    pub bbox: u32,
    /// Before the patches.
    pub im_start: u32,
    /// Behind the patches.
    pub im_end: u32,
}

impl Tokenizer {
    /// Reads `tokenizer.model` (SentencePiece, BPE) and `added_tokens.json`.
    pub fn from_bytes(model: &[u8], added_tokens: &str) -> Result<Self, TokenizerError> {
        let _ = (model, added_tokens);
        todo!()
    }

    /// The special ids.
    pub fn special(&self) -> SpecialTokens {
        todo!()
    }

    /// Ids in all, added tokens included.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }

    /// Encodes text in which nothing has a meaning of its own: no BOS, no added tokens. An empty
    /// text has no ids; any other begins with SentencePiece's own `▁`.
    pub fn encode_text(&self, text: &str) -> Vec<u32> {
        let _ = text;
        todo!()
    }

    /// Encodes as the original does: added tokens in the text become their ids, white space around
    /// them vanishes, each piece in between is encoded as if it stood alone. No BOS.
    pub fn encode_with_added_tokens(&self, text: &str) -> Vec<u32> {
        let _ = text;
        todo!()
    }

    /// Ids to text; special ids are left out, the spaces before punctuation closed up.
    pub fn decode(&self, ids: &[u32]) -> String {
        let _ = ids;
        todo!()
    }

    /// The text of one token, for showing a prompt.
    pub fn piece(&self, id: u32) -> &str {
        let _ = id;
        todo!()
    }
}
