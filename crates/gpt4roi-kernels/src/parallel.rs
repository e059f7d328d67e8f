//! Work spread over the current rayon pool, or done in place where that has one thread.

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
