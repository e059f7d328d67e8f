//! The program as a user runs it, with a model of random weights: what it answers means nothing, but
//! everything on the way to the answer is real.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command as StdCommand, Stdio},
    sync::Arc,
};

use assert_cmd::Command;
use candle_core::{Device, Tensor};
use gpt4roi::{
    Config, Network,
    tokenizer::Tokenizer,
    weights::{Census, Weights},
};
use predicates::{prelude::*, str::contains};
use tempfile::TempDir;

const TOKENIZER: &[u8] = include_bytes!("../../gpt4roi/tests/data/tokenizer.model");
const ADDED_TOKENS: &str = include_str!("../../gpt4roi/tests/data/added_tokens.json");

/// A directory with a model in `model` and a picture of 80 × 60 pixels in `scene.png`.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        write_model(&place.path("model"));
        let color = |x, y| image::Rgb([(3 * x) as u8, (4 * y) as u8, (x * y) as u8]);
        image::RgbImage::from_fn(80, 60, color).save(place.path("scene.png")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program in this directory, knowing nothing of the caller's settings.
    fn gpt4roi(&self, arguments: &[&str]) -> Command {
        let mut command = bare();
        command.current_dir(self.0.path()).args(arguments);
        command
    }

    /// The same with the model and few tokens.
    fn with_model(&self, arguments: &[&str]) -> Command {
        let mut command = self.gpt4roi(arguments);
        command.args(["--model", "model", "--max-new-tokens", "5"]);
        command
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.with_model(arguments).arg("--json").assert().success().get_output().clone();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "nothing but the object is said");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn bare() -> Command {
    let mut command = Command::cargo_bin("gpt4roi").unwrap();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GPT4ROI_") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_BACKTRACE");
    command
}

/// The published layout with the architecture in miniature.
fn write_model(directory: &Path) {
    let tower = directory.join("vision_tower");
    fs::create_dir_all(&tower).unwrap();
    let config = tiny_config();
    fs::write(directory.join("config.json"), config.to_json().to_string()).unwrap();
    fs::write(tower.join("config.json"), config.tower_to_json().to_string()).unwrap();
    fs::write(directory.join("tokenizer.model"), TOKENIZER).unwrap();
    fs::write(directory.join("added_tokens.json"), ADDED_TOKENS).unwrap();
    let (of_model, of_tower) = (Arc::new(Census::default()), Arc::new(Census::default()));
    Network::load(&config, &Weights::new(of_tower.clone()), &Weights::new(of_model.clone())).unwrap();
    for (census, file) in [(of_model, directory.join("model.safetensors")), (of_tower, tower.join("model.safetensors"))]
    {
        let noisy = |(name, shape): (String, Vec<usize>)| (name.clone(), noise(&name, &shape));
        let tensors: HashMap<String, Tensor> = census.asked().into_iter().map(noisy).collect();
        candle_core::safetensors::save(&tensors, file).unwrap();
    }
}

fn tiny_config() -> Config {
    let vocabulary = Tokenizer::from_bytes(TOKENIZER, ADDED_TOKENS).unwrap().vocab_size();
    let mut config = Config::pico(vocabulary);
    (config.llama.hidden_size, config.llama.intermediate_size, config.llama.num_hidden_layers) = (32, 48, 2);
    (config.vision.hidden_size, config.vision.intermediate_size, config.vision.image_size) = (16, 32, 56);
    (config.region.dim, config.region.gn_groups, config.region.fuse_rounds) = (8, 2, 1);
    (config.region.roi_size, config.region.pos_hidden) = (4, 8);
    config
}

