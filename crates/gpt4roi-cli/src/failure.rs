//! Errors as a user reads them: what went wrong, and what to do about it.

use std::{fmt, io, process::ExitCode};

use gpt4roi::{
    Error, ImageSize, adapter, bbox::BoxError, convert::ConvertError, image::ImageError, mention::MentionError,
    prompt::PromptError, weights::WeightsError,
};
use gpt4roi_data::{
    DataError,
    records::{Entry, RecordError},
};
use gpt4roi_eval::meteor_tables::MeteorTableError;
use gpt4roi_hub::{HubError, Refused};
use gpt4roi_train::TrainError;

/// A refusal of this program's own, with advice.
#[derive(Debug)]
pub(crate) struct Refusal {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Refusal {
    /// The command asks for what can't be: exit code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: 2 }
    }

    /// Something is not as it should be: exit code 1.
    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: 1 }
    }

    /// What to do instead.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What to do instead, if anybody knows.
    pub(crate) fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// The exit code of a program that somebody has stopped, as shells have it for Ctrl-C.
pub(crate) const STOPPED: u8 = 130;

/// Somebody has stopped what can go on later. Nothing has failed, and it is not done.
#[derive(Debug)]
pub(crate) struct Stopped(
    /// How far it came, and how it goes on.
    pub(crate) String,
);

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stopped {}

/// Prints an error with its hint, and says with which code to exit.
///
/// A reader that went away, as `head` does, is no failure: there is nobody left to tell.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if let Some(Stopped(message)) = error.downcast_ref() {
        tell(message);
        return ExitCode::from(STOPPED);
    }
    print(error);
    ExitCode::from(code(error))
}

/// Everything that stands on the command line counts as usage, the question included.
fn code(error: &anyhow::Error) -> u8 {
    match (error.downcast_ref::<Refusal>(), error.downcast_ref::<Error>()) {
        (Some(refusal), _) => refusal.code,
        (_, Some(Error::Mention(_) | Error::Prompt(_))) => 2,
        _ => 1,
    }
}

/// Prints an error with its hint, for a program that goes on.
pub(crate) fn print(error: &anyhow::Error) {
    tell(&format!("error: {}", message(error)));
    if let Some(hint) = hint(error) {
        tell(&format!("hint: {hint}"));
    }
}

/// A line on standard error. If nobody reads it, nothing is lost.
pub(crate) fn tell(line: &str) {
    let _ = io::Write::write_all(&mut io::stderr().lock(), format!("{line}\n").as_bytes());
}

/// Tells what the user should know in any case, however quiet the program is to be.
pub(crate) fn warn(line: &str) {
    tell(&format!("warning: {line}"));
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref()).any(broken)
}

/// The error with its causes. Most of the library's messages quote their cause already.
fn message(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return refusal.advice().map(str::to_owned);
    }
    if let Some(error) = error.downcast_ref::<HubError>() {
        return hint_about_hub(error).map(str::to_owned);
    }
    if let Some(MeteorTableError::File { .. }) = error.downcast_ref() {
        return Some("`pip install pycocoevalcap` brings both files, in its folder pycocoevalcap/meteor".into());
    }
    if let Some(DataError::Exists { .. }) = error.downcast_ref() {
        return Some("--force writes over what lies there; --out takes another directory".into());
    }
    if let Some(DataError::Record { place, source: RecordError::Json { .. } | RecordError::NoText }) =
        error.downcast_ref()
        && place.entry == Entry::Line(1)
    {
        return Some(DATA.into());
    }
    if let Some(DataError::Record { source: RecordError::Size { .. }, .. }) = error.downcast_ref() {
        return Some(
            "boxes are pixels of the upright picture; if these are, take `width` and `height` out of the file".into(),
        );
    }
    let hint = match model_error(error)? {
        Error::Image(image) => hint_about_image(image)?,
        Error::Mention(error) => return Some(hint_about_mention(error)),
        Error::Prompt(PromptError::TooLong { .. }) => "shorten the question, or begin a new conversation",
        Error::Convert(ConvertError::Exists { .. }) => "--force replaces it",
        Error::Convert(ConvertError::InUse { .. }) => "wait for the other one, or name another place with --out",
        Error::Convert(ConvertError::Foreign { .. }) => {
            "--out takes another directory; or move what is not the model's away"
        }
        Error::Convert(ConvertError::Incomplete { missing: "vision tower", .. }) => {
            "--tower names one, e.g. a directory with openai/clip-vit-large-patch14"
        }
        Error::Generate(_) => "the model's weights may be damaged; `gpt4roi inspect --model DIR` looks at them",
        Error::Weights(WeightsError::Corrupt { file, .. }) if file.ends_with(adapter::WEIGHTS) => {
            "the adapter is at fault and not the model: export it again, or copy it anew"
        }
        Error::Weights(_) => "`gpt4roi inspect --model DIR` compares the files with what the model needs",
        _ => return None,
    };
    Some(hint.into())
}

