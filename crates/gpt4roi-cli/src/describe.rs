//! `gpt4roi describe`: a picture, or each of its regions, in words.

use std::{collections::BTreeMap, ops::ControlFlow};

use clap::ValueEnum;
use gpt4roi::{
    Chat, Choices, ImageSize, RegionId,
    chat::{Answer, AskOptions, ResolvedRegion},
    choices::Chosen,
    generate::FinishReason,
    mention::{self, Part},
    shape::Shape,
};
use serde::Serialize;

use crate::{
    ask::{Certainty, Confidence, ImageReport, Tokens, note_box, told, warn_if_cut_off},
    choices::{self, ChoiceOptions, ChoiceReport},
    failure::Refusal,
    options::{GenerationOptions, ModelOptions, OutputOptions, PictureOptions},
    regions::RegionOptions,
    session::{OpenedPicture, Timings, print, print_json, write_annotated},
};

/// Describe a picture, or each of its regions
///
/// Without a region the whole picture is described. With several, each is described on its own, and
/// each gets a line of its own, in the order given. However many there are, they are answered together,
/// which costs far less than asking about each. With --question, that is asked about each instead. With --choices, each
/// region gets the most probable of the given answers, and its share among them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    picture: PictureOptions,

    /// How much to say
    #[arg(long, value_name = "DETAIL", env = "GPT4ROI_DETAIL", default_value = "short")]
    detail: Detail,

    /// What is asked about each region; in it <region1> is that region, whichever it is
    #[arg(long, value_name = "TEXT", env = "GPT4ROI_QUESTION", conflicts_with = "detail")]
    question: Option<String>,

    #[command(flatten)]
    regions: RegionOptions,
    #[command(flatten)]
    choices: ChoiceOptions,
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
  gpt4roi describe scene.png --region 62,41,240,180 --region 300,50,420,200 --question 'What colour is <region1>?'
  gpt4roi describe scene.png --region 62,41,240,180 --annotate marked.png --json
  gpt4roi describe scene.png --region 62,41,240,180 --region 300,50,420,200 --choices labels.txt
  gpt4roi describe scene.png --point 150,110 --mask cat.png --polygon 62,41,240,60,150,180";

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
    #[serde(flatten)]
    certainty: Certainty,
    /// Why it ended: `length` if it was cut off. None for a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    finish: Option<FinishReason>,
    tokens: Tokens,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let mut options = args.generation.resolve()?;
    let choices = args.choices.resolve(&mut options)?;
    args.output.check(&args.picture, &args.regions, args.choices.path())?;
    let picture = OpenedPicture::open(&args.picture)?;
    let size = picture.size();
    let shapes = args.regions.shapes(size)?;
    let question = args.question(&shapes, size)?;
    let session = picture.with_model(&args.model, &args.output)?;
    let mut timings = session.timings();
    let mut chat = session.encode(&args.generation.draft, &mut timings)?;

    let mut descriptions = Vec::new();
    session.time(&mut timings, || {
        let abstain = args.generation.abstain;
        let mut tell = |description: Description| {
            if !args.output.json {
                if !args.output.quiet {
                    description.region.iter().for_each(note_box);
                }
                print(&description.line())?;
                description.warn_if_cut_off();
            }
            descriptions.push(description);
            anyhow::Ok(())
        };
        let about_picture = args.detail.about_picture();
        match (&choices, shapes.is_empty()) {
            (None, true) => tell(Description::of_answer(None, &chat.ask_with(about_picture, &options)?, abstain)),
            (Some(choices), true) => {
                let chosen = chat.choose(about_picture, choices, &options)?;
                choices::warn_if_unlike_answers("the description", &chosen);
                tell(Description::of_chosen(None, &chosen, abstain))
            }
            (None, false) => in_order(&mut chat, &shapes, question, &options, |index, answer| {
                tell(Description::of_answer(numbered(index, &answer.regions), &answer, abstain))
            }),
            (Some(choices), false) => choose(&mut chat, &shapes, question, choices, &options, |index, chosen| {
                choices::warn_if_unlike_answers(&format!("region{}", index + 1), &chosen);
                tell(Description::of_chosen(numbered(index, &chosen.regions), &chosen, abstain))
            }),
        }
    })?;

    let regions: Vec<_> = descriptions.iter().filter_map(|description| description.region).collect();
    if args.output.json {
        let (image, model) = (ImageReport::new(&args.picture, size), args.model.name());
        print_json(&Report { descriptions, timings, image, model })?;
    }
    // The descriptions are told by now, whatever becomes of the picture.
    args.output.annotate.as_ref().map_or(Ok(()), |file| write_annotated(&session.image, &regions, file))
}

