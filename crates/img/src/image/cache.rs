//! [`Cache`]: how an image is cached, by QEMU's names of modes.

use crate::failure::Failure;

/// How an image is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cache {
    /// No page cache.
    pub(crate) direct: bool,
    /// Flushes do nothing.
    pub(crate) no_flush: bool,
    /// Each write is durable when it completes.
    pub(crate) writethrough: bool,
}

impl Cache {
    pub(crate) const WRITEBACK: Cache =
        Cache { direct: false, no_flush: false, writethrough: false };
    pub(crate) const UNSAFE: Cache = Cache { no_flush: true, ..Cache::WRITEBACK };

    /// The mode of a name, which the option `what` has.
    ///
    /// # Errors
    /// If there is no such mode.
    pub(crate) fn parse(what: &str, name: &str) -> Result<Cache, Failure> {
        Ok(match name {
            "none" | "off" => Cache { direct: true, ..Cache::WRITEBACK },
            "directsync" => Cache { direct: true, writethrough: true, no_flush: false },
            "writeback" => Cache::WRITEBACK,
            "unsafe" => Cache::UNSAFE,
            "writethrough" => Cache { writethrough: true, ..Cache::WRITEBACK },
            _ => return Err(Failure::new(format!("Invalid {what} cache option: {name}"))),
        })
    }
}
