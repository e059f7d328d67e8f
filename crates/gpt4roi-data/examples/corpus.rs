//! Prints every text that questions about scenes can have, a line each: what a vocabulary is made
//! from. `cargo run -p gpt4roi-data --example corpus > corpus.txt`

#![allow(clippy::print_stdout)]

use gpt4roi::prompt::Piece;
use gpt4roi_data::{DataError, QuestionMix, Questions, SceneConfig, Scenes, corpus, kinds};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Scenes enough for every phrasing to occur.
const SCENES: u64 = 300;

fn main() -> Result<(), DataError> {
    let pool = kinds::pool()?;
    for line in corpus::facts(&pool) {
        println!("{line}");
    }
    // Small pictures: nobody looks at them.
    let config = SceneConfig { kinds: pool.len(), ..SceneConfig::default() }.resized(56);
    let scenes = Scenes::new(config)?;
    let questions = Questions::new(QuestionMix::default(), &pool)?;
    for index in 0..SCENES {
        let mut rng = ChaCha8Rng::seed_from_u64(index);
        for round in questions.ask(&scenes.scene(index), &mut rng).into_iter().flat_map(|asked| asked.rounds) {
            let words = |piece: &Piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Region(id) => format!("region{}", id.0),
            };
            println!("{}", round.question.iter().map(words).collect::<String>());
            println!("{}", round.answer.unwrap_or_default());
        }
    }
    Ok(())
}
