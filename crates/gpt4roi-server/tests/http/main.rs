//! The server as its clients meet it, on this machine's own address, with the embedded model.

mod client;

/// What it answers.
mod answers;

/// What it refuses, and how it says so.
mod refusals;

/// Who gets through to it.
mod access;

/// What nobody should send.
mod abuse;

/// How it begins, waits and ends.
mod life;
