//! Scenes: pictures of drawn objects whose boxes, kinds and visible pixels are known exactly.

use std::sync::OnceLock;

use gpt4roi::bbox::{BBox, ImageSize, Point};
use image::RgbImage;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    answers::{self, Direction},
    background,
    error::DataError,
    kinds::{self, Kind, Style},
    sprite::{Placement, Sprite, Stamp},
};

/// An object of which less than this share is visible is not left so: the scene is composed anew.
const LEAST_VISIBLE: f64 = 0.55;

/// The least share of an object that lies inside the frame.
const LEAST_INSIDE: f64 = 0.9;

/// How often a place for an object is tried before it is left out.
const TRIES: usize = 40;

/// Where an object's alpha (0 to 255) reaches this, the pixel is the object's.
const SOLID: f32 = 128.0;

/// In `Scene::labels`: nothing but background.
const BACKGROUND: u8 = u8::MAX;

/// Mixed into the seed, so that a scene and the questions about it draw from different streams.
const SCENE_SALT: u64 = 0x005C_E9E5;
const QUESTION_SALT: u64 = 0x0A5C_ED00;

/// Pairs of kinds are told apart by the sum of their indices modulo this number.
const PAIR_CLASSES: usize = 20;

/// What a scene is for. Splits differ by seed, and by which kinds meet in one picture.
///
/// Of the unordered pairs of kinds, nine tenths are common to all splits; one twentieth occurs only
/// in `Validation` and one twentieth only in `Test`, by the sum of the two indices modulo 20. Every
/// scene of `Validation` and `Test` with two objects or more shows at least one pair of its own
/// (given eight kinds or more), so none of them could have been a training scene.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// To learn from.
    #[default]
    Train,
    /// To choose by.
    Validation,
    /// To report.
    Test,
}

impl Split {
    /// The one split in which two kinds may meet; `None` if they may in all.
    pub fn of_pair(first: usize, second: usize) -> Option<Self> {
        match (first + second) % PAIR_CLASSES {
            1 => Some(Self::Validation),
            3 => Some(Self::Test),
            _ => None,
        }
    }
}

/// What scenes look like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SceneConfig {
    /// How many kinds there are: the first so many of [`kinds::pool`].
    pub kinds: usize,
    /// Whose drawings.
    pub style: Style,
    /// What for.
    pub split: Split,
    /// Scenes of another seed are others.
    pub seed: u64,
    /// Side of the square picture, in pixels.
    pub size: u32,
    /// Fewest and most objects.
    pub objects: (usize, usize),
    /// Shortest and longest of an object's longer side, in pixels, before rotation; the logarithm is
    /// drawn uniformly.
    pub object_size: (f32, f32),
    /// The share of objects whose left and right are exchanged.
    pub mirrored: f64,
}

impl Default for SceneConfig {
    fn default() -> Self {
        Self {
            kinds: 220,
            style: Style::Noto,
            split: Split::Train,
            seed: 0,
            size: 224,
            objects: (3, 8),
            object_size: (24.0, 140.0),
            mirrored: 0.0,
        }
    }
}

impl SceneConfig {
    /// The same scenes at another side: everything in proportion.
    pub fn resized(mut self, size: u32) -> Self {
        let ratio = size as f32 / self.size as f32;
        self.object_size = (self.object_size.0 * ratio, self.object_size.1 * ratio);
        Self { size, ..self }
    }

    fn validate(&self, pool: usize) -> Result<(), DataError> {
        let check = |holds: bool, setting: &'static str, expected: String, got: String| {
            if holds { Ok(()) } else { Err(DataError::Setting { setting, expected, got }) }
        };
        let (fewest, most) = self.objects;
        let (short, long) = self.object_size;
        check((1..=pool).contains(&self.kinds), "kinds", format!("1 to {pool}"), self.kinds.to_string())?;
        check((8..=4096).contains(&self.size), "size", "8 to 4096".into(), self.size.to_string())?;
        let counts = 1 <= fewest && fewest <= most && most < usize::from(BACKGROUND);
        check(counts, "objects", "1 ≤ fewest ≤ most ≤ 254".into(), format!("{:?}", self.objects))?;
        let sizes = 4.0 <= short && short <= long && long <= self.size as f32;
        check(
            sizes,
            "object_size",
            format!("4 ≤ shortest ≤ longest ≤ {}", self.size),
            format!("{:?}", self.object_size),
        )?;
        check((0.0..=1.0).contains(&self.mirrored), "mirrored", "0 to 1".into(), self.mirrored.to_string())
    }
}

