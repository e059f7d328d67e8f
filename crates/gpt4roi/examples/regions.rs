//! How long the captions of 16 regions of one picture take, against the caption of one.
//!
//! ```console
//! RAYON_NUM_THREADS=1 cargo run --release -p gpt4roi --example regions [-- TOKENS [RUNS]]
//! ```
//!
//! Every caption has 24 tokens unless another number is given, whatever the model would rather say, so
//! that work is compared with the same work. The picture is encoded and its prefix read beforehand. One
//! region and sixteen alternate; what is printed is the fastest run of each stage, which other work on
//! the machine disturbs least, and the ratio of the two.

#![allow(clippy::print_stdout)] // What an example is for.

use std::{sync::Arc, time::Instant};

use candle_core::{Device, Tensor};
use gpt4roi::{
    BBox, Gpt4Roi, Image,
    batch::{DecodeBatch, NewSequence, Reading},
    bbox::BoxPrecision,
    drafter::Told,
    generate::Limits,
    image::DEFAULT_MAX_PIXELS,
    image_cache::EncodedImage,
    kv_cache::{Branch, KvCache},
    sampling::{Sampler, Sampling},
};

const REGIONS: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let tokens = numbers.next().unwrap_or(Ok(24))?;
    let runs = numbers.next().unwrap_or(Ok(51))?;

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

    let (mut one, mut many) = ([f64::INFINITY; 2], [f64::INFINITY; 2]);
    for _ in 0..runs {
        for (fastest, boxes) in [(&mut one, &boxes[..1]), (&mut many, &boxes[..])] {
            let seconds = caption(&model, &image, &prefix, boxes, tokens)?;
            *fastest = [0, 1].map(|stage| fastest[stage].min(seconds[stage]));
        }
    }
    let line = |stage, one: f64, many: f64| {
        let (one_ms, many_ms) = (1e3 * one, 1e3 * many);
        println!("{stage:<8} 1: {one_ms:>8.2} ms   {REGIONS}: {many_ms:>8.2} ms   ratio {:.2}", many / one);
    };
    line("encode", one[0], many[0]);
    line("write", one[1], many[1]);
    line("both", one[0] + one[1], many[0] + many[1]);
    Ok(())
}

/// Keys and values of the picture's patches.
fn read_prefix(model: &Gpt4Roi, image: &EncodedImage) -> gpt4roi::Result<Arc<KvCache>> {
    let mut cache = model.network.llama.new_cache();
    model.network.llama.forward(&image.features().image_tokens.unsqueeze(0)?, &mut cache)?;
    Ok(Arc::new(cache))
}

/// Encodes the boxes, then reads a question of 15 tokens about each and writes so many tokens on each;
/// the seconds of both.
fn caption(
    model: &Gpt4Roi,
    image: &EncodedImage,
    prefix: &Arc<KvCache>,
    boxes: &[BBox],
    tokens: usize,
) -> gpt4roi::Result<[f64; 2]> {
    let begin = Instant::now();
    let maps = image.maps(&model.network)?;
    let boxes = BBox::tensor(boxes, BoxPrecision::F32, &model.device)?;
    let vectors = model.network.encode_regions(&maps, &boxes)?;
    let encoded = Instant::now();
    let words = model.network.llama.embed(&Tensor::arange(100u32, 114, &model.device)?)?;
    let mut batch = DecodeBatch::new(&model.network.llama);
    for region in 0..vectors.dim(0)? {
        let question = Tensor::cat(&[&vectors.narrow(0, region, 1)?, &words], 0)?.unsqueeze(0)?;
        batch.add(NewSequence {
            reading: Reading::new(Branch::new(prefix.clone()), question),
            sampler: Sampler::new(&Sampling::Greedy)?,
            limits: Limits { eos: u32::MAX, max_new_tokens: tokens },
            told: Told::default(),
        })?;
    }
    while !batch.is_empty() {
        batch.step()?;
    }
    Ok([(encoded - begin).as_secs_f64(), encoded.elapsed().as_secs_f64()])
}
