//! What the server counts, for Prometheus, and its one line of log per request.
//!
//! Names follow vLLM and llama.cpp, so that their dashboards need another prefix and nothing else.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        counter::ConstCounter, counter::Counter, family::Family, gauge::ConstGauge, gauge::Gauge, histogram::Histogram,
    },
    registry::Registry,
};

use crate::{app::App, engine::Engine, fault::Fault};

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    latency: Family<RouteLabel, Histogram, fn() -> Histogram>,
    first_text: Histogram,
    in_flight: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

/// From a millisecond, for the embedded model, to minutes, for a 7B on a CPU.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    pub(crate) fn new(engine: &Engine) -> Self {
        let mut registry = Registry::with_prefix("gpt4roi");
        let requests = Family::default();
        registry.register("http_requests", "Requests by method, route and status", requests.clone());
        let latency = Family::new_with_constructor(seconds as fn() -> Histogram);
        let help = "Seconds from a request's header to the end of its answer";
        registry.register("e2e_request_latency_seconds", help, latency.clone());
        let first_text = seconds();
        let help = "Seconds from a question's queueing to its first text";
        registry.register("time_to_first_token_seconds", help, first_text.clone());
        let in_flight = Gauge::default();
        registry.register("http_requests_in_flight", "Requests whose answer has not ended", in_flight.clone());
        registry.register_collector(Box::new(OfEngine(engine.clone())));
        Self { registry, requests, latency, first_text, in_flight }
    }

    pub(crate) fn first_text(&self) -> Histogram {
        self.first_text.clone()
    }

    /// Requests whose answer has not ended.
    pub(crate) fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }
}

/// `GET /metrics`
pub(crate) async fn get(State(app): State<App>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &app.metrics.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => Fault::Engine.into_response(),
    }
}

/// What the engine counts itself.
struct OfEngine(Engine);

impl fmt::Debug for OfEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the engine counts")
    }
}

impl Collector for OfEngine {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = self.0.stats();
        let ended = stats.requests;
        let gauges = [
            ("num_requests_waiting", "Requests in the queue", stats.queued),
            ("num_requests_running", "Requests that are being answered", stats.running),
            ("num_sequences_running", "Answers that are being written", stats.sequences),
            ("image_cache_bytes", "Bytes of encoded pictures that are kept", stats.image_bytes),
            ("prefix_cache_bytes", "Bytes of keys and values that are kept", stats.prefix_bytes),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("requests_answered", "Requests that were answered", ended.answered),
            ("requests_cancelled", "Requests whose client went away", ended.cancelled),
            ("requests_refused", "Requests that found the queue full or the engine stopping", ended.refused),
            ("requests_impossible", "Requests that could not be answered", ended.question),
            ("requests_without_numbers", "Requests that met numbers that are none", ended.numbers),
            ("requests_late", "Requests that met their deadline", ended.deadline),
            ("requests_failed", "Requests that met a failure of the engine", ended.engine),
            ("prompt_tokens", "Tokens of prompts, pictures included", stats.prompt_tokens),
            ("prefix_cache_hits", "Tokens of prompts that were not read again", stats.reused_tokens),
            ("generation_tokens", "Tokens written", stats.generated_tokens),
            ("drafted_tokens", "Tokens written that came as drafted", stats.drafted_tokens),
            ("image_cache_hits", "Pictures that had been encoded before", stats.image_hits),
            ("image_cache_misses", "Pictures that had to be encoded", stats.image_misses),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let times = [
            ("request_queue_time_seconds", "Seconds that requests waited", stats.queue_seconds),
            ("request_vision_time_seconds", "Seconds of the tower and the pyramid", stats.vision_seconds),
            ("request_prefill_time_seconds", "Seconds of reading prompts", stats.prefill_seconds),
            ("request_decode_time_seconds", "Seconds of writing answers", stats.decode_seconds),
        ];
        for (name, help, value) in times {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

/// The tokens of one request, for its line in the log.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    prompt: AtomicUsize,
    generated: AtomicUsize,
}

impl Tally {
    pub(crate) fn add(&self, prompt_tokens: usize, generated_tokens: usize) {
        self.prompt.fetch_add(prompt_tokens, Ordering::Relaxed);
        self.generated.fetch_add(generated_tokens, Ordering::Relaxed);
    }
}

/// Counts and logs a request when its answer has ended, or when its client went away.
pub(crate) async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("page", MatchedPath::as_str).to_owned();
    let tally = Arc::new(Tally::default());
    request.extensions_mut().insert(tally.clone());
    app.metrics.in_flight.inc();
    let mut seen = Seen { app, method: method(request.method()), route, status: None, since: Instant::now(), tally };
    let response = next.run(request).await;
    seen.status = Some(response.status());
    response.map(|body| Body::new(Observed { body, _seen: seen }))
}

/// A method's name; any that is unheard of is one and the same, so that nobody fills the memory with names.
fn method(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
    known.into_iter().find(|known| method == known).unwrap_or("other")
}

/// A request that was seen. It is told of when this is dropped.
struct Seen {
    app: App,
    method: &'static str,
    route: String,
    /// None if the client went away before there was one.
    status: Option<StatusCode>,
    since: Instant,
    tally: Arc<Tally>,
}

impl Drop for Seen {
    fn drop(&mut self) {
        let metrics = &self.app.metrics;
        // As nginx has it: the client closed the connection.
        let status = self.status.map_or(499, |status| status.as_u16());
        let took = self.since.elapsed();
        metrics.in_flight.dec();
        let labels = Labels { method: self.method.into(), route: self.route.clone(), status };
        metrics.requests.get_or_create(&labels).inc();
        metrics.latency.get_or_create(&RouteLabel { route: self.route.clone() }).observe(took.as_secs_f64());
        tracing::info!(
            method = self.method,
            route = self.route,
            status,
            ms = took.as_millis() as u64,
            prompt_tokens = self.tally.prompt.load(Ordering::Relaxed),
            generated_tokens = self.tally.generated.load(Ordering::Relaxed),
        );
    }
}

/// A body with the request that it answers.
struct Observed {
    body: Body,
    _seen: Seen,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
