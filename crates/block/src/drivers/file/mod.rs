//! `file` and `host_device`: an image in a host file or on a block device, buffered or O_DIRECT.
//!
//! What does the I/O is an [`Engine`]: blocking calls on worker threads, or the context's
//! io_uring. What a transfer means, that is short reads and writes, retries and the end of file,
//! is in `transfer.rs`, once for both.

mod alignment;
mod device;
mod in_place;
mod lock;
mod open;
mod reopen;
mod ring_files;
mod status;
mod transfer;

use std::fs::File as HostFile;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use coblk_aio::sys::{self, Fallocate};
use coblk_aio::{Co, IoVector, IoVectorMut, RingFd, trace_event};
use serde::{Deserialize, Serialize};

use crate::BlockStatus;
use crate::driver::{BlockDriver, BlockLimits};
use crate::flags::{WriteFlags, ZeroFlags};
use crate::node_info::CacheMode;
use crate::permissions::{PermissionError, Permissions};
use crate::versions::Versions;
use in_place::InPlace;
use lock::ImageLocks;
pub use lock::Locking;
pub use open::{FileOpenError, FileOptions};
pub(crate) use reopen::FileReopen;
use ring_files::RingFiles;
use transfer::{OnWorker, Pause, retry};

/// Images are a whole number of these, in what they report.
const SECTOR_BYTES: u64 = 512;

/// What does an image's I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Blocking system calls on worker threads; works everywhere.
    #[default]
    Threads,
    /// The context's io_uring; falls back to threads, with a warning, where there is none.
    IoUring,
    /// What QEMU calls `native`, Linux AIO: it asks for O_DIRECT, and io_uring does the work.
    Native,
}

/// An image in a host file, or on a block device.
///
/// A length that is not a multiple of 512 is reported rounded up; what is read there is zero, and
/// a write there makes the file longer. So does one with O_DIRECT to a last block that is not
/// whole.
#[derive(Debug)]
pub struct File {
    file: HostFile,
    ring_files: RingFiles,
    path: PathBuf,
    /// What a reopen can change.
    mode: Versions<Mode, 31>,
    in_place: InPlace,
    /// A block device: `host_device`.
    device: bool,
    locks: ImageLocks,
    /// What we report: whole sectors.
    length: AtomicU64,
    /// How long the file is as far as we know. If it turns out shorter, somebody truncated it.
    end_of_file: AtomicU64,
    /// The errno that an fdatasync of the page cache failed with, or 0. What it dropped is lost, so
    /// no later one may succeed (contract: C83).
    sync_errno: AtomicI32,
    can_zero_range: AtomicBool,
    can_punch_hole: AtomicBool,
    /// Of devices.
    can_discard: AtomicBool,
}

/// How an image is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mode {
    read_only: bool,
    /// O_DIRECT: no page cache.
    direct: bool,
    no_flush: bool,
    engine: Engine,
    in_place_reads: bool,
    limits: BlockLimits,
}

impl File {
    /// To open an image: `File::options().direct(true).open(path)`.
    pub fn options() -> FileOptions {
        FileOptions::default()
    }

    /// To open a block device (driver `host_device`):
    /// `File::device_options().direct(true).open("/dev/sdx")`. Its length is that of the device, and
    /// cannot be changed.
    pub fn device_options() -> FileOptions {
        File::options().on_device()
    }

