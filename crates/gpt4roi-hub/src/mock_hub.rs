//! A hub on the loopback interface that misbehaves as it is told. Tests of the binary use it too.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// The only commit of every model here.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the files of one model. It ends when it is dropped.
pub(crate) struct MockHub {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    files: Mutex<BTreeMap<String, File>>,
    answers: Mutex<BTreeMap<String, VecDeque<Answer>>>,
    requests: Mutex<Vec<Request>>,
    ended: AtomicBool,
}

#[derive(Clone)]
struct File {
    content: Vec<u8>,
    is_large: bool,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    headers: BTreeMap<String, String>,
}

/// How one request is answered otherwise than it should be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Another status, with an empty body.
    pub(crate) status: Option<u16>,
    /// More headers.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The connection ends after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Nothing comes after so many bytes of the body.
    pub(crate) stall: Option<usize>,
    /// This byte of the body is another.
    pub(crate) flip: Option<usize>,
    /// So many bytes are announced.
    pub(crate) announce: Option<usize>,
    /// The content's version.
    pub(crate) etag: Option<&'static str>,
    /// A range is asked for, and everything comes.
    pub(crate) ignore_range: bool,
}

impl MockHub {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::new(Shared::default()));
        let served = shared.clone();
        let serve = move || {
            for stream in listener.incoming().flatten() {
                if served.ended.load(Ordering::SeqCst) {
                    return;
                }
                let served = served.clone();
                thread::spawn(move || served.serve(stream));
            }
        };
        Self { address, shared, thread: Some(thread::spawn(serve)) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A file in the Git repository.
    pub(crate) fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        let file = File { content: content.into(), is_large: false };
        self.shared.files.lock().unwrap().insert(path.to_owned(), file);
    }

    /// A file in large-file storage.
    pub(crate) fn put_large(&self, path: &str, content: impl Into<Vec<u8>>) {
        let file = File { content: content.into(), is_large: true };
        self.shared.files.lock().unwrap().insert(path.to_owned(), file);
    }

    /// The next request for a path that ends so is answered so; called again, the one after it.
    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.shared.answers.lock().unwrap().entry(path.to_owned()).or_default().push_back(answer);
    }

    /// The requests so far for paths that end so.
    pub(crate) fn requests(&self, path: &str) -> Vec<Request> {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|request| request.path.ends_with(path)).cloned().collect()
    }

    /// The `Range` headers of those requests.
    pub(crate) fn ranges(&self, path: &str) -> Vec<Option<String>> {
        self.requests(path).iter().map(|request| request.header("range").map(str::to_owned)).collect()
    }
}

impl Drop for MockHub {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the thread up
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let Some(request) = read_request(&stream) else { return };
        self.requests.lock().unwrap().push(request.clone());
        let mut answers = self.answers.lock().unwrap();
        let told = answers.iter_mut().find(|(path, _)| request.path.ends_with(path.as_str()));
        let answer = told.and_then(|(_, answers)| answers.pop_front()).unwrap_or_default();
        drop(answers);
        let _ = self.respond(&mut stream, &request, &answer);
    }

    fn respond(&self, stream: &mut TcpStream, request: &Request, answer: &Answer) -> std::io::Result<()> {
        if let Some(status) = answer.status {
            return send(stream, status, &answer.headers, b"", answer);
        }
        if request.path.starts_with("/api/models/") {
            return send(stream, 200, &[], self.listing().as_bytes(), answer);
        }
        let path = request.path.split_once(COMMIT).map_or("", |(_, path)| path.trim_start_matches('/'));
        let Some(file) = self.files.lock().unwrap().get(path).cloned() else {
            return send(stream, 404, &[("X-Error-Code", "EntryNotFound".into())], b"", answer);
        };
        let etag = format!("\"{}\"", answer.etag.unwrap_or(&file.digest()));
        let mut headers = vec![("ETag", etag.clone()), ("X-Repo-Commit", COMMIT.to_owned())];
        let size = file.content.len();
        let is_same = request.header("if-range").is_none_or(|version| version == etag);
        let range = request.header("range").filter(|_| is_same && !answer.ignore_range);
        let offset = range.map(|range| range["bytes=".len()..range.len() - 1].parse::<usize>().unwrap());
        match offset {
            Some(offset) if offset >= size => send(stream, 416, &headers, b"", answer),
            Some(offset) => {
                headers.push(("Content-Range", format!("bytes {offset}-{}/{size}", size - 1)));
                send(stream, 206, &headers, &file.content[offset..], answer)
            }
            None => send(stream, 200, &headers, &file.content, answer),
        }
    }

    fn listing(&self) -> String {
        let files = self.files.lock().unwrap();
        let sibling = |(path, file): (&String, &File)| {
            let (size, git) = (file.content.len(), git_digest(&file.content));
            let lfs = match file.is_large {
                true => format!(r#", "lfs": {{"sha256": "{}", "size": {size}, "pointerSize": 130}}"#, file.digest()),
                false => String::new(),
            };
            format!(r#"{{"rfilename": "{path}", "size": {size}, "blobId": "{git}"{lfs}}}"#)
        };
        let siblings: Vec<_> = files.iter().map(sibling).collect();
        format!(r#"{{"sha": "{COMMIT}", "private": false, "siblings": [{}]}}"#, siblings.join(", "))
    }
}

impl File {
    fn digest(&self) -> String {
        if self.is_large { hex(&Sha256::digest(&self.content)) } else { git_digest(&self.content) }
    }
}

fn git_digest(content: &[u8]) -> String {
    hex(&Sha1::digest([format!("blob {}\0", content.len()).as_bytes(), content].concat()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.split('?').next()?.to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    Some(Request { path, headers })
}

fn send(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
    answer: &Answer,
) -> std::io::Result<()> {
    let mut body = body.to_owned();
    if let Some(byte) = answer.flip {
        body[byte] ^= 1;
    }
    let announced = answer.announce.unwrap_or(body.len());
    let mut head = format!("HTTP/1.1 {status} -\r\nContent-Length: {announced}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let sent = answer.cut.or(answer.stall).unwrap_or(body.len());
    stream.write_all(&body[..sent])?;
    if answer.stall.is_some() {
        let _ = stream.read(&mut [0]); // until the other side has enough of it
    }
    Ok(())
}
