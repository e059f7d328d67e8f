//! Regions as they are typed: boxes, points, polygons and masks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use gpt4roi::{
    BBox,
    bbox::{BoxError, ImageSize, Point},
    image::DEFAULT_MAX_PIXELS,
    shape::{Mask, Rle, Shape},
};

use crate::failure::Refusal;

/// Regions in the order in which they were typed, whichever flags they came with.
#[derive(Debug, Clone)]
pub(crate) struct RegionOptions {
    typed: Vec<Typed>,
    pub(crate) coordinates: CoordinateOptions,
}

/// A region as it was typed.
#[derive(Debug, Clone, PartialEq)]
enum Typed {
    Box(String),
    Point(String),
    Polygon(String),
    Mask(PathBuf),
}

/// The flags of [`RegionOptions`].
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Regions")]
struct Flags {
    /// A box x1,y1,x2,y2 (left, top, right, bottom). Whatever comes first of --region, --point, --polygon and
    /// --mask is <region1>, and so on. In the environment several of a kind are separated by semicolons; they are
    /// counted after those on the command line
    #[arg(
        long = "region",
        value_name = "BOX",
        env = "GPT4ROI_REGION",
        value_delimiter = ';',
        allow_hyphen_values = true
    )]
    boxes: Vec<String>,

    /// A place x,y, around which a box is put as the model was trained, or else grown over what looks alike
    #[arg(
        long = "point",
        value_name = "X,Y",
        env = "GPT4ROI_POINT",
        value_delimiter = ';',
        allow_hyphen_values = true
    )]
    points: Vec<String>,

    /// A polygon or lasso x1,y1,x2,y2,x3,y3,…; the model reads the smallest box around it
    #[arg(
        long = "polygon",
        value_name = "CORNERS",
        env = "GPT4ROI_POLYGON",
        value_delimiter = ';',
        allow_hyphen_values = true
    )]
    polygons: Vec<String>,

    /// A mask of the picture's size: a PNG file, of which pixels count that are not black or, with an alpha channel,
    /// whose alpha isn't 0; or a JSON file with COCO's RLE, {"size": [height, width], "counts": …}. The model reads
    /// the smallest box around it
    #[arg(long = "mask", value_name = "FILE", env = "GPT4ROI_MASK", value_delimiter = ';')]
    masks: Vec<PathBuf>,

    #[command(flatten)]
    coordinates: CoordinateOptions,
}

impl FromArgMatches for RegionOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags = Flags::from_arg_matches(matches)?;
        let mut typed: Vec<(usize, Typed)> = Vec::new();
        let mut add = |flag, regions: Vec<Typed>| {
            typed.extend(matches.indices_of(flag).into_iter().flatten().zip(regions));
        };
        add("boxes", flags.boxes.into_iter().map(Typed::Box).collect());
        add("points", flags.points.into_iter().map(Typed::Point).collect());
        add("polygons", flags.polygons.into_iter().map(Typed::Polygon).collect());
        add("masks", flags.masks.into_iter().map(Typed::Mask).collect());
        typed.sort_by_key(|(place, _)| *place);
        let typed = typed.into_iter().map(|(_, region)| region).collect();
        Ok(Self { typed, coordinates: flags.coordinates })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for RegionOptions {
    fn augment_args(command: Command) -> Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args_for_update(command)
    }
}

impl RegionOptions {
    /// The files of the masks.
    pub(crate) fn masks(&self) -> impl Iterator<Item = &Path> {
        self.typed.iter().filter_map(|typed| match typed {
            Typed::Mask(file) => Some(&**file),
            _ => None,
        })
    }

    /// The regions, in the order typed.
    pub(crate) fn shapes(&self, size: ImageSize) -> anyhow::Result<Vec<Shape>> {
        self.typed.iter().map(|typed| self.coordinates.shape(typed, size)).collect()
    }
}

