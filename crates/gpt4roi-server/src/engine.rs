//! One owner of the model, and a queue in front of it.
//!
//! [`Engine::start`] gives the model to a thread of its own; everybody else asks through the handle and
//! gets a [`Reply`], a stream of [`Update`]s. What happens between stands in `scheduler.rs`: all
//! questions decode as one batch, joining and leaving between steps. A second thread looks at pictures
//! (`look.rs`), so that answers under way need not wait for a vision tower.
//!
//! Every part of a question, the one answer or one per shape, ends in exactly one [`Update::Answer`],
//! [`Update::Chosen`] or [`Update::Failed`], and the stream ends behind the last of them. A panic inside costs those whose
//! questions were being answered their answers ([`Failure::Engine`]); the queue stays, and the thread goes
//! on with it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gpt4roi::{
    BBox, Chat, Choices, Config, Gpt4Roi, Image, RegionId,
    asked::Rendered,
    bbox::BoxPrecision,
    chat::{Answer, AskOptions, ResolvedRegion},
    choices::{Chosen, WrittenChoices},
    drafter::Drafter,
    generate::GenerateError,
    image_cache::ImageCache,
    prefix_cache::PrefixCache,
    prompt::TextMode,
    shape::Shape,
};
use tokio::sync::{
    mpsc::{UnboundedReceiver, unbounded_channel},
    watch,
};

pub use gpt4roi::asked::{Exchange, Said};

use crate::{
    limits::MAX_CLOSE_UPS,
    look::{Eye, Look},
    queue::{Clock, Queue},
    request::{Request, Subject, THIS},
    scheduler::Scheduler,
};

pub use crate::queue::{Outcomes, Stats};

/// How much the engine does at a time, and how much it remembers.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Questions that may wait.
    pub max_queue: usize,
    /// Bytes of pixels that the pictures of waiting questions may have; one that several are about counts once.
    pub queue_bytes: usize,
    /// Sequences that decode together.
    pub max_sequences: usize,
    /// Bytes that the keys and values of decoding sequences may take, beyond what is kept. One sequence
    /// runs in any case.
    pub batch_bytes: usize,
    /// Bytes of encoded pictures to keep.
    pub cache_bytes: usize,
    /// Bytes of keys and values to keep of pictures and conversations.
    pub prefix_bytes: usize,
    /// Tokens of prompts that a step reads at most: between two such pieces, answers under way go on, and
    /// questions can be cancelled.
    pub piece: usize,
    /// Tokens that are drafted ahead at most, if not as many as the model drafts unasked; that of a question's own
    /// options does not count.
    pub draft: Option<usize>,
    /// What drafts, and learns from all that is asked and answered.
    pub drafter: Drafter,
    /// In which precision boxes reach the model; that of a question's own options does not count.
    pub box_precision: BoxPrecision,
    /// How words are read that look like structure; that of a question's own options does not count.
    pub text_mode: TextMode,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_queue: 64,
            queue_bytes: 1 << 30,
            max_sequences: 16,
            batch_bytes: 1 << 30,
            cache_bytes: 512 << 20,
            prefix_bytes: 1 << 30,
            piece: 128,
            draft: None,
            drafter: Drafter::new(),
            box_precision: BoxPrecision::F32,
            text_mode: TextMode::Literal,
        }
    }
}

/// A question about a picture.
#[derive(Clone, Debug)]
pub struct Question {
    /// The picture.
    pub image: Arc<Image>,
    /// Regions with any numbers from 1, mentioned or not.
    pub regions: Vec<(RegionId, Shape)>,
    /// What was said before, oldest first.
    pub rounds: Vec<Exchange>,
    /// What is asked now.
    pub question: Vec<Said>,
    /// The answers to choose between; without any the model answers in its own words.
    pub choices: Option<Choices>,
    /// How it is to be answered.
    pub options: AskOptions,
    /// When nobody needs the answer any more.
    pub deadline: Instant,
}

/// One question about each of many shapes.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// The picture.
    pub image: Arc<Image>,
    /// The shapes; an update's index is a place in this list.
    pub shapes: Vec<Shape>,
    /// The question, in which the shape is `<region1>`.
    pub question: String,
    /// The answers to choose between; without any the model answers in its own words.
    pub choices: Option<Choices>,
    /// How it is to be answered.
    pub options: AskOptions,
    /// When nobody needs the answers any more.
    pub deadline: Instant,
}

/// A question that was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// As many questions wait as may.
    #[error("the queue is full, there should be room in {} s", retry_after.as_secs_f64().ceil())]
    Full {
        /// When there should be room, judged by how long answers took lately.
        retry_after: Duration,
    },
    /// The engine takes nothing new.
    #[error("the engine is stopping")]
    Stopping,
    /// Too many small regions are to be looked at closely.
    #[error("expected at most {most} small regions to look at closely, got {got}")]
    CloseUps {
        /// How many may be.
        most: usize,
        /// How many the question is about.
        got: usize,
    },
    /// The question can't be asked.
    #[error(transparent)]
    Question(#[from] gpt4roi::Error),
}

