//! A question that was taken, until the last of its updates.

use std::{sync::Arc, time::Instant};

use gpt4roi::{
    Image, RegionId, asked::Rendered, choices::WrittenChoices, image_cache::EncodedImage, kv_cache::KvCache,
    shape::Shape,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::engine::{Failure, Update};

/// What a bulk question calls each shape.
pub(crate) const THIS: RegionId = RegionId(1);

/// What a question wants to know.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// One answer, as it is written.
    One,
    /// An answer for each shape.
    Each(Vec<Shape>),
}

/// A question with everything that is known of it so far.
#[derive(Debug)]
pub(crate) struct Request {
    /// In the order of arrival.
    pub(crate) number: u64,
    /// Its place in the line for seats: drawn when it came, and anew with each of its answers.
    pub(crate) turn: u64,
    pub(crate) arrived: Option<Instant>,
    /// When it left the queue.
    pub(crate) started: Option<Instant>,
    pub(crate) deadline: Instant,
    pub(crate) rendered: Rendered,
    pub(crate) subject: Subject,
    /// The answers to choose between, if some were given.
    pub(crate) choices: Option<Arc<WrittenChoices>>,
    /// Until it has been looked at.
    pub(crate) image: Option<Arc<Image>>,
    pub(crate) encoded: Option<Arc<EncodedImage>>,
    /// What all of its prompts begin with, once that was read.
    pub(crate) beginning: Option<Arc<KvCache>>,
    /// How many of its parts have been given a seat.
    pub(crate) seated: usize,
    /// The first thing that went wrong.
    pub(crate) failed: Option<Failed>,
    updates: UnboundedSender<Update>,
    /// Parts that have neither an answer nor a failure yet.
    open: Vec<bool>,
}

/// A [`Failure`], for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    Question,
    Numbers,
    Deadline,
    Engine,
}

impl Request {
    pub(crate) fn new(
        image: Arc<Image>,
        rendered: Rendered,
        subject: Subject,
        choices: Option<Arc<WrittenChoices>>,
        deadline: Instant,
        updates: UnboundedSender<Update>,
    ) -> Self {
        let parts = match &subject {
            Subject::One => 1,
            Subject::Each(shapes) => shapes.len(),
        };
        Self {
            number: 0,
            turn: 0,
            arrived: None,
            started: None,
            deadline,
            rendered,
            subject,
            choices,
            image: Some(image),
            encoded: None,
            beginning: None,
            seated: 0,
            failed: None,
            updates,
            open: vec![true; parts],
        }
    }

    /// Tokens that all of its prompts begin with: for one question, those that all questions about the
    /// picture begin with.
    pub(crate) fn beginning_length(&self) -> usize {
        match self.subject {
            Subject::One => self.rendered.picture_end(),
            Subject::Each(_) => self.rendered.before(THIS),
        }
    }

    /// The question about one of its parts.
    pub(crate) fn part(&self, index: usize) -> Rendered {
        match &self.subject {
            Subject::Each(shapes) if index < shapes.len() => self.rendered.about(THIS, shapes[index]),
            _ => self.rendered.clone(),
        }
    }

    /// Whether text is shown as it is written.
    pub(crate) fn streams(&self) -> bool {
        matches!(self.subject, Subject::One)
    }

    /// Parts that wait for a seat.
    pub(crate) fn waits_for_seats(&self) -> bool {
        self.seated < self.open.len()
    }

    /// Whether nobody listens any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.updates.is_closed()
    }

    /// Says whether anybody still listens, from another thread.
    pub(crate) fn listener(&self) -> UnboundedSender<Update> {
        self.updates.clone()
    }

    /// Whether a part has not ended.
    pub(crate) fn is_open(&self, part: usize) -> bool {
        self.open.get(part) == Some(&true)
    }

    /// Whether every part has ended.
    pub(crate) fn is_over(&self) -> bool {
        !self.open.contains(&true)
    }

    /// Tells whoever listens. If nobody does, the next step notices.
    pub(crate) fn tell(&mut self, update: Update) {
        if let Update::Answer { index, .. } | Update::Chosen { index, .. } | Update::Failed { index, .. } = &update
            && !self.open.get_mut(*index).is_some_and(std::mem::take)
        {
            return;
        }
        if let Update::Failed { error, .. } = &update {
            self.failed.get_or_insert(match error {
                Failure::Question(_) => Failed::Question,
                Failure::Numbers => Failed::Numbers,
                Failure::Deadline => Failed::Deadline,
                Failure::Engine(_) => Failed::Engine,
            });
        }
        drop(self.updates.send(update));
    }

    /// Ends every part that has not ended.
    pub(crate) fn fail_all(&mut self, failure: impl Fn() -> Failure) {
        for index in 0..self.open.len() {
            if self.open[index] {
                self.tell(Update::Failed { index, error: failure() });
            }
        }
    }
}

/// Whatever becomes of a request, nobody is left waiting for it.
impl Drop for Request {
    fn drop(&mut self) {
        self.fail_all(|| Failure::Engine("it lost the question".to_owned()));
    }
}
