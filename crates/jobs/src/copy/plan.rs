//! [`Plan`]: what is copied, and how.

use std::rc::Rc;
use std::sync::Arc;

use coblk_block::WriteFlags;

use super::pace::Latency;
use super::piece::Shape;
use super::spill::Spill;
use super::sums::Sums;
use super::target::Target;
use crate::OnError;

/// Most copies at a time.
const MAX_WORKERS: u64 = 16;
/// Longest copy, in bytes, unless a granule is longer.
const MAX_CHUNK: u64 = 1 << 20;

/// What is copied, and how.
pub(crate) struct Plan {
    /// Bytes a granule.
    pub(crate) granularity: u64,
    /// The shortest copy, unless less is to be copied: granules, in bytes.
    pub(crate) unit: u64,
    /// Length of both nodes, in bytes.
    pub(crate) length: u64,
    /// Bytes in flight at most.
    pub(crate) buffer: u64,
    /// Bytes a cluster of the target.
    pub(crate) cluster: u64,
    pub(crate) on_source_error: OnError,
    pub(crate) on_target_error: OnError,
    pub(crate) manner: Manner,
}

/// In what the copies of kinds of jobs differ.
pub(crate) struct Manner {
    /// Most copies at a time.
    pub(crate) max_workers: u64,
    /// Longest copy, in bytes, unless a granule is longer.
    pub(crate) max_chunk: u64,
    /// Of writes to the target.
    pub(crate) flags: WriteFlags,
    /// What may read as anything is copied as it reads, and not discarded.
    pub(crate) keeps_all: bool,
    /// What was copied is discarded at the source, to which nothing else writes.
    pub(crate) discards_source: bool,
    /// Where copies that guests drive go at first, and its use.
    pub(crate) spill: Option<(Arc<Spill>, Rc<Target>)>,
    /// Notes what was read.
    pub(crate) sums: Option<Arc<Sums>>,
    /// How long guests' requests take, and are to.
    pub(crate) latency: Option<Arc<Latency>>,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner {
            max_workers: MAX_WORKERS,
            max_chunk: MAX_CHUNK,
            flags: WriteFlags::empty(),
            keeps_all: false,
            discards_source: false,
            spill: None,
            sums: None,
            latency: None,
        }
    }
}

impl Plan {
    /// How pieces get to the target.
    pub(super) fn shape(&self) -> Shape {
        let Plan { cluster, length, ref manner, .. } = *self;
        Shape { cluster, length, flags: manner.flags, keeps_all: manner.keeps_all }
    }
}