/// What a file of records is, for whoever gave another.
const DATA: &str = "DATA is JSON: conversations, one a line, or a file as COCO, Visual Genome, LLaVA and others have \
    them; docs/own-data.md describes each";

fn hint_about_mention(error: &MentionError) -> String {
    match error {
        MentionError::Coordinates { source: BoxError::Empty { .. }, .. } => {
            "a box is [left, top, right, bottom]".into()
        }
        MentionError::Coordinates { picture: ImageSize { width, height }, .. } => {
            format!("the picture is {width}×{height} pixels; fractions of it have a decimal point, as in (0.5, 0.25)")
        }
        MentionError::SinglePixel { .. } => {
            "fractions of the picture have a decimal point, as in [0.0, 0.0, 1.0, 1.0]".into()
        }
        _ => {
            "regions are declared with --region, --point, --polygon or --mask (in a chat: /region …) and numbered from \
              1 in that order"
                .into()
        }
    }
}

/// The library's own error, whichever crate hands it on.
fn model_error(error: &anyhow::Error) -> Option<&Error> {
    match error.downcast_ref::<TrainError>() {
        Some(TrainError::Model(error)) => Some(error),
        _ => error.downcast_ref::<Error>(),
    }
}

fn hint_about_hub(error: &HubError) -> Option<&'static str> {
    Some(match error {
        HubError::Refused { reason: Refused::Gated, .. } => {
            "accept them on the model's page at the hub, then set HF_TOKEN to a token of the same account"
        }
        HubError::Refused { reason: Refused::Unauthorized, .. } => {
            "look at the name again; for a private model, set HF_TOKEN to a token that may read it"
        }
        HubError::Refused { reason: Refused::Forbidden, .. } => {
            "the token in HF_TOKEN, or in its file, may not read it"
        }
        HubError::Refused { reason: Refused::NoModel, .. } => "look at the name again: ORG/NAME, as the hub writes it",
        HubError::Refused { reason: Refused::NoRevision, .. } => "without @REV, the branch main is taken",
        HubError::Offline { .. } => "unset HF_HUB_OFFLINE, or set HF_HUB_CACHE to a cache that has it",
        HubError::NoWeights { .. } => "--all takes every file, --file PATH a certain one",
        HubError::NoSuchFile { .. } => "--file takes a path as the model's page at the hub shows it",
        HubError::NotCached { .. } => "`gpt4roi cache list` shows what is there",
        HubError::InUse { .. } => "let the other download end first",
        HubError::DiskFull { .. } => "make room, or set HF_HUB_CACHE to another disk; the same command then goes on",
        HubError::Status { status: 429, .. } => "wait some minutes; with HF_TOKEN set, hubs allow more requests",
        HubError::Certificate { .. } => "SSL_CERT_FILE names a file of further certificates to trust",
        HubError::Connection { .. } | HubError::Stalled { .. } | HubError::Length { .. } | HubError::Status { .. } => {
            "the same command goes on where this one stopped; HF_ENDPOINT names another hub"
        }
        _ => return None,
    })
}

fn hint_about_image(error: &ImageError) -> Option<&'static str> {
    match error {
        ImageError::InFile { source, .. } => hint_about_image(source),
        ImageError::TooLarge { .. } => Some("allow more with --max-pixels"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = || io::Error::other("no such thing");
        let quoted = anyhow::Error::new(Error::file("a.png", cause()));
        assert_eq!(message(&quoted), "a.png: no such thing");
        let added = anyhow::Error::new(cause()).context("reading a.png");
        assert_eq!(message(&added), "reading a.png: no such thing");
    }

    #[test]
    fn a_broken_pipe_is_found_below_its_context() {
        let broken = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing the answer");
        assert!(is_broken_pipe(&broken));
        assert!(!is_broken_pipe(&anyhow::anyhow!("another")));
    }
}
