//! How a stage calls a model.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use gpt4roi::{model::ModelFiles, model_choice::ModelChoice, nano::NANO};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::Result;

/// The name of a model, or of what a stage has put out: `embedded` is the small model inside this program, everything
/// else a path, relative to the working directory, until [`locate`](crate::StageConfig::locate) finds another place for
/// it. A directory that is called `embedded` is `./embedded`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "PathBuf")]
pub struct ModelName {
    name: PathBuf,
    place: PathBuf,
}

impl ModelName {
    /// The small model inside this program.
    pub fn embedded() -> Self {
        ModelChoice::EMBEDDED.into()
    }

    /// Whether it is that one.
    pub fn is_embedded(&self) -> bool {
        self.name == Path::new(ModelChoice::EMBEDDED)
    }

    /// Where it lies. The embedded model lies nowhere.
    pub fn place(&self) -> &Path {
        &self.place
    }

    pub(crate) fn locate<E>(
        &mut self,
        place_of: impl FnOnce(&Path) -> std::result::Result<PathBuf, E>,
    ) -> std::result::Result<(), E> {
        if !self.is_embedded() {
            self.place = place_of(&self.name)?;
        }
        Ok(())
    }

    /// Its files.
    pub(crate) fn files(&self) -> Result<ModelFiles> {
        if self.is_embedded() { Ok(ModelFiles::Embedded(NANO)) } else { Ok(ModelFiles::at(&self.place)?) }
    }
}

impl<P: Into<PathBuf>> From<P> for ModelName {
    fn from(name: P) -> Self {
        let name = name.into();
        Self { place: name.clone(), name }
    }
}

impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.name.serialize(serializer)
    }
}

/// As it was given.
impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.display().fmt(f)
    }
}
