//! The decoding loop, over ids alone.

/// Generation that can't go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {}
