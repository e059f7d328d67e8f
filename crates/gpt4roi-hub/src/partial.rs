//! A file that is not whole yet: `blobs/DIGEST.incomplete`, hashed as it grows.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::{
    digest::{Digest, Hasher},
    error::{HubError, Result},
    listing::RemoteFile,
};

/// What a partial file is written to: a file, or in tests one on a disk that fills up.
pub(crate) trait Storage: Read + Write + Seek + Send {
    /// Makes the file this long.
    fn set_length(&mut self, length: u64) -> io::Result<()>;
    /// Waits until everything is on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// How a partial file is opened: with what is already there, and made if there is nothing.
pub(crate) type OpenStorage = fn(&Path) -> io::Result<Box<dyn Storage>>;

impl Storage for File {
    fn set_length(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Opens a file of the file system.
///
/// # Errors
/// If that fails.
pub(crate) fn open_file(path: &Path) -> io::Result<Box<dyn Storage>> {
    // Not for appending: where locks don't hold, as on some network drives, two processes then write the same
    // bytes to the same places.
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    Ok(Box::new(file))
}

/// The beginning of a file, on the disk, with the digest of what is there.
pub(crate) struct Partial<'a> {
    file: &'a RemoteFile,
    path: PathBuf,
    storage: Box<dyn Storage>,
    hasher: Hasher,
    length: u64,
}

impl<'a> Partial<'a> {
    /// Takes up what an earlier pull left at `path`, reading it once.
    ///
    /// # Errors
    /// If it can't be read or written.
    pub(crate) fn open(file: &'a RemoteFile, path: PathBuf, open: OpenStorage) -> Result<Self> {
        let mut storage = open(&path).map_err(HubError::file(&path))?;
        let mut hasher = file.digest.hasher(file.size);
        let length = hasher.update_from(&mut storage).map_err(HubError::file(&path))?;
        let mut partial = Self { file, path, storage, hasher, length };
        if partial.length > file.size {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Bytes that are there.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Whether all bytes are there.
    pub(crate) fn is_whole(&self) -> bool {
        self.length == self.file.size
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// If the file can't be cut.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.storage.set_length(0).and_then(|()| self.storage.rewind()).map_err(HubError::file(&self.path))?;
        (self.hasher, self.length) = (self.file.digest.hasher(self.file.size), 0);
        Ok(())
    }

    /// The next bytes. Never more than the file has.
    ///
    /// # Errors
    /// If they are too many or can't be written. What was written counts the next time.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let got = self.length + bytes.len() as u64;
        if got > self.file.size {
            return Err(HubError::Length { file: self.file.path.clone(), expected: self.file.size, got });
        }
        self.storage.write_all(bytes).map_err(HubError::file(&self.path))?;
        self.hasher.update(bytes);
        self.length = got;
        Ok(())
    }

    /// Whether the content is the right one. If not, everything is forgotten: nobody knows which byte is wrong.
    ///
    /// # Errors
    /// If it is not.
    pub(crate) fn check(&mut self) -> Result<()> {
        let got = self.hasher.finish();
        if got == self.file.digest {
            return Ok(());
        }
        self.restart()?;
        let (expected, got) = (self.file.digest.to_string(), got.to_string());
        Err(HubError::Damaged { file: self.file.path.clone(), expected, got })
    }

    /// Gives the whole file its name, after everything is on the disk: whoever finds the name finds the content.
    ///
    /// # Errors
    /// If that fails.
    pub(crate) fn finish(mut self, blob: &Path) -> Result<()> {
        self.storage.sync().map_err(HubError::file(&self.path))?;
        drop(self.storage);
        fs::rename(&self.path, blob).map_err(HubError::file(blob))?;
        sync_directory(blob)
    }
}

impl fmt::Debug for Partial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partial").field("path", &self.path).field("length", &self.length).finish_non_exhaustive()
    }
}

/// Where a partial file of this content lies.
pub(crate) fn partial_path(blob: &Path, digest: &Digest) -> PathBuf {
    blob.with_file_name(format!("{}.incomplete", digest.hex()))
}

/// A new name lasts only when its directory is on the disk. Only Unix lets a directory be opened for that.
fn sync_directory(file: &Path) -> Result<()> {
    match file.parent() {
        Some(directory) if cfg!(unix) => {
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(HubError::file(directory))
        }
        _ => Ok(()),
    }
}
