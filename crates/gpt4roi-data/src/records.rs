//! Records: conversations about people's own pictures, read from files.
//!
//! Several forms are read into the same [`Records`], and recognised by what stands in the file (`form.rs`):
//! conversations, one a line, as described at [`Records::open`]; COCO's detection files (`coco.rs`); Visual Genome's
//! `region_descriptions.json` (`visual_genome.rs`); RefCOCO and Flickr30k Entities as MDETR has them (`mdetr.rs`) or
//! All-Seeing (`all_seeing.rs`); VCR (`vcr.rs`); Visual7W (`visual7w.rs`); and LLaVA's conversations (`llava.rs`).

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::File,
    io::{BufRead, BufReader, Cursor, Read, Seek},
    path::{Path, PathBuf},
    sync::Arc,
};

use gpt4roi::{
    BBox, Image, ImageSize, RegionId,
    bbox::BoxError,
    image::DEFAULT_MAX_PIXELS,
    mention::{self, MentionError, Part},
    prompt::Piece,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, Visitor},
};
use serde_json::Value;

pub use crate::form::Form;
use crate::{all_seeing, coco, error::DataError, llava, mdetr, vcr, visual_genome, visual7w};

/// The largest number that a region may have. Numbers count the regions of one conversation, and a larger one is an
/// id of something else.
pub const MAX_REGION: u32 = 10_000;

/// Pixels that a box may stick out of its picture, where it is cut: programs that draw boxes round their corners.
/// One that reaches farther belongs to another picture, or to this one in another size.
const ROUNDING: f64 = 1.0;

/// Conversations about pictures, grouped by picture, in the order in which the file first names the pictures.
#[derive(Clone, Debug)]
pub struct Records {
    form: Form,
    pictures: Vec<Picture>,
    without_picture: usize,
}

/// What a file of records does not say itself.
#[derive(Clone, Debug, Default)]
pub struct RecordOptions {
    /// The folder of the pictures, if it is not the file's own.
    pub images: Option<PathBuf>,
    /// What is asked about every region of a file that has labels and no questions. The region is `<region1>`.
    pub question: Option<String>,
    /// Which split of a file that has several is read. Without it, all are.
    pub split: Option<String>,
}

/// A picture and everything that is asked about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// As the file names it.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// In the file's order; at least one.
    pub dialogues: Vec<Dialogue>,
}

/// One conversation about a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Dialogue {
    /// Its own id, or else the number of its line.
    pub id: String,
    /// Where it stands, for errors.
    pub place: Place,
    /// Regions with their boxes, xyxy in pixels of the upright picture, as the file has them.
    pub regions: Vec<(RegionId, [f64; 4])>,
    /// The size of the picture that the boxes are of, if the file says so.
    pub stated_size: Option<Arc<StatedSize>>,
    /// At least one.
    pub rounds: Vec<DialogueRound>,
}

/// What a file says of the size of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct StatedSize {
    /// The picture, as the file names it.
    pub image: String,
    /// Its size in pixels.
    pub size: ImageSize,
    /// Where that stands.
    pub place: Place,
}

/// A question, and which answers are right.
#[derive(Clone, Debug, PartialEq)]
pub struct DialogueRound {
    /// What is asked. Coordinates are still words, since their meaning depends on the size of the picture.
    pub question: Vec<Piece>,
    /// What may be answered: distinct, and at least two. Where there are none, the model answers in its own words.
    pub choices: Vec<String>,
    /// All are right, and training learns the first. Where there is none, the question can only be asked.
    pub answers: Vec<String>,
    /// What the conversation goes on with, if it is not the model's own answer.
    pub said: Option<String>,
}

/// An entry of a file. Displays as `questions.jsonl, line 7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// What in it.
    pub entry: Entry,
}

