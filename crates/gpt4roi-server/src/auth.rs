//! Who may ask: API keys.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::fault::{Fault, Result};

/// The keys that are accepted. Only their digests are kept.
#[derive(Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// Whose pictures are whose: one key's, or everybody's where none is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) String);

impl Keys {
    /// No key at all lets everybody in.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self(keys.into_iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect())
    }

    /// One key a line; empty lines and such that begin with `#` don't count, nor does a byte order mark.
    pub fn from_lines(text: &str) -> Self {
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        Self::new(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')))
    }

    /// These and those.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Whether everybody is let in.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Digests are compared, all of them and each to its end: how long it takes tells nothing about a key.
    ///
    /// # Errors
    /// If keys are needed and the header has none of them.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> Result<Owner> {
        if self.is_empty() {
            return Ok(Owner(String::new()));
        }
        let digest: [u8; 32] = Sha256::digest(bearer(headers).unwrap_or_default()).into();
        let known = self.0.iter().fold(Choice::from(0), |known, key| known | key.ct_eq(&digest));
        if bool::from(known) {
            Ok(Owner(digest.iter().map(|byte| format!("{byte:02x}")).collect()))
        } else {
            Err(Fault::Unauthorized)
        }
    }
}

/// The token of the one `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn admitted(keys: &Keys, values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        values
            .iter()
            .for_each(|value| _ = headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
        keys.admit(&headers).is_ok()
    }

    #[test]
    fn only_a_whole_key_opens() {
        let keys =
            Keys::new(["secret", "other"]).and(Keys::from_lines("\u{FEFF}third\r\n\r\n# of the team\r\n fourth \r\n"));
        for right in ["Bearer secret", "bearer other", "BEARER third", "Bearer fourth", "Bearer  secret "] {
            assert!(admitted(&keys, &[right]), "{right}");
        }
        for wrong in
            ["", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret", "secret", "Bearer Secret"]
        {
            assert!(!admitted(&keys, &[wrong]), "{wrong}");
        }
        assert!(!admitted(&keys, &[]));
        assert!(!admitted(&keys, &["Bearer wrong", "Bearer secret"]), "two headers are none");
        assert!(admitted(&Keys::default(), &[]));
        assert_eq!(format!("{keys:?}"), "4 keys");
    }
}
