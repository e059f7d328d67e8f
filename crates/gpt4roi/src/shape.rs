//! What people draw around a thing: a box, a point, a line around it, a mask.
//!
//! The model reads boxes and nothing else. A polygon, a lasso and a mask therefore become the smallest
//! box around them, in one place, here, and what else they say about the outline is lost; a point becomes
//! a box once the picture has been seen ([`crate::point`]).
//!
//! Everything refers to the upright picture, that is, after its EXIF orientation was applied.

use std::io::Cursor;

use image::{DynamicImage, GrayImage, ImageDecoder};
use serde::Deserialize;

use crate::{
    bbox::{BBox, BoxError, ImageSize, Point},
    image::{ImageError, Opened, open},
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

impl From<BBox> for Shape {
    fn from(bbox: BBox) -> Self {
        Self::Box(bbox)
    }
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
    /// A file with colours or an alpha channel that marks every pixel, as a photograph would.
    #[error("expected a mask, black or transparent outside the region, got a picture that is so nowhere")]
    Picture,
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
    /// If it is no PNG file, damaged or too large, or if it has colours or an alpha channel and marks
    /// every pixel: then it is an ordinary picture. Only a grey one may mark the whole picture.
    pub fn from_png(bytes: &[u8], max_pixels: u64) -> Result<Self, MaskError> {
        let picture = open_png(bytes, max_pixels)?.upright()?;
        let colour = picture.color();
        let may_be_a_picture = colour.has_color() || colour.has_alpha();
        if may_be_a_picture && marked_rows(&picture).all(|mut row| row.all(|marked| marked)) {
            return Err(MaskError::Picture);
        }
        Ok(Self::of(&picture))
    }

    /// Takes decoded pixels, of which those are marked that aren't black.
    pub fn from_grey(pixels: GrayImage) -> Self {
        Self::of(&DynamicImage::ImageLuma8(pixels))
    }

    fn of(picture: &DynamicImage) -> Self {
        let size = ImageSize { width: picture.width(), height: picture.height() };
        let runs = marked_rows(picture).zip(0..).filter_map(|(mut row, y)| {
            let first = row.clone().position(|marked| marked)? as u32;
            let last = row.rposition(|marked| marked)? as u32;
            Some([first, y, last + 1, y + 1])
        });
        Self { size, marked: runs.reduce(around) }
    }

    /// Bytes of pixels that [`Mask::from_png`] has in memory at most, of which none stay. The file's header tells,
    /// nothing is decoded.
    ///
    /// # Errors
    /// If it is no PNG file, or its header can't be read, or tells of more than `max_pixels` or of none.
    pub fn decoding_bytes(bytes: &[u8], max_pixels: u64) -> Result<u64, MaskError> {
        Ok(open_png(bytes, max_pixels)?.upright_bytes())
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
        for (index, got) in rle.counts.runs().enumerate() {
            let (got, left) = (got?, all - end);
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

fn open_png(bytes: &[u8], max_pixels: u64) -> Result<Opened<impl ImageDecoder>, MaskError> {
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Err(MaskError::NotPng);
    }
    Ok(open(Cursor::new(bytes), max_pixels)?)
}

/// Row by row, which pixels are marked.
fn marked_rows(
    picture: &DynamicImage,
) -> impl Iterator<Item = impl ExactSizeIterator<Item = bool> + DoubleEndedIterator + Clone> {
    let colour = picture.color();
    let (pixel, channel) = (colour.bytes_per_pixel(), colour.bytes_per_pixel() / colour.channel_count());
    let decisive = if colour.has_alpha() { usize::from(pixel - channel) } else { 0 };
    let (pixel, width) = (usize::from(pixel), picture.width() as usize);
    let is_marked = move |pixel: &[u8]| pixel[decisive..].iter().any(|byte| *byte != 0);
    picture.as_bytes().chunks_exact(pixel * width.max(1)).map(move |row| row.chunks_exact(pixel).map(is_marked))
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
    fn runs(&self) -> Box<dyn Iterator<Item = Result<i64, MaskError>> + '_> {
        match self {
            Self::List(runs) => Box::new(runs.iter().copied().map(Ok)),
            Self::Text(text) => Box::new(Decompressed { text, at: 0, known: 0, last: [0; 2] }),
        }
    }
}

/// The runs of a text, one at a time: a text of megabytes has as many of them, which nobody has to hold.
struct Decompressed<'t> {
    text: &'t str,
    /// Where the next one begins.
    at: usize,
    /// How many there were, and the last two of them.
    known: usize,
    last: [i64; 2],
}

impl Iterator for Decompressed<'_> {
    type Item = Result<i64, MaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.text.as_bytes()[self.at..];
        if rest.is_empty() {
            return None;
        }
        let base = if self.known > 2 { self.last[0] } else { 0 };
        let number = split_number(rest).and_then(|(number, behind)| Some((base.checked_add(number)?, behind)));
        let Some((run, behind)) = number else {
            // Everything before was ASCII, so bytes are characters.
            let got = self.text[self.at..].chars().take(8).collect();
            return Some(Err(MaskError::Text { position: self.at + 1, got }));
        };
        (self.at, self.known, self.last) = (self.text.len() - behind.len(), self.known + 1, [self.last[1], run]);
        Some(Ok(run))
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

    fn png(name: &str) -> Vec<u8> {
        std::fs::read(format!("{DATA}/masks/{name}.png")).unwrap()
    }

    fn rle(size: [u32; 2], counts: &[i64]) -> Rle {
        Rle { size, counts: Counts::List(counts.to_vec()) }
    }

    fn refusal(rle: &Rle) -> String {
        Mask::from_rle(rle).unwrap_err().to_string()
    }

    fn points(corners: &[[f64; 2]]) -> Vec<Point> {
        corners.iter().map(|&[x, y]| Point { x, y }).collect()
    }

    /// What `reference/make_mask_goldens.py` computed with pycocotools.
    #[derive(Deserialize)]
    struct Golden {
        name: String,
        size: [u32; 2],
        list: Vec<i64>,
        text: String,
        #[serde(rename = "box")]
        marked: Option<[u32; 4]>,
    }

    #[test]
    fn both_forms_of_rle_are_read_as_pycocotools_writes_them() {
        let goldens = std::fs::read(format!("{DATA}/masks.json")).unwrap();
        let goldens: Vec<Golden> = serde_json::from_slice(&goldens).unwrap();
        assert_eq!(goldens.len(), 15);
        for Golden { name, size, list, text, marked } in goldens {
            let counts = [Counts::List(list.clone()), Counts::Text(text)];
            assert!(counts.iter().all(|counts| counts.runs().map(Result::unwrap).eq(list.iter().copied())), "{name}");
            for counts in counts {
                let mask = Mask::from_rle(&Rle { size, counts }).unwrap();
                assert_eq!((mask.size.height, mask.size.width, mask.marked), (size[0], size[1], marked), "{name}");
            }
        }
    }

    #[test]
    fn rle_is_deserialised_as_coco_writes_it() {
        let read = |text: &str| serde_json::from_str::<Rle>(text);
        let list = read(r#"{"size": [3, 4], "counts": [5, 2, 5], "area": 2}"#).unwrap();
        let text = read(r#"{"counts": "525", "size": [3, 4]}"#).unwrap();
        assert_eq!(Mask::from_rle(&list).unwrap(), Mask::from_rle(&text).unwrap());
        for bad in ["true", "[1.5]", "[\"5\"]", "[99999999999999999999]", "null", "{}"] {
            let error = read(&format!(r#"{{"size": [3, 4], "counts": {bad}}}"#)).unwrap_err().to_string();
            assert!(error.starts_with("expected counts as a list of whole numbers or as a string"), "{bad}: {error}");
        }
        assert!(read(r#"{"size": [-3, 4], "counts": []}"#).is_err());
        assert!(read(r#"{"size": [3, 4, 1], "counts": []}"#).is_err());
    }

    #[test]
    fn hostile_counts_are_errors() {
        let text = |text: &str| Rle { size: [3, 4], counts: Counts::Text(text.into()) };
        for (rle, message) in [
            (rle([3, 4], &[5, 2]), "expected counts of 12 pixels in all, got 7"),
            (rle([3, 4], &[]), "expected counts of 12 pixels in all, got 0"),
            (rle([3, 4], &[5, 8]), "count 1: expected 0 to 7 pixels, got 8"),
            (rle([3, 4], &[12, 0, 1]), "count 2: expected 0 to 0 pixels, got 1"),
            (rle([3, 4], &[-1, 13]), "count 0: expected 0 to 12 pixels, got -1"),
            (rle([3, 4], &[i64::MAX, i64::MAX]), "count 0: expected 0 to 12 pixels, got 9223372036854775807"),
            (rle([3, 4], &[i64::MIN]), "count 0: expected 0 to 12 pixels, got -9223372036854775808"),
            (rle([0, 4], &[1]), "count 0: expected 0 to 0 pixels, got 1"),
            // `O` is 48 + 31: five bits all set, so minus one.
            (text("O"), "count 0: expected 0 to 12 pixels, got -1"),
            (text("5 5"), r#"counts, character 2: expected a number in COCO's coding, got " 5""#),
            (text("52é"), r#"counts, character 3: expected a number in COCO's coding, got "é""#),
            (text("5p"), r#"counts, character 2: expected a number in COCO's coding, got "p""#),
            // `o` announces a character that does not come; seven of them are more than a count holds.
            (text("5o"), r#"counts, character 2: expected a number in COCO's coding, got "o""#),
            (text("ooooooo0"), r#"counts, character 1: expected a number in COCO's coding, got "ooooooo0""#),
        ] {
            assert_eq!(refusal(&rle), message);
        }
    }

    #[test]
    fn a_mask_takes_no_memory_whatever_size_it_claims() {
        // Half of the columns are empty, then the first pixel of the next one is marked.
        let (height, width) = (u32::MAX, 1 << 31);
        let half = i64::from(height) * i64::from(width / 2);
        let mask = Mask::from_rle(&rle([height, width], &[half, 1, half - 1])).unwrap();
        assert_eq!(mask.marked, Some([width / 2, 0, width / 2 + 1, 1]));
    }

    #[test]
    fn every_kind_of_png_marks_the_same_pixels() {
        for name in ["grey", "grey-ones", "grey16-ones", "bits", "palette", "rgb", "rgba", "grey-alpha", "turned-6"] {
            let mask = Mask::from_png(&png(name), 54).unwrap();
            assert_eq!(mask.size(), ImageSize { width: 9, height: 6 }, "{name}");
            assert_eq!(mask.marked, Some([1, 1, 8, 6]), "{name}");
            let Shape::Mask(bbox) = Shape::mask(&mask).unwrap() else { panic!("{name}") };
            assert_eq!(bbox.pixels(mask.size()).map(f64::round), [1., 1., 8., 6.], "{name}");
        }
    }

    #[test]
    fn decoded_pixels_are_a_mask() {
        let mut pixels = GrayImage::new(9, 6);
        pixels.put_pixel(2, 4, image::Luma([1]));
        pixels.put_pixel(7, 1, image::Luma([255]));
        let mask = Mask::from_grey(pixels);
        assert_eq!((mask.size(), mask.marked), (ImageSize { width: 9, height: 6 }, Some([2, 1, 8, 5])));
        for (width, height) in [(0, 6), (9, 0), (9, 6)] {
            let refused = Shape::mask(&Mask::from_grey(GrayImage::new(width, height))).unwrap_err();
            assert_eq!(refused, ShapeError::Nothing { size: ImageSize { width, height } });
        }
    }

    #[test]
    fn files_that_are_no_masks_are_refused() {
        let nothing = Mask::from_png(&png("nothing"), 54).unwrap();
        let message = "expected a mask that marks something, got 9×6 pixels of which none is marked";
        assert_eq!(Shape::mask(&nothing).unwrap_err().to_string(), message);
        let empty = Mask::from_rle(&rle([0, 4], &[])).unwrap();
        assert!(matches!(Shape::mask(&empty).unwrap_err(), ShapeError::Nothing { .. }));
        assert!(matches!(Mask::from_png(&png("opaque"), 54).unwrap_err(), MaskError::Picture));
        let photograph = std::fs::read(format!("{DATA}/../../../../docs/example.png")).unwrap();
        assert!(matches!(Mask::from_png(&photograph, 1 << 16).unwrap_err(), MaskError::Picture));
        let mut whole = Cursor::new(Vec::new());
        let white = image::GrayImage::from_pixel(4, 3, image::Luma([255]));
        white.write_to(&mut whole, image::ImageFormat::Png).unwrap();
        assert_eq!(Mask::from_png(whole.get_ref(), 12).unwrap().marked, Some([0, 0, 4, 3]));
        let error = Mask::from_png(&png("grey"), 53).unwrap_err().to_string();
        assert_eq!(error, "mask: expected a picture of at most 53 pixels, got 9×6");
        assert!(matches!(Mask::from_png(&png("grey")[..50], 54).unwrap_err(), MaskError::File(ImageError::Corrupt(_))));
        let jpeg = std::fs::read(format!("{DATA}/pictures/grey.jpeg")).unwrap();
        assert!(matches!(Mask::from_png(&jpeg, 1000).unwrap_err(), MaskError::NotPng));
    }

    #[test]
    fn a_mask_belongs_to_a_picture_of_its_size() {
        let mask = Mask::from_png(&png("grey"), 54).unwrap();
        mask.check_size(ImageSize { width: 9, height: 6 }).unwrap();
        let error = mask.check_size(ImageSize { width: 6, height: 9 }).unwrap_err().to_string();
        assert_eq!(error, "expected a mask of the picture's size, 6×9, got 9×6");
    }

    #[test]
    fn the_smallest_box_goes_around_a_polygon() {
        let expected = BBox::from_normalized([0.1, 0.2, 0.7, 0.9]).unwrap();
        for corners in [
            &[[0.1, 0.2], [0.7, 0.2], [0.7, 0.9], [0.1, 0.9]][..],
            &[[0.1, 0.2], [0.7, 0.2], [0.7, 0.9], [0.1, 0.9], [0.1, 0.2]], // closed
            &[[0.4, 0.9], [0.1, 0.5], [0.4, 0.2], [0.7, 0.5]],             // clockwise or not
            &[[0.1, 0.2], [0.7, 0.9], [0.7, 0.2], [0.1, 0.9]],             // crossing itself: no area by the shoelace
            &[[0.1, 0.2], [0.1, 0.2], [0.7, 0.9], [0.7, 0.9], [0.1, 0.9]], // a lasso that paused
        ] {
            assert_eq!(Shape::polygon(&points(corners)).unwrap(), Shape::Polygon(expected), "{corners:?}");
        }
    }

    #[test]
    fn polygons_around_nothing_are_refused() {
        for (corners, message) in [
            (&[][..], "expected a polygon of at least 3 corners, got 0"),
            (&[[0.1, 0.2], [0.3, 0.4]], "expected a polygon of at least 3 corners, got 2"),
            (&[[0.1, 0.2]; 4], "expected a polygon with an area, got 4 corners on one line"),
            (&[[0.5, 0.1], [0.5, 0.9], [0.5, 0.4]], "expected a polygon with an area, got 3 corners on one line"),
            (&[[0.1, 0.1], [0.3, 0.3], [0.7, 0.7]], "expected a polygon with an area, got 3 corners on one line"),
            (&[[0.1, 0.1], [0.5, 1.5], [0.7, 0.7]], "corner 2: y: expected 0 to 1 (fractions of the picture), got 1.5"),
            (&[[f64::NAN, 0.1], [0.5, 0.5], [0.7, 0.1]], "corner 1: x: expected a finite number, got NaN"),
        ] {
            assert_eq!(Shape::polygon(&points(corners)).unwrap_err().to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn rle_marks_what_it_says(size in [1..12_u32, 1..12_u32], runs in prop::collection::vec(0..9_i64, 0..40)) {
            let [height, width] = size;
            // Column by column, as many pixels as there are; what is left over becomes the last run.
            let mut pixels: Vec<bool> = Vec::new();
            let mut counts = Vec::new();
            for (index, run) in runs.iter().enumerate() {
                let run = (*run).min(i64::from(height * width) - pixels.len() as i64);
                pixels.extend(vec![index % 2 == 1; run as usize]);
                counts.push(run);
            }
            let rest = (height * width) as usize - pixels.len();
            pixels.extend(vec![counts.len() % 2 == 1; rest]);
            counts.push(rest as i64);

            let places = (0..height * width).filter(|place| pixels[*place as usize]);
            let expected = places.map(|place| (place / height, place % height)).fold(None, |marked, (x, y)| {
                let pixel = [x, y, x + 1, y + 1];
                Some(marked.map_or(pixel, |marked| around(marked, pixel)))
            });
            prop_assert_eq!(Mask::from_rle(&rle(size, &counts)).unwrap().marked, expected);
        }

        #[test]
        fn polygons_are_refused_or_inside(corners in prop::collection::vec(any::<[f64; 2]>(), 0..6),
                                          small in prop::collection::vec([0.0..1.0, 0.0..1.0], 0..6)) {
            for corners in [corners, small] {
                let corners = points(&corners);
                if let Ok(Shape::Polygon(bbox)) = Shape::polygon(&corners) {
                    prop_assert!(corners.iter().all(|corner| bbox.contains(*corner)));
                }
            }
        }
    }
}
