//! How fast the kernels are, at sizes of the original or near to them.
//!
//! ```console
//! cargo bench -p gpt4roi-kernels [-- NAME]
//! RAYON_NUM_THREADS=1 cargo bench -p gpt4roi-kernels -- linear
//! ```
//!
//! Throughput is in elements: operations of the definition, two to a multiplication, or bytes where memory is the limit.
//! Each takes a second or so. What is compared stands in one group, so that both are measured on the same machine.

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gpt4roi_kernels::{
    AttentionShape, Branch, Channels, Conv3x3Shape, ConvMaps, GroupNormShape, HalfFormat, HalfMatrix, MapSize, Prefix,
    QuantFormat, QuantMatrix, RoiAlignShape, Winograd, attention, branched_attention, conv3x3, group_norm,
    group_norm_relu_channels, layer_norm, linear, resize_bilinear, resize_channels, rms_norm, roi_align,
    roi_align_channels,
};
use half::f16;

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = convolutions, resizes, region_pooling, attentions, decoding, linear_layers, packing, norms
}
criterion_main!(kernels);

/// Values between −1 and 1.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.618_034).fract() * 2.0 - 1.0).collect()
}

fn area(size: MapSize) -> usize {
    size.height * size.width
}

/// A round of the pyramid on its coarsest map but one, and at half of its channels.
fn convolutions(criterion: &mut Criterion) {
    let (channels, size) = (512, MapSize { height: 32, width: 32 });
    let (x, weight) = (values(channels * area(size)), values(channels * channels * 9));
    let mut out = vec![0.0; x.len()];
    let mut group = criterion.benchmark_group("conv3x3");
    group.throughput(Throughput::Elements((18 * channels * channels * area(size)) as u64));
    let mut winograd = Winograd::default();
    group.bench_function("winograd", |bencher| {
        bencher.iter(|| {
            let maps = ConvMaps { batch: 1, size, x: &x, out: &mut out };
            winograd.conv3x3(&weight, channels, channels, 0.0, &mut [maps]);
        });
    });
    let mut out = vec![0.0; x.len()];
    let shape = Conv3x3Shape { batch: 1, input: channels, output: channels, height: size.height, width: size.width };
    group.bench_function("direct", |bencher| bencher.iter(|| conv3x3(&x, &weight, None, shape, &mut out)));
}

/// From the patch grid to the second finest level.
fn resizes(criterion: &mut Criterion) {
    let square = |side| MapSize { height: side, width: side };
    let (channels, from, to) = (1024, square(16), square(64));
    let x = values(channels * area(from));
    let mut out = vec![0.0; channels * area(to)];
    let mut group = criterion.benchmark_group("resize");
    group.throughput(Throughput::Bytes(4 * out.len() as u64));
    group.bench_function("by place", |bencher| {
        bencher.iter(|| resize_channels(&[Channels::all(&x, from)], to, &mut out));
    });
    group.bench_function("by channel", |bencher| bencher.iter(|| resize_bilinear(&x, from, to, &mut out)));
}

/// Four boxes out of one level.
fn region_pooling(criterion: &mut Criterion) {
    let shape = RoiAlignShape {
        channels: 1024,
        height: 64,
        width: 64,
        size: 14,
        sampling_ratio: 2,
        spatial_scale: 64.0 / 224.0,
    };
    let boxes =
        [[10.0, 20.0, 90.0, 200.0], [0.0, 0.0, 224.0, 224.0], [100.0, 3.0, 130.0, 40.0], [50.0, 60.0, 70.0, 80.0]];
    let map = values(shape.channels * shape.height * shape.width);
    let mut out = vec![0.0; boxes.len() * shape.channels * shape.size * shape.size];
    let mut group = criterion.benchmark_group("roi_align");
    group.throughput(Throughput::Bytes(4 * out.len() as u64));
    group.bench_function("by place", |bencher| bencher.iter(|| roi_align_channels(&map, &boxes, shape, &mut out)));
    group.bench_function("by channel", |bencher| bencher.iter(|| roi_align(&map, &boxes, shape, &mut out)));
}

/// Sixteen sequences that decode behind one prompt, together and each by itself.
fn attentions(criterion: &mut Criterion) {
    let (heads, head_dim, shared, own, sequences) = (32, 128, 320, 16, 16);
    let width = heads * head_dim;
    let (keys, values_of_keys) = (values((shared + own) * width), values((shared + own) * width));
    let q = values(sequences * width);
    let mut out = vec![0.0; q.len()];
    let mut group = criterion.benchmark_group("attention of 16 sequences");
    group.throughput(Throughput::Elements((4 * sequences * (shared + own) * width) as u64));
    group.bench_function("shared prefix", |bencher| {
        let (prefix_keys, own_keys) = keys.split_at(shared * width);
        let (prefix_values, own_values) = values_of_keys.split_at(shared * width);
        let prefix = Prefix { keys: prefix_keys, values: prefix_values };
        let branches: Vec<_> =
            (0..sequences).map(|_| Branch { keys: own_keys, values: own_values, queries: 1 }).collect();
        bencher.iter(|| branched_attention(&q, prefix, &branches, heads, head_dim, &mut out));
    });
    let mut out = vec![0.0; q.len()];
    group.bench_function("one by one", |bencher| {
        let shape = AttentionShape { batch: 1, queries: 1, keys: shared + own, heads, head_dim };
        bencher.iter(|| {
            for (q, out) in q.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                attention(q, &keys, &values_of_keys, shape, &|_| (0..shared + own, 0..0), out);
            }
        });
    });
}

