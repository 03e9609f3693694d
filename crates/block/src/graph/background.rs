//! The place of a driver's [`Background`] work at the gate of its node.

use std::io;
use std::sync::Arc;

use coblk_aio::Co;

use super::own_io::OwnIo;
use crate::driver::background::Background;
use crate::graph::node::BlockNode;

impl Background {
    /// Counts the driver's own I/O in without waiting, even while its node is quiesced: for I/O
    /// without which a request that is already counted, and that a drain waits for, cannot end.
    /// `None` while no node has the driver: nothing can be drained then.
    pub fn enter_own(&self) -> Option<OwnIo> {
        let node = node_of(self)?;
        node.gate.enter_own();
        Some(OwnIo::entered(node))
    }

    /// Counts the driver's own I/O in, once its node is not quiesced: for work that begins by
    /// itself. Must not be called by a coroutine that drains the node, which would wait for itself,
    /// nor by one that a drain waits for. `None` while no node has the driver.
    pub fn co_begin_own(&self, co: &Co<'_>) -> Option<OwnIo> {
        let node = node_of(self)?;
        node.gate.co_begin_own(co);
        Some(OwnIo::entered(node))
    }
}

impl OwnIo {
    /// Has the driver look how long its storage is ([`BlockDriver::co_refresh_length`]), as it was told that
    /// this may have changed. All users of the node are told of a new length, in bytes.
    ///
    /// # Errors
    /// Those of the driver.
    ///
    /// [`BlockDriver::co_refresh_length`]: crate::BlockDriver::co_refresh_length
    pub fn co_look_at_length(&self, co: &Co<'_>) -> io::Result<u64> {
        self.node().co_look_at_length(co)
    }
}

fn node_of(background: &Background) -> Option<Arc<BlockNode>> {
    background.node()?.downcast().ok()
}
