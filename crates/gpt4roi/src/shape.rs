//! What people draw around a thing: a box, a point, a line around it, a mask.
//!
//! The model reads boxes. A polygon, a lasso and a mask therefore become the smallest box around
//! them, in one place, here; a point becomes a box once the picture has been seen ([`crate::point`]).

use crate::bbox::{BBox, BoxError, ImageSize, Point};

/// A region as it was given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// A box.
    Box(BBox),
    /// A place, around which a box is grown.
    Point(Point),
}

impl Shape {
    /// The box around the corners of a polygon, or the points of a lasso.
    ///
    /// # Errors
    /// If a corner lies outside, or if all lie on one line along an edge of the picture.
    pub fn polygon(corners: &[Point]) -> Result<Self, BoxError> {
        let around =
            |low: fn(f64, f64) -> f64, start: f64, of: fn(&Point) -> f64| corners.iter().map(of).fold(start, low);
        let (left, top) = (around(f64::min, 1.0, |point| point.x), around(f64::min, 1.0, |point| point.y));
        let (right, bottom) = (around(f64::max, 0.0, |point| point.x), around(f64::max, 0.0, |point| point.y));
        BBox::from_normalized([left, top, right, bottom]).map(Self::Box)
    }

    /// The box around what a mask marks.
    ///
    /// # Errors
    /// If it marks nothing.
    pub fn mask(mask: &Mask) -> Result<Self, BoxError> {
        let (columns, rows) = (mask.marked(|x, _| x), mask.marked(|_, y| y));
        let size = mask.size;
        let xyxy = [columns.0, rows.0, columns.1, rows.1].map(f64::from);
        BBox::from_pixels(xyxy, size).map(Self::Box)
    }
}

/// The pixels that belong to a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    size: ImageSize,
    /// Row by row.
    pixels: Vec<bool>,
}

impl Mask {
    /// First marked place and the one behind the last.
    fn marked(&self, place: fn(u32, u32) -> u32) -> (u32, u32) {
        let width = self.size.width as usize;
        let marked = self.pixels.iter().enumerate().filter(|(_, marked)| **marked);
        let places = marked.map(|(index, _)| place((index % width) as u32, (index / width) as u32));
        places.fold((u32::MAX, 0), |(first, end), place| (first.min(place), end.max(place + 1)))
    }
}
