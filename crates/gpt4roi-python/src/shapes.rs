//! Regions as Python hands them over, and what they are in a picture.

use gpt4roi::{
    bbox::{BoxError, ImageSize},
    coordinates::{BoxForm, Coords},
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
        let Coordinates { coords, form, clip } = coordinates;
        Ok(match self {
            Self::Box(numbers) => Shape::Box(coords.bbox(*numbers, form, clip, size)?),
            Self::Point(xy) => Shape::Point(coords.point(*xy, size)?),
            Self::Polygon(corners) => {
                let corner = |xy: &[f64; 2]| coords.corner(*xy, clip, size);
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
    coords: Coords,
    form: BoxForm,
    clip: bool,
}

impl Coordinates {
    /// Takes `coords`, `box_format` and `clip` among the keywords.
    ///
    /// # Errors
    /// If one of them is none.
    pub(crate) fn read(keywords: &Keywords<'_>) -> PyResult<Self> {
        let coords = keywords.take::<String>("coords")?.map_or(Ok(Coords::default()), |coords| named(&coords))?;
        let form = match keywords.take::<String>("box_format")?.as_deref() {
            None | Some("xyxy") => BoxForm::Xyxy,
            Some("xywh") => BoxForm::Xywh,
            Some("cxcywh") => BoxForm::Cxcywh,
            Some(other) => return Err(unknown("box_format", "xyxy, xywh or cxcywh", other)),
        };
        Ok(Self { coords, form, clip: keywords.take("clip")?.unwrap_or(false) })
    }

    /// Those of points and corners, which have no form.
    ///
    /// # Errors
    /// If `coords` is no unit.
    pub(crate) fn of_corners(coords: &str, clip: bool) -> PyResult<Self> {
        Ok(Self { coords: named(coords)?, clip, ..Self::default() })
    }
}

fn named(coords: &str) -> PyResult<Coords> {
    match coords {
        "pixel" => Ok(Coords::Pixel),
        "norm" => Ok(Coords::Norm),
        "norm1000" => Ok(Coords::Norm1000),
        other => Err(unknown("coords", "pixel, norm or norm1000", other)),
    }
}

fn unknown(keyword: &str, expected: &str, got: &str) -> PyErr {
    PyValueError::new_err(format!("{keyword}: expected {expected}, got {got:?}"))
}
