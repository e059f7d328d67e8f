//! Uploaded pictures by handle.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gpt4roi::Image;
use sha2::{Digest, Sha256};

/// How much is kept, and how long.
#[derive(Clone, Debug)]
pub struct PictureOptions {
    /// Bytes of all pictures.
    pub max_bytes: usize,
    /// Bytes of one owner's pictures.
    pub max_owner_bytes: usize,
    /// How long a picture is kept since its last use.
    pub keep: Duration,
}

impl Default for PictureOptions {
    fn default() -> Self {
        Self { max_bytes: 1 << 30, max_owner_bytes: 512 << 20, keep: Duration::from_secs(3600) }
    }
}

/// A picture that is not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PictureRefused {
    /// The owner has too many.
    #[error("the pictures of this key take {bytes} bytes with this one, expected at most {max}")]
    Quota {
        /// With this one.
        bytes: usize,
        /// At most.
        max: usize,
    },
}

/// A picture's name: the SHA-256 of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle(String);

/// Text that is no handle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected sha256: and 64 hexadecimal digits in lower case")]
pub struct HandleError;

impl Handle {
    fn of(bytes: &[u8]) -> Self {
        Self(format!("sha256:{:x}", Hex(&Sha256::digest(bytes))))
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Handle {
    type Err = HandleError;

    fn from_str(text: &str) -> Result<Self, HandleError> {
        let digits = text.strip_prefix("sha256:").ok_or(HandleError)?;
        let hex = digits.len() == 64 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if hex { Ok(Self(text.to_owned())) } else { Err(HandleError) }
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The pictures.
#[derive(Debug)]
pub struct Pictures {
    options: PictureOptions,
    kept: Mutex<Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    owner: String,
    handle: Handle,
    image: Arc<Image>,
    used: Instant,
}

fn bytes(image: &Image) -> usize {
    image.rgb().as_raw().len()
}

impl Pictures {
    /// None yet.
    pub fn new(options: PictureOptions) -> Self {
        Self { options, kept: Mutex::default() }
    }

    /// Keeps a picture.
    ///
    /// # Errors
    /// If it is beyond the owner's quota.
    pub fn add(&self, owner: &str, file: &[u8], image: Arc<Image>, now: Instant) -> Result<Handle, PictureRefused> {
        let handle = Handle::of(file);
        let mut kept = self.alive(now);
        kept.retain(|other| other.owner != owner || other.handle != handle);
        let owned: usize = kept.iter().filter(|kept| kept.owner == owner).map(|kept| bytes(&kept.image)).sum();
        let (with_this, max) = (owned + bytes(&image), self.options.max_owner_bytes);
        if with_this > max {
            return Err(PictureRefused::Quota { bytes: with_this, max });
        }
        kept.push(Kept { owner: owner.to_owned(), handle: handle.clone(), image, used: now });
        while kept.iter().map(|kept| bytes(&kept.image)).sum::<usize>() > self.options.max_bytes {
            kept.remove(0);
        }
        Ok(handle)
    }

    /// A picture of this owner.
    pub fn get(&self, owner: &str, handle: &Handle, now: Instant) -> Option<Arc<Image>> {
        let mut kept = self.alive(now);
        let found = kept.iter_mut().find(|kept| kept.owner == owner && kept.handle == *handle)?;
        found.used = now;
        Some(found.image.clone())
    }

    /// Forgets a picture; whether there was one.
    pub fn remove(&self, owner: &str, handle: &Handle) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.len();
        kept.retain(|kept| kept.owner != owner || kept.handle != *handle);
        kept.len() < before
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|kept| bytes(&kept.image)).sum()
    }

    fn alive(&self, now: Instant) -> MutexGuard<'_, Vec<Kept>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| now.saturating_duration_since(kept.used) < self.options.keep);
        kept
    }
}
