//! Scores of a file of predictions: how often answers are right, and how good captions are.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use gpt4roi::choices::best_by_token;
use serde::Serialize;

use crate::{
    answers::is_right,
    captions::{CaptionScores, Corpus, Sample, SampleScores},
    meteor::Meteor,
    meteor_tables::{MeteorTableError, MeteorTables},
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
    /// By round, from 1, each scored as a corpus of its own; empty unless asked for.
    pub by_round: BTreeMap<usize, GroupScores>,
    /// Of the conversations with several rounds of choices that were scored: how often all of these are right, which for
    /// VCR is Q→AR. Nothing if there are none.
    pub every_round: Option<Accuracy>,
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
    /// Of lines with choices: how often the choice with the highest mean logarithm of its tokens' probabilities is right.
    /// Nothing if there are none, or if one of them has a choice that was given up: the others are no fair sample, since
    /// choices are given up where the model is sure.
    pub exact_by_token: Option<Accuracy>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PredictionScoring {
    /// Score each question by itself, too.
    pub by_question: bool,
    /// Score each round by itself, too.
    pub by_round: bool,
    /// Draws the corpora that intervals come from.
    pub seed: u64,
    /// A folder with METEOR's tables, as [`MeteorTables::read`] takes it. Without one, METEOR knows neither synonyms nor
    /// paraphrases.
    pub meteor_data: Option<PathBuf>,
}

/// Scores predictions.
///
/// # Errors
/// If METEOR's tables can't be read.
pub fn score(predictions: &[Prediction], scoring: &PredictionScoring) -> Result<PredictionReport, MeteorTableError> {
    let tokenizer = PtbTokenizer::new();
    let lines: Vec<Line<'_>> = predictions.iter().filter_map(|prediction| Line::new(&tokenizer, prediction)).collect();
    let every: Vec<&Line<'_>> = lines.iter().collect();
    let scale = Scale { meteor: meteor(&every, scoring)?, seed: scoring.seed };
    let corpus = scale.corpus(&every);
    let first = first_of_pictures(&every);
    Ok(PredictionReport {
        without_answers: predictions.len() - lines.len(),
        all: scale.group(&every, &corpus),
        one_per_picture: (first.len() < lines.len()).then(|| scale.scores(&first)),
        by_question: match scoring.by_question {
            true => scale.grouped(&every, |line| line.prediction.question.clone()),
            false => BTreeMap::new(),
        },
        by_round: match scoring.by_round {
            true => scale.grouped(&every, |line| line.prediction.round),
            false => BTreeMap::new(),
        },
        every_round: every_round(&every),
        lines: lines.iter().zip(corpus.samples()).map(|(line, captions)| line.scores(captions)).collect(),
    })
}

/// A prediction with its answers as words.
struct Line<'p> {
    prediction: &'p Prediction,
    sample: Sample,
    right: bool,
    /// Whether the choice that is best by its tokens' mean is right, if that is known.
    right_by_token: Option<bool>,
}

