//! What a hub says about a revision of a model.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::{
    client::{Client, ResumeFrom},
    digest::Digest,
    error::{HubError, Result},
    model::{ModelRef, is_commit},
};

/// A revision of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// What the revision means today.
    pub commit: String,
    /// All files, as the hub orders them.
    pub files: Vec<RemoteFile>,
}

/// A file on a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Where it lies in the model, with `/` between harmless names.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Its content.
    pub digest: Digest,
}

/// More than any listing has.
const MAX_LISTING: u64 = 64 << 20;

/// More than any file on a hub has, and so little that the sizes of a listing can be added up.
const MAX_SIZE: u64 = 1 << 40;

/// What stands as it is in an address; everything else is written in percents.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Asks the hub what a revision consists of (`GET /api/models/{id}/revision/{revision}?blobs=true`).
pub(crate) fn fetch(client: &Client, model: &ModelRef) -> Result<Listing> {
    let revision = utf8_percent_encode(model.revision(), UNRESERVED);
    let path = format!("/api/models/{}/revision/{revision}?blobs=true", model.id);
    let what = model.to_string();
    let answer = client.get(&path, ResumeFrom::START, &what)?;
    let url = answer.url.clone();
    parse(&answer.bytes(MAX_LISTING)?, &what, &url)
}

/// Where the content of a file is to be had.
pub(crate) fn content_path(model: &ModelRef, commit: &str, file: &RemoteFile) -> String {
    let path: Vec<_> = file.path.split('/').map(|name| utf8_percent_encode(name, UNRESERVED).to_string()).collect();
    format!("/{}/resolve/{commit}/{}", model.id, path.join("/"))
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: String,
    size: u64,
}

/// Reads the answer of `url` about `model`.
fn parse(json: &[u8], model: &str, url: &str) -> Result<Listing> {
    let unfit = |reason| HubError::Listing { url: url.to_owned(), reason };
    let info: ModelInfo = serde_json::from_slice(json).map_err(|error| unfit(error.to_string()))?;
    if !is_commit(&info.sha) {
        return Err(unfit(format!("expected a commit hash, got {:?}", info.sha)));
    }
    let mut files = Vec::new();
    for sibling in info.siblings {
        if let Some(reason) = harm(&sibling.rfilename) {
            return Err(HubError::FileName { model: model.to_owned(), name: sibling.rfilename, reason });
        }
        files.push(remote_file(sibling).map_err(unfit)?);
    }
    Ok(Listing { commit: info.sha, files })
}

fn remote_file(sibling: Sibling) -> Result<RemoteFile, String> {
    let Sibling { rfilename: path, size, blob_id, lfs } = sibling;
    let (size, hex) = match lfs {
        Some(LargeFile { sha256, size }) => (Some(size), Some(sha256)),
        None => (size, blob_id),
    };
    match (size, hex.as_deref().and_then(Digest::from_hex)) {
        (Some(size), Some(digest)) if size <= MAX_SIZE => Ok(RemoteFile { path, size, digest }),
        _ => Err(format!("expected size and digest of {path}, got size {size:?} and digest {hex:?}")),
    }
}

/// Why a file name that a server sends can't be joined to a directory, on any system.
fn harm(path: &str) -> Option<&'static str> {
    for name in path.split('/') {
        if matches!(name, "" | "." | "..") {
            return Some("which leads out of the model's directory");
        }
        // Windows drops dots and spaces at the end, so that two names would be one file.
        if name.contains(['\\', ':']) || name.ends_with(['.', ' ']) || name.chars().any(char::is_control) {
            return Some("which means something else on some systems");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn read(siblings: &str) -> Result<Vec<RemoteFile>> {
        let json = format!(r#"{{"sha": "{COMMIT}", "private": false, "siblings": [{siblings}]}}"#);
        parse(json.as_bytes(), "a/b", "http://hub").map(|listing| listing.files)
    }

    #[test]
    fn large_files_go_by_sha256_and_the_others_by_git() {
        let (git, sha256) = (COMMIT, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        let files = read(&format!(
            r#"{{"rfilename": "config.json", "size": 6, "blobId": "{git}"}},
               {{"rfilename": "sub/model.safetensors", "size": 7, "blobId": "{git}",
                 "lfs": {{"sha256": "{sha256}", "size": 7, "pointerSize": 130}}}}"#
        ));
        let file = |path: &str, size, digest| RemoteFile { path: path.into(), size, digest };
        let expected = [
            file("config.json", 6, Digest::GitBlob(git.into())),
            file("sub/model.safetensors", 7, Digest::Sha256(sha256.into())),
        ];
        assert_eq!(files.unwrap(), expected);
    }

    #[test]
    fn files_without_a_digest_or_a_sane_size_are_refused() {
        for sibling in [
            r#"{"rfilename": "a"}"#,
            r#"{"rfilename": "a", "size": 1}"#,
            r#"{"rfilename": "a", "size": 1, "blobId": "main"}"#,
            r#"{"rfilename": "a", "size": 18446744073709551615, "blobId": "0123456789abcdef0123456789abcdef01234567"}"#,
            r#"{"rfilename": "a", "size": -1, "blobId": "0123456789abcdef0123456789abcdef01234567"}"#,
        ] {
            assert!(read(sibling).is_err(), "{sibling}");
        }
        assert!(parse(br#"{"sha": "../..", "siblings": []}"#, "a/b", "http://hub").is_err());
        assert!(parse(b"<html>", "a/b", "http://hub").is_err());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in [
            "../x",
            "a/../../x",
            "/etc/passwd",
            "a//b",
            "",
            ".",
            "a/.",
            r"..\\x",
            "C:x",
            "a/b:stream",
            "config.json.",
            ".. /x",
            r"a\u0000",
            r"a\nb",
        ] {
            let sibling = format!(r#"{{"rfilename": "{name}", "size": 1, "blobId": "{COMMIT}"}}"#);
            assert!(read(&sibling).unwrap_err().to_string().contains("the hub names a file"), "{name}");
        }
    }

    proptest! {
        /// Whatever is accepted goes down from the directory it is joined to, name by name.
        #[test]
        fn accepted_names_only_lead_down(path in "[a./:~\\\\ -]{0,12}") {
            let names: Vec<_> = Path::new(&path).components().collect();
            let leads_down = !names.is_empty() && names.iter().all(|name| matches!(name, Component::Normal(_)));
            prop_assert!(harm(&path).is_some() || (leads_down && names.len() == path.split('/').count()));
        }
    }

    #[test]
    fn odd_but_harmless_names_are_written_in_percents() {
        let model = "a/b@refs/pr/1".parse().unwrap();
        let file = RemoteFile { path: "x y/#1?.bin".into(), size: 0, digest: Digest::GitBlob(COMMIT.into()) };
        assert_eq!(content_path(&model, "c", &file), "/a/b/resolve/c/x%20y/%231%3F.bin");
    }
}
