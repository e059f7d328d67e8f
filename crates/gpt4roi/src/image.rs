//! Pictures: decoding, orientation, and the model's own resizing.
//!
//! The model was trained and is asked with pictures that Pillow read and resized, so both are
//! repeated here: colours as `convert("RGB")` gives them, and the bicubic filter bit for bit.

use std::{
    fs::File,
    io::{BufRead, BufReader, Cursor, Read, Seek},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use image::{
    ColorType, DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader, Pixel, RgbImage,
    metadata::Orientation,
};
use rayon::prelude::*;

use crate::{bbox::ImageSize, config::VisionConfig, whole_file};

/// The largest picture that is read unless the caller says otherwise: 50 megapixels.
pub const DEFAULT_MAX_PIXELS: u64 = 50_000_000;

/// A picture that can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file can't be opened or read.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file can be opened, but what stands in it can't be used.
    #[error("{path}: {source}")]
    InFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// The bytes can't be read. That says nothing about the picture.
    #[error("expected to read a picture: {0}")]
    Unread(#[source] std::io::Error),
    /// Not a file.
    #[error("expected a picture, got a directory")]
    Directory,
    /// Without a single byte, as a copy or a download that failed leaves it.
    #[error("expected a picture, but the file is empty")]
    NoBytes,
    /// Neither PNG nor JPEG nor WebP, or a rare kind of these.
    #[error("expected a PNG, JPEG or WebP picture: {0}")]
    Unsupported(String),
    /// Damaged or cut short.
    #[error("expected a whole picture: {0}")]
    Corrupt(String),
    /// More pixels than allowed, as the header says; nothing was decoded.
    #[error("expected a picture of at most {max_pixels} pixels, got {width}×{height}")]
    TooLarge {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// No pixels.
    #[error("expected a picture of at least 1×1 pixels, got {width}×{height}")]
    Empty {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
}

/// A picture, upright, in RGB. Copies share the pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    rgb: Arc<RgbImage>,
}

impl Image {
    /// Opens a PNG, JPEG or WebP file of at most `max_pixels`; see [`Image::decode`].
    pub fn open(path: impl AsRef<Path>, max_pixels: u64) -> Result<Self, ImageError> {
        in_file(path.as_ref(), |file| read(file, max_pixels))
    }

    /// The size that [`Image::open`] would find, told by the file's header alone. Whether the rest of the file is whole
    /// does not show.
    ///
    /// # Errors
    /// If the file can't be read, or its header can't, or tells of more than `max_pixels` or of none.
    pub fn size_of_file(path: impl AsRef<Path>, max_pixels: u64) -> Result<ImageSize, ImageError> {
        in_file(path.as_ref(), |file| upright_size(file, max_pixels))
    }

    /// Decodes a PNG, JPEG or WebP file of at most `max_pixels`, of which the first frame counts.
    ///
    /// The EXIF orientation is applied. Colours become 8-bit RGB as Pillow's `convert("RGB")` makes
    /// them: transparency is dropped and not blended with a background, grey is repeated, of 16 bits
    /// the upper 8 count, and CMYK is converted without a colour profile. One difference is meant:
    /// Pillow turns nearly all of a 16-bit grey picture white.
    pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Self, ImageError> {
        read(Cursor::new(bytes), max_pixels)
    }

    /// Bytes of pixels that [`Image::decode`] has in memory at most, of which 3 a pixel stay. The file's header tells,
    /// nothing is decoded.
    ///
    /// # Errors
    /// If the header can't be read, or tells of more than `max_pixels` or of none.
    pub fn decoding_bytes(bytes: &[u8], max_pixels: u64) -> Result<u64, ImageError> {
        let opened = open(Cursor::new(bytes), max_pixels)?;
        let (width, height) = opened.decoder.dimensions();
        let rgb = match opened.decoder.color_type() {
            ColorType::Rgb8 => 0,
            _ => 3 * u64::from(width) * u64::from(height),
        };
        Ok(opened.upright_bytes().max(opened.decoder.total_bytes().saturating_add(rgb)))
    }

    /// Takes decoded pixels.
    pub fn from_rgb(rgb: RgbImage) -> Self {
        Self { rgb: Arc::new(rgb) }
    }

    /// The pixels.
    pub fn rgb(&self) -> &RgbImage {
        &self.rgb
    }

    /// Width and height.
    pub fn size(&self) -> ImageSize {
        ImageSize { width: self.rgb.width(), height: self.rgb.height() }
    }

    /// What the tower sees: bicubic as Pillow does it brings the shorter edge to S, then the
    /// normalised picture is squashed to a square by plain bilinear sampling. Nothing is cropped,
    /// and the aspect ratio is lost; a square picture is only resized once, an S×S one not at all.
    ///
    /// The squash looks at no more than 2·S rows and columns, and only these are computed. So the
    /// memory is bounded even for a picture of 1×10000 pixels, which the bicubic would make
    /// S×(10000·S), and the result is the same.
    ///
    /// Source: `CLIPImageProcessor` and `app.py` of the original.
    ///
    /// # Shapes
    /// → `[1, 3, S, S]`, f32, normalised
    ///
    /// # Errors
    /// A picture without pixels, which only [`Image::from_rgb`] can hold.
    pub fn pixel_values(&self, config: &VisionConfig, device: &Device) -> candle_core::Result<Tensor> {
        let (side, ImageSize { width, height }) = (config.image_size, self.size());
        if width == 0 || height == 0 || side == 0 {
            candle_core::bail!("expected a picture of at least 1×1 pixels, got {width}×{height}");
        }
        let across = Squash::new(resized_edge(width, height, side), side);
        let down = Squash::new(resized_edge(height, width, side), side);
        let seen = if (width as usize, height as usize) == (side, side) {
            Bytes { width: side, pixels: self.rgb.as_raw().clone() }
        } else {
            bicubic(&self.rgb, &across, &down)
        };
        let values = squash(&seen, &across, &down, &colour_tables(config));
        Tensor::from_vec(values, (1, 3, side, side), device)
    }
}

/// Opens a file and reads it; errors name it.
fn in_file<T>(path: &Path, read: impl FnOnce(BufReader<File>) -> Result<T, ImageError>) -> Result<T, ImageError> {
    let in_file = |error| match error {
        ImageError::Unread(source) => ImageError::File { path: path.to_path_buf(), source },
        source => ImageError::InFile { path: path.to_path_buf(), source: Box::new(source) },
    };
    let unread = |source| in_file(ImageError::Unread(source));
    let file = File::open(path).map_err(unread)?;
    let metadata = file.metadata().map_err(unread)?;
    if metadata.is_dir() {
        return Err(in_file(ImageError::Directory));
    }
    // What is no ordinary file, such as a pipe, has no length to go by.
    if metadata.is_file() && metadata.len() == 0 {
        return Err(in_file(ImageError::NoBytes));
    }
    read(BufReader::new(file)).map_err(in_file)
}

/// Bytes of a JPEG file in which its header nearly always ends; EXIF data with a small picture in them come first.
const JPEG_HEAD: u64 = 64 << 10;

/// The size of the upright picture, for which no more of the file is read than needed.
fn upright_size<R: BufRead + Seek>(mut reader: R, max_pixels: u64) -> Result<ImageSize, ImageError> {
    // The decoder of JPEG files takes in the whole file before it looks at the header.
    if image::guess_format(reader.fill_buf().map_err(ImageError::Unread)?).is_ok_and(|is| is == ImageFormat::Jpeg) {
        let mut head = Vec::new();
        reader.by_ref().take(JPEG_HEAD).read_to_end(&mut head).map_err(ImageError::Unread)?;
        if let Ok(opened) = open(Cursor::new(head), max_pixels) {
            return Ok(opened.upright_size());
        }
        reader.rewind().map_err(ImageError::Unread)?;
    }
    Ok(open(reader, max_pixels)?.upright_size())
}

fn read<R: BufRead + Seek>(mut reader: R, max_pixels: u64) -> Result<Image, ImageError> {
    whole_file::check(&mut reader)?;
    Ok(Image::from_rgb(to_rgb(open(reader, max_pixels)?.upright()?)))
}

/// A picture of which the header was read, and nothing else.
pub(crate) struct Opened<D> {
    decoder: D,
    orientation: Orientation,
}

/// Reads the header of a picture of at most `max_pixels`.
pub(crate) fn open<'r, R: BufRead + Seek + 'r>(
    reader: R,
    max_pixels: u64,
) -> Result<Opened<impl ImageDecoder + 'r>, ImageError> {
    let reader = ImageReader::new(reader).with_guessed_format().map_err(ImageError::Unread)?;
    let (format, mut reader) = (reader.format(), reader.into_inner());
    let of_webp = (format == Some(ImageFormat::WebP)).then(|| webp_orientation(&mut reader));
    let of_webp = of_webp.transpose().map_err(ImageError::Unread)?;
    let mut reader = ImageReader::new(reader);
    format.into_iter().for_each(|format| reader.set_format(format));
    // The decoders' own scratch space counts too, hence not only the bytes of the pixels.
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(max_pixels.saturating_mul(LARGEST_PIXEL).saturating_add(SCRATCH));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(decoding_error)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(ImageError::Empty { width, height });
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooLarge { width, height, max_pixels });
    }
    // Orientation is a courtesy of the camera: where it can't be read, the picture lies as it is.
    let orientation = of_webp.unwrap_or_else(|| decoder.orientation().ok());
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    Ok(Opened { decoder, orientation })
}

