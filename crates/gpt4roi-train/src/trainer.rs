//! The loop: gradients of pictures on all cores, summed in order, clipped, applied, written down.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{
    checkpoint::{Checkpoint, Counters, Form, Tensors, complete, create, step_of},
    config::StageConfig,
    curve,
    error::{Result, TrainError},
    init::mix,
    log::{Log, Record},
    objective::{Metrics, Objective, Outcome},
    optimizer::Optimizer,
    parameters::Parameters,
    progress::Progress,
};

/// The time since some moment that stays the same while a trainer runs.
pub type Clock<'a> = &'a dyn Fn() -> Duration;

/// A stage in progress.
pub struct Trainer {
    stage: StageConfig,
    parameters: Arc<Parameters>,
    objective: Box<dyn Objective>,
    optimizer: Optimizer,
    form: Form,
    out: PathBuf,
    counters: Counters,
    /// A pool per picture that is worked on. As long as there are as many pictures as cores, a pool has one thread, and
    /// whatever a kernel would do in parallel stays in its worker.
    workers: Vec<ThreadPool>,
    /// All threads together, for the update.
    everyone: ThreadPool,
    /// Whether a batch has shown that a gradient reaches every parameter.
    reached: bool,
    /// Conversations of the records that are about no picture.
    pub(crate) without_picture: usize,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer").field("stage", &self.stage).field("counters", &self.counters).finish_non_exhaustive()
    }
}

/// The gradient of one picture, times the picture's weight.
struct Share {
    weight: f64,
    loss: f64,
    whole: bool,
    metrics: Metrics,
    /// In the optimizer's order; none where the graph does not reach.
    gradients: Vec<Option<Vec<f32>>>,
}

/// The gradient of one batch, and what was observed on the way.
struct Batch {
    weight: f64,
    loss: f64,
    /// Whether all of the network had its part in one of its pictures.
    whole: bool,
    pictures: usize,
    metrics: Metrics,
    gradients: Vec<Option<Vec<f32>>>,
}

/// What was observed since the last line of the log: means over what was learned from, and how many pictures took the
/// time.
#[derive(Default)]
struct Window {
    weight: f64,
    loss: f64,
    pictures: usize,
    metrics: Metrics,
    since: f64,
}

impl Trainer {
    /// Prepares a stage. `parameters` is what the objective's network was built from; checkpoints, log
    /// and curve go below `out`.
    ///
    /// # Errors
    /// If the stage can't be, or if threads can't be started.
    pub fn new(
        stage: StageConfig,
        parameters: Arc<Parameters>,
        objective: Box<dyn Objective>,
        form: Form,
        out: impl Into<PathBuf>,
    ) -> Result<Self> {
        stage.check()?;
        parameters.check(&stage)?;
        let threads = match stage.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let pool = |threads| ThreadPoolBuilder::new().num_threads(threads).build();
        let workers = threads.min(stage.batch);
        let share = |worker| threads / workers + usize::from(worker < threads % workers);
        let optimizer = Optimizer::new(&stage.optimizer, parameters.trainable());
        let counters = Counters { stage: stage.identity(), ..Counters::default() };
        Ok(Self {
            parameters,
            objective,
            optimizer,
            form,
            out: out.into(),
            counters,
            workers: (0..workers).map(|worker| pool(share(worker))).collect::<std::result::Result<_, _>>()?,
            everyone: pool(threads)?,
            reached: false,
            without_picture: 0,
            stage,
        })
    }

    /// Where the trainer stands.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the last step of the stage is done.
    pub fn is_done(&self) -> bool {
        self.counters.step >= self.stage.steps
    }

    /// How many steps the stage has.
    pub fn steps(&self) -> u64 {
        self.stage.steps
    }

    /// How many conversations of the stage's records are about no picture, so that nothing is learned of them.
    pub fn without_picture(&self) -> usize {
        self.without_picture
    }

