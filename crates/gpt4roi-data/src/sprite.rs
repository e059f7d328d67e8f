//! Drawings as pixels, at several sizes, ready to be warped into a picture.

use resvg::{tiny_skia, usvg};

use crate::error::DataError;

/// The least side of a level worth keeping, in pixels.
const SMALLEST: usize = 20;

/// How many pixels of a level may fall on one pixel of the picture before the next level is taken:
/// bilinear sampling sees two across.
const DENSEST: f32 = 1.5;

/// A drawing, cropped to what it shows, at its full size and halved again and again.
#[derive(Debug)]
pub(crate) struct Sprite {
    levels: Vec<Level>,
}

/// One size of a drawing: RGBA, premultiplied, with a transparent rim one pixel wide.
#[derive(Debug)]
pub(crate) struct Level {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 4]>,
}

/// Where and how a drawing is put into a picture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    /// Centre, in pixels of the picture.
    pub(crate) center: [f32; 2],
    /// The drawing's longer side, in pixels of the picture.
    pub(crate) size: f32,
    /// Width over height, times the drawing's own.
    pub(crate) aspect: f32,
    /// Clockwise, in radians.
    pub(crate) angle: f32,
    /// Left and right exchanged.
    pub(crate) mirrored: bool,
}

/// A warped drawing: a rectangle of the picture, which may stick out of it.
#[derive(Default)]
pub(crate) struct Stamp {
    /// Upper left corner, in pixels of the picture.
    pub(crate) origin: [i32; 2],
    /// Pixels across.
    pub(crate) width: usize,
    /// RGBA from 0 to 255, premultiplied, row by row.
    pub(crate) pixels: Vec<[f32; 4]>,
}

impl Sprite {
    /// Draws an SVG document so that its longer side has `side` pixels.
    pub(crate) fn draw(svg: &[u8], side: u32) -> Result<Self, DataError> {
        let damaged = |reason: String| DataError::Artwork { slug: String::new(), reason };
        let tree = usvg::Tree::from_data(svg, &usvg::Options::default()).map_err(|error| damaged(error.to_string()))?;
        let mut pixmap =
            tiny_skia::Pixmap::new(side, side).ok_or_else(|| damaged(format!("no picture of side {side}")))?;
        let scale = side as f32 / tree.size().width().max(tree.size().height());
        resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut pixmap.as_mut());
        let mut level =
            Level::cropped(pixmap.data(), side as usize).ok_or_else(|| damaged("it shows nothing".into()))?;
        let mut levels = Vec::new();
        while level.width.max(level.height) / 2 > SMALLEST {
            let half = level.halved();
            levels.push(std::mem::replace(&mut level, half));
        }
        levels.push(level);
        Ok(Self { levels })
    }

    /// Warps the drawing into `stamp`, bilinearly, from the level that suits its size.
    pub(crate) fn warp(&self, placement: &Placement, stamp: &mut Stamp) {
        let wanted = |level: &&Level| level.longer_side() / placement.size <= DENSEST;
        let level = self.levels.iter().find(wanted).unwrap_or(&self.levels[self.levels.len() - 1]);
        let scale = placement.size / level.longer_side();
        let (sx, sy) = (scale * placement.aspect.sqrt(), scale / placement.aspect.sqrt());
        let (sin, cos) = placement.angle.sin_cos();
        let (half_w, half_h) = (level.width as f32 / 2.0, level.height as f32 / 2.0);
        let reach_x = (half_w * sx * cos).abs() + (half_h * sy * sin).abs();
        let reach_y = (half_w * sx * sin).abs() + (half_h * sy * cos).abs();
        let [cx, cy] = placement.center;
        let (left, top) = ((cx - reach_x).floor() as i32, (cy - reach_y).floor() as i32);
        let (right, bottom) = ((cx + reach_x).ceil() as i32, (cy + reach_y).ceil() as i32);
        stamp.origin = [left, top];
        stamp.width = (right - left).max(1) as usize;
        stamp.pixels.clear();
        let flip = if placement.mirrored { -1.0 } else { 1.0 };
        let (du, dv) = (flip * cos / sx, -sin / sy);
        for y in top..bottom.max(top + 1) {
            let (dx, dy) = (left as f32 + 0.5 - cx, y as f32 + 0.5 - cy);
            let mut u = half_w - 0.5 + flip * (dx * cos + dy * sin) / sx;
            let mut v = half_h - 0.5 + (dy * cos - dx * sin) / sy;
            for _ in 0..stamp.width {
                stamp.pixels.push(level.sample(u, v));
                u += du;
                v += dv;
            }
        }
    }
}

