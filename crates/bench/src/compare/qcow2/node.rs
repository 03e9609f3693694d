//! [`Opened`]: a node of ours, opened by options, with a context of its own.

use std::io;
use std::sync::Arc;

use coblk::options::NodeOptions;
use coblk::{AioContext, BlockBackend, BlockNode, Blockdevs};
use serde_json::Value;

/// A node that is open until it is [closed](Self::close).
pub struct Opened {
    pub ctx: AioContext,
    blockdevs: Blockdevs,
    pub node: Arc<BlockNode>,
}

impl Opened {
    /// Opens a node with options as JSON.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub fn new(options: &Value) -> io::Result<Opened> {
        let ctx = AioContext::test_builder().name("bench").build()?;
        let options = NodeOptions::from_value(options.clone()).map_err(io::Error::other)?;
        let blockdevs = Blockdevs::new(coblk::drivers());
        let node = blockdevs.open(&ctx, options).map_err(io::Error::other)?;
        Ok(Opened { ctx, blockdevs, node })
    }

    /// A backend on it.
    pub fn backend(&self) -> BlockBackend {
        BlockBackend::new(&self.ctx, "bench", Arc::clone(&self.node))
    }

    /// Writes back what it owes, and closes it. There are no backends any more.
    ///
    /// # Errors
    /// If that fails.
    pub fn close(self) -> io::Result<()> {
        let Opened { ctx, blockdevs, node } = self;
        let name = node.name().to_owned();
        drop(node);
        blockdevs.close(&ctx, &name).map_err(io::Error::other)
    }
}
