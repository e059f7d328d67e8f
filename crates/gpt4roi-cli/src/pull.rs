//! `gpt4roi pull`: a model from a Hugging Face hub.

use std::{collections::HashMap, env, sync::Mutex, time::Duration};

use clap::builder::{FalseyValueParser, RangedU64ValueParser};
use gpt4roi_hub::{Hub, HubConfig, HubError, ModelRef, Progress, Pulled, Selection, Silent, listing::RemoteFile};
use indicatif::{DecimalBytes, MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    failure::{Refusal, tell},
    options::{EMBEDDED, is_embedded},
    session::{print, print_json},
};

/// Download a model from a Hugging Face hub
///
/// Files go into the cache that the hub's other clients share, and the directory of the model is printed. A
/// download that was cut off goes on where it stopped; every file is checked against its digest.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The model; behind the @ a branch, tag or commit other than main
    #[arg(value_name = "ORG/NAME[@REV]")]
    model: ModelRef,

    /// Take every file, not only what a model needs: configurations, tokenizer, one form of the weights, and the
    /// same of the vision tower
    #[arg(long, env = "GPT4ROI_ALL", value_parser = FalseyValueParser::new())]
    all: bool,

    /// Take this file too, by its path in the repository. In the environment several are separated by semicolons
    #[arg(long = "file", value_name = "PATH", env = "GPT4ROI_FILE", value_delimiter = ';')]
    files: Vec<String>,

    /// Files that are downloaded at a time
    #[arg(
        long,
        value_name = "N",
        env = "GPT4ROI_CONNECTIONS",
        default_value_t = 4,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=64)
    )]
    connections: usize,

    /// Print one JSON object: commit, directory, files with sizes
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    /// Print neither progress nor notes
    #[arg(long, short, env = "GPT4ROI_QUIET", value_parser = FalseyValueParser::new())]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi pull org/gpt4roi-7b
  gpt4roi ask photo.jpg 'What is <region1>?' --region 62,41,240,180 --model org/gpt4roi-7b

  A certain version, into a cache on another disk:
    HF_HOME=/data/huggingface gpt4roi pull org/gpt4roi-7b@v1.0

  A private or gated model:
    HF_TOKEN=hf_… gpt4roi pull org/gpt4roi-7b

Heeded as by the hub's other clients: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE,
HF_HUB_DOWNLOAD_TIMEOUT, HTTPS_PROXY, ALL_PROXY, NO_PROXY.";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let Args { model, all, files, connections, json, quiet } = args;
    check_owner(&model)?;
    let selection = if all { Selection::All } else { Selection::Needed { also: files } };
    let config = HubConfig::from_env(|name| env::var(name).ok())?;
    let hub = Hub::new(HubConfig { connections, ..config })?;
    let pulled = if quiet || json {
        hub.pull(&model, &selection, &Silent)?
    } else {
        let pulled = hub.pull(&model, &selection, &Bars::default())?;
        tell(&summary(&model, &pulled));
        pulled
    };
    if json { print_json(&report(&model, &pulled)) } else { print(&format!("{}\n", pulled.snapshot.display())) }
}

/// Without an owner nothing that this program asks is on a hub, and `--model` would take it for a file.
fn check_owner(model: &ModelRef) -> Result<(), Refusal> {
    if model.id.as_str().contains('/') {
        return Ok(());
    }
    let refusal = Refusal::usage(format!("{model} has no owner: expected ORG/NAME"));
    Err(if is_embedded(model.id.as_str()) { refusal.hint(EMBEDDED) } else { refusal })
}

fn summary(model: &ModelRef, pulled: &Pulled) -> String {
    let bytes = |files: &mut dyn Iterator<Item = u64>| DecimalBytes(files.sum());
    let all = bytes(&mut pulled.files.iter().map(|file| file.size));
    let new = bytes(&mut pulled.files.iter().filter(|file| file.downloaded).map(|file| file.size));
    format!("{model}: {} files, {all}, of which {new} downloaded", pulled.files.len())
}

/// What `pull --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    revision: &'a str,
    commit: &'a str,
    snapshot: String,
    files: Vec<FileLine<'a>>,
}

#[derive(Serialize)]
struct FileLine<'a> {
    path: &'a str,
    size: u64,
    downloaded: bool,
}

fn report<'a>(model: &'a ModelRef, pulled: &'a Pulled) -> Report<'a> {
    let files = pulled.files.iter();
    Report {
        model: model.id.as_str(),
        revision: model.revision(),
        commit: &pulled.commit,
        snapshot: pulled.snapshot.display().to_string(),
        files: files.map(|file| FileLine { path: &file.path, size: file.size, downloaded: file.downloaded }).collect(),
    }
}

/// A bar for each file on its way and one for all of them, drawn on standard error if that is a terminal.
#[derive(Debug, Default)]
struct Bars {
    screen: MultiProgress,
    drawn: Mutex<HashMap<String, ProgressBar>>,
}

/// The name of the bar for everything, which no file has.
const TOTAL: &str = "";

impl Bars {
    /// Moves a file's bar, and the total by as much.
    fn move_to(&self, file: &RemoteFile, bytes: u64) {
        let Ok(mut drawn) = self.drawn.lock() else { return };
        let bar = drawn
            .entry(file.path.clone())
            .or_insert_with(|| self.screen.insert_from_back(1, styled(file.size, file.path.clone())));
        let before = bar.position();
        bar.set_position(bytes);
        if let Some(total) = drawn.get(TOTAL) {
            total.set_position((total.position() + bytes).saturating_sub(before));
        }
    }

    fn note(&self, line: &str) {
        self.screen.suspend(|| tell(line));
    }
}

impl Progress for Bars {
    fn planned(&self, files: &[RemoteFile]) {
        let total = files.iter().map(|file| file.size).sum();
        let bar = self.screen.add(styled(total, format!("{} files", files.len())));
        if let Ok(mut drawn) = self.drawn.lock() {
            drawn.insert(TOTAL.to_owned(), bar);
        }
    }

    fn reached(&self, file: &RemoteFile, bytes: u64) {
        self.move_to(file, bytes);
    }

    fn waiting(&self, file: &RemoteFile) {
        self.note(&format!("note: another process is downloading {}; waiting for it", file.path));
    }

    fn retrying(&self, error: &HubError, wait: Duration) {
        self.note(&format!("note: {error}; next try in {} s", wait.as_secs_f64()));
    }

    fn finished(&self, file: &RemoteFile) {
        self.move_to(file, file.size);
        if let Some(bar) = self.drawn.lock().ok().and_then(|mut drawn| drawn.remove(&file.path)) {
            bar.finish_and_clear();
        }
    }
}

fn styled(bytes: u64, name: String) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_message(name);
    let template = "{bar:30} {decimal_bytes:>9}/{decimal_total_bytes:9} {decimal_bytes_per_sec:>11} {eta:>4}  {msg}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
