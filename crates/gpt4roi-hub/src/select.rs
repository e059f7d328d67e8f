//! Which files of a repository a model needs. Repositories often hold the same weights in several forms.

use crate::{
    error::{HubError, Result},
    listing::{Listing, RemoteFile},
    model::ModelRef,
};

/// What to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Configurations, tokenizer and one form of the weights, of the model and of its vision tower; and the files
    /// of these paths.
    Needed {
        /// Further files, by their paths in the repository.
        also: Vec<String>,
    },
    /// Every file.
    All,
}

impl Default for Selection {
    fn default() -> Self {
        Self::Needed { also: Vec::new() }
    }
}

/// Small files that describe a model or its tokenizer.
const DESCRIPTIONS: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// The directories that are looked at: the model's, and the vision tower's.
const DIRECTORIES: [&str; 2] = ["", "vision_tower/"];

/// A form that weights come in: how the names of its files begin and end.
type Form = (&'static str, &'static str);

/// Better forms first; the first that a directory has is taken.
const FORMS: [Form; 2] = [("model", ".safetensors"), ("pytorch_model", ".bin")];

impl Selection {
    /// The files to take, in the order of the listing.
    ///
    /// # Errors
    /// If there are no weights among the needed files, or a file asked for is not there.
    pub fn choose(&self, model: &ModelRef, listing: &Listing) -> Result<Vec<RemoteFile>> {
        let files = &listing.files;
        let Self::Needed { also } = self else { return Ok(files.clone()) };
        if let Some(name) = also.iter().find(|name| !files.iter().any(|file| file.path == **name)) {
            return Err(HubError::NoSuchFile { model: model.to_string(), name: name.clone() });
        }
        let forms = DIRECTORIES.map(|directory| (directory, best_form(files, directory)));
        if forms.iter().all(|(_, form)| form.is_none()) && also.is_empty() {
            return Err(HubError::NoWeights { model: model.to_string(), files: files.len() });
        }
        let needed = |directory: &str, form: &Option<Form>, path: &str| {
            let name = path.strip_prefix(directory).filter(|name| !name.contains('/'));
            name.is_some_and(|name| DESCRIPTIONS.contains(&name) || form.is_some_and(|form| belongs(form, name)))
        };
        let wanted = |file: &&RemoteFile| {
            also.contains(&file.path) || forms.iter().any(|(directory, form)| needed(directory, form, &file.path))
        };
        Ok(files.iter().filter(wanted).cloned().collect())
    }
}

fn best_form(files: &[RemoteFile], directory: &str) -> Option<Form> {
    let names = || files.iter().filter_map(|file| file.path.strip_prefix(directory));
    FORMS.into_iter().find(|&(stem, ending)| names().any(|name| is_weights(stem, ending, name)))
}

/// Whether a file holds weights of this form, or says which shard holds which.
fn belongs((stem, ending): Form, name: &str) -> bool {
    is_weights(stem, ending, name) || name == format!("{stem}{ending}.index.json")
}

/// `STEM.ENDING`, or a shard `STEM-00001-of-00002.ENDING`; not a variant like `STEM.fp16.ENDING`.
fn is_weights(stem: &str, ending: &str, name: &str) -> bool {
    let Some(middle) = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(ending)) else { return false };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let shard = middle.strip_prefix('-').and_then(|shard| shard.split_once("-of-"));
    middle.is_empty() || shard.is_some_and(|(index, count)| number(index) && number(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn chosen(selection: &Selection, paths: &[&str]) -> Result<Vec<String>> {
        let file = |path: &&str| RemoteFile { path: (*path).into(), size: 1, digest: Digest::GitBlob("0".repeat(40)) };
        let listing = Listing { commit: "0".repeat(40), files: paths.iter().map(file).collect() };
        let files = selection.choose(&"a/b".parse()?, &listing)?;
        Ok(files.into_iter().map(|file| file.path).collect())
    }

    fn needed(paths: &[&str]) -> Vec<String> {
        chosen(&Selection::default(), paths).unwrap()
    }

    #[test]
    fn safetensors_are_preferred_in_each_directory() {
        let paths = [
            ".gitattributes",
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.fp16.safetensors",
            "model.safetensors",
            "onnx/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.model",
            "vision_tower/config.json",
            "vision_tower/pytorch_model.bin",
            "vision_tower/deep/model.safetensors",
        ];
        let expected = [
            "config.json",
            "model.safetensors",
            "tokenizer.model",
            "vision_tower/config.json",
            "vision_tower/pytorch_model.bin",
        ];
        assert_eq!(needed(&paths), expected);
    }

    #[test]
    fn shards_come_with_their_index() {
        for stem in ["model-0000", "pytorch_model-0000"] {
            let ending = if stem.starts_with('m') { ".safetensors" } else { ".bin" };
            let index = format!("{}{ending}.index.json", stem.trim_end_matches("-0000"));
            let paths = [format!("{stem}1-of-00002{ending}"), format!("{stem}2-of-00002{ending}"), index];
            let paths: Vec<_> = paths.iter().map(String::as_str).collect();
            assert_eq!(needed(&paths), paths);
        }
    }

    #[test]
    fn more_can_be_asked_for() {
        let paths = ["README.md", "config.json", "extra/model-q4_k.gguf", "model.safetensors"];
        let also = |name: &str| Selection::Needed { also: vec![name.to_owned()] };
        assert_eq!(chosen(&also("README.md"), &paths).unwrap(), ["README.md", "config.json", "model.safetensors"]);
        assert_eq!(
            chosen(&also("extra/model-q4_k.gguf"), &paths[..3]).unwrap(),
            ["config.json", "extra/model-q4_k.gguf"]
        );
        assert_eq!(chosen(&Selection::All, &paths).unwrap(), paths);
        assert!(matches!(chosen(&also("absent"), &paths), Err(HubError::NoSuchFile { .. })));
    }

    #[test]
    fn a_repository_without_weights_is_refused() {
        let error = chosen(&Selection::default(), &["README.md", "config.json", "model-of-x.safetensors"]).unwrap_err();
        assert!(matches!(error, HubError::NoWeights { files: 3, .. }), "{error}");
    }
}
