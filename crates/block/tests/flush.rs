//! Flushes: when the driver is asked, which flush waits for which, and what is owed; and writes that
//! are to be durable at once.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk_aio::{AioContext, IoVector};
use coblk_block::drivers::Raw;
use coblk_block::{BlockBackend, BlockLimits, BlockNode, WriteFlags, ZeroFlags};

use crate::util::disk::{Disk, OnDisk, Op, Verdict};
use crate::util::errno;

const PLAIN: WriteFlags = WriteFlags::empty();

/// A context, a disk that is flushed, and a backend on it.
fn set_up(limits: BlockLimits) -> (AioContext, Arc<Disk>, BlockBackend) {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(64 << 10, limits);
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", OnDisk(disk.clone())));
    backend.flush(&ctx).unwrap();
    // What was there before we came may not be durable.
    assert_eq!(disk.take_ops(), [Op::Flush]);
    (ctx, disk, backend)
}

fn write(ctx: &AioContext, backend: &BlockBackend, flags: WriteFlags) {
    backend.pwritev(ctx, 0, &IoVector::from(&[7u8; 4096][..]), flags).unwrap();
}

/// Asks for a flush; its answer, an errno or 0, goes to `answers`.
fn flush_later(ctx: &AioContext, backend: &BlockBackend, answers: &Rc<RefCell<Vec<i32>>>) {
    let answers = Rc::clone(answers);
    backend.aio_flush(ctx, move |_, result| {
        answers
            .borrow_mut()
            .push(result.map_or_else(|error| error.raw_os_error().unwrap(), |()| 0));
    });
}

fn poll_until_idle(ctx: &AioContext) {
    while ctx.try_poll() {}
}

#[test]
fn c79_a_flush_is_skipped_if_nothing_was_written_since_the_last_good_one() {
    let (ctx, disk, backend) = set_up(BlockLimits::default());
    backend.flush(&ctx).unwrap();
    assert_eq!(disk.take_ops(), []);
    write(&ctx, &backend, PLAIN);
    backend.flush(&ctx).unwrap();
    backend.flush(&ctx).unwrap();
    assert_eq!(disk.take_ops(), [Op::Write(0, 4096, PLAIN), Op::Flush]);
    backend.pwrite_zeroes(&ctx, 0, 512, ZeroFlags::empty()).unwrap();
    backend.flush(&ctx).unwrap();
    backend.pdiscard(&ctx, 0, 512).unwrap();
    backend.flush(&ctx).unwrap();
    let flushes = disk.take_ops().into_iter().filter(|op| *op == Op::Flush).count();
    assert_eq!(flushes, 2);
}

#[test]
fn c79_a_failed_flush_stays_owed() {
    let (ctx, disk, backend) = set_up(BlockLimits::default());
    write(&ctx, &backend, PLAIN);
    disk.judge(|op| if op == Op::Flush { Verdict::Fail(libc::EIO) } else { Verdict::Go });
    assert_eq!(errno(backend.flush(&ctx)), libc::EIO);
    assert_eq!(errno(backend.flush(&ctx)), libc::EIO);
    disk.judge(|_| Verdict::Go);
    backend.flush(&ctx).unwrap();
    backend.flush(&ctx).unwrap();
    assert_eq!(disk.take_ops(), [Op::Write(0, 4096, PLAIN), Op::Flush, Op::Flush, Op::Flush]);
    assert_eq!(disk.durable(), disk.data());
}

#[test]
fn c79_one_flush_at_a_time_and_those_that_wait_share_it() {
    let (ctx, disk, backend) = set_up(BlockLimits::default());
    disk.judge(|op| if op == Op::Flush { Verdict::Hold } else { Verdict::Go });
    let answers = Rc::default();
    write(&ctx, &backend, PLAIN);
    (0..3).for_each(|_| flush_later(&ctx, &backend, &answers));
    poll_until_idle(&ctx);
    assert_eq!((disk.held(), answers.borrow().len()), (1, 0));
    assert_eq!(disk.take_ops(), [Op::Write(0, 4096, PLAIN), Op::Flush]);
    // Written while the driver flushes: that flush does not cover it.
    write(&ctx, &backend, PLAIN);
    (0..3).for_each(|_| flush_later(&ctx, &backend, &answers));
    poll_until_idle(&ctx);
    assert_eq!((disk.held(), disk.take_ops()), (1, vec![Op::Write(0, 4096, PLAIN)]));
    assert!(disk.release());
    poll_until_idle(&ctx);
    // One of the later ones flushes for all that wait.
    assert_eq!((disk.held(), disk.take_ops()), (1, vec![Op::Flush]));
    assert!(disk.release());
    poll_until_idle(&ctx);
    assert_eq!((disk.held(), answers.take()), (0, vec![0; 6]));
    assert_eq!(disk.take_ops(), []);
}

