//! Answers to choose between, as they are typed or stand in a file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use gpt4roi::{
    Choices,
    chat::AskOptions,
    choices::{ChoicesError, Chosen, ScoredChoice, Scoring},
    sampling::Sampling,
};
use serde::{Deserialize, Serialize};

use crate::{
    byte_order_mark,
    failure::{Refusal, warn},
};

/// The answers to choose between, if the model is not to answer in words of its own.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Choices")]
pub(crate) struct ChoiceOptions {
    /// An answer to choose between: given at least twice, the model says which of them is the most probable. In the
    /// variable each has a line
    #[arg(
        long = "choice",
        value_name = "TEXT",
        env = "GPT4ROI_CHOICE",
        value_delimiter = '\n',
        conflicts_with = "choices"
    )]
    typed: Vec<String>,

    #[command(flatten)]
    file: ChoiceFile,
}

/// A file of answers to choose between.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Choices")]
pub(crate) struct ChoiceFile {
    /// A file of answers to choose between, one a line, or a COCO file, of which the names of its categories are meant.
    /// A line may hold a label, a tab, and how the model says it ("octopus", "An octopus."). What is far less probable
    /// than others is not scored to its end
    #[arg(long = "choices", id = "choices", value_name = "FILE", env = "GPT4ROI_CHOICES")]
    path: Option<PathBuf>,
}

impl ChoiceOptions {
    /// The answers to choose between, if there are any, and how far they are scored.
    ///
    /// # Errors
    /// If they are none, or if tokens are to be drawn.
    pub(crate) fn resolve(&self, options: &mut AskOptions) -> anyhow::Result<Option<Choices>> {
        if self.typed.is_empty() {
            return self.file.resolve(options);
        }
        refuse_draws(options)?;
        let choices = Choices::new(&self.typed).map_err(|error| {
            Refusal::usage(format!("--choice: {error}")).hint("write for example --choice 'A cat.' --choice 'A dog.'")
        })?;
        Ok(Some(choices))
    }

    /// The file that is read, if one is.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.file.path()
    }
}

impl ChoiceFile {
    /// As [`ChoiceOptions::resolve`].
    pub(crate) fn resolve(&self, options: &mut AskOptions) -> anyhow::Result<Option<Choices>> {
        let Some(path) = &self.path else { return Ok(None) };
        refuse_draws(options)?;
        options.scoring = Scoring::Likely;
        Ok(Some(read(path)?))
    }

    /// The file that is read, if one is.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

/// # Errors
/// If tokens are to be drawn: of choices, none are.
pub(crate) fn refuse_draws(options: &AskOptions) -> Result<(), Refusal> {
    match options.sampling {
        Sampling::Greedy => Ok(()),
        Sampling::Random { .. } => Err(Refusal::usage("--temperature: where answers are given, no tokens are drawn")
            .hint("leave --temperature away, or the choices")),
    }
}

/// The answers of a line of a chat, and how far they are scored: typed, or, where there is only one, in the file of this
/// name.
///
/// # Errors
/// If they are none, or if there is no such file.
pub(crate) fn named(answers: &[&str]) -> anyhow::Result<(Choices, Scoring)> {
    match answers {
        [file] if Path::new(file).exists() => Ok((read(Path::new(file))?, Scoring::Likely)),
        [answer] => Err(Refusal::usage(format!(
            "/choose: expected two answers or more, or a file of them, got `{answer}`, and there is no such file"
        ))
        .into()),
        _ => {
            let choices = Choices::new(answers).map_err(|error| Refusal::usage(format!("/choose: {error}")))?;
            Ok((choices, Scoring::All))
        }
    }
}

/// Reads a file of choices.
fn read(path: &Path) -> anyhow::Result<Choices> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let bytes = byte_order_mark::without(&bytes);
    let choices = match bytes.trim_ascii_start().first() {
        Some(b'{') => categories(bytes),
        _ => lines(bytes),
    };
    choices.with_context(|| path.display().to_string())
}

