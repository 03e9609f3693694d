//! A filter of one's own: what it does not change is passed on, moved to where it says.

use std::io;
use std::sync::Arc;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::drivers::Null;
use coblk_block::{
    BackendOptions, BlockBackend, BlockDriver, BlockNode, Child, ChildRole, Filter, WriteFlags,
    ZeroFlags,
};

use crate::memory::{Memory, errno};

/// Moves everything by so many bytes, and is told nothing else.
struct Moved(Child, u64);

impl Filter for Moved {
    fn name(&self) -> &'static str {
        "moved"
    }
    fn child(&self) -> &Child {
        &self.0
    }
    fn at(&self, offset: u64) -> u64 {
        self.1 + offset
    }
    fn length(&self) -> u64 {
        self.0.length() - self.1
    }
}

/// Refuses writes.
struct Refuses(Child);

impl Filter for Refuses {
    fn name(&self) -> &'static str {
        "refuses"
    }
    fn child(&self) -> &Child {
        &self.0
    }
    fn write(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }
}

fn filtered(node: &Arc<BlockNode>) -> Child {
    Child::new("file", ChildRole::FILTER, Arc::clone(node))
}

#[test]
fn what_a_filter_does_not_change_is_passed_on() {
    let (ctx, memory) = (AioContext::new().expect("a context"), Memory::new(65536));
    let disk = memory.node("disk");
    let node = BlockNode::new("filter", Moved(filtered(&disk), 4096));
    assert_eq!((node.length(), node.driver().format_name()), (61440, "moved"));
    assert_eq!((node.children().len(), node.children()[0].1.name()), (1, "disk"));
    assert!(node.limits() == coblk_block::BlockLimits::passing_on() && !node.is_read_only());
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    let mut data = [7; 512];
    backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), WriteFlags::empty()).expect("a write");
    backend.preadv(&ctx, 512, &mut IoVectorMut::from(&mut data[..])).expect("a read");
    backend.pwrite_zeroes(&ctx, 1024, 512, ZeroFlags::empty()).expect("zeroes");
    backend.pdiscard(&ctx, 2048, 512).expect("a discard");
    backend.flush(&ctx).expect("a flush");
    let expected = [
        ("write", 4096, 512),
        ("read", 4608, 512),
        ("zeroes", 5120, 512),
        ("discard", 6144, 512),
        ("flush", 0, 0),
    ];
    assert_eq!(memory.take_log(), expected);
    assert_eq!(backend.block_status(&ctx, 0, 1 << 10).expect("a status").bytes, 1 << 10);
    assert_eq!(errno(backend.truncate(&ctx, 1 << 20)), libc::ENOTSUP, "as the disk says");
}

#[test]
fn a_filter_is_the_hook_that_it_changes() {
    let (ctx, memory) = (AioContext::new().expect("a context"), Memory::new(65536));
    let disk = memory.node("disk");
    let node = BlockNode::new("filter", Refuses(filtered(&disk)));
    let backend = BlockBackend::new(&ctx, "drive", node);
    let source = IoVector::from(&[7; 512][..]);
    assert_eq!(errno(backend.pwritev(&ctx, 0, &source, WriteFlags::empty())), libc::EROFS);
    backend.pdiscard(&ctx, 0, 512).expect("a discard");
    assert_eq!(memory.take_log(), [("discard", 0, 512)]);
}

#[test]
fn users_of_a_filter_hold_and_share_what_they_do_below() {
    let ctx = AioContext::new().expect("a context");
    let disk = BlockNode::new("disk", Null::new(65536));
    let node = BlockNode::new("filter", Refuses(filtered(&disk)));
    let writer = BackendOptions::new("writer").open(&ctx, Arc::clone(&node)).expect("a backend");
    let refused =
        BackendOptions::new("other").open(&ctx, Arc::clone(&disk)).err().expect("refused");
    assert!(refused.to_string().contains("which node 'filter' does not share"), "{refused}");
    assert!(writer.leaves_reads_unwritten(), "as the disk does");
    drop(writer);
    drop(BackendOptions::new("other").open(&ctx, disk).expect("a backend"));
    assert_eq!(node.driver().children().len(), 1);
    let _: &dyn BlockDriver = node.driver();
}