/// What happens to a question.
#[derive(Debug)]
pub enum Update {
    /// It has left the queue, and the picture was looked at.
    Started {
        /// All regions with their boxes: those given, then those that coordinates made. For a [`Bulk`],
        /// instead, one for each shape, in their order, with the number that the question calls it by.
        regions: Vec<ResolvedRegion>,
    },
    /// An answer goes on. All texts together are the text of the answer. A [`Bulk`] gets none.
    Text {
        /// Which answer.
        index: usize,
        /// What is added; never empty.
        text: String,
    },
    /// An answer is complete.
    Answer {
        /// Which answer.
        index: usize,
        /// The answer.
        answer: Answer,
    },
    /// One of the given answers was chosen.
    Chosen {
        /// Which answer.
        index: usize,
        /// The choices, and how probable each is.
        chosen: Chosen,
    },
    /// There will be no answer.
    Failed {
        /// Which answer.
        index: usize,
        /// Why not.
        error: Failure,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The question can't be answered.
    #[error(transparent)]
    Question(gpt4roi::Error),
    /// The model's numbers are none.
    #[error("the model's numbers are none")]
    Numbers,
    /// Its deadline came first.
    #[error("the deadline passed before the answer was complete")]
    Deadline,
    /// The engine failed.
    #[error("the engine failed: {0}")]
    Engine(String),
}

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Sampling { .. } => Self::Numbers,
            GenerateError::Prompt { .. } => Self::Question(error.into()),
            error => Self::Engine(error.to_string()),
        }
    }
}

/// The updates of one question. Dropping it cancels: what waits leaves the queue, what is being read or
/// decoded stops after the running step, and its place is free for others.
#[derive(Debug)]
pub struct Reply {
    updates: UnboundedReceiver<Update>,
    queue: Arc<Queue>,
}

impl Reply {
    /// The next update; none behind the last.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }

    /// The next update that is there already.
    #[cfg(test)]
    pub(crate) fn try_next(&mut self) -> Option<Update> {
        self.updates.try_recv().ok()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.updates.close();
        self.queue.wake();
    }
}

/// A handle to the engine, cheap to clone. The engine stops when the last is dropped.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    model: Arc<Gpt4Roi>,
    queue: Arc<Queue>,
    options: EngineOptions,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

impl Engine {
    /// Gives the model to a thread, which warms up with one answer before the first question.
    ///
    /// # Panics
    /// If the system has no thread to give.
    pub fn start(model: Gpt4Roi, options: EngineOptions) -> (Self, EngineThread) {
        let engine = Self::new(model, options, Arc::new(Instant::now));
        let (model, queue, options) =
            (engine.inner.model.clone(), engine.inner.queue.clone(), engine.inner.options.clone());
        let (running, end) = watch::channel(());
        let thread = thread::spawn(move || {
            // Dropped whatever happens, and whoever waits for that hears of it.
            let _running = running;
            run(&model, &queue, &options)
        });
        (engine, EngineThread { thread, end })
    }

    /// An engine that somebody has to drive.
    pub(crate) fn new(model: Gpt4Roi, options: EngineOptions, clock: Clock) -> Self {
        let queue = Arc::new(Queue::new(&options, clock));
        Self { inner: Arc::new(Inner { model: Arc::new(model), queue, options }) }
    }

    /// Whether it has warmed up and takes questions.
    pub fn is_ready(&self) -> bool {
        self.inner.queue.is_ready()
    }

    /// The model's dimensions.
    pub fn config(&self) -> &Config {
        &self.inner.model.config
    }

    /// Queues a question. Its text is rendered here, on the caller's thread, which takes milliseconds.
    ///
    /// # Errors
    /// If the queue is full, the engine stopping, the question can't be asked of any picture of this size, or
    /// takes too many closer looks.
    pub fn ask(&self, question: Question) -> Result<Reply, Refused> {
        let Question { image, regions, rounds, question, choices, options, deadline } = question;
        let options = self.own(options);
        let rendered = Rendered::new(&self.inner.model, image.size(), &regions, &rounds, &question, &options)?;
        self.check_close_ups(&rendered)?;
        self.submit(image, rendered, Subject::One, choices, deadline)
    }

