//! Output that appears whole or not at all.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    adapter,
    convert::{COPIED, ConvertError, ConvertResult, IfExists},
    quantize::Quantization,
    shards::is_weights,
};

/// A model's directory under a temporary name, beside where it will be.
///
/// Until [`Self::commit`] renames it nothing stands under the final name; if that never happens, it
/// is removed again. One that a killed process left behind is removed by the next try. One that another
/// process is writing is left alone: each holds the lock of its target.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    temporary: PathBuf,
    if_exists: IfExists,
    /// Freed last, when the directory is in its place or gone.
    _lock: Lock,
}

impl Staging {
    /// # Errors
    /// If something stands under the final name and is to stay, or is more than a model; if another process is at it,
    /// or the directory can't be made.
    pub fn new(target: &Path, if_exists: IfExists) -> ConvertResult<Self> {
        replaces(target, if_exists)?;
        let lock = Lock::take(target)?;
        let temporary = sibling(target, "partial")?;
        remove(&temporary).and_then(|()| fs::create_dir(&temporary)).map_err(file_error(&temporary))?;
        Ok(Self { target: target.to_owned(), temporary, if_exists, _lock: lock })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Puts the directory in its place.
    ///
    /// # Errors
    /// If something has come to stand there that is to stay or is more than a model, or it can't be synced or renamed;
    /// then what stood there before stands there still.
    pub fn commit(self) -> ConvertResult<()> {
        sync(&self.temporary).map_err(file_error(&self.temporary))?;
        let old = sibling(&self.target, "old")?;
        let replaced = replaces(&self.target, self.if_exists)?;
        if replaced {
            remove(&old).and_then(|()| rename_directory(&self.target, &old)).map_err(file_error(&self.target))?;
        }
        if let Err(error) = rename_directory(&self.temporary, &self.target) {
            if replaced {
                rename_directory(&old, &self.target).map_err(file_error(&self.target))?;
            }
            return Err(file_error(&self.target)(error));
        }
        let parent = parent(&self.target);
        sync_directory(parent).map_err(file_error(parent))?;
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
    match if_exists {
        IfExists::Refuse if stands => return Err(ConvertError::Exists { path: target.to_owned() }),
        IfExists::Replace if stands => check_is_model(target)?,
        _ => {}
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

/// Makes sure that all of a directory is files that a conversion writes, by their exact names: whatever else lies
/// there is somebody's work, and would be gone with it.
fn check_is_model(directory: &Path) -> ConvertResult<()> {
    if !directory.is_dir() {
        return Err(ConvertError::Foreign { path: directory.to_owned(), others: vec!["a file".into()] });
    }
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let quantised = [Quantization::F16, Quantization::Q8_0, Quantization::Q4K];
    let mut pair = quantised.iter().map(|kind| format!("{name}-{}.gguf", kind.name())).collect::<Vec<_>>();
    pair.push(format!("mmproj-{name}.gguf"));
    let belongs = |file: &str| {
        let of_adapter = [adapter::CONFIG, adapter::WEIGHTS].contains(&file);
        let of_model = file == "config.json" || COPIED.contains(&file) || is_weights(file);
        of_model || of_adapter || pair.iter().any(|name| name == file)
    };
    let mut others = strangers(directory, "", |file| belongs(file) || file == TOWER)?;
    let tower = directory.join(TOWER);
    if tower.is_dir() {
        let of_tower = |file: &str| ["config.json", "preprocessor_config.json"].contains(&file) || is_weights(file);
        others.extend(strangers(&tower, "vision_tower/", of_tower)?);
    }
    if others.is_empty() {
        return Ok(());
    }
    others.sort();
    if others.len() > NAMED {
        let more = others.len() - NAMED;
        others.truncate(NAMED);
        others.push(format!("{more} more"));
    }
    Err(ConvertError::Foreign { path: directory.to_owned(), others })
}

/// The vision tower's directory in a model's.
const TOWER: &str = "vision_tower";

/// How many strangers a message names.
const NAMED: usize = 5;

/// The names in a directory that do not belong there. The tower is the only directory that may.
fn strangers(directory: &Path, prefix: &str, belongs: impl Fn(&str) -> bool) -> ConvertResult<Vec<String>> {
    let mut strangers = Vec::new();
    for entry in fs::read_dir(directory).map_err(file_error(directory))? {
        let entry = entry.map_err(file_error(directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !belongs(&name) || entry.path().is_dir() != (name == TOWER) {
            strangers.push(format!("{prefix}{name}"));
        }
    }
    Ok(strangers)
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
        // Windows syncs what is open for writing only.
        if path.is_dir() { sync(&path)? } else { File::options().write(true).open(&path)?.sync_all()? }
    }
    sync_directory(directory)
}

/// Makes renames and new names in a directory survive a power cut, where the system lets a directory be opened for
/// that, as Unix does.
///
/// # Errors
/// If that fails.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Moves a directory to a name that is free.
///
/// Windows moves none in which anybody has a file open, and programs that look for viruses or make an index open every
/// new file for a moment: there it is tried again, for two and a half seconds in all.
///
/// # Errors
/// If that fails.
pub fn rename_directory(from: &Path, to: &Path) -> io::Result<()> {
    let tries = if cfg!(windows) { 8 } else { 0 };
    for wait in (0..tries).map(|tried| Duration::from_millis(10 << tried)) {
        match fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => thread::sleep(wait),
            done => return done,
        }
    }
    fs::rename(from, to)
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
        fs::write(target.join("config.json"), b"old").unwrap();
        let error = Staging::new(&target, IfExists::Refuse).unwrap_err().to_string();
        assert!(error.contains("model") && error.contains("exists"), "{error}");
        let staging = Staging::new(&target, IfExists::Replace).unwrap();
        assert_eq!(fs::read(target.join("config.json")).unwrap(), b"old", "until the new one is complete");
        fs::write(staging.path().join("model.safetensors"), b"1").unwrap();
        staging.commit().unwrap();
        let (all, of_model) = (names(place.path()), names(&target));
        assert_eq!((all, of_model), (vec!["model".to_owned()], vec!["model.safetensors".to_owned()]));
    }

    /// A directory with these files; names that end in `/` are directories.
    fn directory(target: &Path, files: &[&str]) {
        for file in files.iter().map(|file| target.join(file)) {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            if file.as_os_str().as_encoded_bytes().ends_with(b"/") {
                fs::create_dir_all(file).unwrap();
            } else {
                fs::write(file, b"1").unwrap();
            }
        }
    }

    #[test]
    fn only_a_model_is_replaced() {
        let models: [&[&str]; 4] = [
            &["model/"],
            &["model/config.json", "model/tokenizer.model", "model/added_tokens.json", "model/model.safetensors"],
            &[
                "model/model-00001-of-00002.safetensors",
                "model/model.safetensors.index.json",
                "model/vision_tower/config.json",
                "model/vision_tower/model.safetensors",
            ],
            &["model/model-q4_k.gguf", "model/mmproj-model.gguf"],
        ];
        for files in models {
            let place = tempfile::tempdir().unwrap();
            directory(place.path(), files);
            let target = place.path().join("model");
            Staging::new(&target, IfExists::Replace).unwrap().commit().unwrap();
            assert_eq!(names(&target), [""; 0], "{files:?}");
        }
        let strangers: [(&[&str], &str); 6] = [
            (&["model/notes.txt", "model/config.json", "model/photos/"], "notes.txt, photos"),
            (&["model/model.safetensors/"], "model.safetensors"),
            (&["model/vision_tower/holiday.jpg"], "vision_tower/holiday.jpg"),
            (&["model/other-q4_k.gguf"], "other-q4_k.gguf"),
            (
                &["model/trainer.safetensors", "model/model-best.safetensors"],
                "model-best.safetensors, trainer.safetensors",
            ),
            (&["model/a", "model/b", "model/c", "model/d", "model/e", "model/f", "model/g"], "a, b, c, d, e, 2 more"),
        ];
        for (files, named) in strangers {
            let place = tempfile::tempdir().unwrap();
            directory(place.path(), files);
            let error = Staging::new(&place.path().join("model"), IfExists::Replace).unwrap_err().to_string();
            assert!(error.ends_with(&format!("expected nothing but a model to replace, got {named}")), "{error}");
            assert!(files.iter().all(|file| place.path().join(file).exists()), "{files:?}");
        }
        let place = tempfile::NamedTempFile::new().unwrap();
        let error = Staging::new(place.path(), IfExists::Replace).unwrap_err().to_string();
        assert!(error.ends_with("got a file"), "{error}");
    }

    #[test]
    fn what_comes_to_lie_there_meanwhile_stays() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("model");
        let staging = Staging::new(&target, IfExists::Replace).unwrap();
        directory(&target, &["diary"]);
        assert!(matches!(staging.commit(), Err(ConvertError::Foreign { .. })));
        assert_eq!(names(place.path()), ["model"], "the unfinished one is removed");
        assert_eq!(names(&target), ["diary"]);
    }

    #[test]
    fn two_that_write_to_one_place_do_not_meet() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("model");
        let first = Staging::new(&target, IfExists::Replace).unwrap();
        fs::write(first.path().join("config.json"), b"1").unwrap();
        let error = Staging::new(&target, IfExists::Replace).unwrap_err();
        assert!(matches!(&error, ConvertError::InUse { path } if *path == target), "{error}");
        assert_eq!(names(first.path()), ["config.json"], "what the first has written stays");
        Staging::new(&place.path().join("other"), IfExists::Refuse).unwrap();
        first.commit().unwrap();
        assert_eq!((names(place.path()), names(&target)), (vec!["model".to_owned()], vec!["config.json".to_owned()]));
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