impl Level {
    /// The part of a square picture that shows anything, with its rim.
    fn cropped(data: &[u8], side: usize) -> Option<Self> {
        let alpha = |x: usize, y: usize| data[(y * side + x) * 4 + 3];
        let (mut x1, mut y1, mut x2, mut y2) = (side, side, 0, 0);
        for y in 0..side {
            for x in 0..side {
                if alpha(x, y) >= 16 {
                    (x1, y1, x2, y2) = (x1.min(x), y1.min(y), x2.max(x + 1), y2.max(y + 1));
                }
            }
        }
        if x1 >= x2 {
            return None;
        }
        let mut level = Self::blank(x2 - x1 + 2, y2 - y1 + 2);
        for y in y1..y2 {
            for x in x1..x2 {
                let at = (y * side + x) * 4;
                level.pixels[(y - y1 + 1) * level.width + x - x1 + 1].copy_from_slice(&data[at..at + 4]);
            }
        }
        Some(level)
    }

    fn blank(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[0; 4]; width * height] }
    }

    /// Half the size: means of 2×2 pixels, inside a rim of its own.
    fn halved(&self) -> Self {
        let (width, height) = ((self.width - 1) / 2, (self.height - 1) / 2);
        let mut half = Self::blank(width + 2, height + 2);
        for y in 0..height {
            for x in 0..width {
                let mut sum = [0u32; 4];
                for (dx, dy) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
                    let pixel =
                        self.pixels[(2 * y + dy).min(self.height - 1) * self.width + (2 * x + dx).min(self.width - 1)];
                    for (total, value) in sum.iter_mut().zip(pixel) {
                        *total += u32::from(value);
                    }
                }
                half.pixels[(y + 1) * half.width + x + 1] = sum.map(|total| ((total + 2) / 4) as u8);
            }
        }
        half
    }

    /// The longer side of what it shows, without the rim.
    fn longer_side(&self) -> f32 {
        (self.width.max(self.height) - 2) as f32
    }

    fn sample(&self, u: f32, v: f32) -> [f32; 4] {
        if u < 0.0 || v < 0.0 {
            return [0.0; 4];
        }
        let (x, y) = (u as usize, v as usize);
        if x + 1 >= self.width || y + 1 >= self.height {
            return [0.0; 4];
        }
        let (fx, fy) = (u - x as f32, v - y as f32);
        let at = y * self.width + x;
        let (upper, lower) = (&self.pixels[at..at + 2], &self.pixels[at + self.width..at + self.width + 2]);
        let (a, b, c, d) = ((1.0 - fx) * (1.0 - fy), fx * (1.0 - fy), (1.0 - fx) * fy, fx * fy);
        std::array::from_fn(|i| {
            f32::from(upper[0][i]) * a
                + f32::from(upper[1][i]) * b
                + f32::from(lower[0][i]) * c
                + f32::from(lower[1][i]) * d
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A red rectangle, 80 wide and 40 high, somewhere in a square of 100.
    const RECTANGLE: &[u8] = br##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100"><rect x="10" y="20" width="80" height="40" fill="#f00"/></svg>"##;

    fn warp(size: f32, angle: f32) -> Stamp {
        let mut stamp = Stamp::default();
        let sprite = Sprite::draw(RECTANGLE, 200).expect("it shows something");
        let placement =
            Placement { center: [100.0, 100.0], size, aspect: 1.0, angle: angle.to_radians(), mirrored: false };
        sprite.warp(&placement, &mut stamp);
        stamp
    }

    #[test]
    fn a_drawing_has_the_size_and_place_asked_for() {
        for size in [16.0, 40.0, 90.0, 160.0] {
            let stamp = warp(size, 0.0);
            let area: f32 = stamp.pixels.iter().map(|pixel| pixel[3] / 255.0).sum();
            let expected = size * size / 2.0;
            assert!((area - expected).abs() < 0.06 * expected, "size {size}: area {area}, expected {expected}");
            let middle = (100 - stamp.origin[1]) as usize * stamp.width + (100 - stamp.origin[0]) as usize;
            assert_eq!(stamp.pixels[middle], [255.0, 0.0, 0.0, 255.0]);
        }
    }

    #[test]
    fn rotation_is_clockwise() {
        // Turned by a quarter, the rectangle stands upright; by 20 degrees, its right end sinks.
        let upright = warp(80.0, 90.0);
        assert!(upright.pixels.len() / upright.width > upright.width);
        let tilted = warp(80.0, 20.0);
        let alpha = |x: i32, y: i32| {
            tilted.pixels[(y - tilted.origin[1]) as usize * tilted.width + (x - tilted.origin[0]) as usize][3]
        };
        assert!(alpha(132, 112) > 200.0 && alpha(132, 88) < 50.0);
    }

    #[test]
    fn damaged_and_empty_drawings_are_refused() {
        for svg in [&b"<svg"[..], br#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>"#] {
            assert!(matches!(Sprite::draw(svg, 40), Err(DataError::Artwork { .. })));
        }
    }
}
