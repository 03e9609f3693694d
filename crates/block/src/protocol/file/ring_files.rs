//! An image, opened once more for rings to register and to read from.
//!
//! What a ring has registered stays open for a while after its process was killed, and the image's
//! locks, which belong to what was opened first, must not. Writes go through that: one that outlives
//! its process keeps the image locked until it has ended. Without a second one, rings read from the
//! first, unregistered.

use std::fs::{File as HostFile, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use coblk_aio::RingFile;

use super::Engine;
use super::mode::Mode;

/// One for each way to read, made when an image is first open in that way; they stay until it goes.
#[derive(Debug, Default)]
pub(super) struct RingFiles {
    buffered: OnceLock<RingFile>,
    direct: OnceLock<RingFile>,
}

impl RingFiles {
    /// What rings read from, with O_DIRECT or without, if there is one.
    #[inline]
    pub(super) fn get(&self, direct: bool) -> Option<&RingFile> {
        self.place(direct).get()
    }

    /// Makes that for `mode`, if rings are to read at all. `file` is open in that mode.
    pub(super) fn prepare(&self, mode: &Mode, file: &HostFile) {
        let place = self.place(mode.direct);
        if mode.engine != Engine::IoUring || place.get().is_some() {
            return;
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(if mode.direct { libc::O_DIRECT } else { 0 })
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        match opened {
            Ok(file) => drop(place.set(RingFile::new(file))),
            Err(error) => tracing::debug!(%error, "an image is not registered with rings"),
        }
    }

    #[inline]
    fn place(&self, direct: bool) -> &OnceLock<RingFile> {
        if direct { &self.direct } else { &self.buffered }
    }
}
