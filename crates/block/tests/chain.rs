//! Which layer of a chain has a range.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::drivers::Raw;
use coblk_block::{
    BlockBackend, BlockDriver, BlockNode, Child, ChildRole, EdgeId, Extent, ReadFlags, WriteFlags,
};

use crate::util::errno;

/// An image with a backing file, that has one range of its own.
struct Layer {
    length: u64,
    own: Range<u64>,
    backing: Option<Child>,
}

impl Layer {
    fn node(
        name: &str,
        length: u64,
        own: Range<u64>,
        backing: Option<&Arc<BlockNode>>,
    ) -> Arc<BlockNode> {
        let child = |node| Child::new("backing", ChildRole::COW, Arc::clone(node));
        BlockNode::new(name, Layer { length, own, backing: backing.map(child) })
    }
}

impl BlockDriver for Layer {
    fn format_name(&self) -> &'static str {
        "layer"
    }
    fn length(&self) -> u64 {
        self.length
    }
    fn children(&self) -> Vec<EdgeId> {
        self.backing.iter().map(Child::id).collect()
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        Ok(())
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
    fn co_block_status(&self, _: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let until = |end: u64| bytes.min(end - offset);
        Ok(match offset {
            at if at < self.own.start => Extent::unallocated(until(self.own.start)),
            at if at < self.own.end => Extent::data(until(self.own.end)).stored_at(None, at + 1000),
            _ => Extent::unallocated(bytes),
        })
    }
}

struct Scene {
    ctx: AioContext,
    backend: BlockBackend,
    top: Arc<BlockNode>,
    middle: Arc<BlockNode>,
    bottom: Arc<BlockNode>,
}

/// ```text
/// raw, from 100 on
/// top      0        1000        |own 400..500|
/// filter
/// middle   0    700             |own 200..450|
/// bottom   0           900      |own   0..300|
/// ```
fn scene() -> Scene {
    let ctx = AioContext::for_test().unwrap();
    let bottom = Layer::node("bottom", 900, 0..300, None);
    let middle = Layer::node("middle", 700, 200..450, Some(&bottom));
    let filter = BlockNode::new("filter", Raw::new(Arc::clone(&middle)));
    let top = Layer::node("top", 1000, 400..500, Some(&filter));
    let raw = Raw::part(Arc::clone(&top), 100, None).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("raw", raw));
    Scene { ctx, backend, top, middle, bottom }
}

impl Scene {
    /// Where each range ends, how deep it was found, and whether it is allocated and zero.
    fn map(&self, base: Option<&BlockNode>) -> Vec<(u64, usize, bool, bool)> {
        let (mut map, mut at) = (Vec::new(), 0);
        while at < 900 {
            let ask = |co: &Co<'_>| self.backend.co_status_above(co, base, at, 900 - at);
            let found = self.ctx.run(ask).unwrap();
            at += found.extent.bytes;
            assert_eq!(found.extent.end, at == 900, "{found:?}");
            map.push((at, found.depth, found.extent.allocated, found.extent.zero));
        }
        map
    }

    fn allocated(&self, base: &BlockNode, include_base: bool, offset: u64) -> (bool, u64) {
        let ask = |co: &Co<'_>| {
            self.backend.co_is_allocated_above(co, base, include_base, offset, 900 - offset)
        };
        self.ctx.run(ask).unwrap()
    }
}

#[test]
fn the_first_layer_that_has_a_range_decides() {
    let expected = [
        (100, 3, true, false), // bottom, up to where the middle begins
        (300, 2, true, false), // the middle
        (400, 1, true, false), // the top
        (600, 3, false, true), // nothing, up to the end of the middle
        (900, 2, true, true),  // behind it, though the bottom is longer
    ];
    assert_eq!(scene().map(None), expected);
}

#[test]
fn below_the_base_no_layer_is_asked() {
    let scene = scene();
    let expected = [
        (100, 2, false, false),
        (300, 2, true, false),
        (400, 1, true, false),
        (600, 2, false, false),
        (900, 2, true, true),
    ];
    assert_eq!(scene.map(Some(&scene.bottom)), expected);
    let expected = [(300, 1, false, false), (400, 1, true, false), (900, 1, false, false)];
    assert_eq!(scene.map(Some(&scene.middle)), expected);
    // It is right below a filter.
    assert_eq!(scene.map(Some(&scene.top)), [(900, 0, false, false)]);
}

#[test]
fn the_base_counts_if_it_is_included() {
    let scene = scene();
    assert_eq!(scene.allocated(&scene.middle, false, 100), (false, 200));
    assert_eq!(scene.allocated(&scene.middle, true, 100), (true, 200));
    assert_eq!(scene.allocated(&scene.middle, true, 0), (false, 100));
    assert_eq!(scene.allocated(&scene.bottom, true, 0), (true, 100));
    assert_eq!(scene.allocated(&scene.bottom, false, 0), (false, 100));
}

#[test]
fn a_status_says_where_bytes_are_stored() {
    let scene = scene();
    let status = |offset, bytes| scene.backend.block_status(&scene.ctx, offset, bytes);
    assert_eq!(status(310, 50).unwrap(), Extent::data(50).stored_at(Some("file"), 410));
    let bottom = BlockBackend::new(&scene.ctx, "bottom", Arc::clone(&scene.bottom));
    let status = bottom.block_status(&scene.ctx, 250, 100).unwrap();
    assert_eq!(status, Extent::data(50).stored_at(None, 1250));
    assert_eq!(errno(bottom.block_status(&scene.ctx, 900, 1)), libc::EIO);
}
