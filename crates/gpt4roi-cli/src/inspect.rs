//! `gpt4roi inspect`: what a checkpoint holds, and what a prompt comes to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::{Path, PathBuf},
};

use candle_core::Device;
use clap::{Subcommand, builder::FalseyValueParser};
use gpt4roi::{
    Image, RegionId,
    adapter::Adapter,
    bbox::ImageSize,
    mention::{self, Part},
    model::ModelFiles,
    prompt::{self, Piece, Round, TextMode, TokenRow},
    weights::{LoadReport, StoredTensor},
};
use serde::Serialize;

use crate::{
    failure::Refusal,
    options::{ModelOptions, check_adapter},
    session::{print, print_json},
};

/// Look inside a checkpoint, an adapter or a prompt
///
/// Without a subcommand: the checkpoint's tensors with their types and shapes, and what the model would
/// load, leave aside or miss; with an adapter beside it, what that is, and whether it was trained beside this model. Only
/// headers, vectors and adapters are read, so that this is quick for any size.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
}

#[derive(Debug, clap::Args)]
struct CheckpointArgs {
    /// Print one JSON object instead of a table
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    model: ModelOptions,
}

#[derive(Debug, Subcommand)]
enum What {
    Adapter(AdapterArgs),
    Prompt(PromptArgs),
}

/// What an adapter changes, in how many numbers, and beside which model it was trained. No model is needed for that
#[derive(Debug, clap::Args)]
struct AdapterArgs {
    /// A directory with adapter_config.json
    #[arg(value_name = "DIR")]
    adapter: PathBuf,

    /// Print one JSON object instead of a table
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// A question as the model reads it: every token with its place, id, and what is learned or replaced
#[derive(Debug, clap::Args)]
struct PromptArgs {
    /// The question; coordinates in it become regions
    question: String,

    /// The picture, whose size decides what pixel coordinates mean; without it, a square of 1000 pixels
    #[arg(long, value_name = "IMAGE", env = "GPT4ROI_IMAGE")]
    image: Option<PathBuf>,

    /// How many regions exist already: <region1> to <regionN> can be mentioned
    #[arg(long, value_name = "N", env = "GPT4ROI_REGIONS", default_value_t = 0)]
    regions: u32,

    /// An answer, to see which tokens training would learn to write
    #[arg(long, value_name = "TEXT", env = "GPT4ROI_ANSWER")]
    answer: Option<String>,

    /// Read words that look like structure (<bbox>, ###) as the original does
    #[arg(long, env = "GPT4ROI_COMPAT", value_parser = FalseyValueParser::new())]
    compat: bool,

    #[command(flatten)]
    checkpoint: CheckpointArgs,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi inspect
  gpt4roi inspect --model models/gpt4roi-7b --json
  gpt4roi inspect adapter adapters/own
  gpt4roi inspect prompt 'What is <region1> doing?' --regions 1
  gpt4roi inspect prompt 'What is at (0.5, 0.6)?' --image scene.png --answer 'a red car'";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        None => checkpoint(&args.checkpoint),
        Some(What::Adapter(args)) => adapter(&args),
        Some(What::Prompt(args)) => prompt(&args),
    }
}

/// What `inspect --json` prints.
#[derive(Serialize)]
struct CheckpointReport {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<AdapterReport>,
    tensors: Vec<TensorLine>,
    parameters: u64,
    loaded: usize,
    ignored: Vec<String>,
    unused: Vec<String>,
    missing: BTreeMap<String, Vec<usize>>,
    wrong_shape: BTreeMap<String, WrongShape>,
}

#[derive(Serialize)]
struct TensorLine {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    file: String,
    status: &'static str,
}

#[derive(Serialize)]
struct WrongShape {
    expected: Vec<usize>,
    got: Vec<usize>,
}

fn checkpoint(args: &CheckpointArgs) -> anyhow::Result<()> {
    let files = args.model.files()?;
    let report = files.report()?;
    let (model, tower) = files.stores(&Device::Cpu)?;
    let mut tensors = Vec::new();
    for StoredTensor { name, numbers, shape, file } in model.stored().into_iter().chain(tower.stored()) {
        let file = file.file_name().map_or_else(String::new, |file| file.to_string_lossy().into_owned());
        tensors.push(TensorLine { status: status(&report, &name), name, dtype: numbers, shape, file });
    }
    let adapter = args.model.adapter.as_deref().map(AdapterReport::of).transpose()?;
    let adapter = adapter.map(|adapter| adapter.beside(&files)).transpose()?;
    let fits = report.missing.is_empty() && report.wrong_shape.is_empty() && report.unused.is_empty();
    let report = CheckpointReport { adapter, ..CheckpointReport::new(args.model.name(), tensors, report) };
    if args.json {
        print_json(&report)?
    } else {
        print(&report.table())?
    }
    if fits { Ok(()) } else { Err(Refusal::failure("the checkpoint does not fit its configuration").into()) }
}

