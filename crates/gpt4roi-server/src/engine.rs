//! One owner of the model, and a queue in front of it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use candle_core::Tensor;
use gpt4roi::{
    BBox, Config, Error, Gpt4Roi, Image, RegionId,
    bbox::BoxPrecision,
    chat::{Answer, AskOptions, Origin, ResolvedRegion, tidy},
    generate::{FinishReason, GenerateError, Halt, Limits, LlamaDecoder, generate},
    image_cache::{EncodedImage, ImageCache},
    mention::{self, Part},
    point::{self, PointBox},
    prompt::{self, Piece, Round, TextMode},
    sampling::{Sampler, SamplingError},
    shape::Shape,
};
use tokio::sync::mpsc as updates;

/// How much may wait and run.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Requests that may wait.
    pub max_queue: usize,
    /// Sequences that decode together.
    pub max_sequences: usize,
    /// Bytes of keys and values.
    pub batch_bytes: usize,
    /// Bytes of encoded pictures.
    pub cache_bytes: usize,
    /// Precision of boxes.
    pub box_precision: BoxPrecision,
    /// How words are read that look like structure.
    pub text_mode: TextMode,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_queue: 64,
            max_sequences: 16,
            batch_bytes: 1 << 30,
            cache_bytes: 512 << 20,
            box_precision: BoxPrecision::F32,
            text_mode: TextMode::Literal,
        }
    }
}

/// A handle on the engine.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    ready: AtomicBool,
    queued: AtomicUsize,
    max_queue: usize,
    stats: Mutex<Stats>,
}

/// The engine's thread.
#[derive(Debug)]
pub struct EngineThread(JoinHandle<()>);

/// The engine's thread ended by a panic.
#[derive(Debug, thiserror::Error)]
#[error("the engine's thread ended by a panic")]
pub struct EnginePanic;

/// One question.
#[derive(Clone, Debug)]
pub struct Question {
    /// The picture.
    pub image: Arc<Image>,
    /// Declared regions.
    pub regions: Vec<(RegionId, Shape)>,
    /// What was said before.
    pub rounds: Vec<Exchange>,
    /// What is asked.
    pub question: Vec<Said>,
    /// How it is to be answered.
    pub options: AskOptions,
    /// When it has to be answered.
    pub deadline: Instant,
}

/// A question and its answer.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// What was asked.
    pub question: Vec<Said>,
    /// What was answered.
    pub answer: String,
}

/// A piece of a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Mentions and coordinates count.
    Text(String),
    /// Stays words.
    Literal(String),
    /// A region.
    Region(RegionId),
}

/// One question about each of many shapes.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// The picture.
    pub image: Arc<Image>,
    /// The shapes.
    pub shapes: Vec<Shape>,
    /// The question, with `<region1>`.
    pub question: String,
    /// How it is to be answered.
    pub options: AskOptions,
    /// When it has to be answered.
    pub deadline: Instant,
}

/// What becomes of a request; dropping it cancels.
#[derive(Debug)]
pub struct Reply(updates::UnboundedReceiver<Update>);

impl Reply {
    /// The next thing that happened; `None` at the end.
    pub async fn next(&mut self) -> Option<Update> {
        self.0.recv().await
    }
}

/// Something that happened to a request.
#[derive(Debug)]
pub enum Update {
    /// It left the queue.
    Started {
        /// The regions, resolved.
        regions: Vec<ResolvedRegion>,
    },
    /// More of an answer.
    Text {
        /// Which answer.
        index: usize,
        /// The text.
        text: String,
    },
    /// A whole answer.
    Answer {
        /// Which answer.
        index: usize,
        /// The answer.
        answer: Answer,
    },
    /// An answer that will not come.
    Failed {
        /// Which answer.
        index: usize,
        /// Why.
        error: Failure,
    },
}

/// Why an answer does not come.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The client's fault.
    #[error(transparent)]
    Question(Error),
    /// The model's numbers are none.
    #[error("the model's numbers are none")]
    Numbers,
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The engine failed.
    #[error("the engine failed: {0}")]
    Engine(String),
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The queue is full.
    #[error("the queue is full")]
    Full {
        /// When to come again.
        retry_after: Duration,
    },
    /// The engine takes nothing new.
    #[error("the engine is stopping")]
    Stopping,
    /// The question can't be.
    #[error(transparent)]
    Question(Error),
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Requests waiting.
    pub queued: usize,
    /// Requests running.
    pub running: usize,
    /// Sequences decoding.
    pub sequences: usize,
    /// Requests answered.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests cancelled.
    pub cancelled: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Prompt tokens not read again.
    pub reused_tokens: u64,
    /// Generated tokens.
    pub generated_tokens: u64,
    /// Pictures found encoded.
    pub image_cache_hits: u64,
    /// Pictures that had to be encoded.
    pub image_cache_misses: u64,
    /// Bytes of encoded pictures.
    pub image_cache_bytes: usize,
    /// Seconds waited.
    pub queue_seconds: f64,
    /// Seconds of the tower.
    pub vision_seconds: f64,
    /// Seconds of prefill.
    pub prefill_seconds: f64,
    /// Seconds of decoding.
    pub decode_seconds: f64,
}

