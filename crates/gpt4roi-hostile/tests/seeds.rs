//! Every seed, and mutations of seeds, through every fuzz target's body. The mutations are the same every
//! time, so that a failure repeats.

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use candle_core::Device;
use gpt4roi::{
    Image, ImageSize,
    gguf::Gguf,
    shape::{Mask, Rle},
    weights::Checkpoint,
};
use gpt4roi_data::{RecordOptions, Records};
use gpt4roi_hostile::{TARGETS, Target};
use gpt4roi_server::reading;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Of each target's seeds.
const MUTATIONS: usize = 4000;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// A target's seeds by name.
fn seeds(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = fuzz().join("seeds").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| (file.display().to_string(), fs::read(file).unwrap())).collect()
}

fn survives(target: &Target, bytes: &[u8], what: &str) {
    let outcome = catch_unwind(|| (target.run)(bytes));
    assert!(outcome.is_ok(), "{} on {what}, with the bytes b\"{}\"", target.name, bytes.escape_ascii());
}

#[test]
fn every_seed_ends_in_a_result() {
    for target in TARGETS {
        let seeds = seeds(&target);
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        seeds.iter().for_each(|(name, bytes)| survives(&target, bytes, name));
    }
}

#[test]
fn every_mutation_ends_in_a_result() {
    for target in TARGETS {
        let seeds: Vec<Vec<u8>> = seeds(&target).into_iter().map(|(_, bytes)| bytes).collect();
        let mut random = ChaCha8Rng::seed_from_u64(4);
        for mutation in 0..MUTATIONS {
            let mut bytes = seeds.choose(&mut random).unwrap().clone();
            for _ in 0..random.random_range(1..4) {
                mutate(&mut bytes, &seeds, &mut random);
            }
            survives(&target, &bytes, &format!("mutation {mutation}"));
        }
    }
}

/// What fuzzers do, too: bits, bytes, numbers, cuts, repetitions, and parts of other seeds.
fn mutate(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut ChaCha8Rng) {
    const NUMBERS: [u32; 7] = [0, 1, 0x7F, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF];
    let at = random.random_range(0..=bytes.len());
    let end = random.random_range(at..=bytes.len().min(at + 64));
    match random.random_range(0..7) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = random.random(),
        2 if at + 4 <= bytes.len() => {
            let number = *NUMBERS.choose(random).unwrap();
            let number = if random.random() { number.to_le_bytes() } else { number.to_be_bytes() };
            bytes[at..at + 4].copy_from_slice(&number);
        }
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..end)),
        5 => bytes.extend_from_within(at..end),
        _ => {
            let other = seeds.choose(random).unwrap();
            let start = random.random_range(0..=other.len());
            let end = random.random_range(start..=other.len().min(start + 64));
            bytes.splice(at..at, other[start..end].iter().copied());
        }
    }
}

/// Bytes that change at random are seldom JSON, so requests are changed value by value, too.
#[test]
fn requests_with_exchanged_values_end_in_a_result() {
    let target = TARGETS.into_iter().find(|target| target.name == "chat").unwrap();
    let seeds = seeds(&target).into_iter().filter_map(|(_, bytes)| serde_json::from_slice(&bytes).ok());
    let requests: Vec<Value> = seeds.collect();
    let extremes = [json!(null), json!(-1), json!(u64::MAX), json!(1e308), json!(5e-324), json!("\u{202e}"), json!([])];
    let values: Vec<(String, &Value)> = requests.iter().flat_map(parts).collect();
    let mut random = ChaCha8Rng::seed_from_u64(4);
    for mutation in 0..MUTATIONS {
        let mut request = requests.choose(&mut random).unwrap().clone();
        for _ in 0..random.random_range(1..4) {
            let place = parts(&request).choose(&mut random).unwrap().0.clone();
            let alike: Vec<&Value> =
                values.iter().filter(|(other, _)| field(other) == field(&place)).map(|(_, value)| *value).collect();
            let other = if random.random_ratio(1, 8) {
                extremes.choose(&mut random)
            } else {
                alike.choose(&mut random).copied()
            };
            *request.pointer_mut(&place).unwrap() = other.unwrap_or(&Value::Null).clone();
        }
        survives(&target, request.to_string().as_bytes(), &format!("exchange {mutation}"));
    }
}

