//! Gives the layers behind the tower inputs of mean 0 and deviation 1.
//!
//! A tower trained from nothing has hidden states of any size. Two things change that without
//! changing what the tower computes. First, its residual stream is scaled as a whole: whatever writes
//! to it is divided by a number, and every layer reads it through a LayerNorm, which does not notice.
//! Then mean and deviation of each channel are folded into the fresh weights of the layers that read
//! the states.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use gpt4roi::Config;

use crate::{error::Result, init::Initializer, scenes::SceneSource, tower::Tower};

/// The spread of a channel is taken to be at least this.
const LEAST_DEVIATION: f64 = 1e-3;

/// Measures the tower in `taken` over the first `count` scenes, scales it, and adds standardising
/// weights for the input convolutions and the projector where `taken` has none.
pub fn standardize(
    taken: &mut BTreeMap<String, Tensor>,
    initializer: &Initializer,
    config: &Config,
    scenes: &dyn SceneSource,
    count: u64,
) -> Result<()> {
    let mut levels = measure(taken, initializer, config, scenes, count)?;
    let scale = overall(&levels);
    for (name, tensor) in taken.iter_mut().filter(|(name, _)| writes_to_stream(name)) {
        *tensor = (&*tensor / scale).map_err(|source| named(name, source))?;
    }
    levels.iter_mut().flatten().for_each(|channel| channel.divide(scale));
    let convolutions = (0..levels.len()).map(|level| format!("model.spi_module.mlvl_fuse.input_conv.{level}"));
    let (dim, hidden, seen) = (config.region.dim, config.llama.hidden_size, config.vision.hidden_size);
    for (name, channels) in convolutions.zip(&levels) {
        fold(taken, initializer, &name, &[dim, config.input_width(), 1, 1], channels)?;
    }
    if let Some(last) = levels.last() {
        fold(taken, initializer, "model.mm_projector", &[hidden, seen], last)?;
    }
    Ok(())
}

/// Mean and variance of one channel.
#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    mean: f64,
    variance: f64,
}

impl Channel {
    fn divide(&mut self, scale: f64) {
        self.mean /= scale;
        self.variance /= scale * scale;
    }

    fn deviation(&self) -> f64 {
        self.variance.sqrt().max(LEAST_DEVIATION)
    }
}

/// For each level, each channel over all patches of all scenes.
fn measure(
    taken: &BTreeMap<String, Tensor>,
    initializer: &Initializer,
    config: &Config,
    scenes: &dyn SceneSource,
    count: u64,
) -> Result<Vec<Vec<Channel>>> {
    let tower = Tower::load(taken, initializer, config)?;
    let width = config.vision.hidden_size;
    let mut sums = vec![vec![(0f64, 0f64); width]; tower.levels()];
    for index in 0..count {
        for (sums, patches) in sums.iter_mut().zip(tower.patches(&scenes.scene(index)?)?) {
            for row in patches.chunks_exact(width) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    sum.0 += f64::from(value);
                    sum.1 += f64::from(value) * f64::from(value);
                }
            }
        }
    }
    let rows = (count as usize * config.vision.patches()).max(1) as f64;
    let channel = |(sum, squares): (f64, f64)| {
        let mean = sum / rows;
        Channel { mean, variance: (squares / rows - mean * mean).max(0.0) }
    };
    Ok(sums.into_iter().map(|sums| sums.into_iter().map(channel).collect()).collect())
}

/// The geometric mean of the levels' sizes.
fn overall(levels: &[Vec<Channel>]) -> f64 {
    let size = |level: &Vec<Channel>| {
        let square = level.iter().map(|channel| channel.variance + channel.mean * channel.mean).sum::<f64>();
        (square / level.len() as f64).sqrt().max(LEAST_DEVIATION)
    };
    (levels.iter().map(|level| size(level).ln()).sum::<f64>() / levels.len().max(1) as f64).exp()
}

/// Whether a tensor of the tower adds to its residual stream, or begins it.
fn writes_to_stream(name: &str) -> bool {
    name.starts_with("vision_model.")
        && ["pre_layrnorm.", "self_attn.out_proj.", "mlp.fc2."].iter().any(|part| name.contains(part))
}

