//! Files that are written beside the result: looked at before anything is computed, since a result that took an hour
//! should not be lost for a folder that is not there.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use clap::builder::{OsStringValueParser, TypedValueParser};
use same_file::Handle;

use crate::failure::Refusal;

/// Makes sure that a file can be written, and that it is none of those that are read.
///
/// Nothing that is there changes. `what` is how the user calls the file, mostly the flag that named it.
///
/// # Errors
/// If it is one of `read`, or a directory, or if its folder is missing or can't be written to.
pub(crate) fn check<'a>(
    what: &str,
    file: &Path,
    read: impl IntoIterator<Item = (&'static str, &'a Path)>,
) -> Result<(), Refusal> {
    if let Some((role, _)) = read.into_iter().find(|(_, other)| is_same(file, other)) {
        return Err(Refusal::usage(format!("{what} {} is the {role} itself", file.display()))
            .hint("name another file, so that it is not written over"));
    }
    try_to_write(file).map_err(|error| Refusal::failure(format!("{what} {}: {error}", file.display())))
}

/// Writes a file that was checked, as a whole or not at all: what was there stays until all of the new one lies on the
/// disk. A link stays, and the file that it leads to is replaced.
///
/// # Errors
/// If it can't be written. Nothing is left of the attempt then, unless it was to a pipe or a device.
pub(crate) fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    let is_link = file.is_symlink();
    match file.metadata() {
        Ok(there) if there.is_file() && is_stdout(file) => io::stdout().lock().write_all(content),
        Ok(there) if there.is_file() => replace(&file.canonicalize()?, content, Some(there.permissions())),
        Err(error) if error.kind() == ErrorKind::NotFound && !is_link => replace(file, content, None),
        // A pipe, a terminal, or a link that leads nowhere yet.
        _ => fs::write(file, content),
    }
}

/// Whether the file is the one that standard output goes to, which would go on into one that nobody finds any more.
fn is_stdout(file: &Path) -> bool {
    matches!((Handle::from_path(file), Handle::stdout()), (Ok(file), Ok(stdout)) if file == stdout)
}

fn replace(file: &Path, content: &[u8], permissions: Option<Permissions>) -> io::Result<()> {
    let part = file.with_added_extension("part");
    let mut written = match File::create(&part) {
        // A file may be writable in a folder that is not.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return fs::write(file, content),
        created => created?,
    };
    let write = || {
        written.write_all(content)?;
        permissions.map_or(Ok(()), |permissions| written.set_permissions(permissions))?;
        written.sync_all()?;
        drop(written);
        fs::rename(&part, file)
    };
    write().inspect_err(|_| drop(fs::remove_file(&part)))
}

/// Files that are not there are the same as none.
fn is_same(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Only an attempt tells whether a file can be written: rights, read-only disks and quotas all have a say.
fn try_to_write(file: &Path) -> io::Result<()> {
    match file.metadata() {
        Ok(there) if there.is_dir() => Err(io::Error::other("expected the name of a file, got a directory")),
        Ok(there) if there.is_file() => OpenOptions::new().append(true).open(file).map(drop),
        // A pipe or a terminal: opening it could wait for a reader.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => create_and_remove(file),
        Err(error) => Err(error),
    }
}

fn create_and_remove(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(io::Error::other(format!("there is no folder {}", folder.display())));
    }
    OpenOptions::new().write(true).create_new(true).open(file)?;
    fs::remove_file(file)
}

/// Takes a file name that a check accepts, in any encoding.
pub(crate) fn named(check: fn(&Path) -> Result<(), &'static str>) -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(move |name: OsString| {
        let file = PathBuf::from(name);
        check(&file).map(|()| file)
    })
}

/// Accepts a name whose ending says that it is an SVG file, as every reader expects of one.
pub(crate) fn check_svg(file: &Path) -> Result<(), &'static str> {
    match file.extension() {
        Some(ending) if ending.eq_ignore_ascii_case("svg") => Ok(()),
        _ => Err("expected a file name that ends in .svg"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(file: &Path, read: &[(&'static str, &Path)]) -> String {
        check("--annotate", file, read.iter().copied()).unwrap_err().to_string()
    }

    #[test]
    fn a_file_that_is_read_is_not_written() {
        let place = tempfile::tempdir().unwrap();
        let (picture, folder) = (place.path().join("a.png"), place.path().join("folder"));
        fs::write(&picture, b"pixels").unwrap();
        fs::create_dir(&folder).unwrap();
        for way in [picture.clone(), folder.join("../a.png"), place.path().join("./a.png")] {
            let error = refused(&way, &[("picture", &picture)]);
            assert_eq!(error, format!("--annotate {} is the picture itself", way.display()));
        }
        let other = place.path().join("b.png");
        assert!(check("--annotate", &other, [("picture", &*picture)]).is_ok());
        assert!(!other.exists(), "a check leaves nothing behind");
        assert!(check("--annotate", &picture, []).is_ok());
        assert_eq!(fs::read(&picture).unwrap(), b"pixels", "nor does it change what is there");
    }

    #[test]
    #[cfg(unix)]
    fn a_link_to_a_file_is_the_file() {
        let place = tempfile::tempdir().unwrap();
        let (picture, link) = (place.path().join("a.png"), place.path().join("b.png"));
        fs::write(&picture, b"pixels").unwrap();
        std::os::unix::fs::symlink(&picture, &link).unwrap();
        assert!(refused(&link, &[("picture", &picture)]).ends_with("is the picture itself"));
        assert!(refused(&picture, &[("picture", &link)]).ends_with("is the picture itself"));
    }

    #[test]
    fn a_place_that_can_not_be_written_is_known_before() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(refused(&place.path().join("no/a.png"), &[]).contains("there is no folder"));
        assert!(refused(place.path(), &[]).contains("got a directory"));
        assert!(check("--annotate", &file.join("a.png"), []).is_err(), "below a file nothing can lie");
    }

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("a.json");
        for content in [b"one".as_slice(), b"another"] {
            write(&file, content).unwrap();
            assert_eq!(fs::read(&file).unwrap(), content);
            assert_eq!(names(place.path()), ["a.json"]);
        }
        // In the place of a disk that is full.
        fs::create_dir(place.path().join("a.json.part")).unwrap();
        assert!(write(&file, b"a third").is_err());
        assert_eq!(fs::read(&file).unwrap(), b"another");
    }

    #[test]
    fn what_can_not_take_its_place_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("a.json");
        fs::create_dir_all(file.join("not empty")).unwrap();
        assert!(replace(&file, b"content", None).is_err());
        assert_eq!(names(place.path()), ["a.json"]);
    }

    #[test]
    #[cfg(unix)]
    fn links_and_permissions_stay() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let place = tempfile::tempdir().unwrap();
        let (file, link) = (place.path().join("folder/a.json"), place.path().join("link.json"));
        fs::create_dir(place.path().join("folder")).unwrap();
        symlink("folder/a.json", &link).unwrap();
        for content in [b"one".as_slice(), b"another"] {
            write(&link, content).unwrap();
            assert_eq!(fs::read(&file).unwrap(), content);
            assert!(link.is_symlink());
            fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        }
        write(&link, b"a third").unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(names(&place.path().join("folder")), ["a.json"]);
        assert!(write(Path::new("/dev/null"), b"nothing").is_ok());
    }

    #[test]
    fn pictures_of_curves_are_svg_files() {
        for good in ["a.svg", "b/c.SVG"] {
            assert!(check_svg(Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["a.gif", "svg", "a.svg.png", ""] {
            assert!(check_svg(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
