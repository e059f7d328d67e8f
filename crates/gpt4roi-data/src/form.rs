//! What a file of records is, told by what stands in it.

use std::{
    fmt,
    io::{self, BufRead, Seek, SeekFrom},
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{error::DataError, records::RecordOptions};

/// What a file of records is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Conversations, one a line.
    Lines,
    /// A COCO detection file.
    Coco,
    /// Visual Genome's region descriptions.
    VisualGenome,
    /// MDETR's referring expressions, or phrases, with their boxes.
    Mdetr,
    /// All-Seeing's boxes with captions.
    AllSeeing,
    /// VCR's questions, one a line.
    Vcr,
    /// Visual7W's questions, which point at boxes or tell in words.
    Visual7w,
    /// LLaVA's conversations about whole pictures.
    Llava,
}

/// Stands before a text that programs for Windows write, and is no part of it.
const BYTE_ORDER_MARK: &[u8] = "\u{FEFF}".as_bytes();

impl Form {
    /// Its name does not count. A file of which nothing can be told is taken for lines, so that the error names the
    /// first of them. Afterwards the reader stands where the text begins.
    pub(crate) fn of(reader: &mut (impl BufRead + Seek)) -> io::Result<Self> {
        let begin = if reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        reader.consume(begin);
        let mut told = None;
        // Reading stops in the middle of the file, which is an error to its reader.
        let _ = serde_json::Deserializer::from_reader(&mut *reader).deserialize_any(Telltale(&mut told));
        reader.seek(SeekFrom::Start(begin as u64))?;
        Ok(told.unwrap_or(Self::Lines))
    }

    /// Refuses options that mean nothing for such a file.
    pub(crate) fn check(self, options: &RecordOptions, file: &Path) -> Result<(), DataError> {
        let refused = |setting, got: &String, reason| {
            let expected = format!("none, since {} {reason}", file.display());
            Err(DataError::Setting { setting, expected, got: got.clone() })
        };
        match (&options.question, &options.split) {
            (Some(question), _) if self.has_questions() => refused("question", question, "has questions of its own"),
            (_, Some(split)) if !self.has_splits() => refused("split", split, "is not split"),
            _ => Ok(()),
        }
    }

    fn has_questions(self) -> bool {
        match self {
            Self::Lines | Self::Vcr | Self::Visual7w | Self::Llava => true,
            Self::Coco | Self::VisualGenome | Self::Mdetr | Self::AllSeeing => false,
        }
    }

    fn has_splits(self) -> bool {
        self == Self::Visual7w
    }
}

/// Reads the first value of a file up to the field that tells what the file is.
struct Telltale<'a>(&'a mut Option<Form>);

impl<'de> Visitor<'de> for Telltale<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        *self.0 = Some(Form::VisualGenome);
        if list.next_element::<Fields>()?.is_some_and(|entry| entry.has("conversations")) {
            *self.0 = Some(Form::Llava);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key::<String>()? {
            let told = match field.as_str() {
                "image" | "rounds" => Form::Lines,
                "img_fn" | "metadata_fn" => Form::Vcr,
                "images" | "annotations" => {
                    map.next_value_seed(First(&mut *self.0))?;
                    continue;
                }
                "categories" => {
                    *self.0 = Some(Form::Coco);
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *self.0 = Some(told);
            break;
        }
        Ok(())
    }
}

/// Reads the first entry of a list, and ends there with an error; only an empty list is read to its end.
struct First<'a>(&'a mut Option<Form>);

impl<'de> DeserializeSeed<'de> for First<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for First<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        *self.0 = Some(Form::Coco);
        let Some(entry) = list.next_element::<Fields>()? else { return Ok(()) };
        if entry.has("qa_pairs") {
            *self.0 = Some(Form::Visual7w);
        } else if entry.has("tokens_positive") || entry.has("tokens_negative") {
            *self.0 = Some(Form::Mdetr);
        } else if entry.has("image") && entry.has("bbox") {
            *self.0 = Some(Form::AllSeeing);
        }
        Err(A::Error::custom("the rest plays no part"))
    }
}

/// The names of an object's fields.
struct Fields(Vec<String>);

impl Fields {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|field| field == name)
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldNames)
    }
}

struct FieldNames;

impl<'de> Visitor<'de> for FieldNames {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut names = Vec::new();
        while let Some((name, IgnoredAny)) = map.next_entry()? {
            names.push(name);
        }
        Ok(Fields(names))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn a_file_is_what_stands_in_it() {
        for (file, expected) in [
            (r#"{"id": 7, "image": "a.png", "rounds": []}"#, Form::Lines),
            (r#"{"images": [{"id": 1}], "annotations": [{"tokens_positive": []}]}"#, Form::Coco),
            (r#"{"info": {}, "images": [], "categories": [], "annotations": []}"#, Form::Coco),
            (r#"{"annotations": [{"id": 1}], "categories": [], "images": [{"qa_pairs": []}]}"#, Form::Coco),
            (r#"{"annotations": [{"id": 1, "tokens_positive": []}]}"#, Form::Mdetr),
            (r#"{"images": [], "annotations": [{"id": 1, "tokens_positive": []}]}"#, Form::Mdetr),
            (r#"{"categories": [], "images": [{"caption": "A cat.", "tokens_negative": []}]}"#, Form::Mdetr),
            (r#"{"images": [{"id": 1, "image": "a.jpg", "bbox": []}], "annotations": []}"#, Form::AllSeeing),
            (r#"{"boxes": [{}], "dataset": "visual7w", "images": [{"qa_pairs": []}, {}]}"#, Form::Visual7w),
            (r#"{"movie": "A", "objects": ["person"], "img_fn": "a.jpg"}"#, Form::Vcr),
            (r#"[{"id": 1, "regions": []}]"#, Form::VisualGenome),
            (r#"[{"id": 1, "conversations": []}]"#, Form::Llava),
            ("[]", Form::VisualGenome),
            ("[1]", Form::VisualGenome),
            (r#"{"images": [1]}"#, Form::Coco),
            (r#"{"images": 1}"#, Form::Lines),
            ("{}", Form::Lines),
            ("", Form::Lines),
            ("What?", Form::Lines),
        ] {
            let marked = format!("\u{FEFF}{file}");
            for (text, begin) in [(file, 0), (&marked, 3)] {
                let mut reader = Cursor::new(text);
                assert_eq!(Form::of(&mut reader).unwrap(), expected, "{text}");
                assert_eq!(reader.position(), begin, "{text}");
            }
        }
    }
}
