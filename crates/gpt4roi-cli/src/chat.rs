//! `gpt4roi chat`: a conversation about a picture.

use std::{
    io::{self, BufRead, IsTerminal},
    path::{Path, PathBuf},
};

use anyhow::Context;
use gpt4roi::{
    Chat,
    bbox::ImageSize,
    chat::{AskOptions, Region, Undone},
    generate::FinishReason,
    sampling::Sampling,
};
use rustyline::{
    Config, DefaultEditor,
    config::{Behavior, BellStyle},
    error::ReadlineError,
};

use crate::{
    annotate, ask, byte_order_mark, choices,
    failure::{self, Refusal, tell},
    interrupts::Interrupts,
    options::{GenerationOptions, ModelOptions, OutputOptions, PictureOptions},
    regions::{self, CoordinateOptions, RegionOptions},
    session::{OpenedPicture, Session, print, write_annotated},
    side_file,
};

macro_rules! commands {
    () => {
        "\
Commands in a chat:
  /region x1,y1,x2,y2  declare a region; questions mention it as <region1>, later also as region 1;
                       x,y is a point, more numbers are a polygon, FILE.png or FILE.json is a mask
  /regions             list the regions
  /choose QUESTION | ANSWER | ANSWER
                       say which of the answers, two or more, is the most probable; the name of a
                       file of answers may stand in their place, as with --choices of `ask`
  /undo                take back the last region or the last round
  /save FILE           write the conversation (.json) or the marked picture (.png, .jpg, .webp)
  /help                this list
  /quit                leave (so does the end of the input)
Ctrl-C stops an answer."
    };
}

macro_rules! examples {
    () => {
        "\
Examples:
  gpt4roi chat scene.png
  printf '/region 62,41,240,180\\nWhat is <region1>?\\nWhat can region 1 do?\\n' | gpt4roi chat scene.png
  printf '/region 62,41,240,180\\n/choose What is <region1>? | A cat. | A dog.\\n' | gpt4roi chat scene.png"
    };
}

/// Talk about a picture, round after round
///
/// Every line is a question or one of the commands below. Answers go to standard output, all else
/// to standard error. Lines can be piped in as well; the exit code then says whether all went well.
#[derive(Debug, clap::Args)]
#[command(after_help = COMMANDS, after_long_help = concat!(commands!(), "\n\n", examples!()))]
pub(crate) struct Args {
    #[command(flatten)]
    picture: PictureOptions,

    /// Print no notes; warnings are printed in any case
    #[arg(long, short, env = "GPT4ROI_QUIET", value_parser = clap::builder::FalseyValueParser::new())]
    quiet: bool,

    #[command(flatten)]
    regions: RegionOptions,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    generation: GenerationOptions,
}

const COMMANDS: &str = commands!();

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let options = args.generation.resolve()?;
    let output = OutputOptions { json: false, quiet: args.quiet, annotate: None };
    let picture = OpenedPicture::open(&args.picture)?;
    let shapes = args.regions.shapes(picture.size())?;
    let session = picture.with_model(&args.model, &output)?;
    let mut chat = session.encode(&args.generation.draft, &mut session.timings())?;
    shapes.into_iter().try_for_each(|shape| chat.add_shape(shape).map(drop))?;
    let coordinates = args.regions.coordinates;
    let (abstain, quiet) = (args.generation.abstain, args.quiet);
    let masks = args.regions.masks().map(|mask| ("mask", mask.to_owned()));
    let read = masks.chain([("picture", args.picture.image.clone())]).collect();
    let mut talk =
        Talk { chat, session: &session, options, abstain, coordinates, quiet, read, interrupts: Interrupts::default() };
    if io::stdin().is_terminal() { talk.interactive() } else { talk.piped() }
}

