//! `gpt4roi bench`: how long each stage takes on this machine, and how near to its limits.

use std::{fmt::Write, hint::black_box, sync::Arc, time::Instant};

use anyhow::Context;
use candle_core::{Device, Tensor};
use clap::{ValueEnum, builder::FalseyValueParser};
use gpt4roi::{
    Config, clip::ClipVision, cost::Cost, random_weights::RandomWeights, region::RegionModule, weights::Weights,
};
use serde::Serialize;
use serde_json::Value;

use crate::session::{print, print_json};

/// Measure every stage with random weights, beside what the machine could do at best
///
/// Each stage runs once untimed, then --runs times; the median counts. The ceiling is measured in the same run: the
/// fastest multiply-adds in registers, and the fastest reading of memory. GFLOP are those of the definition, so that an
/// algorithm that gets by with fewer multiplications can be above 100 %.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Whose dimensions
    #[arg(long, value_enum, env = "GPT4ROI_PRESET", default_value_t = Preset::Gpt4roi7b)]
    preset: Preset,

    /// A field of the region module that differs from the preset's, as in "region" of config.json; any number of times
    #[arg(long, value_name = "FIELD=VALUE", env = "GPT4ROI_SET", value_delimiter = ';', value_parser = parse_change)]
    set: Vec<(String, Value)>,

    /// Which stages; all of them if none is named
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STAGE", env = "GPT4ROI_STAGES")]
    stages: Vec<Stage>,

    /// How many regions the region head gets at once
    #[arg(long, value_name = "N", env = "GPT4ROI_REGIONS", default_value_t = 4)]
    regions: usize,

    /// How often each stage is timed
    #[arg(long, value_name = "N", env = "GPT4ROI_RUNS", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,

    /// Threads to compute with; 0 means one per core
    #[arg(long, value_name = "N", env = "GPT4ROI_THREADS", default_value_t = 0)]
    threads: usize,

    /// Print one JSON object instead of a table
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Preset {
    /// The published model
    #[value(name = "gpt4roi-7b")]
    Gpt4roi7b,
    /// The same behind a ViT-H/14 tower
    #[value(name = "gpt4roi-7b-vit-h14")]
    Gpt4roi7bVitH14,
    /// The embedded model
    Nano,
}

/// A part of the model that is measured by itself, in the order in which data flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// The vision tower on one picture
    Clip,
    /// The feature pyramid of one picture
    Pyramid,
    /// RoIAlign and head for all regions together
    RegionHead,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi bench
  gpt4roi bench --preset nano --regions 16
  gpt4roi bench --set levels=2 --set shuffle=false
  gpt4roi bench --stages pyramid --threads 1 --json";

/// Runs the subcommand.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build().context("starting threads")?;
    let report = pool.install(|| measure(&args))?;
    if args.json { print_json(&report) } else { print(&report.table()) }
}

/// What `bench --json` prints. The scripts of `reference/bench` print `threads` and `stages` of a peer in the same form.
#[derive(Debug, Serialize)]
struct Report {
    preset: String,
    threads: usize,
    runs: u16,
    regions: usize,
    ceiling: Ceiling,
    stages: Vec<StageReport>,
}

/// The best that this machine does.
#[derive(Debug, Clone, Copy, Serialize)]
struct Ceiling {
    gflop_per_second: f64,
    gbyte_per_second: f64,
}

#[derive(Debug, Serialize)]
struct StageReport {
    stage: Stage,
    /// Median of the runs.
    seconds: f64,
    fastest_seconds: f64,
    gflop: f64,
    gbyte: f64,
    /// What the ceiling would need, arithmetic and memory side by side, over the median.
    share_of_ceiling: f64,
}

fn measure(args: &Args) -> anyhow::Result<Report> {
    let config = args.preset.config().with_region(&args.set.iter().cloned().collect())?;
    let ceiling = Ceiling::measure();
    let stages = if args.stages.is_empty() { Stage::value_variants() } else { &args.stages };
    let stages = stages.iter().map(|stage| stage.measure(&config, args, ceiling)).collect::<anyhow::Result<_>>()?;
    let preset = args.preset.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let threads = rayon::current_num_threads();
    Ok(Report { preset, threads, runs: args.runs, regions: args.regions, ceiling, stages })
}

