//! The words of questions and answers, and which answers are right.
//!
//! Places and directions refer to the centres of boxes. Only clear-cut cases are asked about: within a
//! margin of a border line nobody could say which answer is meant.

use gpt4roi::bbox::{BBox, RegionId};

use crate::kinds::{Kind, with_article};

/// A centre is in a ninth of the picture only if it is this far from the lines between them.
const POSITION_MARGIN: f64 = 0.04;

/// The centres of two objects in a clear relation lie at least this far apart along it.
const RELATION_DISTANCE: f64 = 0.1;

/// … and so many times as far along it as across it.
const RELATION_DOMINANCE: f64 = 1.5;

/// The ninths of the picture, row by row.
pub(crate) const NINTHS: [[&str; 3]; 3] =
    [["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"]];

/// What sizes are called.
pub(crate) const SIZES: [&str; 3] = ["small", "medium", "large"];

/// Below this, the root of an object's share of the picture makes it small.
const SMALL: f64 = 0.17;

/// From this on, it is large.
const LARGE: f64 = 0.32;

pub(crate) const NAME: &[&str] = &[
    "What is {0}?",
    "What is {0}?",
    "What is in {0}?",
    "What is the name of {0}?",
    "What is the name of the object in {0}?",
    "What is the name of the {category} at {0}?",
    "What is the object at {0}?",
    "What is the thing in {0}?",
    "What do you see in {0}?",
    "What do you see at {0}?",
    "What does {0} show?",
    "What can be seen in {0}?",
    "What is at {0}?",
    "What is this {0}?",
    "Which object is {0}?",
    "Name {0}.",
    "Tell me what {0} is.",
    "Can you tell me what is in {0}?",
];

pub(crate) const MULTI: &[&str] = &[
    "What are {list}?",
    "What are {list}?",
    "Name {list}.",
    "What do you see in {list}?",
    "What is the name of {list}?",
    "What are the names of the objects in {list}?",
    "What are the objects at {list}?",
    "What is in {list}?",
    "Tell me what {list} are.",
];

pub(crate) const RECALL: &[&str] = &[
    "There are {list}. What is {one}?",
    "Do you see {list}? What is {one}?",
    "Can you see {list}? Tell me what {one} is.",
];

pub(crate) const WHICH: &[&str] = &[
    "Which of {list} is {phrase}?",
    "Which of {list} shows {phrase}?",
    "Which one is {phrase}: {list}?",
    "Where is {phrase}: {list}?",
    "Find {phrase} in {list}.",
];

pub(crate) const RELATION: &[&str] = &[
    "Where is {0} relative to {1}?",
    "Where is {0} as seen from {1}?",
    "Is {0} left of, right of, above or below {1}?",
    "What is the relation between {0} and {1}?",
    "What is the relationship between {0} and {1}?",
    "How do {0} and {1} relate?",
    "Where does {0} lie relative to {1}?",
];

pub(crate) const POSITION: &[&str] = &[
    "Where is {0}?",
    "Where is {0} in the picture?",
    "Where in the picture is {0}?",
    "What is the position of {0}?",
    "In which part of the picture is {0}?",
    "Tell me where {0} is.",
];

pub(crate) const IS_KIND: &[&str] = &[
    "Is {0} {phrase}?",
    "Is {0} {phrase}?",
    "Is this {0} {phrase}?",
    "Is it {phrase} in {0}?",
    "Does {0} show {phrase}?",
];

pub(crate) const IS_DIRECTION: &[&str] =
    &["Is {0} {direction} {1}?", "Is {0} {direction} {1}?", "Does {0} lie {direction} {1}?"];

pub(crate) const IS_THERE: &[&str] = &[
    "Is there {phrase} in the picture?",
    "Is there {phrase}?",
    "Can you see {phrase} in the picture?",
    "Do you see {phrase}?",
];

pub(crate) const SHORT: &[&str] = &[
    "Describe {0} briefly.",
    "Describe {0}.",
    "Give a short description of {0}.",
    "What does {0} look like?",
    "Describe {0} in a few words.",
];

pub(crate) const DETAIL: &[&str] = &[
    "Describe {0} in detail.",
    "Give a detailed description of {0}.",
    "Can you give me a detailed description of {0}?",
    "Tell me all about {0}.",
    "What do you know about {0}?",
];

pub(crate) const PURPOSE: &[&str] = &[
    "What is {0} for?",
    "What is {0} used for?",
    "What is {0} good for?",
    "What can {0} do?",
    "What can one do with {0}?",
    "What is {0} doing?",
    "What is the use of {0}?",
];

