//! What a client is told when something is refused or fails, in OpenAI's form.

use std::time::Duration;

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use gpt4roi::{chat::ChatError, image::ImageError, prompt::PromptError};
use serde_json::{Value, json};

use crate::{
    engine::{Failure, Refused},
    fetch::FetchError,
    limits::Unit,
};

/// A result whose error is told to the client.
pub(crate) type Result<T> = std::result::Result<T, Fault>;

/// Everything that a client can be told. Messages are made here and quote nothing but the client's own
/// words and numbers: no paths, no addresses, nothing of the program's insides.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the body is not JSON: {0}")]
    Json(String),
    #[error("{}{message}", place(param))]
    Field { param: Option<String>, message: String },
    #[error("{param}: expected {expected}")]
    Value { param: String, expected: String },
    #[error("{param} is not supported: {why}")]
    Unsupported { param: String, why: &'static str },
    #[error("{param}: expected at most {most} {unit}, got {got}")]
    TooMany { param: String, unit: Unit, most: usize, got: usize },
    #[error("{}{message}", place(param))]
    UnknownRegion { param: Option<String>, message: String },
    #[error("{param}: {message}")]
    Region { param: String, message: String },
    #[error("{}{message}", place(param))]
    Question { param: Option<String>, message: String },
    #[error("{0}")]
    ContextLength(String),

    #[error("{param}: {message}")]
    Picture { param: String, message: String },
    #[error("{param}: {message}")]
    PictureTooLarge { param: String, message: String },
    #[error("{0}")]
    PictureCount(&'static str),
    #[error("{param}: there is no such picture, or it has expired; upload it again")]
    PictureNotFound { param: String },
    #[error("{message}; delete some that were uploaded before, or wait")]
    PictureQuota { message: String, retry_after: Duration },
    #[error(
        "{param}: pictures are not fetched from elsewhere; send a data URL, or start the server with --fetch-images"
    )]
    FetchOff { param: String },
    #[error("{param}: the picture could not be fetched: {reason}")]
    Fetch { param: String, reason: FetchError },

    #[error("expected a valid API key: Authorization: Bearer KEY")]
    Unauthorized,
    #[error("this server does not answer for this host; --allow-host names others")]
    Host,
    #[error("this server does not answer pages of this origin; --allow-origin names those that may")]
    Origin,
    #[error("there is nothing here")]
    NotFound,
    #[error("{param}: there is no model {model}, expected {served}")]
    ModelNotFound { param: &'static str, model: String, served: String },
    #[error("this method is not allowed here")]
    MethodNotAllowed,
    #[error("expected a body of at most {0} bytes")]
    BodyTooLarge(usize),
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("the body was cut short")]
    BodyBroken,
    #[error("expected a body of type {0}")]
    MediaType(&'static str),

    #[error("too many requests are waiting")]
    QueueFull { retry_after: Duration },
    #[error("the server is busy with other requests")]
    Busy,
    #[error("the server is stopping")]
    Stopping,
    #[error("the model is not ready yet")]
    NotReady,
    #[error("the answer was not ready in time")]
    Deadline,
    #[error("the model computed numbers that are none")]
    Numbers,
    #[error("the engine failed")]
    Engine,
}

impl Fault {
    /// HTTP status, and the code by which programs know it.
    pub(crate) fn wire(&self) -> (u16, &'static str) {
        match self {
            Self::Json(_) => (400, "invalid_json"),
            Self::Field { .. } | Self::Value { .. } => (400, "invalid_value"),
            Self::Unsupported { .. } => (400, "unsupported_parameter"),
            Self::TooMany { unit, .. } => (400, unit.code()),
            Self::UnknownRegion { .. } => (400, "unknown_region"),
            Self::Region { .. } => (422, "invalid_region"),
            Self::Question { .. } => (400, "invalid_question"),
            Self::ContextLength(_) => (400, "context_length_exceeded"),
            Self::Picture { .. } => (400, "invalid_image"),
            Self::PictureTooLarge { .. } => (413, "image_too_large"),
            Self::PictureCount(_) => (400, "image_count"),
            Self::PictureNotFound { .. } => (404, "image_not_found"),
            Self::PictureQuota { .. } => (429, "image_quota_exceeded"),
            Self::FetchOff { .. } => (400, "image_fetch_disabled"),
            Self::Fetch { .. } => (400, "image_fetch_failed"),
            Self::Unauthorized => (401, "invalid_api_key"),
            Self::Host => (403, "host_not_allowed"),
            Self::Origin => (403, "origin_not_allowed"),
            Self::NotFound => (404, "not_found"),
            Self::ModelNotFound { .. } => (404, "model_not_found"),
            Self::MethodNotAllowed => (405, "method_not_allowed"),
            Self::BodyTooLarge(_) => (413, "body_too_large"),
            Self::BodyTimeout => (408, "body_timeout"),
            Self::BodyBroken => (400, "body_incomplete"),
            Self::MediaType(_) => (415, "unsupported_media_type"),
            Self::QueueFull { .. } => (429, "queue_full"),
            Self::Busy => (429, "server_busy"),
            Self::Stopping => (503, "stopping"),
            Self::NotReady => (503, "not_ready"),
            Self::Deadline => (504, "timeout"),
            Self::Numbers => (500, "model_error"),
            Self::Engine => (500, "engine_error"),
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Field { param, .. } | Self::UnknownRegion { param, .. } | Self::Question { param, .. } => {
                param.as_deref()
            }
            Self::Value { param, .. }
            | Self::Unsupported { param, .. }
            | Self::TooMany { param, .. }
            | Self::Region { param, .. }
            | Self::Picture { param, .. }
            | Self::PictureTooLarge { param, .. }
            | Self::PictureNotFound { param }
            | Self::FetchOff { param }
            | Self::Fetch { param, .. } => Some(param),
            Self::ModelNotFound { param, .. } => Some(param),
            _ => None,
        }
    }

