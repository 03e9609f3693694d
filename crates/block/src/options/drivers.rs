//! The drivers by their names in options, and what each of them can be told.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use coblk_qapi::{Only, Unsupported, path};
use serde::{Deserialize, Serialize};

use super::NodeRef;
use super::blkdebug::BlkDebugOptions;
use crate::driver::role::ChildRole;
use crate::drivers::{Engine, Locking};

/// A driver, and what belongs to it alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverOptions {
    /// `file`: an image in a host file.
    File(FileNodeOptions),
    /// `host_device`: one on a block device.
    #[serde(rename = "host_device")]
    HostDevice(FileNodeOptions),
    /// `raw`: another node, as it is.
    Raw(RawOptions),
    /// `null-co`: nothing is stored.
    NullCo(NullOptions),
    /// `null-aio`: the same, and requests complete from a bottom half.
    NullAio(NullOptions),
    /// `throttle`: limits what passes.
    Throttle(ThrottleNodeOptions),
    /// `blkdebug`: makes requests fail.
    #[serde(rename = "blkdebug")]
    BlkDebug(BlkDebugOptions),
    /// `blklogwrites`: logs what changes the node below.
    #[serde(rename = "blklogwrites")]
    BlkLogWrites(BlkLogWritesOptions),
}

/// Options of `file` and `host_device`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "FileFields")]
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

/// Options of `raw`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RawOptions {
    /// `file`: the node below.
    pub file: NodeRef,
    /// `offset` in bytes of what is used of it; 0 by default.
    #[serde(default)]
    pub offset: u64,
    /// `size` in bytes of what is used of it; up to the end by default.
    pub size: Option<u64>,
}

/// Options of `null-co` and `null-aio`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct NullOptions {
    /// `size` in bytes; 1 GiB by default.
    pub size: u64,
    /// `read-zeroes`: reads fill the buffer. Off by default.
    pub read_zeroes: bool,
    /// `latency-ns`: how long a request takes, in nanoseconds. 0 by default.
    pub latency_ns: u64,
}

impl Default for NullOptions {
    fn default() -> NullOptions {
        NullOptions { size: 1 << 30, read_zeroes: false, latency_ns: 0 }
    }
}

/// Options of `throttle`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ThrottleNodeOptions {
    /// `file`: the node below.
    pub file: NodeRef,
    /// `throttle-group`: the limits, by the name they were made known by.
    pub throttle_group: String,
}

/// Options of `blklogwrites`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "BlkLogWritesFields", rename_all = "kebab-case")]
pub struct BlkLogWritesOptions {
    /// `file`: the node below.
    pub file: NodeRef,
    /// `log`: where the log goes; what it holds is lost.
    pub log: NodeRef,
    /// `log-sector-size` in bytes; by default that of the coarser of both nodes.
    pub log_sector_size: Option<u32>,
}

/// With what is known, and ignored or not supported.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct BlkLogWritesFields {
    file: NodeRef,
    log: NodeRef,
    log_sector_size: Option<u32>,
    #[serde(rename = "log-append")]
    _log_append: Option<Only<false>>,
    /// Each flush updates it.
    #[serde(rename = "log-super-update-interval")]
    _log_super_update_interval: Option<u64>,
}

impl From<BlkLogWritesFields> for BlkLogWritesOptions {
    fn from(fields: BlkLogWritesFields) -> BlkLogWritesOptions {
        let BlkLogWritesFields { file, log, log_sector_size, .. } = fields;
        BlkLogWritesOptions { file, log, log_sector_size }
    }
}

impl DriverOptions {
    /// `file` on `filename`, with every option as it is by default.
    pub fn file(filename: impl Into<PathBuf>) -> DriverOptions {
        let (aio, locking) = (Engine::default(), Locking::default());
        DriverOptions::File(FileNodeOptions { filename: filename.into(), aio, locking })
    }

    /// `raw` on all of `file`.
    pub fn raw(file: impl Into<NodeRef>) -> DriverOptions {
        DriverOptions::Raw(RawOptions { file: file.into(), offset: 0, size: None })
    }

