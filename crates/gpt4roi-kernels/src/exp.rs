//! The exponential function, written so that the compiler turns loops over it into vector code.

use crate::parallel::for_blocks;

/// eˣ of every value; relative error below 2·10⁻⁷ where the result is a normal number.
///
/// # Panics
/// If the lengths differ.
pub fn exp(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    for_blocks(out, |start, out| exp_block(&x[start..][..out.len()], out));
}

wide! {
    fn exp_block(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = exp1(x);
        }
    }
}

/// eˣ. Below −87.3 the result stays at the smallest normal number, above 88.7 near the largest; what
/// is no number stays none.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, and eʳ by the polynomial of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp1(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.376_26;
    /// 1.5·2²³: adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 as 0x1.63p-1, exact in few bits, and what is missing to it.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // These comparisons let a NaN through, where `clamp` on the result of `max` would not.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let p = p * (r * r) + r + 1.0;
    let power = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(power)
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp1(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_agrees_with_f64() {
        let x: Vec<f32> = (-87_000..=88_000).map(|i| i as f32 * 1e-3).collect();
        let mut out = vec![0.0; x.len()];
        exp(&x, &mut out);
        for (&x, &got) in x.iter().zip(&out) {
            let expected = f64::from(x).exp();
            let relative = ((f64::from(got) - expected) / expected).abs();
            assert!(relative < 2e-7, "exp({x}) = {got}, expected {expected}");
        }
    }

    #[test]
    fn the_ends_of_the_range_saturate_and_nan_stays() {
        assert!(exp1(-1e4) > 0.0 && exp1(-1e4) < 2e-38);
        assert!(exp1(f32::NEG_INFINITY) < 2e-38);
        assert!(exp1(1e4) > 2e38 && exp1(1e4).is_finite());
        assert!(exp1(f32::NAN).is_nan());
        assert_eq!(exp1(0.0), 1.0);
        assert_eq!(sigmoid(0.0), 0.5);
    }
}