    /// The optimizer, to look at its rules.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Takes back what a checkpoint knows besides the parameters, which the network was built from.
    ///
    /// # Errors
    /// If a moment is missing or of another size.
    pub(crate) fn restore(&mut self, moments: &Tensors, counters: Counters) -> Result<()> {
        self.optimizer.restore(moments, counters.updates)?;
        self.reached = counters.updates > 0;
        let stage = std::mem::take(&mut self.counters.stage);
        self.counters = Counters { stage, ..counters };
        Ok(())
    }

    /// Runs to the last step, or until `progress` breaks.
    ///
    /// # Errors
    /// Whatever stops it; the last checkpoint stays. If it begins at step 0 where another run's checkpoints are, which
    /// it would replace.
    pub fn run(&mut self, clock: Clock<'_>, progress: &mut dyn Progress) -> Result<()> {
        if self.counters.step == 0 {
            refuse_used(&self.out)?;
        }
        create(&self.checkpoints())?;
        let earlier = self.counters.seconds - clock().as_secs_f64();
        let mut log = Log::open(self.out.join("log.jsonl"), self.counters.step)?;
        let mut window = Window { since: self.counters.seconds, ..Window::default() };
        let mut written = self.counters.seconds;
        progress.started(&self.stage.name, self.counters.step, self.stage.steps);
        while !self.is_done() {
            let grad_norm = self.step(&mut window)?;
            self.counters.seconds = earlier + clock().as_secs_f64();
            let flow = progress.step(self.counters.step);
            if self.is_done() || self.counters.step.is_multiple_of(self.stage.log_every) {
                let record = self.record(&mut window, grad_norm);
                progress.record(&record);
                log.append(record)?;
            }
            if self.is_done() || flow.is_break() || self.is_due(written) {
                let path = self.write_checkpoint()?;
                curve::draw(&self.out.join("loss.svg"), &self.stage.name, log.records())?;
                progress.checkpoint(&path);
                written = self.counters.seconds;
            }
            if flow.is_break() {
                break;
            }
        }
        progress.finished();
        Ok(())
    }

    /// One step: the norm of its gradient.
    fn step(&mut self, window: &mut Window) -> Result<f64> {
        let step = self.counters.step;
        let mut batch = self.batch(step)?;
        self.counters.step += 1;
        if batch.weight == 0.0 {
            return Err(TrainError::NothingToLearn { step });
        }
        if batch.whole && !self.reached {
            self.refuse_cut_gradients(&batch)?;
            self.reached = true;
        }
        window.pictures += batch.pictures;
        let mut gradients = std::mem::take(&mut batch.gradients);
        let norm = norm(&gradients) / batch.weight;
        if !norm.is_finite() {
            return self.skip(step).map(|()| norm);
        }
        window.add(&batch);
        self.counters.skipped_in_a_row = 0;
        let scale = ((self.stage.clip_norm / norm).min(1.0) / batch.weight) as f32;
        gradients.iter_mut().flatten().flatten().for_each(|g| *g *= scale);
        let factor = self.stage.schedule.factor(step, self.stage.steps);
        let Self { everyone, optimizer, counters, .. } = self;
        everyone.install(|| optimizer.step(&gradients, factor))?;
        counters.updates = optimizer.updates();
        Ok(norm)
    }

    /// Counts a step whose gradient is not finite; what it observed is not worth a line either.
    fn skip(&mut self, step: u64) -> Result<()> {
        self.counters.skipped += 1;
        self.counters.skipped_in_a_row += 1;
        let in_a_row = self.counters.skipped_in_a_row;
        if in_a_row > self.stage.max_bad_steps {
            return Err(TrainError::NotFinite { step, in_a_row });
        }
        Ok(())
    }

