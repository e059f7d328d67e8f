//! Flags that several subcommands share.

use std::{
    borrow::Cow,
    env,
    path::{Path, PathBuf},
    str::FromStr,
};

use candle_core::Device;
use clap::{Args, builder::FalseyValueParser};
use gpt4roi::{
    DeviceChoice, Gpt4Roi, Image, Precision, adapter,
    chat::AskOptions,
    device,
    model::ModelFiles,
    model_choice::ModelChoice,
    sampling::{Sampler, Sampling},
    zoom::Zoom,
};
use gpt4roi_hub::{Cache, ModelRef};

use crate::{
    annotate,
    drafts::DraftOptions,
    failure::{Refusal, tell, warn},
    regions::RegionOptions,
    side_file,
};

/// Which model, and where it computes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelOptions {
    /// Model directory in the published layout or with a pair of GGUF files, the language model's file of such a
    /// pair, or a model ORG/NAME[@REV] that `gpt4roi pull` has brought; without it, the small model inside this
    /// program answers
    #[arg(long, value_name = "MODEL", env = "GPT4ROI_MODEL")]
    pub(crate) model: Option<PathBuf>,

    /// An adapter of this model, as `gpt4roi export` writes it after training beside a model, or PEFT (LoRA): a
    /// directory with adapter_config.json
    #[arg(long, value_name = "DIR", env = "GPT4ROI_ADAPTER")]
    pub(crate) adapter: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) compute: ComputeOptions,
}

/// Where to compute, and in how many bits.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ComputeOptions {
    /// Where to compute: auto, cpu, cuda, cuda:N or metal. A GPU needs a program that was built for it; auto takes the
    /// first one that works, else the CPU
    #[arg(long, value_name = "DEVICE", env = "GPT4ROI_DEVICE", default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,

    /// In how many bits weights are kept: f32, f16 or bf16. 16 bits halve the memory of a model that is not quantised
    #[arg(long, value_name = "TYPE", env = "GPT4ROI_DTYPE", default_value_t = Precision::F32)]
    pub(crate) dtype: Precision,
}

impl ComputeOptions {
    /// Opens the device. Which one it is gets told where there was a choice.
    pub(crate) fn open(self) -> anyhow::Result<Device> {
        let mut is_news = false;
        let device = self.device.open(|error| {
            is_news = true;
            tell(&format!("note: {error}"));
        });
        let device =
            device.map_err(|error| Refusal::failure(format!("--device {error}")).hint("--device cpu always works"))?;
        if self.device == DeviceChoice::Auto && (is_news || !device.is_cpu()) {
            tell(&format!("note: computing on {}", device::name(&device)));
        }
        Ok(device)
    }
}

impl ModelOptions {
    /// Whether the small model inside the program is meant.
    pub(crate) fn is_embedded(&self) -> bool {
        self.model.is_none()
    }

    /// How the model is called in reports.
    pub(crate) fn name(&self) -> String {
        self.choice().to_string()
    }

    /// Loads the model. Whoever put an adapter beside another model than its own gets to know it.
    pub(crate) fn open(&self) -> anyhow::Result<Gpt4Roi> {
        let files = self.files()?;
        if let Some(mismatch) = files.mismatch()? {
            warn(&mismatch.to_string());
        }
        Ok(Gpt4Roi::load(&files, &self.compute.open()?, self.compute.dtype)?)
    }

    /// The model's files, unread.
    pub(crate) fn files(&self) -> anyhow::Result<ModelFiles> {
        let choice = self.choice();
        choice.adapter.as_deref().map_or(Ok(()), check_adapter)?;
        choice.files(place_of)
    }

    fn choice(&self) -> ModelChoice {
        ModelChoice { model: self.model.clone(), adapter: self.adapter.clone() }
    }
}

/// What stands for a model.
const PLACES: &str = "--model takes the directory that holds config.json, the weights and tokenizer.model, or \
    NAME-q4_k.gguf";

/// What to do where somebody names the embedded model.
pub(crate) const EMBEDDED: &str = "the embedded model answers where --model is left away";

/// Whether this is what people call the embedded model.
pub(crate) fn is_embedded(name: &str) -> bool {
    ["nano", "embedded"].contains(&name)
}

/// A directory or GGUF file as it is; any other ORG/NAME is looked for in the cache. Nothing is downloaded unasked.
fn place_of(model: &Path) -> anyhow::Result<PathBuf> {
    if model.is_dir() {
        check_directory(model)?;
        return Ok(model.to_owned());
    }
    if is_gguf(model) {
        check_pair(model)?;
        return Ok(model.to_owned());
    }
    if model.to_str().is_some_and(is_embedded) {
        return Err(Refusal::failure(format!("{} is neither a directory nor a GGUF file", model.display()))
            .hint(EMBEDDED)
            .into());
    }
    find_in_cache(model, PLACES)
}

