//! The 3×3 convolution with a quarter of the multiplications: Winograd's F(4×4, 3×3), for inference.
//!
//! A tile of 4×4 results depends on 6×6 values. Transformed, these 36 meet the 36 of a filter one by one, so that over
//! all channels and tiles the convolution is 36 matrix products. Source: Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks" (2015), section 4, with the points 0, ±1, ±2 and ∞.
//!
//! Maps lie place by place here, all channels of a place together: then the transforms work on whole registers of
//! channels. The filters are transformed once per call, for all maps. They stream through the cache once per block of
//! tiles, and these are so many that the arithmetic takes longer.

use pulp::{Simd, WithSimd};

use crate::{
    large_memory::large_zeros,
    level::Level,
    panel::{PANEL, Rows, multiply_panel},
    parallel::{SharedRows, for_each_index_in, map_chunks},
    resize::MapSize,
};

/// Results along a tile's side.
const TILE: usize = 4;
/// Values along the side of what a tile depends on.
const PATCH: usize = TILE + 2;
/// Values of a patch, and matrix products.
const POINTS: usize = PATCH * PATCH;
const TAPS: usize = 9;
/// Channels that the transform of a patch takes at a time.
const CHUNK: usize = 16;
/// Tiles of a block: with 1024 channels their transforms are 16 MB, which a last-level cache holds.
const BLOCK: usize = 108;

/// Maps of one size that go through a convolution.
#[derive(Debug)]
pub struct ConvMaps<'a> {
    /// How many.
    pub batch: usize,
    /// Their rows and columns.
    pub size: MapSize,
    /// What comes in: `[batch, height, width, input]`.
    pub x: &'a [f32],
    /// What goes out: `[batch, height, width, output]`.
    pub out: &'a mut [f32],
}

/// Room that one convolution after another works in.
#[derive(Debug, Default)]
pub struct Winograd {
    filters: Vec<f32>,
    patches: Vec<f32>,
}