/// What of a file is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// All of it.
    Whole,
    /// A line, counted from 1.
    Line(usize),
    /// An entry of a list of images, by its id.
    Image(String),
    /// An annotation, by its id.
    Annotation(String),
    /// A described region, by its id.
    Region(String),
    /// A question, by its id.
    Question(String),
    /// A conversation, by its id.
    Conversation(String),
    /// An entry of a list of this name, by its id.
    Of(&'static str, String),
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It is no JSON, or something is missing or of another type.
    #[error("column {column}: {reason}")]
    Json {
        /// Where on the line, in bytes from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The line is no text.
    #[error("expected text in UTF-8, got other bytes")]
    NoText,
    /// Two entries can't be told apart.
    #[error("id: expected one that no other of the file's {of} has, got one for the second time")]
    RepeatedId {
        /// Of what there are two.
        of: &'static str,
    },
    /// Nothing is asked.
    #[error("rounds: expected at least one, got none")]
    NoRounds,
    /// A question without words and regions.
    #[error("round {round}: question: expected words, got none")]
    EmptyQuestion {
        /// Which round, from 1.
        round: usize,
    },
    /// An answer without words, of which nothing can be learned.
    #[error("round {round}: answer: expected words, got none")]
    EmptyAnswer {
        /// Which round, from 1.
        round: usize,
    },
    /// It is not clear what is to be learned.
    #[error("round {round}: expected `answer` or `answers`, got both")]
    TwoAnswers {
        /// Which round, from 1.
        round: usize,
    },
    /// Too few choices to choose from.
    #[error("round {round}: choices: expected at least two, got {got}")]
    TooFewChoices {
        /// Which round, from 1.
        round: usize,
        /// How many there are.
        got: usize,
    },
    /// A choice without words.
    #[error("round {round}: choices: number {number}: expected words, got none")]
    EmptyChoice {
        /// Which round, from 1.
        round: usize,
        /// Which choice, from 1.
        number: usize,
    },
    /// Two choices are the same.
    #[error("round {round}: choices: `{choice}` is there twice; expected every choice once")]
    RepeatedChoice {
        /// Which round, from 1.
        round: usize,
        /// What they say.
        choice: String,
    },
    /// An answer that can't be chosen.
    #[error("round {round}: answer: expected one of the choices, {}, got `{got}`", listed(choices))]
    NotAChoice {
        /// Which round, from 1.
        round: usize,
        /// What may be answered.
        choices: Vec<String>,
        /// What is said to be right.
        got: String,
    },
    /// What the conversation goes on with says nothing.
    #[error("round {round}: said: expected words, got none")]
    EmptySaid {
        /// Which round, from 1.
        round: usize,
    },
    /// A question mentions what is not there.
    #[error("round {round}: question: {source}")]
    Mention {
        /// Which round, from 1.
        round: usize,
        /// What is wrong, and where.
        source: MentionError,
    },
    /// The answers would be about the whole picture.
    #[error("the questions mention none of the regions; expected for example {region}")]
    NoMention {
        /// A region.
        region: RegionId,
    },
    /// A region's number is none.
    #[error("region {id}: expected an id from 1 to {MAX_REGION}")]
    RegionNumber {
        /// Its number.
        id: u32,
    },
    /// Two regions have one number.
    #[error("region {id} is there twice; expected an id of its own for every region")]
    RepeatedRegion {
        /// Its number.
        id: u32,
    },
    /// A box that can't be.
    #[error("region {id}: bbox: {source}")]
    Box {
        /// Its number.
        id: u32,
        /// What is wrong with it.
        source: BoxError,
    },
    /// An annotation has neither a box nor an outline that one could be put around.
    #[error("bbox: expected x, y, width and height, or polygons as `segmentation`, got {got}")]
    NoBox {
        /// What is there.
        got: &'static str,
    },
    /// A box of more or fewer numbers.
    #[error("bbox: expected 4 numbers, x, y, width and height, got {got}")]
    BoxLength {
        /// How many there are.
        got: usize,
    },
    /// The picture has another size than the one that the boxes are said to be of.
    #[error(
        "width and height: expected {}×{}, the size of {image}, got {}×{}{}",
        actual.width, actual.height, stated.width, stated.height, exchanged(*stated, *actual)
    )]
    Size {
        /// The picture, as the file names it.
        image: String,
        /// What the file says.
        stated: ImageSize,
        /// The size of the picture, upright.
        actual: ImageSize,
    },
    /// A number of something of which there are not so many.
    #[error("{field}: expected one of the {count} {of}, from 0, got {number}")]
    Number {
        /// Which field.
        field: &'static str,
        /// What stands there.
        number: usize,
        /// How many there are.
        count: usize,
        /// Of what.
        of: &'static str,
    },
    /// The file beside a picture can't be read, or has not what is needed.
    #[error("metadata_fn: {}: {reason}", path.display())]
    Metadata {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It is another one's turn.
    #[error("conversations: turn {turn}: expected `{expected}`, got `{got}`")]
    Speaker {
        /// Which turn, from 1.
        turn: usize,
        /// Whose turn it is.
        expected: &'static str,
        /// Who speaks.
        got: String,
    },
    /// No conversation of its file is about a picture.
    #[error("image: expected a picture here or in another conversation, got none in the file")]
    NoPicture,
    /// A part of a sentence that it has not.
    #[error("tokens_positive: expected characters 0 to {characters}, the caption's, got {span:?}")]
    Span {
        /// Its beginning and end.
        span: [usize; 2],
        /// How many characters the sentence has.
        characters: usize,
    },
    /// It is not known what is said of the boxes.
    #[error("dataset_name: expected refcoco, refcoco+, refcocog or flickr, got {got}")]
    UnknownDataset {
        /// What stands there.
        got: String,
    },
    /// It refers to something that the file does not have.
    #[error("{field}: expected the id of one of the file's {expected}, got {got}")]
    Dangling {
        /// Which field.
        field: &'static str,
        /// What it names.
        expected: &'static str,
        /// What stands there.
        got: String,
    },
}

/// What boxes are of that were drawn by a program which does not turn pictures.
fn exchanged(stated: ImageSize, actual: ImageSize) -> &'static str {
    if (stated.width, stated.height) == (actual.height, actual.width) {
        ", as of a picture that lies on its side: boxes have to be of the one that its EXIF data have turned"
    } else {
        ""
    }
}

/// Choices as an error names them.
fn listed(choices: &[String]) -> String {
    choices.iter().map(|choice| format!("`{choice}`")).collect::<Vec<_>>().join(", ")
}

