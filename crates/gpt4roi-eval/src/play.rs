//! Conversations about scenes, played as a user would.

use gpt4roi::{
    Chat,
    chat::{Answer, AskOptions},
    prompt::Piece,
    zoom::Zoom,
};
use gpt4roi_data::Conversation;

use crate::calibration::Confident;

/// An answer is cut off after so many tokens: names of 16 regions take about 150, all other right answers fewer. A model
/// that has not learned to stop would go on to the end of its context.
const MOST_TOKENS: usize = 256;

/// How questions are put: greedily, with or without a closer look.
pub(crate) fn options(zoom: Zoom) -> AskOptions {
    AskOptions { max_new_tokens: MOST_TOKENS, zoom, ..AskOptions::default() }
}

/// Plays a conversation from its beginning: one answer per round. What the model said in a round is what it has
/// said, right or wrong, in those that follow.
pub(crate) fn play(chat: &mut Chat<'_>, asked: &Conversation, options: &AskOptions) -> gpt4roi::Result<Vec<Answer>> {
    chat.clear();
    let last = asked.regions.iter().map(|(id, ..)| id.0).max().unwrap_or(0);
    if asked.point.is_none() {
        for number in 1..=last {
            // Numbers that nobody mentions are declared as well, so that ids are those of the questions.
            let declared = asked.regions.iter().find(|(id, ..)| id.0 == number).or(asked.regions.first());
            if let Some((_, bbox, _)) = declared {
                chat.add_region(*bbox);
            }
        }
    }
    asked.rounds.iter().map(|round| chat.ask_with(&words(&round.question, asked), options)).collect()
}

/// The question as a user types it.
pub(crate) fn words(question: &[Piece], asked: &Conversation) -> String {
    match asked.point {
        Some(point) => format!("What is at ({:.3}, {:.3})?", point.x, point.y),
        None => {
            let typed = question.iter().map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Region(id) => id.to_string(),
            });
            typed.collect()
        }
    }
}

/// The last answer, judged.
pub(crate) fn judged(answers: &[Answer], asked: &Conversation) -> Confident {
    let last = answers.last();
    Confident {
        probability: last.and_then(Answer::probability).unwrap_or(0.0),
        right: last.is_some_and(|answer| asked.is_correct(&answer.text)),
    }
}

#[cfg(test)]
mod tests {
    use gpt4roi::bbox::Point;
    use gpt4roi_data::{QuestionMix, QuestionType, Questions, SceneConfig, Scenes, Split};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_question_is_typed_with_its_mentions_and_a_point_with_its_coordinates() {
        let scenes = Scenes::new(SceneConfig { kinds: 8, split: Split::Test, ..SceneConfig::default() }).unwrap();
        let questions = Questions::new(QuestionMix::default(), scenes.kinds()).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut asked = questions.ask_one(QuestionType::Name, &scenes.scene(0), &mut rng).unwrap();
        let id = asked.regions[0].0;
        assert!(words(&asked.rounds[0].question, &asked).contains(&id.to_string()));
        asked.point = Some(Point { x: 0.25, y: 0.5 });
        assert_eq!(words(&asked.rounds[0].question, &asked), "What is at (0.250, 0.500)?");
    }
}
