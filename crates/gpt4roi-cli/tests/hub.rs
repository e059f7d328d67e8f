//! `pull`, `cache` and `--model ORG/NAME` as a user runs them, against a hub on the loopback interface.

use std::{fs, path::PathBuf};

use assert_cmd::Command;
use predicates::{prelude::*, str::contains};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "../../gpt4roi-hub/src/mock_hub.rs"]
mod mock_hub;

use mock_hub::{Answer, COMMIT, MockHub};

/// A hub with a model that is none, and a cache.
struct Place {
    server: MockHub,
    home: TempDir,
}

impl Place {
    fn new() -> Self {
        let server = MockHub::new();
        server.put("config.json", "{}");
        server.put("README.md", "read me");
        server.put_large("model.safetensors", vec![7; 3000]);
        Self { server, home: tempfile::tempdir().unwrap() }
    }

    /// The program with this hub and this cache, knowing nothing of the caller's settings.
    fn gpt4roi(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("gpt4roi").unwrap();
        let foreign = |name: &str| ["GPT4ROI_", "HF_", "HUGGING"].iter().any(|prefix| name.starts_with(prefix));
        for name in std::env::vars_os().map(|(name, _)| name).filter(|name| foreign(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command
            .env("HF_ENDPOINT", self.server.endpoint())
            .env("HF_HOME", self.home.path())
            .env("NO_PROXY", "127.0.0.1");
        command.current_dir(self.home.path()).args(arguments);
        command
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.gpt4roi(arguments).arg("--json").assert().success().stderr("").get_output().stdout.clone();
        serde_json::from_slice(&output).unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("hub/models--org--name")
    }

    fn snapshot(&self) -> PathBuf {
        self.folder().join("snapshots").join(COMMIT)
    }
}

#[test]
fn pull_prints_the_directory_of_the_model() {
    let place = Place::new();
    let snapshot = place.snapshot();
    place
        .gpt4roi(&["pull", "org/name"])
        .assert()
        .success()
        .stdout(format!("{}\n", snapshot.display()))
        .stderr("org/name: 2 files, 3.00 kB, of which 3.00 kB downloaded\n");
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), vec![7; 3000]);
    assert!(!snapshot.join("README.md").exists());

    let report = place.json(&["pull", "org/name@main", "--file", "README.md"]);
    let file = |path, size, downloaded| json!({"path": path, "size": size, "downloaded": downloaded});
    let expected = json!({
        "model": "org/name",
        "revision": "main",
        "commit": COMMIT,
        "snapshot": snapshot,
        "files": [file("README.md", 7, true), file("config.json", 2, false), file("model.safetensors", 3000, false)],
    });
    assert_eq!(report, expected);
}

#[test]
fn pull_tells_what_went_wrong_and_what_to_do() {
    struct Case {
        status: u16,
        code: &'static str,
        says: &'static [&'static str],
    }
    let cases = [
        Case { status: 401, code: "", says: &["error: org/name: the hub wants to know who asks", "set HF_TOKEN"] },
        Case { status: 403, code: "GatedRepo", says: &["access is gated", "hint: accept them on the model's page"] },
        Case { status: 404, code: "RepoNotFound", says: &["no such model (404)", "hint: look at the name again"] },
        Case { status: 404, code: "RevisionNotFound", says: &["no such revision (404)", "the branch main is taken"] },
    ];
    for Case { status, code, says } in cases {
        let place = Place::new();
        let headers = vec![("X-Error-Code", code.to_owned())];
        place.server.answer("/revision/main", Answer { status: Some(status), headers, ..Answer::default() });
        let output = place.gpt4roi(&["pull", "org/name"]).assert().code(1).stdout("").get_output().stderr.clone();
        let output = String::from_utf8(output).unwrap();
        assert!(says.iter().all(|expected| output.contains(expected)), "{output}");
    }
    let place = Place::new();
    place.gpt4roi(&["pull", "../name"]).assert().code(2).stderr(contains("names no model on a hub"));
    place.gpt4roi(&["pull", "name"]).assert().code(2).stderr("error: name has no owner: expected ORG/NAME\n");
    place
        .gpt4roi(&["pull", "nano"])
        .assert()
        .code(2)
        .stderr(contains("the embedded model answers where --model is left"));
    place.gpt4roi(&["pull", "org/name", "--file", "x"]).assert().code(1).stderr(contains("has no file \"x\""));
    let mut offline = place.gpt4roi(&["pull", "org/name"]);
    offline.env("HF_HUB_OFFLINE", "1").assert().code(1).stderr(contains("hint: unset HF_HUB_OFFLINE"));
}

