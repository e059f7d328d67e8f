//! Boxes and points. Inside there is one form, normalised xyxy in the original picture; every other
//! convention is converted here, by name.

use candle_core::{DType, Device, Tensor};

/// How far a coordinate may stick out of the picture, as a fraction of its side, and still count as
/// lying on the edge: single-precision arithmetic on the way here does not make a box wrong.
const EDGE_TOLERANCE: f64 = 1e-6;

/// Width and height of a picture, in pixels, after its EXIF orientation was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// A region's number in its conversation, from 1. Displays as `<region1>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub u32);

impl std::fmt::Display for RegionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<region{}>", self.0)
    }
}

/// A box or point that can't be. Each variant names the coordinate as it was given, in its own unit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BoxError {
    /// NaN or infinite.
    #[error("{coordinate}: expected a finite number, got {got}")]
    NotFinite {
        /// Which coordinate.
        coordinate: &'static str,
        /// What stands there.
        got: f64,
    },
    /// No area, or the corners are exchanged.
    #[error("{low_name} and {high_name}: expected {low_name} < {high_name}, got {low} and {high}")]
    Empty {
        /// The coordinate that should be smaller.
        low_name: &'static str,
        /// The coordinate that should be larger.
        high_name: &'static str,
        /// Its value.
        low: f64,
        /// Its value.
        high: f64,
    },
    /// Not inside the picture.
    #[error("{coordinate}: expected 0 to {limit} ({unit}), got {got}")]
    Outside {
        /// Which coordinate.
        coordinate: &'static str,
        /// The largest value inside the picture.
        limit: f64,
        /// What the numbers count.
        unit: &'static str,
        /// What stands there.
        got: f64,
    },
}

/// The precision that boxes have when they reach the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BoxPrecision {
    /// As in training.
    #[default]
    F32,
    /// As in the original's demo: boxes are rounded to half precision, and so are their pixels.
    F16,
}

/// A box inside a picture: 0 ≤ x1 < x2 ≤ 1 and 0 ≤ y1 < y2 ≤ 1, fractions of width and height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BBox {
    x1: f64,
    y1: f64,
    x2: f64,
    y2: f64,
}

impl BBox {
    /// xyxy in pixels of the picture.
    ///
    /// # Errors
    /// See [`BoxError`]; so for every checked constructor.
    pub fn from_pixels(xyxy: [f64; 4], size: ImageSize) -> Result<Self, BoxError> {
        checked(xyxy, XYXY, Scale::pixels(size))
    }

    /// xyxy in pixels; what sticks out of the picture is cut off. The rest must have an area.
    pub fn from_pixels_clipped(xyxy: [f64; 4], size: ImageSize) -> Result<Self, BoxError> {
        clipped(xyxy, Scale::pixels(size))
    }

    /// x, y, width and height in pixels of the picture, as COCO writes boxes.
    pub fn from_xywh_pixels([x, y, width, height]: [f64; 4], size: ImageSize) -> Result<Self, BoxError> {
        checked([x, y, x + width, y + height], XYWH, Scale::pixels(size))
    }

    /// COCO's x, y, width and height in pixels; what sticks out of the picture is cut off.
    pub fn from_xywh_pixels_clipped([x, y, width, height]: [f64; 4], size: ImageSize) -> Result<Self, BoxError> {
        clipped([x, y, x + width, y + height], Scale::pixels(size))
    }

    /// xyxy as fractions of width and height.
    pub fn from_normalized(xyxy: [f64; 4]) -> Result<Self, BoxError> {
        checked(xyxy, XYXY, Scale::FRACTIONS)
    }

    /// xyxy as fractions; what sticks out of the picture is cut off.
    pub fn from_normalized_clipped(xyxy: [f64; 4]) -> Result<Self, BoxError> {
        clipped(xyxy, Scale::FRACTIONS)
    }

    /// xyxy in thousandths of width and height, as several other models write boxes.
    pub fn from_norm1000(xyxy: [f64; 4]) -> Result<Self, BoxError> {
        checked(xyxy, XYXY, Scale::THOUSANDTHS)
    }

    /// xyxy as fractions of width and height.
    pub fn normalized(&self) -> [f64; 4] {
        [self.x1, self.y1, self.x2, self.y2]
    }

