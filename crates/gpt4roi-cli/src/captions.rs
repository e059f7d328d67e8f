//! Predictions as captions of a COCO file's annotations, for programs that show or correct them.

use std::{collections::HashMap, fmt, fs, ops::Range, path::Path};

use anyhow::Context;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, json, value::RawValue};

use crate::{
    byte_order_mark,
    predictions::{self, Prediction, Said},
    side_file,
};

/// Writes a COCO file again, with the prediction about an annotation as its `caption`, and how sure the model is as its
/// `caption_probability`. Everything else stays as it is, to the last digit and space.
pub(crate) fn write(coco: &Path, predictions: &Path, out: &Path) -> anyhow::Result<()> {
    let named = |path: &Path| path.display().to_string();
    let file = fs::read_to_string(coco).with_context(|| named(coco))?;
    let captioned = captioned(&file, &predictions::read(predictions)?).with_context(|| named(coco))?;
    side_file::write(out, captioned.as_bytes()).with_context(|| named(out))
}

/// A COCO file, of which only what changes is looked at. Texts of values are kept as they stand in the file: numbers may
/// have more digits than a number in memory.
#[derive(Deserialize)]
struct Coco<'a> {
    #[serde(borrow)]
    annotations: Vec<Annotation<'a>>,
}

#[derive(Default)]
struct Annotation<'a> {
    id: Option<&'a RawValue>,
    caption: Option<&'a RawValue>,
    caption_probability: Option<&'a RawValue>,
    /// The value of the last field, whichever that is.
    last: Option<&'a RawValue>,
}

/// A text that takes the place of a piece of the file.
type Change = (Range<usize>, String);

fn captioned(file: &str, predictions: &[Prediction]) -> anyhow::Result<String> {
    let said: HashMap<&str, &Said> = predictions.iter().map(|line| (line.id.as_str(), &line.said)).collect();
    let coco: Coco<'_> = serde_json::from_slice(byte_order_mark::without(file.as_bytes()))?;
    let mut captioned = String::with_capacity(file.len());
    let mut copied = 0;
    for annotation in &coco.annotations {
        let Some(said) = annotation.id().and_then(|id| said.get(id.as_str()).copied()) else { continue };
        for (place, text) in annotation.changes(file, said) {
            captioned += &file[copied..place.start];
            captioned += &text;
            copied = place.end;
        }
    }
    Ok(captioned + &file[copied..])
}

impl Annotation<'_> {
    /// As predictions name it.
    fn id(&self) -> Option<String> {
        match serde_json::from_str(self.id?.get()).ok()? {
            Value::String(text) => Some(text),
            other => Some(other.to_string()),
        }
    }

    /// What is to be changed, in the order of the file.
    fn changes(&self, file: &str, said: &Said) -> Vec<Change> {
        let place_of = |value: &RawValue| {
            let start = value.get().as_ptr().addr() - file.as_ptr().addr();
            start..start + value.get().len()
        };
        let fields = [
            ("caption", self.caption, json!(said.prediction)),
            ("caption_probability", self.caption_probability, json!(said.probability)),
        ];
        let (mut changes, mut added) = (Vec::new(), String::new());
        for (name, there, value) in fields {
            match there {
                Some(there) => changes.push((place_of(there), value.to_string())),
                None => added += &format!(", \"{name}\": {value}"),
            }
        }
        let end = self.last.map_or(0, |last| place_of(last).end);
        changes.push((end..end, added));
        changes.sort_by_key(|(place, _)| place.start);
        changes
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Annotation<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Annotation<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an annotation")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotation<'de>, A::Error> {
        let mut annotation = Annotation::default();
        while let Some((name, value)) = map.next_entry()? {
            annotation.last = Some(value);
            match name {
                Field::Id => annotation.id = Some(value),
                Field::Caption => annotation.caption = Some(value),
                Field::CaptionProbability => annotation.caption_probability = Some(value),
                Field::Other => {}
            }
        }
        Ok(annotation)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Id,
    Caption,
    CaptionProbability,
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predictions() -> Vec<Prediction> {
        let line = |(id, said): (&str, &str)| {
            let line = json!({
                "id": id, "round": 1, "image": "a.png", "regions": [], "question": "What?",
                "prediction": said, "probability": 0.5,
            });
            serde_json::from_value(line).unwrap()
        };
        [("1", "A cat."), ("b\"", "A \"dog\"."), ("-3", "Two\ncats.")].map(line).into()
    }

    #[test]
    fn captions_join_the_annotations_that_were_asked_about() {
        let coco = r#"{"info": {"year": 2017}, "annotations": [
            {"id": 1, "bbox": [10.52, 2, 3, 4], "caption": "An old one."},
            {"id": "b\"", "bbox": [1, 2, 3, 4]},
            {"caption_probability": null, "caption": "", "id": -3},
            {"id": 4, "bbox": [1, 2, 3, 4], "iscrowd": 1}
        ]}"#;
        let expected = r#"{"info": {"year": 2017}, "annotations": [
            {"id": 1, "bbox": [10.52, 2, 3, 4], "caption": "A cat.", "caption_probability": 0.5},
            {"id": "b\"", "bbox": [1, 2, 3, 4], "caption": "A \"dog\".", "caption_probability": 0.5},
            {"caption_probability": 0.5, "caption": "Two\ncats.", "id": -3},
            {"id": 4, "bbox": [1, 2, 3, 4], "iscrowd": 1}
        ]}"#;
        assert_eq!(captioned(coco, &predictions()).unwrap(), expected);
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(expected["annotations"][2]["caption"], "Two\ncats.");
    }

    /// Digits behind the seventeenth, the order of fields, how numbers and letters are written, white space, a byte order
    /// mark: what is not this program's stays.
    #[test]
    fn everything_else_stays_as_it_is() {
        let mut coco = "\u{FEFF}{\r\n\t\"zebra\": 0.1000000000000000055511151231257827,\r\n\t\"a\": 1e2, \"annotations\" : [\r\n\t\t{ \"bbox\":[1.0,\
                        \t6.930000000000001, 3,4], \"more\":123456789012345678901234567890, \"id\":1 } ,{\"id\":2,\"u\":\"\\u00e9\\/\"}]\r\n}\r\n"
            .to_owned();
        let captioned = captioned(&coco, &predictions()).unwrap();
        coco.insert_str(coco.find(" } ,{").unwrap(), ", \"caption\": \"A cat.\", \"caption_probability\": 0.5");
        assert_eq!(captioned, coco);
    }
}
