//! Text to ids and back, with the ids of the original's slow tokenizer.

use std::{collections::BTreeMap, ops::Range};

use crate::sentencepiece::{Kind, SPACE, SentencePiece};

/// A tokenizer's files are missing or damaged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.model` is not what it should be.
    #[error("tokenizer.model: expected {expected}, got {got}")]
    Model {
        /// What would be accepted.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// `added_tokens.json` is not a map from texts to ids.
    #[error("added_tokens.json: expected an object of texts and ids: {0}")]
    AddedTokens(#[from] serde_json::Error),
    /// A token that the model needs was not added.
    #[error("added_tokens.json: expected an id for {missing:?}, got only {got:?}")]
    Missing {
        /// The token without an id.
        missing: &'static str,
        /// The tokens that have one.
        got: Vec<String>,
    },
    /// A token without a text would be found everywhere.
    #[error("added_tokens.json: expected a text for {id}, got an empty one")]
    Empty {
        /// Its id.
        id: u32,
    },
    /// Two texts share an id.
    #[error("added_tokens.json: expected an id of its own for {second:?}, got {id}, which is {first:?}")]
    Duplicate {
        /// The id.
        id: u32,
        /// Who has it.
        first: String,
        /// Who wants it, too.
        second: String,
    },
    /// Ids must follow those of the SentencePiece model without gaps, since they are rows of the
    /// model's embedding.
    #[error("added_tokens.json: expected ids {first} to {last} for the added tokens, got {got} for {token:?}")]
    Gap {
        /// The first id behind the pieces.
        first: u32,
        /// The last id if there are no gaps.
        last: u32,
        /// The id outside.
        got: u32,
        /// Whose it is.
        token: String,
    },
}

/// SentencePiece plus the model's added tokens.
#[derive(Debug)]
pub struct Tokenizer {
    sentencepiece: SentencePiece,
    /// By id, the first behind the last piece.
    added: Vec<String>,
    /// What splits a text for the original, with its id.
    splits: Vec<(String, u32)>,
    special: SpecialTokens,
}

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
    ///
    /// # Errors
    /// A model that is damaged or of another kind, an added token that is missing or empty, and ids that are
    /// used twice or do not follow those of the pieces.
    pub fn from_bytes(model: &[u8], added_tokens: &str) -> Result<Self, TokenizerError> {
        Self::new(SentencePiece::from_bytes(model)?, serde_json::from_str(added_tokens)?)
    }

    /// Puts a vocabulary and the added tokens' ids together.
    ///
    /// # Errors
    /// As [`Self::from_bytes`].
    pub(crate) fn new(sentencepiece: SentencePiece, added: BTreeMap<String, u32>) -> Result<Self, TokenizerError> {
        let added = added_in_order(&sentencepiece, added)?;
        let id = |token: &'static str| {
            let index = added.iter().position(|added| added == token);
            index
                .map(|index| (sentencepiece.len() + index) as u32)
                .ok_or_else(|| TokenizerError::Missing { missing: token, got: added.clone() })
        };
        let special = SpecialTokens {
            bos: sentencepiece.bos(),
            eos: sentencepiece.eos(),
            pad: id("[PAD]")?,
            im_patch: id("<im_patch>")?,
            bbox: id("<bbox>")?,
            im_start: id("<im_start>")?,
            im_end: id("<im_end>")?,
        };
        let pieces = [sentencepiece.eos(), sentencepiece.unknown()].into_iter();
        let pieces = pieces.filter_map(|id| Some((sentencepiece.piece(id)?.to_string(), id)));
        let splits = pieces.chain(added.iter().cloned().zip(sentencepiece.len() as u32..)).collect();
        Ok(Self { sentencepiece, added, splits, special })
    }

    /// The special ids.
    pub fn special(&self) -> SpecialTokens {
        self.special
    }

    /// The vocabulary without added tokens.
    pub(crate) fn sentencepiece(&self) -> &SentencePiece {
        &self.sentencepiece
    }

    /// The added tokens; their ids follow those of the vocabulary.
    pub(crate) fn added(&self) -> &[String] {
        &self.added
    }

    /// Ids in all, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.sentencepiece.len() + self.added.len()
    }

    /// Encodes text in which nothing has a meaning of its own: no BOS, no added tokens. An empty
    /// text has no ids; any other begins with SentencePiece's own `▁`.
    pub fn encode_text(&self, text: &str) -> Vec<u32> {
        self.sentencepiece.encode(text, &[]).into_iter().map(|(id, _)| id).collect()
    }

    /// Like [`Tokenizer::encode_text`], and each id comes with the bytes of the text that it stands
    /// for; `▁` in front stands for none. No token reaches across any of the byte offsets `barriers`
    /// (ascending), which changes ids but not what they decode to.
    pub fn encode_spans(&self, text: &str, barriers: &[usize]) -> Vec<(u32, Range<usize>)> {
        self.sentencepiece.encode(text, barriers)
    }

    /// Start and end of the first special or added token in a text (the longest, if several begin
    /// there), and its id: where the original splits it.
    ///
    /// `</s>` and `<unk>` count as added tokens, as the special-tokens map of the published model
    /// names them; `<s>` does not, since that map calls `</s>` the beginning, too.
    pub(crate) fn first_added_token(&self, text: &str) -> Option<(usize, usize, u32)> {
        let found = self.splits.iter().filter_map(|(token, id)| {
            let start = text.find(token)?;
            Some((start, start + token.len(), *id))
        });
        found.min_by_key(|&(start, end, _)| (start, std::cmp::Reverse(end)))
    }

    /// Ids to text; special ids are left out, the spaces before punctuation closed up.
    ///
    /// Left out are the control pieces, the unknown piece and `[PAD]`. Other added tokens are shown,
    /// with a space to either side. Bytes that are no character show as U+FFFD, one each, and so does
    /// an id beyond the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text += &stream.finish();
        text
    }

    /// Decodes ids one by one, as they are generated.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            bytes: Vec::new(),
            place: Place::Beginning,
            replacements: CLEAN_UP.map(|(from, to)| Replacement { from, to, held: String::new() }),
        }
    }

    /// The text of one token, for showing a prompt.
    pub fn piece(&self, id: u32) -> &str {
        let added = |id: u32| self.added.get((id as usize).checked_sub(self.sentencepiece.len())?);
        self.sentencepiece.piece(id).or_else(|| added(id).map(String::as_str)).unwrap_or("\u{FFFD}")
    }
}

