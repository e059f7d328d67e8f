//! Training as a user starts, stops and continues it, with a model of random weights.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use gpt4roi::{
    Config,
    convert::{IfExists, Parts},
    tokenizer::Tokenizer,
};
use tempfile::TempDir;

const TOKENIZER: &[u8] = include_bytes!("../../gpt4roi/tests/data/tokenizer.model");
const ADDED_TOKENS: &str = include_str!("../../gpt4roi/tests/data/added_tokens.json");

/// A directory with a small model, a picture and a question about it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        Parts::noise(&config(), TOKENIZER, ADDED_TOKENS)
            .and_then(|parts| Ok(parts.write_directory(&place.path("model"), IfExists::Refuse)?))
            .unwrap();
        let colour = |x, y| image::Rgb([(3 * x) as u8, (4 * y) as u8, (x * y) as u8]);
        image::RgbImage::from_fn(60, 50, colour).save(place.path("scene.png")).unwrap();
        let question = r#"{"question": "What is <region1>?", "answer": "A hat."}"#;
        let line = format!(
            r#"{{"image": "scene.png", "regions": [{{"id": 1, "bbox": [4, 4, 30, 40]}}], "rounds": [{question}]}}"#
        );
        fs::write(place.path("questions.jsonl"), line).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program in this directory, knowing nothing of the caller's settings.
    fn gpt4roi(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpt4roi"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GPT4ROI_")) {
            command.env_remove(name);
        }
        command.current_dir(self.0.path()).args(arguments);
        command
    }

    /// An adapter of the model in so many steps.
    fn train(&self, out: &str, steps: u64) -> Command {
        let stage = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/adapter.toml");
        let mut command = self.gpt4roi(&["train", stage, "--out", out, "--set", r#"model.like="model""#]);
        command.args(["--set", r#"records.files=["questions.jsonl"]"#, "--set", "epochs=0", "--set", "batch=2"]);
        command.args(["--set", &format!("steps={steps}")]);
        command
    }
}

fn config() -> Config {
    let mut config = Config::pico(Tokenizer::from_bytes(TOKENIZER, ADDED_TOKENS).unwrap().vocab_size());
    (config.llama.hidden_size, config.llama.intermediate_size, config.llama.num_hidden_layers) = (32, 48, 2);
    (config.vision.hidden_size, config.vision.intermediate_size, config.vision.image_size) = (16, 32, 56);
    (config.region.dim, config.region.gn_groups, config.region.fuse_rounds) = (8, 2, 1);
    (config.region.roi_size, config.region.pos_hidden) = (4, 8);
    config
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program alone, in an empty directory.
#[test]
fn who_has_nothing_but_the_program_trains_with_it() {
    let place = Place(tempfile::tempdir().unwrap());
    let run = |arguments: &[&str]| {
        let output = place.gpt4roi(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        output.stdout
    };
    run(&["scenes", "--seed", "5", "--count", "2", "--out", "scenes"]);
    let few = ["--set", "batch=2", "--set", "records.dialogues_per_picture=1", "--set", "epochs=1"];
    for (stage, changes, result) in [
        ("own-data", &few[..], "model/vision_tower/model.safetensors"),
        ("adapter", &few, "model/adapter_model.safetensors"),
        ("draft", &["--set", "steps=1", "--set", "batch=1"], "model/tokenizer.model"),
    ] {
        fs::write(place.path("stage.toml"), run(&["train", "--template", stage])).unwrap();
        run(&[&["train", "stage.toml", "--out", "run"], changes].concat());
        run(&["export", "run", "--out", "model"]);
        assert!(place.path(result).is_file(), "{stage}");
        ["run", "model"].iter().for_each(|name| fs::remove_dir_all(place.path(name)).unwrap());
    }
}

/// As the cache of a hub's other clients has it.
#[test]
fn a_stage_names_a_model_as_a_hub_does() {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let place = Place::new();
    let folder = place.path("cache/models--org--small");
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::create_dir_all(folder.join("snapshots")).unwrap();
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    fs::rename(place.path("model"), folder.join("snapshots").join(COMMIT)).unwrap();
    let train = |out: &str, name: &str| {
        let mut command = place.train(out, 1);
        command.env("HF_HUB_CACHE", place.path("cache")).args(["--set", &format!("model.like={name:?}")]);
        command
    };
    let output = train("run", "org/small").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let config = fs::read_to_string(place.path("run/checkpoints/step-00000001/adapter_config.json")).unwrap();
    assert!(config.contains(r#""base_model_name_or_path": "org/small""#), "{config}");
    let output = train("other", "org/large").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    for part in
        ["org/large is neither a directory nor a model in the cache", "`gpt4roi pull org/large`", "\"embedded\""]
    {
        assert!(said(&output).contains(part), "{}", said(&output));
    }
}

#[cfg(unix)]
mod told_to_stop {
    use std::{
        io::{BufRead, BufReader},
        path::Path,
        process::{Child, Stdio},
        thread::sleep,
        time::{Duration, Instant},
    };

    use super::*;

    /// What a run's log says of every step, but for how long it took.
    fn steps(run: &Path) -> Vec<serde_json::Value> {
        let log = fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
        let step = |line: &str| {
            let mut step: serde_json::Value = serde_json::from_str(line).ok()?;
            ["seconds", "pictures_per_second"].iter().for_each(|time| step[*time] = 0.into());
            Some(step)
        };
        log.lines().filter_map(step).collect()
    }

    fn checkpoints(run: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten();
        let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        all.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("step-"));
        all.sort();
        all
    }

    /// A run in the background.
    struct Running(Child);

    impl Running {
        fn start(mut command: Command) -> Self {
            Self(command.stderr(Stdio::piped()).spawn().unwrap())
        }

        fn until(&mut self, happened: impl Fn() -> bool) {
            let begin = Instant::now();
            while !happened() {
                assert!(begin.elapsed() < Duration::from_secs(60), "it never happened");
                assert!(self.0.try_wait().unwrap().is_none(), "it ended before that");
                sleep(Duration::from_millis(5));
            }
        }

        fn signal(&self, signal: &str) {
            assert!(Command::new("kill").args(["-s", signal, &self.0.id().to_string()]).status().unwrap().success());
        }
    }

    #[test]
    fn a_run_that_is_told_to_stop_loses_nothing() {
        const STEPS: u64 = 150;
        let place = Place::new();
        let whole = place.train("whole", STEPS).output().unwrap();
        assert_eq!(whole.status.code(), Some(0), "{}", said(&whole));
        assert_eq!(steps(&place.path("whole")).len() as u64, STEPS);
        for signal in ["INT", "TERM"] {
            let run = place.path(signal);
            let mut running = Running::start(place.train(signal, STEPS));
            running.until(|| !steps(&run).is_empty());
            running.signal(signal);
            let stopped = running.0.wait_with_output().unwrap();
            assert_eq!(stopped.status.code(), Some(130), "{}", said(&stopped));
            let done = steps(&run).len();
            let told =
                format!("stopped behind step {done} of {STEPS}; the same command with --resume goes on in {signal}");
            assert!(said(&stopped).contains(&told), "{}", said(&stopped));
            let last = checkpoints(&run).pop().unwrap();
            assert!(last.ends_with(format!("step-{done:08}")), "{} behind step {done}", last.display());

            let resumed = place.train(signal, STEPS).arg("--resume").output().unwrap();
            assert_eq!(resumed.status.code(), Some(0), "{}", said(&resumed));
            assert!(said(&resumed).contains(&format!("going on behind step {done}")), "{}", said(&resumed));
            assert!(steps(&run) == steps(&place.path("whole")), "another loss at some step");
            let [learned, expected] = [run, place.path("whole")]
                .map(|run| fs::read(checkpoints(&run).pop().unwrap().join("adapter_model.safetensors")).unwrap());
            assert!(learned == expected, "other weights");
        }
    }

    /// A step of so many pictures takes far longer than the test.
    #[test]
    fn whoever_wants_it_twice_need_not_wait() {
        let place = Place::new();
        let run = place.path("run");
        let mut command = place.train("run", 3);
        command.args(["--set", "batch=100000"]);
        let mut running = Running::start(command);
        running.until(|| run.join("log.jsonl").is_file()); // it has begun, and hears signals
        running.signal("INT");
        let mut line = String::new();
        let mut told = BufReader::new(running.0.stderr.take().unwrap());
        told.read_line(&mut line).unwrap();
        assert!(line.contains("once more ends at once"), "{line}");
        running.signal("INT");
        assert_eq!(running.0.wait().unwrap().code(), Some(130));
        assert!(checkpoints(&run).is_empty(), "of a step that never ended");
    }
}
