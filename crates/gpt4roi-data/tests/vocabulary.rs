//! The embedded model's vocabulary, as the library reads it and as SentencePiece does.
//!
//! `vocabulary.json` was written by `reference/make_tokenizer.py`.

use gpt4roi::{prompt, tokenizer::Tokenizer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

fn tokenizer() -> Tokenizer {
    let model = include_bytes!("../../../models/nano/tokenizer.model");
    Tokenizer::from_bytes(model, include_str!("../../../models/nano/added_tokens.json"))
        .expect("the vocabulary is sound")
}

#[test]
fn ids_are_those_of_sentencepiece() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("vocabulary.json")).expect("JSON");
    assert!(cases.len() > 50);
    for Case { text, ids } in cases {
        assert_eq!(tokenizer().encode_text(&text), ids, "{text:?}");
    }
}

#[test]
fn answers_continue_open_turns() {
    assert!(prompt::answers_continue_open_turns(&tokenizer()));
}

#[test]
fn special_tokens_follow_the_pieces() {
    let tokenizer = tokenizer();
    let special = tokenizer.special();
    assert_eq!((tokenizer.vocab_size(), special.bos, special.eos), (1798, 1, 2));
    assert_eq!(
        (special.pad, special.im_patch, special.bbox, special.im_start, special.im_end),
        (1792, 1793, 1794, 1796, 1797)
    );
}
