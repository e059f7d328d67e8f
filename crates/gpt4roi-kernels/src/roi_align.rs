//! RoIAlign with mmcv's `aligned=True`: averages of bilinear samples on an even grid in each box.
//!
//! A bilinear sample is a weighted sum of rows, then of columns, and so is the average over a bin.
//! Boxes are therefore taken in two steps, columns first; channels lie innermost, so that each step
//! is a sum of vectors.

use crate::parallel::{map_chunks, map_indices};

/// The dimensions of one pooling.
#[derive(Clone, Copy, Debug)]
pub struct RoiAlignShape {
    /// Channels of the map.
    pub channels: usize,
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
    /// Bins along each side of a box.
    pub size: usize,
    /// Sample points per bin along each axis, at least 1.
    pub sampling_ratio: usize,
    /// From the boxes' coordinates to the map's.
    pub spatial_scale: f32,
}

impl RoiAlignShape {
    fn check(&self, map: usize, boxes: usize, out: usize) {
        assert!(self.sampling_ratio > 0 && self.size > 0 && self.channels > 0, "{self:?}");
        assert_eq!(map, self.channels * self.height * self.width, "{self:?}");
        assert_eq!(out, boxes * self.channels * self.size * self.size, "{boxes} boxes, {self:?}");
    }
}

/// Pools every box out of the map.
///
/// # Shapes
/// map `[channels, height, width]`, boxes xyxy, out `[boxes, channels, size, size]`
///
/// # Panics
/// If the lengths do not fit.
pub fn roi_align(map: &[f32], boxes: &[[f32; 4]], shape: RoiAlignShape, out: &mut [f32]) {
    shape.check(map.len(), boxes.len(), out.len());
    if out.is_empty() || map.is_empty() {
        out.fill(0.0);
        return;
    }
    let RoiAlignShape { channels, size, .. } = shape;
    let pixels = transpose(map, channels, shape.height * shape.width); // [H, W, C]
    map_chunks(out, channels * size * size, |index, out| {
        let mut pooled = vec![0.0; out.len()]; // [size, size, C]
        pool(&pixels, &boxes[index], shape, &mut pooled);
        transpose_to(&pooled, size * size, channels, out);
    });
}

/// [`roi_align`] in the layout of [`Channels`](crate::Channels).
///
/// # Shapes
/// map `[height, width, channels]`, boxes xyxy, out `[boxes, size, size, channels]`
///
/// # Panics
/// If the lengths do not fit.
pub fn roi_align_channels(map: &[f32], boxes: &[[f32; 4]], shape: RoiAlignShape, out: &mut [f32]) {
    shape.check(map.len(), boxes.len(), out.len());
    out.fill(0.0);
    if !map.is_empty() {
        map_chunks(out, shape.channels * shape.size * shape.size, |index, out| pool(map, &boxes[index], shape, out));
    }
}

/// Adds one box of a map `[H, W, C]` to `[size, size, C]`.
fn pool(pixels: &[f32], roi: &[f32; 4], shape: RoiAlignShape, pooled: &mut [f32]) {
    let RoiAlignShape { channels, size, width, .. } = shape;
    let (rows, columns) = bins(roi, shape);
    let mut line = vec![0.0; size * channels];
    for row in touched(&rows) {
        line.fill(0.0);
        let pixels = &pixels[row * width * channels..][..width * channels];
        for (bin, target) in columns.iter().zip(line.chunks_exact_mut(channels)) {
            bin.iter().for_each(|tap| add_scaled(&pixels[tap.place * channels..][..channels], tap.weight, target));
        }
        for (bin, target) in rows.iter().zip(pooled.chunks_exact_mut(line.len())) {
            bin.iter().filter(|tap| tap.place == row).for_each(|tap| add_scaled(&line, tap.weight, target));
        }
    }
}

/// The gradient of [`roi_align`] with respect to the map; it is written.
///
/// # Panics
/// If the lengths do not fit.
pub fn roi_align_backward(grad: &[f32], boxes: &[[f32; 4]], shape: RoiAlignShape, grad_map: &mut [f32]) {
    shape.check(grad_map.len(), boxes.len(), grad.len());
    grad_map.fill(0.0);
    if grad.is_empty() || grad_map.is_empty() {
        return;
    }
    let RoiAlignShape { channels, size, .. } = shape;
    // A fixed number of parts, so that the order of the sums does not depend on the threads.
    const PARTS: usize = 8;
    let per_part = boxes.len().div_ceil(PARTS);
    let parts = map_indices(boxes.len().div_ceil(per_part), |part| {
        let mut pixels = vec![0.0; grad_map.len()]; // [H, W, C]
        let mut line = vec![0.0; size * channels];
        for index in part * per_part..((part + 1) * per_part).min(boxes.len()) {
            let (rows, columns) = bins(&boxes[index], shape);
            let pooled =
                transpose(&grad[index * channels * size * size..][..channels * size * size], channels, size * size);
            for row in touched(&rows) {
                line.fill(0.0);
                for (bin, source) in rows.iter().zip(pooled.chunks_exact(line.len())) {
                    bin.iter().filter(|tap| tap.place == row).for_each(|tap| add_scaled(source, tap.weight, &mut line));
                }
                let pixels = &mut pixels[row * shape.width * channels..][..shape.width * channels];
                for (bin, source) in columns.iter().zip(line.chunks_exact(channels)) {
                    for tap in bin {
                        add_scaled(source, tap.weight, &mut pixels[tap.place * channels..][..channels]);
                    }
                }
            }
        }
        pixels
    });
    let mut parts = parts.into_iter();
    if let Some(mut total) = parts.next() {
        parts.for_each(|part| add_scaled(&part, 1.0, &mut total));
        transpose_to(&total, shape.height * shape.width, channels, grad_map);
    }
}