impl Winograd {
    /// out = x ⋆ weight + beta·out for maps of several sizes, with stride 1 and one ring of zeros; with beta = 0 the
    /// old out is not read.
    ///
    /// With 1024 channels single results differ from a direct sum by up to 2·10⁻⁴ of the results' root mean square.
    ///
    /// # Shapes
    /// weight `[output, input, 3, 3]`
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn conv3x3(&mut self, weight: &[f32], input: usize, output: usize, beta: f32, maps: &mut [ConvMaps<'_>]) {
        self.conv3x3_at(Level::best(), weight, (input, output), beta, maps);
    }

    fn conv3x3_at(
        &mut self,
        level: Level,
        weight: &[f32],
        (input, output): (usize, usize),
        beta: f32,
        maps: &mut [ConvMaps<'_>],
    ) {
        assert_eq!(weight.len(), output * input * TAPS, "{input} to {output} channels");
        for maps in maps.iter() {
            let places = maps.batch * maps.size.area();
            assert_eq!((maps.x.len(), maps.out.len()), (places * input, places * output), "{:?}", maps.size);
        }
        if output == 0 {
            return;
        }
        self.transform_filters(level, weight, input);
        let tiling = Tiling::new(maps);
        let sources: Vec<&[f32]> = maps.iter().map(|maps| maps.x).collect();
        let targets: Vec<_> = maps.iter_mut().map(|maps| SharedRows::new(maps.out, output)).collect();
        for first in (0..tiling.tiles).step_by(BLOCK) {
            let tiles: Vec<Tile> = (first..tiling.tiles.min(first + BLOCK)).map(|tile| tiling.tile(tile)).collect();
            self.transform_patches(level, &tiles, &sources, input);
            self.multiply(level, &tiles, (input, output), beta, &targets);
        }
    }

    /// Writes the filters as `[panels, 36, input, 32]`.
    fn transform_filters(&mut self, level: Level, weight: &[f32], input: usize) {
        let panel = POINTS * input * PANEL;
        let outputs = weight.chunks((PANEL * input * TAPS).max(1));
        make_room(&mut self.filters, outputs.len() * panel);
        map_chunks(&mut self.filters[..outputs.len() * panel], panel, |index, out| {
            let weight = &weight[index * PANEL * input * TAPS..];
            let weight = &weight[..weight.len().min(PANEL * input * TAPS)];
            level.run(TransformFilters { weight, input, out });
        });
    }

    /// Writes the patches as `[tiles, 36, row]`.
    fn transform_patches(&mut self, level: Level, tiles: &[Tile], sources: &[&[f32]], input: usize) {
        let patch = POINTS * row_length(input);
        make_room(&mut self.patches, BLOCK * patch);
        map_chunks(&mut self.patches[..tiles.len() * patch], patch, |index, out| {
            let tile = tiles[index];
            let x = &sources[tile.maps][tile.first_place * input..][..tile.size.area() * input];
            level.run(TransformPatch { x, tile, input, out });
        });
    }

    /// For each panel of output channels the 36 products, and back from their domain.
    fn multiply(
        &self,
        level: Level,
        tiles: &[Tile],
        (input, output): (usize, usize),
        beta: f32,
        targets: &[SharedRows<'_>],
    ) {
        let row = row_length(input);
        let room = || vec![0.0; POINTS * tiles.len() * PANEL];
        for_each_index_in(output.div_ceil(PANEL), room, |products, panel| {
            let filters = &self.filters[panel * POINTS * input * PANEL..];
            for (point, products) in products.chunks_exact_mut(tiles.len() * PANEL).enumerate() {
                let left = Rows { values: &self.patches[point * row..], rows: tiles.len(), stride: POINTS * row };
                multiply_panel(level, left, &filters[point * input * PANEL..][..input * PANEL], products);
            }
            let channels = (panel * PANEL, PANEL.min(output - panel * PANEL));
            level.run(TransformProducts { products, tiles, channels, beta, targets });
        });
    }
}

fn make_room(room: &mut Vec<f32>, values: usize) {
    if room.len() < values {
        *room = large_zeros(values);
    }
}

/// Channels of a patch's row, and a gap: rows at a distance of a power of two would meet in one set of the cache.
fn row_length(input: usize) -> usize {
    input.next_multiple_of(CHUNK) + CHUNK
}

/// All tiles of all maps, one after the other.
struct Tiling {
    tiles: usize,
    /// For the maps of each size: their first tile, and tiles along a column and a row of one map.
    maps: Vec<(usize, [usize; 2], MapSize)>,
}

/// One tile, and the map it lies on.
#[derive(Clone, Copy)]
struct Tile {
    /// Which of the sizes.
    maps: usize,
    size: MapSize,
    /// Places in front of the map.
    first_place: usize,
    /// Of the tile's first result.
    row: usize,
    column: usize,
}

impl Tiling {
    fn new(maps: &[ConvMaps<'_>]) -> Self {
        let mut tiling = Self { tiles: 0, maps: Vec::new() };
        for maps in maps {
            let along = [maps.size.height.div_ceil(TILE), maps.size.width.div_ceil(TILE)];
            tiling.maps.push((tiling.tiles, along, maps.size));
            tiling.tiles += maps.batch * along[0] * along[1];
        }
        tiling
    }

    fn tile(&self, index: usize) -> Tile {
        let maps = self.maps.partition_point(|&(first, ..)| first <= index) - 1;
        let (first, [down, across], size) = self.maps[maps];
        let (map, within) = ((index - first) / (down * across), (index - first) % (down * across));
        let (row, column) = (within / across * TILE, within % across * TILE);
        Tile { maps, size, first_place: map * size.area(), row, column }
    }
}

/// Filters of one panel, `[up to 32, input, 3, 3]` → `[36, input, 32]`; absent ones become zeros.
struct TransformFilters<'a> {
    weight: &'a [f32],
    input: usize,
    out: &'a mut [f32],
}

impl WithSimd for TransformFilters<'_> {
    type Output = ();

    /// Several channels at a time, so that each filter is read along its row: rows lie at a distance at which they
    /// would meet in one set of the cache.
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut taps = [[[0.0; PANEL]; TAPS]; CHUNK];
        for first in (0..self.input).step_by(CHUNK) {
            let channels = first..self.input.min(first + CHUNK);
            for (lane, filters) in self.weight.chunks_exact(self.input * TAPS).enumerate() {
                let (filters, _) = filters[channels.start * TAPS..channels.end * TAPS].as_chunks::<TAPS>();
                for (taps, filter) in taps.iter_mut().zip(filters) {
                    taps.iter_mut().zip(filter).for_each(|(taps, &value)| taps[lane] = value);
                }
            }
            for (channel, taps) in channels.zip(&taps) {
                self.transform(simd, channel, taps);
            }
        }
    }
}

impl TransformFilters<'_> {
    /// One input channel.
    #[inline(always)]
    fn transform<S: Simd>(&mut self, simd: S, channel: usize, taps: &[[f32; PANEL]; TAPS]) {
        for lane in (0..PANEL).step_by(S::F32_LANES) {
            let mut columns = [[simd.splat_f32s(0.0); PATCH]; 3];
            for (index, column) in columns.iter_mut().enumerate() {
                let mut rows = [simd.splat_f32s(0.0); 3];
                for (row, tap) in rows.iter_mut().enumerate() {
                    *tap = S::as_simd_f32s(&taps[3 * row + index][lane..]).0[0];
                }
                *column = filter(simd, rows);
            }
            for row in 0..PATCH {
                let values = filter(simd, in_row(simd, &columns, row));
                for (column, value) in values.into_iter().enumerate() {
                    let place = ((row * PATCH + column) * self.input + channel) * PANEL + lane;
                    S::as_mut_simd_f32s(&mut self.out[place..place + S::F32_LANES]).0[0] = value;
                }
            }
        }
    }
}

