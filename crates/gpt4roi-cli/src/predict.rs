//! `gpt4roi predict`: a model is asked everything that a file of records asks.

use std::{
    collections::HashSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::builder::FalseyValueParser;
use gpt4roi::{
    BBox, Chat, Choices, Gpt4Roi, ImageSize, RegionId,
    chat::AskOptions,
    choices::{Chosen, Scoring},
    drafter::Drafter,
    prompt::Piece,
};
use gpt4roi_data::{Picture, RecordOptions, Records, records::Form};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    captions,
    choices::{ChoiceFile, UNLIKE, is_unlike_answers, refuse_draws},
    failure::{self, Refusal, tell, warn},
    options::{GenerationOptions, ModelOptions},
    predict_check,
    predictions::{Outstanding, Prediction, Predictions, Said, Unanswered, choice_texts},
    session::{note_if_embedded, note_without_picture},
    side_file,
};

/// Ask a model everything that a file asks about its pictures
///
/// DATA is a file of conversations, one a line (JSON lines), a COCO detection file, or a file of Visual Genome, LLaVA,
/// VCR, Visual7W, RefCOCO or Flickr30k Entities; docs/own-data.md describes them. For every question a line goes to
/// --out, with the prediction, its probability, and the right answers if the file has any. Where the file gives answers
/// to choose between, or --choices does, the prediction is the most probable of them, and the line says how probable
/// each is. A run that was interrupted goes on where it stopped: what stands in --out is not asked again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What is asked, and about which pictures
    #[arg(value_name = "DATA")]
    data: PathBuf,

    /// The file of predictions (JSON lines). One file holds the answers of one model
    #[arg(long, value_name = "FILE", env = "GPT4ROI_OUT", required_unless_present = "check")]
    out: Option<PathBuf>,

    /// Ask nothing, but open all pictures, say how much would be asked, and what could not be: pictures that are lost or
    /// damaged, and boxes and coordinates outside of them
    #[arg(long, env = "GPT4ROI_CHECK", value_parser = FalseyValueParser::new())]
    check: bool,

    /// The folder of the pictures, if it is not that of DATA
    #[arg(long, value_name = "DIR", env = "GPT4ROI_IMAGES")]
    images: Option<PathBuf>,

    /// What is asked about every region of a file that has labels and no questions; the region is <region1>
    #[arg(long, value_name = "TEXT", env = "GPT4ROI_QUESTION")]
    question: Option<String>,

    /// Which split of a file that has several is asked about (Visual7W: train, val or test). Without it, all are
    #[arg(long, value_name = "NAME", env = "GPT4ROI_SPLIT")]
    split: Option<String>,

    #[command(flatten)]
    choices: ChoiceFile,

    /// Write the COCO file that DATA is once more, with each prediction as the `caption` of its annotation, and its
    /// `caption_probability`
    #[arg(long, value_name = "FILE", env = "GPT4ROI_COCO")]
    coco: Option<PathBuf>,

    /// Ask about the first N pictures only
    #[arg(long, value_name = "N", env = "GPT4ROI_LIMIT")]
    limit: Option<usize>,

    /// Print neither notes nor progress
    #[arg(long, short, env = "GPT4ROI_QUIET", value_parser = FalseyValueParser::new())]
    quiet: bool,

    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    generation: GenerationOptions,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi predict questions.jsonl --out predictions.jsonl
  gpt4roi predict instances_val2017.json --images val2017 --out predictions.jsonl --model gpt4roi-7b
  gpt4roi predict labels.json --check
  gpt4roi predict labels.json --out predictions.jsonl --coco captioned.json
  gpt4roi predict labels.json --choices labels.json --out predictions.jsonl --coco relabelled.json
  gpt4roi predict labels.json --question 'Describe <region1> in detail.' --out predictions.jsonl --limit 20";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let mut options = args.generation.resolve()?;
    let vocabulary = args.choices.resolve(&mut options)?;
    let records = Records::open(&args.data, &args.record_options())?;
    if args.coco.is_some() && records.form() != Form::Coco {
        let message = format!("--coco: expected a COCO detection file as DATA, and {} is none", args.data.display());
        return Err(Refusal::usage(message).into());
    }
    if records.pictures().iter().any(has_choices) {
        refuse_draws(&options)?;
    }
    if records.is_empty() {
        warn(&format!("{}: nothing is asked there", args.data.display()));
    }
    if !args.quiet {
        note_without_picture(records.without_picture());
    }
    let limit = args.limit.unwrap_or(usize::MAX);
    if args.check {
        let pictures = &records.pictures()[..records.len().min(limit)];
        return predict_check::check(pictures, &args.bar(pictures.len(), "pictures")?);
    }
    let out = args.out()?;
    args.check_files(out)?;
    let mut predictions = Predictions::open(out, args.model.name())?;
    let mut pictures = predictions.outstanding(&records, vocabulary.as_ref())?;
    pictures.truncate(limit);
    pictures.retain(|picture| picture.answers() > 0);
    args.note_what_is_there(out, &predictions);
    let incomplete = if pictures.is_empty() { 0 } else { args.ask(&pictures, predictions, options, vocabulary)? };
    if let Some(coco) = &args.coco {
        captions::write(&args.data, out, coco)?;
    }
    outcome(incomplete, pictures.len())
}

