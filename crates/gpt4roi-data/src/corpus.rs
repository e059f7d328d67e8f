//! The sentences that a vocabulary for scenes should cover.

use crate::{answers, kinds::Kind};

/// What is said of each kind, a sentence each.
pub fn facts(kinds: &[Kind]) -> Vec<String> {
    let sentences = |kind: &Kind| {
        [
            format!("It is {}.", kind.phrase()),
            format!("It is {}.", kind.colored_phrase()),
            format!("It is {}.", answers::category(&kind.category)),
            answers::purpose(kind),
        ]
    };
    kinds.iter().flat_map(sentences).collect()
}
