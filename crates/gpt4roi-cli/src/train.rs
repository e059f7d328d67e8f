//! `gpt4roi train`: one stage of training.

#[cfg(unix)]
use std::process::Command;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::{ValueEnum, builder::FalseyValueParser};
use gpt4roi_train::{Bar, Progress, StageConfig, Trainer, log::Record, open, resume};

use crate::{
    failure::{Refusal, Stopped, tell},
    interrupts::StopRequest,
    options::find_in_cache,
    session::{note_without_picture, print},
};

/// Train one stage, as its configuration says
///
/// Checkpoints, a log (log.jsonl) and the loss curve (loss.svg) go to the output directory. Ctrl-C or SIGTERM stops the
/// run behind its step and a checkpoint, with the exit code 130; a second time ends it at once. A run that was stopped or
/// killed goes on from its last checkpoint with --resume, and ends with the very same weights. Without it, a directory
/// with checkpoints is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub(crate) struct Args {
    /// The stage: a TOML file, as --template prints one to begin with
    #[arg(value_name = "CONFIG", required_unless_present = "template")]
    config: Option<PathBuf>,

    /// Where checkpoints, log and curve go
    #[arg(long, value_name = "DIR", env = "GPT4ROI_OUT", required_unless_present = "template")]
    out: Option<PathBuf>,

    /// Print a stage to copy and to change, and train nothing
    #[arg(long, value_name = "STAGE", env = "GPT4ROI_TEMPLATE")]
    template: Option<Template>,

    /// A value that differs from the stage's, as TOML: `seed=2`, `model.region.shuffle=false`; any number of times
    #[arg(long, value_name = "KEY=VALUE", env = "GPT4ROI_SET", value_delimiter = ';')]
    set: Vec<String>,

    /// Go on from the last checkpoint in the output directory
    #[arg(long, env = "GPT4ROI_RESUME", value_parser = FalseyValueParser::new())]
    resume: bool,
}

/// Stages that this program brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Template {
    /// A model is tuned on people's own pictures
    OwnData,
    /// An adapter is trained beside a model, on people's own pictures
    Adapter,
    /// A small language model learns to draft for a larger one
    Draft,
}

impl Template {
    fn text(self) -> &'static str {
        match self {
            Self::OwnData => include_str!("../../../configs/own-data.toml"),
            Self::Adapter => include_str!("../../../configs/adapter.toml"),
            Self::Draft => include_str!("../../../configs/draft.toml"),
        }
    }
}

const USAGE: &str = "\
gpt4roi train [OPTIONS] --out <DIR> <CONFIG>
       gpt4roi train --template <STAGE>";

const EXAMPLES: &str = "\
Examples:
  gpt4roi train --template own-data > own-data.toml
  gpt4roi train own-data.toml --set 'records.files=[\"mine.jsonl\"]' --out runs/mine
  gpt4roi train configs/nano/0-tower.toml --out runs/nano/0-tower
  gpt4roi train configs/nano/0-tower.toml --out runs/nano/0-tower --resume
  gpt4roi train configs/adapter.toml --set 'model.like=\"gpt4roi-7b\"' --out runs/tuned
  gpt4roi train configs/ablation/3-joint.toml --set model.region.shuffle=false --out runs/no-shuffle";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match (args.template, &args.config, &args.out) {
        (Some(template), ..) => print(template.text()),
        (None, Some(config), Some(out)) => train(&args, config, out),
        _ => Err(Refusal::usage("expected a stage and --out").into()),
    }
}

fn train(args: &Args, config: &Path, out: &Path) -> anyhow::Result<()> {
    keep_the_engine_on_one_thread()?;
    let begin = Instant::now();
    let mut trainer = trainer(args, config, out)?;
    note_without_picture(trainer.without_picture());
    // Until here nothing was learned that would be lost.
    let stop = StopRequest::listen(STOPPING)?;
    trainer.run(&|| begin.elapsed(), &mut Watched { bar: Bar::default(), stop })?;
    if trainer.is_done() {
        return Ok(());
    }
    let (step, steps, out) = (trainer.counters().step, trainer.steps(), out.display());
    Err(Stopped(format!("stopped behind step {step} of {steps}; the same command with --resume goes on in {out}"))
        .into())
}

/// What whoever wants a run to stop is told.
const STOPPING: &str = "stopping behind this step and a checkpoint; once more ends at once, without them";

/// The bar, until somebody wants the run to stop.
struct Watched {
    bar: Bar,
    stop: StopRequest,
}

impl Progress for Watched {
    fn started(&mut self, stage: &str, step: u64, steps: u64) {
        self.bar.started(stage, step, steps);
    }

    fn step(&mut self, step: u64) -> ControlFlow<()> {
        self.bar.step(step)?;
        if self.stop.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn record(&mut self, record: &Record) {
        self.bar.record(record);
    }

    fn checkpoint(&mut self, path: &Path) {
        self.bar.checkpoint(path);
    }

    fn finished(&mut self) {
        self.bar.finished();
    }
}

fn trainer(args: &Args, config: &Path, out: &Path) -> anyhow::Result<Trainer> {
    let mut stage = StageConfig::open_with(config, &args.set)?;
    if args.resume {
        // What the run began with may be gone by now.
        stage.locate(|name| anyhow::Ok(place_of(name).unwrap_or_else(|_| name.to_owned())))?;
        if let Some(trainer) = resume(stage.clone(), out)? {
            tell(&format!("going on behind step {}", trainer.counters().step));
            return Ok(trainer);
        }
        tell(&format!("no checkpoint in {}: beginning at step 0", out.display()));
    }
    stage.locate(place_of)?;
    Ok(open(stage, out)?)
}

/// What a stage can name.
const PLACES: &str = "a stage names a directory with a model, what another stage has put out, or \"embedded\", the model \
    inside this program";

/// Where a model lies that a stage names: a path that is there, or what `gpt4roi pull` has brought.
fn place_of(name: &Path) -> anyhow::Result<PathBuf> {
    if name.exists() { Ok(name.to_owned()) } else { find_in_cache(name, PLACES) }
}

/// How the tensor engine is told how many threads it may have; it reads this once, and nothing else.
const ENGINE_THREADS: &str = "RAYON_NUM_THREADS";

/// Starts the program over with the engine's own threads switched off, unless somebody has chosen their number.
///
/// The trainer keeps every core busy with a picture of its own. The engine would spread single operations over
/// threads that spin while they wait, which costs a third of the time.
#[cfg(unix)]
fn keep_the_engine_on_one_thread() -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;

    if std::env::var_os(ENGINE_THREADS).is_some() {
        return Ok(());
    }
    let arguments = std::env::args_os().skip(1);
    // `exec` only returns if it fails.
    Err(Command::new(std::env::current_exe()?).args(arguments).env(ENGINE_THREADS, "1").exec().into())
}

#[cfg(not(unix))]
fn keep_the_engine_on_one_thread() -> anyhow::Result<()> {
    if std::env::var_os(ENGINE_THREADS).is_none() {
        tell(&format!("{ENGINE_THREADS}=1 in the environment makes training faster"));
    }
    Ok(())
}
