//! `file`: an image in a host file or on a block device, buffered or O_DIRECT.
//!
//! What does the I/O is an [`Engine`]: blocking calls on worker threads, or the context's
//! io_uring. What a transfer means, that is short reads and writes, retries and the end of file,
//! is in [`File::read_fully`] and [`File::write_fully`], once for both.

mod in_place;
mod open;

use std::fs::File as HostFile;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use coblk_aio::sys::{self, Fallocate};
use coblk_aio::{Co, IoVector, IoVectorMut, trace_event};

use crate::driver::{BlockDriver, BlockLimits};
use crate::flags::{WriteFlags, ZeroFlags};
use in_place::InPlace;
pub use open::{FileOpenError, FileOptions};

/// Images are a whole number of these, in what they report.
const SECTOR_BYTES: u64 = 512;

/// What does an image's I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Blocking system calls on worker threads; works everywhere.
    #[default]
    Threads,
    /// The context's io_uring; falls back to threads, with a warning, where there is none.
    IoUring,
}

/// An image in a host file.
///
/// A length that is not a multiple of 512 is reported rounded up; what is read there is zero, and
/// a write there makes the file longer.
#[derive(Debug)]
pub struct File {
    file: HostFile,
    path: PathBuf,
    read_only: bool,
    engine: Engine,
    in_place: InPlace,
    limits: BlockLimits,
    /// What we report: whole sectors.
    length: u64,
    /// How long the file is as far as we know. If it turns out shorter, somebody truncated it.
    end_of_file: AtomicU64,
    /// An fdatasync of the page cache failed: what it dropped is lost, so no later one may
    /// succeed (contract: C83).
    sync_failed: AtomicBool,
    can_zero_range: AtomicBool,
    can_punch_hole: AtomicBool,
}

