//! Uploaded pictures, kept for the questions that follow.

use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gpt4roi::Image;
use sha2::{Digest, Sha256};

/// How many pictures are kept, and how long.
#[derive(Clone, Debug)]
pub struct PictureOptions {
    /// Bytes of decoded pixels, of all owners together.
    pub max_bytes: usize,
    /// Bytes of decoded pixels that one owner may have.
    pub max_bytes_per_owner: usize,
    /// How long a picture is kept since it was used last.
    pub keep_for: Duration,
}

impl Default for PictureOptions {
    /// 1 GiB in all, 512 MiB each, an hour.
    fn default() -> Self {
        Self { max_bytes: 1 << 30, max_bytes_per_owner: 512 << 20, keep_for: Duration::from_secs(3600) }
    }
}

/// What a picture is called: `sha256:` and 64 hexadecimal digits, the digest of the uploaded file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Handle(String);

const SCHEME: &str = "sha256:";

impl Handle {
    /// The handle of a file.
    pub fn of(file: &[u8]) -> Self {
        let digits = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        Self(SCHEME.to_owned() + &digits)
    }

    /// `sha256:…`
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no handle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a picture's handle: expected `sha256:` and 64 digits of 0-9 and a-f, got {got:?}")]
pub struct HandleError {
    /// Its beginning.
    got: String,
}

impl FromStr for Handle {
    type Err = HandleError;

    fn from_str(text: &str) -> Result<Self, HandleError> {
        const SHOWN: usize = 80;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match text.strip_prefix(SCHEME) {
            Some(digits) if digits.len() == 64 && digits.bytes().all(is_digit) => Ok(Self(text.to_owned())),
            _ => Err(HandleError { got: text.chars().take(SHOWN).collect() }),
        }
    }
}

/// A picture that was not taken. Sizes are bytes of decoded pixels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PictureRefused {
    /// It is larger than all pictures of an owner may be.
    #[error("a picture of {bytes} bytes of pixels, expected at most {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What would be accepted.
        max: usize,
    },
    /// The owner has too many.
    #[error("a picture of {bytes} bytes of pixels beside others of {kept}, expected at most {max} together")]
    Quota {
        /// Its size.
        bytes: usize,
        /// The size of the others.
        kept: usize,
        /// What would be accepted.
        max: usize,
        /// When the one used longest ago is forgotten.
        retry_after: Duration,
    },
    /// All owners together have too many.
    #[error("there is no room for a picture of {bytes} bytes of pixels at the moment")]
    Full {
        /// Its size.
        bytes: usize,
        /// When the one used longest ago is forgotten.
        retry_after: Duration,
    },
}

/// Pictures by owner and handle, bounded in bytes. Nobody gets at the pictures of another.
///
/// What was taken is kept for its time: room is made by time passing and by [`Self::remove`], never by
/// taking somebody's picture away.
#[derive(Debug)]
pub struct Pictures {
    options: PictureOptions,
    kept: Mutex<HashMap<(String, Handle), Kept>>,
}

#[derive(Debug)]
struct Kept {
    image: Arc<Image>,
    used: Instant,
}

impl Kept {
    fn bytes(&self) -> usize {
        bytes_of(&self.image)
    }
}

impl Pictures {
    /// None yet.
    pub fn new(options: PictureOptions) -> Self {
        Self { options, kept: Mutex::default() }
    }

    /// Keeps a picture with the file that it was decoded from, whose digest becomes the handle. One that
    /// is there already is kept for longer.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn add(&self, owner: &str, file: &[u8], image: Arc<Image>, now: Instant) -> Result<Handle, PictureRefused> {
        let handle = Handle::of(file);
        let key = (owner.to_owned(), handle.clone());
        let mut kept = self.current(now);
        if !kept.contains_key(&key) {
            self.check_room(&kept, owner, bytes_of(&image), now)?;
        }
        kept.entry(key).and_modify(|kept| kept.used = now).or_insert(Kept { image, used: now });
        Ok(handle)
    }

    /// The picture, which is then kept for longer.
    pub fn get(&self, owner: &str, handle: &Handle, now: Instant) -> Option<Arc<Image>> {
        let mut kept = self.current(now);
        let kept = kept.get_mut(&(owner.to_owned(), handle.clone()))?;
        kept.used = now;
        Some(kept.image.clone())
    }

    /// Forgets a picture; false if there was none.
    pub fn remove(&self, owner: &str, handle: &Handle, now: Instant) -> bool {
        self.current(now).remove(&(owner.to_owned(), handle.clone())).is_some()
    }

    /// Forgets those whose time is over. Everything here does so in passing; this is for when nobody comes by.
    pub fn forget_expired(&self, now: Instant) {
        drop(self.current(now));
    }

    /// How many there are.
    pub fn len(&self, now: Instant) -> usize {
        self.current(now).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self, now: Instant) -> bool {
        self.len(now) == 0
    }

    /// Bytes of their pixels.
    pub fn bytes(&self, now: Instant) -> usize {
        self.current(now).values().map(Kept::bytes).sum()
    }

    /// Those whose time is not over.
    fn current(&self, now: Instant) -> MutexGuard<'_, HashMap<(String, Handle), Kept>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, kept| now.saturating_duration_since(kept.used) < self.options.keep_for);
        kept
    }

    fn check_room(
        &self,
        kept: &HashMap<(String, Handle), Kept>,
        owner: &str,
        bytes: usize,
        now: Instant,
    ) -> Result<(), PictureRefused> {
        let PictureOptions { max_bytes, max_bytes_per_owner, keep_for } = self.options;
        let max = max_bytes_per_owner.min(max_bytes);
        if bytes > max {
            return Err(PictureRefused::TooLarge { bytes, max });
        }
        let until_free = |kept: &mut dyn Iterator<Item = &Kept>| {
            let oldest = kept.map(|kept| now.saturating_duration_since(kept.used)).max().unwrap_or_default();
            keep_for.saturating_sub(oldest)
        };
        let own = || kept.iter().filter(|((other, _), _)| other == owner).map(|(_, kept)| kept);
        let own_bytes: usize = own().map(Kept::bytes).sum();
        if own_bytes + bytes > max_bytes_per_owner {
            let retry_after = until_free(&mut own());
            return Err(PictureRefused::Quota { bytes, kept: own_bytes, max: max_bytes_per_owner, retry_after });
        }
        if kept.values().map(Kept::bytes).sum::<usize>() + bytes > max_bytes {
            return Err(PictureRefused::Full { bytes, retry_after: until_free(&mut kept.values()) });
        }
        Ok(())
    }
}