/// A conversation and how it is led.
struct Talk<'m> {
    chat: Chat<'m>,
    session: &'m Session,
    options: AskOptions,
    abstain: Option<f64>,
    coordinates: CoordinateOptions,
    quiet: bool,
    /// The files that were read, which `/save` leaves alone, and what each is.
    read: Vec<(&'static str, PathBuf)>,
    /// Ctrl-C stops an answer, at a terminal.
    interrupts: Interrupts,
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Question(&'a str),
    /// A question, and the answers to choose between; one is the name of a file with answers.
    Choice(&'a str, Vec<&'a str>),
    Region(&'a str),
    Regions,
    Undo,
    Save(&'a str),
    Help,
    Quit,
    Nothing,
}

/// Whether the conversation goes on.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Line,
    End,
}

impl Talk<'_> {
    /// At a terminal: with line editing and a memory of what was typed.
    fn interactive(&mut self) -> anyhow::Result<()> {
        self.interrupts = Interrupts::listen()?;
        // The prompt goes to the terminal itself, so that standard output holds nothing but answers.
        let config = Config::builder().auto_add_history(true).bell_style(BellStyle::None);
        let config = config.behavior(Behavior::PreferTerm).build();
        let mut editor = DefaultEditor::with_config(config)?;
        if !self.quiet {
            let ImageSize { width, height } = self.session.image.size();
            tell(&format!("A picture of {width}×{height} pixels. Ask about it; /help lists the commands."));
        }
        loop {
            match editor.readline("> ") {
                Ok(line) => match self.take(&line) {
                    Ok(Next::Line) => {}
                    Ok(Next::End) => return Ok(()),
                    Err(error) if failure::is_broken_pipe(&error) => return Err(error),
                    Err(error) => failure::print(&error),
                },
                // Ctrl-C leaves the line, Ctrl-D the conversation.
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// From a pipe or a file: every line is tried, and the end tells whether all were understood.
    fn piped(&mut self) -> anyhow::Result<()> {
        let mut failed = 0;
        for (line, number) in io::stdin().lock().split(b'\n').zip(1..) {
            let line = line?;
            match self.take_bytes(if number == 1 { byte_order_mark::without(&line) } else { &line }) {
                Ok(Next::Line) => {}
                Ok(Next::End) => break,
                Err(error) if failure::is_broken_pipe(&error) => return Err(error),
                Err(error) => {
                    failed += 1;
                    failure::print(&error.context(format!("line {number}")));
                }
            }
        }
        match failed {
            0 => Ok(()),
            1 => Err(Refusal::failure("one line failed").into()),
            _ => Err(Refusal::failure(format!("{failed} lines failed")).into()),
        }
    }

    /// A line as it came through a pipe, where it may be anything.
    fn take_bytes(&mut self, line: &[u8]) -> anyhow::Result<Next> {
        match str::from_utf8(line) {
            Ok(line) => self.take(line),
            Err(error) => {
                let place = error.valid_up_to() + 1;
                Err(Refusal::usage(format!("byte {place}: expected text in UTF-8")).into())
            }
        }
    }

    fn take(&mut self, line: &str) -> anyhow::Result<Next> {
        match parse(line)? {
            Line::Question(question) => {
                // Whatever was pressed before was not meant for this answer.
                self.interrupts.take();
                let stopped = || self.interrupts.take();
                let answer = ask::ask_aloud(&mut self.chat, question, &self.options, self.abstain, stopped)?;
                if answer.finish == FinishReason::Cancelled {
                    tell("stopped: the question counts as not asked, and the conversation goes on");
                } else {
                    ask::notes(&answer, self.quiet);
                }
            }
            Line::Choice(question, answers) => self.choose(question, &answers)?,
            Line::Region(text) => {
                let id = self.chat.add_shape(self.coordinates.parse(text, self.session.image.size())?)?;
                self.read.extend(regions::mask_file(text).map(|mask| ("mask", mask.to_owned())));
                tell(&format!("{id} declared"));
            }
            Line::Regions if self.chat.regions().is_empty() => tell("no regions yet"),
            Line::Regions => self.chat.regions().iter().for_each(|region| tell(&self.line_about(region))),
            Line::Undo => match self.chat.undo() {
                Some(Undone::Region(region)) => tell(&format!("{} taken back", region.id)),
                Some(Undone::Round(round)) => tell(&format!("taken back: {}", round.question)),
                None => tell("nothing to take back"),
            },
            Line::Save(file) => {
                self.save(Path::new(file))?;
                tell(&format!("saved {file}"));
            }
            Line::Help => tell(COMMANDS),
            Line::Quit => return Ok(Next::End),
            Line::Nothing => {}
        }
        Ok(Next::Line)
    }

    /// Asks which of some answers is right, and tells it.
    fn choose(&mut self, question: &str, answers: &[&str]) -> anyhow::Result<()> {
        let (choices, scoring) = choices::named(answers)?;
        if let [file] = answers {
            self.read.push(("file of choices", file.into()));
        }
        // A temperature is for answers in the model's own words: of choices, none are drawn.
        let options = AskOptions { sampling: Sampling::Greedy, scoring, ..self.options.clone() };
        let chosen = self.chat.choose(question, &choices, &options)?;
        choices::warn_if_unlike_answers("the answer", &chosen);
        print(&format!("{}\n", choices::told(&chosen, self.abstain)))?;
        if !self.quiet {
            tell(&format!("note: shares: {}", choices::shares(&chosen)));
            chosen.regions.iter().for_each(ask::note_box);
        }
        Ok(())
    }

    fn line_about(&self, region: &Region) -> String {
        let [x1, y1, x2, y2] = region.bbox.pixels(self.session.image.size()).map(|edge| edge.round());
        let origin = match region.origin {
            gpt4roi::chat::Origin::Given => "",
            gpt4roi::chat::Origin::Coordinates => ", from a question",
            gpt4roi::chat::Origin::Point => ", grown around a point",
            gpt4roi::chat::Origin::Polygon => ", around a polygon",
            gpt4roi::chat::Origin::Mask => ", around a mask",
        };
        format!("{} {x1},{y1},{x2},{y2} (pixels){origin}", region.id)
    }

    fn save(&self, file: &Path) -> anyhow::Result<()> {
        side_file::check("/save", file, self.read.iter().map(|(what, read)| (*what, &**read)))?;
        let transcript = self.chat.transcript();
        if file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) {
            let text = serde_json::to_string_pretty(&transcript)? + "\n";
            return side_file::write(file, text.as_bytes()).with_context(|| file.display().to_string());
        }
        annotate::check_path(file).map_err(|_| {
            Refusal::usage(format!("{}: expected a name that ends in .json, .png, .jpg or .webp", file.display()))
        })?;
        write_annotated(&self.session.image, &transcript.regions, file)
    }
}

fn parse(line: &str) -> Result<Line<'_>, Refusal> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Line::Nothing);
    }
    if !line.starts_with('/') {
        return Ok(Line::Question(line));
    }
    let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    match (command, rest.is_empty()) {
        ("/region", false) => Ok(Line::Region(rest)),
        ("/region", true) => Err(Refusal::usage("/region needs a region").hint("/region x1,y1,x2,y2; /help has more")),
        ("/choose", _) => choice(rest),
        ("/save", false) => Ok(Line::Save(rest)),
        ("/save", true) => Err(Refusal::usage("/save needs a file").hint("/save chat.json, or /save marked.png")),
        ("/regions", true) => Ok(Line::Regions),
        ("/undo", true) => Ok(Line::Undo),
        ("/help", true) => Ok(Line::Help),
        ("/quit" | "/exit", true) => Ok(Line::Quit),
        ("/regions" | "/undo" | "/help" | "/quit" | "/exit", false) => {
            Err(Refusal::usage(format!("{command} takes nothing behind it, got {rest}")))
        }
        _ => Err(Refusal::usage(format!("there is no command {command}")).hint("/help lists the commands")),
    }
}

/// A question, and behind bars what may be answered.
fn choice(text: &str) -> Result<Line<'_>, Refusal> {
    let mut parts = text.split('|').map(str::trim);
    let question = parts.next().unwrap_or_default();
    let answers: Vec<&str> = parts.collect();
    if question.is_empty() || answers.is_empty() {
        return Err(Refusal::usage("/choose needs a question and answers, with a bar before each")
            .hint("/choose What is <region1>? | A cat. | A dog."));
    }
    Ok(Line::Choice(question, answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_questions_or_commands() {
        for (line, expected) in [
            ("What is <region1>?", Line::Question("What is <region1>?")),
            ("  region 1?  ", Line::Question("region 1?")),
            ("/region 1,2,3,4", Line::Region("1,2,3,4")),
            ("/region  1, 2, 3, 4 ", Line::Region("1, 2, 3, 4")),
            ("/regions", Line::Regions),
            ("/choose What is it? | A cat. |A dog.", Line::Choice("What is it?", vec!["A cat.", "A dog."])),
            ("/choose What is it?|my labels.txt", Line::Choice("What is it?", vec!["my labels.txt"])),
            ("/undo ", Line::Undo),
            ("/save my chat.json", Line::Save("my chat.json")),
            ("/help", Line::Help),
            ("/quit", Line::Quit),
            ("", Line::Nothing),
            (" \t", Line::Nothing),
        ] {
            assert_eq!(parse(line).unwrap(), expected, "{line:?}");
        }
        for bad in [
            "/region",
            "/choose",
            "/choose What is it?",
            "/choose | A cat. | A dog.",
            "/save",
            "/undo 3",
            "/frobnicate",
            "/Region 1,2,3,4",
            "/",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
