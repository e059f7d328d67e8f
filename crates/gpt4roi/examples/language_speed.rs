//! Measures a quantised language model of the original's size with random weights, in `q4_k` or `q8_0`.
//!
//! ```console
//! cargo run --release -p gpt4roi --example language_speed -- q4_k
//! ```
//!
//! Prints one line of JSON; times are medians in seconds. Several sequences are measured as several tokens that
//! the model reads at once, behind the same context: every weight is read once for all of them.
#![expect(clippy::print_stdout, reason = "the result goes there")]

use std::{error::Error, sync::Arc, time::Instant};

use candle_core::{Device, Tensor};
use gpt4roi::{config::Config, kv_cache::KvCache, llama::Llama, quantized::RandomQuantized, weights::Weights};
use gpt4roi_kernels::QuantFormat;

const CONTEXT: usize = 320;
const REPETITIONS: usize = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let config = Config::gpt4roi_7b().llama;
    let name = std::env::args().nth(1).unwrap_or_default();
    let format = match name.as_str() {
        "q4_k" => QuantFormat::Q4K,
        "q8_0" => QuantFormat::Q8_0,
        other => return Err(format!("expected q4_k or q8_0, got `{other}`").into()),
    };
    let started = Instant::now();
    let source = Arc::new(RandomQuantized::new(format, config.num_hidden_layers));
    let llama = Llama::load(&Weights::new(source), &config)?;
    let load = started.elapsed().as_secs_f64();
    let mut cache = llama.new_cache();
    let prefill = median(3, || {
        cache = llama.new_cache();
        read(&llama, CONTEXT, &mut cache)
    })?;
    let mut batch = |sequences: usize| {
        median(REPETITIONS, || {
            cache.truncate(CONTEXT);
            read(&llama, sequences, &mut cache)
        })
    };
    let (decode, four, sixteen) = (batch(1)?, batch(4)?, batch(16)?);
    println!(
        "{}",
        serde_json::json!({
            "model": name, "threads": rayon::current_num_threads(), "load": load, "prefill_320": prefill,
            "decode_1": decode, "decode_4": four, "decode_16": sixteen,
        })
    );
    Ok(())
}

/// Reads so many tokens and computes the logits behind the last, or behind each where they are few.
fn read(llama: &Llama, tokens: usize, cache: &mut KvCache) -> candle_core::Result<Tensor> {
    let ids: Vec<u32> = (0..tokens as u32).map(|token| 7 * token % 32_000).collect();
    let embeds = llama.embed(&Tensor::from_vec(ids, tokens, &Device::Cpu)?)?.unsqueeze(0)?;
    let hidden = llama.forward(&embeds, cache)?;
    let first = if tokens > 16 { tokens - 1 } else { 0 };
    llama.logits(&hidden.narrow(1, first, tokens - first)?)
}

fn median<T>(count: usize, mut work: impl FnMut() -> candle_core::Result<T>) -> candle_core::Result<f64> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        work()?;
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[count / 2])
}
