//! Opening an image: options, checks, errors.

use std::fs::{File as HostFile, FileType, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64};

use coblk_aio::{PoolShare, sys};

use super::in_place::{InPlace, MAX_BEFORE_RING};
use super::known_data::KnownData;
use super::lock::{ImageLocks, Locking};
use super::mode::{LiveMode, Mode};
use super::ring_files::RingFiles;
use super::zeroes::Abilities;
use super::{File, SECTOR_BYTES, alignment};
use crate::driver::mode::Engine;
use crate::driver::permissions::PermissionError;
use crate::driver::{BlockLimits, MAX_LENGTH};

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileOpenError {
    /// The system refused.
    #[error("cannot open image '{}'{mode}: {source}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// The access that was asked for.
        mode: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// A reopen has found another file at the path of the image.
    #[error("cannot reopen image '{}': another file is there by now", path.display())]
    Replaced {
        /// The image.
        path: PathBuf,
    },
    /// A user that writes could not go on after the reopen.
    #[error("cannot reopen image: {0}")]
    Permission(Box<PermissionError>),
    /// The locks of the image cannot be taken once more.
    #[error("cannot reopen image '{}': locks: {source}", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The image is longer than requests can address.
    #[error("cannot open image '{}': it has {length} bytes, more than {MAX_LENGTH}", path.display())]
    TooLong {
        /// The image.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// `aio=native` without O_DIRECT.
    #[error("cannot open image '{}': aio=native needs cache.direct=on", path.display())]
    NativeNotDirect {
        /// The image.
        path: PathBuf,
    },
    /// The file is not of a kind that this driver opens.
    #[error("cannot open image '{}': it is {what}, not {expected}", path.display())]
    NotAnImage {
        /// The path given.
        path: PathBuf,
        /// The kind of the file.
        what: &'static str,
        /// The kind that the driver opens, and the driver for this kind, if there is one.
        expected: &'static str,
    },
}

/// How to open an image; from [`File::options`].
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    read_only: bool,
    direct: bool,
    engine: Engine,
    in_place_a_turn: u32,
    device: bool,
    locking: Locking,
    no_flush: bool,
}

impl Default for FileOptions {
    fn default() -> FileOptions {
        FileOptions {
            read_only: false,
            direct: false,
            engine: Engine::default(),
            in_place_a_turn: MAX_BEFORE_RING,
            device: false,
            locking: Locking::default(),
            no_flush: false,
        }
    }
}

impl FileOptions {
    /// Opens a block device (driver `host_device`) instead of a regular file (`file`).
    pub fn on_device(self) -> FileOptions {
        FileOptions { device: true, ..self }
    }

    /// Opens for reading only.
    pub fn read_only(self, read_only: bool) -> FileOptions {
        FileOptions { read_only, ..self }
    }

    /// Bypasses the page cache (O_DIRECT).
    pub fn direct(self, direct: bool) -> FileOptions {
        FileOptions { direct, ..self }
    }

    /// Chooses the engine of the I/O.
    pub fn engine(self, engine: Engine) -> FileOptions {
        FileOptions { engine, ..self }
    }

    /// Sets whether small reads are first tried from the page cache, on the loop's own thread; on
    /// by default. Without it every request goes to the engine. O_DIRECT has no page cache.
    pub fn in_place_reads(self, in_place_reads: bool) -> FileOptions {
        self.in_place_reads_a_turn(if in_place_reads { MAX_BEFORE_RING } else { 0 })
    }

    /// Sets up to how many reads in a turn of the loop are tried so if it has a ring, which takes a
    /// larger batch at less cost: the rest of this turn's, and all of the next turns' until one is small
    /// again. 32 by default; a device's requests of one kick may be four times as many. Reads of all
    /// images of a context are counted together. Where there are workers instead of a ring, all are
    /// tried; with 0, none is in either case.
    pub fn in_place_reads_a_turn(self, max: u32) -> FileOptions {
        FileOptions { in_place_a_turn: max, ..self }
    }

    /// Sets whether other processes are kept from using the image in a way that does not agree with
    /// this one; see [`Locking`].
    pub fn locking(self, locking: Locking) -> FileOptions {
        FileOptions { locking, ..self }
    }

    /// Sets whether flushes do nothing. Nothing is durable then: if the host crashes, all that the
    /// image was ever written may be lost, or half there. For images that are not needed after a
    /// crash.
    pub fn no_flush(self, no_flush: bool) -> FileOptions {
        FileOptions { no_flush, ..self }
    }

