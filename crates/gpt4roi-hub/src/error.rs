//! What can go wrong between a hub and its cache.

use std::{io, path::PathBuf, time::Duration};

/// The crate's result.
pub type Result<T, E = HubError> = std::result::Result<T, E>;

/// Everything that can be refused or fail here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A text that names no model.
    #[error("`{text}` names no model on a hub: {reason}")]
    Name {
        /// What was given.
        text: String,
        /// Why not.
        reason: &'static str,
    },
    /// A setting that can't be.
    #[error("{setting}: expected {expected}, got `{got}`")]
    Setting {
        /// The variable.
        setting: &'static str,
        /// What would do.
        expected: &'static str,
        /// What stands there.
        got: String,
    },
    /// The network is off, and the cache doesn't have it.
    #[error("{model} is not in the cache {}, and offline nothing is downloaded", cache.display())]
    Offline {
        /// Which model.
        model: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The hub won't give this.
    #[error("{what}: {reason}")]
    Refused {
        /// A model, or a file of it.
        what: String,
        /// Why not.
        reason: Refused,
    },
    /// The hub answered with another status than it should have.
    #[error("{url}: the server answered {status}{message}")]
    Status {
        /// Where, without its query.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the hub says about it, in parentheses; may be empty.
        message: String,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    #[error("{url}: {message}")]
    Connection {
        /// Where, without its query.
        url: String,
        /// What happened.
        message: String,
    },
    /// The server's certificate is not to be trusted.
    #[error("{url}: {message}")]
    Certificate {
        /// Where, without its query.
        url: String,
        /// Why not.
        message: String,
    },
    /// Nothing came for too long.
    #[error("{url}: no answer within {} s", limit.as_secs_f64())]
    Stalled {
        /// Where, without its query.
        url: String,
        /// How long was waited.
        limit: Duration,
    },
    /// A redirect that is not followed.
    #[error("{url}: redirect not followed: {reason}")]
    Redirect {
        /// From where.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The answer of the hub's API is not what it should be.
    #[error("{url}: {reason}")]
    Listing {
        /// Where, without its query.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file name that must not be used as one.
    #[error("{model}: the hub names a file {name:?}, {reason}")]
    FileName {
        /// Of which model.
        model: String,
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A body has another length than was announced.
    #[error("{file}: expected {expected} bytes, got {got}")]
    Length {
        /// Which file.
        file: String,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that came, or that the server says will come.
        got: u64,
    },
    /// A file has another digest than the hub says.
    #[error("{file}: damaged: expected {expected}, got {got}")]
    Damaged {
        /// Which file.
        file: String,
        /// The digest that it should have.
        expected: String,
        /// The digest that it has.
        got: String,
    },
    /// There is no room left.
    #[error("{}: the disk is full; what has come so far is kept", path.display())]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
    },
    /// Another process is at it.
    #[error("{} is being downloaded by another process", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// Nothing of the repository would make a model.
    #[error("{model}: none of its {files} files holds weights in a form that is known here")]
    NoWeights {
        /// Which model.
        model: String,
        /// How many files it has.
        files: usize,
    },
    /// A file that was asked for by name is not there.
    #[error("{model} has no file {name:?}")]
    NoSuchFile {
        /// Which model.
        model: String,
        /// The name.
        name: String,
    },
    /// The cache has no such model or revision.
    #[error("{model} is not in the cache {}", cache.display())]
    NotCached {
        /// Which model.
        model: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// Another download of the same pull failed first.
    #[error("stopped, since another file failed")]
    Stopped,
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why a hub won't give something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// 401: hubs answer so for what is private, and for what does not exist.
    #[error("the hub wants to know who asks (401): it is private or does not exist")]
    Unauthorized,
    /// 401 or 403: conditions have to be accepted first.
    #[error("access is gated: its owners want their conditions accepted first")]
    Gated,
    /// 403.
    #[error("the hub forbids it (403)")]
    Forbidden,
    /// 404: no such model.
    #[error("the hub has no such model (404)")]
    NoModel,
    /// 404: the model has no such branch, tag or commit.
    #[error("the model has no such revision (404)")]
    NoRevision,
    /// 404: the revision has no such file.
    #[error("the hub has no such file (404)")]
    NoFile,
}

impl HubError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Stalled { .. } | Self::Length { .. } | Self::Damaged { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 416 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    /// How long the server asks to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A failed operation on a file; a full disk gets its own name.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::File { path, source },
        }
    }
}
