//! Questions on their way in, and what others may know of the engine.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    engine::{EngineOptions, Failure, Refused},
    look::Looked,
    request::{Failed, Request},
};

/// What time it is.
pub(crate) type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// How the engine is doing, and what it has done since it started.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Questions that wait.
    pub queued: usize,
    /// Questions that are being answered.
    pub running: usize,
    /// Sequences that decode.
    pub sequences: usize,
    /// Questions by how they ended.
    pub requests: Outcomes,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// How many of them had been read before.
    pub reused_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Those of them that came as drafted.
    pub drafted_tokens: u64,
    /// Pictures that were found encoded.
    pub image_hits: u64,
    /// Pictures that had to be encoded.
    pub image_misses: u64,
    /// Bytes of the encoded pictures that are kept.
    pub image_bytes: usize,
    /// Bytes of the keys and values that are kept.
    pub prefix_bytes: usize,
    /// Seconds that questions waited before they were begun, all together.
    pub queue_seconds: f64,
    /// Seconds spent looking at pictures and regions.
    pub vision_seconds: f64,
    /// Seconds spent in steps that read prompts; answers under way went on in the same steps.
    pub prefill_seconds: f64,
    /// Seconds spent in all other steps.
    pub decode_seconds: f64,
}

/// How many questions ended in which way. A [`Bulk`](crate::engine::Bulk) counts once, by the first thing that
/// went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcomes {
    /// Answered.
    pub answered: u64,
    /// Given up by whoever asked.
    pub cancelled: u64,
    /// Not taken, since the queue was full or the engine stopping.
    pub refused: u64,
    /// Could not be answered.
    pub question: u64,
    /// Met numbers that are none.
    pub numbers: u64,
    /// Met their deadline.
    pub deadline: u64,
    /// Met a failure of the engine.
    pub engine: u64,
}

/// The bounded queue, first come, first served.
pub(crate) struct Queue {
    max: usize,
    max_bytes: usize,
    max_sequences: usize,
    clock: Clock,
    state: Mutex<State>,
    poke: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Request>,
    looked: VecDeque<Looked>,
    taken: u64,
    /// Turns that were drawn.
    turns: u64,
    is_ready: bool,
    is_stopping: bool,
    /// Something happened since the last wait.
    poked: bool,
    /// How long answers took lately, without the time in the queue.
    service: Duration,
    stats: Stats,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("max", &self.max).finish_non_exhaustive()
    }
}

impl Queue {
    pub(crate) fn new(options: &EngineOptions, clock: Clock) -> Self {
        let EngineOptions { max_queue: max, queue_bytes: max_bytes, max_sequences, .. } = *options;
        Self { max, max_bytes, max_sequences, clock, state: Mutex::default(), poke: Condvar::new() }
    }

    pub(crate) fn now(&self) -> Instant {
        (self.clock)()
    }

    /// Takes a request in, if there is room.
    pub(crate) fn push(&self, mut request: Request) -> Result<(), Refused> {
        let now = self.now();
        let mut state = self.lock();
        if state.is_stopping {
            state.stats.requests.refused += 1;
            return Err(Refused::Stopping);
        }
        if !self.has_room(&state, &request) {
            state.sweep(now);
        }
        if !self.has_room(&state, &request) {
            state.stats.requests.refused += 1;
            return Err(Refused::Full { retry_after: self.retry_after(&state) });
        }
        state.taken += 1;
        (request.number, request.turn, request.arrived) = (state.taken, state.draw_turn(), Some(now));
        state.waiting.push_back(request);
        drop(state);
        self.wake();
        Ok(())
    }

    /// Refuses what comes now if as many wait as may.
    pub(crate) fn check_room(&self) -> Result<(), Refused> {
        let now = self.now();
        let mut state = self.lock();
        if state.waiting.len() >= self.max {
            state.sweep(now);
        }
        if state.waiting.len() < self.max {
            return Ok(());
        }
        state.stats.requests.refused += 1;
        Err(Refused::Full { retry_after: self.retry_after(&state) })
    }

    /// A picture of any size may wait alone.
    fn has_room(&self, state: &State, request: &Request) -> bool {
        let fits = || pixel_bytes(state.waiting.iter().chain([request])) <= self.max_bytes;
        state.waiting.len() < self.max && (state.waiting.is_empty() || fits())
    }

    /// When those that wait now will have been begun, if answers go on taking as long as they did lately.
    fn retry_after(&self, state: &State) -> Duration {
        const LEAST: Duration = Duration::from_secs(1);
        const MOST: Duration = Duration::from_secs(300);
        let turns = (state.waiting.len() as f64 / self.max_sequences.max(1) as f64).max(1.0);
        state.service.mul_f64(turns).clamp(LEAST, MOST)
    }