/// The added tokens by id. One that repeats a piece under the piece's own id adds nothing.
fn added_in_order(sentencepiece: &SentencePiece, added: BTreeMap<String, u32>) -> Result<Vec<String>, TokenizerError> {
    let first = sentencepiece.len() as u32;
    let mut by_id: BTreeMap<u32, String> = BTreeMap::new();
    for (token, id) in added {
        match sentencepiece.piece(id) {
            _ if token.is_empty() => return Err(TokenizerError::Empty { id }),
            Some(piece) if piece == token => {}
            Some(piece) => return Err(TokenizerError::Duplicate { id, first: piece.into(), second: token }),
            None => {
                if let Some(first) = by_id.insert(id, token.clone()) {
                    return Err(TokenizerError::Duplicate { id, first, second: token });
                }
            }
        }
    }
    let last = first + by_id.len() as u32 - u32::from(!by_id.is_empty());
    match by_id.iter().find(|&(&id, _)| id > last) {
        Some((&got, token)) => Err(TokenizerError::Gap { first, last, got, token: token.clone() }),
        None => Ok(by_id.into_values().collect()),
    }
}

/// Python's `str.isspace`, which counts four control characters that Unicode does not.
pub(crate) fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&character)
}

/// Text from ids that come one by one.
///
/// What [`TextStream::push`] returns is final: later ids only add to it. No character is ever split,
/// and all returns together are what [`Tokenizer::decode`] makes of the ids.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// Byte pieces whose character is not complete.
    bytes: Vec<u8>,
    place: Place,
    replacements: [Replacement; CLEAN_UP.len()],
}