/// One choice a line, or a label, a tab and its wording; blank lines are skipped, and errors name the others by their
/// numbers.
fn lines(bytes: &[u8]) -> anyhow::Result<Choices> {
    let mut numbers = Vec::new();
    let mut choices = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        let line = str::from_utf8(line).with_context(|| format!("line {number}: expected UTF-8"))?.trim();
        if !line.is_empty() {
            numbers.push(number);
            choices.push(line.split_once('\t').unwrap_or((line, line)));
        }
    }
    let line = |choice: usize| numbers.get(choice - 1).copied().unwrap_or(0);
    Choices::worded(choices).map_err(|error| match error {
        ChoicesError::Repeated { number, first, text } => {
            let (number, first) = (line(number), line(first));
            anyhow::anyhow!(
                "line {number}: expected a choice that differs from the others, got {text:?} as on line {first}"
            )
        }
        ChoicesError::Unwritable { number, text } => {
            anyhow::anyhow!(
                "line {}: expected a choice without \"###\", which ends an answer, got {text:?}",
                line(number)
            )
        }
        ChoicesError::TooFew { got } => anyhow::anyhow!("expected at least 2 choices, one a line, got {got}"),
        other => other.into(),
    })
}

/// The names of a COCO file's categories, each once.
fn categories(bytes: &[u8]) -> anyhow::Result<Choices> {
    #[derive(Deserialize)]
    struct Coco {
        categories: Vec<Category>,
    }
    #[derive(Deserialize)]
    struct Category {
        name: String,
    }
    let coco: Coco = serde_json::from_slice(bytes).context("expected one choice a line, or a COCO file")?;
    let mut names: Vec<String> = Vec::new();
    for Category { name } in coco.categories {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Choices::new(names).context("\"categories\"")
}

/// What was chosen, as `--json` reports it beside the answer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ChoiceReport {
    /// The most probable choice, if its share was not enough for `--abstain`.
    pub(crate) withheld: Option<String>,
    /// Its share among the choices, 0 to 1.
    pub(crate) probability: f64,
    choices: Vec<Share>,
}

/// A choice.
#[derive(Debug, Clone, Serialize)]
struct Share {
    text: String,
    /// Its share among the choices.
    probability: f64,
    /// The logarithm of its probability among all texts.
    log_probability: f64,
    tokens: usize,
    /// Whether it was scored to its end.
    complete: bool,
}

impl ChoiceReport {
    pub(crate) fn new(chosen: &Chosen, abstain: Option<f64>) -> Self {
        let share = |(choice, probability): (&ScoredChoice, f64)| Share {
            text: choice.text.clone(),
            probability,
            log_probability: choice.log_probability,
            tokens: choice.tokens,
            complete: choice.complete,
        };
        Self {
            withheld: (told(chosen, abstain) != chosen.text()).then(|| chosen.text().to_owned()),
            probability: chosen.probability(),
            choices: chosen.choices.iter().zip(chosen.probabilities()).map(share).collect(),
        }
    }
}

/// Whether the model would write none of the choices: bare names to one that answers in sentences, for example. The
/// embedded model's own answers come to 0.84 and more, bare names to 0.014 at most; a text of ten tokens below this is
/// written less than once in 10¹³ answers.
pub(crate) fn is_unlike_answers(chosen: &Chosen) -> bool {
    chosen.likeness() < 0.05
}

/// Shares of what the model would never write look like any others. `what` says what was chosen.
pub(crate) fn warn_if_unlike_answers(what: &str, chosen: &Chosen) {
    if is_unlike_answers(chosen) {
        warn(&format!("{what}: {UNLIKE}"));
    }
}

/// What there is to say about such shares.
pub(crate) const UNLIKE: &str = "the model would write none of the choices, so that their shares say little; without \
    choices it shows how it words an answer";

