//! Requests and drains: contract lines 74 to 78. What holds for all nodes of the process at once
//! is in `contract_drain_all.rs`.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::mpsc;

use coblk::block::{ChildRole, DrainedSection};
use coblk::drivers::{File, Null};
use coblk::{
    AioContext, BlockBackend, BlockNode, Child, Co, IoVector, IoVectorMut, WriteFlags, ZeroFlags,
};
use coblk_tests::images::sparse_image;
use coblk_tests::probe::{Call, Probe};
use coblk_tests::{errno, image_dir};

const SIZE: u64 = 64 << 10;

/// A context, a backend on a probe, and the probe.
fn scene() -> (AioContext, BlockBackend, Probe) {
    let ctx = AioContext::for_test().expect("a context");
    let probe = Probe::new(SIZE as usize);
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("node", probe.clone()));
    (ctx, backend, probe)
}

type Kind = (&'static str, fn(&BlockBackend, &Co<'_>, u64, usize) -> io::Result<()>);

fn read(backend: &BlockBackend, co: &Co<'_>, offset: u64, len: usize) -> io::Result<()> {
    backend.co_preadv(co, offset, &mut IoVectorMut::from(&mut vec![0; len][..]))
}

/// Every kind of request that changes something.
const CHANGES: [Kind; 3] = [
    ("write", |backend, co, offset, len| {
        backend.co_pwritev(co, offset, &IoVector::from(&vec![1; len][..]), WriteFlags::empty())
    }),
    ("write zeroes", |backend, co, offset, len| {
        backend.co_pwrite_zeroes(co, offset, len as u64, ZeroFlags::empty())
    }),
    ("discard", |backend, co, offset, len| backend.co_pdiscard(co, offset, len as u64)),
];

/// Every kind of request that has a range.
fn ranged() -> impl Iterator<Item = Kind> {
    CHANGES.into_iter().chain([("read", read as _)])
}

