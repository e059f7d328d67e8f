//! gpt4roi-kernels.
