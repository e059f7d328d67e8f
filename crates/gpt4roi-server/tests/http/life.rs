use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use gpt4roi_server::engine::EngineOptions;
use serde_json::{Value, json};

use crate::client::{OCTOPUS, PICTURE, Running, data_url, engine, question, read, start_with};

/// A request that takes long: many regions, in detail, line by line.
fn long(count: usize) -> Value {
    let regions: Vec<Value> = (0..count).map(|index| json!({"box": [index % 50, 14, 54, 59]})).collect();
    json!({"image": data_url(PICTURE), "regions": regions, "detail": "full", "stream": true})
}

/// Sends a request that takes long, and waits for its first line.
fn begin_long(server: &Running, count: usize) -> TcpStream {
    let mut stream = server.connect();
    let headers = [("content-type", "application/json")];
    let body = long(count).to_string();
    stream.write_all(&server.request("POST", "/v1/regions/describe", &headers, body.as_bytes())).unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains("region.description") {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "{seen}");
        seen += &String::from_utf8_lossy(&buffer[..length]);
    }
    stream
}

/// Waits until something holds; false if it never does.
fn wait_for(mut holds: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(20) {
        if holds() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let server = start_with(engine(EngineOptions::default()), |_| {});
    let stream = begin_long(&server, 1000);
    assert_eq!(server.metric("gpt4roi_num_requests_running "), 1.0);
    drop(stream);
    assert!(wait_for(|| server.metric("gpt4roi_num_requests_running ") == 0.0), "in an answer");

    // The same for one that waits in the queue, and for one that is answered all at once.
    let running = begin_long(&server, 1000);
    let mut waiting = server.connect();
    let body = question("What is <region1>?", &json!([{"box": OCTOPUS}])).to_string();
    let headers = [("content-type", "application/json")];
    waiting.write_all(&server.request("POST", "/v1/chat/completions", &headers, body.as_bytes())).unwrap();
    drop(waiting);
    drop(running);
    assert!(wait_for(|| server.metric("gpt4roi_http_requests_in_flight") == 1.0), "none but the one that asks");
    assert_eq!(server.chat(&question("What is <region1>?", &json!([{"box": OCTOPUS}]))).status, 200);
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server =
        start_with(engine(EngineOptions { max_queue: 1, max_sequences: 1, ..EngineOptions::default() }), |_| {});
    let running = begin_long(&server, 300);
    let body = long(300).to_string();
    let headers = [("content-type", "application/json")];
    let mut waiting: Vec<TcpStream> = Vec::new();
    let mut refused = None;
    for _ in 0..8 {
        let mut stream = server.connect();
        stream.write_all(&server.request("POST", "/v1/regions/describe", &headers, body.as_bytes())).unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        match &status[9..] {
            b"200" => waiting.push(stream),
            b"429" => {
                refused = Some(read(&mut stream));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let refused = refused.expect("more waits than may");
    assert!(refused.body.contains("queue_full"), "{}", refused.body);
    drop((running, waiting));
}

#[test]
fn a_question_that_is_not_answered_in_time_is_given_up() {
    let server = start_with(engine(EngineOptions::default()), |options| options.times.answer = Duration::ZERO);
    let response = server.chat(&question("What is <region1>?", &json!([{"box": OCTOPUS}])));
    assert_eq!(response.error(), (504, "timeout".into(), "".into()));
    assert_eq!(response.header("x-should-retry"), Some("false"));
    let mut streamed = question("What is <region1>?", &json!([{"box": OCTOPUS}]));
    streamed["stream"] = true.into();
    let response = server.chat(&streamed);
    assert_eq!(response.status, 200);
    assert!(response.body.contains(r#""code":"timeout""#) && !response.body.contains("[DONE]"), "{}", response.body);
}

#[test]
fn silence_is_broken_by_comments_and_empty_lines() {
    let server = start_with(engine(EngineOptions::default()), |options| options.times.ping = Duration::from_millis(20));
    let running = begin_long(&server, 300);
    let mut body = question("Describe <region1> in detail.", &json!([{"box": OCTOPUS}]));
    body["stream"] = true.into();
    let response = server.chat(&body);
    assert!(response.body.contains("\n\n: still here\n\n"), "{}", response.body);
    assert!(response.events().len() > 3);
    // Among lines, by empty ones.
    let response = server.post("/v1/regions/describe", &long(2));
    assert!(response.body.split('\n').rev().skip(1).any(str::is_empty), "{}", response.body);
    let lines = response.body.lines().filter(|line| !line.is_empty());
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2 + 1);
    drop(running);
}

#[test]
fn a_server_that_stops_answers_what_it_took_and_nothing_else() {
    let mut server =
        start_with(engine(EngineOptions::default()), |options| options.times.drain = Duration::from_secs(120));
    assert_eq!(server.get("/readyz").status, 200);
    let mut running = begin_long(&server, 80);
    server.begin_to_stop();
    assert!(wait_for(|| server.get("/readyz").status == 503));
    assert_eq!(server.get("/livez").status, 200);
    let refused = server.chat(&question("What is <region1>?", &json!([{"box": OCTOPUS}])));
    assert_eq!(refused.error(), (503, "stopping".into(), "".into()));
    let mut stream = server.connect();
    let headers = [("content-type", "application/json")];
    stream.write_all(&server.request("POST", "/v1/regions/describe", &headers, &[b' '; 8_000_000])).unwrap();
    assert_eq!(read(&mut stream).error().1, "stopping", "all that it sent was taken");
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("region.descriptions.end") && !rest.contains("failed"), "{rest:.500}");
    server.stopped();
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn what_takes_too_long_ends_with_an_error_when_the_server_stops() {
    let mut server =
        start_with(engine(EngineOptions::default()), |options| options.times.drain = Duration::from_millis(100));
    let mut running = begin_long(&server, 1000);
    let begin = Instant::now();
    server.begin_to_stop();
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""code":"stopping""#), "{:.500}", rest);
    server.stopped();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
