//! Requests, as the server reads them.

use std::{collections::BTreeSet, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use candle_core::Device;
use gpt4roi::{
    Choices, Gpt4Roi, ImageSize, RegionId,
    asked::Said,
    bbox::Point,
    mention::{self, Part},
    shape::Shape,
};
use gpt4roi_server::reading::{self, Chat, Describe, Refusal};
use serde_json::Value;

use crate::regions::is_inside;

const SIZE: ImageSize = ImageSize { width: 200, height: 100 };
/// Bytes of a picture's file, few, so that seeds reach the limit.
const MOST: usize = 100;
/// Characters of an error's message; each one of the client's may take ten.
const MAX_MESSAGE: usize = 20_010;

static MODEL: LazyLock<Gpt4Roi> = LazyLock::new(|| Gpt4Roi::nano(&Device::Cpu).expect("the embedded model is whole"));

/// A data URL is an error, or exactly the file that it encodes, and no larger than allowed.
pub fn data_url(bytes: &[u8]) {
    let Ok(url) = str::from_utf8(bytes) else { return };
    let encoded = url.split_once(',').map(|(_, encoded)| encoded);
    match reading::data_url(url, MOST) {
        Ok(file) => {
            assert!(file.len() <= MOST, "{} bytes", file.len());
            assert_eq!(Some(&*STANDARD.encode(&file)), encoded, "{url}");
        }
        Err(refusal) => {
            is_told_well(&refusal);
            let file = encoded.and_then(|encoded| STANDARD.decode(encoded).ok());
            let fits = file.is_some_and(|file| file.len() <= MOST);
            assert!(refusal.status() != 413 || !fits, "{url} is not too large");
        }
    }
}

/// A request for an answer or for descriptions is an error that the client may be told, or about one
/// picture, with regions inside it, and each mention has its place in the prompt.
pub fn chat(bytes: &[u8]) {
    match reading::chat(bytes, SIZE) {
        Ok(chat) => {
            is_about_one_picture(&chat, bytes);
            regions_are_few_and_inside(&chat);
            mentions_are_bound(&chat);
            choices_differ(chat.choices());
        }
        Err(refusal) => is_told_well(&refusal),
    }
    match reading::describe(bytes, SIZE) {
        Ok(describe) => asks_about_each(&describe),
        Err(refusal) => is_told_well(&refusal),
    }
}

/// OpenAI's form, with nothing in it that could do something where it is shown.
fn is_told_well(refusal: &Refusal) {
    assert!((400..500).contains(&refusal.status()), "{refusal:?}");
    let body = refusal.body();
    let fields = |value: &Value| value.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
    assert_eq!(fields(&body), Some(vec!["error".to_owned()]), "{body}");
    let error = &body["error"];
    assert_eq!(fields(error), Some(["code", "message", "param", "type"].map(str::to_owned).into()), "{body}");

    let message = error["message"].as_str().expect("a message is text");
    assert!((1..=MAX_MESSAGE).contains(&message.chars().count()), "{message}");
    assert!(message.chars().all(|sign| matches!(sign, ' '..='~' | '…' | '×')), "{message:?}");
    let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    assert!(["code", "type"].iter().all(|field| error[field].as_str().is_some_and(is_name)), "{body}");
    let is_path = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.[]".contains(&byte));
    assert!(error["param"].is_null() || error["param"].as_str().is_some_and(is_path), "{body}");
}

/// Looks for pictures in the JSON as it is.
fn is_about_one_picture(chat: &Chat, bytes: &[u8]) {
    // What the server passes over may be deeper than this reader goes.
    let Ok(request) = serde_json::from_slice::<Value>(bytes) else { return };
    let messages = request["messages"].as_array().expect("a conversation has messages");
    let parts = messages.iter().step_by(2).filter_map(|message| message["content"].as_array()).flatten();
    let addresses: Vec<&str> = parts.filter_map(address).collect();
    assert!((1..=8).contains(&addresses.len()), "{addresses:?}");
    let local: BTreeSet<&str> = addresses.iter().copied().filter(|address| !address.contains("://")).collect();
    assert!(local.len() <= 1, "{local:?}");

    let pointer = format!("/{}", chat.picture().replace(['.', '['], "/").replace(']', ""));
    let picture = request.pointer(&pointer).or_else(|| request.pointer(pointer.strip_suffix("/url")?));
    assert_eq!(picture.and_then(Value::as_str), Some(addresses[0]), "{pointer}");
}

fn address(part: &Value) -> Option<&str> {
    match part["type"].as_str()? {
        "image_url" => part["image_url"]["url"].as_str().or(part["image_url"].as_str()),
        "image_ref" => part["id"].as_str(),
        _ => None,
    }
}

fn regions_are_few_and_inside(chat: &Chat) {
    let ids: BTreeSet<RegionId> = chat.regions().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), chat.regions().len(), "an id of its own for each");
    assert!(ids.len() <= 100 && ids.iter().all(|id| (1..1_000_000).contains(&id.0)), "{ids:?}");
    chat.regions().iter().for_each(|(_, shape)| lies_inside(shape));
}