/// Makes scenes. One serves any number of threads; drawings are rasterised when first needed.
#[derive(Debug)]
pub struct Scenes {
    config: SceneConfig,
    kinds: Vec<Kind>,
    sprites: Vec<OnceLock<Sprite>>,
}

/// A picture and what it shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The picture.
    pub image: RgbImage,
    /// What it shows, from back to front.
    pub objects: Vec<SceneObject>,
    /// For each pixel the index of the topmost object, or `u8::MAX` for the background.
    labels: Vec<u8>,
}

/// An object of a scene.
#[derive(Clone, Debug, PartialEq)]
pub struct SceneObject {
    /// What it is: index into [`kinds::pool`].
    pub kind: usize,
    /// Tightly around those of its pixels that can be seen.
    pub bbox: BBox,
    /// Who drew it.
    pub style: Style,
    /// The share of it that can be seen: neither covered nor outside the frame.
    pub visible: f64,
    /// Its longer side before rotation, in pixels.
    pub size: f32,
    /// Clockwise rotation, in degrees.
    pub rotation: f32,
    /// Factors on red, green and blue.
    pub gain: [f32; 3],
}

/// What a patch of the picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatchLabel {
    /// An object of this kind covers 70 of 196 pixels or more, and no other covers more.
    Kind(usize),
    /// All objects together cover 20 of 196 pixels or fewer.
    Background,
    /// Neither: the edge of something.
    Ignore,
}

/// An object with a place, before its box is known.
struct Placed {
    placement: Placement,
    gain: [f32; 3],
    /// Solid pixels, those outside the frame included.
    area: usize,
    /// Those of them that are topmost so far.
    seen: usize,
}

