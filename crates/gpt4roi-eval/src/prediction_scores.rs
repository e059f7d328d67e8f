//! Scores of a file of predictions: how often answers are right, and how good captions are.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    answers::is_right,
    captions::{CaptionScores, Corpus, Sample, SampleScores},
    metrics::{Accuracy, Tally},
    predictions::Prediction,
    ptb::PtbTokenizer,
};

/// What predictions are worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PredictionReport {
    /// Lines that could not be scored, because nobody said what would have been right.
    pub without_answers: usize,
    /// Over everything that was asked: protocol A of captions of Visual Genome's regions.
    pub all: GroupScores,
    /// Over the first line of each picture: protocol B. Nothing if no picture has more than one.
    pub one_per_picture: Option<GroupScores>,
    /// By question, each scored as a corpus of its own; empty unless asked for.
    pub by_question: BTreeMap<String, GroupScores>,
    /// Each line that was scored, in the order of the file.
    #[serde(skip)]
    pub lines: Vec<LineScores>,
}

/// The scores of some lines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GroupScores {
    /// Lines.
    pub n: usize,
    /// Pictures that these are about.
    pub pictures: usize,
    /// How often the answer is one of those that are right, without case, article and final punctuation.
    pub exact: Accuracy,
    /// Scores of captions.
    #[serde(flatten)]
    pub captions: CaptionScores,
}

/// The scores of one line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LineScores {
    /// The id of its dialogue.
    pub id: String,
    /// Its round, from 1.
    pub round: usize,
    /// Its picture.
    pub image: String,
    /// What was asked.
    pub question: String,
    /// What the model answered.
    pub prediction: String,
    /// Whether that is right.
    pub exact: bool,
    /// Scores of captions; CIDEr is that within the whole file.
    #[serde(flatten)]
    pub captions: SampleScores,
}

/// How predictions are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PredictionScoring {
    /// Score each question by itself, too.
    pub by_question: bool,
    /// Draws the corpora that intervals come from.
    pub seed: u64,
}

/// Scores predictions.
pub fn score(predictions: &[Prediction], scoring: PredictionScoring) -> PredictionReport {
    let tokenizer = PtbTokenizer::new();
    let lines: Vec<Line<'_>> = predictions.iter().filter_map(|prediction| Line::new(&tokenizer, prediction)).collect();
    let every: Vec<&Line<'_>> = lines.iter().collect();
    let corpus = corpus(&every);
    let first = first_of_pictures(&every);
    PredictionReport {
        without_answers: predictions.len() - lines.len(),
        all: group(&every, &corpus, scoring.seed),
        one_per_picture: (first.len() < lines.len()).then(|| corpus_scores(&first, scoring.seed)),
        by_question: by_question(&every, scoring),
        lines: lines.iter().zip(corpus.samples()).map(|(line, captions)| line.scores(captions)).collect(),
    }
}

/// A prediction with its answers as words.
struct Line<'p> {
    prediction: &'p Prediction,
    sample: Sample,
    right: bool,
}

impl<'p> Line<'p> {
    /// Nothing if there is nothing to compare with.
    fn new(tokenizer: &PtbTokenizer, prediction: &'p Prediction) -> Option<Self> {
        let Prediction { prediction: said, answers, .. } = prediction;
        (!answers.is_empty()).then(|| Self {
            prediction,
            sample: Sample::new(tokenizer, said, answers),
            right: is_right(said, answers),
        })
    }

    fn scores(&self, captions: SampleScores) -> LineScores {
        let Prediction { id, round, image, question, prediction, .. } = self.prediction.clone();
        LineScores { id, round, image, question, prediction, exact: self.right, captions }
    }
}

fn first_of_pictures<'l, 'p>(lines: &[&'l Line<'p>]) -> Vec<&'l Line<'p>> {
    let mut seen = BTreeSet::new();
    lines.iter().copied().filter(|line| seen.insert(&line.prediction.image)).collect()
}

fn by_question(lines: &[&Line<'_>], scoring: PredictionScoring) -> BTreeMap<String, GroupScores> {
    let mut groups: BTreeMap<&str, Vec<&Line<'_>>> = BTreeMap::new();
    for line in lines.iter().filter(|_| scoring.by_question) {
        groups.entry(&line.prediction.question).or_default().push(line);
    }
    groups.into_iter().map(|(question, lines)| (question.to_owned(), corpus_scores(&lines, scoring.seed))).collect()
}

fn corpus(lines: &[&Line<'_>]) -> Corpus {
    Corpus::new(&lines.iter().map(|line| line.sample.clone()).collect::<Vec<_>>())
}

fn corpus_scores(lines: &[&Line<'_>], seed: u64) -> GroupScores {
    group(lines, &corpus(lines), seed)
}

fn group(lines: &[&Line<'_>], corpus: &Corpus, seed: u64) -> GroupScores {
    GroupScores {
        n: lines.len(),
        pictures: first_of_pictures(lines).len(),
        exact: Tally::of(lines.iter().filter(|line| line.right).count(), lines.len()).accuracy(),
        captions: corpus.scores(seed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(image: &str, question: &str, said: &str, answers: &[&str]) -> Prediction {
        Prediction {
            id: "1".into(),
            round: 1,
            image: image.into(),
            question: question.into(),
            prediction: said.into(),
            answers: answers.iter().map(|&answer| answer.into()).collect(),
        }
    }

    #[test]
    fn protocols_groups_and_what_has_no_answer_are_told_apart() {
        let predictions = [
            prediction("a.png", "What?", "A cat.", &["cat", "kitten"]),
            prediction("a.png", "What?", "A dog.", &["cow"]),
            prediction("b.png", "Why?", "Because.", &[]),
            prediction("b.png", "Where?", "left", &["Left."]),
        ];
        let report = score(&predictions, PredictionScoring { by_question: true, seed: 1 });
        assert_eq!((report.without_answers, report.all.n, report.all.pictures), (1, 3, 2));
        assert_eq!((report.all.exact.accuracy, report.all.exact.n), (2.0 / 3.0, 3));
        let first = report.one_per_picture.expect("a.png has two lines");
        assert_eq!((first.n, first.exact.accuracy), (2, 1.0));
        let of = |question: &str| (report.by_question[question].n, report.by_question[question].exact.accuracy);
        assert_eq!((report.by_question.len(), of("What?"), of("Where?")), (2, (2, 0.5), (1, 1.0)));
        assert_eq!(report.lines.iter().map(|line| line.exact).collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn one_line_per_picture_needs_no_second_protocol() {
        let report = score(&[prediction("a.png", "What?", "a", &["a"])], PredictionScoring::default());
        assert_eq!((report.one_per_picture, report.by_question.len()), (None, 0));
    }

    #[test]
    fn nothing_to_score_is_no_failure() {
        let report = score(&[prediction("a.png", "What?", "a", &[])], PredictionScoring::default());
        assert_eq!((report.all.n, report.all.captions.cider.score, report.lines.len()), (0, 0.0, 0));
    }
}
