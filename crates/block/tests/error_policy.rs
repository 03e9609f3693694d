//! Error policies, through all doors: who is told, who is held, and who gets an answer when.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, IoThread, IoVector, IoVectorMut, SimulationOptions};
use coblk_block::filters::blkdebug::{BlkDebug, Rule, RuleId, Rules};
use coblk_block::{
    BlockBackend, BlockLimits, BlockNode, ErrorAction, ErrorEvent, ErrorPolicies, ErrorPolicy,
    GivenBack, IoStatus, RemoteBackend, RequestKind, WriteFlags, ZeroFlags,
};

use crate::util;
use crate::util::disk::{Disk, OnDisk};

const DISK_BYTES: u64 = 1 << 20;

const STOP: ErrorPolicies = ErrorPolicies { read: ErrorPolicy::Stop, write: ErrorPolicy::Stop };

struct Scene {
    ctx: AioContext,
    disk: Arc<Disk>,
    rules: Rules,
    backend: BlockBackend,
    events: Rc<RefCell<Vec<ErrorEvent>>>,
}

fn scene(seed: u64, policies: ErrorPolicies) -> Scene {
    let options = SimulationOptions::new(seed);
    let ctx = AioContext::test_builder().simulated(options).build().expect("a context");
    let disk = Disk::new(DISK_BYTES, BlockLimits::default());
    let rules = Rules::new(seed);
    let below = BlockNode::new("disk", OnDisk(Arc::clone(&disk)));
    let node = BlockNode::new("debug", BlkDebug::new(below, rules.clone()));
    let (backend, events) = backend_on(&ctx, &node, policies);
    Scene { ctx, disk, rules, backend, events }
}

fn backend_on(
    ctx: &AioContext,
    node: &Arc<BlockNode>,
    policies: ErrorPolicies,
) -> (BlockBackend, Rc<RefCell<Vec<ErrorEvent>>>) {
    let backend = BlockBackend::new(ctx, "drive", Arc::clone(node));
    backend.set_error_policies(policies);
    let events = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&events);
    backend.set_error_listener(move |_, _, event| seen.borrow_mut().push(event));
    (backend, events)
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// What requests have answered, in the order of their answers.
type Answers = Rc<RefCell<Vec<(u64, Option<i32>)>>>;

impl Scene {
    fn fail(&self, errno: i32) -> RuleId {
        self.rules.add(Rule::fail(errno).after(Duration::from_micros(5)))
    }

    fn write(&self, offset: u64) -> io::Result<()> {
        let source = IoVector::from(&[7; 512][..]);
        self.backend.pwritev(&self.ctx, offset, &source, WriteFlags::empty())
    }

    fn read(&self, offset: u64) -> io::Result<()> {
        let mut buffer = [0; 512];
        self.backend.preadv(&self.ctx, offset, &mut IoVectorMut::from(&mut buffer[..]))
    }

    /// Starts a write of `block`s of 512 bytes, filled with its number.
    fn start_write(&self, answers: &Answers, block: u64) {
        let answers = Rc::clone(answers);
        let data = vec![block as u8; 512];
        self.backend.aio_pwritev(
            &self.ctx,
            block * 512,
            data,
            WriteFlags::empty(),
            move |_, result, _| answers.borrow_mut().push((block, errno(result))),
        );
    }

    fn events(&self) -> Vec<ErrorEvent> {
        self.events.take()
    }

    /// Lets go on what can.
    fn settle(&self) {
        drop(self.backend.drain(&self.ctx));
        while self.ctx.try_poll() {}
    }
}

#[test]
fn reads_and_writes_are_reported_unless_told_otherwise() {
    let scene = scene(1, ErrorPolicies::default());
    assert_eq!(scene.backend.error_policies().write, ErrorPolicy::Report);
    scene.fail(libc::ENOSPC);
    assert_eq!(errno(scene.write(0)), Some(libc::ENOSPC));
    assert_eq!(errno(scene.read(0)), Some(libc::ENOSPC));
    let event = |kind| ErrorEvent { kind, errno: libc::ENOSPC, action: ErrorAction::Report };
    assert_eq!(scene.events(), [event(RequestKind::Write), event(RequestKind::Read)]);
    assert_eq!(scene.backend.io_status(), IoStatus::Ok);
}