#[test]
fn pull_sends_the_token_of_its_file() {
    let place = Place::new();
    fs::write(place.home.path().join("token"), "hf_secret\n").unwrap();
    place.gpt4roi(&["pull", "org/name", "--quiet"]).assert().success().stderr("");
    let requests = place.server.requests("");
    assert!(requests.iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")), "{requests:?}");
}

#[test]
fn model_takes_the_name_of_what_was_pulled() {
    let place = Place::new();
    image::RgbImage::new(20, 20).save(place.home.path().join("scene.png")).unwrap();
    let ask = |model: &str| place.gpt4roi(&["ask", "scene.png", "What?", "--model", model]);
    ask("org/name").assert().code(1).stderr(
        contains("error: org/name is neither a directory nor a model in the cache")
            .and(contains("hint: `gpt4roi pull org/name` downloads it")),
    );
    assert_eq!(place.server.requests("").len(), 0, "nothing is downloaded unasked");

    place.gpt4roi(&["pull", "org/name"]).assert().success();
    let config = place.snapshot().join("config.json").display().to_string();
    let commit = format!("org/name@{COMMIT}");
    for model in ["org/name", "org/name@main", &commit] {
        ask(model).assert().code(1).stderr(contains(&config)); // found, and no model
    }
    ask("org/name@v2").assert().code(1).stderr(contains("`gpt4roi pull org/name@v2`"));

    fs::create_dir_all(place.home.path().join("org/name")).unwrap();
    ask("org/name").assert().code(1).stderr(contains("org/name holds no model").and(contains("snapshots").not()));
}

#[test]
fn cache_lists_verifies_and_removes() {
    let place = Place::new();
    let empty = place.json(&["cache", "list"]);
    assert_eq!((&empty["models"], &empty["bytes"]), (&json!([]), &json!(0)));
    place.gpt4roi(&["pull", "org/name"]).assert().success();

    place
        .gpt4roi(&["cache", "list"])
        .assert()
        .success()
        .stdout(contains("org/name").and(contains(format!("{COMMIT} main"))));
    let listed = place.json(&["cache", "list"]);
    assert_eq!(
        (&listed["models"][0]["bytes"], &listed["models"][0]["revisions"][0]["files"]),
        (&json!(3002), &json!(2))
    );

    place.gpt4roi(&["cache", "verify"]).assert().success().stdout("2 intact\n");
    let weights = fs::canonicalize(place.snapshot().join("model.safetensors")).unwrap();
    fs::write(weights, vec![8; 3000]).unwrap();
    let shown = place.snapshot().join("model.safetensors").display().to_string();
    place
        .gpt4roi(&["cache", "verify", "org/name", "--remove-damaged"])
        .assert()
        .code(1)
        .stdout(format!("damaged    {shown}\n1 intact\n"))
        .stderr(
            contains("error: 1 of 2 files are damaged or gone")
                .and(contains("hint: they are removed; pull the model again")),
        );
    place.gpt4roi(&["pull", "org/name"]).assert().success();
    assert_eq!(place.json(&["cache", "verify"])["intact"], 2);

    let mut remove = place.gpt4roi(&["cache", "rm", "org/name"]);
    remove.arg("--dry-run").assert().success().stdout("would free 3.00 kB: org/name\n");
    assert!(place.folder().exists());
    place.gpt4roi(&["cache", "rm", "org/name"]).assert().success().stdout("freed 3.00 kB: org/name\n");
    assert!(!place.folder().exists());
    place.gpt4roi(&["cache", "rm", "org/name"]).assert().code(1).stderr(contains("hint: `gpt4roi cache list`"));
}

#[test]
fn a_download_that_was_cut_is_taken_up_by_the_next_command() {
    let place = Place::new();
    place.server.answer("model.safetensors", Answer { cut: Some(1000), ..Answer::default() });
    place.server.answer("model.safetensors", Answer { status: Some(403), ..Answer::default() });
    place
        .gpt4roi(&["pull", "org/name"])
        .assert()
        .code(1)
        .stderr(contains("note: model.safetensors: expected 3000 bytes, got 1000; next try in 1 s"));
    assert_eq!(place.json(&["cache", "list"])["models"][0]["partial_bytes"], 1000);
    place.gpt4roi(&["pull", "org/name"]).assert().success();
    let ranges = place.server.ranges("model.safetensors");
    assert_eq!(ranges, [None, Some("bytes=1000-".into()), Some("bytes=1000-".into())]);
}
