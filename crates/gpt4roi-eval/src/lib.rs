//! Measures a model: asks questions whose answers are known, and counts.
//!
//! * [`scenes`] measures on rendered scenes, question type by question type, with controls that show
//!   that the answers come from the regions: vectors of another region, and a blank picture;
//! * [`descriptions`]: the claims of detailed descriptions, true, false and missing;
//! * [`calibration`]: whether answers are right as often as the model is sure of them;
//! * [`curves`] measures how accuracy falls with more regions at once and with boxes that do not fit;
//! * [`plot`] draws both; [`metrics`] has shares and their intervals;
//! * [`predictions`] reads what a model answered to people's own data, and [`prediction_scores`] scores it:
//!   [`answers`] that are right, and [`captions`] by [`bleu`], [`rouge`], [`cider`] and [`meteor`], over the
//!   words of [`ptb`]; [`meteor_tables`] reads what METEOR knows of synonyms and paraphrases.

pub mod answers;
pub mod bleu;
pub mod calibration;
pub mod captions;
pub mod cider;
pub mod curves;
pub mod descriptions;
pub mod meteor;
mod meteor_align;
mod meteor_match;
mod meteor_paraphrases;
mod meteor_synonyms;
pub mod meteor_tables;
mod meteor_words;
pub mod metrics;
mod play;
pub mod plot;
pub mod prediction_scores;
pub mod predictions;
pub mod ptb;
pub mod rouge;
pub mod scenes;