    /// Deals the pictures of one step to the workers. Their gradients arrive in any order and are
    /// added in the order of the pictures, so that the sum is the same for any number of workers.
    fn batch(&self, step: u64) -> Result<Batch> {
        let first = first_picture(self.stage.seed).wrapping_add(step.wrapping_mul(self.stage.batch as u64));
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            for worker in &self.workers {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    worker.install(|| {
                        loop {
                            let slot = next.fetch_add(1, Ordering::Relaxed);
                            if slot >= self.stage.batch {
                                return;
                            }
                            let share = self.share(first.wrapping_add(slot as u64));
                            if sender.send((slot, share)).is_err() {
                                return; // another picture failed, and nobody listens any more
                            }
                        }
                    });
                });
            }
            drop(sender);
            let mut early = BTreeMap::new();
            let mut batch = Batch::new(self.optimizer.parameters().len());
            let mut wanted = 0;
            for (slot, share) in receiver {
                early.insert(slot, share);
                while let Some(share) = early.remove(&wanted) {
                    batch.add(share?);
                    wanted += 1;
                }
            }
            Ok(batch)
        })
    }

    /// The gradient of one picture.
    fn share(&self, index: u64) -> Result<Option<Share>> {
        let Some(outcome) = self.objective.outcome(index)? else { return Ok(None) };
        let loss = f64::from(outcome.loss.to_scalar::<f32>()?) * outcome.weight;
        let store = (&outcome.loss * outcome.weight)?.backward()?;
        let gradient = |var: &candle_core::Var| {
            store.get(var.as_tensor()).map(|gradient| gradient.flatten_all()?.to_vec1::<f32>()).transpose()
        };
        let gradients =
            self.optimizer.parameters().map(|(_, var)| gradient(var)).collect::<candle_core::Result<_>>()?;
        let Outcome { weight, whole, metrics, .. } = outcome;
        Ok(Some(Share { weight, loss, whole, metrics, gradients }))
    }

    /// An operation without a backward cuts the graph in silence; better to stop at once.
    fn refuse_cut_gradients(&self, batch: &Batch) -> Result<()> {
        let mut parameters = self.optimizer.parameters().zip(&batch.gradients);
        match parameters.find(|(_, gradient)| gradient.is_none()) {
            Some(((name, _), _)) => Err(TrainError::NoGradient { name: name.into() }),
            None => Ok(()),
        }
    }

    fn record(&self, window: &mut Window, grad_norm: f64) -> Record {
        let seen = std::mem::replace(window, Window { since: self.counters.seconds, ..Window::default() });
        Record {
            step: self.counters.step,
            loss: seen.loss / seen.weight,
            lr_factor: self.stage.schedule.factor(self.counters.step - 1, self.stage.steps),
            grad_norm,
            metrics: seen.metrics.means(),
            pictures_per_second: seen.pictures as f64 / (self.counters.seconds - seen.since).max(1e-9),
            seconds: self.counters.seconds,
            skipped: self.counters.skipped,
        }
    }

    fn is_due(&self, written: f64) -> bool {
        let CheckpointTimes { steps, seconds } = self.checkpoint_times();
        self.counters.step.is_multiple_of(steps) || seconds.is_some_and(|age| self.counters.seconds - written >= age)
    }

    fn checkpoint_times(&self) -> CheckpointTimes {
        let config = &self.stage.checkpoint;
        CheckpointTimes {
            steps: config.every_steps,
            seconds: (config.every_seconds > 0).then_some(config.every_seconds as f64),
        }
    }

    /// Writes a checkpoint now.
    pub fn write_checkpoint(&self) -> Result<PathBuf> {
        let parameters = self.parameters.own();
        let checkpoint = Checkpoint { parameters, moments: self.optimizer.state()?, counters: self.counters.clone() };
        checkpoint.write(&self.checkpoints(), &self.form, self.stage.checkpoint.keep)
    }

    fn checkpoints(&self) -> PathBuf {
        checkpoints_below(&self.out)
    }
}

struct CheckpointTimes {
    steps: u64,
    seconds: Option<f64>,
}

