//! Pictures with their EXIF data, and masks in PNG files.

use candle_core::Device;
use gpt4roi::{
    Image,
    config::{Config, VisionConfig},
    shape::{Mask, Shape, ShapeError},
};

/// Enough for every seed, and little enough to be fast.
const MAX_PIXELS: u64 = 10_000;

/// A picture is an error, or it has pixels within the limit and the tower sees finite numbers.
pub fn picture(bytes: &[u8]) {
    let Ok(picture) = Image::decode(bytes, MAX_PIXELS) else { return };
    let pixels = u64::from(picture.size().width) * u64::from(picture.size().height);
    assert!((1..=MAX_PIXELS).contains(&pixels), "{:?}", picture.size());
    let tower = VisionConfig { image_size: 16, patch_size: 4, ..Config::gpt4roi_7b().vision };
    let values = picture.pixel_values(&tower, &Device::Cpu).and_then(|values| values.flatten_all()?.to_vec1::<f32>());
    let values = values.expect("a picture with pixels can be resized");
    assert!(values.iter().all(|value| value.is_finite()));
}

/// A mask is an error, or it has pixels within the limit, and the box around the marked ones lies in it.
pub fn mask(bytes: &[u8]) {
    let Ok(mask) = Mask::from_png(bytes, MAX_PIXELS) else { return };
    let size = mask.size();
    assert!((1..=MAX_PIXELS).contains(&(u64::from(size.width) * u64::from(size.height))), "{size:?}");
    holds_or_marks_nothing(&mask);
}

/// Whether a mask can be made a region is clear from the mask alone.
pub(crate) fn holds_or_marks_nothing(mask: &Mask) {
    mask.check_size(mask.size()).expect("a mask has its own size");
    match Shape::mask(mask) {
        Ok(Shape::Mask(bbox)) => assert!(bbox.area() > 0.0, "{mask:?}"),
        Err(ShapeError::Nothing { .. }) => {}
        other => panic!("{mask:?} became {other:?}"),
    }
}
