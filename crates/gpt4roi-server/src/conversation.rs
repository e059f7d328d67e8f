//! A conversation as OpenAI's clients send it, and what it asks of the model.

use std::{collections::BTreeSet, fmt, marker::PhantomData};

use gpt4roi::{
    RegionId,
    bbox::ImageSize,
    mention::{self, MentionError, Part as Mentioned},
    shape::Shape,
};
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use crate::{
    engine::{Exchange, Refused, Said},
    fault::{Fault, Result},
    limits::{Few, FewVisitor, MAX_IMAGES, MAX_MESSAGES, MAX_PARTS, MAX_REGIONS, MAX_TEXT, Memory, Unit},
    picture_source::{ImageUrl, Source},
    regions::{self, Region},
};

/// A message.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Message {
    role: String,
    content: Option<Content>,
}

/// Words alone, or parts.
#[derive(Debug)]
enum Content {
    Text(String),
    Parts(Few<Part, MAX_PARTS>),
}

/// A part of a message.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    image_url: Option<ImageUrl>,
    id: Option<String>,
    regions: Option<Few<Region, MAX_REGIONS>>,
}

/// What `<region1>` and coordinates in text are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mentions {
    /// Mentions of regions.
    #[default]
    On,
    /// Words.
    Off,
}

/// What a conversation asks.
#[derive(Debug)]
pub(crate) struct Conversation {
    /// The picture.
    pub(crate) source: Source,
    /// Where it stands in the request.
    pub(crate) source_param: String,
    /// Declared regions, and where each stands.
    declared: Vec<(RegionId, Region, String)>,
    pub(crate) rounds: Vec<Exchange>,
    pub(crate) question: Vec<Said>,
    /// Everything said by the user, and where it stands.
    places: Vec<(Said, String)>,
}

impl Conversation {
    /// Reads messages, and regions that stand beside them.
    ///
    /// # Errors
    /// If the conversation is none, is too long, has no picture or several, or declares regions twice.
    pub(crate) fn read(
        messages: &Few<Message, MAX_MESSAGES>,
        beside: Option<&Few<Region, MAX_REGIONS>>,
        mentions: Mentions,
    ) -> Result<Self> {
        let messages = messages.all("messages", Unit::Messages)?;
        check_roles(messages)?;
        check_text(messages)?;
        let mut gathered = Gathered { mentions, ..Gathered::default() };
        let (mut rounds, mut question) = (Vec::new(), Vec::new());
        for (round, pair) in messages.chunks(2).enumerate() {
            let said = gathered.take(&pair[0], &format!("messages[{}].content", 2 * round))?;
            match pair.get(1) {
                Some(answer) => {
                    let answer = answer.words(&format!("messages[{}].content", 2 * round + 1))?;
                    rounds.push(Exchange { question: said, answer });
                }
                None => question = said,
            }
        }
        if let Some(regions) = beside {
            gathered.declare(regions, "regions")?;
        }
        let Gathered { images, regions, places, .. } = gathered;
        let (source, source_param) = the_only(images)?;
        Ok(Self { source, source_param, declared: numbered(regions)?, rounds, question, places })
    }

    /// The declared regions in a picture of this size.
    ///
    /// # Errors
    /// If one is none, or lies outside, or if too much is in memory for a mask.
    pub(crate) fn shapes(&self, size: ImageSize, memory: &Memory) -> Result<Vec<(RegionId, Shape)>> {
        self.declared.iter().map(|(id, region, param)| Ok((*id, region.shape(param, size, memory)?))).collect()
    }

    /// Tokens that regions take in the prompt: one for each that is mentioned, however often.
    pub(crate) fn region_tokens(&self, size: ImageSize) -> usize {
        let mut declared: Vec<RegionId> = self.declared.iter().map(|(id, ..)| *id).collect();
        let mut mentioned = BTreeSet::new();
        for (said, _) in &self.places {
            let parts = match said {
                Said::Region(id) => vec![Mentioned::Mention(*id)],
                Said::Text(text) => mention::parse(text, &declared, size).unwrap_or_default(),
                Said::Literal(_) => Vec::new(),
            };
            for part in parts {
                match part {
                    Mentioned::Text(_) => {}
                    Mentioned::Mention(id) => _ = mentioned.insert(id),
                    // Coordinates become a region with the lowest number that is free.
                    Mentioned::Box(_) | Mentioned::Point(_) => {
                        let free = (1..).map(RegionId).find(|id| !declared.contains(id));
                        declared.extend(free);
                        mentioned.extend(free);
                    }
                }
            }
        }
        mentioned.len()
    }

