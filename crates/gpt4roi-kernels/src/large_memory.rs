//! Memory in large pages where the system has them.
//!
//! With small pages each four kilobytes are a fault when they are first touched, and weights that are read from end to
//! end spend half of the time on finding them.

use std::io;

use memmap2::MmapMut;

/// Zeros that are given back to the system as a whole: for weights.
pub(crate) fn large_memory(bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes)?;
    // It is advice: a system that can't follow it is slower, no more.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

/// So many zeros as any vector has them: for maps of some megabytes and more, which live for one picture.
pub fn large_zeros(count: usize) -> Vec<f32> {
    #[cfg_attr(not(target_os = "linux"), expect(unused_mut))]
    let mut zeros = vec![0.0; count];
    #[cfg(target_os = "linux")]
    ask_for_large_pages(&mut zeros);
    zeros
}

#[cfg(target_os = "linux")]
fn ask_for_large_pages(values: &mut [f32]) {
    const PAGE: usize = 2 << 20;
    // SAFETY: Any four bytes are an f32, and whoever reads them through `values` reads those that are there.
    let (_, bytes, _) = unsafe { values.align_to_mut::<u8>() };
    let before = bytes.as_ptr().align_offset(PAGE).min(bytes.len());
    let pages = &mut bytes[before..];
    let length = pages.len() / PAGE * PAGE;
    if length > 0 {
        // SAFETY: These pages belong to the slice alone, and the advice changes nothing of what they hold. A system that
        // can't follow it is slower, no more.
        unsafe { libc::madvise(pages.as_mut_ptr().cast(), length, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_zeros_whatever_their_number() {
        for count in [0, 1, 1 << 10, (1 << 20) + 3] {
            let mut zeros = large_zeros(count);
            assert!(zeros.len() == count && zeros.iter().all(|&zero| zero == 0.0), "{count}");
            zeros.fill(1.0);
            assert_eq!(zeros.iter().sum::<f32>(), count as f32);
        }
    }
}
