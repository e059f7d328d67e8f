//! `POST /v1/chat/completions`, as OpenAI's clients call it, and with regions.

use std::{convert::Infallible, fmt, sync::Arc, time::SystemTime};

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use gpt4roi::{
    Choices,
    chat::{Answer, AskOptions, ResolvedRegion},
    choices::Chosen,
    generate::FinishReason,
    zoom::Zoom,
};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, json};

use crate::{
    app::{App, unique, unix_seconds},
    auth::Owner,
    conversation::{Conversation, Mentions, Message},
    engine::{Question, Update},
    fault::{Fault, Result},
    generation::Wishes,
    given_choices::{self, GivenChoices, NOTHING_IS_DRAWN},
    limits::{Few, Held, Limits, MAX_MESSAGES, MAX_REGIONS},
    metrics::Tally,
    regions::{self, Region},
    sse,
    stop::Stops,
    updates::{Happening, Updates},
};

/// The request. Fields that are not listed are ignored, since clients send many; those that would change
/// an answer in a way that this model can't are refused.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Request {
    model: Option<String>,
    messages: Few<Message, MAX_MESSAGES>,
    regions: Option<Few<Region, MAX_REGIONS>>,
    mentions: Option<Mentions>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    seed: Option<i64>,
    zoom: Option<Zoom>,
    stop: Option<Stops>,
    choices: Option<GivenChoices>,
    n: Option<u64>,
    response_format: Option<ResponseFormat>,
    #[serde(default)]
    logprobs: Wish,
    #[serde(default)]
    top_logprobs: Wish,
    #[serde(default)]
    logit_bias: Wish,
    #[serde(default)]
    presence_penalty: Wish,
    #[serde(default)]
    frequency_penalty: Wish,
    #[serde(default)]
    tools: Wish,
    #[serde(default)]
    functions: Wish,
    #[serde(default)]
    audio: Wish,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "an object")]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

/// `POST /v1/chat/completions`
pub(crate) async fn create(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    Extension(tally): Extension<Arc<Tally>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let (request, body_held): (Request, _) = app.json(&headers, body).await?;
    let (streamed, with_usage) = request.streaming();
    let talk = request.ask(&app, &owner, tally, body_held).await?;
    if streamed { Ok(sse::response(talk.stream(with_usage))) } else { talk.whole().await }
}

impl Request {
    /// Queues the question. A question may wait for minutes, so nothing of the body outlives this, data URLs and masks
    /// least of all, nor does what it took of the memory.
    async fn ask(self, app: &App, owner: &Owner, tally: Arc<Tally>, _body_held: Held) -> Result<Talk> {
        app.check_model(self.model.as_deref())?;
        let (options, choices, conversation) = self.read(&app.limits)?;
        drop(self);
        let picture = conversation.source.open(app, owner, &conversation.source_param).await?;
        let (size, memory) = (picture.image.size(), app.memory.clone());
        let (conversation, regions) = app
            .aside(move || {
                let regions = conversation.shapes(size, &memory)?;
                Ok((conversation, regions))
            })
            .await?;
        let question = Question {
            image: picture.image,
            regions,
            rounds: conversation.rounds.clone(),
            question: conversation.question.clone(),
            choices,
            options,
            deadline: app.deadline(),
        };
        let completion = Completion {
            id: format!("chatcmpl-{:016x}", unique()),
            created: unix_seconds(SystemTime::now()),
            model: app.model.clone(),
            image_tokens: app.engine.config().vision.patches(),
            region_tokens: conversation.region_tokens(size),
        };
        let reply = app.engine.ask(question).map_err(|refused| conversation.refused(refused))?;
        Ok(Talk { updates: app.updates(reply, picture.held, tally), completion, regions: Vec::new(), end: None })
    }

    /// All that can be told without the picture.
    ///
    /// # Errors
    /// If something is asked for that can't be.
    pub(crate) fn read(&self, limits: &Limits) -> Result<(AskOptions, Option<Choices>, Conversation)> {
        self.check_supported()?;
        let choices = self.choices.as_ref().map(|choices| choices.read(&self.wishes())).transpose()?;
        let stop = self.stop.as_ref().map(Stops::read).transpose()?.unwrap_or_default();
        let options = AskOptions { stop, ..self.wishes().options(limits)? };
        let mentions = self.mentions.unwrap_or_default();
        Ok((options, choices, Conversation::read(&self.messages, self.regions.as_ref(), mentions)?))
    }

    fn wishes(&self) -> Wishes {
        let &Self { max_tokens, max_completion_tokens, temperature, top_p, top_k, seed, zoom, .. } = self;
        Wishes { max_tokens, max_completion_tokens, temperature, top_p, top_k, seed, zoom }
    }

