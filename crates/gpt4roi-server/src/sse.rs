//! Answers that come bit by bit: server-sent events, and lines of JSON.

use std::convert::Infallible;

use axum::{
    body::Body,
    http::{HeaderName, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::Stream;
use serde_json::Value;

/// One event. JSON has no line breaks of its own.
pub(crate) fn event(data: &Value) -> Bytes {
    format!("data: {data}\n\n").into()
}

/// What ends a stream of OpenAI's.
pub(crate) fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

/// A comment, for whoever closes a connection that is silent for too long.
pub(crate) fn comment() -> Bytes {
    Bytes::from_static(b": still here\n\n")
}

/// A stream of events.
pub(crate) fn response(events: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    stream("text/event-stream", events)
}

/// One line.
pub(crate) fn line(data: &Value) -> Bytes {
    format!("{data}\n").into()
}

/// An empty line, which readers of lines skip, for whoever closes a connection that is silent for too long.
pub(crate) fn blank() -> Bytes {
    Bytes::from_static(b"\n")
}

/// A stream of lines.
pub(crate) fn lines(lines: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    stream("application/x-ndjson", lines)
}

fn stream(kind: &'static str, pieces: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    // nginx would collect what it passes on.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), "no");
    ([(header::CONTENT_TYPE, kind), unbuffered], Body::from_stream(pieces)).into_response()
}
