//! `gpt4roi scenes`: the pictures that the embedded model learns from, to look at.

use std::path::PathBuf;

use clap::{ValueEnum, builder::FalseyValueParser};
use gpt4roi::convert::IfExists;
use gpt4roi_data::{QuestionMix, Questions, SceneConfig, Scenes, Split, Style, export::write_scenes};

use crate::{failure::tell, options::at_least_one};

/// Write rendered scenes with their annotations and questions
///
/// Pictures, boxes in COCO's format (annotations.json) and questions with their answers
/// (questions.jsonl): what the embedded model is trained and tested on, for people to look at.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which scenes: each seed is a world of its own
    #[arg(long, value_name = "N", env = "GPT4ROI_SEED", default_value_t = 1)]
    seed: u64,

    /// How many scenes
    #[arg(long, value_name = "N", env = "GPT4ROI_COUNT", default_value_t = 10, value_parser = at_least_one::<u64>)]
    count: u64,

    /// The directory to write to; it is made if need be. Files that lie there are not written over
    #[arg(long, value_name = "DIR", env = "GPT4ROI_OUT")]
    out: PathBuf,

    /// Write over annotations.json, questions.jsonl and pictures of the same names
    #[arg(long, env = "GPT4ROI_FORCE", value_parser = FalseyValueParser::new())]
    force: bool,

    /// How many kinds of objects
    #[arg(long, value_name = "N", env = "GPT4ROI_KINDS", default_value_t = SceneConfig::default().kinds)]
    kinds: usize,

    /// Whose drawings
    #[arg(long, value_name = "STYLE", env = "GPT4ROI_STYLE", default_value = "noto")]
    style: Drawings,

    /// What the scenes are for; kinds that meet in one never meet in another
    #[arg(long, value_name = "SPLIT", env = "GPT4ROI_SPLIT", default_value = "test")]
    split: Purpose,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Drawings {
    /// Noto: the style of training
    Noto,
    /// Fluent: a style that is never trained on
    Fluent,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Purpose {
    /// What a model learns from
    Train,
    /// What is looked at while a model learns
    Validation,
    /// What a finished model is measured on
    Test,
}

const EXAMPLES: &str = "\
Example:
  gpt4roi scenes --seed 7 --count 20 --out scenes";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let Args { seed, count, out, force, kinds, style, split } = args;
    let style = match style {
        Drawings::Noto => Style::Noto,
        Drawings::Fluent => Style::Fluent,
    };
    let split = match split {
        Purpose::Train => Split::Train,
        Purpose::Validation => Split::Validation,
        Purpose::Test => Split::Test,
    };
    let scenes = Scenes::new(SceneConfig { kinds, style, split, seed, ..SceneConfig::default() })?;
    let questions = Questions::new(QuestionMix::default(), scenes.kinds())?;
    let if_exists = if force { IfExists::Replace } else { IfExists::Refuse };
    let written = write_scenes(&out, &scenes, &questions, count, if_exists)?;
    let (scenes, objects, conversations) = (written.scenes, written.objects, written.conversations);
    tell(&format!("{scenes} scenes with {objects} objects and {conversations} conversations in {}", out.display()));
    Ok(())
}