/// One step of decoding behind 345 tokens, 32 layers one after the other as in the 7B, so that keys and values come from
/// memory.
fn decoding(criterion: &mut Criterion) {
    let (layers, heads, head_dim, tokens) = (32, 32, 128, 345);
    let width = heads * head_dim;
    let remembered: Vec<f16> = values(2 * layers * tokens * width).into_iter().map(f16::from_f32).collect();
    for queries in [1, 2, 4, 8, 16] {
        let q = values(queries * width);
        let mut out = vec![0.0; q.len()];
        let mut group = criterion.benchmark_group(format!("attention of {queries} queries"));
        group.throughput(Throughput::Bytes(2 * remembered.len() as u64));
        group.bench_function("f16", |bencher| {
            bencher.iter(|| {
                for layer in remembered.chunks_exact(2 * tokens * width) {
                    let (keys, values) = layer.split_at(tokens * width);
                    let branch = Branch { keys, values, queries };
                    branched_attention(&q, Prefix { keys: &[], values: &[] }, &[branch], heads, head_dim, &mut out);
                }
            });
        });
    }
}

const FORMATS: [(&str, QuantFormat); 3] =
    [("q4_k", QuantFormat::Q4K), ("q6_k", QuantFormat::Q6K), ("q8_0", QuantFormat::Q8_0)];

/// Blocks whose scales are 1, whatever their other bytes are.
fn blocks(format: QuantFormat, rows: usize, columns: usize) -> Vec<u8> {
    let mut blocks = vec![0x5a; format.bytes(rows, columns).unwrap_or(0)];
    let halves: &[usize] = match format {
        QuantFormat::Q4K => &[0, 2],
        QuantFormat::Q6K => &[208],
        QuantFormat::Q8_0 => &[0],
    };
    for block in blocks.chunks_exact_mut(format.block_bytes()) {
        halves.iter().for_each(|&place| block[place..place + 2].copy_from_slice(&0x3c00u16.to_le_bytes()));
    }
    blocks
}

/// Every way to store a matrix of the 7B, against one row, a few, and a prompt's worth of them.
fn linear_layers(criterion: &mut Criterion) {
    let (rows, columns) = (4096, 11008);
    let floats = values(rows * columns);
    for n in [1, 2, 4, 8, 64, 320] {
        let x = values(n * columns);
        let mut y = vec![0.0; n * rows];
        let mut group = criterion.benchmark_group(format!("linear, {n} rows"));
        group.throughput(Throughput::Elements((2 * n * rows * columns) as u64));
        group.bench_function("f32", |bencher| bencher.iter(|| linear(&x, &floats, (columns, rows), &mut y)));
        for (name, format) in [("f16", HalfFormat::F16), ("bf16", HalfFormat::Bf16)] {
            let Ok(matrix) = HalfMatrix::from_f32(format, rows, columns, &floats) else { continue };
            group.bench_function(name, |bencher| bencher.iter(|| matrix.product(&x, &mut y)));
        }
        for (name, format) in FORMATS {
            let Ok(matrix) = QuantMatrix::new(format, rows, columns, &blocks(format, rows, columns)) else { continue };
            group.bench_function(name, |bencher| bencher.iter(|| matrix.product(&x, &mut y)));
        }
    }
}

/// Blocks of a file into the tiles that products read.
fn packing(criterion: &mut Criterion) {
    let (rows, columns) = (4096, 4096);
    let mut group = criterion.benchmark_group("packing");
    for (name, format) in FORMATS {
        let blocks = blocks(format, rows, columns);
        group.throughput(Throughput::Bytes(blocks.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(QuantMatrix::new(format, rows, columns, &blocks)).is_ok());
        });
    }
}

/// The pyramid's, the tower's and the language model's, by bytes read.
fn norms(criterion: &mut Criterion) {
    let (rows, width) = (320, 4096);
    let (x, weight) = (values(rows * width), values(width));
    let mut out = vec![0.0; x.len()];
    let mut group = criterion.benchmark_group("norm");
    group.throughput(Throughput::Bytes(4 * x.len() as u64));
    group.bench_function("rms", |bencher| bencher.iter(|| rms_norm(&x, &weight, 1e-6, &mut out)));
    group.bench_function("layer", |bencher| bencher.iter(|| layer_norm(&x, &weight, &weight, 1e-5, &mut out)));
    let shape = GroupNormShape { channels: 1024, groups: 64, area: rows * width / 1024 };
    let (weight, bias) = (&weight[..1024], &weight[1024..2048]);
    group.bench_function("group", |bencher| bencher.iter(|| group_norm(&x, weight, bias, shape, 1e-5, &mut out)));
    let mut map = x.clone();
    group.bench_function("group and ReLU, by place", |bencher| {
        bencher.iter(|| group_norm_relu_channels(&mut map, weight, bias, 64, 1e-5));
    });
}