impl Scenes {
    /// Checks the settings and reads the list of kinds.
    pub fn new(config: SceneConfig) -> Result<Self, DataError> {
        let mut kinds = kinds::pool()?;
        config.validate(kinds.len())?;
        kinds.truncate(config.kinds);
        let sprites = kinds.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { config, kinds, sprites })
    }

    /// The kinds that occur; an object's `kind` is an index into them.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// Pixels across and down of every picture.
    pub fn image_size(&self) -> ImageSize {
        ImageSize { width: self.config.size, height: self.config.size }
    }

    /// Randomness for the questions about a scene, independent of the scene's own.
    pub fn question_rng(&self, index: u64) -> ChaCha8Rng {
        self.rng(QUESTION_SALT, index)
    }

    fn rng(&self, salt: u64, index: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed ^ salt);
        rng.set_stream(index.wrapping_mul(3).wrapping_add(self.config.split as u64));
        rng
    }

    /// The settings.
    pub fn config(&self) -> &SceneConfig {
        &self.config
    }

    /// The scene of this number: always the same for the same settings.
    ///
    /// It has fewer objects than asked for where no more found a place, or where too few kinds may
    /// meet in this split, but always one.
    pub fn scene(&self, index: u64) -> Scene {
        let mut rng = self.rng(SCENE_SALT, index);
        let side = self.config.size as usize;
        let mut canvas = vec![[0.0; 3]; side * side];
        background::paint(&mut canvas, side, &mut rng);
        let mut labels = vec![BACKGROUND; side * side];
        let mut placed: Vec<Placed> = Vec::new();
        let mut kinds = Vec::new();
        let mut stamp = Stamp::default();
        for kind in self.draw_kinds(&mut rng) {
            if let Some(object) = self.place(kind, &mut placed, &mut labels, &mut stamp, &mut rng) {
                blend(&mut canvas, side, &stamp, object.gain);
                placed.push(object);
                kinds.push(kind);
            }
        }
        let image = develop(&canvas, self.config.size, &mut rng);
        let objects = self.describe(&kinds, &placed, &labels);
        Scene { image, objects, labels }
    }

    /// The kinds of one scene: distinct, allowed to meet in this split, in random order.
    fn draw_kinds(&self, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let (fewest, most) = self.config.objects;
        let count = rng.random_range(fewest..=most);
        let split = self.config.split;
        let mut drawn = Vec::with_capacity(count);
        if split != Split::Train && count >= 2 {
            drawn.extend(self.draw_own_pair(rng).into_iter().flatten());
        }
        while drawn.len() < count {
            let may_join = |kind: &usize| {
                drawn
                    .iter()
                    .all(|other| other != kind && Split::of_pair(*kind, *other).is_none_or(|only| only == split))
            };
            let candidates: Vec<usize> = (0..self.kinds.len()).filter(may_join).collect();
            if candidates.is_empty() {
                break;
            }
            drawn.push(candidates[rng.random_range(0..candidates.len())]);
        }
        drawn.shuffle(rng);
        drawn
    }

    /// Two kinds that meet only in this split; none if there are too few kinds.
    fn draw_own_pair(&self, rng: &mut ChaCha8Rng) -> Option<[usize; 2]> {
        let split = Some(self.config.split);
        (0..TRIES).find_map(|_| {
            let first = rng.random_range(0..self.kinds.len());
            let own = |kind: &usize| *kind != first && Split::of_pair(first, *kind) == split;
            let partners: Vec<usize> = (0..self.kinds.len()).filter(own).collect();
            (!partners.is_empty()).then(|| [first, partners[rng.random_range(0..partners.len())]])
        })
    }

    fn sprite(&self, kind: usize) -> &Sprite {
        self.sprites[kind].get_or_init(|| {
            // A little more than the largest size, so that a drawing is reduced, never enlarged.
            let side = (self.config.object_size.1 * 1.15).ceil() as u32;
            kinds::drawing(&self.kinds[kind].slug, self.config.style)
                .and_then(|svg| Sprite::draw(svg, side))
                .expect("the embedded artwork is sound: a test draws all of it")
        })
    }

    /// Finds a place for one more object and enters it into the labels; `stamp` is then its pixels.
    fn place(
        &self,
        kind: usize,
        placed: &mut [Placed],
        labels: &mut [u8],
        stamp: &mut Stamp,
        rng: &mut ChaCha8Rng,
    ) -> Option<Placed> {
        let side = self.config.size as usize;
        let (short, long) = self.config.object_size;
        let mut covered = Vec::new();
        for attempt in 0..TRIES {
            // Where much is covered already, smaller objects still find room.
            let long = short * (long / short).powf(1.0 - attempt as f32 / TRIES as f32);
            let size = short * (long / short).powf(rng.random());
            let placement = self.draw_placement(size, rng);
            self.sprite(kind).warp(&placement, stamp);
            let (area, inside) = stamp.solid_pixels(side, &mut covered);
            if area == 0 || (inside as f64) < LEAST_INSIDE * area as f64 {
                continue;
            }
            let mut hidden = vec![0; placed.len()];
            for &pixel in &covered {
                if labels[pixel] != BACKGROUND {
                    hidden[usize::from(labels[pixel])] += 1;
                }
            }
            let bearable = |(below, hidden): (&Placed, &usize)| {
                below.seen.saturating_sub(*hidden) as f64 >= LEAST_VISIBLE * below.area as f64
            };
            if !placed.iter().zip(&hidden).all(bearable) {
                continue;
            }
            for (below, hidden) in placed.iter_mut().zip(hidden) {
                below.seen -= hidden;
            }
            let label = placed.len() as u8;
            for &pixel in &covered {
                labels[pixel] = label;
            }
            let bright = rng.random_range(0.75..1.25f32);
            let gain = std::array::from_fn(|_| bright * rng.random_range(0.88..1.12f32));
            return Some(Placed { placement, gain, area, seen: inside });
        }
        None
    }

    fn draw_placement(&self, size: f32, rng: &mut ChaCha8Rng) -> Placement {
        let side = self.config.size as f32;
        // Slim drawings may come closer to the edge than their longer side says; what sticks out too
        // far is refused afterwards.
        let margin = (0.3 * size).min(0.5 * side);
        let mut along = || if margin < side - margin { rng.random_range(margin..side - margin) } else { 0.5 * side };
        let center = [along(), along()];
        Placement {
            center,
            size,
            aspect: rng.random_range(0.9..1.1),
            angle: rng.random_range(-20.0f32..20.0).to_radians(),
            mirrored: rng.random_bool(self.config.mirrored),
        }
    }

    /// Boxes and shares from the finished labels.
    fn describe(&self, kinds: &[usize], placed: &[Placed], labels: &[u8]) -> Vec<SceneObject> {
        let side = self.config.size as usize;
        let mut extents = vec![[side, side, 0, 0]; placed.len()];
        for (y, row) in labels.chunks_exact(side).enumerate() {
            for (x, label) in row.iter().enumerate() {
                if let Some([x1, y1, x2, y2]) = extents.get_mut(usize::from(*label)) {
                    (*x1, *y1, *x2, *y2) = ((*x1).min(x), (*y1).min(y), (*x2).max(x + 1), (*y2).max(y + 1));
                }
            }
        }
        let size = ImageSize { width: self.config.size, height: self.config.size };
        let object = |((kind, placed), extent): ((&usize, &Placed), &[usize; 4])| SceneObject {
            kind: *kind,
            bbox: BBox::from_pixels(extent.map(|at| at as f64), size)
                .expect("more than half of it is inside the frame"),
            style: self.config.style,
            visible: placed.seen as f64 / placed.area as f64,
            size: placed.placement.size,
            rotation: placed.placement.angle.to_degrees(),
            gain: placed.gain,
        };
        kinds.iter().zip(placed).zip(&extents).map(object).collect()
    }
}