#[test]
fn ignored_errors_are_told_and_succeed() {
    let policies = ErrorPolicies { read: ErrorPolicy::Report, write: ErrorPolicy::Ignore };
    let scene = scene(1, policies);
    scene.fail(libc::EIO);
    scene.write(0).expect("an ignored error");
    scene.backend.flush(&scene.ctx).expect("an ignored error");
    scene.backend.pdiscard(&scene.ctx, 0, 512).expect("an ignored error");
    scene.backend.pwrite_zeroes(&scene.ctx, 0, 512, ZeroFlags::empty()).expect("ignored");
    assert_eq!(errno(scene.read(0)), Some(libc::EIO), "reads have their own policy");
    let events = scene.events();
    let actions: Vec<_> = events.iter().map(|event| event.action).collect();
    let ignore = ErrorAction::Ignore;
    assert_eq!(actions, [ignore, ignore, ignore, ignore, ErrorAction::Report]);
    assert_eq!(scene.backend.statistics().of(RequestKind::Write).operations, 1);
    assert_eq!(scene.backend.statistics().of(RequestKind::Read).failed, 1);
}

#[test]
fn stopped_requests_are_tried_again_in_their_order_over_many_seeds() {
    for seed in 0..50 {
        let scene = scene(seed, STOP);
        let cause = scene.fail(libc::EIO);
        let answers = Answers::default();
        (0..4).for_each(|block| scene.start_write(&answers, block));
        scene.settle();
        assert_eq!(scene.backend.io_status(), IoStatus::Failed, "seed {seed}");
        // While it is stopped, nothing new gets below.
        scene.rules.remove(cause);
        (4..8).for_each(|block| scene.start_write(&answers, block));
        scene.settle();
        assert_eq!((scene.backend.held_requests(), scene.backend.in_flight()), (8, 0));
        assert!(answers.borrow().is_empty() && scene.disk.take_ops().is_empty());
        assert_eq!(scene.backend.statistics().queue_depth(), 8, "they are not answered");

        scene.backend.resume();
        scene.settle();
        let mut blocks: Vec<_> = answers.take();
        blocks.sort_unstable();
        assert_eq!(blocks, (0..8).map(|block| (block, None)).collect::<Vec<_>>());
        let arrived = scene.disk.take_ops();
        let offset = |op: &util::disk::Op| match op {
            util::disk::Op::Write(offset, ..) => *offset / 512,
            other => panic!("{other:?}"),
        };
        let arrived: Vec<_> = arrived.iter().map(offset).collect();
        assert_eq!(arrived[4..], [4, 5, 6, 7], "seed {seed}: new ones after the old");
        let data = scene.disk.data();
        assert!((0..8).all(|block| data[block * 512] == block as u8), "seed {seed}");
        let counts = scene.backend.statistics().of(RequestKind::Write);
        assert_eq!((counts.operations, counts.failed), (8, 0), "each is counted once");
        assert_eq!(scene.backend.io_status(), IoStatus::Ok);
    }
}

#[test]
fn what_fails_again_stops_again_and_keeps_its_place() {
    let scene = scene(3, STOP);
    let cause = scene.rules.add(Rule::fail(libc::EIO));
    let answers = Answers::default();
    (0..3).for_each(|block| scene.start_write(&answers, block));
    for _ in 0..5 {
        scene.settle();
        assert_eq!(scene.backend.held_requests(), 3);
        scene.backend.resume();
    }
    scene.settle();
    assert_eq!(scene.backend.io_status(), IoStatus::Failed);
    scene.rules.remove(cause);
    scene.backend.resume();
    scene.settle();
    let arrived = scene.disk.take_ops();
    let empty = WriteFlags::empty();
    let write = |block: u64| util::disk::Op::Write(block * 512, 512, empty);
    assert_eq!(arrived, [write(0), write(1), write(2)]);
}