/// A tile's patch, `[36, row]`.
struct TransformPatch<'a> {
    x: &'a [f32],
    tile: Tile,
    input: usize,
    out: &'a mut [f32],
}

impl WithSimd for TransformPatch<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut patch = [[0.0; CHUNK]; POINTS];
        for channel in (0..self.input).step_by(CHUNK) {
            self.read(channel, &mut patch);
            for lane in (0..CHUNK).step_by(S::F32_LANES) {
                let mut columns = [[simd.splat_f32s(0.0); PATCH]; PATCH];
                for (index, column) in columns.iter_mut().enumerate() {
                    for (row, value) in column.iter_mut().enumerate() {
                        *value = S::as_simd_f32s(&patch[row * PATCH + index][lane..]).0[0];
                    }
                    *column = analyse(simd, *column);
                }
                for row in 0..PATCH {
                    let values = analyse(simd, in_row(simd, &columns, row));
                    for (column, value) in values.into_iter().enumerate() {
                        let place = (row * PATCH + column) * row_length(self.input) + channel + lane;
                        S::as_mut_simd_f32s(&mut self.out[place..place + S::F32_LANES]).0[0] = value;
                    }
                }
            }
        }
    }
}

impl TransformPatch<'_> {
    /// Some channels of what the tile depends on; zeros beyond the map and the last channel.
    #[inline(always)]
    fn read(&self, channel: usize, patch: &mut [[f32; CHUNK]; POINTS]) {
        let Tile { size, row, column, .. } = self.tile;
        for (index, values) in patch.iter_mut().enumerate() {
            // The ring of zeros comes first, hence one row and one column back; what is before 0 wraps around.
            let (row, column) = ((row + index / PATCH).wrapping_sub(1), (column + index % PATCH).wrapping_sub(1));
            if row < size.height && column < size.width {
                let place = row * size.width + column;
                let here = &self.x[place * self.input + channel..(place + 1) * self.input];
                match here.first_chunk() {
                    Some(here) => *values = *here,
                    None => {
                        *values = [0.0; CHUNK];
                        values[..here.len()].copy_from_slice(here);
                    }
                }
            } else {
                *values = [0.0; CHUNK];
            }
        }
    }
}

/// The results of all tiles for one panel of channels, out of its products `[36, tiles, 32]`.
struct TransformProducts<'a> {
    products: &'a [f32],
    tiles: &'a [Tile],
    /// The first channel of the panel, and how many there are.
    channels: (usize, usize),
    beta: f32,
    targets: &'a [SharedRows<'a>],
}

