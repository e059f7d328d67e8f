//! Masks as a client writes them: COCO's run-length encoding, or a PNG file in a data URL.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gpt4roi::{
    bbox::ImageSize,
    shape::{Counts, Mask, Rle, Shape},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer, value::SeqAccessDeserializer},
};

use crate::limits::{Few, MAX_RUNS};

/// A mask that was not read yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum MaskForm {
    /// `{"size": [height, width], "counts": …}`
    Rle(Runs),
    /// `data:image/png;base64,…`
    Png(String),
}

/// COCO's run-length encoding.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(expecting = "an object with size and counts")]
pub(crate) struct Runs {
    size: [u32; 2],
    counts: RunCounts,
}

#[derive(Clone, Debug, PartialEq)]
enum RunCounts {
    List(Few<i64, MAX_RUNS>),
    Text(String),
}

impl MaskForm {
    /// The region in a picture of this size, or what is wrong. Takes as long as decoding a picture.
    pub(crate) fn shape(&self, size: ImageSize) -> Result<Shape, String> {
        let mask = match self {
            Self::Rle(runs) => Mask::from_rle(&runs.rle()?),
            Self::Png(url) => {
                let encoded = url.strip_prefix("data:image/png;base64,");
                let encoded = encoded.ok_or("expected COCO's {size, counts} or data:image/png;base64,…")?;
                let file = STANDARD.decode(encoded).map_err(|_| "expected base64")?;
                Mask::from_png(&file, u64::from(size.width) * u64::from(size.height))
            }
        };
        let mask = mask.map_err(|error| error.to_string())?;
        mask.check_size(size).map_err(|error| error.to_string())?;
        Shape::mask(&mask).map_err(|error| error.to_string())
    }
}

impl Runs {
    fn rle(&self) -> Result<Rle, String> {
        let counts = match &self.counts {
            RunCounts::Text(text) => Counts::Text(text.clone()),
            RunCounts::List(runs) if runs.total() > MAX_RUNS => {
                return Err(format!("expected at most {MAX_RUNS} counts, got {}", runs.total()));
            }
            RunCounts::List(runs) => Counts::List(runs.kept().copied().collect()),
        };
        Ok(Rle { size: self.size, counts })
    }
}

impl<'de> Deserialize<'de> for MaskForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FormVisitor;
        impl<'de> Visitor<'de> for FormVisitor {
            type Value = MaskForm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with size and counts, or a PNG file in a data URL")
            }

            fn visit_str<E: Error>(self, url: &str) -> Result<MaskForm, E> {
                Ok(MaskForm::Png(url.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MaskForm, A::Error> {
                Runs::deserialize(MapAccessDeserializer::new(map)).map(MaskForm::Rle)
            }
        }
        deserializer.deserialize_any(FormVisitor)
    }
}

impl<'de> Deserialize<'de> for RunCounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountsVisitor;
        impl<'de> Visitor<'de> for CountsVisitor {
            type Value = RunCounts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of numbers, or a string in COCO's coding")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RunCounts, E> {
                Ok(RunCounts::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, runs: A) -> Result<RunCounts, A::Error> {
                Few::deserialize(SeqAccessDeserializer::new(runs)).map(RunCounts::List)
            }
        }
        deserializer.deserialize_any(CountsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ImageSize = ImageSize { width: 4, height: 3 };

    fn shape(text: &str) -> Result<Shape, String> {
        serde_json::from_str::<MaskForm>(text).map_err(|error| error.to_string())?.shape(SIZE)
    }

    /// A grey picture of 4×3 pixels of which the second of the second row is white.
    fn png() -> String {
        let mut picture = image::GrayImage::new(4, 3);
        picture.put_pixel(1, 1, image::Luma([255]));
        let mut file = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
        format!("data:image/png;base64,{}", STANDARD.encode(file.into_inner()))
    }

    #[test]
    fn every_form_marks_the_same_pixel() {
        // Column by column: three of the first and one of the second are not marked, then one is. In COCO's
        // coding a number below 16 is one character, 48 above it; from the third on, runs are differences.
        let forms = [
            r#"{"size": [3, 4], "counts": [4, 1, 7]}"#.to_owned(),
            r#"{"size": [3, 4], "counts": "417"}"#.to_owned(),
            format!("{:?}", png()),
        ];
        for form in forms {
            let Shape::Mask(bbox) = shape(&form).unwrap() else { panic!("{form}") };
            assert_eq!(bbox.pixels(SIZE), [1.0, 1.0, 2.0, 2.0], "{form}");
        }
    }

    #[test]
    fn faults_say_what_was_expected() {
        let many = format!(r#"{{"size": [3, 4], "counts": [{}0]}}"#, "0,".repeat(MAX_RUNS));
        for (form, message) in [
            (r#"{"size": [3, 4], "counts": [4, 1, 6]}"#, "12"),
            (r#"{"size": [3, 4], "counts": [12]}"#, "marks something"),
            (r#"{"size": [3, 5], "counts": [4, 1, 10]}"#, "4×3"),
            (r#"{"size": [3, 4], "counts": {}}"#, "an array of numbers"),
            (r#"{"size": [3], "counts": "413"}"#, "2"),
            (r#""data:image/jpeg;base64,AAAA""#, "data:image/png"),
            (r#""data:image/png;base64,?""#, "base64"),
            (r#""data:image/png;base64,AAAA""#, "PNG"),
            ("7", "an object with size and counts"),
            (&*many, "at most"),
        ] {
            let error = shape(form).unwrap_err();
            assert!(error.contains(message), "{form:.60}: {error}");
        }
    }
}