pub(crate) const PICTURE: &[&str] = &[
    "What is in the picture?",
    "What does the picture show?",
    "Describe the picture.",
    "What do you see?",
    "What do you see in the picture?",
    "What objects are in the picture?",
    "Tell me about the picture.",
];

/// Which answers to a question are right.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerKey {
    /// This text, capitals, spaces and a final stop apart.
    Exact(String),
    /// One kind, with or without article and measure.
    Name(Kind),
    /// For each region its kind, by the region's number, in any order.
    Names(Vec<(RegionId, Kind)>),
    /// This direction, and no other.
    Relation(Direction),
    /// This ninth of the picture, with or without "at the".
    Position(String),
    /// Beginning with yes, or no.
    Verdict(bool),
    /// All of these.
    Contains(Vec<String>),
}

impl AnswerKey {
    /// Whether an answer is right. Capitals, repeated spaces, a leading role name and punctuation at the
    /// end never matter.
    pub fn accepts(&self, answer: &str) -> bool {
        let answer = normalize(answer);
        match self {
            Self::Exact(text) => answer == normalize(text),
            Self::Name(kind) => names(&answer, kind),
            Self::Names(regions) => all_named(&answer, regions),
            Self::Relation(direction) => {
                let said = |word: &str| answer.split(' ').any(|other| other == word);
                Direction::ALL.into_iter().all(|other| said(other.word()) == (other == *direction))
            }
            Self::Position(ninth) => {
                let bare = ["at the ", "in the ", "it is at the ", "it is in the "];
                let place = bare.iter().find_map(|start| answer.strip_prefix(start)).unwrap_or(&answer);
                place == ninth
            }
            Self::Verdict(yes) => {
                let first = answer.split([' ', ',', '.']).next();
                first == Some(if *yes { "yes" } else { "no" })
            }
            Self::Contains(parts) => parts.iter().all(|part| contains_words(&answer, part)),
        }
    }

    /// How many of the regions asked about an answer names right; 0 for a key that is not of [`Self::Names`].
    pub fn regions_named(&self, answer: &str) -> usize {
        match self {
            Self::Names(regions) => named(&parts(&normalize(answer)), regions),
            _ => 0,
        }
    }
}

pub(crate) fn normalize(text: &str) -> String {
    let text = text.trim().to_lowercase();
    let text = text.strip_prefix("assistant:").unwrap_or(&text);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").trim_end_matches(['.', '!', ' ']).to_owned()
}

fn names(answer: &str, kind: &Kind) -> bool {
    answer == kind.phrase() || answer == kind.name || answer == with_article(&kind.name)
}

/// "region2 is a cat, region1 is a bus", each region once.
fn all_named(answer: &str, regions: &[(RegionId, Kind)]) -> bool {
    let parts = parts(answer);
    parts.len() == regions.len() && named(&parts, regions) == regions.len()
}

fn parts(answer: &str) -> Vec<&str> {
    answer.split([',', '.', ';']).map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// How many regions get their name in one of the parts, and no other name.
fn named(parts: &[&str], regions: &[(RegionId, Kind)]) -> usize {
    let found = |(id, kind): &&(RegionId, Kind)| {
        let subject = format!("region{} is ", id.0);
        let said: Vec<&str> =
            parts.iter().filter_map(|part| part.trim_start_matches("and ").strip_prefix(&subject)).collect();
        matches!(said[..], [name] if names(name, kind))
    };
    regions.iter().filter(found).count()
}

fn contains_words(text: &str, part: &str) -> bool {
    let words = |text: &str| {
        text.split(|letter: char| !letter.is_alphanumeric() && letter != '-')
            .filter(|word| !word.is_empty())
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let (text, part) = (words(text), words(part));
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

/// Where one object lies as seen from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Its centre is further left.
    Left,
    /// Its centre is further right.
    Right,
    /// Its centre is higher.
    Above,
    /// Its centre is lower.
    Below,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Left, Self::Right, Self::Above, Self::Below];

    /// Where `first` lies as seen from `second`; `None` unless it is clear: the centres lie 0.1 of the
    /// side or more apart along one axis, and at least 1.5 times as far as along the other.
    pub fn between(first: &BBox, second: &BBox) -> Option<Self> {
        let ([ax, ay], [bx, by]) = (center(first), center(second));
        let (dx, dy) = (ax - bx, ay - by);
        let clear = |along: f64, across: f64| {
            along.abs() >= RELATION_DISTANCE && along.abs() >= RELATION_DOMINANCE * across.abs()
        };
        match () {
            () if clear(dx, dy) => Some(if dx < 0.0 { Self::Left } else { Self::Right }),
            () if clear(dy, dx) => Some(if dy < 0.0 { Self::Above } else { Self::Below }),
            () => None,
        }
    }

    /// The word that tells it from the others.
    pub fn word(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
            Self::Above => "above",
            Self::Below => "below",
        }
    }

    /// To be followed by what it is seen from: "to the left of".
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Left => "to the left of",
            Self::Right => "to the right of",
            Self::Above => "above",
            Self::Below => "below",
        }
    }
}