    /// xyxy in pixels of the picture.
    pub fn pixels(&self, size: ImageSize) -> [f64; 4] {
        let (width, height) = (f64::from(size.width), f64::from(size.height));
        [self.x1 * width, self.y1 * height, self.x2 * width, self.y2 * height]
    }

    /// The share of the picture that the box covers, in 0..=1.
    pub fn area(&self) -> f64 {
        (self.x2 - self.x1) * (self.y2 - self.y1)
    }

    /// The middle.
    pub fn center(&self) -> Point {
        Point { x: (self.x1 + self.x2) / 2.0, y: (self.y1 + self.y2) / 2.0 }
    }

    /// Whether a point lies inside or on the edge.
    pub fn contains(&self, point: Point) -> bool {
        (self.x1..=self.x2).contains(&point.x) && (self.y1..=self.y2).contains(&point.y)
    }

    /// The smallest box around both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self {
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
            x2: self.x2.max(other.x2),
            y2: self.y2.max(other.y2),
        }
    }

    /// Intersection over union, in 0..=1.
    pub fn iou(&self, other: &Self) -> f64 {
        let width = (self.x2.min(other.x2) - self.x1.max(other.x1)).max(0.0);
        let height = (self.y2.min(other.y2) - self.y1.max(other.y1)).max(0.0);
        let both = width * height;
        both / (self.area() + other.area() - both)
    }

    /// The form in which boxes reach the model. The original divides in double precision, then
    /// rounds to single and, in its demo, once more to half.
    ///
    /// # Shapes
    /// N boxes → `[N, 4]` normalised xyxy, f32 or f16
    pub fn tensor(boxes: &[Self], precision: BoxPrecision, device: &Device) -> candle_core::Result<Tensor> {
        let values: Vec<f32> = boxes.iter().flat_map(Self::normalized).map(|value| value as f32).collect();
        let tensor = Tensor::from_vec(values, (boxes.len(), 4), device)?;
        match precision {
            BoxPrecision::F32 => Ok(tensor),
            BoxPrecision::F16 => tensor.to_dtype(DType::F16),
        }
    }
}

/// A place in a picture, as fractions of width and height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// From the left edge.
    pub x: f64,
    /// From the upper edge.
    pub y: f64,
}

impl Point {
    /// x and y in pixels of the picture.
    pub fn from_pixels([x, y]: [f64; 2], size: ImageSize) -> Result<Self, BoxError> {
        let scale = Scale::pixels(size);
        Ok(Self { x: inside("x", x, scale.width, scale.unit)?, y: inside("y", y, scale.height, scale.unit)? })
    }

    /// x and y as fractions of width and height.
    pub fn from_normalized([x, y]: [f64; 2]) -> Result<Self, BoxError> {
        let scale = Scale::FRACTIONS;
        Ok(Self { x: inside("x", x, scale.width, scale.unit)?, y: inside("y", y, scale.height, scale.unit)? })
    }

    /// x and y in thousandths of width and height.
    pub fn from_norm1000([x, y]: [f64; 2]) -> Result<Self, BoxError> {
        let scale = Scale::THOUSANDTHS;
        Ok(Self { x: inside("x", x, scale.width, scale.unit)?, y: inside("y", y, scale.height, scale.unit)? })
    }

    /// x and y in pixels of the picture.
    pub fn pixels(&self, size: ImageSize) -> [f64; 2] {
        [self.x * f64::from(size.width), self.y * f64::from(size.height)]
    }
}

/// What one whole picture measures in the unit of the given numbers.
#[derive(Clone, Copy)]
struct Scale {
    width: f64,
    height: f64,
    unit: &'static str,
}

impl Scale {
    const FRACTIONS: Self = Self { width: 1.0, height: 1.0, unit: "fractions of the picture" };
    const THOUSANDTHS: Self = Self { width: 1000.0, height: 1000.0, unit: "thousandths of the picture" };

    fn pixels(size: ImageSize) -> Self {
        Self { width: f64::from(size.width), height: f64::from(size.height), unit: "pixels" }
    }
}

