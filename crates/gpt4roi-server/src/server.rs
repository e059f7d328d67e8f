//! The server itself: who may connect, for how long, and how it ends.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use axum::Router;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    pin,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, interval, sleep, timeout, timeout_at},
};

use crate::{
    app::{App, Parts, Phase, unix_seconds},
    auth::Keys,
    engine::Engine,
    fetch::Fetcher,
    limits::{Limits, Memory, Times},
    metrics::Metrics,
    origin::Gate,
    pictures::{PictureOptions, Pictures},
    router::router,
    stalled::GiveUp,
};

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Name or address to listen at.
    pub host: String,
    /// Port to listen at; 0 takes a free one.
    pub port: u16,
    /// How the model is called.
    pub model: String,
    /// How the adapter is called that it is served with.
    pub adapter: Option<String>,
    /// Who may ask; without keys everybody who gets through.
    pub keys: Keys,
    /// Listen beyond this machine although there are no keys.
    pub insecure_no_auth: bool,
    /// Names, beside its own, by which clients may call a server that listens on this machine alone.
    pub allow_hosts: Vec<String>,
    /// Pages of these origins may ask.
    pub allow_origins: Vec<String>,
    /// Serve the page.
    pub page: bool,
    /// Fetch pictures from public addresses.
    pub fetch_images: bool,
    /// How much a request may ask for.
    pub limits: Limits,
    /// How long things may take.
    pub times: Times,
    /// How uploaded pictures are kept.
    pub pictures: PictureOptions,
}

impl ServerOptions {
    /// On this machine alone, with the page.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            model: model.into(),
            adapter: None,
            keys: Keys::default(),
            insecure_no_auth: false,
            allow_hosts: Vec::new(),
            allow_origins: Vec::new(),
            page: true,
            fetch_images: false,
            limits: Limits::default(),
            times: Times::default(),
            pictures: PictureOptions::default(),
        }
    }
}

/// A server that can't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Nobody can listen there.
    #[error("{host}:{port}: {source}")]
    Bind {
        /// Where.
        host: String,
        /// At which port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// Everybody on the network could ask.
    #[error("{address} is reached from other machines: expected an API key, got none")]
    NoKey {
        /// Where it would listen.
        address: SocketAddr,
    },
}

/// A server that listens, and answers once it runs.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: App,
}

/// How long a connection may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