/// Numbers in −0.5..0.5 that look random and depend on the name only.
fn noise(name: &str, shape: &[usize]) -> Tensor {
    let mut state = name.bytes().fold(1u64, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let commands = [
        "ask",
        "describe",
        "chat",
        "predict",
        "pull",
        "cache",
        "convert",
        "train",
        "export",
        "eval",
        "scenes",
        "inspect",
        "trace",
        "bench",
        "completions",
        "man",
    ];
    let help = bare().arg("--help").assert().success().get_output().stdout.clone();
    let help = String::from_utf8(help).unwrap();
    for expected in commands.into_iter().chain(["Exit codes:", "Examples:", "GPT4ROI_"]) {
        assert!(help.contains(expected), "{expected}:\n{help}");
    }
    for command in commands {
        bare().args([command, "--help"]).assert().success().stdout(contains("Usage: gpt4roi"));
    }
    bare().assert().code(2).stderr(contains("Usage: gpt4roi"));
    bare().arg("frobnicate").assert().code(2);
}

#[test]
fn ask_prints_the_answer_and_nothing_else() {
    let place = Place::new();
    let region = ["ask", "scene.png", "What is <region1>?", "--region", "8,6,40,30"];
    let answer = place.with_model(&region).assert().success().get_output().clone();
    let text = String::from_utf8(answer.stdout).unwrap();
    assert!(text.ends_with('\n') && text.trim().len() > 1, "{text:?}");
    let report = place.json(&region);
    assert_eq!(report["answer"], text.trim_end_matches('\n'));
    assert_eq!(report["question"], "What is <region1>?");
    assert_eq!(report["regions"], serde_json::json!([{"id": 1, "box": [8.0, 6.0, 40.0, 30.0], "origin": "given"}]));
    assert_eq!(report["tokens"]["generated"], 5);
    assert_eq!(report["finish"], "length");
    assert_eq!(report["image"]["width"], 80);
    for timing in ["load_seconds", "encode_seconds", "answer_seconds", "total_seconds"] {
        assert!(report["timings"][timing].as_f64().is_some_and(|seconds| seconds > 0.0), "{timing}: {report}");
    }
}

#[test]
fn every_unit_of_coordinates_asks_the_same() {
    let place = Place::new();
    let ask = |region, coords| {
        let report = place.json(&["ask", "scene.png", "What is <region1>?", "--region", region, "--coords", coords]);
        (report["answer"].clone(), report["regions"].clone(), report["mean_log_probability"].clone())
    };
    let pixels = ask("8,6,40,30", "pixel");
    assert_eq!(ask("0.1,0.1,0.5,0.5", "norm"), pixels);
    assert_eq!(ask("100,100,500,500", "norm1000"), pixels);
}

#[test]
fn coordinates_in_the_question_are_reported_in_pixels() {
    let place = Place::new();
    let question = "Is [0.1, 0.1, 0.5, 0.5] at (60, 30)?";
    place
        .with_model(&["ask", "scene.png", question])
        .assert()
        .success()
        .stderr(contains("note: region1 is the box 8,6,40,30 (pixels)").and(contains("note: region2 is the box")));
    let report = place.json(&["ask", "scene.png", question]);
    assert_eq!(report["question"], "Is <region1> at <region2>?");
    assert_eq!(report["regions"][0]["origin"], "coordinates");
    assert_eq!(report["regions"][1]["origin"], "point");
    place.with_model(&["ask", "scene.png", question, "--quiet"]).assert().success().stderr(contains("note:").not());
}

/// A mask of the place's picture that marks 8,6,40,30, as a PNG file and as COCO's RLE.
fn write_masks(place: &Place) {
    let inside = |x, y| (8..40).contains(&x) && (6..30).contains(&y);
    let grey = image::GrayImage::from_fn(80, 60, |x, y| image::Luma([255 * u8::from(inside(x, y))]));
    grey.save(place.path("mask.png")).unwrap();
    // Columns of 60 pixels: 8 of them outside, 32 with 24 pixels inside and 36 outside, 40 outside.
    let mut counts = vec![8 * 60 + 6];
    counts.extend([24, 36].repeat(32));
    *counts.last_mut().unwrap() = 30 + 40 * 60;
    fs::write(place.path("mask.json"), serde_json::json!({"size": [60, 80], "counts": counts}).to_string()).unwrap();
}

#[test]
fn regions_of_every_form_are_numbered_as_they_are_typed() {
    let place = Place::new();
    write_masks(&place);
    let forms = ["--mask", "mask.png", "--region", "8,6,40,30", "--polygon", "8,6,40,6,24,30", "--point", "60,30"];
    let question = "Is <region4> like <region3>, <region2>, <region1> or <region5>?";
    let arguments = ["ask", "scene.png", question].into_iter().chain(forms).chain(["--mask", "mask.json"]);
    let arguments: Vec<_> = arguments.collect();
    let report = place.json(&arguments);
    let region = |id: u64| report["regions"].as_array().unwrap().iter().find(|region| region["id"] == id).unwrap();
    for (id, origin) in [(1, "mask"), (2, "given"), (3, "polygon"), (5, "mask")] {
        assert_eq!(region(id)["origin"], origin);
        assert_eq!(region(id)["box"], serde_json::json!([8.0, 6.0, 40.0, 30.0]), "{origin}");
    }
    assert_eq!(region(4)["origin"], "point");
    let in_question = place.json(&["ask", "scene.png", "What is at (60, 30)?"]);
    assert_eq!(region(4)["box"], in_question["regions"][0]["box"], "a box grows as in a question");
    let notes = contains("note: region1 is the box 8,6,40,30").and(contains("note: region2").not());
    place.with_model(&arguments).assert().success().stderr(notes);
}

#[test]
fn every_form_of_a_region_is_described() {
    let place = Place::new();
    write_masks(&place);
    let report = place.json(&["describe", "scene.png", "--point", "60,30", "--mask", "mask.json"]);
    let origins: Vec<_> = (0..2).map(|index| report["descriptions"][index]["region"]["origin"].clone()).collect();
    assert_eq!(origins, ["point", "mask"]);
    let boxed = place.json(&["describe", "scene.png", "--region", "8,6,40,30"]);
    assert_eq!(report["descriptions"][1]["text"], boxed["descriptions"][0]["text"]);
}

#[test]
fn masks_that_can_not_be_are_refused_in_words() {
    let place = Place::new();
    write_masks(&place);
    image::GrayImage::new(60, 80).save(place.path("turned.png")).unwrap();
    image::GrayImage::new(80, 60).save(place.path("nothing.png")).unwrap();
    fs::write(place.path("short.json"), r#" {"size": [60, 80], "counts": [7, 3]}"#).unwrap();
    fs::write(place.path("no.json"), r#"{"size": [60, 80], "counts": [1.5]}"#).unwrap();
    for (mask, says) in [
        ("turned.png", &["mask turned.png: expected a mask of the picture's size, 80×60, got 60×80", "hint: "][..]),
        ("nothing.png", &["mask nothing.png: expected a mask that marks something"]),
        ("short.json", &["mask short.json: expected counts of 4800 pixels in all, got 10"]),
        ("no.json", &["mask no.json: expected counts as a list of whole numbers or as a string", "hint: a mask is"]),
        ("absent.png", &["mask absent.png: "]),
        (
            "model/config.json",
            &["mask model/config.json: expected counts, polygons or a segmentation", "hint: a mask is"],
        ),
        ("model/tokenizer.model", &["mask model/tokenizer.model: expected a mask as a PNG file", "hint: a mask is"]),
    ] {
        let output = place.with_model(&["describe", "scene.png", "--mask", mask]).assert().code(1).get_output().clone();
        let said = String::from_utf8(output.stderr).unwrap();
        says.iter().for_each(|expected| assert!(said.contains(expected), "{mask} should say {expected:?}:\n{said}"));
    }
}

#[test]
fn trace_takes_every_model_that_other_commands_take() {
    let place = Place::new();
    let case = serde_json::json!({
        "image": "scene.png", "boxes": {"1": [8, 6, 40, 30]}, "turns": [{"question": "What is <region1>?"}],
        "max_new_tokens": 3, "box_precision": "f32", "level_stride": [1, 1, 1, 1]
    });
    fs::write(place.path("case.json"), case.to_string()).unwrap();
    place.gpt4roi(&["convert", "--from", "model", "--quantize", "q8_0", "--out", "pair"]).assert().success();
    for model in ["model", "pair", "pair/pair-q8_0.gguf"] {
        let arguments = ["trace", "--model", model, "--case", "case.json", "--out", "trace.safetensors"];
        place.gpt4roi(&arguments).assert().success().stderr(contains("round 1: "));
        fs::remove_file(place.path("trace.safetensors")).unwrap();
    }
}

#[test]
fn what_can_not_be_is_refused_with_a_word_of_advice() {
    struct Case {
        arguments: &'static [&'static str],
        code: i32,
        says: &'static [&'static str],
    }
    let cases = [
        Case {
            arguments: &["ask", "scene.png", "What is this?", "--region", "8,6,40,30"],
            code: 2,
            says: &["error: the question does not mention <region1>", "hint: write for example"],
        },
        Case {
            arguments: &["ask", "scene.png", "What is <region2>?", "--region", "8,6,40,30"],
            code: 2,
            says: &["<region2> is not declared", "hint: regions are declared with --region"],
        },
        Case {
            arguments: &["ask", "scene.png", "What is <region1>?", "--region", "8,6,90,30"],
            code: 2,
            says: &["error: region `8,6,90,30`: x2: expected 0 to 80 (pixels), got 90", "hint: the picture is 80×60"],
        },
        Case {
            arguments: &["ask", "scene.png", "What is <region1>?", "--region", "0.1,0.1,0.5,0.5"],
            code: 2,
            says: &["error: region `0.1,0.1,0.5,0.5`", "hint: --coords norm"],
        },
        Case {
            arguments: &["ask", "scene.png", "What is <region1>?", "--region", "left"],
            code: 2,
            says: &["error: region `left`: expected four numbers", "hint: for example"],
        },
        Case { arguments: &["ask", "scene.png", " "], code: 2, says: &["error: the question is empty", "hint: write"] },
        Case { arguments: &["ask", "absent.png", "What?"], code: 1, says: &["error: absent.png: "] },
        Case {
            arguments: &["ask", "What is this?", "scene.png"],
            code: 2,
            says: &["error: there is no picture What is this?", "hint: the picture comes first: gpt4roi ask scene.png"],
        },
        Case { arguments: &["ask", "empty.png", "What?"], code: 1, says: &["error: empty.png: ", "the file is empty"] },
        Case { arguments: &["ask", "model", "What?"], code: 1, says: &["error: model: ", "got a directory"] },
        Case {
            arguments: &["ask", "scene.png", "What is in [0, 0, 1, 1]?"],
            code: 2,
            says: &[
                "in pixels, this box lies within a single one",
                "hint: fractions of the picture have a decimal point",
            ],
        },
        Case {
            arguments: &["ask", "scene.png", "What is at (90, 5)?"],
            code: 2,
            says: &["x: expected 0 to 80", "hint: the picture is 80×60 pixels; fractions of it have a decimal point"],
        },
        Case {
            arguments: &["ask", "scene.png", "What is in [0.6, 0.1, 0.2, 0.5]?"],
            code: 2,
            says: &["x1 and x2: expected x1 < x2, got 0.6 and 0.2", "hint: a box is [left, top, right, bottom]"],
        },
        Case {
            arguments: &["describe", "scene.png", "--region", "8,6,40,30", "--question", "What?"],
            code: 2,
            says: &["error: --question does not mention <region1>", "hint: write for example"],
        },
        Case {
            arguments: &["describe", "scene.png", "--question", "What is <region1>?"],
            code: 2,
            says: &["error: --question is asked about regions, and none is given", "hint: --region"],
        },
        Case {
            arguments: &["describe", "scene.png", "--question", "<region1>?", "--detail", "full"],
            code: 2,
            says: &["cannot be used with"],
        },
        Case { arguments: &["ask", "model/config.json", "What?"], code: 1, says: &["error: model/config.json: "] },
        Case {
            arguments: &["ask", "scene.png", "What?", "--max-pixels", "4799"],
            code: 1,
            says: &["at most 4799 pixels, got 80×60", "hint: allow more with --max-pixels"],
        },
        Case {
            arguments: &["ask", "scene.png", "What?", "--temperature", "-1"],
            code: 2,
            says: &["error: sampling: temperature must be", "got -1"],
        },
        Case {
            arguments: &["ask", "scene.png", "What?", "--device", "abacus"],
            code: 2,
            says: &["expected auto, cpu, cuda, cuda:N or metal, got abacus"],
        },
        Case {
            arguments: &["ask", "scene.png", "What?", "--device", "cuda:9"],
            code: 1,
            says: &["error: --device cuda:9: ", "hint: --device cpu"],
        },
        Case {
            arguments: &["ask", "scene.png", "What?", "--annotate", "marked.gif"],
            code: 2,
            says: &["ends in .png, .jpg or .webp"],
        },
        Case { arguments: &["describe", "scene.png", "--coords", "furlong"], code: 2, says: &["pixel", "norm1000"] },
    ];
    let place = Place::new();
    fs::write(place.path("empty.png"), b"").unwrap();
    for Case { arguments, code, says } in cases {
        let output = place.with_model(arguments).assert().code(code).stdout("").get_output().stderr.clone();
        let output = String::from_utf8(output).unwrap();
        for expected in says {
            assert!(output.contains(expected), "{arguments:?} should say {expected:?}:\n{output}");
        }
    }
}

#[test]
fn a_question_too_long_is_refused_and_not_cut() {
    let place = Place::new();
    let long = "what is this ".repeat(2000);
    place
        .with_model(&["ask", "scene.png", &long])
        .assert()
        .code(2)
        .stderr(contains("expected at most 2048").and(contains("hint: shorten the question")));
}

/// With a model that can't be loaded, what is said of it shows whether anybody tried.
#[test]
fn a_slip_in_a_question_or_a_region_is_told_before_the_model_is_loaded() {
    let place = Place::new();
    let chat = ["chat", "scene.png", "--region", "8,6,90,30"];
    for (arguments, says) in [
        (&["ask", "scene.png", "What is <region1>?", "--region", "8,6,90,30"][..], "x2: expected 0 to 80"),
        (&["ask", "scene.png", "What is <region2>?", "--region", "8,6,40,30"], "<region2> is not declared"),
        (&["ask", "scene.png", "What?", "--region", "8,6,40,30"], "the question does not mention <region1>"),
        (&["ask", "scene.png", "What is at (90, 5)?"], "x: expected 0 to 80"),
        (&["describe", "scene.png", "--point", "90,5"], "x: expected 0 to 80"),
        (&["describe", "scene.png", "--point", "9,5", "--question", "What?"], "--question does not mention"),
        (&chat, "x2: expected 0 to 80"),
    ] {
        let told = contains(says).and(contains("nowhere").not());
        place.gpt4roi(arguments).args(["--model", "nowhere"]).assert().code(2).stderr(told);
    }
    let whole = ["ask", "scene.png", "What is <region1>?", "--region", "8,6,40,30", "--model", "nowhere"];
    place.gpt4roi(&whole).assert().code(1).stderr(contains("nowhere is neither"));
}

#[test]
fn a_model_directory_that_is_none_is_named() {
    let place = Place::new();
    place
        .gpt4roi(&["ask", "scene.png", "What?", "--model", "nowhere"])
        .assert()
        .code(1)
        .stderr(contains("error: nowhere is neither a directory nor a GGUF file").and(contains("hint: --model takes")));
    fs::remove_file(place.path("model/tokenizer.model")).unwrap();
    place.with_model(&["ask", "scene.png", "What?"]).assert().code(1).stderr(contains("tokenizer.model"));
}

#[test]
fn what_is_taken_for_a_model_is_called_by_its_name() {
    let place = Place::new();
    place.gpt4roi(&["convert", "--from", "model", "--quantize", "q8_0", "--out", "pair"]).assert().success();
    fs::create_dir_all(place.path("run/checkpoints")).unwrap();
    fs::create_dir(place.path("photos")).unwrap();
    fs::write(place.path("alone.gguf"), "GGUF").unwrap();
    for (model, says, hint) in [
        ("nosuch.gguf", "error: there is no file nosuch.gguf\n", "--model takes the directory that holds"),
        (
            "alone.gguf",
            "error: alone.gguf: expected a projector mmproj-NAME.gguf beside it, got none\n",
            "a language model alone sees nothing",
        ),
        ("nano", "nano is neither a directory nor a GGUF file", "where --model is left away"),
        (
            "photos",
            "photos holds no model: neither config.json nor a GGUF file",
            "--model takes the directory that holds",
        ),
        ("run", "run holds no model", "`gpt4roi export run --out MODEL` makes a model of it"),
        ("pair/mmproj-pair.gguf", "is only the half of a model that sees", "language model, pair/pair-q8_0.gguf"),
    ] {
        let says = contains(says).and(contains(hint));
        place.gpt4roi(&["ask", "scene.png", "What?", "--model", model]).assert().code(1).stderr(says);
    }
    for (from, says) in [("nosuch", "--from nosuch: there is no such directory"), ("scene.png", "got a file")] {
        place.gpt4roi(&["convert", "--from", from, "--out", "x"]).assert().code(1).stderr(contains(says));
    }
}

#[test]
fn annotate_writes_a_marked_copy() {
    let place = Place::new();
    let boxes = ["--region", "8,20,40,50", "--region", "50,20,70,50"];
    place.with_model(&["describe", "scene.png", "--annotate", "marked.png"]).args(boxes).assert().success();
    let (original, marked) = (
        image::open(place.path("scene.png")).unwrap().to_rgb8(),
        image::open(place.path("marked.png")).unwrap().to_rgb8(),
    );
    assert_eq!(marked.dimensions(), original.dimensions());
    assert_ne!(marked.get_pixel(8, 30), marked.get_pixel(50, 30), "each region has a colour of its own");
    assert_ne!(marked.get_pixel(8, 30), original.get_pixel(8, 30));
    assert_eq!(marked.get_pixel(24, 35), original.get_pixel(24, 35));
}

#[test]
fn nothing_is_written_over_what_is_read() {
    let place = Place::new();
    write_masks(&place);
    let case = serde_json::json!({
        "image": "scene.png", "turns": [{"question": "What?"}], "max_new_tokens": 1, "box_precision": "f32",
        "level_stride": [1, 1, 1, 1]
    });
    fs::write(place.path("case.json"), case.to_string()).unwrap();
    let read = ["scene.png", "mask.png", "case.json"].map(|name| (name, fs::read(place.path(name)).unwrap()));
    let region = ["--region", "8,6,40,30", "--mask", "mask.png"];
    for (arguments, is) in [
        (vec!["describe", "scene.png", "--annotate", "./scene.png"], "--annotate ./scene.png is the picture itself"),
        (vec!["describe", "scene.png", "--annotate", "mask.png"], "--annotate mask.png is the mask itself"),
        (vec!["ask", "scene.png", "<1>?", "--annotate", "model/../scene.png"], "is the picture itself"),
    ] {
        let says = contains(is).and(contains("hint: name another file"));
        place.with_model(&arguments).args(region).assert().code(2).stdout("").stderr(says);
    }
    for (out, is) in [("case.json", "the case itself"), ("scene.png", "the picture itself")] {
        let trace = ["trace", "--model", "model", "--case", "case.json", "--out", out];
        place.gpt4roi(&trace).assert().code(2).stderr(contains(is));
    }
    let lines = "/save scene.png\n/save mask.png\n/region mask.json\n/save mask.json\n";
    place
        .with_model(&["chat", "scene.png", "--mask", "mask.png"])
        .write_stdin(lines)
        .assert()
        .code(1)
        .stderr(contains("/save scene.png is the picture itself").and(contains("mask.json is the mask itself")));
    for (name, bytes) in read {
        assert_eq!(fs::read(place.path(name)).unwrap(), bytes, "{name}");
    }
}

#[test]
fn a_result_is_told_before_the_file_beside_it_is_written() {
    let place = Place::new();
    for (arguments, says) in [
        (
            &["ask", "scene.png", "What?", "--annotate", "no/marked.png"][..],
            "--annotate no/marked.png: there is no folder no",
        ),
        (&["describe", "scene.png", "--annotate", "no/marked.png"], "there is no folder no"),
        (&["eval", "scenes", "--count", "1", "--plot", "no/plot.svg"], "--plot no/plot.svg: there is no folder no"),
        (&["eval", "curves", "--count", "1", "--plot", "model"], "expected a file name that ends in .svg"),
        (&["eval", "scenes", "--count", "1", "--plot", "plot.gif"], "expected a file name that ends in .svg"),
        (&["convert", "--from", "model", "--out", "x", "--report", "no/report.json"], "there is no folder no"),
    ] {
        let command =
            place.gpt4roi(arguments).env("GPT4ROI_MODEL", "model").assert().failure().stdout("").get_output().clone();
        let said = String::from_utf8(command.stderr).unwrap();
        assert!(said.contains(says), "{arguments:?} should say {says:?}:\n{said}");
    }
    assert!(!place.path("x").exists(), "nothing is begun");
}

#[test]
fn an_unsure_answer_is_withheld_and_kept_in_the_report() {
    let place = Place::new();
    let question = ["ask", "scene.png", "What is <region1>?", "--region", "8,6,40,30"];
    let plain = place.json(&question);
    let probability = plain["probability"].as_f64().unwrap();
    assert!((probability.ln() - plain["mean_log_probability"].as_f64().unwrap()).abs() < 1e-9);
    assert!(0.0 < probability && probability < 0.9 && plain["withheld"].is_null(), "{plain}");

    let with = |threshold: &'static str| question.into_iter().chain(["--abstain", threshold]).collect::<Vec<_>>();
    let (sure, unsure) = (place.json(&with("0")), place.json(&with("0.9")));
    assert_eq!((&sure["answer"], &sure["withheld"]), (&plain["answer"], &serde_json::Value::Null));
    assert_eq!((&unsure["answer"], &unsure["withheld"]), (&"I do not know.".into(), &plain["answer"]));
    place.with_model(&with("0.9")).assert().success().stdout("I do not know.\n");
    let described = place.json(&["describe", "scene.png", "--region", "8,6,40,30", "--abstain", "0.9"]);
    let described = &described["descriptions"][0];
    assert_eq!((&described["text"], &described["withheld"]), (&"I do not know.".into(), &plain["answer"]));
    for threshold in ["1.1", "-0.1", "NaN", "half"] {
        place.with_model(&question).arg(format!("--abstain={threshold}")).assert().code(2).stderr(contains("0 to 1"));
    }
}

#[test]
fn zooming_changes_what_is_seen_of_small_regions_only() {
    let place = Place::new();
    let confidence = |region, zoom| {
        let asked = place.json(&["ask", "scene.png", "What is <region1>?", "--region", region, "--zoom", zoom]);
        asked["mean_log_probability"].as_f64().unwrap()
    };
    // 6 of 80 pixels are 4 of the tower's 56; the other box is larger than any that is small.
    assert_ne!(confidence("30,30,36,36", "auto"), confidence("30,30,36,36", "off"));
    assert_eq!(confidence("0,0,80,60", "auto"), confidence("0,0,80,60", "off"));
}

#[test]
fn an_evaluation_prints_and_draws_what_it_measured() {
    let place = Place::new();
    let run = |what: &str| {
        let arguments = ["eval", what, "--seed", "3", "--count", "1", "--json", "--plot", "plot.svg"];
        let output = place.gpt4roi(&arguments).assert().success().get_output().stdout.clone();
        assert!(fs::read_to_string(place.path("plot.svg")).unwrap().contains("</svg>"));
        serde_json::from_slice::<serde_json::Value>(&output).unwrap()
    };
    let scenes = run("scenes");
    assert_eq!((&scenes["seed"], &scenes["count"]), (&3.into(), &1.into()));
    assert_eq!(scenes["questions"]["name"]["n"], 1);
    let by_pixels: u64 =
        scenes["by_pixels"].as_object().unwrap().values().map(|size| size["n"].as_u64().unwrap()).sum();
    assert_eq!((by_pixels, &scenes["calibration"]["name"]["n"]), (1, &1.into()));
    assert_eq!(run("scenes"), scenes, "the same again");
    let curves = run("curves");
    assert_eq!((&curves["jitter"][0]["share"], &curves["jitter"][0]["name"]["n"]), (&0.0.into(), &1.into()));
    assert_eq!(curves["regions_at_once"][0]["regions"], 1);
    place.gpt4roi(&["eval", "curves", "--count", "1"]).assert().success().stdout(contains("jitter 30 %"));
    place.gpt4roi(&["eval", "curves", "--count", "0"]).assert().code(2).stderr(contains("--count"));
}

#[test]
fn describe_gives_each_region_a_line() {
    let place = Place::new();
    let boxes = ["--region", "8,20,40,50", "--region", "50,20,70,50"];
    let output =
        place.with_model(&["describe", "scene.png"]).args(boxes).assert().success().get_output().stdout.clone();
    let output = String::from_utf8(output).unwrap();
    assert!(output.starts_with("region1: ") && output.contains("\nregion2: "), "{output}");

    let arguments: Vec<_> = ["describe", "scene.png", "--detail", "full"].into_iter().chain(boxes).collect();
    let report = place.json(&arguments);
    assert_eq!(report["descriptions"].as_array().unwrap().len(), 2);
    assert_eq!(report["descriptions"][1]["region"]["box"], serde_json::json!([50.0, 20.0, 70.0, 50.0]));
    let whole = place.json(&["describe", "scene.png"]);
    assert_eq!(whole["descriptions"][0]["region"], serde_json::Value::Null);
}

#[test]
fn describe_says_which_description_was_cut_off() {
    let place = Place::new();
    let describe = ["describe", "scene.png", "--region", "8,20,40,50", "--region", "50,20,70,50"];
    let report = place.json(&describe);
    assert_eq!(
        (&report["descriptions"][0]["finish"], &report["descriptions"][1]["finish"]),
        (&"length".into(), &"length".into())
    );
    let warned = contains("warning: the description of region1 was cut off after 5 tokens")
        .and(contains("warning: the description of region2 was cut off after 5 tokens"));
    place.with_model(&describe).arg("--quiet").assert().success().stderr(warned);
}

#[test]
fn describe_asks_each_region_what_one_wants() {
    let place = Place::new();
    let regions = ["--region", "50,20,70,50", "--region", "8,6,40,30"];
    let question = "Is <region1> left of [0.5, 0, 1, 1]?";
    let arguments: Vec<_> = ["describe", "scene.png", "--question", question].into_iter().chain(regions).collect();
    let report = place.json(&arguments);
    let alone = place.json(&["ask", "scene.png", question, "--region", "8,6,40,30"]);
    assert_eq!(report["descriptions"][1]["text"], alone["answer"]);
    assert_eq!(report["descriptions"][1]["region"]["box"], serde_json::json!([8.0, 6.0, 40.0, 30.0]));
}

#[test]
fn regions_are_cut_and_read_as_they_were_written() {
    let place = Place::new();
    let boxes = |regions: &[&str]| {
        let arguments: Vec<_> = ["describe", "scene.png"].into_iter().chain(regions.iter().copied()).collect();
        place.json(&arguments)["descriptions"][0]["region"]["box"].clone()
    };
    let expected = serde_json::json!([8.0, 6.0, 40.0, 30.0]);
    assert_eq!(boxes(&["--region", "8,6,32,24", "--box-format", "xywh"]), expected);
    assert_eq!(boxes(&["--region", "24,18,32,24", "--box-format", "cxcywh"]), expected);
    assert_eq!(boxes(&["--region", "300,300,400,400", "--coords", "norm1000", "--box-format", "cxcywh"]), expected);
    assert_eq!(boxes(&["--region=-8,6,90,30", "--clip"]), serde_json::json!([0.0, 6.0, 80.0, 30.0]));
    let out = ["describe", "scene.png", "--region", "8,6,90,30"];
    place.with_model(&out).assert().code(2).stderr(contains("hint: ").and(contains("--clip cuts off what sticks out")));
}

#[test]
fn describe_tells_many_regions_in_the_order_given() {
    let place = Place::new();
    let boxes: Vec<_> = (0..20).map(|i| format!("{},{},{},{}", i, i / 2, 30 + i, 25 + i)).collect();
    let regions = boxes.iter().flat_map(|bbox| ["--region", bbox]);
    let arguments: Vec<_> = ["describe", "scene.png"].into_iter().chain(regions).collect();
    let together = place.json(&arguments);
    let descriptions = together["descriptions"].as_array().unwrap();
    assert_eq!(descriptions.len(), 20);
    for (i, description) in (1..).zip(descriptions) {
        assert_eq!(description["region"]["id"], i);
    }
    let alone = place.json(&["describe", "scene.png", "--region", &boxes[13]]);
    assert_eq!(alone["descriptions"][0]["text"], descriptions[13]["text"]);
    assert_eq!(alone["descriptions"][0]["region"]["box"], descriptions[13]["region"]["box"]);
}

#[test]
fn chat_reads_commands_and_questions_from_a_pipe() {
    let place = Place::new();
    let lines = "/region 8,6,40,30\n\nWhat is <region1>?\nIs region 1 at (0.5, 0.5)?\n/regions\n/undo\n/regions\n/save chat.json\n/save marked.png\n/quit\nnever read\n";
    let output = place.with_model(&["chat", "scene.png"]).write_stdin(lines).assert().success().get_output().clone();
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("<region1> declared"), "{notes}");
    assert!(notes.contains("<region1> 8,6,40,30 (pixels)\n<region2> "), "{notes}");
    assert!(notes.contains("taken back: Is <region1> at <region2>?\n<region1> 8,6,40,30 (pixels)\nsaved"), "{notes}");
    let saved: serde_json::Value = serde_json::from_slice(&fs::read(place.path("chat.json")).unwrap()).unwrap();
    assert_eq!(saved["rounds"].as_array().unwrap().len(), 1);
    assert_eq!(saved["rounds"][0]["question"], "What is <region1>?");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with(saved["rounds"][0]["answer"].as_str().unwrap()), "{said}");
    assert!(place.path("marked.png").is_file());
}

