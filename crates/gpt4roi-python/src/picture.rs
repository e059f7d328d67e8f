//! Pictures and masks, in all the forms in which Python has them.

use std::path::PathBuf;

use gpt4roi::{
    Image,
    image::{DEFAULT_MAX_PIXELS, ImageError},
    shape::{Counts, Mask, MaskError, Rle},
};
use image::{GrayImage, RgbImage};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::{PyByteArray, PyBytes, PyDict, PyMemoryView, PyString},
};

use crate::failure::Failure;

/// A picture that Python has handed over, and that is not decoded yet.
#[derive(Debug)]
pub(crate) enum Picture {
    File(PathBuf),
    Encoded(Vec<u8>),
    Pixels(Image),
}

impl Picture {
    /// Takes a path, the bytes of a file, a PIL image, or an array of H×W×3 bytes.
    ///
    /// # Errors
    /// If it is none of these.
    pub(crate) fn read(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Some(bytes) = encoded(object)? {
            return Ok(Self::Encoded(bytes));
        }
        if let Some(path) = path(object)? {
            return Ok(Self::File(path));
        }
        if is_pil(object)? {
            refuse_deep(object)?;
            // As the model's training did it. Pillow makes RGB of whatever mode the picture has.
            return Array::read(&object.call_method1("convert", ("RGB",))?)?.map_or_else(|| refuse(object), picture);
        }
        Array::read(object)?.map_or_else(|| refuse(object), picture)
    }

    /// The pixels, upright.
    pub(crate) fn open(self) -> Result<Image, Failure> {
        Ok(match self {
            Self::File(path) => Image::open(path, DEFAULT_MAX_PIXELS)?,
            Self::Encoded(bytes) => Image::decode(&bytes, DEFAULT_MAX_PIXELS)?,
            Self::Pixels(image) if image.rgb().is_empty() => {
                let (width, height) = image.rgb().dimensions();
                return Err(ImageError::Empty { width, height }.into());
            }
            Self::Pixels(image) => image,
        })
    }
}

/// Of pictures with more than eight bits a channel, Pillow makes RGB that is white almost everywhere.
fn refuse_deep(object: &Bound<'_, PyAny>) -> PyResult<()> {
    let mode: String = object.getattr("mode")?.extract()?;
    if mode == "F" || mode.starts_with('I') {
        let message = format!("image: expected a PIL image of 8 bits a channel, or its file, got one of mode {mode}");
        return Err(PyValueError::new_err(message));
    }
    Ok(())
}

fn refuse(object: &Bound<'_, PyAny>) -> PyResult<Picture> {
    let kind = object.get_type().qualname()?;
    let message = format!("image: expected a path, bytes, a PIL image or an array of H×W×3 bytes, got {kind}");
    Err(PyTypeError::new_err(message))
}

/// RGB pixels of an array of H×W×3 bytes; of H×W×4 the last channel is dropped, and of H×W each byte is repeated, as for
/// files of such pictures.
fn picture(Array { shape, kind, bytes }: Array) -> PyResult<Picture> {
    let rgb = match (kind.as_str(), shape.as_slice()) {
        ("|u1", &[height, width, 3]) => RgbImage::from_raw(width, height, bytes),
        ("|u1", &[height, width, 4]) => {
            let pixels = bytes.chunks_exact(4).flat_map(|pixel| &pixel[..3]);
            RgbImage::from_raw(width, height, pixels.copied().collect())
        }
        ("|u1", &[height, width]) => {
            RgbImage::from_raw(width, height, bytes.into_iter().flat_map(|grey| [grey; 3]).collect())
        }
        _ => None,
    };
    let got = || name(&kind, &shape);
    let expected = || format!("image: expected an array of H×W×3 unsigned bytes (uint8, RGB), got {}", got());
    rgb.map(|rgb| Picture::Pixels(Image::from_rgb(rgb))).ok_or_else(|| PyValueError::new_err(expected()))
}

