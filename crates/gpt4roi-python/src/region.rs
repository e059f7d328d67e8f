//! A region, as Python sees it.

use gpt4roi::{
    bbox::ImageSize,
    chat::{Origin, Region, ResolvedRegion},
};
use pyo3::prelude::*;

/// A region of a picture. Written into a question it is its mention: `f"What is {region}?"`.
#[pyclass(name = "Region", module = "gpt4roi", frozen, eq)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PyRegion {
    /// Its number, from 1.
    #[pyo3(get)]
    id: u32,
    /// The box that the model reads: left, top, right and bottom edge in pixels of the picture.
    #[pyo3(get, name = "box")]
    pixels: (f64, f64, f64, f64),
    origin: Origin,
}

impl From<&ResolvedRegion> for PyRegion {
    fn from(region: &ResolvedRegion) -> Self {
        let [x1, y1, x2, y2] = region.pixels;
        Self { id: region.id, pixels: (x1, y1, x2, y2), origin: region.origin }
    }
}

impl PyRegion {
    /// A region of a picture of this size.
    pub(crate) fn new(region: &Region, size: ImageSize) -> Self {
        let pixels = region.bbox.pixels(size);
        Self::from(&ResolvedRegion { id: region.id.0, pixels, origin: region.origin })
    }
}

#[pymethods]
impl PyRegion {
    /// Where it came from: "given" as a box, "point", "polygon" or "mask", or "coordinates" in a question.
    #[getter]
    fn origin(&self) -> &'static str {
        match self.origin {
            Origin::Given => "given",
            Origin::Coordinates => "coordinates",
            Origin::Point => "point",
            Origin::Polygon => "polygon",
            Origin::Mask => "mask",
        }
    }

    fn __hash__(&self) -> u64 {
        self.id.into()
    }

    fn __str__(&self) -> String {
        format!("<region{}>", self.id)
    }

    fn __repr__(&self) -> String {
        let (id, pixels, origin) = (self.id, self.pixels, self.origin());
        format!("Region(id={id}, box={pixels:?}, origin='{origin}')")
    }
}
