//! What kinds look like to the tower.
//!
//! CLIP has put pictures and words into one space, and LLaVA, which the published model starts from, first trains its
//! projector alone, until the language model can read a patch. Both are had at once from scenes that say of each patch
//! what it shows, by linear discriminants (R. A. Fisher, "The Use of Multiple Measurements in Taxonomic Problems",
//! 1936): patches are whitened by what differs within a kind, and seen along the directions in which kinds differ most.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use gpt4roi_data::{PatchLabel, Scene};
use nalgebra::{Cholesky, DMatrix, DVector, SymmetricEigen};

use crate::{
    error::{Result, TrainError},
    scenes::SceneSource,
    tower::Tower,
};

/// A share of the channels' mean variance is added to each, against those that hardly differ within a kind.
const RIDGE: f64 = 1e-2;

/// Directions of looks, and where kinds lie along them.
#[derive(Clone, Debug)]
pub struct Looks {
    /// A vector per kind, of deviation 1 around 0, `[kinds, channels]`. Channels beyond the directions that so many
    /// kinds can differ in are 0.
    pub kinds: Tensor,
    /// From a patch in the tower's selected state to these channels, `[channels, width]`; patches of a kind come out
    /// about as long as the kind, those of the background around 0.
    pub weight: Tensor,
    /// And what is added, `[channels]`.
    pub bias: Tensor,
}

impl Looks {
    /// Measures the patches of the first `count` scenes of so many kinds.
    ///
    /// # Errors
    /// If a kind is in none of them, scenes can't be made, or the tower can't be run.
    pub(crate) fn measure(
        tower: &Tower,
        scenes: &dyn SceneSource,
        count: u64,
        kinds: usize,
        channels: usize,
    ) -> Result<Self> {
        let mut patches = Patches::new(tower.width());
        for index in 0..count {
            let scene = scenes.scene(index)?;
            if let Some(state) = tower.patches(&scene)?.last() {
                patches.add(&scene, state, tower.patch_size());
            }
        }
        let lack = patches.lack(kinds);
        let looks = if lack.is_none() { patches.looks(channels)? } else { None };
        looks.ok_or_else(|| TrainError::Value {
            stage: "init".into(),
            field: "words_over".into(),
            expected: "scenes that show each of two or more kinds, and some background".into(),
            got: format!("{count} scenes {}", lack.unwrap_or("in which kinds always look the same".into())),
        })
    }
}

/// What is summed over patches that show something.
struct Patches {
    width: usize,
    /// By kind: how many, and their sum.
    kinds: BTreeMap<usize, Sum>,
    background: Sum,
    /// Σ x·xᵀ over all.
    squares: DMatrix<f64>,
}

/// How many, and what they add up to.
struct Sum(f64, DVector<f64>);

impl Sum {
    fn new(width: usize) -> Self {
        Self(0.0, DVector::zeros(width))
    }

    fn add(&mut self, patch: &DVector<f64>) {
        self.0 += 1.0;
        self.1 += patch;
    }

    fn mean(&self) -> DVector<f64> {
        &self.1 / self.0
    }
}

impl Patches {
    fn new(width: usize) -> Self {
        Self { width, kinds: BTreeMap::new(), background: Sum::new(width), squares: DMatrix::zeros(width, width) }
    }

    /// # Shapes
    /// state `[patches, width]`
    fn add(&mut self, scene: &Scene, state: &[f32], patch_size: usize) {
        let mut rows = Vec::new();
        for (label, patch) in scene.patch_labels(patch_size).into_iter().zip(state.chunks_exact(self.width)) {
            let patch = DVector::from_iterator(self.width, patch.iter().map(|x| f64::from(*x)));
            match label {
                PatchLabel::Kind(kind) => {
                    self.kinds.entry(kind).or_insert_with(|| Sum::new(self.width)).add(&patch);
                    rows.push(patch);
                }
                PatchLabel::Background => self.background.add(&patch),
                PatchLabel::Ignore => (),
            }
        }
        if !rows.is_empty() {
            let rows = DMatrix::from_columns(&rows);
            self.squares.gemm(1.0, &rows, &rows.transpose(), 1.0);
        }
    }

    /// What else there would have to be.
    fn lack(&self, kinds: usize) -> Option<String> {
        let missing = (0..kinds).find(|kind| !self.kinds.contains_key(kind));
        match missing {
            Some(kind) => Some(format!("without kind {kind}")),
            None if kinds < 2 => Some(format!("of {kinds} kind")),
            None if self.background.0 == 0.0 => Some("without background".into()),
            None => None,
        }
    }

    /// Nothing if patches of a kind are all the same.
    fn looks(&self, channels: usize) -> Result<Option<Looks>> {
        let means: Vec<_> = self.kinds.values().map(Sum::mean).collect();
        let Some(whiten) = self.whiten(&means) else { return Ok(None) };
        let background = &whiten * self.background.mean();

        let mut seen = &whiten * DMatrix::from_columns(&means);
        let centre = seen.column_mean();
        seen.column_iter_mut().for_each(|mut mean| mean -= &centre);
        let directions = main_directions(&seen, channels.min(means.len() - 1));
        let kinds = directions.tr_mul(&seen);

        let length = (channels as f64).sqrt();
        let scale = length / (kinds.column_iter().map(|kind| kind.norm()).sum::<f64>() / kinds.ncols() as f64);
        let of_one_length: Vec<_> = kinds.column_iter().map(|kind| kind * (length / kind.norm())).collect();
        let offset = directions.tr_mul(&DMatrix::from_columns(&[background])) * -scale;
        Ok(Some(Looks {
            kinds: rows_of(&DMatrix::from_columns(&of_one_length), channels)?.t()?.contiguous()?,
            weight: rows_of(&(directions.tr_mul(&whiten) * scale), channels)?,
            bias: rows_of(&offset, channels)?.squeeze(1)?,
        }))
    }