/// A run that begins would remove the checkpoints that it finds, and empty their log.
pub(crate) fn refuse_used(out: &Path) -> Result<()> {
    match complete(&checkpoints_below(out))?.last().and_then(|path| step_of(path)) {
        Some(step) => Err(TrainError::Used { path: out.into(), step }),
        None => Ok(()),
    }
}

/// Where a stage with the output directory `out` keeps its checkpoints.
pub(crate) fn checkpoints_below(out: &Path) -> PathBuf {
    out.join("checkpoints")
}

impl Batch {
    fn new(parameters: usize) -> Self {
        let gradients = vec![None; parameters];
        Self { weight: 0.0, loss: 0.0, whole: false, pictures: 0, metrics: Metrics::default(), gradients }
    }

    fn add(&mut self, share: Option<Share>) {
        self.pictures += 1;
        let Some(share) = share else { return };
        self.weight += share.weight;
        self.whole |= share.whole;
        self.loss += share.loss;
        self.metrics.merge(&share.metrics);
        for (sum, gradient) in self.gradients.iter_mut().zip(share.gradients) {
            match (sum, gradient) {
                (Some(sum), Some(gradient)) => sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g),
                (sum @ None, gradient) => *sum = gradient,
                (Some(_), None) => {}
            }
        }
    }
}

impl Window {
    fn add(&mut self, batch: &Batch) {
        self.weight += batch.weight;
        self.loss += batch.loss;
        self.metrics.merge(&batch.metrics);
    }
}

/// Pictures are numbered through a stage, from a place that its seed decides.
pub(crate) fn first_picture(seed: u64) -> u64 {
    mix(seed, 0) >> 16 // the upper bits stay clear, so that no sum overflows
}

