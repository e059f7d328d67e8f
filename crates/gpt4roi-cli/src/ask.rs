//! `gpt4roi ask`: one question about a picture.

use std::{ops::ControlFlow, path::Path};

use gpt4roi::{
    Chat, Choices, RegionId,
    chat::{Answer, AskOptions, Origin, ResolvedRegion},
    choices::Chosen,
    generate::FinishReason,
    mention::{self, Part},
};
use serde::Serialize;

use crate::{
    choices::{self, ChoiceOptions, ChoiceReport},
    failure::{Refusal, tell, warn},
    options::{GenerationOptions, ModelOptions, OutputOptions, PictureOptions},
    regions::RegionOptions,
    session::{OpenedPicture, Session, Timings, print, print_json, write_annotated},
};

/// Ask one question about a picture and its regions
///
/// Regions are given with --region, --point, --polygon and --mask, numbered in the order given, and
/// mentioned in the question as <region1>, <region2>, … Coordinates in the question work, too: (x, y)
/// for a point, [x1, y1, x2, y2] for a box. Numbers there are fractions of the picture if at least one
/// of them has a decimal point and all lie in 0..1, else pixels. With --choice or --choices the model says which of the
/// given answers is the most probable; with --json, how probable each is.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    picture: PictureOptions,

    /// The question, in quotes, since a shell reads < and > as its own
    question: String,

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
  gpt4roi ask scene.png 'What is <region1>?' --region 62,41,240,180
  gpt4roi ask scene.png 'Is <region2> left of <region1>?' \\
    --region 62,41,240,180 --region 300,50,420,200
  gpt4roi ask scene.png 'What is at (0.5, 0.6)?'
  gpt4roi ask scene.png 'What is <region1>?' --region 0.1,0.2,0.4,0.5 --coords norm --json
  gpt4roi ask scene.png 'What is <region1>?' --point 150,110
  gpt4roi ask scene.png 'Is <region1> like <region2>?' \\
    --polygon 62,41,240,60,150,180 --mask cat.png
  gpt4roi ask scene.png 'What is <region1>?' --region 62,41,240,180 --choice 'A cat.' --choice 'A dog.' --json
  gpt4roi ask scene.png 'What is <region1>?' --region 62,41,240,180 --choices labels.txt --abstain 0.5";

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    answer: &'a str,
    #[serde(flatten)]
    certainty: Certainty,
    question: &'a str,
    regions: &'a [ResolvedRegion],
    #[serde(skip_serializing_if = "Option::is_none")]
    finish: Option<FinishReason>,
    tokens: Tokens,
    timings: Timings,
    image: ImageReport,
    model: String,
}

/// How sure the model is.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Certainty {
    /// Of an answer in words of its own.
    OfAnswer(Confidence),
    /// Of given choices.
    OfChoices(ChoiceReport),
}

/// How sure the model is of an answer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Confidence {
    /// What the model said, if it was not sure enough for `--abstain`.
    withheld: Option<String>,
    /// The geometric mean of the tokens' probabilities, 0 to 1; none without tokens.
    probability: Option<f64>,
    /// The mean of their natural logarithms.
    mean_log_probability: Option<f64>,
}

impl Confidence {
    pub(crate) fn new(answer: &Answer, abstain: Option<f64>) -> Self {
        let (probability, mean_log_probability) = (answer.probability(), answer.mean_log_probability);
        let withheld = (told(answer, abstain) != answer.text).then(|| answer.text.clone());
        Self { withheld, probability, mean_log_probability }
    }
}

/// What the user is told; `abstain` is the least probability of an answer that is.
pub(crate) fn told(answer: &Answer, abstain: Option<f64>) -> &str {
    answer.text_if_sure(abstain.unwrap_or(0.0))
}

/// Token counts.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Tokens {
    prompt: usize,
    reused: usize,
    generated: usize,
    drafted: usize,
}

impl From<&Answer> for Tokens {
    fn from(answer: &Answer) -> Self {
        Self {
            prompt: answer.prompt_tokens,
            reused: answer.reused_tokens,
            generated: answer.generated_tokens,
            drafted: answer.drafted_tokens,
        }
    }
}

impl From<&Chosen> for Tokens {
    /// Given answers are read and not generated.
    fn from(chosen: &Chosen) -> Self {
        Self { prompt: chosen.prompt_tokens, reused: chosen.reused_tokens, generated: 0, drafted: 0 }
    }
}