fn parse_change(text: &str) -> Result<(String, Value), String> {
    let (field, value) = text.split_once('=').ok_or("expected FIELD=VALUE, for example shuffle=false")?;
    let value =
        serde_json::from_str(value).map_err(|error| format!("expected a number, true, false or a list: {error}"))?;
    Ok((field.into(), value))
}

impl Preset {
    fn config(self) -> Config {
        match self {
            Self::Gpt4roi7b => Config::gpt4roi_7b(),
            Self::Gpt4roi7bVitH14 => Config::gpt4roi_7b_vit_h14(),
            Self::Nano => Config::nano(1024),
        }
    }
}

impl Stage {
    /// Builds only the part of the network that the stage needs, and measures it.
    fn measure(self, config: &Config, args: &Args, ceiling: Ceiling) -> anyhow::Result<StageReport> {
        let weights = Weights::new(Arc::new(RandomWeights::new(0)));
        let vision = &config.vision;
        let (cost, seconds) = match self {
            Self::Clip => {
                let depth = config.level_states()?.last().copied().unwrap_or(0);
                let tower = ClipVision::load(&weights, vision, depth)?;
                let pixels = Tensor::randn(0f32, 1.0, (1, 3, vision.image_size, vision.image_size), &Device::Cpu)?;
                (Cost::clip(config)?, time(args.runs, || tower.forward(&pixels))?)
            }
            Self::Pyramid => {
                let region = RegionModule::load(&weights, config)?;
                let state = || Tensor::randn(0f32, 1.0, (1, vision.patches(), vision.hidden_size), &Device::Cpu);
                let states = (0..config.region.levels).map(|_| state()).collect::<Result<Vec<_>, _>>()?;
                (Cost::pyramid(config), time(args.runs, || region.pyramid.forward(&states))?)
            }
            Self::RegionHead => {
                let head = RegionModule::load(&weights, config)?.head;
                let (maps, boxes) = (maps(config)?, boxes(args.regions)?);
                let run = || head.forward(&head.pool(&maps, &boxes)?, &boxes);
                (Cost::region_head(config, args.regions), time(args.runs, run)?)
            }
        };
        Ok(StageReport::new(self, cost, &seconds, ceiling))
    }
}

/// A pyramid of random values, laid out as [`Pyramid`](gpt4roi::region::Pyramid) leaves it.
fn maps(config: &Config) -> anyhow::Result<Vec<Tensor>> {
    let map = |scale: usize| {
        let side = config.vision.grid() * scale;
        Tensor::randn(0f32, 1.0, (1, side, side, config.region.dim), &Device::Cpu)?.permute((0, 3, 1, 2))
    };
    Ok(config.region.scales().into_iter().map(map).collect::<Result<_, _>>()?)
}

/// Boxes of many places and sizes, `[N, 4]` normalised xyxy.
fn boxes(count: usize) -> anyhow::Result<Tensor> {
    let place = |i: usize, step: f32| (i as f32 * step).fract();
    let edges = (0..count).flat_map(|i| {
        let (x, y) = (0.6 * place(i, 0.618), 0.6 * place(i, 0.755));
        [x, y, x + 0.1 + 0.3 * place(i, 0.57), y + 0.1 + 0.3 * place(i, 0.43)]
    });
    Ok(Tensor::from_vec(edges.collect::<Vec<f32>>(), (count, 4), &Device::Cpu)?)
}

