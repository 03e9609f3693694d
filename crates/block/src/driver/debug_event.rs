//! [`DebugEvent`]: steps of requests that `blkdebug` can wait for.

use serde::{Deserialize, Serialize};

/// A step of a request, by the name that QEMU has for it. A node raises those of reads, writes and
/// flushes, and its parent's driver raises those of its own steps
/// ([`Child::debug_event`](crate::Child::debug_event)). Those of formats happen where there is such
/// a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DebugEvent {
    /// A format writes its table of tables.
    L1Update,
    /// A format allocates a longer table of tables.
    L1GrowAllocTable,
    /// A format writes the longer table.
    L1GrowWriteTable,
    /// A format begins to use the longer table.
    L1GrowActivateTable,
    /// A format reads a table of clusters.
    L2Load,
    /// A format changes a table of clusters.
    L2Update,
    /// A format enters a compressed cluster into its table.
    L2UpdateCompressed,
    /// A format reads a table of clusters that it is about to copy.
    L2AllocCowRead,
    /// A format writes a new table of clusters.
    L2AllocWrite,
    /// The parent reads.
    ReadAio,
    /// A format reads from its backing file.
    ReadBackingAio,
    /// A format reads a compressed cluster.
    ReadCompressed,
    /// The parent writes.
    WriteAio,
    /// A format writes a compressed cluster.
    WriteCompressed,
    /// The state of a virtual machine is read.
    VmstateLoad,
    /// The state of a virtual machine is written.
    VmstateSave,
    /// A format reads what a new cluster has around a write.
    CowRead,
    /// A format writes what a new cluster has around a write.
    CowWrite,
    /// A format reads its table of reference blocks.
    ReftableLoad,
    /// A format makes its table of reference blocks longer.
    ReftableGrow,
    /// A format changes its table of reference blocks.
    ReftableUpdate,
    /// A format reads a reference block.
    RefblockLoad,
    /// A format writes a reference block.
    RefblockUpdate,
    /// A format writes a part of a reference block.
    RefblockUpdatePart,
    /// A format needs a new reference block.
    RefblockAlloc,
    /// A format enters a new reference block into its table.
    RefblockAllocHookup,
    /// A format writes a new reference block.
    RefblockAllocWrite,
    /// A format writes the reference blocks of a longer table.
    RefblockAllocWriteBlocks,
    /// A format writes the longer table of reference blocks.
    RefblockAllocWriteTable,
    /// A format begins to use the longer table of reference blocks.
    RefblockAllocSwitchTable,
    /// A format allocates clusters.
    ClusterAlloc,
    /// A format allocates a part of a cluster.
    ClusterAllocBytes,
    /// A format frees clusters.
    ClusterFree,
    /// The parent is flushed.
    FlushToOs,
    /// The parent is flushed, and has written what it kept.
    FlushToDisk,
    /// The first block of a write that is not whole blocks is about to be read.
    PwritevRmwHead,
    /// That block was read.
    PwritevRmwAfterHead,
    /// The last block of such a write is about to be read.
    PwritevRmwTail,
    /// That block was read.
    PwritevRmwAfterTail,
    /// A write begins.
    Pwritev,
    /// Zeroes are about to be made, by other means than writing.
    PwritevZero,
    /// A write, or zeroes, have ended, well or not.
    PwritevDone,
    /// A format is about to empty an image.
    EmptyImagePrepare,
    /// A format writes a shorter table of tables.
    L1ShrinkWriteTable,
    /// A format gives back the tables behind the new end.
    L1ShrinkFreeL2Clusters,
    /// Data that was read from a backing file is about to be written (copy on read).
    CorWrite,
    /// A format makes room for clusters before it enters them.
    ClusterAllocSpace,
    /// Never raised. A rule of this event holds from the beginning.
    None,
}
