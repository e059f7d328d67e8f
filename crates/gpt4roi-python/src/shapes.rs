//! Regions as Python hands them over, and what they are in a picture.

use gpt4roi::{
    BBox,
    bbox::{BoxError, ImageSize, Point},
    shape::{Mask, Shape},
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
};

use crate::{failure::Failure, keywords::Keywords, picture};

/// A region in the numbers in which it was given.
#[derive(Clone, Debug)]
pub(crate) enum Given {
    Box([f64; 4]),
    Point([f64; 2]),
    Polygon(Vec<[f64; 2]>),
    Mask(Mask),
}

impl Given {
    /// Takes four numbers. `what` is how errors call them; so for every other kind.
    pub(crate) fn read_box(object: &Bound<'_, PyAny>, what: &str) -> PyResult<Self> {
        numbers(object, what).map(Self::Box)
    }

    /// Takes two numbers.
    pub(crate) fn read_point(object: &Bound<'_, PyAny>, what: &str) -> PyResult<Self> {
        numbers(object, what).map(Self::Point)
    }

    /// Takes corners of two numbers each.
    pub(crate) fn read_polygon(object: &Bound<'_, PyAny>, what: &str) -> PyResult<Self> {
        let corners = object.try_iter()?.zip(1..);
        let corners = corners.map(|(corner, number)| numbers(&corner?, &format!("{what}, corner {number}")));
        corners.collect::<PyResult<_>>().map(Self::Polygon)
    }

    /// Takes a mask, as [`picture::read_mask`] does.
    pub(crate) fn read_mask(object: &Bound<'_, PyAny>, what: &str) -> PyResult<Self> {
        picture::read_mask(object, what).map(Self::Mask)
    }

    /// The region in a picture of this size.
    pub(crate) fn shape(&self, size: ImageSize, coordinates: Coordinates) -> gpt4roi::Result<Shape> {
        Ok(match self {
            Self::Box(numbers) => Shape::Box(coordinates.bbox(*numbers, size)?),
            Self::Point(xy) => Shape::Point(coordinates.point(*xy, size)?),
            Self::Polygon(corners) => {
                let corner = |xy: &[f64; 2]| coordinates.corner(*xy, size);
                Shape::polygon(&corners.iter().map(corner).collect::<Result<Vec<_>, BoxError>>()?)?
            }
            Self::Mask(mask) => {
                mask.check_size(size)?;
                Shape::mask(mask)?
            }
        })
    }
}

/// So many numbers: a tuple, a list, a row of an array.
fn numbers<const N: usize>(object: &Bound<'_, PyAny>, what: &str) -> PyResult<[f64; N]> {
    let kind = || object.get_type().qualname().map_or("something else".into(), |name| name.to_string());
    let not_numbers = || PyTypeError::new_err(format!("{what}: expected {N} numbers, got {}", kind()));
    let numbers = object.try_iter().map_err(|_| not_numbers())?.map(|number| number?.extract::<f64>());
    let numbers = numbers.collect::<PyResult<Vec<f64>>>().map_err(|_| not_numbers())?;
    let got = numbers.len();
    numbers.try_into().map_err(|_| PyValueError::new_err(format!("{what}: expected {N} numbers, got {got}")))
}

