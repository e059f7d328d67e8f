//! A model and stages small enough for tests.

use std::path::{Path, PathBuf};

use gpt4roi::{
    Config, Precision,
    convert::{IfExists, Parts},
    tokenizer::Tokenizer,
};
use gpt4roi_data::{QuestionMix, SceneConfig};

use crate::{
    adapter::AdapterSettings,
    checkpoint::TokenizerFiles,
    config::{CheckpointConfig, InitConfig, ModelConfig, Preset, StageConfig},
    error::Result,
    init::InitChoices,
    muon::{Muon, MuonScale},
    objective::{ConverseConfig, LanguageConfig, ObjectiveConfig, PatchesConfig},
    optimizer::{AdamW, OptimizerConfig},
    records::RecordsConfig,
    schedule::{Decay, Schedule},
    stage::Plan,
    trainer::Trainer,
};

/// Channels of the region vector that are left to the box.
const PLACE_CHANNELS: usize = 2;

/// Two levels of a four-layer tower over 2×2 patches.
pub(crate) fn config(vocab_size: usize) -> Config {
    let mut config = Config::pico(vocab_size);
    (config.llama.hidden_size, config.llama.intermediate_size) = (16, 24);
    (config.llama.num_hidden_layers, config.llama.num_attention_heads) = (2, 2);
    (config.vision.hidden_size, config.vision.intermediate_size) = (16, 24);
    (config.vision.num_hidden_layers, config.vision.num_attention_heads) = (5, 2);
    config.vision.image_size = 28;
    (config.region.dim, config.region.levels, config.region.scales) = (8, 2, vec![2, 1]);
    (config.region.gn_groups, config.region.fuse_rounds) = (2, 2);
    (config.region.roi_size, config.region.pos_hidden) = (3, 8);
    config
}

pub(crate) fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano")
}

pub(crate) fn tokenizer() -> Tokenizer {
    tokenizer_files().tokenizer().unwrap()
}

pub(crate) fn tokenizer_files() -> TokenizerFiles {
    TokenizerFiles::read(&models()).unwrap()
}

/// A square picture.
pub(crate) fn picture(side: u32) -> gpt4roi::Image {
    let colour = |x, y| image::Rgb([(3 * x) as u8, (5 * y) as u8, (x * y) as u8]);
    gpt4roi::Image::from_rgb(image::RgbImage::from_fn(side, side, colour))
}

pub(crate) fn scenes() -> SceneConfig {
    SceneConfig { kinds: 3, size: 28, objects: (1, 2), object_size: (12.0, 20.0), ..SceneConfig::default() }
}

pub(crate) fn patches() -> ObjectiveConfig {
    ObjectiveConfig::Patches(PatchesConfig::default())
}

pub(crate) fn language() -> ObjectiveConfig {
    ObjectiveConfig::Language(LanguageConfig {
        noise: 0.5,
        place_channels: PLACE_CHANNELS,
        pictures: 1.0,
        first_token: 2.0,
        questions: questions(),
    })
}

pub(crate) fn conversation() -> ObjectiveConfig {
    let questions = Some(questions());
    ObjectiveConfig::Conversation(ConverseConfig {
        language: 1.0,
        class: 0.5,
        distance: 0.1,
        first_token: 1.0,
        questions,
    })
}

fn questions() -> QuestionMix {
    QuestionMix { count: 3, ..QuestionMix::default() }
}

/// Six steps of three pictures; nothing is required to come from a checkpoint.
pub(crate) fn stage(objective: ObjectiveConfig, trainable: &[&str]) -> StageConfig {
    StageConfig {
        name: "tiny".into(),
        model: ModelConfig {
            preset: Some(Preset::Nano),
            like: None,
            tokenizer: Some(models().into()),
            region: serde_json::Map::new(),
        },
        trainable: trainable.iter().map(|prefix| prefix.to_string()).collect(),
        adapter: None,
        init: InitConfig {
            fresh: vec![String::new()],
            choices: InitChoices { place_channels: PLACE_CHANNELS, ..InitChoices::default() },
            ..InitConfig::default()
        },
        steps: 6,
        epochs: 0,
        batch: 3,
        seed: 7,
        threads: 2,
        optimizer: OptimizerConfig {
            adamw: AdamW { lr: 1e-3, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.1, vector_weight_decay: 0.0 },
            muon: Some(Muon { lr: 0.01, momentum: 0.95, iterations: 5, weight_decay: 0.1, scale: MuonScale::Spectral }),
            groups: Vec::new(),
        },
        schedule: Schedule { warmup: 2, decay: Decay::Cosine, floor: 0.1 },
        clip_norm: 1.0,
        max_bad_steps: 2,
        checkpoint: CheckpointConfig { every_steps: 2, every_seconds: 0, keep: 2 },
        log_every: 1,
        scenes: Some(scenes()),
        records: None,
        objective,
    }
}

/// The language model, the projector and the region module learn from files.
pub(crate) fn stage_of_records(files: &[PathBuf]) -> StageConfig {
    let mut stage = stage(conversation(), &["model.", "lm_head."]);
    if let ObjectiveConfig::Conversation(settings) = &mut stage.objective {
        (settings.class, settings.distance, settings.questions) = (0.0, 0.0, None);
    }
    let files = files.to_vec();
    let records = RecordsConfig { files, images: None, question: None, split: None, dialogues_per_picture: 20 };
    StageConfig { scenes: None, records: Some(records), ..stage }
}

/// A whole model of these dimensions and of random numbers, in a directory.
pub(crate) fn write_model(directory: &Path) {
    let files = tokenizer_files();
    let config = config(tokenizer().vocab_size());
    let parts = Parts::noise(&config, &files.model, &files.added_tokens).unwrap();
    parts.write_directory(directory, IfExists::Refuse).unwrap();
}

/// Changes of the language model of `base` learn, and what else is named.
pub(crate) fn stage_of_adapter(base: &Path, trainable: &[&str]) -> StageConfig {
    let mut stage = stage(conversation(), trainable);
    stage.model = ModelConfig { like: Some(base.into()), ..ModelConfig::default() };
    stage.adapter = Some(AdapterSettings {
        rank: 3,
        alpha: 6.0,
        targets: ["q_proj", "v_proj", "down_proj"].map(String::from).into(),
        base_dtype: Precision::F32,
    });
    stage.init.fresh.clear();
    if let ObjectiveConfig::Conversation(settings) = &mut stage.objective {
        (settings.class, settings.distance) = (0.0, 0.0);
    }
    stage
}

pub(crate) fn trainer(stage: StageConfig, out: &Path) -> Result<Trainer> {
    plan(stage)?.begin(out.into())
}

/// Goes on from the last checkpoint below `out`, which must be there.
pub(crate) fn resumed(stage: StageConfig, out: &Path) -> Result<Trainer> {
    Ok(plan(stage)?.go_on(out.into())?.expect("a checkpoint"))
}

fn plan(stage: StageConfig) -> Result<Plan> {
    Plan::for_model(stage, config(tokenizer().vocab_size()), Some(tokenizer_files()))
}
