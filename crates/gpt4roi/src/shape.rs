//! What people draw around a thing: a box, a point, a line around it, a mask.
//!
//! The model reads boxes and nothing else. A polygon, a lasso and a mask therefore become the smallest
//! box around them, in one place, here, and what else they say about the outline is lost; a point becomes
//! a box once the picture has been seen ([`crate::point`]).
//!
//! Everything refers to the upright picture, that is, after its EXIF orientation was applied.

use std::{borrow::Cow, io::Cursor};

use image::DynamicImage;
use serde::Deserialize;

use crate::{
    bbox::{BBox, BoxError, ImageSize, Point},
    image::{ImageError, upright},
};

/// A region as it was given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// A box.
    Box(BBox),
    /// A place, around which a box is grown.
    Point(Point),
    /// The box around a polygon or a lasso; [`Shape::polygon`] makes it.
    Polygon(BBox),
    /// The box around what a mask marks; [`Shape::mask`] makes it.
    Mask(BBox),
}

/// An outline or a mask around nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// Not enough corners to go around anything.
    #[error("expected a polygon of at least 3 corners, got {got}")]
    Corners {
        /// How many.
        got: usize,
    },
    /// A corner that can't be.
    #[error("corner {number}: {source}")]
    Corner {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        source: BoxError,
    },
    /// All corners lie on one line, or at one place.
    #[error("expected a polygon with an area, got {corners} corners on one line")]
    Line {
        /// How many corners.
        corners: usize,
    },
    /// No pixel is marked.
    #[error("expected a mask that marks something, got {}×{} pixels of which none is marked", size.width, size.height)]
    Nothing {
        /// The mask's size.
        size: ImageSize,
    },
    /// The box around it is none.
    #[error(transparent)]
    Box(#[from] BoxError),
}

impl Shape {
    /// The box around the corners of a polygon, or the points of a lasso, in any direction and crossing
    /// itself or not. The last corner may repeat the first.
    ///
    /// # Errors
    /// If there are fewer than three corners, if one lies outside the picture, or if all lie on one line.
    pub fn polygon(corners: &[Point]) -> Result<Self, ShapeError> {
        if corners.len() < 3 {
            return Err(ShapeError::Corners { got: corners.len() });
        }
        for (Point { x, y }, number) in corners.iter().zip(1..) {
            Point::from_normalized([*x, *y]).map_err(|source| ShapeError::Corner { number, source })?;
        }
        if on_one_line(corners) {
            return Err(ShapeError::Line { corners: corners.len() });
        }
        let [mut x1, mut y1, mut x2, mut y2] = [f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY];
        for Point { x, y } in corners {
            (x1, y1, x2, y2) = (x1.min(*x), y1.min(*y), x2.max(*x), y2.max(*y));
        }
        Ok(Self::Polygon(BBox::from_normalized([x1, y1, x2, y2])?))
    }

    /// The box around what a mask marks; see [`Mask::check_size`].
    ///
    /// # Errors
    /// If it marks nothing.
    pub fn mask(mask: &Mask) -> Result<Self, ShapeError> {
        let size = mask.size;
        let marked = mask.marked.ok_or(ShapeError::Nothing { size })?;
        Ok(Self::Mask(BBox::from_pixels(marked.map(f64::from), size)?))
    }
}

/// Whether no corner lies beside the line through the first corner and the one farthest from it.
fn on_one_line(corners: &[Point]) -> bool {
    /// A millionth of a pixel in a picture of a million pixels a side is far below what anyone can draw.
    const NOTHING: f64 = 1e-12;
    let from_first = |corner: &Point| [corner.x - corners[0].x, corner.y - corners[0].y];
    let length = |[x, y]: [f64; 2]| x.hypot(y);
    let reach = corners.iter().map(from_first).max_by(|a, b| length(*a).total_cmp(&length(*b)));
    let Some(reach) = reach.filter(|reach| length(*reach) > NOTHING) else { return true };
    let beside = |[x, y]: [f64; 2]| (reach[0] * y - reach[1] * x).abs() / length(reach);
    corners.iter().map(from_first).all(|corner| beside(corner) <= NOTHING)
}

