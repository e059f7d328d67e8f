//! One owner of the model, and a queue in front of it.
