//! Questions about scenes, with their answers.

use gpt4roi::{
    bbox::{BBox, Point, RegionId},
    prompt::{Piece, Round},
};
use rand::{
    Rng,
    seq::{IndexedRandom, IteratorRandom, SliceRandom},
};
use serde::{Deserialize, Serialize};

use crate::{
    answers::{self, AnswerKey, Direction},
    error::DataError,
    kinds::Kind,
    scenes::Scene,
};

/// Region numbers go from 1 to this.
const LARGEST_ID: u32 = 8;

/// The share of conversations whose regions are numbered in the order of their mention, as people do.
const ORDERED: f64 = 0.5;

/// A dialogue of more rounds is none that a model's context holds.
const MOST_ROUNDS: usize = 64;

/// How often another question is drawn where a scene does not allow the one drawn.
const TRIES: usize = 8;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuestionType {
    /// What one region shows.
    Name,
    /// What each of two to four regions shows.
    Multi,
    /// Where one region lies as seen from another.
    Relation,
    /// In which ninth of the picture a region lies.
    Position,
    /// Whether something is so.
    YesNo,
    /// What lies at a point.
    Point,
    /// One line about a region.
    Short,
    /// Several sentences about a region.
    Detail,
    /// What one region shows, after several were mentioned: a region is known by its number, not by its place.
    Recall,
    /// Which of several regions shows something.
    Which,
    /// What a thing can do or is for.
    Purpose,
    /// What the whole picture shows.
    Picture,
    /// Several rounds.
    Dialogue,
}

impl QuestionType {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Name,
        Self::Multi,
        Self::Relation,
        Self::Position,
        Self::YesNo,
        Self::Point,
        Self::Short,
        Self::Detail,
        Self::Recall,
        Self::Which,
        Self::Purpose,
        Self::Picture,
        Self::Dialogue,
    ];

    /// Its name in reports and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Multi => "multi",
            Self::Relation => "relation",
            Self::Position => "position",
            Self::YesNo => "yes_no",
            Self::Point => "point",
            Self::Short => "short",
            Self::Detail => "detail",
            Self::Recall => "recall",
            Self::Which => "which",
            Self::Purpose => "purpose",
            Self::Picture => "picture",
            Self::Dialogue => "dialogue",
        }
    }
}

/// How many questions a scene gets, and of which types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuestionMix {
    /// Conversations per scene.
    pub count: usize,
    /// Each edge of a box is moved by up to this share of the box's side. For training: people do not
    /// draw exact boxes. All conversations of one call share the moved boxes.
    pub jitter: f64,
    /// Half the side of the box around a point, drawn between these shares of the picture's side.
    pub point_reach: (f64, f64),
    /// The share of yes-or-no questions about the whole picture: whether it shows something. The others are about
    /// what a region is and how two of them lie, nine to seven.
    pub presence: f64,
    /// How often two, three, … regions are asked about at once, relative to each other.
    pub multi_counts: Vec<f64>,
    /// Fewest and most rounds of a dialogue.
    pub dialogue_rounds: (usize, usize),
    /// How often each type is drawn, relative to the others.
    pub name: f64,
    /// See `name`.
    pub multi: f64,
    /// See `name`.
    pub relation: f64,
    /// See `name`.
    pub position: f64,
    /// See `name`.
    pub yes_no: f64,
    /// See `name`.
    pub point: f64,
    /// See `name`.
    pub short: f64,
    /// See `name`.
    pub detail: f64,
    /// See `name`.
    pub recall: f64,
    /// See `name`.
    pub which: f64,
    /// See `name`.
    pub purpose: f64,
    /// See `name`.
    pub picture: f64,
    /// See `name`.
    pub dialogue: f64,
}

impl Default for QuestionMix {
    fn default() -> Self {
        Self {
            count: 16,
            jitter: 0.0,
            point_reach: (0.015, 0.04),
            presence: 0.2,
            multi_counts: vec![1.0; 3],
            dialogue_rounds: (2, 4),
            name: 4.0,
            multi: 3.0,
            relation: 3.0,
            position: 2.0,
            yes_no: 4.0,
            point: 2.0,
            short: 1.0,
            detail: 1.0,
            recall: 1.0,
            which: 1.0,
            purpose: 1.0,
            picture: 1.0,
            dialogue: 2.0,
        }
    }
}

impl QuestionMix {
    /// The weight of a type.
    pub fn weight(&self, question_type: QuestionType) -> f64 {
        match question_type {
            QuestionType::Name => self.name,
            QuestionType::Multi => self.multi,
            QuestionType::Relation => self.relation,
            QuestionType::Position => self.position,
            QuestionType::YesNo => self.yes_no,
            QuestionType::Point => self.point,
            QuestionType::Short => self.short,
            QuestionType::Detail => self.detail,
            QuestionType::Recall => self.recall,
            QuestionType::Which => self.which,
            QuestionType::Purpose => self.purpose,
            QuestionType::Picture => self.picture,
            QuestionType::Dialogue => self.dialogue,
        }
    }