impl<'p> Line<'p> {
    /// Nothing if there is nothing to compare with.
    fn new(tokenizer: &PtbTokenizer, prediction: &'p Prediction) -> Option<Self> {
        let Prediction { prediction: said, answers, choices, .. } = prediction;
        let by_token = |place: usize| is_right(&choices[place].text, answers);
        (!answers.is_empty()).then(|| Self {
            prediction,
            sample: Sample::new(tokenizer, said, answers),
            right: is_right(said, answers),
            right_by_token: best_by_token(choices).map(by_token),
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

fn every_round(lines: &[&Line<'_>]) -> Option<Accuracy> {
    let mut conversations: BTreeMap<(&str, &str), Vec<bool>> = BTreeMap::new();
    for line in lines.iter().filter(|line| !line.prediction.choices.is_empty()) {
        conversations.entry((&line.prediction.image, &line.prediction.id)).or_default().push(line.right);
    }
    conversations.retain(|_, rounds| rounds.len() > 1);
    let right = conversations.values().filter(|rounds| rounds.iter().all(|right| *right)).count();
    (!conversations.is_empty()).then(|| Tally::of(right, conversations.len()).accuracy())
}

fn samples(lines: &[&Line<'_>]) -> Vec<Sample> {
    lines.iter().map(|line| line.sample.clone()).collect()
}

fn meteor(lines: &[&Line<'_>], scoring: &PredictionScoring) -> Result<Meteor, MeteorTableError> {
    match &scoring.meteor_data {
        Some(folder) => Ok(Meteor::with_tables(MeteorTables::read(folder, &samples(lines))?)),
        None => Ok(Meteor::new()),
    }
}

/// What groups of lines are measured by.
struct Scale {
    meteor: Meteor,
    seed: u64,
}

impl Scale {
    fn corpus(&self, lines: &[&Line<'_>]) -> Corpus {
        Corpus::new(&samples(lines), &self.meteor)
    }

    fn scores(&self, lines: &[&Line<'_>]) -> GroupScores {
        self.group(lines, &self.corpus(lines))
    }

    fn grouped<K: Ord>(&self, lines: &[&Line<'_>], by: impl Fn(&Line<'_>) -> K) -> BTreeMap<K, GroupScores> {
        let mut groups: BTreeMap<K, Vec<&Line<'_>>> = BTreeMap::new();
        for &line in lines {
            groups.entry(by(line)).or_default().push(line);
        }
        groups.into_iter().map(|(key, lines)| (key, self.scores(&lines))).collect()
    }

    fn group(&self, lines: &[&Line<'_>], corpus: &Corpus) -> GroupScores {
        let with_choices = lines.iter().filter(|line| !line.prediction.choices.is_empty());
        let by_token: Vec<bool> =
            with_choices.map(|line| line.right_by_token).collect::<Option<_>>().unwrap_or_default();
        let right_by_token = by_token.iter().filter(|right| **right).count();
        GroupScores {
            n: lines.len(),
            pictures: first_of_pictures(lines).len(),
            exact: Tally::of(lines.iter().filter(|line| line.right).count(), lines.len()).accuracy(),
            exact_by_token: (!by_token.is_empty()).then(|| Tally::of(right_by_token, by_token.len()).accuracy()),
            captions: corpus.scores(self.seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use gpt4roi::choices::ScoredChoice;

    use super::*;

    fn prediction(image: &str, question: &str, said: &str, answers: &[&str]) -> Prediction {
        Prediction {
            id: "1".into(),
            round: 1,
            image: image.into(),
            question: question.into(),
            prediction: said.into(),
            answers: answers.iter().map(|&answer| answer.into()).collect(),
            choices: Vec::new(),
        }
    }

    fn scored(predictions: &[Prediction], scoring: PredictionScoring) -> PredictionReport {
        score(predictions, &scoring).expect("no tables are read")
    }

    #[test]
    fn protocols_groups_and_what_has_no_answer_are_told_apart() {
        let predictions = [
            prediction("a.png", "What?", "A cat.", &["cat", "kitten"]),
            prediction("a.png", "What?", "A dog.", &["cow"]),
            prediction("b.png", "Why?", "Because.", &[]),
            prediction("b.png", "Where?", "left", &["Left."]),
        ];
        let report =
            scored(&predictions, PredictionScoring { by_question: true, seed: 1, ..PredictionScoring::default() });
        assert_eq!((report.without_answers, report.all.n, report.all.pictures), (1, 3, 2));
        assert_eq!((report.all.exact.accuracy, report.all.exact.n), (2.0 / 3.0, 3));
        let first = report.one_per_picture.expect("a.png has two lines");
        assert_eq!((first.n, first.exact.accuracy), (2, 1.0));
        let of = |question: &str| (report.by_question[question].n, report.by_question[question].exact.accuracy);
        assert_eq!((report.by_question.len(), of("What?"), of("Where?")), (2, (2, 0.5), (1, 1.0)));
        assert_eq!(report.lines.iter().map(|line| line.exact).collect::<Vec<_>>(), [true, false, true]);
    }

    /// What was chosen in a round of a conversation: between `yes`, with two tokens, and `no, never`, with four.
    fn choice(id: &str, round: usize, log_probabilities: [f64; 2], right: &str) -> Prediction {
        let [yes, no] = log_probabilities;
        let scored = |text: &str, log_probability, tokens| ScoredChoice {
            text: text.into(),
            log_probability,
            tokens,
            complete: log_probability > -50.0,
        };
        let choices = vec![scored("yes", yes, 2), scored("no, never", no, 4)];
        let said = if yes >= no { "yes" } else { "no, never" };
        Prediction { id: id.into(), round, choices, ..prediction("a.png", "Is it?", said, &[right]) }
    }

    #[test]
    fn choices_are_scored_by_token_too_and_conversations_as_wholes() {
        let predictions = [
            // Means: -0.5 and -0.75; -1 and -0.5, though the shorter one is as a whole as probable.
            choice("both", 1, [-1.0, -3.0], "yes"),
            choice("both", 2, [-2.0, -2.0], "yes"),
            choice("one", 1, [-1.0, -3.0], "yes"),
            choice("one", 2, [-3.0, -1.0], "yes"),
            // What was given up has no known mean, and a conversation of one round is not counted as one.
            choice("single", 1, [-1.0, -60.0], "no, never"),
            Prediction { id: "both".into(), round: 3, ..prediction("a.png", "Why?", "because", &["so"]) },
        ];
        let scoring = PredictionScoring { by_round: true, ..PredictionScoring::default() };
        let report = scored(&predictions, scoring.clone());
        let whole = report.every_round.expect("two conversations of two rounds");
        assert_eq!((whole.accuracy, whole.n), (0.5, 2));
        assert_eq!((report.all.exact.accuracy, report.all.exact.n), (3.0 / 6.0, 6));
        assert_eq!(report.all.exact_by_token, None, "a choice of the fifth line was given up");
        let mut known = predictions.to_vec();
        known.remove(4);
        let by_token = scored(&known, scoring.clone()).all.exact_by_token.expect("four lines");
        assert_eq!((by_token.accuracy, by_token.n), (0.5, 4));
        let rounds: Vec<_> =
            report.by_round.iter().map(|(round, group)| (*round, group.n, group.exact.accuracy)).collect();
        assert_eq!(rounds, [(1, 3, 2.0 / 3.0), (2, 2, 0.5), (3, 1, 0.0)]);
        assert_eq!(report.by_round[&3].exact_by_token, None);
        let single = scored(&predictions[4..], scoring);
        assert_eq!((single.every_round, single.all.exact_by_token), (None, None));
    }

    #[test]
    fn one_line_per_picture_needs_no_second_protocol() {
        let report = scored(&[prediction("a.png", "What?", "a", &["a"])], PredictionScoring::default());
        assert_eq!((report.one_per_picture, report.by_question.len()), (None, 0));
    }

    #[test]
    fn nothing_to_score_is_no_failure() {
        let report = scored(&[prediction("a.png", "What?", "a", &[])], PredictionScoring::default());
        assert_eq!((report.all.n, report.all.captions.cider.score, report.lines.len()), (0, 0.0, 0));
    }
}
