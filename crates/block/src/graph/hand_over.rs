//! A replace that is decided while nothing is in flight: for the end of a job, which has to know that two nodes
//! are equal in the moment in which users turn from one to the other.

use std::io;
use std::sync::Arc;

use coblk_aio::Co;

use super::change::{co_flush_in_time, turn_drained_users};
use super::{Graph, GraphError, co_drain_for_change, lock, lock_changes};
use crate::graph::homes::co_settle_homes;
use crate::graph::life::co_close_if_unused;
use crate::graph::node::BlockNode;

/// The moment of a replace in which both nodes are drained, and no other change is under way.
pub struct HandOver<'a> {
    new: &'a Arc<BlockNode>,
}

impl HandOver<'_> {
    /// Makes what was written to the new node durable, for no longer than [`WAIT_LIMIT`](crate::WAIT_LIMIT).
    ///
    /// # Errors
    /// Those of the flush; ETIMEDOUT.
    pub fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        co_flush_in_time(co, self.new)
    }
}

impl BlockNode {
    /// [`co_replace`](Self::co_replace), if `agrees` says so once both nodes are drained. Returns whether it did.
    /// Other changes end before the nodes are drained, so requests wait for none of them. What was written to this
    /// node and is not flushed is for the caller to see to.
    ///
    /// # Errors
    /// As of [`co_replace`](Self::co_replace).
    pub fn co_replace_when(
        self: &Arc<Self>,
        co: &Co<'_>,
        new: &Arc<BlockNode>,
        agrees: impl FnOnce(&Co<'_>, &HandOver<'_>) -> bool,
    ) -> Result<bool, GraphError> {
        lock().check_open(new.id())?;
        new.check_declared()?;
        // Refused before requests have to wait.
        lock().keep_way_down(self, new)?;
        {
            let _change = lock_changes(co)?;
            let _drained = (co_drain_for_change(co, self)?, co_drain_for_change(co, new)?);
            if !agrees(co, &HandOver { new }) {
                return Ok(false);
            }
            turn_drained_users(co, self, new, Graph::keep_way_down, None)?;
        }
        // Its last I/O waits for drains.
        co_close_if_unused(co, self);
        [self, new].into_iter().for_each(|node| co_settle_homes(co, node));
        Ok(true)
    }
}