    /// The name of the driver.
    pub fn name(&self) -> &'static str {
        match self {
            DriverOptions::File(_) => "file",
            DriverOptions::HostDevice(_) => "host_device",
            DriverOptions::Raw(_) => "raw",
            DriverOptions::NullCo(_) => "null-co",
            DriverOptions::NullAio(_) => "null-aio",
            DriverOptions::Throttle(_) => "throttle",
            DriverOptions::BlkDebug(_) => "blkdebug",
            DriverOptions::BlkLogWrites(_) => "blklogwrites",
        }
    }

    /// The nodes it stands on, by the names of these options.
    pub(crate) fn children(&self) -> Vec<(&'static str, ChildRole, &NodeRef)> {
        use DriverOptions::{BlkDebug, BlkLogWrites, File, HostDevice, NullAio, NullCo};
        let filtered = |name, node| (name, ChildRole::FILTER, node);
        match self {
            File(_) | HostDevice(_) | NullCo(_) | NullAio(_) => Vec::new(),
            DriverOptions::Raw(RawOptions { file, .. })
            | DriverOptions::Throttle(ThrottleNodeOptions { file, .. }) => {
                vec![filtered("file", file)]
            }
            BlkDebug(options) => vec![filtered("image", &options.image)],
            BlkLogWrites(options) => {
                vec![filtered("file", &options.file), ("log", ChildRole::METADATA, &options.log)]
            }
        }
    }

    /// Puts another node in the place of a child.
    pub(crate) fn set_child(&mut self, name: &str, child: NodeRef) {
        let place = match self {
            DriverOptions::Raw(RawOptions { file, .. })
            | DriverOptions::Throttle(ThrottleNodeOptions { file, .. }) => file,
            DriverOptions::BlkDebug(options) => &mut options.image,
            DriverOptions::BlkLogWrites(options) if name == "log" => &mut options.log,
            DriverOptions::BlkLogWrites(options) => &mut options.file,
            _ => return,
        };
        *place = child;
    }

    /// The first option that differs and that a node keeps for its life.
    pub(crate) fn fixed_option_that_differs(&self, new: &DriverOptions) -> Option<&'static str> {
        use DriverOptions::{BlkDebug, BlkLogWrites, File, HostDevice, NullAio, NullCo};
        match (self, new) {
            (File(now), File(new)) | (HostDevice(now), HostDevice(new)) => {
                let name = (now.filename != new.filename).then_some("filename");
                name.or((now.locking != new.locking).then_some("locking"))
            }
            (NullCo(now), NullCo(new)) | (NullAio(now), NullAio(new)) => {
                let zeroes = (now.read_zeroes != new.read_zeroes).then_some("read-zeroes");
                let latency = (now.latency_ns != new.latency_ns).then_some("latency-ns");
                (now.size != new.size).then_some("size").or(zeroes).or(latency)
            }
            (BlkDebug(now), BlkDebug(new)) => {
                let rules = (now.inject_error != new.inject_error).then_some("inject-error");
                let states = (now.set_state != new.set_state).then_some("set-state");
                rules.or(states).or((now.constraints != new.constraints).then_some("align"))
            }
            (BlkLogWrites(now), BlkLogWrites(new)) => {
                (now.log_sector_size != new.log_sector_size).then_some("log-sector-size")
            }
            _ => (self.name() != new.name()).then_some("driver"),
        }
    }
}

/// What a sector of a log may be.
const LOG_SECTOR_BYTES: RangeInclusive<u64> = 512..=65536;

/// Whether sectors of a log may have so many bytes.
pub(crate) fn check_log_sector(size: Option<u64>) -> Result<(), String> {
    match size {
        Some(size) if !size.is_power_of_two() || !LOG_SECTOR_BYTES.contains(&size) => {
            Err(format!("{size} is not a power of two from 512 to 65536"))
        }
        _ => Ok(()),
    }
}
