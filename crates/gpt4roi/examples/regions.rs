//! How long the captions of 16 regions of one picture take, against the caption of one.
//!
//! ```console
//! RAYON_NUM_THREADS=1 cargo run --release -p gpt4roi --example regions [-- TOKENS [RUNS]]
//! ```
//!
//! Every caption has 24 tokens unless another number is given, whatever the model would rather say: a
//! model that always writes its whole limit compares work with the same work. The picture is encoded
//! and its prefix read beforehand. One region and sixteen alternate within each run; what is printed
//! is the median of each and of their ratio, and beside it that of asking sixteen times.

#![allow(clippy::print_stdout)] // What an example is for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};
use gpt4roi::{
    BBox, Gpt4Roi, Image,
    batch::{DecodeBatch, NewSequence},
    bbox::BoxPrecision,
    generate::Limits,
    image::DEFAULT_MAX_PIXELS,
    image_cache::EncodedImage,
    kv_cache::KvCache,
    sampling::{Sampler, Sampling},
};

const REGIONS: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let tokens = numbers.next().unwrap_or(Ok(24))?;
    let runs = numbers.next().unwrap_or(Ok(11))?;

    let model = Gpt4Roi::nano(&Device::Cpu)?;
    let image = Image::open("docs/example.png", DEFAULT_MAX_PIXELS)?;
    let image = EncodedImage::new(&model, &image)?;
    image.maps(&model.network)?;
    let prefix = read_prefix(&model, &image)?;
    let boxes = (0..REGIONS).map(|i| {
        let (x, y) = (0.2 * (i % 4) as f64, 0.2 * (i / 4) as f64);
        BBox::from_normalized([x, y, x + 0.3, y + 0.3])
    });
    let boxes = boxes.collect::<Result<Vec<_>, _>>()?;

    let (mut one, mut many, mut each, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let single = caption(&model, &image, &prefix, &boxes[..1], tokens)?;
        let together = caption(&model, &image, &prefix, &boxes, tokens)?;
        let mut apart = Duration::ZERO;
        for bbox in &boxes {
            apart += caption(&model, &image, &prefix, std::slice::from_ref(bbox), tokens)?;
        }
        ratios.push(together.as_secs_f64() / single.as_secs_f64());
        one.push(single.as_secs_f64());
        many.push(together.as_secs_f64());
        each.push(apart.as_secs_f64());
    }
    let [one, many, each, ratio] = [one, many, each, ratios].map(median);
    println!("1 region: {:.1} ms, {REGIONS} together: {:.1} ms, ratio {ratio:.2}", 1e3 * one, 1e3 * many);
    println!("{REGIONS} one by one: {:.1} ms", 1e3 * each);
    Ok(())
}

/// Keys and values of the picture's patches.
fn read_prefix(model: &Gpt4Roi, image: &EncodedImage) -> gpt4roi::Result<Arc<KvCache>> {
    let mut cache = model.network.llama.new_cache();
    model.network.llama.forward(&image.features().image_tokens.unsqueeze(0)?, &mut cache)?;
    Ok(Arc::new(cache))
}

/// Encodes the boxes, reads a question of 15 tokens about each, and writes so many tokens on each.
fn caption(
    model: &Gpt4Roi,
    image: &EncodedImage,
    prefix: &Arc<KvCache>,
    boxes: &[BBox],
    tokens: usize,
) -> gpt4roi::Result<Duration> {
    let begin = Instant::now();
    let maps = image.maps(&model.network)?;
    let boxes = BBox::tensor(boxes, BoxPrecision::F32, &model.device)?;
    let vectors = model.network.encode_regions(&maps, &boxes)?;
    let words = model.network.llama.embed(&Tensor::arange(100u32, 114, &model.device)?)?;
    let mut batch = DecodeBatch::new(&model.network.llama);
    for region in 0..vectors.dim(0)? {
        batch.add(NewSequence {
            prefix: prefix.clone(),
            embeds: Tensor::cat(&[&vectors.narrow(0, region, 1)?, &words], 0)?.unsqueeze(0)?,
            sampler: Sampler::new(&Sampling::Greedy)?,
            limits: Limits { eos: u32::MAX, max_new_tokens: tokens },
        })?;
    }
    while !batch.is_empty() {
        batch.step()?;
    }
    Ok(begin.elapsed())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
