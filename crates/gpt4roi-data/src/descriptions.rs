//! Detailed descriptions, taken apart into claims that are true of a scene or not.
//!
//! The grammar is that of the answers to [`QuestionType::Detail`](crate::QuestionType::Detail):
//!
//! ```text
//! It is a red octopus.                                  object, color
//! An octopus is an animal.                              object, category
//! It is small and at the top left of the picture.       size, place
//! It is to the left of a loaf of bread.                 another object, relation
//! An octopus can swim and hold things with eight arms.  object, purpose
//! ```
//!
//! Sentences may come in any order and number. What the grammar does not know is reported, not guessed at.

use std::mem::{Discriminant, discriminant};

use crate::{
    answers::{self, Direction},
    kinds::Kind,
    scenes::Scene,
};

/// Something that a description says of a region, which is true or false. Kinds are indices into those of the scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The region is of this kind.
    Is(usize),
    /// The picture shows an object of this kind beside it.
    Shows(usize),
    /// Its main colour.
    Color(String),
    /// What its kind is: "an animal".
    Category(String),
    /// "small", "medium" or "large".
    Size(String),
    /// The ninth of the picture in which it lies: "top left".
    Place(String),
    /// What it can do or is for.
    Purpose(String),
    /// Where it lies as seen from an object of this kind.
    Lies(Direction, usize),
}

/// The kinds of claims that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimGroup {
    /// That something is there.
    Object,
    /// What it is like.
    Attribute,
    /// How it lies to something else.
    Relation,
}

impl ClaimGroup {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Attribute => "attribute",
            Self::Relation => "relation",
        }
    }
}

impl Claim {
    /// What kind of claim it is.
    pub fn group(&self) -> ClaimGroup {
        match self {
            Self::Is(_) | Self::Shows(_) => ClaimGroup::Object,
            Self::Lies(..) => ClaimGroup::Relation,
            _ => ClaimGroup::Attribute,
        }
    }
}

/// A description held against its scene.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Claims that hold, each once.
    pub right: Vec<Claim>,
    /// Claims that do not, each once.
    pub wrong: Vec<Claim>,
    /// What a full description would have said and this one does not say rightly.
    pub missing: Vec<Claim>,
    /// Sentences that are not of the grammar.
    pub unread: Vec<String>,
}

/// Judges a description of one of a scene's objects; `kinds` are those of the scene.
///
/// A relation holds if *any* object of the kind lies clearly so, not only the nearest, which a full description
/// names. Something is missing where a full description makes a claim and this one makes no true claim
/// of its sort: a description that names another neighbour rightly lacks none.
pub fn judge(description: &str, scene: &Scene, kinds: &[Kind], object: usize) -> Judgement {
    let (claims, unread) = read(description, kinds);
    let full = full_description(scene, kinds, object);
    let (right, wrong): (Vec<_>, Vec<_>) = claims.into_iter().partition(|claim| holds(claim, &full, scene, object));
    let said: Vec<Discriminant<Claim>> = right.iter().map(discriminant).collect();
    let missing = full.into_iter().filter(|claim| !said.contains(&discriminant(claim))).collect();
    Judgement { right, wrong, missing, unread }
}

/// The claims that a full description of an object makes: one of each sort, as far as the scene allows it.
pub fn full_description(scene: &Scene, kinds: &[Kind], object: usize) -> Vec<Claim> {
    let found = &scene.objects[object];
    let kind = &kinds[found.kind];
    let mut claims = vec![
        Claim::Is(found.kind),
        Claim::Color(kind.color.clone()),
        Claim::Category(answers::category(&kind.category)),
        Claim::Size(answers::relative_size(&found.bbox).into()),
    ];
    claims.extend(answers::position(&found.bbox).map(|ninth| Claim::Place(ninth.into())));
    if let Some((neighbor, direction)) = scene.nearest(object) {
        let kind = scene.objects[neighbor].kind;
        claims.extend([Claim::Shows(kind), Claim::Lies(direction, kind)]);
    }
    claims.push(Claim::Purpose(kind.purpose.clone()));
    claims
}

