//! `POST /v1/regions/describe`: one picture, many regions, one question about each.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use gpt4roi::{
    Choices, RegionId,
    bbox::ImageSize,
    chat::{Answer, AskOptions, ResolvedRegion},
    choices::Chosen,
    mention::{self, Part},
    shape::Shape,
    zoom::Zoom,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    app::App,
    auth::Owner,
    chat_completions::finish_reason,
    engine::{Bulk, Update},
    fault::{Fault, Result},
    generation::Wishes,
    given_choices::{self, GivenChoices},
    limits::{Few, Held, Limits, MAX_DESCRIBED, MAX_TEXT, Memory, Unit},
    metrics::Tally,
    picture_source::{ImageUrl, Source},
    regions::{self, Region},
    sse,
    updates::{Happening, Updates},
};

/// The request.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Request {
    model: Option<String>,
    /// A data URL, a handle or an address, alone or as `{"url": …}`.
    image: ImageUrl,
    regions: Few<Region, MAX_DESCRIBED>,
    question: Option<String>,
    detail: Option<Detail>,
    choices: Option<GivenChoices>,
    stream: Option<bool>,
    max_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    seed: Option<i64>,
    zoom: Option<Zoom>,
}

/// How much to say.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Detail {
    /// A name or a sentence.
    #[default]
    Short,
    /// Everything there is to say.
    Full,
}

impl Detail {
    /// As `gpt4roi describe` asks.
    fn question(self) -> &'static str {
        match self {
            Self::Short => "What is <region1>?",
            Self::Full => "Describe <region1> in detail.",
        }
    }
}

/// `POST /v1/regions/describe`
pub(crate) async fn create(
    State(app): State<App>,
    Extension(owner): Extension<Owner>,
    Extension(tally): Extension<Arc<Tally>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let (request, body_held): (Request, _) = app.json(&headers, body).await?;
    let streamed = request.stream.unwrap_or_else(|| accepts_lines(&headers));
    let descriptions = request.ask(&app, &owner, tally, body_held).await?;
    if streamed { Ok(sse::lines(descriptions.stream())) } else { descriptions.whole(&app.model).await }
}

fn accepts_lines(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim() == "application/x-ndjson")
}

impl Request {
    /// Queues the question about each region. As with one question, nothing of the body outlives this.
    async fn ask(self, app: &App, owner: &Owner, tally: Arc<Tally>, _body_held: Held) -> Result<Descriptions> {
        app.check_model(self.model.as_deref())?;
        let (options, choices, source) = self.read(&app.limits)?;
        let picture = source.open(app, owner, "image").await?;
        let (size, memory) = (picture.image.size(), app.memory.clone());
        let (question, ids, shapes) = app
            .aside(move || {
                let (ids, shapes) = self.shapes(size, &memory)?;
                Ok((self.question(size)?, ids, shapes))
            })
            .await?;
        let bulk = Bulk { image: picture.image, shapes, question, choices, options, deadline: app.deadline() };
        let updates = app.updates(app.engine.describe(bulk)?, picture.held, tally);
        let open = vec![true; ids.len()];
        Ok(Descriptions { updates, ids, regions: Vec::new(), open, usage: Usage::default() })
    }

    /// All that can be told without the picture: how to answer, what to choose between, and where the picture comes
    /// from.
    ///
    /// # Errors
    /// If something is asked for that can't be.
    pub(crate) fn read(&self, limits: &Limits) -> Result<(AskOptions, Option<Choices>, Source)> {
        let &Self { max_tokens, temperature, top_p, top_k, seed, zoom, .. } = self;
        let wishes = Wishes { max_tokens, max_completion_tokens: None, temperature, top_p, top_k, seed, zoom };
        let choices = self.choices.as_ref().map(|choices| choices.read(&wishes)).transpose()?;
        Ok((wishes.options(limits)?, choices, Source::parse(&self.image.url, "image")?))
    }

