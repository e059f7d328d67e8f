//! Elementwise functions between the linear layers.

use crate::{
    exp::{exp1, sigmoid},
    parallel::for_blocks,
};

/// The slope inside [`quick_gelu`].
const QUICK: f32 = 1.702;

/// x·sigmoid(1.702·x), the approximation of GELU that OpenAI trained CLIP with.
///
/// # Panics
/// If the lengths differ.
pub fn quick_gelu(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    for_blocks(out, |start, out| quick_gelu_block(&x[start..][..out.len()], out));
}

wide! {
    fn quick_gelu_block(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * sigmoid(QUICK * x);
        }
    }
}

/// The gradient of [`quick_gelu`].
///
/// # Panics
/// If the lengths differ.
pub fn quick_gelu_backward(x: &[f32], grad: &[f32], grad_x: &mut [f32]) {
    assert_eq!((x.len(), grad.len()), (grad_x.len(), grad_x.len()));
    for_blocks(grad_x, |start, out| {
        quick_gelu_backward_block(&x[start..][..out.len()], &grad[start..][..out.len()], out);
    });
}

wide! {
    fn quick_gelu_backward_block(x: &[f32], grad: &[f32], out: &mut [f32]) {
        for ((out, &x), &grad) in out.iter_mut().zip(x).zip(grad) {
            let gate = sigmoid(QUICK * x);
            *out = grad * gate * (1.0 + QUICK * x * (1.0 - gate));
        }
    }
}

/// x·Φ(x) with the error function.
///
/// # Panics
/// If the lengths differ.
pub fn gelu(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    for_blocks(out, |start, out| gelu_block(&x[start..][..out.len()], out));
}

wide! {
    fn gelu_block(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * normal_cdf(x);
        }
    }
}

/// The gradient of [`gelu`].
///
/// # Panics
/// If the lengths differ.
pub fn gelu_backward(x: &[f32], grad: &[f32], grad_x: &mut [f32]) {
    assert_eq!((x.len(), grad.len()), (grad_x.len(), grad_x.len()));
    for_blocks(grad_x, |start, out| {
        gelu_backward_block(&x[start..][..out.len()], &grad[start..][..out.len()], out);
    });
}

wide! {
    fn gelu_backward_block(x: &[f32], grad: &[f32], out: &mut [f32]) {
        const DENSITY_AT_0: f32 = 0.398_942_3;
        for ((out, &x), &grad) in out.iter_mut().zip(x).zip(grad) {
            *out = grad * (normal_cdf(x) + x * DENSITY_AT_0 * exp1(-0.5 * x * x));
        }
    }
}

/// Φ, the share of a normal distribution below x.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

/// The error function as a quotient of polynomials, the one of Eigen and XLA; error below 10⁻⁶.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = if x < -4.0 { -4.0 } else { x };
    let x = if x > 4.0 { 4.0 } else { x };
    let s = x * x;
    let p = -2.726_142_3e-10;
    let p = p * s + 2.770_681_4e-8;
    let p = p * s - 2.101_024e-6;
    let p = p * s - 5.692_506_4e-5;
    let p = p * s - 7.349_906_3e-4;
    let p = p * s - 2.954_599_8e-3;
    let p = p * s - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * s - 2.133_740_6e-4;
    let q = q * s - 1.682_827e-3;
    let q = q * s - 7.373_329_2e-3;
    let q = q * s - 1.426_473_9e-2;
    x * p / q
}

/// silu(gate)·up, the gated feed-forward of LLaMA.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!((gate.len(), up.len()), (out.len(), out.len()));
    for_blocks(out, |start, out| swiglu_block(&gate[start..][..out.len()], &up[start..][..out.len()], out));
}

wide! {
    fn swiglu_block(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }
}

/// The gradients of [`swiglu`] with respect to gate and up.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu_backward(gate: &[f32], up: &[f32], grad: &[f32], grad_gate: &mut [f32], grad_up: &mut [f32]) {
    let length = grad.len();
    assert_eq!((gate.len(), up.len(), grad_gate.len(), grad_up.len()), (length, length, length, length));
    for_blocks(grad_gate, |start, out| {
        let place = start..start + out.len();
        swiglu_gate_block(&gate[place.clone()], &up[place.clone()], &grad[place], out);
    });
    // d(silu(gate)·up)/d(up), scaled: the forward with the gradient in the place of up.
    swiglu(gate, grad, grad_up);
}

wide! {
    fn swiglu_gate_block(gate: &[f32], up: &[f32], grad: &[f32], out: &mut [f32]) {
        for (((out, &gate), &up), &grad) in out.iter_mut().zip(gate).zip(up).zip(grad) {
            let open = sigmoid(gate);
            *out = grad * up * open * (1.0 + gate * (1.0 - open));
        }
    }
}

