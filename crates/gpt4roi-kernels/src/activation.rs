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