/// Results of requests in the order in which they came.
type Results = Rc<RefCell<Vec<(&'static str, Option<i32>)>>>;

/// A callback that notes the errno.
fn note(results: &Results, what: &'static str) -> impl FnOnce(io::Result<()>) + 'static {
    let results = Rc::clone(results);
    move |result| {
        results.borrow_mut().push((what, result.err().map(|it| it.raw_os_error().unwrap())))
    }
}

/// Submits one request of each kind by the callback door.
fn submit_all(ctx: &AioContext, backend: &BlockBackend, offset: u64, results: &Results) {
    let done = note(results, "read");
    backend.aio_preadv(ctx, offset, vec![0; 512], |_, result, _| done(result));
    let (done, flags) = (note(results, "write"), WriteFlags::empty());
    backend.aio_pwritev(ctx, offset, vec![1; 512], flags, |_, result, _| done(result));
    let (done, flags) = (note(results, "write zeroes"), ZeroFlags::empty());
    backend.aio_pwrite_zeroes(ctx, offset, 512, flags, |_, result| done(result));
    let done = note(results, "discard");
    backend.aio_pdiscard(ctx, offset, 512, |_, result| done(result));
    let done = note(results, "flush");
    backend.aio_flush(ctx, |_, result| done(result));
}

#[test]
fn c74_past_the_end_is_eio() {
    let (ctx, backend, probe) = scene();
    let outside = [
        (SIZE, 1),
        (SIZE - 511, 512),
        (0, SIZE as usize + 1),
        (SIZE + 1, 0),
        (u64::MAX, 0),
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (u64::MAX - 100, 512),
        (i64::MAX as u64, 512),
        // What a negative offset looks like.
        (-512i64 as u64, 512),
        (i64::MIN as u64, 1),
    ];
    for (name, request) in ranged() {
        for (offset, len) in outside {
            let result = ctx.run(|co| request(&backend, co, offset, len));
            assert_eq!(errno(result), libc::EIO, "{name} of {len} at {offset}");
        }
    }
    assert_eq!(probe.take_calls(), [], "nothing of it reached the driver");
    for (name, request) in ranged() {
        for (offset, len) in [(0, SIZE as usize), (SIZE - 1, 1), (SIZE, 0)] {
            let result = ctx.run(|co| request(&backend, co, offset, len));
            result.unwrap_or_else(|error| panic!("{name} of {len} at {offset}: {error}"));
        }
    }
}

#[test]
fn c74_past_the_end_is_eio_of_an_empty_image_too() {
    let dir = image_dir!();
    let ctx = AioContext::for_test().expect("a context");
    let file = File::options().open(sparse_image(dir.path(), "empty.img", 0)).expect("an image");
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("node", file));
    assert_eq!(backend.length().expect("a medium"), 0);
    for (name, request) in ranged() {
        assert_eq!(errno(ctx.run(|co| request(&backend, co, 0, 1))), libc::EIO, "{name}");
        assert!(ctx.run(|co| request(&backend, co, 0, 0)).is_ok(), "{name}");
    }
    backend.flush(&ctx).expect("there is nothing to flush");
}

#[test]
fn c74_no_medium_is_enomedium() {
    let ctx = AioContext::for_test().expect("a context");
    let backend = BlockBackend::empty(&ctx, "drive");
    for (name, request) in ranged() {
        let result = ctx.run(|co| request(&backend, co, 0, 512));
        assert_eq!(errno(result), libc::ENOMEDIUM, "{name}");
    }
    assert_eq!(errno(backend.flush(&ctx)), libc::ENOMEDIUM);
    assert_eq!(errno(backend.length()), libc::ENOMEDIUM);
    assert!(backend.drain(&ctx).is_none() && backend.node().is_none());

    let results = Results::default();
    submit_all(&ctx, &backend, 0, &results);
    assert_eq!(*results.borrow(), [], "completed inside submit");
    ctx.run_until(|| results.borrow().len() == 5);
    assert!(results.borrow().iter().all(|(_, errno)| *errno == Some(libc::ENOMEDIUM)));
}

#[test]
fn c74_a_write_to_what_is_read_only_is_eperm() {
    let ctx = AioContext::for_test().expect("a context");
    let writable = Probe::new(SIZE as usize);
    let read_only = Probe::read_only(SIZE as usize);
    let backends = [
        BlockBackend::read_only(&ctx, "read-only", BlockNode::new("a", writable.clone())),
        BlockBackend::new(&ctx, "on read-only", BlockNode::new("b", read_only.clone())),
    ];
    for backend in &backends {
        assert!(backend.is_read_only());
        for (name, request) in CHANGES {
            // Also with nothing to write.
            for len in [512, 0] {
                let result = ctx.run(|co| request(backend, co, 0, len));
                assert_eq!(errno(result), libc::EPERM, "{name} to {}", backend.name());
            }
        }
    }
    assert_eq!((writable.take_calls(), read_only.take_calls()), (vec![], vec![]));
    for backend in &backends {
        ctx.run(|co| read(backend, co, 0, 512)).expect("it may be read");
    }
}

#[test]
fn c74_a_driver_above_a_read_only_node_gets_eperm_too() {
    let ctx = AioContext::for_test().expect("a context");
    let probe = Probe::read_only(SIZE as usize);
    let node = Child::new("file", ChildRole::FILTER, BlockNode::new("below", probe.clone()));
    let data = IoVector::from(&[1u8; 512][..]);
    let write = ctx.run(|co| node.co_pwritev(co, 0, &data, WriteFlags::empty()));
    assert_eq!(errno(write), libc::EPERM);
    let zeroes = ctx.run(|co| node.co_pwrite_zeroes(co, 0, 512, ZeroFlags::empty()));
    assert_eq!(errno(zeroes), libc::EPERM);
    assert_eq!(errno(ctx.run(|co| node.co_pdiscard(co, 0, 512))), libc::EPERM);
    assert_eq!(probe.take_calls(), []);
}

#[test]
fn c75_what_fails_at_once_completes_from_a_bottom_half() {
    let (ctx, backend, probe) = scene();
    let results = Results::default();
    submit_all(&ctx, &backend, SIZE, &results);
    assert_eq!(*results.borrow(), [], "completed inside submit");
    assert_eq!(backend.in_flight(), 5);
    assert!(ctx.try_poll(), "completions are progress");
    let eio = Some(libc::EIO);
    let expected =
        [("read", eio), ("write", eio), ("write zeroes", eio), ("discard", eio), ("flush", None)];
    assert_eq!(*results.borrow(), expected);
    assert_eq!(backend.in_flight(), 0);
    assert_eq!(probe.take_calls(), [Call::Flush]);
}

#[test]
fn c75_what_succeeds_at_once_completes_from_a_bottom_half_too() {
    let ctx = AioContext::for_test().expect("a context");
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("node", Null::new(SIZE)));
    let results = Results::default();
    submit_all(&ctx, &backend, 0, &results);
    assert_eq!(*results.borrow(), [], "completed inside submit");
    ctx.try_poll();
    assert!(results.borrow().iter().all(|(_, errno)| errno.is_none()));
    assert_eq!(results.borrow().len(), 5);
}