/// Takes a mask: an array or a PIL image of H×W in which marked pixels aren't 0, the path or the bytes of a PNG file, or
/// COCO's RLE as a dict. `what` is how errors call it.
///
/// # Errors
/// If it is none of these, or no mask.
pub(crate) fn read_mask(object: &Bound<'_, PyAny>, what: &str) -> PyResult<Mask> {
    let wrong = |error: MaskError| PyErr::from(Failure::Library(error.into()));
    if let Ok(dict) = object.cast::<PyDict>() {
        return Mask::from_rle(&rle(dict, what)?).map_err(wrong);
    }
    if let Some(bytes) = encoded(object)? {
        return Mask::from_png(&bytes, DEFAULT_MAX_PIXELS).map_err(wrong);
    }
    if let Some(path) = path(object)? {
        let bytes =
            std::fs::read(&path).map_err(|source| PyErr::from(Failure::from(gpt4roi::Error::file(path, source))))?;
        return Mask::from_png(&bytes, DEFAULT_MAX_PIXELS).map_err(wrong);
    }
    let Some(Array { shape, kind, bytes }) = Array::read(object)? else {
        let kind = object.get_type().qualname()?;
        let message = format!("{what}: expected an array of H×W, a PNG file, or COCO's RLE as a dict, got {kind}");
        return Err(PyTypeError::new_err(message));
    };
    let pixels = match (kind.as_str(), shape.as_slice()) {
        ("|u1" | "|b1", &[height, width]) => GrayImage::from_raw(width, height, bytes),
        _ => None,
    };
    let expected =
        || format!("{what}: expected an array of H×W booleans or unsigned bytes, got {}", name(&kind, &shape));
    pixels.map(Mask::from_grey).ok_or_else(|| PyValueError::new_err(expected()))
}

/// COCO's `{"size": [height, width], "counts": …}`; pycocotools has its counts as bytes.
fn rle(dict: &Bound<'_, PyDict>, what: &str) -> PyResult<Rle> {
    let field = |name: &str| {
        let missing = || PyValueError::new_err(format!("{what}: expected COCO's RLE, with \"{name}\" in it"));
        dict.get_item(name)?.ok_or_else(missing)
    };
    let (size, counts) = (field("size")?, field("counts")?);
    let counts = match (counts.cast::<PyBytes>(), counts.cast::<PyString>()) {
        (Ok(bytes), _) => Counts::Text(String::from_utf8_lossy(bytes.as_bytes()).into_owned()),
        (_, Ok(text)) => Counts::Text(text.to_string()),
        _ => Counts::List(counts.try_iter()?.map(|count| count?.extract()).collect::<PyResult<_>>()?),
    };
    Ok(Rle { size: size.extract()?, counts })
}

/// The bytes of a file, if the object is such.
fn encoded(object: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u8>>> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(Some(bytes.as_bytes().to_vec()));
    }
    if object.is_instance_of::<PyByteArray>() || object.is_instance_of::<PyMemoryView>() {
        return bytes_of(object).map(Some);
    }
    Ok(None)
}

/// The path of a file, if the object is one.
fn path(object: &Bound<'_, PyAny>) -> PyResult<Option<PathBuf>> {
    let is_path = object.is_instance_of::<PyString>() || object.hasattr("__fspath__")?;
    is_path.then(|| object.extract()).transpose()
}

fn is_pil(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(object.hasattr("mode")? && object.hasattr("convert")? && object.hasattr("getbands")?)
}

/// Numbers in memory.
///
/// Source: the array interface of NumPy, version 3, in which other libraries describe their arrays, too.
struct Array {
    shape: Vec<u32>,
    /// `|u1` for unsigned bytes, `|b1` for booleans.
    kind: String,
    /// Row by row.
    bytes: Vec<u8>,
}

impl Array {
    /// None if the object is no array.
    fn read(object: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        const INTERFACE: &str = "__array_interface__";
        let described = object.hasattr(INTERFACE)?;
        if !described && !object.hasattr("__array__")? {
            return Ok(None);
        }
        // What has only `__array__`, as PyTorch's tensors do, makes an array of itself.
        let array = if described { object.clone() } else { object.call_method0("__array__")? };
        let interface = array.getattr(INTERFACE)?;
        let (shape, kind) = (interface.get_item("shape")?.extract()?, interface.get_item("typestr")?.extract()?);
        let data = interface.get_item("data")?;
        // NumPy tells an address there, and the bytes by the buffer protocol; Pillow tells the bytes.
        let bytes = if data.is_instance_of::<PyBytes>() { bytes_of(&data)? } else { bytes_of(&array)? };
        Ok(Some(Self { shape, kind, bytes }))
    }
}

/// How an array is called in messages.
fn name(kind: &str, shape: &[u32]) -> String {
    let shape: Vec<String> = shape.iter().map(u32::to_string).collect();
    format!("{} of {kind}", shape.join("×"))
}

/// A copy of what an object holds in memory, row by row, whatever its strides.
fn bytes_of(object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let view = PyMemoryView::from(object)?.call_method0("tobytes")?;
    Ok(view.cast::<PyBytes>()?.as_bytes().to_vec())
}
