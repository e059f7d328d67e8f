//! SentencePiece's byte-pair encoding, as much of it as LLaMA's tokenizer needs.
//!
//! The merges are driven by the scores of the pieces, as in SentencePiece itself: of all neighbours
//! whose union is a piece, the best-scored union is made first, the leftmost among equals. The BPE of
//! the `tokenizers` crate wants ranked pairs instead; where one piece can be made of several pairs it
//! ranks these, while here they tie, so its ids are not the same for every text.
//!
//! Sources: `bpe_model.cc`, `sentencepiece_processor.cc` and `sentencepiece_model.proto` of
//! SentencePiece.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
    ops::Range,
};

use crate::tokenizer::TokenizerError;

/// What stands for a space inside pieces.
pub(crate) const SPACE: char = '▁';

/// Pieces and the rules of how they are made.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    pieces: Vec<Piece>,
    /// Only pieces that text can become: no control pieces, no bytes.
    by_text: HashMap<Box<str>, u32>,
    byte_ids: Option<Box<[u32; 256]>>,
    unknown: u32,
    bos: u32,
    eos: u32,
    dummy_prefix: bool,
}

/// One entry of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: Box<str>,
    /// The higher, the earlier it is made.
    pub(crate) score: f32,
    pub(crate) kind: Kind,
}

/// The pieces that have a part of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Roles {
    pub(crate) unknown: u32,
    pub(crate) bos: u32,
    pub(crate) eos: u32,
}

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text.
    Normal,
    /// Stands for what no piece covers.
    Unknown,
    /// Never comes out of text, shows as nothing.
    Control,
    /// One byte of a character that no piece covers.
    Byte(u8),
}

impl SentencePiece {
    /// Reads `tokenizer.model`.
    pub(crate) fn from_bytes(model: &[u8]) -> Result<Self, TokenizerError> {
        let model = ModelProto::read(model)?;
        model.check()?;
        let find = |name: &str| {
            let index = model.pieces.iter().position(|piece| &*piece.text == name);
            index
                .map(|index| index as u32)
                .ok_or_else(|| corrupt("a piece for each special name", format!("no {name:?}")))
        };
        let roles =
            Roles { unknown: find(&model.unk_piece)?, bos: find(&model.bos_piece)?, eos: find(&model.eos_piece)? };
        let byte_ids = if model.byte_fallback { Some(byte_ids(&model.pieces)?) } else { None };
        Self::new(model.pieces, byte_ids, roles, model.dummy_prefix)
    }

    /// A vocabulary from its pieces. Bytes stand in for unknown characters if all 256 have a piece.
    pub(crate) fn from_pieces(pieces: Vec<Piece>, roles: Roles, dummy_prefix: bool) -> Result<Self, TokenizerError> {
        let count = pieces.len();
        if let Some(id) = [roles.unknown, roles.bos, roles.eos].into_iter().find(|id| *id as usize >= count) {
            return Err(corrupt("a piece for each special name", format!("id {id} of {count} pieces")));
        }
        let byte_ids = byte_ids(&pieces).ok();
        Self::new(pieces, byte_ids, roles, dummy_prefix)
    }

    fn new(
        pieces: Vec<Piece>,
        byte_ids: Option<Box<[u32; 256]>>,
        Roles { unknown, bos, eos }: Roles,
        dummy_prefix: bool,
    ) -> Result<Self, TokenizerError> {
        if pieces.iter().any(|piece| piece.text.is_empty()) {
            return Err(corrupt("pieces with a text", "an empty one".into()));
        }
        let mut by_text = HashMap::with_capacity(pieces.len());
        for (id, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Kind::Normal) {
            if by_text.insert(piece.text.clone(), id as u32).is_some() {
                return Err(corrupt("pieces that differ", format!("{:?} twice", piece.text)));
            }
        }
        Ok(Self { by_text, byte_ids, unknown, bos, eos, dummy_prefix, pieces })
    }

    /// The whole vocabulary.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How many pieces there are.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Id of the piece that begins a sequence.
    pub(crate) fn bos(&self) -> u32 {
        self.bos
    }

    /// Id of the piece that ends a sequence.
    pub(crate) fn eos(&self) -> u32 {
        self.eos
    }