    /// A place at the end of the line for seats, in which whoever comes stands too.
    pub(crate) fn draw_turn(&self) -> u64 {
        self.lock().draw_turn()
    }

    /// The next in the queue.
    pub(crate) fn pop(&self) -> Option<Request> {
        self.pop_first(|_| true)
    }

    /// The next in the queue that has one part, if its turn is before another's.
    pub(crate) fn pop_question(&self, before: u64) -> Option<Request> {
        self.pop_first(|request| request.streams() && request.turn < before)
    }

    fn pop_first(&self, wanted: impl Fn(&Request) -> bool) -> Option<Request> {
        let now = self.now();
        let mut state = self.lock();
        let place = state.waiting.iter().position(wanted)?;
        let mut request = state.waiting.remove(place)?;
        request.started = Some(now);
        let waited = request.arrived.map_or(Duration::ZERO, |arrived| now.saturating_duration_since(arrived));
        state.stats.queue_seconds += waited.as_secs_f64();
        Some(request)
    }

    /// Removes what nobody waits for any more.
    pub(crate) fn sweep(&self, now: Instant) {
        self.lock().sweep(now);
    }

    /// Hands in what was seen.
    pub(crate) fn looked(&self, looked: Looked) {
        self.lock().looked.push_back(looked);
        self.wake();
    }

    /// What was seen since the last call.
    pub(crate) fn take_looked(&self) -> VecDeque<Looked> {
        std::mem::take(&mut self.lock().looked)
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// The earliest deadline in the queue.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.lock().waiting.iter().map(|request| request.deadline).min()
    }

    /// Sleeps until something happens, or until then.
    pub(crate) fn wait(&self, until: Option<Instant>) {
        let mut state = self.lock();
        while !state.poked {
            let Some(until) = until else {
                state = self.poke.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.poke.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.poked = false;
    }

    /// Something happened.
    pub(crate) fn wake(&self) {
        self.lock().poked = true;
        self.poke.notify_all();
    }

    /// The first answer took so long; from now on it is ready.
    pub(crate) fn open(&self, first: Duration) {
        let mut state = self.lock();
        (state.is_ready, state.service) = (true, first);
    }

    pub(crate) fn is_ready(&self) -> bool {
        let state = self.lock();
        state.is_ready && !state.is_stopping
    }

    pub(crate) fn stop(&self) {
        self.lock().is_stopping = true;
        self.wake();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.lock().is_stopping
    }

    /// Nobody will answer what still waits.
    pub(crate) fn close(&self, why: &str) {
        let mut state = self.lock();
        (state.is_ready, state.is_stopping) = (false, true);
        while let Some(mut request) = state.waiting.pop_front() {
            request.fail_all(|| Failure::Engine(why.to_owned()));
            state.count(&request);
        }
    }

    /// Notes how a request ended that has left the queue.
    pub(crate) fn ended(&self, request: &Request) {
        const WEIGHT: f64 = 0.2;
        let now = self.now();
        let mut state = self.lock();
        state.count(request);
        if let (Some(started), true) = (request.started, request.is_over()) {
            let took = now.saturating_duration_since(started);
            state.service = state.service.mul_f64(1.0 - WEIGHT) + took.mul_f64(WEIGHT);
        }
    }

    pub(crate) fn note(&self, note: impl FnOnce(&mut Stats)) {
        note(&mut self.lock().stats);
    }

    pub(crate) fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { queued: state.waiting.len(), ..state.stats.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of the pixels of all these requests' pictures. An upload is there once, however many ask about it.
fn pixel_bytes<'r>(requests: impl Iterator<Item = &'r Request>) -> usize {
    let pictures = requests.filter_map(|request| request.image.as_ref());
    let distinct: HashMap<_, _> = pictures.map(|image| (Arc::as_ptr(image), image.rgb().as_raw().len())).collect();
    distinct.values().sum()
}

impl State {
    fn draw_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    fn sweep(&mut self, now: Instant) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|request| {
            let late = now >= request.deadline;
            if late {
                request.fail_all(|| Failure::Deadline);
            }
            let stays = !late && !request.is_cancelled();
            if !stays {
                self.count(request);
            }
            stays
        });
        self.waiting = waiting;
    }

    fn count(&mut self, request: &Request) {
        let outcomes = &mut self.stats.requests;
        *match request.failed {
            _ if !request.is_over() => &mut outcomes.cancelled,
            None => &mut outcomes.answered,
            Some(Failed::Question) => &mut outcomes.question,
            Some(Failed::Numbers) => &mut outcomes.numbers,
            Some(Failed::Deadline) => &mut outcomes.deadline,
            Some(Failed::Engine) => &mut outcomes.engine,
        } += 1;
    }
}
