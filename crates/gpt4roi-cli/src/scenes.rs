//! `gpt4roi scenes`: the pictures that the embedded model learns from, to look at.

use std::path::PathBuf;

use crate::failure::Refusal;

/// Write rendered scenes with their annotations and questions
///
/// Pictures, boxes in COCO's format and the questions with their answers: what the embedded model is
/// trained and tested on, for people to look at.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which scenes: each seed is a world of its own
    #[arg(long, value_name = "N", env = "GPT4ROI_SEED", default_value_t = 1)]
    seed: u64,

    /// How many scenes
    #[arg(long, value_name = "N", env = "GPT4ROI_COUNT", default_value_t = 10)]
    count: usize,

    /// The directory to write to
    #[arg(long, value_name = "DIR", env = "GPT4ROI_OUT")]
    out: PathBuf,
}

const EXAMPLES: &str = "\
Example:
  gpt4roi scenes --seed 7 --count 20 --out scenes";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let Args { seed, count, out } = args;
    let _ = (seed, count, out);
    Err(Refusal::failure("rendering scenes is not in this build yet").into())
}
