//! The region module: hidden states and boxes in, one language-model embedding per box out.
//!
//! A four-level pyramid is made of four hidden states of the tower. Rounds of scale shuffle let
//! neighbouring levels exchange channels. RoIAlign cuts every box out of every level; the head sums
//! the levels, adds an embedding of the box itself and projects to the language model's width.
//!
//! Each piece can be left out, or be had in another size, by [`RegionConfig`]: that is how it is found out what the
//! piece is good for.

use candle_core::{Device, Result, Tensor};

use crate::{
    channels_last,
    config::{Config, RegionConfig},
    layers::{Conv3x3, GroupNorm, LayerNorm, Linear, linear, relu, resize_bilinear, scale_shuffle},
    roi_align::roi_align,
    weights::{Weights, WeightsResult},
};

/// Eps of every GroupNorm and LayerNorm of the module (mmcv's and PyTorch's default).
const NORM_EPS: f64 = 1e-5;

/// `model.spi_module` of the published checkpoint.
#[derive(Debug)]
pub struct RegionModule {
    /// Hidden states → feature maps.
    pub pyramid: Pyramid,
    /// Feature maps and boxes → embeddings.
    pub head: RegionHead,
}

impl RegionModule {
    /// Takes the tensors below `mlvl_fuse.` and `roi_align.`.
    pub fn load(weights: &Weights, config: &Config) -> WeightsResult<Self> {
        Ok(Self {
            pyramid: Pyramid::load(&weights.at("mlvl_fuse"), config)?,
            head: RegionHead::load(&weights.at("roi_align"), config)?,
        })
    }

    /// # Shapes
    /// states: per level `[1, patches, Cv]`, without class token; boxes `[N, 4]` normalised xyxy →
    /// `[N·tokens, H]`
    pub fn forward(&self, states: &[Tensor], boxes: &Tensor) -> Result<Tensor> {
        let maps = self.pyramid.forward(states)?;
        self.head.forward(&self.head.pool(&maps, boxes)?, boxes)
    }
}

/// Multi-level feature maps with coordinates and scale shuffle.
#[derive(Debug)]
pub struct Pyramid {
    input_conv: Vec<InputConv>,
    fuse_convs: Vec<FuseRound>,
    scales: Vec<usize>,
    grid: usize,
    config: RegionConfig,
}

impl Pyramid {
    fn load(weights: &Weights, config: &Config) -> WeightsResult<Self> {
        let region = &config.region;
        let (inputs, rounds) = (weights.at("input_conv"), weights.at("fuse_convs"));
        Ok(Self {
            input_conv: (0..region.levels)
                .map(|level| InputConv::load(&inputs.at(level), config))
                .collect::<WeightsResult<_>>()?,
            fuse_convs: (0..region.fuse_rounds)
                .map(|round| FuseRound::load(&rounds.at(round), region))
                .collect::<WeightsResult<_>>()?,
            scales: region.scales(),
            grid: config.vision.grid(),
            config: region.clone(),
        })
    }

    /// # Shapes
    /// states: per level `[1, patches, Cv]` → per level `[1, C, grid·scale, grid·scale]`, finest first
    pub fn forward(&self, states: &[Tensor]) -> Result<Vec<Tensor>> {
        let inputs = self.input_conv.iter().zip(states);
        let patches = inputs.map(|(conv, state)| conv.forward(state)).collect::<Result<Vec<_>>>()?;
        if self.is_inference(&patches) {
            let rounds: Vec<_> = self.fuse_convs.iter().map(|round| (&round.conv, &round.gn)).collect();
            return channels_last::pyramid(&patches, self.grid, &self.scales, &rounds);
        }
        let levels = patches.iter().zip(&self.scales).map(|(patches, scale)| upsample(patches, self.grid, *scale));
        let levels = levels.collect::<Result<Vec<_>>>()?;
        self.fuse_convs.iter().try_fold(levels, |levels, round| match self.config.shuffle {
            true => round.forward(&shuffled(&levels)?),
            false => round.forward(&levels),
        })
    }