fn lies_inside(shape: &Shape) {
    match shape {
        Shape::Box(bbox) | Shape::Polygon(bbox) | Shape::Mask(bbox) => is_inside(bbox),
        Shape::Point(Point { x, y }) => assert!((0.0..=1.0).contains(x) && (0.0..=1.0).contains(y), "{shape:?}"),
    }
}

/// Each mention that is found has a token in the prompt; one of nothing is refused.
fn mentions_are_bound(chat: &Chat) {
    let rendered = match chat.rendered(&MODEL) {
        Ok(rendered) => rendered,
        Err(refusal) => return is_told_well(&refusal),
    };
    let declared: Vec<RegionId> = chat.regions().iter().map(|(id, _)| *id).collect();
    let said = chat.rounds().iter().flat_map(|round| &round.question).chain(chat.question());
    for said in said {
        let parts = match said {
            Said::Literal(_) => Vec::new(),
            Said::Region(id) => vec![Part::Mention(*id)],
            // Regions of coordinates, which are not declared, may be mentioned later.
            Said::Text(text) => mention::parse(text, &declared, SIZE).unwrap_or_default(),
        };
        for part in parts {
            if let Part::Mention(id) = part {
                assert!(rendered.before(id) < rendered.tokens() - 1, "{id} has no place: {said:?}");
            }
        }
    }
}

/// There is something to choose between, and not too much.
fn choices_differ(choices: Option<&Choices>) {
    let Some(choices) = choices else { return };
    for texts in [choices.texts(), choices.wordings()] {
        let all: BTreeSet<&String> = texts.iter().collect();
        assert_eq!(all.len(), texts.len(), "{texts:?}");
        assert!((2..=1000).contains(&texts.len()) && !all.contains(&String::new()), "{texts:?}");
        assert!(texts.iter().map(|text| text.chars().count()).sum::<usize>() <= 16_000, "{texts:?}");
    }
}

fn asks_about_each(describe: &Describe) {
    assert_eq!(describe.ids.len(), describe.shapes.len());
    assert!((1..=1000).contains(&describe.shapes.len()) && describe.ids.iter().all(|id| id.len() <= 256));
    describe.shapes.iter().for_each(lies_inside);
    choices_differ(describe.choices.as_ref());
    let scored = describe.choices.as_ref().map_or(0, |choices| choices.texts().len() * describe.shapes.len());
    assert!(scored <= 100_000, "{scored}");
    let this = RegionId(1);
    let parts = mention::parse(&describe.question, &[this], SIZE).expect("a question that was read can be read");
    assert!(parts.contains(&Part::Mention(this)), "{}", describe.question);
}
