//! How much one request may ask for, how long it may take, and how much all of them may hold.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::fault::{Fault, Result};

/// Messages of a conversation.
pub(crate) const MAX_MESSAGES: usize = 256;
/// Parts of a message.
pub(crate) const MAX_PARTS: usize = 256;
/// Picture parts of a conversation; they are counted before one is decoded.
pub(crate) const MAX_IMAGES: usize = 8;
/// Regions of a conversation.
pub(crate) const MAX_REGIONS: usize = 100;
/// Small regions that one question may have looked at closely, in all of its conversation; each costs as much as
/// another picture, and others wait meanwhile. Of regions that are described together, each has a question of its own.
pub(crate) const MAX_CLOSE_UPS: usize = 16;
/// Regions that are described together.
pub(crate) const MAX_DESCRIBED: usize = 1000;
/// Corners of a polygon.
pub(crate) const MAX_CORNERS: usize = 10_000;

/// Runs of a mask.
pub(crate) const MAX_RUNS: usize = 100_000;
/// Strings that end an answer, as many as OpenAI takes.
pub(crate) const MAX_STOPS: usize = 4;
/// Answers to choose between.
pub(crate) const MAX_CHOICES: usize = 1000;
/// Choices that are scored for one request: as many as there are, for each region. Each is told.
pub(crate) const MAX_SCORED: usize = 100_000;
/// Characters of all text in a conversation.
pub(crate) const MAX_TEXT: usize = 16_000;

/// What there can be too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Messages,
    Parts,
    Images,
    Regions,
    Corners,
    Stops,
    Choices,
    Characters,
}

impl Unit {
    /// By which programs know that there were.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Messages => "too_many_messages",
            Self::Parts => "too_many_parts",
            Self::Images => "too_many_images",
            Self::Regions => "too_many_regions",
            Self::Corners => "too_many_corners",
            Self::Stops => "too_many_stops",
            Self::Choices => "too_many_choices",
            Self::Characters => "text_too_long",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "messages",
            Self::Parts => "parts",
            Self::Images => "pictures",
            Self::Regions => "regions",
            Self::Corners => "corners",
            Self::Stops => "strings",
            Self::Choices => "choices",
            Self::Characters => "characters",
        })
    }
}

/// What a request may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of a picture's file.
    pub picture_bytes: usize,
    /// Pixels of a picture, as its header says.
    pub pixels: u64,
    /// Tokens that an answer may have at most.
    pub max_tokens: usize,
    /// Bytes that the bodies and decoded pictures of all requests take together.
    pub memory_bytes: usize,
    /// Connections at a time.
    pub connections: usize,
}

impl Default for Limits {
    /// 32 MiB, 20 MiB, 50 megapixels, 4096 tokens, 1 GiB in all, 1024 connections.
    fn default() -> Self {
        Self {
            body_bytes: 32 << 20,
            picture_bytes: 20 << 20,
            pixels: gpt4roi::image::DEFAULT_MAX_PIXELS,
            max_tokens: 4096,
            memory_bytes: 1 << 30,
            connections: 1024,
        }
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Until a request's header is there, and between two requests of a connection.
    pub header: Duration,
    /// Until its body is there.
    pub body: Duration,
    /// How long a client may read nothing of what is ready for it.
    pub write: Duration,
    /// Until it is answered, waiting included.
    pub answer: Duration,
    /// How long requests are still served after the server was told to stop.
    pub drain: Duration,
    /// Between two comments that keep an idle stream open.
    pub ping: Duration,
}

impl Default for Times {
    /// 10 s, 30 s, 30 s, 10 min, 30 s, 15 s.
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body: Duration::from_secs(30),
            write: Duration::from_secs(30),
            answer: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            ping: Duration::from_secs(15),
        }
    }
}

/// The memory that requests share. What a request holds is taken from it before it is allocated.
#[derive(Clone, Debug)]
pub(crate) struct Memory(Arc<Semaphore>);

