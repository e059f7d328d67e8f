//! A server on a port of its own, and the plainest of clients.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::LazyLock,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use candle_core::Device;
use gpt4roi::Gpt4Roi;
use gpt4roi_server::{
    Server, ServerOptions,
    engine::{Engine, EngineOptions},
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// An engine that most tests share.
static ENGINE: LazyLock<Engine> = LazyLock::new(|| engine(EngineOptions::default()));

/// An engine with the embedded model.
pub(crate) fn engine(options: EngineOptions) -> Engine {
    let (engine, _) = Engine::start(Gpt4Roi::nano(&Device::Cpu).unwrap(), options);
    while !engine.is_ready() {
        std::thread::sleep(Duration::from_millis(5));
    }
    engine
}

/// A server that runs until it is told to stop, or until the tests end.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

pub(crate) fn start(change: impl FnOnce(&mut ServerOptions)) -> Running {
    start_with(ENGINE.clone(), change)
}

pub(crate) fn start_with(engine: Engine, change: impl FnOnce(&mut ServerOptions)) -> Running {
    let mut options = ServerOptions { port: 0, ..ServerOptions::new("gpt4roi-nano") };
    change(&mut options);
    let server = RUNTIME.block_on(Server::bind(engine, options)).unwrap();
    let address = server.address();
    let (stop, stopped) = oneshot::channel();
    let server = RUNTIME.spawn(server.run(async {
        if stopped.await.is_err() {
            std::future::pending().await
        }
    }));
    Running { address, stop: Some(stop), server: Some(server) }
}

/// The error of a server that does not start.
pub(crate) fn refused(change: impl FnOnce(&mut ServerOptions)) -> String {
    let mut options = ServerOptions { port: 0, ..ServerOptions::new("gpt4roi-nano") };
    change(&mut options);
    RUNTIME.block_on(Server::bind(ENGINE.clone(), options)).map(|_| ()).unwrap_err().to_string()
}

pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Status, code and field of an error.
    pub(crate) fn error(&self) -> (u16, String, String) {
        let json = self.json();
        let text = |field: &str| json["error"][field].as_str().unwrap_or_default().to_owned();
        assert!(!text("message").is_empty() && !text("type").is_empty(), "{}", self.body);
        (self.status, text("code"), text("param"))
    }

    /// The events of a stream, without the last one, which says that it is the last.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> =
            self.body.split_terminator("\n\n").filter(|event| !event.starts_with(':')).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", self.body);
        let parse = |event: &&str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events.iter().map(parse).collect()
    }
}

impl Running {
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends bytes, and reads to the connection's end.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Response {
        let mut stream = self.connect();
        // A server that refuses early does not read the rest.
        let _ = stream.write_all(bytes);
        read(&mut stream)
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.raw(&self.request(method, path, headers, body))
    }

    pub(crate) fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if headers.iter().all(|(name, _)| *name != "host") {
            request += &format!("host: {}\r\n", self.address);
        }
        headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
        [format!("{request}\r\n").as_bytes(), body].concat()
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.post_text(path, &body.to_string())
    }

    pub(crate) fn post_text(&self, path: &str, body: &str) -> Response {
        self.send("POST", path, &[("content-type", "application/json")], body.as_bytes())
    }

    pub(crate) fn chat(&self, body: &Value) -> Response {
        self.post("/v1/chat/completions", body)
    }

    /// A number that the server counts.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").body;
        let line = metrics.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    }

    /// Tells the server to stop; what is done then happens while it does.
    pub(crate) fn begin_to_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits until it has stopped.
    pub(crate) fn stopped(&mut self) {
        RUNTIME.block_on(self.server.take().unwrap()).unwrap();
    }
}

/// Reads a response to its end.
pub(crate) fn read(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..length]);
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Response {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    Response { status, head: head.to_owned(), body }
}

fn unchunked(mut text: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        let Some(chunk) = rest.get(..size) else { break };
        body += chunk;
        text = rest.get(size + 2..).unwrap_or_default();
    }
    body
}

/// The README's picture.
pub(crate) const PICTURE: &[u8] = include_bytes!("../../../../docs/example.png");
/// What is in it.
pub(crate) const OCTOPUS: [f64; 4] = [8.0, 14.0, 54.0, 59.0];
pub(crate) const BREAD: [f64; 4] = [109.0, 0.0, 181.0, 59.0];

pub(crate) fn data_url(file: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(file))
}

pub(crate) fn image_part(regions: &Value) -> Value {
    json!({"type": "image_url", "image_url": {"url": data_url(PICTURE)}, "regions": regions})
}

/// A question about the README's picture.
pub(crate) fn question(text: &str, regions: &Value) -> Value {
    let parts = json!([image_part(regions), {"type": "text", "text": text}]);
    json!({"model": "gpt4roi-nano", "messages": [{"role": "user", "content": parts}]})
}
