//! What lies behind the objects.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// The kinds of background there are.
const TYPES: u32 = 8;

/// Fills an RGB picture of a square side with a background, values 0 to 255.
pub(crate) fn paint(canvas: &mut [[f32; 3]], side: usize, rng: &mut ChaCha8Rng) {
    let (first, second) = (color(rng), color(rng));
    match rng.random_range(0..TYPES) {
        0 => canvas.fill(first),
        1 => linear(canvas, side, first, second, rng),
        2 => radial(canvas, side, first, second, rng),
        3 => stripes(canvas, side, first, near(first, rng), rng),
        4 => checks(canvas, side, first, near(first, rng), rng),
        5 => dots(canvas, side, first, near(first, rng), rng),
        6 => clouds(canvas, side, first, second, rng),
        _ => horizon(canvas, side, first, second, rng),
    }
}

/// A colour, more often pale or dull than loud, so that objects stand out more often than not.
fn color(rng: &mut ChaCha8Rng) -> [f32; 3] {
    let hue = rng.random_range(0.0..6.0f32);
    let saturation = rng.random_range(0.0..0.75f32).powf(1.3);
    let value = rng.random_range(0.15..1.0f32).sqrt();
    // Each channel of a hue is a trapezoid over the circle.
    [5.0, 3.0, 1.0].map(|offset: f32| {
        let k = (offset + hue) % 6.0;
        255.0 * value * (1.0 - saturation * k.min(4.0 - k).clamp(0.0, 1.0))
    })
}

/// A colour not far from another, for patterns.
fn near(color: [f32; 3], rng: &mut ChaCha8Rng) -> [f32; 3] {
    let lighter = rng.random_range(-60.0..60.0f32);
    color.map(|value| (value + lighter + rng.random_range(-25.0..25.0f32)).clamp(0.0, 255.0))
}

fn mix(first: [f32; 3], second: [f32; 3], t: f32) -> [f32; 3] {
    std::array::from_fn(|i| first[i] + (second[i] - first[i]) * t)
}

fn fill(canvas: &mut [[f32; 3]], side: usize, mut value: impl FnMut(f32, f32) -> [f32; 3]) {
    for (y, row) in canvas.chunks_exact_mut(side).enumerate() {
        for (x, pixel) in row.iter_mut().enumerate() {
            *pixel = value(x as f32, y as f32);
        }
    }
}

fn linear(canvas: &mut [[f32; 3]], side: usize, first: [f32; 3], second: [f32; 3], rng: &mut ChaCha8Rng) {
    let (sin, cos) = rng.random_range(0.0..std::f32::consts::TAU).sin_cos();
    let (half, reach) = (side as f32 / 2.0, side as f32 * (sin.abs() + cos.abs()));
    fill(canvas, side, |x, y| mix(first, second, 0.5 + ((x - half) * cos + (y - half) * sin) / reach));
}

fn radial(canvas: &mut [[f32; 3]], side: usize, first: [f32; 3], second: [f32; 3], rng: &mut ChaCha8Rng) {
    let length = side as f32;
    let (cx, cy) = (rng.random_range(0.2..0.8) * length, rng.random_range(0.2..0.8) * length);
    let reach = rng.random_range(0.5..1.0) * length;
    fill(canvas, side, |x, y| mix(first, second, (((x - cx).powi(2) + (y - cy).powi(2)).sqrt() / reach).min(1.0)));
}

fn stripes(canvas: &mut [[f32; 3]], side: usize, first: [f32; 3], second: [f32; 3], rng: &mut ChaCha8Rng) {
    let (sin, cos) = rng.random_range(0.0..std::f32::consts::PI).sin_cos();
    let period = rng.random_range(0.04..0.2) * side as f32;
    fill(canvas, side, |x, y| {
        let phase = ((x * cos + y * sin) / period).rem_euclid(1.0);
        // An edge one pixel soft.
        let t = ((0.25 - (phase - 0.5).abs()) * period + 0.5).clamp(0.0, 1.0);
        mix(first, second, t)
    });
}

fn checks(canvas: &mut [[f32; 3]], side: usize, first: [f32; 3], second: [f32; 3], rng: &mut ChaCha8Rng) {
    let cell = (rng.random_range(0.04..0.15) * side as f32).max(2.0);
    fill(canvas, side, |x, y| if ((x / cell) as u32 + (y / cell) as u32).is_multiple_of(2) { first } else { second });
}

fn dots(canvas: &mut [[f32; 3]], side: usize, first: [f32; 3], second: [f32; 3], rng: &mut ChaCha8Rng) {
    let cell = (rng.random_range(0.06..0.16) * side as f32).max(3.0);
    let radius = cell * rng.random_range(0.15..0.35);
    fill(canvas, side, |x, y| {
        let (dx, dy) = (x % cell - cell / 2.0, y % cell - cell / 2.0);
        mix(first, second, (radius - (dx * dx + dy * dy).sqrt() + 0.5).clamp(0.0, 1.0))
    });
}

/// Smooth noise in two colours: two grids of random values, the finer one weaker.
fn clouds(canvas: &mut [[f32; 3]], side: usize, first: [f32; 3], second: [f32; 3], rng: &mut ChaCha8Rng) {
    let coarse = Grid::random(rng.random_range(3..6), rng);
    let fine = Grid::random(rng.random_range(10..20), rng);
    let step = 1.0 / side as f32;
    fill(canvas, side, |x, y| {
        mix(first, second, 0.7 * coarse.at(x * step, y * step) + 0.3 * fine.at(x * step, y * step))
    });
}

/// Sky above, ground below, each shaded; the ground is uneven.
fn horizon(canvas: &mut [[f32; 3]], side: usize, sky: [f32; 3], ground: [f32; 3], rng: &mut ChaCha8Rng) {
    let height = rng.random_range(0.35..0.75) * side as f32;
    let (haze, shade) = (near(sky, rng), near(ground, rng));
    let grain = Grid::random(24, rng);
    let length = side as f32;
    fill(canvas, side, |x, y| {
        if y < height {
            mix(haze, sky, y / height)
        } else {
            let depth = (y - height) / (length - height);
            mix(ground, shade, (0.6 * depth + 0.4 * grain.at(x / length, y / length)).min(1.0))
        }
    });
}

/// Random values on a square grid, read smoothly in between.
struct Grid {
    cells: usize,
    values: Vec<f32>,
}

impl Grid {
    fn random(cells: usize, rng: &mut ChaCha8Rng) -> Self {
        Self { cells, values: (0..(cells + 1) * (cells + 1)).map(|_| rng.random()).collect() }
    }

    /// The value at a place, each coordinate from 0 to 1 (1 excluded).
    fn at(&self, x: f32, y: f32) -> f32 {
        let (x, y) = (x * self.cells as f32, y * self.cells as f32);
        let (column, row) = (x as usize, y as usize);
        let ease = |t: f32| t * t * (3.0 - 2.0 * t);
        let (fx, fy) = (ease(x - column as f32), ease(y - row as f32));
        let at = row * (self.cells + 1) + column;
        let below = at + self.cells + 1;
        let upper = self.values[at] + (self.values[at + 1] - self.values[at]) * fx;
        let lower = self.values[below] + (self.values[below + 1] - self.values[below]) * fx;
        upper + (lower - upper) * fy
    }
}