    /// Why the engine did not take it, and which part of the request is to blame.
    pub(crate) fn refused(&self, refused: Refused) -> Fault {
        let Refused::Question(error) = &refused else { return refused.into() };
        let blames = |said: &Said| match (error, said) {
            (gpt4roi::Error::Mention(MentionError::UnknownRegion { mention: words, .. }), Said::Text(text))
            | (gpt4roi::Error::Mention(MentionError::Coordinates { text: words, .. }), Said::Text(text))
            | (gpt4roi::Error::Mention(MentionError::SinglePixel { text: words, .. }), Said::Text(text)) => {
                text.contains(words)
            }
            (gpt4roi::Error::Chat(gpt4roi::chat::ChatError::UnknownRegion { id, .. }), Said::Region(said)) => {
                id == said
            }
            _ => false,
        };
        let place = self.places.iter().find(|(said, _)| blames(said)).map(|(_, param)| param.clone());
        Fault::of_question(error, place)
    }
}

/// What the user's messages hold.
#[derive(Debug, Default)]
struct Gathered {
    mentions: Mentions,
    images: Vec<(Source, String)>,
    regions: Vec<(Region, String)>,
    places: Vec<(Said, String)>,
}

impl Gathered {
    fn take(&mut self, message: &Message, param: &str) -> Result<Vec<Said>> {
        let before = self.places.len();
        match message.content(param)? {
            Content::Text(text) => self.say(text, param),
            Content::Parts(parts) => {
                for (part, index) in parts.all(param, Unit::Parts)?.iter().zip(0..) {
                    self.part(part, &format!("{param}[{index}]"))?;
                }
            }
        }
        Ok(self.places[before..].iter().map(|(said, _)| said.clone()).collect())
    }

    fn part(&mut self, part: &Part, param: &str) -> Result<()> {
        match part.kind.as_str() {
            "text" => self.say(needed(part.text.as_ref(), param, "text")?, &format!("{param}.text")),
            "image_url" => {
                let url = &needed(part.image_url.as_ref(), param, "image_url")?.url;
                let param_url = format!("{param}.image_url.url");
                self.images.push((Source::parse(url, &param_url)?, param_url));
            }
            "image_ref" => {
                let (id, param_id) = (needed(part.id.as_ref(), param, "id")?, format!("{param}.id"));
                self.images.push((Source::handle(id, &param_id)?, param_id));
            }
            "region_ref" => {
                let (id, param) = (needed(part.id.as_ref(), param, "id")?, format!("{param}.id"));
                let id = regions::region_id(id)
                    .ok_or_else(|| Fault::Value { param: param.clone(), expected: regions::ID.into() })?;
                self.places.push((Said::Region(id), param));
            }
            _ => {
                let expected = "text, image_url, image_ref or region_ref".into();
                return Err(Fault::Value { param: format!("{param}.type"), expected });
            }
        }
        if self.images.len() > MAX_IMAGES {
            let (unit, got) = (Unit::Images, self.images.len());
            return Err(Fault::TooMany { param: param.to_owned(), unit, most: MAX_IMAGES, got });
        }
        match (&part.regions, part.kind.starts_with("image")) {
            (None, _) => Ok(()),
            (Some(regions), true) => self.declare(regions, &format!("{param}.regions")),
            (Some(_), false) => {
                let why = "regions stand on the part with the picture, or beside messages";
                Err(Fault::Unsupported { param: format!("{param}.regions"), why })
            }
        }
    }

    fn say(&mut self, text: &str, param: &str) {
        let said = match self.mentions {
            Mentions::On => Said::Text(text.to_owned()),
            Mentions::Off => Said::Literal(text.to_owned()),
        };
        self.places.push((said, param.to_owned()));
    }