    /// The ids as they were given, and the shapes.
    ///
    /// # Errors
    /// If there are none or too many, also for the choices, if one can't be, or if too much is in memory for a mask.
    pub(crate) fn shapes(&self, size: ImageSize, memory: &Memory) -> Result<(Vec<String>, Vec<Shape>)> {
        let regions = self.regions.all("regions", Unit::Regions)?;
        if regions.is_empty() {
            return Err(Fault::Value { param: "regions".into(), expected: "at least one region".into() });
        }
        self.choices.as_ref().map_or(Ok(()), |choices| choices.check_regions(regions.len()))?;
        let (mut ids, mut shapes) = (Vec::new(), Vec::new());
        for (region, index) in regions.iter().zip(0..) {
            let param = format!("regions[{index}]");
            // The answers are told apart by their index, so that ids are the client's own affair here.
            let id = region.id.clone().unwrap_or_else(|| format!("region{}", index + 1));
            if id.len() > 256 {
                return Err(Fault::Value { param: format!("{param}.id"), expected: "at most 256 bytes".into() });
            }
            ids.push(id);
            shapes.push(region.shape(&param, size, memory)?);
        }
        Ok((ids, shapes))
    }

    /// # Errors
    /// If the question does not ask about the region.
    pub(crate) fn question(&self, size: ImageSize) -> Result<String> {
        let Some(question) = &self.question else {
            return Ok(self.detail.unwrap_or_default().question().into());
        };
        let wrong = |expected: &str| Fault::Value { param: "question".into(), expected: expected.into() };
        if self.detail.is_some() {
            return Err(wrong("no question beside detail"));
        }
        if question.chars().count() > MAX_TEXT {
            let (unit, got) = (Unit::Characters, question.chars().count());
            return Err(Fault::TooMany { param: "question".into(), unit, most: MAX_TEXT, got });
        }
        let parts = mention::parse(question, &[RegionId(1)], size)
            .map_err(|error| Fault::of_question(&error.into(), Some("question".into())))?;
        if parts.contains(&Part::Mention(RegionId(1))) {
            Ok(question.clone())
        } else {
            Err(wrong("a mention of <region1>, which stands for each region in turn"))
        }
    }
}

/// Descriptions that are being given.
struct Descriptions {
    updates: Updates,
    ids: Vec<String>,
    /// The regions as they were resolved, in the order of `ids`.
    regions: Vec<ResolvedRegion>,
    /// Which ones are not described yet.
    open: Vec<bool>,
    usage: Usage,
}

/// Tokens of all descriptions together.
#[derive(Debug, Default)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
}

impl Usage {
    fn add(&mut self, prompt_tokens: usize, completion_tokens: usize, cached_tokens: usize) {
        self.prompt_tokens += prompt_tokens;
        self.completion_tokens += completion_tokens;
        self.cached_tokens += cached_tokens;
    }

