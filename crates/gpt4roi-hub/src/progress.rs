//! Who watches a pull.

use std::time::Duration;

use crate::{error::HubError, listing::RemoteFile};

/// Is told what happens, from several threads. The crate itself prints nothing.
pub trait Progress: Sync {
    /// These files are not there yet and will be downloaded.
    fn planned(&self, files: &[RemoteFile]) {
        let _ = files;
    }

    /// So many bytes of this file are on the disk. It may become fewer, when damage is found.
    fn reached(&self, file: &RemoteFile, bytes: u64) {
        let _ = (file, bytes);
    }

    /// Another process downloads this file; it is waited for.
    fn waiting(&self, file: &RemoteFile) {
        let _ = file;
    }

    /// This went wrong and will be tried again after a while.
    fn retrying(&self, error: &HubError, wait: Duration) {
        let _ = (error, wait);
    }

    /// This file is complete, and its digest is right.
    fn finished(&self, file: &RemoteFile) {
        let _ = file;
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}