impl File {
    /// To open an image: `File::options().direct(true).open(path)`.
    pub fn options() -> FileOptions {
        FileOptions::default()
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all of `target` with calls of `preadv`, which read some of it.
    fn read_fully(
        &self,
        target: &mut IoVectorMut<'_>,
        offset: u64,
        preadv: impl Fn(&mut IoVectorMut<'_>, u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < target.len() {
            let at = offset + done as u64;
            let bytes = match done {
                0 => retry(|| preadv(target, at))?,
                _ => {
                    let mut rest = target.slice(done, target.len() - done);
                    match retry(|| preadv(&mut rest, at)) {
                        // O_DIRECT after a read that ended within a block: that was the end of
                        // the file, and where to go on is no place that it takes.
                        Err(error) if self.is_refused(&error, at) => 0,
                        result => result?,
                    }
                }
            };
            if bytes == 0 {
                return self.read_past_end(target, done, at);
            }
            done += bytes;
        }
        Ok(())
    }

    #[cold]
    fn is_refused(&self, error: &io::Error, at: u64) -> bool {
        let block = u64::from(self.limits.request_alignment);
        error.raw_os_error() == Some(libc::EINVAL) && !at.is_multiple_of(block)
    }

    /// The file ends at or before `at`. Beyond the length it had, that reads as zeroes (contract:
    /// C82). Before it, data is gone, and no read may hide that.
    #[cold]
    fn read_past_end(&self, target: &mut IoVectorMut<'_>, done: usize, at: u64) -> io::Result<()> {
        let expected = self.end_of_file.load(Ordering::Acquire);
        if at < expected {
            tracing::error!(
                image = %self.path.display(),
                offset = at,
                expected_bytes = expected,
                "the image has become shorter: read failed"
            );
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        target.fill_from(done, 0);
        Ok(())
    }

    /// Writes all of `source` with calls of `pwritev`, which write some of it.
    fn write_fully(
        &self,
        source: &IoVector<'_>,
        offset: u64,
        pwritev: impl Fn(&IoVector<'_>, u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < source.len() {
            let at = offset + done as u64;
            let bytes = match done {
                0 => retry(|| pwritev(source, at))?,
                _ => {
                    let rest = source.slice(done, source.len() - done);
                    retry(|| pwritev(&rest, at))?
                }
            };
            if bytes == 0 {
                // contract: C82
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            done += bytes;
        }
        if offset + done as u64 > self.end_of_file.load(Ordering::Relaxed) {
            self.end_of_file.fetch_max(offset + done as u64, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Makes written data durable with a call of `fdatasync`.
    fn sync(&self, fdatasync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        retry(fdatasync).inspect_err(|error| {
            self.sync_failed.store(true, Ordering::Release);
            tracing::error!(image = %self.path.display(), %error, "fdatasync failed");
        })
    }

    fn uses_ring(&self, co: &Co<'_>) -> bool {
        self.engine == Engine::IoUring && co.context().has_ring()
    }

    fn co_sync(&self, co: &Co<'_>) -> io::Result<()> {
        let file = self.file.as_fd();
        if self.uses_ring(co) {
            return self.sync(|| co.ring_fdatasync(file));
        }
        co.context().thread_pool().submit_co(co, || self.sync(|| sys::fdatasync(file)))
    }

    /// fallocate on a worker: it may take long, and no engine does it without blocking. Asked only
    /// as long as the file system has not said that it cannot.
    fn co_fallocate(
        &self,
        co: &Co<'_>,
        what: Fallocate,
        possible: &AtomicBool,
        offset: u64,
        bytes: u64,
    ) -> io::Result<()> {
        let not_supported = || io::Error::from_raw_os_error(libc::ENOTSUP);
        if !possible.load(Ordering::Relaxed) {
            return Err(not_supported());
        }
        let result = co
            .context()
            .thread_pool()
            .submit_co(co, || retry(|| sys::fallocate(self.file.as_fd(), what, offset, bytes)));
        result.map_err(|error| match error.raw_os_error() {
            // What the various file systems and devices say.
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL) => {
                possible.store(false, Ordering::Relaxed);
                not_supported()
            }
            _ => error,
        })
    }
}

/// EINTR and EAGAIN are no answers (contract: C82).
#[inline]
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            result => return result,
        }
    }
}

impl BlockDriver for File {
    fn format_name(&self) -> &'static str {
        "file"
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn limits(&self) -> BlockLimits {
        self.limits
    }

    fn co_preadv(&self, co: &Co<'_>, offset: u64, target: &mut IoVectorMut<'_>) -> io::Result<()> {
        trace_event!("file_co_preadv", offset, bytes = target.len());
        let file = self.file.as_fd();
        // A simulated run must not depend on what the page cache holds.
        if co.context().simulation().is_none() && self.in_place.read(file, target, offset) {
            return Ok(());
        }
        if self.uses_ring(co) {
            return self.read_fully(target, offset, |rest, at| co.ring_preadv(file, rest, at));
        }
        co.context().thread_pool().submit_co(co, || {
            self.read_fully(target, offset, |rest, at| sys::preadv(file, rest, at))
        })
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        trace_event!("file_co_pwritev", offset, bytes = source.len());
        let file = self.file.as_fd();
        let durable = flags.contains(WriteFlags::FUA);
        if self.uses_ring(co) {
            self.write_fully(source, offset, |rest, at| co.ring_pwritev(file, rest, at))?;
            return if durable { self.co_sync(co) } else { Ok(()) };
        }
        co.context().thread_pool().submit_co(co, || {
            self.write_fully(source, offset, |rest, at| sys::pwritev(file, rest, at))?;
            if durable { self.sync(|| sys::fdatasync(file)) } else { Ok(()) }
        })
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        trace_event!("file_co_flush");
        self.co_sync(co)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let (what, possible) = if flags.contains(ZeroFlags::MAY_UNMAP) {
            (Fallocate::PunchHole, &self.can_punch_hole)
        } else {
            (Fallocate::ZeroRange, &self.can_zero_range)
        };
        self.co_fallocate(co, what, possible, offset, bytes)?;
        if flags.contains(ZeroFlags::FUA) { self.co_sync(co) } else { Ok(()) }
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let (what, possible) = (Fallocate::PunchHole, &self.can_punch_hole);
        match self.co_fallocate(co, what, possible, offset, bytes) {
            // A hint that cannot be taken is no error.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(()),
            result => result,
        }
    }
}
