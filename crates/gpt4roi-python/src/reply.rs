//! An answer on its way from the thread that computes it.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
};

use gpt4roi::Chat;
use pyo3::prelude::*;

use crate::{
    chat::Talk,
    failure::{Error, Failure, vanished},
    waiting::{TURN, lock, spawn},
};

/// The answer to a question, `T`, as it comes.
///
/// The thread that computes hands each piece over in person, and goes no further before that. So nothing is ever said
/// that nobody heard: whoever drops this ends the answer at its next token, and the conversation is as if the question
/// had never been asked.
#[derive(Debug)]
pub(crate) struct Reply<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug)]
enum State<T> {
    Open(Receiver<Event<T>>),
    Ended(T),
    /// Its end was not awaited, or it failed.
    Closed,
    /// Something else was done with the conversation.
    Overtaken,
}

#[derive(Debug)]
enum Event<T> {
    Piece(String),
    /// None if the answer was cancelled.
    End(gpt4roi::Result<Option<T>>),
}

/// Takes the pieces of an answer; breaks if nobody hears them.
pub(crate) type OnPiece<'a> = &'a mut dyn FnMut(&str) -> ControlFlow<()>;

/// What a moment of waiting came to.
enum Moment {
    Piece(String),
    Silence,
    End,
    Failure(PyErr),
}

impl<T: Clone + Send + 'static> Reply<T> {
    /// Begins to answer, as soon as the conversation is free. `answer` returns none if it was cancelled.
    pub(crate) fn begin(
        talk: Arc<Mutex<Talk>>,
        answer: impl FnOnce(&mut Chat<'_>, OnPiece<'_>) -> gpt4roi::Result<Option<T>> + Send + 'static,
    ) -> PyResult<Self> {
        // Without room: to send is to wait until someone receives.
        let (sender, events) = mpsc::sync_channel(0);
        spawn(move || {
            let mut on_piece = |piece: &str| match sender.send(Event::Piece(piece.to_owned())) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            };
            let mut talk = lock(&talk);
            if on_piece("").is_break() {
                return;
            }
            talk.with_dependent_mut(|_, chat| {
                let answer = answer(chat, &mut on_piece);
                let is_said = matches!(answer, Ok(Some(_)));
                if sender.send(Event::End(answer)).is_err() && is_said {
                    chat.undo();
                }
            });
        })?;
        Ok(Self { state: Mutex::new(State::Open(events)) })
    }

    /// Waits for the next piece, which may be empty; none behind the last.
    pub(crate) fn next(&self, py: Python<'_>) -> PyResult<Option<String>> {
        loop {
            if let Err(interrupt) = py.check_signals() {
                self.close();
                return Err(interrupt);
            }
            match py.detach(|| self.moment()) {
                Moment::Piece(piece) => return Ok(Some(piece)),
                Moment::Silence => {}
                Moment::End => return Ok(None),
                Moment::Failure(failure) => return Err(failure),
            }
        }
    }

    /// The answer, once its end was reached.
    pub(crate) fn answer(&self) -> Option<T> {
        match &*lock(&self.state) {
            State::Ended(answer) => Some(answer.clone()),
            _ => None,
        }
    }

    /// Waits for the answer.
    pub(crate) fn finish(&self, py: Python<'_>) -> PyResult<T> {
        while self.next(py)?.is_some() {}
        self.answer().ok_or_else(vanished)
    }

    /// Ends an answer whose end was not awaited.
    pub(crate) fn close(&self) {
        self.leave(State::Closed);
    }

    /// Ends an answer whose end was not awaited, since something else is done with the conversation.
    pub(crate) fn overtake(&self) {
        self.leave(State::Overtaken);
    }

    /// Whether there is more of it.
    pub(crate) fn is_open(&self) -> bool {
        matches!(*lock(&self.state), State::Open(_))
    }

    fn leave(&self, to: State<T>) {
        let mut state = lock(&self.state);
        if matches!(*state, State::Open(_)) {
            *state = to;
        }
    }

    fn moment(&self) -> Moment {
        let mut state = lock(&self.state);
        let events = match &*state {
            State::Open(events) => events,
            State::Ended(_) | State::Closed => return Moment::End,
            State::Overtaken => return Moment::Failure(Error::new_err(OVERTAKEN)),
        };
        let (next, moment) = match events.recv_timeout(TURN) {
            Ok(Event::Piece(piece)) => return Moment::Piece(piece),
            Err(RecvTimeoutError::Timeout) => return Moment::Silence,
            Ok(Event::End(Ok(Some(answer)))) => (State::Ended(answer), Moment::End),
            Ok(Event::End(Ok(None))) => (State::Closed, Moment::End),
            Ok(Event::End(Err(error))) => (State::Closed, Moment::Failure(Failure::from(error).into())),
            Err(RecvTimeoutError::Disconnected) => (State::Closed, Moment::Failure(vanished())),
        };
        *state = next;
        moment
    }
}

const OVERTAKEN: &str = "the answer was dropped before its end: something else was done with its conversation";