/// Adds `name`'s fresh weight and bias so that they standardise the first columns they read.
fn fold(
    taken: &mut BTreeMap<String, Tensor>,
    initializer: &Initializer,
    name: &str,
    shape: &[usize],
    channels: &[Channel],
) -> Result<()> {
    let (weight_name, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
    if taken.contains_key(&weight_name) {
        return Ok(());
    }
    let read = |name: &str, shape: &[usize]| -> candle_core::Result<Vec<f32>> {
        initializer.tensor(name, shape, &Device::Cpu)?.flatten_all()?.to_vec1()
    };
    let (mut weight, mut bias) = (read(&weight_name, shape)?, read(&bias_name, &shape[..1])?);
    let columns = weight.len() / shape[0];
    for (row, bias) in weight.chunks_exact_mut(columns).zip(&mut bias) {
        for (weight, channel) in row.iter_mut().zip(channels) {
            *weight = (f64::from(*weight) / channel.deviation()) as f32;
            *bias -= (f64::from(*weight) * channel.mean) as f32;
        }
    }
    taken.insert(weight_name, Tensor::from_vec(weight, shape, &Device::Cpu)?);
    taken.insert(bias_name, Tensor::from_vec(bias, shape[0], &Device::Cpu)?);
    Ok(())
}

fn named(name: &str, source: candle_core::Error) -> gpt4roi::weights::WeightsError {
    gpt4roi::weights::WeightsError::Tensor { name: name.into(), source }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gpt4roi::{
        Image,
        clip::ClipVision,
        weights::{TensorSource, Weights},
    };
    use gpt4roi_data::Scenes;

    use super::*;
    use crate::{init::InitChoices, parameters::Parameters, tiny};

    const SCENES: u64 = 4;

    /// The patches of one level over all scenes.
    fn states(taken: &BTreeMap<String, Tensor>, initializer: &Initializer, level: usize) -> Tensor {
        let config = tiny::config(8);
        let source = Arc::new(Parameters::new(Vec::new(), taken.clone(), initializer.clone(), &Device::Cpu));
        let states = config.level_states().unwrap();
        let clip = ClipVision::load(&Weights::new(source), &config.vision, *states.last().unwrap()).unwrap();
        let scenes = scenes();
        let patches: Vec<Tensor> = (0..SCENES)
            .map(|index| {
                let pixels = Image::from_rgb(scenes.scene(index).image).pixel_values(&config.vision, &Device::Cpu);
                let all = clip.forward(&pixels.unwrap()).unwrap();
                all[states[level]].squeeze(0).unwrap().narrow(0, 1, config.vision.patches()).unwrap()
            })
            .collect();
        Tensor::cat(&patches, 0).unwrap()
    }

    fn scenes() -> Scenes {
        Scenes::new(tiny::scenes()).unwrap()
    }

    #[test]
    fn the_projector_reads_standardised_states_of_the_same_tower() {
        let config = tiny::config(8);
        let initializer = Initializer::new(5, &config, InitChoices::default());
        // A tower whose stream is loud: all its tensors as drawn, what writes to the stream ten times that.
        let source = Arc::new(Parameters::new(Vec::new(), BTreeMap::new(), initializer.clone(), &Device::Cpu));
        ClipVision::load(&Weights::new(source.clone()), &config.vision, 4).unwrap();
        let mut taken: BTreeMap<_, _> = source.all().into_iter().map(|(name, p)| (name, p.tensor)).collect();
        for (_, tensor) in taken.iter_mut().filter(|(name, _)| writes_to_stream(name)) {
            *tensor = (&*tensor * 10.0).unwrap();
        }
        let before = states(&taken, &initializer, 1);
        standardize(&mut taken, &initializer, &config, &scenes(), SCENES).unwrap();
        let after = states(&taken, &initializer, 1);

        // The tower computes the same up to a number.
        let ratio = (before.sqr().unwrap().mean_all().unwrap() / after.sqr().unwrap().mean_all().unwrap()).unwrap();
        let ratio = f64::from(ratio.to_scalar::<f32>().unwrap()).sqrt();
        let difference = ((before / ratio).unwrap() - &after).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-3, "{difference}");

        // What the projector makes of it has mean 0, and the spread of weights N(0, 0.02²) on 16 inputs of variance 1.
        let source = Arc::new(Parameters::new(Vec::new(), taken, initializer.clone(), &Device::Cpu));
        let weight = source.tensor("model.mm_projector.weight", &[16, 16]).unwrap();
        let bias = source.tensor("model.mm_projector.bias", &[16]).unwrap();
        let tokens = after.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        for mean in tokens.mean(0).unwrap().to_vec1::<f32>().unwrap() {
            assert!(mean.abs() < 1e-4, "{mean}");
        }
        let whitened = initializer.tensor("model.mm_projector.weight", &[16, 16], &Device::Cpu).unwrap();
        let deviation = after.var(0).unwrap().sqrt().unwrap();
        let rescaled = weight.broadcast_mul(&deviation).unwrap();
        let difference = (rescaled / whitened).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // `var` divides by one patch less than there are: √(16/15).
        assert!(difference.iter().all(|ratio| (ratio - 1.0328).abs() < 1e-2), "{difference:?}");
    }
}
