//! `gpt4roi bench`: how long each stage takes on this machine, and how near to its limits.

use std::{cell::OnceCell, fmt::Write, hint::black_box, sync::Arc, time::Instant};

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use clap::{ValueEnum, builder::FalseyValueParser};
use gpt4roi::{
    Config, clip::ClipVision, config::LlamaConfig, cost::Cost, device, drafter::DEFAULT_DRAFT,
    quantized::RandomQuantized, random_weights::RandomWeights, region::RegionModule, weights::Weights,
};
use gpt4roi_kernels::QuantFormat;
use serde::Serialize;
use serde_json::Value;

use crate::{
    language_bench::{CAPTION, CONTEXT, LanguageModel},
    options::{ComputeOptions, at_least_one},
    session::{print, print_json},
};

/// Measure every stage with random weights, beside what the machine could do at best
///
/// Each stage runs once untimed, then --runs times; the median counts. The ceiling is measured in the same run: the
/// fastest multiply-adds in registers, and the fastest reading of memory; on a GPU a product of large matrices, and a
/// copy. GFLOP are those of the definition, so that an algorithm that gets by with fewer multiplications, or multiplies
/// small integers, can be above 100 %. The language model reads 320 tokens (prefill), one behind them (decode) or four
/// together (draft), and writes captions of 24 tokens (batch).
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

    /// How many captions are written as one batch, and compared with one
    #[arg(long, value_name = "N", env = "GPT4ROI_CAPTIONS", default_value_t = 16)]
    #[arg(value_parser = at_least_one::<u16>)]
    captions: u16,

    /// How the language model's weights are stored; none means as floats
    #[arg(long, value_enum, env = "GPT4ROI_QUANTIZE", default_value_t = Quantize::Q4K)]
    quantize: Quantize,

    /// How often each stage is timed
    #[arg(long, value_name = "N", env = "GPT4ROI_RUNS", default_value_t = 5)]
    #[arg(value_parser = at_least_one::<u16>)]
    runs: u16,

    /// Threads to compute with; 0 means one per core
    #[arg(long, value_name = "N", env = "GPT4ROI_THREADS", default_value_t = 0)]
    threads: usize,

    /// Print one JSON object instead of a table
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    compute: ComputeOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Preset {
    /// The published model
    #[value(name = "gpt4roi-7b")]
    Gpt4roi7b,
    /// The same behind a ViT-H/14 tower
    #[value(name = "gpt4roi-7b-vit-h14")]
    Gpt4roi7bVitH14,
    /// The published model around a language model of 1.3 thousand million weights, for less memory
    #[value(name = "gpt4roi-1b")]
    Gpt4roi1b,
    /// The embedded model
    Nano,
    /// The embedded model with a tower and a region module two thirds as wide
    Pico,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Quantize {
    /// 4.5 bits a weight, 6.6 in the tensors that matter most
    #[value(name = "q4_k")]
    #[serde(rename = "q4_k")]
    Q4K,
    /// 8.5 bits a weight
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Floats
    None,
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
    /// Reading a prompt
    Prefill,
    /// Writing one token behind it
    Decode,
    /// Checking a draft: reading one token behind it together with three that are drafted
    Draft,
    /// Writing captions of one picture, all at once
    Batch,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi bench
  gpt4roi bench --preset nano --regions 16
  gpt4roi bench --set levels=2 --set shuffle=false
  gpt4roi bench --stages prefill,decode,batch --quantize q8_0
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
    device: &'static str,
    dtype: String,
    threads: usize,
    runs: u16,
    regions: usize,
    captions: u16,
    quantize: Quantize,
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
    #[serde(flatten)]
    tokens: Tokens,
}

/// What only the language model's stages have.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Tokens {
    /// Tokens read, or written, per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    /// How many times as long as one caption all of them take, one and all in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    times_one_caption: Option<f64>,
}

fn measure(args: &Args) -> anyhow::Result<Report> {
    let config = args.preset.config().with_region(&args.set.iter().cloned().collect())?;
    let device = args.compute.open()?;
    let ceiling = Ceiling::measure(&device, args.compute.dtype.dtype())?;
    let bench = Bench { args, config, ceiling, device, language: OnceCell::new() };
    let stages = if args.stages.is_empty() { Stage::value_variants() } else { &args.stages };
    let preset = args.preset.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    Ok(Report {
        preset,
        device: device::name(&bench.device),
        dtype: args.compute.dtype.to_string(),
        threads: rayon::current_num_threads(),
        runs: args.runs,
        regions: args.regions,
        captions: args.captions,
        quantize: args.quantize,
        ceiling: bench.ceiling,
        stages: stages.iter().map(|stage| bench.measure(*stage)).collect::<anyhow::Result<_>>()?,
    })
}