#[test]
fn c75_a_drain_waits_for_what_failed_at_once() {
    let (ctx, backend, _) = scene();
    let results = Results::default();
    submit_all(&ctx, &backend, SIZE, &results);
    let section = backend.drain(&ctx);
    assert_eq!(results.borrow().len(), 5, "the drain came back before the completions");
    drop(section);
}

#[test]
fn c75_a_drain_waits_until_the_callback_has_returned() {
    let (ctx, backend, _) = scene();
    let (inner, returned) = (backend.clone(), Rc::new(Cell::new(false)));
    let in_callback = Rc::clone(&returned);
    backend.aio_preadv(&ctx, 0, vec![0; 512], move |_, result, _| {
        result.expect("a read within the device");
        assert_eq!(inner.in_flight(), 1, "a request counts while its callback runs");
        in_callback.set(true);
    });
    drop(backend.drain(&ctx));
    assert!(returned.get());
}

#[test]
fn c76_requests_wait_for_the_outermost_end_and_go_on_in_order() {
    let (ctx, backend, probe) = scene();
    let outer = backend.drain(&ctx);
    let inner = backend.drain(&ctx);
    assert_eq!(probe.take_calls(), [Call::DrainedBegin]);

    let results = Results::default();
    for (number, name) in ["first", "second", "third"].into_iter().enumerate() {
        let done = note(&results, name);
        let offset = number as u64 * 512;
        backend.aio_preadv(&ctx, offset, vec![0; 512], |_, result, _| done(result));
    }
    while ctx.try_poll() {}
    drop(inner);
    while ctx.try_poll() {}
    assert_eq!(probe.take_calls(), [], "a request came through a drain");
    assert_eq!((results.borrow().len(), backend.in_flight()), (0, 0));

    // One more drain is not held up by requests that wait for the outer one.
    drop(backend.drain(&ctx));

    drop(outer);
    ctx.run_until(|| results.borrow().len() == 3);
    assert_eq!(*results.borrow(), [("first", None), ("second", None), ("third", None)]);
    let read = |number: u64| Call::Read(number * 512, vec![512]);
    assert_eq!(probe.take_calls(), [Call::DrainedEnd, read(0), read(1), read(2)]);
}

#[test]
fn c76_a_drain_waits_for_what_is_in_flight_and_holds_what_comes() {
    let (ctx, backend, probe) = scene();
    probe.set_holds(true);
    let results = Results::default();
    let done = note(&results, "before");
    backend.aio_preadv(&ctx, 0, vec![0; 512], |_, result, _| done(result));

    let section: Rc<RefCell<Option<DrainedSection>>> = Rc::default();
    let (drained, drainer) = (Rc::clone(&section), backend.clone());
    ctx.spawn("drain", move |co| *drained.borrow_mut() = drainer.co_drain(co));
    let done = note(&results, "during");
    backend.aio_preadv(&ctx, 512, vec![0; 512], |_, result, _| done(result));
    while ctx.try_poll() {}
    assert!(section.borrow().is_none(), "drained with a request in flight");
    assert_eq!(probe.held(), 1);

    probe.release();
    ctx.run_until(|| section.borrow().is_some());
    assert_eq!(*results.borrow(), [("before", None)]);
    assert_eq!((probe.held(), backend.in_flight()), (0, 0));

    probe.set_holds(false);
    drop(section.take());
    ctx.run_until(|| results.borrow().len() == 2);
    assert_eq!(*results.borrow(), [("before", None), ("during", None)]);
}