impl Args {
    /// What is asked about each region.
    ///
    /// # Errors
    /// If the question does not ask about the region, or if there is none to ask about.
    fn question(&self, shapes: &[Shape], size: ImageSize) -> anyhow::Result<&str> {
        let Some(question) = &self.question else { return Ok(self.detail.about_region()) };
        if shapes.is_empty() {
            return Err(Refusal::usage("--question is asked about regions, and none is given")
                .hint("--region names one; `gpt4roi ask` asks about the picture")
                .into());
        }
        let parts = mention::parse(question, &[THIS], size).map_err(gpt4roi::Error::from)?;
        if !parts.contains(&Part::Mention(THIS)) {
            return Err(Refusal::usage("--question does not mention <region1>, which stands for each region in turn")
                .hint("write for example 'What colour is <region1>?'")
                .into());
        }
        Ok(question)
    }
}

/// The region that is asked about, as every question about it calls it.
const THIS: RegionId = RegionId(1);

/// Describes all regions together. Each answer is told as soon as it and those of all regions before it are
/// there; the first failure ends the telling.
fn in_order(
    chat: &mut Chat<'_>,
    shapes: &[Shape],
    question: &str,
    options: &AskOptions,
    mut tell: impl FnMut(usize, Answer) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut early = BTreeMap::new();
    let (mut next, mut told) = (0, Ok(()));
    chat.describe_regions_streaming(shapes, question, options, |index, answer| {
        early.insert(index, answer);
        while let Some(answer) = early.remove(&next) {
            told = answer.map_err(anyhow::Error::from).and_then(|answer| tell(next, answer));
            if told.is_err() {
                return ControlFlow::Break(());
            }
            next += 1;
        }
        ControlFlow::Continue(())
    })?;
    told
}

/// Says of every region which choice is the most probable, in their order; the first failure ends the telling.
fn choose(
    chat: &mut Chat<'_>,
    shapes: &[Shape],
    question: &str,
    choices: &Choices,
    options: &AskOptions,
    mut tell: impl FnMut(usize, Chosen) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut told = Ok(());
    chat.choose_for_regions_streaming(shapes, question, choices, options, |index, chosen| {
        told = chosen.map_err(anyhow::Error::from).and_then(|chosen| tell(index, chosen));
        if told.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    told
}

/// The region that was asked about, under the number that the user knows it by.
fn numbered(index: usize, asked: &[ResolvedRegion]) -> Option<ResolvedRegion> {
    asked.first().map(|region| ResolvedRegion { id: index as u32 + 1, ..*region })
}

impl Description {
    fn of_answer(region: Option<ResolvedRegion>, answer: &Answer, abstain: Option<f64>) -> Self {
        Self {
            region,
            text: told(answer, abstain).into(),
            certainty: Certainty::OfAnswer(Confidence::new(answer, abstain)),
            finish: Some(answer.finish),
            tokens: Tokens::from(answer),
        }
    }

    fn of_chosen(region: Option<ResolvedRegion>, chosen: &Chosen, abstain: Option<f64>) -> Self {
        Self {
            region,
            text: choices::told(chosen, abstain).into(),
            certainty: Certainty::OfChoices(ChoiceReport::new(chosen, abstain)),
            finish: None,
            tokens: Tokens::from(chosen),
        }
    }

    fn warn_if_cut_off(&self) {
        if let Some(finish) = self.finish {
            warn_if_cut_off(&self.name(), finish, self.tokens);
        }
    }

    /// How a warning calls it.
    fn name(&self) -> String {
        self.region.map_or("the description".into(), |region| format!("the description of region{}", region.id))
    }

    fn line(&self) -> String {
        let share = match &self.certainty {
            Certainty::OfChoices(ChoiceReport { withheld: None, probability, .. }) => {
                format!(" ({:.1} %)", 100.0 * probability)
            }
            _ => String::new(),
        };
        match &self.region {
            None => format!("{}{share}\n", self.text),
            Some(region) => format!("region{}: {}{share}\n", region.id, self.text),
        }
    }
}
