//! Writes a checkpoint of noise in the published layout, at full size or small, to measure with.
//!
//! ```sh
//! cargo run --release -p gpt4roi --example noise_checkpoint -- 7b model out/model
//! cargo run --release -p gpt4roi --example noise_checkpoint -- 7b base out/base
//! cargo run --release -p gpt4roi --example noise_checkpoint -- 7b delta out/delta
//! ```
//!
//! The presets are `7b` (ViT-L/14), `7b-h14` (ViT-H/14) and `256`, a small one whose rows fill the blocks
//! of every quantised type. A `base` is the language model without added tokens, a `delta` is the model
//! without its tower; their sum means nothing, but has every shape. The tokenizer is a small one, filled
//! up with pieces that no text contains.

use std::{collections::BTreeMap, error::Error, path::PathBuf};

use gpt4roi::{
    Config,
    convert::{IfExists, Parts},
};

const TOKENIZER: &[u8] = include_bytes!("../tests/data/tokenizer.model");
const ADDED_TOKENS: [&str; 6] = ["[PAD]", "<im_patch>", "<bbox>", "<point>", "<im_start>", "<im_end>"];
/// Pieces of the small tokenizer.
const PIECES: usize = 800;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [preset, part, out] = arguments.as_slice() else {
        return Err("expected PRESET PART OUT, see the top of this example".into());
    };
    let config = match preset.as_str() {
        "7b" => Config::gpt4roi_7b(),
        "7b-h14" => Config::gpt4roi_7b_vit_h14(),
        "256" => small(),
        other => return Err(format!("preset {other}: expected 7b, 7b-h14 or 256").into()),
    };
    let pieces = config.llama.vocab_size - ADDED_TOKENS.len();
    let added: BTreeMap<_, _> = ADDED_TOKENS.into_iter().zip(pieces..).collect();
    let mut parts = Parts::noise(&config, &tokenizer(pieces), &serde_json::to_string(&added)?)?;
    match part.as_str() {
        "model" => {}
        "delta" => parts.tower = None,
        "base" => base(&mut parts, config.llama.vocab_size, pieces),
        other => return Err(format!("part {other}: expected model, base or delta").into()),
    }
    parts.write_directory(&PathBuf::from(out), IfExists::Refuse)?;
    Ok(())
}

fn small() -> Config {
    let mut config = Config::nano(PIECES + ADDED_TOKENS.len());
    (config.llama.hidden_size, config.llama.intermediate_size, config.llama.num_hidden_layers) = (256, 512, 4);
    config
}

/// Keeps what LLaMA has.
fn base(parts: &mut Parts, rows: usize, pieces: usize) {
    parts.tower = None;
    let model = std::mem::take(&mut parts.model).into_iter();
    let model = model.filter(|tensor| !["spi_module", "mm_projector"].iter().any(|ours| tensor.name.contains(ours)));
    let cut = model.map(|tensor| if tensor.shape[0] == rows { tensor.rows(0..pieces) } else { tensor });
    parts.model = cut.collect();
}

/// The small tokenizer with more pieces behind its own: `SentencePiece.pieces` is field 1 of the model,
/// a piece has its text in field 1, its score in field 2.
fn tokenizer(pieces: usize) -> Vec<u8> {
    let mut model = TOKENIZER.to_vec();
    for piece in PIECES..pieces {
        let text = format!("\u{1}{piece}");
        let mut message = vec![0x0a, text.len() as u8];
        message.extend(text.as_bytes());
        message.push(0x15);
        message.extend((-(piece as f32)).to_le_bytes());
        model.extend([0x0a, message.len() as u8]);
        model.extend(message);
    }
    model
}