pub(crate) fn center(bbox: &BBox) -> [f64; 2] {
    let [x1, y1, x2, y2] = bbox.normalized();
    [(x1 + x2) / 2.0, (y1 + y2) / 2.0]
}

pub(crate) fn distance(first: &BBox, second: &BBox) -> f64 {
    let ([ax, ay], [bx, by]) = (center(first), center(second));
    (ax - bx).hypot(ay - by)
}

/// The ninth of the picture in which the centre of a box lies: "top left", "left", "center" …; `None`
/// within 0.04 of a line between two.
pub fn position(bbox: &BBox) -> Option<&'static str> {
    let third = |at: f64| {
        let clear = (at - 1.0 / 3.0).abs() >= POSITION_MARGIN && (at - 2.0 / 3.0).abs() >= POSITION_MARGIN;
        clear.then_some(((at * 3.0) as usize).min(2))
    };
    let [x, y] = center(bbox);
    Some(NINTHS[third(y)?][third(x)?])
}

/// "small", "medium" or "large": by the root of the box's share of the picture, below 0.17, from 0.32.
pub fn relative_size(bbox: &BBox) -> &'static str {
    let [x1, y1, x2, y2] = bbox.normalized();
    match ((x2 - x1) * (y2 - y1)).sqrt() {
        side if side < SMALL => SIZES[0],
        side if side < LARGE => SIZES[1],
        _ => SIZES[2],
    }
}

/// "at the top left", "in the center".
pub(crate) fn place(ninth: &str) -> String {
    format!("{} the {ninth}", if ninth == "center" { "in" } else { "at" })
}

pub(crate) fn verdict(yes: bool) -> &'static str {
    if yes { "Yes" } else { "No" }
}

/// What a kind is, behind "is".
pub(crate) fn category(category: &str) -> String {
    match category {
        "food" | "clothing" | "furniture" => category.into(),
        "nature" => "a part of nature".into(),
        "thing" => "an object".into(),
        other => with_article(other),
    }
}

/// What one calls a thing of a category.
pub(crate) fn noun(category: &str) -> &str {
    if category == "nature" { "thing" } else { category }
}

/// What a kind can do or is for, as a sentence.
pub(crate) fn purpose(kind: &Kind) -> String {
    let verb = match kind.category.as_str() {
        "animal" | "bird" | "insect" | "plant" | "nature" => "can",
        "vehicle" | "tool" | "device" | "instrument" | "container" | "thing" => "is used to",
        _ => "is something to",
    };
    format!("{} {verb} {}.", capital(&kind.phrase()), kind.purpose)
}

/// "There are three things".
pub(crate) fn count(objects: usize) -> String {
    const NUMBERS: [&str; 11] = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
    match (objects, NUMBERS.get(objects)) {
        (1, _) => "There is one thing".into(),
        (_, Some(number)) => format!("There are {number} things"),
        _ => "There are many things".into(),
    }
}

/// "a, b and c".
pub(crate) fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