    fn validate(&self) -> Result<(), DataError> {
        let check = |holds: bool, setting: &'static str, expected: &str, got: String| {
            if holds { Ok(()) } else { Err(DataError::Setting { setting, expected: expected.into(), got }) }
        };
        for question_type in QuestionType::ALL {
            let weight = self.weight(question_type);
            check(
                weight.is_finite() && weight >= 0.0,
                question_type.name(),
                "a weight of 0 or more",
                weight.to_string(),
            )?;
        }
        let total: f64 = QuestionType::ALL.iter().map(|question_type| self.weight(*question_type)).sum();
        check(total > 0.0, "name … dialogue", "a positive weight among them", total.to_string())?;
        let counts = self.multi_counts.iter().all(|weight| weight.is_finite() && *weight >= 0.0);
        let counts = counts && self.multi_counts.iter().sum::<f64>() > 0.0;
        check(counts, "multi_counts", "weights of 0 or more, not all 0", format!("{:?}", self.multi_counts))?;
        check((0.0..=1.0).contains(&self.presence), "presence", "0 to 1", self.presence.to_string())?;
        check((0.0..0.5).contains(&self.jitter), "jitter", "0 to less than 0.5", self.jitter.to_string())?;
        let (fewest, most) = self.dialogue_rounds;
        let rounds = 1 <= fewest && fewest <= most && most <= MOST_ROUNDS;
        let expected = format!("1 ≤ fewest ≤ most ≤ {MOST_ROUNDS}");
        check(rounds, "dialogue_rounds", &expected, format!("{:?}", self.dialogue_rounds))?;
        let (least, most) = self.point_reach;
        let reach = 0.0 < least && least <= most && most < 0.5;
        check(reach, "point_reach", "0 < least ≤ most < 0.5", format!("{:?}", self.point_reach))
    }

    fn draw(&self, rng: &mut impl Rng) -> QuestionType {
        let weight = |question_type: &QuestionType| self.weight(*question_type);
        // Cannot fail: the weights were validated.
        *QuestionType::ALL.choose_weighted(rng, weight).unwrap_or(&QuestionType::Name)
    }
}

/// Questions and answers about one picture: one round, or several that build on each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// What is asked.
    pub question_type: QuestionType,
    /// The regions mentioned: number, box, and index of the object. Boxes may be jittered.
    pub regions: Vec<(RegionId, BBox, usize)>,
    /// Questions with their answers.
    pub rounds: Vec<Round>,
    /// For [`QuestionType::Point`], the point inside the box.
    pub point: Option<Point>,
    /// For each round, what a right answer is.
    keys: Vec<AnswerKey>,
}

impl Conversation {
    /// For each round, what a right answer is.
    pub fn answer_keys(&self) -> &[AnswerKey] {
        &self.keys
    }

    /// Whether an answer to the last question is right: see [`AnswerKey::accepts`].
    pub fn is_correct(&self, answer: &str) -> bool {
        self.keys.last().is_some_and(|key| key.accepts(answer))
    }

    /// The rounds with the last answer taken away: what a model is asked.
    pub fn open_rounds(&self) -> Vec<Round> {
        let mut rounds = self.rounds.clone();
        if let Some(last) = rounds.last_mut() {
            last.answer = None;
        }
        rounds
    }
}

/// Asks questions about scenes.
#[derive(Clone, Debug)]
pub struct Questions {
    mix: QuestionMix,
    kinds: Vec<Kind>,
}

/// A round whose regions are objects yet: `{0}` in its texts is the first of `objects`.
struct Turn {
    objects: Vec<usize>,
    question: String,
    answer: String,
    key: KeyDraft,
}

/// An answer key whose regions are objects yet.
enum KeyDraft {
    Done(AnswerKey),
    Names(Vec<(usize, Kind)>),
}

/// A scene, the facts about it, and the boxes as this call sees them.
struct Subject<'a> {
    scene: &'a Scene,
    kinds: &'a [Kind],
    boxes: Vec<BBox>,
    mix: &'a QuestionMix,
}

impl Questions {
    /// `kinds` are those of the scenes: [`crate::Scenes::kinds`].
    pub fn new(mix: QuestionMix, kinds: &[Kind]) -> Result<Self, DataError> {
        mix.validate()?;
        Ok(Self { mix, kinds: kinds.to_vec() })
    }

    /// The settings.
    pub fn mix(&self) -> &QuestionMix {
        &self.mix
    }

    /// As many conversations as the mix says, of types drawn by their weights. A type that the scene
    /// does not allow (a relation of one object, say) is replaced by another.
    pub fn ask(&self, scene: &Scene, rng: &mut impl Rng) -> Vec<Conversation> {
        let subject = self.subject(scene, rng);
        (0..self.mix.count).filter_map(|_| self.ask_any(&subject, rng)).collect()
    }

