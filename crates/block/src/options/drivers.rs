//! The drivers by their names in options, and what each of them can be told.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::blkdebug::{self, DebugConstraints, InjectError, SetState};
use super::error::shorten;
use super::reader::Reader;
use super::{NodeOptions, NodeRef, OptionsError};
use crate::driver::role::ChildRole;
use crate::drivers::{Engine, Locking};

/// A driver, and what belongs to it alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverOptions {
    /// `file`, an image in a host file, and `host_device`, one on a block device.
    File {
        /// `filename`.
        filename: PathBuf,
        /// `aio`: `threads`, the default, `io_uring`, or `native`, which io_uring serves.
        aio: Engine,
        /// `locking`: `on`, `off`, or `auto`, the default.
        locking: Locking,
        /// `host_device`.
        device: bool,
    },
    /// `raw`: another node, as it is.
    Raw {
        /// `file`: that node.
        file: NodeRef,
        /// `offset` in bytes of what is used of it; 0 by default.
        offset: u64,
        /// `size` in bytes of what is used of it; up to the end by default.
        size: Option<u64>,
    },
    /// `null-co` and `null-aio`: nothing is stored.
    Null {
        /// `size` in bytes; 1 GiB by default.
        size: u64,
        /// `read-zeroes`: reads fill the buffer. Off by default.
        read_zeroes: bool,
        /// `latency-ns`: how long a request takes, in nanoseconds. 0 by default.
        latency_ns: u64,
        /// `null-aio`: requests complete from a bottom half.
        deferred: bool,
    },
    /// `throttle`: limits what passes.
    Throttle {
        /// `file`: the node below.
        file: NodeRef,
        /// `throttle-group`: the limits, by the name they were made known by.
        throttle_group: String,
    },
    /// `blkdebug`: makes requests fail.
    BlkDebug {
        /// `image`: the node below.
        image: NodeRef,
        /// `inject-error`: which.
        inject_error: Vec<InjectError>,
        /// `set-state`: what happens before, for rules that ask for it.
        set_state: Vec<SetState>,
        /// What it asks of requests, and of others.
        constraints: DebugConstraints,
    },
    /// `blklogwrites`: logs what changes the node below.
    BlkLogWrites {
        /// `file`: the node below.
        file: NodeRef,
        /// `log`: where the log goes; what it holds is lost.
        log: NodeRef,
        /// `log-sector-size` in bytes; by default that of the coarser of both nodes.
        log_sector_size: Option<u32>,
    },
}

impl DriverOptions {
    /// `file` on `filename`, with every option as it is by default.
    pub fn file(filename: impl Into<PathBuf>) -> DriverOptions {
        let (aio, locking) = (Engine::default(), Locking::default());
        DriverOptions::File { filename: filename.into(), aio, locking, device: false }
    }

    /// The name of the driver.
    pub fn name(&self) -> &'static str {
        match self {
            DriverOptions::File { device: false, .. } => "file",
            DriverOptions::File { device: true, .. } => "host_device",
            DriverOptions::Raw { .. } => "raw",
            DriverOptions::Null { deferred: false, .. } => "null-co",
            DriverOptions::Null { deferred: true, .. } => "null-aio",
            DriverOptions::Throttle { .. } => "throttle",
            DriverOptions::BlkDebug { .. } => "blkdebug",
            DriverOptions::BlkLogWrites { .. } => "blklogwrites",
        }
    }

    /// The nodes it stands on, by the names of these options.
    pub(crate) fn children(&self) -> Vec<(&'static str, ChildRole, &NodeRef)> {
        match self {
            DriverOptions::File { .. } | DriverOptions::Null { .. } => Vec::new(),
            DriverOptions::Raw { file, .. } | DriverOptions::Throttle { file, .. } => {
                vec![("file", ChildRole::FILTER, file)]
            }
            DriverOptions::BlkDebug { image, .. } => vec![("image", ChildRole::FILTER, image)],
            DriverOptions::BlkLogWrites { file, log, .. } => {
                vec![("file", ChildRole::FILTER, file), ("log", ChildRole::METADATA, log)]
            }
        }
    }

    /// The first option that differs and that a node keeps for its life.
    pub(crate) fn fixed_option_that_differs(&self, new: &DriverOptions) -> Option<&'static str> {
        use DriverOptions::{BlkDebug, BlkLogWrites, File, Null};
        match (self, new) {
            _ if self.name() != new.name() => Some("driver"),
            (
                File { filename, locking, .. },
                File { filename: new_name, locking: new_lock, .. },
            ) => {
                let name = (filename != new_name).then_some("filename");
                name.or((locking != new_lock).then_some("locking"))
            }
            (
                Null { size, read_zeroes, latency_ns, .. },
                Null { size: new_size, read_zeroes: new_zeroes, latency_ns: new_latency, .. },
            ) => {
                let zeroes = (read_zeroes != new_zeroes).then_some("read-zeroes");
                let latency = (latency_ns != new_latency).then_some("latency-ns");
                (size != new_size).then_some("size").or(zeroes).or(latency)
            }
            (
                BlkDebug { inject_error, set_state, constraints, .. },
                BlkDebug {
                    inject_error: new,
                    set_state: new_state,
                    constraints: new_constraints,
                    ..
                },
            ) => {
                let rules = (inject_error != new).then_some("inject-error");
                let states = (set_state != new_state).then_some("set-state");
                rules.or(states).or((constraints != new_constraints).then_some("align"))
            }
            (BlkLogWrites { log_sector_size, .. }, BlkLogWrites { log_sector_size: new, .. }) => {
                (log_sector_size != new).then_some("log-sector-size")
            }
            _ => None,
        }
    }

    /// `raw` on all of `file`.
    pub fn raw(file: impl Into<NodeRef>) -> DriverOptions {
        DriverOptions::Raw { file: file.into(), offset: 0, size: None }
    }
}