#[test]
fn c79_who_waits_for_a_flush_that_fails_tries_himself() {
    let (ctx, disk, backend) = set_up(BlockLimits::default());
    write(&ctx, &backend, PLAIN);
    disk.judge(|op| if op == Op::Flush { Verdict::Hold } else { Verdict::Go });
    let answers = Rc::default();
    flush_later(&ctx, &backend, &answers);
    flush_later(&ctx, &backend, &answers);
    poll_until_idle(&ctx);
    disk.take_ops();
    disk.judge(|_| Verdict::Go);
    disk.fail_held(libc::ENOSPC);
    assert!(disk.release());
    poll_until_idle(&ctx);
    assert_eq!(answers.take(), [libc::ENOSPC, 0]);
    assert_eq!(disk.take_ops(), [Op::Flush]);
}

#[test]
fn c79_a_context_that_ends_in_a_flush_leaves_it_to_others() {
    let (ctx, disk, backend) = set_up(BlockLimits::default());
    write(&ctx, &backend, PLAIN);
    disk.judge(|op| if op == Op::Flush { Verdict::Hold } else { Verdict::Go });
    let other = AioContext::for_test().unwrap();
    let theirs = BlockBackend::new(&other, "other", backend.node().unwrap());
    theirs.aio_flush(&other, |_, _| panic!("it was unwound"));
    theirs.aio_flush(&other, |_, _| panic!("it was unwound"));
    let answers = Rc::default();
    flush_later(&ctx, &backend, &answers);
    poll_until_idle(&ctx);
    assert_eq!(disk.held(), 1);
    disk.judge(|_| Verdict::Go);
    drop((theirs, other));
    poll_until_idle(&ctx);
    assert_eq!(answers.take(), [0]);
    assert_eq!(disk.durable(), disk.data());
}

