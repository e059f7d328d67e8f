//! Memory for weights.

use std::io;

use memmap2::MmapMut;

/// Zeros, in large pages where the system has them: weights are read from end to end for every token, and with small
/// pages half of the time goes to finding them.
pub(crate) fn large_memory(bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes)?;
    // It is advice: a system that can't follow it is slower, no more.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}
