//! What a machine can do at best: work of a known amount, for others to time.

use pulp::{Simd, WithSimd};

use crate::{
    level::Level,
    parallel::{map_indices, threads},
    simd::sum,
};

/// Multiplies and adds in registers alone, on all threads of the pool, and returns the number of operations done: two
/// per value, as in the count of a matrix product.
pub fn multiply_add(rounds: usize) -> u64 {
    let threads = threads();
    map_indices(threads, |_| Level::best().run(MultiplyAdd { rounds })).into_iter().sum()
}

struct MultiplyAdd {
    rounds: usize,
}

impl WithSimd for MultiplyAdd {
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> u64 {
        /// So many sums are under way at once, since each operation takes some cycles; they fit 16 registers.
        const SUMS: usize = 12;
        let factor = simd.splat_f32s(std::hint::black_box(0.5));
        let mut sums = [simd.splat_f32s(std::hint::black_box(1.0)); SUMS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, factor, factor);
            }
        }
        std::hint::black_box(sums);
        (self.rounds * SUMS * S::F32_LANES * 2) as u64
    }
}

/// Reads all values once, on all threads of the pool, and returns their sum.
pub fn read_all(x: &[f32]) -> f32 {
    let part = x.len().div_ceil(4 * threads()).max(1);
    map_indices(x.len().div_ceil(part), |index| add_up(&x[index * part..x.len().min((index + 1) * part)])).iter().sum()
}

wide! {
    fn add_up(x: &[f32]) -> f32 {
        // Several sums run in each call, and calls short enough that few values are rounded away.
        x.chunks(1 << 16).map(|x| sum(x, |x| x)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_and_every_value_read() {
        assert!(multiply_add(1000) >= 1000 * 12 * 2);
        assert_eq!(multiply_add(2000), 2 * multiply_add(1000));
        let x: Vec<f32> = (0..100_003).map(|i| (i % 3) as f32).collect();
        assert_eq!(read_all(&x), 100_002.0);
        assert_eq!(read_all(&[]), 0.0);
    }
}