impl Records {
    /// Reads a file. Pictures are not opened; whether they are there, and whether boxes lie inside them, shows when
    /// they are ([`Picture::open`], [`Dialogue::boxes`]).
    ///
    /// The form of this program's own is JSON lines. Each is one conversation:
    ///
    /// ```json
    /// {"id": "7", "image": "images/000000.png", "regions": [{"id": 1, "bbox": [8, 14, 54, 59]}],
    ///  "rounds": [{"question": "What is <region1>?", "answer": "An octopus."}]}
    /// ```
    ///
    /// * `id`, a string or a number, may be left out; then it is the number of the line;
    /// * `image` is relative to [`RecordOptions::images`], or absolute;
    /// * `regions` may be left out; a `bbox` is xyxy in pixels of the upright picture;
    /// * a question is read as everywhere: `<region1>` is a mention, and so is `region 1`;
    /// * `answers` may stand in the place of `answer` and lists all that are right, each with at least a word; without
    ///   either, the question can only be asked;
    /// * `choices` lists what may be answered: at least two, all of them different. An answer that is right has to be
    ///   one of them;
    /// * `said` is what the conversation goes on with, in place of the model's own answer.
    ///
    /// Other fields are ignored, so that the `questions.jsonl` of [`write_scenes`](crate::export::write_scenes) is
    /// such a file. Empty lines are skipped.
    ///
    /// Of a COCO detection file, every annotation is asked about that is no crowd. Its box is its `bbox`, or else the
    /// one around the polygons of its `segmentation`; the answer is its own `caption`, or else the name of its
    /// category. Of Visual Genome's `region_descriptions.json`, every region is to be described, in the picture
    /// `<image_id>.jpg`; the answer is its phrase. Their boxes are `x`, `y`, width and height in pixels. Of MDETR's and
    /// All-Seeing's files, every box is to be described, and all that was said of it is right.
    /// [`RecordOptions::question`] takes the place of `What is <region1>?` and of `Describe <region1>.`. Captions and
    /// phrases that are empty were written by nobody, and are no answers.
    ///
    /// Of a file of VCR's, every line is a question with four answers to choose from, and then `Why?` with four
    /// reasons, asked behind the right answer. All objects are regions, in their order; their boxes are read from the
    /// JSON files beside the pictures. The test set has no right answers. Of options with the same words, one is left.
    ///
    /// Of Visual7W's files, every question of [`RecordOptions::split`] is asked. Where a box is to be pointed at, the
    /// four candidates are the regions, numbered from left to right, and `region1` to `region4` the choices. LLaVA's
    /// conversations are about whole pictures, and `<image>` is taken out of them; those without a picture are passed
    /// over ([`Self::without_picture`]).
    ///
    /// # Errors
    /// If the file, or one beside a picture, can't be read; at the first entry that is not as described, with its place;
    /// if the options ask a question of a file that has its own, or name a split that it has not.
    pub fn open(path: &Path, options: &RecordOptions) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|source| DataError::File { path: path.into(), source })?;
        Self::read(path.into(), BufReader::new(file), options)
    }

    /// Reads a file that is in memory. Its name serves errors, and says where the pictures lie.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(name: &Path, bytes: &[u8], options: &RecordOptions) -> Result<Self, DataError> {
        Self::read(name.into(), Cursor::new(bytes), options)
    }

    fn read(file: Arc<Path>, mut reader: impl BufRead + Seek, options: &RecordOptions) -> Result<Self, DataError> {
        let form = Form::of(&mut reader).map_err(|source| DataError::File { path: file.to_path_buf(), source })?;
        form.check(options, &file)?;
        let mut without_picture = 0;
        let pictures = match form {
            Form::Lines => read_lines(&file, reader, options)?,
            Form::Coco => coco::read(&file, reader, options)?,
            Form::VisualGenome => visual_genome::read(&file, reader, options)?,
            Form::Mdetr => mdetr::read(&file, reader, options)?,
            Form::AllSeeing => all_seeing::read(&file, reader, options)?,
            Form::Vcr => vcr::read(&file, reader, options)?,
            Form::Visual7w => visual7w::read(&file, reader, options)?,
            Form::Llava => {
                let read = llava::read(&file, reader, options)?;
                without_picture = read.without_picture;
                read.pictures
            }
        };
        Ok(Self { form, pictures, without_picture })
    }

    /// What the file is.
    pub fn form(&self) -> Form {
        self.form
    }

    /// All pictures.
    pub fn pictures(&self) -> &[Picture] {
        &self.pictures
    }

    /// How many conversations of the file are about no picture, and passed over.
    pub fn without_picture(&self) -> usize {
        self.without_picture
    }

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// Whether nothing is asked about any picture.
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }
}

impl Picture {
    /// Opens the picture.
    ///
    /// # Errors
    /// If it is not there or is no picture; the error also says where it was asked for.
    pub fn open(&self) -> Result<Image, DataError> {
        Image::open(&self.path, DEFAULT_MAX_PIXELS).map_err(|source| DataError::OwnPicture {
            place: self.dialogues.first().map_or_else(|| self.name.clone(), |dialogue| dialogue.place.to_string()),
            source,
        })
    }
}

