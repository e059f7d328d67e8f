//! From a stage file to a trainer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Device;
use gpt4roi::{
    Config, adapter::Adapter, fingerprint::Fingerprint, model::ModelFiles as Files, nano::NANO, tokenizer::Tokenizer,
    weights::Weights,
};
use gpt4roi_data::{QuestionMix, Questions, Scenes};

use crate::{
    adapter::Base,
    checkpoint::{
        AdapterFiles, Checkpoint, Form, LanguageFiles, ModelFiles, Tensors, TokenizerFiles, complete, read_sources,
        refuse_other_stage,
    },
    config::StageConfig,
    conversations::Conversations,
    error::{Result, TrainError},
    init::Initializer,
    lesson::Lessons,
    looks::Looks,
    model_name::ModelName,
    objective::{Converse, Language, Objective, ObjectiveConfig, Patches, Text},
    parameters::{Origin, Parameters, check_prefixes},
    records::RecordLessons,
    standardize::standardize,
    tower::Tower,
    trainer::{Trainer, checkpoints_below, refuse_used},
    words::{begin_as_words, content_channels},
};

/// Builds a stage that begins. Everything it writes goes below `out`.
///
/// # Errors
/// If a file is missing or damaged, if the stage asks for what can't be, or if a run is in `out` already.
pub fn open(stage: StageConfig, out: impl Into<PathBuf>) -> Result<Trainer> {
    let like = stage.model.like.as_ref().map(ModelName::files).transpose()?;
    Plan::of(stage, like)?.begin(out.into())
}

/// Builds a stage that goes on from the last complete checkpoint below `out`; none if there is none.
///
/// All tensors are the checkpoint's: what the stage began with is neither read nor measured again.
///
/// # Errors
/// As [`open`], and if the checkpoint is damaged or belongs to another stage.
pub fn resume(stage: StageConfig, out: impl Into<PathBuf>) -> Result<Option<Trainer>> {
    let out = out.into();
    let Some(checkpoint) = complete(&checkpoints_below(&out))?.pop() else { return Ok(None) };
    // The checkpoint is a model directory of the same dimensions, and the one that they came from may be gone.
    let is_model = checkpoint.join("config.json").is_file();
    let like = match &stage.model.like {
        Some(_) if is_model => Some(Files::Directory(checkpoint)),
        like => like.as_ref().map(ModelName::files).transpose()?,
    };
    Plan::of(stage, like)?.go_on(out)
}

/// A stage with what it is made of, before there are tensors.
pub(crate) struct Plan {
    stage: StageConfig,
    config: Config,
    tokenizer: Option<Arc<Tokenizer>>,
    /// What is written beside a model.
    tokenizer_files: Option<TokenizerFiles>,
    /// What an adapter is trained beside.
    base: Option<Files>,
    pictures: Pictures,
}

/// Where a stage's pictures come from.
enum Pictures {
    Drawn(Arc<Scenes>),
    Own(Arc<RecordLessons>),
}

impl Plan {
    /// `like` has the model's dimensions, if no preset has them.
    fn of(stage: StageConfig, like: Option<Files>) -> Result<Self> {
        stage.check()?;
        if stage.adapter.is_some() {
            return Self::beside(stage, like.unwrap_or(Files::Embedded(NANO)));
        }
        let tokenizer = stage.model.tokenizer.as_ref().map(ModelName::files).transpose()?;
        let files = like.as_ref().or(tokenizer.as_ref()).map(TokenizerFiles::of).transpose()?;
        let tokens = files.as_ref().map(TokenizerFiles::tokenizer).transpose()?.map_or(0, |all| all.vocab_size());
        let config = match (like, stage.model.preset) {
            (Some(files), _) => files.config()?,
            (None, Some(preset)) => preset.config(tokens),
            (None, None) => return Err(stage.refusal("model", "either `preset` or `like`", "neither")),
        };
        let config = match stage.model.region.is_empty() {
            true => config,
            false => config.with_region(&stage.model.region)?,
        };
        Self::for_model(stage, config, files)
    }

    /// For an adapter of this model.
    fn beside(stage: StageConfig, base: Files) -> Result<Self> {
        let (config, tokenizer) = (base.config()?, Arc::new(base.tokenizer()?));
        Ok(Self { base: Some(base), ..Self::with_pictures(stage, config, Some(tokenizer))? })
    }

