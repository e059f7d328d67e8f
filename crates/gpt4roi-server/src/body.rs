//! A request's body: all of it, in bounded memory and time, and as JSON whose faults say where they are.

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, header},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::{
    fault::{Fault, Result},
    limits::{Held, Limits, Memory, Times},
};

/// A body, and the memory that it takes.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    pub(crate) held: Held,
}

/// Reads a body to its end. One that says that it is too large is refused before it comes; of any other,
/// what has come is all that is held, however small the pieces were.
///
/// # Errors
/// If it is too large, too slow or cut short, or if all requests together hold too much.
pub(crate) async fn receive(body: Body, limits: &Limits, times: &Times, memory: &Memory) -> Result<Received> {
    let most = limits.body_bytes;
    if body.size_hint().lower() > most as u64 {
        return Err(Fault::BodyTooLarge(most));
    }
    let whole = tokio::time::timeout(times.body, read(body, most, memory));
    whole.await.map_err(|_| Fault::BodyTimeout)?
}

/// Reads what a client sends that is refused whatever it sends, and keeps nothing of it: many clients look for an answer
/// only when they have sent everything, and a connection that is closed before takes the answer along. Ends early where
/// [`receive`] would, and does not begin if the client waits to be told to go on.
pub(crate) async fn discard(headers: &HeaderMap, mut body: Body, limits: &Limits, times: &Times) {
    if headers.contains_key(header::EXPECT) || body.size_hint().lower() > limits.body_bytes as u64 {
        return;
    }
    let mut left = limits.body_bytes;
    let whole = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(length) else { return };
            left = rest;
        }
    };
    // What was too slow is refused without the rest.
    let _ = tokio::time::timeout(times.body, whole).await;
}

async fn read(mut body: Body, most: usize, memory: &Memory) -> Result<Received> {
    let mut received = Received { bytes: Vec::new(), held: Held::nothing() };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Fault::BodyBroken)?;
        let Some(data) = frame.data_ref() else { continue };
        let length = received.bytes.len() + data.len();
        if length > most {
            return Err(Fault::BodyTooLarge(most));
        }
        if length > received.bytes.capacity() {
            let capacity = length.next_power_of_two().clamp(1 << 14, most.max(1 << 14));
            received.held.join(memory.take(capacity - received.bytes.capacity())?);
            received.bytes.reserve_exact(capacity - received.bytes.len());
        }
        received.bytes.extend_from_slice(data);
    }
    Ok(received)
}

/// Whether a body is said to be of some type, whatever its parameters.
pub(crate) fn is_of_type(headers: &HeaderMap, kind: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(kind)
}

/// Reads JSON off the threads that serve connections, since it may be megabytes.
///
/// # Errors
/// If it is no JSON, or not what was expected; the field is named.
pub(crate) async fn json<T: DeserializeOwned + Send + 'static>(headers: &HeaderMap, bytes: Vec<u8>) -> Result<T> {
    // A page elsewhere may send plain text here without asking first, but not JSON.
    if !is_of_type(headers, "application/json") {
        return Err(Fault::MediaType("application/json"));
    }
    tokio::task::spawn_blocking(move || parse(&bytes)).await.map_err(|_| Fault::Engine)?
}

