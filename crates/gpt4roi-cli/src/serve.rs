//! `gpt4roi serve`: the model over HTTP, and the page.

use std::{
    fs,
    io::{self, IsTerminal},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::builder::FalseyValueParser;
use gpt4roi::Gpt4Roi;
use gpt4roi_server::{
    Keys, Limits, Server, ServerError, ServerOptions, Times,
    engine::{Engine, EngineOptions, EngineThread},
    pictures::PictureOptions,
};
use tokio::sync::watch;

use crate::{
    drafts::DraftOptions,
    failure::{Refusal, tell},
    interrupts::StopSignals,
    options::ModelOptions,
};

/// Answer questions over HTTP, and serve the page where one draws boxes and talks
///
/// Any OpenAI client can ask at /v1/chat/completions. Only programs and pages on this machine are answered,
/// unless --host says otherwise, which needs a key.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    address: AddressOptions,
    #[command(flatten)]
    access: AccessOptions,
    #[command(flatten)]
    limits: LimitOptions,
}

const EXAMPLES: &str = "\
Examples:
  The embedded model, and the page at http://127.0.0.1:8080:
    gpt4roi serve

  Ask it, from another terminal:
    curl http://127.0.0.1:8080/v1/regions/describe -H 'content-type: application/json' -d @- <<EOF
    {\"image\": \"data:image/png;base64,$(base64 -w0 scene.png)\", \"regions\": [{\"box\": [62, 41, 240, 180]}]}
    EOF

  A model of one's own for a whole network:
    gpt4roi serve --model gpt4roi-7b --host 0.0.0.0 --api-keys-file keys.txt

It stops on Ctrl-C or SIGTERM (on Windows: Ctrl-Break), after it has answered what it was asked before.";

/// Where to listen.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Address")]
struct AddressOptions {
    /// Name or address to listen at
    #[arg(long, value_name = "HOST", env = "GPT4ROI_HOST", default_value = "127.0.0.1")]
    host: String,

    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "PORT", env = "GPT4ROI_PORT", default_value_t = 8080)]
    port: u16,

    /// Serve the interface without the page
    #[arg(long, env = "GPT4ROI_NO_PAGE", value_parser = FalseyValueParser::new())]
    no_page: bool,
}

/// Who may ask.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Access")]
struct AccessOptions {
    /// A key that clients have to send. Other users of this machine can read flags, but not the environment
    #[arg(long, value_name = "KEY", env = "GPT4ROI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,

    /// A file with a key on each line
    #[arg(long, value_name = "FILE", env = "GPT4ROI_API_KEYS_FILE")]
    api_keys_file: Option<PathBuf>,

    /// Listen on other than loopback addresses without any key
    #[arg(long, env = "GPT4ROI_INSECURE_NO_AUTH", value_parser = FalseyValueParser::new())]
    insecure_no_auth: bool,

    /// Another name by which clients may call a server that listens on a loopback address, such as that of a
    /// proxy in front of it
    #[arg(long, value_name = "HOST", env = "GPT4ROI_ALLOW_HOST", value_delimiter = ',')]
    allow_host: Vec<String>,

    /// Pages of this origin may ask, as https://labels.example
    #[arg(long, value_name = "ORIGIN", env = "GPT4ROI_ALLOW_ORIGIN", value_delimiter = ',')]
    allow_origin: Vec<String>,

    /// Fetch pictures that are given by an address, from public addresses only
    #[arg(long, env = "GPT4ROI_FETCH_IMAGES", value_parser = FalseyValueParser::new())]
    fetch_images: bool,
}

/// How much may be asked at a time.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitOptions {
    /// Requests that may wait; others are told to come again
    #[arg(long, value_name = "N", env = "GPT4ROI_MAX_QUEUE", default_value_t = EngineOptions::default().max_queue)]
    max_queue: usize,

    /// Answers that are written at a time
    #[arg(
        long,
        value_name = "N",
        env = "GPT4ROI_MAX_SEQUENCES",
        default_value_t = EngineOptions::default().max_sequences
    )]
    max_sequences: usize,

    /// Seconds within which a request is answered, waiting included
    #[arg(long, value_name = "SECONDS", env = "GPT4ROI_REQUEST_TIMEOUT", default_value_t = 600)]
    request_timeout: u64,

    /// Tokens of an answer that a request may ask for
    #[arg(long, value_name = "N", env = "GPT4ROI_MAX_TOKENS", default_value_t = Limits::default().max_tokens)]
    max_tokens: usize,

    /// Refuse pictures with more pixels than this
    #[arg(long, value_name = "N", env = "GPT4ROI_MAX_PIXELS", default_value_t = Limits::default().pixels)]
    max_pixels: u64,

    /// Seconds that an uploaded picture is kept since its last use
    #[arg(long, value_name = "SECONDS", env = "GPT4ROI_KEEP_IMAGES", default_value_t = 3600)]
    keep_images: u64,

    #[command(flatten)]
    draft: DraftOptions,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    // Consoles of Windows may show what switches colours as it is.
    let colours = cfg!(unix) && io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(colours).with_target(false).init();
    let options = args.options()?;
    let model = args.model.open()?;
    let engine_options = args.limits.engine(&model)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (engine, mut thread) = Engine::start(model, engine_options);
    let served = runtime.block_on(serve(engine.clone(), &mut thread, options, args.model.is_embedded()));
    engine.stop();
    // What decodes or fetches pictures for clients that are gone need not be waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served?;
    Ok(thread.join()?)
}