    /// [`device_options`](Self::device_options) if there is a block device at `path`, else
    /// [`options`](Self::options): for programs that are given a path and no driver.
    pub fn options_for(path: impl AsRef<Path>) -> FileOptions {
        let kind = std::fs::metadata(path).map(|metadata| metadata.file_type());
        match kind.is_ok_and(|kind| kind.is_block_device()) {
            true => File::device_options(),
            false => File::options(),
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes written data durable with a call of `fdatasync`.
    ///
    /// After a failure the page cache may hold pages for clean that never reached the disk, and the
    /// next call would succeed (contract: C83). With O_DIRECT there is no page cache, and the next
    /// call asks the disk again.
    fn sync(&self, pause: &impl Pause, fdatasync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let lost = self.sync_errno.load(Ordering::Acquire);
        if lost != 0 {
            return Err(io::Error::from_raw_os_error(lost));
        }
        retry(pause, fdatasync).inspect_err(|error| {
            tracing::error!(image = %self.path.display(), %error, "fdatasync failed");
            if !self.mode.get().direct {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.sync_errno.store(errno, Ordering::Release);
            }
        })
    }

    fn uses_ring(&self, co: &Co<'_>) -> bool {
        self.mode.get().engine == Engine::IoUring && co.context().has_ring()
    }

    /// What rings read from.
    #[inline]
    fn ring_fd(&self) -> RingFd<'_> {
        match self.ring_files.get(self.mode.get()) {
            Some(file) => file.into(),
            None => self.file.as_fd().into(),
        }
    }

    fn co_sync(&self, co: &Co<'_>) -> io::Result<()> {
        let file = self.file.as_fd();
        if self.uses_ring(co) {
            return self.sync(&co, || co.ring_fdatasync(file));
        }
        co.context().thread_pool().submit_co(co, || self.sync(&OnWorker, || sys::fdatasync(file)))
    }

    fn co_fallocate(
        &self,
        co: &Co<'_>,
        what: Fallocate,
        possible: &AtomicBool,
        offset: u64,
        bytes: u64,
    ) -> io::Result<()> {
        let file = self.file.as_fd();
        co_if_possible(co, possible, || sys::fallocate(file, what, offset, bytes))
    }
}

/// A call that changes how a range is stored, on a worker: it may take long, and no engine does it
/// without blocking. Made only as long as file system or device have not said that they cannot.
fn co_if_possible(
    co: &Co<'_>,
    possible: &AtomicBool,
    call: impl Fn() -> io::Result<()> + Send + Sync,
) -> io::Result<()> {
    let not_supported = || io::Error::from_raw_os_error(libc::ENOTSUP);
    if !possible.load(Ordering::Relaxed) {
        return Err(not_supported());
    }
    let result = co.context().thread_pool().submit_co(co, || retry(&OnWorker, &call));
    result.map_err(|error| match error.raw_os_error() {
        // What the various file systems and devices say.
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL) => {
            possible.store(false, Ordering::Relaxed);
            not_supported()
        }
        _ => error,
    })
}

impl BlockDriver for File {
    fn format_name(&self) -> &'static str {
        if self.device { "host_device" } else { "file" }
    }

    fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        self.mode.get().read_only
    }

    fn limits(&self) -> BlockLimits {
        self.mode.get().limits
    }

    fn co_preadv(&self, co: &Co<'_>, offset: u64, target: &mut IoVectorMut<'_>) -> io::Result<()> {
        trace_event!("file_co_preadv", offset, bytes = target.len());
        let file = self.file.as_fd();
        // A simulated run must not depend on what the page cache holds.
        let in_place = self.mode.get().in_place_reads && co.context().simulation().is_none();
        if in_place && self.in_place.read(file, target, offset) {
            return Ok(());
        }
        if self.uses_ring(co) {
            let file = self.ring_fd();
            return self.read_fully(target, offset, &co, |rest, at| co.ring_preadv(file, rest, at));
        }
        co.context().thread_pool().submit_co(co, || {
            self.read_fully(target, offset, &OnWorker, |rest, at| sys::preadv(file, rest, at))
        })
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _flags: WriteFlags,
    ) -> io::Result<()> {
        trace_event!("file_co_pwritev", offset, bytes = source.len());
        let file = self.file.as_fd();
        if self.uses_ring(co) {
            return self
                .write_fully(source, offset, &co, |rest, at| co.ring_pwritev(file, rest, at));
        }
        co.context().thread_pool().submit_co(co, || {
            self.write_fully(source, offset, &OnWorker, |rest, at| sys::pwritev(file, rest, at))
        })
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        trace_event!("file_co_flush");
        if self.mode.get().no_flush {
            return Ok(());
        }
        self.co_sync(co)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        if flags.contains(ZeroFlags::MAY_UNMAP) {
            let (what, possible) = (Fallocate::PunchHole, &self.can_punch_hole);
            match self.co_fallocate(co, what, possible, offset, bytes) {
                // It may be unmapped, it need not be.
                Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {}
                result => return result,
            }
        }
        self.co_fallocate(co, Fallocate::ZeroRange, &self.can_zero_range, offset, bytes)
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        if self.device {
            return self.co_discard_device(co, offset, bytes);
        }
        self.co_fallocate(co, Fallocate::PunchHole, &self.can_punch_hole, offset, bytes)
    }

    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<BlockStatus> {
        self.co_status(co, offset, bytes)
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64) -> io::Result<()> {
        self.co_set_length(co, length)
    }

    fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        self.co_refresh(co)
    }

    fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        self.co_allocated(co)
    }

    fn filename(&self) -> Option<String> {
        Some(self.path.to_string_lossy().into_owned())
    }

    fn cache_mode(&self) -> CacheMode {
        let mode = self.mode.get();
        CacheMode { direct: mode.direct, no_flush: mode.no_flush }
    }

    fn engine(&self) -> Option<Engine> {
        Some(self.mode.get().engine)
    }

    fn reserve_permissions(&self, held: Permissions, shared: Permissions) {
        self.reserve_locks(held, shared);
    }

    fn set_permissions(
        &self,
        held: Permissions,
        shared: Permissions,
    ) -> Result<(), PermissionError> {
        self.lock_image(held, shared)
    }
}
