//! The region module at inference on a CPU, in wide maps that lie place by place.
//!
//! What training computes layer by layer, with gradients, is computed here without, in Winograd's domain and with
//! the same values up to rounding. A map is still a tensor `[N, C, h, w]`, but a view of `[N, h, w, C]`.

use candle_core::{Device, Result, Tensor};
use gpt4roi_kernels::{self as kernels, Channels, ConvMaps, MapSize, RoiAlignShape, Winograd};

use crate::{
    layers::{Conv3x3, GroupNorm},
    ops::{serve, values},
};

/// From so many channels on, transforms cost less than the multiplications that they save.
const WIDE: usize = 128;

/// Whether maps of so many channels, with what they are computed from, are better computed here.
pub(crate) fn serves(channels: usize, tensors: &[&Tensor]) -> bool {
    channels >= WIDE && serve(tensors) && !tensors.iter().any(|tensor| tensor.track_op())
}

/// A pyramid's level while it is computed: `[h, w, C]`.
struct Level {
    values: Vec<f32>,
    size: MapSize,
}

impl Level {
    fn zeros(size: MapSize, channels: usize) -> Self {
        Self { values: kernels::large_zeros(size.height * size.width * channels), size }
    }

    /// # Shapes
    /// `[1, grid·grid, C]` → `[h, w, C]`
    fn upsample(patches: &Tensor, grid: usize, scale: usize) -> Result<Self> {
        let channels = patches.dim(2)?;
        let square = |side| MapSize { height: side, width: side };
        let mut level = Self::zeros(square(grid * scale), channels);
        let patches = patches.contiguous()?;
        let patches = values(&patches)?;
        kernels::resize_channels(&[Channels::all(&patches, square(grid))], level.size, &mut level.values);
        Ok(level)
    }

    /// # Shapes
    /// → `[1, C, h, w]`
    fn into_tensor(self) -> Result<Tensor> {
        let channels = self.values.len() / (self.size.height * self.size.width);
        map_tensor(self.values, 1, channels, self.size)
    }
}

/// `[N, h, w, C]` as `[N, C, h, w]`.
fn map_tensor(values: Vec<f32>, batch: usize, channels: usize, size: MapSize) -> Result<Tensor> {
    Tensor::from_vec(values, (batch, size.height, size.width, channels), &Device::Cpu)?.permute((0, 3, 1, 2))
}

/// The levels of a pyramid from their patches, each upsampled by its scale, then through all rounds.
///
/// # Shapes
/// patches: per level `[1, grid·grid, C]` → per level `[1, C, h, w]`
pub(crate) fn pyramid(
    patches: &[Tensor],
    grid: usize,
    scales: &[usize],
    rounds: &[(&Conv3x3, &GroupNorm)],
) -> Result<Vec<Tensor>> {
    let levels = patches.iter().zip(scales).map(|(patches, &scale)| Level::upsample(patches, grid, scale));
    let mut levels = levels.collect::<Result<Vec<_>>>()?;
    let channels = patches.first().map_or(Ok(0), |patches| patches.dim(2))?;
    let mut shuffled: Vec<Level> = levels.iter().map(|level| Level::zeros(level.size, channels)).collect();
    let mut winograd = Winograd::default();
    for (conv, norm) in rounds {
        for (index, shuffled) in shuffled.iter_mut().enumerate() {
            shuffle(&levels, index, channels, &mut shuffled.values);
        }
        let maps = levels.iter_mut().zip(&shuffled);
        let maps = maps.map(|(to, from)| ConvMaps { batch: 1, size: to.size, x: &from.values, out: &mut to.values });
        winograd.conv3x3(&values(&conv.weight)?, channels, channels, 0.0, &mut maps.collect::<Vec<_>>());
        let (weight, bias) = (values(&norm.weight)?, values(&norm.bias)?);
        for level in &mut levels {
            let eps = norm.eps as f32;
            kernels::group_norm_relu_channels(&mut level.values, &weight, &bias, norm.groups, eps);
        }
    }
    levels.into_iter().map(Level::into_tensor).collect()
}

/// A level with channels of its neighbours, as [`scale_shuffle`](crate::layers::scale_shuffle) has them.
fn shuffle(levels: &[Level], index: usize, channels: usize, out: &mut [f32]) {
    let quarter = channels / 4;
    let keep = channels - 2 * quarter;
    let select = |index: usize, first, count| {
        let level = &levels[index];
        Channels { map: &level.values, size: level.size, first, count }
    };
    let (coarser, finer) = ((index + 1).min(levels.len() - 1), index.saturating_sub(1));
    let parts = [select(index, 0, keep), select(coarser, keep + quarter, quarter), select(finer, keep, quarter)];
    kernels::resize_channels(&parts, levels[index].size, out);
}