    /// For a model of any dimensions.
    pub(crate) fn for_model(
        stage: StageConfig,
        config: Config,
        tokenizer_files: Option<TokenizerFiles>,
    ) -> Result<Self> {
        let tokenizer = tokenizer_files.as_ref().map(TokenizerFiles::tokenizer).transpose()?.map(Arc::new);
        Ok(Self { tokenizer_files, ..Self::with_pictures(stage, config, tokenizer)? })
    }

    fn with_pictures(mut stage: StageConfig, config: Config, tokenizer: Option<Arc<Tokenizer>>) -> Result<Self> {
        let pictures = match (&stage.records, &stage.scenes) {
            (Some(files), _) => {
                let tokenizer = tokenizer.clone().ok_or_else(|| no_tokenizer(&stage))?;
                let patches = stage.patches(&config);
                let lessons = RecordLessons::open(files, &config, patches, tokenizer, stage.seed)?;
                stage.count_steps(lessons.pictures());
                Pictures::Own(Arc::new(lessons))
            }
            (None, scenes) => Pictures::Drawn(Arc::new(Scenes::new(scenes.clone().unwrap_or_default()).map_err(data)?)),
        };
        Ok(Self { stage, config, tokenizer, tokenizer_files: None, base: None, pictures })
    }

    pub(crate) fn begin(self, out: PathBuf) -> Result<Trainer> {
        refuse_used(&out)?; // not only when it runs: measuring takes its time
        let taken = self.first_values()?;
        let (parameters, objective) = self.network(taken)?;
        self.trainer(parameters, objective, out)
    }

    pub(crate) fn go_on(self, out: PathBuf) -> Result<Option<Trainer>> {
        let Some(path) = complete(&checkpoints_below(&out))?.pop() else { return Ok(None) };
        let Checkpoint { parameters, moments, counters } = Checkpoint::read(&path)?;
        refuse_other_stage(&path, &counters, &self.stage)?;
        self.refuse_other_base(&path)?;
        let (parameters, objective) = self.network(parameters)?;
        refuse_missing(&path, &parameters)?;
        let mut trainer = self.trainer(parameters, objective, out)?;
        trainer.restore(&moments, counters)?;
        Ok(Some(trainer))
    }

    /// What the sources have, and what is measured before the first step.
    fn first_values(&self) -> Result<Tensors> {
        let Self { stage, config, .. } = self;
        let (init, initializer) = (&stage.init, self.initializer());
        if let Some(adapter) = &stage.adapter {
            init.from.iter().try_for_each(|source| adapter.check_source(stage, source))?;
        }
        let mut taken = read_sources(&stage.name, init)?;
        scale(&stage.name, &mut taken, &init.scale)?;
        if init.standardize_over > 0 {
            standardize(&mut taken, &initializer, config, self.scenes()?.as_ref(), init.standardize_over)?;
        }
        if init.words_over > 0 {
            let (tokenizer, scenes) = (self.tokenizer()?, self.scenes()?);
            let names: Vec<_> = scenes.kinds().iter().map(|kind| tokenizer.encode_text(&kind.name)).collect();
            let content = content_channels(config, &init.choices)?;
            let tower = Tower::load(&taken, &initializer, config)?;
            let looks = Looks::measure(&tower, scenes.as_ref(), init.words_over, names.len(), content)?;
            begin_as_words(&mut taken, &initializer, config, &init.choices, &names, &looks)?;
        }
        Ok(taken)
    }

    /// The network of these tensors, and of fresh ones where they have none, with its loss.
    fn network(&self, taken: Tensors) -> Result<(Arc<Parameters>, Box<dyn Objective>)> {
        let parameters = Parameters::new(self.stage.trainable.clone(), taken, self.initializer(), &Device::Cpu);
        let parameters = Arc::new(match (&self.base, &self.stage.adapter) {
            (Some(files), Some(settings)) => parameters.beside(Base::open(files, settings.clone())?),
            _ => parameters,
        });
        let objective = self.objective(&Weights::new(parameters.clone()))?;
        if let Some(change) = parameters.left_change() {
            let got = format!("changes of `{change}` in `init.from`, which would be lost");
            return Err(self.stage.refusal("adapter.targets", "all layers that were changed before", &got));
        }
        Ok((parameters, objective))
    }