fn parse_change(text: &str) -> Result<(String, Value), String> {
    let (field, value) = text.split_once('=').ok_or("expected FIELD=VALUE, for example shuffle=false")?;
    let value =
        serde_json::from_str(value).map_err(|error| format!("expected a number, true, false or a list: {error}"))?;
    Ok((field.into(), value))
}

impl Preset {
    fn config(self) -> Config {
        let published = Config::gpt4roi_7b();
        match self {
            Self::Gpt4roi7b => published,
            Self::Gpt4roi7bVitH14 => Config::gpt4roi_7b_vit_h14(),
            Self::Gpt4roi1b => {
                let llama = LlamaConfig {
                    hidden_size: 2048,
                    intermediate_size: 5632,
                    num_hidden_layers: 24,
                    ..published.llama
                };
                Config { llama, ..published }
            }
            Self::Nano => Config::nano(1024),
            Self::Pico => Config::pico(1024),
        }
    }
}

/// What the stages have in common.
struct Bench<'a> {
    args: &'a Args,
    config: Config,
    ceiling: Ceiling,
    device: Device,
    /// Loaded once, and only if a stage needs it.
    language: OnceCell<LanguageModel>,
}

impl Bench<'_> {
    /// Builds only the part of the network that the stage needs, and measures it.
    fn measure(&self, stage: Stage) -> anyhow::Result<StageReport> {
        let (config, vision) = (&self.config, &self.config.vision);
        let weights = self.floats();
        let device = &self.device;
        let (cost, seconds) = match stage {
            Stage::Clip => {
                let depth = config.level_states()?.last().copied().unwrap_or(0);
                let tower = ClipVision::load(&weights, vision, depth)?;
                let pixels = Tensor::randn(0f32, 1.0, (1, 3, vision.image_size, vision.image_size), device)?;
                (Cost::clip(config)?, self.time(|| tower.forward(&pixels))?)
            }
            Stage::Pyramid => {
                let region = RegionModule::load(&weights, config)?;
                let state = || self.noise(&[1, vision.patches(), vision.hidden_size]);
                let states = (0..config.region.levels).map(|_| state()).collect::<anyhow::Result<Vec<_>>>()?;
                (Cost::pyramid(config), self.time(|| region.pyramid.forward(&states))?)
            }
            Stage::RegionHead => {
                let head = RegionModule::load(&weights, config)?.head;
                let (maps, boxes) = (self.maps()?, boxes(self.args.regions, device)?);
                let run = || head.forward(&head.pool(&maps, &boxes)?, &boxes);
                (Cost::region_head(config, self.args.regions), self.time(run)?)
            }
            Stage::Prefill => {
                let model = self.language()?;
                let seconds = self.time(|| model.prefill())?;
                return Ok(self.report(stage, model.prefill_cost(), &seconds).with_tokens(CONTEXT));
            }
            Stage::Decode => {
                let model = self.language()?;
                let mut context = model.context()?;
                let seconds = self.time(|| model.decode(&mut context))?;
                return Ok(self.report(stage, model.decode_cost(&context), &seconds).with_tokens(1));
            }
            Stage::Draft => {
                let model = self.language()?;
                let mut context = model.context()?;
                let seconds = self.time(|| model.check_draft(&mut context))?;
                return Ok(self
                    .report(stage, model.check_draft_cost(&context), &seconds)
                    .with_tokens(1 + DEFAULT_DRAFT));
            }
            Stage::Batch => return self.captions(self.language()?),
        };
        Ok(self.report(stage, cost, &seconds))
    }

    /// One caption and all of them in turn, so that what else the machine does concerns both alike.
    fn captions(&self, model: &LanguageModel) -> anyhow::Result<StageReport> {
        let (count, prompt) = (usize::from(self.args.captions), Arc::new(model.context()?));
        let mut one = Vec::new();
        let mut all = Vec::new();
        for _ in 0..=self.args.runs {
            one.push(self.seconds(|| model.captions(&prompt, 1))?);
            all.push(self.seconds(|| model.captions(&prompt, count))?);
        }
        let [one, all] = [one, all].map(|times| in_order(&times[1..]));
        let mut report =
            self.report(Stage::Batch, model.captions_cost(&prompt, count), &all).with_tokens(count * CAPTION);
        report.tokens.times_one_caption = Some(report.seconds / one[one.len() / 2]);
        Ok(report)
    }

    fn language(&self) -> anyhow::Result<&LanguageModel> {
        if self.language.get().is_none() {
            let llama = &self.config.llama;
            let blocks =
                |format| Weights::new(Arc::new(RandomQuantized::new(format, llama.num_hidden_layers).on(&self.device)));
            let weights = match self.args.quantize {
                Quantize::Q4K => blocks(QuantFormat::Q4K),
                Quantize::Q8_0 => blocks(QuantFormat::Q8_0),
                Quantize::None => self.floats(),
            };
            let weights = weights.in_precision(self.args.compute.dtype);
            let _ = self.language.set(LanguageModel::load(&weights, llama)?);
        }
        self.language.get().context("the language model was just loaded")
    }

    /// Random weights in floats.
    fn floats(&self) -> Weights {
        Weights::new(Arc::new(RandomWeights::new(0).on(&self.device))).in_precision(self.args.compute.dtype)
    }

    /// Values as a layer before would hand them on.
    fn noise(&self, shape: &[usize]) -> anyhow::Result<Tensor> {
        let noise = Tensor::randn(0f32, 1.0, shape, &self.device)?;
        Ok(if self.device.is_cpu() { noise } else { noise.to_dtype(self.args.compute.dtype.dtype())? })
    }

    /// A pyramid of random values, laid out as [`Pyramid`](gpt4roi::region::Pyramid) leaves it.
    fn maps(&self) -> anyhow::Result<Vec<Tensor>> {
        let (grid, dim) = (self.config.vision.grid(), self.config.region.dim);
        let map = |scale: usize| Ok(self.noise(&[1, grid * scale, grid * scale, dim])?.permute((0, 3, 1, 2))?);
        self.config.region.scales().into_iter().map(map).collect()
    }

    /// Seconds of each run in ascending order, after one that is not counted.
    fn time<T, E: Into<anyhow::Error>>(&self, mut run: impl FnMut() -> Result<T, E>) -> anyhow::Result<Vec<f64>> {
        self.seconds(&mut run)?;
        Ok(in_order(&(0..self.args.runs).map(|_| self.seconds(&mut run)).collect::<anyhow::Result<Vec<_>>>()?))
    }

    /// Seconds until the device is done.
    fn seconds<T, E: Into<anyhow::Error>>(&self, run: impl FnOnce() -> Result<T, E>) -> anyhow::Result<f64> {
        let begin = Instant::now();
        black_box(run().map_err(Into::into)?);
        self.device.synchronize()?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn report(&self, stage: Stage, cost: Cost, seconds: &[f64]) -> StageReport {
        StageReport::new(stage, cost, seconds, self.ceiling)
    }
}