/// What went before the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing.
    Beginning,
    /// An added token.
    AfterAdded,
    /// Nothing but an empty beginning of words: their first space is yet to be dropped.
    RunStart,
    /// Words.
    InRun,
}

impl TextStream<'_> {
    /// Takes one id; returns the text that has become certain.
    pub fn push(&mut self, id: u32) -> String {
        let mut raw = String::new();
        let tokenizer = self.tokenizer;
        match tokenizer.sentencepiece.kind(id) {
            Some(Kind::Control | Kind::Unknown) => return String::new(),
            _ if id == tokenizer.special.pad => return String::new(),
            Some(Kind::Byte(byte)) => {
                self.enter_run(&mut raw);
                self.bytes.push(byte);
                self.take_characters(&mut raw);
            }
            Some(Kind::Normal) => {
                self.enter_run(&mut raw);
                self.flush_bytes(&mut raw);
                let piece = tokenizer.piece(id);
                let strip = self.place == Place::RunStart && tokenizer.sentencepiece.has_dummy_prefix();
                let piece = if strip { piece.strip_prefix(SPACE).unwrap_or(piece) } else { piece };
                raw.extend(piece.chars().map(|character| if character == SPACE { ' ' } else { character }));
                self.place = Place::InRun;
            }
            None => {
                self.flush_bytes(&mut raw);
                if self.place != Place::Beginning {
                    raw.push(' ');
                }
                raw.push_str(tokenizer.piece(id));
                self.place = Place::AfterAdded;
            }
        }
        self.clean_up(raw)
    }

    /// The text that was still waiting for a continuation.
    pub fn finish(mut self) -> String {
        let mut raw = String::new();
        self.flush_bytes(&mut raw);
        let mut text = self.clean_up(raw);
        for stage in 0..self.replacements.len() {
            let held = std::mem::take(&mut self.replacements[stage].held);
            let later = self.replacements[stage + 1..].iter_mut();
            text += &later.fold(held, |text, replacement| replacement.push(&text));
        }
        text
    }

    /// Words behind an added token are set off by a space.
    fn enter_run(&mut self, raw: &mut String) {
        if self.place == Place::AfterAdded {
            raw.push(' ');
        }
        if matches!(self.place, Place::Beginning | Place::AfterAdded) {
            self.place = Place::RunStart;
        }
    }

    /// Takes whole characters out of the waiting bytes, and bytes that no continuation can save.
    fn take_characters(&mut self, raw: &mut String) {
        let bytes = std::mem::take(&mut self.bytes);
        let (certain, waiting) = bytes.split_at(certain_bytes(&bytes));
        push_lossy(certain, raw);
        if !certain.is_empty() {
            self.place = Place::InRun;
        }
        self.bytes = waiting.to_vec();
    }

    fn flush_bytes(&mut self, raw: &mut String) {
        if !self.bytes.is_empty() {
            push_lossy(&std::mem::take(&mut self.bytes), raw);
            self.place = Place::InRun;
        }
    }

    fn clean_up(&mut self, raw: String) -> String {
        self.replacements.iter_mut().fold(raw, |text, replacement| replacement.push(&text))
    }
}

/// How many bytes no later byte can change: all but an incomplete character at the end.
fn certain_bytes(bytes: &[u8]) -> usize {
    let mut start = 0;
    while let Err(error) = std::str::from_utf8(&bytes[start..]) {
        start += error.valid_up_to();
        match error.error_len() {
            Some(length) => start += length,
            None => return start,
        }
    }
    bytes.len()
}

/// One U+FFFD for each byte that belongs to no character, as SentencePiece has it.
fn push_lossy(bytes: &[u8], text: &mut String) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
}

