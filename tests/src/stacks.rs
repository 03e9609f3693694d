//! [`STACKS`]: nodes that stand on nodes, each filter by itself and several together, over an image.

use std::path::Path;
use std::sync::Arc;

use coblk::block::filters::blkdebug::{BlkDebug, Rules};
use coblk::block::filters::blklogwrites::BlkLogWrites;
use coblk::block::filters::throttle::{Rate, Throttle, ThrottleGroup, ThrottleLimits};
use coblk::drivers::{FileOptions, Raw};
use coblk::{AioContext, BlockNode};

use crate::images::sparse_image;

/// What a stack is built on.
pub struct Ground<'a> {
    /// Where its set-up runs.
    pub ctx: &'a AioContext,
    /// For its images, which are made anew.
    pub dir: &'a Path,
    /// How its images are opened.
    pub options: FileOptions,
    /// The length of the node on top.
    pub bytes: u64,
}

/// Nodes that stand on nodes.
pub struct Stack {
    /// What is in it, from the top.
    pub name: &'static str,
    /// Whether its length can be changed.
    pub resizes: bool,
    /// Makes one, all zeroes.
    pub build: fn(&Ground<'_>) -> Arc<BlockNode>,
}

/// All stacks.
pub const STACKS: [Stack; 9] = [
    row("raw", true, |it| BlockNode::new("raw", Raw::new(it.disk()))),
    row("a part", false, |it| it.part(4096)),
    // No block of this node is a block of the file.
    row("a part from an odd offset on", false, |it| it.part(777)),
    row("blkdebug", true, |it| debugged(it.disk())),
    row("throttle", true, |it| throttled(it.disk())),
    row("blklogwrites", false, |it| it.logged(it.disk())),
    row("throttle on a part", false, |it| throttled(it.part(8192))),
    row("blklogwrites on throttle on a part from an odd offset on", false, |it| {
        it.logged(throttled(it.part(1001)))
    }),
    row("raw on blkdebug on throttle", true, |it| {
        BlockNode::new("raw", Raw::new(debugged(throttled(it.disk()))))
    }),
];

const fn row(name: &'static str, resizes: bool, build: fn(&Ground<'_>) -> Arc<BlockNode>) -> Stack {
    Stack { name, resizes, build }
}

impl Ground<'_> {
    /// A file of so many bytes.
    fn file(&self, name: &str, bytes: u64) -> Arc<BlockNode> {
        let image = sparse_image(self.dir, name, bytes);
        BlockNode::new(name, self.options.open(image).expect("an image"))
    }

    /// A file as long as the stack.
    pub fn disk(&self) -> Arc<BlockNode> {
        self.file("disk.img", self.bytes)
    }

    /// A part of a longer file.
    fn part(&self, offset: u64) -> Arc<BlockNode> {
        let whole = self.file("whole.img", offset + self.bytes + 12_288);
        let part = Raw::part(whole, offset, Some(self.bytes)).expect("a part");
        BlockNode::new("part", part)
    }

    /// Over `node`, all changes are logged.
    fn logged(&self, node: Arc<BlockNode>) -> Arc<BlockNode> {
        let log = self.file("writes.log", 64 << 20);
        let filter = self.ctx.run(|co| BlkLogWrites::create(co, node, log));
        BlockNode::new("logged", filter.expect("a log"))
    }
}

/// Over `node`, there are rules, which are none.
pub fn debugged(node: Arc<BlockNode>) -> Arc<BlockNode> {
    BlockNode::new("debugged", BlkDebug::new(node, Rules::new(1)))
}

/// Over `node`, at a pace that some requests of a busy test have to wait for, but not for long.
pub fn throttled(node: Arc<BlockNode>) -> Arc<BlockNode> {
    let limits = ThrottleLimits { iops_total: Rate::new(5000), ..ThrottleLimits::default() };
    let group = ThrottleGroup::new("group", limits).expect("limits that make sense");
    BlockNode::new("throttled", Throttle::new(node, &group))
}
