//! Maps that lie place by place, all channels of a place together: what inference computes a pyramid in.
//!
//! In this layout the channels fill vector registers whatever a map's size, and a place is one stretch of memory.
//! Values are those of the kernels for `[channels, places]`.

use crate::{
    parallel::map_chunks,
    resize::{MapSize, Place, places},
};

/// Some channels of one map, `[height, width, channels]`.
#[derive(Clone, Copy, Debug)]
pub struct Channels<'a> {
    /// The map.
    pub map: &'a [f32],
    /// Its rows and columns.
    pub size: MapSize,
    /// The first of the channels.
    pub first: usize,
    /// How many.
    pub count: usize,
}

impl<'a> Channels<'a> {
    /// All channels of a map.
    pub fn all(map: &'a [f32], size: MapSize) -> Self {
        Self { map, size, first: 0, count: map.len() / size.area().max(1) }
    }

    /// `count` channels from `first` on.
    pub fn select(self, first: usize, count: usize) -> Self {
        Self { first: self.first + first, count, ..self }
    }

    fn at(&self, row: usize, column: usize) -> &'a [f32] {
        let channels = self.map.len() / self.size.area();
        &self.map[(row * self.size.width + column) * channels + self.first..][..self.count]
    }
}

/// Resizes all parts bilinearly, corners on corners, and puts their channels side by side.
///
/// # Shapes
/// out `[to.height, to.width, channels of all parts]`
///
/// # Panics
/// If the lengths do not fit, or a map is empty.
pub fn resize_channels(parts: &[Channels<'_>], to: MapSize, out: &mut [f32]) {
    let channels: usize = parts.iter().map(|part| part.count).sum();
    assert_eq!(out.len(), to.area() * channels, "{channels} channels, {to:?}");
    if out.is_empty() {
        return;
    }
    let lines: Vec<_> =
        parts.iter().map(|part| (places(part.size.height, to.height), places(part.size.width, to.width))).collect();
    map_chunks(out, to.width * channels, |row, out| {
        for (column, mut out) in out.chunks_exact_mut(channels).enumerate() {
            for (part, (rows, columns)) in parts.iter().zip(&lines) {
                let (now, later) = out.split_at_mut(part.count);
                if part.size == to {
                    now.copy_from_slice(part.at(row, column));
                } else {
                    blend(*part, rows[row], columns[column], now);
                }
                out = later;
            }
        }
    });
}

/// One place of a resized map.
fn blend(part: Channels<'_>, row: Place, column: Place, out: &mut [f32]) {
    let corner = |row, column| part.at(row, column);
    let left = [corner(row.low, column.low), corner(row.high, column.low)];
    let right = [corner(row.low, column.high), corner(row.high, column.high)];
    blend_corners(left, right, row.share, column.share, out);
}

wide! {
    fn blend_corners(left: [&[f32]; 2], right: [&[f32]; 2], down: f32, across: f32, out: &mut [f32]) {
        let length = out.len();
        let ([a, b], [c, d]) = (left.map(|x| &x[..length]), right.map(|x| &x[..length]));
        for i in 0..length {
            let left = a[i] * (1.0 - down) + b[i] * down;
            let right = c[i] * (1.0 - down) + d[i] * down;
            out[i] = left * (1.0 - across) + right * across;
        }
    }
}

/// GroupNorm, then ReLU, of one map in its place.
///
/// # Shapes
/// map `[places, weight.len()]`, bias as weight
///
/// # Panics
/// If the lengths do not fit, or the groups do not divide the channels.
pub fn group_norm_relu_channels(map: &mut [f32], weight: &[f32], bias: &[f32], groups: usize, eps: f32) {
    let channels = weight.len();
    assert!(bias.len() == channels && groups > 0 && channels.is_multiple_of(groups), "{groups} groups of {channels}");
    assert!(map.len().is_multiple_of(channels.max(1)), "{} values of {channels} channels", map.len());
    if map.is_empty() {
        return;
    }
    let moments = Moments::of(map, channels, groups);
    let affine: Vec<(f32, f32)> = (0..channels)
        .map(|channel| {
            let (mean, variance) = moments.group(channel / (channels / groups));
            let scale = weight[channel] / (variance as f32 + eps).sqrt();
            (scale, bias[channel] - mean as f32 * scale)
        })
        .collect();
    let (scale, shift): (Vec<f32>, Vec<f32>) = affine.into_iter().unzip();
    map_chunks(map, STRETCH * channels, |_, map| scale_shift_relu(map, &scale, &shift));
}

/// Places that one task takes: few enough to be read twice from the cache.
const STRETCH: usize = 64;

wide! {
    fn scale_shift_relu(map: &mut [f32], scale: &[f32], shift: &[f32]) {
        for values in map.chunks_exact_mut(scale.len()) {
            for ((value, &scale), &shift) in values.iter_mut().zip(scale).zip(shift) {
                let normal = *value * scale + shift;
                // `max` would hide what is no number.
                *value = if normal < 0.0 { 0.0 } else { normal };
            }
        }
    }
}

/// Per group the sum of the values, and of their squared distances from its mean.
struct Moments {
    count: f64,
    groups: Vec<(f64, f64)>,
}

impl Moments {
    /// Each stretch of places by its own means, so that nothing cancels; then put together. Source: Chan, Golub and
    /// LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
    fn of(map: &mut [f32], channels: usize, groups: usize) -> Self {
        let per_group = channels / groups;
        let stretches = map_chunks(map, STRETCH * channels, |_, map| {
            let (sums, squares) = channel_moments(map, channels);
            let places = (map.len() / channels) as f64;
            let group = |group: usize| {
                let channels = group * per_group..(group + 1) * per_group;
                channels.map(|channel| (places, sums[channel], squares[channel])).fold((0.0, 0.0, 0.0), join)
            };
            (0..groups).map(group).collect::<Vec<_>>()
        });
        let group = |group: usize| stretches.iter().map(|stretch| stretch[group]).fold((0.0, 0.0, 0.0), join);
        let groups: Vec<_> = (0..groups).map(group).collect();
        Self { count: groups[0].0, groups: groups.into_iter().map(|(_, sum, squares)| (sum, squares)).collect() }
    }

    /// Mean and variance.
    fn group(&self, group: usize) -> (f64, f64) {
        let (sum, squares) = self.groups[group];
        (sum / self.count, squares / self.count)
    }
}

/// Two samples as one: count, sum, squared distances from the mean.
fn join((m, a, s): (f64, f64, f64), (n, b, t): (f64, f64, f64)) -> (f64, f64, f64) {
    if m == 0.0 {
        return (n, b, t);
    }
    let apart = a / m - b / n;
    (m + n, a + b, s + t + apart * apart * m * n / (m + n))
}

/// Per channel the sum, and the squared distances from the mean.
fn channel_moments(map: &[f32], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut sums, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
    add_places(map, &mut sums);
    let share = channels as f32 / map.len() as f32;
    let means: Vec<f32> = sums.iter().map(|sum| sum * share).collect();
    add_squares(map, &means, &mut squares);
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
    (wide(sums), wide(squares))
}

wide! {
    fn add_places(map: &[f32], sums: &mut [f32]) {
        for values in map.chunks_exact(sums.len()) {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
    }
}

wide! {
    fn add_squares(map: &[f32], means: &[f32], squares: &mut [f32]) {
        for values in map.chunks_exact(means.len()) {
            for ((square, &value), &mean) in squares.iter_mut().zip(values).zip(means) {
                *square += (value - mean) * (value - mean);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        GroupNormShape, group_norm, relu, resize_bilinear,
        test_values::{assert_close, values},
    };
    use proptest::prelude::*;

    /// `[rows, columns]` → `[columns, rows]`
    fn turn(x: &[f32], rows: usize) -> Vec<f32> {
        let columns = x.len() / rows;
        (0..columns).flat_map(|j| (0..rows).map(move |i| x[i * columns + j])).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn parts_are_resized_as_maps_of_channels_are(
            sizes in prop::collection::vec((1usize..9, 1usize..9, 1usize..7, 0usize..5), 1..4),
            (height, width) in (1usize..12, 1usize..12),
            seed: u64,
        ) {
            let to = MapSize { height, width };
            let maps: Vec<_> = sizes.iter().map(|&(h, w, count, before)| {
                (MapSize { height: h, width: w }, count, before, values(h * w * (count + before), seed ^ h as u64))
            }).collect();
            let parts: Vec<_> = maps.iter().map(|(size, count, before, map)| {
                Channels::all(map, *size).select(*before, *count)
            }).collect();
            let channels: usize = sizes.iter().map(|size| size.2).sum();
            let mut out = vec![f32::NAN; to.area() * channels];
            resize_channels(&parts, to, &mut out);

            let expected = maps.iter().flat_map(|(size, count, before, map)| {
                let rows = turn(map, size.area())[before * size.area()..].to_vec();
                let mut resized = vec![0.0; count * to.area()];
                resize_bilinear(&rows, *size, to, &mut resized);
                resized
            });
            assert_close(&turn(&out, to.area()), &expected.collect::<Vec<_>>(), 1e-5);
        }

        #[test]
        fn norm_and_relu_agree_with_those_of_maps_of_channels(
            (groups, per_group, area) in (1usize..5, 1usize..9, 1usize..300), offset in -50f32..50.0, seed: u64,
        ) {
            let channels = groups * per_group;
            let mut map: Vec<f32> = values(area * channels, seed).iter().map(|x| x + offset).collect();
            let (weight, bias) = (values(channels, seed ^ 1), values(channels, seed ^ 2));
            let mut normal = vec![0.0; map.len()];
            let shape = GroupNormShape { channels, groups, area };
            group_norm(&turn(&map, area), &weight, &bias, shape, 1e-2, &mut normal);
            let mut expected = vec![0.0; map.len()];
            relu(&normal, &mut expected);
            group_norm_relu_channels(&mut map, &weight, &bias, groups, 1e-2);
            assert_close(&turn(&map, area), &expected, 1e-3);
        }
    }

    #[test]
    fn what_is_no_number_is_not_hidden() {
        let mut map = [1.0, f32::NAN, -1.0, 2.0];
        group_norm_relu_channels(&mut map, &[1.0; 2], &[0.0; 2], 2, 1e-5);
        assert!(map[1].is_nan() && map[3].is_nan() && !map[0].is_nan(), "{map:?}");
    }
}
