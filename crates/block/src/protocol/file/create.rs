//! Making an image in a host file.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use coblk_aio::{PoolShare, sys};
use coblk_qapi::{Error, Size, Unsupported, path};
use serde::Deserialize;

use super::{File, FileOpenError};
use crate::driver::flags::{Preallocation, Truncate};
use crate::driver::permissions::{PermissionError, Permissions};
use crate::driver::{BlockDriver, MAX_LENGTH};
use crate::registry::{CreateError, Creates, Creating};

/// Options of a new image of the driver `file`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileCreateOptions {
    #[serde(deserialize_with = "path::deserialize")]
    filename: PathBuf,
    size: Size,
    #[serde(default)]
    preallocation: Allocate,
    #[serde(default)]
    nocow: bool,
    #[serde(rename = "extent-size-hint")]
    _extent_size_hint: Option<Unsupported>,
}

/// What a file can do ahead of writes.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Allocate {
    #[default]
    Off,
    Falloc,
    Full,
}

/// Why an image was not created.
#[derive(Debug, thiserror::Error)]
enum FileCreateError {
    #[error("cannot create image '{}': {source}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Open(#[from] FileOpenError),
    #[error("cannot create image: {0}")]
    InUse(#[from] PermissionError),
    #[error("cannot make image '{}' {bytes} bytes long: {source}", path.display())]
    Resize { path: PathBuf, bytes: u64, source: io::Error },
}

/// A file that is there is emptied first, unless another user of it, here or in another process, does
/// not share that. If the space is not to be had, the file stays and is empty, as in QEMU.
impl Creates for File {
    const NAME: &'static str = "file";
    type Options = FileCreateOptions;

    fn co_create(
        creating: &Creating<'_, '_>,
        options: FileCreateOptions,
    ) -> Result<(), CreateError> {
        let co = creating.co();
        let bytes = options.size.0;
        if options.filename.as_os_str().is_empty() {
            return Err(Error::invalid("filename", "a file has a name").into());
        }
        if bytes > MAX_LENGTH {
            let why = format!("an image has at most {MAX_LENGTH} bytes");
            return Err(Error::invalid("size", why).into());
        }
        let preallocation = match options.preallocation {
            Allocate::Off => Preallocation::Off,
            Allocate::Falloc => Preallocation::Falloc,
            Allocate::Full => Preallocation::Full,
        };
        let how = Truncate { exact: true, preallocation, ..Truncate::default() };
        let create = || create_empty(&options.filename, options.nocow);
        let file = PoolShare::once(co, create).map_err(CreateError::of_driver)?;
        let made = file.co_set_length(co, bytes, how).map_err(|source| {
            let path = options.filename.clone();
            CreateError::of_driver(FileCreateError::Resize { path, bytes, source })
        });
        // The last close of a file that was written may block.
        PoolShare::once(co, || drop(file));
        made
    }
}

/// Opens what is there, or what becomes so, and empties it once it is locked. Blocks.
fn create_empty(path: &Path, nocow: bool) -> Result<File, FileCreateError> {
    let failed = |source| FileCreateError::Create { path: path.to_owned(), source };
    // Not truncated: the image may be in use. The open of a FIFO would wait for its other end.
    let mut create = OpenOptions::new();
    create.read(true).write(true).create(true).mode(0o644).custom_flags(libc::O_NONBLOCK);
    drop(create.open(path).map_err(failed)?);
    let file = File::options().open(path)?;
    let changed = Permissions::WRITE | Permissions::RESIZE;
    file.set_permissions(changed, !Permissions::RESIZE)?;
    file.truncate(0).map_err(failed)?;
    if nocow && let Err(error) = sys::disable_copy_on_write(file.file.as_fd()) {
        // As in QEMU: a file system without copies on write has nothing to switch off.
        tracing::debug!(image = %path.display(), %error, "nocow has no effect");
    }
    Ok(file)
}
