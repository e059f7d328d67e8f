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

use crate::{
    fault::{Fault, Result},
    limits::{Few, MAX_RUNS, Memory},
};

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
    /// The region in a picture of this size; `param` is where it stands in the request. Takes as long as decoding a
    /// picture, and its memory meanwhile.
    ///
    /// # Errors
    /// If it marks nothing, can't be read or is of another size, or if too much is in memory.
    pub(crate) fn shape(&self, param: &str, size: ImageSize, memory: &Memory) -> Result<Shape> {
        let wrong = |error: &dyn fmt::Display| Fault::Region { param: param.to_owned(), message: error.to_string() };
        let mask = match self {
            Self::Rle(runs) => Mask::from_rle(&runs.rle().map_err(|error| wrong(&error))?),
            Self::Png(url) => {
                let encoded = url.strip_prefix("data:image/png;base64,");
                let encoded =
                    encoded.ok_or_else(|| wrong(&"expected COCO's {size, counts} or data:image/png;base64,…"))?;
                let file = STANDARD.decode(encoded).map_err(|_| wrong(&"expected base64"))?;
                let pixels = u64::from(size.width) * u64::from(size.height);
                let bytes = Mask::decoding_bytes(&file, pixels).map_err(|error| wrong(&error))?;
                let _held = memory.take(bytes as usize)?;
                Mask::from_png(&file, pixels)
            }
        };
        let mask = mask.map_err(|error| wrong(&error))?;
        mask.check_size(size).map_err(|error| wrong(&error))?;
        Shape::mask(&mask).map_err(|error| wrong(&error))
    }
}

impl Runs {
    fn rle(&self) -> std::result::Result<Rle, String> {
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
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct FormVisitor;
        impl<'de> Visitor<'de> for FormVisitor {
            type Value = MaskForm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with size and counts, or a PNG file in a data URL")
            }

            fn visit_str<E: Error>(self, url: &str) -> std::result::Result<MaskForm, E> {
                Ok(MaskForm::Png(url.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<MaskForm, A::Error> {
                Runs::deserialize(MapAccessDeserializer::new(map)).map(MaskForm::Rle)
            }
        }
        deserializer.deserialize_any(FormVisitor)
    }
}

impl<'de> Deserialize<'de> for RunCounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct CountsVisitor;
        impl<'de> Visitor<'de> for CountsVisitor {
            type Value = RunCounts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of numbers, or a string in COCO's coding")
            }

            fn visit_str<E: Error>(self, text: &str) -> std::result::Result<RunCounts, E> {
                Ok(RunCounts::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, runs: A) -> std::result::Result<RunCounts, A::Error> {
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

    fn shape(text: &str) -> std::result::Result<Shape, String> {
        let form: MaskForm = serde_json::from_str(text).map_err(|error| error.to_string())?;
        form.shape("mask", SIZE, &Memory::new(1 << 20)).map_err(|error| error.to_string())
    }

    /// A grey picture of 4×3 pixels of which the second of the second row is white.
    fn png() -> String {
        let mut picture = image::GrayImage::new(4, 3);
        picture.put_pixel(1, 1, image::Luma([255]));
        url(&picture.into())
    }

    fn url(picture: &image::DynamicImage) -> String {
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

    /// 64×32 pixels of four times 16 bits are 16 KiB, all given back.
    #[test]
    fn a_mask_takes_the_memory_for_its_pixels_while_it_is_decoded() {
        let size = ImageSize { width: 64, height: 32 };
        let mut picture = image::ImageBuffer::<image::Rgba<u16>, _>::new(size.width, size.height);
        picture.put_pixel(9, 9, image::Rgba([0, 0, 0, 1]));
        let form = MaskForm::Png(url(&picture.into()));
        for (bytes, enough) in [(15 << 10, false), (16 << 10, true)] {
            let memory = Memory::new(bytes);
            let shape = form.shape("mask", size, &memory);
            assert_eq!((shape.is_ok(), matches!(shape, Err(Fault::Busy))), (enough, !enough));
            assert!(memory.take(bytes).is_ok());
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