/// What the original replaces in decoded text, one after the other.
///
/// Source: `clean_up_tokenization` of `transformers`.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// `str::replace` on a text that comes in pieces: held back is only what may be a beginning of `from`.
#[derive(Debug)]
struct Replacement {
    from: &'static str,
    to: &'static str,
    held: String,
}

impl Replacement {
    fn push(&mut self, text: &str) -> String {
        let text = std::mem::take(&mut self.held) + text;
        let (mut done, mut rest) = (String::with_capacity(text.len()), text.as_str());
        while let Some((before, after)) = rest.split_once(self.from) {
            done += before;
            done += self.to;
            rest = after;
        }
        // `from` is ASCII, so each of its beginnings is a text.
        let held = (1..self.from.len()).rev().find(|&length| rest.ends_with(&self.from[..length])).unwrap_or(0);
        let (certain, held) = rest.split_at(rest.len() - held);
        done += certain;
        self.held = held.into();
        done
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::sentencepiece::Roles;

    const MODEL: &[u8] = include_bytes!("../tests/data/tokenizer.model");
    const ADDED: &str = include_str!("../tests/data/added_tokens.json");

    /// The small tokenizer that `reference/make_tokenizer_goldens.py` made.
    pub(crate) fn small() -> Tokenizer {
        Tokenizer::from_bytes(MODEL, ADDED).unwrap()
    }

    /// What `reference/make_tokenizer_goldens.py` computed with SentencePiece.
    #[derive(Deserialize)]
    pub(crate) struct Goldens {
        text: Vec<(String, Vec<u32>)>,
        pub(crate) with_added_tokens: Vec<(String, Vec<u32>)>,
        decoded: Vec<(Vec<u32>, String)>,
    }

    pub(crate) fn goldens() -> Goldens {
        serde_json::from_str(include_str!("../tests/data/tokenizer.json")).unwrap()
    }

    #[test]
    fn ids_are_those_of_sentencepiece() {
        let tokenizer = small();
        for (text, ids) in goldens().text {
            assert_eq!(tokenizer.encode_text(&text), ids, "{text:?}");
        }
    }

    #[test]
    fn decoding_is_that_of_sentencepiece_and_transformers() {
        let tokenizer = small();
        for (ids, text) in goldens().decoded {
            assert_eq!(tokenizer.decode(&ids), text, "{ids:?}");
        }
    }

    #[test]
    fn special_ids_come_from_the_files() {
        let special = small().special();
        assert_eq!((special.bos, special.eos), (1, 2));
        assert_eq!([special.pad, special.im_patch, special.bbox], [800, 801, 802]);
        assert_eq!([special.im_start, special.im_end], [804, 805]);
        assert_eq!(small().vocab_size(), 806);
        assert_eq!(small().piece(802), "<bbox>");
        assert_eq!(small().piece(806), "\u{FFFD}");
    }

    #[test]
    fn damaged_files_are_refused() {
        struct Case {
            added: String,
            message: &'static str,
        }
        let replace = |from: &str, to: &str| ADDED.replace(from, to);
        let cases = [
            Case { added: "[".into(), message: "expected an object" },
            Case { added: replace("<bbox>", "<box>"), message: "expected an id for \"<bbox>\"" },
            Case { added: replace("801", "802"), message: "got 802, which is \"<bbox>\"" },
            Case { added: replace("801", "7"), message: "got 7, which is \"<0x04>\"" },
            Case { added: replace("803", "4000000000"), message: "got 4000000000 for \"<point>\"" },
            Case { added: replace("803", "-1"), message: "expected an object" },
            Case { added: replace("<point>", ""), message: "expected a text for 803, got an empty one" },
        ];
        for Case { added, message } in cases {
            let error = Tokenizer::from_bytes(MODEL, &added).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let repeated = ADDED.replacen('{', "{\"<s>\": 1,", 1);
        assert_eq!(Tokenizer::from_bytes(MODEL, &repeated).unwrap().vocab_size(), 806, "a piece by its own name");
    }

    /// GGUF files hold pieces of their own. `</s>` is searched for in what is typed to the original.
    #[test]
    fn a_piece_without_a_text_is_refused_whoever_wrote_it() {
        let tokenizer = small();
        let mut pieces = tokenizer.sentencepiece().pieces().to_vec();
        pieces[2].text = "".into();
        let roles = Roles { unknown: 0, bos: 1, eos: 2 };
        let error = SentencePiece::from_pieces(pieces, roles, true).unwrap_err().to_string();
        assert!(error.contains("expected pieces with a text, got an empty one"), "{error}");
    }

    #[test]
    fn a_model_cut_short_is_refused_or_smaller_but_never_a_panic() {
        for end in (0..MODEL.len()).step_by(7) {
            if let Ok(tokenizer) = Tokenizer::from_bytes(&MODEL[..end], ADDED) {
                panic!("{end} bytes gave {} tokens", tokenizer.vocab_size());
            }
        }
    }

    #[test]
    fn barriers_change_ids_but_not_the_text() {
        let tokenizer = small();
        let (whole, split) = (tokenizer.encode_text("a###b"), tokenizer.encode_spans("a###b", &[2, 3]));
        let split_ids: Vec<u32> = split.iter().map(|(id, _)| *id).collect();
        assert_ne!(split_ids, whole);
        assert_eq!(tokenizer.decode(&split_ids), "a###b");
        let spans: Vec<_> = split.into_iter().map(|(_, span)| span).collect();
        assert_eq!(spans, [0..1, 1..2, 2..3, 3..4, 4..5]);
    }

    #[test]
    fn a_character_shows_once_it_is_complete() {
        let tokenizer = small();
        let mut stream = tokenizer.stream();
        let shown: Vec<String> = "🐕".bytes().map(|byte| stream.push(u32::from(byte) + 3)).collect();
        assert_eq!(shown, ["", "", "", "🐕"]);
        assert_eq!(stream.finish(), "");
        let mut stream = tokenizer.stream();
        assert_eq!(stream.push(0xF0 + 3), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }

    proptest! {
        #[test]
        fn text_survives_the_round_trip(text in "[a-zA-Z0-9#äé赤🐕\n\t<>()-]{0,40}") {
            let tokenizer = small();
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode_text(&text)), text);
        }

        #[test]
        fn spans_tile_the_text(text in "\\PC{0,40}") {
            let mut end = 0;
            for (_, span) in small().encode_spans(&text, &[]) {
                prop_assert!(span.start == end || span.end == end, "{:?} after {}", span, end);
                end = span.end;
            }
            prop_assert_eq!(end, text.len());
        }

        #[test]
        fn no_text_becomes_a_special_token(text in "(<bbox>|<im_patch>|</s>|<s>|\\[PAD\\]|<unk>|<0x0A>|[a ])*") {
            // The first three pieces are <unk>, <s> and </s>, the first added token is 800.
            prop_assert!(small().encode_text(&text).iter().all(|id| (3..800).contains(id)));
        }

        #[test]
        fn replacing_in_pieces_is_replacing(pieces in proptest::collection::vec("[ '.nmstv]{0,4}", 0..12)) {
            for (from, to) in CLEAN_UP {
                let mut replacement = Replacement { from, to, held: String::new() };
                let mut text: String = pieces.iter().map(|piece| replacement.push(piece)).collect();
                text += &replacement.held;
                prop_assert_eq!(text, pieces.concat().replace(from, to));
            }
        }

        #[test]
        fn damage_is_never_a_panic(at in 0..MODEL.len(), byte in any::<u8>()) {
            let mut model = MODEL.to_vec();
            model[at] = byte;
            if let Ok(tokenizer) = Tokenizer::from_bytes(&model, ADDED) {
                tokenizer.decode(&tokenizer.encode_text("What is region1 doing? 🐕"));
            }
        }
    }
}
