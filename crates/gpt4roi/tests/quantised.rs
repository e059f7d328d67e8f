//! A model of noise whose rows fill the blocks of every type, quantised and opened again.

use std::{collections::BTreeMap, path::Path};

use candle_core::Device;
use gpt4roi::{
    BBox, Chat, Config, Gpt4Roi, Image,
    chat::{Answer, AskOptions},
    convert::{IfExists, Parts},
    divergence::Divergence,
    drafter::{DEFAULT_DRAFT, Drafter},
    model::ModelFiles,
    quantize::{Quantization, RoundingError},
    self_test::self_test,
    tokenizer::Tokenizer,
};

const TOKENIZER: &[u8] = include_bytes!("data/tokenizer.model");
const ADDED_TOKENS: &str = include_str!("data/added_tokens.json");

/// Rows of 256 and 512 in the language model, and a vocabulary with three rows to spare.
fn parts() -> Parts {
    let tokens = Tokenizer::from_bytes(TOKENIZER, ADDED_TOKENS).unwrap().vocab_size();
    let mut config = Config::pico(tokens + 3);
    (config.llama.hidden_size, config.llama.intermediate_size, config.llama.num_hidden_layers) = (256, 512, 4);
    (config.vision.hidden_size, config.vision.intermediate_size, config.vision.image_size) = (32, 64, 56);
    (config.region.dim, config.region.gn_groups, config.region.fuse_rounds) = (32, 2, 1);
    (config.region.roi_size, config.region.pos_hidden) = (4, 32);
    Parts::noise(&config, TOKENIZER, ADDED_TOKENS).unwrap()
}

fn quantised(out: &Path, language: Quantization, projector: Quantization) -> BTreeMap<String, RoundingError> {
    let errors = parts().write_gguf(out, IfExists::Refuse, language, projector).unwrap();
    errors.into_iter().map(|error| (error.name.clone(), error)).collect()
}

#[test]
fn every_type_keeps_what_its_bits_can_keep() {
    let place = tempfile::tempdir().unwrap();
    let whole = place.path().join("whole");
    parts().write_directory(&whole, IfExists::Refuse).unwrap();
    let whole = ModelFiles::at(&whole).unwrap();

    let q4_k = place.path().join("four");
    let errors = quantised(&q4_k, Quantization::Q4K, Quantization::Q8_0);
    // Uniform noise over 2ⁿ steps is off by 1/2ⁿ of its root mean square, if the steps lie ideally.
    for (name, kind, most) in [
        ("model.embed_tokens.weight", "q4_k", 0.08),
        ("lm_head.weight", "q6_k", 0.02),
        ("model.layers.3.mlp.down_proj.weight", "q6_k", 0.02),
        ("model.layers.0.mlp.down_proj.weight", "q4_k", 0.08),
        ("model.layers.0.self_attn.q_proj.weight", "q4_k", 0.08),
        ("model.norm.weight", "f32", 0.0),
        ("model.mm_projector.weight", "q8_0", 0.006),
        ("model.spi_module.roi_align.flatten_linear.weight", "q8_0", 0.006),
        ("model.spi_module.roi_align.pconvs.0.weight", "f16", 0.0004),
    ] {
        let error = &errors[name];
        assert_eq!(error.kind, kind, "{name}");
        assert!(error.relative_rms <= most, "{name}: {}, at most {most}", error.relative_rms);
        assert!(error.relative_rms > most / 6.0 || most == 0.0, "{name}: {} is too good", error.relative_rms);
    }

    let q8_0 = place.path().join("eight");
    quantised(&q8_0, Quantization::Q8_0, Quantization::F16);
    let (four, eight) = (ModelFiles::at(&q4_k).unwrap(), ModelFiles::at(&q8_0).unwrap());
    let (four, eight) = (Divergence::of(&whole, &four).unwrap(), Divergence::of(&whole, &eight).unwrap());
    assert!(eight.mean_kl > 0.0 && eight.mean_kl < four.mean_kl / 10.0, "{eight:?} {four:?}");
    assert!(four.mean_kl < 0.1 && eight.same_top_token > 0.9, "{eight:?} {four:?}");
}

#[test]
fn a_quantised_model_answers() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("four");
    quantised(&out, Quantization::Q4K, Quantization::F16);
    let model = Gpt4Roi::open(&out, &Device::Cpu).unwrap();
    assert_eq!(model.tokenizer.vocab_size() + 3, model.config.llama.vocab_size, "unused rows are no tokens");
    self_test(&model).unwrap();
}

/// `q4_k` and `q6_k` in one model, as at full size. The same questions over and over, so that most is drafted; alone in a
/// conversation, and several regions together.
#[test]
fn drafts_change_no_bit_of_a_quantised_answer() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("four");
    quantised(&out, Quantization::Q4K, Quantization::F16);
    let model = Gpt4Roi::open(&out, &Device::Cpu).unwrap();
    assert_eq!(model.network.llama.default_draft(), DEFAULT_DRAFT);
    assert_eq!(
        Gpt4Roi::nano(&Device::Cpu).unwrap().network.llama.default_draft(),
        0,
        "in f32 sums would be rounded otherwise"
    );

    let pixels = image::RgbImage::from_fn(80, 60, |x, y| image::Rgb([(3 * x) as u8, (5 * y) as u8, (x * y) as u8]));
    let picture = Image::from_rgb(pixels);
    let boxes = [[4.0, 5.0, 40.0, 50.0], [30.0, 10.0, 70.0, 30.0]];
    let boxes = boxes.map(|pixels| BBox::from_pixels(pixels, picture.size()).unwrap());
    let drafter = Drafter::new();
    let ask = |draft| {
        let options = AskOptions { draft, max_new_tokens: 24, ..AskOptions::default() };
        let mut chat = Chat::new(&model, &picture).unwrap().drafting_by(&drafter);
        chat.add_region(boxes[0]);
        let alone =
            ["What is <region1>?", "What is around it?"].map(|question| chat.ask_with(question, &options).unwrap());
        let together = chat.describe_regions(&boxes, "What is <region1>?", &options).unwrap();
        alone.into_iter().chain(together).collect::<Vec<_>>()
    };
    let plain = ask(Some(0));
    let mut drafted = [0; 4];
    for _ in 0..3 {
        for ((drafted, answer), plain) in drafted.iter_mut().zip(ask(None)).zip(&plain) {
            *drafted += answer.drafted_tokens;
            assert_eq!(Answer { drafted_tokens: 0, ..answer }, *plain);
        }
    }
    assert!(drafted.iter().all(|&drafted| drafted > 24), "{drafted:?}");
}
