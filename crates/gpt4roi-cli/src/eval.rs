//! `gpt4roi eval`: how often a model is right.

use std::fmt::Write;

use clap::{Subcommand, builder::FalseyValueParser};
use gpt4roi_data::SceneConfig;
use gpt4roi_eval::{
    metrics::Accuracy,
    scenes::{SceneEvalConfig, SceneReport, evaluate},
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    options::ModelOptions,
    session::{print, print_json},
};

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
///
/// Each scene is asked one question of each type. Two controls show where the answers come from: with
/// the box of another region, and with a blank picture, names have to be wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct SceneArgs {
    /// Which scenes: each seed is a world of its own
    #[arg(long, value_name = "N", env = "GPT4ROI_SEED", default_value_t = 1)]
    seed: u64,

    /// How many scenes
    #[arg(long, value_name = "N", env = "GPT4ROI_COUNT", default_value_t = 100)]
    count: usize,

    /// How many kinds of objects: as many as the model was trained on
    #[arg(long, value_name = "N", env = "GPT4ROI_KINDS", default_value_t = SceneConfig::default().kinds)]
    kinds: usize,

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
    let On::Scenes(SceneArgs { seed, count, kinds, json, model }) = args.on;
    let model = model.open()?;
    let bar = ProgressBar::new(count as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} scenes [{elapsed} < {eta}]")?);
    let report = evaluate(&model, &SceneEvalConfig { seed, count, kinds }, &|| bar.inc(1));
    bar.finish_and_clear();
    let report = report?;
    if json { print_json(&report) } else { print(&table(&report)) }
}

fn table(report: &SceneReport) -> String {
    let mut table = String::from("question             right       n   95 % interval\n");
    let mut line = |name: &str, Accuracy { accuracy, n, ci95: [low, high] }: &Accuracy| {
        let (accuracy, low, high) = (100.0 * accuracy, 100.0 * low, 100.0 * high);
        let _ = writeln!(table, "{name:<18} {accuracy:>5.1} %  {n:>6}   {low:.1} to {high:.1} %");
    };
    report.questions.iter().for_each(|(name, accuracy)| line(name, accuracy));
    report.by_size.iter().for_each(|(size, accuracy)| line(&format!("name, {size}"), accuracy));
    for (way, boxes) in &report.point_boxes {
        let way = way.replace('_', " ");
        line(&format!("point, {way}"), &boxes.name);
    }
    line("name, new style", &report.held_out_style);
    line("swapped regions", &report.controls.swapped_regions);
    line("blank picture", &report.controls.blank_picture);
    for (way, boxes) in &report.point_boxes {
        let (iou, above) = (boxes.mean_iou, 100.0 * boxes.iou_above_half.accuracy);
        let _ =
            writeln!(table, "box of a point, {}: mean IoU {iou:.2}, above 0.5 in {above:.0} %", way.replace('_', " "));
    }
    table
}
