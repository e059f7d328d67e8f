//! When to try again, and how long to wait before.

use std::{fmt, sync::Arc, thread, time::Duration};

use crate::error::HubError;

/// How often something is tried that failed.
#[derive(Clone)]
pub struct Retry {
    /// Tries in a row that may fail without bringing a byte.
    pub attempts: u32,
    /// The wait after the first of them; it doubles with each.
    pub first: Duration,
    /// It grows no longer than this.
    pub longest: Duration,
    /// A server that asks for a longer wait than this is not waited for.
    pub patience: Duration,
    /// How to wait: the clock, or for tests something faster.
    pub sleep: Arc<dyn Fn(Duration) + Send + Sync>,
}

impl Default for Retry {
    /// Patient for about a minute; hubs count requests over windows of five minutes.
    fn default() -> Self {
        Self {
            attempts: 6,
            first: Duration::from_secs(1),
            longest: Duration::from_secs(30),
            patience: Duration::from_secs(300),
            sleep: Arc::new(thread::sleep),
        }
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attempts, first, longest, patience, .. } = self;
        f.debug_struct("Retry")
            .field("attempts", attempts)
            .field("first", first)
            .field("longest", longest)
            .field("patience", patience)
            .finish_non_exhaustive()
    }
}

/// What is left of the tries for one thing.
#[derive(Debug)]
pub(crate) struct Tries<'a> {
    retry: &'a Retry,
    failed: u32,
    furthest: u64,
}

impl Retry {
    /// All tries are left, and `reached` bytes are there.
    pub(crate) fn begin(&self, reached: u64) -> Tries<'_> {
        Tries { retry: self, failed: 0, furthest: reached }
    }
}

impl Tries<'_> {
    /// How long to wait after this failure, at which `reached` bytes were there; `None` if trying again can't help
    /// or was tried often enough.
    ///
    /// A try that got further than any before starts the count anew: a connection that keeps breaking is used
    /// as long as it brings something.
    pub(crate) fn wait(&mut self, error: &HubError, reached: u64) -> Option<Duration> {
        if reached > self.furthest {
            (self.failed, self.furthest) = (0, reached);
        }
        self.failed += 1;
        let Retry { attempts, first, longest, patience, .. } = *self.retry;
        let wait = error.retry_after().unwrap_or_else(|| longest.min(first * 2u32.saturating_pow(self.failed - 1)));
        (error.is_transient() && self.failed < attempts && wait <= patience).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut() -> HubError {
        HubError::Length { file: "a".into(), expected: 9, got: 1 }
    }

    fn limited(seconds: u64) -> HubError {
        let retry_after = Some(Duration::from_secs(seconds));
        HubError::Status { url: "u".into(), status: 429, message: String::new(), retry_after }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_then_it_is_enough() {
        let retry = Retry { attempts: 5, longest: Duration::from_secs(3), ..Retry::default() };
        let mut tries = retry.begin(0);
        let waits: Vec<_> = (0..5).map(|_| tries.wait(&cut(), 0).map(|wait| wait.as_secs())).collect();
        assert_eq!(waits, [Some(1), Some(2), Some(3), Some(3), None]);
    }

    #[test]
    fn getting_further_starts_anew_and_getting_as_far_again_does_not() {
        let retry = Retry { attempts: 3, ..Retry::default() };
        let mut tries = retry.begin(10);
        let waits = [10, 20, 20, 20].map(|reached| tries.wait(&cut(), reached).map(|wait| wait.as_secs()));
        assert_eq!(waits, [Some(1), Some(1), Some(2), None]);
    }

    #[test]
    fn the_server_says_how_long_unless_it_says_too_long() {
        let retry = Retry::default();
        assert_eq!(retry.begin(0).wait(&limited(7), 0), Some(Duration::from_secs(7)));
        assert_eq!(retry.begin(0).wait(&limited(301), 0), None);
    }

    #[test]
    fn what_can_not_get_better_is_not_tried_again() {
        let refused = HubError::Refused { what: "a/b".into(), reason: crate::Refused::NoModel };
        let full = HubError::DiskFull { path: "blob".into() };
        for error in [refused, full] {
            assert_eq!(Retry::default().begin(0).wait(&error, 0), None);
        }
    }
}
