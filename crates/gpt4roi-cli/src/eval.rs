//! `gpt4roi eval`: how often a model is right.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use clap::{Subcommand, builder::FalseyValueParser};
use gpt4roi::Gpt4Roi;
use gpt4roi_data::SceneConfig;
use gpt4roi_eval::{
    curves::{self, BoxPoint, CurveReport},
    metrics::Accuracy,
    plot,
    scenes::{EvalError, SceneEvalConfig, SceneReport, evaluate},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    eval_predictions,
    options::{ModelOptions, ZoomOptions, at_least_one},
    session::{print, print_json},
    side_file,
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
    Curves(CurveArgs),
    Predictions(eval_predictions::Args),
}

/// On rendered scenes that no training has seen, by question type, with 95 % intervals
///
/// Each scene is asked one question of each type, and a dialogue of three rounds. Two controls show where the answers
/// come from: with the box of another region, and with a blank picture, names have to be wrong. With --json there is
/// also how confidence and accuracy go together.
#[derive(Debug, clap::Args)]
#[command(after_help = SCENE_EXAMPLES)]
struct SceneArgs {
    /// Draw to an SVG file how accuracy follows confidence, and what is left if unsure answers are withheld
    #[arg(long, value_name = "FILE", env = "GPT4ROI_PLOT", value_parser = side_file::named(side_file::check_svg))]
    plot: Option<PathBuf>,

    #[command(flatten)]
    exam: ExamOptions,
}

/// How accuracy falls with many regions in one question, and with boxes that do not fit
///
/// Names of 1 to 16 regions asked about at once; of regions whose box is off by up to 30 % of its side, drawn as a
/// loose outline, or given by a point alone.
#[derive(Debug, clap::Args)]
#[command(after_help = CURVE_EXAMPLES)]
struct CurveArgs {
    /// Draw the curves to an SVG file
    #[arg(long, value_name = "FILE", env = "GPT4ROI_PLOT", value_parser = side_file::named(side_file::check_svg))]
    plot: Option<PathBuf>,

    #[command(flatten)]
    exam: ExamOptions,
}

/// What is measured on, and how it is reported.
#[derive(Debug, clap::Args)]
struct ExamOptions {
    /// Which scenes: each seed is a world of its own
    #[arg(long, value_name = "N", env = "GPT4ROI_SEED", default_value_t = 1)]
    seed: u64,

    /// How many scenes
    #[arg(long, value_name = "N", env = "GPT4ROI_COUNT", default_value_t = 100, value_parser = at_least_one::<usize>)]
    count: usize,

    /// How many kinds of objects: as many as the model was trained on
    #[arg(long, value_name = "N", env = "GPT4ROI_KINDS", default_value_t = SceneConfig::default().kinds)]
    kinds: usize,

    /// Print one JSON object instead of a table
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    zoom: ZoomOptions,

    #[command(flatten)]
    model: ModelOptions,
}

const SCENE_EXAMPLES: &str = "\
Examples:
  gpt4roi eval scenes --seed 7 --count 500
  gpt4roi eval scenes --seed 7 --count 500 --zoom auto
  gpt4roi eval scenes --seed 7 --count 500 --model runs/stage2/model --json --plot confidence.svg";

const CURVE_EXAMPLES: &str = "\
Examples:
  gpt4roi eval curves --seed 7 --count 300 --plot curves.svg";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.on {
        On::Scenes(SceneArgs { exam, plot }) => {
            let report = exam.take(plot.as_deref(), evaluate)?;
            exam.print(&report, table)?;
            Ok(plot.map_or(Ok(()), |path| plot::draw(&path, &report.panels()))?)
        }
        On::Curves(CurveArgs { exam, plot }) => {
            let report = exam.take(plot.as_deref(), curves::measure)?;
            exam.print(&report, curve_table)?;
            Ok(plot.map_or(Ok(()), |path| plot::draw(&path, &report.panels()))?)
        }
        On::Predictions(args) => eval_predictions::run(args),
    }
}

