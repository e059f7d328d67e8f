//! `gpt4roi convert`: published files become a model that opens, merged, renamed, quantised.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use candle_core::Device;
use clap::{ValueEnum, builder::FalseyValueParser};
use gpt4roi::{
    Gpt4Roi,
    adapter::Adapter,
    convert::{IfExists, Parts, Tower},
    divergence::Divergence,
    fingerprint::Fingerprint,
    model::ModelFiles,
    model_choice::ModelChoice,
    quantize::{Quantization, RoundingError},
    self_test::{QUESTION, self_test},
};
use serde::Serialize;

use crate::{
    failure::{Refusal, tell},
    options::check_adapter,
    side_file,
};

/// Make a model to use out of published files: merge, rename, quantise
///
/// Tensors pass through a piece at a time, so that any checkpoint needs less than two gigabytes of
/// memory. The output appears once it is complete. Torch pickles are read without executing anything.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    sources: Sources,

    /// The vision tower: a directory or a file with the names of Hugging Face's CLIP, OpenCLIP or OpenAI's CLIP
    #[arg(long, value_name = "DIR|FILE", env = "GPT4ROI_TOWER")]
    tower: Option<PathBuf>,

    /// An adapter of the model, whose changes are added to it for good: a directory with adapter_config.json
    #[arg(long, value_name = "DIR", env = "GPT4ROI_ADAPTER")]
    adapter: Option<PathBuf>,

    /// Where the model goes: a directory, which must not exist. Its name becomes the name of GGUF files
    #[arg(long, value_name = "DIR", env = "GPT4ROI_OUT")]
    out: PathBuf,

    /// Replace the model that lies there, if it is a model and nothing else
    #[arg(long, env = "GPT4ROI_FORCE", value_parser = FalseyValueParser::new())]
    force: bool,

    /// Write GGUF files instead of safetensors, with the language model in this precision
    #[arg(long, value_name = "KIND", env = "GPT4ROI_QUANTIZE")]
    quantize: Option<Kind>,

    /// Precision of vision tower, projector and region module in GGUF files: f16 or q8_0
    #[arg(long, value_name = "KIND", env = "GPT4ROI_MMPROJ", default_value = "f16")]
    mmproj: Kind,

    /// Write what the conversion came to as JSON: rounding errors by tensor, divergence, fingerprint, answer
    #[arg(long, value_name = "FILE", env = "GPT4ROI_REPORT")]
    report: Option<PathBuf>,

    /// Ask the converted model the fixed question: if it fits in memory, always, or never
    #[arg(long, value_name = "WHEN", env = "GPT4ROI_SELF_TEST", default_value = "auto")]
    self_test: When,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Sources {
    /// A model directory in the published layout
    #[arg(long, value_name = "DIR", env = "GPT4ROI_FROM", conflicts_with_all = ["base", "delta", "projector"])]
    from: Option<PathBuf>,

    /// The language model that a delta or a projector belongs to: LLaMA or Vicuna
    #[arg(long, value_name = "DIR", env = "GPT4ROI_BASE")]
    base: Option<PathBuf>,

    /// The published difference from LLaMA
    #[arg(long, value_name = "DIR", env = "GPT4ROI_DELTA", requires = "base", conflicts_with = "projector")]
    delta: Option<PathBuf>,

    /// LLaVA's projector, which with a base is where training starts
    #[arg(long, value_name = "FILE", env = "GPT4ROI_PROJECTOR", requires = "base")]
    projector: Option<PathBuf>,
}

/// In which precision numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Half precision
    F16,
    /// 8 bits
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits, and 6 where it matters most
    #[value(name = "q4_k")]
    Q4K,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

const EXAMPLES: &str = "\
Examples:
  The published 7B out of its two halves, in half precision:
    gpt4roi convert --base llama-7b --delta GPT4RoI-7B-delta --tower clip-vit-large-patch14 --out models/gpt4roi-7b

  Quantised to 4 bits: models/7b/7b-q4_k.gguf, which llama.cpp loads too, and models/7b/mmproj-7b.gguf:
    gpt4roi convert --from models/gpt4roi-7b --quantize q4_k --out models/7b

  What was trained beside a model, added to it for good:
    gpt4roi convert --from models/gpt4roi-7b --adapter adapters/mine --quantize q4_k --out models/mine

  Where training of the region module starts:
    gpt4roi convert --base vicuna-7b --projector LLaVA-7b-pretrain-projector-v0.bin --out models/start";

/// What `--report` writes.
#[derive(Debug, Serialize)]
struct Report {
    fingerprint: String,
    self_test: Option<SelfTest>,
    divergence: Option<Divergence>,
    rounding: Vec<RoundingError>,
}

#[derive(Debug, Serialize)]
struct SelfTest {
    question: &'static str,
    answer: String,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    if args.mmproj == Kind::Q4K {
        return Err(Refusal::usage("--mmproj: expected f16 or q8_0, got q4_k").into());
    }
    args.check_report()?;
    let if_exists = if args.force { IfExists::Replace } else { IfExists::Refuse };
    let parts = args.parts()?;
    let Some(kind) = args.quantize else {
        parts.write_directory(&args.out, if_exists).map_err(gpt4roi::Error::from)?;
        tell(&format!("wrote {}", args.out.display()));
        return args.finish(Vec::new(), None);
    };
    let rounding = parts.write_gguf(&args.out, if_exists, kind.quantization(), args.mmproj.quantization())?;
    tell(&format!("wrote {}", args.out.display()));
    for error in rounding.iter().filter(|error| error.relative_rms > 0.0).take(3) {
        tell(&format!("off by {:.2} %: {} ({})", 100.0 * error.relative_rms, error.name, error.kind));
    }
    let divergence = args.divergence()?;
    args.finish(rounding, divergence)
}