/// A mask that can't be read, or that belongs to another picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// Not a PNG file; a lossy format would mark pixels that nobody marked.
    #[error("expected a mask as a PNG file")]
    NotPng,
    /// A PNG file that can't be read, or is too large.
    #[error("mask: {0}")]
    File(#[from] ImageError),
    /// There is an alpha channel, and it tells no pixel from another.
    #[error("expected an alpha channel that is 0 outside the region, got one that is 0 nowhere")]
    Opaque,
    /// A run of an RLE that can't be.
    #[error("count {index}: expected 0 to {left} pixels, got {got}")]
    Run {
        /// Which run, from 0.
        index: usize,
        /// How many pixels are left for it.
        left: u64,
        /// How many it claims.
        got: i64,
    },
    /// The runs of an RLE end before the picture does.
    #[error("expected counts of {expected} pixels in all, got {got}")]
    Sum {
        /// Height times width.
        expected: u64,
        /// What the counts add up to.
        got: u64,
    },
    /// A string of counts that nobody encoded.
    #[error("counts, character {position}: expected a number in COCO's coding, got {got:?}")]
    Text {
        /// Where, from 1.
        position: usize,
        /// What stands there, its beginning.
        got: String,
    },
    /// Not the size of the picture.
    #[error(
        "expected a mask of the picture's size, {}×{}, got {}×{}",
        expected.width, expected.height, got.width, got.height
    )]
    Size {
        /// The picture's, upright.
        expected: ImageSize,
        /// The mask's.
        got: ImageSize,
    },
}

/// Which pixels of a picture belong to a region. Of these only the smallest box around them is kept,
/// since the model reads nothing else; so a mask takes no memory, however large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    size: ImageSize,
    /// xyxy in pixels; the right and lower edges lie behind the last marked pixel.
    marked: Option<[u32; 4]>,
}

impl Mask {
    /// Reads a PNG file of at most `max_pixels`, which its header tells before anything is decoded.
    ///
    /// With an alpha channel, pixels are marked whose alpha isn't 0; without one, those that aren't
    /// black. So 0 and 1, 0 and 255, labels above 0, a palette, one bit or sixteen all work. The file's
    /// own EXIF orientation is applied.
    ///
    /// # Errors
    /// If it is no PNG file, damaged or too large, or if its alpha channel is 0 nowhere: then it is
    /// an ordinary picture, or its region stands in the colours.
    pub fn from_png(bytes: &[u8], max_pixels: u64) -> Result<Self, MaskError> {
        if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Err(MaskError::NotPng);
        }
        let picture = upright(Cursor::new(bytes), max_pixels)?;
        let size = ImageSize { width: picture.width(), height: picture.height() };
        let pixels = marked_pixels(&picture)?;
        let rows = pixels.chunks_exact(size.width as usize).zip(0..);
        let runs = rows.filter_map(|(row, y)| {
            let first = row.iter().position(|marked| *marked)? as u32;
            let last = row.iter().rposition(|marked| *marked)? as u32;
            Some([first, y, last + 1, y + 1])
        });
        Ok(Self { size, marked: runs.reduce(around) })
    }

    /// Reads a mask in COCO's run-length encoding.
    ///
    /// # Errors
    /// If the counts are no counts, or don't add up to the pixels of a picture of that size.
    pub fn from_rle(rle: &Rle) -> Result<Self, MaskError> {
        let [height, width] = rle.size;
        let size = ImageSize { width, height };
        let all = u64::from(height) * u64::from(width);
        let (mut end, mut marked) = (0, None);
        for (index, &got) in rle.counts.runs()?.iter().enumerate() {
            let left = all - end;
            let fits = u64::try_from(got).ok().filter(|length| *length <= left);
            let length = fits.ok_or(MaskError::Run { index, left, got })?;
            if index % 2 == 1 && length > 0 {
                let run = box_of_run(end, end + length - 1, u64::from(height));
                marked = Some(marked.map_or(run, |marked| around(marked, run)));
            }
            end += length;
        }
        if end == all { Ok(Self { size, marked }) } else { Err(MaskError::Sum { expected: all, got: end }) }
    }

    /// Width and height.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// Makes sure that the mask belongs to a picture of this size. Nothing is scaled: a mask of another
    /// size was made for another picture, or for this one before it was turned upright or resized.
    ///
    /// # Errors
    /// If the sizes differ.
    pub fn check_size(&self, picture: ImageSize) -> Result<(), MaskError> {
        let (expected, got) = (picture, self.size);
        if expected == got { Ok(()) } else { Err(MaskError::Size { expected, got }) }
    }
}

