//! Files of records.

use std::{collections::HashSet, path::Path};

use gpt4roi::{
    ImageSize, RegionId,
    mention::{self, Part},
    prompt::Piece,
};
use gpt4roi_data::{Dialogue, DialogueRound, RecordOptions, Records};

use crate::regions::is_inside;

/// A file is an error, or everything in it can be asked: its questions mention nothing but their regions, mean the same
/// when they are typed, what may be chosen can be told apart, and a box is refused or lies in the picture.
pub fn records(bytes: &[u8]) {
    let Ok(records) = Records::from_bytes(Path::new("hostile.jsonl"), bytes, &RecordOptions::default()) else { return };
    for picture in records.pictures() {
        assert!(!picture.dialogues.is_empty());
        picture.dialogues.iter().for_each(can_be_asked);
    }
}

fn can_be_asked(dialogue: &Dialogue) {
    assert!(!dialogue.rounds.is_empty());
    if let Ok(boxes) = dialogue.boxes(ImageSize { width: 64, height: 48 }) {
        boxes.iter().for_each(|(_, bbox)| is_inside(bbox));
    }
    let declared: Vec<_> = dialogue.regions.iter().map(|(id, _)| *id).collect();
    for round in &dialogue.rounds {
        assert!(!round.question.is_empty());
        assert_eq!(parsed(&round.typed(), &declared), round.question);
        for piece in &round.question {
            assert!(matches!(piece, Piece::Text(_)) || matches!(piece, Piece::Region(id) if declared.contains(id)));
        }
        can_be_chosen_from(round);
        assert!(round.answers.iter().all(|answer| !answer.trim().is_empty()));
        assert!(round.said.as_ref().is_none_or(|said| !said.trim().is_empty()));
    }
}

fn can_be_chosen_from(round: &DialogueRound) {
    let different: HashSet<&str> = round.choices.iter().map(|choice| choice.trim()).collect();
    assert_eq!(different.len(), round.choices.len());
    assert!(!different.contains("") && different.len() != 1);
    assert!(round.choices.is_empty() || round.answers.iter().all(|answer| round.choices.contains(answer)));
}

fn parsed(typed: &str, declared: &[RegionId]) -> Vec<Piece> {
    let parts = mention::parse_mentions(typed, declared).expect("it was read before");
    let piece = |part| match part {
        Part::Text(text) => Piece::Text(text),
        Part::Mention(id) => Piece::Region(id),
        Part::Box(_) | Part::Point(_) => panic!("coordinates have no meaning without a picture"),
    };
    parts.into_iter().map(piece).collect()
}