#[derive(Debug)]
struct Job {
    image: Arc<Image>,
    regions: Vec<(RegionId, Shape)>,
    /// Per answer: the region that is `<region1>` there, if it is one of many, and what is asked.
    asked: Asked,
    options: AskOptions,
    deadline: Instant,
    updates: updates::UnboundedSender<Update>,
    since: Instant,
}

#[derive(Debug)]
enum Asked {
    One(Vec<Exchange>, Vec<Said>),
    Many(String),
}

impl Engine {
    /// Starts the thread that owns the model.
    pub fn start(model: Gpt4Roi, options: EngineOptions) -> (Self, EngineThread) {
        let (sender, jobs) = mpsc::channel();
        let shared = Arc::new(Shared {
            config: model.config.clone(),
            jobs: Mutex::new(Some(sender)),
            ready: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            max_queue: options.max_queue,
            stats: Mutex::default(),
        });
        let worker = Worker { model, cache: ImageCache::new(options.cache_bytes), shared: shared.clone() };
        let thread = std::thread::spawn(move || worker.run(&jobs));
        (Self(shared), EngineThread(thread))
    }

    /// Whether it answers.
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    /// The model's dimensions.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Queues a question.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn ask(&self, question: Question) -> Result<Reply, Refused> {
        let mut declared: Vec<RegionId> = question.regions.iter().map(|(id, _)| *id).collect();
        let rounds = question.rounds.iter().map(|exchange| &exchange.question);
        for said in rounds.chain([&question.question]) {
            check(said, &mut declared, &question.image).map_err(Refused::Question)?;
        }
        let Question { image, regions, rounds, question, options, deadline } = question;
        self.queue(image, regions, Asked::One(rounds, question), options, deadline)
    }

    /// Queues one question about each of many shapes.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn describe(&self, bulk: Bulk) -> Result<Reply, Refused> {
        let Bulk { image, shapes, question, options, deadline } = bulk;
        check(&[Said::Text(question.clone())], &mut vec![RegionId(1)], &image).map_err(Refused::Question)?;
        let regions = shapes.into_iter().zip(1..).map(|(shape, id)| (RegionId(id), shape)).collect();
        self.queue(image, regions, Asked::Many(question), options, deadline)
    }

    fn queue(
        &self,
        image: Arc<Image>,
        regions: Vec<(RegionId, Shape)>,
        asked: Asked,
        options: AskOptions,
        deadline: Instant,
    ) -> Result<Reply, Refused> {
        Sampler::new(&options.sampling).map_err(|error| Refused::Question(error.into()))?;
        if self.0.queued.load(Ordering::Acquire) >= self.0.max_queue {
            return Err(Refused::Full { retry_after: Duration::from_secs(1) });
        }
        let (updates, reply) = updates::unbounded_channel();
        let job = Job { image, regions, asked, options, deadline, updates, since: Instant::now() };
        let jobs = lock(&self.0.jobs);
        let jobs = jobs.as_ref().ok_or(Refused::Stopping)?;
        self.0.queued.fetch_add(1, Ordering::AcqRel);
        jobs.send(job).map_err(|_| Refused::Stopping)?;
        Ok(Reply(reply))
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        Stats { queued: self.0.queued.load(Ordering::Acquire), ..*lock(&self.0.stats) }
    }

    /// Takes nothing new.
    pub fn stop(&self) {
        lock(&self.0.jobs).take();
    }
}

