//! Steps of the order of writes that a test build can leave out: its tests show that each is needed.

/// A step of the order of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "test-rules", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "test-rules", serde(rename_all = "kebab-case"))]
#[allow(dead_code)] // Without the feature those that are asked for are all.
pub enum Rule {
    /// The sync between refcounts and the entries that they count.
    FlushAfterRefcounts,
    /// The sync of a data file before entries that lead there.
    FlushAfterData,
    /// A new table is in the file before its L1 entry.
    NewTableBeforeL1,
    /// A cluster loses its references only when the entry that gave it up is durable.
    QuarantineUntilDurable,
    /// A cluster is used again only when no request can reach it.
    Grace,
    /// What is new around a write reads as zeroes.
    ZeroFill,
    /// The sync at the end of a commit.
    FlushAtEnd,
    /// A refcount block is durable before its entry, and that before entries that it counts.
    BlockBeforeEntry,
}
