//! What `ask`, `describe` and `chat` have in common: a model, a picture, a conversation.

use std::{
    io::{self, Cursor},
    path::Path,
    time::Instant,
};

use anyhow::Context;
use gpt4roi::{Chat, Gpt4Roi, Image, ImageSize, chat::ResolvedRegion};
use image::ImageFormat;
use serde::Serialize;

use crate::{
    annotate::annotated,
    drafts::DraftOptions,
    failure::tell,
    options::{ModelOptions, OutputOptions, PictureOptions},
    side_file,
};

/// A picture in memory, and no model yet: what is asked about it is read in between, so that nobody waits for a model
/// to be told of a slip.
#[derive(Debug)]
pub(crate) struct OpenedPicture {
    image: Image,
    begin: Instant,
}

/// A model and a picture, both in memory.
#[derive(Debug)]
pub(crate) struct Session {
    /// The model.
    pub(crate) model: Gpt4Roi,
    /// The picture.
    pub(crate) image: Image,
    load_seconds: f64,
    begin: Instant,
}

/// Wall-clock seconds, as `--json` reports them.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Timings {
    /// Reading the model.
    pub(crate) load_seconds: f64,
    /// Encoding the picture.
    pub(crate) encode_seconds: f64,
    /// From the question to the last token.
    pub(crate) answer_seconds: f64,
    /// Everything, from the program's start.
    pub(crate) total_seconds: f64,
}

impl OpenedPicture {
    /// Opens the picture.
    pub(crate) fn open(picture: &PictureOptions) -> anyhow::Result<Self> {
        let begin = Instant::now();
        Ok(Self { image: picture.open()?, begin })
    }

    /// What the coordinates of regions and questions refer to.
    pub(crate) fn size(&self) -> ImageSize {
        self.image.size()
    }

    /// Loads the model.
    pub(crate) fn with_model(self, model: &ModelOptions, output: &OutputOptions) -> anyhow::Result<Session> {
        let Self { image, begin } = self;
        let loading = Instant::now();
        let loaded = model.open()?;
        let load_seconds = loading.elapsed().as_secs_f64();
        if !output.quiet && !output.json {
            note_if_embedded(model);
        }
        Ok(Session { model: loaded, image, load_seconds, begin })
    }
}

impl Session {
    /// Encodes the picture.
    pub(crate) fn encode(&self, drafts: &DraftOptions, timings: &mut Timings) -> anyhow::Result<Chat<'_>> {
        let drafter = drafts.drafter(&self.model)?;
        let encoding = Instant::now();
        let chat = Chat::new(&self.model, &self.image)?.drafting_by(&drafter);
        timings.encode_seconds = encoding.elapsed().as_secs_f64();
        Ok(chat)
    }

    /// Timings so far; the rest is filled in as it happens.
    pub(crate) fn timings(&self) -> Timings {
        Timings { load_seconds: self.load_seconds, ..Timings::default() }
    }

    /// Times the answering, and with it everything.
    pub(crate) fn time<T>(&self, timings: &mut Timings, answer: impl FnOnce() -> T) -> T {
        let asked = Instant::now();
        let answered = answer();
        timings.answer_seconds = asked.elapsed().as_secs_f64();
        timings.total_seconds = self.begin.elapsed().as_secs_f64();
        answered
    }
}

/// Whoever asks about photographs should not take the small model's answers for what is possible.
pub(crate) fn note_if_embedded(model: &ModelOptions) {
    if model.is_embedded() {
        tell(
            "note: the embedded model knows drawn objects only, no photographs; --model DIR asks another (--quiet hides this)",
        );
    }
}

/// Whoever counts the lines of a data set should not look for these.
pub(crate) fn note_without_picture(conversations: usize) {
    if conversations > 0 {
        tell(&format!("note: conversations without a picture, which are passed over: {conversations}"));
    }
}

/// Writes the picture with the regions drawn in.
pub(crate) fn write_annotated(image: &Image, regions: &[ResolvedRegion], path: &Path) -> anyhow::Result<()> {
    let boxes: Vec<_> = regions.iter().map(|region| (region.id, region.pixels)).collect();
    let write = || {
        let mut file = Cursor::new(Vec::new());
        annotated(image.rgb(), &boxes).write_to(&mut file, ImageFormat::from_path(path)?)?;
        anyhow::Ok(side_file::write(path, file.get_ref())?)
    };
    write().with_context(|| path.display().to_string())
}

/// Prints one JSON object on standard output.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Prints on standard output, at once.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    io::Write::write_all(&mut out, text.as_bytes())?;
    io::Write::flush(&mut out)?;
    Ok(())
}
