//! Flags that several subcommands share.

use std::{
    env,
    path::{Path, PathBuf},
};

use candle_core::Device;
use clap::{Args, ValueEnum, builder::FalseyValueParser};
use gpt4roi::{
    BBox, Gpt4Roi, Image,
    bbox::ImageSize,
    chat::AskOptions,
    model::ModelFiles,
    nano::NANO,
    sampling::{Sampler, Sampling},
    zoom::{Glass, Zoom},
};
use gpt4roi_hub::{Cache, ModelRef};

use crate::failure::Refusal;

/// Which model, and where it computes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelOptions {
    /// Model directory in the published layout or with a pair of GGUF files, the language model's file of such a
    /// pair, or a model ORG/NAME[@REV] that `gpt4roi pull` has brought; without it, the small model inside this
    /// program answers
    #[arg(long, value_name = "MODEL", env = "GPT4ROI_MODEL")]
    pub(crate) model: Option<PathBuf>,

    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", env = "GPT4ROI_DEVICE", default_value = "cpu")]
    pub(crate) device: String,
}

impl ModelOptions {
    /// Whether the small model inside the program is meant.
    pub(crate) fn is_embedded(&self) -> bool {
        self.model.is_none()
    }

    /// How the model is called in reports.
    pub(crate) fn name(&self) -> String {
        self.model.as_ref().map_or_else(|| "embedded".into(), |directory| directory.display().to_string())
    }

    /// Loads the model.
    pub(crate) fn open(&self) -> anyhow::Result<Gpt4Roi> {
        Ok(Gpt4Roi::from_files(&self.files()?, &self.device()?)?)
    }

    /// The model's files, unread.
    pub(crate) fn files(&self) -> anyhow::Result<ModelFiles> {
        match &self.model {
            Some(model) => Ok(ModelFiles::at(&place_of(model)?)?),
            None => Ok(ModelFiles::Embedded(NANO)),
        }
    }

    fn device(&self) -> anyhow::Result<Device> {
        let (kind, index) = self.device.split_once(':').unwrap_or((&self.device, "0"));
        let unknown = || Refusal::usage(format!("--device: expected cpu, cuda, cuda:N or metal, got {}", self.device));
        let index: usize = index.parse().map_err(|_| unknown())?;
        let device = match kind {
            "cpu" => return Ok(Device::Cpu),
            "cuda" => Device::new_cuda(index),
            "metal" => Device::new_metal(index),
            _ => return Err(unknown().into()),
        };
        device.map_err(|_| {
            Refusal::failure(format!("--device {}: no such device, or this program was built without it", self.device))
                .hint("--device cpu always works")
                .into()
        })
    }
}

/// A directory or GGUF file as it is; any other ORG/NAME is looked for in the cache. Nothing is downloaded unasked.
fn place_of(model: &Path) -> anyhow::Result<PathBuf> {
    const PLACES: &str = "--model takes the directory that holds config.json, the weights and tokenizer.model, or \
        NAME-q4_k.gguf";
    if model.is_dir() || model.extension().is_some_and(|extension| extension == "gguf") {
        return Ok(model.to_owned());
    }
    let name = model.to_str().filter(|name| name.contains('/')).and_then(|name| name.parse::<ModelRef>().ok());
    let Some(name) = name else {
        return Err(Refusal::failure(format!("{} is neither a directory nor a GGUF file", model.display()))
            .hint(PLACES)
            .into());
    };
    let cache = Cache::from_env(|name| env::var(name).ok())?;
    cache.find(&name).map_err(|_| {
        let cache = cache.root().display();
        Refusal::failure(format!("{name} is neither a directory nor a model in the cache {cache}"))
            .hint(format!("`gpt4roi pull {name}` downloads it; or {PLACES}"))
            .into()
    })
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

/// Regions given as boxes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Regions")]
pub(crate) struct RegionOptions {
    /// A box x1,y1,x2,y2 (left, top, right, bottom); the first is <region1>, and so on.
    /// In the environment several boxes are separated by semicolons
    #[arg(
        long = "region",
        value_name = "BOX",
        env = "GPT4ROI_REGION",
        value_delimiter = ';',
        allow_hyphen_values = true
    )]
    pub(crate) regions: Vec<String>,

    #[command(flatten)]
    pub(crate) coordinates: CoordinateOptions,
}