impl Dialogue {
    /// The regions' boxes in a picture of this size. What sticks out by no more than a pixel is cut off.
    ///
    /// # Errors
    /// If the file says that the boxes are of a picture of another size; if a box has no area or reaches farther out of
    /// the picture.
    pub fn boxes(&self, size: ImageSize) -> Result<Vec<(RegionId, BBox)>, DataError> {
        self.stated_size.as_ref().map_or(Ok(()), |stated| stated.check(size))?;
        let bbox = |&(id, xyxy): &(RegionId, [f64; 4])| match pixel_box(xyxy, size) {
            Ok(bbox) => Ok((id, bbox)),
            Err(source) => Err(self.place.clone().error(RecordError::Box { id: id.0, source })),
        };
        self.regions.iter().map(bbox).collect()
    }
}

impl StatedSize {
    /// The size of a picture as a file states it. Many don't, and programs that don't know it write 0. MDETR's files of
    /// Flickr30k Entities have the numbers as texts.
    pub(crate) fn new(place: &Place, image: &str, width: &Value, height: &Value) -> Option<Arc<Self>> {
        let pixels = |side: &Value| {
            let side = side.as_str().map_or(side.as_f64(), |text| text.parse().ok());
            let side = side.filter(|side| (1.0..=f64::from(u32::MAX)).contains(side))?;
            (side.fract() == 0.0).then_some(side as u32)
        };
        let size = ImageSize { width: pixels(width)?, height: pixels(height)? };
        Some(Arc::new(Self { image: image.to_owned(), size, place: place.clone() }))
    }

    fn check(&self, actual: ImageSize) -> Result<(), DataError> {
        if actual == self.size {
            return Ok(());
        }
        Err(self.place.clone().error(RecordError::Size { image: self.image.clone(), stated: self.size, actual }))
    }
}

fn pixel_box(xyxy: [f64; 4], size: ImageSize) -> Result<BBox, BoxError> {
    let [x1, y1, x2, y2] = xyxy;
    let (width, height) = (f64::from(size.width), f64::from(size.height));
    let nearly_inside = x1 >= -ROUNDING && y1 >= -ROUNDING && x2 <= width + ROUNDING && y2 <= height + ROUNDING;
    if nearly_inside { BBox::from_pixels_clipped(xyxy, size) } else { BBox::from_pixels(xyxy, size) }
}

impl DialogueRound {
    /// The question as a user types it.
    pub fn typed(&self) -> String {
        let typed = self.question.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Region(id) => id.to_string(),
        });
        typed.collect()
    }
}

impl Place {
    pub(crate) fn error(self, source: RecordError) -> DataError {
        DataError::Record { place: self, source }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match &self.entry {
            Entry::Whole => Ok(()),
            Entry::Line(number) => write!(f, ", line {number}"),
            Entry::Image(id) => write!(f, ", image {id}"),
            Entry::Annotation(id) => write!(f, ", annotation {id}"),
            Entry::Region(id) => write!(f, ", region {id}"),
            Entry::Question(id) => write!(f, ", question {id}"),
            Entry::Conversation(id) => write!(f, ", conversation {id}"),
            Entry::Of(list, id) => write!(f, ", {list} {id}"),
        }
    }
}

impl RecordError {
    /// The position is told in another way than JSON's reader does, which takes every line for the first.
    pub(crate) fn json(error: &serde_json::Error) -> Self {
        let reason = error.to_string();
        let reason = reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason).to_owned();
        Self::Json { column: error.column(), reason }
    }
}

/// Pictures on their way from a file, in the order in which they are first named.
pub(crate) struct Gathering {
    folder: PathBuf,
    known: HashMap<String, usize>,
    pictures: Vec<Picture>,
}

impl Gathering {
    pub(crate) fn new(file: &Path, options: &RecordOptions) -> Self {
        let own = || file.parent().unwrap_or(Path::new("")).to_owned();
        let folder = options.images.clone().unwrap_or_else(own);
        Self { folder, known: HashMap::new(), pictures: Vec::new() }
    }

    /// Where the pictures lie.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn add(&mut self, image: &str, dialogue: Dialogue) {
        if let Some(&index) = self.known.get(image) {
            return self.pictures[index].dialogues.push(dialogue);
        }
        self.known.insert(image.to_owned(), self.pictures.len());
        let path = self.folder.join(image);
        self.pictures.push(Picture { name: image.to_owned(), path, dialogues: vec![dialogue] });
    }

    pub(crate) fn finish(self) -> Vec<Picture> {
        self.pictures
    }
}

/// Reads JSON lines one by one, with their numbers from 1. Empty ones are skipped.
pub(crate) fn each_line<T: DeserializeOwned>(
    file: &Arc<Path>,
    mut reader: impl BufRead,
    mut take: impl FnMut(usize, Place, T) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes);
        if read.map_err(|source| DataError::File { path: file.to_path_buf(), source })? == 0 {
            break;
        }
        let place = Place { file: file.clone(), entry: Entry::Line(number) };
        let text = str::from_utf8(&bytes).map_err(|_| place.clone().error(RecordError::NoText))?;
        if text.trim().is_empty() {
            continue;
        }
        let line =
            serde_json::from_str(text.trim_end()).map_err(|error| place.clone().error(RecordError::json(&error)))?;
        take(number, place, line)?;
    }
    Ok(())
}