/// Seconds of each run in ascending order, after one that is not counted.
fn time<T, E: Into<anyhow::Error>>(runs: u16, run: impl Fn() -> Result<T, E>) -> anyhow::Result<Vec<f64>> {
    let once = || -> anyhow::Result<f64> {
        let begin = Instant::now();
        black_box(run().map_err(Into::into)?);
        Ok(begin.elapsed().as_secs_f64())
    };
    once()?;
    let mut seconds = (0..runs).map(|_| once()).collect::<anyhow::Result<Vec<_>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

impl Ceiling {
    /// The fastest of some short runs: what disturbs a run only makes it slower.
    fn measure() -> Self {
        const RUNS: usize = 10;
        const READ: usize = 64 << 20; // 256 MB, more than a last-level cache holds
        let fastest = |work: &dyn Fn() -> f64| {
            let rate = |_| {
                let begin = Instant::now();
                work() / begin.elapsed().as_secs_f64() / 1e9
            };
            (0..RUNS).map(rate).fold(0.0, f64::max)
        };
        let values = vec![1.0; READ];
        Self {
            gflop_per_second: fastest(&|| gpt4roi_kernels::multiply_add(1_000_000) as f64),
            gbyte_per_second: fastest(&|| {
                black_box(gpt4roi_kernels::read_all(&values));
                4.0 * READ as f64
            }),
        }
    }
}

impl StageReport {
    fn new(stage: Stage, cost: Cost, seconds: &[f64], ceiling: Ceiling) -> Self {
        let (gflop, gbyte) = (cost.operations as f64 / 1e9, cost.bytes as f64 / 1e9);
        let (median, fastest) = (seconds[seconds.len() / 2], seconds[0]);
        let limit = (gflop / ceiling.gflop_per_second).max(gbyte / ceiling.gbyte_per_second);
        Self { stage, seconds: median, fastest_seconds: fastest, gflop, gbyte, share_of_ceiling: limit / median }
    }
}

impl Report {
    fn table(&self) -> String {
        let Self { preset, threads, regions, ceiling, .. } = self;
        let mut table = format!(
            "{preset}, {regions} regions, {threads} threads; ceiling {:.0} GFLOP/s, {:.1} GB/s\n",
            ceiling.gflop_per_second, ceiling.gbyte_per_second
        );
        let _ = writeln!(table, "stage          seconds   fastest     GFLOP  GFLOP/s      GB  of ceiling");
        for StageReport { stage, seconds, fastest_seconds, gflop, gbyte, share_of_ceiling } in &self.stages {
            let stage = stage.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            let (rate, share) = (gflop / seconds, 100.0 * share_of_ceiling);
            let _ = writeln!(
                table,
                "{stage:<12} {seconds:>9.4} {fastest_seconds:>9.4} {gflop:>9.1} {rate:>8.0} {gbyte:>7.2} {share:>9.0} %"
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 GFLOP and 1 GB where 100 GFLOP/s and 5 GB/s are possible take 0.1 and 0.2 s at best.
    #[test]
    fn the_narrower_limit_counts() {
        let (cost, ceiling) = (
            Cost { operations: 10_000_000_000, bytes: 1_000_000_000 },
            Ceiling { gflop_per_second: 100.0, gbyte_per_second: 5.0 },
        );
        let report = StageReport::new(Stage::Clip, cost, &[0.3, 0.4, 9.0], ceiling);
        assert_eq!((report.seconds, report.fastest_seconds), (0.4, 0.3));
        assert!((report.share_of_ceiling - 0.5).abs() < 1e-9);
    }

    #[test]
    fn changes_are_fields_with_values() {
        assert_eq!(parse_change("scales=[2, 1]"), Ok(("scales".into(), serde_json::json!([2, 1]))));
        assert_eq!(parse_change("shuffle=false"), Ok(("shuffle".into(), Value::Bool(false))));
        assert!(parse_change("shuffle").is_err() && parse_change("shuffle=off").is_err());
    }

    #[test]
    fn boxes_are_boxes() {
        let boxes = boxes(40).unwrap().to_vec2::<f32>().unwrap();
        assert!(boxes.iter().all(|b| 0.0 <= b[0]
            && b[0] < b[2]
            && b[2] <= 1.0
            && 0.0 <= b[1]
            && b[1] < b[3]
            && b[3] <= 1.0));
    }
}