    fn objective(&self, weights: &Weights) -> Result<Box<dyn Objective>> {
        let (config, device) = (&self.config, &Device::Cpu);
        Ok(match &self.stage.objective {
            ObjectiveConfig::Patches(settings) => {
                Box::new(Patches::load(weights, config, self.scenes()?.clone(), settings.clone(), device)?)
            }
            ObjectiveConfig::Language(settings) => {
                let conversations = self.conversations(&settings.questions)?;
                Box::new(Language::load(weights, config, conversations, settings.clone(), device)?)
            }
            ObjectiveConfig::Text(settings) => {
                let (lessons, _) = self.lessons(settings.questions.as_ref())?;
                Box::new(Text::load(weights, &config.llama, lessons, device)?)
            }
            ObjectiveConfig::Conversation(settings) => {
                let (lessons, kinds) = self.lessons(settings.questions.as_ref())?;
                Box::new(Converse::load(weights, config, lessons, kinds, settings.clone(), device)?)
            }
        })
    }

    /// What conversations are learned from, and how many kinds of objects it tells apart.
    fn lessons(&self, questions: Option<&QuestionMix>) -> Result<(Arc<dyn Lessons>, usize)> {
        match &self.pictures {
            Pictures::Own(lessons) => Ok((lessons.clone(), 0)),
            Pictures::Drawn(scenes) => {
                let questions = questions.cloned().unwrap_or_default();
                Ok((Arc::new(self.conversations(&questions)?), scenes.kinds().len()))
            }
        }
    }

    fn scenes(&self) -> Result<&Arc<Scenes>> {
        match &self.pictures {
            Pictures::Drawn(scenes) => Ok(scenes),
            Pictures::Own(_) => Err(self.stage.refusal("scenes", "what is drawn, which this stage needs", "records")),
        }
    }

    fn conversations(&self, mix: &QuestionMix) -> Result<Conversations> {
        let scenes = self.scenes()?;
        Ok(Conversations {
            scenes: scenes.clone(),
            questions: Questions::new(mix.clone(), scenes.kinds()).map_err(data)?,
            tokenizer: self.tokenizer()?,
            seed: self.stage.seed,
            patches: self.stage.patches(&self.config),
            region_tokens: self.config.region.tokens,
        })
    }

    fn trainer(self, parameters: Arc<Parameters>, objective: Box<dyn Objective>, out: PathBuf) -> Result<Trainer> {
        let base = self.base_vectors()?;
        let form = match (&self.stage.adapter, &self.stage.objective, self.tokenizer_files) {
            (Some(settings), ..) => Form::Adapter(AdapterFiles { config: settings.config(&self.stage), base }),
            (None, ObjectiveConfig::Text(_), Some(tokenizer)) => {
                Form::Language(LanguageFiles { config: self.config.llama, tokenizer })
            }
            (None, _, tokenizer) => Form::Model(ModelFiles { config: self.config, tokenizer }),
        };
        let mut trainer = Trainer::new(self.stage, parameters, objective, form, out)?;
        if let Pictures::Own(lessons) = &self.pictures {
            trainer.without_picture = lessons.without_picture();
        }
        Ok(trainer)
    }

    /// What an adapter remembers of the model that it is trained beside.
    fn base_vectors(&self) -> Result<Option<String>> {
        let vectors = self.base.as_ref().map(Fingerprint::of_vectors).transpose()?;
        Ok(vectors.map(|vectors| vectors.to_string()))
    }

    /// Beside another model, what was learned so far would go on as something else.
    fn refuse_other_base(&self, checkpoint: &Path) -> Result<()> {
        let Some(got) = self.base_vectors()? else { return Ok(()) };
        match Adapter::open(checkpoint, &Device::Cpu)?.base() {
            Some(expected) if expected != got => {
                let what = format!("expected a model with the vectors {expected} beneath it, as it began, got {got}");
                Err(TrainError::checkpoint(checkpoint, what))
            }
            _ => Ok(()),
        }
    }

    fn initializer(&self) -> Initializer {
        Initializer::new(self.stage.seed, &self.config, self.stage.init.choices.clone())
    }

    fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        self.tokenizer.clone().ok_or_else(|| no_tokenizer(&self.stage))
    }
}

fn no_tokenizer(stage: &StageConfig) -> TrainError {
    stage.refusal("model.tokenizer", "a directory with tokenizer.model and added_tokens.json", "none")
}