#[test]
fn chat_takes_regions_of_every_form() {
    let place = Place::new();
    write_masks(&place);
    let lines = "/region 60,30\n/region 8,6,40,6,24,30\n/region mask.png\n/regions\n";
    let arguments = ["chat", "scene.png", "--mask", "mask.json"];
    let output = place.with_model(&arguments).write_stdin(lines).assert().success().get_output().clone();
    let notes = String::from_utf8(output.stderr).unwrap();
    for line in [
        "<region4> declared",
        "<region1> 8,6,40,30 (pixels), around a mask",
        "(pixels), grown around a point",
        "<region3> 8,6,40,30 (pixels), around a polygon",
        "<region4> 8,6,40,30 (pixels), around a mask",
    ] {
        assert!(notes.contains(line), "{line}:\n{notes}");
    }
}

#[test]
fn chat_chooses_between_given_answers() {
    let place = Place::new();
    fs::write(place.path("labels.txt"), "cat\tA cat.\ndog\tA dog.\n").unwrap();
    let region = ["--region", "8,6,40,30"];
    let ask = ["ask", "scene.png", "What is <region1>?", "--choice", "A cat.", "--choice", "A dog."];
    let output = place.with_model(&ask).args(region).arg("--json").assert().success().get_output().stdout.clone();
    let report: serde_json::Value = serde_json::from_slice(&output).unwrap();
    let best = report["answer"].as_str().unwrap();
    let label = if best == "A cat." { "cat" } else { "dog" };

    let lines = "/choose What is <region1>? | A cat. | A dog.\n/undo\n/choose What is <region1>? | labels.txt\n\
                 /save labels.txt\n/save chat.json\n/choose What is <region1>?\n/choose Is it? | A cat.\n\
                 /choose Is it? | Yes. | Yes.\n";
    let mut chat = place.with_model(&[&["chat", "scene.png", "--temperature", "1"], &region[..]].concat());
    let output = chat.write_stdin(lines).assert().code(1).get_output().clone();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{best}\n{label}\n"));
    let notes = String::from_utf8(output.stderr).unwrap();
    let share = report["probability"].as_f64().unwrap();
    for told in [
        &format!("note: shares: {share:.2} {best}, "),
        "taken back: What is <region1>?\n",
        "error: line 4: /save labels.txt is the file of choices itself\n",
        "error: line 6: /choose needs a question and answers, with a bar before each\nhint: /choose What is <region1>? | ",
        "error: line 7: /choose: expected two answers or more, or a file of them, got `A cat.`",
        "error: line 8: /choose: choice 2: expected one that differs from the others, got \"Yes.\" as in choice 1\n",
        "error: 4 lines failed",
    ] {
        assert!(notes.contains(told), "{told}:\n{notes}");
    }
    let saved: serde_json::Value = serde_json::from_slice(&fs::read(place.path("chat.json")).unwrap()).unwrap();
    // What the model would say goes into the conversation, not its label.
    assert_eq!(saved["rounds"], serde_json::json!([{"question": "What is <region1>?", "answer": best}]));
}

