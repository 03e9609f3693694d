//! `file` and `host_device`: an image in a host file or on a block device, buffered or O_DIRECT.
//!
//! The I/O is done by an [`Engine`]: blocking calls on worker threads, or the context's
//! io_uring. What a transfer means, that is short reads and writes, retries and the end of file,
//! is in `transfer.rs`, once for both.

mod ability;
mod alignment;
mod config;
mod create;
mod in_place;
mod known_data;
mod length;
mod lock;
mod mode;
mod open;
mod reopen;
mod ring_files;
mod status;
mod transfer;
mod zeroes;

use std::fs::File as HostFile;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut, PoolShare, RingFd, sys, trace_event};

use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::driver::mode::{CacheMode, Engine};
use crate::driver::permissions::{PermissionError, Permissions};
use crate::driver::stamp::StorageStamp;
use crate::driver::{BlockDriver, BlockLimits};
pub use config::FileNodeOptions;
pub use create::FileCreateOptions;
use in_place::InPlace;
use known_data::KnownData;
use lock::ImageLocks;
pub use lock::Locking;
use mode::LiveMode;
pub use open::{FileOpenError, FileOptions};
use ring_files::RingFiles;
use transfer::{OnWorker, Pause, retry};
use zeroes::Abilities;

/// Images are a whole number of these, in what they report.
const SECTOR_BYTES: u64 = 512;

/// An image in a host file, or on a block device.
///
/// A length that is not a multiple of 512 is reported rounded up; bytes read there are zero, and
/// a write there makes the file longer, but never longer than is reported: users without the
/// permission to resize cannot write an image with O_DIRECT that ends within a block.
#[derive(Debug)]
pub struct File {
    file: HostFile,
    ring_files: RingFiles,
    path: PathBuf,
    /// The modes that a reopen can change.
    mode: LiveMode,
    in_place: InPlace,
    /// A block device: `host_device`.
    device: bool,
    locks: ImageLocks,
    /// [`Permissions`] that the users of the node hold.
    held: AtomicU8,
    /// The length that is reported: whole sectors.
    length: AtomicU64,
    /// Length of the file as far as is known. If it turns out shorter, another process truncated it.
    end_of_file: AtomicU64,
    /// The errno that an fdatasync of the page cache failed with, or 0. What it dropped is lost, so
    /// no later one may succeed (contract: C83).
    sync_errno: AtomicI32,
    abilities: Abilities,
    known_data: KnownData,
    /// Its part of the worker pool: a disk that does not answer leaves threads for others.
    share: PoolShare,
}

impl File {
    /// Options to open an image: `File::options().direct(true).open(path)`.
    pub fn options() -> FileOptions {
        FileOptions::default()
    }

    /// Options to open a block device (driver `host_device`):
    /// `File::device_options().direct(true).open("/dev/sdx")`. Its length is that of the device: a
    /// change of length looks whether the device has grown, and fails if it is not as long.
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
            if !self.mode.direct() {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.sync_errno.store(errno, Ordering::Release);
            }
        })
    }

    /// With O_DIRECT the last block is written as a whole. If the image ends within it, that makes the
    /// image longer, which the writer has no permission for: as in QEMU. What is reported is whole
    /// sectors, so up to there no reader notices.
    fn check_whole_blocks(&self, held: Permissions, block: u32) -> Result<(), PermissionError> {
        let writes = held.intersects(Permissions::WRITE | Permissions::WRITE_UNCHANGED);
        let length = self.length.load(Ordering::Acquire);
        if writes && !held.contains(Permissions::RESIZE) && !length.is_multiple_of(block.into()) {
            return Err(PermissionError::Unaligned { path: self.path.clone(), length, block });
        }
        Ok(())
    }

    fn uses_ring(&self, co: &Co<'_>) -> bool {
        self.mode.engine() == Engine::IoUring && co.context().has_ring()
    }

    /// The descriptor, or the registered file, that rings read from.
    #[inline]
    fn ring_fd(&self) -> RingFd<'_> {
        match self.ring_files.get(self.mode.direct()) {
            Some(file) => file.into(),
            None => self.file.as_fd().into(),
        }
    }

    fn co_sync(&self, co: &Co<'_>) -> io::Result<()> {
        let file = self.file.as_fd();
        if self.uses_ring(co) {
            return self.sync(&co, || co.ring_fdatasync(file));
        }
        self.share.submit_co(co, || self.sync(&OnWorker, || sys::fdatasync(file)))
    }
}

impl BlockDriver for File {
    fn format_name(&self) -> &'static str {
        if self.device { "host_device" } else { "file" }
    }

    fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        self.mode.read_only()
    }

    fn limits(&self) -> BlockLimits {
        self.mode.limits().get()
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        trace_event!("file_co_preadv", offset, bytes = target.len());
        let file = self.file.as_fd();
        // A simulated run must not depend on what the page cache holds.
        let (ctx, uses_ring) = (co.context(), self.uses_ring(co));
        let max_a_turn = match self.mode.in_place_a_turn() {
            max if max == 0 || uses_ring => max,
            _ => u32::MAX,
        };
        let in_place = max_a_turn > 0 && ctx.simulation().is_none();
        if in_place && self.in_place.read(ctx, max_a_turn, file, target, offset) {
            return Ok(());
        }
        if uses_ring {
            let file = self.ring_fd();
            return self.read_fully(target, offset, &co, |rest, at| co.ring_preadv(file, rest, at));
        }
        self.share.submit_co(co, || {
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
        self.share.submit_co(co, || {
            self.write_fully(source, offset, &OnWorker, |rest, at| sys::pwritev(file, rest, at))
        })
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        trace_event!("file_co_flush");
        if self.mode.no_flush() {
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
        self.co_zero(co, offset, bytes, flags)
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.co_discard(co, offset, bytes)
    }

    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.co_status(co, offset, bytes)
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        self.co_set_length(co, length, how)
    }

    fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        self.co_refresh(co)
    }

    fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        self.co_allocated(co)
    }

    fn co_drop_cache(&self, co: &Co<'_>) -> io::Result<()> {
        self.share.submit_co(co, || sys::forget_pages(self.file.as_fd()))
    }

    fn co_stamp(&self, co: &Co<'_>) -> io::Result<Option<StorageStamp>> {
        self.co_look_at_stamp(co)
    }

    fn filename(&self) -> Option<String> {
        Some(self.path.to_string_lossy().into_owned())
    }

    fn cache_mode(&self) -> CacheMode {
        CacheMode { direct: self.mode.direct(), no_flush: self.mode.no_flush() }
    }

    fn engine(&self) -> Option<Engine> {
        Some(self.mode.engine())
    }

    fn reserve_permissions(&self, held: Permissions, shared: Permissions) {
        self.reserve_locks(held, shared);
    }

    fn set_permissions(
        &self,
        held: Permissions,
        shared: Permissions,
    ) -> Result<(), PermissionError> {
        self.check_whole_blocks(held, self.mode.limits().request_alignment())?;
        self.lock_image(held, shared)?;
        self.held.store(held.bits(), Ordering::Relaxed);
        Ok(())
    }
}