    /// Whether the answer is streamed, and whether its last event tells the usage.
    fn streaming(&self) -> (bool, bool) {
        let options = self.stream_options.as_ref();
        (self.stream.unwrap_or(false), options.and_then(|options| options.include_usage).unwrap_or(false))
    }

    /// # Errors
    /// If something is asked for that would silently not happen.
    fn check_supported(&self) -> Result<()> {
        if self.n.is_some_and(|n| n != 1) {
            return Err(Fault::Unsupported { param: "n".into(), why: "there is one answer to a question" });
        }
        if self.response_format.as_ref().is_some_and(|format| format.kind != "text") {
            let why = "the model answers in words, type text";
            return Err(Fault::Unsupported { param: "response_format".into(), why });
        }
        if self.choices.is_some() && self.stop.is_some() {
            return Err(Fault::Unsupported { param: "stop".into(), why: NOTHING_IS_DRAWN });
        }
        let unsupported = [
            ("logprobs", self.logprobs, "probabilities of single tokens are not told"),
            ("top_logprobs", self.top_logprobs, "probabilities of single tokens are not told"),
            ("logit_bias", self.logit_bias, "tokens are not weighted"),
            ("presence_penalty", self.presence_penalty, "tokens are not weighted"),
            ("frequency_penalty", self.frequency_penalty, "tokens are not weighted"),
            ("tools", self.tools, "the model calls no tools"),
            ("functions", self.functions, "the model calls no tools"),
            ("audio", self.audio, "the model does not speak"),
        ];
        match unsupported.into_iter().find(|(_, wish, _)| wish.0) {
            Some((param, _, why)) => Err(Fault::Unsupported { param: param.into(), why }),
            None => Ok(()),
        }
    }
}

/// Whether something was wished at all: `null`, `false`, 0, `""`, `[]` and `{}` are no wishes.
#[derive(Clone, Copy, Debug, Default)]
struct Wish(bool);

impl<'de> Deserialize<'de> for Wish {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct WishVisitor;
        impl<'de> Visitor<'de> for WishVisitor {
            type Value = Wish;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_unit<E>(self) -> std::result::Result<Wish, E> {
                Ok(Wish(false))
            }

            fn visit_bool<E>(self, wished: bool) -> std::result::Result<Wish, E> {
                Ok(Wish(wished))
            }

            fn visit_i64<E>(self, number: i64) -> std::result::Result<Wish, E> {
                Ok(Wish(number != 0))
            }

            fn visit_u64<E>(self, number: u64) -> std::result::Result<Wish, E> {
                Ok(Wish(number != 0))
            }

