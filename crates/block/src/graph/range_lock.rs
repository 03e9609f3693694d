//! Locks on ranges of a node, against its requests and each other.

use std::ops::Range;
use std::sync::Arc;

use coblk_aio::Co;

use super::DrainedSection;
use crate::graph::node::BlockNode;
use crate::io::tracked::{Access, Tracked};

/// While it lives, each request to its node locks its range.
#[must_use = "ranges are locked only while it lives"]
pub struct Tracking {
    node: Arc<BlockNode>,
}

/// A range of a node that others are kept out of until this is dropped.
#[must_use = "others are kept out only while it lives"]
pub struct RangeLock<'a> {
    _tracked: Tracked<'a>,
}

impl BlockNode {
    /// From the end of the drained section on each request to the node locks its range: reads as
    /// [`Access::Read`], changes as [`Access::Write`], serialising ones as [`Access::ExcludeAll`]. Until
    /// then, and when the last [`Tracking`] is dropped, requests pay nothing for that. Any thread.
    ///
    /// # Panics
    /// If the section is neither of this node nor of one that it leads to.
    pub fn track(self: &Arc<Self>, drained: &DrainedSection) -> Tracking {
        drained.demand(self);
        self.path.want_tracking(true);
        Tracking { node: Arc::clone(self) }
    }
}

impl Tracking {
    /// Waits for every earlier request to the range, in bytes, and every earlier lock on it that
    /// `access` conflicts with; later ones wait until the lock is dropped. First come, first served.
    ///
    /// A coroutine has one lock on a node: it must neither take a second one, nor send requests to
    /// this node while it has one, for they would wait for itself. Requests to its children are
    /// free. A drain waits for requests that wait for the lock.
    pub fn co_lock_range(&self, co: &Co<'_>, range: Range<u64>, access: Access) -> RangeLock<'_> {
        RangeLock { _tracked: self.node.path.tracked.begin(co, range, access) }
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        self.node.path.want_tracking(false);
    }
}
