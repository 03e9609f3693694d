//! What users of changes are told.

mod util;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, IoVector, IoVectorMut};
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{
    AfterWrite, BlockBackend, BlockLimits, BlockNode, RequestKind, WriteFlags, WriteKind, ZeroFlags,
};
use util::disk::{Disk, OnDisk, Verdict};
use util::errno;

const PLAIN: WriteFlags = WriteFlags::empty();
const LENGTH: u64 = 1 << 16;

/// Notes what it is told.
#[derive(Default)]
struct Notes(Mutex<Vec<(Range<u64>, WriteKind, bool)>>);

impl Notes {
    fn take(&self) -> Vec<(Range<u64>, WriteKind, bool)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl AfterWrite for Notes {
    fn wrote(&self, range: Range<u64>, kind: WriteKind, succeeded: bool) {
        self.0.lock().unwrap().push((range, kind, succeeded));
    }
}

#[test]
fn every_change_is_told_once_with_its_own_range() {
    let limits = BlockLimits { request_alignment: 512, max_transfer: 1024, ..Default::default() };
    let disk = Disk::new(LENGTH, limits);
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("disk", OnDisk(disk));
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    let notes = Arc::new(Notes::default());
    let hook = node.add_after_write(&node.drain(&ctx), Arc::clone(&notes) as _);
    let data = [1; 5000];
    // In several pieces, with padding at both ends.
    backend.pwritev(&ctx, 100, &IoVector::from(&data[..]), PLAIN).unwrap();
    assert_eq!(notes.take(), [(100..5100, WriteKind::Write, true)]);
    backend.pwritev(&ctx, 512, &IoVector::from(&data[..512]), WriteFlags::FUA).unwrap();
    assert_eq!(notes.take(), [(512..1024, WriteKind::Write, true)]);
    backend.pwrite_zeroes(&ctx, 100, 5000, ZeroFlags::empty()).unwrap();
    assert_eq!(notes.take(), [(100..5100, WriteKind::Zeroes, true)]);
    // Of a discard what is whole blocks.
    backend.pdiscard(&ctx, 100, 5000).unwrap();
    assert_eq!(notes.take(), [(512..4608, WriteKind::Discard, true)]);
    backend.truncate(&ctx, LENGTH + 512).unwrap();
    backend.truncate(&ctx, LENGTH - 512).unwrap();
    let (grown, cut) = (LENGTH..LENGTH + 512, LENGTH - 512..LENGTH + 512);
    assert_eq!(
        notes.take(),
        [(grown, WriteKind::Truncate, true), (cut, WriteKind::Truncate, true)]
    );
    // What changes nothing is not.
    backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut [0; 512][..])).unwrap();
    backend.flush(&ctx).unwrap();
    backend.pwritev(&ctx, 0, &IoVector::from(&data[..0]), PLAIN).unwrap();
    assert_eq!(errno(backend.pwritev(&ctx, LENGTH, &IoVector::from(&data[..]), PLAIN)), libc::EIO);
    assert!(notes.take().is_empty());
    drop(hook);
    backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), PLAIN).unwrap();
    assert!(notes.take().is_empty());
}

#[test]
fn a_failed_change_is_told_for_a_part_may_be_made() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(LENGTH, BlockLimits::default());
    let node = BlockNode::new("disk", OnDisk(Arc::clone(&disk)));
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    let notes = Arc::new(Notes::default());
    let _hook = node.add_after_write(&node.drain(&ctx), Arc::clone(&notes) as _);
    disk.judge(|_| Verdict::Fail(libc::EIO));
    let data = [1; 512];
    assert_eq!(errno(backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), PLAIN)), libc::EIO);
    assert_eq!(errno(backend.pdiscard(&ctx, 512, 512)), libc::EIO);
    let failed = [(0..512, WriteKind::Write, false), (512..1024, WriteKind::Discard, false)];
    assert_eq!(notes.take(), failed);
}

/// Each layer is told of its own offsets, and a hook on one does not hear another.
#[test]
fn users_of_several_nodes_are_told_apart() {
    let ctx = AioContext::for_test().unwrap();
    let disk = BlockNode::new("disk", OnDisk(Disk::new(LENGTH, BlockLimits::default())));
    let rules = Rules::new(1);
    let top = BlockNode::new("top", BlkDebug::new(Arc::clone(&disk), rules.clone()));
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&top));
    let notes = [(); 3].map(|()| Arc::new(Notes::default()));
    let drained = disk.drain(&ctx);
    let hook = |node: &Arc<BlockNode>, notes: &Arc<Notes>| {
        node.add_after_write(&drained, Arc::clone(notes) as _)
    };
    let hooks = [hook(&top, &notes[0]), hook(&top, &notes[1]), hook(&disk, &notes[2])];
    drop(drained);
    rules.add(Rule::fail(libc::EIO).on(RequestKind::Write).once());
    let data = [1; 512];
    assert_eq!(errno(backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), PLAIN)), libc::EIO);
    assert_eq!(notes.each_ref().map(|it| it.take().len()), [1, 1, 0]);
    let [first, ..] = hooks;
    drop(first);
    backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), PLAIN).unwrap();
    assert_eq!(notes.each_ref().map(|it| it.take().len()), [0, 1, 1]);
}

#[test]
#[should_panic(expected = "not in the drained section")]
fn a_section_of_another_node_is_none() {
    let ctx = AioContext::for_test().unwrap();
    let [one, other] = ["one", "other"]
        .map(|name| BlockNode::new(name, OnDisk(Disk::new(LENGTH, BlockLimits::default()))));
    let _hook = one.add_after_write(&other.drain(&ctx), Arc::new(Notes::default()));
}
