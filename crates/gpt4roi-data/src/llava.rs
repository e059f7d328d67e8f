//! LLaVA's conversations, as records: questions about whole pictures.
//!
//! Format: <https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md>.

use std::{io, path::Path, sync::Arc};

use serde::Deserialize;

use crate::{
    error::DataError,
    records::{
        Dialogue, DialogueRound, Entry, Gathering, Id, Picture, Place, RecordError, RecordOptions, has_words,
        read_json, round_question,
    },
};

/// Stands for the picture in a question.
const IMAGE: &str = "<image>";
/// Whose turn it is, in turns.
const SPEAKERS: [&str; 2] = ["human", "gpt"];

#[derive(Deserialize)]
struct Conversation {
    id: Id,
    /// Mixes have conversations that are text alone.
    image: Option<String>,
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    from: String,
    value: String,
}

/// What a file holds.
pub(crate) struct Read {
    /// Whatever is asked about a picture.
    pub(crate) pictures: Vec<Picture>,
    /// How many conversations are about none.
    pub(crate) without_picture: usize,
}

/// One dialogue for each conversation about a picture. Others are counted: nothing can be asked about their picture.
pub(crate) fn read(file: &Arc<Path>, reader: impl io::Read, options: &RecordOptions) -> Result<Read, DataError> {
    let conversations: Vec<Conversation> = read_json(file, reader)?;
    let place = |id: &Id| Place { file: file.clone(), entry: Entry::Conversation(id.to_string()) };
    let (mut gathering, mut without_picture) = (Gathering::new(file, options), 0);
    for Conversation { id, image, conversations } in &conversations {
        let Some(image) = image else {
            without_picture += 1;
            continue;
        };
        let rounds = rounds(conversations).map_err(|error| place(id).error(error))?;
        let (id, place) = (id.to_string(), place(id));
        gathering.add(image, Dialogue { id, place, regions: Vec::new(), stated_size: None, rounds });
    }
    match conversations.first() {
        // A field of another name, more likely than a file of text.
        Some(first) if without_picture == conversations.len() => Err(place(&first.id).error(RecordError::NoPicture)),
        _ => Ok(Read { pictures: gathering.finish(), without_picture }),
    }
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
    let answers: Vec<String> = turns.iter().skip(1).map(|turn| turn.value.trim().to_owned()).collect();
    answers.iter().try_for_each(|answer| has_words(round, answer))?;
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
        {"id": "talk", "model": "", "conversations": [{"from": "gpt", "value": "Hello."}]},
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
        assert_eq!(records.without_picture(), 1, "a talk that the model can't be asked to join");
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
        let told = error("Yes.", " ");
        assert_eq!(told, "llava.json, conversation 000000033471: round 2: answer: expected words, got none");
        let told = error("What is it?", "What is <region1>?");
        assert!(told.starts_with("llava.json, conversation 2: round 1: question: character 9: "), "{told}");
    }

    #[test]
    fn a_file_without_pictures_is_refused() {
        let error = open(&FILE.replace(r#""image""#, r#""picture""#)).unwrap_err();
        let expected = "llava.json, conversation 000000033471: image: expected a picture here or in another conversation, \
                        got none in the file";
        assert_eq!(error.to_string(), expected);
    }
}
