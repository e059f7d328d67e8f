//! Output that appears whole or not at all.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use crate::convert::{ConvertError, ConvertResult, IfExists};

/// A directory under a temporary name, beside where it will be.
///
/// Until [`Self::commit`] renames it nothing stands under the final name; if that never happens, it
/// is removed again. One that a killed process left behind is removed by the next try. One that another
/// process is writing is left alone: each holds the lock of its target.
#[derive(Debug)]
pub(crate) struct Staging {
    target: PathBuf,
    temporary: PathBuf,
    if_exists: IfExists,
    /// Freed last, when the directory is in its place or gone.
    _lock: Lock,
}

impl Staging {
    /// # Errors
    /// If something stands under the final name and is to stay, another process is at it, or the directory
    /// can't be made.
    pub(crate) fn new(target: &Path, if_exists: IfExists) -> ConvertResult<Self> {
        replaces(target, if_exists)?;
        let lock = Lock::take(target)?;
        let temporary = sibling(target, "partial")?;
        remove(&temporary).and_then(|()| fs::create_dir(&temporary)).map_err(file_error(&temporary))?;
        Ok(Self { target: target.to_owned(), temporary, if_exists, _lock: lock })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Puts the directory in its place.
    ///
    /// # Errors
    /// If something has come to stand there that is to stay, or it can't be synced or renamed; then what stood
    /// there before stands there still.
    pub(crate) fn commit(self) -> ConvertResult<()> {
        sync(&self.temporary).map_err(file_error(&self.temporary))?;
        let old = sibling(&self.target, "old")?;
        let replaced = replaces(&self.target, self.if_exists)?;
        if replaced {
            remove(&old).and_then(|()| fs::rename(&self.target, &old)).map_err(file_error(&self.target))?;
        }
        if let Err(error) = fs::rename(&self.temporary, &self.target) {
            if replaced {
                fs::rename(&old, &self.target).map_err(file_error(&self.target))?;
            }
            return Err(file_error(&self.target)(error));
        }
        let parent = parent(&self.target);
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(file_error(parent))?;
        remove(&old).map_err(file_error(&old))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a commit there is nothing; otherwise whoever drops this has an error to tell already.
        let _ = remove(&self.temporary);
    }
}

/// Whether something stands under the final name, which is an error where it is to stay.
fn replaces(target: &Path, if_exists: IfExists) -> ConvertResult<bool> {
    let stands = target.symlink_metadata().is_ok();
    if stands && if_exists == IfExists::Refuse {
        return Err(ConvertError::Exists { path: target.to_owned() });
    }
    Ok(stands)
}

/// A file beside the target that is locked while somebody writes there. The system frees it when its holder is
/// killed.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    /// What is locked, until it is closed.
    _file: File,
}

impl Lock {
    fn take(target: &Path) -> ConvertResult<Self> {
        let path = sibling(target, "lock")?;
        fs::create_dir_all(parent(&path)).map_err(file_error(&path))?;
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(file_error(&path))?;
            match file.try_lock() {
                // Whoever held it has removed it since it was opened: it keeps nobody out any more.
                Ok(()) if is_removed(&file).map_err(file_error(&path))? => {}
                Ok(()) => return Ok(Self { path, _file: file }),
                Err(TryLockError::WouldBlock) => return Err(ConvertError::InUse { path: target.to_owned() }),
                Err(TryLockError::Error(error)) => return Err(file_error(&path)(error)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Elsewhere nothing tells a lock that was removed from one that counts, and so it stays. It is empty and
        // hidden, and the next one takes it over, as one that can't be removed.
        if cfg!(unix) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(unix)]
fn is_removed(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() == 0)
}

#[cfg(not(unix))]
fn is_removed(_: &File) -> io::Result<bool> {
    Ok(false)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A hidden name beside `target`.
fn sibling(target: &Path, suffix: &str) -> ConvertResult<PathBuf> {
    let invalid = || file_error(target)(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a directory"));
    let name = target.file_name().ok_or_else(invalid)?;
    Ok(target.with_file_name(format!(".{}.{suffix}", name.to_string_lossy())))
}

fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes sure that every file below a directory, and the directory itself, is on the disk.
fn sync(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { sync(&path)? } else { File::open(&path)?.sync_all()? }
    }
    File::open(directory)?.sync_all()
}

pub(crate) fn file_error(path: &Path) -> impl Fn(io::Error) -> ConvertError {
    move |source| ConvertError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_directory_appears_when_it_is_complete() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("model");
        let staging = Staging::new(&target, IfExists::Refuse).unwrap();
        fs::write(staging.path().join("a"), b"1").unwrap();
        assert!(!target.exists());
        staging.commit().unwrap();
        assert_eq!(names(place.path()), ["model"]);
        assert_eq!(fs::read(target.join("a")).unwrap(), b"1");
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("model");
        drop(Staging::new(&target, IfExists::Refuse).unwrap());
        assert_eq!(names(place.path()), [""; 0]);
        fs::create_dir(place.path().join(".model.partial")).unwrap(); // a killed process
        fs::write(place.path().join(".model.partial/rest"), b"1").unwrap();
        Staging::new(&target, IfExists::Refuse).unwrap().commit().unwrap();
        assert_eq!(names(&target), [""; 0]);
    }

    #[test]
    fn an_existing_directory_stays_unless_it_is_to_be_replaced() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("model");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("old"), b"1").unwrap();
        let error = Staging::new(&target, IfExists::Refuse).unwrap_err().to_string();
        assert!(error.contains("model") && error.contains("exists"), "{error}");
        let staging = Staging::new(&target, IfExists::Replace).unwrap();
        assert_eq!(names(&target), ["old"], "until the new one is complete");
        fs::write(staging.path().join("new"), b"1").unwrap();
        staging.commit().unwrap();
        assert_eq!((names(place.path()), names(&target)), (vec!["model".to_owned()], vec!["new".to_owned()]));
    }

    #[test]
    fn two_that_write_to_one_place_do_not_meet() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("model");
        let first = Staging::new(&target, IfExists::Replace).unwrap();
        fs::write(first.path().join("a"), b"1").unwrap();
        let error = Staging::new(&target, IfExists::Replace).unwrap_err();
        assert!(matches!(&error, ConvertError::InUse { path } if *path == target), "{error}");
        assert_eq!(names(first.path()), ["a"], "what the first has written stays");
        Staging::new(&place.path().join("other"), IfExists::Refuse).unwrap();
        first.commit().unwrap();
        assert_eq!((names(place.path()), names(&target)), (vec!["model".to_owned()], vec!["a".to_owned()]));
    }

    #[test]
    fn what_has_come_to_exist_meanwhile_stays() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("model");
        let staging = Staging::new(&target, IfExists::Refuse).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("theirs"), b"1").unwrap();
        assert!(matches!(staging.commit(), Err(ConvertError::Exists { .. })));
        assert_eq!((names(place.path()), names(&target)), (vec!["model".to_owned()], vec!["theirs".to_owned()]));
    }

    /// Who has opened the lock before its holder removed it holds nothing: the next one locks another file.
    #[cfg(unix)]
    #[test]
    fn a_lock_that_was_removed_is_found_out() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("lock");
        let file = File::create(&path).unwrap();
        assert!(!is_removed(&file).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(is_removed(&file).unwrap());
    }
}
