//! `gpt4roi train`: one stage of training.

use std::{path::PathBuf, time::Instant};

use clap::builder::FalseyValueParser;
use gpt4roi_train::{Bar, StageConfig, open};

use crate::failure::tell;

/// Train one stage, as its configuration says
///
/// Checkpoints, a log (log.jsonl) and the loss curve (loss.svg) go to the output directory. A run that was
/// interrupted goes on from its last checkpoint with --resume, and ends with the very same weights.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The stage: a TOML file, as in configs/
    #[arg(value_name = "CONFIG")]
    config: PathBuf,

    /// Where checkpoints, log and curve go
    #[arg(long, value_name = "DIR", env = "GPT4ROI_OUT")]
    out: PathBuf,

    /// Go on from the last checkpoint in the output directory
    #[arg(long, env = "GPT4ROI_RESUME", value_parser = FalseyValueParser::new())]
    resume: bool,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi train configs/nano/stage1.toml --out runs/stage1
  gpt4roi train configs/nano/stage1.toml --out runs/stage1 --resume";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut trainer = open(StageConfig::open(&args.config)?, &args.out)?;
    if args.resume {
        match trainer.resume()? {
            Some(checkpoint) => tell(&format!("going on from {}", checkpoint.display())),
            None => tell(&format!("no checkpoint in {}: beginning at step 0", args.out.display())),
        }
    }
    trainer.run(&|| begin.elapsed(), &mut Bar::default())?;
    Ok(())
}