/// What loading does with a tensor.
fn status(report: &LoadReport, name: &str) -> &'static str {
    let among = |names: &[String]| names.iter().any(|known| known == name);
    match () {
        () if among(&report.ignored) => "ignored",
        () if among(&report.unused) => "unused",
        () if report.wrong_shape.iter().any(|(known, ..)| known == name) => "wrong shape",
        () => "loaded",
    }
}

impl CheckpointReport {
    fn new(model: String, tensors: Vec<TensorLine>, report: LoadReport) -> Self {
        let size = |line: &TensorLine| line.shape.iter().map(|&extent| extent as u64).product::<u64>();
        let wrong = report.wrong_shape.into_iter();
        Self {
            model,
            adapter: None,
            parameters: tensors.iter().filter(|line| line.status == "loaded").map(size).sum(),
            tensors,
            loaded: report.loaded.len(),
            ignored: report.ignored,
            unused: report.unused,
            missing: report.missing.into_iter().collect(),
            wrong_shape: wrong.map(|(name, expected, got)| (name, WrongShape { expected, got })).collect(),
        }
    }

    fn table(&self) -> String {
        let width = self.tensors.iter().map(|line| line.name.len()).max().unwrap_or(0);
        let mut table = String::new();
        for TensorLine { name, dtype, shape, status, .. } in &self.tensors {
            let _ = writeln!(table, "{name:width$}  {dtype:<5} {:<22} {status}", format!("{shape:?}"));
        }
        for (name, expected) in &self.missing {
            let _ = writeln!(table, "{name:width$}  missing, expected {expected:?}");
        }
        for (name, WrongShape { expected, got }) in &self.wrong_shape {
            let _ = writeln!(table, "{name:width$}  expected {expected:?}, got {got:?}");
        }
        let (loaded, ignored, unused) = (self.loaded, self.ignored.len(), self.unused.len());
        let (missing, wrong) = (self.missing.len(), self.wrong_shape.len());
        let parameters = self.parameters;
        let _ = writeln!(
            table,
            "{loaded} tensors loaded ({parameters} parameters), {ignored} ignored, {unused} unused, {missing} missing, {wrong} of a wrong shape"
        );
        if let Some(adapter) = &self.adapter {
            table.push_str(&adapter.summary());
        }
        table
    }
}

fn adapter(args: &AdapterArgs) -> anyhow::Result<()> {
    check_adapter(&args.adapter)?;
    let report = AdapterReport::of(&args.adapter)?;
    if args.json { print_json(&report) } else { print(&format!("{}{}", report.table(), report.summary())) }
}

/// What `inspect adapter --json` prints.
#[derive(Serialize)]
struct AdapterReport {
    adapter: String,
    rank: usize,
    /// What the products are multiplied by.
    scale: f64,
    changed: Vec<Shaped>,
    replaced: Vec<Shaped>,
    /// In the two factors of each change.
    changing_parameters: u64,
    /// In the tensors that replace others.
    replacing_parameters: u64,
    base: BaseReport,
}

/// The model that an adapter was trained beside.
#[derive(Serialize)]
struct BaseReport {
    name: Option<String>,
    /// Its fingerprint, by its vectors alone; PEFT writes none.
    vectors: Option<String>,
    /// Whether it is the model that is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    is_this: Option<bool>,
}

#[derive(Serialize)]
struct Shaped {
    name: String,
    shape: Vec<usize>,
}

impl AdapterReport {
    fn of(directory: &Path) -> anyhow::Result<Self> {
        let adapter = Adapter::open(directory, &Device::Cpu)?;
        let config = adapter.config();
        let changed = adapter.changed().map(|(name, shape)| Shaped { name: name.to_owned(), shape: shape.into() });
        let replaced = adapter.replaced().map(|tensor| Shaped { name: tensor.name, shape: tensor.shape });
        let (changed, replaced): (Vec<_>, Vec<_>) = (changed.collect(), replaced.collect());
        Ok(Self {
            adapter: directory.display().to_string(),
            rank: config.r,
            scale: config.scale(),
            changing_parameters: changed.iter().map(|of| (config.r * of.shape.iter().sum::<usize>()) as u64).sum(),
            replacing_parameters: replaced.iter().map(|of| of.shape.iter().product::<usize>() as u64).sum(),
            changed,
            replaced,
            base: BaseReport {
                name: config.base_model_name_or_path.clone(),
                vectors: adapter.base().map(str::to_owned),
                is_this: None,
            },
        })
    }

    /// The same with what its model says to it.
    fn beside(mut self, files: &ModelFiles) -> anyhow::Result<Self> {
        let is_this = files.mismatch()?.is_none();
        self.base.is_this = self.base.vectors.is_some().then_some(is_this);
        Ok(self)
    }

