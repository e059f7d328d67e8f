//! Masks as files: a PNG file, COCO's run-length encoding, or COCO's polygons.

use std::{fmt, fs, path::Path};

use gpt4roi::{
    bbox::{ImageSize, Point},
    image::DEFAULT_MAX_PIXELS,
    shape::{Mask, Rle, Shape},
};
use serde_json::Value;

use crate::{byte_order_mark, failure::Refusal};

/// What a mask may be, for whoever brought something else.
const FORMS: &str = "a mask is a PNG file, or JSON: COCO's RLE {\"size\": [height, width], \"counts\": …}, a list of \
    polygons [[x1, y1, x2, y2, x3, y3, …], …] in pixels, or an annotation that has one of these as its \"segmentation\"";

/// Reads a mask of a picture of this size. `corner` takes a polygon's corner, in pixels.
///
/// # Errors
/// If it is no mask, one of another picture, or one that marks nothing.
pub(crate) fn read(
    file: &Path,
    size: ImageSize,
    corner: impl Fn([f64; 2]) -> Result<Point, String>,
) -> Result<Shape, Refusal> {
    let refuse = |error: &dyn fmt::Display| Refusal::failure(format!("mask {}: {error}", file.display()));
    let bytes = fs::read(file).map_err(|error| refuse(&error))?;
    let bytes = byte_order_mark::without(&bytes);
    if !matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')) {
        // As large as the picture it may be in any case.
        let most = DEFAULT_MAX_PIXELS.max(u64::from(size.width) * u64::from(size.height));
        let mask = Mask::from_png(bytes, most).map_err(|error| refuse(&error).hint(FORMS))?;
        return of_size(&mask, size, refuse);
    }
    let json: Value = serde_json::from_slice(bytes).map_err(|error| refuse(&error).hint(FORMS))?;
    match json.get("segmentation").unwrap_or(&json) {
        Value::Array(polygons) => {
            let corners = corners(polygons, corner).map_err(|error| refuse(&error).hint(FORMS))?;
            Shape::polygon(&corners).map_err(|error| refuse(&error))
        }
        rle if rle.get("counts").is_some() => {
            let rle: Rle = serde_json::from_value(rle.clone()).map_err(|error| refuse(&error).hint(FORMS))?;
            let mask = Mask::from_rle(&rle).map_err(|error| refuse(&error).hint(FORMS))?;
            of_size(&mask, size, refuse)
        }
        _ => Err(refuse(&"expected counts, polygons or a segmentation, got none of them").hint(FORMS)),
    }
}

fn of_size(mask: &Mask, size: ImageSize, refuse: impl Fn(&dyn fmt::Display) -> Refusal) -> Result<Shape, Refusal> {
    mask.check_size(size).map_err(|error| {
        refuse(&error).hint("a mask has the size of the picture as it is seen, turned as its EXIF orientation says")
    })?;
    Shape::mask(mask).map_err(|error| refuse(&error))
}

/// The corners of all polygons: the smallest box around several is the one around all their corners.
fn corners(polygons: &[Value], corner: impl Fn([f64; 2]) -> Result<Point, String>) -> Result<Vec<Point>, String> {
    let mut corners = Vec::new();
    for (polygon, number) in polygons.iter().zip(1..) {
        let numbers = polygon.as_array().map(|numbers| numbers.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        let numbers = numbers.flatten().filter(|numbers| numbers.len().is_multiple_of(2));
        let numbers = numbers.ok_or(format!("polygon {number}: expected a list of numbers, two for each corner"))?;
        for (xy, place) in numbers.chunks_exact(2).zip(1..) {
            let at = |error| format!("polygon {number}, corner {place}: {error}");
            corners.push(corner([xy[0], xy[1]]).map_err(at)?);
        }
    }
    Ok(corners)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ImageSize = ImageSize { width: 200, height: 100 };

    fn read_text(text: &str) -> Result<[f64; 4], String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let corner = |xy| Point::from_pixels(xy, SIZE).map_err(|error| error.to_string());
        match read(file.path(), SIZE, corner) {
            Ok(Shape::Mask(bbox) | Shape::Polygon(bbox)) => Ok(bbox.pixels(SIZE)),
            Ok(other) => Err(format!("{other:?}")),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    #[test]
    fn every_form_of_json_is_read() {
        // Columns of 100 pixels: fifty of them outside, then twenty inside from its tenth pixel on, the rest outside.
        let rle = r#"{"size": [100, 200], "counts": [5010, 20, 14970]}"#;
        let polygons = "[[50, 10, 51, 10, 51, 20], [50.0, 20.0, 51.0, 20.0, 50.0, 30.0]]";
        for form in [rle, polygons] {
            assert_eq!(read_text(form), Ok([50.0, 10.0, 51.0, 30.0]), "{form}");
            let annotation = format!(r#" {{"id": 7, "bbox": [1, 2, 3, 4], "segmentation": {form}}}"#);
            assert_eq!(read_text(&annotation), Ok([50.0, 10.0, 51.0, 30.0]), "{annotation}");
        }
    }

    #[test]
    fn what_is_no_mask_is_refused_in_words() {
        for (text, says) in [
            (r#"{"images": [], "annotations": []}"#, "expected counts, polygons or a segmentation"),
            (r#"{"segmentation": null}"#, "expected counts, polygons or a segmentation"),
            (r#"{"size": [100, 200]}"#, "expected counts, polygons or a segmentation"),
            (r#"{"counts": [20000]}"#, "missing field `size`"),
            (
                r#"{"segmentation": {"size": [100, 200], "counts": [1.5]}}"#,
                "expected counts as a list of whole numbers",
            ),
            (r#"{"size": [100, 200"#, "EOF"),
            ("[]", "at least 3 corners, got 0"),
            ("[[1, 2, 3, 4]]", "at least 3 corners, got 2"),
            ("[[1, 1, 9, 9, 5, 5]]", "3 corners on one line"),
            ("[[1, 2, 3, 4, 5, 6, 7]]", "polygon 1: expected a list of numbers, two for each corner"),
            ("[[1, 1, 9, 1, 9, 9], 7]", "polygon 2: expected a list of numbers"),
            (r#"[[1, 1, 9, 1, "9", 9]]"#, "polygon 1: expected a list of numbers"),
            ("[[1, 1, 9, 1, 9, 101]]", "polygon 1, corner 3: y: expected 0 to 100 (pixels), got 101"),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.starts_with("mask ") && error.contains(says), "{text}: {error}");
        }
    }
}
