//! From a point to the box of what lies there.
//!
//! GPT4RoI was trained on boxes, and its announcement promises points. A point becomes a box by
//! asking the vision tower which patches look like the one under the point: patches of one thing
//! have similar hidden states. Three steps:
//!
//! 1. Cosine similarity of every patch with the point's, after the mean over all patches was taken
//!    off; what all patches share would make them all look alike.
//! 2. A flood fill from the point's patch over neighbours above a threshold, which is a share of how
//!    well the best few patches match: an evenly coloured thing and a busy one get what they need.
//! 3. A patch is a coarse unit, so each edge of the box is moved to where the similarity, linearly
//!    interpolated between the centres of the last patch inside and the first outside, crosses the
//!    threshold.
//!
//! The state is the last but one of the pyramid's: the tower's last states mix in what lies around.
//!
//! A model that was trained on small boxes around points needs no growing; [`PointBox::Around`] gives
//! it what it knows.

use candle_core::{Result as TensorResult, Tensor};

use crate::{
    bbox::{BBox, BoxError, Point},
    config::RegionConfig,
    error::Result,
    model::ImageFeatures,
};

/// How a point becomes a box.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PointBox {
    /// A box grows over what looks alike.
    Grown(Growth),
    /// A small box with the point in its middle, as far as the picture reaches.
    Around {
        /// From the point to each side, as a fraction of width and height; above 0.
        reach: f64,
    },
}

impl Default for PointBox {
    fn default() -> Self {
        Self::Grown(Growth::default())
    }
}

impl PointBox {
    /// As a model's training did it.
    pub fn of(config: &RegionConfig) -> Self {
        config.point_reach.map_or_else(Self::default, |reach| Self::Around { reach })
    }

    /// Refuses what makes no box around any point.
    ///
    /// # Errors
    /// If `reach` is no size of a box.
    pub fn check(&self) -> std::result::Result<(), BoxError> {
        match self {
            Self::Grown(_) => Ok(()),
            Self::Around { reach } => around(Point { x: 0.5, y: 0.5 }, *reach).map(drop),
        }
    }
}

/// How far a box grows around a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// A patch belongs to the thing if its similarity exceeds this share of the best patches'.
    pub threshold: f32,
    /// How many best patches, the point's own left out, say what a good match is.
    pub best: usize,
    /// The box reaches at least so far from the point to each side, in patches, as far as the picture does.
    pub least: f64,
}

impl Growth {
    /// Threshold and count did best among thirty variants on rendered scenes, where the true size of
    /// every object is known.
    pub const STANDARD: Self = Self { threshold: 0.6, best: 4, least: 0.5 };
}

impl Default for Growth {
    fn default() -> Self {
        Self::STANDARD
    }
}

/// The box of what lies at a point of an encoded picture.
///
/// # Errors
/// If the engine fails, or if `reach` is no size of a box.
pub fn box_at(features: &ImageFeatures, point: Point, point_box: &PointBox) -> Result<BBox> {
    let growth = match point_box {
        PointBox::Grown(growth) => growth,
        PointBox::Around { reach } => return Ok(around(point, *reach)?),
    };
    let state = &features.states[features.states.len().saturating_sub(2)];
    let patches = state.dim(1)? - 1;
    let grid = patches.isqrt();
    let similarity = similarity(&state.narrow(1, 1, patches)?.squeeze(0)?, patch_at(point, grid))?;
    Ok(BBox::from_normalized(grow(&similarity, grid, point, growth))?)
}

fn around(Point { x, y }: Point, reach: f64) -> std::result::Result<BBox, BoxError> {
    BBox::from_normalized_clipped([x - reach, y - reach, x + reach, y + reach])
}

/// The patch under a point, row by row from the upper left.
fn patch_at(point: Point, grid: usize) -> usize {
    let place = |fraction: f64| ((fraction * grid as f64) as usize).min(grid - 1);
    place(point.y) * grid + place(point.x)
}

/// Cosine of each patch's centred state with that of patch `seed`.
///
/// # Shapes
/// states `[patches, Cv]` → `[patches]`
fn similarity(states: &Tensor, seed: usize) -> TensorResult<Vec<f32>> {
    let states = states.to_dtype(candle_core::DType::F32)?;
    let centred = states.broadcast_sub(&states.mean_keepdim(0)?)?;
    let length = (centred.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-6)?;
    let unit = centred.broadcast_div(&length)?;
    unit.matmul(&unit.narrow(0, seed, 1)?.t()?)?.flatten_all()?.to_vec1()
}

