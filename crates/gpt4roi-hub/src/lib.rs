//! Gets model files from a Hugging Face hub, into the cache that its other clients share.
//!
//! ```no_run
//! use gpt4roi_hub::{Hub, HubConfig, Selection, Silent};
//!
//! let hub = Hub::new(HubConfig::from_env(|name| std::env::var(name).ok())?)?;
//! let pulled = hub.pull(&"org/gpt4roi-7b@main".parse()?, &Selection::default(), &Silent)?;
//! println!("{}", pulled.snapshot.display()); // a model directory
//! # Ok::<(), gpt4roi_hub::HubError>(())
//! ```
//!
//! A pull flows so: [`listing`] asks the hub which files a revision has; [`select`] takes those that a model
//! needs; [`pull`] spreads them over a few connections; each goes by way of `fetch` (lock, resume, [`retry`])
//! into a `partial` file that is hashed as it grows; [`cache`] puts it in its place. [`inventory`],
//! [`removal`] and [`verify`] look after what is there. `client` is the only place that opens a connection.
//!
//! What holds here:
//!
//! 1. A file stands in the cache under its digest, and only after its content had that digest.
//! 2. Nothing is lost: a pull that was cut off, killed, or ran out of disk goes on where it stopped.
//! 3. The token goes to the endpoint and to nobody that the endpoint redirects to.
//! 4. No name that a server sends leads out of the snapshot's directory.
//! 5. Nothing is printed and nothing is read from the environment: settings and waiting come in as arguments.

pub mod cache;
mod client;
pub mod config;
pub mod digest;
pub mod error;
mod fetch;
pub mod inventory;
pub mod listing;
#[cfg(test)]
mod mock_hub;
pub mod model;
mod partial;
pub mod progress;
pub mod pull;
pub mod removal;
pub mod retry;
pub mod select;
#[cfg(test)]
mod tests;
pub mod verify;

pub use crate::{
    cache::Cache,
    config::HubConfig,
    error::{HubError, Refused, Result},
    model::{ModelId, ModelRef},
    progress::{Progress, Silent},
    pull::{Hub, Pulled},
    select::Selection,
};
