//! [`RequestKind`]: what a request does.

use serde::{Deserialize, Serialize};

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RequestKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Makes writes durable.
    Flush,
    /// Deallocates a range.
    Discard,
    /// Makes a range read as zeroes.
    WriteZeroes,
}

impl RequestKind {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// All kinds.
    pub const ALL: [RequestKind; 5] = [
        RequestKind::Read,
        RequestKind::Write,
        RequestKind::Flush,
        RequestKind::Discard,
        RequestKind::WriteZeroes,
    ];

    /// Its name in options and messages, such as `write-zeroes`.
    pub fn name(self) -> &'static str {
        match self {
            RequestKind::Read => "read",
            RequestKind::Write => "write",
            RequestKind::Flush => "flush",
            RequestKind::Discard => "discard",
            RequestKind::WriteZeroes => "write-zeroes",
        }
    }

    /// The prefix of its counters in QEMU's `query-blockstats`, such as `rd` in `rd_operations`.
    /// Zeroes are counted among the writes there.
    pub fn qmp_name(self) -> &'static str {
        match self {
            RequestKind::Read => "rd",
            RequestKind::Write | RequestKind::WriteZeroes => "wr",
            RequestKind::Flush => "flush",
            RequestKind::Discard => "unmap",
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    #[inline]
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}