fn holds(claim: &Claim, full: &[Claim], scene: &Scene, object: usize) -> bool {
    let others = |kind: usize| {
        scene.objects.iter().enumerate().filter(move |(other, found)| *other != object && found.kind == kind)
    };
    match claim {
        Claim::Shows(kind) => others(*kind).next().is_some(),
        Claim::Lies(direction, kind) => others(*kind)
            .any(|(_, other)| Direction::between(&scene.objects[object].bbox, &other.bbox) == Some(*direction)),
        _ => full.contains(claim),
    }
}

/// A description's claims, each once, and the sentences that hold none.
fn read(description: &str, kinds: &[Kind]) -> (Vec<Claim>, Vec<String>) {
    let (mut claims, mut unread) = (Vec::new(), Vec::new());
    let text = answers::normalize(description);
    for sentence in text.split('.').map(str::trim).filter(|sentence| !sentence.is_empty()) {
        match read_sentence(sentence, kinds) {
            Some(said) => said.into_iter().for_each(|claim| {
                if !claims.contains(&claim) {
                    claims.push(claim);
                }
            }),
            None => unread.push(sentence.into()),
        }
    }
    (claims, unread)
}

fn read_sentence(sentence: &str, kinds: &[Kind]) -> Option<Vec<Claim>> {
    match sentence.strip_prefix("it is ") {
        Some(rest) => relation(rest, kinds).or_else(|| size_and_place(rest)).or_else(|| colored(rest, kinds)),
        None => fact(sentence, kinds),
    }
}

/// "to the left of a cat"
fn relation(text: &str, kinds: &[Kind]) -> Option<Vec<Claim>> {
    let seen_from = |direction: Direction| {
        let phrase = text.strip_prefix(direction.phrase())?.strip_prefix(' ')?;
        let kind = kinds.iter().position(|kind| kind.phrase() == phrase)?;
        Some(vec![Claim::Shows(kind), Claim::Lies(direction, kind)])
    };
    Direction::ALL.into_iter().find_map(seen_from)
}

/// "small and at the top left of the picture"
fn size_and_place(text: &str) -> Option<Vec<Claim>> {
    let (size, place) = text.strip_suffix(" of the picture")?.split_once(" and ")?;
    let ninth = place.strip_prefix("at the ").or_else(|| place.strip_prefix("in the "))?;
    let known = answers::SIZES.contains(&size) && answers::NINTHS.as_flattened().contains(&ninth);
    known.then(|| vec![Claim::Size(size.into()), Claim::Place(ninth.into())])
}

/// "a yellow cat", "a pair of red scissors"
fn colored(text: &str, kinds: &[Kind]) -> Option<Vec<Claim>> {
    let color = |kind: &Kind| {
        let color = text.strip_suffix(&kind.name)?.split(' ').rfind(|word| !word.is_empty())?;
        (Kind { color: color.into(), ..kind.clone() }.colored_phrase() == text).then(|| color.to_owned())
    };
    let read = kinds.iter().enumerate().filter_map(|(index, kind)| Some((index, color(kind)?)));
    let (kind, color) = read.max_by_key(|(index, _)| kinds[*index].name.len())?;
    Some(vec![Claim::Is(kind), Claim::Color(color)])
}