#[test]
fn enospc_stops_for_want_of_space_and_for_nothing_else() {
    let policies = ErrorPolicies { read: ErrorPolicy::Enospc, write: ErrorPolicy::Enospc };
    let scene = scene(1, policies);
    let cause = scene.fail(libc::EIO);
    assert_eq!(errno(scene.write(0)), Some(libc::EIO));
    assert_eq!(scene.backend.io_status(), IoStatus::Ok);
    scene.rules.remove(cause);
    let cause = scene.fail(libc::ENOSPC);
    scene.events();
    let answers = Answers::default();
    scene.start_write(&answers, 1);
    scene.settle();
    assert_eq!(scene.backend.io_status(), IoStatus::NoSpace);
    let kind = RequestKind::Write;
    let event = ErrorEvent { kind, errno: libc::ENOSPC, action: ErrorAction::Stop };
    assert_eq!(scene.events(), [event]);
    assert!(event.is_no_space());
    scene.rules.remove(cause);
    scene.backend.resume();
    scene.settle();
    assert_eq!(answers.take(), [(1, None)]);
}

#[test]
fn a_request_that_could_not_be_never_stops() {
    let scene = scene(1, STOP);
    assert_eq!(errno(scene.write(DISK_BYTES)), Some(libc::EIO));
    assert_eq!(errno(scene.read(u64::MAX)), Some(libc::EIO));
    let node = scene.backend.node().expect("a medium");
    let read_only = BlockBackend::read_only(&scene.ctx, "read-only", Arc::clone(&node));
    read_only.set_error_policies(STOP);
    assert_eq!(errno(read_only.pdiscard(&scene.ctx, 0, 512)), Some(libc::EPERM));
    let empty = BlockBackend::empty(&scene.ctx, "empty");
    empty.set_error_policies(STOP);
    assert_eq!(errno(empty.flush(&scene.ctx)), Some(libc::ENOMEDIUM));
    scene.fail(libc::ENOTSUP);
    let unsupported = scene.backend.pwrite_zeroes(&scene.ctx, 0, 512, ZeroFlags::NO_FALLBACK);
    assert_eq!(errno(unsupported), Some(libc::ENOTSUP));
    let status = [&scene.backend, &read_only, &empty].map(BlockBackend::io_status);
    assert_eq!(status, [IoStatus::Ok; 3]);
    assert!(scene.events().is_empty());
}

