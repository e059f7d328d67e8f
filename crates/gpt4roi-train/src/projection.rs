//! Image tokens that begin as words.
//!
//! LLaVA, which the published model starts from, first trains its projector alone, on pictures with captions, until the
//! language model can read a patch. A drawn scene says of each patch what it shows, and the language model of stage 0
//! has a vector for that: so the projector is found at once, by least squares.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use gpt4roi::Config;
use gpt4roi_data::{PatchLabel, Scene};

use crate::{
    error::{Result, TrainError},
    init::Initializer,
    language::KINDS,
    scenes::SceneSource,
    tower::Tower,
    words::UPDIMS,
};

/// A patch of background counts so often: there are several times as many of them.
const BACKGROUND: f64 = 0.3;

/// A share of each channel's mean square is added to it, against channels that hardly differ.
const RIDGE: f64 = 1e-4;

/// Replaces the projector by the linear map that comes nearest to giving each patch of the first `count` scenes the
/// vector of what it shows, as the language model reads it from a region, and 0 to background.
///
/// # Errors
/// If `taken` has no such vectors.
pub fn project(
    taken: &mut BTreeMap<String, Tensor>,
    initializer: &Initializer,
    config: &Config,
    scenes: &dyn SceneSource,
    count: u64,
) -> Result<()> {
    let (Some(kinds), Some(updims)) = (taken.get(KINDS), taken.get(UPDIMS)) else {
        return Err(TrainError::Value {
            stage: "init".into(),
            field: "project_over".into(),
            expected: format!("{KINDS} and {UPDIMS} in the checkpoints of `init`"),
            got: "none".into(),
        });
    };
    let words = kinds.matmul(&updims.t()?)?.to_vec2::<f32>()?;
    let tower = Tower::load(taken, initializer, config)?;
    let mut sums = Sums::new(config.vision.hidden_size, config.llama.hidden_size);
    for index in 0..count {
        let scene = scenes.scene(index)?;
        if let Some(patches) = tower.patches(&scene)?.last() {
            sums.add(&scene, patches, &words, config.vision.patch_size);
        }
    }
    let (weight, bias) = sums.solve()?;
    taken.insert("model.mm_projector.weight".into(), weight);
    taken.insert("model.mm_projector.bias".into(), bias);
    Ok(())
}

/// What least squares need to know of all pairs of a patch x, with a 1 behind its channels, and a word y.
struct Sums {
    channels: usize,    // of x, with the 1
    squares: Vec<f64>,  // Σ x·xᵀ, [channels, channels]
    products: Vec<f64>, // Σ x·yᵀ, [channels, width]
    width: usize,       // of y
}

impl Sums {
    fn new(patch: usize, width: usize) -> Self {
        let channels = patch + 1;
        Self { channels, squares: vec![0.0; channels * channels], products: vec![0.0; channels * width], width }
    }

    /// # Shapes
    /// patches `[patches, channels − 1]`, words `[kinds, width]`
    fn add(&mut self, scene: &Scene, patches: &[f32], words: &[Vec<f32>], patch_size: usize) {
        for (label, patch) in scene.patch_labels(patch_size).into_iter().zip(patches.chunks_exact(self.channels - 1)) {
            match label {
                PatchLabel::Kind(kind) => self.add_pair(patch, Some(&words[kind]), 1.0),
                PatchLabel::Background => self.add_pair(patch, None, BACKGROUND),
                PatchLabel::Ignore => (),
            }
        }
    }

    fn add_pair(&mut self, patch: &[f32], word: Option<&Vec<f32>>, weight: f64) {
        let x = || patch.iter().map(|x| f64::from(*x)).chain([1.0]);
        for (x1, row) in x().zip(self.squares.chunks_exact_mut(self.channels)) {
            row.iter_mut().zip(x()).for_each(|(sum, x2)| *sum += weight * x1 * x2);
        }
        let Some(word) = word else { return };
        for (x, row) in x().zip(self.products.chunks_exact_mut(self.width)) {
            row.iter_mut().zip(word).for_each(|(sum, y)| *sum += weight * x * f64::from(*y));
        }
    }

    /// The map and what it adds.
    ///
    /// # Shapes
    /// → `[width, channels − 1]`, `[width]`
    fn solve(mut self) -> Result<(Tensor, Tensor)> {
        for at in 0..self.channels {
            self.squares[at * self.channels + at] *= 1.0 + RIDGE;
        }
        solve_positive(&mut self.squares, &mut self.products, self.channels);
        let rows = self.products.iter().map(|x| *x as f32).collect::<Vec<_>>();
        let all = Tensor::from_vec(rows, (self.channels, self.width), &Device::Cpu)?;
        let weight = all.narrow(0, 0, self.channels - 1)?.t()?.contiguous()?;
        Ok((weight, all.get(self.channels - 1)?.contiguous()?))
    }
}