/// The last name in a pointer. Values of one field are exchanged, so that many requests stay whole.
fn field(place: &str) -> Option<&str> {
    place.rsplit('/').find(|name| !name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// All values in a value, and the pointers that lead to them.
fn parts(value: &Value) -> Vec<(String, &Value)> {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, child)| (key.clone(), child)).collect(),
        Value::Array(elements) => (0..).map(|index: usize| index.to_string()).zip(elements).collect(),
        _ => Vec::new(),
    };
    let below = children
        .into_iter()
        .flat_map(|(key, child)| parts(child).into_iter().map(move |(place, part)| (format!("/{key}{place}"), part)));
    [(String::new(), value)].into_iter().chain(below).collect()
}

/// A fuzzer that begins with rubbish stays at the gate.
#[test]
fn the_good_seeds_are_read() {
    let seed = |name: &str| fs::read(fuzz().join("seeds").join(name)).unwrap();
    assert!(Image::decode(&seed("picture/turned-6.jpeg"), 10_000).is_ok());
    assert!(Mask::from_png(&seed("mask/rgba.png"), 100).is_ok());
    let rle: Rle = serde_json::from_slice(&seed("rle/a-disk-text.json")).unwrap();
    assert!(Mask::from_rle(&rle).is_ok());
    let gguf = Gguf::from_bytes("seed.gguf", seed("gguf/two-tensors.gguf")).unwrap();
    let values = |name: &str| gguf.tensor(name).unwrap().dequantize().unwrap();
    // A block of `q8_0` is its scale, here a half, and 32 whole numbers.
    assert_eq!(values("a.weight"), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values("b.weight"), (0..32).map(|number| number as f32 / 2.0).collect::<Vec<_>>());
    let size = ImageSize { width: 200, height: 100 };
    for name in ["forms", "rounds", "beside", "literal", "again", "choices"] {
        let chat = reading::chat(&seed(&format!("chat/{name}.json")), size);
        assert!(chat.is_ok(), "{name}: {}", chat.unwrap_err());
    }
    for name in ["describe", "describe-detail", "describe-choices"] {
        let describe = reading::describe(&seed(&format!("chat/{name}.json")), size);
        assert!(describe.is_ok(), "{name}: {}", describe.unwrap_err());
    }
    for (name, bytes) in [("png", 82), ("at-the-limit", 100)] {
        let url = String::from_utf8(seed(&format!("data_url/{name}"))).unwrap();
        assert_eq!(reading::data_url(&url, 100).map(|file| file.len()).ok(), Some(bytes), "{name}");
    }
    for (name, dialogues) in [
        ("lines.jsonl", 3),
        ("coco.json", 2),
        ("visual-genome.json", 1),
        ("vcr.jsonl", 1),
        ("visual7w.json", 2),
        ("mdetr.json", 2),
        ("llava.json", 1),
        ("all-seeing.json", 2),
    ] {
        let records =
            Records::from_bytes(Path::new(name), &seed(&format!("records/{name}")), &RecordOptions::default());
        let pictures = records.unwrap_or_else(|error| panic!("{error}")).pictures().to_vec();
        assert_eq!(pictures.iter().map(|picture| picture.dialogues.len()).sum::<usize>(), dialogues, "{name}");
    }
    for name in ["safetensors/torch.safetensors", "pickle/torch.bin", "pickle/scripted.pt"] {
        let checkpoint = Checkpoint::from_bytes(&name.replace('/', "."), seed(name), &Device::Cpu).unwrap();
        assert!(checkpoint.tensors().count() > 0, "{name}");
    }
}

#[test]
fn every_target_is_one_for_libfuzzer_too() {
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for Target { name, .. } in TARGETS {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name} is missing in fuzz/Cargo.toml"
        );
        let body = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(body.contains(&format!("gpt4roi_hostile::{name}(bytes)")), "{name}.rs runs another body");
    }
    assert_eq!(fs::read_dir(fuzz().join("fuzz_targets")).unwrap().count(), TARGETS.len());
    assert_eq!(fs::read_dir(fuzz().join("seeds")).unwrap().count(), TARGETS.len());
}

#[test]
fn a_body_that_breaks_is_found_out() {
    let target = Target { name: "broken", run: |bytes| assert!(bytes.len() < 3) };
    assert!(catch_unwind(|| survives(&target, b"12", "two")).is_ok());
    assert!(catch_unwind(|| survives(&target, b"123", "three")).is_err());
}