/// Memory that is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Option<OwnedSemaphorePermit>);

impl Memory {
    /// The unit in which memory is counted.
    const BLOCK: usize = 1024;

    pub(crate) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / Self::BLOCK)))
    }

    /// # Errors
    /// If too much is in use.
    pub(crate) fn take(&self, bytes: usize) -> Result<Held> {
        let blocks = u32::try_from(bytes.div_ceil(Self::BLOCK)).map_err(|_| Fault::Busy)?;
        let permit = self.0.clone().try_acquire_many_owned(blocks).map_err(|_| Fault::Busy)?;
        Ok(Held(Some(permit)))
    }
}

impl Held {
    pub(crate) fn nothing() -> Self {
        Self(None)
    }

    /// Gives back all but so many bytes.
    pub(crate) fn keep(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            let spare = permit.num_permits().saturating_sub(bytes.div_ceil(Memory::BLOCK));
            drop(permit.split(spare));
        }
    }

    pub(crate) fn join(&mut self, other: Self) {
        match (&mut self.0, other.0) {
            (Some(permit), Some(other)) => permit.merge(other),
            (none, other) => *none = none.take().or(other),
        }
    }
}

/// At most N elements of an array. The others are counted and not kept, so that an array of millions
/// takes no memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Few<T, const N: usize> {
    elements: Vec<T>,
    total: usize,
}

impl<T, const N: usize> Few<T, N> {
    pub(crate) fn one(element: T) -> Self {
        Self { elements: vec![element], total: 1 }
    }

    /// The elements, if they are not too many.
    pub(crate) fn all(&self, param: &str, unit: Unit) -> Result<&[T]> {
        if self.total > N {
            return Err(Fault::TooMany { param: param.to_owned(), unit, most: N, got: self.total });
        }
        Ok(&self.elements)
    }

    /// How many there were.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Those that were kept, be they all or not.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &T> {
        self.elements.iter()
    }
}

impl<T, const N: usize> Default for Few<T, N> {
    fn default() -> Self {
        Self { elements: Vec::new(), total: 0 }
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Few<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(FewVisitor(PhantomData))
    }
}

/// Fills a [`Few`] from any sequence.
pub(crate) struct FewVisitor<T, const N: usize>(pub(crate) PhantomData<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for FewVisitor<T, N> {
    type Value = Few<T, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> std::result::Result<Self::Value, A::Error> {
        let mut few = Few::default();
        while few.total < N {
            let Some(element) = sequence.next_element()? else { return Ok(few) };
            few.elements.push(element);
            few.total += 1;
        }
        while sequence.next_element::<IgnoredAny>()?.is_some() {
            few.total += 1;
        }
        Ok(few)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_many_is_counted_and_not_kept() {
        let few: Few<u8, 3> = serde_json::from_str("[1, 2, 3, 4, 5]").unwrap();
        assert_eq!((few.elements.len(), few.total), (3, 5));
        let fault = few.all("numbers", Unit::Corners).unwrap_err();
        assert_eq!(fault.to_string(), "numbers: expected at most 3 corners, got 5");
        let few: Few<u8, 3> = serde_json::from_str("[1, 2, 3]").unwrap();
        assert_eq!(few.all("numbers", Unit::Corners).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn memory_is_given_back() {
        let memory = Memory::new(4096);
        let mut held = memory.take(3000).unwrap();
        assert!(matches!(memory.take(2000), Err(Fault::Busy)));
        held.join(memory.take(1000).unwrap());
        assert!(matches!(memory.take(1), Err(Fault::Busy)));
        held.keep(1025);
        assert!(matches!(memory.take(3 * 1024), Err(Fault::Busy)), "two blocks are kept");
        assert!(memory.take(2 * 1024).is_ok());
        held.keep(4096);
        assert!(memory.take(2 * 1024).is_ok(), "nothing is taken anew");
        drop(held);
        assert!(memory.take(4096).is_ok());
    }
}
