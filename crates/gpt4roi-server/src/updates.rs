//! What becomes of a request to the engine, with all that has to happen meanwhile.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval_at},
};

use crate::{
    app::Phase,
    engine::{Reply, Update},
    limits::Held,
    metrics::Tally,
};

/// A reply of the engine. Dropping it cancels the request.
#[derive(Debug)]
pub(crate) struct Updates {
    reply: Reply,
    _held: Held,
    tally: Arc<Tally>,
    ping: Interval,
    phase: watch::Receiver<Phase>,
    since: Instant,
    /// Where the time to the first text is noted, once.
    first_text: Option<Histogram>,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Happening {
    /// Something of the engine's.
    Update(Update),
    /// Nothing, for so long that the client should hear of it.
    Silence,
    /// The server stops, and won't wait any longer.
    Stopped,
    /// The engine has said everything.
    End,
}

impl Updates {
    pub(crate) fn new(
        reply: Reply,
        held: Held,
        tally: Arc<Tally>,
        ping: Duration,
        phase: watch::Receiver<Phase>,
        first_text: Histogram,
    ) -> Self {
        let mut ping = interval_at(tokio::time::Instant::now() + ping, ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { reply, _held: held, tally, ping, phase, since: Instant::now(), first_text: Some(first_text) }
    }

    /// The next thing that happens.
    pub(crate) async fn next(&mut self) -> Happening {
        let update = tokio::select! {
            biased;
            update = self.reply.next() => update,
            _ = self.phase.wait_for(|phase| *phase == Phase::Ending) => return Happening::Stopped,
            _ = self.ping.tick() => return Happening::Silence,
        };
        self.ping.reset();
        match &update {
            Some(Update::Text { text, .. }) if !text.is_empty() => {
                if let Some(first_text) = self.first_text.take() {
                    first_text.observe(self.since.elapsed().as_secs_f64());
                }
            }
            Some(Update::Answer { answer, .. }) => self.tally.add(answer.prompt_tokens, answer.generated_tokens),
            Some(Update::Chosen { chosen, .. }) => self.tally.add(chosen.prompt_tokens, 0),
            _ => {}
        }
        update.map_or(Happening::End, Happening::Update)
    }
}