/// What a sector of a log may be.
const LOG_SECTOR_BYTES: RangeInclusive<u64> = 512..=65536;

type Take = fn(&mut Reader) -> Result<DriverOptions, OptionsError>;

/// One row a driver.
const DRIVERS: [(&str, Take); 8] = [
    ("file", |reader| take_file(reader, false)),
    ("host_device", |reader| take_file(reader, true)),
    ("raw", take_raw),
    ("null-co", |reader| take_null(reader, false)),
    ("null-aio", |reader| take_null(reader, true)),
    ("throttle", take_throttle),
    ("blkdebug", take_blkdebug),
    ("blklogwrites", take_blklogwrites),
];

/// Takes the options of the driver called `name`.
pub(super) fn take(name: &str, reader: &mut Reader) -> Result<DriverOptions, OptionsError> {
    match DRIVERS.iter().find(|(driver, _)| *driver == name) {
        Some((_, take)) => take(reader),
        None => {
            let names: Vec<&str> = DRIVERS.iter().map(|(driver, _)| *driver).collect();
            let (name, names) = (shorten(name), names.join(", "));
            let why = format!("unknown driver '{name}'; there is {names}");
            Err(reader.invalid("driver", why))
        }
    }
}

fn take_child(reader: &mut Reader, option: &str) -> Result<NodeRef, OptionsError> {
    let child = reader.child(option)?;
    NodeOptions::take_ref(reader.required(option, child)?)
}

fn take_file(reader: &mut Reader, device: bool) -> Result<DriverOptions, OptionsError> {
    let filename = reader.text("filename")?;
    let filename = reader.required("filename", filename)?;
    if filename.is_empty() || filename.contains('\0') {
        return Err(reader.invalid("filename", "not a path"));
    }
    let engines =
        [("threads", Engine::Threads), ("io_uring", Engine::IoUring), ("native", Engine::Native)];
    let aio = reader.word("aio", &engines)?;
    reader.unsupported("pr-manager")?;
    // How QEMU looks after caches when a virtual machine moves, and after its Linux AIO queue:
    // there is neither.
    reader.flag("drop-cache")?;
    reader.flag("x-check-cache-dropped")?;
    reader.number("aio-max-batch")?;
    let locking = [("on", Locking::On), ("off", Locking::Off), ("auto", Locking::Auto)];
    Ok(DriverOptions::File {
        filename: filename.into(),
        aio: aio.unwrap_or_default(),
        locking: reader.word("locking", &locking)?.unwrap_or_default(),
        device,
    })
}

fn take_raw(reader: &mut Reader) -> Result<DriverOptions, OptionsError> {
    let file = take_child(reader, "file")?;
    let offset = reader.size("offset")?.unwrap_or(0);
    Ok(DriverOptions::Raw { file, offset, size: reader.size("size")? })
}

fn take_null(reader: &mut Reader, deferred: bool) -> Result<DriverOptions, OptionsError> {
    let size = reader.size("size")?.unwrap_or(1 << 30);
    let read_zeroes = reader.flag("read-zeroes")?.unwrap_or(false);
    let latency_ns = reader.number("latency-ns")?.unwrap_or(0);
    Ok(DriverOptions::Null { size, read_zeroes, latency_ns, deferred })
}

fn take_throttle(reader: &mut Reader) -> Result<DriverOptions, OptionsError> {
    let group = reader.text("throttle-group")?;
    let throttle_group = reader.required("throttle-group", group)?;
    Ok(DriverOptions::Throttle { file: take_child(reader, "file")?, throttle_group })
}

fn take_blkdebug(reader: &mut Reader) -> Result<DriverOptions, OptionsError> {
    let image = take_child(reader, "image")?;
    let inject_error = blkdebug::take_rules(reader)?;
    let set_state = blkdebug::take_states(reader)?;
    let constraints = blkdebug::take_constraints(reader)?;
    reader.unsupported("config")?;
    Ok(DriverOptions::BlkDebug { image, inject_error, set_state, constraints })
}

/// Whether sectors of a log may have so many bytes.
pub(crate) fn check_log_sector(size: Option<u64>) -> Result<(), String> {
    match size {
        Some(size) if !size.is_power_of_two() || !LOG_SECTOR_BYTES.contains(&size) => {
            Err(format!("{size} is not a power of two from 512 to 65536"))
        }
        _ => Ok(()),
    }
}

fn take_blklogwrites(reader: &mut Reader) -> Result<DriverOptions, OptionsError> {
    let file = take_child(reader, "file")?;
    let log = take_child(reader, "log")?;
    let log_sector_size = reader.number("log-sector-size")?;
    check_log_sector(log_sector_size).map_err(|why| reader.invalid("log-sector-size", why))?;
    if reader.flag("log-append")? == Some(true) {
        return Err(reader.invalid("log-append", "not supported"));
    }
    // Each flush updates it.
    reader.number("log-super-update-interval")?;
    let log_sector_size = log_sector_size.map(|size| size as u32);
    Ok(DriverOptions::BlkLogWrites { file, log, log_sector_size })
}