impl EngineThread {
    /// Waits until all is answered.
    ///
    /// # Errors
    /// If the thread panicked.
    pub fn join(self) -> Result<(), EnginePanic> {
        self.0.join().map_err(|_| EnginePanic)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(said: &[Said], declared: &mut Vec<RegionId>, image: &Image) -> Result<(), Error> {
    let mut next = declared.iter().map(|id| id.0).max().unwrap_or(0);
    for said in said {
        match said {
            Said::Text(text) => {
                for part in mention::parse(text, declared, image.size())? {
                    if matches!(part, Part::Box(_) | Part::Point(_)) {
                        next += 1;
                        declared.push(RegionId(next));
                    }
                }
            }
            Said::Region(id) if !declared.contains(id) => {
                let (id, declared) = (*id, declared.len());
                return Err(gpt4roi::chat::ChatError::UnknownRegion { id, declared }.into());
            }
            Said::Literal(_) | Said::Region(_) => {}
        }
    }
    Ok(())
}

struct Worker {
    model: Gpt4Roi,
    cache: ImageCache,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy)]
struct Placed {
    id: RegionId,
    bbox: BBox,
    origin: Origin,
}

impl Worker {
    fn run(&self, jobs: &mpsc::Receiver<Job>) {
        self.shared.ready.store(true, Ordering::Release);
        while let Ok(job) = jobs.recv() {
            self.shared.queued.fetch_sub(1, Ordering::AcqRel);
            let mut stats = lock(&self.shared.stats);
            stats.running = 1;
            stats.queue_seconds += job.since.elapsed().as_secs_f64();
            drop(stats);
            let outcome = catch_unwind(AssertUnwindSafe(|| self.serve(&job)));
            let outcome = outcome.unwrap_or_else(|_| Err(Failure::Engine("panic".into())));
            if let Err(error) = outcome {
                lock(&self.shared.stats).failed += 1;
                let _ = job.updates.send(Update::Failed { index: 0, error });
            }
            lock(&self.shared.stats).running = 0;
        }
        self.shared.ready.store(false, Ordering::Release);
    }

    fn serve(&self, job: &Job) -> Result<(), Failure> {
        if job.updates.is_closed() {
            lock(&self.shared.stats).cancelled += 1;
            return Ok(());
        }
        if Instant::now() >= job.deadline {
            return Err(Failure::Deadline);
        }
        let image = self.cache.encode(&self.model, &job.image).map_err(failure)?;
        let mut regions = Vec::new();
        for (id, shape) in &job.regions {
            let (bbox, origin) = match shape {
                Shape::Box(bbox) => (*bbox, Origin::Given),
                Shape::Point(point) => (self.grow(&image, *point, &job.options).map_err(failure)?, Origin::Point),
            };
            regions.push(Placed { id: *id, bbox, origin });
        }
        match &job.asked {
            Asked::Many(question) => {
                let _ = job.updates.send(Update::Started { regions: resolved(&regions, &image) });
                for (index, region) in regions.iter().enumerate() {
                    if job.updates.is_closed() {
                        return Ok(());
                    }
                    let mut alone = vec![Placed { id: RegionId(1), ..*region }];
                    let said = [Said::Text(question.clone())];
                    let pieces = self.pieces(&said, &mut alone, &image, &job.options).map_err(failure)?;
                    let rounds = [Round { question: pieces, answer: None }];
                    self.answer(job, index, &image, &rounds, &alone)?;
                }
            }
            Asked::One(exchanges, question) => {
                let mut rounds = Vec::new();
                for exchange in exchanges {
                    let question =
                        self.pieces(&exchange.question, &mut regions, &image, &job.options).map_err(failure)?;
                    rounds.push(Round { question, answer: Some(exchange.answer.clone()) });
                }
                let question = self.pieces(question, &mut regions, &image, &job.options).map_err(failure)?;
                rounds.push(Round { question, answer: None });
                let _ = job.updates.send(Update::Started { regions: resolved(&regions, &image) });
                self.answer(job, 0, &image, &rounds, &regions)?;
            }
        }
        Ok(())
    }

    fn grow(&self, image: &EncodedImage, point: gpt4roi::bbox::Point, options: &AskOptions) -> Result<BBox, Error> {
        let point_box = options.point_box.unwrap_or_else(|| PointBox::of(&self.model.config.region));
        point::box_at(image.features(), point, &point_box)
    }

    fn pieces(
        &self,
        said: &[Said],
        regions: &mut Vec<Placed>,
        image: &EncodedImage,
        options: &AskOptions,
    ) -> Result<Vec<Piece>, Error> {
        let mut pieces = Vec::new();
        for said in said {
            let text = match said {
                Said::Region(id) => {
                    pieces.push(Piece::Region(*id));
                    continue;
                }
                Said::Literal(text) => {
                    pieces.push(Piece::Text(text.clone()));
                    continue;
                }
                Said::Text(text) => text,
            };
            let declared: Vec<_> = regions.iter().map(|region| region.id).collect();
            for part in mention::parse(text, &declared, image.size())? {
                let (bbox, origin) = match part {
                    Part::Text(text) => {
                        pieces.push(Piece::Text(text));
                        continue;
                    }
                    Part::Mention(id) => {
                        pieces.push(Piece::Region(id));
                        continue;
                    }
                    Part::Box(bbox) => (bbox, Origin::Coordinates),
                    Part::Point(point) => (self.grow(image, point, options)?, Origin::Point),
                };
                let id = RegionId(regions.iter().map(|region| region.id.0).max().unwrap_or(0) + 1);
                regions.push(Placed { id, bbox, origin });
                pieces.push(Piece::Region(id));
            }
        }
        Ok(pieces)
    }

