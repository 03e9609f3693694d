//! `file`: an image in a host file, buffered or O_DIRECT, by blocking calls on worker threads.

use std::fs::{File as HostFile, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use coblk_aio::sys::{self, Fallocate};
use coblk_aio::{Co, IoVector, IoVectorMut};

use crate::driver::{BlockDriver, BlockLimits};
use crate::flags::{WriteFlags, ZeroFlags};

/// Images are a whole number of these, in what they report.
const SECTOR_BYTES: u64 = 512;

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileOpenError {
    /// The system refused.
    #[error("cannot open image '{}'{mode}: {source}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What it was to be opened for.
        mode: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It is neither a regular file nor a block device.
    #[error("cannot open image '{}': it is {what}, not a regular file or a block device", path.display())]
    NotAnImage {
        /// The path given.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
}

/// How to open an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOptions {
    read_only: bool,
    direct: bool,
}

impl FileOptions {
    /// Open for reading only.
    pub fn read_only(self, read_only: bool) -> FileOptions {
        FileOptions { read_only, ..self }
    }

    /// Bypass the page cache (O_DIRECT).
    pub fn direct(self, direct: bool) -> FileOptions {
        FileOptions { direct, ..self }
    }

    /// Opens the image. Blocks; for set-up code.
    ///
    /// # Errors
    /// If there is no such image, if it may not be opened in this way, or is not an image.
    pub fn open(self, path: impl AsRef<Path>) -> Result<File, FileOpenError> {
        let path = path.as_ref().to_owned();
        let mode = match (self.read_only, self.direct) {
            (true, false) => " for reading",
            (false, false) => " for writing",
            (true, true) => " for reading with O_DIRECT",
            (false, true) => " for writing with O_DIRECT",
        };
        let failed = |source| FileOpenError::Open { path: path.clone(), mode, source };
        // Asked before the open, which would fail for a directory with a message that blames the
        // mode, and would wait for a writer at a FIFO.
        let kind = std::fs::metadata(&path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "a directory" } else { "something else" };
            return Err(FileOpenError::NotAnImage { path, what });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(!self.read_only)
            .custom_flags(if self.direct { libc::O_DIRECT } else { 0 })
            .open(&path)
            .map_err(failed)?;
        let bytes = length_of(&file).map_err(failed)?;
        let limits = if self.direct { direct_limits(&file) } else { BlockLimits::default() };
        Ok(File {
            file,
            path,
            read_only: self.read_only,
            limits,
            length: bytes.next_multiple_of(SECTOR_BYTES),
            end_of_file: AtomicU64::new(bytes),
            sync_failed: AtomicBool::new(false),
            can_zero_range: AtomicBool::new(true),
            can_punch_hole: AtomicBool::new(true),
        })
    }
}

/// Where a descriptor ends: a block device has a length too, but not in its metadata.
fn length_of(mut file: &HostFile) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// What O_DIRECT asks for on this file; a page where the kernel does not tell.
fn direct_limits(file: &HostFile) -> BlockLimits {
    let (memory_alignment, request_alignment) =
        sys::direct_io_alignment(file.as_fd()).unwrap_or((4096, 4096));
    BlockLimits { request_alignment, memory_alignment, ..BlockLimits::default() }
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

    /// Reads all of `target`. Runs on a worker.
    fn read_fully(&self, target: &mut IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < target.len() {
            let mut rest = target.slice(done, target.len() - done);
            match retry(|| sys::preadv(self.file.as_fd(), &mut rest, offset + done as u64))? {
                0 => return self.read_past_end(target, done, offset + done as u64),
                bytes => done += bytes,
            }
        }
        Ok(())
    }

    /// The file ends at or before `at`. Beyond the length it had, that reads as zeroes (contract:
    /// C82). Before it, data is gone, and no read may hide that.
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

    /// Writes all of `source`. Runs on a worker.
    fn write_fully(&self, source: &IoVector<'_>, offset: u64, flags: WriteFlags) -> io::Result<()> {
        let mut done = 0;
        while done < source.len() {
            let rest = source.slice(done, source.len() - done);
            match retry(|| sys::pwritev(self.file.as_fd(), &rest, offset + done as u64))? {
                // contract: C82
                0 => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                bytes => done += bytes,
            }
        }
        self.end_of_file.fetch_max(offset + done as u64, Ordering::AcqRel);
        if flags.contains(WriteFlags::FUA) { self.sync() } else { Ok(()) }
    }

    /// Runs on a worker.
    fn sync(&self) -> io::Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        retry(|| sys::fdatasync(self.file.as_fd())).inspect_err(|error| {
            self.sync_failed.store(true, Ordering::Release);
            tracing::error!(image = %self.path.display(), %error, "fdatasync failed");
        })
    }

    /// Runs on a worker.
    fn zero(&self, offset: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()> {
        let how = if flags.contains(ZeroFlags::MAY_UNMAP) {
            (Fallocate::PunchHole, &self.can_punch_hole)
        } else {
            (Fallocate::ZeroRange, &self.can_zero_range)
        };
        self.fallocate(how.0, how.1, offset, bytes)?;
        if flags.contains(ZeroFlags::FUA) { self.sync() } else { Ok(()) }
    }

    /// fallocate, asked only as long as the file system has not said that it cannot.
    fn fallocate(
        &self,
        what: Fallocate,
        possible: &AtomicBool,
        offset: u64,
        bytes: u64,
    ) -> io::Result<()> {
        let not_supported = || io::Error::from_raw_os_error(libc::ENOTSUP);
        if !possible.load(Ordering::Relaxed) {
            return Err(not_supported());
        }
        retry(|| sys::fallocate(self.file.as_fd(), what, offset, bytes)).map_err(|error| {
            match error.raw_os_error() {
                // What the various file systems and devices say.
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL) => {
                    possible.store(false, Ordering::Relaxed);
                    not_supported()
                }
                _ => error,
            }
        })
    }
}

/// EINTR and EAGAIN are no answers (contract: C82).
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
        co.context().thread_pool().submit_co(co, || self.read_fully(target, offset))
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        co.context().thread_pool().submit_co(co, || self.write_fully(source, offset, flags))
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        co.context().thread_pool().submit_co(co, || self.sync())
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        co.context().thread_pool().submit_co(co, || self.zero(offset, bytes, flags))
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let punched = co.context().thread_pool().submit_co(co, || {
            self.fallocate(Fallocate::PunchHole, &self.can_punch_hole, offset, bytes)
        });
        match punched {
            // A hint that cannot be taken is no error.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(()),
            result => result,
        }
    }
}