pub(crate) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// "a cat" → "A cat."
pub(crate) fn sentence(text: &str) -> String {
    format!("{}.", capital(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn kind(name: &str) -> Kind {
        let pool = kinds::pool().expect("the list is sound");
        pool.into_iter().find(|kind| kind.name == name).expect("one of the kinds")
    }

    fn around(x: f64, y: f64) -> BBox {
        BBox::from_normalized([x - 0.1, y - 0.1, x + 0.1, y + 0.1]).expect("a box")
    }

    #[test]
    fn names_are_judged_by_the_kind() {
        let (cat, scissors) = (AnswerKey::Name(kind("cat")), AnswerKey::Name(kind("scissors")));
        for answer in ["A cat.", "a cat", " Cat ", "Assistant: A cat."] {
            assert!(cat.accepts(answer), "{answer}");
        }
        for answer in ["", "A dog.", "A cat and a dog.", "catfish", "It may be a cat."] {
            assert!(!cat.accepts(answer), "{answer}");
        }
        assert!(scissors.accepts("A pair of scissors.") && scissors.accepts("scissors"));
    }

    #[test]
    fn several_names_are_judged_by_the_region_numbers() {
        let key = AnswerKey::Names(vec![(RegionId(2), kind("cat")), (RegionId(1), kind("bus"))]);
        for answer in [
            "region2 is a cat, region1 is a bus.",
            "region1 is a bus, region2 is a cat.",
            "region1 is a bus, and region2 is a cat",
        ] {
            assert!(key.accepts(answer), "{answer}");
        }
        for answer in [
            "region1 is a cat, region2 is a bus.",
            "region2 is a cat.",
            "a cat, a bus",
            "region2 is a cat, region2 is a cat, region1 is a bus.",
        ] {
            assert!(!key.accepts(answer), "{answer}");
        }
        for (answer, right) in [
            ("region1 is a bus, region2 is a dog.", 1),
            ("region1 is a bus, region1 is a bus, region2 is a cat.", 1),
            ("a bus, a cat", 0),
        ] {
            assert_eq!(key.regions_named(answer), right, "{answer}");
        }
    }

    #[test]
    fn other_answers() {
        let left = AnswerKey::Relation(Direction::Left);
        assert!(left.accepts("region1 is to the left of region2.") && left.accepts("Left."));
        assert!(!left.accepts("It is above it.") && !left.accepts("left or right") && !left.accepts(""));
        let corner = AnswerKey::Position("top left".into());
        assert!(
            corner.accepts("At the top left.")
                && corner.accepts("top left")
                && corner.accepts("It is at the top left.")
        );
        assert!(!corner.accepts("At the left.") && !corner.accepts("At the top."));
        let yes = AnswerKey::Verdict(true);
        assert!(
            yes.accepts("Yes, it is a cat.") && yes.accepts("yes") && !yes.accepts("No.") && !yes.accepts("Yesterday")
        );
        let both = AnswerKey::Contains(vec!["cat".into(), "top left".into()]);
        assert!(both.accepts("A yellow cat at the top left.") && !both.accepts("A catfish at the top left."));
        assert!(AnswerKey::Exact("Hello there.".into()).accepts("hello  there"));
    }

    #[test]
    fn positions_keep_off_the_lines() {
        // Thirds at 0.333 and 0.667; within 0.04 of them nothing is said.
        for (x, y, expected) in [
            (0.2, 0.2, Some("top left")),
            (0.5, 0.5, Some("center")),
            (0.8, 0.5, Some("right")),
            (0.5, 0.8, Some("bottom")),
            (0.29, 0.5, Some("left")),
            (0.30, 0.5, None),
            (0.37, 0.5, None),
            (0.38, 0.5, Some("center")),
            (0.5, 0.65, None),
        ] {
            assert_eq!(position(&around(x, y)), expected, "{x} {y}");
        }
    }

    #[test]
    fn directions_are_clear() {
        let middle = around(0.5, 0.5);
        for (x, y, expected) in [
            (0.3, 0.5, Some(Direction::Left)),
            (0.7, 0.6, Some(Direction::Right)),
            (0.5, 0.3, Some(Direction::Above)),
            (0.4, 0.8, Some(Direction::Below)),
            (0.7, 0.7, None),
            (0.7, 0.65, None),
            (0.45, 0.5, None),
        ] {
            assert_eq!(Direction::between(&around(x, y), &middle), expected, "{x} {y}");
        }
    }

    #[test]
    fn sizes_are_relative_to_the_picture() {
        let square = |side: f64| BBox::from_normalized([0.0, 0.0, side, side]).expect("a box");
        for (side, name) in [(0.16, "small"), (0.18, "medium"), (0.31, "medium"), (0.33, "large")] {
            assert_eq!(relative_size(&square(side)), name);
        }
    }

    #[test]
    fn sentences() {
        assert_eq!(purpose(&kind("cat")), "A cat can hunt mice.");
        assert_eq!(purpose(&kind("scissors")), "A pair of scissors is used to cut paper.");
        assert_eq!(purpose(&kind("bed")), "A bed is something to sleep in.");
        assert_eq!(listed(&["a".into(), "b".into(), "c".into()]), "a, b and c");
        assert_eq!((count(1).as_str(), count(3).as_str()), ("There is one thing", "There are three things"));
    }
}
