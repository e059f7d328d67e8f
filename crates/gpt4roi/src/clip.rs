//! The CLIP vision tower, up to the last hidden state that anybody reads.

use candle_core::{Result, Tensor};

use crate::{
    config::{Activation, VisionConfig},
    layers::{AttentionMask, LayerNorm, Linear, attention, gelu, linear, quick_gelu},
    weights::{Weights, WeightsError, WeightsResult},
};

/// A pre-LN vision transformer over square patches.
#[derive(Debug)]
pub struct ClipVision {
    patch_embedding: Tensor,    // [Cv, 3·P·P]
    class_embedding: Tensor,    // [1, 1, Cv]
    position_embedding: Tensor, // [1, 1 + patches, Cv]
    pre_layrnorm: LayerNorm,
    layers: Vec<EncoderLayer>,
    patch_size: usize,
}

impl ClipVision {
    /// Takes the tensors below `vision_model.`; layers from `depth` on are neither read nor computed.
    pub fn load(weights: &Weights, config: &VisionConfig, depth: usize) -> WeightsResult<Self> {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let root = weights.at("vision_model");
        let embeddings = root.at("embeddings");
        let tensor_error = |name: &str| {
            let name = format!("vision_model.embeddings.{name}");
            move |source| WeightsError::Tensor { name, source }
        };
        let layers = root.at("encoder.layers");
        Ok(Self {
            patch_embedding: embeddings
                .get("patch_embedding.weight", &[width, 3, patch, patch])?
                .reshape((width, 3 * patch * patch))
                .map_err(tensor_error("patch_embedding.weight"))?,
            class_embedding: embeddings
                .get("class_embedding", &[width])?
                .reshape((1, 1, width))
                .map_err(tensor_error("class_embedding"))?,
            position_embedding: embeddings
                .get("position_embedding.weight", &[config.patches() + 1, width])?
                .reshape((1, config.patches() + 1, width))
                .map_err(tensor_error("position_embedding.weight"))?,
            // The checkpoint's spelling.
            pre_layrnorm: LayerNorm::load(&root.at("pre_layrnorm"), width, config.layer_norm_eps)?,
            layers: (0..depth)
                .map(|index| EncoderLayer::load(&layers.at(index), config))
                .collect::<WeightsResult<_>>()?,
            patch_size: patch,
        })
    }

    /// The hidden states of all computed layers; index 0 is the input of the first layer. None has
    /// been through a final LayerNorm, which the model never uses.
    ///
    /// # Shapes
    /// pixel_values `[B, 3, S, S]` → depth + 1 tensors `[B, 1 + patches, Cv]`, the class token first
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Vec<Tensor>> {
        let batch = pixel_values.dim(0)?;
        let pixel_values = pixel_values.to_dtype(self.patch_embedding.dtype())?;
        let patches = linear(&self.patches(&pixel_values)?, &self.patch_embedding, None)?; // [B, patches, Cv]
        let class = self.class_embedding.broadcast_left(batch)?.squeeze(1)?; // [B, 1, Cv]
        let x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.position_embedding)?;
        let mut states = vec![self.pre_layrnorm.forward(&x)?];
        for layer in &self.layers {
            states.push(layer.forward(&states[states.len() - 1])?);
        }
        Ok(states)
    }

    /// Cuts the picture into patches, row by row, each flattened as the convolution's weight is.
    ///
    /// # Shapes
    /// `[B, 3, S, S]` → `[B, patches, 3·P·P]`
    fn patches(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = pixel_values.dims4()?;
        let (size, rows, columns) = (self.patch_size, height / self.patch_size, width / self.patch_size);
        pixel_values.reshape(&[batch, channels, rows, size, columns, size])?.permute(vec![0, 2, 4, 1, 3, 5])?.reshape((
            batch,
            rows * columns,
            channels * size * size,
        ))
    }
}

/// Attention, then a feed-forward part, each added to what came in.
#[derive(Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    activation: Activation,
}

impl EncoderLayer {
    fn load(weights: &Weights, config: &VisionConfig) -> WeightsResult<Self> {
        let (width, mlp, attention) = (config.hidden_size, config.intermediate_size, weights.at("self_attn"));
        Ok(Self {
            layer_norm1: LayerNorm::load(&weights.at("layer_norm1"), width, config.layer_norm_eps)?,
            q_proj: Linear::load(&attention.at("q_proj"), width, width)?,
            k_proj: Linear::load(&attention.at("k_proj"), width, width)?,
            v_proj: Linear::load(&attention.at("v_proj"), width, width)?,
            out_proj: Linear::load(&attention.at("out_proj"), width, width)?,
            layer_norm2: LayerNorm::load(&weights.at("layer_norm2"), width, config.layer_norm_eps)?,
            fc1: Linear::load(&weights.at("mlp.fc1"), width, mlp)?,
            fc2: Linear::load(&weights.at("mlp.fc2"), mlp, width)?,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.attend(&self.layer_norm1.forward(x)?)?)?;
        &x + self.feed_forward(&self.layer_norm2.forward(&x)?)?
    }

    fn attend(&self, x: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.q_proj.forward(x)?, self.k_proj.forward(x)?, self.v_proj.forward(x)?);
        self.out_proj.forward(&attention(&q, &k, &v, self.heads, &AttentionMask::Full)?)
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.fc1.forward(x)?;
        self.fc2.forward(&match self.activation {
            Activation::QuickGelu => quick_gelu(&inner)?,
            Activation::Gelu => gelu(&inner)?,
        })
    }
}
