//! Another way for an image to be open: writable or not, with O_DIRECT or not, by another engine.
//!
//! The image is opened once more, in the new way, and then the two open files change places behind
//! the descriptor, which stays the same number. Locks belong to the open file, and go along: both
//! have them while they change places, so that no other process comes in between. Nothing is in flight.

use std::fs::File as HostFile;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use coblk_aio::sys;

use super::mode::Mode;
use super::{File, FileOpenError, FileOptions};
use crate::driver::permissions::Permissions;
use crate::registry::Reopen;

/// An image that is ready to change to another way of being open, and back.
pub(super) struct FileReopen<'a> {
    file: &'a File,
    /// Open files that are not used now; none if the same one serves.
    others: Option<Others>,
    /// How it is to be open; after a swap, how it was.
    mode: Mode,
}

struct Others {
    /// In the way that is to be.
    other: HostFile,
    /// A descriptor that is there already when one is needed, as there may be no other.
    spare: HostFile,
}

impl File {
    /// Gets ready, and changes nothing yet. Blocks.
    pub(super) fn prepare_reopen(
        &self,
        options: FileOptions,
    ) -> Result<FileReopen<'_>, FileOpenError> {
        let path = || self.path.clone();
        // The same image, also if it was renamed, or we have left the directory it was found from.
        let known = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let at = if known.exists() { &known } else { &self.path };
        let (other, mode) = options.open_host(at, &self.path)?;
        let failed = |source| FileOpenError::Open { path: path(), mode: "", source };
        if !is_same(&self.file, &other).map_err(failed)? {
            return Err(FileOpenError::Replaced { path: path() });
        }
        let held = Permissions::from_bits_truncate(self.held.load(Ordering::Relaxed));
        self.check_whole_blocks(held, mode.limits.request_alignment)
            .map_err(|error| FileOpenError::Permission(Box::new(error)))?;
        self.ring_files.prepare(&mode, &other);
        let same = (self.mode.read_only(), self.mode.direct()) == (mode.read_only, mode.direct);
        let others = if same {
            None
        } else {
            // To find out now whether it can be had.
            let lock = |source| FileOpenError::Lock { path: path(), source };
            self.copy_locks(&other).map_err(lock)?;
            let spare = other.try_clone().map_err(failed)?;
            Some(Others { other, spare })
        };
        Ok(FileReopen { file: self, others, mode })
    }
}

impl Reopen for FileReopen<'_> {
    fn swap(&mut self) {
        self.mode = self.file.mode.swap(self.mode);
        let Some(Others { other, spare }) = &self.others else { return };
        let moved = self.file.move_locks(other, || {
            sys::redirect(spare, &self.file.file)?;
            sys::redirect(&self.file.file, other)?;
            sys::redirect(other, spare)
        });
        if let Err(error) = moved {
            // No new descriptor is needed, so there is nothing that the system could want.
            tracing::error!(image = %self.file.path.display(), %error, "reopen failed half-way");
        }
    }
}

/// Whether two open files are of one image.
fn is_same(one: &HostFile, other: &HostFile) -> io::Result<bool> {
    let id = |file: &HostFile| file.metadata().map(|it| (it.dev(), it.ino(), it.rdev()));
    Ok(id(one)? == id(other)?)
}
