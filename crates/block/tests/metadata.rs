//! What a driver writes for itself.

use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockLimits, BlockNode, Child, ChildRole};

use crate::util::disk::{Disk, OnDisk, Op, Verdict};
use crate::util::errno;

#[test]
fn metadata_is_read_and_written_in_slices_whatever_the_blocks() {
    let limits =
        BlockLimits { request_alignment: 512, memory_alignment: 512, ..BlockLimits::default() };
    let disk = Disk::new(8192, limits);
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("disk", OnDisk(Arc::clone(&disk)));
    let child = Child::new("file", ChildRole::IMAGE, Arc::clone(&node));
    let backend = BlockBackend::new(&ctx, "drive", node);
    ctx.run(|co| {
        child.co_write(co, 100, b"header").unwrap();
        backend.co_write(co, 106, b"!").unwrap();
        let mut back = [0; 7];
        child.co_read(co, 100, &mut back).unwrap();
        assert_eq!(&back, b"header!");
        backend.co_read(co, 100, &mut back).unwrap();
        assert_eq!(&back, b"header!");
        assert_eq!(disk.durable()[100], 0);
        assert_eq!(errno(child.co_read(co, 8190, &mut back)), libc::EIO);
    });
}

#[test]
fn a_barrier_is_durable_with_all_before_it() {
    let disk = Disk::new(8192, BlockLimits::default());
    let ctx = AioContext::for_test().unwrap();
    let child =
        Child::new("file", ChildRole::IMAGE, BlockNode::new("disk", OnDisk(Arc::clone(&disk))));
    ctx.run(|co| {
        child.co_write(co, 0, b"data").unwrap();
        child.co_write_barrier(co, 512, b"pointer").unwrap();
        assert_eq!(
            (&disk.durable()[..4], &disk.durable()[512..519]),
            (&b"data"[..], &b"pointer"[..])
        );
        disk.judge(|op| if op == Op::Flush { Verdict::Fail(libc::EIO) } else { Verdict::Go });
        assert_eq!(errno(child.co_write_barrier(co, 512, b"another")), libc::EIO);
    });
}
