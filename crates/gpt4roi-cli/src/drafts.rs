//! How far texts are drafted ahead, and by what.

use std::path::{Path, PathBuf};

use clap::Args;
use gpt4roi::{Gpt4Roi, draft_model::DraftModel, drafter::Drafter};

use crate::{
    failure::Refusal,
    options::{find_in_cache, is_gguf},
};

/// How far texts are drafted ahead, and by what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct DraftOptions {
    /// Tokens that are drafted ahead at most, by what was said before, and read together with the one that was drawn.
    /// Answers come sooner, most of all where they resemble each other, and stay the same; 0 drafts none [default: 3
    /// with --draft-model, or where weights of q8_0, q4_k and q6_k are computed with on the CPU and there is no adapter,
    /// else 0]
    #[arg(long, value_name = "N", env = "GPT4ROI_DRAFT")]
    draft: Option<usize>,

    /// A small LLaMA with the same tokens that drafts, too: a directory with config.json, weights and tokenizer.model, a
    /// GGUF file, or ORG/NAME[@REV] that `gpt4roi pull` has brought. It reads the text alone; answers stay the same
    #[arg(long, value_name = "MODEL", env = "GPT4ROI_DRAFT_MODEL")]
    draft_model: Option<PathBuf>,
}

/// What stands for a draft model.
const PLACES: &str = "--draft-model takes the directory that holds config.json, the weights and tokenizer.model of a \
    small LLaMA, or its GGUF file";

impl DraftOptions {
    /// How many tokens, as the library takes it.
    pub(crate) fn resolve(&self) -> Option<usize> {
        self.draft
    }

    /// What drafts for this model.
    pub(crate) fn drafter(&self, model: &Gpt4Roi) -> anyhow::Result<Drafter> {
        let Some(name) = self.draft_model.as_deref().filter(|_| self.draft != Some(0)) else {
            return Ok(Drafter::new());
        };
        let draft_model = DraftModel::open(&place_of(name)?, &model.tokenizer, &model.device)?;
        Ok(Drafter::with_model(draft_model))
    }
}

fn place_of(name: &Path) -> anyhow::Result<PathBuf> {
    let is_model = if name.is_dir() { name.join("config.json").is_file() } else { name.is_file() && is_gguf(name) };
    if is_model {
        return Ok(name.to_owned());
    }
    if name.exists() {
        return Err(Refusal::failure(format!("{} holds no language model", name.display())).hint(PLACES).into());
    }
    find_in_cache(name, PLACES)
}