#[test]
fn chat_goes_on_after_a_bad_line_and_tells_in_the_end() {
    let place = Place::new();
    place
        .with_model(&["chat", "scene.png"])
        .write_stdin("What is <region3>?\n/dance\nWhat is in the picture?\n")
        .assert()
        .code(1)
        .stdout(predicate::str::is_empty().not())
        .stderr(
            contains("error: line 1: character 9: <region3> is not declared")
                .and(contains("error: line 2: there is no command /dance\nhint: /help lists the commands"))
                .and(contains("error: 2 lines failed")),
        );
}

#[test]
fn chat_goes_on_after_a_line_that_is_no_text() {
    let place = Place::new();
    place
        .with_model(&["chat", "scene.png"])
        .write_stdin(b"Caf\xE9?\n/region 8,6,40,30\r\n/region 8,6,90,30\n".as_slice())
        .assert()
        .code(1)
        .stderr(
            contains("error: line 1: byte 4: expected text in UTF-8")
                .and(contains("<region1> declared"))
                .and(contains("error: line 3: region `8,6,90,30`"))
                .and(contains("hint: the picture is 80×60 pixels; the numbers count pixels\n"))
                .and(contains("error: 2 lines failed")),
        );
}

#[test]
fn warnings_are_told_however_quiet_it_is() {
    let place = Place::new();
    let ask = ["ask", "scene.png", "<1>?", "--region", "8,6,40,30", "--region", "1,1,9,9", "--quiet"];
    let told = contains("warning: the question does not mention <region2>")
        .and(contains("warning: the answer was cut off after 5 tokens; --max-new-tokens allows more"))
        .and(contains("note:").not());
    place.with_model(&ask).assert().success().stderr(told);
    let draw = ["ask", "scene.png", "What?", "--top-k", "3", "--seed", "7"];
    let idle =
        contains("warning: --top-k plays no part without --temperature").and(contains("warning: --seed plays no part"));
    place.with_model(&draw).assert().success().stderr(idle);
    place.with_model(&draw).args(["--temperature", "1"]).assert().success().stderr(contains("plays no part").not());
    for none in ["0", "-1", "ten", "1.5"] {
        let nothing = ["ask", "scene.png", "What?", "--model", "model", &format!("--max-new-tokens={none}")];
        let says = format!("'{none}' for '--max-new-tokens <N>': expected a whole number, 1 or more");
        place.gpt4roi(&nothing).assert().code(2).stderr(contains(says));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_may_have_any_name() {
    use std::os::unix::ffi::OsStrExt;

    let place = Place::new();
    let marked = std::ffi::OsStr::from_bytes(b"marked-\xFF.png");
    place.with_model(&["describe", "scene.png"]).arg("--annotate").arg(marked).assert().success();
    assert!(place.0.path().join(marked).is_file());
}

#[test]
fn draws_repeat_with_their_seed() {
    let place = Place::new();
    let ask = |seed| {
        let arguments = ["ask", "scene.png", "What?", "--temperature", "9", "--top-k", "0", "--seed", seed];
        place.json(&arguments)["answer"].clone()
    };
    assert_eq!(ask("7"), ask("7"));
    assert_ne!(ask("7"), ask("8"));
}

#[test]
fn flags_can_stand_in_the_environment() {
    let place = Place::new();
    let mut command = place.gpt4roi(&["ask", "scene.png", "Is <region1> left of <region2>?"]);
    command.env("GPT4ROI_MODEL", "model").env("GPT4ROI_REGION", "100,100,500,500;500,500,900,900");
    command.env("GPT4ROI_COORDS", "norm1000").env("GPT4ROI_MAX_NEW_TOKENS", "3").env("GPT4ROI_JSON", "1");
    let output = command.assert().success().get_output().stdout.clone();
    let report: serde_json::Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(report["tokens"]["generated"], 3);
    assert_eq!(report["regions"][1]["box"], serde_json::json!([40.0, 30.0, 72.0, 54.0]));
    command.env("GPT4ROI_POINT", "500,500").env("GPT4ROI_POLYGON", "0,0,9,0,0,9;100,100,500,100,500,500");
    command.assert().success().stderr(contains("warning: the question does not mention <region5>"));
    command.env("GPT4ROI_JSON", "0").assert().success().stdout(predicate::str::starts_with("{").not());
}

#[test]
fn convert_makes_a_pair_of_files_that_answers() {
    let place = Place::new();
    let convert = ["convert", "--from", "model", "--quantize", "q4_k", "--out", "tiny", "--report", "report.json"];
    let output = place.gpt4roi(&convert).assert().success().stderr(contains("KL divergence")).get_output().clone();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(output.starts_with("fingerprint ") && output.contains("self-test   What is <region1>?"), "{output}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(place.path("report.json")).unwrap()).unwrap();
    assert!(output.contains(report["fingerprint"].as_str().unwrap()));
    let errors: Vec<f64> =
        report["rounding"].as_array().unwrap().iter().map(|tensor| tensor["relative_rms"].as_f64().unwrap()).collect();
    assert!(errors.is_sorted_by(|a, b| a >= b) && errors.len() > 50, "the worst come first");
    assert!(report["divergence"]["mean_kl"].as_f64().unwrap() > 0.0);

    let question = ["ask", "scene.png", "What is <region1>?", "--region", "1,1,40,40", "--max-new-tokens", "3"];
    for model in ["tiny", "tiny/tiny-q4_k.gguf"] {
        place.gpt4roi(&question).args(["--model", model]).assert().success();
    }
    place.gpt4roi(&["inspect", "--model", "tiny", "--json"]).assert().success().stdout(contains("mmproj-tiny.gguf"));
}

#[test]
fn convert_replaces_nothing_unasked() {
    let place = Place::new();
    let convert = ["convert", "--from", "model", "--out", "copy"];
    let first = place.gpt4roi(&convert).assert().success().get_output().stdout.clone();
    place.gpt4roi(&convert).assert().code(1).stderr(contains("copy exists already").and(contains("hint: --force")));
    let second = place.gpt4roi(&convert).arg("--force").assert().success().get_output().stdout.clone();
    assert_eq!(first, second, "the same fingerprint and the same answer");
    fs::write(place.path("copy/notes.txt"), "mine").unwrap();
    let says = contains("expected nothing but a model to replace, got notes.txt").and(contains("hint: --out takes"));
    place.gpt4roi(&convert).arg("--force").assert().code(1).stderr(says);
    assert_eq!(fs::read_to_string(place.path("copy/notes.txt")).unwrap(), "mine");
    let again = ["convert", "--from", "copy", "--out", "again"];
    let third = place.gpt4roi(&again).assert().success().get_output().stdout.clone();
    assert_eq!(first, third, "half precision loses nothing more");
}

#[test]
fn convert_says_what_it_needs() {
    let place = Place::new();
    for (arguments, message) in [
        (vec!["--out", "x"], "--from <DIR>"),
        (vec!["--base", "model", "--out", "x"], "--delta or --projector goes with it"),
        (vec!["--delta", "model", "--out", "x"], "--base <DIR>"),
        (vec!["--from", "model", "--mmproj", "q4_k", "--quantize", "q8_0", "--out", "x"], "expected f16 or q8_0"),
    ] {
        place.gpt4roi(&["convert"]).args(arguments).assert().code(2).stderr(contains(message));
    }
    fs::remove_dir_all(place.path("model/vision_tower")).unwrap();
    let convert = ["convert", "--from", "model", "--quantize", "f16", "--out", "x"];
    place.gpt4roi(&convert).assert().code(1).stderr(contains("vision tower").and(contains("hint: --tower")));
    assert!(!place.path("x").exists());
}

#[test]
fn inspect_compares_a_checkpoint_with_its_configuration() {
    let place = Place::new();
    place
        .gpt4roi(&["inspect", "--model", "model"])
        .assert()
        .success()
        .stdout(contains("model.mm_projector.weight").and(contains("0 unused, 0 missing, 0 of a wrong shape")));

    let file = place.path("model/model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    tensors.remove("model.norm.weight").unwrap();
    tensors.insert("model.extra".into(), noise("extra", &[2, 3]));
    tensors.insert("model.mm_projector.bias".into(), noise("bias", &[31]));
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let output = place.gpt4roi(&["inspect", "--model", "model", "--json"]).assert().code(1).get_output().stdout.clone();
    let report: serde_json::Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(report["missing"], serde_json::json!({"model.norm.weight": [32]}));
    assert_eq!(report["unused"], serde_json::json!(["model.extra"]));
    assert_eq!(report["wrong_shape"], serde_json::json!({"model.mm_projector.bias": {"expected": [32], "got": [31]}}));
    place.with_model(&["ask", "scene.png", "What?"]).assert().code(1).stderr(contains("hint: `gpt4roi inspect"));
}

#[test]
fn inspect_shows_a_prompt_token_by_token() {
    let place = Place::new();
    let prompt = ["inspect", "prompt", "What is <region1>?", "--regions", "1", "--model", "model"];
    place
        .gpt4roi(&prompt)
        .assert()
        .success()
        .stdout(contains("×16, replaced by the picture's patches").and(contains("replaced by <region1>'s vector")));
    let output =
        place.gpt4roi(&prompt).args(["--answer", "a car", "--json"]).assert().success().get_output().stdout.clone();
    let report: serde_json::Value = serde_json::from_slice(&output).unwrap();
    let tokens = report["tokens"].as_array().unwrap();
    assert_eq!(tokens[0]["piece"], "<s>");
    let place_of_region = report["regions"][0]["position"].as_u64().unwrap() as usize;
    assert_eq!(tokens[place_of_region]["piece"], "<bbox>");
    assert!(tokens.iter().any(|token| token["learned"] == true));
}

/// Three answers that can be scored, two of them right, and one that can't.
const PREDICTIONS: &str = r#"{"id": 1, "round": 1, "image": "a.png", "question": "What is <region1>?", "prediction": "Red cat.", "answers": ["the red cat"]}
{"id": 2, "round": 1, "image": "a.png", "question": "Describe <region1>.", "prediction": "blue dog", "answers": ["green bird"]}
{"id": "x", "round": 2, "image": "b.png", "question": "What is <region1>?", "prediction": "old man", "answers": ["young lady", "old man"]}
{"id": "x", "round": 3, "image": "b.png", "question": "Why?", "prediction": "because"}
"#;

#[test]
fn predictions_are_scored_without_a_model() {
    let place = Place::new();
    fs::write(place.path("said.jsonl"), PREDICTIONS).unwrap();
    let arguments = ["eval", "predictions", "said.jsonl"];
    let more = ["--json", "--by", "question", "--per-item", "lines.jsonl"];
    let output = place.gpt4roi(&arguments).args(more).assert().success().get_output().stdout.clone();
    let report: serde_json::Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(
        (&report["all"]["n"], &report["all"]["pictures"], &report["without_answers"]),
        (&3.into(), &2.into(), &1.into())
    );
    let close = |group: &serde_json::Value, score: &str, expected: f64| {
        let got = group.pointer(score).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
        assert!((got - expected).abs() < 1e-6, "{score}: {got}, expected {expected}");
    };
    close(&report["all"], "/exact/accuracy", 2.0 / 3.0);
    // Of six words four are right, of three pairs two; the references closest in length have 3, 2 and 2 words.
    let brevity = (1.0f64 - 7.0 / 6.0).exp();
    close(&report["all"], "/bleu/0/score", brevity * 2.0 / 3.0);
    close(&report["all"], "/bleu/1/score", brevity * 2.0 / 3.0);
    // Precision 1 and recall 2/3, nothing, and everything.
    let red_cat = 2.44 * (2.0 / 3.0) / (2.0 / 3.0 + 1.44);
    close(&report["all"], "/rouge_l/score", (red_cat + 1.0) / 3.0);
    let first = &report["one_per_picture"];
    assert_eq!((&first["n"], &first["pictures"]), (&2.into(), &2.into()));
    close(first, "/exact/accuracy", 1.0);
    assert_eq!(report["by_question"]["Describe <region1>."]["n"], 1);
    assert_eq!(report["by_question"]["What is <region1>?"]["exact"]["accuracy"], 1.0);
    let lines = fs::read_to_string(place.path("lines.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!((&lines[1]["id"], &lines[1]["exact"], &lines[1]["rouge_l"]), (&"2".into(), &false.into(), &0.0.into()));
    // Words and pairs are all right, longer runs there are none, and one of two references is wrong: 10 / 4.
    close(&lines[2], "/cider", 2.5);
    place.gpt4roi(&arguments).assert().success().stdout(
        contains("every line: 3, pictures: 2")
            .and(contains("the first line of each picture: 2, pictures: 2"))
            .and(contains("METEOR (exact, stem)"))
            .and(contains("--meteor-data gives theirs"))
            .and(contains("not scored: 1.")),
    );
}

/// A file that the output goes to would lie beside the one that takes its place, where nobody finds it any more.
#[test]
#[cfg(unix)]
fn scores_of_lines_may_go_where_the_table_goes() {
    let place = Place::new();
    fs::write(place.path("said.jsonl"), PREDICTIONS).unwrap();
    for per_item in ["/dev/stdout", "all.txt"] {
        let all = fs::File::create(place.path("all.txt")).unwrap();
        let mut command = StdCommand::new(assert_cmd::cargo::cargo_bin("gpt4roi"));
        command.current_dir(place.0.path()).args(["eval", "predictions", "said.jsonl", "--per-item", per_item]);
        assert!(command.stdout(all).status().unwrap().success());
        let told = fs::read_to_string(place.path("all.txt")).unwrap();
        let lines = told.lines().filter(|line| line.starts_with('{')).count();
        assert!(told.contains("every line: 3, pictures: 2") && lines == 3, "{per_item}: {told}");
    }
}

#[test]
fn predictions_have_the_whole_meteor_by_its_tables() {
    let place = Place::new();
    let line = r#"{"id": 1, "image": "a.png", "question": "What?", "prediction": "box", "answers": ["carton"]}"#;
    fs::write(place.path("said.jsonl"), line).unwrap();
    let tables = concat!(env!("CARGO_MANIFEST_DIR"), "/../gpt4roi-eval/tests/data/meteor");
    let arguments = ["eval", "predictions", "said.jsonl"];
    let mut json = place.gpt4roi(&arguments);
    json.args(["--json", "--per-item", "lines.jsonl"]).env("GPT4ROI_METEOR_DATA", tables);
    let report: serde_json::Value = serde_json::from_slice(&json.assert().success().get_output().stdout).unwrap();
    let scored: serde_json::Value = serde_json::from_slice(&fs::read(place.path("lines.jsonl")).unwrap()).unwrap();
    // One word each, synonyms: matched at 0.8, and all of both sides, so that nothing is punished.
    for meteor in [&report["all"]["meteor"]["score"], &scored["meteor"]] {
        assert!((meteor.as_f64().unwrap() - 0.8).abs() < 1e-9, "{meteor}");
    }
    assert_eq!((&report["all"]["meteor_exact_stem"], &scored["meteor_exact_stem"]), (&().into(), &().into()));
    let mut table = place.gpt4roi(&arguments);
    let whole = contains("METEOR                 80.0").and(contains("exact, stem").not());
    table.args(["--meteor-data", tables]).assert().success().stdout(whole);
    let mut wrong = place.gpt4roi(&arguments);
    let expected = contains("error: none: expected a folder with meteor-1.5.jar").and(contains("hint: `pip install"));
    wrong.args(["--meteor-data", "none"]).assert().code(1).stdout("").stderr(expected);
}

#[test]
fn predictions_that_cannot_be_scored_are_refused_with_their_place() {
    let place = Place::new();
    let refused = |text: &str, expected: &str| {
        fs::write(place.path("said.jsonl"), text).unwrap();
        let mut command = place.gpt4roi(&["eval", "predictions", "said.jsonl"]);
        command.assert().code(1).stdout("").stderr(contains("error: said.jsonl").and(contains(expected)));
    };
    refused("{\"id\": 1}\n", "line 1: expected a prediction");
    refused(PREDICTIONS.lines().last().unwrap(), "expected predictions with answers, got 1 without");
    refused("", "got 0 without");
}

#[test]
fn scenes_are_written_with_annotations_and_questions() {
    let place = Place::new();
    place
        .gpt4roi(&["scenes", "--seed", "3", "--count", "2", "--out", "scenes"])
        .assert()
        .success()
        .stdout("")
        .stderr(contains("2 scenes with"));
    let annotations: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("scenes/annotations.json")).unwrap()).unwrap();
    assert_eq!(annotations["images"].as_array().unwrap().len(), 2);
    assert!(place.path("scenes/images/000001.png").is_file());
    assert!(fs::read_to_string(place.path("scenes/questions.jsonl")).unwrap().lines().count() > 2);
    place.gpt4roi(&["scenes", "--kinds", "0", "--out", "none"]).assert().code(1).stderr(contains("error: "));
}

/// What a file of predictions says.
fn predictions(path: &Path) -> Vec<serde_json::Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Four conversations about the picture: three that ask the same, of which one has another number for its region, and
/// one of two rounds.
const QUESTIONS: &str = r#"{"image": "scene.png", "regions": [{"id": 1, "bbox": [8, 20, 40, 50]}], "rounds": [{"question": "What is <region1>?", "answer": "A cat."}]}
{"image": "scene.png", "regions": [{"id": 1, "bbox": [50, 20, 70, 50]}], "rounds": [{"question": "What is region 1?"}]}
{"image": "scene.png", "regions": [{"id": 3, "bbox": [50, 20, 70, 50]}], "rounds": [{"question": "What is <region3>?"}]}
{"id": "two", "image": "scene.png", "rounds": [{"question": "What is there?"}, {"question": "What is at (0.5, 0.6)?", "answers": ["A dog.", "It."]}]}
"#;

#[test]
fn predictions_name_what_is_in_the_regions() {
    let place = Place::new();
    place.gpt4roi(&["scenes", "--seed", "2026", "--count", "2", "--out", "scenes"]).assert().success();
    let data = ["predict", "scenes/annotations.json", "--images", "scenes/images", "--out", "named.jsonl"];
    place.gpt4roi(&data).assert().success().stdout("").stderr(contains("2 pictures, "));
    let annotations =
        serde_json::from_slice::<serde_json::Value>(&fs::read(place.path("scenes/annotations.json")).unwrap());
    let named = predictions(&place.path("named.jsonl"));
    assert_eq!(named.len(), annotations.unwrap()["annotations"].as_array().unwrap().len());
    let said = |line: &serde_json::Value| {
        let name = line["answers"][0].as_str().unwrap();
        line["prediction"].as_str().unwrap().contains(name)
    };
    // Of all regions the embedded model names 96 % right; it is not asked about more than ten here.
    let right = named.iter().filter(|line| said(line)).count();
    assert!(right + 1 >= named.len(), "{named:#?}");
    assert!(named.iter().all(|line| line["question"] == "What is <region1>?" && line["round"] == 1));

    // The same data with captions, without asking again.
    let more = ["--coco", "captioned.json"];
    place.gpt4roi(&data).args(more).assert().success().stderr(contains("not asked for again"));
    let captioned: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("captioned.json")).unwrap()).unwrap();
    let first = named.iter().find(|line| line["id"] == "1").unwrap();
    assert_eq!(captioned["annotations"][0]["caption"], first["prediction"]);
    assert!(!place.path("captioned.json.part").exists());
    let no_coco = ["predict", "scenes/questions.jsonl", "--out", "none.jsonl", "--coco", "none.json"];
    place.gpt4roi(&no_coco).assert().code(2).stderr(contains("--coco: expected a COCO detection file"));

    // Labels are not replaced by what a model says of them, nor are predictions by their scores.
    let labels = fs::read(place.path("scenes/annotations.json")).unwrap();
    for more in [["--coco", "scenes/../scenes/annotations.json"], ["--coco", "named.jsonl"]] {
        place.gpt4roi(&data).args(more).assert().code(2).stderr(contains("itself").and(contains("hint: name another")));
    }
    let onto = ["predict", "scenes/annotations.json", "--out", "scenes/annotations.json"];
    place.gpt4roi(&onto).assert().code(2).stderr(contains("--out scenes/annotations.json is the data itself"));
    let scores = ["eval", "predictions", "named.jsonl", "--per-item", "./named.jsonl"];
    place.gpt4roi(&scores).assert().code(2).stdout("").stderr(contains("is the file of predictions itself"));
    assert_eq!(fs::read(place.path("scenes/annotations.json")).unwrap(), labels);
    assert_eq!(predictions(&place.path("named.jsonl")), named);

    // Questions with their answers, in one round and in several.
    let data = ["predict", "scenes/questions.jsonl", "--limit", "1", "--out", "answered.jsonl", "--quiet"];
    place.gpt4roi(&data).assert().success().stdout("").stderr("");
    let answered = predictions(&place.path("answered.jsonl"));
    assert!(answered.len() > 1 && answered.iter().all(|line| line["image"] == "images/000000.png"), "{answered:#?}");
}

#[test]
fn a_file_is_checked_before_anything_is_asked() {
    let place = Place::new();
    fs::write(place.path("questions.jsonl"), QUESTIONS).unwrap();
    let amount = "pictures: 1, regions: 3, questions: 5, of these with answers: 2, with choices: 0\n";
    let check = ["predict", "questions.jsonl", "--check"];
    place.gpt4roi(&check).assert().success().stdout(amount).stderr("");

    let whole = fs::read(place.path("scene.png")).unwrap();
    fs::write(place.path("cut.png"), &whole[..whole.len() / 2]).unwrap();
    let wrong = concat!(
        r#"{"image": "cut.png", "rounds": [{"question": "What?"}]}"#,
        "\n",
        r#"{"image": "lost.png", "rounds": [{"question": "What?"}]}"#,
        "\n",
        r#"{"image": "scene.png", "regions": [{"id": 1, "bbox": [8, 20, 90, 50]}], "rounds": [{"question": "<1>?"}]}"#,
        "\n",
        r#"{"image": "scene.png", "rounds": [{"question": "Why?"}, {"question": "What is at (100, 50)?"}]}"#,
        "\n",
    );
    fs::write(place.path("questions.jsonl"), [QUESTIONS, wrong].concat()).unwrap();
    let told = place.gpt4roi(&check).assert().code(1).stdout(contains("pictures: 3, regions: 4, questions: 10,"));
    told.stderr(
        contains("error: cut.png: expected a whole picture: ")
            .and(contains("error: lost.png: "))
            .and(contains("line 7: region 1: bbox: x2: expected 0 to 80 (pixels), got 90\n"))
            .and(contains("line 8: round 2: question: character 12: (100, 50): x: expected 0 to 80"))
            .and(contains("expected records that fit their pictures, got problems: 4\n")),
    );
    place.gpt4roi(&check).args(["--limit", "1"]).assert().code(1).stderr(contains("got problems: 2\n"));
    place.gpt4roi(&["predict", "questions.jsonl"]).assert().code(2).stderr(contains("--out"));
    let mut unset = place.gpt4roi(&["predict", "questions.jsonl"]);
    unset.env("GPT4ROI_CHECK", "false").assert().code(2).stderr(contains("--out"));
}

/// Labels of the picture in twice its size, as it lay in another folder.
#[test]
fn boxes_of_a_picture_of_another_size_are_asked_about_nowhere() {
    let place = Place::new();
    let labels = r#"{"images": [{"id": 1, "file_name": "scene.png", "width": 160, "height": 120}], "annotations": [
        {"id": 1, "image_id": 1, "bbox": [8, 20, 32, 30]}, {"id": 2, "image_id": 1, "bbox": [4, 2, 32, 30]}]}"#;
    fs::write(place.path("labels.json"), labels).unwrap();
    let predict = ["predict", "labels.json", "--out", "told.jsonl"];
    let told = place.with_model(&predict).assert().code(1).get_output().clone();
    let told = String::from_utf8(told.stderr).unwrap();
    let size = "error: labels.json, image 1: width and height: expected 80×60, the size of scene.png, got 160×120\n";
    assert_eq!(told.matches(size).count(), 1, "once, not for each annotation: {told}");
    assert!(told.contains("hint: ") && predictions(&place.path("told.jsonl")).is_empty(), "{told}");
    fs::write(place.path("labels.json"), labels.replace("160", "80").replace("120", "60")).unwrap();
    place.with_model(&predict).assert().success();
    assert_eq!(predictions(&place.path("told.jsonl")).len(), 2);
}

