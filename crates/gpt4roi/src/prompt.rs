//! Conversations as token ids: one function for inference and training.

use std::ops::Range;

use crate::{bbox::RegionId, tokenizer::Tokenizer};

/// A conversation that can't be rendered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {}

/// A piece of a question whose coordinates have all become regions.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Words.
    Text(String),
    /// A region.
    Region(RegionId),
}

/// A question and, except for the one being asked, its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// What was asked.
    pub question: Vec<Piece>,
    /// What was answered, without a role name.
    pub answer: Option<String>,
}

/// How words are read that look like structure (`<bbox>`, `###`, `</s>`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextMode {
    /// They stay words.
    #[default]
    Literal,
    /// They are what the original makes of them; for parity.
    Compat,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Token ids, beginning with BOS.
    pub ids: Vec<u32>,
    /// For each token, whether the model learns to write it.
    pub targets: Vec<bool>,
    /// Where the picture's patches stand.
    pub patches: Range<usize>,
    /// Where each region's vector goes, in the order of first mention.
    pub regions: Vec<(u32, RegionId)>,
}

/// Renders a conversation about one picture. It ends in an open turn (`### `); if the last round has
/// an answer, that open turn is the model's signal to stop.
///
/// Only here are regions put in the order of their mentions: the first mention of a region becomes
/// `region1 <bbox>`, later ones `region1`.
pub fn encode(rounds: &[Round], tokenizer: &Tokenizer, patches: usize, mode: TextMode) -> Result<Encoded, PromptError> {
    let _ = (rounds, tokenizer, patches, mode);
    todo!()
}
