//! Changes of an image's length, and space for what is new.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use coblk_aio::sys::Fallocate;
use coblk_aio::{AlignedBuffer, Co, IoVector, sys};

use super::transfer::{OnWorker, retry};
use super::{File, SECTOR_BYTES};
use crate::driver::BlockDriver;
use crate::driver::flags::{Preallocation, Truncate, WriteFlags};

/// How much is written at a time to have space.
const ZEROES_BYTES: u64 = 1 << 20;
/// The largest alignment that any O_DIRECT may ask of memory.
const ZEROES_ALIGNMENT: usize = 4096;

impl File {
    /// Cuts the file, or makes it longer by a hole or by allocated space. A device has the length it
    /// has: that is looked at, as it may have grown.
    pub(super) fn co_set_length(&self, co: &Co<'_>, bytes: u64, how: Truncate) -> io::Result<()> {
        let preallocation = how.preallocation;
        if self.device {
            if preallocation != Preallocation::Off {
                return Err(unsupported(preallocation, "a device"));
            }
            return self.co_check_device(co, bytes, how.exact);
        }
        let block = self.mode.limits().request_alignment();
        if !bytes.is_multiple_of(block.into()) {
            let why = format!("{bytes} is not a multiple of {block}, the block of O_DIRECT there");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        match preallocation {
            Preallocation::Off => self.share.submit_co(co, || self.truncate(bytes)),
            Preallocation::Falloc | Preallocation::Full => {
                self.co_preallocate(co, bytes, preallocation)
            }
            Preallocation::Metadata => Err(unsupported(preallocation, "a file")),
        }
    }

    fn co_check_device(&self, co: &Co<'_>, bytes: u64, exact: bool) -> io::Result<()> {
        let why = match self.co_refresh(co)? {
            there if bytes == there || bytes < there && !exact => return Ok(()),
            there if bytes < there => {
                format!("Cannot resize device files: the device has {there} bytes")
            }
            there => format!("Cannot grow device files: the device has {there} bytes"),
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }

    pub(super) fn truncate(&self, bytes: u64) -> io::Result<()> {
        // What is cut off is not asked for any more, nor missed by a read that is on its way.
        self.length.fetch_min(bytes.next_multiple_of(SECTOR_BYTES), Ordering::AcqRel);
        self.end_of_file.fetch_min(bytes, Ordering::AcqRel);
        let result = retry(&OnWorker, || sys::ftruncate(self.file.as_fd(), bytes));
        let refreshed = self.refresh_length();
        result.and(refreshed.map(|_| ()))
    }

    /// Makes the file longer, with space for what is new. The length that is reported stays until all of
    /// that is there, so only the padding of the last block can be written to meanwhile, and that
    /// is not touched. After a failure the file is as long as it was, to a whole sector.
    fn co_preallocate(&self, co: &Co<'_>, bytes: u64, how: Preallocation) -> io::Result<()> {
        let old = self.co_refresh(co)?;
        if bytes < old {
            return Err(unsupported(how, "a file that becomes shorter"));
        }
        let end = self.end_of_file.load(Ordering::Acquire);
        if bytes <= end {
            return Ok(());
        }
        let file = self.file.as_fd();
        let allocated = self.share.submit_co(co, || {
            match self.fallocate(Fallocate::Allocate, end, bytes - end) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => match how {
                    Preallocation::Full => retry(&OnWorker, || sys::ftruncate(file, bytes)),
                    _ => Err(unsupported(how, "this file system")),
                },
                result => result,
            }
        });
        let made = allocated.and_then(|()| match how {
            Preallocation::Full => self.co_write_zeroes(co, old, bytes),
            _ => Ok(()),
        });
        self.share.submit_co(co, || match made {
            Ok(()) => self.refresh_length().map(|_| ()),
            Err(error) => self.truncate(old).and(Err(error)),
        })
    }

    /// Whole blocks from `at` on.
    fn co_write_zeroes(&self, co: &Co<'_>, at: u64, end: u64) -> io::Result<()> {
        let zeroes = AlignedBuffer::new(ZEROES_BYTES as usize, ZEROES_ALIGNMENT)?;
        let mut at = at.next_multiple_of(self.mode.limits().request_alignment().into());
        while at < end {
            if !co.is_wanted() {
                return Err(io::Error::from_raw_os_error(libc::ECANCELED));
            }
            let bytes = ZEROES_BYTES.min(end - at);
            self.co_pwritev(
                co,
                at,
                &IoVector::from(&zeroes[..bytes as usize]),
                WriteFlags::empty(),
            )?;
            at += bytes;
        }
        Ok(())
    }
}

fn unsupported(preallocation: Preallocation, of: &str) -> io::Error {
    let why = format!("preallocation '{}' is not supported for {of}", preallocation.name());
    io::Error::new(io::ErrorKind::Unsupported, why)
}