    /// Whether maps of one picture are wanted, as the original has them, and no gradients of them.
    fn is_inference(&self, patches: &[Tensor]) -> bool {
        let rounds = self.fuse_convs.iter().flat_map(|round| [&round.conv.weight, &round.gn.weight, &round.gn.bias]);
        let tensors: Vec<&Tensor> = patches.iter().chain(rounds).collect();
        let one = patches.iter().all(|patches| patches.dims()[0] == 1);
        one && self.config.shuffle && channels_last::serves(self.config.dim, &tensors)
    }
}

/// The 1×1 convolution that brings one level, with its coordinates, to the pyramid's width.
///
/// A 1×1 convolution and bilinear resizing commute, since both are linear and the weights of a
/// resize sum to one; coordinates that run evenly from corner to corner resize to themselves. So the
/// convolution runs on the patch grid, before the upsampling, with the same result.
#[derive(Debug)]
struct InputConv {
    weight: Tensor, // [C, Cv + 2, 1, 1]; without coordinates [C, Cv, 1, 1]
    bias: Tensor,   // [C]
    grid: usize,
}

impl InputConv {
    fn load(weights: &Weights, config: &Config) -> WeightsResult<Self> {
        let (dim, seen) = (config.region.dim, config.input_width());
        let weight = weights.get("weight", &[dim, seen, 1, 1])?;
        Ok(Self { weight, bias: weights.get("bias", &[dim])?, grid: config.vision.grid() })
    }

    /// # Shapes
    /// `[B, patches, Cv]` → `[B, patches, C]`
    fn forward(&self, state: &Tensor) -> Result<Tensor> {
        let weight = self.weight.flatten_from(1)?; // [C, Cv + 2]
        if weight.dim(1)? == state.dim(2)? {
            return linear(state, &weight, Some(&self.bias));
        }
        let place = coordinates(self.grid, state.device())?.to_dtype(state.dtype())?.broadcast_left(state.dim(0)?)?;
        linear(&Tensor::cat(&[state, &place], 2)?, &weight, Some(&self.bias))
    }
}

/// # Shapes
/// `[B, grid·grid, C]` → `[B, C, grid·scale, grid·scale]`
fn upsample(patches: &Tensor, grid: usize, scale: usize) -> Result<Tensor> {
    let (batch, _, dim) = patches.dims3()?;
    let map = patches.transpose(1, 2)?.contiguous()?.reshape((batch, dim, grid, grid))?;
    resize_bilinear(&map, grid * scale, grid * scale)
}

/// Each patch's x, then y, from −1 to 1 with the corners exact.
///
/// # Shapes
/// → `[grid·grid, 2]`
fn coordinates(grid: usize, device: &Device) -> Result<Tensor> {
    let place = |index: usize| if grid > 1 { 2.0 * index as f32 / (grid - 1) as f32 - 1.0 } else { -1.0 };
    let values: Vec<f32> = (0..grid * grid).flat_map(|patch| [place(patch % grid), place(patch / grid)]).collect();
    Tensor::from_vec(values, (grid * grid, 2), device)
}

/// One convolution shared by all levels.
#[derive(Debug)]
struct FuseRound {
    conv: Conv3x3,
    gn: GroupNorm,
}

impl FuseRound {
    fn load(weights: &Weights, config: &RegionConfig) -> WeightsResult<Self> {
        Ok(Self {
            conv: Conv3x3::load_without_bias(&weights.at("conv"), config.dim, config.dim)?,
            gn: GroupNorm::load(&weights.at("gn"), config.gn_groups, config.dim, NORM_EPS)?,
        })
    }

    fn forward(&self, levels: &[Tensor]) -> Result<Vec<Tensor>> {
        levels.iter().map(|level| relu(&self.gn.forward(&self.conv.forward(level)?)?)).collect()
    }
}

