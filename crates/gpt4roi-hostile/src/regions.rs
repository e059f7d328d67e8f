//! Regions as numbers.

use gpt4roi::{
    BBox, ImageSize,
    bbox::Point,
    shape::{Mask, Rle, Shape},
};

use crate::pictures::holds_or_marks_nothing;

/// COCO's RLE in JSON is an error, or the box around what it marks lies in its picture.
pub fn rle(bytes: &[u8]) {
    let Ok(rle) = serde_json::from_slice::<Rle>(bytes) else { return };
    let Ok(mask) = Mask::from_rle(&rle) else { return };
    assert_eq!([mask.size().height, mask.size().width], rle.size);
    holds_or_marks_nothing(&mask);
}

/// A picture's size and any numbers, eight bytes each, become an error or a region inside the picture.
pub fn coordinates(bytes: &[u8]) {
    let Some((size, numbers)) = bytes.split_first_chunk::<8>() else { return };
    let [width, height] = [0, 4].map(|at| u32::from_le_bytes([size[at], size[at + 1], size[at + 2], size[at + 3]]));
    let size = ImageSize { width, height };
    let (numbers, _) = numbers.as_chunks::<8>();
    let numbers: Vec<f64> = numbers.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();

    for xyxy in numbers.as_chunks::<4>().0 {
        let boxes = [
            BBox::from_pixels(*xyxy, size),
            BBox::from_pixels_clipped(*xyxy, size),
            BBox::from_xywh_pixels(*xyxy, size),
            BBox::from_xywh_pixels_clipped(*xyxy, size),
            BBox::from_normalized(*xyxy),
            BBox::from_normalized_clipped(*xyxy),
            BBox::from_norm1000(*xyxy),
        ];
        boxes.into_iter().flatten().for_each(|bbox| is_inside(&bbox));
    }
    let pairs = numbers.as_chunks::<2>().0;
    for xy in pairs {
        let places = [Point::from_pixels(*xy, size), Point::from_normalized(*xy), Point::from_norm1000(*xy)];
        for Point { x, y } in places.into_iter().flatten() {
            assert!((0.0..=1.0).contains(&x) && (0.0..=1.0).contains(&y), "{xy:?} became {x}, {y}");
        }
    }
    let corners: Vec<Point> = pairs.iter().map(|&[x, y]| Point { x, y }).collect();
    if let Ok(Shape::Polygon(bbox)) = Shape::polygon(&corners) {
        is_inside(&bbox);
    }
}

fn is_inside(bbox: &BBox) {
    let [x1, y1, x2, y2] = bbox.normalized();
    assert!(0.0 <= x1 && x1 < x2 && x2 <= 1.0 && 0.0 <= y1 && y1 < y2 && y2 <= 1.0, "{bbox:?}");
}
