//! LLaVA's conversations, as records: questions about whole pictures.
//!
//! Format: <https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md>.

use std::{io::Read, path::Path, sync::Arc};

use serde::Deserialize;

use crate::{
    error::DataError,
    records::{
        Dialogue, DialogueRound, Entry, Gathering, Id, Picture, Place, RecordError, RecordOptions, read_json,
        round_question,
    },
};

/// Stands for the picture in a question.
const IMAGE: &str = "<image>";
/// Whose turn it is, in turns.
const SPEAKERS: [&str; 2] = ["human", "gpt"];

#[derive(Deserialize)]
struct Conversation {
    id: Id,
    image: String,
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    from: String,
    value: String,
}

/// One dialogue for each conversation.
pub(crate) fn read(file: &Arc<Path>, reader: impl Read, options: &RecordOptions) -> Result<Vec<Picture>, DataError> {
    let conversations: Vec<Conversation> = read_json(file, reader)?;
    let mut gathering = Gathering::new(file, options);
    for conversation in conversations {
        let id = conversation.id.to_string();
        let place = Place { file: file.clone(), entry: Entry::Conversation(id.clone()) };
        let rounds = rounds(&conversation.conversations).map_err(|error| place.clone().error(error))?;
        gathering.add(&conversation.image, Dialogue { id, place, regions: Vec::new(), rounds });
    }
    Ok(gathering.finish())
}

fn rounds(turns: &[Turn]) -> Result<Vec<DialogueRound>, RecordError> {
    for ((number, turn), expected) in (1..).zip(turns).zip(SPEAKERS.into_iter().cycle()) {
        if turn.from != expected {
            return Err(RecordError::Speaker { turn: number, expected, got: turn.from.clone() });
        }
    }
    if turns.is_empty() {
        return Err(RecordError::NoRounds);
    }
    (1..).zip(turns.chunks(2)).map(|(number, turns)| round(number, turns)).collect()
}

/// A question and, unless it is the last, its answer.
fn round(round: usize, turns: &[Turn]) -> Result<DialogueRound, RecordError> {
    let typed = turns.first().map_or("", |turn| &turn.value).replace(IMAGE, "");
    let question = round_question(round, &typed, &[])?;
    let answers = turns.iter().skip(1).map(|turn| turn.value.trim().to_owned()).collect();
    Ok(DialogueRound { question, choices: Vec::new(), answers, said: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Records, records::Form};

    const FILE: &str = r#"[
        {"id": "000000033471", "image": "000000033471.jpg", "conversations": [
            {"from": "human", "value": "<image>\nWhat colours has the bus?"}, {"from": "gpt", "value": "White and red. "},
            {"from": "human", "value": "Is it driving?\n<image>"}, {"from": "gpt", "value": "Yes."}]},
        {"id": 2, "image": "part/b.png", "conversations": [{"from": "human", "value": "What is it?"}]}]"#;

    fn open(file: &str) -> Result<Records, DataError> {
        Records::from_bytes(Path::new("llava.json"), file.as_bytes(), &RecordOptions::default())
    }

    #[test]
    fn questions_are_about_the_whole_picture() {
        let records = open(FILE).unwrap();
        assert_eq!(records.form(), Form::Llava);
        let [bus, b] = records.pictures() else { panic!("{records:?}") };
        assert_eq!((bus.name.as_str(), b.path.as_path()), ("000000033471.jpg", Path::new("part/b.png")));
        let said: Vec<(String, &[String])> =
            bus.dialogues[0].rounds.iter().map(|round| (round.typed(), round.answers.as_slice())).collect();
        let expected =
            [("What colours has the bus?", ["White and red.".to_owned()]), ("Is it driving?", ["Yes.".into()])];
        assert_eq!(said, expected.each_ref().map(|(typed, answers)| (typed.to_string(), &answers[..])));
        assert!(bus.dialogues[0].regions.is_empty());
        assert_eq!((b.dialogues[0].id.as_str(), b.dialogues[0].rounds[0].answers.len()), ("2", 0));
    }

    #[test]
    fn what_is_no_conversation_is_named() {
        let error = |from: &str, to: &str| {
            assert!(FILE.contains(from));
            open(&FILE.replace(from, to)).unwrap_err().to_string()
        };
        let told = error(r#""human", "value": "Is"#, r#""gpt", "value": "Is"#);
        assert_eq!(told, "llava.json, conversation 000000033471: conversations: turn 3: expected `human`, got `gpt`");
        let told = error("What is it?", "<image>\\n");
        assert_eq!(told, "llava.json, conversation 2: round 1: question: expected words, got none");
        let told = error(r#"[{"from": "human", "value": "What is it?"}]"#, "[]");
        assert_eq!(told, "llava.json, conversation 2: rounds: expected at least one, got none");
        let told = error("What is it?", "What is <region1>?");
        assert!(told.starts_with("llava.json, conversation 2: round 1: question: character 9: "), "{told}");
        let told = error(r#""image": "part"#, r#""picture": "part"#);
        assert!(told.contains("missing field `image`"), "{told}");
    }
}
