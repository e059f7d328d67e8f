//! `gpt4roi cache`: what `pull` has brought.

use std::{env, time::SystemTime};

use clap::{Subcommand, builder::FalseyValueParser};
use gpt4roi_hub::{
    Cache, ModelId, ModelRef,
    inventory::{CachedModel, CachedRevision},
    verify::{Check, State},
};
use indicatif::{DecimalBytes, HumanDuration, ProgressBar};
use serde::Serialize;

use crate::{
    failure::{Refusal, tell},
    session::{print, print_json},
};

/// Show, check or remove downloaded models
///
/// The cache is shared with the hub's other clients: HF_HUB_CACHE, or hub in HF_HOME, or ~/.cache/huggingface/hub.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    List(ListArgs),
    Rm(RemoveArgs),
    Verify(VerifyArgs),
}

/// Models with their revisions, sizes, and when they were last used
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Print one JSON object
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// Remove models, or single revisions of them; files that other revisions use stay
#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// What to remove
    #[arg(value_name = "ORG/NAME[@REV]", required = true)]
    models: Vec<ModelRef>,

    /// Only say what would be freed
    #[arg(long, env = "GPT4ROI_DRY_RUN", value_parser = FalseyValueParser::new())]
    dry_run: bool,

    /// Print one JSON object
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// Read every file again and name those that are damaged or gone; exit code 1 if there are any
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// Which models; without a name, all
    #[arg(value_name = "ORG/NAME")]
    models: Vec<ModelId>,

    /// Remove what is damaged, so that the next pull downloads it again
    #[arg(long, env = "GPT4ROI_REMOVE_DAMAGED", value_parser = FalseyValueParser::new())]
    remove_damaged: bool,

    /// Print one JSON object
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi cache list
  gpt4roi cache rm org/gpt4roi-7b --dry-run
  gpt4roi cache rm org/gpt4roi-7b@v1.0
  gpt4roi cache verify org/gpt4roi-7b";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let cache = Cache::from_env(|name| env::var(name).ok())?;
    match args.what {
        What::List(args) => list(&cache, &args),
        What::Rm(args) => remove(&cache, &args),
        What::Verify(args) => verify(&cache, &args),
    }
}

/// What `cache list --json` prints.
#[derive(Serialize)]
struct Inventory {
    cache: String,
    bytes: u64,
    models: Vec<ModelLine>,
}

#[derive(Serialize)]
struct ModelLine {
    model: String,
    bytes: u64,
    partial_bytes: u64,
    /// Seconds since 1970.
    last_used: Option<u64>,
    revisions: Vec<RevisionLine>,
}

#[derive(Serialize)]
struct RevisionLine {
    commit: String,
    refs: Vec<String>,
    bytes: u64,
    files: usize,
    snapshot: String,
}

fn list(cache: &Cache, args: &ListArgs) -> anyhow::Result<()> {
    let models = cache.models()?;
    let bytes = models.iter().map(|model| model.bytes).sum();
    if args.json {
        let models = models.iter().map(ModelLine::new).collect();
        return print_json(&Inventory { cache: cache.root().display().to_string(), bytes, models });
    }
    let width = models.iter().map(|model| model.id.as_str().len()).max().unwrap_or(0);
    print(&models.iter().map(|model| lines(model, width)).collect::<String>())?;
    tell(&format!("{} in {}", DecimalBytes(bytes), cache.root().display()));
    Ok(())
}

impl ModelLine {
    fn new(model: &CachedModel) -> Self {
        let since = model.last_used.and_then(|used| used.duration_since(SystemTime::UNIX_EPOCH).ok());
        let revisions = model.revisions.iter().map(|revision| RevisionLine {
            commit: revision.commit.clone(),
            refs: revision.refs.clone(),
            bytes: revision.bytes(),
            files: revision.files.len(),
            snapshot: revision.snapshot.display().to_string(),
        });
        Self {
            model: model.id.to_string(),
            bytes: model.bytes,
            partial_bytes: model.partial_bytes,
            last_used: since.map(|since| since.as_secs()),
            revisions: revisions.collect(),
        }
    }
}