/// Boxes of many places and sizes, `[N, 4]` normalised xyxy.
fn boxes(count: usize, device: &Device) -> anyhow::Result<Tensor> {
    let place = |i: usize, step: f32| (i as f32 * step).fract();
    let edges = (0..count).flat_map(|i| {
        let (x, y) = (0.6 * place(i, 0.618), 0.6 * place(i, 0.755));
        [x, y, x + 0.1 + 0.3 * place(i, 0.57), y + 0.1 + 0.3 * place(i, 0.43)]
    });
    Ok(Tensor::from_vec(edges.collect::<Vec<f32>>(), (count, 4), device)?)
}

fn in_order(seconds: &[f64]) -> Vec<f64> {
    let mut seconds = seconds.to_vec();
    seconds.sort_by(f64::total_cmp);
    seconds
}

impl Ceiling {
    fn measure(device: &Device, dtype: DType) -> anyhow::Result<Self> {
        if device.is_cpu() { Ok(Self::of_cpu()) } else { Self::of_engine(device, dtype, 4096) }
    }

    fn of_cpu() -> Self {
        const READ: usize = 64 << 20; // 256 MB, more than a last-level cache holds
        let values = vec![1.0; READ];
        let operations = fastest(|| gpt4roi_kernels::multiply_add(1_000_000) as f64);
        let bytes = fastest(|| {
            black_box(gpt4roi_kernels::read_all(&values));
            4.0 * READ as f64
        });
        Self { gflop_per_second: operations, gbyte_per_second: bytes }
    }

