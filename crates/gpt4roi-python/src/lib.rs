//! GPT4RoI for Python: the compiled half of the package `gpt4roi`.
//!
//! Every class of Python has a file of its own. What it computes runs on a thread of its own while the interpreter goes
//! on ([`waiting`]), and what Python hands over is read before that thread begins ([`picture`], [`shapes`],
//! [`keywords`]).

mod answer;
mod chat;
mod choices;
mod failure;
mod keywords;
mod model;
mod picture;
mod region;
mod reply;
mod shapes;
mod stream;
mod waiting;

/// What `gpt4roi` in Python is made of.
#[pyo3::pymodule]
mod _gpt4roi {
    #[pymodule_export]
    use crate::{
        answer::{PyAnswer, PyChosen, PyScoredChoice},
        chat::PyChat,
        failure::Error,
        model::{PyModel, load},
        region::PyRegion,
        stream::PyStream,
    };

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