impl Args {
    /// Where the answers go.
    ///
    /// # Errors
    /// If nobody says so, which `GPT4ROI_CHECK=false` lets pass up to here.
    fn out(&self) -> Result<&Path, Refusal> {
        self.out.as_deref().ok_or_else(|| Refusal::usage("--out: expected the file of predictions, got none"))
    }

    /// Makes sure, before anything is asked, that what is written can be, and takes the place of nothing that is read.
    fn check_files(&self, out: &Path) -> Result<(), Refusal> {
        let choices = self.choices.path().map(|choices| ("file of choices", choices));
        let read = [("data", &*self.data)].into_iter().chain(choices);
        side_file::check("--out", out, read.clone())?;
        let read = read.chain([("file of predictions", out)]);
        self.coco.as_ref().map_or(Ok(()), |coco| side_file::check("--coco", coco, read))
    }

    fn record_options(&self) -> RecordOptions {
        RecordOptions { images: self.images.clone(), question: self.question.clone(), split: self.split.clone() }
    }

    /// Asks a model; says about how many pictures not everything could be asked.
    fn ask(
        &self,
        pictures: &[Outstanding<'_>],
        predictions: Predictions,
        options: AskOptions,
        vocabulary: Option<Choices>,
    ) -> anyhow::Result<usize> {
        let model = self.model.open()?;
        if !self.quiet {
            note_if_embedded(&self.model);
        }
        let begin = Instant::now();
        let bar = self.bar(pictures.iter().map(Outstanding::answers).sum(), "answers")?;
        let abstain = self.generation.abstain;
        let mut interview = Interview {
            model: &model,
            options,
            drafter: self.generation.draft.drafter(&model)?,
            vocabulary,
            abstain,
            predictions,
            bar,
            pictures: 0,
            regions: 0,
            unlike: 0,
            failures: 0,
        };
        let mut incomplete = 0;
        for picture in pictures {
            incomplete += usize::from(!interview.about(picture)?);
        }
        interview.bar.finish_and_clear();
        if interview.unlike > 0 {
            warn(&format!("{} answers: {UNLIKE}", interview.unlike));
        }
        if !self.quiet {
            let (pictures, regions, seconds) = (interview.pictures, interview.regions, begin.elapsed().as_secs_f64());
            tell(&format!("{pictures} pictures, {regions} regions, {seconds:.1} s: {}", self.out()?.display()));
        }
        Ok(incomplete)
    }

    fn note_what_is_there(&self, out: &Path, predictions: &Predictions) {
        let found = predictions.found();
        if found > 0 && !self.quiet {
            tell(&format!("note: {found} answers are in {} and not asked for again", out.display()));
        }
    }

    /// Drawn on standard error if that is a terminal.
    fn bar(&self, length: usize, what: &str) -> anyhow::Result<ProgressBar> {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(length as u64), target);
        bar.set_style(ProgressStyle::with_template(&format!(
            "{{bar:30}} {{pos}}/{{len}} {what} [{{elapsed}} < {{eta}}]"
        ))?);
        Ok(bar)
    }
}

/// Whether the records give answers to choose between.
fn has_choices(picture: &Picture) -> bool {
    picture.dialogues.iter().flat_map(|dialogue| &dialogue.rounds).any(|round| !round.choices.is_empty())
}

fn outcome(incomplete: usize, pictures: usize) -> anyhow::Result<()> {
    if incomplete == 0 {
        return Ok(());
    }
    let message = format!("{incomplete} of {pictures} pictures: not everything could be asked, for the reasons above");
    Err(Refusal::failure(message)
        .hint("the same command asks for what is missing; --images names another folder of pictures")
        .into())
}