    /// Opens the image. Blocks; for set-up code.
    ///
    /// # Errors
    /// If there is no such image, if it may not be opened in this way, or is not an image.
    pub fn open(self, path: impl AsRef<Path>) -> Result<File, FileOpenError> {
        let (file, mode) = self.open_host(path.as_ref(), path.as_ref())?;
        let path = path.as_ref().to_owned();
        let failed = |source| FileOpenError::Open { path: path.clone(), mode: "", source };
        let bytes = length_of(&file).map_err(failed)?;
        if bytes > MAX_LENGTH {
            return Err(FileOpenError::TooLong { path, length: bytes });
        }
        let ring_files = RingFiles::default();
        ring_files.prepare(&mode, &file);
        Ok(File {
            file,
            ring_files,
            path,
            mode: LiveMode::new(&mode),
            in_place: InPlace::new(),
            device: self.device,
            locks: ImageLocks::new(self.locking),
            held: AtomicU8::new(0),
            length: AtomicU64::new(bytes.next_multiple_of(SECTOR_BYTES)),
            end_of_file: AtomicU64::new(bytes),
            sync_errno: AtomicI32::new(0),
            abilities: Abilities::new(),
            known_data: KnownData::default(),
            share: PoolShare::new(),
        })
    }

    /// Opens what is at a path, and says how it is open then. Errors call it by its name.
    pub(super) fn open_host(
        &self,
        at: &Path,
        name: &Path,
    ) -> Result<(HostFile, Mode), FileOpenError> {
        let path = name.to_owned();
        let mode = match (self.read_only, self.direct) {
            (true, false) => " for reading",
            (false, false) => " for writing",
            (true, true) => " for reading with O_DIRECT",
            (false, true) => " for writing with O_DIRECT",
        };
        let failed = |source| FileOpenError::Open { path: path.clone(), mode, source };
        let engine = self.engine_for(&path)?;
        // Asked before the open, which would fail for a directory with a message that blames the
        // mode.
        let kind = std::fs::metadata(at).map_err(failed)?.file_type();
        self.check_kind(&path, kind)?;
        // The path may lead elsewhere by now, and the open of a FIFO would wait for its other end.
        let flags = libc::O_NONBLOCK | if self.direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(!self.read_only)
            .custom_flags(flags)
            .open(at)
            .map_err(failed)?;
        self.check_kind(&path, file.metadata().map_err(failed)?.file_type())?;
        sys::clear_nonblocking(&file).map_err(failed)?;
        let mode = Mode {
            read_only: self.read_only,
            direct: self.direct,
            no_flush: self.no_flush,
            engine,
            in_place_a_turn: if self.direct { 0 } else { self.in_place_a_turn },
            limits: self.limits(&file).map_err(failed)?,
        };
        Ok((file, mode))
    }

    fn engine_for(&self, path: &Path) -> Result<Engine, FileOpenError> {
        if self.engine != Engine::Native {
            return Ok(self.engine);
        }
        if !self.direct {
            return Err(FileOpenError::NativeNotDirect { path: path.to_owned() });
        }
        tracing::info!(image = %path.display(), "aio=native: served by io_uring");
        Ok(Engine::IoUring)
    }

    fn check_kind(&self, path: &Path, kind: FileType) -> Result<(), FileOpenError> {
        let expected = match self.device {
            false if kind.is_file() => return Ok(()),
            true if kind.is_block_device() => return Ok(()),
            false if kind.is_block_device() => "a regular file: it needs driver 'host_device'",
            true if kind.is_file() => "a block device: it needs driver 'file'",
            false => "a regular file",
            true => "a block device",
        };
        Err(FileOpenError::NotAnImage { path: path.to_owned(), what: describe(kind), expected })
    }

    fn limits(&self, file: &HostFile) -> io::Result<BlockLimits> {
        let mut limits = BlockLimits::default();
        if self.direct {
            (limits.memory_alignment, limits.request_alignment) = alignment::of_direct_io(file)?;
        }
        if self.device {
            let block = sys::block_device::logical_block_bytes(file.as_fd())?;
            if self.direct {
                limits.request_alignment = limits.request_alignment.max(block);
            }
            limits.pwrite_zeroes_alignment = block;
            limits.pdiscard_alignment = block;
        }
        Ok(limits)
    }
}

fn describe(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_file() {
        "a regular file"
    } else if kind.is_block_device() {
        "a block device"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "something else"
    }
}

/// Where a descriptor ends: a block device has a length too, but not in its metadata.
pub(super) fn length_of(mut file: &HostFile) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}
