//! GPT4RoI over HTTP: an API that ordinary OpenAI clients speak, and the page where one draws boxes
//! and talks.
//!
//! [`Engine`](engine::Engine) owns the model; [`Server`] stands in front of it. The modules stand in the
//! order in which a request meets them.

mod server;
mod stalled;

mod metrics;
mod origin;
mod router;

mod auth;
mod health;
mod limits;
mod models;
mod openapi;
mod page;

mod body;
mod fault;

mod chat_completions;
mod images;
mod regions_describe;

mod conversation;
mod fetch;
mod generation;
mod given_choices;
mod mask;
mod picture_source;
mod regions;
mod stop;

mod app;
mod sse;
mod updates;

pub mod engine;
pub mod pictures;
pub mod reading;

mod choosing;
mod look;
mod queue;
mod request;
mod scheduler;

pub use crate::{
    auth::Keys,
    limits::{Limits, Times},
    server::{Server, ServerError, ServerOptions},
};
