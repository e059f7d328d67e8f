//! Bytes that several own together: those of a matrix may lie in the file it came from.

use std::{
    fmt,
    ops::{Deref, Range},
    sync::Arc,
};

/// A part of something that holds bytes, such as a mapped file, which lives as long as any of its parts.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// These bytes of `owner`.
    ///
    /// # Panics
    /// If they do not lie in it.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        let length = (*owner).as_ref().len();
        assert!(range.start <= range.end && range.end <= length, "bytes {range:?} of {length}");
        Self { owner, range }
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self::new(Arc::new(bytes), range)
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({:?})", self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_outlives_the_name_of_its_owner() {
        let owner: Arc<Vec<u8>> = Arc::new((0..10).collect());
        let part = SharedBytes::new(owner.clone(), 3..6);
        drop(owner);
        assert_eq!((&*part, &*SharedBytes::from(vec![7, 8])), ([3, 4, 5].as_slice(), [7, 8].as_slice()));
    }

    #[test]
    #[should_panic(expected = "bytes 3..11 of 10")]
    fn what_the_owner_has_not_is_refused() {
        SharedBytes::new(Arc::new(vec![0; 10]), 3..11);
    }
}
