//! Locks on an image, by which processes agree on who may do what. The bytes are those of QEMU, so
//! that its programs and ours respect each other.
//!
//! ```text
//! byte 100 + i   a process holds permission i
//! byte 200 + i   a process does not share permission i with others
//! ```
//!
//! All are shared locks: any number of processes may hold each. A process takes its own locks first,
//! and looks then whether others hold the contrary byte, so that of two processes that come at the
//! same time at least one sees the other.

use std::fs::File as HostFile;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk_aio::sys;
use serde::{Deserialize, Serialize};

use super::File;
use crate::driver::permissions::{PermissionError, Permissions};

const HELD_AT: u64 = 100;
const NOT_SHARED_AT: u64 = 200;

/// Whether an image is locked while it is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Locking {
    /// The image is locked, and cannot be used where the file system refuses locks.
    On,
    /// The image is not locked. Nothing keeps others from changing it.
    Off,
    /// The image is locked; where the file system refuses locks there is a warning instead.
    #[default]
    Auto,
}

/// The locks that one open image has.
#[derive(Debug)]
pub(super) struct ImageLocks {
    locking: Locking,
    /// Held for a few system calls, by a change of permissions.
    now: Mutex<Locks>,
}

#[derive(Clone, Copy, Debug)]
struct Locks {
    held: Permissions,
    not_shared: Permissions,
    /// As these, taken in advance.
    reserved: (Permissions, Permissions),
    /// It was locked once: the file system knows locks, and is not given up any more.
    locked: bool,
    /// The file system knows no locks, and has been given up.
    refused: bool,
}

/// Why locks were not had.
enum Obstacle {
    /// Another process holds the contrary lock.
    Conflict {
        permission: Permissions,
        mode: &'static str,
    },
    System(io::Error),
}

impl ImageLocks {
    pub(super) fn new(locking: Locking) -> ImageLocks {
        ImageLocks { locking, now: Mutex::new(Locks::NONE) }
    }

    fn now(&self) -> MutexGuard<'_, Locks> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File {
    /// Locks the image for the permissions `held`, and against those not `shared`. Without effect if that
    /// is refused.
    pub(super) fn lock_image(
        &self,
        held: Permissions,
        shared: Permissions,
    ) -> Result<(), PermissionError> {
        let mut now = self.locks.now();
        if self.locks.locking == Locking::Off || now.refused {
            return Ok(());
        }
        let path = || self.path.clone();
        match now.change(self.file.as_fd(), held, !shared) {
            Ok(()) => Ok(()),
            Err(Obstacle::Conflict { permission, mode }) => {
                Err(PermissionError::Locked { path: path(), permission, mode })
            }
            Err(Obstacle::System(error))
                if self.locks.locking == Locking::Auto && !now.locked && is_refusal(&error) =>
            {
                tracing::warn!(
                    image = %self.path.display(),
                    %error,
                    "the file system refuses locks: nothing keeps others from using the image"
                );
                now.refused = true;
                Ok(())
            }
            Err(Obstacle::System(source)) => Err(PermissionError::Lock { path: path(), source }),
        }
    }
}

impl File {
    /// Takes locks in advance, whatever others hold. If that fails, so will
    /// [`lock_image`](Self::lock_image), and say why.
    pub(super) fn reserve_locks(&self, held: Permissions, shared: Permissions) {
        let mut now = self.locks.now();
        if self.locks.locking == Locking::Off || now.refused {
            return;
        }
        let wanted = Locks { held, not_shared: !shared, ..Locks::NONE };
        match wanted.acquire(self.file.as_fd()) {
            Ok(()) => now.reserved = (held, !shared),
            Err(_) => wanted.without(&now).release(self.file.as_fd()),
        }
    }
}

/// For another open file of the image that is to take the place of this one.
impl File {
    /// Has it hold the same locks, whatever others hold: they agree to these already.
    pub(super) fn copy_locks(&self, other: &HostFile) -> io::Result<()> {
        copy(&self.locks.now(), other)
    }

    /// Calls `exchange`, which has both change places. Afterwards only the one that is in use now
    /// has locks.
    pub(super) fn move_locks(
        &self,
        other: &HostFile,
        exchange: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        // They must not change meanwhile.
        let now = self.locks.now();
        let copied = copy(&now, other);
        // What was copied before may have been given up since. Who has never locked anything has
        // copied nothing, and may be where there are no locks.
        if now.locked {
            Locks::ALL.without(&now).release(other.as_fd());
        }
        exchange()?;
        now.release(other.as_fd());
        copied
    }
}

fn copy(locks: &Locks, other: &HostFile) -> io::Result<()> {
    locks.acquire(other.as_fd()).map_err(|obstacle| match obstacle {
        Obstacle::System(error) => error,
        Obstacle::Conflict { .. } => io::Error::from_raw_os_error(libc::EAGAIN),
    })
}

impl Drop for File {
    /// Closing would do, but a ring may keep the file open for a while.
    fn drop(&mut self) {
        let now = self.locks.now();
        now.release(self.file.as_fd());
    }
}

impl Locks {
    const NONE: Locks = Locks {
        held: Permissions::empty(),
        not_shared: Permissions::empty(),
        reserved: (Permissions::empty(), Permissions::empty()),
        locked: false,
        refused: false,
    };

    const ALL: Locks =
        Locks { held: Permissions::all(), not_shared: Permissions::all(), ..Locks::NONE };

    fn without(self, others: &Locks) -> Locks {
        let (held, not_shared) = (self.held - others.held, self.not_shared - others.not_shared);
        Locks { held, not_shared, ..self }
    }