/// What the numbers of a region count.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Regions")]
pub(crate) struct CoordinateOptions {
    /// What the numbers of --region, --point and --polygon count
    #[arg(long, value_name = "UNIT", env = "GPT4ROI_COORDS", default_value = "pixel")]
    pub(crate) coords: Coords,
}

/// Conventions for the numbers of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Coords {
    /// Pixels of the picture
    Pixel,
    /// Fractions of width and height, 0 to 1
    Norm,
    /// Thousandths of width and height, 0 to 1000
    Norm1000,
}

impl CoordinateOptions {
    /// Reads a region of any kind: the kinds differ in how many numbers they have, and a mask has a file's name.
    pub(crate) fn parse(self, text: &str, size: ImageSize) -> anyhow::Result<Shape> {
        let typed = match numbers(text).as_deref() {
            Some([_, _]) => Typed::Point(text.into()),
            Some([_, _, _, _]) => Typed::Box(text.into()),
            Some(numbers) if numbers.len() > 4 && numbers.len() % 2 == 0 => Typed::Polygon(text.into()),
            None if mask_file(text).is_some() => Typed::Mask(text.into()),
            _ => {
                return Err(Refusal::usage(format!("region `{text}`: expected a box, a point, a polygon or a mask"))
                    .hint("x1,y1,x2,y2 or x,y or x1,y1,x2,y2,x3,y3,… or the name of a .png or .json file")
                    .into());
            }
        };
        self.shape(&typed, size)
    }

    fn shape(self, typed: &Typed, size: ImageSize) -> anyhow::Result<Shape> {
        match typed {
            Typed::Box(text) => self.bbox(text, size).map(Shape::Box),
            Typed::Point(text) => self.point(text, size).map(Shape::Point),
            Typed::Polygon(text) => self.polygon(text, size),
            Typed::Mask(file) => Ok(mask(file, size)?),
        }
    }

    fn bbox(self, text: &str, size: ImageSize) -> anyhow::Result<BBox> {
        let xyxy: [f64; 4] = numbers(text).and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
            Refusal::usage(format!("region `{text}`: expected four numbers x1,y1,x2,y2"))
                .hint("for example 62,41,240,180: left, top, right and bottom edge")
        })?;
        // One word of advice is worth more than an answer about the upper left pixel.
        self.refuse_single_pixel("region", "this box", text, xyxy.iter().all(is_fraction))?;
        let bbox = match self.coords {
            Coords::Pixel => BBox::from_pixels(xyxy, size),
            Coords::Norm => BBox::from_normalized(xyxy),
            Coords::Norm1000 => BBox::from_norm1000(xyxy),
        };
        Ok(bbox.map_err(|error| outside(format!("region `{text}`: {error}"), size))?)
    }

    fn point(self, text: &str, size: ImageSize) -> anyhow::Result<Point> {
        let xy: [f64; 2] = numbers(text).and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
            Refusal::usage(format!("point `{text}`: expected two numbers x,y"))
                .hint("for example 150,110: from the left and from the top")
        })?;
        let between_pixels = xy.iter().any(|number| number.fract() != 0.0);
        self.refuse_single_pixel("point", "this point", text, between_pixels && xy.iter().all(is_fraction))?;
        Ok(self.place(xy, size).map_err(|error| outside(format!("point `{text}`: {error}"), size))?)
    }

    fn polygon(self, text: &str, size: ImageSize) -> anyhow::Result<Shape> {
        let even = numbers(text).filter(|numbers| numbers.len().is_multiple_of(2)).ok_or_else(|| {
            Refusal::usage(format!("polygon `{text}`: expected two numbers for each corner x1,y1,x2,y2,x3,y3,…"))
                .hint("for example 62,41,240,60,150,180: a triangle")
        })?;
        self.refuse_single_pixel("polygon", "this polygon", text, even.iter().all(is_fraction))?;
        let corners = even.chunks_exact(2).zip(1..).map(|(corner, number)| {
            self.place([corner[0], corner[1]], size)
                .map_err(|error| outside(format!("polygon `{text}`: corner {number}: {error}"), size))
        });
        let corners: Vec<Point> = corners.collect::<Result<_, _>>()?;
        Ok(Shape::polygon(&corners).map_err(|error| Refusal::usage(format!("polygon `{text}`: {error}")))?)
    }

    fn place(self, xy: [f64; 2], size: ImageSize) -> Result<Point, BoxError> {
        match self.coords {
            Coords::Pixel => Point::from_pixels(xy, size),
            Coords::Norm => Point::from_normalized(xy),
            Coords::Norm1000 => Point::from_norm1000(xy),
        }
    }

    fn refuse_single_pixel(self, kind: &str, this: &str, text: &str, fractions: bool) -> Result<(), Refusal> {
        if self.coords != Coords::Pixel || !fractions {
            return Ok(());
        }
        Err(Refusal::usage(format!("{kind} `{text}`: in pixels, {this} lies within a single one"))
            .hint("--coords norm reads the numbers as fractions of width and height"))
    }
}

