//! A model in miniature to test with.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    bbox::BBox,
    chat::{Answer, AskOptions},
    config::Config,
    image::Image,
    model::{Gpt4Roi, Network},
    tokenizer::Tokenizer,
    weights::{TensorSource, Weights, WeightsResult},
};

/// Random weights that depend on nothing but the tensor's name.
pub(crate) struct Noise;

impl TensorSource for Noise {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        let seed = name.bytes().fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-0.5..0.5)).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    }
}

/// The architecture in miniature: what it says means nothing, and depends on everything.
pub(crate) fn tiny() -> Gpt4Roi {
    tiny_with(|_| ())
}

/// The same with other dimensions.
pub(crate) fn tiny_with(change: impl FnOnce(&mut Config)) -> Gpt4Roi {
    let (model, added) =
        (include_bytes!("../tests/data/tokenizer.model"), include_str!("../tests/data/added_tokens.json"));
    let tokenizer = Tokenizer::from_bytes(model, added).unwrap();
    let mut config = Config::pico(tokenizer.vocab_size());
    (config.llama.hidden_size, config.llama.intermediate_size, config.llama.num_hidden_layers) = (32, 48, 2);
    (config.vision.hidden_size, config.vision.intermediate_size, config.vision.image_size) = (16, 32, 56);
    (config.region.dim, config.region.gn_groups, config.region.fuse_rounds) = (8, 2, 1);
    (config.region.roi_size, config.region.pos_hidden) = (4, 8);
    change(&mut config);
    let weights = Weights::new(Arc::new(Noise));
    let network = Network::load(&config, &weights, &weights).unwrap();
    Gpt4Roi { network, tokenizer, config, device: Device::Cpu }
}

pub(crate) fn picture() -> Image {
    let color = |x, y| image::Rgb([(3 * x) as u8, (5 * y) as u8, (x * y) as u8]);
    Image::from_rgb(image::RgbImage::from_fn(80, 60, color))
}

pub(crate) fn bbox(xyxy: [f64; 4]) -> BBox {
    BBox::from_normalized(xyxy).unwrap()
}

/// Greedy, six tokens at most.
pub(crate) fn short() -> AskOptions {
    AskOptions { max_new_tokens: 6, ..AskOptions::default() }
}

/// Answers agree, whatever was reused; sums in another order differ by rounding.
#[track_caller]
pub(crate) fn assert_same(a: &Answer, b: &Answer) {
    assert_eq!((&a.text, &a.question, &a.regions), (&b.text, &b.question, &b.regions));
    assert_eq!(a.prompt_tokens, b.prompt_tokens);
    let (a, b) = (a.mean_log_probability.unwrap(), b.mean_log_probability.unwrap());
    assert!((a - b).abs() < 1e-4, "{a} {b}");
}