impl WithSimd for TransformProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut results = [[0.0; PANEL]; TILE * TILE];
        for (index, &tile) in self.tiles.iter().enumerate() {
            for lane in (0..PANEL).step_by(S::F32_LANES) {
                let mut columns = [[simd.splat_f32s(0.0); TILE]; PATCH];
                for (x, column) in columns.iter_mut().enumerate() {
                    let mut products = [simd.splat_f32s(0.0); PATCH];
                    for (y, product) in products.iter_mut().enumerate() {
                        let place = ((y * PATCH + x) * self.tiles.len() + index) * PANEL + lane;
                        *product = S::as_simd_f32s(&self.products[place..place + S::F32_LANES]).0[0];
                    }
                    *column = synthesise(simd, products);
                }
                for row in 0..TILE {
                    let values = synthesise(simd, in_row(simd, &columns, row));
                    for (column, value) in values.into_iter().enumerate() {
                        S::as_mut_simd_f32s(&mut results[row * TILE + column][lane..lane + S::F32_LANES]).0[0] = value;
                    }
                }
            }
            self.write(tile, &results);
        }
    }
}

impl TransformProducts<'_> {
    /// Puts those results that lie on the map in their places.
    #[inline(always)]
    fn write(&self, tile: Tile, results: &[[f32; PANEL]; TILE * TILE]) {
        let (first, count) = self.channels;
        for (index, results) in results.iter().enumerate() {
            let (row, column) = (tile.row + index / TILE, tile.column + index % TILE);
            if row < tile.size.height && column < tile.size.width {
                let place = tile.first_place + row * tile.size.width + column;
                // SAFETY: Each task has a panel of channels to itself, and no tile shares a place with another.
                let out = unsafe { self.targets[tile.maps].row(place, first..first + count) };
                match out.first_chunk_mut::<PANEL>() {
                    Some(whole) => self.add(results, whole),
                    None => self.add(results, out),
                }
            }
        }
    }

    #[inline(always)]
    fn add(&self, results: &[f32; PANEL], out: &mut [f32]) {
        for (out, result) in out.iter_mut().zip(results) {
            *out = if self.beta == 0.0 { *result } else { self.beta * *out + result };
        }
    }
}

/// One value of each column. A loop, since `array::map` is not inlined into code for wider registers.
#[inline(always)]
fn in_row<S: Simd, const N: usize, const ROWS: usize>(
    simd: S,
    columns: &[[S::f32s; ROWS]; N],
    row: usize,
) -> [S::f32s; N] {
    let mut values = [simd.splat_f32s(0.0); N];
    values.iter_mut().zip(columns).for_each(|(value, column)| *value = column[row]);
    values
}

/// Three taps at the six points.
#[inline(always)]
fn filter<S: Simd>(simd: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; PATCH] {
    let times = |x, factor| simd.mul_f32s(x, simd.splat_f32s(factor));
    let outer = simd.add_f32s(a, c);
    let wide = times(simd.mul_add_e_f32s(c, simd.splat_f32s(4.0), a), 1.0 / 24.0);
    let inner = times(b, 1.0 / 12.0);
    [
        times(a, 1.0 / 4.0),
        times(simd.add_f32s(outer, b), -1.0 / 6.0),
        times(simd.sub_f32s(outer, b), -1.0 / 6.0),
        simd.add_f32s(wide, inner),
        simd.sub_f32s(wide, inner),
        c,
    ]
}

/// Six neighbouring values in the domain of the products.
#[inline(always)]
fn analyse<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; PATCH]) -> [S::f32s; PATCH] {
    let plus = |x, factor, y| simd.mul_add_e_f32s(x, simd.splat_f32s(factor), y);
    let (even, odd) = (plus(c, -4.0, e), plus(b, -4.0, d));
    let (step, slope) = (simd.sub_f32s(e, c), simd.sub_f32s(d, b));
    [
        plus(a, 4.0, plus(c, -5.0, e)),
        simd.add_f32s(even, odd),
        simd.sub_f32s(even, odd),
        plus(slope, 2.0, step),
        plus(slope, -2.0, step),
        plus(b, 4.0, plus(d, -5.0, f)),
    ]
}