#[test]
fn c76_a_callback_that_panics_takes_no_other_request_along() {
    let (ctx, backend, _) = scene();
    let section = backend.drain(&ctx);
    let results = Results::default();
    let done = note(&results, "first");
    backend.aio_preadv(&ctx, 0, vec![0; 512], |_, result, _| done(result));
    backend.aio_preadv(&ctx, 0, vec![0; 512], |_, _, _| panic!("a bug in a callback"));
    for name in ["third", "fourth"] {
        let done = note(&results, name);
        backend.aio_preadv(&ctx, 0, vec![0; 512], |_, result, _| done(result));
    }
    let end = std::panic::AssertUnwindSafe(|| drop(section));
    std::panic::catch_unwind(end).expect_err("the callback's panic goes on");
    while ctx.try_poll() {}
    assert_eq!(*results.borrow(), [("first", None), ("third", None), ("fourth", None)]);
    assert_eq!(backend.in_flight(), 0);
}

#[test]
fn c77_drains_nest_and_hooks_run_at_the_first_begin_and_the_last_end() {
    let (ctx, backend, probe) = scene();
    let sections: Vec<_> = (0..3).map(|_| backend.drain(&ctx)).collect();
    assert_eq!(probe.take_calls(), [Call::DrainedBegin]);
    // In the order of their making: the ends need not nest.
    let mut sections = sections.into_iter();
    drop((sections.next(), sections.next()));
    assert_eq!(probe.take_calls(), []);
    drop(sections.next());
    assert_eq!(probe.take_calls(), [Call::DrainedEnd]);

    drop(backend.drain(&ctx));
    assert_eq!(probe.take_calls(), [Call::DrainedBegin, Call::DrainedEnd]);
}

/// What the second thread does: reads without end through a backend of its own.
fn hammer(
    node: std::sync::Arc<BlockNode>,
    stop: mpsc::Receiver<()>,
    ready: mpsc::Sender<coblk::AioHandle>,
) -> u64 {
    let ctx = AioContext::test_builder().name("second").build().expect("a context");
    let backend = BlockBackend::new(&ctx, "second", node);
    let (stopping, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0u64)));
    for _ in 0..4 {
        let (backend, stopping, done) = (backend.clone(), Rc::clone(&stopping), Rc::clone(&done));
        ctx.spawn("hammer", move |co| {
            while !stopping.get() {
                read(&backend, co, 0, 512).expect("a read within the device");
                done.set(done.get() + 1);
                co.yield_now();
            }
        });
    }
    ready.send(ctx.handle()).expect("the test waits");
    while stop.try_recv().is_err() {
        ctx.poll();
    }
    stopping.set(true);
    while !ctx.coroutines().is_empty() {
        ctx.poll();
    }
    done.get()
}

#[test]
fn c77_a_drain_holds_for_requests_from_another_thread() {
    let (ctx, backend, probe) = scene();
    let node = backend.node().expect("a medium");
    let (stop, stopped) = mpsc::channel();
    let (ready, is_ready) = mpsc::channel();
    let second = std::thread::spawn(move || hammer(node, stopped, ready));
    let handle = is_ready.recv().expect("the second thread starts");
    for _ in 0..50 {
        let outer = backend.drain(&ctx);
        probe.set_quiet(true);
        // The other loop goes round several times meanwhile.
        for _ in 0..3 {
            let (seen, is_seen) = mpsc::channel();
            handle.schedule(move |_| seen.send(()).expect("the test waits"));
            is_seen.recv().expect("the second loop turns");
        }
        drop(backend.drain(&ctx));
        probe.set_quiet(false);
        let before = probe.count_calls();
        drop(outer);
        // They go on.
        while probe.count_calls() < before + 10 {
            ctx.try_poll();
            std::thread::yield_now();
        }
    }
    stop.send(()).expect("the second thread runs");
    handle.notify();
    let reads = second.join().expect("the second thread ends well");
    assert_eq!(probe.violations(), 0, "requests during a drain");
    let calls = probe.take_calls();
    let seen = calls.iter().filter(|call| matches!(call, Call::Read(..))).count() as u64;
    assert_eq!(reads, seen, "reads that ended well, and reads that the driver saw");
}