    fn declare(&mut self, regions: &Few<Region, MAX_REGIONS>, param: &str) -> Result<()> {
        let regions = regions.all(param, Unit::Regions)?.iter().zip(0..);
        self.regions.extend(regions.map(|(region, index)| (region.clone(), format!("{param}[{index}]"))));
        let got = self.regions.len();
        if got > MAX_REGIONS {
            return Err(Fault::TooMany { param: param.to_owned(), unit: Unit::Regions, most: MAX_REGIONS, got });
        }
        Ok(())
    }
}

/// User and assistant take turns, and the user has the last word.
fn check_roles(messages: &[Message]) -> Result<()> {
    for (message, index) in messages.iter().zip(0..) {
        let param = format!("messages[{index}].role");
        match message.role.as_str() {
            "system" | "developer" => {
                let why = "the model was trained with one system text, which is always used; say it in a user message";
                return Err(Fault::Unsupported { param, why });
            }
            "tool" | "function" => return Err(Fault::Unsupported { param, why: "the model calls no tools" }),
            role if role == if index % 2 == 0 { "user" } else { "assistant" } => {}
            _ => {
                let expected = "user and assistant in turns, beginning with user".into();
                return Err(Fault::Value { param, expected });
            }
        }
    }
    if messages.len() % 2 == 1 {
        Ok(())
    } else {
        Err(Fault::Value { param: "messages".into(), expected: "a user message at the end".into() })
    }
}

fn check_text(messages: &[Message]) -> Result<()> {
    let texts = messages.iter().flat_map(|message| message.texts());
    let got = texts.map(|text| text.chars().count()).sum();
    if got > MAX_TEXT {
        return Err(Fault::TooMany { param: "messages".into(), unit: Unit::Characters, most: MAX_TEXT, got });
    }
    Ok(())
}

/// A conversation is about one picture. Clients that send it again with every round mean the same one.
fn the_only(images: Vec<(Source, String)>) -> Result<(Source, String)> {
    let mut images = images.into_iter();
    let first = images
        .next()
        .ok_or(Fault::PictureCount("expected a picture: a part of type image_url or image_ref in a user message"))?;
    if images.any(|(source, _)| source != first.0) {
        return Err(Fault::PictureCount("expected one picture for the whole conversation: the model sees one"));
    }
    Ok(first)
}

/// Regions by number. Without ids they are numbered as they stand; a region that is declared again
/// just as it was is one.
fn numbered(regions: Vec<(Region, String)>) -> Result<Vec<(RegionId, Region, String)>> {
    let with_ids = regions.iter().any(|(region, _)| region.id.is_some());
    let mut numbered: Vec<(RegionId, Region, String)> = Vec::new();
    for ((region, param), place) in regions.into_iter().zip(1..) {
        let wrong = |expected: &str| Fault::Value { param: format!("{param}.id"), expected: expected.into() };
        let id = match region.number(&param)? {
            Some(id) => id,
            None if with_ids => return Err(wrong("an id, since other regions have one")),
            None => RegionId(place),
        };
        match numbered.iter().find(|(other, ..)| *other == id) {
            None => numbered.push((id, region, param)),
            Some((_, other, _)) if *other == region => {}
            Some(_) => return Err(wrong("an id of its own; it is declared with another shape already")),
        }
    }
    Ok(numbered)
}

fn needed<'a, T>(field: Option<&'a T>, param: &str, name: &str) -> Result<&'a T> {
    field.ok_or_else(|| Fault::Value { param: format!("{param}.{name}"), expected: format!("{name} for this type") })
}

impl Message {
    fn content(&self, param: &str) -> Result<&Content> {
        let missing = || Fault::Value { param: param.to_owned(), expected: "a string or an array of parts".into() };
        self.content.as_ref().ok_or_else(missing)
    }

    fn texts(&self) -> Vec<&str> {
        match &self.content {
            None => Vec::new(),
            Some(Content::Text(text)) => vec![text],
            Some(Content::Parts(parts)) => parts.kept().filter_map(|part| part.text.as_deref()).collect(),
        }
    }

