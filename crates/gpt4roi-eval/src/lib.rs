//! Measures a model: asks questions whose answers are known, and counts.
//!
//! [`scenes`] measures on rendered scenes, question type by question type, with controls that show
//! that the answers come from the regions: vectors of another region, and a blank picture.

pub mod metrics;
pub mod scenes;
