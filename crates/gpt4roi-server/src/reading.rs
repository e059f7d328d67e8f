//! Requests as the server reads them, without a server: for tests with hostile input, and for programs
//! that check a request before they send it. Limits are those of a server that was told nothing else.

use gpt4roi::{
    Choices, Gpt4Roi, RegionId,
    asked::{Exchange, Rendered, Said},
    bbox::ImageSize,
    chat::AskOptions,
    shape::Shape,
};
use serde_json::Value;

use crate::{
    body, chat_completions,
    conversation::Conversation,
    engine::Refused,
    fault::Fault,
    limits::{Limits, Memory},
    picture_source, regions_describe,
};

/// The file in a data URL, of at most so many bytes.
///
/// # Errors
/// If it is not base64, of another kind of file than pictures, or too large.
pub fn data_url(url: &str, most: usize) -> Result<Vec<u8>, Refusal> {
    Ok(picture_source::data(url, most, "url")?)
}

/// Reads the body of `POST /v1/chat/completions` about a picture of this size. The picture itself is not
/// opened, and the model's name not checked.
///
/// # Errors
/// As the server refuses it.
pub fn chat(body: &[u8], picture: ImageSize) -> Result<Chat, Refusal> {
    let request: chat_completions::Request = body::parse(body)?;
    let limits = Limits::default();
    let (options, choices, conversation) = request.read(&limits)?;
    let regions = conversation.shapes(picture, &Memory::new(limits.memory_bytes))?;
    Ok(Chat { size: picture, options, choices, conversation, regions })
}

/// Reads the body of `POST /v1/regions/describe` in the same way.
///
/// # Errors
/// As the server refuses it.
pub fn describe(body: &[u8], picture: ImageSize) -> Result<Describe, Refusal> {
    let request: regions_describe::Request = body::parse(body)?;
    let limits = Limits::default();
    let (_, choices, _) = request.read(&limits)?;
    let (ids, shapes) = request.shapes(picture, &Memory::new(limits.memory_bytes))?;
    Ok(Describe { ids, shapes, question: request.question(picture)?, choices })
}

/// A conversation that was read.
#[derive(Debug)]
pub struct Chat {
    size: ImageSize,
    options: AskOptions,
    choices: Option<Choices>,
    conversation: Conversation,
    regions: Vec<(RegionId, Shape)>,
}

impl Chat {
    /// Where in the request its picture stands, such as `messages[0].content[0].image_url.url`.
    pub fn picture(&self) -> &str {
        &self.conversation.source_param
    }

    /// The declared regions.
    pub fn regions(&self) -> &[(RegionId, Shape)] {
        &self.regions
    }

    /// What was said before, oldest first.
    pub fn rounds(&self) -> &[Exchange] {
        &self.conversation.rounds
    }

    /// What is asked now.
    pub fn question(&self) -> &[Said] {
        &self.conversation.question
    }

    /// The answers to choose between, if some were given.
    pub fn choices(&self) -> Option<&Choices> {
        self.choices.as_ref()
    }

    /// The prompt for a model, with a place for each region that is mentioned.
    ///
    /// # Errors
    /// If the question is empty or too long, mentions what is not declared, or has impossible coordinates.
    pub fn rendered(&self, model: &Gpt4Roi) -> Result<Rendered, Refusal> {
        let rendered = Rendered::new(model, self.size, &self.regions, self.rounds(), self.question(), &self.options);
        Ok(rendered.map_err(|error| self.conversation.refused(Refused::Question(error)))?)
    }
}

/// Regions to be described.
#[derive(Clone, Debug, PartialEq)]
pub struct Describe {
    /// The ids as they were given; where none was, the region's number.
    pub ids: Vec<String>,
    /// The regions, one for each id.
    pub shapes: Vec<Shape>,
    /// What is asked about each; `<region1>` stands for it.
    pub question: String,
    /// The answers to choose between, if some were given.
    pub choices: Option<Choices>,
}

/// Why a request is refused, as its client is told.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct Refusal(#[from] Fault);

impl Refusal {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.0.wire().0
    }

    /// The body: `{"error": {"message", "type", "param", "code"}}`.
    pub fn body(&self) -> Value {
        self.0.body()
    }
}