fn mask(file: &Path, size: ImageSize) -> Result<Shape, Refusal> {
    let place = file.display();
    let refuse = |error: &dyn std::fmt::Display| Refusal::failure(format!("mask {place}: {error}"));
    let bytes = fs::read(file).map_err(|error| refuse(&error))?;
    let mask = if bytes.trim_ascii_start().starts_with(b"{") {
        let rle: Rle = serde_json::from_slice(&bytes).map_err(|error| refuse(&error))?;
        Mask::from_rle(&rle)
    } else {
        // As large as the picture it may be in any case.
        Mask::from_png(&bytes, DEFAULT_MAX_PIXELS.max(u64::from(size.width) * u64::from(size.height)))
    };
    let mask = mask.map_err(|error| refuse(&error).hint("a mask is a PNG file, or JSON with COCO's RLE"))?;
    mask.check_size(size).map_err(|error| {
        refuse(&error).hint("a mask has the size of the picture as it is seen, turned as its EXIF orientation says")
    })?;
    Shape::mask(&mask).map_err(|error| refuse(&error))
}

fn numbers(text: &str) -> Option<Vec<f64>> {
    text.split(',').map(|number| number.trim().parse().ok()).collect()
}

fn is_fraction(number: &f64) -> bool {
    (0.0..=1.0).contains(number)
}

/// The file that is meant where a region of any kind is typed, if it is a mask.
pub(crate) fn mask_file(text: &str) -> Option<&Path> {
    let ending = Path::new(text).extension()?;
    let is_mask = ending.eq_ignore_ascii_case("png") || ending.eq_ignore_ascii_case("json");
    is_mask.then_some(Path::new(text))
}