/// Two questions in Visual7W's form: a box of four, and words.
const VISUAL7W: &str = r#"{"dataset": "visual7w", "images": [
    {"filename": "scene.png", "split": "test", "qa_pairs": [
        {"qa_id": 70, "question": "Which one is red?", "type": "which", "answer": 1, "multiple_choices": [2, 3, 4]}]},
    {"filename": "scene.png", "split": "train", "qa_pairs": [
        {"qa_id": 80, "question": "Who is there?", "type": "who", "answer": "A man.", "multiple_choices": ["A cat."]}]}],
    "boxes": [{"box_id": 1, "x": 40, "y": 10, "width": 20, "height": 20}, {"box_id": 2, "x": 10, "y": 10, "width": 20, "height": 20},
        {"box_id": 3, "x": 50, "y": 30, "width": 20, "height": 20}, {"box_id": 4, "x": 20, "y": 30, "width": 20, "height": 20}]}"#;

#[test]
fn a_data_set_is_asked_about_by_its_split() {
    let place = Place::new();
    fs::write(place.path("v7w.json"), VISUAL7W).unwrap();
    let predict = ["predict", "v7w.json", "--out", "told.jsonl"];
    let ids = || predictions(&place.path("told.jsonl")).iter().map(|line| line["id"].clone()).collect::<Vec<_>>();
    place.with_model(&predict).args(["--split", "test"]).assert().success();
    assert_eq!(ids(), ["70"]);
    let line = predictions(&place.path("told.jsonl")).remove(0);
    assert_eq!(line["answers"], serde_json::json!(["region3"]));
    assert_eq!(line["regions"][2], serde_json::json!({"id": 3, "bbox": [40.0, 10.0, 60.0, 30.0]}));
    let asked = "Given <region1>,<region2>,<region3>,<region4> in the image,Which one is red?";
    assert_eq!(line["question"], asked);

    place.with_model(&predict).assert().success();
    assert_eq!(ids(), ["70", "80"], "without a split, all are asked");
    let refused = |arguments: &[&str], expected: &'static str| {
        place.with_model(arguments).assert().code(1).stderr(contains(expected));
    };
    refused(
        &["predict", "v7w.json", "--out", "none.jsonl", "--split", "val"],
        "expected one of the file's, test, train",
    );
    fs::write(place.path("questions.jsonl"), QUESTIONS).unwrap();
    refused(&["predict", "questions.jsonl", "--out", "none.jsonl", "--split", "test"], "is not split, got test");
}