    /// A piece as it stands in the file.
    pub(crate) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(|piece| &*piece.text)
    }

    /// Id of the piece that stands for what no piece covers.
    pub(crate) fn unknown(&self) -> u32 {
        self.unknown
    }

    /// What a piece is for.
    pub(crate) fn kind(&self, id: u32) -> Option<Kind> {
        self.pieces.get(id as usize).map(|piece| piece.kind)
    }

    /// Whether decoding takes away the space that encoding put in front.
    pub(crate) fn has_dummy_prefix(&self) -> bool {
        self.dummy_prefix
    }

    /// Encodes text; each id comes with the bytes of the text that it stands for, of which the space
    /// in front has none. No piece reaches across a byte offset in `barriers` (ascending).
    pub(crate) fn encode(&self, text: &str, barriers: &[usize]) -> Vec<(u32, Range<usize>)> {
        if text.is_empty() {
            return Vec::new();
        }
        let (escaped, symbols) = self.symbols(text, barriers);
        let symbols = self.merge(&escaped, symbols);
        let mut ids: Vec<(u32, Range<usize>)> = Vec::with_capacity(symbols.len());
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            let piece = &escaped[symbol.start..symbol.end];
            match (self.by_text.get(piece), &self.byte_ids, ids.last_mut()) {
                (Some(&id), _, _) => ids.push((id, symbol.source.clone())),
                (None, Some(byte_ids), _) => {
                    ids.extend(piece.bytes().map(|byte| (byte_ids[usize::from(byte)], symbol.source.clone())));
                }
                // Neighbouring unknown characters share one id.
                (None, None, Some((id, source))) if *id == self.unknown => source.end = symbol.source.end,
                (None, None, _) => ids.push((self.unknown, symbol.source.clone())),
            }
        }
        ids
    }

    /// The text with `▁` for spaces, and one symbol per character.
    fn symbols(&self, text: &str, barriers: &[usize]) -> (String, Vec<Symbol>) {
        let mut escaped = String::with_capacity(text.len() + 8);
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len() + 1);
        let mut push = |character: char, source: Range<usize>, barrier: bool| {
            let start = escaped.len();
            escaped.push(if character == ' ' { SPACE } else { character });
            let index = symbols.len();
            let previous = index.checked_sub(1).filter(|_| !barrier);
            if let Some(previous) = previous {
                symbols[previous].next = Some(index);
            }
            symbols.push(Symbol { start, end: escaped.len(), source, previous, next: None });
        };
        if self.dummy_prefix {
            push(SPACE, 0..0, true);
        }
        for (offset, character) in text.char_indices() {
            push(character, offset..offset + character.len_utf8(), barriers.binary_search(&offset).is_ok());
        }
        (escaped, symbols)
    }

    fn merge(&self, text: &str, mut symbols: Vec<Symbol>) -> Vec<Symbol> {
        let mut agenda = BinaryHeap::new();
        for left in 0..symbols.len() {
            agenda.extend(self.union(text, &symbols, left));
        }
        while let Some(best) = agenda.pop() {
            let left = best.left.0;
            let Some(right) = symbols[left].next else { continue };
            // A candidate is out of date once one of its halves has grown or was swallowed.
            if symbols[left].start == symbols[left].end
                || symbols[right].end != best.end
                || symbols[right].start != best.middle
            {
                continue;
            }
            symbols[left].end = best.end;
            symbols[left].source.end = symbols[right].source.end;
            symbols[left].next = symbols[right].next;
            if let Some(next) = symbols[right].next {
                symbols[next].previous = Some(left);
            }
            symbols[right].start = best.end; // swallowed
            agenda.extend(self.union(text, &symbols, left));
            if let Some(previous) = symbols[left].previous {
                agenda.extend(self.union(text, &symbols, previous));
            }
        }
        symbols
    }

    /// The piece that a symbol and its right neighbour would make, if there is one.
    fn union(&self, text: &str, symbols: &[Symbol], left: usize) -> Option<Union> {
        let (symbol, next) = (&symbols[left], &symbols[symbols[left].next?]);
        let id = *self.by_text.get(&text[symbol.start..next.end])?;
        let score = self.pieces[id as usize].score;
        Some(Union { score, left: Reverse(left), middle: next.start, end: next.end })
    }
}

/// A stretch of the text on its way to become a piece; an empty one was swallowed.
#[derive(Debug)]
struct Symbol {
    start: usize,
    end: usize,
    /// The same stretch before spaces were replaced.
    source: Range<usize>,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that could become one: the better score first, then the one further left.
#[derive(Debug)]
struct Union {
    score: f32,
    left: Reverse<usize>,
    middle: usize,
    end: usize,
}

impl Ord for Union {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(self.left.cmp(&other.left))
    }
}