    fn change(
        &mut self,
        fd: BorrowedFd<'_>,
        held: Permissions,
        not_shared: Permissions,
    ) -> Result<(), Obstacle> {
        let new = Locks { held, not_shared, ..*self }.without(self);
        let reserved = self.reserved;
        if let Err(obstacle) = new.acquire(fd).and_then(|()| new.check(fd)) {
            // What was reserved stays so until others have back what they gave up.
            Locks { held: new.held - reserved.0, not_shared: new.not_shared - reserved.1, ..new }
                .release(fd);
            return Err(obstacle);
        }
        self.reserved = Locks::NONE.reserved;
        let (old_held, old_not_shared) = (self.held | reserved.0, self.not_shared | reserved.1);
        let old = Locks { held: old_held - held, not_shared: old_not_shared - not_shared, ..*self };
        old.release(fd);
        (self.held, self.not_shared) = (held, not_shared);
        self.locked |= !(held | not_shared).is_empty();
        Ok(())
    }

    /// The locked bytes: the permission, its byte, the contrary byte, and words for messages.
    fn each(self) -> impl Iterator<Item = (Permissions, u64, u64, &'static str)> {
        let index = |one: Permissions| u64::from(one.bits().trailing_zeros());
        let held = self.held.iter().map(move |one| {
            (one, HELD_AT + index(one), NOT_SHARED_AT + index(one), "") //
        });
        let not_shared = self
            .not_shared
            .iter()
            .map(move |one| (one, NOT_SHARED_AT + index(one), HELD_AT + index(one), "shared "));
        held.chain(not_shared)
    }

    fn acquire(self, fd: BorrowedFd<'_>) -> Result<(), Obstacle> {
        for (permission, byte, _, mode) in self.each() {
            sys::lock_byte(fd, byte).map_err(|error| match error.raw_os_error() {
                // A program that locks images in another way has the byte exclusively.
                Some(libc::EAGAIN | libc::EACCES) => Obstacle::Conflict { permission, mode },
                _ => Obstacle::System(error),
            })?;
        }
        Ok(())
    }

    /// Whether others agree.
    fn check(self, fd: BorrowedFd<'_>) -> Result<(), Obstacle> {
        for (permission, _, contrary, mode) in self.each() {
            if sys::is_byte_locked_by_others(fd, contrary).map_err(Obstacle::System)? {
                return Err(Obstacle::Conflict { permission, mode });
            }
        }
        Ok(())
    }

    /// Gives locks up. The kernel has no reason to refuse that; if it does, others are kept out for
    /// longer than need be, which harms no data.
    fn release(self, fd: BorrowedFd<'_>) {
        for (_, byte, _, _) in self.each() {
            if let Err(error) = sys::unlock_byte(fd, byte) {
                tracing::warn!(%error, byte, "a lock of an image cannot be given up");
            }
        }
    }
}

/// Whether a file system says that it has no locks, and not that something went wrong with them.
///
/// EINVAL is POSIX's error for a file that does not support locks, and Linux's for a kernel without locks of
/// open files. It hides no other process: a lock that is held is EAGAIN or EACCES. Nor does it hide a mistake
/// of ours: the bytes are constants, and the rest of the request is zeroes. A file that was locked once is not
/// asked about this any more.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Permissions = Permissions::CONSISTENT_READ.union(Permissions::WRITE);
    const NOBODY: (Permissions, Permissions) = (Permissions::empty(), Permissions::all());

    #[test]
    fn locks_are_handed_over_or_stay_where_they_were() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [first, second, other] = [(); 3].map(|()| File::options().open(image.path()).unwrap());
        let disk = (DISK, Permissions::all() - Permissions::WRITE);
        let set = |file: &File, it: (Permissions, Permissions)| file.lock_image(it.0, it.1);
        set(&first, disk).unwrap();
        assert!(set(&second, disk).is_err() && set(&other, disk).is_err());
        second.reserve_locks(disk.0, disk.1);
        set(&first, NOBODY).unwrap();
        assert!(set(&other, disk).is_err(), "nobody comes in between");
        set(&second, disk).unwrap();
        assert!(set(&other, disk).is_err());
        // Not so if a third one has something against it.
        let shares = (DISK, Permissions::all());
        set(&second, shares).unwrap();
        set(&other, shares).unwrap();
        first.reserve_locks(disk.0, disk.1);
        set(&second, NOBODY).unwrap();
        assert!(set(&first, disk).is_err());
        second.reserve_locks(shares.0, shares.1);
        set(&first, NOBODY).unwrap();
        set(&second, shares).unwrap();
        set(&other, NOBODY).unwrap();
        assert!(set(&other, disk).is_err(), "the second one has them back");
        set(&second, NOBODY).unwrap();
        set(&other, disk).unwrap();
        drop(other);
        set(&first, disk).unwrap();
    }

    #[test]
    fn locks_given_up_since_they_were_copied_are_not_moved() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [file, stranger] = [(); 2].map(|()| File::options().open(image.path()).unwrap());
        let other = HostFile::options().read(true).write(true).open(image.path()).unwrap();
        let reader = (Permissions::CONSISTENT_READ, Permissions::all());
        file.lock_image(DISK, Permissions::all() - Permissions::WRITE).unwrap();
        file.copy_locks(&other).unwrap();
        file.lock_image(reader.0, reader.1).unwrap();
        let alone = Permissions::all() - Permissions::CONSISTENT_READ;
        let exchange = || {
            stranger.lock_image(DISK, Permissions::all()).unwrap();
            assert!(stranger.lock_image(DISK, alone).is_err(), "the reader is still there");
            Ok(())
        };
        file.move_locks(&other, exchange).unwrap();
    }
}