/// A line of the map and its share in a bin.
#[derive(Clone, Copy)]
struct Tap {
    place: usize,
    weight: f32,
}

/// For each bin of a box, the rows and the columns that it averages.
fn bins(roi: &[f32; 4], shape: RoiAlignShape) -> (Vec<Vec<Tap>>, Vec<Vec<Tap>>) {
    let [x1, y1, x2, y2] = roi.map(|edge| edge * shape.spatial_scale - 0.5);
    (axis(y1, y2, shape.height, shape), axis(x1, x2, shape.width, shape))
}

fn axis(start: f32, end: f32, lines: usize, shape: RoiAlignShape) -> Vec<Vec<Tap>> {
    let (size, ratio) = (shape.size, shape.sampling_ratio);
    let bin = (end - start) / size as f32;
    let share = 1.0 / ratio as f32;
    let sample = |index: usize, point: usize| start + index as f32 * bin + (point as f32 + 0.5) * bin / ratio as f32;
    (0..size).map(|index| (0..ratio).flat_map(|point| taps(sample(index, point), lines, share)).collect()).collect()
}

/// The two lines next to a sample point, or none where it lies further than one pixel outside.
fn taps(place: f32, lines: usize, share: f32) -> impl Iterator<Item = Tap> {
    let outside = !(place >= -1.0 && place <= lines as f32);
    let place = place.max(0.0);
    let low = (place as usize).min(lines - 1);
    let (high, above) = if low == lines - 1 { (low, 0.0) } else { (low + 1, place - low as f32) };
    [Tap { place: low, weight: (1.0 - above) * share }, Tap { place: high, weight: above * share }]
        .into_iter()
        .filter(move |tap| !outside && tap.weight != 0.0)
}

/// The lines that any bin uses, each once, ascending.
fn touched(bins: &[Vec<Tap>]) -> Vec<usize> {
    let mut lines: Vec<usize> = bins.iter().flatten().map(|tap| tap.place).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

wide! {
    fn add_scaled(source: &[f32], weight: f32, target: &mut [f32]) {
        for (target, &source) in target.iter_mut().zip(source) {
            *target += source * weight;
        }
    }
}

/// `[rows, columns]` → `[columns, rows]`
fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    transpose_to(x, rows, columns, &mut out);
    out
}

