//! A closer look at small regions.
//!
//! The tower sees a picture of 224×224 pixels, and a thing of 20 pixels there is one or two patches. What the picture
//! itself knows of it is lost before the region module begins. So a crop around a small region is encoded as a
//! picture of its own, and what the region shows is taken from there.
//!
//! *Where* the region is stays a matter of the whole picture: the embedding of the box that is added to what it
//! shows is that of the box as it was given, and the patches that the language model reads are the whole picture's. So
//! questions about places and relations are answered as before.
//!
//! A small box that only says where a point is ([`PointBox::Around`](crate::point::PointBox::Around)) is not a small
//! region: what lies there may be larger than the crop would be. Such boxes are read as they are.
//!
//! Each crop costs a run of the tower and a pyramid. What it comes to is kept with the
//! [picture](crate::image_cache::EncodedImage), a vector per region.

use std::{fmt, iter, str::FromStr};

use candle_core::Tensor;
use image::imageops;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    bbox::{BBox, BoxPrecision, ImageSize},
    error::Result,
    image::Image,
    image_cache::EncodedImage,
    model::Gpt4Roi,
};

/// Whether small regions are looked at more closely. People write `auto`, for the [standard](Glass::STANDARD) glass, or
/// `off`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Zoom {
    /// Never, as in training.
    #[default]
    Off,
    /// Where the glass says so.
    Auto(Glass),
}

impl fmt::Display for Zoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Auto(_) => "auto",
        })
    }
}

/// A text that does not say when to zoom.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected auto or off, got {0}")]
pub struct UnknownZoom(String);

impl FromStr for Zoom {
    type Err = UnknownZoom;