#[test]
fn held_requests_of_every_kind_go_on_through_the_coroutine_door() {
    let scene = scene(1, STOP);
    let done = Rc::new(Cell::new(0));
    let requests: [fn(&BlockBackend, &coblk_aio::Co<'_>) -> io::Result<()>; 5] = [
        |backend, co| backend.co_flush(co),
        |backend, co| backend.co_pdiscard(co, 0, 512),
        |backend, co| backend.co_pwrite_zeroes(co, 512, 512, ZeroFlags::empty()),
        |backend, co| backend.co_pwritev(co, 0, &IoVector::from(&[1; 4096][..]), WriteFlags::FUA),
        |backend, co| {
            let mut buffer = [9; 512];
            backend.co_preadv(co, 8192, &mut IoVectorMut::from(&mut buffer[..]))?;
            assert_eq!(buffer, [7; 512]);
            Ok(())
        },
    ];
    scene.write(8192).expect("something to flush");
    let cause = scene.rules.add(Rule::fail(libc::EIO));
    for request in requests {
        let (backend, done) = (scene.backend.clone(), Rc::clone(&done));
        scene.ctx.spawn("request", move |co| {
            request(&backend, co).expect("a request that was held");
            done.set(done.get() + 1);
        });
    }
    scene.settle();
    assert_eq!((scene.backend.held_requests(), done.get()), (5, 0));
    scene.rules.remove(cause);
    scene.backend.resume();
    scene.settle();
    assert_eq!(done.get(), 5);
}

#[test]
fn the_listener_may_resume_at_once() {
    let scene = scene(1, STOP);
    scene.rules.add(Rule::fail(libc::EIO).times(3));
    let told = Rc::new(Cell::new(0));
    let counter = Rc::clone(&told);
    scene.backend.set_error_listener(move |_, backend, event| {
        assert_eq!((event.action, backend.io_status()), (ErrorAction::Stop, IoStatus::Failed));
        counter.set(counter.get() + 1);
        backend.resume();
    });
    scene.write(0).expect("the fourth try");
    assert_eq!(told.get(), 3);
}

#[test]
fn a_blocking_request_goes_on_when_somebody_resumes() {
    let scene = scene(1, STOP);
    scene.fail(libc::EIO);
    let (rules, backend) = (scene.rules.clone(), scene.backend.clone());
    let timer = scene.ctx.timer(move |_| {
        assert_eq!(backend.io_status(), IoStatus::Failed);
        rules.clear();
        backend.resume();
    });
    timer.arm_at_ns(scene.ctx.now_ns() + 1_000_000_000);
    scene.write(0).expect("a write that was held for a second");
}

#[test]
fn a_drain_does_not_wait_for_held_requests_and_holds_them_when_they_are_resumed() {
    let scene = scene(1, STOP);
    scene.fail(libc::EIO);
    let answers = Answers::default();
    scene.start_write(&answers, 1);
    let drained = scene.backend.drain(&scene.ctx);
    assert_eq!((scene.backend.held_requests(), scene.backend.in_flight()), (1, 0));
    scene.rules.clear();
    scene.backend.resume();
    while scene.ctx.try_poll() {}
    assert!(answers.borrow().is_empty() && scene.disk.take_ops().is_empty());
    drop(drained);
    scene.settle();
    assert_eq!(answers.take(), [(1, None)]);
}

#[test]
fn held_requests_can_be_made_to_end() {
    let scene = scene(1, STOP);
    let cause = scene.fail(libc::ENOSPC);
    let answers = Answers::default();
    scene.start_write(&answers, 0);
    scene.settle();
    scene.start_write(&answers, 1);
    scene.settle();
    // Also while it is drained: they go nowhere near the node.
    let drained = scene.backend.drain(&scene.ctx);
    let reporting = scene.backend.report_errors();
    while scene.ctx.try_poll() {}
    assert_eq!(answers.take(), [(0, Some(libc::ENOSPC)), (1, Some(libc::ECANCELED))]);
    drop(drained);
    scene.start_write(&answers, 2);
    scene.settle();
    assert_eq!(answers.take(), [(2, Some(libc::ENOSPC))], "not held meanwhile");
    drop(reporting);
    scene.rules.remove(cause);
    scene.start_write(&answers, 3);
    scene.settle();
    assert!(answers.borrow().is_empty(), "it is still stopped");
    scene.backend.resume();
    scene.settle();
    assert_eq!(answers.take(), [(3, None)]);
}

#[test]
fn held_requests_are_given_back_uncounted() {
    let scene = scene(1, STOP);
    let cause = scene.fail(libc::ENOSPC);
    let given_back = Rc::new(Cell::new(0));
    let start = |block: u64| {
        let given_back = Rc::clone(&given_back);
        let data = vec![0u8; 512];
        let flags = WriteFlags::empty();
        scene.backend.aio_pwritev(&scene.ctx, block * 512, data, flags, move |_, result, _| {
            let error = result.expect_err("it was held");
            assert!(GivenBack::is_in(&error), "{error}");
            given_back.set(given_back.get() + 1);
        });
    };
    // One that has failed, and one that was never tried.
    start(0);
    scene.settle();
    start(1);
    scene.settle();
    assert_eq!(scene.backend.held_requests(), 2);
    let giving_back = scene.backend.give_back_held();
    while scene.ctx.try_poll() {}
    assert_eq!(given_back.get(), 2);
    // Nor is a new one held meanwhile.
    start(2);
    scene.settle();
    assert_eq!(given_back.get(), 3);
    drop(giving_back);
    assert_eq!(scene.backend.io_status(), IoStatus::NoSpace, "it is still stopped");
    let statistics = scene.backend.statistics();
    let writes = statistics.of(RequestKind::Write);
    assert_eq!((writes.operations, writes.failed, statistics.queue_depth()), (0, 0, 0));
    scene.rules.remove(cause);
    scene.backend.resume();
    scene.write(0).expect("sent again");
}

#[test]
fn a_context_that_ends_unwinds_held_requests() {
    let Scene { ctx, rules, backend, disk, .. } = scene(1, STOP);
    rules.add(Rule::fail(libc::EIO));
    let called = Rc::new(Cell::new(false));
    let callback = Rc::clone(&called);
    backend.aio_flush(&ctx, |_, _| ());
    let data = vec![0u8; 512];
    backend.aio_pwritev(&ctx, 0, data, WriteFlags::empty(), move |_, _, _| callback.set(true));
    drop(backend.drain(&ctx));
    assert_eq!(backend.held_requests(), 2);
    let statistics = backend.statistics();
    drop(backend);
    drop(ctx);
    assert!(!called.get());
    assert_eq!(Rc::strong_count(&called), 1, "its frame is gone");
    assert_eq!(statistics.queue_depth(), 0);
    drop(rules);
    assert_eq!(Arc::strong_count(&disk), 1, "and with it the last user of the node");
}

#[test]
fn a_stopped_backend_stops_no_other_on_its_node() {
    let scene = scene(1, STOP);
    let node = scene.backend.node().expect("a medium");
    let (other, other_events) = backend_on(&scene.ctx, &node, ErrorPolicies::default());
    let cause = scene.fail(libc::EIO);
    let answers = Answers::default();
    scene.start_write(&answers, 0);
    scene.settle();
    scene.rules.remove(cause);
    let source = IoVector::from(&[5; 512][..]);
    other.pwritev(&scene.ctx, 512, &source, WriteFlags::empty()).expect("a write");
    assert_eq!((other.io_status(), scene.backend.io_status()), (IoStatus::Ok, IoStatus::Failed));
    assert!(other_events.borrow().is_empty());
}

#[test]
fn requests_of_other_threads_are_held_and_resumed_from_there() {
    let rules = Rules::new(1);
    let disk = Disk::new(DISK_BYTES, BlockLimits::default());
    let below = BlockNode::new("disk", OnDisk(Arc::clone(&disk)));
    let node = BlockNode::new("debug", BlkDebug::new(below, rules.clone()));
    let threads = [(); 2].map(|()| IoThread::new("io").expect("a thread"));
    let (told, events) = std::sync::mpsc::channel();
    let disks = [0, 1].map(|index: usize| {
        let (node, told) = (Arc::clone(&node), told.clone());
        let opened = threads[index].handle().spawn("open", move |co| {
            let backend = BlockBackend::new(co.context(), "drive", node);
            backend.set_error_policies(STOP);
            backend.set_error_listener(move |_, _, event| told.send((index, event)).unwrap());
            backend.remote()
        });
        let remote: RemoteBackend = opened.wait().expect("a backend");
        remote
    });
    rules.add(Rule::fail(libc::ENOSPC));
    let write = |index: usize| {
        disks[index].pwritev(index as u64 * 512, vec![3u8; 512], WriteFlags::empty())
    };
    let writes = [write(0), write(1)];
    let mut stopped = [(); 2].map(|()| events.recv_timeout(Duration::from_secs(60)).unwrap().0);
    stopped.sort_unstable();
    assert_eq!(stopped, [0, 1]);
    rules.clear();
    for disk in &disks {
        disk.resume().wait().expect("a thread").expect("a backend");
    }
    for write in writes {
        write.wait().expect("a thread").0.expect("a write that was held");
    }
    assert_eq!(disk.data()[..1024], [3; 1024]);
}
