//! Regions as they are typed: boxes, points, polygons and masks.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum, builder::FalseyValueParser};
use gpt4roi::{
    BBox,
    bbox::{BoxError, ImageSize, Point},
    coordinates::{self, BoxForm},
    shape::Shape,
};

use crate::{failure::Refusal, mask_file};

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
    /// A box x1,y1,x2,y2 (left, top, right, bottom), unless --box-format says otherwise. Whatever comes first of
    /// --region, --point, --polygon and --mask is <region1>, and so on. In the environment several of a kind are
    /// separated by semicolons; they count where the command line has none of their kind, after all that it has
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
    /// whose alpha isn't 0; or a JSON file with COCO's RLE, {"size": [height, width], "counts": …}, with a list of
    /// polygons [[x1, y1, x2, y2, x3, y3, …], …] in pixels, or with an annotation whose "segmentation" is one of these.
    /// The model reads the smallest box around it
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
        let reader = Reader { options: self.coordinates, size, place: Place::CommandLine };
        self.typed.iter().map(|typed| reader.shape(typed)).collect()
    }
}

/// What the numbers of a region mean.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Regions")]
pub(crate) struct CoordinateOptions {
    /// What the numbers of --region, --point and --polygon count
    #[arg(long, value_name = "UNIT", env = "GPT4ROI_COORDS", default_value = "pixel")]
    coords: Coords,

    /// What the four numbers of --region are
    #[arg(long, value_name = "FORM", env = "GPT4ROI_BOX_FORMAT", default_value = "xyxy")]
    box_format: BoxFormat,

    /// Cut boxes and polygons to the picture, instead of refusing what sticks out of it
    #[arg(long, env = "GPT4ROI_CLIP", value_parser = FalseyValueParser::new())]
    clip: bool,
}

/// Conventions for the numbers of a region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Coords {
    /// Pixels of the picture
    #[default]
    Pixel,
    /// Fractions of width and height, 0 to 1
    Norm,
    /// Thousandths of width and height, 0 to 1000
    Norm1000,
}

impl Coords {
    fn meaning(self) -> coordinates::Coords {
        match self {
            Self::Pixel => coordinates::Coords::Pixel,
            Self::Norm => coordinates::Coords::Norm,
            Self::Norm1000 => coordinates::Coords::Norm1000,
        }
    }
}

/// Conventions for the four numbers of a box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum BoxFormat {
    /// Left, top, right and bottom edge
    #[default]
    Xyxy,
    /// Left and top edge, width and height, as COCO has it
    Xywh,
    /// Centre, width and height, as YOLO has it
    Cxcywh,
}

impl BoxFormat {
    fn form(self) -> BoxForm {
        match self {
            Self::Xyxy => BoxForm::Xyxy,
            Self::Xywh => BoxForm::Xywh,
            Self::Cxcywh => BoxForm::Cxcywh,
        }
    }

    /// How the four numbers are called.
    fn numbers(self) -> &'static str {
        match self {
            Self::Xyxy => "x1,y1,x2,y2",
            Self::Xywh => "x,y,width,height",
            Self::Cxcywh => "x,y,width,height with x,y in the middle",
        }
    }
}

impl CoordinateOptions {
    /// Reads a region of any kind, as it is typed in a running chat: the kinds differ in how many numbers they have,
    /// and a mask has a file's name.
    pub(crate) fn parse(self, text: &str, size: ImageSize) -> anyhow::Result<Shape> {
        let typed = match numbers(text).as_deref() {
            Some([_, _]) => Typed::Point(text.into()),
            Some([_, _, _, _]) => Typed::Box(text.into()),
            Some(numbers) if numbers.len() > 4 && numbers.len() % 2 == 0 => Typed::Polygon(text.into()),
            None if mask_file(text).is_some() => Typed::Mask(text.into()),
            _ => {
                let boxes = self.box_format.numbers();
                return Err(Refusal::usage(format!("region `{text}`: expected a box, a point, a polygon or a mask"))
                    .hint(format!("{boxes} or x,y or x1,y1,x2,y2,x3,y3,… or the name of a .png or .json file"))
                    .into());
            }
        };
        Reader { options: self, size, place: Place::Chat }.shape(&typed)
    }
}

/// Reads what was typed about one picture.
#[derive(Debug, Clone, Copy)]
struct Reader {
    options: CoordinateOptions,
    size: ImageSize,
    place: Place,
}

/// Where a region is typed, which decides what can be done about a wrong one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    CommandLine,
    /// Flags can't be given there any more.
    Chat,
}

impl Reader {
    fn shape(self, typed: &Typed) -> anyhow::Result<Shape> {
        match typed {
            Typed::Box(text) => self.bbox(text).map(Shape::Box),
            Typed::Point(text) => self.point(text).map(Shape::Point),
            Typed::Polygon(text) => self.polygon(text),
            Typed::Mask(file) => {
                let in_pixels = Self { options: CoordinateOptions { coords: Coords::Pixel, ..self.options }, ..self };
                Ok(mask_file::read(file, self.size, |xy| in_pixels.corner(xy).map_err(|error| error.to_string()))?)
            }
        }
    }

