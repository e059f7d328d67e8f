//! Regions and coordinates inside a question's text.

use std::ops::Range;

use crate::bbox::{BBox, BoxError, ImageSize, Point, RegionId};

/// A mention that can't be resolved. Positions count characters of the question from 1.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MentionError {
    /// `<region7>` where there is no region 7.
    #[error("character {position}: {mention} is not declared; expected {}", list(declared))]
    UnknownRegion {
        /// Where it begins.
        position: usize,
        /// As it was typed.
        mention: String,
        /// The regions that exist.
        declared: Vec<RegionId>,
    },
    /// Coordinates of no place in the picture.
    #[error("character {position}: {text}: {source}")]
    Coordinates {
        /// Where they begin.
        position: usize,
        /// As they were typed.
        text: String,
        /// What is wrong with them.
        source: BoxError,
        /// The size of the picture in which they would have to lie.
        picture: ImageSize,
    },
    /// Whole numbers that are all 0 or 1: a box within the upper left pixel, where fractions were meant.
    #[error("character {position}: {text}: in pixels, this box lies within a single one")]
    SinglePixel {
        /// Where they begin.
        position: usize,
        /// As they were typed.
        text: String,
    },
}

fn list(declared: &[RegionId]) -> String {
    match declared {
        [] => "no mention, since no region is declared".into(),
        declared => declared.iter().map(RegionId::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// A piece of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Words.
    Text(String),
    /// `<region1>` (or `region 1`): a region already declared.
    Mention(RegionId),
    /// Coordinates of a box; they become a region.
    Box(BBox),
    /// Coordinates of a point; they become a region once a box was grown around it.
    Point(Point),
}

/// Splits a question into words, mentions and coordinates.
///
/// `declared` are the regions that exist. The numbers of one group are fractions of width and height if
/// at least one of them has a decimal point and all lie in 0..1, pixels otherwise: whoever writes
/// fractions may write their 0 and 1 without one, as C's and Python's `%g` does. A box of which all
/// numbers are 0 or 1 is an error, since there is no telling; a point of that kind is a pixel.
///
/// | in the question | becomes |
/// |---|---|
/// | `<region1>`, `<1>` | a mention; an error if the region is not declared |
/// | `region 1`, `region1`, `Region 1` | a mention if the region is declared, else words |
/// | `(0.5, 0.6)`, `(120, 80)`, `[0.5, 0.6]` | a point |
/// | `[0.1, 0.2, 0.4, 0.5]`, `(10, 20, 40, 50)` | a box, xyxy |
/// | everything else, such as `[3, 4]`, `(1)`, `(2 of them)`, `(1,000)`, `<>`, `< region1 >` | words |
///
/// Two whole numbers in square brackets are words, because notes are quoted so.
///
/// # Errors
/// A mention of a region that is not declared; coordinates that are no place in the picture, or a box
/// within its first pixel. Each says where in the question it stands.
pub fn parse(question: &str, declared: &[RegionId], size: ImageSize) -> Result<Vec<Part>, MentionError> {
    let scan = |place: usize| match bracketed(question, place) {
        Some(found) => Some(known(question, found, declared)),
        None => bare(question, place, declared).map(Ok).or_else(|| coordinates(question, place, size)),
    };
    Ok(split(question, scan)?.into_iter().map(|(_, part)| part).collect())
}

/// Splits a question without knowing the size of its picture: mentions are found as [`parse`] finds them, and
/// coordinates stay words.
///
/// # Errors
/// A mention of a region that is not declared.
pub fn parse_mentions(question: &str, declared: &[RegionId]) -> Result<Vec<Part>, MentionError> {
    let scan = |place: usize| match bracketed(question, place) {
        Some(found) => Some(known(question, found, declared)),
        None => bare(question, place, declared).map(Ok),
    };
    Ok(split(question, scan)?.into_iter().map(|(_, part)| part).collect())
}

/// Splits a question as the original does: only `<region1>` and `<1>`, in small letters, are mentions; `region 1`
/// and coordinates are words.
///
/// # Errors
/// A mention of a region that is not declared.
pub fn parse_as_original(question: &str, declared: &[RegionId]) -> Result<Vec<Part>, MentionError> {
    let is_small = |range: &Range<usize>| !question[range.clone()].contains(|letter: char| letter.is_ascii_uppercase());
    let scan = |place: usize| {
        let found = bracketed(question, place).filter(|(range, _)| is_small(range))?;
        Some(known(question, found, declared))
    };
    Ok(split(question, scan)?.into_iter().map(|(_, part)| part).collect())
}

type Found<T> = (Range<usize>, T);

/// Cuts the question at what `scan` finds at each place, and calls the rest words.
fn split(
    question: &str,
    scan: impl Fn(usize) -> Option<Result<Found<Part>, MentionError>>,
) -> Result<Vec<Found<Part>>, MentionError> {
    let mut parts = Vec::new();
    let (mut words, mut place) = (0, 0);
    let text = |range: Range<usize>| (range.clone(), Part::Text(question[range].into()));
    while let Some(character) = question[place..].chars().next() {
        match scan(place).transpose()? {
            Some(found) => {
                if words < place {
                    parts.push(text(words..place));
                }
                place = found.0.end;
                words = place;
                parts.push(found);
            }
            None => place += character.len_utf8(),
        }
    }
    if words < place {
        parts.push(text(words..place));
    }
    Ok(parts)
}

/// `<region1>` or `<1>` at this place; `None` for the number if it is beyond all regions.
fn bracketed(question: &str, place: usize) -> Option<Found<Option<RegionId>>> {
    let inside = question[place..].strip_prefix('<')?;
    let digits = strip_region(inside).unwrap_or(inside);
    let (number, rest) = split_digits(digits)?;
    let rest = rest.strip_prefix('>')?;
    Some((place..question.len() - rest.len(), number.parse().ok().map(RegionId)))
}

fn known(
    question: &str,
    (range, region): Found<Option<RegionId>>,
    declared: &[RegionId],
) -> Result<Found<Part>, MentionError> {
    match region.filter(|region| declared.contains(region)) {
        Some(region) => Ok((range, Part::Mention(region))),
        None => Err(MentionError::UnknownRegion {
            position: position(question, range.start),
            mention: question[range].into(),
            declared: declared.to_vec(),
        }),
    }
}

/// `region 1` or `region1` at this place, as words of their own, if there is such a region.
fn bare(question: &str, place: usize, declared: &[RegionId]) -> Option<Found<Part>> {
    // First of all, since what stands before may be long and is looked at once for each word, not for each place.
    let after = strip_region(&question[place..])?;
    let before = &question[..place];
    if before.chars().next_back().is_some_and(is_word) || before.trim_end_matches(' ').ends_with('<') {
        return None;
    }
    let (number, rest) = split_digits(after.strip_prefix(' ').unwrap_or(after))?;
    let mut next = rest.chars();
    let goes_on = match next.next() {
        Some('.' | ',') => next.next().is_some_and(|character| character.is_ascii_digit()),
        Some(character) => is_word(character),
        None => false,
    };
    let region = number.parse().ok().map(RegionId).filter(|region| declared.contains(region) && !goes_on)?;
    Some((place..question.len() - rest.len(), Part::Mention(region)))
}

/// Whether a character beside a word makes it another word; unseen ones do, since nobody typed them
/// for a region.
fn is_word(character: char) -> bool {
    let unseen = matches!(character, '\u{200B}'..='\u{200F}' | '\u{2060}' | '\u{FEFF}');
    character.is_alphanumeric() || character == '_' || unseen
}

/// What stands behind the word `region`, in capitals or not.
fn strip_region(text: &str) -> Option<&str> {
    const WORD: &str = "region";
    let word = text.get(..WORD.len())?;
    word.eq_ignore_ascii_case(WORD).then(|| &text[WORD.len()..])
}

fn split_digits(text: &str) -> Option<(&str, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| text.split_at(digits))
}

/// Two or four numbers in brackets at this place.
fn coordinates(question: &str, place: usize, size: ImageSize) -> Option<Result<Found<Part>, MentionError>> {
    let close = match question.as_bytes()[place] {
        b'(' => b')',
        b'[' => b']',
        _ => return None,
    };
    let inside = &question[place + 1..];
    let end = inside.bytes().position(|byte| !is_number_byte(byte) && byte != b',' && byte != b' ')?;
    if inside.as_bytes()[end] != close {
        return None;
    }
    let words: Vec<&str> = inside[..end].split(',').map(|word| word.trim_matches(' ')).collect();
    if !words.iter().any(|word| word.bytes().any(|byte| byte.is_ascii_digit())) {
        return None;
    }
    let numbers = words.iter().map(|word| number(word)).collect::<Option<Vec<f64>>>()?;
    let pointed = words.iter().all(|word| word.contains('.'));
    let within_one = numbers.iter().all(|number| (0.0..=1.0).contains(number));
    let normalized = within_one && words.iter().any(|word| word.contains('.'));
    let range = place..place + 1 + end + 1;
    let typed = || (position(question, place), question[range.clone()].to_owned());
    if within_one && !normalized && numbers.len() == 4 {
        let (position, text) = typed();
        return Some(Err(MentionError::SinglePixel { position, text }));
    }
    let part = match (numbers.as_slice(), normalized) {
        (&[x, y], true) => Point::from_normalized([x, y]).map(Part::Point),
        (&[x, y], false) if pointed || close == b')' => Point::from_pixels([x, y], size).map(Part::Point),
        (&[x1, y1, x2, y2], true) => BBox::from_normalized([x1, y1, x2, y2]).map(Part::Box),
        (&[x1, y1, x2, y2], false) => BBox::from_pixels([x1, y1, x2, y2], size).map(Part::Box),
        _ => return None,
    };
    Some(part.map(|part| (range.clone(), part)).map_err(|source| {
        let (position, text) = typed();
        MentionError::Coordinates { position, text, source, picture: size }
    }))
}

/// Letters, too: `1e3`, `nan` and `inf` are numbers, if wrong ones.
fn is_number_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-')
}