/// A checkpoint has every tensor of its network, or it is another network's.
fn refuse_missing(path: &Path, parameters: &Parameters) -> Result<()> {
    match parameters.all().into_iter().find(|(_, parameter)| parameter.origin == Origin::Drawn) {
        Some((name, _)) => Err(TrainError::checkpoint(path, format!("parameter `{name}` is missing"))),
        None => Ok(()),
    }
}

fn scale(stage: &str, taken: &mut Tensors, factors: &BTreeMap<String, f64>) -> Result<()> {
    check_prefixes(stage, "init.scale", factors.keys(), || taken.keys().map(String::as_str))?;
    for (prefix, factor) in factors {
        for (_, tensor) in taken.iter_mut().filter(|(name, _)| name.starts_with(prefix)) {
            *tensor = (&*tensor * *factor)?;
        }
    }
    Ok(())
}

fn data(error: gpt4roi_data::DataError) -> TrainError {
    TrainError::Data(error.to_string())
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use gpt4roi::{BBox, Chat, Gpt4Roi, chat::AskOptions, draft_model::DraftModel, drafter::Drafter};
    use gpt4roi_data::SceneConfig;
    use serde_json::{Value, json};

    use super::*;
    use crate::{config::Preset, export::export, objective::TextConfig, progress::Silent, tiny};

    /// One step with everything trainable, the tower included, then the exported model answers. The first step
    /// of a trainer fails if any parameter gets no gradient.
    #[track_caller]
    fn trains_exports_and_answers(objective: ObjectiveConfig, changes: &Value) {
        let directory = tempfile::tempdir().unwrap();
        let (out, exported) = (directory.path().join("out"), directory.path().join("model"));
        let tokenizer = tiny::tokenizer();
        let config = tiny::config(tokenizer.vocab_size()).with_region(changes.as_object().unwrap()).unwrap();
        let stage = StageConfig {
            steps: 1,
            batch: 2,
            ..tiny::stage(objective, &["model.", "lm_head.", "vision_model.", "aux.kinds"])
        };
        let plan = Plan::for_model(stage, config.clone(), Some(tiny::tokenizer_files())).unwrap();
        let mut trainer = plan.begin(out.clone()).unwrap();
        trainer.run(&|| std::time::Duration::ZERO, &mut Silent).unwrap_or_else(|error| panic!("{changes}: {error}"));
        export(&out, &exported, gpt4roi::convert::IfExists::Refuse).unwrap();
        let model = Gpt4Roi::open(&exported, &Device::Cpu).unwrap();
        assert_eq!(model.config, config, "{changes}");

        let picture = gpt4roi::Image::from_rgb(Scenes::new(SceneConfig::default()).unwrap().scene(0).image);
        let options = AskOptions { max_new_tokens: 4, ..AskOptions::default() };
        let mut chat = Chat::new(&model, &picture).unwrap();
        let boxes = [[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.9]].map(|xyxy| BBox::from_normalized(xyxy).unwrap());
        let together = chat.describe_regions(&boxes, "What is <region1>?", &options).unwrap();
        for (bbox, answer) in boxes.into_iter().zip(together) {
            chat.clear();
            chat.add_region(bbox);
            let alone = chat.ask_with("What is <region1>?", &options).unwrap();
            assert_eq!((&alone.text, alone.prompt_tokens), (&answer.text, answer.prompt_tokens), "{changes}");
        }
    }

    #[test]
    fn every_switch_trains_exports_and_answers() {
        for changes in [
            json!({}),
            json!({"levels": 1, "scales": [1]}),
            json!({"scales": [4, 1]}),
            json!({"coordinates": false}),
            json!({"shuffle": false}),
            json!({"fuse_rounds": 0}),
            json!({"roi_size": 1}),
            json!({"roi_size": 4, "tokens": 4}),
            json!({"tokens": 9}),
            json!({"coordinates": false, "shuffle": false, "box_embedding": false, "tokens": 9}),
        ] {
            trains_exports_and_answers(tiny::conversation(), &changes);
        }
    }

    /// Vectors that stand for kinds take the place of as many tokens.
    #[test]
    fn symbols_stand_for_all_tokens_of_a_region() {
        let tokenizer = tiny::tokenizer();
        let changes = json!({"tokens": 9, "box_embedding": false});
        let config = tiny::config(tokenizer.vocab_size()).with_region(changes.as_object().unwrap()).unwrap();
        let trainable =
            ["model.embed_tokens.", "model.layers.", "lm_head.", "aux.kinds", "model.spi_module.roi_align.updims."];
        let stage = StageConfig { steps: 1, batch: 2, ..tiny::stage(tiny::language(), &trainable) };
        let directory = tempfile::tempdir().unwrap();
        let plan = Plan::for_model(stage, config, Some(tiny::tokenizer_files())).unwrap();
        let mut trainer = plan.begin(directory.path().into()).unwrap();
        trainer.run(&|| std::time::Duration::ZERO, &mut Silent).unwrap();
    }

    /// The stage files of a folder in an order in which each finds its sources, each with a tiny model for one step:
    /// what they take is there, and what they draw they name.
    #[track_caller]
    fn build_on_each_other(folder: &str, stages: &[(&str, &str)]) {
        let directory = tempfile::tempdir().unwrap();
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(folder);
        for (file, out) in stages {
            let stage = StageConfig::open(configs.join(file).with_extension("toml")).unwrap();
            let mut trainer = tiny::trainer(miniature(stage, directory.path()), &directory.path().join(out));
            let trainer = trainer.as_mut().unwrap_or_else(|error| panic!("{file}: {error}"));
            trainer.run(&|| std::time::Duration::ZERO, &mut Silent).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }

    /// The same stage of a tiny model, below another folder than `runs`.
    fn miniature(stage: StageConfig, runs: &Path) -> StageConfig {
        let tiny = tiny::stage(stage.objective.clone(), &[]);
        let mut stage = StageConfig { steps: 1, batch: 3, model: tiny.model, scenes: tiny.scenes, ..stage };
        for source in &mut stage.init.from {
            source.path = runs.join(source.path.place().strip_prefix("runs").unwrap()).into();
        }
        stage.init.choices.place_channels = stage.init.choices.place_channels.min(2);
        stage.init.words_over = stage.init.words_over.min(24);
        if let ObjectiveConfig::Language(settings) = &mut stage.objective {
            settings.place_channels = 2;
        }
        stage
    }

    #[test]
    fn the_stages_of_the_embedded_model_build_on_each_other() {
        let order = [
            "0-tower",
            "0-language",
            "0-language-verdicts",
            "0-language-presence",
            "1-region",
            "2-joint",
            "2-joint-regions",
            "2-joint-many",
            "2-joint-small",
            "0-tower-small",
            "1-region-small",
            "2-joint-last",
        ];
        let out: Vec<String> = order.iter().map(|stage| format!("nano/{stage}")).collect();
        build_on_each_other("nano", &order.into_iter().zip(out.iter().map(String::as_str)).collect::<Vec<_>>());
    }

    #[test]
    fn the_stages_of_the_ablation_build_on_each_other() {
        build_on_each_other(
            "ablation",
            &[
                ("0-tower", "ablation/1/0-tower"),
                ("1-language", "ablation/1/original/1-language"),
                ("2-region", "ablation/1/original/2-region"),
                ("3-joint", "ablation/1/original/3-joint"),
            ],
        );
    }

    #[test]
    fn factors_are_for_tensors_that_were_taken() {
        let value = Tensor::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let mut taken = Tensors::from([("model.a".to_owned(), value.clone()), ("model.b".to_owned(), value)]);
        scale("stage", &mut taken, &BTreeMap::from([("model.a".to_owned(), 3.0)])).unwrap();
        assert_eq!(taken["model.a"].to_vec1::<f32>().unwrap(), [3.0, -6.0]);
        assert_eq!(taken["model.b"].to_vec1::<f32>().unwrap(), [1.0, -2.0]);
        let error = scale("stage", &mut taken, &BTreeMap::from([("modle.".to_owned(), 3.0)])).unwrap_err().to_string();
        assert!(error.contains("init.scale") && error.contains("`modle.`"), "{error}");
    }

    #[test]
    fn words_need_a_tokenizer() {
        let mut stage = tiny::stage(tiny::patches(), &["vision_model.", "aux."]);
        stage.init.words_over = 2;
        let directory = tempfile::tempdir().unwrap();
        let plan = Plan::for_model(stage, tiny::config(8), None).unwrap();
        let error = plan.begin(directory.path().into()).unwrap_err();
        assert!(error.to_string().contains("model.tokenizer"), "{error}");
    }

    /// A stage may begin with words; here half of its conversations see no picture.
    #[test]
    fn a_language_stage_begins_with_words_and_reads_patches_as_words() {
        let ObjectiveConfig::Language(language) = tiny::language() else { panic!("expected the language's settings") };
        let objective = ObjectiveConfig::Language(crate::objective::LanguageConfig { pictures: 0.5, ..language });
        let trainable = ["model.embed_tokens.", "model.layers.", "lm_head.", "model.mm_projector.", "aux.kinds"];
        let mut stage = StageConfig { steps: 1, batch: 2, ..tiny::stage(objective, &trainable) };
        (stage.init.standardize_over, stage.init.words_over) = (2, 24);
        let directory = tempfile::tempdir().unwrap();
        let mut trainer = tiny::trainer(stage.clone(), directory.path()).unwrap();
        let initializer = Initializer::new(stage.seed, &tiny::config(8), stage.init.choices.clone());
        for (name, var) in trainer.optimizer().parameters() {
            let drawn = initializer.tensor(name, var.dims(), &Device::Cpu).unwrap();
            let same =
                (var.as_tensor() - drawn).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() == 0.0;
            let begun = ["embed_tokens", "self_attn", "lm_head", "mm_projector", "aux.kinds"];
            assert_eq!(same, !begun.iter().any(|part| name.contains(part)), "{name}");
        }
        trainer.run(&|| std::time::Duration::ZERO, &mut Silent).unwrap();
    }

    /// Three pictures in files: one with two regions, one with a conversation of two rounds, one with a question about
    /// the picture as a whole and another that nobody has answered.
    fn own_pictures(folder: &Path) -> PathBuf {
        for (name, shade) in [("a.png", 40), ("b.png", 120), ("c.png", 200)] {
            let picture = image::RgbImage::from_fn(56, 28, |x, y| image::Rgb([shade, (4 * x) as u8, (8 * y) as u8]));
            picture.save(folder.join(name)).unwrap();
        }
        let cat = json!({"question": "What is <region1>?", "answer": "A cat."});
        let dog = json!({"question": "And <region2>?", "answers": ["A dog.", "A puppy."]});
        let regions = json!([{"id": 1, "bbox": [2, 3, 20, 25]}, {"id": 2, "bbox": [30, 0, 56, 28]}]);
        let lines = [
            json!({"image": "a.png", "regions": regions, "rounds": [cat, dog]}),
            json!({"image": "b.png", "rounds": [{"question": "What is in [0.1, 0.2, 0.6, 0.9]?", "answer": "A rocket."}]}),
            json!({"image": "c.png", "rounds": [{"question": "What is in the picture?", "answer": "An octopus."}]}),
            json!({"image": "c.png", "rounds": [{"question": "Is it red?"}]}),
        ];
        let path = folder.join("train.jsonl");
        std::fs::write(&path, lines.map(|line| line.to_string()).join("\n")).unwrap();
        path
    }

    #[test]
    fn a_model_learns_what_is_said_about_peoples_own_pictures() {
        let directory = tempfile::tempdir().unwrap();
        let file = own_pictures(directory.path());
        let (out, exported) = (directory.path().join("out"), directory.path().join("model"));
        let mut stage = StageConfig { steps: 0, epochs: 60, batch: 2, ..tiny::stage_of_records(&[file]) };
        stage.optimizer.adamw.lr = 0.02;
        tiny::trainer(stage, &out).unwrap().run(&|| std::time::Duration::ZERO, &mut Silent).unwrap();
        let records = crate::log::read(&out.join("log.jsonl")).unwrap();
        assert_eq!(records.len(), 90, "sixty epochs of three pictures, two at a time");
        let (first, last) = (&records[0], &records[89]);
        assert!(last.loss < first.loss / 2.0, "{} to {}", first.loss, last.loss);
        assert!(last.metrics["token_accuracy"] > first.metrics["token_accuracy"], "{first:?} to {last:?}");
        assert!(last.metrics.contains_key("exact"));

        export(&out, &exported, gpt4roi::convert::IfExists::Refuse).unwrap();
        let model = Gpt4Roi::open(&exported, &Device::Cpu).unwrap();
        let picture = gpt4roi::Image::open(directory.path().join("c.png"), 1 << 20).unwrap();
        let options = AskOptions { max_new_tokens: 4, ..AskOptions::default() };
        Chat::new(&model, &picture).unwrap().ask_with("What is in the picture?", &options).unwrap();
    }

    /// It learns what is said, and nothing of the pictures; what is exported is a language model alone, of which another
    /// model takes drafts.
    #[test]
    fn a_draft_model_learns_what_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let file = own_pictures(directory.path());
        let (out, exported) = (directory.path().join("out"), directory.path().join("draft"));
        let objective = ObjectiveConfig::Text(TextConfig::default());
        let of_records = tiny::stage_of_records(&[file]);
        let mut stage = StageConfig { objective, steps: 0, epochs: 60, batch: 2, ..of_records };
        stage.optimizer.adamw.lr = 0.02;
        stage.model.preset = Some(Preset::Draft);
        stage.check().unwrap();
        tiny::trainer(stage, &out).unwrap().run(&|| std::time::Duration::ZERO, &mut Silent).unwrap();
        let records = crate::log::read(&out.join("log.jsonl")).unwrap();
        assert!(records[89].loss < records[0].loss / 2.0, "{} to {}", records[0].loss, records[89].loss);

        export(&out, &exported, gpt4roi::convert::IfExists::Refuse).unwrap();
        assert!(!exported.join("vision_tower").exists());
        let model = Gpt4Roi::nano(&Device::Cpu).unwrap();
        let draft_model = DraftModel::open(&exported, &model.tokenizer, &Device::Cpu).unwrap();
        let picture = gpt4roi::Image::open(directory.path().join("c.png"), 1 << 20).unwrap();
        let options = AskOptions { max_new_tokens: 8, ..AskOptions::default() };
        let ask = |chat: Chat<'_>| { chat }.ask_with("What is in the picture?", &options).unwrap();
        let plain = ask(Chat::new(&model, &picture).unwrap());
        let drafted = ask(Chat::new(&model, &picture).unwrap().drafting_by(&Drafter::with_model(draft_model)));
        assert_eq!(drafted.text, plain.text);
    }

    #[test]
    fn texts_are_for_draft_models_alone() {
        for (objective, preset, adapter, refused) in [
            (
                ObjectiveConfig::Text(TextConfig { questions: Some(QuestionMix::default()) }),
                Preset::Draft,
                false,
                false,
            ),
            (ObjectiveConfig::Text(TextConfig { questions: Some(QuestionMix::default()) }), Preset::Nano, false, true),
            (ObjectiveConfig::Text(TextConfig { questions: None }), Preset::Draft, false, true),
            (tiny::conversation(), Preset::Draft, false, true),
            (ObjectiveConfig::Text(TextConfig { questions: Some(QuestionMix::default()) }), Preset::Draft, true, true),
        ] {
            let mut stage = tiny::stage(objective, &["model.", "lm_head."]);
            stage.model.preset = Some(preset);
            stage.adapter = adapter.then(|| tiny::stage_of_adapter(Path::new("base"), &[]).adapter).flatten();
            assert_eq!(stage.check().is_err(), refused, "{:?} {preset:?}", stage.objective);
        }
    }

    /// Another stage has the exported model's dimensions and tokenizer, and all that it knows; it also goes on when
    /// that model is gone.
    #[test]
    fn a_stage_may_have_the_dimensions_of_a_model() {
        let directory = tempfile::tempdir().unwrap();
        let file = own_pictures(directory.path());
        let [first, second, model] = ["first", "second", "model"].map(|name| directory.path().join(name));
        let stage = || StageConfig { steps: 2, ..tiny::stage_of_records(std::slice::from_ref(&file)) };
        tiny::trainer(stage(), &first).unwrap().run(&|| std::time::Duration::ZERO, &mut Silent).unwrap();
        export(&first, &model, gpt4roi::convert::IfExists::Refuse).unwrap();
        let like = || {
            let mut stage = stage();
            (stage.model.preset, stage.model.tokenizer) = (None, None);
            stage.model.like = Some(model.clone().into());
            stage.init.from = vec![crate::config::Source { path: model.clone().into(), take: Vec::new() }];
            stage.init.fresh.clear();
            stage
        };
        open(like(), &second).unwrap().run(&|| std::time::Duration::ZERO, &mut Silent).unwrap();
        std::fs::remove_dir_all(&model).unwrap();
        assert_eq!(resume(like(), &second).unwrap().unwrap().counters().step, 2);
        assert!(open(like(), directory.path().join("third")).is_err(), "to begin, the model is needed");
    }
}