/// Grows a box over a square grid of similarities; the last two of the three steps above.
///
/// # Shapes
/// similarity `[grid·grid]`, row by row → normalised xyxy, never empty, with the point in it
pub fn grow(similarity: &[f32], grid: usize, point: Point, growth: &Growth) -> [f64; 4] {
    let seed = patch_at(point, grid);
    let threshold = growth.threshold * typical_match(similarity, seed, growth.best);
    let inside = flood_fill(similarity, grid, seed, threshold);
    let edge = |axis: Axis, forward: bool| edge(similarity, grid, &inside, threshold, axis, forward);
    let least = growth.least;
    let low = |edge: f64, at: f64| edge.min(at * grid as f64 - least).max(0.0) / grid as f64;
    let high = |edge: f64, at: f64| edge.max(at * grid as f64 + least).min(grid as f64) / grid as f64;
    [
        low(edge(Axis::X, false), point.x),
        low(edge(Axis::Y, false), point.y),
        high(edge(Axis::X, true), point.x),
        high(edge(Axis::Y, true), point.y),
    ]
}

/// The mean similarity of the best patches, the seed left out.
fn typical_match(similarity: &[f32], seed: usize, best: usize) -> f32 {
    let mut others: Vec<f32> =
        similarity.iter().enumerate().filter(|&(patch, _)| patch != seed).map(|(_, &value)| value).collect();
    others.sort_by(|a, b| b.total_cmp(a));
    others.truncate(best.max(1));
    if others.is_empty() { 1.0 } else { others.iter().sum::<f32>() / others.len() as f32 }
}

/// The patches above the threshold that hang together with the seed by their sides.
fn flood_fill(similarity: &[f32], grid: usize, seed: usize, threshold: f32) -> Vec<bool> {
    let mut inside = vec![false; grid * grid];
    inside[seed] = true;
    let mut open = vec![seed];
    while let Some(patch) = open.pop() {
        for axis in [Axis::X, Axis::Y] {
            for forward in [false, true] {
                if let Some(next) = axis.neighbour(patch, grid, forward)
                    && !inside[next]
                    && similarity[next] > threshold
                {
                    inside[next] = true;
                    open.push(next);
                }
            }
        }
    }
    inside
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    X,
    Y,
}

impl Axis {
    fn place(self, patch: usize, grid: usize) -> usize {
        match self {
            Self::X => patch % grid,
            Self::Y => patch / grid,
        }
    }

    fn neighbour(self, patch: usize, grid: usize, forward: bool) -> Option<usize> {
        let step = if self == Self::X { 1 } else { grid };
        match (self.place(patch, grid), forward) {
            (0, false) => None,
            (_, false) => Some(patch - step),
            (place, true) if place + 1 == grid => None,
            (_, true) => Some(patch + step),
        }
    }
}

/// One edge of the box, in patches: the furthest place at which the similarity falls through the
/// threshold, or the picture's edge.
fn edge(similarity: &[f32], grid: usize, inside: &[bool], threshold: f32, axis: Axis, forward: bool) -> f64 {
    let reach = |patch: usize| {
        let centre = axis.place(patch, grid) as f64 + 0.5;
        let away = match axis.neighbour(patch, grid, forward) {
            None => 0.5,
            Some(next) => crossing(similarity[patch], similarity[next], threshold),
        };
        if forward { centre + away } else { centre - away }
    };
    let reaches = (0..grid * grid).filter(|&patch| inside[patch]).map(reach);
    if forward { reaches.fold(0.0, f64::max) } else { reaches.fold(grid as f64, f64::min) }
}