/// # Errors
/// As [`json`].
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let param = Some(error.path().to_string()).filter(|path| path != ".");
        let error = error.into_inner();
        let message = error.to_string();
        if error.is_data() { Fault::Field { param, message } } else { Fault::Json(message) }
    })?;
    deserializer.end().map_err(|error| Fault::Json(error.to_string()))?;
    Ok(value)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{convert::Infallible, time::Duration};

    use futures_util::stream;
    use serde::Deserialize;

    use super::*;

    /// For tests of what requests become.
    pub(crate) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T> {
        parse(text.as_bytes())
    }

    const LIMITS: Limits =
        Limits { body_bytes: 100_000, picture_bytes: 0, pixels: 0, max_tokens: 0, memory_bytes: 0, connections: 0 };

    async fn received(body: Body, memory: &Memory) -> Result<Received> {
        receive(body, &LIMITS, &Times::default(), memory).await
    }

    #[tokio::test]
    async fn many_tiny_pieces_take_what_they_hold() {
        let memory = Memory::new(1 << 17);
        let pieces = (0..90_000).map(|_| Ok::<_, Infallible>(Bytes::from_static(b"x")));
        let body = received(Body::from_stream(stream::iter(pieces)), &memory).await.unwrap();
        assert_eq!(body.bytes.len(), 90_000);
        assert!(body.bytes.capacity() <= 100_000);
        assert!(matches!(received(Body::from("x".repeat(90_000)), &memory).await, Err(Fault::Busy)));
        drop(body);
        assert!(received(Body::from("x".repeat(90_000)), &memory).await.is_ok());
    }

    #[tokio::test]
    async fn too_large_and_too_slow_are_told_apart() {
        let memory = Memory::new(1 << 20);
        let announced = received(Body::from(vec![0; 100_001]), &memory).await;
        assert!(matches!(announced, Err(Fault::BodyTooLarge(100_000))));
        let pieces = (0..).map(|_| Ok::<_, Infallible>(Bytes::from_static(&[0; 1000])));
        let endless = received(Body::from_stream(stream::iter(pieces)), &memory).await;
        assert!(matches!(endless, Err(Fault::BodyTooLarge(100_000))));
        let silent = Body::from_stream(stream::pending::<std::result::Result<Bytes, Infallible>>());
        let times = Times { body: Duration::from_millis(50), ..Times::default() };
        assert!(matches!(receive(silent, &LIMITS, &times, &memory).await, Err(Fault::BodyTimeout)));
    }

    /// Counts the pieces of 1000 bytes that are taken of an endless body.
    #[tokio::test]
    async fn what_is_refused_anyway_is_read_up_to_the_limits() {
        let taken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = || taken.swap(0, std::sync::atomic::Ordering::SeqCst);
        let endless = || {
            let taken = taken.clone();
            let piece = move |_| {
                taken.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                Ok::<_, Infallible>(Bytes::from_static(&[0; 1000]))
            };
            Body::from_stream(stream::iter((0..).map(piece)))
        };
        discard(&HeaderMap::new(), endless(), &LIMITS, &Times::default()).await;
        assert_eq!(count(), 101, "the limit, and the piece that passes it");
        let asks = HeaderMap::from_iter([(header::EXPECT, "100-continue".parse().unwrap())]);
        discard(&asks, endless(), &LIMITS, &Times::default()).await;
        assert_eq!(count(), 0);
        let silent = Body::from_stream(stream::pending::<std::result::Result<Bytes, Infallible>>());
        let times = Times { body: Duration::from_millis(50), ..Times::default() };
        discard(&HeaderMap::new(), silent, &LIMITS, &times).await;
    }

    #[test]
    fn json_faults_say_where() {
        #[derive(Debug, Deserialize)]
        #[serde(expecting = "an object")]
        struct Outer {
            inner: Vec<Inner>,
        }
        #[derive(Debug, Deserialize)]
        #[serde(expecting = "an object")]
        struct Inner {
            number: f64,
        }
        let good: Outer = from_json(r#"{"inner": [{"number": 1e3, "unknown": {"a": [1]}}], "more": null}"#).unwrap();
        assert_eq!(good.inner[0].number, 1000.0);
        for (text, param) in [
            (r#"{"inner": [{"number": 1}, {"number": "x"}]}"#, Some("inner[1].number")),
            (r#"{"inner": [{"number": 1, "number": 2}]}"#, Some("inner[0]")),
            (r#"{"inner": [7]}"#, Some("inner[0]")),
            (r#"{"inner": {}}"#, Some("inner")),
            (r#"{}"#, None),
            ("7", None),
        ] {
            let fault = from_json::<Outer>(text).unwrap_err();
            let Fault::Field { param: got, message } = &fault else { panic!("{text}: {fault:?}") };
            assert_eq!(got.as_deref(), param, "{text}");
            assert!(!message.contains("Outer") && !message.contains("Inner"), "{message}");
        }
        // What is ignored may be as deep as it likes; nobody descends into it.
        let deep = format!(r#"{{"inner": [], "more": {}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(from_json::<Outer>(&deep).is_ok());
        for text in
            ["", "{", "nonsense", r#"{"inner": [{"number": NaN}]}"#, r#"{"inner": []} x"#, "{\"inner\": \"\u{0}"]
        {
            assert!(matches!(from_json::<Outer>(text), Err(Fault::Json(_))), "{text:.40}");
        }
        assert!(from_json::<Outer>(r#"{"inner": [{"number": 1e999}]}"#).is_err());
        assert!(parse::<Outer>(b"{\"inner\": [], \"\xff\": 1}").is_err());
    }
}
