//! `gpt4roi eval`: how often a model is right.

use clap::{Subcommand, builder::FalseyValueParser};

use crate::{failure::Refusal, options::ModelOptions};

/// Measure how often a model is right
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    on: On,
}

#[derive(Debug, Subcommand)]
enum On {
    Scenes(SceneArgs),
}

/// On rendered scenes that no training has seen, by question type, with 95 % intervals
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
struct SceneArgs {
    /// Which scenes: each seed is a world of its own
    #[arg(long, value_name = "N", env = "GPT4ROI_SEED", default_value_t = 1)]
    seed: u64,

    /// How many scenes
    #[arg(long, value_name = "N", env = "GPT4ROI_COUNT", default_value_t = 100)]
    count: usize,

    /// Print one JSON object instead of a table
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    model: ModelOptions,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi eval scenes --seed 7 --count 500
  gpt4roi eval scenes --seed 7 --count 500 --model runs/stage2/model --json";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let On::Scenes(SceneArgs { seed, count, json, model }) = args.on;
    let _ = (seed, count, json, model.open()?);
    Err(Refusal::failure("evaluation is not in this build yet").into())
}
