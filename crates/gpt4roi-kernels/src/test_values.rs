//! Numbers to test with, and comparisons of them.

use std::ops::Range;

/// Values between −1 and 1 that look random and are the same every time.
pub(crate) fn values(length: usize, seed: u64) -> Vec<f32> {
    random(seed).take(length).map(|z| (z >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Bytes that look random and are the same every time.
pub(crate) fn bytes(length: usize, seed: u64) -> Vec<u8> {
    random(seed).flat_map(u64::to_le_bytes).take(length).collect()
}

/// SplitMix64.
fn random(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// grad·W in f64 sums.
pub(crate) fn transposed_product(grad: &[f32], weights: &[f32], columns: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for grad in grad.chunks(weights.len() / columns) {
        let mut sums = vec![0f64; columns];
        for (&grad, weights) in grad.iter().zip(weights.chunks(columns)) {
            sums.iter_mut().zip(weights).for_each(|(sum, &weight)| *sum += f64::from(grad) * f64::from(weight));
        }
        out.extend(sums.iter().map(|&sum| sum as f32));
    }
    out
}

/// Both within `tolerance` of each other, relative to the larger of 1 and the value.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= tolerance * expected.abs().max(1.0), "value {index}: got {got}, expected {expected}");
    }
}

/// The gradient of Σ forward(x)·direction by central differences in f64 sums, against `gradient`.
#[track_caller]
pub(crate) fn assert_gradient(
    x: &[f32],
    direction: &[f32],
    gradient: &[f32],
    places: Range<usize>,
    forward: impl Fn(&[f32]) -> Vec<f32>,
) {
    const STEP: f32 = 1.0 / 128.0;
    let along =
        |x: &[f32]| -> f64 { forward(x).iter().zip(direction).map(|(&y, &d)| f64::from(y) * f64::from(d)).sum() };
    for place in places {
        let (mut above, mut below) = (x.to_vec(), x.to_vec());
        above[place] += STEP;
        below[place] -= STEP;
        let expected = (along(&above) - along(&below)) / f64::from(above[place] - below[place]);
        let got = f64::from(gradient[place]);
        let scale = expected.abs().max(1.0);
        assert!((got - expected).abs() < 3e-3 * scale, "place {place}: got {got}, differences say {expected}");
    }
}