/// The Euclidean norm of all gradients together.
fn norm(gradients: &[Option<Vec<f32>>]) -> f64 {
    gradients.iter().flatten().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use std::{fs, ops::ControlFlow};

    use candle_core::{Device, Tensor};
    use gpt4roi::weights::Weights;

    use super::*;
    use crate::{checkpoint::ModelFiles, config::Source, init::Initializer, progress::Silent, tiny};

    const STILL: fn() -> Duration = || Duration::ZERO;

    /// Breaks at a step.
    struct Until(u64);

    impl Progress for Until {
        fn step(&mut self, step: u64) -> ControlFlow<()> {
            if step == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }

    fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
        Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
    }

    fn last_files(out: &Path) -> Vec<(&'static str, Vec<u8>)> {
        let last = complete(&checkpoints_below(out)).unwrap().pop().unwrap();
        let files = ["model.safetensors", "vision_tower/model.safetensors", "trainer.safetensors", "trainer.json"];
        // A stage of the tower alone has no `model.safetensors`.
        let read = |name| (name, fs::read(last.join(name)).unwrap_or_default());
        let mut files: Vec<_> = files.into_iter().map(read).collect();
        files.push(("log.jsonl", fs::read(out.join("log.jsonl")).unwrap()));
        files
    }

    fn assert_same(a: &Path, b: &Path) {
        for ((name, a), (_, b)) in last_files(a).into_iter().zip(last_files(b)) {
            assert!(a == b, "{name} differs");
        }
    }

    fn run(stage: StageConfig, out: &Path, resume: bool, progress: &mut dyn Progress) {
        let trainer = if resume { tiny::resumed(stage, out) } else { tiny::trainer(stage, out) };
        trainer.unwrap().run(&STILL, progress).unwrap();
    }

    #[test]
    fn resuming_equals_not_stopping_bit_for_bit() {
        let stage = || tiny::stage(tiny::conversation(), &["model.", "lm_head.", "aux."]);
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(stage(), whole.path(), false, &mut Silent);
        run(stage(), parts.path(), false, &mut Until(3));
        run(stage(), parts.path(), true, &mut Silent);
        assert_same(whole.path(), parts.path());
    }

    /// What a stage began with was measured once, and stands in its checkpoint.
    #[test]
    fn a_run_goes_on_without_its_sources() {
        let tower = tempfile::tempdir().unwrap();
        let patches = StageConfig { steps: 1, ..tiny::stage(tiny::patches(), &["vision_model.", "aux."]) };
        run(patches, tower.path(), false, &mut Silent);
        let stage = || {
            let trainable = ["model.embed_tokens.", "model.layers.", "model.mm_projector.", "lm_head."];
            let mut stage = tiny::stage(tiny::language(), &trainable);
            let source = Source { path: tower.path().into(), take: vec!["vision_model.".into()] };
            stage.init.from = vec![source];
            stage.init.fresh = ["model.layers.", "model.norm.", "model.spi_module."].map(String::from).into();
            (stage.init.standardize_over, stage.init.words_over) = (2, 24);
            stage
        };
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(stage(), whole.path(), false, &mut Silent);
        run(stage(), parts.path(), false, &mut Until(3));
        fs::remove_dir_all(checkpoints_below(tower.path())).unwrap();
        assert!(tiny::trainer(stage(), tower.path()).is_err(), "it could begin without them");
        run(stage(), parts.path(), true, &mut Silent);
        assert_same(whole.path(), parts.path());
    }

    #[test]
    fn a_checkpoint_that_lacks_a_tensor_is_refused_by_name() {
        let stage = || StageConfig { steps: 2, ..tiny::stage(tiny::patches(), &["vision_model.", "aux."]) };
        let out = tempfile::tempdir().unwrap();
        run(stage(), out.path(), false, &mut Silent);
        let file =
            complete(&checkpoints_below(out.path())).unwrap().pop().unwrap().join("vision_tower/model.safetensors");
        let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        tensors.remove("vision_model.pre_layrnorm.weight").unwrap();
        candle_core::safetensors::save(&tensors, &file).unwrap();
        let error = tiny::resumed(stage(), out.path()).unwrap_err().to_string();
        assert!(error.contains("`vision_model.pre_layrnorm.weight` is missing"), "{error}");
    }

    #[test]
    fn a_killed_run_loses_only_the_steps_since_the_last_checkpoint() {
        let stage = || tiny::stage(tiny::patches(), &["vision_model.", "aux."]);
        let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(stage(), whole.path(), false, &mut Silent);
        run(stage(), killed.path(), false, &mut Until(4));
        // The process died in step 5: in the middle of a checkpoint, and of a line of the log.
        let partial = checkpoints_below(killed.path()).join(".step-00000005.partial");
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join("model.safetensors"), b"half").unwrap();
        let log = killed.path().join("log.jsonl");
        let mut lines = fs::read_to_string(&log).unwrap();
        let record = Record { step: 5, ..Record::default() };
        lines.push_str(&serde_json::to_string(&record).unwrap());
        lines.push_str("\n{\"step\":6,\"lo");
        fs::write(&log, lines).unwrap();
        run(stage(), killed.path(), true, &mut Silent);
        assert_same(whole.path(), killed.path());
        assert_eq!(complete(&checkpoints_below(killed.path())).unwrap().len(), 2, "keeps two");
    }

    #[test]
    fn the_number_of_workers_does_not_change_the_result() {
        let trainable = ["vision_model.", "aux."];
        // Three pictures have a thread each; of a single one's operations, several threads may do parts.
        for batch in [1, 3] {
            let stage = |threads| StageConfig { threads, batch, steps: 2, ..tiny::stage(tiny::patches(), &trainable) };
            let (one, three) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            run(stage(1), one.path(), false, &mut Silent);
            run(stage(3), three.path(), false, &mut Silent);
            assert_same(one.path(), three.path());
        }
    }

    #[test]
    fn every_trainable_parameter_gets_a_gradient() {
        let all: &[&str] = &["model.", "lm_head.", "aux."];
        let language = &[
            "model.layers.",
            "model.embed_tokens.",
            "model.norm.",
            "model.mm_projector.",
            "lm_head.",
            "aux.",
            "model.spi_module.roi_align.pos_embedd.",
            "model.spi_module.roi_align.updims.",
        ];
        let cases: [(_, &[&str]); 3] =
            [(tiny::patches(), &["vision_model.", "aux."]), (tiny::language(), language), (tiny::conversation(), all)];
        for (objective, trainable) in cases {
            let out = tempfile::tempdir().unwrap();
            let trainer = tiny::trainer(tiny::stage(objective.clone(), trainable), out.path()).unwrap();
            let batch = trainer.batch(0).unwrap();
            for ((name, _), gradient) in trainer.optimizer.parameters().zip(&batch.gradients) {
                let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{objective:?}: none for {name}"));
                assert!(gradient.iter().all(|g| g.is_finite()), "{objective:?}: {name} is not finite");
                // Softmax does not see what is added to all its inputs: a key's bias has no gradient.
                let blind = name.ends_with("k_proj.bias");
                assert!(blind || gradient.iter().any(|&g| g != 0.0), "{objective:?}: {name} is zero");
            }
        }
    }

    #[test]
    fn frozen_parameters_stay_and_trainable_ones_move() {
        let out = tempfile::tempdir().unwrap();
        let stage = StageConfig { steps: 2, ..tiny::stage(tiny::conversation(), &["model.spi_module."]) };
        let mut trainer = tiny::trainer(stage, out.path()).unwrap();
        let values = |trainer: &Trainer| -> BTreeMap<String, Vec<u32>> {
            let all = trainer.parameters.all().into_iter();
            all.map(|(name, parameter)| (name, bits(&parameter.tensor).unwrap())).collect()
        };
        let before = values(&trainer);
        trainer.run(&STILL, &mut Silent).unwrap();
        for (name, after) in values(&trainer) {
            let moved = before[&name] != after;
            assert_eq!(moved, name.starts_with("model.spi_module."), "{name}: moved {moved}");
        }
    }

    #[test]
    fn a_run_that_begins_leaves_the_checkpoints_of_another_alone() {
        let stage = || StageConfig { steps: 4, ..tiny::stage(tiny::patches(), &["vision_model.", "aux."]) };
        let out = tempfile::tempdir().unwrap();
        let mut late = tiny::trainer(stage(), out.path()).unwrap();
        run(stage(), out.path(), false, &mut Silent);
        let before = last_files(out.path());
        for error in [late.run(&STILL, &mut Silent).unwrap_err(), tiny::trainer(stage(), out.path()).unwrap_err()] {
            assert!(matches!(&error, TrainError::Used { path, step: 4 } if path == out.path()), "{error}");
            let expected = ["up to step 4", "--resume", "--out"];
            assert!(expected.iter().all(|part| error.to_string().contains(part)), "{error}");
        }
        assert!(last_files(out.path()) == before, "something was written");
    }

    #[test]
    fn a_checkpoint_of_another_stage_is_refused() {
        let stage = |seed| StageConfig { steps: 2, seed, ..tiny::stage(tiny::patches(), &["vision_model.", "aux."]) };
        let out = tempfile::tempdir().unwrap();
        run(stage(1), out.path(), false, &mut Silent);
        let error = tiny::resumed(stage(2), out.path()).unwrap_err();
        assert!(error.to_string().contains("`seed` differs"), "{error}");
    }

    /// ½·|w − target|², whose gradient is w − target; not a number for some pictures.
    struct Quadratic {
        w: Tensor,
        broken: fn(u64) -> bool,
        cut: bool,
        whole: fn(u64) -> bool,
    }

    impl Objective for Quadratic {
        fn outcome(&self, index: u64) -> Result<Option<Outcome>> {
            let target = if (self.broken)(index) { f64::NAN } else { 1.0 };
            let w = if self.cut { self.w.detach() } else { self.w.clone() };
            let loss = ((w - target)?.sqr()?.sum_all()? * 0.5)?;
            Ok(Some(Outcome { loss, weight: 1.0, whole: (self.whole)(index), metrics: Metrics::default() }))
        }
    }

    fn quadratic(broken: fn(u64) -> bool, cut: bool, out: &Path) -> Trainer {
        quadratic_in_parts(broken, cut, |_| true, out)
    }

    fn quadratic_in_parts(broken: fn(u64) -> bool, cut: bool, whole: fn(u64) -> bool, out: &Path) -> Trainer {
        let mut stage = tiny::stage(tiny::patches(), &["aux."]);
        (stage.batch, stage.optimizer.muon, stage.clip_norm) = (1, None, 100.0);
        let config = tiny::config(8);
        let initializer = Initializer::new(1, &config, stage.init.choices.clone());
        let parameters = Arc::new(Parameters::new(stage.trainable.clone(), BTreeMap::new(), initializer, &Device::Cpu));
        let w = Weights::new(parameters.clone()).get("aux.w", &[2]).unwrap();
        let form = Form::Model(ModelFiles { config, tokenizer: None });
        Trainer::new(stage, parameters, Box::new(Quadratic { w, broken, cut, whole }), form, out).unwrap()
    }

    #[test]
    fn steps_that_are_not_finite_are_skipped_and_counted() {
        let out = tempfile::tempdir().unwrap();
        let mut trainer = quadratic(|index| index.is_multiple_of(2), false, out.path());
        trainer.run(&STILL, &mut Silent).unwrap();
        assert_eq!((trainer.counters.skipped, trainer.counters.updates, trainer.counters.step), (3, 3, 6));
        let w = trainer.parameters.all()["aux.w"].tensor.to_vec1::<f32>().unwrap();
        assert!(w.iter().all(|w| w.is_finite()), "{w:?}");
    }

    /// A line in the log is the mean of the steps that were learned from, if there were any.
    #[test]
    fn skipped_steps_stay_out_of_the_means_and_leave_the_log_whole() {
        for (log_every, finite) in [(1, 3), (2, 3)] {
            let out = tempfile::tempdir().unwrap();
            let mut trainer = quadratic(|index| index.is_multiple_of(2), false, out.path());
            trainer.stage.log_every = log_every;
            trainer.run(&STILL, &mut Silent).unwrap();
            let records = crate::log::read(&out.path().join("log.jsonl")).unwrap();
            assert_eq!(records.len() as u64, 6 / log_every);
            assert_eq!(records.iter().filter(|record| record.loss.is_finite()).count(), finite);
        }
    }

    #[test]
    fn too_many_bad_steps_in_a_row_end_the_run() {
        let out = tempfile::tempdir().unwrap();
        let error = quadratic(|_| true, false, out.path()).run(&STILL, &mut Silent).unwrap_err();
        assert!(matches!(error, TrainError::NotFinite { step: 2, in_a_row: 3 }), "{error}");
    }

    /// Where only some pictures are about regions, the first batches may be about none.
    #[test]
    fn a_cut_graph_is_found_once_all_of_the_network_had_its_part() {
        let out = tempfile::tempdir().unwrap();
        quadratic_in_parts(|_| false, true, |_| false, out.path()).run(&STILL, &mut Silent).unwrap();
        let out = tempfile::tempdir().unwrap();
        let mut trainer = quadratic_in_parts(|_| false, true, |index| index.is_multiple_of(5), out.path());
        let error = trainer.run(&STILL, &mut Silent).unwrap_err();
        assert!(matches!(&error, TrainError::NoGradient { name } if name == "aux.w"), "{error}");
    }

    #[test]
    fn a_cut_graph_ends_the_run_in_its_first_step() {
        let out = tempfile::tempdir().unwrap();
        let error = quadratic(|_| false, true, out.path()).run(&STILL, &mut Silent).unwrap_err();
        assert!(matches!(&error, TrainError::NoGradient { name } if name == "aux.w"), "{error}");
    }
}