impl Stamp {
    /// Collects the pixels of the picture that the drawing covers; returns its area in all and inside
    /// the frame.
    fn solid_pixels(&self, side: usize, covered: &mut Vec<usize>) -> (usize, usize) {
        covered.clear();
        let mut area = 0;
        let frame = 0..side as i32;
        for (row, y) in self.pixels.chunks_exact(self.width).zip(self.origin[1]..) {
            for (pixel, x) in row.iter().zip(self.origin[0]..) {
                if pixel[3] >= SOLID {
                    area += 1;
                    if frame.contains(&x) && frame.contains(&y) {
                        covered.push(y as usize * side + x as usize);
                    }
                }
            }
        }
        (area, covered.len())
    }
}

/// Lays a stamp over the canvas, its colours multiplied by `gain`.
fn blend(canvas: &mut [[f32; 3]], side: usize, stamp: &Stamp, gain: [f32; 3]) {
    let [left, top] = stamp.origin;
    let skipped = (-left).max(0) as usize;
    let from = left.max(0) as usize;
    let count = stamp.width.saturating_sub(skipped).min(side.saturating_sub(from));
    for (row, y) in stamp.pixels.chunks_exact(stamp.width).zip(top..) {
        if y < 0 || y as usize >= side || count == 0 {
            continue;
        }
        let start = y as usize * side + from;
        for (under, over) in canvas[start..start + count].iter_mut().zip(&row[skipped..skipped + count]) {
            let alpha = over[3];
            if alpha > 0.0 {
                let rest = 1.0 - alpha / 255.0;
                for (channel, value) in under.iter_mut().enumerate() {
                    *value = *value * rest + (over[channel] * gain[channel]).min(alpha);
                }
            }
        }
    }
}

