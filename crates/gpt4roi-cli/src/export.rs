//! `gpt4roi export`: a training run becomes a model to use and to ship.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use gpt4roi::convert::IfExists;

use crate::failure::tell;

/// Write the model of a training run in float16, without the trainer's state
///
/// The result is a model directory for --model: weights, vision tower, configurations and tokenizer. A run that trained
/// an adapter beside a model becomes a directory for --adapter.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A run's output directory, or one of its checkpoints
    #[arg(value_name = "RUN")]
    run: PathBuf,

    /// Where the model goes: a directory, which must not exist
    #[arg(long, value_name = "DIR", env = "GPT4ROI_OUT")]
    out: PathBuf,

    /// Replace the model that lies there, if it is a model and nothing else
    #[arg(long, env = "GPT4ROI_FORCE", value_parser = FalseyValueParser::new())]
    force: bool,
}

const EXAMPLES: &str = "\
Example:
  gpt4roi export runs/nano/2-joint --out models/mine";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let if_exists = if args.force { IfExists::Replace } else { IfExists::Refuse };
    gpt4roi_train::export::export(&args.run, &args.out, if_exists)?;
    tell(&format!("wrote {}", args.out.display()));
    Ok(())
}