#[test]
fn c77_drains_of_two_threads_nest() {
    let (ctx, backend, probe) = scene();
    let node = backend.node().expect("a medium");
    let second = std::thread::spawn(move || {
        let ctx = AioContext::for_test().expect("a context");
        let backend = BlockBackend::new(&ctx, "second", node);
        for _ in 0..200 {
            let section = backend.drain(&ctx);
            let results = Results::default();
            let done = note(&results, "second");
            backend.aio_preadv(&ctx, 0, vec![0; 512], |_, result, _| done(result));
            assert!(!ctx.try_poll() || results.borrow().is_empty());
            drop(section);
            ctx.run_until(|| !results.borrow().is_empty());
        }
    });
    let mut drains = 0;
    while !second.is_finished() {
        drop(backend.drain(&ctx));
        ctx.run(|co| read(&backend, co, 0, 512)).expect("a read within the device");
        drains += 1;
    }
    second.join().expect("the second thread ends well");
    assert!(drains > 0);
    let hooks = probe.take_calls().into_iter();
    let hooks: Vec<Call> = hooks.filter(|call| !matches!(call, Call::Read(..))).collect();
    let turns = hooks.chunks(2).all(|pair| pair == [Call::DrainedBegin, Call::DrainedEnd]);
    assert!(turns, "begins and ends do not take turns: {hooks:?}");
}

#[test]
fn c78_a_coroutine_may_drain() {
    let (ctx, backend, probe) = scene();
    probe.set_holds(true);
    let results = Results::default();
    let done = note(&results, "in flight");
    backend.aio_preadv(&ctx, 0, vec![0; 512], |_, result, _| done(result));
    let (release, seen) = (probe.clone(), Rc::clone(&results));
    ctx.schedule(move |_| release.release());
    ctx.run(|co| {
        let section = backend.co_drain(co);
        assert_eq!(seen.borrow().len(), 1, "drained with a request in flight");
        let nested = backend.co_drain(co);
        drop((section, nested));
    });
    let expected = [Call::Read(0, vec![512]), Call::DrainedBegin, Call::DrainedEnd];
    assert_eq!(probe.take_calls(), expected);
    // It goes on working.
    probe.set_holds(false);
    ctx.run(|co| read(&backend, co, 0, 512)).expect("a read within the device");
}

#[test]
fn c78_a_drain_does_not_flush() {
    let (ctx, backend, probe) = scene();
    let data = [7; 512];
    let written = backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), WriteFlags::empty());
    written.expect("a write within the device");
    drop(backend.drain(&ctx));
    ctx.run(|co| drop(backend.co_drain(co)));
    assert!(!probe.take_calls().contains(&Call::Flush));
}

#[test]
fn a_drain_outlives_a_context_that_ends_meanwhile() {
    // What happened: a drain asks every context with a backend on the node to pass through its
    // loop. If that context was ending, it threw the question away, and with it the waker, so the
    // draining coroutine panicked: "its waker was dropped".
    let (ctx, backend, _) = scene();
    let node = backend.node().expect("a medium");
    let (ending, is_ending) = mpsc::channel();
    let (asked, is_asked) = mpsc::channel::<()>();
    let second = std::thread::spawn(move || {
        struct AtTheEnd(mpsc::Sender<()>, mpsc::Receiver<()>);
        impl Drop for AtTheEnd {
            fn drop(&mut self) {
                self.0.send(()).expect("the test waits");
                self.1.recv().expect("the drain asks");
            }
        }
        let ctx = AioContext::for_test().expect("a context");
        let backend = BlockBackend::new(&ctx, "second", node);
        let at_the_end = AtTheEnd(ending, is_asked);
        ctx.spawn("unwound at the end", move |co| {
            let _at_the_end = at_the_end;
            co.suspend_with(std::mem::forget);
        });
        // The context ends before its backend.
        drop(ctx);
        drop(backend);
    });
    is_ending.recv().expect("the second context ends");
    let drained = Rc::new(Cell::new(false));
    let (in_coroutine, backend) = (Rc::clone(&drained), backend.clone());
    ctx.spawn("drain", move |co| {
        drop(backend.co_drain(co));
        in_coroutine.set(true);
    });
    assert!(!drained.get(), "the drain did not ask the other context");
    asked.send(()).expect("the second context waits");
    ctx.run_until(|| drained.get());
    second.join().expect("the second thread ends well");
}
