//! [`PidFile`]: tells others which process the daemon is, and that it lives (contract: C84).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, fcntl_lock};

use crate::leftovers::Leftover;

/// No pid file is longer; what is must be something else, which is not to be overwritten.
const MAX_BYTES: u64 = 64;

/// A file with the number of this process in it, locked as long as the process lives, and removed
/// when this is dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Holds the lock.
    file: File,
    _leftover: Leftover,
}

/// Why there is no pid file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PidFileError {
    /// It cannot be created.
    #[error("Could not create '{path}': {source}")]
    Create {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("Cannot lock pid file '{0}': another daemon has it")]
    Locked(String),
    /// There is something else of that name.
    #[error("'{0}' exists, and is not a pid file")]
    NotOurs(String),
    /// It cannot be written.
    #[error("Failed to write pid file '{path}': {source}")]
    Write {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl PidFile {
    /// Makes one. One that a process left behind is taken over.
    ///
    /// # Errors
    /// If it cannot be made, or another process has it.
    pub fn create(path: &Path) -> Result<PidFile, PidFileError> {
        let name = || path.display().to_string();
        let failed = |source| PidFileError::Create { path: name(), source };
        // The daemon may leave its directory before it removes the file.
        let absolute = std::path::absolute(path).map_err(failed)?;
        loop {
            let mut file = open(path).map_err(failed)?;
            if !file.metadata().map_err(failed)?.is_file() {
                return Err(PidFileError::NotOurs(name()));
            }
            fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|_| PidFileError::Locked(name()))?;
            // The daemon before may have removed it before the lock was taken.
            if !is_at(&file, path) {
                continue;
            }
            if !is_pid_file(&mut file) {
                return Err(PidFileError::NotOurs(name()));
            }
            let written = file.set_len(0).and_then(|()| rewrite(&mut file));
            let pid_file = PidFile { _leftover: Leftover::at(&absolute), path: absolute, file };
            return match written {
                Ok(()) => Ok(pid_file),
                Err(source) => Err(PidFileError::Write { path: name(), source }),
            };
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    // What is there may be a FIFO, which would have us wait.
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    options.open(path)
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

/// Whether it is new, or holds a number and nothing else.
fn is_pid_file(file: &mut File) -> bool {
    let mut text = String::new();
    let read = Read::by_ref(file).take(MAX_BYTES + 1).read_to_string(&mut text);
    let is_number = text.trim().bytes().all(|it| it.is_ascii_digit());
    read.is_ok_and(|bytes| bytes as u64 <= MAX_BYTES) && is_number
}

fn rewrite(file: &mut File) -> io::Result<()> {
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // If there is another one by now, it stays.
        if is_at(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