/// Each level with channels borrowed from its neighbours.
fn shuffled(levels: &[Tensor]) -> Result<Vec<Tensor>> {
    (0..levels.len()).map(|level| shuffle(levels, level)).collect()
}

/// One level with channels of its neighbours; at the ends of the pyramid the neighbour is the level
/// itself.
///
/// # Shapes
/// per level `[B, C, h, w]` → as `levels[level]`
fn shuffle(levels: &[Tensor], level: usize) -> Result<Tensor> {
    let coarser = &levels[(level + 1).min(levels.len() - 1)];
    scale_shuffle(&levels[level], coarser, &levels[level.saturating_sub(1)])
}

/// What RoIAlign cut out, and the box itself, as one embedding.
#[derive(Debug)]
pub struct RegionHead {
    pconvs: Vec<Conv3x3>,
    pos_embedd: Option<BoxEmbedding>,
    flatten_linear: Linear,
    updims: Linear,
    config: RegionConfig,
    image_size: usize,
}

impl RegionHead {
    fn load(weights: &Weights, config: &Config) -> WeightsResult<Self> {
        let region = &config.region;
        let (dim, pconvs) = (region.dim, weights.at("pconvs"));
        let cell = region.roi_size / region.cells();
        Ok(Self {
            pconvs: (0..region.levels)
                .map(|level| Conv3x3::load(&pconvs.at(level), dim, dim))
                .collect::<WeightsResult<_>>()?,
            pos_embedd: (region.box_embedding)
                .then(|| BoxEmbedding::load(&weights.at("pos_embedd"), region))
                .transpose()?,
            flatten_linear: Linear::load(&weights.at("flatten_linear"), dim * cell * cell, dim)?,
            updims: Linear::load(&weights.at("updims"), dim, config.llama.hidden_size)?,
            config: region.clone(),
            image_size: config.vision.image_size,
        })
    }

    /// How many boxes to encode together, so that what is cut out of the maps for them stays below 64 MiB:
    /// 21 at the original's size, where each box takes four levels of 1024 channels of 14×14 values. The
    /// convolutions behind may take a few times as much.
    pub fn boxes_at_once(&self) -> usize {
        const BYTES: usize = 64 << 20;
        let RegionConfig { levels, dim, roi_size, .. } = self.config;
        (BYTES / (levels * dim * roi_size * roi_size * size_of::<f32>())).max(1)
    }

    /// Every box out of every level. Boxes first go to pixels of the model's own picture, in their
    /// own precision: the original does this in float16, and so rounds them.
    ///
    /// # Shapes
    /// maps: per level `[1, C, h, w]`; boxes `[N, 4]` normalised xyxy, f32 or f16 → per level `[N, C, R, R]`
    pub fn pool(&self, maps: &[Tensor], boxes: &Tensor) -> Result<Vec<Tensor>> {
        let boxes = (boxes * self.image_size as f64)?.to_dtype(candle_core::DType::F32)?;
        let (size, ratio) = (self.config.roi_size, self.config.sampling_ratio);
        maps.iter()
            .map(|map| roi_align(map, &boxes, map.dim(3)? as f64 / self.image_size as f64, size, ratio))
            .collect()
    }

    /// # Shapes
    /// rois: per level `[N, C, R, R]`; boxes `[N, 4]` normalised xyxy → `[N·tokens, H]`
    pub fn forward(&self, rois: &[Tensor], boxes: &Tensor) -> Result<Tensor> {
        self.placed(&self.features(rois)?, boxes)
    }

    /// What is shown, at the place that each box has.
    ///
    /// # Shapes
    /// features `[N·tokens, C]`; boxes `[N, 4]` normalised xyxy → `[N·tokens, H]`
    pub fn placed(&self, features: &Tensor, boxes: &Tensor) -> Result<Tensor> {
        let places = self.box_embedding(boxes)?.to_dtype(features.dtype())?;
        self.project(&(features + places)?)
    }

