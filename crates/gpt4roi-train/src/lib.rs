//! gpt4roi-train.
