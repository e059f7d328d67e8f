//! Boxes and points. Inside there is one form, normalised xyxy in the original picture; every other
//! convention is converted here, by name.

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

/// A box that can't be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BoxError {}

/// A box inside a picture: 0 ≤ x1 < x2 ≤ 1 and 0 ≤ y1 < y2 ≤ 1, fractions of width and height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BBox {
    x1: f64,
    y1: f64,
    x2: f64,
    y2: f64,
}

/// A place in a picture, as fractions of width and height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// From the left edge.
    pub x: f64,
    /// From the upper edge.
    pub y: f64,
}

impl BBox {
    /// xyxy in pixels of the picture.
    pub fn from_pixels(xyxy: [f64; 4], size: ImageSize) -> Result<Self, BoxError> {
        let _ = (xyxy, size);
        todo!()
    }

    /// xyxy as fractions of width and height.
    pub fn from_normalized(xyxy: [f64; 4]) -> Result<Self, BoxError> {
        let _ = xyxy;
        todo!()
    }

    /// xyxy as fractions of width and height.
    pub fn normalized(&self) -> [f64; 4] {
        [self.x1, self.y1, self.x2, self.y2]
    }

    /// xyxy in pixels of the picture.
    pub fn pixels(&self, size: ImageSize) -> [f64; 4] {
        let _ = size;
        todo!()
    }

    /// Intersection over union.
    pub fn iou(&self, other: &Self) -> f64 {
        let _ = other;
        todo!()
    }
}