/// A line for each revision, and one for what is not whole yet.
fn lines(model: &CachedModel, width: usize) -> String {
    let ago = model.last_used.and_then(|used| used.elapsed().ok());
    let ago = ago.map_or_else(String::new, |ago| format!("{} ago", HumanDuration(ago)));
    let line = |bytes: u64, what: &str| {
        let size = DecimalBytes(bytes).to_string();
        format!("{:width$}  {size:>9}  {ago:<16}  {what}\n", model.id.as_str())
    };
    let of_revision = |revision: &CachedRevision| {
        line(revision.bytes(), format!("{} {}", revision.commit, revision.refs.join(", ")).trim_end())
    };
    let mut lines: String = model.revisions.iter().map(of_revision).collect();
    let begun = if model.revisions.is_empty() { model.bytes } else { model.partial_bytes };
    if begun > 0 {
        lines += &line(begun, "not whole yet: pull it again to go on");
    }
    lines
}

/// What `cache rm --json` prints.
#[derive(Serialize)]
struct Freed {
    dry_run: bool,
    bytes: u64,
    removed: Vec<RemovedLine>,
}

#[derive(Serialize)]
struct RemovedLine {
    model: String,
    commits: Vec<String>,
    bytes: u64,
}

/// All are looked up before any is removed, and again one by one: what two revisions share goes with the second.
fn remove(cache: &Cache, args: &RemoveArgs) -> anyhow::Result<()> {
    args.models.iter().try_for_each(|model| cache.removal(model).map(drop))?;
    let mut removed = Vec::new();
    for model in &args.models {
        let removal = cache.removal(model)?;
        removed.push(RemovedLine { model: model.to_string(), commits: removal.commits.clone(), bytes: removal.bytes });
        if !args.dry_run {
            removal.carry_out()?;
        }
    }
    if args.json {
        let bytes = removed.iter().map(|line| line.bytes).sum();
        return print_json(&Freed { dry_run: args.dry_run, bytes, removed });
    }
    let verb = if args.dry_run { "would free" } else { "freed" };
    let line = |line: &RemovedLine| format!("{verb} {}: {}\n", DecimalBytes(line.bytes), line.model);
    print(&removed.iter().map(line).collect::<String>())
}

/// What `cache verify --json` prints.
#[derive(Serialize)]
struct Verification {
    intact: usize,
    unknown: Vec<FoundLine>,
    damaged: Vec<FoundLine>,
    missing: Vec<FoundLine>,
}

/// A content and the files that show it.
#[derive(Serialize)]
struct FoundLine {
    model: String,
    files: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    got: Option<String>,
}

fn verify(cache: &Cache, args: &VerifyArgs) -> anyhow::Result<()> {
    let models = if args.models.is_empty() {
        cache.models()?
    } else {
        args.models.iter().map(|id| cache.model(id)).collect::<Result<_, _>>()?
    };
    let found = look(&models, args)?;
    if args.json {
        print_json(&found)?;
    } else {
        print(&found.table())?;
    }
    let hint = match args.remove_damaged {
        true => "they are removed; pull the model again",
        false => "`gpt4roi cache verify --remove-damaged` removes them; then pull the model again",
    };
    match found.damaged.len() + found.missing.len() {
        0 => Ok(()),
        bad => {
            let of = bad + found.intact;
            Err(Refusal::failure(format!("{bad} of {of} files are damaged or gone")).hint(hint).into())
        }
    }
}

fn look(models: &[CachedModel], args: &VerifyArgs) -> anyhow::Result<Verification> {
    let checks: Vec<(&CachedModel, Check)> =
        models.iter().flat_map(|model| model.checks().into_iter().map(move |check| (model, check))).collect();
    let total = checks.iter().map(|(_, check)| check.size).sum();
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(total) };
    let mut found = Verification { intact: 0, unknown: Vec::new(), damaged: Vec::new(), missing: Vec::new() };
    for (model, check) in checks {
        let line = |expected, got| {
            let files = check.shown.iter().map(|file| file.display().to_string()).collect();
            FoundLine { model: model.id.to_string(), files, expected, got }
        };
        let state = check.run()?;
        if args.remove_damaged && matches!(state, State::Damaged { .. } | State::Missing) {
            check.discard()?;
        }
        match state {
            State::Intact => found.intact += 1,
            State::Unknown => found.unknown.push(line(None, None)),
            State::Missing => found.missing.push(line(None, None)),
            State::Damaged { expected, got } => {
                found.damaged.push(line(Some(expected.to_string()), Some(got.to_string())));
            }
        }
        bar.inc(check.size);
    }
    bar.finish_and_clear();
    Ok(found)
}

impl Verification {
    fn table(&self) -> String {
        let mut table = String::new();
        for (state, lines) in [("damaged", &self.damaged), ("gone", &self.missing), ("no digest", &self.unknown)] {
            for file in lines.iter().flat_map(|line| &line.files) {
                table += &format!("{state:9}  {file}\n");
            }
        }
        format!("{table}{} intact\n", self.intact)
    }
}