    /// The engine's product of two square matrices of such a side, and its copy of as many bytes as sixteen of them.
    fn of_engine(device: &Device, dtype: DType, side: usize) -> anyhow::Result<Self> {
        let square = Tensor::ones((side, side), dtype, device)?;
        let many = Tensor::ones((16, side, side), dtype, device)?;
        let product = || -> anyhow::Result<f64> {
            black_box(square.matmul(&square)?);
            device.synchronize()?;
            Ok(2.0 * (side as f64).powi(3))
        };
        let copy = || -> anyhow::Result<f64> {
            black_box(many.copy()?);
            device.synchronize()?;
            Ok(2.0 * (many.elem_count() * dtype.size_in_bytes()) as f64)
        };
        // What fails fails here, and what is compiled late is compiled now.
        product()?;
        copy()?;
        let rate = |work: &dyn Fn() -> anyhow::Result<f64>| fastest(|| work().unwrap_or(0.0));
        Ok(Self { gflop_per_second: rate(&product), gbyte_per_second: rate(&copy) })
    }
}

/// Thousand millions per second of what `work` says it has done, in the fastest of some short runs: what disturbs a run
/// only makes it slower.
fn fastest(work: impl Fn() -> f64) -> f64 {
    const RUNS: usize = 10;
    let rate = |_| {
        let begin = Instant::now();
        work() / begin.elapsed().as_secs_f64() / 1e9
    };
    (0..RUNS).map(rate).fold(0.0, f64::max)
}

impl StageReport {
    fn new(stage: Stage, cost: Cost, seconds: &[f64], ceiling: Ceiling) -> Self {
        let (gflop, gbyte) = (cost.operations as f64 / 1e9, cost.bytes as f64 / 1e9);
        let (median, fastest) = (seconds[seconds.len() / 2], seconds[0]);
        let limit = (gflop / ceiling.gflop_per_second).max(gbyte / ceiling.gbyte_per_second);
        Self {
            stage,
            seconds: median,
            fastest_seconds: fastest,
            gflop,
            gbyte,
            share_of_ceiling: limit / median,
            tokens: Tokens::default(),
        }
    }

    fn with_tokens(mut self, tokens: usize) -> Self {
        self.tokens.tokens_per_second = Some(tokens as f64 / self.seconds);
        self
    }
}

impl Report {
    fn table(&self) -> String {
        let Self { preset, device, dtype, threads, regions, ceiling, .. } = self;
        let mut table = format!(
            "{preset}, {regions} regions, {device}, {threads} threads, {dtype}; ceiling {:.0} GFLOP/s, {:.1} GB/s\n",
            ceiling.gflop_per_second, ceiling.gbyte_per_second
        );
        let _ = writeln!(
            table,
            "stage          seconds   fastest     GFLOP  GFLOP/s      GB     GB/s  of ceiling  tokens/s"
        );
        self.stages.iter().for_each(|stage| stage.write_row(&mut table));
        if let Some(times) = self.stages.iter().find_map(|stage| stage.tokens.times_one_caption) {
            let _ = writeln!(table, "{} captions take {times:.1} times as long as one", self.captions);
        }
        table
    }
}

impl StageReport {
    fn write_row(&self, table: &mut String) {
        let Self { stage, seconds, fastest_seconds, gflop, gbyte, share_of_ceiling, tokens } = self;
        let stage = stage.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let (operations, bytes, share) = (gflop / seconds, gbyte / seconds, 100.0 * share_of_ceiling);
        let tokens = tokens.tokens_per_second.map_or_else(String::new, |tokens| format!("{tokens:>10.1}"));
        let _ = writeln!(
            table,
            "{stage:<12} {seconds:>9.4} {fastest_seconds:>9.4} {gflop:>9.1} {operations:>8.0} {gbyte:>7.2} \
             {bytes:>8.1} {share:>9.0} %{tokens}"
        );
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
    fn the_engine_s_ceiling_is_measured_on_any_device() {
        let Ceiling { gflop_per_second, gbyte_per_second } = Ceiling::of_engine(&Device::Cpu, DType::F32, 64).unwrap();
        assert!(gflop_per_second > 0.0 && gbyte_per_second > 0.0);
        assert!(Ceiling::of_engine(&Device::Cpu, DType::U8, 64).is_err());
    }

    #[test]
    fn boxes_are_boxes() {
        let boxes = boxes(40, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert!(boxes.iter().all(|b| 0.0 <= b[0]
            && b[0] < b[2]
            && b[2] <= 1.0
            && 0.0 <= b[1]
            && b[1] < b[3]
            && b[3] <= 1.0));
    }
}
