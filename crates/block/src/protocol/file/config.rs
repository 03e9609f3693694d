//! Options of an image, and how it is opened by them.

use std::path::PathBuf;

use coblk_aio::PoolShare;
use coblk_qapi::{Unsupported, path};
use serde::{Deserialize, Serialize};

use super::{File, FileOpenError, FileOptions, Locking};
use crate::driver::mode::Engine;
use crate::options::{DriverConfig, DriverOptions};
use crate::registry::{Driver, NodeMode, OpenError, Opening, Reopen, Reopening};

/// Options of `file` and `host_device`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(from = "FileFields")]
#[non_exhaustive]
pub struct FileNodeOptions {
    /// `filename`.
    #[serde(serialize_with = "path::serialize")]
    pub filename: PathBuf,
    /// `aio`: `threads`, the default, `io_uring`, or `native`, which io_uring serves.
    pub aio: Engine,
    /// `locking`: `on`, `off`, or `auto`, the default.
    pub locking: Locking,
}

/// With what is known, and ignored or not supported.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FileFields {
    #[serde(deserialize_with = "path::deserialize")]
    filename: PathBuf,
    #[serde(default)]
    aio: Engine,
    #[serde(default)]
    locking: Locking,
    #[serde(rename = "pr-manager")]
    _pr_manager: Option<Unsupported>,
    // How QEMU looks after caches when a virtual machine moves, and after its Linux AIO queue: there is
    // neither.
    #[serde(rename = "drop-cache")]
    _drop_cache: Option<bool>,
    #[serde(rename = "x-check-cache-dropped")]
    _check_cache_dropped: Option<bool>,
    #[serde(rename = "aio-max-batch")]
    _aio_max_batch: Option<u64>,
}

impl From<FileFields> for FileNodeOptions {
    fn from(fields: FileFields) -> FileNodeOptions {
        let FileFields { filename, aio, locking, .. } = fields;
        FileNodeOptions { filename, aio, locking }
    }
}

impl FileNodeOptions {
    /// Options of the image at a path, with every option as it is by default.
    pub fn new(filename: impl Into<PathBuf>) -> FileNodeOptions {
        let (aio, locking) = (Engine::default(), Locking::default());
        FileNodeOptions { filename: filename.into(), aio, locking }
    }

    fn open_options(&self) -> FileOptions {
        File::options().engine(self.aio).locking(self.locking)
    }
}

impl DriverOptions for FileNodeOptions {}

/// An image in a host file.
impl From<FileNodeOptions> for DriverConfig {
    fn from(options: FileNodeOptions) -> DriverConfig {
        DriverConfig::new("file", options)
    }
}

const DEVICE: &str = "host_device";

impl Driver for File {
    const NAMES: &'static [&'static str] = &["file", DEVICE];
    const CHANGEABLE: &'static [&'static str] = &["aio"];
    type Options = FileNodeOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &FileNodeOptions) -> Result<File, OpenError> {
        let filename = &options.filename;
        if filename.as_os_str().is_empty() {
            return Err(OpenError::option("filename", "a file has a name"));
        }
        let open = options.open_options();
        let open = if opening.driver_name() == DEVICE { open.on_device() } else { open };
        let mode = opening.mode();
        PoolShare::once(opening.co(), || open_as(open, mode, |options| options.open(filename)))
    }

    fn co_prepare_reopen<'a>(
        &'a self,
        reopening: &Reopening<'_, '_>,
        options: &FileNodeOptions,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        let open = options.open_options();
        let open = if self.device { open.on_device() } else { open };
        let mode = reopening.mode();
        let prepare = |options| self.prepare_reopen(options);
        let reopen = PoolShare::once(reopening.co(), || open_as(open, mode, prepare))?;
        Ok(Box::new(reopen))
    }
}

/// Opens an image, read-only if it may not be written to and that will do. Blocks.
fn open_as<T>(
    options: FileOptions,
    mode: NodeMode,
    open: impl Fn(FileOptions) -> Result<T, FileOpenError>,
) -> Result<T, OpenError> {
    let options = options.direct(mode.cache.direct).no_flush(mode.cache.no_flush);
    let opened = match open(options.read_only(mode.read_only)) {
        Err(error) if mode.auto_read_only && is_refusal(&error) => open(options.read_only(true)),
        opened => opened,
    };
    opened.map_err(OpenError::of_driver)
}

/// Whether an image may be opened, but not for writing.
fn is_refusal(error: &FileOpenError) -> bool {
    let FileOpenError::Open { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM))
}
