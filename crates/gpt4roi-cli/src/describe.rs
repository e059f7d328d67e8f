//! `gpt4roi describe`: a picture, or each of its regions, in words.

use clap::ValueEnum;
use gpt4roi::chat::{Answer, Origin, ResolvedRegion};
use serde::Serialize;

use crate::{
    ask::{ImageReport, Tokens, note_if_cut_off},
    options::{GenerationOptions, ModelOptions, OutputOptions, PictureOptions, RegionOptions},
    session::{Session, Timings, print, print_json, write_annotated},
};

/// Describe a picture, or each of its regions
///
/// Without --region the whole picture is described. With several, each is described on its own, and
/// each gets a line of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    picture: PictureOptions,
    #[command(flatten)]
    regions: RegionOptions,

    /// How much to say
    #[arg(long, value_name = "DETAIL", env = "GPT4ROI_DETAIL", default_value = "short")]
    detail: Detail,

    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    generation: GenerationOptions,
    #[command(flatten)]
    output: OutputOptions,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi describe scene.png
  gpt4roi describe scene.png --region 62,41,240,180 --region 300,50,420,200 --detail full
  gpt4roi describe scene.png --region 62,41,240,180 --annotate marked.png --json";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Detail {
    /// A name or a sentence
    Short,
    /// Everything there is to say
    Full,
}

impl Detail {
    fn about_region(self) -> &'static str {
        match self {
            Self::Short => "What is <region1>?",
            Self::Full => "Describe <region1> in detail.",
        }
    }

    fn about_picture(self) -> &'static str {
        match self {
            Self::Short => "What is in the picture?",
            Self::Full => "Describe the picture.",
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    descriptions: Vec<Description>,
    timings: Timings,
    image: ImageReport,
    model: String,
}

/// One region's description, or the picture's.
#[derive(Serialize)]
struct Description {
    /// None for the whole picture.
    region: Option<ResolvedRegion>,
    text: String,
    tokens: Tokens,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let options = args.generation.resolve()?;
    let session = Session::open(&args.model, &args.picture, &args.output)?;
    let size = session.image.size();
    let boxes = args.regions.boxes(size)?;
    let mut timings = session.timings();
    let mut chat = session.encode(&mut timings)?;

    let mut descriptions = Vec::new();
    session.time(&mut timings, || {
        let mut describe = |region: Option<ResolvedRegion>, answer: Answer| {
            if !args.output.json && !args.output.quiet {
                note_if_cut_off(&answer);
            }
            let description = Description { region, tokens: Tokens::from(&answer), text: answer.text };
            if !args.output.json {
                print(&description.line())?;
            }
            descriptions.push(description);
            anyhow::Ok(())
        };
        if boxes.is_empty() {
            return describe(None, chat.ask_with(args.detail.about_picture(), &options)?);
        }
        for (bbox, id) in boxes.iter().zip(1..) {
            let region = ResolvedRegion { id, pixels: bbox.pixels(size), origin: Origin::Given };
            for answer in chat.describe_regions(&[*bbox], args.detail.about_region(), &options)? {
                describe(Some(region), answer)?;
            }
        }
        Ok(())
    })?;

    if let Some(path) = &args.output.annotate {
        let regions: Vec<_> = descriptions.iter().filter_map(|description| description.region).collect();
        write_annotated(&session.image, &regions, path)?;
    }
    if args.output.json {
        let (image, model) = (ImageReport::new(&args.picture, size), args.model.name());
        print_json(&Report { descriptions, timings, image, model })?;
    }
    Ok(())
}

impl Description {
    fn line(&self) -> String {
        match &self.region {
            None => format!("{}\n", self.text),
            Some(region) => format!("region{}: {}\n", region.id, self.text),
        }
    }
}