    fn answer(
        &self,
        job: &Job,
        index: usize,
        image: &EncodedImage,
        rounds: &[Round],
        regions: &[Placed],
    ) -> Result<(), Failure> {
        let answer = self.generate(job, index, image, rounds, regions).map_err(failure)?;
        let Some(answer) = answer else {
            lock(&self.shared.stats).cancelled += 1;
            return if Instant::now() >= job.deadline { Err(Failure::Deadline) } else { Ok(()) };
        };
        let mut stats = lock(&self.shared.stats);
        stats.answered += 1;
        stats.prompt_tokens += answer.prompt_tokens as u64;
        stats.generated_tokens += answer.generated_tokens as u64;
        drop(stats);
        let _ = job.updates.send(Update::Answer { index, answer });
        Ok(())
    }

    fn generate(
        &self,
        job: &Job,
        index: usize,
        image: &EncodedImage,
        rounds: &[Round],
        regions: &[Placed],
    ) -> Result<Option<Answer>, Error> {
        let Gpt4Roi { network, tokenizer, config, device } = &self.model;
        let encoded = prompt::encode(rounds, tokenizer, config.vision.patches(), job.options.text_mode)?;
        let context = config.llama.max_position_embeddings;
        encoded.check_length(context, 1)?;
        let find = |id: RegionId| {
            let unknown = gpt4roi::chat::ChatError::UnknownRegion { id, declared: regions.len() };
            regions.iter().find(|region| region.id == id).copied().ok_or(unknown)
        };
        let mut boxes = Vec::new();
        for (_, id) in &encoded.regions {
            boxes.push(find(*id)?.bbox);
        }
        let ids = Tensor::from_slice(&encoded.ids, encoded.ids.len(), device)?;
        let patch_places: Vec<u32> = encoded.patches.clone().map(|place| place as u32).collect();
        let region_places: Vec<u32> = encoded.regions.iter().map(|(place, _)| *place).collect();
        let mut parts: Vec<(&Tensor, &[u32])> = vec![(&image.features().image_tokens, &patch_places)];
        let vectors;
        if !boxes.is_empty() {
            let maps = image.maps(network)?;
            vectors = network.encode_regions(&maps, &BBox::tensor(&boxes, job.options.box_precision, device)?)?;
            parts.push((&vectors, &region_places));
        }
        let embeds = network.splice(&ids, &parts)?;
        let mut cache = network.llama.new_cache();
        let mut decoder = LlamaDecoder { llama: &network.llama, cache: &mut cache, embeds: &embeds };
        let max_new_tokens = job.options.max_new_tokens.min(context - encoded.ids.len());
        let (mut stream, mut decoded, mut shown) = (tokenizer.stream(), String::new(), String::new());
        let mut sampler = Sampler::new(&job.options.sampling)?;
        let limits = Limits { eos: tokenizer.special().eos, max_new_tokens };
        let generation = generate(&mut decoder, &mut sampler, limits, |token| {
            decoded += &stream.push(token);
            let text = tidy(&decoded);
            if decoded.len() > 11 && !decoded.ends_with(['#', ' ']) && text.starts_with(&shown) {
                let text = text[shown.len()..].to_owned();
                shown += &text;
                let _ = job.updates.send(Update::Text { index, text });
            }
            if job.updates.is_closed() || Instant::now() >= job.deadline {
                ControlFlow::Break(Halt::Cancel)
            } else if decoded.contains("###") {
                ControlFlow::Break(Halt::Stop)
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if generation.finish == FinishReason::Cancelled {
            return Ok(None);
        }
        let text = tidy(&decoded);
        let rest = text.strip_prefix(&shown).unwrap_or_default().to_owned();
        let _ = job.updates.send(Update::Text { index, text: rest });
        let mut mentioned = Vec::new();
        for (_, id) in &encoded.regions {
            mentioned.push(find(*id)?);
        }
        Ok(Some(Answer {
            text,
            question: String::new(),
            regions: resolved(&mentioned, image),
            prompt_tokens: encoded.ids.len(),
            reused_tokens: 0,
            generated_tokens: generation.ids.len(),
            finish: generation.finish,
            mean_log_probability: None,
        }))
    }
}

fn resolved(regions: &[Placed], image: &EncodedImage) -> Vec<ResolvedRegion> {
    let size = image.size();
    let resolved =
        |region: &Placed| ResolvedRegion { id: region.id.0, pixels: region.bbox.pixels(size), origin: region.origin };
    regions.iter().map(resolved).collect()
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Generate(GenerateError::Sampling { source: SamplingError::NotFinite { .. }, .. }) => Failure::Numbers,
        Error::Tensor(error) => Failure::Engine(error.to_string()),
        other => Failure::Question(other),
    }
}

use std::ops::ControlFlow;
