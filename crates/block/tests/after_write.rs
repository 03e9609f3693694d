//! What users of changes are told.

mod util;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, Co, IoThread, IoVector, IoVectorMut};
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{
    AfterWrite, AfterWriteHook, BlockBackend, BlockLimits, BlockNode, RemoteBackend, RequestKind,
    WriteFlags, WriteKind, ZeroFlags,
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

fn add(
    ctx: &AioContext,
    node: &Arc<BlockNode>,
    hook: &Arc<impl AfterWrite + 'static>,
) -> AfterWriteHook {
    ctx.run(|co| node.co_add_after_write(co, Arc::clone(hook) as _)).unwrap()
}

#[test]
fn every_change_is_told_once_with_its_own_range() {
    let limits = BlockLimits { request_alignment: 512, max_transfer: 1024, ..Default::default() };
    let disk = Disk::new(LENGTH, limits);
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("disk", OnDisk(disk));
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    let notes = Arc::new(Notes::default());
    let hook = add(&ctx, &node, &notes);
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
    let _hook = add(&ctx, &node, &notes);
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
    // Also in a drained section.
    let drained = disk.drain(&ctx);
    let hooks = [&top, &top, &disk].into_iter().zip(&notes).map(|(node, it)| add(&ctx, node, it));
    let mut hooks = hooks.collect::<Vec<_>>().into_iter();
    drop(drained);
    rules.add(Rule::fail(libc::EIO).on(RequestKind::Write).once());
    let data = [1; 512];
    assert_eq!(errno(backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), PLAIN)), libc::EIO);
    assert_eq!(notes.each_ref().map(|it| it.take().len()), [1, 1, 0]);
    ctx.run(|co| hooks.next().unwrap().co_remove(co)).unwrap();
    backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), PLAIN).unwrap();
    assert_eq!(notes.each_ref().map(|it| it.take().len()), [0, 1, 1]);
}

/// Is in the middle of its call until the test says otherwise.
struct Slow {
    called: Mutex<Sender<()>>,
    go_on: Mutex<Receiver<()>>,
}

impl AfterWrite for Slow {
    fn wrote(&self, _: Range<u64>, _: WriteKind, _: bool) {
        self.called.lock().unwrap().send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
    }
}

/// Writes once in another context.
fn write_in(thread: &IoThread, node: &Arc<BlockNode>) -> coblk_aio::JoinHandle<()> {
    let node = Arc::clone(node);
    thread.handle().spawn("write", move |co| {
        let backend = BlockBackend::new(co.context(), "other", node);
        backend.co_pwritev(co, 0, &IoVector::from(&[1; 512][..]), PLAIN).unwrap();
    })
}

#[test]
fn a_removal_waits_for_the_calls_of_other_contexts() {
    let (ctx, thread) = (AioContext::for_test().unwrap(), IoThread::new("other").unwrap());
    let node = BlockNode::new("disk", OnDisk(Disk::new(LENGTH, BlockLimits::default())));
    let ((called, is_called), (go_on, wait)) = (channel(), channel());
    let slow = Arc::new(Slow { called: Mutex::new(called), go_on: Mutex::new(wait) });
    let hook = add(&ctx, &node, &slow);
    let write = write_in(&thread, &node);
    is_called.recv().unwrap();
    let removed = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&removed);
    ctx.spawn("remove", move |co| {
        hook.co_remove(co).unwrap();
        done.store(true, Ordering::SeqCst);
    });
    while ctx.try_poll() {}
    assert!(!removed.load(Ordering::SeqCst), "a call is under way");
    go_on.send(()).unwrap();
    ctx.run_until(|| removed.load(Ordering::SeqCst));
    write.wait().unwrap();
    write_in(&thread, &node).wait().unwrap();
    assert!(is_called.try_recv().is_err(), "called after the removal");
}

/// A context in the middle of something may have looked for hooks just before.
#[test]
fn an_addition_waits_until_contexts_have_gone_through_their_loops() {
    let (ctx, thread) = (AioContext::for_test().unwrap(), IoThread::new("other").unwrap());
    let node = BlockNode::new("disk", OnDisk(Disk::new(LENGTH, BlockLimits::default())));
    let _device = RemoteBackend::open(thread.handle(), "device", Arc::clone(&node)).wait().unwrap();
    let ((is_busy, busy), (go_on, wait)) = (channel(), channel());
    thread.handle().schedule(move |_| {
        is_busy.send(()).unwrap();
        wait.recv().unwrap();
    });
    busy.recv().unwrap();
    let (added, own) = (Arc::new(AtomicBool::new(false)), Arc::clone(&node));
    let done = Arc::clone(&added);
    ctx.spawn("add", move |co| {
        drop(own.co_add_after_write(co, Arc::new(Notes::default())).unwrap());
        done.store(true, Ordering::SeqCst);
    });
    while ctx.try_poll() {}
    assert!(!added.load(Ordering::SeqCst), "a context is busy");
    go_on.send(()).unwrap();
    ctx.run_until(|| added.load(Ordering::SeqCst));
}