/// The sum of several maps, each through a convolution of its own.
///
/// # Shapes
/// maps: each `[N, C, h, w]` → `[N, C, h, w]`
pub(crate) fn sum_of_convolutions(convs: &[Conv3x3], maps: &[Tensor]) -> Result<Tensor> {
    let Some(first) = maps.first() else { candle_core::bail!("a pyramid without levels") };
    let (batch, channels, height, width) = first.dims4()?;
    let size = MapSize { height, width };
    let mut bias = vec![0.0; channels];
    for conv in convs.iter().filter_map(|conv| conv.bias.as_ref()) {
        kernels::sum_rows(&values(conv)?, &mut bias);
    }
    let mut out = kernels::large_zeros(batch * height * width * channels);
    kernels::repeat_row(&bias, &mut out);
    let mut winograd = Winograd::default();
    for (conv, map) in convs.iter().zip(maps) {
        let map = by_place(map)?.contiguous()?;
        let maps = ConvMaps { batch, size, x: &values(&map)?, out: &mut out };
        winograd.conv3x3(&values(&conv.weight)?, channels, channels, 1.0, &mut [maps]);
    }
    map_tensor(out, batch, channels, size)
}

/// Whether a map lies place by place already.
pub(crate) fn lies_by_place(map: &Tensor) -> bool {
    serve(&[map]) && !map.track_op() && !map.is_contiguous() && by_place(map).is_ok_and(|map| map.is_contiguous())
}

/// `[N, C, h, w]` → `[N, h, w, C]`
fn by_place(map: &Tensor) -> Result<Tensor> {
    map.permute((0, 2, 3, 1))
}

/// RoIAlign of a map for which [`lies_by_place`] holds.
///
/// # Shapes
/// map `[1, C, h, w]` → `[N, C, size, size]`
pub(crate) fn roi_align(map: &Tensor, boxes: &[[f32; 4]], shape: RoiAlignShape) -> Result<Tensor> {
    let RoiAlignShape { channels, size, .. } = shape;
    let mut out = kernels::large_zeros(boxes.len() * size * size * channels);
    let map = by_place(map)?;
    kernels::roi_align_channels(&values(&map)?, boxes, shape, &mut out);
    map_tensor(out, boxes.len(), channels, MapSize { height: size, width: size })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Var;

    use super::*;
    use crate::{
        config::Config,
        random_weights::RandomWeights,
        region::RegionModule,
        weights::{TensorSource, Weights, WeightsError, WeightsResult},
    };

    /// The same weights as variables: what is computed from them keeps its gradients, and so is not computed here.
    struct Trainable(RandomWeights);

    impl TensorSource for Trainable {
        fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
            let tensor = self.0.tensor(name, shape)?;
            let variable = Var::from_tensor(&tensor);
            variable.map(Var::into_inner).map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
        }
    }

    fn config() -> Config {
        let mut config = Config::pico(16);
        config.region.dim = 128;
        config.region.scales = vec![3, 2, 1, 1];
        config.vision.image_size = 70; // 5 patches along a side
        config
    }

    #[track_caller]
    fn assert_close(got: &Tensor, expected: &Tensor) {
        assert_eq!(got.dims(), expected.dims());
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let (error, norm) = (norm(&(got - expected).unwrap()), norm(expected));
        assert!(error < 1e-5 * norm, "off by {error} of {norm}");
    }

    #[test]
    fn the_region_module_computes_what_training_computes() {
        let config = config();
        let load = |source: Arc<dyn TensorSource>| RegionModule::load(&Weights::new(source), &config).unwrap();
        let (fast, trained) = (load(Arc::new(RandomWeights::new(5))), load(Arc::new(Trainable(RandomWeights::new(5)))));
        let shape = (1, config.vision.patches(), config.vision.hidden_size);
        let states: Vec<_> = (0..4).map(|_| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()).collect();
        let boxes = Tensor::new(&[[0.1f32, 0.2, 0.7, 0.6], [0.0, 0.0, 1.0, 1.0], [0.4, 0.9, 0.5, 1.0]], &Device::Cpu);
        let boxes = boxes.unwrap();

        let (maps, expected) = (fast.pyramid.forward(&states).unwrap(), trained.pyramid.forward(&states).unwrap());
        assert!(maps.iter().all(lies_by_place) && !expected.iter().any(lies_by_place));
        maps.iter().zip(&expected).for_each(|(got, expected)| assert_close(got, expected));

        let (rois, expected) = (fast.head.pool(&maps, &boxes).unwrap(), trained.head.pool(&expected, &boxes).unwrap());
        rois.iter().zip(&expected).for_each(|(got, expected)| assert_close(got, expected));
        let tokens = fast.head.forward(&rois, &boxes).unwrap();
        assert_close(&tokens, &trained.head.forward(&expected, &boxes).unwrap());
    }

    #[test]
    fn no_regions_are_no_error() {
        let config = config();
        let module = RegionModule::load(&Weights::new(Arc::new(RandomWeights::new(5))), &config).unwrap();
        let shape = (1, config.vision.patches(), config.vision.hidden_size);
        let states: Vec<_> =
            (0..4).map(|_| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap()).collect();
        let boxes = Tensor::zeros((0, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(module.forward(&states, &boxes).unwrap().dims(), [0, config.llama.hidden_size]);
    }
}