    /// Queues one question about each of many shapes, as if each were the first of a conversation. What
    /// their prompts have in common is read once; answers come as they are finished.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn describe(&self, bulk: Bulk) -> Result<Reply, Refused> {
        let Bulk { image, shapes, question, choices, options, deadline } = bulk;
        let whole = Shape::Box(BBox::from_normalized([0.0, 0.0, 1.0, 1.0]).map_err(gpt4roi::Error::from)?);
        let (regions, options) = ([(THIS, shapes.first().copied().unwrap_or(whole))], self.own(options));
        let question = [Said::Text(question)];
        let rendered = Rendered::new(&self.inner.model, image.size(), &regions, &[], &question, &options)?;
        shapes.iter().try_for_each(|shape| self.check_close_ups(&rendered.about(THIS, *shape)))?;
        self.submit(image, rendered, Subject::Each(shapes), choices, deadline)
    }

    /// Says early what [`Self::ask`] would say of any question, before work is put into one. There may be no
    /// room any more when it is asked.
    ///
    /// # Errors
    /// If the queue is full.
    pub fn check_room(&self) -> Result<(), Refused> {
        self.inner.queue.check_room()
    }

    /// How it goes.
    pub fn stats(&self) -> Stats {
        self.inner.queue.stats()
    }

    /// Takes nothing new. What waits or runs is finished, or ends at its deadline.
    pub fn stop(&self) {
        self.inner.queue.stop();
    }

    #[cfg(test)]
    pub(crate) fn parts(&self) -> (Arc<Gpt4Roi>, Arc<Queue>, EngineOptions) {
        (self.inner.model.clone(), self.inner.queue.clone(), self.inner.options.clone())
    }

    fn own(&self, options: AskOptions) -> AskOptions {
        let EngineOptions { box_precision, text_mode, .. } = self.inner.options;
        AskOptions { box_precision, text_mode, ..options }
    }

    /// Others wait while somebody looks, and each closer look costs as much as a picture.
    fn check_close_ups(&self, rendered: &Rendered) -> Result<(), Refused> {
        match rendered.close_ups(&self.inner.model) {
            got if got > MAX_CLOSE_UPS => Err(Refused::CloseUps { most: MAX_CLOSE_UPS, got }),
            _ => Ok(()),
        }
    }

    fn submit(
        &self,
        image: Arc<Image>,
        rendered: Rendered,
        subject: Subject,
        choices: Option<Choices>,
        deadline: Instant,
    ) -> Result<Reply, Refused> {
        let written = choices.map(|choices| WrittenChoices::new(&self.inner.model, &rendered, choices));
        let choices = written.transpose()?.map(Arc::new);
        let (sender, updates) = unbounded_channel();
        let queue = self.inner.queue.clone();
        queue.push(Request::new(image, rendered, subject, choices, deadline, sender))?;
        Ok(Reply { updates, queue })
    }
}

/// Why an engine's thread ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model can't answer.
    #[error("the first answer failed: {0}")]
    WarmUp(#[from] gpt4roi::Error),
    /// Outside of what is caught and survived.
    #[error("the engine's thread panicked")]
    Panicked,
}

/// The thread that owns the model.
#[derive(Debug)]
pub struct EngineThread {
    thread: JoinHandle<Result<(), EngineError>>,
    end: watch::Receiver<()>,
}

impl EngineThread {
    /// Waits until it comes to its end, for whatever reason; [`Self::join`] says for which, without waiting then. If
    /// nobody stopped the engine, it has failed, and nothing will be answered any more.
    pub async fn ended(&mut self) {
        while self.end.changed().await.is_ok() {}
    }

    /// Waits until everything is answered, after [`Engine::stop`] or the end of the last handle.
    ///
    /// # Errors
    /// If the engine ended before it was stopped.
    pub fn join(self) -> Result<(), EngineError> {
        self.thread.join().unwrap_or(Err(EngineError::Panicked))
    }
}

/// What the thread does.
fn run(model: &Gpt4Roi, queue: &Queue, options: &EngineOptions) -> Result<(), EngineError> {
    let began = Instant::now();
    if let Err(error) = warm_up(model) {
        queue.close(&error.to_string());
        return Err(error.into());
    }
    queue.open(began.elapsed());
    let (images, prefixes) = (ImageCache::new(options.cache_bytes), PrefixCache::new(options.prefix_bytes));
    let eye = Eye { model, images: &images, prefixes: &prefixes };
    thread::scope(|scope| {
        let (looks, to_look) = mpsc::channel();
        scope.spawn(|| look_around(&eye, to_look, queue));
        let attempt = || drive(Scheduler::new(&eye, queue, options), queue, &looks);
        while catch_unwind(AssertUnwindSafe(attempt)).is_err() {}
        drop(looks);
    });
    queue.close("it was stopped");
    Ok(())
}

/// A grey picture and a region of it.
fn warm_up(model: &Gpt4Roi) -> gpt4roi::Result<()> {
    let grey = Image::from_rgb(image::RgbImage::from_pixel(64, 64, image::Rgb([128; 3])));
    let mut chat = Chat::new(model, &grey)?;
    let region = chat.add_region(BBox::from_normalized([0.25, 0.25, 0.75, 0.75])?);
    chat.ask_with(&format!("What is {region}?"), &AskOptions { max_new_tokens: 4, ..AskOptions::default() })?;
    Ok(())
}

