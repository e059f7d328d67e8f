//! Writes what a model's language model makes of a text, to compare with another program.
//!
//! ```sh
//! cargo run --release -p gpt4roi --example next_token_logits -- models/7b/7b-q4_k.gguf 'A red car.' logits.json
//! ```
//!
//! The file holds the text, its ids and, behind each, the logits of the next one.

use std::error::Error;

use candle_core::{Device, Tensor};
use gpt4roi::Gpt4Roi;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, out] = arguments.as_slice() else {
        return Err("expected MODEL TEXT OUT, see the top of this example".into());
    };
    let Gpt4Roi { network, tokenizer, .. } = Gpt4Roi::open(model, &Device::Cpu)?;
    let ids = [vec![tokenizer.special().bos], tokenizer.encode_text(text)].concat();
    let llama = network.llama;
    let embeddings = llama.embed(&Tensor::new(ids.as_slice(), &Device::Cpu)?)?.unsqueeze(0)?;
    let hidden = llama.forward(&embeddings, &mut llama.new_cache())?;
    let logits = llama.logits(&hidden)?.squeeze(0)?.to_vec2::<f32>()?;
    std::fs::write(out, serde_json::json!({ "text": text, "ids": ids, "logits": logits }).to_string())?;
    Ok(())
}