/// Contrast, brightness and noise of the whole picture, and the step to bytes.
fn develop(canvas: &[[f32; 3]], size: u32, rng: &mut ChaCha8Rng) -> RgbImage {
    let contrast = rng.random_range(0.85..1.15f32);
    let shift = 127.5 - 127.5 * contrast + rng.random_range(-20.0..20.0f32);
    let strength = rng.random_range(0.0..8.0f32);
    let mut noise = Noise(rng.random::<u64>() | 1);
    let mut bytes = Vec::with_capacity(canvas.len() * 3);
    for pixel in canvas {
        let grains = noise.next3();
        for (value, grain) in pixel.iter().zip(grains) {
            bytes.push((value * contrast + shift + strength * grain + 0.5) as u8);
        }
    }
    RgbImage::from_raw(size, size, bytes).expect("three bytes a pixel")
}

/// Nearly normal noise, cheap: xorshift64, a sum of bytes for each value.
struct Noise(u64);

impl Noise {
    /// Three values of mean 0 and variance 1.
    fn next3(&mut self) -> [f32; 3] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let [a, b, c, d, e, f, g, h] = self.0.to_le_bytes().map(f32::from);
        // Two and three bytes are summed; a byte has mean 127.5 and variance 65535/12.
        [(a + b - 255.0) / 104.51, (c + d + e - 382.5) / 128.0, (f + g + h - 382.5) / 128.0]
    }
}

impl Scene {
    /// Objects of given kinds in given boxes, on a picture that nobody looks at.
    #[cfg(test)]
    pub(crate) fn of_boxes(objects: &[(usize, [f64; 4])]) -> Self {
        let object = |&(kind, xyxy): &(usize, [f64; 4])| SceneObject {
            kind,
            bbox: BBox::from_normalized(xyxy).expect("a box"),
            style: Style::Noto,
            visible: 1.0,
            size: 1.0,
            rotation: 0.0,
            gain: [1.0; 3],
        };
        Self { image: RgbImage::new(1, 1), objects: objects.iter().map(object).collect(), labels: vec![BACKGROUND] }
    }

    /// Pixels across and down.
    pub fn size(&self) -> ImageSize {
        ImageSize { width: self.image.width(), height: self.image.height() }
    }

    /// What each patch of so many pixels a side shows, row by row; an incomplete row or column of
    /// patches at the lower or right edge is left out.
    pub fn patch_labels(&self, patch: usize) -> Vec<PatchLabel> {
        let side = self.image.width() as usize;
        let across = side / patch.max(1);
        let mut counts = vec![0usize; self.objects.len()];
        let mut patches = Vec::with_capacity(across * across);
        for row in 0..across {
            for column in 0..across {
                counts.fill(0);
                for y in row * patch..(row + 1) * patch {
                    let start = y * side + column * patch;
                    for label in &self.labels[start..start + patch] {
                        if let Some(count) = counts.get_mut(usize::from(*label)) {
                            *count += 1;
                        }
                    }
                }
                patches.push(self.patch_label(&counts, patch * patch));
            }
        }
        patches
    }

    fn patch_label(&self, counts: &[usize], area: usize) -> PatchLabel {
        let covered: usize = counts.iter().sum();
        let most = counts.iter().enumerate().max_by_key(|(_, count)| **count);
        match most {
            Some((object, count)) if count * 196 >= 70 * area => PatchLabel::Kind(self.objects[object].kind),
            _ if covered * 196 <= 20 * area => PatchLabel::Background,
            _ => PatchLabel::Ignore,
        }
    }

    /// The topmost object at a point; `None` for background and outside the picture.
    pub fn topmost_at(&self, point: Point) -> Option<usize> {
        let (width, height) = self.image.dimensions();
        let (x, y) = (point.x * f64::from(width), point.y * f64::from(height));
        if !(0.0..f64::from(width)).contains(&x) || !(0.0..f64::from(height)).contains(&y) {
            return None;
        }
        let label = self.labels[y as usize * width as usize + x as usize];
        (label != BACKGROUND).then_some(usize::from(label))
    }