    fn table(&self) -> String {
        let (changed, replaced) = (self.changed.iter().map(|of| (of, "changed")), self.replaced.iter());
        let all: Vec<_> = changed.chain(replaced.map(|of| (of, "replaced"))).collect();
        let width = all.iter().map(|(of, _)| of.name.len()).max().unwrap_or(0);
        let line =
            |(of, what): &(&Shaped, &str)| format!("{:width$}  {:<22} {what}\n", of.name, format!("{:?}", of.shape));
        all.iter().map(line).collect()
    }

    fn summary(&self) -> String {
        let Self { adapter, rank, scale, changing_parameters, replacing_parameters, base, .. } = self;
        let (changed, replaced, layers) = (self.changed.len(), self.replaced.len(), self.layers());
        let of = if layers.is_empty() { String::new() } else { format!(" ({layers})") };
        let name = base.name.as_deref().unwrap_or("a model without a name");
        let vectors = match &base.vectors {
            Some(vectors) => format!("with the vectors {vectors}"),
            None => "of which nothing more is known".into(),
        };
        let is_this = match base.is_this {
            Some(true) => ", as this model's are",
            Some(false) => ", which this model has not",
            None => "",
        };
        format!(
            "{adapter}: rank {rank}, scale {scale}\n\
             {changed} matrices changed{of} by {changing_parameters} parameters, {replaced} tensors replaced by \
             {replacing_parameters}\n\
             trained beside {name}, {vectors}{is_this}\n"
        )
    }

    /// The last parts of the names of the layers that are changed, each once.
    fn layers(&self) -> String {
        let last = |of: &Shaped| Some(of.name.strip_suffix(".weight")?.rsplit('.').next()?.to_owned());
        self.changed.iter().filter_map(last).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// What `inspect prompt --json` prints.
#[derive(Serialize)]
struct PromptReport {
    tokens: Vec<TokenLine>,
    patches: [usize; 2],
    regions: Vec<RegionPlace>,
}

#[derive(Serialize)]
struct TokenLine {
    position: usize,
    id: u32,
    piece: String,
    learned: bool,
}

#[derive(Serialize)]
struct RegionPlace {
    position: u32,
    region: u32,
}

fn prompt(args: &PromptArgs) -> anyhow::Result<()> {
    let files = args.checkpoint.model.files()?;
    let (config, tokenizer) = (files.config()?, files.tokenizer()?);
    let size = match &args.image {
        Some(path) => Image::open(path, u64::MAX).map_err(gpt4roi::Error::from)?.size(),
        None => ImageSize { width: 1000, height: 1000 },
    };
    let question = pieces(&args.question, args.regions, size)?;
    let rounds = [Round { question, answer: args.answer.clone() }];
    let mode = if args.compat { TextMode::Compat } else { TextMode::Literal };
    let encoded = prompt::encode(&rounds, &tokenizer, config.vision.patches(), mode).map_err(gpt4roi::Error::from)?;
    let encoded = encoded.with_region_tokens(config.region.tokens);
    let rows = encoded.rows(&tokenizer);
    if !args.checkpoint.json {
        return print(&table(&rows));
    }
    let line = |row: TokenRow| TokenLine { position: row.position, id: row.id, piece: row.piece, learned: row.target };
    print_json(&PromptReport {
        tokens: rows.into_iter().map(line).collect(),
        patches: [encoded.patches.start, encoded.patches.end],
        regions: encoded.regions.iter().map(|&(position, id)| RegionPlace { position, region: id.0 }).collect(),
    })
}

/// The question's pieces. Which box a region has does not matter here: only its place does.
fn pieces(question: &str, declared: u32, size: ImageSize) -> anyhow::Result<Vec<Piece>> {
    let mut ids: Vec<RegionId> = (1..=declared).map(RegionId).collect();
    let parts = mention::parse(question, &ids, size).map_err(gpt4roi::Error::from)?;
    let piece = |part| match part {
        Part::Text(text) => Piece::Text(text),
        Part::Mention(id) => Piece::Region(id),
        Part::Box(_) | Part::Point(_) => {
            ids.push(RegionId(ids.len() as u32 + 1));
            Piece::Region(RegionId(ids.len() as u32))
        }
    };
    Ok(parts.into_iter().map(piece).collect())
}

/// One line per token; the patches, which are all alike, share one.
fn table(rows: &[TokenRow]) -> String {
    let mut table = String::from("place     id  learned  token\n");
    let patches = rows.iter().filter(|row| row.patch.is_some()).count();
    for row in rows {
        let TokenRow { position, id, piece, .. } = row;
        let learned = if row.target { "yes" } else { "" };
        let note = match (row.patch, row.region) {
            (Some(0), _) => format!("  ×{patches}, replaced by the picture's patches"),
            (Some(_), _) => continue,
            (_, Some(region)) => format!("  replaced by {region}'s vector"),
            _ => String::new(),
        };
        let _ = writeln!(table, "{position:>5} {id:>6}  {learned:<7}  {piece}{note}");
    }
    table
}