    fn bbox(self, text: &str) -> anyhow::Result<BBox> {
        let format = self.options.box_format;
        let four: [f64; 4] = numbers(text).and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
            Refusal::usage(format!("region `{text}`: expected four numbers {}", format.numbers()))
                .hint("for example 62,41,240,180: left, top, right and bottom edge, unless --box-format says otherwise")
        })?;
        let xyxy = format.form().xyxy(four);
        // One word of advice is worth more than an answer about the upper left pixel.
        self.refuse_single_pixel("region", "this box", text, xyxy.iter().all(is_fraction))?;
        let read = match format {
            BoxFormat::Xyxy => format!("region `{text}`"),
            _ => format!("region `{text}`, whose edges are {}", xyxy.map(|edge| edge.to_string()).join(",")),
        };
        let (coords, clip) = (self.options.coords.meaning(), self.options.clip);
        let bbox = coords.bbox(xyxy, BoxForm::Xyxy, clip, self.size).map_err(|error| match error {
            // What was cut off was all of it.
            BoxError::Empty { .. } if xyxy[0] < xyxy[2] && xyxy[1] < xyxy[3] => {
                let ImageSize { width, height } = self.size;
                Refusal::usage(format!("{read}: nothing of it lies in the picture"))
                    .hint(format!("the picture is {width}×{height} pixels"))
            }
            _ => self.refusal(format!("{read}: {error}"), &error),
        });
        Ok(bbox?)
    }

    fn point(self, text: &str) -> anyhow::Result<Point> {
        let xy: [f64; 2] = numbers(text).and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| {
            Refusal::usage(format!("point `{text}`: expected two numbers x,y"))
                .hint("for example 150,110: from the left and from the top")
        })?;
        let between_pixels = xy.iter().any(|number| number.fract() != 0.0);
        self.refuse_single_pixel("point", "this point", text, between_pixels && xy.iter().all(is_fraction))?;
        Ok(self
            .options
            .coords
            .meaning()
            .point(xy, self.size)
            .map_err(|error| self.refusal(format!("point `{text}`: {error}"), &error))?)
    }

    fn polygon(self, text: &str) -> anyhow::Result<Shape> {
        let even = numbers(text).filter(|numbers| numbers.len().is_multiple_of(2)).ok_or_else(|| {
            Refusal::usage(format!("polygon `{text}`: expected two numbers for each corner x1,y1,x2,y2,x3,y3,…"))
                .hint("for example 62,41,240,60,150,180: a triangle")
        })?;
        self.refuse_single_pixel("polygon", "this polygon", text, even.iter().all(is_fraction))?;
        let corners = even.chunks_exact(2).zip(1..).map(|(corner, number)| {
            self.corner([corner[0], corner[1]])
                .map_err(|error| self.refusal(format!("polygon `{text}`: corner {number}: {error}"), &error))
        });
        let corners: Vec<Point> = corners.collect::<Result<_, _>>()?;
        Ok(Shape::polygon(&corners).map_err(|error| Refusal::usage(format!("polygon `{text}`: {error}")))?)
    }

    /// A polygon's corner, on the edge of the picture if it is to be cut there.
    fn corner(self, xy: [f64; 2]) -> Result<Point, BoxError> {
        self.options.coords.meaning().corner(xy, self.options.clip, self.size)
    }

    fn refuse_single_pixel(self, kind: &str, this: &str, text: &str, fractions: bool) -> Result<(), Refusal> {
        if self.options.coords != Coords::Pixel || !fractions {
            return Ok(());
        }
        let hint = match self.place {
            Place::CommandLine => "--coords norm reads the numbers as fractions of width and height",
            Place::Chat => "numbers count pixels here; in a question they may be fractions: What is at (0.5, 0.25)?",
        };
        Err(Refusal::usage(format!("{kind} `{text}`: in pixels, {this} lies within a single one")).hint(hint))
    }

    /// What to do about numbers that can't be, as far as anything can be done where they were typed.
    fn refusal(self, message: String, error: &BoxError) -> Refusal {
        let ImageSize { width, height } = self.size;
        let unit = match self.options.coords {
            Coords::Pixel => "pixels",
            Coords::Norm => "fractions of it",
            Coords::Norm1000 => "thousandths of it",
        };
        let numbers = self.options.box_format.numbers();
        let hint = match (self.place, error) {
            (Place::CommandLine, BoxError::Outside { .. }) => format!(
                "the picture is {width}×{height} pixels; --coords says what the numbers count, and --clip cuts off what sticks out"
            ),
            (Place::CommandLine, BoxError::Empty { .. }) => format!(
                "the picture is {width}×{height} pixels; --box-format says what the four numbers are, now {numbers}"
            ),
            (Place::Chat, BoxError::Empty { .. }) => {
                format!("the picture is {width}×{height} pixels; a box is {numbers} here, and the numbers count {unit}")
            }
            _ => format!("the picture is {width}×{height} pixels; the numbers count {unit}"),
        };
        Refusal::usage(message).hint(hint)
    }
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const SIZE: ImageSize = ImageSize { width: 200, height: 100 };

    fn parse(coords: Coords, text: &str) -> Result<Shape, String> {
        let options = CoordinateOptions { coords, ..CoordinateOptions::default() };
        options.parse(text, SIZE).map_err(|error| error.to_string())
    }

    fn refused(typed: Typed) -> String {
        let reader = Reader { options: CoordinateOptions::default(), size: SIZE, place: Place::CommandLine };
        reader.shape(&typed).unwrap_err().to_string()
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
    fn every_form_of_a_box_names_the_same_one() {
        let bbox = Shape::Box(BBox::from_normalized([0.25, 0.5, 0.75, 1.0]).unwrap());
        for (box_format, coords, text) in [
            (BoxFormat::Xyxy, Coords::Pixel, "50,50,150,100"),
            (BoxFormat::Xywh, Coords::Pixel, "50,50,100,50"),
            (BoxFormat::Cxcywh, Coords::Pixel, "100,75,100,50"),
            (BoxFormat::Xywh, Coords::Norm, "0.25,0.5,0.5,0.5"),
            (BoxFormat::Cxcywh, Coords::Norm, "0.5,0.75,0.5,0.5"),
            (BoxFormat::Cxcywh, Coords::Norm1000, "500,750,500,500"),
        ] {
            let options = CoordinateOptions { coords, box_format, clip: false };
            assert_eq!(options.parse(text, SIZE).unwrap(), bbox, "{text}");
        }
        let yolo = CoordinateOptions { box_format: BoxFormat::Cxcywh, ..CoordinateOptions::default() };
        let error = yolo.parse("190,75,100,50", SIZE).unwrap_err().to_string();
        assert!(error.starts_with("region `190,75,100,50`, whose edges are 140,50,240,100: x2: "), "{error}");
        assert!(yolo.parse("0.5,0.75,0.5,0.5", SIZE).unwrap_err().to_string().contains("within a single one"));
    }

    #[test]
    fn clipping_cuts_boxes_and_polygons_to_the_picture() {
        for (coords, bbox, polygon) in [
            (Coords::Pixel, "-50,20,100,180", "-50,20,100,20,100,180"),
            (Coords::Norm, "-0.25,0.2,0.5,1.8", "-0.25,0.2,0.5,0.2,0.5,1.8"),
            (Coords::Norm1000, "-250,200,500,1800", "-250,200,500,200,500,1800"),
        ] {
            let options = |clip| CoordinateOptions { coords, clip, ..CoordinateOptions::default() };
            let cut = BBox::from_normalized([0.0, 0.2, 0.5, 1.0]).unwrap();
            assert_eq!(options(true).parse(bbox, SIZE).unwrap(), Shape::Box(cut));
            assert_eq!(options(true).parse(polygon, SIZE).unwrap(), Shape::Polygon(cut));
            assert!(options(false).parse(bbox, SIZE).is_err() && options(false).parse(polygon, SIZE).is_err());
        }
        let options = CoordinateOptions { clip: true, ..CoordinateOptions::default() };
        for (gone, says) in [
            ("300,20,400,80", "nothing of it lies in the picture"),
            ("90,20,50,80", "expected x1 < x2, got 90 and 50"),
            ("1,20,inf,80", "x2: expected a finite number"),
            ("201,5", "x: expected 0 to 200"),
            ("1,1,9,1,9,inf", "y: expected a finite number"),
        ] {
            let error = options.parse(gone, SIZE).unwrap_err().to_string();
            assert!(error.contains(says), "{gone}: {error}");
        }
    }

    #[test]
    fn advice_is_what_can_be_done_where_one_types() {
        let hint = |place, text: &str| {
            let reader = Reader { options: CoordinateOptions::default(), size: SIZE, place };
            let error = reader.shape(&Typed::Box(text.into())).unwrap_err();
            error.downcast_ref::<Refusal>().and_then(Refusal::advice).unwrap_or_default().to_owned()
        };
        for (text, flag) in [("1,1,201,9", "--clip"), ("9,1,5,9", "--box-format"), ("0,0,0.5,0.5", "--coords")] {
            assert!(hint(Place::CommandLine, text).contains(flag), "{text}");
            assert!(!hint(Place::Chat, text).contains("--") && !hint(Place::Chat, text).is_empty(), "{text}");
        }
        assert!(hint(Place::Chat, "1,1,201,9").starts_with("the picture is 200×100 pixels"));
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