/// Replaces B by A⁻¹·B for a symmetric, positive A, which is lost (Cholesky's method).
///
/// # Shapes
/// A `[n, n]`, B `[n, m]`
fn solve_positive(a: &mut [f64], b: &mut [f64], n: usize) {
    let m = b.len() / n;
    // A = L·Lᵀ, with L in the lower half; on the way down B becomes L⁻¹·B.
    for row in 0..n {
        for column in 0..=row {
            let known: f64 = (0..column).map(|k| a[row * n + k] * a[column * n + k]).sum();
            let rest = a[row * n + column] - known;
            a[row * n + column] = if row == column { rest.sqrt() } else { rest / a[column * n + column] };
        }
        eliminate(a, b, (n, m), row, 0..row, |row, k| row * n + k);
    }
    for row in (0..n).rev() {
        eliminate(a, b, (n, m), row, row + 1..n, |row, k| k * n + row);
    }
}

/// Subtracts the known rows from one, as the factor at `place` says, and divides it by the diagonal.
fn eliminate(
    a: &[f64],
    b: &mut [f64],
    (n, m): (usize, usize),
    row: usize,
    known: std::ops::Range<usize>,
    place: impl Fn(usize, usize) -> usize,
) {
    for column in 0..m {
        let sum: f64 = known.clone().map(|k| a[place(row, k)] * b[k * m + column]).sum();
        b[row * m + column] = (b[row * m + column] - sum) / a[row * n + row];
    }
}

#[cfg(test)]
mod tests {
    use gpt4roi_data::Scenes;

    use super::*;
    use crate::{init::InitChoices, tiny};

    /// [4 2; 2 3]·[1 −1; 2 5] = [8 6; 8 13].
    #[test]
    fn a_system_of_two_is_solved() {
        let mut b = [8.0, 6.0, 8.0, 13.0];
        solve_positive(&mut [4.0, 2.0, 2.0, 3.0], &mut b, 2);
        for (got, expected) in b.iter().zip([1.0, -1.0, 2.0, 5.0]) {
            assert!((got - expected).abs() < 1e-12, "{b:?}");
        }
    }

    /// No linear map comes nearer: the error is perpendicular to every channel and to 1.
    #[test]
    fn the_error_is_perpendicular_to_the_patches() {
        let config = tiny::config(8);
        let initializer = Initializer::new(3, &config, InitChoices::default());
        let scenes = Scenes::new(tiny::stage(tiny::patches(), &["aux."]).scenes).unwrap();
        let draw = |name: &str, shape: &[usize]| initializer.tensor(name, shape, &Device::Cpu).unwrap();
        let kinds = draw(KINDS, &[scenes.kinds().len(), config.region.dim]);
        let updims = draw(UPDIMS, &[config.llama.hidden_size, config.region.dim]);
        let words = kinds.matmul(&updims.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let mut taken = BTreeMap::from([(KINDS.to_owned(), kinds), (UPDIMS.to_owned(), updims)]);
        project(&mut taken, &initializer, &config, &scenes, 12).unwrap();

        let (weight, bias) = (&taken["model.mm_projector.weight"], &taken["model.mm_projector.bias"]);
        let tower = Tower::load(&taken, &initializer, &config).unwrap();
        let (patch, width) = (config.vision.hidden_size, config.llama.hidden_size);
        let mut along = vec![0f64; (patch + 1) * width]; // Σ x·(error)ᵀ
        let mut size = 0f64;
        for index in 0..12 {
            let scene = scenes.scene(index);
            let patches = tower.patches(&scene).unwrap().pop().unwrap();
            let rows = Tensor::from_slice(&patches, (patches.len() / patch, patch), &Device::Cpu).unwrap();
            let tokens = rows.matmul(&weight.t().unwrap()).unwrap().broadcast_add(bias).unwrap();
            let labels = scene.patch_labels(config.vision.patch_size);
            let rows = patches.chunks_exact(patch).zip(tokens.to_vec2::<f32>().unwrap());
            for (label, (x, token)) in labels.into_iter().zip(rows) {
                let (word, weight) = match label {
                    PatchLabel::Kind(kind) => (words[kind].clone(), 1.0),
                    PatchLabel::Background => (vec![0.0; width], BACKGROUND),
                    PatchLabel::Ignore => continue,
                };
                for (x, along) in x.iter().chain(&[1.0]).zip(along.chunks_exact_mut(width)) {
                    for ((token, word), along) in token.iter().zip(&word).zip(along) {
                        *along += weight * f64::from(*x) * f64::from(word - token);
                        size += weight * f64::from(*x * word).abs();
                    }
                }
            }
        }
        let largest = along.iter().fold(0f64, |largest, x| largest.max(x.abs()));
        assert!(size > 0.0 && largest < 2e-3 * size / along.len() as f64, "{largest} of {size}");
    }

    #[test]
    fn vectors_of_kinds_are_needed() {
        let config = tiny::config(8);
        let initializer = Initializer::new(3, &config, InitChoices::default());
        let scenes = Scenes::new(tiny::stage(tiny::patches(), &["aux."]).scenes).unwrap();
        let error = project(&mut BTreeMap::new(), &initializer, &config, &scenes, 1).unwrap_err();
        assert!(error.to_string().contains("project_over"), "{error}");
    }
}
