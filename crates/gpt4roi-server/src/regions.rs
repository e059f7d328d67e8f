//! Regions as a client writes them, and what they are in the picture.

use gpt4roi::{
    RegionId,
    bbox::{BoxError, ImageSize, Point},
    chat::ResolvedRegion,
    coordinates::{BoxForm, Coords},
    shape::Shape,
};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Value, json};

use crate::{
    fault::{Fault, Result},
    limits::{Few, MAX_CORNERS, Memory, Unit},
    mask::MaskForm,
};

/// A region: an id, one form, and what its numbers count.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct Region {
    pub(crate) id: Option<String>,
    /// Left, top, right and bottom edge.
    #[serde(rename = "box")]
    xyxy: Option<Numbers<4>>,
    /// Left and top edge, width and height, as COCO has it.
    #[serde(rename = "bbox")]
    xywh: Option<Numbers<4>>,
    point: Option<Numbers<2>>,
    polygon: Option<Few<Numbers<2>, MAX_CORNERS>>,
    mask: Option<MaskForm>,
    coords: Option<Coords>,
    clip: Option<bool>,
}

/// So many numbers, neither fewer nor more.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Numbers<const N: usize>([f64; N]);

impl<'de, const N: usize> Deserialize<'de> for Numbers<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let numbers = Few::<f64, N>::deserialize(deserializer)?;
        let length = numbers.total();
        let kept: Vec<f64> = numbers.kept().copied().collect();
        let exact = kept.try_into().ok().filter(|_| length == N);
        exact.map(Self).ok_or_else(|| D::Error::invalid_length(length, &format!("{N} numbers").as_str()))
    }
}

impl Region {
    /// The region in a picture of this size. `param` is where it stands in the request. A mask may take as
    /// long as decoding a picture, and as much of the memory meanwhile.
    pub(crate) fn shape(&self, param: &str, size: ImageSize, memory: &Memory) -> Result<Shape> {
        let (coords, clip) = (self.coords.unwrap_or_default(), self.clip.unwrap_or(false));
        let at = |form: &str| format!("{param}.{form}");
        let shape = match (self.xyxy, self.xywh, self.point, &self.polygon, &self.mask) {
            (Some(Numbers(xyxy)), None, None, None, None) => coords
                .bbox(xyxy, BoxForm::Xyxy, clip, size)
                .map(Shape::Box)
                .map_err(|error| (at("box"), error.to_string())),
            (None, Some(Numbers(xywh)), None, None, None) => coords
                .bbox(xywh, BoxForm::Xywh, clip, size)
                .map(Shape::Box)
                .map_err(|error| (at("bbox"), error.to_string())),
            (None, None, Some(Numbers(place)), None, None) => {
                coords.point(place, size).map(Shape::Point).map_err(|error| (at("point"), error.to_string()))
            }
            (None, None, None, Some(corners), None) => {
                let corners = corners.all(&at("polygon"), Unit::Corners)?;
                polygon(corners, coords, clip, size).map_err(|error| (at("polygon"), error))
            }
            (None, None, None, None, Some(mask)) => return mask.shape(&at("mask"), size, memory),
            _ => Err((param.to_owned(), "expected exactly one of box, bbox, point, polygon and mask".into())),
        };
        shape.map_err(|(param, message)| Fault::Region { param, message })
    }

    /// The number in `"id": "region7"`.
    pub(crate) fn number(&self, param: &str) -> Result<Option<RegionId>> {
        let number = |id: &String| {
            let expected = || Fault::Value { param: format!("{param}.id"), expected: ID.into() };
            region_id(id).ok_or_else(expected)
        };
        self.id.as_ref().map(number).transpose()
    }
}

/// How an id is written.
pub(crate) const ID: &str = "region1, region2, … up to region999999";

/// Reads `region7`.
pub(crate) fn region_id(text: &str) -> Option<RegionId> {
    let digits = text.strip_prefix("region")?;
    let number = digits.len() <= 6 && digits.bytes().all(|digit| digit.is_ascii_digit()) && !digits.starts_with('0');
    number.then(|| digits.parse().ok().map(RegionId)).flatten()
}

/// A region of an answer: its id and its box in pixels, as a request could declare it again. That of a point is read
/// as it is, and as a box like any other if it comes back with `zoom`.
pub(crate) fn resolved(region: &ResolvedRegion) -> Value {
    json!({"id": format!("region{}", region.id), "box": region.pixels, "coords": "pixel", "origin": region.origin})
}