/// Serves until somebody wants it to stop, or until the engine's thread has failed; joining it says why.
async fn serve(
    engine: Engine,
    thread: &mut EngineThread,
    options: ServerOptions,
    is_embedded: bool,
) -> anyhow::Result<()> {
    let server = Server::bind(engine, options).await.map_err(refusal)?;
    tell(&format!("listening on {}", address_to_open(server.address())));
    if is_embedded {
        tell("note: the embedded model knows drawn objects only, no photographs; --model DIR serves another");
    }
    let signals = count_signals()?;
    let (mut first, mut second) = (signals.clone(), signals);
    let stop = async move {
        let _ = first.wait_for(|&count| count > 0).await;
        tell("stopping: what was asked is answered, nothing new is taken; once more stops at once");
    };
    tokio::select! {
        () = server.run(stop) => {}
        _ = second.wait_for(|&count| count > 1) => tell("stopped before everything was answered"),
        () = thread.ended() => {}
    }
    Ok(())
}

/// What a browser on this machine opens.
fn address_to_open(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => format!("http://127.0.0.1:{} (on every address)", v4.port()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => format!("http://[::1]:{} (on every address)", v6.port()),
        address => format!("http://{address}"),
    }
}

/// How many times somebody wanted the program to stop.
fn count_signals() -> anyhow::Result<watch::Receiver<usize>> {
    let (count, counted) = watch::channel(0);
    let mut signals = StopSignals::new()?;
    tokio::spawn(async move {
        loop {
            signals.next().await;
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(counted)
}

impl Args {
    fn options(&self) -> anyhow::Result<ServerOptions> {
        let (address, access) = (&self.address, &self.access);
        Ok(ServerOptions {
            host: address.host.clone(),
            port: address.port,
            keys: access.keys()?,
            insecure_no_auth: access.insecure_no_auth,
            allow_hosts: access.allow_host.clone(),
            allow_origins: access.allow_origin.clone(),
            page: !address.no_page,
            fetch_images: access.fetch_images,
            limits: Limits { max_tokens: self.limits.max_tokens, pixels: self.limits.max_pixels, ..Limits::default() },
            times: Times { answer: Duration::from_secs(self.limits.request_timeout), ..Times::default() },
            pictures: PictureOptions {
                keep_for: Duration::from_secs(self.limits.keep_images),
                ..PictureOptions::default()
            },
            adapter: self.adapter_name(),
            ..ServerOptions::new(self.model_name())
        })
    }

    /// As clients call the model: nothing of where it lies.
    fn model_name(&self) -> String {
        match &self.model.model {
            None => "gpt4roi-nano".into(),
            // A directory's last name, or the ORG/NAME of a hub.
            Some(model) if model.exists() => last_name(model).unwrap_or_else(|| "gpt4roi".into()),
            Some(model) => model.to_string_lossy().into_owned(),
        }
    }

    /// As clients get to know the adapter, likewise.
    fn adapter_name(&self) -> Option<String> {
        let adapter = self.model.adapter.as_deref()?;
        Some(last_name(adapter).unwrap_or_else(|| "adapter".into()))
    }
}

/// The last name of a directory, or of a file without its extension.
fn last_name(path: &Path) -> Option<String> {
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    Some(name?.to_string_lossy().into_owned())
}

impl AccessOptions {
    fn keys(&self) -> anyhow::Result<Keys> {
        let given = Keys::new(self.api_key.as_deref().filter(|key| !key.is_empty()));
        let Some(file) = &self.api_keys_file else { return Ok(given) };
        let text = fs::read_to_string(file)
            .map_err(|error| Refusal::failure(format!("--api-keys-file {}: {error}", file.display())))?;
        let keys = Keys::from_lines(&text);
        if keys.is_empty() {
            // Somebody who names a file means to have keys.
            let message = format!("--api-keys-file {}: expected a key on each line, got none", file.display());
            return Err(Refusal::failure(message).into());
        }
        Ok(given.and(keys))
    }
}

impl LimitOptions {
    fn engine(&self, model: &Gpt4Roi) -> anyhow::Result<EngineOptions> {
        let (max_queue, max_sequences, draft) = (self.max_queue, self.max_sequences, self.draft.resolve());
        let drafter = self.draft.drafter(model)?;
        Ok(EngineOptions { max_queue, max_sequences, draft, drafter, ..EngineOptions::default() })
    }
}

fn refusal(error: ServerError) -> Refusal {
    let hint = match &error {
        ServerError::NoKey { .. } => "GPT4ROI_API_KEY or --api-keys-file sets keys; --insecure-no-auth does without",
        _ => "--host and --port say where to listen; port 0 takes a free one",
    };
    Refusal::failure(error.to_string()).hint(hint)
}
