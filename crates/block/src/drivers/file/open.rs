//! Opening an image: options, checks, errors.

use std::fs::{File as HostFile, FileType, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64};

use coblk_aio::sys;

use super::in_place::InPlace;
use super::{Engine, File, SECTOR_BYTES};
use crate::driver::BlockLimits;

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

/// How to open an image; from [`File::options`].
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    read_only: bool,
    direct: bool,
    engine: Engine,
    in_place_reads: bool,
}

impl Default for FileOptions {
    fn default() -> FileOptions {
        FileOptions {
            read_only: false,
            direct: false,
            engine: Engine::default(),
            in_place_reads: true,
        }
    }
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

    /// What does the I/O.
    pub fn engine(self, engine: Engine) -> FileOptions {
        FileOptions { engine, ..self }
    }

    /// Whether small reads are first tried from the page cache, on the loop's own thread; on by
    /// default. Without it every request goes to the engine. O_DIRECT has no page cache.
    pub fn in_place_reads(self, in_place_reads: bool) -> FileOptions {
        FileOptions { in_place_reads, ..self }
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
            return Err(FileOpenError::NotAnImage { path, what: describe(kind) });
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
            engine: self.engine,
            in_place: InPlace::new(self.in_place_reads && !self.direct),
            limits,
            direct: self.direct,
            resizable: kind.is_file(),
            length: AtomicU64::new(bytes.next_multiple_of(SECTOR_BYTES)),
            end_of_file: AtomicU64::new(bytes),
            sync_errno: AtomicI32::new(0),
            can_zero_range: AtomicBool::new(true),
            can_punch_hole: AtomicBool::new(true),
        })
    }
}

fn describe(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
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

/// What O_DIRECT asks for on this file; a page where the kernel does not tell.
fn direct_limits(file: &HostFile) -> BlockLimits {
    let (memory_alignment, request_alignment) =
        sys::direct_io_alignment(file.as_fd()).unwrap_or((4096, 4096));
    BlockLimits { request_alignment, memory_alignment, ..BlockLimits::default() }
}
