//! `gpt4roi eval predictions`: how good the answers in a file are, without the model that gave them.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{ValueEnum, builder::FalseyValueParser};
use gpt4roi_eval::{
    captions::Estimate,
    meteor::MeteorScore,
    metrics::Accuracy,
    prediction_scores::{GroupScores, LineScores, PredictionReport, PredictionScoring, score},
    predictions::read,
};

use crate::{
    failure::Refusal,
    session::{print, print_json},
    side_file,
};

/// How good the answers in a file of predictions are, without the model that gave them
///
/// Short answers are right or not; captions are scored by BLEU, ROUGE-L, CIDEr and METEOR as pycocoevalcap computes
/// them; without --meteor-data, METEOR has its exact and stem stages only. CIDEr depends on the whole file. If pictures
/// have more than one line, scores over the first line of each stand beside those over all: papers on region captions use
/// both. Where answers were chosen, there is also how often the choice is right that is best by the mean of its tokens,
/// and how often all rounds of a conversation are.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// JSON lines, as `gpt4roi predict` writes them: id, round, image, question, prediction, answers
    file: PathBuf,

    /// Score each question, or each round of the conversations, by itself, too
    #[arg(long, value_name = "WHAT", env = "GPT4ROI_BY")]
    by: Option<By>,

    /// METEOR's synonyms and paraphrases, for the whole METEOR: a folder with meteor-1.5.jar and data/paraphrase-en.gz,
    /// as `pip install pycocoevalcap` brings it in pycocoevalcap/meteor
    #[arg(long, value_name = "DIR", env = "GPT4ROI_METEOR_DATA")]
    meteor_data: Option<PathBuf>,

    /// Write the scores of each line to a file, as JSON lines
    #[arg(long, value_name = "FILE", env = "GPT4ROI_PER_ITEM")]
    per_item: Option<PathBuf>,

    /// Draws the thousand files that intervals come from
    #[arg(long, value_name = "N", env = "GPT4ROI_SEED", default_value_t = 1)]
    seed: u64,

    /// Print one JSON object instead of a table
    #[arg(long, env = "GPT4ROI_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// What lines are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Question,
    Round,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi eval predictions predictions.jsonl
  gpt4roi eval predictions predictions.jsonl --by question --per-item scores.jsonl --json
  gpt4roi eval predictions vcr.jsonl --by round
  gpt4roi eval predictions captions.jsonl --meteor-data venv/lib/python3.12/site-packages/pycocoevalcap/meteor";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let Args { file, by, meteor_data, per_item, seed, json } = args;
    per_item.as_ref().map_or(Ok(()), |path| side_file::check("--per-item", path, [("file of predictions", &*file)]))?;
    let predictions = read(&file)?;
    let (by_question, by_round) = (by == Some(By::Question), by == Some(By::Round));
    let report = score(&predictions, &PredictionScoring { by_question, by_round, seed, meteor_data })?;
    if report.all.n == 0 {
        let message =
            format!("{}: expected predictions with answers, got {} without", file.display(), predictions.len());
        return Err(Refusal::failure(message).hint("a line is scored against its \"answers\"").into());
    }
    if json {
        print_json(&report)?
    } else {
        print(&table(&report))?
    }
    match per_item {
        Some(path) => write_lines(&path, &report.lines).with_context(|| format!("writing {}", path.display())),
        None => Ok(()),
    }
}

fn write_lines(path: &Path, lines: &[LineScores]) -> anyhow::Result<()> {
    let mut file = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut file, line)?;
        file.push(b'\n');
    }
    Ok(side_file::write(path, &file)?)
}

fn table(report: &PredictionReport) -> String {
    let mut table = format!("{:>29}   95 % interval\n", "score") + &group("every line", &report.all);
    if let Some(first) = &report.one_per_picture {
        table += &group("the first line of each picture", first);
    }
    for (question, scores) in &report.by_question {
        table += &group(&format!("question: {question}"), scores);
    }
    for (round, scores) in &report.by_round {
        table += &group(&format!("round {round}"), scores);
    }
    if let Some(whole) = &report.every_round {
        table += &format!("conversations of several rounds with choices: {}\n", whole.n);
        table += &row("every round right", of_accuracy(whole));
        table += "\n";
    }
    let _ = writeln!(table, "Scores are times 100. CIDEr depends on the lines it is computed over.");
    if let meteor @ MeteorScore::ExactStem(_) = report.all.captions.meteor {
        let _ = writeln!(table, "{} is lower than the METEOR of papers; --meteor-data gives theirs.", meteor.name());
    }
    if report.without_answers > 0 {
        let _ = writeln!(table, "Lines without answers, which were not scored: {}.", report.without_answers);
    }
    table
}

/// One group of lines: a heading and a row for each score.
fn group(name: &str, scores: &GroupScores) -> String {
    let GroupScores { n, pictures, exact, exact_by_token, captions } = scores;
    let mut rows = vec![row("exact", of_accuracy(exact))];
    rows.extend(exact_by_token.as_ref().map(|exact| row("exact, by token", of_accuracy(exact))));
    rows.extend((1..).zip(captions.bleu).map(|(n, bleu)| row(&format!("BLEU-{n}"), bleu)));
    rows.push(row("ROUGE-L", captions.rouge_l));
    rows.push(row("CIDEr", captions.cider));
    rows.push(row(captions.meteor.name(), *captions.meteor.value()));
    format!("{name}: {n}, pictures: {pictures}\n{}\n", rows.concat())
}

fn row(name: &str, Estimate { score, ci95: [low, high] }: Estimate) -> String {
    let (score, low, high) = (100.0 * score, 100.0 * low, 100.0 * high);
    format!("  {name:<20} {score:>6.1}   {low:.1} to {high:.1}\n")
}

fn of_accuracy(accuracy: &Accuracy) -> Estimate {
    Estimate { score: accuracy.accuracy, ci95: accuracy.ci95 }
}
