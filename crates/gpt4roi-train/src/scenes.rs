//! Where an objective's pictures come from.

use gpt4roi_data::{Scene, Scenes};

use crate::error::Result;

/// Makes the scene of an index: always the same one, on any thread.
pub trait SceneSource: Send + Sync {
    /// The scene.
    fn scene(&self, index: u64) -> Result<Scene>;
    /// How many kinds of objects there are.
    fn kinds(&self) -> usize;
}

impl SceneSource for Scenes {
    fn scene(&self, index: u64) -> Result<Scene> {
        Ok(Self::scene(self, index))
    }

    fn kinds(&self) -> usize {
        Self::kinds(self).len()
    }
}
