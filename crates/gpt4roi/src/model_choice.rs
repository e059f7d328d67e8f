//! Which model somebody asks for, by the names that were given for it and for its adapter.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{error::Error, model::ModelFiles, nano::NANO};

/// A model, and what was learned beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelChoice {
    /// What was given for the model; without it, the embedded one is meant.
    pub model: Option<PathBuf>,
    /// The directory of its adapter.
    pub adapter: Option<PathBuf>,
}

impl ModelChoice {
    /// How the embedded model is called.
    pub const EMBEDDED: &'static str = "embedded";

    /// The files, unread; `place_of` says where the model of a name lies.
    ///
    /// # Errors
    /// That of `place_of`, and those of [`ModelFiles::at`].
    pub fn files<E: From<Error>>(&self, place_of: impl FnOnce(&Path) -> Result<PathBuf, E>) -> Result<ModelFiles, E> {
        let files = match &self.model {
            Some(model) => ModelFiles::at(&place_of(model)?)?,
            None => ModelFiles::Embedded(NANO),
        };
        Ok(match &self.adapter {
            Some(adapter) => files.with_adapter(adapter),
            None => files,
        })
    }
}

/// As reports call it.
impl fmt::Display for ModelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.model {
            Some(model) => write!(f, "{}", model.display())?,
            None => f.write_str(Self::EMBEDDED)?,
        }
        match &self.adapter {
            Some(adapter) => write!(f, " with {}", adapter.display()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_model_and_adapter() {
        let name = |model: Option<&str>, adapter: Option<&str>| {
            ModelChoice { model: model.map(PathBuf::from), adapter: adapter.map(PathBuf::from) }.to_string()
        };
        assert_eq!(name(None, None), "embedded");
        assert_eq!(name(Some("models/7b"), None), "models/7b");
        assert_eq!(name(Some("org/7b@main"), Some("adapters/own")), "org/7b@main with adapters/own");
        assert_eq!(name(None, Some("own")), "embedded with own");
    }

    #[test]
    fn an_adapter_lies_beside_the_model_wherever_that_lies() {
        let (model, adapter) = (Some("org/7b".into()), Some("own".into()));
        let files = ModelChoice { model, adapter }.files::<Error>(|name| Ok(Path::new("cache").join(name))).unwrap();
        let ModelFiles::Adapted { base, adapter } = files else { panic!("{files:?}") };
        assert_eq!(adapter, Path::new("own"));
        assert!(matches!(*base, ModelFiles::Directory(directory) if directory == Path::new("cache/org/7b")));
    }
}
