//! Bilinear resizing in which corners fall on corners (`align_corners=True`).

use crate::parallel::map_chunks;

/// Rows and columns of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl MapSize {
    pub(crate) fn area(&self) -> usize {
        self.height * self.width
    }
}

/// Resizes every map of `x`.
///
/// # Shapes
/// x `[maps, from.height, from.width]`, out `[maps, to.height, to.width]`
///
/// # Panics
/// If the lengths do not fit.
pub fn resize_bilinear(x: &[f32], from: MapSize, to: MapSize, out: &mut [f32]) {
    if check(x.len(), from, out.len(), to) == 0 {
        return;
    }
    let (rows, columns) = (places(from.height, to.height), places(from.width, to.width));
    map_chunks(out, to.area(), |map, out| {
        resize_map(&x[map * from.area()..][..from.area()], from.width, &rows, &columns, out);
    });
}

wide! {
    fn resize_map(x: &[f32], width: usize, rows: &[Place], columns: &[Place], out: &mut [f32]) {
        let mut blended = vec![0.0; width];
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(columns.len())) {
            let (low, high) = (&x[row.low * width..][..width], &x[row.high * width..][..width]);
            for ((blended, &low), &high) in blended.iter_mut().zip(low).zip(high) {
                *blended = low * (1.0 - row.share) + high * row.share;
            }
            for (out, column) in out.iter_mut().zip(columns) {
                *out = blended[column.low] * (1.0 - column.share) + blended[column.high] * column.share;
            }
        }
    }
}

/// The gradient of [`resize_bilinear`]; it is written.
///
/// # Panics
/// If the lengths do not fit.
pub fn resize_bilinear_backward(grad: &[f32], from: MapSize, to: MapSize, grad_x: &mut [f32]) {
    if check(grad_x.len(), from, grad.len(), to) == 0 {
        grad_x.fill(0.0);
        return;
    }
    let (rows, columns) = (places(from.height, to.height), places(from.width, to.width));
    map_chunks(grad_x, from.area(), |map, grad_x| {
        grad_x.fill(0.0);
        resize_map_backward(&grad[map * to.area()..][..to.area()], from.width, &rows, &columns, grad_x);
    });
}

wide! {
    fn resize_map_backward(grad: &[f32], width: usize, rows: &[Place], columns: &[Place], grad_x: &mut [f32]) {
        let mut blended = vec![0.0; width];
        for (row, grad) in rows.iter().zip(grad.chunks_exact(columns.len())) {
            blended.fill(0.0);
            for (&grad, column) in grad.iter().zip(columns) {
                blended[column.low] += grad * (1.0 - column.share);
                blended[column.high] += grad * column.share;
            }
            for (line, share) in [(row.low, 1.0 - row.share), (row.high, row.share)] {
                for (target, &blended) in grad_x[line * width..][..width].iter_mut().zip(&blended) {
                    *target += blended * share;
                }
            }
        }
    }
}

/// Between which two source lines a target line falls, and how near the second.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) low: usize,
    pub(crate) high: usize,
    pub(crate) share: f32,
}

/// The places of all target lines; the last one's `high` is the last source line.
pub(crate) fn places(from: usize, to: usize) -> Vec<Place> {
    let step = if to > 1 { (from - 1) as f32 / (to - 1) as f32 } else { 0.0 };
    let mut places: Vec<Place> = (0..to)
        .map(|target| {
            let place = target as f32 * step;
            let low = (place as usize).min(from - 1);
            Place { low, high: (low + 1).min(from - 1), share: place - low as f32 }
        })
        .collect();
    if let Some(last) = places.last_mut().filter(|_| to > 1) {
        // Rounding must not keep the last corner from its corner.
        *last = Place { low: from - 1, high: from - 1, share: 0.0 };
    }
    places
}

/// The number of maps.
fn check(source: usize, from: MapSize, target: usize, to: MapSize) -> usize {
    if source == 0 || target == 0 {
        assert_eq!((source, target), (0, 0), "{from:?} to {to:?}");
        return 0;
    }
    let maps = source / from.area();
    assert_eq!((source, target), (maps * from.area(), maps * to.area()), "{from:?} to {to:?}");
    maps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, assert_gradient, values};
    use proptest::prelude::*;

    /// Each value by the definition, in f64.
    fn reference(x: &[f32], from: MapSize, to: MapSize) -> Vec<f32> {
        let step = |from: usize, to: usize| if to > 1 { (from - 1) as f64 / (to - 1) as f64 } else { 0.0 };
        let (down, across) = (step(from.height, to.height), step(from.width, to.width));
        let mut out = Vec::new();
        for map in x.chunks_exact(from.area()) {
            let at = |row: usize, column: usize| {
                f64::from(map[row.min(from.height - 1) * from.width + column.min(from.width - 1)])
            };
            for (row, column) in (0..to.height).flat_map(|row| (0..to.width).map(move |column| (row, column))) {
                let (y, x) = (row as f64 * down, column as f64 * across);
                let (top, left, dy, dx) = (y as usize, x as usize, y.fract(), x.fract());
                let above = at(top, left) * (1.0 - dx) + at(top, left + 1) * dx;
                let below = at(top + 1, left) * (1.0 - dx) + at(top + 1, left + 1) * dx;
                out.push((above * (1.0 - dy) + below * dy) as f32);
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn resizing_agrees_with_its_definition(
            (h, w, height, width) in (1usize..9, 1usize..9, 1usize..20, 1usize..20), maps in 1usize..4, seed: u64
        ) {
            let (from, to) = (MapSize { height: h, width: w }, MapSize { height, width });
            let x = values(maps * h * w, seed);
            let mut out = vec![f32::NAN; maps * height * width];
            resize_bilinear(&x, from, to, &mut out);
            assert_close(&out, &reference(&x, from, to), 1e-5);
            let grad = values(out.len(), seed ^ 1);
            let mut grad_x = vec![f32::NAN; x.len()];
            resize_bilinear_backward(&grad, from, to, &mut grad_x);
            assert_gradient(&x, &grad, &grad_x, 0..x.len().min(10), |x| reference(x, from, to));
        }
    }

    #[test]
    fn corners_stay_and_the_middle_is_between() {
        let (from, to) = (MapSize { height: 2, width: 2 }, MapSize { height: 3, width: 3 });
        let mut out = [0.0; 9];
        resize_bilinear(&[0.0, 2.0, 4.0, 6.0], from, to, &mut out);
        assert_eq!(out, [0.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 5.0, 6.0]);
    }
}
