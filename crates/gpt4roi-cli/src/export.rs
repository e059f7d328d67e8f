//! `gpt4roi export`: a training run becomes a model to use and to ship.

use std::path::PathBuf;

use crate::failure::tell;

/// Write the model of a training run in float16, without the trainer's state
///
/// The result is a model directory for --model: weights, vision tower, configurations and tokenizer.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A run's output directory, or one of its checkpoints
    #[arg(value_name = "RUN")]
    run: PathBuf,

    /// Where the model goes
    #[arg(long, value_name = "DIR", env = "GPT4ROI_OUT")]
    out: PathBuf,
}

const EXAMPLES: &str = "\
Example:
  gpt4roi export runs/nano/2-joint --out models/mine";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    gpt4roi_train::export::export(&args.run, &args.out)?;
    tell(&format!("wrote {}", args.out.display()));
    Ok(())
}