    /// What the picture shows inside each box, all levels together.
    ///
    /// # Shapes
    /// per level `[N, C, R, R]` → `[N·tokens, C]`
    pub fn features(&self, rois: &[Tensor]) -> Result<Tensor> {
        self.flatten(&self.fuse(rois)?)
    }

    /// Each level through its own convolution, then their sum through ReLU.
    ///
    /// # Shapes
    /// per level `[N, C, R, R]` → `[N, C, R, R]`
    pub fn fuse(&self, rois: &[Tensor]) -> Result<Tensor> {
        let weights = self.pconvs.iter().map(|conv| &conv.weight);
        if channels_last::serves(self.config.dim, &rois.iter().chain(weights).collect::<Vec<_>>()) {
            return relu(&channels_last::sum_of_convolutions(&self.pconvs, rois)?);
        }
        let mut levels = self.pconvs.iter().zip(rois).map(|(conv, roi)| conv.forward(roi));
        let first = levels.next().unwrap_or_else(|| candle_core::bail!("a pyramid without levels"))?;
        relu(&levels.try_fold(first, |sum, level| sum + level?)?)
    }

    /// The grid of each box as one vector, or, where a region has several tokens, each of its cells: row by row,
    /// box after box.
    ///
    /// # Shapes
    /// `[N, C, R, R]` → `[N·tokens, C]`
    pub fn flatten(&self, fused: &Tensor) -> Result<Tensor> {
        let cells = self.config.cells();
        if cells == 1 {
            return self.flatten_linear.forward(&fused.flatten_from(1)?);
        }
        let (boxes, dim, size) = (fused.dim(0)?, fused.dim(1)?, self.config.roi_size / cells);
        let cut = fused.contiguous()?.reshape(&[boxes, dim, cells, size, cells, size][..])?;
        let cut = cut.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?;
        self.flatten_linear.forward(&cut.reshape((boxes * cells * cells, dim * size * size))?)
    }

    /// Where each box lies and how large it is, for each of its tokens; zeros for a module that does not say.
    ///
    /// # Shapes
    /// `[N, 4]` normalised xyxy → `[N·tokens, C]`
    pub fn box_embedding(&self, boxes: &Tensor) -> Result<Tensor> {
        let (count, tokens, dim) = (boxes.dim(0)?, self.config.tokens, self.config.dim);
        let Some(embedding) = &self.pos_embedd else {
            return Tensor::zeros((count * tokens, dim), candle_core::DType::F32, boxes.device());
        };
        let places = embedding.forward(&boxes.to_dtype(candle_core::DType::F32)?)?;
        if tokens == 1 {
            return Ok(places);
        }
        places.unsqueeze(1)?.broadcast_as((count, tokens, dim))?.contiguous()?.flatten_to(1)
    }

    /// From the region module's width to the language model's.
    ///
    /// # Shapes
    /// `[rows, C]` → `[rows, H]`
    pub fn project(&self, features: &Tensor) -> Result<Tensor> {
        self.updims.forward(features)
    }
}

/// Linear, ReLU, LayerNorm, twice. The paper does not mention it; its code has it.
#[derive(Debug)]
struct BoxEmbedding {
    inner: (Linear, LayerNorm),
    outer: (Linear, LayerNorm),
}

impl BoxEmbedding {
    fn load(weights: &Weights, config: &RegionConfig) -> WeightsResult<Self> {
        let (hidden, dim) = (config.pos_hidden, config.dim);
        Ok(Self {
            inner: (Linear::load(&weights.at(0), 4, hidden)?, LayerNorm::load(&weights.at(2), hidden, NORM_EPS)?),
            outer: (Linear::load(&weights.at(3), hidden, dim)?, LayerNorm::load(&weights.at(5), dim, NORM_EPS)?),
        })
    }