fn bytes_of(image: &Image) -> usize {
    image.rgb().as_raw().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of so many bytes of pixels.
    fn picture(bytes: u32) -> Arc<Image> {
        Arc::new(Image::from_rgb(image::RgbImage::new(bytes / 3, 1)))
    }

    fn pictures() -> Pictures {
        let keep_for = Duration::from_secs(60);
        Pictures::new(PictureOptions { max_bytes: 500, max_bytes_per_owner: 300, keep_for })
    }

    #[test]
    fn a_handle_is_the_digest_of_the_file() {
        // sha256sum of "abc", as FIPS 180-4 has it.
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Handle::of(b"abc").to_string(), abc);
        assert_eq!(abc.parse::<Handle>().unwrap(), Handle::of(b"abc"));
        let digits = &abc[7..];
        let wrong = [
            digits.to_owned(),
            abc.to_uppercase(),
            format!("sha256:{}", &digits[1..]),
            format!("{abc}0"),
            format!("sha256:../{}", &digits[3..]),
            format!("sha256:{}é", &digits[2..]),
            String::new(),
        ];
        for text in wrong {
            assert!(text.parse::<Handle>().is_err(), "{text}");
        }
        let error = "x".repeat(1000).parse::<Handle>().unwrap_err().to_string();
        assert!(error.len() < 200 && error.contains("sha256:"), "{error}");
    }

    #[test]
    fn pictures_are_kept_for_a_time_since_they_were_used() {
        let (pictures, start) = (pictures(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let handle = pictures.add("a", b"1", picture(90), at(0)).unwrap();
        assert!(pictures.get("a", &handle, at(59)).is_some());
        assert!(pictures.get("a", &handle, at(118)).is_some(), "used at 59");
        assert_eq!(pictures.add("a", b"1", picture(90), at(170)).unwrap(), handle, "and uploaded anew");
        assert_eq!((pictures.len(at(229)), pictures.bytes(at(229))), (1, 90));
        assert!(pictures.get("a", &handle, at(230)).is_none() && pictures.is_empty(at(230)));
    }

    #[test]
    fn nobody_gets_at_the_pictures_of_another() {
        let (pictures, now) = (pictures(), Instant::now());
        let handle = pictures.add("a", b"1", picture(90), now).unwrap();
        assert!(pictures.get("b", &handle, now).is_none() && !pictures.remove("b", &handle, now));
        assert_eq!(pictures.add("b", b"1", picture(90), now).unwrap(), handle);
        assert!(pictures.remove("a", &handle, now) && !pictures.remove("a", &handle, now));
        assert!(pictures.get("b", &handle, now).is_some());
    }

    #[test]
    fn room_is_for_each_and_for_all() {
        let (pictures, start) = (pictures(), Instant::now());
        let later = start + Duration::from_secs(20);
        assert_eq!(
            pictures.add("a", b"0", picture(303), start),
            Err(PictureRefused::TooLarge { bytes: 303, max: 300 })
        );
        let first = pictures.add("a", b"1", picture(150), start).unwrap();
        pictures.add("a", b"2", picture(150), later).unwrap();
        let quota = PictureRefused::Quota { bytes: 3, kept: 300, max: 300, retry_after: Duration::from_secs(40) };
        assert_eq!(pictures.add("a", b"3", picture(3), later), Err(quota));
        pictures.add("b", b"1", picture(198), later).unwrap();
        let full = PictureRefused::Full { bytes: 3, retry_after: Duration::from_secs(40) };
        assert_eq!(pictures.add("c", b"1", picture(3), later), Err(full));
        // What is there already needs no room, and what goes makes some.
        assert!(pictures.add("a", b"2", picture(150), later).is_ok());
        assert!(pictures.remove("a", &first, later));
        assert!(pictures.add("c", b"1", picture(3), later).is_ok());
        assert!(pictures.bytes(later) <= 500);
    }
}