    fn from_str(text: &str) -> std::result::Result<Self, UnknownZoom> {
        match text {
            "auto" => Ok(Self::Auto(Glass::STANDARD)),
            "off" => Ok(Self::Off),
            _ => Err(UnknownZoom(text.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for Zoom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Which regions are small, and how closely they are looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Glass {
    /// A region is small if its longer side, in pixels of the tower's square picture, is below this.
    pub below: f64,
    /// The side of the crop, as a multiple of the region's longer side in pixels of the picture; at least 1.
    pub context: f64,
}

impl Glass {
    /// What did best on rendered scenes, as the example `zoom_study` of gpt4roi-eval measures it.
    pub const STANDARD: Self = Self { below: 44.0, context: 2.0 };

    /// The part of the picture to look at for a region: a square around it, moved inside the picture; where the picture
    /// is too narrow for it, as much as there is. None for a region that is large enough, and where the whole picture
    /// would be looked at.
    fn crop(&self, bbox: &BBox, picture: ImageSize, tower_side: usize) -> Option<Crop> {
        let [x1, y1, x2, y2] = bbox.normalized();
        if (x2 - x1).max(y2 - y1) * tower_side as f64 + ROUNDING >= self.below {
            return None;
        }
        let [left, top, right, bottom] = bbox.pixels(picture);
        let side = (right - left).max(bottom - top) * self.context.max(1.0);
        let (x, width) = span(left, right, side, picture.width);
        let (y, height) = span(top, bottom, side, picture.height);
        let crop = Crop { x, y, width, height };
        (crop != Crop { x: 0, y: 0, width: picture.width, height: picture.height }).then_some(crop)
    }
}

impl Default for Glass {
    fn default() -> Self {
        Self::STANDARD
    }
}

/// Pixels that count as none: the last bits of a box depend on where it lies, and on how it was written.
const ROUNDING: f64 = 1e-6;

/// Whole pixels from `start`, so many: about `side` of them around the middle, inside `0..length`, with all of `low..high`.
fn span(low: f64, high: f64, side: f64, length: u32) -> (u32, u32) {
    let length = f64::from(length);
    let side = (side + ROUNDING).round().clamp(1.0, length);
    let start = ((low + high - side) / 2.0 + ROUNDING).round().clamp(0.0, length - side);
    let (low, high) = ((low + ROUNDING).floor(), (high - ROUNDING).ceil());
    let (first, last) = (start.min(low), (start + side).max(high).min(length));
    (first as u32, (last - first) as u32)
}

/// A part of a picture, in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Crop {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

impl Crop {
    /// A box of the picture as a box of the crop.
    fn within(&self, bbox: &BBox, picture: ImageSize) -> Result<BBox> {
        let [x1, y1, x2, y2] = bbox.pixels(picture);
        let (x, y) = (f64::from(self.x), f64::from(self.y));
        let size = ImageSize { width: self.width, height: self.height };
        Ok(BBox::from_pixels_clipped([x1 - x, y1 - y, x2 - x, y2 - y], size)?)
    }

    fn cut(&self, image: &Image) -> Image {
        let Self { x, y, width, height } = *self;
        Image::from_rgb(imageops::crop_imm(image.rgb(), x, y, width, height).to_image())
    }
}

/// How boxes are read: all that a region's vector depends on besides box and picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) precision: BoxPrecision,
    pub(crate) zoom: Zoom,
}

/// The embeddings of boxes of a picture: one each, or as many as a region has tokens. Boxes that are not looked at
/// closely are read in the precision of the first.
///
/// # Shapes
/// N boxes → `[N·tokens, H]`
pub(crate) fn encode_boxes(model: &Gpt4Roi, image: &EncodedImage, boxes: &[(BBox, Reading)]) -> Result<Tensor> {
    let crop = |(bbox, reading): &(BBox, Reading)| reading.crop(bbox, image.size(), model);
    let crops: Vec<Option<Crop>> = boxes.iter().map(crop).collect();
    let (near, far): (Vec<usize>, Vec<usize>) = (0..boxes.len()).partition(|&index| crops[index].is_some());
    let mut rows = Vec::new();
    if let Some(&first) = far.first() {
        let plain: Vec<BBox> = far.iter().map(|&index| boxes[index].0).collect();
        let plain = image.encode_boxes(model, &plain, boxes[first].1.precision)?;
        if near.is_empty() {
            return Ok(plain);
        }
        rows.push(plain);
    }
    for &index in &near {
        let (bbox, reading) = boxes[index];
        rows.extend(crops[index].map(|crop| from_near(model, image, &bbox, crop, reading)).transpose()?);
    }
    let mut order = vec![0; boxes.len()];
    far.iter().chain(&near).enumerate().for_each(|(place, &index)| order[index] = place as u32);
    let order = Tensor::from_vec(order, boxes.len(), &model.device)?;
    let rows = Tensor::cat(&rows, 0)?; // [N·tokens, H], those of a box in a row
    let (each, width) = (rows.dim(0)? / boxes.len(), rows.dim(1)?);
    Ok(rows.reshape((boxes.len(), each * width))?.index_select(&order, 0)?.reshape(((), width))?)
}

/// All that [`encode_boxes`] needs of the picture, a piece per `next`: the pyramid, if a box is read from it, then a crop
/// for each box that is looked at closely. The picture keeps what was found.
pub(crate) fn look(
    model: &Gpt4Roi,
    image: &EncodedImage,
    boxes: Vec<(BBox, Reading)>,
) -> impl Iterator<Item = Result<()>> {
    let crop = |(bbox, reading): (BBox, Reading)| (bbox, reading, reading.crop(&bbox, image.size(), model));
    let boxes: Vec<_> = boxes.into_iter().map(crop).collect();
    let reads_pyramid = boxes.iter().any(|(.., crop)| crop.is_none());
    let pyramid = iter::once_with(move || image.maps(&model.network).map(drop)).take(usize::from(reads_pyramid));
    let near = boxes.into_iter().filter_map(|(bbox, reading, crop)| Some((bbox, reading, crop?)));
    let near = near.map(move |(bbox, reading, crop)| features_near(model, image, &bbox, crop, reading).map(drop));
    pyramid.chain(near)
}

/// What the crop shows in the box, at the place that the box has in the picture.
///
/// # Shapes
/// → `[tokens, H]`
fn from_near(model: &Gpt4Roi, image: &EncodedImage, bbox: &BBox, crop: Crop, reading: Reading) -> Result<Tensor> {
    let features = features_near(model, image, bbox, crop, reading)?;
    let place = BBox::tensor(&[*bbox], reading.precision, &model.device)?;
    Ok(model.network.region.head.placed(&features, &place)?)
}

/// What the crop shows in the box.
fn features_near(model: &Gpt4Roi, image: &EncodedImage, bbox: &BBox, crop: Crop, reading: Reading) -> Result<Tensor> {
    let head = &model.network.region.head;
    image.close_up(bbox, reading, || {
        let maps = EncodedImage::new(model, &crop.cut(image.image()))?.maps(&model.network)?;
        let within = crop.within(bbox, image.size())?;
        let within = BBox::tensor(&[within], reading.precision, &model.device)?;
        Ok(head.features(&head.pool(&maps, &within)?)?)
    })
}

impl Reading {
    /// Whether a box is small, and looked at in a crop of its own.
    pub(crate) fn looks_closely(&self, bbox: &BBox, picture: ImageSize, model: &Gpt4Roi) -> bool {
        self.crop(bbox, picture, model).is_some()
    }

    /// Where a box is looked at closely; none if it is read as it is.
    fn crop(&self, bbox: &BBox, picture: ImageSize, model: &Gpt4Roi) -> Option<Crop> {
        match self.zoom {
            Zoom::Off => None,
            Zoom::Auto(glass) => glass.crop(bbox, picture, model.config.vision.image_size),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        chat::{AskOptions, Chat, ChatError},
        point::{Growth, PointBox},
        tiny::{assert_same, bbox, picture, short, tiny},
    };

    const GLASS: Glass = Glass { below: 28.0, context: 3.0 };

    fn crop(xyxy: [f64; 4], width: u32, height: u32) -> Option<[u32; 4]> {
        let crop = GLASS.crop(&bbox(xyxy), ImageSize { width, height }, 224);
        crop.map(|Crop { x, y, width, height }| [x, y, width, height])
    }

    #[test]
    fn people_write_when_to_zoom() {
        for (text, zoom) in [("auto", Zoom::Auto(Glass::STANDARD)), ("off", Zoom::Off)] {
            assert_eq!((text.parse(), zoom.to_string().as_str()), (Ok(zoom), text));
            assert_eq!(serde_json::from_str::<Zoom>(&format!("\"{text}\"")).unwrap(), zoom);
        }
        assert_eq!("always".parse::<Zoom>().unwrap_err().to_string(), "expected auto or off, got always");
        for wrong in [r#""Auto""#, r#""""#, "1", "true", "{}"] {
            assert!(serde_json::from_str::<Zoom>(wrong).is_err(), "{wrong}");
        }
    }

    /// 44 pixels of the tower are 44 wherever they lie, and other boxes have the same crop in whichever way they are
    /// written.
    #[test]
    fn the_last_bits_of_a_box_do_not_decide() {
        let picture = ImageSize { width: 224, height: 224 };
        let crop = |bbox: BBox| Glass::STANDARD.crop(&bbox, picture, 224);
        for (x, side) in (0..=180_u32).flat_map(|x| [43, 44].map(|side| (x, side))) {
            let [left, right] = [x, x + side].map(f64::from);
            let in_pixels = crop(BBox::from_pixels([left, 20.0, right, 50.0], picture).unwrap());
            let [left, width, top, height] = [left, f64::from(side), 20.0, 30.0].map(|pixels| pixels / 224.0);
            let in_fractions = crop(BBox::from_normalized([left, top, left + width, top + height]).unwrap());
            assert_eq!((in_pixels.is_some(), in_pixels), (side < 44, in_fractions), "{side} pixels from {x}");
        }
    }

    #[test]
    fn crops_are_squares_around_small_regions() {
        for (xyxy, picture, expected) in [
            // 20 of 200 pixels are 22.4 of the tower's: 60 pixels around the middle (100, 100).
            ([0.45, 0.45, 0.55, 0.55], [200, 200], Some([70, 70, 60, 60])),
            // 25 of 200 are exactly 28.
            ([0.5, 0.5, 0.625, 0.6], [200, 200], None),
            // At the edge the square moves inside.
            ([0.0, 0.9, 0.1, 1.0], [200, 200], Some([0, 140, 60, 60])),
            // Square in pixels: 40×20 of 400×200 pixels.
            ([0.45, 0.45, 0.55, 0.55], [400, 200], Some([140, 40, 120, 120])),
            // A strip of 400×30 pixels is not high enough; it is as high as it is.
            ([0.45, 0.0, 0.55, 0.1], [400, 30], Some([140, 0, 120, 30])),
            // The whole picture would be looked at.
            ([0.4, 0.4, 0.5, 0.5], [1, 1], None),
        ] {
            assert_eq!(crop(xyxy, picture[0], picture[1]), expected, "{xyxy:?} {picture:?}");
        }
    }

    proptest! {
        #[test]
        fn a_region_lies_whole_inside_its_crop(
            (x, y) in (0.0..0.99, 0.0..0.99),
            (w, h) in (0.0001..0.125, 0.0001..0.125),
            (width, height) in (1u32..2000, 1u32..2000),
            context in 0.0..9.0,
        ) {
            let (bbox, size) = (bbox([x, y, f64::min(x + w, 1.0), f64::min(y + h, 1.0)]), ImageSize { width, height });
            if let Some(crop) = (Glass { context, ..GLASS }).crop(&bbox, size, 224) {
                prop_assert!(crop.width > 0 && crop.x + crop.width <= width);
                prop_assert!(crop.height > 0 && crop.y + crop.height <= height);
                let [x1, y1, x2, y2] = crop.within(&bbox, size).unwrap().normalized();
                let back = [
                    x1 * f64::from(crop.width) + f64::from(crop.x),
                    y1 * f64::from(crop.height) + f64::from(crop.y),
                    x2 * f64::from(crop.width) + f64::from(crop.x),
                    y2 * f64::from(crop.height) + f64::from(crop.y),
                ];
                for (back, edge) in back.into_iter().zip(bbox.pixels(size)) {
                    prop_assert!((back - edge).abs() < 1e-6, "{crop:?}: {back} {edge}");
                }
            }
        }
    }

    /// The vector of a region that is looked at closely, step by step.
    #[test]
    fn what_is_shown_comes_from_the_crop_and_the_place_from_the_picture() {
        let (model, picture) = (tiny(), picture());
        let glass = Glass { below: 20.0, context: 2.0 };
        let reading = Reading { precision: BoxPrecision::F32, zoom: Zoom::Auto(glass) };
        // 16×12 of 80×60 pixels, so 11.2 of the tower's 56. The crop: 32 pixels around (40, 30).
        let (small, large) = (bbox([0.4, 0.4, 0.6, 0.6]), bbox([0.1, 0.1, 0.9, 0.9]));
        let image = Arc::new(EncodedImage::new(&model, &picture).unwrap());
        let got = encode_boxes(&model, &image, &[large, small, large].map(|bbox| (bbox, reading))).unwrap();

        let device = &Device::Cpu;
        let rows = |boxes: &[BBox]| BBox::tensor(boxes, BoxPrecision::F32, device).unwrap();
        let head = &model.network.region.head;
        let cut = Image::from_rgb(imageops::crop_imm(picture.rgb(), 24, 14, 32, 32).to_image());
        let cut = EncodedImage::new(&model, &cut).unwrap();
        let within = rows(&[bbox([0.25, 0.3125, 0.75, 0.6875])]);
        let shown = head.features(&head.pool(&cut.maps(&model.network).unwrap(), &within).unwrap()).unwrap();
        let expected = head.project(&(shown + head.box_embedding(&rows(&[small])).unwrap()).unwrap()).unwrap();
        let of_large = model.network.encode_regions(&image.maps(&model.network).unwrap(), &rows(&[large])).unwrap();
        let expected = Tensor::cat(&[&of_large, &expected, &of_large], 0).unwrap();
        let gap = (got - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(gap.to_scalar::<f32>().unwrap() < 1e-4);
    }

    /// The small box is there twice, and looked at once; the pyramid is a piece only where a box is read from it.
    #[test]
    fn each_piece_of_a_look_is_one_crop_or_the_pyramid() {
        let (model, picture) = (tiny(), picture());
        let reading = Reading { precision: BoxPrecision::F32, zoom: Zoom::Auto(Glass { below: 20.0, context: 2.0 }) };
        let small = [[0.4, 0.4, 0.6, 0.6], [0.8, 0.7, 0.9, 0.8], [0.4, 0.4, 0.6, 0.6]].map(bbox);
        let large = bbox([0.1, 0.1, 0.9, 0.9]);
        let image = EncodedImage::new(&model, &picture).unwrap();
        let is_known = |bbox: &BBox| image.close_up(bbox, reading, || Err(ChatError::RegionZero.into())).is_ok();
        let mut looks = look(&model, &image, small.map(|bbox| (bbox, reading)).to_vec());
        for known in [[true, false], [true, true], [true, true]] {
            looks.next().unwrap().unwrap();
            assert_eq!([is_known(&small[0]), is_known(&small[1])], known);
        }
        assert!(looks.next().is_none());
        let boxes = [small[0], large, large].map(|bbox| (bbox, reading));
        assert_eq!(look(&model, &image, boxes.to_vec()).count(), 2);
        assert_eq!(look(&model, &image, Vec::new()).count(), 0);
    }

    #[test]
    fn answers_change_for_small_regions_only_and_nothing_read_otherwise_is_reused() {
        let (model, picture) = (tiny(), picture());
        let closer = AskOptions { zoom: Zoom::Auto(Glass { below: 20.0, context: 2.0 }), ..short() };
        let ask = |xyxy, order: &[&AskOptions]| {
            let mut chat = Chat::new(&model, &picture).unwrap();
            chat.add_region(bbox(xyxy));
            let ask = |options: &&AskOptions| {
                let answer = chat.ask_with("What is <region1>?", options).unwrap();
                chat.undo();
                answer
            };
            order.iter().map(ask).collect::<Vec<_>>()
        };
        let small = [0.4, 0.4, 0.6, 0.6];
        let (plain, near) = (ask(small, &[&short()]), ask(small, &[&closer, &closer, &short()]));
        assert_ne!(plain[0].mean_log_probability, near[0].mean_log_probability);
        assert_same(&near[0], &near[1]);
        assert_same(&near[2], &plain[0]);
        let large = [0.1, 0.1, 0.9, 0.9];
        assert_same(&ask(large, &[&short()])[0], &ask(large, &[&closer])[0]);
    }

    /// A box of 0.06 around a point in the midst of something large is no reason to look at its middle alone.
    #[test]
    fn boxes_around_points_are_read_as_they_are_and_grown_ones_are_looked_at() {
        let (model, picture) = (tiny(), picture());
        let ask = |zoom, point_box| {
            let options = AskOptions { zoom, point_box: Some(point_box), ..short() };
            Chat::new(&model, &picture).unwrap().ask_with("What is at (0.5, 0.5)?", &options).unwrap()
        };
        let glass = Zoom::Auto(Glass { below: 50.0, context: 1.5 });
        let around = PointBox::Around { reach: 0.03 };
        assert_same(&ask(glass, around), &ask(Zoom::Off, around));
        // No other patch is so much alike.
        let grown = PointBox::Grown(Growth { threshold: 2.0, ..Growth::STANDARD });
        assert_ne!(ask(glass, grown).mean_log_probability, ask(Zoom::Off, grown).mean_log_probability);
    }

    #[test]
    fn describing_many_looks_as_closely_as_asking_about_each() {
        let (model, picture) = (tiny(), picture());
        let options = AskOptions { zoom: Zoom::Auto(Glass { below: 20.0, context: 2.0 }), ..short() };
        let boxes = [[0.4, 0.4, 0.6, 0.6], [0.0, 0.0, 0.9, 0.9], [0.8, 0.7, 0.9, 0.8]].map(bbox);
        let mut chat = Chat::new(&model, &picture).unwrap();
        let answers = chat.describe_regions(&boxes, "What is <region1>?", &options).unwrap();
        for (bbox, answer) in boxes.into_iter().zip(&answers) {
            chat.clear();
            chat.add_region(bbox);
            assert_same(answer, &chat.ask_with("What is <region1>?", &options).unwrap());
        }
    }
}