impl PartialOrd for Union {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Union {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Union {}

fn byte_ids(pieces: &[Piece]) -> Result<Box<[u32; 256]>, TokenizerError> {
    let mut ids = Box::new([u32::MAX; 256]);
    for (id, piece) in pieces.iter().enumerate() {
        if let Kind::Byte(byte) = piece.kind {
            ids[usize::from(byte)] = id as u32;
        }
    }
    match ids.iter().position(|&id| id == u32::MAX) {
        None => Ok(ids),
        Some(byte) => Err(corrupt("a piece for each of the 256 bytes", format!("none for <0x{byte:02X}>"))),
    }
}

fn corrupt(expected: &str, got: String) -> TokenizerError {
    TokenizerError::Model { expected: expected.into(), got }
}

/// What of `sentencepiece_model.proto` is used.
struct ModelProto {
    pieces: Vec<Piece>,
    model_type: u64,
    byte_fallback: bool,
    treat_whitespace_as_suffix: bool,
    unk_piece: String,
    bos_piece: String,
    eos_piece: String,
    charsmap: usize,
    dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

/// `TrainerSpec.ModelType` of byte-pair encoding.
const BPE: u64 = 2;

impl ModelProto {
    fn read(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let mut model = Self {
            pieces: Vec::new(),
            model_type: 1,
            byte_fallback: false,
            treat_whitespace_as_suffix: false,
            unk_piece: "<unk>".into(),
            bos_piece: "<s>".into(),
            eos_piece: "</s>".into(),
            charsmap: 0,
            dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(piece)) => model.pieces.push(read_piece(piece)?),
                (2, Value::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Value::Bytes(normalizer)) => model.read_normalizer(normalizer)?,
                _ => {}
            }
        }
        Ok(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), TokenizerError> {
        for field in Fields(bytes) {
            match field? {
                (3, Value::Number(kind)) => self.model_type = kind,
                (24, Value::Number(flag)) => self.treat_whitespace_as_suffix = flag != 0,
                (35, Value::Number(flag)) => self.byte_fallback = flag != 0,
                (45, Value::Bytes(name)) => self.unk_piece = utf8(name)?.into(),
                (46, Value::Bytes(name)) => self.bos_piece = utf8(name)?.into(),
                (47, Value::Bytes(name)) => self.eos_piece = utf8(name)?.into(),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<(), TokenizerError> {
        for field in Fields(bytes) {
            match field? {
                (2, Value::Bytes(map)) => self.charsmap = map.len(),
                (3, Value::Number(flag)) => self.dummy_prefix = flag != 0,
                (4, Value::Number(flag)) => self.remove_extra_whitespaces = flag != 0,
                (5, Value::Number(flag)) => self.escape_whitespaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses what would silently give other ids than SentencePiece.
    fn check(&self) -> Result<(), TokenizerError> {
        if self.pieces.is_empty() {
            return Err(corrupt("pieces", "none".into()));
        }
        if self.model_type != BPE {
            return Err(corrupt("byte-pair encoding (model type 2)", format!("model type {}", self.model_type)));
        }
        if self.charsmap > 0 {
            return Err(corrupt("identity normalisation", format!("a character map of {} bytes", self.charsmap)));
        }
        if self.remove_extra_whitespaces || !self.escape_whitespaces || self.treat_whitespace_as_suffix {
            return Err(corrupt(
                "white space kept, escaped and in front of words",
                format!(
                    "remove_extra_whitespaces {}, escape_whitespaces {}, treat_whitespace_as_suffix {}",
                    self.remove_extra_whitespaces, self.escape_whitespaces, self.treat_whitespace_as_suffix
                ),
            ));
        }
        Ok(())
    }
}

fn read_piece(bytes: &[u8]) -> Result<Piece, TokenizerError> {
    let (mut text, mut score, mut kind) = ("", 0.0, 1);
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(name)) => text = utf8(name)?,
            (2, Value::Float(value)) => score = value,
            (3, Value::Number(value)) => kind = value,
            _ => {}
        }
    }
    let kind = match kind {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        6 => Kind::Byte(byte_of(text)?),
        _ => return Err(corrupt("normal, unknown, control or byte pieces", format!("{text:?} of type {kind}"))),
    };
    Ok(Piece { text: text.into(), score, kind })
}

pub(crate) fn byte_of(text: &str) -> Result<u8, TokenizerError> {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits
        .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        .ok_or_else(|| corrupt("a byte piece like <0x0A>", format!("{text:?}")))
}

fn utf8(bytes: &[u8]) -> Result<&str, TokenizerError> {
    std::str::from_utf8(bytes).map_err(|error| corrupt("text in UTF-8", error.to_string()))
}

/// The fields of one protobuf message.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    /// Eight bytes, which no field in use has.
    Wide,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), TokenizerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| corrupt("a whole SentencePiece model", "a field cut short or of unknown kind".into())))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Wide)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Float(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}