impl ExamOptions {
    /// Measures, once it is known that what will be drawn can be written.
    fn take<R>(
        &self,
        plot: Option<&Path>,
        measure: impl FnOnce(&Gpt4Roi, &SceneEvalConfig, &(dyn Fn() + Sync)) -> Result<R, EvalError>,
    ) -> anyhow::Result<R> {
        let &Self { seed, count, kinds, zoom, .. } = self;
        plot.map_or(Ok(()), |file| side_file::check("--plot", file, []))?;
        let model = self.model.open()?;
        let bar = ProgressBar::new(count as u64);
        bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} scenes [{elapsed} < {eta}]")?);
        let report = measure(&model, &SceneEvalConfig { seed, count, kinds, zoom: zoom.resolve() }, &|| bar.inc(1));
        bar.finish_and_clear();
        Ok(report?)
    }

    fn print<R: Serialize>(&self, report: &R, table: fn(&R) -> String) -> anyhow::Result<()> {
        if self.json { print_json(report) } else { print(&table(report)) }
    }
}

const HEAD: &str = "question             right       n   95 % interval\n";

/// One line of a table. Where nothing was asked, nothing is known.
fn line(name: &str, Accuracy { accuracy, n, ci95: [low, high] }: &Accuracy) -> String {
    if *n == 0 {
        return format!("{name:<20} {:>5}    {n:>6}   –\n", "–");
    }
    let (accuracy, low, high) = (100.0 * accuracy, 100.0 * low, 100.0 * high);
    format!("{name:<20} {accuracy:>5.1} %  {n:>6}   {low:.1} to {high:.1} %\n")
}

fn table(report: &SceneReport) -> String {
    let mut table = String::from(HEAD);
    let mut add = |name: &str, accuracy: &Accuracy| table += &line(name, accuracy);
    report.questions.iter().for_each(|(name, accuracy)| add(name, accuracy));
    report.by_size.iter().for_each(|(size, accuracy)| add(&format!("name, {size}"), accuracy));
    report.by_pixels.iter().for_each(|(pixels, accuracy)| add(&format!("name, {pixels} px"), accuracy));
    for (way, boxes) in &report.point_boxes {
        add(&format!("point, {}", way.replace('_', " ")), &boxes.name);
    }
    for (round, accuracy) in (1..).zip(&report.dialogue.by_round) {
        add(&format!("dialogue, round {round}"), accuracy);
    }
    add("dialogue, all", &report.dialogue.all_rounds);
    report.by_number.iter().for_each(|(name, accuracy)| add(&format!("by number, {name}"), accuracy));
    for (group, claims) in &report.descriptions.claims {
        add(&format!("{group}s said"), &claims.precision);
        add(&format!("{group}s found"), &claims.recall);
    }
    add("name, new style", &report.held_out_style);
    add("swapped regions", &report.controls.swapped_regions);
    add("blank picture", &report.controls.blank_picture);
    for (way, boxes) in &report.point_boxes {
        let (iou, above) = (boxes.mean_iou, 100.0 * boxes.iou_above_half.accuracy);
        let _ =
            writeln!(table, "box of a point, {}: mean IoU {iou:.2}, above 0.5 in {above:.0} %", way.replace('_', " "));
    }
    if let Some(calibration) = report.calibration.get("all") {
        let (ece, [low, high]) = (calibration.ece, calibration.ece_ci95);
        let _ = writeln!(table, "calibration error: {ece:.3} ({low:.3} to {high:.3}) over {} answers", calibration.n);
    }
    table
}

fn curve_table(report: &CurveReport) -> String {
    let mut table = String::from(HEAD);
    for point in &report.regions_at_once {
        let regions = point.regions;
        table += &line(&format!("each of {regions}"), &point.each);
        table += &line(&format!("all of {regions}"), &point.all);
    }
    let mut boxes = |name: &str, point: &BoxPoint| {
        let line = line(name, &point.name);
        let _ = writeln!(table, "{}   mean IoU {:.2}", line.trim_end(), point.mean_iou);
    };
    report.jitter.iter().for_each(|point| boxes(&format!("jitter {:.0} %", 100.0 * point.share), point));
    report.outline.iter().for_each(|point| boxes(&format!("outline {:.0} %", 100.0 * point.share), point));
    report.point.iter().for_each(|(way, point)| boxes(&format!("point, {way}"), point));
    table
}

#[cfg(test)]
mod tests {
    use gpt4roi_eval::metrics::Tally;

    use super::*;

    #[test]
    fn a_line_says_how_often_it_was_right_or_that_nobody_asked() {
        // 8 of 10, with Wilson's interval by statsmodels: 0.4902 to 0.9433.
        let asked = line("name", &Tally::of(8, 10).accuracy());
        assert_eq!(asked, "name                  80.0 %      10   49.0 to 94.3 %\n");
        assert_eq!(line("jitter 30 %", &Tally::default().accuracy()), "jitter 30 %              –         0   –\n");
    }
}