    /// One conversation of a given type; `None` if the scene does not allow it.
    pub fn ask_one(&self, question_type: QuestionType, scene: &Scene, rng: &mut impl Rng) -> Option<Conversation> {
        self.conversation(question_type, &self.subject(scene, rng), rng)
    }

    fn ask_any(&self, subject: &Subject<'_>, rng: &mut impl Rng) -> Option<Conversation> {
        for _ in 0..TRIES {
            let question_type = self.mix.draw(rng);
            if let Some(conversation) = self.conversation(question_type, subject, rng) {
                return Some(conversation);
            }
        }
        self.conversation(QuestionType::Name, subject, rng)
    }

    fn subject<'a>(&'a self, scene: &'a Scene, rng: &mut impl Rng) -> Subject<'a> {
        let boxes = scene.objects.iter().map(|object| jitter(object.bbox, self.mix.jitter, rng)).collect();
        Subject { scene, kinds: &self.kinds, boxes, mix: &self.mix }
    }

    fn conversation(
        &self,
        question_type: QuestionType,
        subject: &Subject<'_>,
        rng: &mut impl Rng,
    ) -> Option<Conversation> {
        if subject.scene.objects.is_empty() {
            return None;
        }
        match question_type {
            QuestionType::Dialogue => {
                let turns = subject.dialogue(rng)?;
                Some(assemble(question_type, turns, &subject.boxes, rng))
            }
            QuestionType::Point => self.point(subject, rng),
            _ => {
                let turn = subject.turn(question_type, &mut Vec::new(), rng)?;
                Some(assemble(question_type, vec![turn], &subject.boxes, rng))
            }
        }
    }

    fn point(&self, subject: &Subject<'_>, rng: &mut impl Rng) -> Option<Conversation> {
        let object = rng.random_range(0..subject.scene.objects.len());
        let point = subject.scene.visible_point(object, rng)?;
        let (least, most) = self.mix.point_reach;
        let mut boxes = subject.boxes.clone();
        boxes[object] = box_around(point, rng.random_range(least..=most))?;
        let turn = subject.name(object, rng);
        let conversation = assemble(QuestionType::Point, vec![turn], &boxes, rng);
        Some(Conversation { point: Some(point), ..conversation })
    }
}

/// The box around a point, cut at the picture's edges; `reach` is half its side. `None` for a point
/// outside the picture.
pub fn box_around(point: Point, reach: f64) -> Option<BBox> {
    let low = |at: f64| (at - reach).max(0.0);
    let high = |at: f64| (at + reach).min(1.0);
    BBox::from_normalized([low(point.x), low(point.y), high(point.x), high(point.y)]).ok()
}

/// Moves each edge by up to `share` of the box's side, inside the picture.
pub fn jitter(bbox: BBox, share: f64, rng: &mut impl Rng) -> BBox {
    if share == 0.0 {
        return bbox;
    }
    let [x1, y1, x2, y2] = bbox.normalized();
    let mut moved = |at: f64, length: f64| (at + length * rng.random_range(-share..=share)).clamp(0.0, 1.0);
    let corners = [moved(x1, x2 - x1), moved(y1, y2 - y1), moved(x2, x2 - x1), moved(y2, y2 - y1)];
    BBox::from_normalized(corners).unwrap_or(bbox)
}

/// Gives the objects of some turns their numbers and writes the turns out.
fn assemble(question_type: QuestionType, turns: Vec<Turn>, boxes: &[BBox], rng: &mut impl Rng) -> Conversation {
    let mut order: Vec<usize> = Vec::new();
    for object in turns.iter().flat_map(|turn| mentions(&turn.question, &turn.objects)) {
        if !order.contains(&object) {
            order.push(object);
        }
    }
    let mut ids: Vec<u32> = (1..=LARGEST_ID.max(order.len() as u32)).collect();
    if !rng.random_bool(ORDERED) {
        ids.shuffle(rng);
    }
    let id_of = |object: usize| {
        let at = order.iter().position(|other| *other == object).unwrap_or_default();
        RegionId(ids[at])
    };
    let rounds = turns.iter().map(|turn| turn.write(id_of)).collect();
    let key = |turn: Turn| match turn.key {
        KeyDraft::Done(key) => key,
        KeyDraft::Names(names) => {
            AnswerKey::Names(names.into_iter().map(|(object, kind)| (id_of(object), kind)).collect())
        }
    };
    let keys = turns.into_iter().map(key).collect();
    let regions = order.iter().map(|object| (id_of(*object), boxes[*object], *object)).collect();
    Conversation { question_type, regions, rounds, point: None, keys }
}

