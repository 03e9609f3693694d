//! [`Store`]: the file of a sidecar, which is replaced as a whole, or appended to.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::format::{MAX_BODY_BYTES, SidecarError};

/// Most bytes of a file: bitmaps, and a journal.
const MAX_BYTES: u64 = MAX_BODY_BYTES + (1 << 30);

/// Why a file was not replaced.
#[derive(Debug)]
pub(super) struct ReplaceError {
    pub(super) error: io::Error,
    /// It may have been, and that may not be durable.
    pub(super) may_be_replaced: bool,
}

impl ReplaceError {
    fn before(error: io::Error) -> ReplaceError {
        ReplaceError { error, may_be_replaced: false }
    }
}

/// The file of a sidecar. Methods block; one at a time.
pub(super) trait Store: Send + Sync {
    /// The bytes of the file, if there is one, which others are kept from until it is given back.
    fn read(&self) -> io::Result<Option<Vec<u8>>>;

    /// Puts another file in its place, durably: a crash leaves the one or the other.
    fn replace(&self, bytes: &[u8]) -> Result<(), ReplaceError>;

    /// Writes into the file, durably.
    fn append(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Lets others have it.
    fn give_back(&self);
}

/// A file in a directory. Another one is written beside it, with `.new` behind its name.
pub(super) struct FileStore {
    path: PathBuf,
    read_only: bool,
    /// The file, locked.
    file: Mutex<Option<File>>,
}

impl FileStore {
    pub(super) fn new(path: PathBuf, read_only: bool) -> FileStore {
        FileStore { path, read_only, file: Mutex::default() }
    }

    fn set(&self, file: Option<File>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }

    /// The file that has the name, locked; the name may be given to another one while that is waited for.
    fn open(&self) -> io::Result<Option<File>> {
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(!self.read_only);
            // What is no file must not be waited for.
            options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            let file = match options.open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            let metadata = file.metadata()?;
            if !metadata.is_file() || metadata.len() > MAX_BYTES {
                return Err(io::Error::other(SidecarError::NoFile));
            }
            self.lock(&file)?;
            match std::fs::metadata(&self.path) {
                Ok(named) if named.ino() == metadata.ino() => return Ok(Some(file)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn lock(&self, file: &File) -> io::Result<()> {
        let locked = if self.read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => Ok(()),
            Err(std::fs::TryLockError::WouldBlock) => Err(io::Error::other(SidecarError::InUse)),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn new_path(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        name.into()
    }

    /// A file beside it with these bytes, durable and locked.
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        match std::fs::remove_file(path) {
            // One that a crash has left.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        self.lock(&file)?;
        Ok(file)
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.path.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Store for FileStore {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let Some(mut file) = self.open()? else { return Ok(None) };
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        let too_much = |_| io::Error::from_raw_os_error(libc::ENOMEM);
        bytes.try_reserve_exact(length as usize).map_err(too_much)?;
        (&mut file).take(length).read_to_end(&mut bytes)?;
        self.set(Some(file));
        Ok(Some(bytes))
    }

    fn replace(&self, bytes: &[u8]) -> Result<(), ReplaceError> {
        if self.read_only {
            return Err(ReplaceError::before(io::Error::from_raw_os_error(libc::EROFS)));
        }
        let new = self.new_path();
        let file = self.write_new(&new, bytes);
        let renamed = file.and_then(|file| std::fs::rename(&new, &self.path).map(|()| file));
        let file = renamed.map_err(|error| {
            let _ = std::fs::remove_file(&new);
            ReplaceError::before(error)
        })?;
        self.set(Some(file));
        self.sync_directory().map_err(|error| ReplaceError { error, may_be_replaced: true })
    }

    fn append(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = file.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        file.write_all_at(bytes, offset)?;
        file.sync_data()
    }

    fn give_back(&self) {
        self.set(None);
    }
}