/// A number as a coordinate is written: `000` is none, but the end of `1,000`.
fn number(word: &str) -> Option<f64> {
    let digits = word.trim_start_matches(['+', '-']);
    let grouped = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
    if grouped { None } else { word.parse().ok() }
}

fn position(question: &str, place: usize) -> usize {
    question[..place].chars().count() + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: ImageSize = ImageSize { width: 400, height: 200 };
    const DECLARED: [RegionId; 3] = [RegionId(1), RegionId(2), RegionId(12)];

    fn text(text: &str) -> Part {
        Part::Text(text.into())
    }

    fn mention(number: u32) -> Part {
        Part::Mention(RegionId(number))
    }

    fn point(x: f64, y: f64) -> Part {
        Part::Point(Point { x, y })
    }

    fn bbox(xyxy: [f64; 4]) -> Part {
        Part::Box(BBox::from_normalized(xyxy).unwrap())
    }

    #[test]
    fn mentions_and_coordinates_are_found() {
        struct Case {
            question: &'static str,
            parts: Vec<Part>,
        }
        let case = |question, parts| Case { question, parts };
        let cases = [
            case("", vec![]),
            case("Hello?", vec![text("Hello?")]),
            case("<region2><region1>", vec![mention(2), mention(1)]),
            case("Is <1> like <region12>?", vec![text("Is "), mention(1), text(" like "), mention(12), text("?")]),
            case("region 1, Region2.", vec![mention(1), text(", "), mention(2), text(".")]),
            case("(region 1)", vec![text("("), mention(1), text(")")]),
            // The announcement's own examples.
            case("the flower at (0.5, 0.6)?", vec![text("the flower at "), point(0.5, 0.6), text("?")]),
            case("(0.5, 0.6) and (0.75,0.25)", vec![point(0.5, 0.6), text(" and "), point(0.75, 0.25)]),
            case("in [0.1, 0.2, 0.4, 0.5].", vec![text("in "), bbox([0.1, 0.2, 0.4, 0.5]), text(".")]),
            // Pixels of a picture of 400×200.
            case("(100, 50)", vec![point(0.25, 0.25)]),
            case("(100.5, 50.0)", vec![point(100.5 / 400., 0.25)]),
            case("(0, 0, 400, 200)", vec![bbox([0., 0., 1., 1.])]),
            case("[100,50,200.0,100]", vec![bbox([0.25, 0.25, 0.5, 0.5])]),
            // Fractions whose 0 and 1 have lost their point; whole numbers alone are a pixel.
            case("[0, 0.35, 0.45, 1]", vec![bbox([0., 0.35, 0.45, 1.])]),
            case("[0.0, 0, 1, 1]", vec![bbox([0., 0., 1., 1.])]),
            case("[1e-05, 0.35, 0.45, 0.83]", vec![bbox([1e-5, 0.35, 0.45, 0.83])]),
            case("(1.0, 1)", vec![point(1., 1.)]),
            case("[0, .5]", vec![point(0., 0.5)]),
            case("(0.0, 1.0)", vec![point(0., 1.)]),
            case("(1, 1)", vec![point(1. / 400., 1. / 200.)]),
            case("[0.5, 0.25, 40, 20]", vec![bbox([0.5 / 400., 0.25 / 200., 0.1, 0.1])]),
            case("[0, 0, 2, 1]", vec![bbox([0., 0., 2. / 400., 1. / 200.])]),
            case("[0.5, .5]", vec![point(0.5, 0.5)]),
            case("(1e2, 5e1)", vec![point(0.25, 0.25)]),
            case("🐕(0.5, 0.5)🐕", vec![text("🐕"), point(0.5, 0.5), text("🐕")]),
            case("[(0.5, 0.5)]", vec![text("["), point(0.5, 0.5), text("]")]),
        ];
        for Case { question, parts } in cases {
            assert_eq!(parse(question, &DECLARED, SIZE).unwrap(), parts, "{question:?}");
        }
    }

    #[test]
    fn what_only_looks_alike_stays_words() {
        let alike = [
            "[see note 3]",
            "[3]",
            "[3, 4]",
            "(1)",
            "(2 of them)",
            "(1, 2, 3)",
            "(1, 2, 3, 4, 5)",
            "()",
            "(,)",
            "(1,)",
            "(1,000)",
            "(a, b)",
            "(nan, inf)",
            "(0.5; 0.6)",
            "(0.5, 0.6]",
            "(0.5, 0.6",
            "(０.５, 0.6)",
            "(1 2, 3)",
            "(0.5,\u{200B}0.6)",
            "<>",
            "< region1 >",
            "<region 1>",
            "<region1",
            "<region>",
            "<region１>",
            "<\u{200B}region1>",
            "<regiön1>",
            "<-1>",
            "< 1>",
            "I <3 you",
            "region 7",
            "region7",
            "region 1.5",
            "region 1,5",
            "region 12a",
            "region 1_",
            "subregion 1",
            "regions 1",
            "region  1",
            "region\u{200B}1",
            "region １",
            "region 99999999999999999999",
            "région 1",
            "_region1",
        ];
        for question in alike {
            assert_eq!(parse(question, &DECLARED, SIZE).unwrap(), [text(question)], "{question:?}");
        }
    }

    /// Were the spaces before each place looked at, this would take half an hour.
    #[test]
    fn a_megabyte_of_spaces_is_read_once() {
        let question = " ".repeat(1 << 20) + "region 1";
        let parts = parse(&question, &DECLARED, SIZE).unwrap();
        assert_eq!(parts, [text(&question[..1 << 20]), mention(1)]);
    }

    #[test]
    fn errors_name_place_and_remedy() {
        struct Case {
            question: &'static str,
            message: &'static str,
        }
        let cases = [
            Case {
                question: "Is <region7> red?",
                message: "character 4: <region7> is not declared; expected <region1>, <region2>, <region12>",
            },
            Case {
                question: "🐕 <0>",
                message: "character 3: <0> is not declared; expected <region1>, <region2>, <region12>",
            },
            Case {
                question: "<region99999999999999999999>",
                message: "character 1: <region99999999999999999999> is not declared; expected <region1>, <region2>, <region12>",
            },
            Case {
                question: "at (500, 20)",
                message: "character 4: (500, 20): x: expected 0 to 400 (pixels), got 500",
            },
            Case {
                question: "[0.5, 0.2, 0.4, 0.5]",
                message: "character 1: [0.5, 0.2, 0.4, 0.5]: x1 and x2: expected x1 < x2, got 0.5 and 0.4",
            },
            Case {
                question: "(-0.5, 0.5)",
                message: "character 1: (-0.5, 0.5): x: expected 0 to 400 (pixels), got -0.5",
            },
            Case {
                question: "In [0, 0, 1, 1]?",
                message: "character 4: [0, 0, 1, 1]: in pixels, this box lies within a single one",
            },
            Case {
                question: "[1, 1, 0, 0]",
                message: "character 1: [1, 1, 0, 0]: in pixels, this box lies within a single one",
            },
            Case { question: "(NaN, 5)", message: "character 1: (NaN, 5): x: expected a finite number, got NaN" },
            Case { question: "(5, 1e999)", message: "character 1: (5, 1e999): y: expected a finite number, got inf" },
        ];
        for Case { question, message } in cases {
            assert_eq!(parse(question, &DECLARED, SIZE).unwrap_err().to_string(), message);
        }
        let error = parse("<region1>", &[], SIZE).unwrap_err().to_string();
        assert_eq!(error, "character 1: <region1> is not declared; expected no mention, since no region is declared");
    }

    #[test]
    fn the_original_knows_brackets_only() {
        let parts = parse_as_original("region 2, <region2>, <1> at (0.5, 0.6)", &DECLARED).unwrap();
        assert_eq!(parts, [text("region 2, "), mention(2), text(", "), mention(1), text(" at (0.5, 0.6)")]);
        assert!(parse_as_original("<region7>", &DECLARED).is_err());
        for words in ["a < b <region> <> <regionx> <-1>", "<Region1>", "<region1", " \n"] {
            assert_eq!(parse_as_original(words, &DECLARED).unwrap(), [text(words)]);
        }
        assert_eq!(parse_as_original("<<1>>", &DECLARED).unwrap(), [text("<"), mention(1), text(">")]);
    }

    #[test]
    fn without_a_size_coordinates_are_words() {
        let parts = parse_mentions("Is region 2 or <1> at (500, 0.6)?", &DECLARED).unwrap();
        assert_eq!(parts, [text("Is "), mention(2), text(" or "), mention(1), text(" at (500, 0.6)?")]);
        assert!(parse_mentions("<region7>", &DECLARED).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(question in "\\PC{0,60}") {
            let _ = parse(&question, &DECLARED, SIZE);
        }

        #[test]
        fn parts_cover_the_question(question in "(<|>|region|region |1|2|12|\\(|\\)|\\[|\\]|0\\.5|, |a|é|🐕| ){0,20}") {
            let scan = |place: usize| {
                bare(&question, place, &DECLARED).map(Ok).or_else(|| coordinates(&question, place, SIZE))
            };
            if let Ok(parts) = split(&question, scan) {
                let mut end = 0;
                for (range, part) in parts {
                    prop_assert_eq!(range.start, end);
                    prop_assert!(!range.is_empty());
                    if let Part::Text(words) = part {
                        prop_assert_eq!(&words, &question[range.clone()]);
                    }
                    end = range.end;
                }
                prop_assert_eq!(end, question.len());
            }
        }

        #[test]
        fn pixels_of_any_box_come_back(x in 0..300_u32, y in 0..100_u32, width in 2..100_u32, height in 1..100_u32) {
            let question = format!("[{x}, {y}, {}, {}]", x + width, y + height);
            let pixels = [x, y, x + width, y + height].map(f64::from);
            let expected = BBox::from_pixels(pixels, SIZE).unwrap();
            prop_assert_eq!(parse(&question, &[], SIZE).unwrap(), [Part::Box(expected)]);
        }
    }
}