/// The objects that a text mentions, in order.
fn mentions(text: &str, objects: &[usize]) -> Vec<usize> {
    let slots = text.split('{').skip(1);
    slots
        .filter_map(|rest| rest[..rest.find('}')?].parse().ok().and_then(|slot: usize| objects.get(slot).copied()))
        .collect()
}

impl Turn {
    fn write(&self, id_of: impl Fn(usize) -> RegionId) -> Round {
        let mut question = Vec::new();
        for (at, part) in self.question.split('{').enumerate() {
            let (slot, text) = if at == 0 { (None, part) } else { split_slot(part) };
            question.extend(slot.map(|slot| Piece::Region(id_of(self.objects[slot]))));
            if !text.is_empty() {
                question.push(Piece::Text(text.into()));
            }
        }
        let mut answer = self.answer.clone();
        for (slot, object) in self.objects.iter().enumerate() {
            answer = answer.replace(&format!("{{{slot}}}"), &format!("region{}", id_of(*object).0));
        }
        Round { question, answer: Some(answer) }
    }
}

/// "0} and " → slot 0 and " and ".
fn split_slot(part: &str) -> (Option<usize>, &str) {
    match part.split_once('}') {
        Some((slot, text)) => (slot.parse().ok(), text),
        None => (None, part),
    }
}

