//! `gpt4roi trace`: runs a recorded case and writes down its tensors.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;
use gpt4roi::{
    Image,
    image::DEFAULT_MAX_PIXELS,
    trace::{Case, trace},
};

use crate::{options::ModelOptions, side_file};

/// Run a case and write its intermediate tensors, to compare with another implementation
///
/// The case names a picture beside it, boxes, and a conversation; decoding is greedy. What is written has
/// the names of the reference's recordings: pixels, hidden states, pyramid, regions, ids, logits, answers.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The conversation to play; its picture lies beside it
    #[arg(long, env = "GPT4ROI_CASE", value_name = "CASE.json")]
    case: PathBuf,

    /// The safetensors file to write
    #[arg(long, env = "GPT4ROI_OUT", value_name = "FILE")]
    out: PathBuf,

    #[command(flatten)]
    model: ModelOptions,
}

const EXAMPLES: &str = r#"Example:
  gpt4roi trace --model models/gpt4roi-7b --case cases/one/case.json --out trace.safetensors

case.json holds:
  {
    "image": "scene.png",                      the picture, beside this file
    "boxes": {"1": [62, 41, 240, 180]},        by number, xyxy in pixels; may be left away
    "turns": [
      {"question": "What is <region1>?"},      played in this order; with "reply": "…" that
      {"question": "What can <region1> do?"}   is remembered in place of the model's own answer
    ],
    "max_new_tokens": 64,                      of an answer, at most
    "box_precision": "f32",                    or f16, in which the original's demo reads boxes
    "level_stride": [1, 1, 1, 1]               of each level of the pyramid, every so many-th row
  }                                            and column is recorded"#;

/// Runs the subcommand.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let case = fs::read_to_string(&args.case).with_context(|| args.case.display().to_string())?;
    let case: Case = serde_json::from_str(&case).with_context(|| args.case.display().to_string())?;
    let picture = args.case.with_file_name(&case.image);
    side_file::check("--out", &args.out, [("case", &*args.case), ("picture", &*picture)])?;
    let image = Image::open(&picture, DEFAULT_MAX_PIXELS).map_err(gpt4roi::Error::from)?;
    let model = args.model.open()?;
    let trace = trace(&model, &case, &image)?;
    let tensors: HashMap<_, _> = trace.tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, &args.out).with_context(|| args.out.display().to_string())?;
    let mut notes = io::stderr().lock();
    for (index, round) in trace.rounds.iter().enumerate() {
        writeln!(
            notes,
            "round {}: {} tokens, ended by {:?}: {}",
            index + 1,
            round.prompt_tokens,
            round.finish,
            round.answer
        )?;
    }
    Ok(())
}
