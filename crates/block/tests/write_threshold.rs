//! The write threshold of a node: told once, by writes, zeroes and discards, failed or not, and by nothing else.

use std::sync::mpsc::channel;

use coblk_aio::{AioContext, IoVector, IoVectorMut};
use coblk_block::drivers::Null;
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{BlockBackend, BlockNode, RequestKind, ThresholdPassed, WriteFlags, ZeroFlags};

const LENGTH: u64 = 1 << 20;

#[test]
fn a_threshold_is_passed_once_by_what_is_written_behind_it() {
    let ctx = AioContext::new().unwrap();
    let rules = Rules::new(0);
    let node = BlockNode::new("null", Null::new(LENGTH).read_zeroes(true));
    let node = BlockNode::new("disk", BlkDebug::new(node, rules.clone()));
    let backend = BlockBackend::new(&ctx, "disk", node.clone());
    let (told, passed) = channel();
    let set = |threshold| {
        let told = told.clone();
        node.set_write_threshold(threshold, move |it| told.send(it).unwrap());
        assert_eq!(node.describe().write_threshold, Some(threshold));
    };
    let data = [7; 4096];
    let write = |offset, bytes: usize| {
        let source = IoVector::from(&data[..bytes]);
        backend.pwritev(&ctx, offset, &source, WriteFlags::empty())
    };
    let nobody_is_told = || assert_eq!(passed.try_recv().ok(), None);

    set(8192);
    let mut target = [0; 4096];
    backend.preadv(&ctx, 8192, &mut IoVectorMut::from(&mut target[..])).unwrap();
    write(4096, 4096).unwrap();
    backend.pwrite_zeroes(&ctx, 0, 8192, ZeroFlags::empty()).unwrap();
    backend.flush(&ctx).unwrap();
    nobody_is_told();
    write(8191, 2).unwrap();
    assert_eq!(passed.try_recv(), Ok(ThresholdPassed { threshold: 8192, exceeded: 1 }));
    assert_eq!(node.describe().write_threshold, None);
    write(LENGTH - 1, 1).unwrap();
    nobody_is_told();

    set(8192);
    backend.pwrite_zeroes(&ctx, 8192, 4096, ZeroFlags::empty()).unwrap();
    assert_eq!(passed.try_recv(), Ok(ThresholdPassed { threshold: 8192, exceeded: 4096 }));

    // A discard counts if the driver is asked for it.
    set(8192);
    node.set_discard_enabled(false);
    backend.pdiscard(&ctx, 8192, 4096).unwrap();
    nobody_is_told();
    node.set_discard_enabled(true);
    backend.pdiscard(&ctx, 8192, 4096).unwrap();
    assert_eq!(passed.try_recv(), Ok(ThresholdPassed { threshold: 8192, exceeded: 4096 }));

    // A failed write counts: it may have failed because there is no room.
    set(8192);
    rules.add(Rule::fail(libc::ENOSPC).on(RequestKind::Write).once());
    write(8192, 4096).unwrap_err();
    assert_eq!(passed.try_recv(), Ok(ThresholdPassed { threshold: 8192, exceeded: 4096 }));

    // The last one counts, and none is none.
    set(4096);
    set(8192);
    write(4096, 4096).unwrap();
    node.unset_write_threshold();
    write(8192, 4096).unwrap();
    nobody_is_told();
}