impl Subject<'_> {
    /// One round. In a dialogue `known` are the objects already mentioned: some are asked about again.
    fn turn(&self, question_type: QuestionType, known: &mut Vec<usize>, rng: &mut impl Rng) -> Option<Turn> {
        let object = self.pick(known, rng);
        let turn = match question_type {
            QuestionType::Multi => self.multi(rng)?,
            QuestionType::Relation => self.relation(known, rng)?,
            QuestionType::Position => self.position(known, rng)?,
            QuestionType::YesNo => self.yes_no(known, rng)?,
            QuestionType::Short => self.short(object, rng)?,
            QuestionType::Detail => self.detail(object, rng)?,
            QuestionType::Recall => self.recall(rng)?,
            QuestionType::Which => self.which(rng)?,
            QuestionType::Purpose => self.purpose(object, rng),
            QuestionType::Picture => self.picture(rng),
            QuestionType::Name | QuestionType::Point | QuestionType::Dialogue => self.name(object, rng),
        };
        for object in mentions(&turn.question, &turn.objects) {
            if !known.contains(&object) {
                known.push(object);
            }
        }
        Some(turn)
    }

    fn kind(&self, object: usize) -> &Kind {
        &self.kinds[self.scene.objects[object].kind]
    }

    /// Any object, or, where some are known, as likely one of those.
    fn pick(&self, known: &[usize], rng: &mut impl Rng) -> usize {
        match known.choose(rng) {
            Some(object) if rng.random_bool(0.5) => *object,
            _ => rng.random_range(0..self.scene.objects.len()),
        }
    }

    /// Objects in random order.
    fn shuffled(&self, rng: &mut impl Rng) -> Vec<usize> {
        let mut objects: Vec<usize> = (0..self.scene.objects.len()).collect();
        objects.shuffle(rng);
        objects
    }

    fn name(&self, object: usize, rng: &mut impl Rng) -> Turn {
        let kind = self.kind(object);
        let question = pick_text(answers::NAME, rng).replace("{category}", answers::noun(&kind.category));
        let key = KeyDraft::Done(AnswerKey::Name(kind.clone()));
        Turn { objects: vec![object], question, answer: answers::sentence(&kind.phrase()), key }
    }

    fn multi(&self, rng: &mut impl Rng) -> Option<Turn> {
        let objects = self.several(rng)?;
        let slots: Vec<String> = (0..objects.len()).map(|slot| format!("{{{slot}}}")).collect();
        let question = pick_text(answers::MULTI, rng).replace("{list}", &answers::listed(&slots));
        let names: Vec<String> = (slots.iter().zip(&objects))
            .map(|(slot, object)| format!("{slot} is {}", self.kind(*object).phrase()))
            .collect();
        let key = KeyDraft::Names(objects.iter().map(|object| (*object, self.kind(*object).clone())).collect());
        Some(Turn { objects, question, answer: format!("{}.", names.join(", ")), key })
    }

    fn recall(&self, rng: &mut impl Rng) -> Option<Turn> {
        let (turn, object) = self.one_of_several(answers::RECALL, rng)?;
        let kind = self.kind(object);
        let (answer, key) = (answers::sentence(&kind.phrase()), KeyDraft::Done(AnswerKey::Name(kind.clone())));
        Some(Turn { answer, key, ..turn })
    }

    fn which(&self, rng: &mut impl Rng) -> Option<Turn> {
        self.one_of_several(answers::WHICH, rng).map(|(turn, _)| turn)
    }

    /// A question that lists objects and means one of them, with the answer "region2 is a cat.", and that object. No two
    /// objects of a scene are of one kind, so that no other answer is right.
    fn one_of_several(&self, texts: &[&str], rng: &mut impl Rng) -> Option<(Turn, usize)> {
        let objects = self.several(rng)?;
        let slots: Vec<String> = (0..objects.len()).map(|slot| format!("{{{slot}}}")).collect();
        let (slot, &object) = slots.iter().zip(&objects).choose(rng)?;
        let phrase = self.kind(object).phrase();
        let question = pick_text(texts, rng).replace("{list}", &answers::listed(&slots));
        let question = question.replace("{one}", slot).replace("{phrase}", &phrase);
        let answer = format!("{slot} is {phrase}.");
        let key = KeyDraft::Names(vec![(object, self.kind(object).clone())]);
        Some((Turn { objects, question, answer, key }, object))
    }

    /// Two objects or more in random order.
    fn several(&self, rng: &mut impl Rng) -> Option<Vec<usize>> {
        let mut objects = self.shuffled(rng);
        let counts: Vec<(usize, f64)> = (2..=objects.len()).zip(self.mix.multi_counts.iter().copied()).collect();
        let (count, _) = counts.choose_weighted(rng, |(_, weight)| *weight).ok()?;
        objects.truncate(*count);
        Some(objects)
    }

    /// Two objects of which one lies clearly in one direction of the other; some may be known.
    fn related_pair(&self, known: &[usize], rng: &mut impl Rng) -> Option<([usize; 2], Direction)> {
        let mut pairs = Vec::new();
        for first in 0..self.scene.objects.len() {
            for second in 0..self.scene.objects.len() {
                let suits = known.is_empty() || known.contains(&first) || known.contains(&second);
                if let Some(direction) = self.direction(first, second).filter(|_| first != second && suits) {
                    pairs.push(([first, second], direction));
                }
            }
        }
        pairs.choose(rng).copied()
    }

    fn direction(&self, first: usize, second: usize) -> Option<Direction> {
        Direction::between(&self.scene.objects[first].bbox, &self.scene.objects[second].bbox)
    }

    fn relation(&self, known: &[usize], rng: &mut impl Rng) -> Option<Turn> {
        let (objects, direction) = self.related_pair(known, rng)?;
        let key = KeyDraft::Done(AnswerKey::Relation(direction));
        let answer = format!("{{0}} is {} {{1}}.", direction.phrase());
        Some(Turn { objects: objects.into(), question: pick_text(answers::RELATION, rng).into(), answer, key })
    }

    fn position(&self, known: &[usize], rng: &mut impl Rng) -> Option<Turn> {
        let mut clear: Vec<(usize, &'static str)> = (self.scene.objects.iter().enumerate())
            .filter(|(object, _)| known.is_empty() || known.contains(object))
            .filter_map(|(object, found)| Some((object, answers::position(&found.bbox)?)))
            .collect();
        // First a ninth of the picture, then an object in it: no ninth is asked for much more often.
        let mut ninths: Vec<&str> = clear.iter().map(|(_, ninth)| *ninth).collect();
        ninths.sort_unstable();
        ninths.dedup();
        let ninth = *ninths.choose(rng)?;
        clear.retain(|(_, other)| *other == ninth);
        let (object, _) = *clear.choose(rng)?;
        let question = pick_text(answers::POSITION, rng).into();
        let key = KeyDraft::Done(AnswerKey::Position(ninth.into()));
        Some(Turn { objects: vec![object], question, answer: answers::sentence(&answers::place(ninth)), key })
    }

    /// Half of the answers are yes. A wrong kind is as likely one that the picture shows elsewhere.
    fn yes_no(&self, known: &[usize], rng: &mut impl Rng) -> Option<Turn> {
        let yes = rng.random_bool(0.5);
        if rng.random_bool(self.mix.presence) {
            return self.is_there(yes, rng);
        }
        match rng.random_range(0..16) {
            0..9 => self.is_kind(self.pick(known, rng), yes, rng),
            _ => self.is_in_direction(known, yes, rng),
        }
    }

    fn is_kind(&self, object: usize, yes: bool, rng: &mut impl Rng) -> Option<Turn> {
        let kind = self.kind(object);
        let asked = if yes { kind } else { self.other_kind(object, rng)? };
        let question = pick_text(answers::IS_KIND, rng).replace("{phrase}", &asked.phrase());
        let answer = format!("{}, it is {}.", answers::verdict(yes), kind.phrase());
        Some(Turn { objects: vec![object], question, answer, key: KeyDraft::Done(AnswerKey::Verdict(yes)) })
    }

    fn other_kind(&self, object: usize, rng: &mut impl Rng) -> Option<&Kind> {
        let others: Vec<usize> = (0..self.scene.objects.len()).filter(|other| *other != object).collect();
        match others.choose(rng) {
            Some(other) if rng.random_bool(0.5) => Some(self.kind(*other)),
            _ => self.absent_kind(rng),
        }
    }

    fn absent_kind(&self, rng: &mut impl Rng) -> Option<&Kind> {
        let present = |kind: &usize| self.scene.objects.iter().any(|object| object.kind == *kind);
        let absent: Vec<usize> = (0..self.kinds.len()).filter(|kind| !present(kind)).collect();
        absent.choose(rng).map(|kind| &self.kinds[*kind])
    }

    fn is_in_direction(&self, known: &[usize], yes: bool, rng: &mut impl Rng) -> Option<Turn> {
        let (objects, direction) = self.related_pair(known, rng)?;
        let wrong: Vec<Direction> = Direction::ALL.into_iter().filter(|other| *other != direction).collect();
        let asked = if yes { direction } else { *wrong.choose(rng)? };
        let question = pick_text(answers::IS_DIRECTION, rng).replace("{direction}", asked.phrase());
        let answer = format!("{}, it is {} {{1}}.", answers::verdict(yes), direction.phrase());
        Some(Turn { objects: objects.into(), question, answer, key: KeyDraft::Done(AnswerKey::Verdict(yes)) })
    }

    fn is_there(&self, yes: bool, rng: &mut impl Rng) -> Option<Turn> {
        let kind = if yes { self.kind(rng.random_range(0..self.scene.objects.len())) } else { self.absent_kind(rng)? };
        let question = pick_text(answers::IS_THERE, rng).replace("{phrase}", &kind.phrase());
        let answer = match yes {
            true => format!("Yes, there is {}.", kind.phrase()),
            false => format!("No, there is not {}.", kind.phrase()),
        };
        Some(Turn { objects: vec![], question, answer, key: KeyDraft::Done(AnswerKey::Verdict(yes)) })
    }

    fn short(&self, object: usize, rng: &mut impl Rng) -> Option<Turn> {
        let ninth = answers::position(&self.scene.objects[object].bbox)?;
        let kind = self.kind(object);
        let answer = answers::sentence(&format!("{} {}", kind.colored_phrase(), answers::place(ninth)));
        let key = KeyDraft::Done(AnswerKey::Contains(vec![kind.name.clone(), ninth.into()]));
        Some(Turn { objects: vec![object], question: pick_text(answers::SHORT, rng).into(), answer, key })
    }

    fn detail(&self, object: usize, rng: &mut impl Rng) -> Option<Turn> {
        let kind = self.kind(object);
        let found = &self.scene.objects[object];
        let ninth = answers::position(&found.bbox)?;
        let mut text = vec![
            format!("It is {}.", kind.colored_phrase()),
            format!("{} is {}.", answers::capital(&kind.phrase()), answers::category(&kind.category)),
            format!("It is {} and {} of the picture.", answers::relative_size(&found.bbox), answers::place(ninth)),
        ];
        if let Some((neighbor, direction)) = self.scene.nearest(object) {
            text.push(format!("It is {} {}.", direction.phrase(), self.kind(neighbor).phrase()));
        }
        text.push(answers::purpose(kind));
        let key = KeyDraft::Done(AnswerKey::Contains(vec![kind.name.clone(), ninth.into()]));
        let question = pick_text(answers::DETAIL, rng).into();
        Some(Turn { objects: vec![object], question, answer: text.join(" "), key })
    }

    fn purpose(&self, object: usize, rng: &mut impl Rng) -> Turn {
        let kind = self.kind(object);
        let key = KeyDraft::Done(AnswerKey::Contains(vec![kind.name.clone(), kind.purpose.clone()]));
        Turn {
            objects: vec![object],
            question: pick_text(answers::PURPOSE, rng).into(),
            answer: answers::purpose(kind),
            key,
        }
    }

    /// Objects are listed from left to right.
    fn picture(&self, rng: &mut impl Rng) -> Turn {
        let mut objects: Vec<usize> = (0..self.scene.objects.len()).collect();
        let across = |object: usize| answers::center(&self.scene.objects[object].bbox)[0];
        objects.sort_by(|a, b| across(*a).total_cmp(&across(*b)));
        let phrases: Vec<String> = objects.iter().map(|object| self.kind(*object).phrase()).collect();
        let answer = format!("{}: {}.", answers::count(objects.len()), answers::listed(&phrases));
        let names = objects.iter().map(|object| self.kind(*object).name.clone()).collect();
        let key = KeyDraft::Done(AnswerKey::Contains(names));
        Turn { objects: vec![], question: pick_text(answers::PICTURE, rng).into(), answer, key }
    }

    /// Several rounds; the later ones come back to regions of the earlier ones and bring new ones.
    fn dialogue(&self, rng: &mut impl Rng) -> Option<Vec<Turn>> {
        const OPENINGS: &[QuestionType] =
            &[QuestionType::Name, QuestionType::Name, QuestionType::Multi, QuestionType::Picture, QuestionType::Short];
        const FOLLOWING: &[QuestionType] = &[
            QuestionType::Name,
            QuestionType::Name,
            QuestionType::Relation,
            QuestionType::Relation,
            QuestionType::Position,
            QuestionType::YesNo,
            QuestionType::YesNo,
            QuestionType::Purpose,
            QuestionType::Detail,
        ];
        let (fewest, most) = self.mix.dialogue_rounds;
        let length = rng.random_range(fewest..=most);
        let mut known = Vec::new();
        let mut turns = Vec::new();
        for _ in 0..length * TRIES {
            let from = if turns.is_empty() { OPENINGS } else { FOLLOWING };
            let question_type = *from.choose(rng)?;
            turns.extend(self.turn(question_type, &mut known, rng));
            if turns.len() == length {
                return Some(turns);
            }
        }
        None
    }
}

