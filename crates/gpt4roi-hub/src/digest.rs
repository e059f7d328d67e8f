//! Digests by which a hub names contents: SHA-256 for large files, Git's SHA-1 of a blob for the others.

use std::{fmt, io::Read};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A content's name. Written as hexadecimal digits it is the file's name in the cache's `blobs`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// Of a file in large-file storage: SHA-256 of the content.
    Sha256(String),
    /// Of a file in the Git repository: SHA-1 of `blob SIZE\0` and the content.
    GitBlob(String),
}

impl Digest {
    /// Reads hexadecimal digits; their number says which digest it is.
    pub fn from_hex(hex: &str) -> Option<Self> {
        if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        match hex.len() {
            64 => Some(Self::Sha256(hex.to_owned())),
            40 => Some(Self::GitBlob(hex.to_owned())),
            _ => None,
        }
    }

    /// The hexadecimal digits.
    pub fn hex(&self) -> &str {
        let (Self::Sha256(hex) | Self::GitBlob(hex)) = self;
        hex
    }

    /// Begins to compute a digest of this kind, for a content of `size` bytes.
    pub fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256 {hex}"),
            Self::GitBlob(hex) => write!(f, "git blob {hex}"),
        }
    }
}

/// A digest in the making.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// See [`Digest::Sha256`].
    Sha256(Sha256),
    /// See [`Digest::GitBlob`].
    GitBlob(Sha1),
}

impl Hasher {
    /// The next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    /// Everything that is left in `content`; says how many bytes that were.
    ///
    /// # Errors
    /// If reading fails.
    pub fn update_from(&mut self, content: &mut impl Read) -> std::io::Result<u64> {
        let mut buffer = vec![0; 1 << 18];
        let mut length = 0;
        loop {
            match content.read(&mut buffer)? {
                0 => return Ok(length),
                count => {
                    self.update(&buffer[..count]);
                    length += count as u64;
                }
            }
        }
    }

    /// The digest of everything so far.
    pub fn finish(&self) -> Digest {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hex(&hasher.clone().finalize())),
            Self::GitBlob(hasher) => Digest::GitBlob(hex(&hasher.clone().finalize())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with `printf 'hello\n' | sha256sum` and `printf 'hello\n' | git hash-object --stdin`.
    #[test]
    fn digests_are_those_of_sha256sum_and_of_git() {
        for hex in [
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            "ce013625030ba8dba906f756967f9e9ca394464a",
        ] {
            let expected = Digest::from_hex(hex).unwrap();
            let mut hasher = expected.hasher(6);
            hasher.update(b"hel");
            assert_ne!(hasher.finish(), expected);
            assert_eq!(hasher.update_from(&mut b"lo\n".as_slice()).unwrap(), 3);
            assert_eq!(hasher.finish(), expected);
        }
    }

    #[test]
    fn other_texts_are_no_digests() {
        for text in ["", "ce01", &"g".repeat(64), &"A".repeat(40), &"0".repeat(41), "../../../../etc/passwd"] {
            assert_eq!(Digest::from_hex(text), None, "{text}");
        }
    }
}