/// A model that is asked, and where its answers go.
struct Interview<'m> {
    model: &'m Gpt4Roi,
    options: AskOptions,
    /// Learns from the answers about all pictures.
    drafter: Drafter,
    /// What can be answered where the records say nothing of it; nothing: free text.
    vocabulary: Option<Choices>,
    /// The least probability of an answer that is told.
    abstain: Option<f64>,
    predictions: Predictions,
    bar: ProgressBar,
    /// Pictures that were looked at.
    pictures: usize,
    /// Regions that were asked about.
    regions: usize,
    /// Answers of which the model would write none.
    unlike: usize,
    /// Things that could not be asked.
    failures: usize,
}

/// A dialogue, with its boxes as the model takes them.
struct Ready<'a> {
    picture: &'a Picture,
    unanswered: &'a Unanswered<'a>,
    boxes: Vec<(RegionId, BBox)>,
}

impl<'m> Interview<'m> {
    /// Asks everything that has not been answered about a picture; says whether that could be done. What can't be asked
    /// is reported, and the rest goes on.
    ///
    /// # Errors
    /// If an answer can't be written.
    fn about(&mut self, outstanding: &Outstanding<'_>) -> anyhow::Result<bool> {
        let failures = self.failures;
        match self.look(outstanding.picture) {
            Ok((size, mut chat)) => {
                self.pictures += 1;
                let ready = self.ready(outstanding, size);
                let (alone, others): (Vec<_>, Vec<_>) = ready.iter().partition(|ready| ready.is_about_one_region());
                for alike in alike(&alone) {
                    match self.choices(alike[0], 0) {
                        Ok(None) => self.describe(&mut chat, &alike)?,
                        Ok(Some((choices, options))) => self.choose(&mut chat, &alike, &choices, &options)?,
                        Err(error) => self.report(&error),
                    }
                }
                for ready in others {
                    self.play(&mut chat, ready)?;
                }
            }
            Err(error) => self.report(&error),
        }
        Ok(self.failures == failures)
    }

    fn look(&self, picture: &Picture) -> anyhow::Result<(ImageSize, Chat<'m>)> {
        let image = picture.open()?;
        Ok((image.size(), Chat::new(self.model, &image)?.drafting_by(&self.drafter)))
    }

    /// The dialogues whose boxes lie inside the picture.
    fn ready<'a>(&mut self, outstanding: &'a Outstanding<'_>, size: ImageSize) -> Vec<Ready<'a>> {
        let (mut ready, mut told) = (Vec::new(), HashSet::new());
        for unanswered in &outstanding.dialogues {
            match unanswered.dialogue.boxes(size) {
                Ok(boxes) => ready.push(Ready { picture: outstanding.picture, unanswered, boxes }),
                // Once for all that are of a picture of another size.
                Err(error) if told.insert(error.to_string()) => self.report(&error.into()),
                Err(_) => {}
            }
        }
        ready
    }

    /// The answers to choose between in a round, if there are any, and how far they are scored: those that the records
    /// give to their ends.
    fn choices(&self, ready: &Ready<'_>, round: usize) -> anyhow::Result<Option<(Choices, AskOptions)>> {
        let own = &ready.unanswered.dialogue.rounds[round].choices;
        if own.is_empty() {
            return Ok(self.vocabulary.clone().map(|vocabulary| (vocabulary, self.options.clone())));
        }
        let choices = Choices::new(own).map_err(|error| ready.failed(error.into()))?;
        Ok(Some((choices, AskOptions { scoring: Scoring::All, ..self.options.clone() })))
    }

