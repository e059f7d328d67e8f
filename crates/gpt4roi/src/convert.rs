//! Checkpoint files of other kinds: torch pickles, read without executing anything.