/// What the user is told; `abstain` is the least share of a choice that is.
pub(crate) fn told(chosen: &Chosen, abstain: Option<f64>) -> &str {
    chosen.text_if_sure(abstain.unwrap_or(0.0))
}

/// The most probable choices with their shares, the best first.
pub(crate) fn shares(chosen: &Chosen) -> String {
    const TOLD: usize = 3;
    let texts = chosen.choices.iter().map(|choice| &choice.text);
    let mut shares: Vec<(&String, f64)> = texts.zip(chosen.probabilities()).collect();
    shares.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let more = shares.len().saturating_sub(TOLD);
    let told = shares.into_iter().take(TOLD).map(|(text, share)| format!("{share:.2} {text}"));
    let told: Vec<String> = told.chain((more > 0).then(|| format!("{more} more"))).collect();
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_shares_are_told_first() {
        let choice = |(text, share): (&str, f64)| ScoredChoice {
            text: text.into(),
            log_probability: (share / 8.0).ln(),
            tokens: 4,
            complete: true,
        };
        let mut chosen = Chosen {
            question: String::new(),
            regions: Vec::new(),
            choices: [("A cat.", 0.25), ("A dog.", 0.62), ("A hen.", 0.13)].map(choice).into(),
            prompt_tokens: 9,
            reused_tokens: 0,
        };
        assert_eq!(shares(&chosen), "0.62 A dog., 0.25 A cat., 0.13 A hen.");
        chosen.choices.extend([("An ox.", 0.0), ("A fox.", 0.0)].map(choice));
        assert_eq!(shares(&chosen), "0.62 A dog., 0.25 A cat., 0.13 A hen., 2 more");
    }

    fn of(text: &[u8]) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let named = format!("{}: ", file.path().display());
        let choices = read(file.path()).map(|choices| choices.texts().to_vec());
        choices.map_err(|error| format!("{error:#}").strip_prefix(&named).unwrap().to_owned())
    }

    #[test]
    fn a_file_has_a_choice_on_every_line() {
        let expected = Ok(vec!["a cat".to_owned(), "Fähre".to_owned()]);
        assert_eq!(of("a cat\nFähre".as_bytes()), expected);
        assert_eq!(of("\u{FEFF}\r\n a cat \r\n\r\nFähre\r\n".as_bytes()), expected);
        assert_eq!(
            of(r#"{"categories": [{"name": "a cat", "id": 3}, {"name": "Fähre"}, {"name": "a cat"}]}"#.as_bytes()),
            expected
        );
    }

    #[test]
    fn a_line_may_have_a_label_and_its_wording() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "octopus\tAn octopus.\n\nA cat.\r\nbread \t A loaf\tof bread.\n").unwrap();
        let choices = read(file.path()).unwrap();
        assert_eq!(choices.texts(), ["octopus", "A cat.", "bread"]);
        assert_eq!(choices.wordings(), ["An octopus.", "A cat.", "A loaf\tof bread."]);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, expected) in [
            (&b""[..], "expected at least 2 choices, one a line, got 0"),
            (b"cat\n\n", "expected at least 2 choices, one a line, got 1"),
            (b"cat\n\ndog\n cat\n", "line 4: expected a choice that differs from the others, got \"cat\" as on line 1"),
            (b"cat\n\n###\n", "line 3: expected a choice without \"###\", which ends an answer, got \"###\""),
            (b"cat\nd\xFFg\n", "line 2: expected UTF-8"),
            (b"cat\tA pet.\n\ndog\tA pet.\n", "line 3: expected a choice that differs from the others, got \"A pet.\""),
            (b"{\"categories\": [{\"name\": \"cat\"}]}", "\"categories\": expected at least 2 choices, got 1"),
            (b"{\"images\": []}", "expected one choice a line, or a COCO file: missing field `categories`"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}, expected {expected}");
        }
    }
}
