//! The whole model: tower, projector, region module and language model, put together.

use candle_core::{Device, Result as TensorResult, Tensor};

use crate::{
    clip::ClipVision, config::Config, error::Result, layers::Linear, llama::Llama, region::RegionModule,
    tokenizer::Tokenizer, weights::Weights,
};

/// The network: tensors in, tensors out. It knows nothing of text or files.
#[derive(Debug)]
pub struct Network {
    /// The CLIP tower.
    pub clip: ClipVision,
    /// From the tower's width to the language model's.
    pub projector: Linear,
    /// Boxes to embeddings.
    pub region: RegionModule,
    /// The language model.
    pub llama: Llama,
    level_states: Vec<usize>,
}

/// What one picture comes to, computed once however many questions follow.
#[derive(Clone, Debug)]
pub struct ImageFeatures {
    /// The hidden states behind the levels, ascending, with the class token: `[1, 1 + patches, Cv]`.
    pub states: Vec<Tensor>,
    /// The patches as the language model sees them: `[patches, H]`.
    pub image_tokens: Tensor,
}

impl Network {
    /// Takes the tower's tensors (`vision_model.…`) from one source and all others (`model.…`,
    /// `lm_head.…`) from another, as the published files are split.
    pub fn load(config: &Config, tower: &Weights, model: &Weights) -> Result<Self> {
        let level_states = config.level_states()?;
        let depth = level_states.last().copied().unwrap_or(0);
        let (vision, text) = (config.vision.hidden_size, config.llama.hidden_size);
        Ok(Self {
            clip: ClipVision::load(tower, &config.vision, depth)?,
            projector: Linear::load(&model.at("model.mm_projector"), vision, text)?,
            region: RegionModule::load(&model.at("model.spi_module"), config)?,
            llama: Llama::load(model, &config.llama)?,
            level_states,
        })
    }

    /// # Shapes
    /// pixel_values `[1, 3, S, S]`
    pub fn encode_image(&self, pixel_values: &Tensor) -> TensorResult<ImageFeatures> {
        let all = self.clip.forward(pixel_values)?;
        let states: Vec<_> = self.level_states.iter().map(|&index| all[index].clone()).collect();
        let image_tokens = self.projector.forward(&patches(&states[states.len() - 1])?)?.squeeze(0)?;
        Ok(ImageFeatures { states, image_tokens })
    }

    /// The pyramid of one picture, finest level first.
    pub fn pyramid(&self, image: &ImageFeatures) -> TensorResult<Vec<Tensor>> {
        let states: TensorResult<Vec<_>> = image.states.iter().map(patches).collect();
        self.region.pyramid.forward(&states?)
    }

    /// One embedding per box.
    ///
    /// # Shapes
    /// maps from [`Self::pyramid`]; boxes `[N, 4]` normalised xyxy, f32 or f16 → `[N, H]`
    pub fn encode_regions(&self, maps: &[Tensor], boxes: &Tensor) -> TensorResult<Tensor> {
        self.region.head.forward(&self.region.head.pool(maps, boxes)?, boxes)
    }

    /// Token embeddings, with patches and regions in the places of their tokens.
    ///
    /// Each of `parts` is a tensor `[N, H]` and the places `[N]` its rows go to; places are distinct.
    ///
    /// # Shapes
    /// ids `[T]` (u32) → `[1, T, H]`
    pub fn splice(&self, ids: &Tensor, parts: &[(&Tensor, &[u32])]) -> TensorResult<Tensor> {
        let text = self.llama.embed(ids)?;
        let length = ids.elem_count();
        // One gather out of [text; part; part; …] keeps the gradient of every part.
        let mut source: Vec<u32> = (0..length as u32).collect();
        let mut rows = vec![text];
        let mut offset = length as u32;
        for (part, places) in parts {
            if part.dim(0)? != places.len() {
                candle_core::bail!("{} places for {} vectors", places.len(), part.dim(0)?);
            }
            for &place in *places {
                let Some(slot) = source.get_mut(place as usize) else {
                    candle_core::bail!("place {place} lies behind the last of {length} tokens");
                };
                *slot = offset;
                offset += 1;
            }
            rows.push((*part).clone());
        }
        let order = Tensor::from_vec(source, length, ids.device())?;
        Tensor::cat(&rows, 0)?.index_select(&order, 0)?.unsqueeze(0)
    }
}

/// Without the class token.
///
/// # Shapes
/// `[B, 1 + patches, Cv]` → `[B, patches, Cv]`
fn patches(state: &Tensor) -> TensorResult<Tensor> {
    state.narrow(1, 1, state.dim(1)? - 1)
}

/// A model ready to use: the network with its tokenizer and its configuration.
#[derive(Debug)]
pub struct Gpt4Roi {
    /// The network.
    pub network: Network,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// All dimensions.
    pub config: Config,
    /// Where the tensors are.
    pub device: Device,
}

impl Gpt4Roi {
    /// Opens a model directory in the published layout.
    pub fn open(directory: impl AsRef<std::path::Path>, device: &Device) -> Result<Self> {
        let _ = (directory.as_ref(), device);
        todo!()
    }
}