#[test]
fn a_write_from_one_context_is_flushed_by_another() {
    let (ctx, disk, backend) = set_up(BlockLimits::default());
    let node = backend.node().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Flushes without end, so that ours meet another's.
        scope.spawn(|| {
            let ctx = AioContext::for_test().unwrap();
            let backend = BlockBackend::new(&ctx, "flusher", Arc::clone(&node));
            while !stop.load(Ordering::SeqCst) {
                backend.flush(&ctx).unwrap();
            }
        });
        for n in 0..2000u32 {
            let data = n.to_ne_bytes();
            backend.pwritev(&ctx, 64, &IoVector::from(&data[..]), PLAIN).unwrap();
            backend.flush(&ctx).unwrap();
            assert_eq!(disk.durable()[64..68], data);
        }
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_durable_write_is_flushed_once_however_many_pieces_it_has() {
    let (ctx, disk, backend) = set_up(BlockLimits { max_transfer: 2048, ..BlockLimits::default() });
    write(&ctx, &backend, WriteFlags::FUA);
    let pieces = [Op::Write(0, 2048, PLAIN), Op::Write(2048, 2048, PLAIN), Op::Flush];
    assert_eq!(disk.take_ops(), pieces);
    backend.pwrite_zeroes(&ctx, 0, 512, ZeroFlags::FUA).unwrap();
    assert_eq!(disk.take_ops(), [Op::Zeroes(0, 512, ZeroFlags::empty()), Op::Flush]);
    disk.judge(|op| if op == Op::Flush { Verdict::Fail(libc::EIO) } else { Verdict::Go });
    let result = backend.pwritev(&ctx, 0, &IoVector::from(&[7u8; 512][..]), WriteFlags::FUA);
    assert_eq!(errno(result), libc::EIO, "it is not durable");
}

#[test]
fn a_driver_with_durable_writes_of_its_own_gets_each_piece_as_one() {
    let limits =
        BlockLimits { max_transfer: 2048, write_flags: WriteFlags::FUA, ..BlockLimits::default() };
    let (ctx, disk, backend) = set_up(limits);
    write(&ctx, &backend, WriteFlags::FUA);
    let fua = WriteFlags::FUA;
    assert_eq!(disk.take_ops(), [Op::Write(0, 2048, fua), Op::Write(2048, 2048, fua)]);
    backend.pwrite_zeroes(&ctx, 0, 512, ZeroFlags::FUA).unwrap();
    assert_eq!(disk.take_ops(), [Op::Zeroes(0, 512, ZeroFlags::FUA)]);
}

#[test]
fn a_durable_request_for_nothing_is_a_flush() {
    for (request_alignment, native_fua) in [(1, false), (1, true), (512, false), (512, true)] {
        let write_flags = if native_fua { WriteFlags::FUA } else { WriteFlags::empty() };
        let limits = BlockLimits { request_alignment, write_flags, ..BlockLimits::default() };
        let (ctx, disk, backend) = set_up(limits);
        let nothing = IoVector::new();
        let durable = ZeroFlags::FUA;
        for ask in
            [&|| backend.pwritev(&ctx, 512, &nothing, WriteFlags::FUA).unwrap() as _, &|| {
                backend.pwrite_zeroes(&ctx, 512, 0, durable).unwrap() as _
            }] as [&dyn Fn(); 2]
        {
            write(&ctx, &backend, PLAIN);
            assert_eq!(disk.take_ops().len(), 1);
            ask();
            assert_eq!(disk.take_ops(), [Op::Flush], "{request_alignment} {native_fua}");
            ask();
            assert_eq!(disk.take_ops(), [], "nothing was written");
        }
        // Others of nothing are nothing.
        write(&ctx, &backend, PLAIN);
        disk.take_ops();
        backend.pwritev(&ctx, 512, &nothing, PLAIN).unwrap();
        backend.pwrite_zeroes(&ctx, 512, 0, ZeroFlags::empty()).unwrap();
        assert!(!disk.take_ops().contains(&Op::Flush));
    }
}

/// The next flush goes to the new node, and says that all is durable that was written before.
#[test]
fn a_node_is_flushed_before_another_takes_its_place() {
    let (ctx, disk, backend) = set_up(BlockLimits::default());
    let old = backend.node().unwrap();
    let next = Disk::new(64 << 10, BlockLimits::default());
    let new = BlockNode::new("new", OnDisk(next.clone()));
    // A node above has no writes to flush when the new one takes the place of the old.
    let above = BlockNode::new("above", Raw::new(old.clone()));
    let on_above = BlockBackend::new(&ctx, "above", above);
    on_above.flush(&ctx).unwrap();
    write(&ctx, &backend, PLAIN);
    disk.take_ops();
    disk.judge(|op| if op == Op::Flush { Verdict::Fail(libc::EIO) } else { Verdict::Go });
    old.replace(&ctx, &new).unwrap();
    assert_eq!((backend.node().unwrap().name(), disk.take_ops()), ("new", vec![Op::Flush]));
    assert_eq!(errno(backend.flush(&ctx)), libc::EIO, "what was written before is lost");
    backend.flush(&ctx).unwrap();
    next.take_ops();
    // And back, to one that can be flushed by now.
    disk.judge(|_| Verdict::Go);
    write(&ctx, &backend, PLAIN);
    new.replace(&ctx, &old).unwrap();
    assert_eq!(next.take_ops(), [Op::Write(0, 4096, PLAIN), Op::Flush]);
    write(&ctx, &backend, PLAIN);
    old.replace(&ctx, &new).unwrap();
    disk.take_ops();
    on_above.flush(&ctx).unwrap();
    assert_eq!(
        next.take_ops(),
        [Op::Flush],
        "what the new node had is flushed through those above"
    );
}

/// What was written is flushed by way of a filter that comes, and without one that goes, also where a
/// flush fails just now.
#[test]
fn filters_come_and_go_without_a_flush() {
    let (ctx, disk, backend) = set_up(BlockLimits::default());
    let node = backend.node().unwrap();
    let filter = BlockNode::new("filter", Raw::new(node.clone()));
    write(&ctx, &backend, PLAIN);
    disk.take_ops();
    disk.judge(|op| if op == Op::Flush { Verdict::Fail(libc::EIO) } else { Verdict::Go });
    node.insert_above(&ctx, &filter).unwrap();
    assert_eq!((backend.node().unwrap().name(), disk.take_ops()), ("filter", vec![]));
    assert_eq!(errno(backend.flush(&ctx)), libc::EIO);
    filter.remove(&ctx).unwrap();
    assert_eq!((backend.node().unwrap().name(), disk.take_ops()), ("disk", vec![Op::Flush]));
    disk.judge(|_| Verdict::Go);
    backend.flush(&ctx).unwrap();
    assert_eq!(disk.take_ops(), [Op::Flush]);
}