/// The picture that was asked about.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ImageReport {
    path: String,
    width: u32,
    height: u32,
}

impl ImageReport {
    pub(crate) fn new(picture: &PictureOptions, size: gpt4roi::bbox::ImageSize) -> Self {
        Self { path: picture.image.display().to_string(), width: size.width, height: size.height }
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let mut options = args.generation.resolve()?;
    args.check_arguments()?;
    let choices = args.choices.resolve(&mut options)?;
    args.output.check(&args.picture, &args.regions, args.choices.path())?;
    let picture = OpenedPicture::open(&args.picture)?;
    let size = picture.size();
    let shapes = args.regions.shapes(size)?;
    let given: Vec<_> = (1..=shapes.len() as u32).map(RegionId).collect();
    let question = mention::parse(&args.question, &given, size).map_err(gpt4roi::Error::from)?;
    let unmentioned = unmentioned(&question, &given)?;
    unmentioned.iter().for_each(|id| warn(&format!("the question does not mention {id}, so it plays no part")));

    let session = picture.with_model(&args.model, &args.output)?;
    let mut timings = session.timings();
    let mut chat = session.encode(&args.generation.draft, &mut timings)?;
    shapes.into_iter().try_for_each(|shape| chat.add_shape(shape).map(drop))?;
    match choices {
        None => args.answer(&session, &mut chat, timings, &options)?,
        Some(choices) => args.choose(&session, &mut chat, timings, &choices, &options)?,
    }
    // The answer is told by now, whatever becomes of the picture.
    args.output
        .annotate
        .as_ref()
        .map_or(Ok(()), |file| write_annotated(&session.image, &chat.transcript().regions, file))
}

impl Args {
    /// Asks, and tells the answer.
    fn answer(
        &self,
        session: &Session,
        chat: &mut Chat<'_>,
        mut timings: Timings,
        options: &AskOptions,
    ) -> anyhow::Result<()> {
        let abstain = self.generation.abstain;
        let answer = session.time(&mut timings, || {
            if self.output.json {
                Ok(chat.ask_with(&self.question, options)?)
            } else {
                ask_aloud(chat, &self.question, options, abstain, || false)
            }
        })?;
        if !self.output.json {
            notes(&answer, self.output.quiet);
            return Ok(());
        }
        print_json(&Report {
            answer: told(&answer, abstain),
            certainty: Certainty::OfAnswer(Confidence::new(&answer, abstain)),
            question: &answer.question,
            regions: &answer.regions,
            finish: Some(answer.finish),
            tokens: Tokens::from(&answer),
            timings,
            image: ImageReport::new(&self.picture, session.image.size()),
            model: self.model.name(),
        })
    }

    /// Asks which of some answers is right, and tells it.
    fn choose(
        &self,
        session: &Session,
        chat: &mut Chat<'_>,
        mut timings: Timings,
        choices: &Choices,
        options: &AskOptions,
    ) -> anyhow::Result<()> {
        let abstain = self.generation.abstain;
        let chosen = session.time(&mut timings, || chat.choose(&self.question, choices, options))?;
        choices::warn_if_unlike_answers("the answer", &chosen);
        if !self.output.json {
            print(&format!("{}\n", choices::told(&chosen, abstain)))?;
            if !self.output.quiet {
                chosen.regions.iter().for_each(note_box);
            }
            return Ok(());
        }
        print_json(&Report {
            answer: choices::told(&chosen, abstain),
            certainty: Certainty::OfChoices(ChoiceReport::new(&chosen, abstain)),
            question: &chosen.question,
            regions: &chosen.regions,
            finish: None,
            tokens: Tokens::from(&chosen),
            timings,
            image: ImageReport::new(&self.picture, session.image.size()),
            model: self.model.name(),
        })
    }