/// What the numbers of a box count.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Regions")]
pub(crate) struct CoordinateOptions {
    /// What the numbers of --region count
    #[arg(long, value_name = "UNIT", env = "GPT4ROI_COORDS", default_value = "pixel")]
    pub(crate) coords: Coords,
}

/// Conventions for the numbers of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Coords {
    /// Pixels of the picture
    Pixel,
    /// Fractions of width and height, 0 to 1
    Norm,
    /// Thousandths of width and height, 0 to 1000
    Norm1000,
}

impl RegionOptions {
    /// The boxes, in the order given.
    pub(crate) fn boxes(&self, size: ImageSize) -> anyhow::Result<Vec<BBox>> {
        self.regions.iter().map(|text| self.coordinates.parse(text, size)).collect()
    }
}

impl CoordinateOptions {
    /// Reads `x1,y1,x2,y2`.
    pub(crate) fn parse(self, text: &str, size: ImageSize) -> anyhow::Result<BBox> {
        let numbers: Result<Vec<f64>, _> = text.split(',').map(|number| number.trim().parse()).collect();
        let xyxy: [f64; 4] = numbers.ok().and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
            Refusal::usage(format!("region `{text}`: expected four numbers x1,y1,x2,y2"))
                .hint("for example 62,41,240,180: left, top, right and bottom edge")
        })?;
        // One word of advice is worth more than an answer about the upper left pixel.
        if self.coords == Coords::Pixel && xyxy.iter().all(|number| (0.0..=1.0).contains(number)) {
            return Err(Refusal::usage(format!("region `{text}`: in pixels, this box lies within a single one"))
                .hint("--coords norm reads the numbers as fractions of width and height")
                .into());
        }
        let bbox = match self.coords {
            Coords::Pixel => BBox::from_pixels(xyxy, size),
            Coords::Norm => BBox::from_normalized(xyxy),
            Coords::Norm1000 => BBox::from_norm1000(xyxy),
        };
        let ImageSize { width, height } = size;
        bbox.map_err(|error| {
            Refusal::usage(format!("region `{text}`: {error}"))
                .hint(format!("the picture is {width}×{height} pixels; --coords says what the numbers count"))
                .into()
        })
    }
}

/// How the next token is chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct GenerationOptions {
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", env = "GPT4ROI_MAX_NEW_TOKENS", default_value_t = 512)]
    pub(crate) max_new_tokens: usize,

    /// 0 always takes the most likely token; larger values draw more freely (the original demo uses 0.2)
    #[arg(long, value_name = "T", env = "GPT4ROI_TEMPERATURE", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f64,

    /// Draw from the K most likely tokens only; 0 means all. Needs a temperature
    #[arg(long, value_name = "K", env = "GPT4ROI_TOP_K", default_value_t = 50)]
    pub(crate) top_k: usize,

    /// Draw from the most likely tokens that together reach this probability only. Needs a temperature
    #[arg(long, value_name = "P", env = "GPT4ROI_TOP_P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) top_p: f64,

    /// Where the draws begin: the same seed gives the same answer
    #[arg(long, value_name = "N", env = "GPT4ROI_SEED", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Say that it is not known where the model is less sure of its answer than this: the geometric mean of its
    /// tokens' probabilities, 0 to 1. `gpt4roi eval scenes --json` shows what a threshold comes to
    #[arg(long, value_name = "P", env = "GPT4ROI_ABSTAIN", value_parser = parse_probability)]
    pub(crate) abstain: Option<f64>,

    #[command(flatten)]
    pub(crate) zoom: ZoomOptions,
}