/// The larger of x and 0; what is no number stays none.
///
/// # Panics
/// If the lengths differ.
pub fn relu(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    for_blocks(out, |start, out| relu_block(&x[start..][..out.len()], out));
}

wide! {
    fn relu_block(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = if x < 0.0 { 0.0 } else { x };
        }
    }
}

/// The gradient of [`relu`], 0 at 0.
///
/// # Panics
/// If the lengths differ.
pub fn relu_backward(x: &[f32], grad: &[f32], grad_x: &mut [f32]) {
    assert_eq!((x.len(), grad.len()), (grad_x.len(), grad_x.len()));
    for_blocks(grad_x, |start, out| {
        relu_backward_block(&x[start..][..out.len()], &grad[start..][..out.len()], out);
    });
}

wide! {
    fn relu_backward_block(x: &[f32], grad: &[f32], out: &mut [f32]) {
        for ((out, &x), &grad) in out.iter_mut().zip(x).zip(grad) {
            *out = if x > 0.0 { grad } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, assert_gradient, values};

    /// Places from −12 to 12, more of them than one block has.
    fn places() -> Vec<f32> {
        (-12_000..=12_000).map(|i| i as f32 * 1e-3 + 1e-4).collect()
    }

    /// erf by its Taylor series; it converges for every x, and f64 holds its terms up to |x| = 4.
    fn erf_series(x: f64) -> f64 {
        if x.abs() > 4.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[track_caller]
    fn assert_function(
        forward: fn(&[f32], &mut [f32]),
        backward: fn(&[f32], &[f32], &mut [f32]),
        expected: impl Fn(f64) -> f64,
        slope: impl Fn(f64) -> f64,
    ) {
        let x = places();
        let (mut out, mut grad_x) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        forward(&x, &mut out);
        let values: Vec<f32> = x.iter().map(|&x| expected(f64::from(x)) as f32).collect();
        assert_close(&out, &values, 2e-6);
        backward(&x, &vec![2.0; x.len()], &mut grad_x);
        let slopes: Vec<f32> = x.iter().map(|&x| (2.0 * slope(f64::from(x))) as f32).collect();
        assert_close(&grad_x, &slopes, 4e-6);
    }

    #[test]
    fn activations_agree_with_their_definitions() {
        let gate = |x: f64| 1.0 / (1.0 + (-1.702 * x).exp());
        let quick_slope = |x: f64| gate(x) + 1.702 * x * gate(x) * (1.0 - gate(x));
        assert_function(quick_gelu, quick_gelu_backward, |x| x * gate(x), quick_slope);
        let cdf = |x: f64| 0.5 + 0.5 * erf_series(x * std::f64::consts::FRAC_1_SQRT_2);
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        assert_function(gelu, gelu_backward, |x| x * cdf(x), |x| cdf(x) + x * density(x));
        assert_function(relu, relu_backward, |x| x.max(0.0), |x| if x > 0.0 { 1.0 } else { 0.0 });
    }

    #[test]
    fn swiglu_agrees_with_its_definition() {
        let (gate, up, grad) = (values(1000, 1), values(1000, 2), values(1000, 3));
        let reference = |gate: &[f32], up: &[f32]| -> Vec<f32> {
            gate.iter().zip(up).map(|(&g, &u)| (f64::from(g) / (1.0 + (-f64::from(g)).exp())) as f32 * u).collect()
        };
        let mut out = vec![f32::NAN; 1000];
        swiglu(&gate, &up, &mut out);
        assert_close(&out, &reference(&gate, &up), 1e-6);
        let (mut grad_gate, mut grad_up) = (vec![f32::NAN; 1000], vec![f32::NAN; 1000]);
        swiglu_backward(&gate, &up, &grad, &mut grad_gate, &mut grad_up);
        assert_gradient(&gate, &grad, &grad_gate, 0..20, |gate| reference(gate, &up));
        assert_gradient(&up, &grad, &grad_up, 980..1000, |up| reference(&gate, up));
    }

    #[test]
    fn relu_is_flat_at_zero_and_keeps_nan() {
        let (mut out, mut grad) = ([0.0; 3], [9.0; 3]);
        relu(&[-1.0, 0.0, f32::NAN], &mut out);
        assert_eq!(out[..2], [0.0, 0.0]);
        assert!(out[2].is_nan());
        relu_backward(&[-1.0, 0.0, 2.0], &[5.0; 3], &mut grad);
        assert_eq!(grad, [0.0, 0.0, 5.0]);
    }
}
