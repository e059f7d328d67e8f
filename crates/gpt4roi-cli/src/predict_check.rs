//! `gpt4roi predict --check`: how much a file asks, and whether all of it can be asked, without a model.

use std::fmt;

use gpt4roi::{ImageSize, RegionId, mention};
use gpt4roi_data::{DataError, Dialogue, Picture, RecordError};
use indicatif::ProgressBar;
use rayon::prelude::*;

use crate::{
    failure::{Refusal, tell},
    session::print,
};

/// How many problems are told.
const TOLD: usize = 20;

/// Opens every picture and holds what is asked about it against its size; prints how much that is.
///
/// # Errors
/// If anything could not be asked. The first problems are told, and all are counted.
pub(crate) fn check(pictures: &[Picture], bar: &ProgressBar) -> anyhow::Result<()> {
    let problems = |picture| {
        let problems = problems(picture);
        bar.inc(1);
        problems
    };
    let problems: Vec<String> = pictures.par_iter().flat_map_iter(problems).collect();
    bar.finish_and_clear();
    print(&format!("{}\n", Amount::of(pictures)))?;
    if problems.is_empty() {
        return Ok(());
    }
    problems.iter().take(TOLD).for_each(|problem| tell(&format!("error: {problem}")));
    let first = if problems.len() > TOLD { format!(", of which the first {TOLD} stand above") } else { String::new() };
    Err(Refusal::failure(format!("expected records that fit their pictures, got problems: {}{first}", problems.len()))
        .into())
}

/// What is wrong with a picture, or with what is asked about it.
fn problems(picture: &Picture) -> Vec<String> {
    let size = match picture.open() {
        Ok(image) => image.size(),
        Err(error) => return vec![error.to_string()],
    };
    let problems = picture.dialogues.iter().flat_map(|dialogue| problems_of(dialogue, size));
    let mut problems: Vec<String> = problems.map(|error| error.to_string()).collect();
    // All boxes may be of a picture of another size, for one reason.
    problems.dedup();
    problems
}

fn problems_of(dialogue: &Dialogue, size: ImageSize) -> Vec<DataError> {
    let declared: Vec<RegionId> = match dialogue.boxes(size) {
        Ok(boxes) => boxes.into_iter().map(|(id, _)| id).collect(),
        Err(error) => return vec![error],
    };
    let rounds = (1..).zip(&dialogue.rounds);
    let problems = rounds.filter_map(|(round, asked)| {
        let source = mention::parse(&asked.typed(), &declared, size).err()?;
        Some(DataError::Record { place: dialogue.place.clone(), source: RecordError::Mention { round, source } })
    });
    problems.collect()
}

/// How much is asked.
struct Amount {
    pictures: usize,
    regions: usize,
    questions: usize,
    with_answers: usize,
    with_choices: usize,
}

impl Amount {
    fn of(pictures: &[Picture]) -> Self {
        let dialogues = || pictures.iter().flat_map(|picture| &picture.dialogues);
        let rounds = || dialogues().flat_map(|dialogue| &dialogue.rounds);
        Self {
            pictures: pictures.len(),
            regions: dialogues().map(|dialogue| dialogue.regions.len()).sum(),
            questions: rounds().count(),
            with_answers: rounds().filter(|round| !round.answers.is_empty()).count(),
            with_choices: rounds().filter(|round| !round.choices.is_empty()).count(),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pictures, regions, questions, with_answers, with_choices } = self;
        write!(f, "pictures: {pictures}, regions: {regions}, questions: {questions}, ")?;
        write!(f, "of these with answers: {with_answers}, with choices: {with_choices}")
    }
}
