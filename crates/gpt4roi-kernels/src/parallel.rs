//! Work spread over the current rayon pool, or done in place where that has one thread.

use std::{marker::PhantomData, ops::Range};

use rayon::prelude::*;

/// Below so many values a task costs more than it saves.
const WORTH_A_TASK: usize = 1 << 14;

/// Threads of the pool that the caller runs in.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `work` with the number of each chunk of `out` and the chunk, and returns the results in
/// order.
pub(crate) fn map_chunks<T: Send>(
    out: &mut [f32],
    chunk: usize,
    work: impl Fn(usize, &mut [f32]) -> T + Sync,
) -> Vec<T> {
    let chunk = chunk.max(1);
    if threads() == 1 || out.len() < WORTH_A_TASK {
        return out.chunks_mut(chunk).enumerate().map(|(index, part)| work(index, part)).collect();
    }
    out.par_chunks_mut(chunk).enumerate().map(|(index, part)| work(index, part)).collect()
}

/// Calls `work` with each number below `count` and returns the results in order. Each call should be
/// worth a task.
pub(crate) fn map_indices<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    if threads() == 1 || count < 2 {
        return (0..count).map(work).collect();
    }
    (0..count).into_par_iter().map(work).collect()
}

/// Calls `work` with each number below `count` and with room that one call after another works in. Each call should be
/// worth a task.
pub(crate) fn for_each_index_in<R: Send>(
    count: usize,
    room: impl Fn() -> R + Sync + Send,
    work: impl Fn(&mut R, usize) + Sync + Send,
) {
    if threads() == 1 || count < 2 {
        let mut room = room();
        return (0..count).for_each(|index| work(&mut room, index));
    }
    (0..count).into_par_iter().for_each_init(room, work);
}

/// Calls `work` with each number below `count`; all calls together read about `cost` values.
pub(crate) fn for_each_index(count: usize, cost: usize, work: impl Fn(usize) + Sync + Send) {
    if threads() == 1 || cost < WORTH_A_TASK {
        return (0..count).for_each(work);
    }
    (0..count).into_par_iter().for_each(work);
}

/// Calls `work` with the number of each chunk of `out` and the chunk; all calls together read about
/// `cost` values.
pub(crate) fn for_each_chunk<T: Send>(
    out: &mut [T],
    chunk: usize,
    cost: usize,
    work: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    let chunk = chunk.max(1);
    if threads() == 1 || cost < WORTH_A_TASK {
        return out.chunks_mut(chunk).enumerate().for_each(|(index, part)| work(index, part));
    }
    out.par_chunks_mut(chunk).enumerate().for_each(|(index, part)| work(index, part));
}

/// Calls `work` with the place at which each block of `out` starts and the block.
pub(crate) fn for_blocks(out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    const BLOCK: usize = 1 << 13;
    map_chunks(out, BLOCK, |index, part| work(index * BLOCK, part));
}

/// Rows of values that several tasks write to, each to columns of its own.
pub(crate) struct SharedRows<'a> {
    values: *mut f32,
    rows: usize,
    columns: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: It stands for a `&mut [f32]`, which may go to another thread; who writes where is `row`'s contract.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: As above.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    /// Rows of so many columns, at least one.
    pub(crate) fn new(values: &'a mut [f32], columns: usize) -> Self {
        Self { rows: values.len() / columns, columns, values: values.as_mut_ptr(), borrow: PhantomData }
    }

    /// Some columns of one row.
    ///
    /// # Safety
    /// No two slices that live at the same time may have a column of a row in common.
    #[allow(clippy::mut_from_ref)] // The contract takes the place of the borrow.
    pub(crate) unsafe fn row(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.columns);
        // SAFETY: The row and the columns lie inside the slice that was borrowed, and the caller promises that
        // nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.columns + columns.start), columns.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_values::{assert_close, values};

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn chunks_are_numbered_and_results_stay_in_order() {
        for threads in [1, 3] {
            let mut out = vec![0.0; 40_000];
            let numbers = pool(threads).install(|| {
                map_chunks(&mut out, 1000, |index, chunk| {
                    chunk.fill(index as f32);
                    index
                })
            });
            assert_eq!(numbers, (0..40).collect::<Vec<_>>());
            assert!(out.iter().enumerate().all(|(i, &value)| value == (i / 1000) as f32));
        }
    }

    /// A backward of every kind of spreading: over rows, groups, heads, stretches of a map and boxes.
    #[test]
    fn kernels_give_the_same_on_one_thread_and_on_several() {
        let compute = || {
            let mut all = Vec::new();
            let (x, grad) = (values(64 * 1024, 1), values(64 * 1024, 2));
            let weight = values(64, 3);
            let (mut grad_x, mut grad_w, mut grad_b) = (vec![0.0; x.len()], vec![0.0; 64], vec![0.0; 64]);
            crate::layer_norm_backward(&x, &weight, 1e-5, &grad, &mut grad_x, &mut grad_w, &mut grad_b);
            all.extend([grad_x.clone(), grad_w.clone(), grad_b.clone()].concat());

            let groups = crate::GroupNormShape { channels: 64, groups: 8, area: 512 };
            crate::group_norm_backward(&x, &weight, groups, 1e-5, &grad, &mut grad_x, &mut grad_w, &mut grad_b);
            all.extend([grad_x.clone(), grad_w, grad_b].concat());

            let shape = crate::AttentionShape { batch: 2, queries: 64, keys: 64, heads: 4, head_dim: 128 };
            let (mut out, mut grad_k, mut grad_v) = (x.clone(), x.clone(), x.clone());
            let visible = |i: usize| (0..i + 1, 64..64);
            crate::attention(&x, &x, &x, shape, &visible, &mut out);
            crate::attention_backward(&x, &x, &x, shape, &visible, &out, &grad, &mut grad_x, &mut grad_k, &mut grad_v);
            all.extend([out, grad_x.clone(), grad_k, grad_v].concat());

            let shape = crate::Conv3x3Shape { batch: 4, input: 16, output: 16, height: 32, width: 32 };
            let (kernel, mut grad_kernel) = (values(16 * 16 * 9, 4), vec![0.0; 16 * 16 * 9]);
            crate::conv3x3_backward_input(&kernel, &grad, shape, &mut grad_x);
            crate::conv3x3_backward_weight(&x, &grad, shape, &mut grad_kernel, None);
            all.extend([grad_x, grad_kernel].concat());

            let boxes: Vec<[f32; 4]> = (0..20).map(|i| [i as f32, 0.5, i as f32 + 9.0, 20.0]).collect();
            let (channels, size) = (16, 14);
            let shape =
                crate::RoiAlignShape { channels, height: 32, width: 32, size, sampling_ratio: 2, spatial_scale: 1.0 };
            let mut grad_map = vec![0.0; channels * 32 * 32];
            crate::roi_align_backward(&x[..20 * channels * size * size], &boxes, shape, &mut grad_map);
            all.extend(grad_map);
            all
        };
        assert_close(&pool(3).install(compute), &pool(1).install(compute), 1e-4);
    }
}