    fn json(&self) -> Value {
        let &Self { prompt_tokens, completion_tokens, cached_tokens } = self;
        json!({
            "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        })
    }
}

/// What is new of some descriptions.
enum News {
    /// The description of a region, or why there is none.
    Line(usize, Value),
    Silence,
}

impl Descriptions {
    /// The next region's description or failure; none when each has one.
    async fn news(&mut self) -> Option<News> {
        while self.open.contains(&true) {
            let fault = match self.updates.next().await {
                Happening::Update(Update::Started { regions }) => {
                    self.regions = regions;
                    continue;
                }
                Happening::Update(Update::Answer { index, answer }) => {
                    self.usage.add(answer.prompt_tokens, answer.generated_tokens, answer.reused_tokens);
                    return Some(News::Line(index, self.done(index, &answer)));
                }
                Happening::Update(Update::Chosen { index, chosen }) => {
                    self.usage.add(chosen.prompt_tokens, 0, chosen.reused_tokens);
                    return Some(News::Line(index, self.chosen(index, &chosen)));
                }
                Happening::Update(Update::Failed { index, error }) if self.is_open(index) => {
                    return Some(News::Line(index, self.failed(index, &error.into())));
                }
                Happening::Update(_) => continue,
                Happening::Silence => return Some(News::Silence),
                Happening::Stopped => Fault::Stopping,
                Happening::End => Fault::Engine,
            };
            let index = self.open.iter().position(|&open| open)?;
            return Some(News::Line(index, self.failed(index, &fault)));
        }
        None
    }

    fn is_open(&self, index: usize) -> bool {
        self.open.get(index).copied().unwrap_or(false)
    }

    fn done(&mut self, index: usize, answer: &Answer) -> Value {
        let mut line = self.line(index);
        line["status"] = "done".into();
        line["text"] = answer.text.clone().into();
        line["probability"] = answer.probability().into();
        line["mean_log_probability"] = answer.mean_log_probability.into();
        line["finish_reason"] = finish_reason(answer.finish).into();
        line["completion_tokens"] = answer.generated_tokens.into();
        line
    }

    fn chosen(&mut self, index: usize, chosen: &Chosen) -> Value {
        let mut line = self.line(index);
        let mut told = given_choices::told(chosen);
        line["status"] = "done".into();
        line["text"] = chosen.text().into();
        line["probability"] = told["probability"].take();
        line["choices"] = told["choices"].take();
        line["finish_reason"] = "stop".into();
        line["completion_tokens"] = 0.into();
        line
    }

    fn failed(&mut self, index: usize, fault: &Fault) -> Value {
        let mut line = self.line(index);
        line["status"] = "failed".into();
        line["error"] = fault.body()["error"].take();
        line
    }

    fn line(&mut self, index: usize) -> Value {
        if let Some(open) = self.open.get_mut(index) {
            *open = false;
        }
        let region = self.regions.get(index).map_or_else(|| json!({}), regions::resolved);
        json!({
            "object": "region.description", "index": index, "id": self.ids.get(index), "box": region["box"],
            "coords": region["coords"], "origin": region["origin"],
        })
    }

    /// All of them, in the order of the request.
    async fn whole(mut self, model: &str) -> Result<Response> {
        let mut descriptions = Vec::new();
        while let Some(news) = self.news().await {
            if let News::Line(index, description) = news {
                descriptions.push((index, description));
            }
        }
        descriptions.sort_by_key(|(index, _)| *index);
        let data: Vec<Value> = descriptions.into_iter().map(|(_, description)| description).collect();
        let usage = self.usage.json();
        Ok(Json(json!({"object": "list", "model": model, "data": data, "usage": usage})).into_response())
    }

    /// Each as it is finished, and the usage at the end.
    fn stream(self) -> impl Stream<Item = std::result::Result<Bytes, Infallible>> {
        stream::unfold(Some(self), |descriptions| async {
            let mut descriptions = descriptions?;
            match descriptions.news().await {
                Some(News::Line(_, line)) => Some((Ok(sse::line(&line)), Some(descriptions))),
                Some(News::Silence) => Some((Ok(sse::blank()), Some(descriptions))),
                None => {
                    let end = json!({"object": "region.descriptions.end", "usage": descriptions.usage.json()});
                    Some((Ok(sse::line(&end)), None))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;
    use crate::{body::tests::from_json, picture_source::tests::padded_picture, server::tests::app};

    #[tokio::test]
    async fn descriptions_that_wait_hold_their_picture_and_nothing_of_their_body() {
        let (app, owner) = (app(|options| options.limits.memory_bytes = 4 << 20), Owner(String::new()));
        let body = json!({"image": padded_picture(1 << 20), "regions": [{"box": [0, 0, 4, 4]}]}).to_string();
        let request: Request = from_json(&body).unwrap();
        let held = app.memory.take(body.len()).unwrap();
        let mut answer = pin!(request.ask(&app, &owner, Arc::default(), held).await.unwrap().whole("gpt4roi-nano"));
        assert!(answer.as_mut().now_or_never().is_none(), "nobody drives the engine");
        assert!(app.memory.take((4 << 20) - 1024).is_ok(), "all but one block");
        assert!(app.memory.take(4 << 20).is_err());
    }
}