/// Four neighbouring results out of six products.
#[inline(always)]
fn synthesise<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; PATCH]) -> [S::f32s; TILE] {
    let plus = |x, factor, y| simd.mul_add_e_f32s(x, simd.splat_f32s(factor), y);
    let (near, near_slope) = (simd.add_f32s(b, c), simd.sub_f32s(b, c));
    let (far, far_slope) = (simd.add_f32s(d, e), simd.sub_f32s(d, e));
    [
        simd.add_f32s(simd.add_f32s(a, near), far),
        plus(far_slope, 2.0, near_slope),
        plus(far, 4.0, near),
        simd.add_f32s(plus(far_slope, 8.0, near_slope), f),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Conv3x3Shape, conv3x3,
        test_values::{assert_close, values},
    };
    use proptest::prelude::*;

    /// `[batch, rows, columns]` → `[batch, columns, rows]`
    fn turn(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        let turned = |map: &[f32]| {
            (0..columns).flat_map(|j| (0..rows).map(move |i| (i, j))).map(|(i, j)| map[i * columns + j]).collect()
        };
        x.chunks_exact(rows * columns).map(turned).collect::<Vec<Vec<f32>>>().concat()
    }

    /// The convolution as nine products, which has tests of its own.
    fn direct(x: &[f32], weight: &[f32], shape: Conv3x3Shape) -> Vec<f32> {
        let Conv3x3Shape { batch, input, output, height, width } = shape;
        let mut out = vec![0.0; batch * output * height * width];
        conv3x3(&turn(x, height * width, input), weight, None, shape, &mut out);
        turn(&out, output, height * width)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_level_agrees_with_the_direct_convolution(
            sizes in prop::collection::vec((0usize..3, 1usize..15, 1usize..15), 1..4),
            (input, output) in (1usize..40, 1usize..70),
            beta in prop::sample::select(vec![0.0f32, 1.0, -0.5]),
            seed: u64,
        ) {
            let weight = values(output * input * TAPS, seed);
            let shapes = sizes.iter().map(|&(batch, height, width)| Conv3x3Shape { batch, input, output, height, width });
            let shapes: Vec<_> = shapes.collect();
            let x: Vec<_> = shapes.iter().map(|s| values(s.batch * s.height * s.width * input, seed ^ 1)).collect();
            let old: Vec<_> = shapes.iter().map(|s| values(s.batch * s.height * s.width * output, seed ^ 2)).collect();
            for level in Level::all() {
                let mut outs = old.clone();
                let maps = shapes.iter().zip(&x).zip(&mut outs).map(|((shape, x), out)| {
                    let size = MapSize { height: shape.height, width: shape.width };
                    ConvMaps { batch: shape.batch, size, x, out }
                });
                let mut maps: Vec<_> = maps.collect();
                Winograd::default().conv3x3_at(level, &weight, (input, output), beta, &mut maps);
                for (((shape, x), out), old) in shapes.iter().zip(&x).zip(&outs).zip(&old) {
                    let expected = direct(x, &weight, *shape);
                    let expected: Vec<_> = expected.iter().zip(old).map(|(y, old)| y + beta * old).collect();
                    // Up to 360 products of values between -1 and 1 have a root mean square of up to 6, of which the
                    // transforms lose up to two in ten thousand.
                    assert_close(out, &expected, 1.2e-3);
                }
            }
        }
    }

    /// The first 64 outputs of a convolution as wide as the original's: the error is measured against the root mean
    /// square of the results.
    #[test]
    fn a_thousand_channels_lose_little_precision() {
        let (input, output, size) = (1024, 64, MapSize { height: 14, width: 14 });
        let (x, weight) = (values(size.area() * input, 1), values(output * input * TAPS, 2));
        let shape = Conv3x3Shape { batch: 1, input, output, height: size.height, width: size.width };
        let expected = direct(&x, &weight, shape);
        let mut out = vec![0.0; expected.len()];
        let mut maps = [ConvMaps { batch: 1, size, x: &x, out: &mut out }];
        Winograd::default().conv3x3(&weight, input, output, 0.0, &mut maps);
        let rms = (expected.iter().map(|y| y * y).sum::<f32>() / expected.len() as f32).sqrt();
        let worst = out.iter().zip(&expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
        assert!(worst < 5e-4 * rms, "{worst} of {rms}");
    }

    /// A map of ones and a filter of ones count the neighbours of each place.
    #[test]
    fn ones_count_neighbours() {
        let size = MapSize { height: 5, width: 5 };
        let mut out = vec![0.0; 25];
        Winograd::default().conv3x3(
            &[1.0; 9],
            1,
            1,
            0.0,
            &mut [ConvMaps { batch: 1, size, x: &[1.0; 25], out: &mut out }],
        );
        let at_edge = |line: usize| if line.is_multiple_of(4) { 2.0 } else { 3.0 };
        let expected: Vec<f32> = (0..25).map(|place| at_edge(place / 5) * at_edge(place % 5)).collect();
        assert_close(&out, &expected, 1e-5);
    }
}
