//! Zeroes and discards: changes to how a range is stored.
//!
//! They are calls on a worker: they may take long, and no engine makes them without blocking.
//!
//! ```text
//! may be unmapped   punch a hole, if that is possible
//! a file            FALLOC_FL_ZERO_RANGE; else punch a hole and allocate it anew (tmpfs, NFS, ZFS)
//! a device          FALLOC_FL_ZERO_RANGE, which writes where the device has no way of its own: so
//!                   not if zeroes shall not be written
//! ```

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use coblk_aio::Co;
use coblk_aio::sys::{self, Fallocate};

use super::File;
use super::ability::{Ability, not_supported};
use super::transfer::{OnWorker, retry};
use crate::driver::flags::ZeroFlags;

/// Abilities that a file system may lack.
#[derive(Debug)]
pub(super) struct Abilities {
    zero_range: Ability,
    punch_hole: Ability,
    allocate: Ability,
    /// Of devices.
    discard: Ability,
}

impl Abilities {
    pub(super) fn new() -> Abilities {
        Abilities {
            zero_range: Ability::new("FALLOC_FL_ZERO_RANGE"),
            punch_hole: Ability::new("FALLOC_FL_PUNCH_HOLE"),
            allocate: Ability::new("fallocate"),
            discard: Ability::new("BLKDISCARD"),
        }
    }
}

impl File {
    /// Zeroes a range by other means than writing, or ENOTSUP.
    pub(super) fn co_zero(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        self.share.submit_co(co, || self.zero(offset, bytes, flags))
    }

    /// Deallocates a range. A hole in a file is by the file system; a device is told itself.
    pub(super) fn co_discard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.share.submit_co(co, || match self.device {
            true => {
                let result = self.abilities.discard.attempt(&self.path, || {
                    let file = self.file.as_fd();
                    retry(&OnWorker, || sys::block_device::discard(file, offset, bytes))
                });
                self.known_data.forget(offset..offset + bytes);
                result
            }
            false => self.fallocate(Fallocate::PunchHole, offset, bytes),
        })
    }

    fn zero(&self, offset: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()> {
        if flags.contains(ZeroFlags::MAY_UNMAP) {
            match self.fallocate(Fallocate::PunchHole, offset, bytes) {
                Err(error) if is_no_way(&error) => {}
                result => return result,
            }
        }
        if self.device && flags.contains(ZeroFlags::NO_FALLBACK) {
            return Err(not_supported());
        }
        match self.fallocate(Fallocate::ZeroRange, offset, bytes) {
            Err(error) if is_no_way(&error) && !self.device => self.allocate_anew(offset, bytes),
            Err(error) if is_no_way(&error) => Err(not_supported()),
            result => result,
        }
    }

    /// The range keeps its place, though not the same one.
    fn allocate_anew(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let punched = self.fallocate(Fallocate::PunchHole, offset, bytes);
        let allocated = punched.and_then(|()| self.fallocate(Fallocate::Allocate, offset, bytes));
        match allocated {
            Err(error) if is_no_way(&error) => Err(not_supported()),
            result => result.inspect(|()| {
                // It may have come to be longer, up to a whole sector.
                self.end_of_file.fetch_max(offset + bytes, Ordering::AcqRel);
            }),
        }
    }

    pub(super) fn fallocate(&self, what: Fallocate, offset: u64, bytes: u64) -> io::Result<()> {
        let ability = match what {
            Fallocate::PunchHole => &self.abilities.punch_hole,
            Fallocate::ZeroRange => &self.abilities.zero_range,
            Fallocate::Allocate => &self.abilities.allocate,
        };
        let file = self.file.as_fd();
        let call = || retry(&OnWorker, || sys::fallocate(file, what, offset, bytes));
        let result = ability.attempt(&self.path, call);
        self.known_data.forget(offset..offset + bytes);
        result
    }
}

/// This way is not there, or not for this range: some file systems want whole blocks of their own.
/// Another way, writing at last, says what is wrong with it, if anything is.
fn is_no_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::EINVAL))
}