/// Steps until the engine was stopped and nothing is left to do.
fn drive(mut scheduler: Scheduler<'_>, queue: &Queue, looks: &mpsc::Sender<Look>) {
    loop {
        scheduler.step();
        while let Some(look) = scheduler.next_look() {
            if looks.send(look).is_err() {
                return;
            }
        }
        if scheduler.has_work() {
            continue;
        }
        if scheduler.is_done() {
            return;
        }
        queue.wait(scheduler.next_deadline());
    }
}

/// Looks at pictures as they are asked about.
fn look_around(eye: &Eye<'_>, looks: mpsc::Receiver<Look>, queue: &Queue) {
    for look in looks {
        let began = queue.now();
        let looked = look.run(eye);
        let took = queue.now().saturating_duration_since(began);
        queue.note(|stats| stats.vision_seconds += took.as_secs_f64());
        queue.looked(looked);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn question(text: &str) -> Question {
        let image = Image::from_rgb(image::RgbImage::from_pixel(60, 40, image::Rgb([200, 30, 30])));
        Question {
            image: Arc::new(image),
            regions: Vec::new(),
            rounds: Vec::new(),
            question: vec![Said::Text(text.to_owned())],
            choices: None,
            options: AskOptions { max_new_tokens: 5, ..AskOptions::default() },
            deadline: Instant::now() + Duration::from_secs(600),
        }
    }

    fn nano() -> Gpt4Roi {
        Gpt4Roi::nano(&candle_core::Device::Cpu).unwrap()
    }

    /// The last update.
    fn outcome(mut reply: Reply) -> Update {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut last = None;
            while let Some(update) = reply.next().await {
                last = Some(update);
            }
            last.unwrap()
        })
    }

    #[test]
    fn a_thread_answers_until_it_is_stopped() {
        fn is_shared<T: Clone + Send + Sync>(_: &T) {}
        let (engine, thread) = Engine::start(nano(), EngineOptions::default());
        is_shared(&engine);
        let replies = ["What is [8, 6, 40, 30]?", "What do you see?"].map(|text| engine.ask(question(text)).unwrap());
        engine.stop();
        assert!(matches!(engine.ask(question("Who?")), Err(Refused::Stopping)));
        for reply in replies {
            let last = outcome(reply);
            assert!(matches!(last, Update::Answer { .. }), "{last:?}");
        }
        thread.join().unwrap();
        let stats = engine.stats();
        assert_eq!((stats.requests.answered, stats.requests.refused), (2, 1));
        assert!(stats.vision_seconds > 0.0 && stats.prefill_seconds > 0.0);
        let (engine, thread) = Engine::start(nano(), EngineOptions::default());
        drop(engine);
        thread.join().unwrap();
    }

    /// A context too short for any question.
    #[test]
    fn a_model_that_can_not_answer_ends_the_thread_with_the_reason() {
        let mut model = nano();
        model.config.llama.max_position_embeddings = 8;
        let (engine, mut thread) = Engine::start(model, EngineOptions::default());
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(thread.ended());
        assert!(!engine.is_ready());
        let error = thread.join().unwrap_err();
        assert!(matches!(error, EngineError::WarmUp(gpt4roi::Error::Prompt(_))), "{error}");
    }

    /// A clock that breaks once, in the engine's own thread.
    #[test]
    fn a_panic_leaves_nobody_waiting() {
        let breaks = Arc::new(AtomicBool::new(false));
        let (broken, name) = (breaks.clone(), "a broken clock");
        let clock = move || {
            if thread::current().name() == Some(name) && broken.swap(false, Ordering::SeqCst) {
                panic!("the clock broke, as this test wants it to");
            }
            Instant::now()
        };
        let engine = Engine::new(nano(), EngineOptions::default(), Arc::new(clock));
        let (model, queue, options) = engine.parts();
        let mut reply = engine.ask(question("What is [8, 6, 40, 30]?")).unwrap();
        let work = move || run(&model, &queue, &options);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(matches!(runtime.block_on(reply.next()), Some(Update::Started { .. })));
        breaks.store(true, Ordering::SeqCst);
        let last = outcome(engine.ask(question("What do you see?")).unwrap());
        assert!(matches!(last, Update::Answer { .. } | Update::Failed { error: Failure::Engine(_), .. }), "{last:?}");
        outcome(reply);
        assert!(!breaks.load(Ordering::SeqCst), "it broke");
        assert!(matches!(outcome(engine.ask(question("What is there?")).unwrap()), Update::Answer { .. }));
        engine.stop();
        thread.join().unwrap().unwrap();
    }
}