    /// The nearest other object that lies clearly in one direction, and where the object lies as seen from it.
    pub fn nearest(&self, object: usize) -> Option<(usize, Direction)> {
        let bbox = |index: usize| &self.objects[index].bbox;
        let distance = |other: usize| answers::distance(bbox(object), bbox(other));
        (0..self.objects.len())
            .filter(|other| *other != object)
            .filter_map(|other| Some((other, Direction::between(bbox(object), bbox(other))?)))
            .min_by(|a, b| distance(a.0).total_cmp(&distance(b.0)))
    }

    /// A random point at which the object is topmost, the centre of a pixel; where it has room, not at
    /// its very edge. `None` if there is no such object.
    pub fn visible_point(&self, object: usize, rng: &mut impl Rng) -> Option<Point> {
        /// Pixels to the edge that are wished for.
        const INSET: usize = 3;
        let label = u8::try_from(object).ok().filter(|_| object < self.objects.len())?;
        let (width, height) = (self.image.width() as usize, self.image.height() as usize);
        let own: Vec<usize> = (0..self.labels.len()).filter(|at| self.labels[*at] == label).collect();
        let inner = |at: &usize| {
            let (x, y) = (at % width, at / width);
            let fits = x >= INSET && y >= INSET && x + INSET < width && y + INSET < height;
            fits && [at - INSET, at + INSET, at - INSET * width, at + INSET * width]
                .iter()
                .all(|at| self.labels[*at] == label)
        };
        let inside: Vec<usize> = own.iter().copied().filter(inner).collect();
        let choice = if inside.is_empty() { &own } else { &inside };
        let at = *choice.get(rng.random_range(0..choice.len().max(1)))?;
        let place = |pixel: usize, length: usize| (pixel as f64 + 0.5) / length as f64;
        Some(Point { x: place(at % width, width), y: place(at / width, height) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scenes(config: SceneConfig) -> Scenes {
        Scenes::new(config).expect("settings are sound")
    }

    #[test]
    fn a_scene_follows_from_settings_and_number() {
        let train = scenes(SceneConfig::default());
        assert_eq!(train.scene(3), scenes(SceneConfig::default()).scene(3));
        assert_ne!(train.scene(3), train.scene(4));
        for other in [
            SceneConfig { seed: 1, ..SceneConfig::default() },
            SceneConfig { split: Split::Test, ..SceneConfig::default() },
            SceneConfig { style: Style::Fluent, ..SceneConfig::default() },
        ] {
            assert_ne!(train.scene(3).image, scenes(other).scene(3).image);
        }
    }

    #[test]
    fn boxes_are_tight_around_what_can_be_seen() {
        let scenes = scenes(SceneConfig::default());
        for index in 0..8 {
            let scene = scenes.scene(index);
            assert!((3..=8).contains(&scene.objects.len()));
            for (at, object) in scene.objects.iter().enumerate() {
                let pixels: Vec<usize> =
                    (0..scene.labels.len()).filter(|pixel| scene.labels[*pixel] == at as u8).collect();
                let x = || pixels.iter().map(|pixel| (pixel % 224) as f64);
                let y = || pixels.iter().map(|pixel| (pixel / 224) as f64);
                let tight = [
                    x().fold(f64::MAX, f64::min),
                    y().fold(f64::MAX, f64::min),
                    x().fold(0.0, f64::max) + 1.0,
                    y().fold(0.0, f64::max) + 1.0,
                ];
                let got = object.bbox.pixels(scene.size());
                assert!(got.iter().zip(tight).all(|(got, tight)| (got - tight).abs() < 1e-9), "{got:?}, {tight:?}");
                assert!((LEAST_VISIBLE..=1.0).contains(&object.visible), "{}", object.visible);
                assert!((24.0..=140.0).contains(&object.size) && object.rotation.abs() <= 20.0);
            }
        }
    }

    #[test]
    fn points_lie_on_their_object() {
        let scene = scenes(SceneConfig::default()).scene(1);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for object in 0..scene.objects.len() {
            for _ in 0..20 {
                let point = scene.visible_point(object, &mut rng).expect("it can be seen");
                assert_eq!(scene.topmost_at(point), Some(object));
            }
        }
        assert_eq!(scene.visible_point(scene.objects.len(), &mut rng), None);
        assert_eq!(scene.topmost_at(Point { x: 1.0, y: 0.5 }), None);
        assert_eq!(scene.topmost_at(Point { x: f64::NAN, y: 0.5 }), None);
    }

    #[test]
    fn patches_are_labelled_by_what_covers_them() {
        // Two patches of 14 x 14 = 196 pixels side by side, then two below; a picture of 28 x 28.
        let object = scenes(SceneConfig::default()).scene(0).objects[0].clone();
        let kinds = [5, 9];
        let objects = kinds.map(|kind| SceneObject { kind, ..object.clone() }).to_vec();
        let mut labels = vec![BACKGROUND; 28 * 28];
        let mut cover = |column: usize, row: usize, from: usize, count: usize, label: u8| {
            for at in from..from + count {
                labels[(row * 14 + at / 14) * 28 + column * 14 + at % 14] = label;
            }
        };
        cover(0, 0, 0, 70, 0);
        cover(0, 0, 70, 69, 1);
        cover(1, 0, 0, 10, 0);
        cover(1, 0, 10, 10, 1);
        cover(0, 1, 0, 69, 1);
        cover(1, 1, 0, 71, 0);
        cover(1, 1, 71, 72, 1);
        let scene = Scene { image: RgbImage::new(28, 28), objects, labels };
        let expected = [PatchLabel::Kind(5), PatchLabel::Background, PatchLabel::Ignore, PatchLabel::Kind(9)];
        assert_eq!(scene.patch_labels(14), expected);
        assert_eq!(scene.patch_labels(20).len(), 1);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let default = SceneConfig::default;
        for (setting, config) in [
            ("kinds", SceneConfig { kinds: 0, ..default() }),
            ("kinds", SceneConfig { kinds: 100_000, ..default() }),
            ("size", SceneConfig { size: 0, ..default() }),
            ("objects", SceneConfig { objects: (0, 3), ..default() }),
            ("objects", SceneConfig { objects: (4, 3), ..default() }),
            ("object_size", SceneConfig { object_size: (f32::NAN, 30.0), ..default() }),
            ("object_size", SceneConfig { object_size: (24.0, 300.0), ..default() }),
            ("mirrored", SceneConfig { mirrored: 1.5, ..default() }),
        ] {
            let error = Scenes::new(config).expect_err("out of range");
            assert!(matches!(&error, DataError::Setting { setting: named, .. } if *named == setting), "{error}");
        }
    }

    #[test]
    fn other_sides_keep_the_proportions() {
        let config = SceneConfig::default().resized(112);
        assert_eq!((config.size, config.object_size), (112, (12.0, 70.0)));
        assert_eq!(scenes(config).scene(0).image.dimensions(), (112, 112));
    }

    proptest! {
        /// No two kinds meet in a split that is not theirs, and a held-out scene shows a held-out pair.
        #[test]
        fn splits_share_no_composition(seed in any::<u64>(), kinds in 20usize..=220, split in 0usize..3) {
            let split = [Split::Train, Split::Validation, Split::Test][split];
            let scenes = scenes(SceneConfig { kinds, split, seed, ..SceneConfig::default() });
            for _ in 0..20 {
                let drawn = scenes.draw_kinds(&mut ChaCha8Rng::seed_from_u64(seed));
                prop_assert!((3..=8).contains(&drawn.len()));
                let pairs = drawn.iter().enumerate().flat_map(|(at, first)| drawn[..at].iter().map(move |second| (*first, *second)));
                let owners: Vec<Option<Split>> = pairs.map(|(first, second)| Split::of_pair(first, second)).collect();
                prop_assert!(owners.iter().all(|owner| owner.is_none_or(|owner| owner == split)));
                prop_assert!(split == Split::Train || owners.contains(&Some(split)));
            }
        }
    }
}
