//! What the numbers of a region mean, by name, as people and other programs say it. Nothing is guessed from how large
//! they are.

use serde::Deserialize;

use crate::bbox::{BBox, BoxError, ImageSize, Point};

/// What the numbers of a region count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coords {
    /// Pixels of the upright picture.
    #[default]
    Pixel,
    /// Fractions of width and height.
    Norm,
    /// Thousandths of width and height.
    Norm1000,
}

/// What the four numbers of a box are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BoxForm {
    /// Left, top, right and bottom edge.
    #[default]
    Xyxy,
    /// Left and top edge, width and height, as COCO has it.
    Xywh,
    /// Centre, width and height, as YOLO has it.
    Cxcywh,
}

impl BoxForm {
    /// The four edges.
    pub fn xyxy(self, [a, b, c, d]: [f64; 4]) -> [f64; 4] {
        match self {
            Self::Xyxy => [a, b, c, d],
            Self::Xywh => [a, b, a + c, b + d],
            Self::Cxcywh => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        }
    }
}

impl Coords {
    /// A box; what sticks out of the picture is cut off with `clip`, and refused without.
    ///
    /// # Errors
    /// See [`BoxError`].
    pub fn bbox(self, numbers: [f64; 4], form: BoxForm, clip: bool, size: ImageSize) -> Result<BBox, BoxError> {
        let xyxy = form.xyxy(numbers);
        match (self, clip) {
            // Its errors are about x + width.
            (Self::Pixel, false) if form == BoxForm::Xywh => BBox::from_xywh_pixels(numbers, size),
            (Self::Pixel, false) => BBox::from_pixels(xyxy, size),
            (Self::Pixel, true) => BBox::from_pixels_clipped(xyxy, size),
            (Self::Norm, false) => BBox::from_normalized(xyxy),
            (Self::Norm, true) => BBox::from_normalized_clipped(xyxy),
            (Self::Norm1000, false) => BBox::from_norm1000(xyxy),
            (Self::Norm1000, true) => BBox::from_normalized_clipped(xyxy.map(|number| number / 1000.0)),
        }
    }

    /// A point inside the picture.
    ///
    /// # Errors
    /// See [`BoxError`].
    pub fn point(self, xy: [f64; 2], size: ImageSize) -> Result<Point, BoxError> {
        match self {
            Self::Pixel => Point::from_pixels(xy, size),
            Self::Norm => Point::from_normalized(xy),
            Self::Norm1000 => Point::from_norm1000(xy),
        }
    }

    /// A polygon's corner; with `clip` it is moved to the picture's edge if it lies outside. Infinity is no corner in any
    /// case.
    ///
    /// # Errors
    /// See [`BoxError`].
    pub fn corner(self, [x, y]: [f64; 2], clip: bool, size: ImageSize) -> Result<Point, BoxError> {
        if !clip || !x.is_finite() || !y.is_finite() {
            return self.point([x, y], size);
        }
        let [width, height] = match self {
            Self::Pixel => [f64::from(size.width), f64::from(size.height)],
            Self::Norm => [1.0, 1.0],
            Self::Norm1000 => [1000.0, 1000.0],
        };
        Point::from_normalized([(x / width).clamp(0.0, 1.0), (y / height).clamp(0.0, 1.0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ImageSize = ImageSize { width: 200, height: 100 };

    #[test]
    fn every_unit_and_form_names_the_same_box() {
        let expected = BBox::from_normalized([0.25, 0.5, 0.75, 1.0]).unwrap();
        for (coords, form, numbers) in [
            (Coords::Pixel, BoxForm::Xyxy, [50., 50., 150., 100.]),
            (Coords::Pixel, BoxForm::Xywh, [50., 50., 100., 50.]),
            (Coords::Pixel, BoxForm::Cxcywh, [100., 75., 100., 50.]),
            (Coords::Norm, BoxForm::Xywh, [0.25, 0.5, 0.5, 0.5]),
            (Coords::Norm1000, BoxForm::Cxcywh, [500., 750., 500., 500.]),
        ] {
            for clip in [false, true] {
                assert_eq!(coords.bbox(numbers, form, clip, SIZE), Ok(expected), "{coords:?} {form:?} {clip}");
            }
        }
    }

    #[test]
    fn what_sticks_out_is_cut_off_or_refused() {
        let expected = BBox::from_normalized([0.0, 0.5, 0.75, 1.0]).unwrap();
        for (coords, numbers, outside) in [
            (Coords::Pixel, [-10., 50., 150., 130.], [-10., 130.]),
            (Coords::Norm, [-0.1, 0.5, 0.75, 1.3], [-0.1, 1.3]),
            (Coords::Norm1000, [-100., 500., 750., 1300.], [-100., 1300.]),
        ] {
            assert_eq!(coords.bbox(numbers, BoxForm::Xyxy, true, SIZE), Ok(expected), "{coords:?}");
            assert!(coords.bbox(numbers, BoxForm::Xyxy, false, SIZE).is_err(), "{coords:?}");
            assert_eq!(coords.corner(outside, true, SIZE), Ok(Point { x: 0.0, y: 1.0 }), "{coords:?}");
            assert!(coords.corner(outside, false, SIZE).is_err(), "{coords:?}");
            assert!(coords.corner([f64::INFINITY, 0.0], true, SIZE).is_err(), "{coords:?}");
        }
    }
}
