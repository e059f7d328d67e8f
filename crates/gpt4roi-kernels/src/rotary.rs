//! Rotary position embedding.

use crate::parallel::map_chunks;

/// Turns the two halves of each head against each other by the angles of the token's place.
///
/// # Shapes
/// x and out `[tokens, heads·D]`; cos and sin `[tokens, D/2]`, or a whole number of repetitions of
/// these in x for a batch
///
/// # Panics
/// If the lengths do not fit.
pub fn rotary(x: &[f32], cos: &[f32], sin: &[f32], half: usize, heads: usize, out: &mut [f32]) {
    turn(x, cos, sin, half, heads, out, 1.0);
}

/// The gradient of [`rotary`]: the turn back.
///
/// # Panics
/// If the lengths do not fit.
pub fn rotary_backward(grad: &[f32], cos: &[f32], sin: &[f32], half: usize, heads: usize, grad_x: &mut [f32]) {
    turn(grad, cos, sin, half, heads, grad_x, -1.0);
}

fn turn(x: &[f32], cos: &[f32], sin: &[f32], half: usize, heads: usize, out: &mut [f32], direction: f32) {
    assert_eq!((x.len(), cos.len()), (out.len(), sin.len()));
    let (width, tokens) = (2 * half * heads, cos.len() / half.max(1));
    if width == 0 || tokens == 0 {
        return;
    }
    assert!(x.len().is_multiple_of(tokens * width), "{} values for {tokens} tokens of {width}", x.len());
    const TOKENS: usize = 32;
    map_chunks(out, TOKENS * width, |index, out| {
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let token = index * TOKENS + row;
            let angles = token % tokens * half..(token % tokens + 1) * half;
            turn_token(&x[token * width..][..width], &cos[angles.clone()], &sin[angles], direction, out);
        }
    });
}

wide! {
    fn turn_token(x: &[f32], cos: &[f32], sin: &[f32], direction: f32, out: &mut [f32]) {
        let half = cos.len();
        for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
            let ((near, far), (out_near, out_far)) = (x.split_at(half), out.split_at_mut(half));
            for i in 0..half {
                let sin = sin[i] * direction;
                out_near[i] = near[i] * cos[i] - far[i] * sin;
                out_far[i] = far[i] * cos[i] + near[i] * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, values};

    #[test]
    fn a_quarter_turn_moves_one_half_to_the_other() {
        let mut out = [0.0; 4];
        rotary(&[1.0, 2.0, 3.0, 4.0], &[0.0], &[1.0], 1, 2, &mut out);
        assert_eq!(out, [-2.0, 1.0, -4.0, 3.0]);
    }

    #[test]
    fn the_turn_back_undoes_the_turn() {
        let (tokens, half, heads) = (40, 3, 2);
        let angles = values(tokens * half, 1);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let x = values(2 * tokens * 2 * half * heads, 2);
        let (mut turned, mut back) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        rotary(&x, &cos, &sin, half, heads, &mut turned);
        rotary_backward(&turned, &cos, &sin, half, heads, &mut back);
        assert_close(&back, &x, 1e-6);
    }
}