fn polygon(corners: &[Numbers<2>], coords: Coords, clip: bool, size: ImageSize) -> std::result::Result<Shape, String> {
    let corners = corners.iter().map(|&Numbers(xy)| coords.corner(xy, clip, size));
    let corners = corners.collect::<std::result::Result<Vec<Point>, BoxError>>();
    Shape::polygon(&corners.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::tests::from_json;

    const SIZE: ImageSize = ImageSize { width: 200, height: 100 };

    fn shape(text: &str) -> Result<Shape> {
        from_json::<Region>(text)?.shape("regions[0]", SIZE, &Memory::new(1 << 20))
    }

    #[test]
    fn every_form_and_unit_names_the_same_box() {
        for text in [
            r#"{"box": [50, 20, 150, 80]}"#,
            r#"{"box": [50, 20, 150, 80], "coords": "pixel", "polygon": null}"#,
            r#"{"box": [0.25, 0.2, 0.75, 0.8], "coords": "norm"}"#,
            r#"{"box": [250, 200, 750, 800], "coords": "norm1000"}"#,
            r#"{"bbox": [50, 20, 100, 60]}"#,
            r#"{"bbox": [0.25, 0.2, 0.5, 0.6], "coords": "norm"}"#,
            r#"{"bbox": [250, 200, 500, 600], "coords": "norm1000"}"#,
            r#"{"polygon": [[50, 40], [100, 20], [150, 60], [70, 80]]}"#,
            r#"{"polygon": [[0.25, 0.4], [0.5, 0.2], [0.75, 0.6], [0.3, 0.8]], "coords": "norm"}"#,
        ] {
            let (Shape::Box(bbox) | Shape::Polygon(bbox)) = shape(text).unwrap() else { panic!("{text}") };
            let pixels = bbox.pixels(SIZE);
            let near = pixels.iter().zip([50.0, 20.0, 150.0, 80.0]).all(|(got, wanted)| (got - wanted).abs() < 1e-9);
            assert!(near, "{text}: {pixels:?}");
        }
        for text in [
            r#"{"point": [50, 20]}"#,
            r#"{"point": [0.25, 0.2], "coords": "norm"}"#,
            r#"{"point": [250, 200], "coords": "norm1000"}"#,
        ] {
            let Shape::Point(point) = shape(text).unwrap() else { panic!("{text}") };
            assert_eq!([point.x, point.y], [0.25, 0.2], "{text}");
        }
    }

    #[test]
    fn clipping_cuts_what_sticks_out() {
        for text in [
            r#"{"box": [-50, 20, 100, 180], "clip": true}"#,
            r#"{"bbox": [-50, 20, 150, 160], "clip": true}"#,
            r#"{"box": [-0.25, 0.2, 0.5, 1.8], "coords": "norm", "clip": true}"#,
            r#"{"box": [-250, 200, 500, 1800], "coords": "norm1000", "clip": true}"#,
            r#"{"polygon": [[-50, 20], [100, 20], [100, 180]], "clip": true}"#,
        ] {
            let (Shape::Box(bbox) | Shape::Polygon(bbox)) = shape(text).unwrap() else { panic!("{text}") };
            assert_eq!(bbox.pixels(SIZE), [0.0, 20.0, 100.0, 100.0], "{text}");
        }
        assert!(shape(r#"{"box": [300, 20, 400, 80], "clip": true}"#).is_err(), "nothing is left");
    }

    #[test]
    fn faults_name_the_form() {
        for (text, param, message) in [
            (r#"{"box": [50, 20, 150, 180]}"#, "regions[0].box", "y2"),
            (r#"{"box": [150, 20, 50, 80]}"#, "regions[0].box", "x1 < x2"),
            (r#"{"box": [50, 20, 50, 80]}"#, "regions[0].box", "x1 < x2"),
            (r#"{"box": [0.25, 0.2, 75, 0.8], "coords": "norm"}"#, "regions[0].box", "x2"),
            (r#"{"bbox": [50, 20, 0, 60]}"#, "regions[0].bbox", "expected"),
            (r#"{"point": [201, 20]}"#, "regions[0].point", "200"),
            (r#"{"polygon": [[1, 1], [2, 2]]}"#, "regions[0].polygon", "at least 3"),
            (r#"{"polygon": [[1, 1], [2, 1], [3, 1]]}"#, "regions[0].polygon", "expected"),
            (r#"{"polygon": [[1, 1], [2, 1], [3, 111]]}"#, "regions[0].polygon", "100"),
            (r#"{"mask": {"size": [100, 200], "counts": [20000]}}"#, "regions[0].mask", "marks something"),
            (r#"{}"#, "regions[0]", "exactly one"),
            (r#"{"box": [50, 20, 150, 80], "point": [1, 1]}"#, "regions[0]", "exactly one"),
        ] {
            let fault = shape(text).unwrap_err();
            let Fault::Region { param: got, message: words } = &fault else { panic!("{text}: {fault:?}") };
            assert_eq!(got, param, "{text}");
            assert!(words.contains(message), "{text}: {words}");
        }
        let many = format!(r#"{{"polygon": [{}[1, 1]]}}"#, "[1, 1],".repeat(MAX_CORNERS));
        assert!(matches!(shape(&many), Err(Fault::TooMany { unit: Unit::Corners, .. })));
    }

    #[test]
    fn numbers_that_are_none_have_their_place() {
        for (text, place) in [
            (r#"{"box": [1, 2, 3]}"#, "box"),
            (r#"{"box": [1, 2, 3, 4, 5]}"#, "box"),
            (r#"{"box": [1, 2, "3", 4]}"#, "box[2]"),
            (r#"{"box": {"x1": 1}}"#, "box"),
            (r#"{"polygon": [[1, 2], [3]]}"#, "polygon[1]"),
            (r#"{"point": [1, null]}"#, "point[1]"),
            (r#"{"box": [1, 2, 3, 4], "coords": "percent"}"#, "coords"),
            (r#"{"id": 1, "box": [1, 2, 3, 4]}"#, "id"),
        ] {
            let fault = shape(text).unwrap_err();
            let Fault::Field { param, .. } = &fault else { panic!("{text}: {fault:?}") };
            assert_eq!(param.as_deref(), Some(place), "{text}");
        }
        assert!(matches!(shape(r#"{"box": [1, 2, 1e999, 4]}"#), Err(Fault::Json(_) | Fault::Field { .. })));
        assert!(shape(r#"{"box": [1, 2, 123456789012345678901234567890, 4]}"#).is_err());
    }

    #[test]
    fn ids_are_numbers_behind_a_word() {
        assert_eq!(region_id("region1"), Some(RegionId(1)));
        assert_eq!(region_id("region999999"), Some(RegionId(999_999)));
        for text in [
            "region0",
            "region",
            "region01",
            "region-1",
            "region1000000",
            "region１",
            "<region1>",
            "Region1",
            "1",
            "region 1",
            "",
        ] {
            assert_eq!(region_id(text), None, "{text}");
        }
    }
}