    /// What makes the variance within kinds 1 in every direction; nothing if there is none.
    fn whiten(&self, means: &[DVector<f64>]) -> Option<DMatrix<f64>> {
        let mut within = self.squares.clone();
        let mut total = 0.0;
        for (Sum(count, _), mean) in self.kinds.values().zip(means) {
            within.ger(-count, mean, mean, 1.0);
            total += count;
        }
        within /= total;
        let ridge = RIDGE * within.trace() / self.width as f64;
        for channel in 0..self.width {
            within[(channel, channel)] += ridge;
        }
        Cholesky::new(within)?.l().solve_lower_triangular(&DMatrix::identity(self.width, self.width))
    }
}

/// The `count` directions along which columns are longest, longest first, as columns.
fn main_directions(columns: &DMatrix<f64>, count: usize) -> DMatrix<f64> {
    let SymmetricEigen { eigenvectors, eigenvalues } = SymmetricEigen::new(columns * columns.transpose());
    let mut order: Vec<usize> = (0..eigenvalues.len()).collect();
    order.sort_by(|a, b| eigenvalues[*b].total_cmp(&eigenvalues[*a]));
    DMatrix::from_columns(&order.iter().take(count).map(|at| eigenvectors.column(*at)).collect::<Vec<_>>())
}

/// A matrix as a tensor, with rows of 0 up to `count`.
fn rows_of(matrix: &DMatrix<f64>, count: usize) -> candle_core::Result<Tensor> {
    let rows: Vec<f32> = matrix.transpose().iter().map(|x| *x as f32).collect();
    let tensor = Tensor::from_vec(rows, matrix.shape(), &Device::Cpu)?;
    tensor.pad_with_zeros(0, 0, count - matrix.nrows())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        init::{InitChoices, Initializer},
        tiny,
    };

    /// Kinds differ along the first two channels; the third varies ten times as much within each of them.
    fn patches() -> Patches {
        let mut patches = Patches::new(4);
        for (kind, [x, y]) in [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]].into_iter().enumerate() {
            for at in 0..8 {
                let sign = |bit: usize| if at >> bit & 1 == 0 { 1.0 } else { -1.0 };
                let patch = DVector::from_vec(vec![x + 0.1 * sign(0), y + 0.1 * sign(1), 10.0 * sign(2), 0.1]);
                patches.kinds.entry(kind).or_insert_with(|| Sum::new(4)).add(&patch);
                patches.squares.ger(1.0, &patch, &patch, 1.0);
            }
        }
        patches.background.add(&DVector::from_vec(vec![0.0, 0.0, 3.0, 0.0]));
        patches
    }

    #[test]
    fn patches_come_out_as_their_kinds_whatever_else_they_show() {
        let looks = patches().looks(3).unwrap().unwrap();
        let kinds = looks.kinds.to_vec2::<f32>().unwrap();
        for (kind, [x, y]) in [[1f32, 0.0], [0.0, 1.0], [-1.0, -1.0]].into_iter().enumerate() {
            let patch = Tensor::new(&[[x], [y], [-10.0], [0.1]], &Device::Cpu).unwrap();
            let seen = looks.weight.matmul(&patch).unwrap().squeeze(1).unwrap().add(&looks.bias).unwrap();
            let seen = seen.to_vec1::<f32>().unwrap();
            let along = |other: &[f32]| seen.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
            let others = (0..3).filter(|other| *other != kind);
            let best = others.map(|other| along(&kinds[other])).fold(f32::MIN, f32::max);
            assert!(along(&kinds[kind]) > best + 2.0, "kind {kind}: {seen:?} among {kinds:?}");
            assert!((kinds[kind].iter().map(|x| x * x).sum::<f32>() - 3.0).abs() < 1e-4, "of deviation 1");
            assert_eq!(kinds[kind][2], 0.0, "three kinds differ in two directions");
        }
    }

    #[test]
    fn the_background_is_the_middle() {
        let looks = patches().looks(2).unwrap().unwrap();
        let patch = Tensor::new(&[[0f32], [0.0], [3.0], [0.0]], &Device::Cpu).unwrap();
        let seen = looks.weight.matmul(&patch).unwrap().squeeze(1).unwrap().add(&looks.bias).unwrap();
        assert!(seen.to_vec1::<f32>().unwrap().iter().all(|x| x.abs() < 1e-4), "{seen}");
    }

    #[test]
    fn kinds_that_no_scene_shows_are_asked_for() {
        let config = tiny::config(8);
        let initializer = Initializer::new(3, &config, InitChoices::default());
        let tower = Tower::load(&BTreeMap::new(), &initializer, &config).unwrap();
        let scenes = gpt4roi_data::Scenes::new(tiny::scenes()).unwrap();
        let error = Looks::measure(&tower, &scenes, 4, 200, 3).unwrap_err().to_string();
        assert!(error.contains("words_over") && error.contains("4 scenes without kind"), "{error}");
    }

    #[test]
    fn one_kind_and_no_background_are_not_enough() {
        assert_eq!(patches().lack(3), None);
        assert_eq!(patches().lack(1).unwrap(), "of 1 kind");
        assert_eq!(patches().lack(4).unwrap(), "without kind 3");
        let covered = Patches { background: Sum::new(4), ..patches() };
        assert_eq!(covered.lack(3).unwrap(), "without background");
    }
}