fn pick_text<'a>(texts: &'a [&'a str], rng: &mut impl Rng) -> &'a str {
    texts.choose(rng).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::{SceneConfig, Scenes};

    /// All conversations of one type about some scenes.
    fn ask(question_type: QuestionType, mix: QuestionMix) -> Vec<(Scene, Conversation)> {
        let scenes =
            Scenes::new(SceneConfig { kinds: 24, ..SceneConfig::default() }.resized(96)).expect("settings are sound");
        let questions = Questions::new(mix, scenes.kinds()).expect("settings are sound");
        let asked = (0..40).flat_map(|index| {
            let scene = scenes.scene(index);
            let mut rng = scenes.question_rng(index);
            let asked: Vec<Conversation> =
                (0..5).filter_map(|_| questions.ask_one(question_type, &scene, &mut rng)).collect();
            asked.into_iter().map(move |conversation| (scene.clone(), conversation)).collect::<Vec<_>>()
        });
        asked.collect()
    }

    #[test]
    fn every_type_is_asked_and_its_own_answer_is_right() {
        for question_type in QuestionType::ALL {
            let asked = ask(question_type, QuestionMix::default());
            assert!(asked.len() > 100, "{question_type:?}: {}", asked.len());
            let phrasings: HashSet<_> =
                asked.iter().map(|(_, asked)| format!("{:?}", asked.rounds[0].question)).collect();
            assert!(phrasings.len() > 3, "{question_type:?}: {}", phrasings.len());
            for (scene, conversation) in &asked {
                let last = conversation.rounds.last().expect("a round");
                assert!(conversation.rounds.iter().zip(conversation.answer_keys()).all(|(round, key)| {
                    conversation.rounds.len() == conversation.answer_keys().len()
                        && key.accepts(round.answer.as_deref().expect("an answer"))
                }));
                assert!(conversation.is_correct(last.answer.as_deref().expect("an answer")), "{conversation:?}");
                assert!(!conversation.is_correct("") && !conversation.is_correct("Maybe."));
                let text = format!("{:?}", conversation.rounds);
                assert!(
                    !text.contains(['{', '}']) || text.matches('{').count() == text.matches("Round {").count(),
                    "{text}"
                );
                assert!(
                    conversation
                        .regions
                        .iter()
                        .all(|(id, _, object)| (1..=8).contains(&id.0) && *object < scene.objects.len())
                );
                let ids: HashSet<_> = conversation.regions.iter().map(|(id, ..)| id).collect();
                assert_eq!(ids.len(), conversation.regions.len());
                assert_eq!(conversation.open_rounds().last().expect("a round").answer, None);
            }
        }
    }

    #[test]
    fn regions_stand_in_the_order_of_their_mention() {
        let mut in_order = HashMap::new();
        for (_, conversation) in ask(QuestionType::Multi, QuestionMix::default()) {
            let mentioned: Vec<RegionId> = (conversation.rounds[0].question.iter())
                .filter_map(|piece| if let Piece::Region(id) = piece { Some(*id) } else { None })
                .collect();
            let listed: Vec<RegionId> = conversation.regions.iter().map(|(id, ..)| *id).collect();
            assert_eq!(mentioned, listed);
            *in_order.entry(listed.is_sorted()).or_insert(0) += 1;
        }
        // Half of them are numbered in order on purpose, and of the others some by chance.
        assert!(in_order[&true] > 60 && in_order[&false] > 40, "{in_order:?}");
    }

    #[test]
    fn as_many_regions_are_asked_about_as_the_weights_say() {
        for (weights, counts) in
            [(vec![1.0; 3], 2..=4), (vec![0.0, 0.0, 0.0, 0.0, 1.0, 1.0], 6..=7), (vec![1.0], 2..=2)]
        {
            let mix = QuestionMix { multi_counts: weights, ..QuestionMix::default() };
            for question_type in [QuestionType::Multi, QuestionType::Recall] {
                let asked: HashSet<usize> = ask(question_type, mix.clone())
                    .iter()
                    .map(|(_, conversation)| conversation.regions.len())
                    .collect();
                assert_eq!(asked, counts.clone().collect(), "{question_type:?}");
            }
        }
    }

    #[test]
    fn half_of_the_verdicts_are_yes() {
        let asked = ask(QuestionType::YesNo, QuestionMix::default());
        let yes = asked.iter().filter(|(_, conversation)| conversation.is_correct("Yes.")).count();
        let share = yes as f64 / asked.len() as f64;
        assert!((0.4..0.6).contains(&share), "{share}");
    }

    #[test]
    fn points_lie_on_the_object_asked_about() {
        for (scene, conversation) in ask(QuestionType::Point, QuestionMix::default()) {
            let point = conversation.point.expect("a point");
            let (_, bbox, object) = conversation.regions[0];
            assert_eq!(scene.topmost_at(point), Some(object));
            let [x1, y1, x2, y2] = bbox.normalized();
            assert!(x1 <= point.x && point.x <= x2 && y1 <= point.y && point.y <= y2 && x2 - x1 <= 0.08 + 1e-9);
        }
    }

    #[test]
    fn jitter_moves_edges_within_its_share() {
        for (scene, conversation) in ask(QuestionType::Name, QuestionMix { jitter: 0.1, ..QuestionMix::default() }) {
            let (_, bbox, object) = conversation.regions[0];
            let (moved, [x1, y1, x2, y2]) = (bbox.normalized(), scene.objects[object].bbox.normalized());
            for (at, (edge, side)) in
                [(x1, x2 - x1), (y1, y2 - y1), (x2, x2 - x1), (y2, y2 - y1)].into_iter().enumerate()
            {
                assert!((moved[at] - edge).abs() <= 0.1 * side + 1e-9);
            }
        }
        for (scene, conversation) in ask(QuestionType::Name, QuestionMix::default()) {
            let (_, bbox, object) = conversation.regions[0];
            assert_eq!(bbox, scene.objects[object].bbox);
        }
    }

    #[test]
    fn later_rounds_come_back_to_earlier_regions() {
        let asked = ask(QuestionType::Dialogue, QuestionMix::default());
        let regions = |round: &Round| -> HashSet<RegionId> {
            round
                .question
                .iter()
                .filter_map(|piece| if let Piece::Region(id) = piece { Some(*id) } else { None })
                .collect()
        };
        let returning = asked.iter().filter(|(_, conversation)| {
            let rounds: Vec<_> = conversation.rounds.iter().map(regions).collect();
            (1..rounds.len()).any(|later| (0..later).any(|earlier| !rounds[later].is_disjoint(&rounds[earlier])))
        });
        let returning = returning.count();
        assert!(asked.iter().all(|(_, conversation)| (2..=4).contains(&conversation.rounds.len())));
        assert!(returning * 2 > asked.len(), "{returning} of {}", asked.len());
    }

    #[test]
    fn dialogues_are_as_long_as_wished() {
        let asked = ask(QuestionType::Dialogue, QuestionMix { dialogue_rounds: (3, 3), ..QuestionMix::default() });
        assert!(asked.len() > 100 && asked.iter().all(|(_, conversation)| conversation.rounds.len() == 3));
        let kinds = crate::kinds::pool().expect("the list is sound");
        for dialogue_rounds in [(0, 2), (3, 2), (1, usize::MAX)] {
            let error = Questions::new(QuestionMix { dialogue_rounds, ..QuestionMix::default() }, &kinds).unwrap_err();
            assert!(error.to_string().contains("dialogue_rounds"), "{error}");
        }
    }

    #[test]
    fn weights_decide_what_is_asked() {
        let scenes =
            Scenes::new(SceneConfig { kinds: 12, ..SceneConfig::default() }.resized(96)).expect("settings are sound");
        let none = QuestionMix {
            name: 0.0,
            multi: 0.0,
            relation: 0.0,
            position: 0.0,
            yes_no: 0.0,
            point: 0.0,
            short: 0.0,
            detail: 0.0,
            recall: 0.0,
            which: 0.0,
            purpose: 0.0,
            picture: 0.0,
            dialogue: 0.0,
            ..QuestionMix::default()
        };
        assert!(Questions::new(none.clone(), scenes.kinds()).is_err());
        assert!(Questions::new(QuestionMix { name: f64::NAN, ..QuestionMix::default() }, scenes.kinds()).is_err());
        let pictures = Questions::new(QuestionMix { picture: 1.0, count: 7, ..none }, scenes.kinds()).expect("sound");
        let asked = pictures.ask(&scenes.scene(0), &mut scenes.question_rng(0));
        assert_eq!(asked.len(), 7);
        assert!(asked.iter().all(|conversation| conversation.question_type == QuestionType::Picture));
    }
}