/// How far from one centre towards the next the similarity reaches the threshold, 0..1; a neighbour
/// that is itself above it stands for the whole way.
fn crossing(here: f32, next: f32, threshold: f32) -> f64 {
    if next >= threshold || here <= next {
        return if next >= threshold { 1.0 } else { 0.5 };
    }
    f64::from(((here - threshold) / (here - next)).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grid drawn with one character per patch: `#` 1, `+` 0.8, `.` 0.
    fn picture(rows: &[&str]) -> (Vec<f32>, usize) {
        let value = |c| match c {
            '#' => 1.0,
            '+' => 0.8,
            _ => 0.0,
        };
        (rows.iter().flat_map(|row| row.chars().map(value)).collect(), rows.len())
    }

    /// The centre of a patch.
    fn at(column: usize, row: usize, grid: usize) -> Point {
        let place = |index: usize| (index as f64 + 0.5) / grid as f64;
        Point { x: place(column), y: place(row) }
    }

    #[track_caller]
    fn assert_box(got: [f64; 4], grid: usize, expected_patches: [f64; 4]) {
        for (got, expected) in got.into_iter().zip(expected_patches) {
            assert!((got * grid as f64 - expected).abs() < 1e-5, "{got:?} of {grid}: expected {expected_patches:?}");
        }
    }

    #[test]
    fn a_clear_cut_object_gets_its_patches() {
        let (similarity, grid) = picture(&[
            "........", //
            "..###...", "..###...", "..###...", ".......#", "......##", "........", "........",
        ]);
        // Threshold 0.5: between 1 and 0 it is crossed half way from centre to centre, on the patch's edge.
        let growth = Growth { threshold: 0.5, ..Growth::default() };
        assert_box(grow(&similarity, grid, at(3, 2, grid), &growth), grid, [2.0, 1.0, 5.0, 4.0]);
        // The other object looks the same but does not hang together with the first.
        assert_box(grow(&similarity, grid, at(7, 5, grid), &growth), grid, [6.0, 4.0, 8.0, 6.0]);
    }

    #[test]
    fn edges_fall_between_patches() {
        let (similarity, grid) = picture(&["......", ".####.", ".####.", ".####.", "......", "......"]);
        // From 1 at a centre to 0 at the next: a threshold of 0.25 is crossed at three quarters, 0.75 at one.
        for (threshold, out) in [(0.25, 0.25), (0.5, 0.0), (0.75, -0.25)] {
            let growth = Growth { threshold, least: 0.0, ..Growth::default() };
            let expected = [1.0 - out, 1.0 - out, 5.0 + out, 4.0 + out];
            assert_box(grow(&similarity, grid, at(2, 2, grid), &growth), grid, expected);
        }
    }

    #[test]
    fn a_weak_match_everywhere_lowers_the_threshold() {
        let (similarity, grid) = picture(&["....", ".#+.", ".++.", "...."]);
        // The three best others match 0.8, 0.8, 0.8: with a share of 0.6 the threshold is 0.48.
        let growth = Growth { best: 3, ..Growth::default() };
        let got = grow(&similarity, grid, at(1, 1, grid), &growth);
        assert!(got[2] * 4.0 > 2.5 && got[3] * 4.0 > 2.5, "{got:?}");
    }

    #[test]
    fn the_box_always_holds_the_point_and_an_area() {
        let shapes: [(Vec<f32>, usize); 5] = [
            picture(&["....", ".#..", "....", "...."]),
            picture(&["####", "####", "####", "####"]),
            (vec![f32::NAN; 16], 4),
            (vec![-1.0; 16], 4),
            (vec![1.0], 1),
        ];
        for (similarity, grid) in shapes {
            for (x, y) in [(0.0, 0.0), (1.0, 1.0), (0.375, 0.375), (0.26, 0.49), (0.999, 0.001)] {
                let [x1, y1, x2, y2] = grow(&similarity, grid, Point { x, y }, &Growth::default());
                assert!(0.0 <= x1 && x1 <= x && x <= x2 && x2 <= 1.0 && x1 < x2, "{x1} {x} {x2}");
                assert!(0.0 <= y1 && y1 <= y && y <= y2 && y2 <= 1.0 && y1 < y2, "{y1} {y} {y2}");
            }
        }
    }

    #[test]
    fn a_box_around_a_point_ends_with_the_picture() {
        let got = around(Point { x: 0.25, y: 1.0 }, 0.125).unwrap();
        assert_eq!(got.normalized(), [0.125, 0.875, 0.375, 1.0]);
        for reach in [0.0, -1.0, f64::NAN] {
            assert!(around(Point { x: 0.5, y: 0.5 }, reach).is_err(), "{reach}");
        }
    }

    #[test]
    fn similarity_is_the_cosine_of_centred_states() {
        let device = candle_core::Device::Cpu;
        // The mean is (10, 10); centred: (1, 0), (−1, 0), (0, 2), (0, −2).
        let states = Tensor::new(&[[11f32, 10.0], [9.0, 10.0], [10.0, 12.0], [10.0, 8.0]], &device).unwrap();
        let got = similarity(&states, 0).unwrap();
        for (got, expected) in got.into_iter().zip([1.0, -1.0, 0.0, 0.0]) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }
}
