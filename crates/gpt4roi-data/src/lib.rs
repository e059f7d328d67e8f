//! gpt4roi-data.