/// Whether small regions are looked at more closely.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Regions")]
pub(crate) struct ZoomOptions {
    /// Look at small regions in a crop of their own
    #[arg(long, value_name = "WHEN", env = "GPT4ROI_ZOOM", default_value = "off")]
    zoom: When,
}

/// When to zoom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    /// Where a region is small on the vision tower's grid; each costs as much as another picture
    Auto,
    /// Never
    Off,
}

impl ZoomOptions {
    /// As the library takes it.
    pub(crate) fn resolve(self) -> Zoom {
        match self.zoom {
            When::Auto => Zoom::Auto(Glass::STANDARD),
            When::Off => Zoom::Off,
        }
    }
}

fn parse_probability(text: &str) -> Result<f64, String> {
    let probability = text.parse().ok().filter(|probability| (0.0..=1.0).contains(probability));
    probability.ok_or_else(|| "expected a probability, 0 to 1".into())
}

impl GenerationOptions {
    /// As the library takes them.
    pub(crate) fn resolve(&self) -> anyhow::Result<AskOptions> {
        let sampling = if self.temperature == 0.0 {
            Sampling::Greedy
        } else {
            let &Self { temperature, top_k, top_p, seed, .. } = self;
            Sampling::Random { temperature, top_k, top_p, seed }
        };
        // Refused here, before a model is loaded for nothing.
        Sampler::new(&sampling).map_err(|error| Refusal::usage(error.to_string()))?;
        let (max_new_tokens, zoom) = (self.max_new_tokens, self.zoom.resolve());
        Ok(AskOptions { max_new_tokens, sampling, zoom, ..AskOptions::default() })
    }
}

/// What is said, and in which form.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputOptions {
    /// Print one JSON object: answer, the mean probability of its tokens (`probability`, geometric) and its logarithm
    /// (`mean_log_probability`), resolved regions in pixels, token counts, timings
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,

    /// Print no notes
    #[arg(long, short, env = "GPT4ROI_QUIET", value_parser = FalseyValueParser::new())]
    pub(crate) quiet: bool,

    /// Write a copy of the picture with numbered boxes drawn in (.png, .jpg or .webp)
    #[arg(long, value_name = "FILE", env = "GPT4ROI_ANNOTATE", value_parser = crate::annotate::parse_path)]
    pub(crate) annotate: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ImageSize = ImageSize { width: 200, height: 100 };

    fn parse(coords: Coords, text: &str) -> Result<[f64; 4], String> {
        let bbox = CoordinateOptions { coords }.parse(text, SIZE);
        bbox.map(|bbox| bbox.normalized()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_unit_names_the_same_box() {
        let expected = Ok([0.25, 0.5, 0.75, 1.0]);
        assert_eq!(parse(Coords::Pixel, "50,50,150,100"), expected);
        assert_eq!(parse(Coords::Pixel, " 50, 50.0 , 150 ,1e2 "), expected);
        assert_eq!(parse(Coords::Norm, "0.25,0.5,0.75,1"), expected);
        assert_eq!(parse(Coords::Norm1000, "250,500,750,1000"), expected);
    }

    #[test]
    fn boxes_that_can_not_be_are_refused_in_words() {
        for (coords, text, message) in [
            (Coords::Pixel, "1,2,3", "expected four numbers"),
            (Coords::Pixel, "1,2,3,4,5", "expected four numbers"),
            (Coords::Pixel, "a,2,3,4", "expected four numbers"),
            (Coords::Pixel, "", "expected four numbers"),
            (Coords::Pixel, "10,10,201,50", "x2: expected 0 to 200"),
            (Coords::Pixel, "90,10,40,50", "expected x1 < x2, got 90 and 40"),
            (Coords::Pixel, "nan,10,40,50", "finite"),
            (Coords::Pixel, "0.1,0.2,0.4,0.5", "within a single one"),
            (Coords::Norm, "10,10,40,50", "x1: expected 0 to 1"),
        ] {
            let error = parse(coords, text).unwrap_err();
            assert!(error.starts_with("region `") && error.contains(message), "{text}: {error}");
        }
    }
}
