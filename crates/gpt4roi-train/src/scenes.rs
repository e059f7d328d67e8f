//! Where an objective's pictures come from.

use gpt4roi_data::{Scene, Scenes};

use crate::error::{Result, TrainError};

/// Makes the scene of an index: always the same one, on any thread.
pub trait SceneSource: Send + Sync {
    /// The scene.
    fn scene(&self, index: u64) -> Result<Scene>;
    /// How many kinds of objects there are.
    fn kinds(&self) -> usize;
}