/// The orientation that a WebP file tells in its EXIF data, if any. The decoder would take as much memory for these as
/// they are said to have bytes, which are up to 4 GB in a file of a few.
///
/// Source: RFC 9649, section 2.
fn webp_orientation<R: BufRead + Seek>(reader: &mut R) -> std::io::Result<Option<Orientation>> {
    let exif = webp_exif(reader);
    reader.rewind()?;
    match exif {
        Ok(exif) => Ok(exif.as_deref().and_then(Orientation::from_exif_chunk)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The EXIF data of a WebP file in its extended form, the only one that has any; no more than the largest that a JPEG
/// file can have.
fn webp_exif<R: BufRead + Seek>(reader: &mut R) -> std::io::Result<Option<Vec<u8>>> {
    const LARGEST: u32 = 1 << 16;
    let (_, mut left) = webp_chunk(reader)?;
    left = left.saturating_sub(4);
    reader.seek_relative(4)?; // `WEBP`
    let mut is_extended = false;
    while left > 0 {
        let (name, length) = webp_chunk(reader)?;
        is_extended |= name == *b"VP8X";
        if !is_extended {
            return Ok(None);
        }
        if name == *b"EXIF" {
            let mut exif = Vec::new();
            reader.take(length.min(LARGEST).into()).read_to_end(&mut exif)?;
            return Ok(Some(exif));
        }
        reader.seek_relative(i64::from(length) + i64::from(length % 2))?;
        left = left.saturating_sub(8).saturating_sub(length);
    }
    Ok(None)
}

/// The name and the length of a chunk.
fn webp_chunk(reader: &mut impl Read) -> std::io::Result<([u8; 4], u32)> {
    let (mut name, mut length) = ([0; 4], [0; 4]);
    reader.read_exact(&mut name)?;
    reader.read_exact(&mut length)?;
    Ok((name, u32::from_le_bytes(length)))
}

impl<D: ImageDecoder> Opened<D> {
    /// The picture in the colours of its file, turned as its EXIF orientation says.
    pub(crate) fn upright(self) -> Result<DynamicImage, ImageError> {
        let mut picture = DynamicImage::from_decoder(self.decoder).map_err(decoding_error)?;
        picture.apply_orientation(self.orientation);
        Ok(picture)
    }

    /// Bytes of pixels until then: those of two pictures where width and height change places, for which there is a
    /// copy, and of one otherwise.
    pub(crate) fn upright_bytes(&self) -> u64 {
        self.decoder.total_bytes().saturating_mul(if self.lies_on_its_side() { 2 } else { 1 })
    }

    /// Width and height of the picture once it is turned.
    fn upright_size(&self) -> ImageSize {
        match (self.decoder.dimensions(), self.lies_on_its_side()) {
            ((width, height), false) => ImageSize { width, height },
            ((width, height), true) => ImageSize { width: height, height: width },
        }
    }

    /// Whether width and height change places.
    fn lies_on_its_side(&self) -> bool {
        use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
        matches!(self.orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
    }
}

/// Bytes of the largest pixel that a decoder hands out, RGBA of 16 bits.
const LARGEST_PIXEL: u64 = 8;
/// Bytes that a decoder may use beside the pixels.
const SCRATCH: u64 = 64 << 20;

fn decoding_error(error: image::ImageError) -> ImageError {
    match error {
        image::ImageError::Unsupported(error) => ImageError::Unsupported(error.to_string()),
        // Decoders call bytes that are missing a failure of reading, too; the system's own have a number.
        image::ImageError::IoError(error) if error.raw_os_error().is_some() => ImageError::Unread(error),
        other => ImageError::Corrupt(other.to_string()),
    }
}

/// The colours as Pillow converts them. The `image` crate would round 16 bits where Pillow cuts.
fn to_rgb(picture: DynamicImage) -> RgbImage {
    let upper = |value: u16| (value >> 8) as u8;
    match &picture {
        DynamicImage::ImageLuma16(grey) => recoloured(grey, |pixel| [upper(pixel.0[0]); 3]),
        DynamicImage::ImageLumaA16(grey) => recoloured(grey, |pixel| [upper(pixel.0[0]); 3]),
        DynamicImage::ImageRgb16(colour) => recoloured(colour, |pixel| pixel.0.map(upper)),
        DynamicImage::ImageRgba16(colour) => {
            recoloured(colour, |pixel| [pixel.0[0], pixel.0[1], pixel.0[2]].map(upper))
        }
        _ => picture.into_rgb8(),
    }
}

fn recoloured<P: Pixel>(picture: &ImageBuffer<P, Vec<P::Subpixel>>, colour: impl Fn(&P) -> [u8; 3]) -> RgbImage {
    let mut rgb = RgbImage::new(picture.width(), picture.height());
    rgb.pixels_mut().zip(picture.pixels()).for_each(|(to, from)| to.0 = colour(from));
    rgb
}

/// What the bicubic makes of an edge when the shorter one becomes `side`. The division and the
/// truncation are Python's.
fn resized_edge(edge: u32, other: u32, side: usize) -> usize {
    if edge <= other { side } else { (side as f64 * f64::from(edge) / f64::from(other)) as usize }
}

/// Bilinear sampling of one axis, without antialiasing, half-pixel centres: for each of the square's
/// rows (or columns), which two of the resized picture it lies between.
///
/// Source: `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, which computes
/// places in single precision.
struct Squash {
    /// Length of the axis before.
    input: usize,
    /// The places that are looked at, ascending.
    seen: Vec<usize>,
    /// Per output, two indices into `seen` and the share of the second.
    between: Vec<(usize, usize, f32)>,
}

impl Squash {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f32 / output as f32;
        let places = (0..output).map(|index| {
            let place = (scale * (index as f32 + 0.5) - 0.5).max(0.0);
            let low = (place as usize).min(input - 1);
            (low, (low + 1).min(input - 1), (place - low as f32).clamp(0.0, 1.0))
        });
        let places: Vec<_> = places.collect();
        let mut seen: Vec<usize> = places.iter().flat_map(|&(low, high, _)| [low, high]).collect();
        seen.sort_unstable();
        seen.dedup();
        let find = |place: usize| seen.partition_point(|&other| other < place);
        let between = places.iter().map(|&(low, high, share)| (find(low), find(high), share)).collect();
        Self { input, seen, between }
    }
}

/// RGB bytes, row by row.
struct Bytes {
    width: usize,
    pixels: Vec<u8>,
}

/// Normalises and squashes.
///
/// # Shapes
/// rows and columns as the two axes see them → `[3, S, S]`
fn squash(picture: &Bytes, across: &Squash, down: &Squash, colours: &[[f32; 256]; 3]) -> Vec<f32> {
    let mut values = Vec::with_capacity(3 * down.between.len() * across.between.len());
    for (channel, colours) in colours.iter().enumerate() {
        let at = |row: usize, column: usize| {
            colours[usize::from(picture.pixels[3 * (row * picture.width + column) + channel])]
        };
        for &(above, below, down_share) in &down.between {
            for &(left, right, across_share) in &across.between {
                let row = |row| (1.0 - across_share) * at(row, left) + across_share * at(row, right);
                values.push((1.0 - down_share) * row(above) + down_share * row(below));
            }
        }
    }
    values
}

/// The normalised value of each byte, per channel: bytes to 0..1 in double precision, rounded to
/// single, then mean and deviation in single, as numpy does it in the original.
fn colour_tables(config: &VisionConfig) -> [[f32; 256]; 3] {
    std::array::from_fn(|channel| {
        let (mean, deviation) = (config.image_mean[channel], config.image_std[channel]);
        std::array::from_fn(|byte| ((byte as f64 * (1.0 / 255.0)) as f32 - mean) / deviation)
    })
}

/// Pillow's bicubic filter on bytes, for those rows and columns of the result that are looked at.
///
/// Two steps with bytes in between: along the rows, then along the columns, in the order of every Pillow that the
/// original can have run on. Pillow 13 takes tall pictures the other way round, which moves bytes by several levels.
/// Only the source rows that some result row needs pass through the first step.
///
/// Source: `src/libImaging/Resample.c` of Pillow before 13.
fn bicubic(picture: &RgbImage, across: &Squash, down: &Squash) -> Bytes {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (across, down) = (taps(width, across), taps(height, down));
    let mut rows: Vec<usize> = down.iter().flat_map(|tap| tap.start..tap.start + tap.weights.len()).collect();
    rows.sort_unstable();
    rows.dedup();

    let source = picture.as_raw();
    let stride = 3 * across.len();
    let mut narrowed = vec![0; rows.len() * stride];
    narrowed.par_chunks_mut(stride).zip(&rows).for_each(|(target, &row)| {
        let source = &source[3 * width * row..3 * width * (row + 1)];
        for (target, tap) in target.chunks_exact_mut(3).zip(&across) {
            tap.weigh(source[3 * tap.start..].chunks_exact(3), target);
        }
    });

    let mut pixels = vec![0; down.len() * stride];
    pixels.par_chunks_mut(stride).zip(&down).for_each(|(target, tap)| {
        // The rows of one window follow each other in the source, and so they do among `rows`.
        let first = rows.partition_point(|&row| row < tap.start);
        for (column, target) in target.chunks_exact_mut(3).enumerate() {
            let below = narrowed[first * stride..].chunks_exact(stride).map(|row| &row[3 * column..3 * column + 3]);
            tap.weigh(below, target);
        }
    });
    Bytes { width: across.len(), pixels }
}

/// The source pixels that make one result pixel, and their weights in fixed point.
struct Tap {
    start: usize,
    weights: Vec<i32>,
}

impl Tap {
    /// The weighted sum of as many RGB pixels as there are weights, clipped to bytes.
    fn weigh<'a>(&self, pixels: impl Iterator<Item = &'a [u8]>, target: &mut [u8]) {
        let mut sum = [1 << (WEIGHT_BITS - 1); 3];
        for (&weight, pixel) in self.weights.iter().zip(pixels) {
            for (sum, &byte) in sum.iter_mut().zip(pixel) {
                *sum += weight * i32::from(byte);
            }
        }
        for (target, sum) in target.iter_mut().zip(sum) {
            *target = (sum >> WEIGHT_BITS).clamp(0, 255) as u8;
        }
    }
}

/// Bits behind the point of a weight: 32 less 8 for the byte and 2 for weights beyond ±1.
const WEIGHT_BITS: u32 = 22;

/// How an axis of `input` pixels becomes one of `target.input`, at the places that are looked at.
fn taps(input: usize, target: &Squash) -> Vec<Tap> {
    if input == target.input {
        // Pillow skips the pass. A weight of one leaves a byte as it is.
        return target.seen.iter().map(|&start| Tap { start, weights: vec![1 << WEIGHT_BITS] }).collect();
    }
    let scale = input as f64 / target.input as f64;
    target.seen.iter().map(|&place| tap(place, scale, input)).collect()
}

fn tap(place: usize, scale: f64, input: usize) -> Tap {
    let stretch = scale.max(1.0); // when shrinking, the filter grows: that is the antialiasing
    let (support, shrink) = (2.0 * stretch, 1.0 / stretch);
    let center = (place as f64 + 0.5) * scale;
    let start = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(input);
    let weights: Vec<f64> = (start..end).map(|pixel| keys_cubic((pixel as f64 - center + 0.5) * shrink)).collect();
    let sum: f64 = weights.iter().sum();
    let fixed = |weight: f64| {
        let scaled = weight / sum * f64::from(1 << WEIGHT_BITS);
        (scaled + 0.5_f64.copysign(scaled)) as i32 // half away from zero
    };
    Tap { start, weights: weights.into_iter().map(fixed).collect() }
}

/// Keys' cubic with a = −0.5.
fn keys_cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use candle_core::DType;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    /// What `reference/make_image_goldens.py` computed with Pillow and PyTorch.
    fn goldens() -> HashMap<String, Tensor> {
        let file = include_bytes!("../tests/data/image.safetensors");
        candle_core::safetensors::load_buffer(file, &Device::Cpu).unwrap()
    }

    /// A tower of the goldens' side.
    fn tower() -> VisionConfig {
        VisionConfig { image_size: 16, patch_size: 4, ..Config::gpt4roi_7b().vision }
    }

    fn rgb(tensor: &Tensor) -> RgbImage {
        let (height, width, _) = tensor.dims3().unwrap();
        let bytes = tensor.flatten_all().unwrap().to_vec1().unwrap();
        RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
    }

    fn file(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures").join(name)).unwrap()
    }

    /// An axis of which every place is looked at.
    fn whole(length: usize) -> Squash {
        Squash { input: length, seen: (0..length).collect(), between: Vec::new() }
    }

    #[test]
    fn bicubic_is_bit_exact_to_pillow() {
        let goldens = goldens();
        let mut cases = 0;
        for (name, expected) in goldens.iter().filter_map(|(key, tensor)| Some((key.strip_suffix(".bicubic")?, tensor)))
        {
            let (picture, expected) = (rgb(&goldens[&format!("{name}.picture")]), rgb(expected));
            let (width, height) = picture.dimensions();
            let (across, down) = (resized_edge(width, height, 16), resized_edge(height, width, 16));
            assert_eq!((across as u32, down as u32), expected.dimensions(), "{name}");
            let resized = bicubic(&picture, &whole(across), &whole(down));
            assert_eq!(&resized.pixels, expected.as_raw(), "{name}");
            cases += 1;
        }
        assert_eq!(cases, 15);
    }

    #[test]
    fn the_tower_sees_what_pillow_and_pytorch_make() {
        let goldens = goldens();
        let mut cases = 0;
        for (name, expected) in
            goldens.iter().filter_map(|(key, tensor)| Some((key.strip_suffix(".pixel_values")?, tensor)))
        {
            let picture = Image::from_rgb(rgb(&goldens[&format!("{name}.picture")]));
            let values = picture.pixel_values(&tower(), &Device::Cpu).unwrap();
            assert_eq!((values.dims(), values.dtype()), (&[1, 3, 16, 16][..], DType::F32));
            let worst = (values - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < 1e-5, "{name}: {worst}");
            cases += 1;
        }
        assert_eq!(cases, 16);
    }

    #[test]
    fn files_of_every_kind_have_the_colours_that_pillow_reads() {
        let goldens = goldens();
        let files: BTreeMap<&String, &Tensor> = goldens.iter().filter(|(name, _)| !name.contains('x')).collect();
        assert_eq!(files.len(), 26);
        for (name, expected) in files {
            // Decoders of lossy files may round differently.
            let allowed = if name.ends_with("jpeg") || name.starts_with("lossy") { 3 } else { 0 };
            let (read, expected) = (Image::decode(&file(name), 1000).unwrap(), rgb(expected));
            assert_eq!(read.rgb().dimensions(), expected.dimensions(), "{name}");
            let pairs = read.rgb().as_raw().iter().zip(expected.as_raw());
            let worst = pairs.map(|(&got, &expected)| got.abs_diff(expected)).max().unwrap();
            assert!(worst <= allowed, "{name}: off by {worst}");
        }
    }

    #[test]
    fn size_is_that_of_the_upright_picture() {
        let upright = Image::decode(&file("turned-6.png"), 35).unwrap();
        assert_eq!(upright.size(), ImageSize { width: 5, height: 7 });
    }

    #[test]
    fn the_header_tells_the_size_that_opening_finds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures");
        let (mut files, mut turned) = (0, 0);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let size = Image::size_of_file(&path, 1000).unwrap();
            assert_eq!(size, Image::open(&path, 1000).unwrap().size(), "{}", path.display());
            files += 1;
            turned += usize::from(size == ImageSize { width: 5, height: 7 });
        }
        assert!(files == 26 && turned > 0, "{turned} of {files}");
    }

    /// The file is one of 12×10 pixels that are to be turned by a quarter.
    #[test]
    fn a_size_is_told_without_the_pixels_and_behind_a_long_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.jpeg");
        let whole = file("turned-6.jpeg");
        let scan = whole.windows(2).position(|marker| marker == [0xFF, 0xDA]).unwrap();
        std::fs::write(&path, &whole[..scan + 16]).unwrap();
        assert_eq!(Image::size_of_file(&path, 120).unwrap(), ImageSize { width: 10, height: 12 });

        // Comments, of 65535 bytes each with their length, right behind the first marker.
        let comment = [&[0xFF, 0xFE, 0xFF, 0xFF][..], &[b' '; 65533]].concat();
        let long = [&whole[..2], &comment, &comment, &whole[2..]].concat();
        std::fs::write(&path, long).unwrap();
        assert_eq!(Image::size_of_file(&path, 120).unwrap(), ImageSize { width: 10, height: 12 });
        let error = Image::size_of_file(&path, 119).unwrap_err().to_string();
        assert!(error.contains("cut.jpeg: expected a picture of at most 119 pixels, got 12×10"), "{error}");
    }

    /// 7×5 pixels that are to be turned by a quarter. The EXIF data are said to be 4 GB, for which the decoder would take
    /// the memory before it looks; what there is of them counts.
    #[test]
    fn exif_data_of_a_webp_file_are_not_as_long_as_they_say() {
        let mut picture = file("turned-8.webp");
        let exif = picture.windows(4).position(|name| name == b"EXIF").unwrap();
        picture[exif + 4..exif + 8].copy_from_slice(&u32::MAX.to_le_bytes());
        let turned = Image::decode(&picture, 35).unwrap();
        assert_eq!(turned, Image::decode(&file("turned-8.webp"), 35).unwrap());
        assert_eq!(turned.size(), ImageSize { width: 5, height: 7 });
        picture.truncate(exif + 8);
        let length = picture.len() as u32 - 8;
        picture[4..8].copy_from_slice(&length.to_le_bytes());
        assert_eq!(Image::decode(&picture, 35).unwrap().size(), ImageSize { width: 7, height: 5 });
    }

    #[test]
    fn too_many_pixels_are_refused_by_the_header_alone() {
        for name in ["rgb.png", "rgb.jpeg", "lossless.webp"] {
            let (whole, limit) = (file(name), 34);
            let error = Image::decode(&whole, limit).unwrap_err();
            assert!(matches!(error, ImageError::TooLarge { max_pixels: 34, .. }), "{name}: {error}");
        }
        // 65535×65535 pixels are announced, and none follows.
        let mut huge = file("rgb.png");
        huge[16..24].copy_from_slice(&[0, 0, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF]);
        let crc = crc32(&huge[12..29]).to_be_bytes();
        huge[29..33].copy_from_slice(&crc);
        let error = Image::decode(&huge, DEFAULT_MAX_PIXELS).unwrap_err().to_string();
        assert_eq!(error, "expected a picture of at most 50000000 pixels, got 65535×65535");
    }

    /// 7×5 pixels each. What is not RGB of 8 bits is converted, so that 3 bytes a pixel come on top. Orientation 6
    /// makes width and height change places, which takes the picture twice; 3 turns it where it is.
    #[test]
    fn the_memory_for_decoding_is_told_by_the_header() {
        for (name, expected) in [
            ("rgb.png", 35 * 3),
            ("grey.png", 35 * (1 + 3)),
            ("rgba.png", 35 * (4 + 3)),
            ("grey16.png", 35 * (2 + 3)),
            ("rgb16.png", 35 * (6 + 3)),
            ("turned-3.png", 35 * 3),
            ("turned-6.png", 35 * (3 + 3)),
        ] {
            assert_eq!(Image::decoding_bytes(&file(name), 35).unwrap(), expected, "{name}");
            assert!(matches!(Image::decoding_bytes(&file(name), 34), Err(ImageError::TooLarge { .. })), "{name}");
        }
        assert!(matches!(Image::decoding_bytes(b"", 9), Err(ImageError::Unsupported(_))));
    }

    /// PNG's checksum, bit by bit.
    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        assert!(matches!(Image::decode(b"", 9).unwrap_err(), ImageError::Unsupported(_)));
        assert!(matches!(Image::decode(b"GIF89a\x01\0\x01\0", 9).unwrap_err(), ImageError::Unsupported(_)));
        assert!(matches!(Image::decode(&file("rgb.png")[..60], 99).unwrap_err(), ImageError::Corrupt(_)));
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.png");
        let error = Image::open(&missing, 9).unwrap_err();
        assert!(matches!(&error, ImageError::File { .. }) && error.to_string().contains("missing.png"), "{error}");
        std::fs::write(&missing, "no picture").unwrap();
        let error = Image::open(&missing, 9).unwrap_err();
        assert!(matches!(&error, ImageError::InFile { .. }) && error.to_string().contains("missing.png"), "{error}");
        let error = Image::open(folder.path(), 9).unwrap_err();
        let is_directory =
            matches!(&error, ImageError::InFile { source, .. } if matches!(**source, ImageError::Directory));
        assert!(is_directory && error.to_string().starts_with(&folder.path().display().to_string()), "{error}");
    }

    /// Rows that are missing would be grey, and a picture without its last bytes would not be turned. Pillow 13 refuses the
    /// same, but for `turned-6.jpeg` without its last byte or two, since its decoder happens not to look for them.
    #[test]
    fn a_file_that_was_cut_off_is_no_picture() {
        const JPEG: [&str; 5] = ["rgb.jpeg", "grey.jpeg", "cmyk.jpeg", "progressive.jpeg", "turned-6.jpeg"];
        const WEBP: [&str; 4] = ["lossy.webp", "lossless.webp", "alpha.webp", "turned-8.webp"];
        for name in JPEG.into_iter().chain(WEBP) {
            let whole = file(name);
            for left in 16..whole.len() {
                let error = Image::decode(&whole[..left], 1000).expect_err(name);
                assert!(matches!(error, ImageError::Corrupt(_)), "{name}, {left} of {}: {error}", whole.len());
            }
        }
        let told = |bytes: &[u8]| Image::decode(bytes, 1000).unwrap_err().to_string();
        let jpeg = file("rgb.jpeg");
        assert_eq!(
            told(&jpeg[..jpeg.len() - 1]),
            "expected a whole picture: the file was cut off: it ends before its end mark"
        );
        let webp = file("lossy.webp");
        assert_eq!(
            told(&webp[..webp.len() - 1]),
            "expected a whole picture: the file was cut off: expected 124 bytes, got 123"
        );
    }

    /// Behind its pixels a PNG file has two checksums of 4 bytes and an end of 12. Pillow opens it without these, as the
    /// whole picture.
    #[test]
    fn a_png_file_that_was_cut_off_is_the_whole_picture_or_none() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures");
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        for name in names.filter(|name| name.ends_with(".png")) {
            let whole = file(&name);
            let picture = Image::decode(&whole, 1000).unwrap();
            for missing in 1..whole.len() {
                if let Ok(cut) = Image::decode(&whole[..whole.len() - missing], 1000) {
                    assert!(cut == picture && missing <= 20, "{name} without its last {missing} bytes");
                }
            }
        }
    }

    /// Some cameras and programs leave something behind the picture, and a small picture in front of it has an end too.
    #[test]
    fn an_end_is_found_wherever_it_is() {
        let whole = file("rgb.jpeg");
        let picture = Image::decode(&whole, 120).unwrap();
        let (scan, end) = whole.split_at(whole.len() - 2);
        assert_eq!(end, [0xFF, 0xD9]);
        for more in [&[0; 100][..], b"\xFF\xD8 another picture", &[0xFF; 3]] {
            assert_eq!(Image::decode(&[&whole, more].concat(), 120).unwrap(), picture);
        }
        assert_eq!(Image::decode(&[scan, &[0xFF], end].concat(), 120).unwrap(), picture, "FF may be repeated");
        let comment = [&whole[..2], b"\xFF\xFE\0\x06\xFF\xD9\xFF\xD9", &whole[2..]].concat();
        assert_eq!(Image::decode(&comment, 120).unwrap(), picture);
        assert!(Image::decode(&comment[..comment.len() - 1], 120).is_err(), "an end in a comment is none");
    }

    /// A disk that fails says nothing about the picture.
    #[test]
    fn what_cannot_be_read_is_not_called_damaged() {
        struct Broken;
        impl std::io::Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                const EIO: i32 = 5;
                Err(std::io::Error::from_raw_os_error(EIO))
            }
        }
        impl std::io::Seek for Broken {
            fn seek(&mut self, _: std::io::SeekFrom) -> std::io::Result<u64> {
                Ok(0)
            }
        }
        let error = read(std::io::BufReader::new(Broken), 9).unwrap_err();
        assert!(matches!(error, ImageError::Unread(_)), "{error}");
    }

    #[test]
    fn a_picture_without_pixels_has_no_values() {
        let nothing = Image::from_rgb(RgbImage::new(0, 3));
        assert!(nothing.pixel_values(&tower(), &Device::Cpu).is_err());
    }

    #[test]
    fn memory_is_bounded_for_any_shape() {
        for (width, height) in [(1, 2_000_000), (2_000_000, 1)] {
            let line = Image::from_rgb(RgbImage::from_pixel(width, height, image::Rgb([128, 0, 255])));
            let values = line.pixel_values(&tower(), &Device::Cpu).unwrap();
            let first = values.flatten_from(2).unwrap().get(0).unwrap().to_vec2::<f32>().unwrap();
            assert!(first.iter().all(|channel| channel.iter().all(|value| (value - channel[0]).abs() < 1e-6)));
        }
    }

    proptest! {
        #[test]
        fn damage_is_never_a_panic(which in 0..26_usize, at in 0..800_usize, byte in any::<u8>(), cut in any::<bool>()) {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures");
            let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            let mut bytes = std::fs::read(&files[which]).unwrap();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            if let Ok(picture) = Image::decode(&bytes, 10_000) {
                picture.pixel_values(&tower(), &Device::Cpu).unwrap();
            }
        }
    }
}