/// "a cat is an animal", "a cat can hunt mice"
fn fact(text: &str, kinds: &[Kind]) -> Option<Vec<Claim>> {
    let rest = |kind: &Kind| text.strip_prefix(&kind.phrase())?.strip_prefix(' ');
    let read = kinds.iter().enumerate().filter_map(|(index, kind)| Some((index, rest(kind)?)));
    let (kind, rest) = read.min_by_key(|(_, rest)| rest.len())?;
    let purpose = ["can ", "is used to ", "is something to "].into_iter().find_map(|verb| rest.strip_prefix(verb));
    let claim = match purpose {
        Some(purpose) => Claim::Purpose(purpose.into()),
        None => Claim::Category(rest.strip_prefix("is ")?.into()),
    };
    Some(vec![Claim::Is(kind), claim])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{QuestionMix, QuestionType, Questions, SceneConfig, Scenes, kinds};

    /// The parser reads what the questions' own answers say, and finds it true and whole.
    #[test]
    fn the_answers_of_the_questions_are_true_and_full() {
        let scenes =
            Scenes::new(SceneConfig { kinds: 220, ..SceneConfig::default() }.resized(64)).expect("settings are sound");
        let questions = Questions::new(QuestionMix::default(), scenes.kinds()).expect("settings are sound");
        let mut judged = 0;
        for index in 0..60 {
            let scene = scenes.scene(index);
            let asked = questions.ask_one(QuestionType::Detail, &scene, &mut scenes.question_rng(index));
            let Some(asked) = asked else { continue };
            let answer = asked.rounds[0].answer.as_deref().expect("an answer");
            let judgement = judge(answer, &scene, scenes.kinds(), asked.regions[0].2);
            let full = full_description(&scene, scenes.kinds(), asked.regions[0].2);
            assert!(full.iter().all(|claim| judgement.right.contains(claim)), "{answer}: {judgement:?}");
            assert_eq!(judgement, Judgement { right: judgement.right.clone(), ..Judgement::default() }, "{answer}");
            judged += 1;
        }
        assert!(judged > 30, "{judged}");
    }

    /// A cat at (0.2, 0.2) that is 0.2 wide, and a bus right of it.
    #[test]
    fn each_claim_is_judged_on_its_own() {
        let kinds = kinds::pool().expect("the list is sound");
        let index = |name: &str| kinds.iter().position(|kind| kind.name == name).expect("one of the kinds");
        let (cat, bus, dog) = (index("cat"), index("bus"), index("dog"));
        let scene = Scene::of_boxes(&[(cat, [0.1, 0.1, 0.3, 0.3]), (bus, [0.6, 0.1, 0.8, 0.3])]);
        let color = &kinds[cat].color;
        let category = |text: &str| Claim::Category(text.into());
        let purpose = Claim::Purpose(kinds[cat].purpose.clone());

        let said = format!("It is a {color} cat. A cat is a vehicle. It is medium and at the left of the picture.");
        let judgement = judge(&said, &scene, &kinds, 0);
        assert_eq!(
            judgement.right,
            [Claim::Is(cat), Claim::Color(color.clone()), Claim::Size("medium".into())],
            "the cat is √0.04 = 0.2 of the side"
        );
        assert_eq!(judgement.wrong, [category("a vehicle"), Claim::Place("left".into())]);
        let rest = [Claim::Shows(bus), Claim::Lies(Direction::Left, bus), purpose];
        let missing = [vec![category("an animal"), Claim::Place("top left".into())], rest.to_vec()].concat();
        assert_eq!(judgement.missing, missing);

        let judgement = judge("It is above a bus. It is to the left of a dog. It purrs.", &scene, &kinds, 0);
        assert_eq!(judgement.right, [Claim::Shows(bus)]);
        let wrong = [Claim::Lies(Direction::Above, bus), Claim::Shows(dog), Claim::Lies(Direction::Left, dog)];
        assert_eq!(judgement.wrong, wrong);
        assert_eq!(judgement.unread, ["it purrs"]);
        assert_eq!(judge("", &scene, &kinds, 0).missing, full_description(&scene, &kinds, 0));
    }

    #[test]
    fn measures_and_articles_belong_to_the_kind() {
        let kinds = kinds::pool().expect("the list is sound");
        let scissors = kinds.iter().position(|kind| kind.name == "scissors").expect("one of the kinds");
        let said = [Claim::Is(scissors), Claim::Color("red".into())];
        assert_eq!(colored("a pair of red scissors", &kinds).expect("readable"), said);
        for other in ["a pair of scissors", "red scissors", "a scissors of red", "a red thingamajig"] {
            assert_eq!(colored(other, &kinds), None, "{other}");
        }
    }
}
