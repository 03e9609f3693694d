//! A context as a guest in another loop, which waits for its descriptor: mio's, and poll(2).

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use coblk_aio::{AioContext, FdInterest, IoVectorMut, SimulationOptions, WaitMode};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::util;
use crate::util::{Recorder, watchdog};

/// The other loop: mio's.
struct Outer {
    poll: Poll,
    events: Events,
}

impl Outer {
    fn new(ctx: &AioContext) -> Outer {
        let poll = Poll::new().unwrap();
        let fd = ctx.as_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
        Outer { poll, events: Events::with_capacity(8) }
    }

    fn turn(&mut self, ctx: &AioContext) {
        let wait = ctx.prepare_wait();
        match self.poll.poll(&mut self.events, wait.timeout()) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => panic!("{error}"),
            _ => {}
        }
        drop(wait);
        ctx.try_poll();
    }
}

/// Whether the context's descriptor is readable now, by poll(2).
fn is_readable(ctx: &AioContext) -> bool {
    wait_with_poll(ctx, Some(Duration::ZERO))
}

fn wait_with_poll(ctx: &AioContext, timeout: Option<Duration>) -> bool {
    let fd = ctx.as_fd().as_raw_fd();
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let timeout_ms = timeout.map_or(-1, |timeout| timeout.as_nanos().div_ceil(1_000_000) as i32);
    // SAFETY: one valid entry.
    let result = unsafe { libc::poll(&mut entry, 1, timeout_ms) };
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result == 1
}

#[test]
fn the_outer_loop_is_woken_to_give_back_the_memory_of_idle_stacks() {
    let _alive = watchdog();
    let ctx = AioContext::for_test().unwrap();
    ctx.run(|co| co.yield_now());
    let mut outer = Outer::new(&ctx);
    let handle = ctx.handle();
    let recorder = Recorder::with_hook(move |name| {
        if name == "aio_release_idle_memory" {
            handle.notify();
        }
    });
    recorder.record(|| {
        while recorder.containing("aio_release_idle_memory").is_empty() {
            outer.turn(&ctx);
        }
    });
}

#[test]
fn another_thread_wakes_the_outer_loop() {
    let _alive = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let mut outer = Outer::new(&ctx);
    let seen = Arc::new(AtomicUsize::new(0));
    let (handle, theirs) = (ctx.handle(), Arc::clone(&seen));
    let (answer, answers) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for number in 1..=1000 {
            let (seen, answer) = (Arc::clone(&theirs), answer.clone());
            handle.schedule(move |_| {
                seen.store(number, Ordering::Relaxed);
                answer.send(number).unwrap();
            });
            // The next one comes when the loop is on its way to sleep, or sleeps.
            assert_eq!(answers.recv(), Ok(number));
        }
    });
    while seen.load(Ordering::Relaxed) < 1000 {
        outer.turn(&ctx);
    }
    thread.join().unwrap();
}

#[test]
fn a_wait_that_was_answered_leaves_nothing_readable() {
    let _alive = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let handle = ctx.handle();
    for _ in 0..2 {
        let wait = ctx.prepare_wait();
        assert_eq!(wait.timeout(), None);
        assert!(!is_readable(&ctx));
        std::thread::scope(|scope| {
            scope.spawn(|| handle.notify());
        });
        assert!(wait_with_poll(&ctx, None));
        drop(wait);
        assert!(!is_readable(&ctx));
    }
}

#[test]
fn what_came_before_the_wait_is_not_waited_for() {
    let ctx = AioContext::for_test().unwrap();
    ctx.handle().notify();
    assert_eq!(ctx.prepare_wait().timeout(), Some(Duration::ZERO));
    assert_eq!(ctx.prepare_wait().timeout(), None, "accepted by the drop");
    ctx.schedule(|_| ());
    assert_eq!(ctx.prepare_wait().timeout(), Some(Duration::ZERO));
    ctx.try_poll();
    let handle = ctx.handle();
    std::thread::spawn(move || handle.schedule(|_| ())).join().unwrap();
    assert_eq!(ctx.prepare_wait().timeout(), Some(Duration::ZERO));
}

