//! [`Liar`]: what tests of durability must catch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk::block::{ChildRole, EdgeId, ReadFlags};
use coblk::{BlockDriver, BlockNode, Child, Co, IoVector, IoVectorMut, WriteFlags};

/// A filter that acknowledges flushes and does not do them, while it lies.
pub struct Liar {
    node: Child,
    lies: Arc<AtomicBool>,
}

impl Liar {
    /// On `node`; `lies` says when.
    pub fn new(node: Arc<BlockNode>, lies: Arc<AtomicBool>) -> Liar {
        Liar { node: Child::new("file", ChildRole::FILTER, node), lies }
    }
}

impl BlockDriver for Liar {
    fn format_name(&self) -> &'static str {
        "liar"
    }
    fn length(&self) -> u64 {
        self.node.length()
    }
    fn children(&self) -> Vec<EdgeId> {
        vec![self.node.id()]
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.node.co_preadv(co, offset, target, flags)
    }
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.node.co_pwritev(co, offset, source, flags)
    }
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        if !self.lies.load(Ordering::Acquire) {
            return self.node.co_flush(co);
        }
        co.yield_now();
        Ok(())
    }
}