#[test]
fn a_removal_that_a_call_holds_up_is_an_error_after_the_limit() {
    let (ctx, thread) = (AioContext::for_test().unwrap(), IoThread::new("other").unwrap());
    let node = BlockNode::new("disk", OnDisk(Disk::new(LENGTH, BlockLimits::default())));
    let ((called, is_called), (go_on, wait)) = (channel(), channel());
    let slow = Arc::new(Slow { called: Mutex::new(called), go_on: Mutex::new(wait) });
    let hook = add(&ctx, &node, &slow);
    let write = write_in(&thread, &node);
    is_called.recv().unwrap();
    assert_eq!(errno(ctx.run(|co| hook.co_remove(co))), libc::ETIMEDOUT);
    go_on.send(()).unwrap();
    write.wait().unwrap();
}

/// A clock of all threads: each look is later than those before.
#[derive(Default)]
struct Clock(AtomicU64);

impl Clock {
    fn now(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// Counts how often it is told of each write, and looks whether it may be told at all.
struct Checker {
    told: Vec<AtomicUsize>,
    calls: AtomicUsize,
    inside: AtomicUsize,
    removed: AtomicBool,
    faults: AtomicUsize,
}

impl AfterWrite for Checker {
    fn wrote(&self, range: Range<u64>, _: WriteKind, succeeded: bool) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        let is_fault = || !succeeded || self.removed.load(Ordering::SeqCst);
        if is_fault() {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        self.told[range.start as usize].fetch_add(1, Ordering::SeqCst);
        if is_fault() {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
        self.calls.fetch_add(1, Ordering::SeqCst);
    }
}

const WRITES: usize = 3000;

/// Writes bytes of its own, one after the other, and notes when each began and ended.
fn writer(
    co: &Co<'_>,
    node: &Arc<BlockNode>,
    first: usize,
    clock: &Clock,
) -> Vec<(usize, Range<u64>)> {
    let backend = BlockBackend::new(co.context(), "writer", Arc::clone(node));
    let write = |byte: usize| {
        let begin = clock.now();
        backend.co_pwritev(co, byte as u64, &IoVector::from(&[1][..]), PLAIN).unwrap();
        let written = (byte, begin..clock.now());
        co.yield_now();
        written
    };
    (first..first + WRITES).map(write).collect()
}

/// Hooks come and go while two contexts write. A write that began after a hook was added and ended before
/// its removal began is told once; every other at most once; none is told of after the removal.
#[test]
fn every_write_between_addition_and_removal_is_told_once() {
    let ctx = AioContext::for_test().unwrap();
    let threads = ["first", "second"].map(|name| IoThread::new(name).unwrap());
    let disk = Disk::new(2 * WRITES as u64, BlockLimits::default());
    let node = BlockNode::new("disk", OnDisk(disk));
    let (clock, begin) = (Arc::new(Clock::default()), Arc::new(AtomicBool::new(false)));
    let writers = [0, 1].map(|index| {
        let (node, clock) = (Arc::clone(&node), Arc::clone(&clock));
        let begins = Arc::clone(&begin);
        let write = move |co: &Co<'_>| {
            while !begins.load(Ordering::SeqCst) {
                co.yield_now();
            }
            writer(co, &node, index * WRITES, &clock)
        };
        threads[index].handle().spawn("writer", write)
    });
    let mut hooks = Vec::new();
    // A second hook at the same time, so that lists change under the first.
    let other = Arc::new(Notes::default());
    let are_done = || writers.iter().all(coblk_aio::JoinHandle::is_finished);
    while !are_done() {
        let checker = Arc::new(Checker {
            told: (0..2 * WRITES).map(|_| AtomicUsize::new(0)).collect(),
            calls: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
            faults: AtomicUsize::new(0),
        });
        let hook = add(&ctx, &node, &checker);
        let added = clock.now();
        drop(add(&ctx, &node, &other));
        begin.store(true, Ordering::SeqCst);
        // Four of these may reach beyond an end: each writer has one write under way.
        ctx.run_until(|| {
            ctx.handle().notify();
            checker.calls.load(Ordering::SeqCst) >= 8 || are_done()
        });
        let removing = clock.now();
        ctx.run(|co| hook.co_remove(co)).unwrap();
        checker.removed.store(true, Ordering::SeqCst);
        assert_eq!(checker.inside.load(Ordering::SeqCst), 0, "a call is under way");
        hooks.push((checker, added..removing));
    }
    let writes = writers.map(|writer| writer.wait().unwrap());
    let mut between = 0;
    for (byte, when) in writes.iter().flatten() {
        for (checker, is_there) in &hooks {
            let told = checker.told[*byte].load(Ordering::SeqCst);
            let must = is_there.start < when.start && when.end < is_there.end;
            between += usize::from(must);
            assert!(told == 1 || (told == 0 && !must), "told {told} times, must be told: {must}");
        }
    }
    assert!(hooks.iter().all(|(checker, _)| checker.faults.load(Ordering::SeqCst) == 0));
    assert!(between > 0, "no write fell between an addition and a removal");
}