/// Where `gpt4roi pull` has put ORG/NAME[@REV]; `places` says what could have been meant instead.
pub(crate) fn find_in_cache(name: &Path, places: &str) -> anyhow::Result<PathBuf> {
    let parsed = name.to_str().filter(|name| name.contains('/')).and_then(|name| name.parse::<ModelRef>().ok());
    let Some(name) = parsed else {
        return Err(Refusal::failure(format!("{} is neither a directory nor a GGUF file", name.display()))
            .hint(places)
            .into());
    };
    let cache = Cache::from_env(|name| env::var(name).ok())?;
    cache.find(&name).map_err(|_| {
        let cache = cache.root().display();
        Refusal::failure(format!("{name} is neither a directory nor a model in the cache {cache}"))
            .hint(format!("`gpt4roi pull {name}` downloads it; or {places}"))
            .into()
    })
}

/// Tells the directory of an adapter from that of a run, which may hold one.
pub(crate) fn check_adapter(directory: &Path) -> Result<(), Refusal> {
    if directory.join(adapter::CONFIG).is_file() {
        return Ok(());
    }
    let place = directory.display();
    let hint = match directory.join("checkpoints").is_dir() {
        true => format!("it is a training run; `gpt4roi export {place} --out ADAPTER` makes an adapter of it"),
        false => format!("--adapter takes the directory that holds {} and {}", adapter::CONFIG, adapter::WEIGHTS),
    };
    Err(Refusal::failure(format!("{place} holds no adapter: there is no {} in it", adapter::CONFIG)).hint(hint))
}

pub(crate) fn is_gguf(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "gguf")
}

/// Tells a directory that holds a model from one that does not. What the model's files hold shows when they are read.
fn check_directory(directory: &Path) -> Result<(), Refusal> {
    if directory.join("config.json").exists() || !gguf_files(directory).is_empty() {
        return Ok(());
    }
    let place = directory.display();
    let hint = match directory.join("checkpoints").is_dir() {
        true => format!("it is a training run; `gpt4roi export {place} --out MODEL` makes a model of it"),
        false if directory.join(adapter::CONFIG).is_file() => {
            "it is an adapter: --adapter takes it, and --model the model that it was trained beside".into()
        }
        false => PLACES.into(),
    };
    Err(Refusal::failure(format!("{place} holds no model: neither config.json nor a GGUF file")).hint(hint))
}

/// Tells the language model of a pair of GGUF files, which stands for both, from its projector, and from a language
/// model without one.
fn check_pair(file: &Path) -> Result<(), Refusal> {
    if !file.is_file() {
        return Err(Refusal::failure(format!("there is no file {}", file.display())).hint(PLACES));
    }
    let beside = gguf_files(file.parent().unwrap_or(Path::new("")));
    let name = name_of(file);
    let Some(model) = name.strip_prefix("mmproj-").and_then(|name| name.strip_suffix(".gguf")) else {
        return match beside.iter().any(|other| name_of(other).starts_with("mmproj-")) {
            true => Ok(()),
            false => Err(Refusal::failure(format!(
                "{}: expected a projector mmproj-NAME.gguf beside it, got none",
                file.display()
            ))
            .hint(
                "a language model alone sees nothing; `gpt4roi convert --quantize q4_k` writes both files of a pair",
            )),
        };
    };
    let is_own = |other: &&PathBuf| name_of(other).strip_prefix(model).is_some_and(|rest| rest.starts_with('-'));
    let own = beside.iter().find(is_own);
    let other = own.map_or(format!("{model}-q4_k.gguf or the like"), |own| own.display().to_string());
    Err(Refusal::failure(format!("{} is only the half of a model that sees", file.display()))
        .hint(format!("--model takes the file of its language model, {other}; the two belong into one directory")))
}

fn name_of(file: &Path) -> Cow<'_, str> {
    file.file_name().unwrap_or_default().to_string_lossy()
}

/// The GGUF files in a directory, by name; none if it can't be read.
fn gguf_files(directory: &Path) -> Vec<PathBuf> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).filter(|file| is_gguf(file)).collect();
    files.sort();
    files
}

/// Reading the picture.
#[derive(Debug, Clone, Args)]
pub(crate) struct PictureOptions {
    /// The picture: PNG, JPEG or WebP; its EXIF orientation is applied, and boxes refer to the upright picture
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,

    /// Refuse pictures with more pixels than this
    #[arg(long, value_name = "N", env = "GPT4ROI_MAX_PIXELS", default_value_t = gpt4roi::image::DEFAULT_MAX_PIXELS)]
    pub(crate) max_pixels: u64,
}

impl PictureOptions {
    /// Opens the picture.
    pub(crate) fn open(&self) -> anyhow::Result<Image> {
        Image::open(&self.image, self.max_pixels).map_err(|error| gpt4roi::Error::from(error).into())
    }
}

/// Reads how many there should be of something that makes no sense without any.
pub(crate) fn at_least_one<N: FromStr + From<u8> + PartialOrd>(text: &str) -> Result<N, &'static str> {
    text.parse().ok().filter(|number| *number >= N::from(1)).ok_or("expected a whole number, 1 or more")
}