#[test]
fn timers_limit_the_wait() {
    let _alive = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let mut outer = Outer::new(&ctx);
    let timer = ctx.timer(|_| ());
    let start = Instant::now();
    timer.arm_after(Duration::from_millis(20));
    let limit = ctx.prepare_wait().timeout().expect("a timer is armed");
    assert!(limit <= Duration::from_millis(20));
    while timer.is_armed() {
        outer.turn(&ctx);
    }
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn descriptors_workers_and_coroutines_go_on() {
    let _alive = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let mut outer = Outer::new(&ctx);
    let (reader, mut writer) = io::pipe().unwrap();
    let got = Rc::new(Cell::new(0));
    let seen = Rc::clone(&got);
    let own = reader.try_clone().unwrap();
    let _handler = ctx
        .fd_handler(own, FdInterest::Read, move |_, _| {
            let mut byte = [0];
            // Once more when the writer has gone.
            if (&reader).read(&mut byte).unwrap() == 1 {
                seen.set(byte[0]);
            }
        })
        .map_err(|error| panic!("{error}"));
    let sum = ctx.spawn_join("sum", move |co| {
        co.context().thread_pool().submit_co(co, move || {
            writer.write_all(&[7]).unwrap();
            35
        })
    });
    while !sum.is_finished() || got.get() == 0 {
        outer.turn(&ctx);
    }
    assert_eq!(sum.wait().unwrap() + u32::from(got.get()), 42);
}

#[test]
fn completions_of_the_ring_end_the_wait() {
    let _alive = watchdog();
    let ctx = AioContext::test_builder().wait_mode(WaitMode::Auto).build().unwrap();
    assert!(ctx.has_ring(), "no io_uring on this system");
    let mut outer = Outer::new(&ctx);
    let (reader, mut writer) = io::pipe().unwrap();
    let read = ctx.spawn_join("reads", move |co| {
        let mut buffer = [0; 3];
        for _ in 0..3 {
            let mut target = IoVectorMut::from(&mut buffer[..]);
            assert_eq!(co.ring_preadv(reader.as_fd(), &mut target, 0).unwrap(), 3);
        }
        buffer
    });
    let (turn, turns) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for text in [b"one", b"two", b"six"] {
            turns.recv().unwrap();
            writer.write_all(text).unwrap();
        }
    });
    for _ in 0..3 {
        // Queued by now, and submitted by the wait.
        let _ = turn.send(());
        outer.turn(&ctx);
    }
    while !read.is_finished() {
        outer.turn(&ctx);
    }
    assert_eq!(read.wait(), Ok(*b"six"));
    thread.join().unwrap();
    // The context's own wait goes on with it.
    assert_eq!(ctx.run(|co| co.context().thread_pool().submit_co(co, || 1)), 1);
    // The worker may have called once more than was needed. That is no event, for which a poll would wait.
    while is_readable(&ctx) {
        ctx.try_poll();
    }
    let wait = ctx.prepare_wait();
    assert_eq!(wait.timeout(), None);
    assert!(!is_readable(&ctx));
}

#[test]
fn a_simulated_context_never_waits() {
    let builder = AioContext::test_builder().simulated(SimulationOptions::new(1));
    let ctx = builder.build().unwrap();
    assert_eq!(ctx.prepare_wait().timeout(), Some(Duration::ZERO));
}

#[test]
fn a_coroutine_cannot_wait_for_its_own_loop() {
    let ctx = AioContext::for_test().unwrap();
    let message = util::panic_message(|| ctx.run(|co| drop(co.context().prepare_wait())));
    assert!(message.contains("inside a coroutine"), "{message}");
}
