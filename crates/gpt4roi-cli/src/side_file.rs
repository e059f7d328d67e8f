//! Files that are written beside the result: looked at before anything is computed, since a result that took an hour
//! should not be lost for a folder that is not there.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use clap::builder::{OsStringValueParser, TypedValueParser};

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
