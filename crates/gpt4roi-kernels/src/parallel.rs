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

/// Calls `work` with the place at which each block of `out` starts and the block.
pub(crate) fn for_blocks(out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    const BLOCK: usize = 1 << 13;
    map_chunks(out, BLOCK, |index, part| work(index * BLOCK, part));
}