impl Args {
    /// Makes sure, before hours of work, that the report can be written. Its folder may be the model's, which is to
    /// come.
    fn check_report(&self) -> Result<(), Refusal> {
        let Sources { projector, .. } = &self.sources;
        let read = [("projector", projector), ("tower", &self.tower)];
        let read = read.into_iter().filter_map(|(role, file)| Some((role, file.as_deref()?)));
        let report = self.report.as_ref().filter(|report| report.parent() != Some(&*self.out));
        report.map_or(Ok(()), |file| side_file::check("--report", file, read))
    }

    /// Where every tensor comes from.
    fn parts(&self) -> anyhow::Result<Parts> {
        let Sources { from, base, delta, projector } = &self.sources;
        for (flag, directory) in [("--from", from), ("--base", base), ("--delta", delta)] {
            directory.as_ref().map_or(Ok(()), |directory| check_directory(flag, directory))?;
        }
        let parts = match (from, base, delta, projector) {
            (Some(directory), ..) => Parts::directory(directory),
            (_, Some(base), Some(delta), _) => Parts::merged(base, delta),
            (_, Some(base), _, Some(projector)) => Parts::starting_point(base, projector),
            _ => {
                return Err(Refusal::usage("--base alone is no model")
                    .hint("--delta or --projector goes with it; a whole model is named by --from")
                    .into());
            }
        };
        let parts = parts.map_err(gpt4roi::Error::from)?;
        let parts = match &self.tower {
            Some(tower) => parts.with_tower(Tower::open(tower).map_err(gpt4roi::Error::from)?),
            None => parts,
        };
        match &self.adapter {
            Some(adapter) => {
                check_adapter(adapter)?;
                Ok(parts.adapted(Adapter::open(adapter, &Device::Cpu)?)?)
            }
            None => Ok(parts),
        }
    }

    /// How far the quantised language model is from the source, where the source is a model of its own.
    fn divergence(&self) -> anyhow::Result<Option<Divergence>> {
        let Some(source) = &self.sources.from else {
            tell("the language model before and after is compared if it was merged first and is given by --from");
            return Ok(None);
        };
        let source = ModelChoice { model: Some(source.clone()), adapter: self.adapter.clone() };
        let source = source.files(|source| Ok::<_, gpt4roi::Error>(source.to_owned()))?;
        let divergence = Divergence::of(&source, &ModelFiles::at(&self.out)?)?;
        tell(&format!(
            "next-token distributions: KL divergence {:.4} nats on average, {:.4} at most; same top token at {:.1} % of {}",
            divergence.mean_kl,
            divergence.largest_kl,
            100.0 * divergence.same_top_token,
            divergence.positions
        ));
        Ok(Some(divergence))
    }

    /// The fingerprint on standard output, and the rest where it is wanted.
    fn finish(&self, rounding: Vec<RoundingError>, divergence: Option<Divergence>) -> anyhow::Result<()> {
        let files = ModelFiles::at(&self.out)?;
        if self.sources.projector.is_some() || files.config().is_err() {
            tell("this is no whole model yet: it lacks a region module or a vision tower (--tower)");
            return Ok(());
        }
        let fingerprint = Fingerprint::of(&files)?.to_string();
        writeln!(io::stdout().lock(), "fingerprint {fingerprint}")?;
        let self_test = self.self_test(&files)?;
        if let Some(path) = &self.report {
            let report = Report { fingerprint, self_test, divergence, rounding };
            let json = serde_json::to_string_pretty(&report)?;
            fs::write(path, format!("{json}\n")).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn self_test(&self, files: &ModelFiles) -> anyhow::Result<Option<SelfTest>> {
        match (self.self_test, memory_needed(files)?, memory_available()) {
            (When::Never, ..) => return Ok(None),
            (When::Auto, needed, Some(available)) if needed > available => {
                let (needed, available) = (needed >> 20, available >> 20);
                tell(&format!(
                    "no self-test: it takes about {needed} MiB, and {available} are free (--self-test always tries)"
                ));
                return Ok(None);
            }
            _ => {}
        }
        let answer = self_test(&Gpt4Roi::from_files(files, &Device::Cpu)?)?;
        writeln!(io::stdout().lock(), "self-test   {QUESTION} {answer}")?;
        Ok(Some(SelfTest { question: QUESTION, answer }))
    }
}

fn check_directory(flag: &str, directory: &Path) -> Result<(), Refusal> {
    let place = directory.display();
    match (directory.is_dir(), directory.exists()) {
        (true, _) => Ok(()),
        (false, true) => Err(Refusal::failure(format!("{flag} {place}: expected a directory, got a file"))),
        (false, false) => Err(Refusal::failure(format!("{flag} {place}: there is no such directory"))
            .hint("`gpt4roi pull ORG/NAME` brings a model from a hub, and prints its directory")),
    }
}

impl Kind {
    fn quantization(self) -> Quantization {
        match self {
            Self::F16 => Quantization::F16,
            Self::Q8_0 => Quantization::Q8_0,
            Self::Q4K => Quantization::Q4K,
        }
    }
}

/// Bytes of all weights once they are loaded.
fn memory_needed(files: &ModelFiles) -> anyhow::Result<u64> {
    let (model, tower) = files.stores(&Device::Cpu)?;
    let numbers = model.stored().into_iter().chain(tower.stored());
    Ok(numbers.map(|tensor| tensor.loaded_bytes()).sum())
}

/// Bytes that can be allocated without swapping, where the system says so.
fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}