/// A mix of LLaVA's conversations: about a picture, and as text alone.
const LLAVA: &str = r#"[{"id": "talk", "model": "", "conversations": [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hello."}]},
    {"id": "33", "image": "scene.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]},
    {"id": "more", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}]"#;

#[test]
fn conversations_without_a_picture_are_passed_over() {
    const PASSED_OVER: &str = "note: conversations without a picture, which are passed over: 2\n";
    let place = Place::new();
    fs::write(place.path("mix.json"), LLAVA).unwrap();
    let predict = ["predict", "mix.json", "--out", "predictions.jsonl"];
    place.with_model(&predict).assert().success().stderr(contains(PASSED_OVER));
    let lines = predictions(&place.path("predictions.jsonl"));
    assert_eq!((lines.len(), &lines[0]["id"]), (1, &"33".into()));
    place.with_model(&predict).arg("--quiet").assert().success().stderr("");

    let stage = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/own-data.toml");
    let mut train = place.gpt4roi(&["train", stage, "--out", "run", "--set", "epochs=1"]);
    train.args(["--set", r#"model.like="model""#, "--set", r#"init.from=[{ path = "model" }]"#]);
    train.args(["--set", r#"records.files=["mix.json"]"#, "--set", r#"trainable=["lm_head."]"#]);
    train.assert().success().stderr(contains(PASSED_OVER));
}

#[test]
fn an_adapter_is_trained_exported_asked_and_merged() {
    let place = Place::new();
    fs::write(place.path("questions.jsonl"), QUESTIONS).unwrap();
    let model = || fs::read(place.path("model/model.safetensors")).unwrap();
    let before = model();
    let stage = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/adapter.toml");
    let mut train = place.gpt4roi(&["train", stage, "--out", "run", "--set", "epochs=1", "--set", "adapter.rank=2"]);
    train.args(["--set", r#"model.like="model""#, "--set", r#"records.files=["questions.jsonl"]"#]);
    train.args(["--set", "optimizer.adamw.lr=0.3", "--set", "schedule.warmup=0"]).assert().success();
    place.gpt4roi(&["export", "run", "--out", "adapter"]).assert().success();
    assert_eq!(model(), before, "the model's own files changed");

    let logits = |arguments: &[&str]| {
        let mut ask = place.gpt4roi(&[&["ask", "scene.png", "What is <region1>?", "--json"], arguments].concat());
        ask.args(["--region", "1,1,20,20", "--max-new-tokens", "1"]);
        let answer: serde_json::Value = serde_json::from_slice(&ask.assert().success().get_output().stdout).unwrap();
        answer["probability"].as_f64().unwrap()
    };
    let plain = logits(&["--model", "model"]);
    let adapted = logits(&["--model", "model", "--adapter", "adapter"]);
    assert!((plain - adapted).abs() > 1e-4, "{plain}, {adapted}");
    place
        .gpt4roi(&["convert", "--from", "model", "--adapter", "adapter", "--out", "merged", "--self-test", "never"])
        .assert()
        .success();
    let merged = logits(&["--model", "merged"]);
    assert!((merged - adapted).abs() < 1e-3, "{merged}, {adapted}");

    let refused = |arguments: &[&str], says: &str, hint: &str| {
        let mut ask = place.gpt4roi(&["ask", "scene.png", "What is it?"]);
        ask.args(arguments).assert().code(1).stderr(contains(says).and(contains(hint)));
    };
    refused(&["--model", "model", "--adapter", "run"], "run holds no adapter", "`gpt4roi export run --out ADAPTER`");
    refused(&["--model", "model", "--adapter", "model"], "model holds no adapter", "adapter_model.safetensors");
    refused(&["--model", "adapter"], "adapter holds no model", "it is an adapter");
    refused(&["--adapter", "adapter"], "changes of the model's own matrices", "");
}

/// Two factors of rank 2 for each linear layer: 2·(32 + 32) numbers for each of four, 2·(32 + 48) for each of three.
#[test]
fn an_adapter_is_looked_into_and_put_beside_its_model() {
    let place = Place::new();
    fs::write(place.path("questions.jsonl"), QUESTIONS).unwrap();
    let stage = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/adapter.toml");
    let mut train = place.gpt4roi(&["train", stage, "--out", "run", "--set", "epochs=1", "--set", "adapter.rank=2"]);
    train.args(["--set", r#"trainable=["model.mm_projector."]"#, "--set", r#"records.files=["questions.jsonl"]"#]);
    train.args(["--set", r#"model.like="model""#]).assert().success();
    place.gpt4roi(&["export", "run", "--out", "adapter"]).assert().success();

    let json = |arguments: &[&str]| -> serde_json::Value {
        let inspect = place.gpt4roi(&[&["inspect"], arguments, &["--json"]].concat()).assert().success();
        serde_json::from_slice(&inspect.get_output().stdout).unwrap()
    };
    let adapter = json(&["adapter", "adapter"]);
    assert_eq!((adapter["rank"].as_u64(), adapter["scale"].as_f64()), (Some(2), Some(16.0)));
    let length = |list: &serde_json::Value| list.as_array().unwrap().len();
    assert_eq!((length(&adapter["changed"]), length(&adapter["replaced"])), (2 * 7, 2));
    assert_eq!(adapter["changing_parameters"], 2 * (4 * 2 * (32 + 32) + 3 * 2 * (32 + 48)));
    assert_eq!(adapter["replacing_parameters"], 32 * 16 + 32);
    assert_eq!((&adapter["base"]["name"], &adapter["base"]["is_this"]), (&"model".into(), &serde_json::Value::Null));
    let beside = |model: &str| json(&["--model", model, "--adapter", "adapter"])["adapter"]["base"]["is_this"].clone();
    assert_eq!(beside("model"), true);
    let vectors = adapter["base"]["vectors"].as_str().unwrap();
    let own = format!("trained beside model, with the vectors {vectors}\n");
    let layers =
        "14 matrices changed (down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj) by 1984 parameters";
    let line = "model.layers.1.mlp.up_proj.weight       [48, 32]               changed\n";
    let table = place.gpt4roi(&["inspect", "adapter", "adapter"]).assert().success();
    table.stdout(contains(own).and(contains(layers)).and(contains(line)));

    // Another model of the same dimensions.
    place.gpt4roi(&["convert", "--from", "model", "--out", "other", "--self-test", "never"]).assert().success();
    let file = place.path("other/model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    tensors.insert("model.norm.weight".into(), noise("another", &[32]));
    candle_core::safetensors::save(&tensors, file).unwrap();
    assert_eq!(beside("other"), false);
    let ask = |model: &str| {
        let mut ask = place.gpt4roi(&["ask", "scene.png", "What is it?", "--max-new-tokens", "1", "--quiet"]);
        ask.args(["--adapter", "adapter", "--model", model]);
        ask
    };
    let warning = "warning: adapter: expected the model that it was trained beside (model), with the vectors ";
    ask("other").assert().success().stderr(contains(warning).and(contains(vectors)));
    ask("model").assert().success().stderr(contains("trained beside").not());
    place.gpt4roi(&["inspect", "adapter", "run"]).assert().code(1).stderr(contains("run holds no adapter"));
}

/// Each by the adapter's own file, before anything is written.
#[test]
fn what_is_wrong_with_an_adapter_is_not_the_models_fault() {
    let place = Place::new();
    let adapter = |tensors: &[(&str, f32)]| {
        let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}"#;
        let of = |(name, value): &(&str, f32)| {
            (format!("base_model.model.{name}"), Tensor::full(*value, 32, &Device::Cpu).unwrap())
        };
        fs::create_dir_all(place.path("adapter")).unwrap();
        fs::write(place.path("adapter/adapter_config.json"), config).unwrap();
        let tensors: HashMap<_, _> = tensors.iter().map(of).collect();
        candle_core::safetensors::save(&tensors, place.path("adapter/adapter_model.safetensors")).unwrap();
    };
    let norm = "model.norm.weight";
    for (tensors, says) in [
        (&[][..], "adapter_model.safetensors: expected changes of matrices, or tensors of the model, got neither"),
        (&[(norm, f32::NAN)], "tensor `base_model.model.model.norm.weight`: expected finite numbers, got NaN"),
        (&[(norm, 1.0), ("model.stranger", 1.0)], "expected tensors of the model, got one `model.stranger`"),
    ] {
        adapter(tensors);
        for command in [&["convert", "--from", "model", "--out", "out"][..], &["inspect", "--model", "model"]] {
            let refused = place.gpt4roi(&[command, &["--adapter", "adapter"]].concat()).assert().code(1);
            refused.stderr(contains(says).and(contains("inspect --model").not()));
        }
        assert!(!place.path("out").exists(), "{says}");
    }
    adapter(&[(norm, 1.0)]);
    let convert = ["convert", "--from", "model", "--adapter", "adapter", "--out", "out", "--self-test", "never"];
    place.gpt4roi(&convert).assert().success();
}

/// The embedded model drafts for itself, without eyes.
#[test]
fn a_small_model_may_draft() {
    let place = Place::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let [picture, nano] = ["docs/example.png", "models/nano"].map(|name| root.join(name).display().to_string());
    let ask = |options: &[&str]| -> serde_json::Value {
        let question = ["ask", &picture, "Describe <region1> in detail.", "--region", "0,78,100,186", "--json"];
        let output = place.gpt4roi(&question).args(options).assert().success().get_output().stdout.clone();
        serde_json::from_slice(&output).unwrap()
    };
    let (plain, drafted) = (ask(&["--draft", "0"]), ask(&["--draft-model", &nano]));
    assert_eq!(plain["answer"], drafted["answer"]);
    assert_eq!(plain["tokens"]["drafted"], 0);
    assert!(drafted["tokens"]["drafted"].as_u64() > Some(5), "{drafted}");
    fs::create_dir(place.path("photos")).unwrap();
    for (name, says) in [
        ("photos", "photos holds no language model"),
        ("scene.png", "scene.png holds no language model"),
        ("nosuch", "nosuch is neither a directory nor a GGUF file"),
        ("nobody/nothing", "is neither a directory nor a model in the cache"),
        ("model", "model, the tokens of a draft model: expected at least"),
    ] {
        let cache = place.path("cache");
        let ask = ["ask", &picture, "What is <region1>?", "--region", "0,78,100,186", "--draft-model", name];
        place.gpt4roi(&ask).env("HF_HOME", cache).assert().code(1).stderr(contains(says));
    }
}

#[test]
fn predictions_go_on_where_they_stopped() {
    let place = Place::new();
    fs::write(place.path("questions.jsonl"), QUESTIONS).unwrap();
    let predict = ["predict", "questions.jsonl", "--out", "predictions.jsonl"];
    let out = place.path("predictions.jsonl");
    place.with_model(&predict).assert().success().stdout("").stderr(contains("1 pictures, 3 regions, "));
    // What is said does not depend on what is asked beside it; its probability does by rounding.
    let said = || -> Vec<(String, String, String)> {
        let text = |value: &serde_json::Value| value.to_string();
        let lines = predictions(&out);
        let mut said: Vec<_> =
            lines.iter().map(|line| (text(&line["id"]), text(&line["round"]), text(&line["prediction"]))).collect();
        said.sort();
        said
    };
    let whole = said();
    assert_eq!(whole.len(), 5);
    let two = |line: &serde_json::Value| line["id"] == "two" && line["round"] == 2;
    let line = predictions(&out).into_iter().find(two).unwrap();
    assert_eq!(line["answers"], serde_json::json!(["A dog.", "It."]));
    assert_eq!(line["question"], "What is at (0.5, 0.6)?");

    // Cut within a line, as a full disk does.
    let text = fs::read_to_string(&out).unwrap();
    for kept in [0, text.len() / 3, text.len() - 1] {
        fs::write(&out, &text[..kept]).unwrap();
        place.with_model(&predict).assert().success();
        assert_eq!(said(), whole, "{kept} bytes were left");
    }
    let complete = fs::read(&out).unwrap();
    place.with_model(&predict).assert().success().stderr(contains("5 answers are in predictions.jsonl"));
    assert_eq!(fs::read(&out).unwrap(), complete);

    // Answers of another model, or to something else, are not mixed in, and other files are not damaged.
    place.gpt4roi(&predict).assert().code(1).stderr(contains("line 1").and(contains("now embedded does")));
    assert_eq!(fs::read(&out).unwrap(), complete);
    let fewer: String = QUESTIONS.split_inclusive('\n').skip(1).collect();
    fs::write(place.path("fewer.jsonl"), fewer).unwrap();
    let others = ["predict", "fewer.jsonl", "--out", "predictions.jsonl"];
    place
        .with_model(&others)
        .assert()
        .code(1)
        .stderr(contains("predictions.jsonl, line ").and(contains("hint: --out")));
    assert_eq!(fs::read(&out).unwrap(), complete);
    fs::write(place.path("notes.txt"), "Nobody asked.").unwrap();
    place.with_model(&["predict", "questions.jsonl", "--out", "notes.txt"]).assert().code(1);
    assert_eq!(fs::read_to_string(place.path("notes.txt")).unwrap(), "Nobody asked.");
}

/// A scene of the embedded model's world, with an octopus at the top left and a loaf of bread at the top right.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/example.png");

#[test]
fn the_most_probable_of_given_answers_is_told() {
    let place = Place::new();
    let ask = ["ask", EXAMPLE, "What is <region1>?", "--region", "8,14,54,59", "--quiet"];
    let choices = ["--choice", "A cat.", "--choice", "An octopus.", "--choice", "A loaf of bread."];
    place.gpt4roi(&ask).args(choices).assert().success().stdout("An octopus.\n").stderr("");
    let json = |command: &mut Command| -> serde_json::Value {
        let output = command.arg("--json").assert().success().get_output().stdout.clone();
        serde_json::from_slice(&output).unwrap()
    };
    let report = json(place.gpt4roi(&ask).args(choices));
    assert_eq!((&report["answer"], &report["withheld"]), (&"An octopus.".into(), &serde_json::Value::Null));
    assert_eq!((&report["regions"][0]["id"], &report["tokens"]["generated"]), (&1.into(), &0.into()));
    assert!(report.get("finish").is_none());
    let listed = report["choices"].as_array().unwrap();
    assert_eq!(
        listed.iter().map(|choice| choice["text"].as_str().unwrap()).collect::<Vec<_>>(),
        ["A cat.", "An octopus.", "A loaf of bread."]
    );
    let shares: f64 = listed.iter().map(|choice| choice["probability"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9 && listed.iter().all(|choice| choice["complete"] == true), "{report}");
    assert_eq!(report["probability"], listed[1]["probability"]);
    // The model's own answer is as probable as when it was given: the mean over its tokens.
    let own = json(&mut place.gpt4roi(&ask));
    let mean = listed[1]["log_probability"].as_f64().unwrap() / listed[1]["tokens"].as_f64().unwrap();
    assert_eq!(own["tokens"]["generated"], listed[1]["tokens"]);
    assert!((mean - own["mean_log_probability"].as_f64().unwrap()).abs() < 1e-4, "{own}");

    fs::write(place.path("labels.txt"), "A cat.\n\nAn octopus.\nA loaf of bread.\nA rocket.\n").unwrap();
    let list = ["--choices", "labels.txt"];
    place.gpt4roi(&ask).args(list).assert().success().stdout("An octopus.\n");
    let report = json(place.gpt4roi(&ask).args(list));
    let complete = [0, 1].map(|choice| report["choices"][choice]["complete"].as_bool().unwrap());
    assert_eq!(complete, [false, true], "what is hardly probable is given up: {report}");
    let describe = ["describe", EXAMPLE, "--region", "8,14,54,59", "--region", "109,0,181,59", "--quiet"];
    let lines =
        predicates::str::is_match(r"^region1: An octopus\. \(\d+\.\d %\)\nregion2: A loaf of bread\. \(\d+\.\d %\)\n$");
    place.gpt4roi(&describe).args(list).assert().success().stdout(lines.unwrap());
    let report = json(place.gpt4roi(&describe).args(list));
    assert_eq!(report["descriptions"][1]["choices"][2]["text"], "A loaf of bread.");
    assert_eq!(report["descriptions"][1]["probability"], report["descriptions"][1]["choices"][2]["probability"]);
    assert_eq!(report["descriptions"][1]["region"]["id"], 2);

    // Of two wrong ones, neither is sure.
    let wrong = ["--choice", "A cat.", "--choice", "A dog.", "--abstain", "1"];
    place.gpt4roi(&ask).args(wrong).assert().success().stdout("I do not know.\n");
    place
        .gpt4roi(&describe)
        .args(wrong)
        .assert()
        .success()
        .stdout("region1: I do not know.\nregion2: I do not know.\n");
    let report = json(place.gpt4roi(&ask).args(wrong));
    assert!(["A cat.", "A dog."].contains(&report["withheld"].as_str().unwrap()), "{report}");
}

#[test]
fn what_can_not_be_chosen_is_refused() {
    let place = Place::new();
    fs::write(place.path("labels.txt"), "cat\ndog\n").unwrap();
    fs::write(place.path("twice.txt"), "cat\n\ncat\n").unwrap();
    fs::write(place.path("latin.txt"), b"cat\nd\xF6g\n").unwrap();
    let ask = ["ask", "scene.png", "What is there?"];
    for (more, code, says) in [
        (&["--choice", "cat"][..], 2, "--choice: expected at least 2 choices, got 1"),
        (&["--choice", "cat", "--choice", " cat"], 2, "choice 2: expected one that differs from the others"),
        (&["--choice", "cat", "--choices", "labels.txt"], 2, "cannot be used with"),
        (&["--choices", "labels.txt", "--temperature", "0.2"], 2, "--temperature: where answers are given"),
        (&["--choices", "labels.txt", "--annotate", "./labels.txt"], 2, "labels.txt"),
        (
            &["--choices", "twice.txt"],
            1,
            "twice.txt: line 3: expected a choice that differs from the others, got \"cat\" as on line 1",
        ),
        (&["--choices", "latin.txt"], 1, "latin.txt: line 2: expected UTF-8"),
        (&["--choices", "none.txt"], 1, "none.txt: "),
    ] {
        place.with_model(&ask).args(more).assert().code(code).stdout("").stderr(contains(says));
    }
    assert_eq!(fs::read_to_string(place.path("labels.txt")).unwrap(), "cat\ndog\n");
}

/// A question with its reason: which answer, and why, whatever was answered; and one in the model's own words.
const CHOICES: &str = r#"{"id": "why", "image": "scene.png", "regions": [{"id": 1, "bbox": [8, 20, 40, 50]}], "rounds": [{"question": "What is <region1>?", "choices": ["A cat.", "A dog on a mat."], "answer": "A cat.", "said": "A cat."}, {"question": "Why?", "choices": ["It is small.", "It is red."], "answer": "It is red."}]}
{"id": "one", "image": "scene.png", "regions": [{"id": 1, "bbox": [50, 20, 70, 50]}], "rounds": [{"question": "What is <region1>?", "choices": ["A cat.", "A dog on a mat."], "answer": "A dog on a mat."}]}
{"id": "own", "image": "scene.png", "regions": [{"id": 1, "bbox": [50, 20, 70, 50]}], "rounds": [{"question": "What is <region1>?"}]}
"#;

#[test]
fn predictions_choose_where_there_are_choices() {
    let place = Place::new();
    let predict = |data: &str, name: &str| {
        fs::write(place.path("choices.jsonl"), data).unwrap();
        place.with_model(&["predict", "choices.jsonl", "--out", name, "--quiet"])
    };
    let line = |name: &str, id: &str, round: usize| {
        let mut lines = predictions(&place.path(name)).into_iter();
        lines.find(|line| line["id"] == id && line["round"] == round).unwrap()
    };
    predict(CHOICES, "said.jsonl").assert().success();
    assert_eq!(predictions(&place.path("said.jsonl")).len(), 4);
    for (id, round, texts) in [
        ("why", 1, ["A cat.", "A dog on a mat."]),
        ("why", 2, ["It is small.", "It is red."]),
        ("one", 1, ["A cat.", "A dog on a mat."]),
    ] {
        let line = line("said.jsonl", id, round);
        let of = |place: usize, field: &str| line["choices"][place][field].as_f64().unwrap();
        assert_eq!([&line["choices"][0]["text"], &line["choices"][1]["text"]], texts);
        let [first, second] = [0, 1].map(|place| of(place, "log_probability"));
        assert_eq!(line["prediction"], texts[usize::from(second > first)]);
        // The share of the better of two: 1 / (1 + the other's odds).
        let share = 1.0 / (1.0 + (-(first - second).abs()).exp());
        assert!((line["probability"].as_f64().unwrap() - share).abs() < 1e-9, "{line}");
        assert!(line["choices"][1].get("complete").is_none(), "all are scored to their ends: {line}");
    }
    assert!(line("said.jsonl", "own", 1).get("choices").is_none());

    // The second round follows what was said, and nothing else.
    let score = |name: &str| line(name, "why", 2)["choices"][0]["log_probability"].as_f64().unwrap();
    let chosen = line("said.jsonl", "why", 1)["prediction"].as_str().unwrap().to_owned();
    let other = if chosen == "A cat." { "A dog on a mat." } else { "A cat." };
    for (said, name) in [(&*chosen, "chosen.jsonl"), (other, "other.jsonl")] {
        predict(&CHOICES.replace(r#""said": "A cat.""#, &format!(r#""said": "{said}""#)), name).assert().success();
    }
    predict(&CHOICES.replace(r#", "said": "A cat.""#, ""), "unsaid.jsonl").assert().success();
    assert!((score("unsaid.jsonl") - score("chosen.jsonl")).abs() < 1e-4);
    assert!((score("unsaid.jsonl") - score("other.jsonl")).abs() > 1e-4);

    // What was asked with other choices is another question; what is there is not asked again.
    let complete = fs::read(place.path("said.jsonl")).unwrap();
    predict(CHOICES, "said.jsonl").assert().success();
    assert_eq!(fs::read(place.path("said.jsonl")).unwrap(), complete);
    let lines: Vec<&str> = str::from_utf8(&complete).unwrap().split_inclusive('\n').collect();
    fs::write(place.path("said.jsonl"), lines[..2].concat()).unwrap();
    predict(CHOICES, "said.jsonl").assert().success();
    assert_eq!(predictions(&place.path("said.jsonl")).len(), 4);
    predict(&CHOICES.replace("It is small.", "It is large."), "said.jsonl")
        .assert()
        .code(1)
        .stderr(contains("nothing in the data asks for it"));
    let draw = ["--temperature", "0.5"];
    predict(CHOICES, "drawn.jsonl")
        .args(draw)
        .assert()
        .code(2)
        .stderr(contains("--temperature: where answers are given"));

    // Answer and reason both right, as these lines say; by token, the longer answer may win.
    let scores = place.gpt4roi(&["eval", "predictions", "said.jsonl", "--by", "round", "--json"]);
    let report: serde_json::Value =
        serde_json::from_slice(&{ scores }.assert().success().get_output().stdout.clone()).unwrap();
    let right = |id: &str, round| {
        f64::from(u8::from(line("said.jsonl", id, round)["prediction"] == line("said.jsonl", id, round)["answers"][0]))
    };
    assert_eq!(report["every_round"]["accuracy"].as_f64().unwrap(), right("why", 1) * right("why", 2));
    assert_eq!((&report["every_round"]["n"], &report["all"]["exact_by_token"]["n"]), (&1.into(), &3.into()));
    assert_eq!(
        report["by_round"]["1"]["exact"]["accuracy"].as_f64().unwrap(),
        (right("why", 1) + right("one", 1)) / 2.0
    );
    place
        .gpt4roi(&["eval", "predictions", "said.jsonl"])
        .assert()
        .success()
        .stdout(contains("exact, by token").and(contains("every round right")));
}

#[test]
fn labels_are_chosen_from_a_list() {
    let place = Place::new();
    place.gpt4roi(&["scenes", "--seed", "2026", "--count", "1", "--out", "scenes"]).assert().success();
    let labels = "scenes/annotations.json";
    let predict = ["predict", labels, "--images", "scenes/images", "--choices", labels, "--coco", "relabelled.json"];
    // Bare names are none of the embedded model's answers, and that is told however quiet it is to be.
    let unlike = contains("the model would write none of the choices").and(contains("warning: "));
    place.gpt4roi(&predict).args(["--out", "labelled.jsonl", "--quiet"]).assert().success().stderr(unlike);
    let read =
        |name: &str| -> serde_json::Value { serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap() };
    let categories = read(labels)["categories"].as_array().unwrap().len();
    assert!(categories > 200);
    let lines = predictions(&place.path("labelled.jsonl"));
    assert_eq!(lines.len(), read(labels)["annotations"].as_array().unwrap().len());
    for line in &lines {
        assert_eq!(line["choices"].as_array().unwrap().len(), categories);
        assert!(line["choices"].as_array().unwrap().iter().any(|choice| choice["text"] == line["prediction"]));
    }
    let first = lines.iter().find(|line| line["id"] == "1").unwrap();
    assert_eq!(read("relabelled.json")["annotations"][0]["caption"], first["prediction"]);
    let onto = ["predict", labels, "--choices", "labels.txt", "--out", "labels.txt"];
    fs::write(place.path("labels.txt"), "cat\ndog\n").unwrap();
    place.gpt4roi(&onto).assert().code(2).stderr(contains("labels.txt is the file of choices itself"));
}

#[test]
fn what_can_not_be_asked_is_told_and_the_rest_is_asked() {
    let place = Place::new();
    let lost = r#"{"image": "lost.png", "rounds": [{"question": "What is there?"}]}"#;
    let outside = QUESTIONS.replacen("[8, 20, 40, 50]", "[8, 20, 40, 62]", 1);
    fs::write(place.path("questions.jsonl"), format!("{lost}\n{outside}")).unwrap();
    let predict = ["predict", "questions.jsonl", "--out", "predictions.jsonl"];
    let told = contains("lost.png: ")
        .and(contains("(asked for in questions.jsonl, line 1)"))
        .and(contains("questions.jsonl, line 2: region 1: bbox: y2: expected 0 to 60 (pixels), got 62"))
        .and(contains("2 of 2 pictures"));
    place.with_model(&predict).assert().code(1).stderr(told);
    assert_eq!(predictions(&place.path("predictions.jsonl")).len(), 4);

    fs::copy(place.path("scene.png"), place.path("lost.png")).unwrap();
    place.with_model(&predict).assert().code(1).stderr(contains("1 of 2 pictures"));
    assert_eq!(predictions(&place.path("predictions.jsonl")).len(), 5);

    fs::write(place.path("bad.jsonl"), format!("{QUESTIONS}{{\"image\": 7}}\n")).unwrap();
    let bad = contains("bad.jsonl, line 5: column 11: invalid type: integer `7`, expected a string");
    place.with_model(&["predict", "bad.jsonl", "--out", "none.jsonl"]).assert().code(1).stderr(bad);
    let other = contains("notes.txt, line 1: column 1: expected value\nhint: DATA is JSON: conversations, one a line");
    fs::write(place.path("notes.txt"), "Nobody asked.").unwrap();
    place.with_model(&["predict", "notes.txt", "--out", "none.jsonl"]).assert().code(1).stderr(other);
    assert!(!place.path("none.jsonl").exists());
    fs::write(place.path("nothing.jsonl"), "\n").unwrap();
    let nothing = ["predict", "nothing.jsonl", "--out", "none.jsonl", "--quiet"];
    place.with_model(&nothing).assert().success().stderr("warning: nothing.jsonl: nothing is asked there\n");
}

#[test]
fn scenes_leave_the_files_alone_that_lie_there() {
    let place = Place::new();
    fs::write(place.path("annotations.json"), "labels of years").unwrap();
    let scenes = ["scenes", "--count", "1", "--out", "."];
    let says = contains("annotations.json exists already").and(contains("hint: --force"));
    place.gpt4roi(&scenes).assert().code(1).stderr(says);
    assert_eq!(fs::read_to_string(place.path("annotations.json")).unwrap(), "labels of years");
    assert!(!place.path("images").exists(), "nothing is begun");
    place.gpt4roi(&scenes).arg("--force").assert().success();
    assert!(fs::read_to_string(place.path("annotations.json")).unwrap().starts_with('{'));
    place.gpt4roi(&["scenes", "--count", "0", "--out", "none"]).assert().code(2).stderr(contains("--count"));
    assert!(!place.path("none").exists());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for arguments in [&["completions", "bash"][..], &["--help"]] {
        let program = assert_cmd::cargo::cargo_bin("gpt4roi");
        let mut child =
            StdCommand::new(program).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    }
}

#[test]
fn bench_measures_the_stages_that_it_is_asked_for() {
    let arguments = ["bench", "--preset", "nano", "--stages", "pyramid,region_head", "--runs", "1", "--threads", "1"];
    let output = bare().args(arguments).arg("--json").assert().success().get_output().stdout.clone();
    let report: serde_json::Value = serde_json::from_slice(&output).unwrap();
    let stages: Vec<_> = report["stages"].as_array().unwrap().iter().map(|stage| stage["stage"].as_str()).collect();
    assert_eq!(stages, [Some("pyramid"), Some("region_head")]);
    let positive = |value: &serde_json::Value| value.as_f64().is_some_and(|value| value > 0.0);
    assert!(positive(&report["ceiling"]["gflop_per_second"]) && positive(&report["stages"][0]["seconds"]), "{report}");
    bare().args(arguments).assert().success().stdout(contains("region_head").and(contains("GFLOP/s")));
    bare().args(["bench", "--stages", "dreams"]).assert().code(2);
}

#[test]
fn bench_measures_a_language_model_in_any_bits() {
    for quantize in ["none", "q8_0"] {
        let arguments =
            ["bench", "--preset", "nano", "--stages", "prefill,decode,draft,batch", "--runs", "1", "--json"];
        let output = bare().args(arguments).args(["--captions", "2", "--quantize", quantize]).assert().success();
        let report: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        let [prefill, decode, draft, batch] = [0, 1, 2, 3].map(|stage| &report["stages"][stage]);
        assert!(prefill["tokens_per_second"].as_f64() > decode["tokens_per_second"].as_f64(), "{report}");
        assert!(batch["times_one_caption"].as_f64() > Some(0.0) && decode["times_one_caption"].is_null(), "{report}");
        // Four layers of 192·(4·192 + 3·512) weights, of which each takes 4 bytes or 34/32.
        let weights = 4.0 * 192.0 * (4.0 * 192.0 + 3.0 * 512.0) * if quantize == "none" { 4.0 } else { 34.0 / 32.0 };
        assert!(decode["gbyte"].as_f64() > Some(1e-9 * weights), "{report}");
        assert!(decode["gbyte"].as_f64() < Some(3e-9 * weights), "{report}");
        // Four tokens see 320, 321, 322 and 323 others, and all else is four times as much as for one.
        assert_eq!((&draft["stage"], &draft["gbyte"]), (&"draft".into(), &decode["gbyte"]));
        let operations = |report: &serde_json::Value| report["gflop"].as_f64().unwrap() * 1e9;
        let pairs = 4.0 * 4.0 * 192.0 * f64::from(1 + 2 + 3);
        assert!((operations(draft) - 4.0 * operations(decode) - pairs).abs() < 1.0, "{report}");
    }
}

#[test]
fn completions_for_every_shell_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        bare()
            .args(["completions", shell])
            .assert()
            .success()
            .stdout(contains("describe").and(contains("max-new-tokens")));
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let place = Place::new();
    place.gpt4roi(&["man", "--out", "share/man1"]).assert().success().stdout("").stderr("");
    let page = |name: &str| fs::read_to_string(place.path("share/man1").join(name)).unwrap();
    // A page names each command of its own by the name of that one's page.
    let commands = |page: &str| -> Vec<String> {
        let names = page.lines().filter_map(|line| line.strip_suffix("(1)"));
        names.map(|name| name.replace('\\', "")).filter(|name| name.starts_with("gpt4roi-")).collect()
    };
    let all = commands(&page("gpt4roi.1"));
    for command in &all {
        let page = page(&format!("{command}.1"));
        assert!(page.contains(".SH SYNOPSIS\n"), "{command}");
        for command in commands(&page) {
            assert!(place.path(&format!("share/man1/{command}.1")).is_file(), "{command}");
        }
    }
    for expected in ["gpt4roi-ask", "gpt4roi-cache", "gpt4roi-man"] {
        assert!(all.iter().any(|command| command == expected), "{expected}: {all:?}");
    }
    assert!(page("gpt4roi-cache-verify.1").contains("GPT4ROI_REMOVE_DAMAGED"));
    // Examples are no paragraph.
    assert!(page("gpt4roi-man.1").contains("\n.SH EXAMPLES\n.nf\n  gpt4roi man \\-\\-out man1 && "));
    place.gpt4roi(&["man", "--out", "scene.png"]).assert().code(1).stderr(contains("error: scene.png: "));
}