    /// When it is worth another try, if waiting helps.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after } | Self::PictureQuota { retry_after, .. } => Some(*retry_after),
            Self::Busy | Self::Stopping | Self::NotReady => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`
    pub(crate) fn body(&self) -> Value {
        let (status, code) = self.wire();
        let kind = match status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": told(&self.to_string()), "type": kind, "param": self.param(), "code": code}})
    }

    /// A library's refusal of what a client asked. What is no fault of the client is not told.
    pub(crate) fn of_question(error: &gpt4roi::Error, param: Option<String>) -> Self {
        use gpt4roi::{Error, mention::MentionError};
        let message = error.to_string();
        match error {
            Error::Mention(MentionError::UnknownRegion { .. }) | Error::Chat(ChatError::UnknownRegion { .. }) => {
                Self::UnknownRegion { param, message }
            }
            Error::Prompt(PromptError::TooLong { .. }) => Self::ContextLength(message),
            Error::Mention(_)
            | Error::Prompt(_)
            | Error::Chat(_)
            | Error::Choices(_)
            | Error::Box(_)
            | Error::Sampling(_) => Self::Question { param, message },
            _ => Self::Engine,
        }
    }

    /// A picture that can't be read. Decoders' own words stay inside.
    pub(crate) fn of_picture(error: &ImageError, param: &str) -> Self {
        let param = param.to_owned();
        match error {
            ImageError::TooLarge { .. } => Self::PictureTooLarge { param, message: error.to_string() },
            ImageError::Empty { .. } => Self::Picture { param, message: error.to_string() },
            ImageError::Unsupported(_) => {
                Self::Picture { param, message: "expected a PNG, JPEG or WebP picture of a common kind".into() }
            }
            _ => Self::Picture { param, message: "expected a whole picture, got a damaged one".into() },
        }
    }
}

/// Characters of a message. Our own words are fewer; the client's may be megabytes.
const MAX_MESSAGE: usize = 2000;

/// A message as it is told: the client's words in it can't turn around, hide or control anything where
/// they are shown, since everything but plain ASCII is escaped. The two other signs are our own.
fn told(message: &str) -> String {
    let mut told = String::new();
    for character in message.chars().take(MAX_MESSAGE) {
        match character {
            ' '..='~' | '…' | '×' => told.push(character),
            _ => told.extend(character.escape_unicode()),
        }
    }
    if message.chars().nth(MAX_MESSAGE).is_some() {
        told.push('…');
    }
    told
}

fn place(param: &Option<String>) -> String {
    param.as_ref().map_or_else(String::new, |param| format!("{param}: "))
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Question(error) => Self::of_question(&error, None),
            Failure::Numbers => Self::Numbers,
            Failure::Deadline => Self::Deadline,
            Failure::Engine(_) => Self::Engine,
        }
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full { retry_after } => Self::QueueFull { retry_after },
            Refused::Stopping => Self::Stopping,
            Refused::CloseUps { most, got } => {
                let expected = format!("auto for a question about at most {most} small regions, got {got}");
                Self::Value { param: "zoom".into(), expected }
            }
            Refused::Question(error) => Self::of_question(&error, None),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.wire().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64));
        }
        match self {
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // OpenAI's clients try again after 408, 429 and 5xx unless they are told that it is no use.
            Self::PictureQuota { .. } | Self::Deadline | Self::Numbers => {
                headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
            }
            // The rest of the body is not read, so nothing can follow on this connection.
            Self::BodyTooLarge(_) | Self::BodyTimeout | Self::BodyBroken | Self::Busy => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_insides_is_told() {
        let insides = ["/home/somebody/model.safetensors", "0x7ffc"];
        let io = std::io::Error::other(insides[1]);
        for fault in [
            Fault::of_question(&gpt4roi::Error::file(insides[0], io), None),
            Fault::from(Failure::Engine(insides.concat())),
            Fault::of_picture(&ImageError::Corrupt(insides.concat()), "image"),
            Fault::of_picture(&ImageError::Unsupported(insides.concat()), "image"),
        ] {
            let body = fault.body().to_string();
            assert!(insides.iter().all(|inside| !body.contains(inside)), "{body}");
        }
    }

    #[test]
    fn words_of_the_client_are_told_in_short_and_escaped() {
        let told = |message: &str| Fault::Json(message.into()).body()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(told("a\u{202e}b\u{0}\n\u{200b}é"), r"the body is not JSON: a\u{202e}b\u{0}\u{a}\u{200b}\u{e9}");
        assert_eq!(told("1×1 \"…\""), "the body is not JSON: 1×1 \"…\"");
        let long = told(&"x".repeat(1 << 20));
        assert_eq!((long.chars().count(), long.ends_with("x…")), (MAX_MESSAGE + 1, true));
    }

    #[test]
    fn bodies_have_the_four_fields_of_openai() {
        let fault = Fault::Region { param: "regions[1].box".into(), message: "no".into() };
        let expected = json!({"error": {
            "message": "regions[1].box: no", "type": "invalid_request_error", "param": "regions[1].box", "code": "invalid_region",
        }});
        assert_eq!(fault.body(), expected);
        assert_eq!(fault.into_response().status(), 422);
        let full = Fault::QueueFull { retry_after: Duration::from_millis(2100) }.into_response();
        assert_eq!((full.status().as_u16(), full.headers()["retry-after"].to_str().unwrap()), (429, "3"));
    }
}