fn outside(message: String, ImageSize { width, height }: ImageSize) -> Refusal {
    Refusal::usage(message)
        .hint(format!("the picture is {width}×{height} pixels; --coords says what the numbers count"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const SIZE: ImageSize = ImageSize { width: 200, height: 100 };

    fn parse(coords: Coords, text: &str) -> Result<Shape, String> {
        CoordinateOptions { coords }.parse(text, SIZE).map_err(|error| error.to_string())
    }

    fn refused(typed: Typed) -> String {
        let coordinates = CoordinateOptions { coords: Coords::Pixel };
        coordinates.shape(&typed, SIZE).unwrap_err().to_string()
    }

    #[test]
    fn every_unit_names_the_same_region() {
        let bbox = BBox::from_normalized([0.25, 0.5, 0.75, 1.0]).unwrap();
        let point = Shape::Point(Point { x: 0.25, y: 0.5 });
        for (coords, region, place, polygon) in [
            (Coords::Pixel, "50,50,150,100", "50,50", "50,50,150,50,100,100"),
            (Coords::Pixel, " 50, 50.0 , 150 ,1e2 ", " 50 ,5e1", "50, 50, 150, 50, 100, 100, 50, 50"),
            (Coords::Norm, "0.25,0.5,0.75,1", "0.25,0.5", "0.25,0.5,0.75,0.5,0.5,1"),
            (Coords::Norm1000, "250,500,750,1000", "250,500", "250,500,750,500,500,1000"),
        ] {
            assert_eq!(parse(coords, region), Ok(Shape::Box(bbox)));
            assert_eq!(parse(coords, place), Ok(point));
            assert_eq!(parse(coords, polygon), Ok(Shape::Polygon(bbox)));
        }
    }

    #[test]
    fn regions_that_can_not_be_are_refused_in_words() {
        let boxes = [
            ("1,2,3", "expected four numbers"),
            ("1,2,3,4,5", "expected four numbers"),
            ("a,2,3,4", "expected four numbers"),
            ("", "expected four numbers"),
            ("10,10,201,50", "x2: expected 0 to 200"),
            ("90,10,40,50", "expected x1 < x2, got 90 and 40"),
            ("nan,10,40,50", "finite"),
            ("0.1,0.2,0.4,0.5", "within a single one"),
        ];
        let points = [
            ("1", "expected two numbers"),
            ("1,2,3", "expected two numbers"),
            ("201,2", "x: expected 0 to 200"),
            ("5,inf", "y: expected a finite number"),
            ("0.5,0.5", "within a single one"),
        ];
        let polygons = [
            ("1,2,3,4,5", "expected two numbers for each corner"),
            ("1,2,3,4", "at least 3 corners, got 2"),
            ("1,2,3,4,5,b", "expected two numbers for each corner"),
            ("1,2,3,4,5,101", "corner 3: y: expected 0 to 100 (pixels), got 101"),
            ("1,2,3,4,5,6", "3 corners on one line"),
            ("0,0,1,0,1,1", "within a single one"),
        ];
        let boxes = boxes.map(|(text, message)| ("region", Typed::Box(text.into()), text, message));
        let points = points.map(|(text, message)| ("point", Typed::Point(text.into()), text, message));
        let polygons = polygons.map(|(text, message)| ("polygon", Typed::Polygon(text.into()), text, message));
        for (kind, typed, text, message) in boxes.into_iter().chain(points).chain(polygons) {
            let error = refused(typed);
            assert!(error.starts_with(&format!("{kind} `{text}`: ")) && error.contains(message), "{text}: {error}");
        }
        assert!(parse(Coords::Norm, "10,10,40,50").unwrap_err().contains("x1: expected 0 to 1"));
        for text in ["left", "1", "1,2,3", "1,2,3,4,5", "mask.jpg", "1,2,a"] {
            let error = parse(Coords::Pixel, text).unwrap_err();
            assert_eq!(error, format!("region `{text}`: expected a box, a point, a polygon or a mask"));
        }
    }

    #[test]
    fn the_upper_left_pixels_are_places() {
        for text in ["0,0", "1,1", "0,1"] {
            assert!(matches!(parse(Coords::Pixel, text), Ok(Shape::Point(_))), "{text}");
        }
    }

    #[test]
    fn regions_are_numbered_as_they_were_typed() {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            regions: RegionOptions,
        }
        let line = "gpt4roi --point 1,2 --region 1,2,3,4;5,6,7,8 --mask a.png --polygon 1,1,2,2,3,1 --point 3,4";
        let typed = Line::parse_from(line.split(' ')).regions.typed;
        let expected = [
            Typed::Point("1,2".into()),
            Typed::Box("1,2,3,4".into()),
            Typed::Box("5,6,7,8".into()),
            Typed::Mask("a.png".into()),
            Typed::Polygon("1,1,2,2,3,1".into()),
            Typed::Point("3,4".into()),
        ];
        assert_eq!(typed, expected);
    }
}
