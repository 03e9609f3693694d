//! Options of a log of writes, and how it is opened by them.

use std::ops::RangeInclusive;

use coblk_qapi::Only;
use serde::{Deserialize, Serialize};

use super::BlkLogWrites;
use crate::driver::role::ChildRole;
use crate::options::{DriverConfig, DriverOptions, NodeRef};
use crate::registry::{Driver, OpenError, Opening};

/// Options of `blklogwrites`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(from = "BlkLogWritesFields", rename_all = "kebab-case")]
#[non_exhaustive]
pub struct BlkLogWritesOptions {
    /// `file`: the child.
    pub file: NodeRef,
    /// `log`: where the log goes; what it holds is lost.
    pub log: NodeRef,
    /// `log-sector-size` in bytes; by default that of the coarser of both nodes.
    pub log_sector_size: Option<u32>,
}

impl BlkLogWritesOptions {
    /// For a child, with a log in sectors of a size that suits both nodes.
    pub fn new(file: impl Into<NodeRef>, log: impl Into<NodeRef>) -> BlkLogWritesOptions {
        BlkLogWritesOptions { file: file.into(), log: log.into(), log_sector_size: None }
    }

    /// The same with sectors of so many bytes.
    #[must_use]
    pub fn log_sector_size(self, bytes: u32) -> BlkLogWritesOptions {
        BlkLogWritesOptions { log_sector_size: Some(bytes), ..self }
    }
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

impl DriverOptions for BlkLogWritesOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
        visit("log", &mut self.log);
    }
}

impl From<BlkLogWritesOptions> for DriverConfig {
    fn from(options: BlkLogWritesOptions) -> DriverConfig {
        DriverConfig::new("blklogwrites", options)
    }
}

/// The log is the driver's own storage: it stays where it was begun.
impl Driver for BlkLogWrites {
    const NAMES: &'static [&'static str] = &["blklogwrites"];
    type Options = BlkLogWritesOptions;

    fn co_open(
        opening: &Opening<'_, '_>,
        options: &BlkLogWritesOptions,
    ) -> Result<BlkLogWrites, OpenError> {
        check_log_sector(options.log_sector_size.map(u64::from))
            .map_err(|why| OpenError::option("log-sector-size", why))?;
        if !opening.is_active() {
            // The log may be another process's, which would lose what it has logged.
            return Err(OpenError::option("active", "a log is begun when its node is opened"));
        }
        let file = opening.co_child("file", ChildRole::FILTER, &options.file)?;
        let log = opening.co_child("log", ChildRole::METADATA, &options.log)?;
        Ok(BlkLogWrites::on(opening.co(), file, log, options.log_sector_size)?)
    }
}

/// The sizes that a sector of a log may have, in bytes.
const LOG_SECTOR_BYTES: RangeInclusive<u64> = 512..=65536;

/// Whether sectors of a log may have so many bytes.
fn check_log_sector(size: Option<u64>) -> Result<(), String> {
    match size {
        Some(size) if !size.is_power_of_two() || !LOG_SECTOR_BYTES.contains(&size) => {
            Err(format!("{size} is not a power of two from 512 to 65536"))
        }
        _ => Ok(()),
    }
}
