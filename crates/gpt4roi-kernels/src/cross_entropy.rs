//! Cross-entropy of logits against class indices.

use crate::{
    exp::exp1,
    parallel::map_chunks,
    simd::{max, sum},
};

/// For each row, `ln Σ eˣ − x[target]`, in f64 from the logarithm on.
///
/// # Shapes
/// logits `[rows, classes]`, targets `[rows]` → `[rows]`
///
/// # Panics
/// If the lengths do not fit or a target is no class.
pub fn cross_entropy(logits: &[f32], targets: &[u32]) -> Vec<f64> {
    if targets.is_empty() {
        return Vec::new();
    }
    assert!(logits.len().is_multiple_of(targets.len()));
    let rows = logits.chunks_exact(logits.len() / targets.len());
    rows.zip(targets).map(|(row, &target)| row_loss(row, target as usize)).collect()
}

wide! {
    fn row_loss(row: &[f32], target: usize) -> f64 {
        let highest = max(row);
        let total = sum(row, |x| exp1(x - highest));
        f64::from(total).ln() + f64::from(highest) - f64::from(row[target])
    }
}

/// The gradient of the sum of [`cross_entropy`], times `scale`: softmax(row) − one-hot(target).
///
/// # Panics
/// If the lengths do not fit or a target is no class.
pub fn cross_entropy_backward(logits: &[f32], targets: &[u32], scale: f32, grad: &mut [f32]) {
    assert_eq!(logits.len(), grad.len());
    if targets.is_empty() {
        return;
    }
    assert!(logits.len().is_multiple_of(targets.len()));
    let classes = logits.len() / targets.len();
    map_chunks(grad, classes, |row, grad| {
        row_gradient(&logits[row * classes..][..classes], targets[row] as usize, scale, grad);
    });
}

wide! {
    fn row_gradient(row: &[f32], target: usize, scale: f32, grad: &mut [f32]) {
        let highest = max(row);
        for (grad, &x) in grad.iter_mut().zip(row) {
            *grad = exp1(x - highest);
        }
        let share = scale / sum(grad, |x| x);
        grad.iter_mut().for_each(|g| *g *= share);
        grad[target] -= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, assert_gradient, values};
    use proptest::prelude::*;

    fn reference(logits: &[f32], targets: &[u32]) -> Vec<f32> {
        let rows = logits.chunks_exact(logits.len() / targets.len());
        rows.zip(targets)
            .map(|(row, &target)| {
                let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                (total.ln() - f64::from(row[target as usize])) as f32
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_loss_agrees_with_its_definition(rows in 1usize..9, classes in 1usize..70, seed: u64) {
            let logits = values(rows * classes, seed);
            let targets: Vec<u32> = (0..rows).map(|row| (seed % 101 + row as u64) as u32 % classes as u32).collect();
            let losses: Vec<f32> = cross_entropy(&logits, &targets).into_iter().map(|loss| loss as f32).collect();
            assert_close(&losses, &reference(&logits, &targets), 1e-6);
            let mut grad = vec![f32::NAN; logits.len()];
            cross_entropy_backward(&logits, &targets, 0.5, &mut grad);
            let half = vec![0.5; rows];
            assert_gradient(&logits, &half, &grad, 0..logits.len().min(20), |logits| reference(logits, &targets));
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let loss = cross_entropy(&[1000.0, 0.0, -1000.0], &[1]);
        assert_eq!(loss, [1000.0]);
    }
}