            fn visit_f64<E>(self, number: f64) -> std::result::Result<Wish, E> {
                Ok(Wish(number != 0.0))
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Wish, E> {
                Ok(Wish(!text.is_empty()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> std::result::Result<Wish, A::Error> {
                let mut wish = Wish(false);
                while elements.next_element::<IgnoredAny>()?.is_some() {
                    wish = Wish(true);
                }
                Ok(wish)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<Wish, A::Error> {
                let mut wish = Wish(false);
                while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    wish = Wish(true);
                }
                Ok(wish)
            }
        }
        deserializer.deserialize_any(WishVisitor)
    }
}

/// An answer that is being given.
struct Talk {
    updates: Updates,
    completion: Completion,
    /// All regions, once they are known.
    regions: Vec<ResolvedRegion>,
    /// What is left to be told once the text was.
    end: Option<End>,
}

/// What an answer's end tells.
struct End {
    /// How probable it is.
    confidence: Value,
    finish: &'static str,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
}

impl From<&Answer> for End {
    fn from(answer: &Answer) -> Self {
        Self {
            confidence: json!({
                "probability": answer.probability(), "mean_log_probability": answer.mean_log_probability,
            }),
            finish: finish_reason(answer.finish),
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.generated_tokens,
            cached_tokens: answer.reused_tokens,
        }
    }
}

impl From<&Chosen> for End {
    fn from(chosen: &Chosen) -> Self {
        Self {
            confidence: given_choices::told(chosen),
            finish: "stop",
            prompt_tokens: chosen.prompt_tokens,
            completion_tokens: 0,
            cached_tokens: chosen.reused_tokens,
        }
    }
}

/// What is new of an answer.
enum News {
    Text(String),
    End(End),
    Silence,
}

impl Talk {
    async fn news(&mut self) -> Result<News> {
        if let Some(end) = self.end.take() {
            return Ok(News::End(end));
        }
        loop {
            match self.updates.next().await {
                Happening::Update(Update::Started { regions }) => self.regions = regions,
                Happening::Update(Update::Text { text, .. }) => return Ok(News::Text(text)),
                Happening::Update(Update::Answer { answer, .. }) => return Ok(News::End((&answer).into())),
                Happening::Update(Update::Chosen { chosen, .. }) => {
                    self.end = Some((&chosen).into());
                    return Ok(News::Text(chosen.text().to_owned()));
                }
                Happening::Update(Update::Failed { error, .. }) => return Err(error.into()),
                Happening::Silence => return Ok(News::Silence),
                Happening::Stopped => return Err(Fault::Stopping),
                Happening::End => return Err(Fault::Engine),
            }
        }
    }

    /// The answer all at once.
    async fn whole(mut self) -> Result<Response> {
        let mut content = String::new();
        loop {
            match self.news().await? {
                News::Text(text) => content += &text,
                News::Silence => {}
                News::End(end) => {
                    return Ok(Json(self.completion.whole(&content, end, &self.regions)).into_response());
                }
            }
        }
    }

    /// The answer as it comes.
    fn stream(self, with_usage: bool) -> impl Stream<Item = std::result::Result<Bytes, Infallible>> {
        let opening = sse::event(&self.completion.chunk(&json!({"role": "assistant", "content": ""}), None));
        let first = stream::iter([Ok(opening)]);
        let rest = stream::unfold(Some(self), move |talk| async move {
            let mut talk = talk?;
            Some(match talk.news().await {
                Ok(News::Text(text)) => (Ok(talk.completion.text(&text)), Some(talk)),
                Ok(News::Silence) => (Ok(sse::comment()), Some(talk)),
                Ok(News::End(end)) => (Ok(talk.completion.last(end, &talk.regions, with_usage)), None),
                Err(fault) => (Ok(sse::event(&fault.body())), None),
            })
        });
        first.chain(rest)
    }
}

/// As OpenAI names the reasons.
pub(crate) fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length => "length",
        _ => "stop",
    }
}

/// What an answer's message has besides its text.
fn besides(confidence: Value, regions: &[ResolvedRegion]) -> Value {
    let mut besides = confidence;
    besides["regions"] = regions.iter().map(regions::resolved).collect();
    besides
}

/// What all pieces of an answer have in common.
struct Completion {
    id: String,
    created: u64,
    model: String,
    /// Tokens that the picture takes in the prompt.
    image_tokens: usize,
    /// Tokens that regions take in the prompt.
    region_tokens: usize,
}

impl Completion {
    fn whole(&self, content: &str, end: End, regions: &[ResolvedRegion]) -> Value {
        let (usage, finish) = (self.usage(&end), end.finish);
        let mut message = besides(end.confidence, regions);
        (message["role"], message["content"], message["refusal"]) = ("assistant".into(), content.into(), Value::Null);
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": [{
                "index": 0, "message": message, "logprobs": null, "finish_reason": finish,
            }],
            "usage": usage,
        })
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>) -> Value {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
        self.envelope(&json!([choice]))
    }

    fn envelope(&self, choices: &Value) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn text(&self, text: &str) -> Bytes {
        sse::event(&self.chunk(&json!({"content": text}), None))
    }

    /// All that comes at an answer's end. Regions and confidence stand in the last piece, so that clients that put
    /// an answer together have them on the message, as if it had not been streamed.
    fn last(&self, end: End, regions: &[ResolvedRegion], with_usage: bool) -> Bytes {
        let (usage, finish) = (self.usage(&end), end.finish);
        let mut events = vec![sse::event(&self.chunk(&besides(end.confidence, regions), Some(finish)))];
        if with_usage {
            let mut last = self.envelope(&json!([]));
            last["usage"] = usage;
            events.push(sse::event(&last));
        }
        events.push(sse::done());
        events.concat().into()
    }

    fn usage(&self, end: &End) -> Value {
        json!({
            "prompt_tokens": end.prompt_tokens,
            "completion_tokens": end.completion_tokens,
            "total_tokens": end.prompt_tokens + end.completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": end.cached_tokens,
                "image_tokens": self.image_tokens,
                "region_tokens": self.region_tokens,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;
    use crate::{body::tests::from_json, picture_source::tests::padded_picture, server::tests::app};

    /// The picture is one of 8×8 pixels in a file of a megabyte.
    #[tokio::test]
    async fn a_question_that_waits_holds_its_picture_and_nothing_of_its_body() {
        let (app, owner) = (app(|options| options.limits.memory_bytes = 4 << 20), Owner(String::new()));
        let parts = json!([
            {"type": "image_url", "image_url": {"url": padded_picture(1 << 20)}}, {"type": "text", "text": "What is there?"},
        ]);
        let body = json!({"messages": [{"role": "user", "content": parts}]}).to_string();
        let request: Request = from_json(&body).unwrap();
        let held = app.memory.take(body.len()).unwrap();
        let mut answer = pin!(request.ask(&app, &owner, Arc::default(), held).await.unwrap().whole());
        assert!(answer.as_mut().now_or_never().is_none(), "nobody drives the engine");
        assert!(app.memory.take((4 << 20) - 1024).is_ok(), "all but one block");
        assert!(app.memory.take(4 << 20).is_err());
    }
}