/// How the next token is chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct GenerationOptions {
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", env = "GPT4ROI_MAX_NEW_TOKENS", default_value_t = 512, value_parser = at_least_one::<usize>)]
    pub(crate) max_new_tokens: usize,

    /// 0 always takes the most likely token; larger values draw more freely (the original demo uses 0.2)
    #[arg(long, value_name = "T", env = "GPT4ROI_TEMPERATURE", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f64,

    /// Draw from the K most likely tokens only; 0 means all. Needs a temperature [default: 50]
    #[arg(long, value_name = "K", env = "GPT4ROI_TOP_K")]
    pub(crate) top_k: Option<usize>,

    /// Draw from the most likely tokens that together reach this probability only. Needs a temperature [default: 1]
    #[arg(long, value_name = "P", env = "GPT4ROI_TOP_P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,

    /// Where the draws begin: the same seed gives the same answer. Needs a temperature [default: 0]
    #[arg(long, value_name = "N", env = "GPT4ROI_SEED")]
    pub(crate) seed: Option<u64>,

    /// Say that it is not known where the model is less sure of its answer than this: the geometric mean of its
    /// tokens' probabilities, 0 to 1; of choices, the share of the most probable one. `gpt4roi eval scenes --json`
    /// shows what a threshold comes to
    #[arg(long, value_name = "P", env = "GPT4ROI_ABSTAIN", value_parser = parse_probability)]
    pub(crate) abstain: Option<f64>,

    #[command(flatten)]
    pub(crate) draft: DraftOptions,

    #[command(flatten)]
    pub(crate) zoom: ZoomOptions,
}

/// Whether small regions are looked at more closely.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Regions")]
pub(crate) struct ZoomOptions {
    /// Look at small regions in a crop of their own: auto, where a region is small on the vision tower's grid, or off.
    /// Each costs as much as another picture
    #[arg(long, value_name = "WHEN", env = "GPT4ROI_ZOOM", default_value_t = Zoom::Off)]
    zoom: Zoom,
}

impl ZoomOptions {
    /// As the library takes it.
    pub(crate) fn resolve(self) -> Zoom {
        self.zoom
    }
}

fn parse_probability(text: &str) -> Result<f64, String> {
    let probability = text.parse().ok().filter(|probability| (0.0..=1.0).contains(probability));
    probability.ok_or_else(|| "expected a probability, 0 to 1".into())
}

impl GenerationOptions {
    /// As the library takes them.
    pub(crate) fn resolve(&self) -> anyhow::Result<AskOptions> {
        let &Self { temperature, top_k, top_p, seed, .. } = self;
        let sampling = if temperature == 0.0 {
            // A warning and no error, since they may stand in the environment for other commands.
            let given = [("--top-k", top_k.is_some()), ("--top-p", top_p.is_some()), ("--seed", seed.is_some())];
            for (flag, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
                warn(&format!("{flag} plays no part without --temperature: the most likely token is always taken"));
            }
            Sampling::Greedy
        } else {
            let (top_k, top_p, seed) = (top_k.unwrap_or(50), top_p.unwrap_or(1.0), seed.unwrap_or(0));
            Sampling::Random { temperature, top_k, top_p, seed }
        };
        // Refused here, before a model is loaded for nothing.
        Sampler::new(&sampling).map_err(|error| Refusal::usage(error.to_string()))?;
        let (max_new_tokens, zoom, draft) = (self.max_new_tokens, self.zoom.resolve(), self.draft.resolve());
        Ok(AskOptions { max_new_tokens, sampling, zoom, draft, ..AskOptions::default() })
    }
}

/// What is said, and in which form.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputOptions {
    /// Print one JSON object: answer, the mean probability of its tokens (`probability`, geometric) and its logarithm
    /// (`mean_log_probability`), resolved regions in pixels, token counts, timings. Of choices, each with its share
    /// among them (`probability`) and the logarithm of its probability among all texts (`log_probability`)
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,

    /// Print no notes; warnings are printed in any case
    #[arg(long, short, env = "GPT4ROI_QUIET", value_parser = FalseyValueParser::new())]
    pub(crate) quiet: bool,

    /// Write a copy of the picture with numbered boxes drawn in (.png, .jpg or .webp)
    #[arg(long, value_name = "FILE", env = "GPT4ROI_ANNOTATE", value_parser = side_file::named(annotate::check_path))]
    pub(crate) annotate: Option<PathBuf>,
}

impl OutputOptions {
    /// Makes sure, before a model is loaded, that the marked picture can be written and takes the place of nothing
    /// that is read.
    ///
    /// # Errors
    /// If it is the picture, a mask or the file of choices, or can't be written.
    pub(crate) fn check(
        &self,
        picture: &PictureOptions,
        regions: &RegionOptions,
        choices: Option<&Path>,
    ) -> Result<(), Refusal> {
        let masks = regions.masks().map(|mask| ("mask", mask));
        let choices = choices.map(|choices| ("file of choices", choices));
        let read = [("picture", &*picture.image)].into_iter().chain(masks).chain(choices);
        self.annotate.as_ref().map_or(Ok(()), |file| side_file::check("--annotate", file, read))
    }
}