impl Server {
    /// Begins to listen.
    ///
    /// # Errors
    /// If the address is taken, or open to others without a key.
    pub async fn bind(engine: Engine, options: ServerOptions) -> Result<Self, ServerError> {
        let ServerOptions { host, port, .. } = &options;
        let bind_error = |source| ServerError::Bind { host: host.clone(), port: *port, source };
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let listener = TcpListener::bind((name, *port)).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        if !address.ip().is_loopback() && options.keys.is_empty() && !options.insecure_no_auth {
            return Err(ServerError::NoKey { address });
        }
        Ok(Self { listener, address, app: Arc::new(parts(engine, options, address.ip())) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` comes to its end. From then on new questions are refused, and those that were
    /// taken are answered, for as long as [`Times::drain`] allows; what is left then ends with an error. The
    /// engine goes on.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, app, .. } = self;
        let connections = GracefulShutdown::new();
        let accept = accept(&listener, &app, &connections);
        let drain = async {
            stop.await;
            app.phase.send_replace(Phase::Draining);
            let over = Instant::now() + app.times.drain;
            if timeout_at(over, idle(&app)).await.is_err() {
                app.phase.send_replace(Phase::Ending);
                let _ = timeout(GOODBYE, idle(&app)).await;
            }
        };
        tokio::select! {
            () = accept => {}
            () = drain => {}
            () = forget_pictures(&app) => {}
        }
        let _ = timeout(GOODBYE, connections.shutdown()).await;
    }
}

fn parts(engine: Engine, options: ServerOptions, address: IpAddr) -> Parts {
    // A page elsewhere can reach what listens on this machine. What everybody reaches has a key instead.
    let hosts = address.is_loopback().then(|| {
        let own = ["localhost".to_owned(), "127.0.0.1".into(), "[::1]".into(), host_in_url(&options.host)];
        own.into_iter().chain(options.allow_hosts).collect()
    });
    let threads = thread::available_parallelism().map_or(1, usize::from);
    Parts {
        metrics: Metrics::new(&engine),
        engine,
        model: options.model,
        adapter: options.adapter,
        keep: options.pictures.keep_for,
        pictures: Pictures::new(options.pictures),
        keys: options.keys,
        gate: Gate { hosts, origins: options.allow_origins },
        page: options.page,
        fetcher: options.fetch_images.then(Fetcher::public),
        limits: options.limits,
        times: options.times,
        memory: Memory::new(options.limits.memory_bytes),
        decoding: Arc::new(Semaphore::new(threads)),
        created: unix_seconds(SystemTime::now()),
        phase: watch::Sender::new(Phase::Serving),
    }
}

/// A host as it stands in an address: IPv6 in brackets.
fn host_in_url(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

/// Comes to its end when no request is being answered.
async fn idle(app: &App) {
    while app.metrics.in_flight() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Takes connections, as many as are allowed at a time; others wait to be taken.
async fn accept(listener: &TcpListener, app: &App, connections: &GracefulShutdown) {
    let router = router(app.clone());
    let places = Arc::new(Semaphore::new(app.limits.connections));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connect(stream, router.clone(), app.clone(), connections.watcher(), place));
            }
            // No file descriptors are left, most likely. Some come back.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Gives back the memory of uploads whose time is over, soon after it is, also while nobody asks for any.
async fn forget_pictures(app: &App) {
    const SOONEST: Duration = Duration::from_millis(100);
    const LATEST: Duration = Duration::from_secs(60);
    let mut turns = interval(app.keep.clamp(SOONEST, LATEST));
    loop {
        turns.tick().await;
        app.pictures.forget_expired(std::time::Instant::now());
    }
}

async fn connect(stream: TcpStream, router: Router, app: App, watcher: Watcher, _place: OwnedSemaphorePermit) {
    // Pieces of an answer are sent as they come.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(GiveUp::after(app.times.write, stream));
    let service =
        TowerToHyperService::new(tower::util::MapRequest::new(router, |request: hyper::Request<Incoming>| {
            request.map(axum::body::Body::new)
        }));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.times.header)
        .max_buf_size(64 << 10)
        .serve_connection(stream, service);
    let connection = watcher.watch(connection);
    pin!(connection);
    // Clients go away in many ways, none of which is worth a word.
    let _ = connection.await;
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use gpt4roi::{Gpt4Roi, Image};

    use super::*;
    use crate::engine::EngineOptions;

    /// The parts of a server that listens nowhere, with an engine that nobody drives.
    pub(crate) fn app(change: impl FnOnce(&mut ServerOptions)) -> App {
        let model = Gpt4Roi::nano(&candle_core::Device::Cpu).unwrap();
        let engine = Engine::new(model, EngineOptions::default(), Arc::new(std::time::Instant::now));
        let mut options = ServerOptions::new("gpt4roi-nano");
        change(&mut options);
        Arc::new(parts(engine, options, Ipv4Addr::LOCALHOST.into()))
    }

    #[tokio::test]
    async fn uploads_are_forgotten_in_time_though_nobody_asks() {
        let app = app(|options| options.pictures.keep_for = Duration::from_millis(1));
        let image = Arc::new(Image::from_rgb(image::RgbImage::new(1, 1)));
        let kept = Arc::downgrade(&image);
        app.pictures.add("", b"1", image, std::time::Instant::now()).unwrap();
        assert!(kept.upgrade().is_some());
        let gone = async {
            while kept.upgrade().is_some() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = forget_pictures(&app) => {}
            forgotten = timeout(Duration::from_secs(10), gone) => forgotten.unwrap(),
        }
    }
}
