//! A file as a slice: pages come from the disk when they are first touched, and the system may drop
//! them again at any time, so a file of weights takes no memory of its own.

use std::{
    fs::File,
    io,
    ops::{Deref, Range},
    path::Path,
};

use memmap2::{Mmap, MmapOptions};

/// A file mapped into memory for reading.
///
/// While it is mapped the file must be left alone. One that is cut short by someone else ends the
/// process at the next touch of a lost page, as with every program that maps its weights. Replacing
/// a file by renaming another over it is fine: the mapping keeps the old one. Windows refuses both as
/// long as the file is mapped.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// If it can't be opened, or is no file that can be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let options = MmapOptions::new();
        // SAFETY: the mapping is read-only, and is only ever handed out as bytes, of which every value is
        // valid. Nothing here writes to the file; that nobody else does is the condition that the type's
        // documentation states.
        let map = unsafe {
            // Windows sets memory aside for all of a private mapping, in case that it is written to.
            if cfg!(windows) { options.map(&file)? } else { options.map_copy_read_only(&file)? }
        };
        Ok(Self(map))
    }

    /// Gives the memory of these bytes back to the system; when they are touched they come from the file again.
    /// It would take them anyway when it is short, but until then they count as this process's.
    ///
    /// # Panics
    /// If the bytes do not lie in the file.
    pub fn release(&self, bytes: Range<usize>) {
        assert!(bytes.start <= bytes.end && bytes.end <= self.len(), "bytes {bytes:?} of {}", self.len());
        #[cfg(unix)]
        // SAFETY: Nobody can have written to the mapping, so that what comes from the file again is what was there.
        // That the advice is not taken is no error.
        let _ = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_has_the_bytes_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bytes");
        let bytes: Vec<u8> = (0..10_000u32).map(|value| (value * value) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert_eq!(*file, *bytes);
        file.release(100..9_000);
        file.release(10_000..10_000);
        assert_eq!(*file, *bytes);
        drop(file);
        std::fs::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(MappedFile::open(directory.path()).is_err());
        assert!(MappedFile::open(&directory.path().join("nothing")).is_err());
    }
}