/// A whole file that is one JSON value.
pub(crate) fn read_json<T: DeserializeOwned>(file: &Arc<Path>, reader: impl Read) -> Result<T, DataError> {
    serde_json::from_reader(reader).map_err(|error| {
        if error.is_io() {
            return DataError::File { path: file.to_path_buf(), source: error.into() };
        }
        Place { file: file.clone(), entry: Entry::Line(error.line()) }.error(RecordError::json(&error))
    })
}

/// What is asked about every region of a file that has labels only.
pub(crate) fn question_about_region(options: &RecordOptions, default: &str) -> Result<Vec<Piece>, DataError> {
    let typed = options.question.as_deref().unwrap_or(default);
    let this = RegionId(1);
    match question(typed, &[this]) {
        Ok(pieces) if pieces.contains(&Piece::Region(this)) => Ok(pieces),
        _ => Err(DataError::Setting {
            setting: "question",
            expected: format!("words that mention {this} and no other region"),
            got: typed.to_owned(),
        }),
    }
}

/// An id as files have them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Id {
    Number(serde_json::Number),
    Text(String),
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdVisitor)
    }
}

struct IdVisitor;

impl Visitor<'_> for IdVisitor {
    type Value = Id;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id: a string or a number")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
        Ok(Id::Text(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
        Ok(Id::Number(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Id, E> {
        Ok(Id::Number(number.into()))
    }

    /// Some programs write 7 as 7.0. A whole number of more than 64 bits comes here as well, of which no more than the
    /// first 16 digits are left: with it, others would be the same.
    fn visit_f64<E: Error>(self, number: f64) -> Result<Id, E> {
        const LARGEST: f64 = u64::MAX as f64;
        match serde_json::Number::from_f64(number) {
            Some(exact) if number.abs() < LARGEST => Ok(Id::Number(exact)),
            _ => Err(E::custom(format_args!(
                "expected an id: a string, or a number of at most 64 bits, got about {number:.10e}"
            ))),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// A line of JSON lines.
#[derive(Deserialize)]
struct Line {
    id: Option<Id>,
    image: String,
    regions: Option<Vec<LineRegion>>,
    rounds: Vec<LineRound>,
}

#[derive(Deserialize)]
struct LineRegion {
    id: u32,
    bbox: [f64; 4],
}

#[derive(Deserialize)]
struct LineRound {
    question: String,
    choices: Option<Vec<String>>,
    answer: Option<String>,
    answers: Option<Vec<String>>,
    said: Option<String>,
}

fn read_lines(file: &Arc<Path>, reader: impl BufRead, options: &RecordOptions) -> Result<Vec<Picture>, DataError> {
    let mut gathering = Gathering::new(file, options);
    each_line(file, reader, |number, place, line: Line| {
        let image = line.image.clone();
        let dialogue = dialogue(line, number, &place).map_err(|error| place.error(error))?;
        gathering.add(&image, dialogue);
        Ok(())
    })?;
    Ok(gathering.finish())
}

fn dialogue(line: Line, number: usize, place: &Place) -> Result<Dialogue, RecordError> {
    let regions = regions(line.regions.unwrap_or_default())?;
    let declared: Vec<RegionId> = regions.iter().map(|(id, _)| *id).collect();
    let rounds = (1..).zip(line.rounds).map(|(number, round)| dialogue_round(number, round, &declared));
    let rounds = rounds.collect::<Result<Vec<_>, _>>()?;
    if rounds.is_empty() {
        return Err(RecordError::NoRounds);
    }
    let mentions = |round: &DialogueRound| round.question.iter().any(|piece| matches!(piece, Piece::Region(_)));
    match declared.first() {
        Some(&region) if !rounds.iter().any(mentions) => return Err(RecordError::NoMention { region }),
        _ => {}
    }
    let id = line.id.map_or_else(|| number.to_string(), |id| id.to_string());
    Ok(Dialogue { id, place: place.clone(), regions, stated_size: None, rounds })
}

fn regions(lines: Vec<LineRegion>) -> Result<Vec<(RegionId, [f64; 4])>, RecordError> {
    let mut seen = HashSet::new();
    let checked = |LineRegion { id, bbox }| {
        if !(1..=MAX_REGION).contains(&id) {
            return Err(RecordError::RegionNumber { id });
        }
        if !seen.insert(id) {
            return Err(RecordError::RepeatedRegion { id });
        }
        has_area(bbox).map_err(|source| RecordError::Box { id, source })?;
        Ok((RegionId(id), bbox))
    };
    lines.into_iter().map(checked).collect()
}

/// What can be known of a box without its picture: a slip of the hand is found before anything is computed.
fn has_area([x1, y1, x2, y2]: [f64; 4]) -> Result<(), BoxError> {
    for (low_name, low, high_name, high) in [("x1", x1, "x2", x2), ("y1", y1, "y2", y2)] {
        if low >= high {
            return Err(BoxError::Empty { low_name, high_name, low, high });
        }
    }
    Ok(())
}

fn dialogue_round(number: usize, round: LineRound, declared: &[RegionId]) -> Result<DialogueRound, RecordError> {
    let question = round_question(number, &round.question, declared)?;
    let answers = match (round.answer, round.answers) {
        (Some(_), Some(_)) => return Err(RecordError::TwoAnswers { round: number }),
        (Some(answer), None) => vec![answer],
        (None, answers) => answers.unwrap_or_default(),
    };
    answers.iter().try_for_each(|answer| has_words(number, answer))?;
    let said = said(number, round.said)?;
    match round.choices {
        None => Ok(DialogueRound { question, choices: Vec::new(), answers, said }),
        Some(written) => {
            let choices = choices(number, &written)?;
            let answers = answers.iter().map(|answer| chosen(number, &choices, answer)).collect::<Result<_, _>>()?;
            Ok(DialogueRound { question, choices, answers, said })
        }
    }
}

/// What may be answered, without white space around it.
fn choices(round: usize, written: &[String]) -> Result<Vec<String>, RecordError> {
    if written.len() < 2 {
        return Err(RecordError::TooFewChoices { round, got: written.len() });
    }
    let mut seen = HashSet::new();
    let checked = |(number, choice): (usize, &String)| match choice.trim() {
        "" => Err(RecordError::EmptyChoice { round, number }),
        choice if !seen.insert(choice.to_owned()) => Err(RecordError::RepeatedChoice { round, choice: choice.into() }),
        choice => Ok(choice.to_owned()),
    };
    (1..).zip(written).map(checked).collect()
}

/// A round of a published benchmark. Two of its options may have the same words, of which whoever chooses can't mean one
/// and not the other, so that one is left.
pub(crate) fn round_of_options(
    round: usize,
    question: Vec<Piece>,
    mut options: Vec<String>,
    right: Option<String>,
) -> Result<DialogueRound, RecordError> {
    let mut seen = HashSet::new();
    options.retain(|option| option.trim().is_empty() || seen.insert(option.clone()));
    let choices = choices(round, &options)?;
    let answers = right.iter().map(|right| chosen(round, &choices, right)).collect::<Result<_, _>>()?;
    Ok(DialogueRound { question, choices, answers, said: None })
}

/// The choice that an answer is.
fn chosen(round: usize, choices: &[String], answer: &str) -> Result<String, RecordError> {
    let choice = choices.iter().find(|choice| *choice == answer.trim());
    let refused = || RecordError::NotAChoice { round, choices: choices.to_vec(), got: answer.into() };
    choice.cloned().ok_or_else(refused)
}

fn said(round: usize, said: Option<String>) -> Result<Option<String>, RecordError> {
    match said {
        Some(said) if said.trim().is_empty() => Err(RecordError::EmptySaid { round }),
        said => Ok(said),
    }
}

/// Refuses an answer that says nothing: a model would learn to.
pub(crate) fn has_words(round: usize, answer: &str) -> Result<(), RecordError> {
    if answer.trim().is_empty() { Err(RecordError::EmptyAnswer { round }) } else { Ok(()) }
}

/// Words that programs write in the place of those that nobody has written are none.
pub(crate) fn written(words: Option<String>) -> Option<String> {
    words.filter(|words| !words.trim().is_empty())
}

/// The words and mentions of a round's question.
pub(crate) fn round_question(round: usize, typed: &str, declared: &[RegionId]) -> Result<Vec<Piece>, RecordError> {
    let question = question(typed, declared).map_err(|source| RecordError::Mention { round, source })?;
    if question.is_empty() { Err(RecordError::EmptyQuestion { round }) } else { Ok(question) }
}

/// A question's words and mentions; empty if it is blank.
fn question(typed: &str, declared: &[RegionId]) -> Result<Vec<Piece>, MentionError> {
    let piece = |part| match part {
        Part::Text(text) => Some(Piece::Text(text)),
        Part::Mention(id) => Some(Piece::Region(id)),
        Part::Box(_) | Part::Point(_) => None,
    };
    Ok(mention::parse_mentions(typed.trim(), declared)?.into_iter().filter_map(piece).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ImageSize = ImageSize { width: 200, height: 100 };

    fn open(lines: impl AsRef<[u8]>) -> Result<Records, DataError> {
        Records::from_bytes(Path::new("data/a.jsonl"), lines.as_ref(), &RecordOptions::default())
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    fn freely(question: Vec<Piece>, answers: &[&str]) -> DialogueRound {
        let answers = answers.iter().map(ToString::to_string).collect();
        DialogueRound { question, choices: Vec::new(), answers, said: None }
    }

    #[test]
    fn lines_are_grouped_by_picture_in_the_order_of_their_first() {
        let lines = concat!(
            r#"{"id": "seven", "image": "b.png", "regions": [{"id": 2, "bbox": [8, 14, 54.5, 59]}], "#,
            r#""rounds": [{"question": "What is region 2?", "answer": "An octopus."}, {"question": "Why?"}]}"#,
            "\r\n\n",
            r#"{"image": "/elsewhere/a.png", "rounds": [{"question": " Is it red? ", "answers": ["Yes.", "Red."]}]}"#,
            "\n",
            r#"{"id": 7, "image": "b.png", "regions": null, "rounds": [{"question": "Hm?", "answer": null}], "more": 1}"#,
        );
        let records = open(lines).unwrap();
        let [b, a] = records.pictures() else { panic!("{records:?}") };
        assert_eq!((b.name.as_str(), b.path.as_path()), ("b.png", Path::new("data/b.png")));
        assert_eq!(a.path, Path::new("/elsewhere/a.png"));

        assert_eq!(open(format!("\u{FEFF}{lines}")).unwrap().pictures(), records.pictures());

        let [seven, number] = b.dialogues.as_slice() else { panic!("{b:?}") };
        assert_eq!((seven.id.as_str(), number.id.as_str(), a.dialogues[0].id.as_str()), ("seven", "7", "3"));
        assert_eq!(seven.regions, [(RegionId(2), [8.0, 14.0, 54.5, 59.0])]);
        assert_eq!(seven.rounds[0].question, [text("What is "), Piece::Region(RegionId(2)), text("?")]);
        assert_eq!(seven.rounds[0].typed(), "What is <region2>?");
        assert_eq!(seven.rounds[0].answers, ["An octopus."]);
        assert_eq!(seven.rounds[1], freely(vec![text("Why?")], &[]));
        assert_eq!(a.dialogues[0].rounds, [freely(vec![text("Is it red?")], &["Yes.", "Red."])]);
        assert_eq!(number.rounds[0].answers, <[String; 0]>::default());
    }

    #[test]
    fn a_round_may_have_choices_and_go_on_with_something_else() {
        let line = concat!(
            r#"{"image": "a.png", "rounds": [{"question": "Is it red?", "choices": [" Yes.", "No."], "answer": "Yes. ", "#,
            r#""said": "It is."}, {"question": "Why?", "choices": ["It glows.", "It burns."]}, "#,
            r#"{"question": "So?", "choices": null, "said": null}]}"#,
        );
        let records = open(line).unwrap();
        let [red, why, so] = records.pictures()[0].dialogues[0].rounds.as_slice() else { panic!("{records:?}") };
        assert_eq!(
            (red.choices.as_slice(), red.answers.as_slice()),
            (&["Yes.", "No."].map(String::from)[..], &["Yes.".to_owned()][..])
        );
        assert_eq!(red.said.as_deref(), Some("It is."));
        assert_eq!(why.choices, ["It glows.", "It burns."]);
        assert_eq!((why.answers.len(), &why.said), (0, &None));
        assert_eq!(*so, freely(vec![text("So?")], &[]));
    }

    #[test]
    fn pictures_may_lie_elsewhere() {
        let line = r#"{"image": "b.png", "rounds": [{"question": "What?"}]}"#;
        let options = RecordOptions { images: Some("pictures".into()), ..RecordOptions::default() };
        let records = Records::from_bytes(Path::new("data/a.jsonl"), line.as_bytes(), &options).unwrap();
        assert_eq!(records.pictures()[0].path, Path::new("pictures/b.png"));
    }

    #[test]
    fn a_file_without_lines_is_empty() {
        assert!(open("\n").unwrap().is_empty());
        let error = Records::open(Path::new("nowhere.jsonl"), &RecordOptions::default()).unwrap_err();
        assert!(error.to_string().starts_with("nowhere.jsonl: "), "{error}");
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        let cases = [
            (r#"{"image": "a.png""#, "column 17: EOF while parsing an object"),
            (r#"{"rounds": [{"question": "What?"}]}"#, "column 35: missing field `image`"),
            (r#"{"image": "a.png"}"#, "column 18: missing field `rounds`"),
            (
                r#"{"id": [], "image": "a.png", "rounds": []}"#,
                "column 9: invalid type: sequence, expected an id: a string or a number",
            ),
            (
                r#"{"id": 123456789012345678901, "image": "a.png", "rounds": []}"#,
                "column 28: expected an id: a string, or a number of at most 64 bits, got about 1.2345678901e20",
            ),
            (r#"{"image": "a.png", "rounds": []}"#, "rounds: expected at least one, got none"),
            (
                r#"{"image": "a.png", "rounds": [{"question": "What?"}, {"question": " "}]}"#,
                "round 2: question: expected words, got none",
            ),
            (
                r#"{"image": "a.png", "rounds": [{"question": "What?", "answer": "A.", "answers": ["A."]}]}"#,
                "round 1: expected `answer` or `answers`, got both",
            ),
            (
                r#"{"image": "a.png", "rounds": [{"question": "What?"}, {"question": "What?", "answer": " "}]}"#,
                "round 2: answer: expected words, got none",
            ),
            (
                r#"{"image": "a.png", "rounds": [{"question": "What?", "answers": ["A.", ""]}]}"#,
                "round 1: answer: expected words, got none",
            ),
            (
                r#"{"image": "a.png", "rounds": [{"question": "What?"}, {"question": "What?", "choices": ["A."]}]}"#,
                "round 2: choices: expected at least two, got 1",
            ),
            (
                r#"{"image": "a.png", "rounds": [{"question": "What?", "choices": ["A.", " "]}]}"#,
                "round 1: choices: number 2: expected words, got none",
            ),
            (
                r#"{"image": "a.png", "rounds": [{"question": "What?", "choices": ["A.", "B.", "A. "]}]}"#,
                "round 1: choices: `A.` is there twice; expected every choice once",
            ),
            (
                r#"{"image": "a.png", "rounds": [{"question": "What?", "choices": ["A.", "B."], "answers": ["B.", "C."]}]}"#,
                "round 1: answer: expected one of the choices, `A.`, `B.`, got `C.`",
            ),
            (
                r#"{"image": "a.png", "rounds": [{"question": "What?", "said": " "}]}"#,
                "round 1: said: expected words, got none",
            ),
            (
                r#"{"image": "a.png", "rounds": [{"question": "Is <region1> red?"}]}"#,
                "round 1: question: character 4: <region1> is not declared; expected no mention, since no region is \
                 declared",
            ),
            (
                r#"{"image": "a.png", "regions": [{"id": 3, "bbox": [0, 0, 9, 9]}], "rounds": [{"question": "Hm?"}]}"#,
                "the questions mention none of the regions; expected for example <region3>",
            ),
            (
                r#"{"image": "a.png", "regions": [{"id": 0, "bbox": [0, 0, 9, 9]}], "rounds": [{"question": "<0>"}]}"#,
                "region 0: expected an id from 1 to 10000",
            ),
            (
                concat!(
                    r#"{"image": "a.png", "regions": [{"id": 1, "bbox": [0, 0, 9, 9]}, {"id": 1, "bbox": [0, 0, 5, 5]}], "#,
                    r#""rounds": [{"question": "<1>"}]}"#
                ),
                "region 1 is there twice; expected an id of its own for every region",
            ),
            (
                r#"{"image": "a.png", "regions": [{"id": 1, "bbox": [4, 0, 4, 9]}], "rounds": [{"question": "<1>"}]}"#,
                "region 1: bbox: x1 and x2: expected x1 < x2, got 4 and 4",
            ),
        ];
        for (line, expected) in cases {
            let lines = format!("{}\n{line}\n", r#"{"image": "a.png", "rounds": [{"question": "What?"}]}"#);
            let error = open(&lines).expect_err(line);
            let message = error.to_string();
            assert!(message.starts_with(&format!("data/a.jsonl, line 2: {expected}")), "{line}\n{message}");
        }
        let error = open(b"\xff\n").unwrap_err();
        assert_eq!(error.to_string(), "data/a.jsonl, line 1: expected text in UTF-8, got other bytes");
    }

    #[test]
    fn options_that_mean_nothing_for_a_file_are_refused() {
        let line = r#"{"image": "a.png", "rounds": [{"question": "What?"}]}"#;
        let options = RecordOptions { question: Some("What is <region1>?".into()), ..RecordOptions::default() };
        let error = Records::from_bytes(Path::new("a.jsonl"), line.as_bytes(), &options).unwrap_err();
        assert!(error.to_string().contains("questions of its own"), "{error}");
        let options = RecordOptions { split: Some("test".into()), ..RecordOptions::default() };
        let error = Records::from_bytes(Path::new("a.jsonl"), line.as_bytes(), &options).unwrap_err();
        assert_eq!(error.to_string(), "setting `split`: expected none, since a.jsonl is not split, got test");
    }

    #[test]
    fn boxes_are_fractions_of_their_picture() {
        let boxes = |bbox: &str| {
            let line = format!(
                r#"{{"image": "a.png", "regions": [{{"id": 1, "bbox": {bbox}}}], "rounds": [{{"question": "<1>"}}]}}"#
            );
            open(&line).unwrap().pictures()[0].dialogues[0].boxes(SIZE)
        };
        let quarter = boxes("[50, 25, 100, 50]").unwrap();
        assert_eq!(quarter, [(RegionId(1), BBox::from_normalized([0.25, 0.25, 0.5, 0.5]).unwrap())]);
        let rounded = boxes("[-0.4, 25, 200.6, 101]").unwrap();
        assert_eq!(rounded, [(RegionId(1), BBox::from_normalized([0.0, 0.25, 1.0, 1.0]).unwrap())]);
        let error = boxes("[50, 25, 100, 102]").unwrap_err();
        assert_eq!(error.to_string(), "data/a.jsonl, line 1: region 1: bbox: y2: expected 0 to 100 (pixels), got 102");
    }

    #[test]
    fn a_picture_that_is_not_there_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, r#"{"image": "lost.png", "rounds": [{"question": "What?"}]}"#).unwrap();
        let records = Records::open(&path, &RecordOptions::default()).unwrap();
        let error = records.pictures()[0].open().unwrap_err().to_string();
        assert!(error.starts_with(&folder.path().join("lost.png").display().to_string()), "{error}");
        assert!(error.ends_with(&format!("{}, line 1)", path.display())), "{error}");
    }
}
