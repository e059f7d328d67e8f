//! From logits to the next token.

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely one.
    Greedy,
    /// Temperature, then top-k, then top-p, then a draw.
    Random {
        /// Divides the logits; above 0.
        temperature: f64,
        /// Keeps the k most likely tokens; 0 keeps all.
        top_k: usize,
        /// Keeps the most likely tokens that together reach this probability; 1 keeps all.
        top_p: f64,
        /// Where the draws begin.
        seed: u64,
    },
}
