//! Scenes with exact annotations, questions about them, people's own records, and batches for training.
//!
//! A *scene* is a picture composed of drawn objects of known kinds, so that boxes, names, places and
//! relations are exact. Everything follows from seeds: the same settings and number give the same
//! scene on every machine.
//!
//! In the order in which data flows:
//!
//! * [`kinds`]: what objects there are, what is known of them, and their drawings;
//! * [`scenes`]: pictures of them, with boxes, patch labels and splits;
//! * [`questions`]: conversations about a scene; [`answers`]: their words, and which answers are right;
//!   [`descriptions`]: which claims of a detailed description are;
//! * [`records`]: conversations about people's own pictures, read from files;
//! * [`batch`]: all conversations about one picture as one sequence;
//! * [`export`]: scenes as files; [`corpus`]: all sentences there are, for a vocabulary.
//!
//! ```
//! use gpt4roi_data::{QuestionMix, QuestionType, Questions, SceneConfig, Scenes};
//!
//! let scenes = Scenes::new(SceneConfig { kinds: 64, seed: 7, ..SceneConfig::default() })?;
//! let scene = scenes.scene(0);
//! let questions = Questions::new(QuestionMix::default(), scenes.kinds())?;
//! let asked = questions.ask_one(QuestionType::Name, &scene, &mut scenes.question_rng(0)).expect("it has objects");
//! let (_, _, object) = asked.regions[0];
//! let name = &scenes.kinds()[scene.objects[object].kind].name;
//! assert!(asked.is_correct(name));
//! # Ok::<(), gpt4roi_data::DataError>(())
//! ```

mod all_seeing;
pub mod answers;
mod background;
pub mod batch;
mod coco;
pub mod corpus;
pub mod descriptions;
pub mod error;
pub mod export;
mod form;
pub mod kinds;
mod llava;
mod mdetr;
mod outline;
pub mod questions;
pub mod records;
pub mod scenes;
mod sentence;
mod sprite;
mod vcr;
mod visual7w;
mod visual_genome;

pub use crate::{
    answers::{AnswerKey, Direction},
    batch::{Packed, Transcript, pack},
    descriptions::{Claim, Judgement, judge},
    error::DataError,
    kinds::{Kind, Style},
    questions::{Conversation, QuestionMix, QuestionType, Questions},
    records::{Dialogue, DialogueRound, Picture, RecordError, RecordOptions, Records},
    scenes::{PatchLabel, Scene, SceneConfig, SceneObject, Scenes, Split},
};