    /// Asks about many regions in the same words, all at once. A line is written as soon as its answer is there.
    fn describe(&mut self, chat: &mut Chat<'_>, alike: &[&Ready<'_>]) -> anyhow::Result<()> {
        let question = alike[0].question(0);
        let boxes: Vec<BBox> = alike.iter().map(|ready| ready.boxes[0].1).collect();
        let options = self.options.clone();
        let mut written = Ok(());
        let asked = chat.describe_regions_streaming(&boxes, &question, &options, |index, answer| {
            match answer {
                Ok(answer) => written = self.write(alike[index], 0, Said::of_answer(&answer, self.abstain)),
                Err(error) => self.report(&alike[index].failed(error)),
            }
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if let Err(error) = asked {
            self.report(&alike[0].failed(error));
        }
        written
    }

    /// Asks about many regions which of the same answers is right.
    fn choose(
        &mut self,
        chat: &mut Chat<'_>,
        alike: &[&Ready<'_>],
        choices: &Choices,
        options: &AskOptions,
    ) -> anyhow::Result<()> {
        let question = alike[0].question(0);
        let boxes: Vec<BBox> = alike.iter().map(|ready| ready.boxes[0].1).collect();
        let mut written = Ok(());
        let asked = chat.choose_for_regions_streaming(&boxes, &question, choices, options, |index, chosen| {
            match chosen {
                Ok(chosen) => {
                    let said = self.said(&chosen);
                    written = self.write(alike[index], 0, said);
                }
                Err(error) => self.report(&alike[index].failed(error)),
            }
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if let Err(error) = asked {
            self.report(&alike[0].failed(error));
        }
        written
    }

    /// Plays a dialogue round by round; what the model said is what it has said, right or wrong, unless the records
    /// put other words in its place.
    fn play(&mut self, chat: &mut Chat<'_>, ready: &Ready<'_>) -> anyhow::Result<()> {
        chat.clear();
        ready.declare(chat)?;
        let last = ready.unanswered.rounds.last().copied().unwrap_or(0);
        for round in 0..=last {
            match self.ask(chat, ready, round) {
                Ok(said) if ready.unanswered.rounds.contains(&round) => self.write(ready, round, said)?,
                Ok(_) => {}
                Err(error) => {
                    self.report(&error);
                    break;
                }
            }
            if let Some(said) = &ready.unanswered.dialogue.rounds[round].said {
                chat.replace_answer(said);
            }
        }
        Ok(())
    }

    /// Asks the question of a round.
    fn ask(&mut self, chat: &mut Chat<'_>, ready: &Ready<'_>, round: usize) -> anyhow::Result<Said> {
        let question = ready.question(round);
        let said = match self.choices(ready, round)? {
            None => chat.ask_with(&question, &self.options).map(|answer| Said::of_answer(&answer, self.abstain)),
            Some((choices, options)) => chat.choose(&question, &choices, &options).map(|chosen| self.said(&chosen)),
        };
        said.map_err(|error| ready.failed(error))
    }

    /// What was chosen, once it is noted whether the model would write any of it.
    fn said(&mut self, chosen: &Chosen) -> Said {
        self.unlike += usize::from(is_unlike_answers(chosen));
        Said::of_chosen(chosen, self.abstain)
    }

    fn write(&mut self, ready: &Ready<'_>, round: usize, said: Said) -> anyhow::Result<()> {
        let Unanswered { dialogue, rounds } = ready.unanswered;
        if rounds.first() == Some(&round) {
            self.regions += dialogue.regions.len();
        }
        self.predictions.write(&Prediction::new(ready.picture, dialogue, round, said))?;
        self.bar.inc(1);
        Ok(())
    }

    fn report(&mut self, error: &anyhow::Error) {
        self.failures += 1;
        self.bar.suspend(|| failure::print(error));
    }
}

/// Those with the same question and the same choices, in the order of their first.
fn alike<'a>(alone: &[&'a Ready<'a>]) -> Vec<Vec<&'a Ready<'a>>> {
    type Asked = (String, Vec<String>);
    let mut groups: Vec<(Asked, Vec<&Ready<'_>>)> = Vec::new();
    for &ready in alone {
        let asked = (ready.question(0), choice_texts(&ready.unanswered.dialogue.rounds[0], None));
        match groups.iter_mut().find(|(known, _)| *known == asked) {
            Some((_, group)) => group.push(ready),
            None => groups.push((asked, vec![ready])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

impl Ready<'_> {
    /// Whether it can be asked together with others: one question about a region, which is then called `<region1>`.
    fn is_about_one_region(&self) -> bool {
        let only_region = matches!(self.boxes[..], [(RegionId(1), _)]);
        let rounds = &self.unanswered.dialogue.rounds;
        only_region && rounds.len() == 1 && rounds[0].question.contains(&Piece::Region(RegionId(1)))
    }

    fn question(&self, round: usize) -> String {
        self.unanswered.dialogue.rounds[round].typed()
    }

    fn declare(&self, chat: &mut Chat<'_>) -> anyhow::Result<()> {
        let mut boxes = self.boxes.iter();
        boxes.try_for_each(|&(id, bbox)| chat.declare_region(id, bbox)).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: gpt4roi::Error) -> anyhow::Error {
        anyhow::Error::from(error).context(self.unanswered.dialogue.place.to_string())
    }
}