    fn forward(&self, boxes: &Tensor) -> Result<Tensor> {
        let inner = self.inner.1.forward(&relu(&self.inner.0.forward(boxes)?)?)?;
        self.outer.1.forward(&relu(&self.outer.0.forward(&inner)?)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tiny::Noise;

    fn module(changes: serde_json::Value) -> RegionModule {
        let mut config = Config::pico(100);
        (config.vision.hidden_size, config.vision.image_size) = (16, 56);
        (config.region.dim, config.region.gn_groups, config.region.roi_size) = (8, 2, 4);
        let config = config.with_region(changes.as_object().unwrap()).unwrap();
        RegionModule::load(&Weights::new(Arc::new(Noise)), &config).unwrap()
    }

    fn states() -> Vec<Tensor> {
        let value = |i: usize| (i * 37 % 101) as f32 / 50.0 - 1.0;
        let state = |level: usize| Tensor::from_iter((0..16 * 16).map(|i| value(i + level)), &Device::Cpu).unwrap();
        (0..4).map(|level| state(level).reshape((1, 16, 16)).unwrap()).collect()
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
        tensor.to_vec2().unwrap()
    }

    /// Four tokens are the four quarters of the grid, each through the same layer.
    #[test]
    fn kept_cells_are_the_parts_of_the_grid() {
        let head = module(serde_json::json!({"tokens": 4})).head;
        let grid = Tensor::from_iter((0..2 * 8 * 16).map(|i| (i * 29 % 83) as f32 / 40.0), &Device::Cpu).unwrap();
        let grid = grid.reshape((2, 8, 4, 4)).unwrap();
        let got = rows(&head.flatten(&grid).unwrap());
        assert_eq!(got.len(), 8);
        for bbox in 0..2 {
            for (cell, (top, left)) in [(0, 0), (0, 2), (2, 0), (2, 2)].into_iter().enumerate() {
                let part = grid.narrow(0, bbox, 1).unwrap().narrow(2, top, 2).unwrap().narrow(3, left, 2).unwrap();
                let part = part.contiguous().unwrap().flatten_from(1).unwrap();
                assert_eq!(got[4 * bbox + cell], rows(&head.flatten_linear.forward(&part).unwrap())[0]);
            }
        }
        let boxes = Tensor::new(&[[0.1f32, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]], &Device::Cpu).unwrap();
        let (each, one) = (rows(&head.box_embedding(&boxes).unwrap()), module(serde_json::json!({})).head);
        let one = rows(&one.box_embedding(&boxes).unwrap());
        assert_eq!(each, [vec![one[0].clone(); 4], vec![one[1].clone(); 4]].concat());
    }

    /// A piece that is left out does what it says: nothing comes from there any more.
    #[test]
    fn pieces_that_are_left_out_have_no_effect() {
        let boxes = Tensor::new(&[[0.1f32, 0.2, 0.5, 0.6]], &Device::Cpu).unwrap();
        let vector = |changes| rows(&module(changes).forward(&states(), &boxes).unwrap()).remove(0);
        let whole = vector(serde_json::json!({}));
        for switch in ["coordinates", "shuffle", "box_embedding"] {
            assert_ne!(whole, vector(serde_json::json!({switch: false})), "{switch}");
        }
        let head = module(serde_json::json!({"box_embedding": false})).head;
        assert!(rows(&head.box_embedding(&boxes).unwrap())[0].iter().all(|value| *value == 0.0));

        // Without shuffle a level is computed from its own state alone.
        let finest = |changes: serde_json::Value, states: &[Tensor]| {
            module(changes).pyramid.forward(states).unwrap()[0].flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let mut others = states();
        others[1] = (&others[1] * 2.0).unwrap();
        let alone = serde_json::json!({"shuffle": false});
        assert_eq!(finest(alone.clone(), &states()), finest(alone, &others));
        assert_ne!(finest(serde_json::json!({}), &states()), finest(serde_json::json!({}), &others));
    }
}