    /// An assistant's words.
    fn words(&self, param: &str) -> Result<String> {
        if let Content::Parts(parts) = self.content(param)? {
            for (part, index) in parts.all(param, Unit::Parts)?.iter().zip(0..) {
                if part.kind != "text" {
                    let param = format!("{param}[{index}].type");
                    return Err(Fault::Value { param, expected: "text, since an assistant says nothing else".into() });
                }
            }
        }
        Ok(self.texts().concat())
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of parts")
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> std::result::Result<Content, A::Error> {
                FewVisitor(PhantomData).visit_seq(parts).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::body::tests::from_json;

    const SIZE: ImageSize = ImageSize { width: 200, height: 100 };
    const PICTURE: &str = "data:image/png;base64,AAAA";

    fn read(messages: Value, regions: Value, mentions: Mentions) -> Result<Conversation> {
        #[derive(Deserialize)]
        struct Request {
            messages: Few<Message, MAX_MESSAGES>,
            regions: Option<Few<Region, MAX_REGIONS>>,
        }
        let request = json!({"messages": messages, "regions": regions});
        let Request { messages, regions } = from_json(&request.to_string())?;
        Conversation::read(&messages, regions.as_ref(), mentions)
    }

    fn user(parts: Value) -> Value {
        json!({"role": "user", "content": parts})
    }

    fn image(regions: Value) -> Value {
        json!({"type": "image_url", "image_url": {"url": PICTURE}, "regions": regions})
    }

    fn code(fault: &Fault) -> (String, String) {
        let body = fault.body();
        let text = |field: &str| body["error"][field].as_str().unwrap_or_default().to_owned();
        (text("code"), text("param"))
    }

    #[test]
    fn parts_become_rounds_and_a_question() {
        let regions = json!([{"id": "region7", "box": [1, 2, 30, 40]}, {"id": "region2", "point": [5, 6]}]);
        let conversation = read(
            json!([
                user(json!([image(regions), {"type": "text", "text": "What is <region7>?"}])),
                {"role": "assistant", "content": "A car.", "refusal": null},
                user(json!([{"type": "text", "text": "Is "}, {"type": "region_ref", "id": "region2"}, {"type": "text", "text": " red?"}])),
            ]),
            Value::Null,
            Mentions::On,
        );
        let conversation = conversation.unwrap();
        assert_eq!(conversation.rounds.len(), 1);
        assert_eq!(conversation.rounds[0].question, [Said::Text("What is <region7>?".into())]);
        assert_eq!(conversation.rounds[0].answer, "A car.");
        let said = [Said::Text("Is ".into()), Said::Region(RegionId(2)), Said::Text(" red?".into())];
        assert_eq!(conversation.question, said);
        let ids: Vec<u32> = conversation.shapes(SIZE, &Memory::new(0)).unwrap().iter().map(|(id, _)| id.0).collect();
        assert_eq!(ids, [7, 2]);
        assert_eq!(conversation.region_tokens(SIZE), 2);
        assert_eq!(conversation.source_param, "messages[0].content[0].image_url.url");
    }

    #[test]
    fn regions_may_stand_beside_and_have_no_ids() {
        let messages = json!([user(
            json!([image(Value::Null), {"type": "text", "text": "<region2> and (3, 4) and <region1> <region2>"}])
        )]);
        let regions = json!([{"box": [1, 2, 30, 40]}, {"bbox": [1, 2, 3, 4]}]);
        let conversation = read(messages.clone(), regions, Mentions::On).unwrap();
        assert_eq!(
            conversation.shapes(SIZE, &Memory::new(0)).unwrap().iter().map(|(id, _)| id.0).collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(conversation.region_tokens(SIZE), 3, "two that are mentioned, one of coordinates");
        let literal = read(messages, Value::Null, Mentions::Off).unwrap();
        assert!(matches!(&literal.question[..], [Said::Literal(_)]));
        assert_eq!(literal.region_tokens(SIZE), 0);
    }

    #[test]
    fn regions_of_coordinates_are_counted_under_the_numbers_that_they_get() {
        let regions = json!([{"id": "region2", "box": [1, 2, 30, 40]}]);
        let messages = json!([
            user(json!([image(regions), {"type": "text", "text": "What is at (3, 4)?"}])),
            {"role": "assistant", "content": "A car."},
            user(json!("Compare <region1> and <region2>.")),
        ]);
        let conversation = read(messages, Value::Null, Mentions::On).unwrap();
        assert_eq!(conversation.region_tokens(SIZE), 2, "the point is region 1, the first that was free");
    }

    #[test]
    fn a_picture_sent_again_is_the_same_one() {
        let regions = json!([{"id": "region1", "box": [1, 2, 30, 40]}]);
        let round = user(json!([image(regions), {"type": "text", "text": "<region1>?"}]));
        let answer = json!({"role": "assistant", "content": [{"type": "text", "text": "Yes."}]});
        assert!(read(json!([round, answer, round]), Value::Null, Mentions::On).is_ok());
        let other =
            user(json!([image(json!([{"id": "region1", "box": [1, 2, 31, 40]}])), {"type": "text", "text": "?"}]));
        let fault = read(json!([round, answer, other]), Value::Null, Mentions::On).unwrap_err();
        assert_eq!(code(&fault), ("invalid_value".into(), "messages[2].content[0].regions[0].id".into()));
    }

    #[test]
    fn conversations_that_are_none_are_refused_where_they_fail() {
        let text = json!({"type": "text", "text": "?"});
        let another = json!({"type": "image_url", "image_url": "data:image/png;base64,BBBB"});
        let answer = json!({"role": "assistant", "content": "Yes."});
        let fine = user(json!([image(Value::Null), text]));
        for (messages, expected_code, expected_param) in [
            (json!([]), "invalid_value", "messages"),
            (json!([user(json!("?"))]), "image_count", ""),
            (json!([user(json!([image(Value::Null), another, text]))]), "image_count", ""),
            (json!([user(json!(vec![image(Value::Null); 9]))]), "too_many_images", "messages[0].content[8]"),
            (json!([{"role": "system", "content": "Be brief."}, fine]), "unsupported_parameter", "messages[0].role"),
            (json!([{"role": "tool", "content": "7"}]), "unsupported_parameter", "messages[0].role"),
            (json!([answer]), "invalid_value", "messages[0].role"),
            (json!([fine, fine]), "invalid_value", "messages[1].role"),
            (json!([fine, answer]), "invalid_value", "messages"),
            (json!([{"role": "user"}]), "invalid_value", "messages[0].content"),
            (json!([user(json!(7))]), "invalid_value", "messages[0].content"),
            (json!([user(json!([{"type": "text"}]))]), "invalid_value", "messages[0].content[0].text"),
            (json!([user(json!([{"type": "input_audio"}]))]), "invalid_value", "messages[0].content[0].type"),
            (
                json!([user(json!([{"type": "image_ref", "id": "sha256:00"}]))]),
                "invalid_value",
                "messages[0].content[0].id",
            ),
            (json!([user(json!([{"type": "region_ref", "id": "1"}]))]), "invalid_value", "messages[0].content[0].id"),
            (
                json!([user(json!([{"type": "text", "text": "?", "regions": []}]))]),
                "unsupported_parameter",
                "messages[0].content[0].regions",
            ),
            (
                json!([user(json!([image(json!([{"box": [1, 2, 3, 4]}, {"id": "region1", "box": [1, 2, 3, 4]}]))]))]),
                "invalid_value",
                "messages[0].content[0].regions[0].id",
            ),
            (
                json!([user(json!([image(json!(vec![json!({"box": [1, 2, 3, 4]}); 101]))]))]),
                "too_many_regions",
                "messages[0].content[0].regions",
            ),
            (json!(vec![json!({"role": "user", "content": "x"}); 257]), "too_many_messages", "messages"),
            (json!([user(json!(vec![text.clone(); 257]))]), "too_many_parts", "messages[0].content"),
            (json!([user(json!("x".repeat(16_001)))]), "text_too_long", "messages"),
            (
                json!([fine, {"role": "assistant", "content": [image(Value::Null)]}, fine]),
                "invalid_value",
                "messages[1].content[0].type",
            ),
        ] {
            let fault = read(messages.clone(), Value::Null, Mentions::On).unwrap_err();
            assert_eq!(code(&fault), (expected_code.into(), expected_param.into()), "{messages:.200}: {fault}");
        }
    }
}