/// Row by row, which pixels are marked.
fn marked_pixels(picture: &DynamicImage) -> Result<Vec<bool>, MaskError> {
    let colour = picture.color();
    let (pixel, channel) = (colour.bytes_per_pixel(), colour.bytes_per_pixel() / colour.channel_count());
    let decisive = if colour.has_alpha() { usize::from(pixel - channel) } else { 0 };
    let pixels = picture.as_bytes().chunks_exact(pixel.into());
    let marked: Vec<bool> = pixels.map(|pixel| pixel[decisive..].iter().any(|byte| *byte != 0)).collect();
    if colour.has_alpha() && marked.iter().all(|marked| *marked) { Err(MaskError::Opaque) } else { Ok(marked) }
}

/// The smallest box around both.
fn around(one: [u32; 4], other: [u32; 4]) -> [u32; 4] {
    let [x1, y1, x2, y2] = one;
    [x1.min(other[0]), y1.min(other[1]), x2.max(other[2]), y2.max(other[3])]
}

/// The box around the pixels from `first` to `last`, counted column by column. A picture's sides fit
/// 32 bits, and so do its columns and rows.
fn box_of_run(first: u64, last: u64, height: u64) -> [u32; 4] {
    let (left, right) = (first / height, last / height);
    let (top, bottom) = if left == right { (first % height, last % height) } else { (0, height - 1) };
    [left, top, right + 1, bottom + 1].map(|edge| edge as u32)
}

/// A mask as COCO writes it: `{"size": [height, width], "counts": …}`.
///
/// Source: `maskApi.c` of the COCO API.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Rle {
    /// Height and width, in this order.
    pub size: [u32; 2],
    /// Lengths of runs.
    pub counts: Counts,
}

/// Lengths of runs, column by column from the upper left, by turns of pixels outside and inside the
/// region. The first counts pixels outside and may be 0.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected counts as a list of whole numbers or as a string")]
pub enum Counts {
    /// As numbers ("uncompressed").
    List(Vec<i64>),
    /// As COCO compresses them. Of each number five bits stand in a character, lowest first, above which
    /// a sixth says whether another follows, and the code is 48 more than that; the highest of the last
    /// five bits is the sign. From the fourth number on, what is written is the difference from the last
    /// but one.
    Text(String),
}

impl Counts {
    fn runs(&self) -> Result<Cow<'_, [i64]>, MaskError> {
        match self {
            Self::List(runs) => Ok(runs.into()),
            Self::Text(text) => decompress(text).map(Cow::Owned),
        }
    }
}

fn decompress(text: &str) -> Result<Vec<i64>, MaskError> {
    let mut runs: Vec<i64> = Vec::new();
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let number = split_number(rest).and_then(|(number, behind)| {
            let base = if runs.len() > 2 { runs[runs.len() - 2] } else { 0 };
            Some((base.checked_add(number)?, behind))
        });
        let Some((run, behind)) = number else {
            let at = text.len() - rest.len();
            // Everything before was ASCII, so bytes are characters.
            return Err(MaskError::Text { position: at + 1, got: text[at..].chars().take(8).collect() });
        };
        runs.push(run);
        rest = behind;
    }
    Ok(runs)
}

/// A number and what stands behind it.
fn split_number(text: &[u8]) -> Option<(i64, &[u8])> {
    /// Differences of 32-bit numbers need 33 bits.
    const MOST: usize = 7;
    let mut number = 0;
    for (index, byte) in text.iter().take(MOST).enumerate() {
        let bits = i64::from(byte.checked_sub(b'0').filter(|bits| *bits < 64)?);
        number |= (bits & 0x1F) << (5 * index);
        if bits & 0x20 == 0 {
            let sign = if bits & 0x10 == 0 { 0 } else { -1 << (5 * (index + 1)) };
            return Some((number | sign, &text[index + 1..]));
        }
    }
    None
}
