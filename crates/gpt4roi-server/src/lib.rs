//! GPT4RoI over HTTP: an API that ordinary OpenAI clients speak, and the page where one draws boxes
//! and talks.

pub mod engine;
pub mod pictures;

mod look;
mod queue;
mod request;
mod scheduler;