/// How the four edges are called in messages: left, top, right, bottom.
type EdgeNames = [&'static str; 4];
const XYXY: EdgeNames = ["x1", "y1", "x2", "y2"];
const XYWH: EdgeNames = ["x", "y", "x + width", "y + height"];

fn checked(xyxy: [f64; 4], names: EdgeNames, scale: Scale) -> Result<BBox, BoxError> {
    let [x1, y1, x2, y2] = xyxy;
    for (coordinate, got) in names.into_iter().zip(xyxy) {
        finite(coordinate, got)?;
    }
    ordered([names[0], names[2]], x1, x2)?;
    ordered([names[1], names[3]], y1, y2)?;
    let bbox = BBox {
        x1: inside(names[0], x1, scale.width, scale.unit)?,
        y1: inside(names[1], y1, scale.height, scale.unit)?,
        x2: inside(names[2], x2, scale.width, scale.unit)?,
        y2: inside(names[3], y2, scale.height, scale.unit)?,
    };
    // Dividing, or pulling an overshoot back to the edge, may have closed a very thin box.
    ordered([names[0], names[2]], bbox.x1, bbox.x2)?;
    ordered([names[1], names[3]], bbox.y1, bbox.y2)?;
    Ok(bbox)
}

fn clipped([x1, y1, x2, y2]: [f64; 4], scale: Scale) -> Result<BBox, BoxError> {
    // NaN passes through `clamp` and infinity must not become an edge, so finiteness comes first.
    for (coordinate, got) in XYXY.into_iter().zip([x1, y1, x2, y2]) {
        finite(coordinate, got)?;
    }
    let (across, down) = (|x: f64| x.clamp(0.0, scale.width), |y: f64| y.clamp(0.0, scale.height));
    checked([across(x1), down(y1), across(x2), down(y2)], XYXY, scale)
}

fn finite(coordinate: &'static str, got: f64) -> Result<(), BoxError> {
    if got.is_finite() { Ok(()) } else { Err(BoxError::NotFinite { coordinate, got }) }
}

fn ordered([low_name, high_name]: [&'static str; 2], low: f64, high: f64) -> Result<(), BoxError> {
    if low < high { Ok(()) } else { Err(BoxError::Empty { low_name, high_name, low, high }) }
}

/// The coordinate as a fraction of `limit`.
fn inside(coordinate: &'static str, got: f64, limit: f64, unit: &'static str) -> Result<f64, BoxError> {
    finite(coordinate, got)?;
    let fraction = got / limit;
    if (-EDGE_TOLERANCE..=1.0 + EDGE_TOLERANCE).contains(&fraction) {
        Ok(fraction.clamp(0.0, 1.0))
    } else {
        Err(BoxError::Outside { coordinate, limit, unit, got })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VGA: ImageSize = ImageSize { width: 640, height: 480 };

    #[test]
    fn every_convention_names_the_same_box() {
        let expected = [0.25, 0.25, 0.75, 0.5];
        let boxes = [
            BBox::from_pixels([160., 120., 480., 240.], VGA),
            BBox::from_xywh_pixels([160., 120., 320., 120.], VGA),
            BBox::from_normalized(expected),
            BBox::from_norm1000([250., 250., 750., 500.]),
        ];
        for bbox in boxes {
            assert_eq!(bbox.unwrap().normalized(), expected);
        }
    }

    #[test]
    fn bad_boxes_are_refused_with_the_coordinate_and_the_range() {
        struct Case {
            xyxy: [f64; 4],
            message: &'static str,
        }
        let cases = [
            Case { xyxy: [f64::NAN, 0., 5., 5.], message: "x1: expected a finite number, got NaN" },
            Case { xyxy: [0., 0., 5., f64::INFINITY], message: "y2: expected a finite number, got inf" },
            Case { xyxy: [5., 0., 5., 5.], message: "x1 and x2: expected x1 < x2, got 5 and 5" },
            Case { xyxy: [0., 9., 5., 5.], message: "y1 and y2: expected y1 < y2, got 9 and 5" },
            Case { xyxy: [0., 0., 641., 5.], message: "x2: expected 0 to 640 (pixels), got 641" },
            Case { xyxy: [-1., 0., 5., 5.], message: "x1: expected 0 to 640 (pixels), got -1" },
            Case { xyxy: [0., 0., 5., 480.5], message: "y2: expected 0 to 480 (pixels), got 480.5" },
            Case { xyxy: [640., 0., 640.0001, 5.], message: "x1 and x2: expected x1 < x2, got 1 and 1" },
        ];
        for Case { xyxy, message } in cases {
            assert_eq!(BBox::from_pixels(xyxy, VGA).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_picture_without_pixels_holds_no_box() {
        assert!(BBox::from_pixels([0., 0., 1., 1.], ImageSize { width: 0, height: 0 }).is_err());
        assert!(BBox::from_pixels_clipped([0., 0., 1., 1.], ImageSize { width: 0, height: 4 }).is_err());
        assert!(Point::from_pixels([0., 0.], ImageSize { width: 0, height: 0 }).is_err());
    }

    #[test]
    fn an_edge_that_single_precision_pushed_out_is_the_edge() {
        let edge = f64::from(640_f32 * (1.0 + f32::EPSILON));
        assert!(edge > 640.0);
        assert_eq!(BBox::from_pixels([0., 0., edge, 480.], VGA).unwrap().normalized(), [0., 0., 1., 1.]);
    }

    #[test]
    fn clipping_cuts_off_what_sticks_out() {
        let bbox = BBox::from_pixels_clipped([-64., 120., 1000., 240.], VGA).unwrap();
        assert_eq!(bbox.normalized(), [0., 0.25, 1., 0.5]);
        assert_eq!(BBox::from_xywh_pixels_clipped([-64., 120., 1064., 120.], VGA).unwrap(), bbox);
        assert!(BBox::from_pixels_clipped([700., 0., 800., 10.], VGA).is_err(), "nothing is left inside");
        assert!(BBox::from_normalized_clipped([0., 0., f64::INFINITY, 1.]).is_err());
    }

    #[test]
    fn iou_counts_shared_area_once() {
        let left = BBox::from_normalized([0., 0., 0.5, 1.]).unwrap();
        let middle = BBox::from_normalized([0.25, 0., 0.75, 1.]).unwrap();
        let corner = BBox::from_normalized([0.75, 0.75, 1., 1.]).unwrap();
        assert_eq!(left.iou(&left), 1.0);
        assert_eq!(left.iou(&middle), 1.0 / 3.0); // 0.25 shared of 0.75 covered
        assert_eq!(left.iou(&corner), 0.0);
        assert_eq!(left.union(&corner).normalized(), [0., 0., 1., 1.]);
        assert_eq!(left.area(), 0.5);
        assert!(left.contains(middle.center()) && !left.contains(corner.center()));
    }

    #[test]
    fn half_precision_rounds_the_fractions() {
        // float16 has 11 significant bits: near 1/3 its spacing is 2^-12, so 1/3 becomes 1365/4096.
        let third = BBox::from_normalized([0., 0., 1. / 3., 1.]).unwrap();
        let boxes = BBox::tensor(&[third], BoxPrecision::F16, &Device::Cpu).unwrap();
        assert_eq!((boxes.dtype(), boxes.dims()), (DType::F16, &[1, 4][..]));
        let values = boxes.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(values, [[0., 0., 1365. / 4096., 1.]]);
        let boxes = BBox::tensor(&[third], BoxPrecision::F32, &Device::Cpu).unwrap();
        assert_eq!(boxes.to_vec2::<f32>().unwrap(), [[0., 0., 1. / 3., 1.]]);
        assert_eq!(BBox::tensor(&[], BoxPrecision::F32, &Device::Cpu).unwrap().dims(), [0, 4]);
    }

    proptest! {
        #[test]
        fn pixels_survive_the_round_trip(x in 0.0..600.0, y in 0.0..440.0, width in 0.5..40.0, height in 0.5..40.0) {
            let given = [x, y, x + width, y + height];
            let back = BBox::from_pixels(given, VGA).unwrap().pixels(VGA);
            for (given, back) in given.into_iter().zip(back) {
                prop_assert!((given - back).abs() < 1e-9);
            }
        }

        #[test]
        fn whatever_is_accepted_lies_inside(values in any::<[f64; 4]>(), small in any::<[i8; 4]>()) {
            for xyxy in [values, small.map(f64::from)] {
                for bbox in [BBox::from_pixels(xyxy, VGA), BBox::from_pixels_clipped(xyxy, VGA)].into_iter().flatten() {
                    let [x1, y1, x2, y2] = bbox.normalized();
                    prop_assert!(0.0 <= x1 && x1 < x2 && x2 <= 1.0 && 0.0 <= y1 && y1 < y2 && y2 <= 1.0);
                }
            }
        }
    }
}
