//! [`Spill`]: a node to which copies that guests drive go at first. The workers move them on to the target.
//!
//! ```text
//! guest   claim -> read the source -> write the spill -> say that it is there -> the claim fails: it is to be copied
//! worker  claim -> read the spill -> write the target -> end of the claim -> not there any more -> discard
//! ```
//!
//! A granule that is in the spill stays to be copied, and may be written by guests. What holds: a granule is said to
//! be in the spill only after the write there has returned, and before its guest's claim ends; and until the worker's
//! claim has ended whose write to the target has returned. So a guest that finds it neither there nor idle waits,
//! claims by guests end before a granule that is there, as it may have been written since; and a worker that has
//! claimed it finds its old bytes where the bit says.

use std::ops::Range;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockNode, OwnRequests};

use super::bits::GranuleBits;
use super::piece::{CopyError, Scratch, Shape};

/// The node, and which granules are there. Any thread.
pub(crate) struct Spill {
    node: Arc<BlockNode>,
    there: GranuleBits,
}

impl Spill {
    /// # Errors
    /// Without memory.
    pub(crate) fn try_new(node: &Arc<BlockNode>, granules: u64) -> std::io::Result<Spill> {
        Ok(Spill { node: Arc::clone(node), there: GranuleBits::try_new(granules)? })
    }

    /// For requests of a guest's copy.
    pub(crate) fn own_requests(&self) -> OwnRequests {
        self.node.own_requests()
    }

    /// The old bytes of granules are there, whose claims have not ended.
    pub(crate) fn put(&self, granules: &Range<u64>) {
        self.there.set(granules, true);
    }

    /// Whether the old bytes of a granule are there.
    pub(crate) fn has(&self, granule: u64) -> bool {
        self.there.has(granule)
    }

    /// Where the first of some claimed granules end that are all in one place.
    pub(super) fn run_end(&self, granules: &Range<u64>) -> u64 {
        self.there.run_end(granules)
    }

    /// Claimed granules that are all in one place, if that is here. A drain waits for them from now on.
    pub(super) fn at(self: &Arc<Self>, granules: &Range<u64>) -> Option<Spilled> {
        self.has(granules.start).then(|| Spilled {
            spill: Arc::clone(self),
            own: self.own_requests(),
            granules: granules.clone(),
        })
    }
}

/// Granules that are in the spill, while a worker moves them on.
pub(super) struct Spilled {
    spill: Arc<Spill>,
    own: OwnRequests,
    granules: Range<u64>,
}

impl Spilled {
    pub(super) fn co_read(
        &mut self,
        co: &Co<'_>,
        scratch: &mut Scratch,
        range: &Range<u64>,
        shape: Shape,
    ) -> Result<(), CopyError> {
        scratch.co_read(co, &mut self.own, range, shape)
    }

    /// The target has them, and their claim has ended.
    pub(super) fn co_let_go(self, co: &Co<'_>, range: &Range<u64>) {
        self.spill.there.set(&self.granules, false);
        // A hint: what is not discarded is there twice.
        if let Err(error) = self.own.co_pdiscard(co, range.start, range.end - range.start) {
            tracing::debug!(offset = range.start, %error, "what was moved on is not discarded");
        }
    }
}