/// Many regions of one picture, as keywords name them.
#[derive(Debug)]
pub(crate) struct Regions {
    kinds: [(&'static str, Vec<Given>); 4],
    coordinates: Coordinates,
}

impl Regions {
    /// Takes `boxes`, and `points`, `polygons` and `masks` among the keywords.
    ///
    /// # Errors
    /// If something is no region.
    pub(crate) fn read(boxes: Option<&Bound<'_, PyAny>>, keywords: &Keywords<'_>) -> PyResult<Self> {
        let kinds = [
            ("boxes", read_all("boxes", boxes, Given::read_box)?),
            ("points", read_all("points", keywords.object("points")?.as_ref(), Given::read_point)?),
            ("polygons", read_all("polygons", keywords.object("polygons")?.as_ref(), Given::read_polygon)?),
            ("masks", read_all("masks", keywords.object("masks")?.as_ref(), Given::read_mask)?),
        ];
        Ok(Self { kinds, coordinates: Coordinates::read(keywords)? })
    }

    /// All of them, in the order of their kinds.
    pub(crate) fn shapes(&self, size: ImageSize) -> Result<Vec<Shape>, Failure> {
        let all = self.kinds.iter().flat_map(|(place, given)| given.iter().enumerate().map(move |one| (*place, one)));
        let shape = |(place, (index, given)): (&'static str, (usize, &Given))| {
            given.shape(size, self.coordinates).map_err(|source| Failure::Region { place, index, source })
        };
        all.map(shape).collect()
    }
}

fn read_all(
    place: &str,
    objects: Option<&Bound<'_, PyAny>>,
    read: fn(&Bound<'_, PyAny>, &str) -> PyResult<Given>,
) -> PyResult<Vec<Given>> {
    let Some(objects) = objects else { return Ok(Vec::new()) };
    objects.try_iter()?.enumerate().map(|(index, object)| read(&object?, &format!("{place}[{index}]"))).collect()
}

/// What the numbers of a region mean.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Coordinates {
    unit: Unit,
    form: BoxForm,
    clip: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Unit {
    #[default]
    Pixel,
    Norm,
    Norm1000,
}

impl Unit {
    fn named(name: &str) -> PyResult<Self> {
        match name {
            "pixel" => Ok(Self::Pixel),
            "norm" => Ok(Self::Norm),
            "norm1000" => Ok(Self::Norm1000),
            other => Err(unknown("coords", "pixel, norm or norm1000", other)),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
enum BoxForm {
    #[default]
    Xyxy,
    Xywh,
    Cxcywh,
}

impl Coordinates {
    /// Takes `coords`, `box_format` and `clip` among the keywords.
    ///
    /// # Errors
    /// If one of them is none.
    pub(crate) fn read(keywords: &Keywords<'_>) -> PyResult<Self> {
        let unit = keywords.take::<String>("coords")?.map_or(Ok(Unit::default()), |unit| Unit::named(&unit))?;
        let form = match keywords.take::<String>("box_format")?.as_deref() {
            None | Some("xyxy") => BoxForm::Xyxy,
            Some("xywh") => BoxForm::Xywh,
            Some("cxcywh") => BoxForm::Cxcywh,
            Some(other) => return Err(unknown("box_format", "xyxy, xywh or cxcywh", other)),
        };
        Ok(Self { unit, form, clip: keywords.take("clip")?.unwrap_or(false) })
    }

    /// Those of points and corners, which have no form.
    ///
    /// # Errors
    /// If `coords` is no unit.
    pub(crate) fn of_corners(coords: &str, clip: bool) -> PyResult<Self> {
        Ok(Self { unit: Unit::named(coords)?, clip, ..Self::default() })
    }

    fn bbox(self, [a, b, c, d]: [f64; 4], size: ImageSize) -> Result<BBox, BoxError> {
        let xyxy = match (self.form, self.unit, self.clip) {
            // Its errors are about x + width.
            (BoxForm::Xywh, Unit::Pixel, false) => return BBox::from_xywh_pixels([a, b, c, d], size),
            (BoxForm::Xyxy, ..) => [a, b, c, d],
            (BoxForm::Xywh, ..) => [a, b, a + c, b + d],
            (BoxForm::Cxcywh, ..) => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        };
        match (self.unit, self.clip) {
            (Unit::Pixel, false) => BBox::from_pixels(xyxy, size),
            (Unit::Pixel, true) => BBox::from_pixels_clipped(xyxy, size),
            (Unit::Norm, false) => BBox::from_normalized(xyxy),
            (Unit::Norm, true) => BBox::from_normalized_clipped(xyxy),
            (Unit::Norm1000, false) => BBox::from_norm1000(xyxy),
            (Unit::Norm1000, true) => BBox::from_normalized_clipped(xyxy.map(|number| number / 1000.0)),
        }
    }

    fn point(self, xy: [f64; 2], size: ImageSize) -> Result<Point, BoxError> {
        match self.unit {
            Unit::Pixel => Point::from_pixels(xy, size),
            Unit::Norm => Point::from_normalized(xy),
            Unit::Norm1000 => Point::from_norm1000(xy),
        }
    }

    /// A point that may be moved to the picture's edge.
    fn corner(self, [x, y]: [f64; 2], size: ImageSize) -> Result<Point, BoxError> {
        let (width, height) = match self.unit {
            Unit::Pixel => (size.width.into(), size.height.into()),
            Unit::Norm => (1.0, 1.0),
            Unit::Norm1000 => (1000.0, 1000.0),
        };
        // Infinity is no corner, clipped or not.
        let is_clipped = self.clip && x.is_finite() && y.is_finite();
        self.point(if is_clipped { [x.clamp(0.0, width), y.clamp(0.0, height)] } else { [x, y] }, size)
    }
}

fn unknown(keyword: &str, expected: &str, got: &str) -> PyErr {
    PyValueError::new_err(format!("{keyword}: expected {expected}, got {got:?}"))
}