/// Square by square, so that both sides stay in the cache.
fn transpose_to(x: &[f32], rows: usize, columns: usize, out: &mut [f32]) {
    const SIDE: usize = 16;
    for row_start in (0..rows).step_by(SIDE) {
        for column_start in (0..columns).step_by(SIDE) {
            for row in row_start..(row_start + SIDE).min(rows) {
                for column in column_start..(column_start + SIDE).min(columns) {
                    out[column * rows + row] = x[row * columns + column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, assert_gradient, values};
    use proptest::prelude::*;

    /// Sample by sample, as mmcv's kernel goes.
    fn reference(map: &[f32], boxes: &[[f32; 4]], shape: RoiAlignShape) -> Vec<f32> {
        let RoiAlignShape { channels, height, width, size, sampling_ratio: ratio, spatial_scale } = shape;
        let mut out = Vec::new();
        for roi in boxes {
            let [x1, y1, x2, y2] = roi.map(|edge| edge * spatial_scale - 0.5);
            let (bin_w, bin_h) = ((x2 - x1) / size as f32, (y2 - y1) / size as f32);
            for channel in 0..channels {
                let map = &map[channel * height * width..][..height * width];
                for (row, column) in (0..size).flat_map(|row| (0..size).map(move |column| (row, column))) {
                    let mut total = 0.0;
                    for (iy, ix) in (0..ratio).flat_map(|iy| (0..ratio).map(move |ix| (iy, ix))) {
                        let y = y1 + row as f32 * bin_h + (iy as f32 + 0.5) * bin_h / ratio as f32;
                        let x = x1 + column as f32 * bin_w + (ix as f32 + 0.5) * bin_w / ratio as f32;
                        total += bilinear(map, height, width, y, x);
                    }
                    out.push(total / (ratio * ratio) as f32);
                }
            }
        }
        out
    }

    fn bilinear(map: &[f32], height: usize, width: usize, y: f32, x: f32) -> f32 {
        if y < -1.0 || y > height as f32 || x < -1.0 || x > width as f32 {
            return 0.0;
        }
        let (mut y, mut x) = (y.max(0.0), x.max(0.0));
        let (mut y_low, mut x_low) = (y as usize, x as usize);
        let (mut y_high, mut x_high) = (y_low + 1, x_low + 1);
        if y_low >= height - 1 {
            (y_low, y_high, y) = (height - 1, height - 1, (height - 1) as f32);
        }
        if x_low >= width - 1 {
            (x_low, x_high, x) = (width - 1, width - 1, (width - 1) as f32);
        }
        let (ly, lx) = (y - y_low as f32, x - x_low as f32);
        let at = |row: usize, column: usize| map[row * width + column];
        (1.0 - ly) * (1.0 - lx) * at(y_low, x_low)
            + (1.0 - ly) * lx * at(y_low, x_high)
            + ly * (1.0 - lx) * at(y_high, x_low)
            + ly * lx * at(y_high, x_high)
    }

    fn shapes() -> impl Strategy<Value = RoiAlignShape> {
        (1usize..4, 1usize..8, 1usize..8, 1usize..5, 1usize..4).prop_map(
            |(channels, height, width, size, sampling_ratio)| RoiAlignShape {
                channels,
                height,
                width,
                size,
                sampling_ratio,
                spatial_scale: 0.5,
            },
        )
    }

    /// Boxes over and beyond a map of up to 8×8 at scale 0.5.
    fn boxes() -> impl Strategy<Value = Vec<[f32; 4]>> {
        prop::collection::vec((-6f32..18.0, -6f32..18.0, 0f32..20.0, 0f32..20.0), 1..12)
            .prop_map(|boxes| boxes.into_iter().map(|(x, y, w, h)| [x, y, x + w, y + h]).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pooling_agrees_with_the_sample_by_sample_form(shape in shapes(), boxes in boxes(), seed: u64) {
            let map = values(shape.channels * shape.height * shape.width, seed);
            let mut out = vec![f32::NAN; boxes.len() * shape.channels * shape.size * shape.size];
            roi_align(&map, &boxes, shape, &mut out);
            assert_close(&out, &reference(&map, &boxes, shape), 2e-5);

            let mut by_place = vec![f32::NAN; out.len()];
            let pixels = transpose(&map, shape.channels, shape.height * shape.width);
            roi_align_channels(&pixels, &boxes, shape, &mut by_place);
            let bins = shape.size * shape.size;
            let turned = out.chunks_exact(bins * shape.channels).flat_map(|out| transpose(out, shape.channels, bins));
            assert_eq!(by_place, turned.collect::<Vec<_>>());

            let grad = values(out.len(), seed ^ 1);
            let mut grad_map = vec![f32::NAN; map.len()];
            roi_align_backward(&grad, &boxes, shape, &mut grad_map);
            assert_gradient(&map, &grad, &grad_map, 0..map.len().min(10), |map| reference(map, &boxes, shape));
        }
    }

    /// On a map whose value is 5·row + column, an inner sample has the value of its place, so a bin has
    /// that of its centre.
    #[test]
    fn a_slope_is_pooled_to_bin_centres() {
        let map: Vec<f32> = (0..25).map(|i| i as f32).collect();
        let shape = RoiAlignShape { channels: 1, height: 5, width: 5, size: 4, sampling_ratio: 2, spatial_scale: 1.0 };
        let mut out = [0.0; 16];
        roi_align(&map, &[[1.0, 1.0, 3.0, 3.0]], shape, &mut out);
        // The box begins at 0.5 on the map of pixel centres; bins are half a pixel wide.
        let centre = |bin: usize| 0.75 + 0.5 * bin as f32;
        let expected: Vec<f32> = (0..16).map(|i| 5.0 * centre(i / 4) + centre(i % 4)).collect();
        assert_close(&out, &expected, 1e-6);
    }

    #[test]
    fn a_box_outside_is_zero() {
        let shape = RoiAlignShape { channels: 1, height: 2, width: 2, size: 1, sampling_ratio: 1, spatial_scale: 1.0 };
        let mut out = [9.0; 2];
        // The centres lie at −1.1 and, exactly on the limit, at 2 on the map: zero, and the last value.
        roi_align(&[1.0, 1.0, 1.0, 1.0], &[[-1.1, 0.5, -0.1, 1.5], [2.0, 0.5, 3.0, 1.5]], shape, &mut out);
        assert_eq!(out, [0.0, 1.0]);
    }
}
