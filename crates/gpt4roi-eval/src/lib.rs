//! gpt4roi-eval.