    /// Finds what is wrong with picture and question before anything is read.
    fn check_arguments(&self) -> Result<(), Refusal> {
        if self.question.trim().is_empty() {
            return Err(Refusal::usage("the question is empty").hint("write for example 'What is <region1>?'"));
        }
        let (picture, question) = (&self.picture.image, Path::new(&self.question));
        if !picture.exists() && question.is_file() && image::ImageFormat::from_path(question).is_ok() {
            return Err(Refusal::usage(format!("there is no picture {}", picture.display()))
                .hint(format!("the picture comes first: gpt4roi ask {} 'QUESTION'", question.display())));
        }
        Ok(())
    }
}

/// Prints the answer as it comes, with a line break behind it. One that may have to be withheld is not known to be
/// told before it is whole. If somebody stops it, it ends as [`FinishReason::Cancelled`].
pub(crate) fn ask_aloud(
    chat: &mut Chat<'_>,
    question: &str,
    options: &AskOptions,
    abstain: Option<f64>,
    stopped: impl Fn() -> bool,
) -> anyhow::Result<Answer> {
    let mut printing = Ok(());
    let answer = chat.ask_streaming(question, options, |text| {
        if abstain.is_none() {
            printing = print(text);
        }
        if printing.is_err() || stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    printing?;
    match abstain {
        None => print("\n")?,
        Some(_) if answer.finish == FinishReason::Cancelled => {}
        Some(_) => print(&format!("{}\n", told(&answer, abstain)))?,
    }
    Ok(answer)
}

/// What a reader of the answer alone would not know: the boxes that were not given as such, unless that is too much,
/// and an early end.
pub(crate) fn notes(answer: &Answer, quiet: bool) {
    if !quiet {
        answer.regions.iter().for_each(note_box);
    }
    warn_if_cut_off("the answer", answer.finish, Tokens::from(answer));
}

/// Which box the model read, if it was not given as one.
pub(crate) fn note_box(region: &ResolvedRegion) {
    if region.origin != Origin::Given {
        let [x1, y1, x2, y2] = region.pixels.map(|edge| edge.round());
        tell(&format!("note: region{} is the box {x1},{y1},{x2},{y2} (pixels)", region.id));
    }
}

/// An answer that stops in the middle should not pass for a whole one. `what` says which one it is.
pub(crate) fn warn_if_cut_off(what: &str, finish: FinishReason, Tokens { generated: tokens, .. }: Tokens) {
    if finish == FinishReason::Length {
        warn(&format!("{what} was cut off after {tokens} tokens; --max-new-tokens allows more"));
    }
}

/// The regions that are given and play no part, since the question does not mention them.
///
/// # Errors
/// If it mentions none: then the answer would not be about what was pointed at.
fn unmentioned(question: &[Part], given: &[RegionId]) -> Result<Vec<RegionId>, Refusal> {
    let missing: Vec<_> = given.iter().copied().filter(|id| !question.contains(&Part::Mention(*id))).collect();
    match missing.first() {
        Some(id) if missing.len() == given.len() => Err(Refusal::usage(format!("the question does not mention {id}"))
            .hint(format!("write for example 'What is {id}?', or leave the region away"))),
        _ => Ok(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_stopped_leaves_the_conversation_as_it_was() {
        let model = gpt4roi::Gpt4Roi::nano(&candle_core::Device::Cpu).unwrap();
        let image = gpt4roi::Image::from_rgb(image::RgbImage::from_pixel(64, 64, image::Rgb([200, 60, 20])));
        let mut chat = Chat::new(&model, &image).unwrap();
        let options = AskOptions { max_new_tokens: 8, ..AskOptions::default() };
        for abstain in [None, Some(0.5)] {
            let mut ask =
                |stopped: bool| ask_aloud(&mut chat, "What is in the picture?", &options, abstain, || stopped);
            let stopped = ask(true).unwrap();
            assert_eq!((stopped.finish, stopped.generated_tokens), (FinishReason::Cancelled, 1));
            assert!(ask(false).unwrap().generated_tokens > 1, "it can be asked again");
            assert_eq!(chat.transcript().rounds.len(), 1, "what was stopped was never asked");
            chat.clear();
        }
    }

    #[test]
    fn a_question_that_mentions_none_of_the_regions_is_refused() {
        let question = [Part::Mention(RegionId(2)), Part::Text(" or ".into()), Part::Mention(RegionId(1))];
        assert_eq!(unmentioned(&question, &[RegionId(1), RegionId(2)]).unwrap(), []);
        assert_eq!(unmentioned(&question, &[RegionId(1), RegionId(2), RegionId(3)]).unwrap(), [RegionId(3)]);
        let nothing = [Part::Text("What?".into())];
        assert_eq!(unmentioned(&nothing, &[]).unwrap(), []);
        let error = unmentioned(&nothing, &[RegionId(1), RegionId(2)]).unwrap_err();
        assert!(error.to_string().contains("<region1>"), "{error}");
    }
}
