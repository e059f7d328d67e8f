//! The server as the program starts and stops it, with the embedded model.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A server, and what it says on standard error.
struct Served {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
    address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpt4roi"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GPT4ROI_")) {
        command.env_remove(name);
    }
    command.arg("serve").args(["--port", "0"]).args(arguments).stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn serve(arguments: &[&str]) -> Served {
    let mut child = command(arguments).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on ") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended before it listened");
    }
    let address = line.split("http://").nth(1).unwrap().trim().to_owned();
    let served = Served { child, said, address };
    let begin = Instant::now();
    while served.get("/readyz").0 != 200 {
        assert!(begin.elapsed() < Duration::from_secs(60), "never ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    served
}

impl Served {
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        (response.split(' ').nth(1).unwrap().parse().unwrap(), response)
    }

    /// What it has said, once it has told of a request with this status.
    fn said_until(&mut self, status: u16) -> String {
        let mut said = String::new();
        while !said.contains(&format!("status={status}")) {
            assert!(self.said.read_line(&mut said).unwrap() > 0, "{said}");
        }
        said
    }

    /// Sends a signal, and waits for the program's end.
    #[cfg(unix)]
    fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

#[test]
#[cfg(unix)]
fn the_program_serves_until_it_is_told_to_stop() {
    for signal in ["-TERM", "-INT"] {
        let served = serve(&["--no-page"]);
        assert!(served.address.starts_with("127.0.0.1:"), "{}", served.address);
        let (status, models) = served.get("/v1/models?key=in-the-address");
        assert!(status == 200 && models.contains("gpt4roi-nano"), "{models}");
        assert_eq!(served.get("/").0, 404);
        let begin = Instant::now();
        let (code, rest) = served.end(signal);
        assert_eq!(code, Some(0), "{signal}: {rest}");
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert!(rest.contains("stopping") && rest.contains("route=\"/v1/models\" status=200"), "{rest}");
        assert!(!rest.contains("in-the-address"), "{rest}");
    }
}

/// Where it lies is nobody's business.
#[test]
fn clients_get_to_know_the_adapter_by_its_name() {
    let place = tempfile::tempdir().unwrap();
    let adapter = place.path().join("own");
    fs::create_dir(&adapter).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}"#;
    fs::write(adapter.join("adapter_config.json"), config).unwrap();
    let norm = candle_core::Tensor::ones(192, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let tensors = std::collections::HashMap::from([("base_model.model.model.norm.weight", norm)]);
    candle_core::safetensors::save(&tensors, adapter.join("adapter_model.safetensors")).unwrap();
    let (status, models) = serve(&["--adapter", adapter.to_str().unwrap()]).get("/v1/models");
    assert!(status == 200 && models.contains(r#""adapter":"own""#), "{models}");
    assert!(!models.contains(place.path().to_str().unwrap()), "{models}");
}

#[test]
fn keys_come_from_a_file_and_are_never_told() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("keys");
    fs::write(&file, "# of the team\nfirst-secret\n\nsecond-secret\n").unwrap();
    let mut served = serve(&["--api-keys-file", file.to_str().unwrap()]);
    assert_eq!(served.get("/v1/models").0, 401);
    let mut stream = TcpStream::connect(&served.address).unwrap();
    let host = &served.address;
    write!(
        stream,
        "GET /v1/models HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer second-secret\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    let said = served.said_until(401) + &served.said_until(200);
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn what_can_not_be_served_is_refused_with_advice() {
    let place = tempfile::tempdir().unwrap();
    let empty = place.path().join("empty");
    fs::write(&empty, "# nothing\n").unwrap();
    for (arguments, words) in [
        (&["--host", "0.0.0.0"][..], ["expected an API key", "hint: GPT4ROI_API_KEY"]),
        (&["--api-keys-file", empty.to_str().unwrap()], ["expected a key on each line", "empty"]),
        (&["--api-keys-file", "nowhere"], ["nowhere", "--api-keys-file"]),
        (&["--host", "192.0.2.1"], ["192.0.2.1", "hint: --host"]),
    ] {
        let output = command(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
}

/// The embedded model with room for eight tokens: it opens, and no question fits.
#[test]
fn a_model_that_can_not_answer_ends_the_program_with_the_reason() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("vision_tower")).unwrap();
    for name in ["added_tokens.json", "model.safetensors", "tokenizer.model"] {
        fs::copy(nano.join(name), place.path().join(name)).unwrap();
    }
    for name in ["config.json", "model.safetensors"] {
        fs::copy(nano.join("vision_tower").join(name), place.path().join("vision_tower").join(name)).unwrap();
    }
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(nano.join("config.json")).unwrap()).unwrap();
    config["max_position_embeddings"] = 8.into();
    fs::write(place.path().join("config.json"), config.to_string()).unwrap();
    let output = command(&["--model", place.path().to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: the first answer failed: ") && said.contains("expected at most 8"), "{said}");
}
