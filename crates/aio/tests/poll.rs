//! Contract lines 40 to 43: one poll of the loop. Line 42, that only the home thread polls, is kept
//! by the type: see the `compile_fail` test of `AioContext`.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use coblk_aio::{AioContext, EventNotifier, WaitMode};
use util::{Log, Recorder, panic_message, watchdog};

#[test]
fn c40_bottom_halves_then_descriptor_handlers_then_timers() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let notifier = EventNotifier::new().unwrap();
    let [for_timer, for_fd, for_bh] = [log.clone(), log.clone(), log.clone()];
    let timer = ctx.timer(move |_| for_timer.add("timer"));
    let _handler = ctx.event_handler(&notifier, move |_| for_fd.add("handler")).unwrap();
    let bh = ctx.bottom_half("c40", move |_| for_bh.add("bottom half"));
    timer.arm_at_ns(-1);
    notifier.set().unwrap();
    bh.schedule();
    assert!(ctx.poll());
    assert_eq!(log.take(), ["bottom half", "handler", "timer"]);
}

#[test]
fn c40_notifications_are_accepted_before_the_bottom_halves() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let handle = ctx.handle();
    let bh = ctx.bottom_half("c40", move |_| handle.notify());
    bh.schedule();
    assert!(ctx.poll());
    // The notification came after they were accepted, so it is still there.
    assert!(!ctx.poll());
}

#[test]
fn c40_what_was_deleted_is_not_called_in_the_same_poll() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let notifier = EventNotifier::new().unwrap();
    let for_fd = log.clone();
    let handler = ctx.event_handler(&notifier, move |_| for_fd.add("handler")).unwrap();
    let timer = Rc::new(ctx.timer({
        let log = log.clone();
        move |_| log.add("timer")
    }));
    timer.arm_at_ns(0);
    notifier.set().unwrap();
    ctx.schedule({
        let timer = Rc::clone(&timer);
        move |_| {
            drop(handler);
            timer.cancel();
        }
    });
    assert!(ctx.try_poll());
    assert!(!ctx.try_poll());
    assert!(log.take().is_empty());
}

#[test]
fn c41_progress_is_a_bottom_half_a_handler_or_a_timer() {
    let ctx = AioContext::for_test().unwrap();
    assert!(!ctx.try_poll());
    ctx.schedule(|_| ());
    assert!(ctx.try_poll());
    assert!(!ctx.try_poll());
    let notifier = EventNotifier::new().unwrap();
    let _handler = ctx.event_handler(&notifier, |_| ()).unwrap();
    assert!(!ctx.try_poll());
    notifier.set().unwrap();
    assert!(ctx.try_poll());
    assert!(!ctx.try_poll());
    let timer = ctx.timer(|_| ());
    timer.arm_at_ns(0);
    assert!(ctx.try_poll());
    assert!(!ctx.try_poll());
    ctx.handle().notify();
    assert!(!ctx.poll(), "a notification is none");
}

#[test]
fn c41_a_poll_that_timed_out_made_no_progress() {
    let ctx = AioContext::for_test().unwrap();
    assert!(!ctx.poll_timeout(Duration::from_micros(50)));
    ctx.schedule(|_| ());
    assert!(ctx.poll_timeout(Duration::from_secs(1000)));
}

#[test]
fn c43_a_notify_before_it_blocks_makes_it_not_block() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let handle = ctx.handle();
    thread::spawn(move || handle.notify()).join().unwrap();
    assert!(!ctx.poll());
}

#[test]
fn c43_an_awake_loop_is_not_notified_through_the_kernel() {
    let ctx = AioContext::for_test().unwrap();
    let recorder = Recorder::new();
    let (bh, handle) = (ctx.bottom_half("c43", |_| ()), ctx.handle());
    let remote = bh.remote();
    let on_thread = recorder.clone();
    thread::spawn(move || {
        on_thread.record(|| {
            for _ in 0..100 {
                remote.schedule();
                handle.schedule(|_| ());
                handle.notify();
            }
        });
    })
    .join()
    .unwrap();
    assert!(recorder.containing("aio_notify").is_empty());
    assert!(ctx.poll());
}

#[test]
fn c43_of_many_who_notify_a_sleeper_one_writes() {
    const THREADS: usize = 4;
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let notifies = Recorder::new();
    // The threads act between the loop's announcement that it sleeps and its sleep.
    let barrier = Arc::new(Barrier::new(THREADS + 1));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (barrier, notifies) = (Arc::clone(&barrier), notifies.clone());
            let (handle, remote) = (ctx.handle(), ctx.bottom_half("c43", |_| ()).remote());
            thread::spawn(move || {
                notifies.record(|| {
                    barrier.wait();
                    handle.notify();
                    remote.schedule();
                    barrier.wait();
                });
            })
        })
        .collect();
    let sleeps = Arc::new(AtomicUsize::new(0));
    let recorder = Recorder::with_hook({
        let sleeps = Arc::clone(&sleeps);
        move |event| {
            if event == "aio_sleep" && sleeps.fetch_add(1, Ordering::Relaxed) == 0 {
                barrier.wait();
                barrier.wait();
            }
        }
    });
    recorder.record(|| ctx.poll());
    assert_eq!(sleeps.load(Ordering::Relaxed), 1, "the loop did announce its sleep");
    assert_eq!(notifies.containing("aio_notify").len(), 1);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn c43_a_sleeping_loop_is_woken_by_work_from_another_thread() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let (about_to_sleep, wait_for_sleep) = channel();
    let handle = ctx.handle();
    let thread = thread::spawn(move || {
        wait_for_sleep.recv().unwrap();
        handle.schedule(|_| ());
    });
    let recorder = Recorder::with_hook(move |event| {
        if event == "aio_sleep" {
            let _ = about_to_sleep.send(());
        }
    });
    recorder.record(|| assert!(ctx.poll()));
    thread.join().unwrap();
}

#[test]
fn an_idle_loop_does_not_wake_up() {
    let ctx = AioContext::for_test().unwrap();
    let recorder = Recorder::new();
    let timer = ctx.timer(|_| ());
    timer.arm_after(Duration::from_millis(30));
    // One sleep, which the timer ends: no poll in between.
    recorder.record(|| assert!(ctx.poll()));
    assert!(recorder.containing("aio_sleep").len() <= 1);
}

#[test]
fn nested_polls_in_bottom_halves_handlers_and_timers() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let [a, b] = [EventNotifier::new().unwrap(), EventNotifier::new().unwrap()];
    let depth = Rc::new(Cell::new(0));
    let _handlers = [(&a, "first"), (&b, "second")].map(|(notifier, name)| {
        let (log, depth) = (log.clone(), Rc::clone(&depth));
        notifier.set().unwrap();
        let handler = ctx.event_handler(notifier, move |ctx| {
            depth.set(depth.get() + 1);
            log.add(format!("{name} at depth {}", depth.get()));
            // Finds the other's event, which the outer poll has already collected.
            assert_eq!(
                if depth.get() == 1 { ctx.poll() } else { ctx.try_poll() },
                depth.get() == 1
            );
            depth.set(depth.get() - 1);
        });
        handler.unwrap()
    });
    assert!(ctx.poll());
    let said = log.take();
    assert_eq!(said.len(), 2);
    assert!(said[0].ends_with("depth 1") && said[1].ends_with("depth 2"), "{said:?}");

    let timers: Rc<Vec<_>> = Rc::new(
        (0..3)
            .map(|index| {
                let log = log.clone();
                ctx.timer(move |ctx| {
                    log.add(format!("timer {index} begins"));
                    ctx.try_poll();
                    log.add(format!("timer {index} ends"));
                })
            })
            .collect(),
    );
    timers.iter().for_each(|timer| timer.arm_at_ns(0));
    assert!(ctx.poll());
    let expected = [
        "timer 0 begins",
        "timer 1 begins",
        "timer 2 begins",
        "timer 2 ends",
        "timer 1 ends",
        "timer 0 ends",
    ];
    assert_eq!(log.take(), expected);
}

#[test]
fn a_panic_in_a_handler_or_timer_leaves_the_rest() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let [a, b] = [EventNotifier::new().unwrap(), EventNotifier::new().unwrap()];
    let _handlers = [&a, &b].map(|notifier| {
        let log = log.clone();
        notifier.set().unwrap();
        let handler = ctx.event_handler(notifier, move |_| {
            log.add("handler");
            assert!(log.take().is_empty(), "handler fails");
        });
        handler.unwrap()
    });
    let timers = ["one", "two"].map(|name| {
        let log = log.clone();
        ctx.timer(move |_| {
            log.add(name);
            panic!("timer fails");
        })
    });
    timers.iter().for_each(|timer| timer.arm_at_ns(0));
    assert!(panic_message(|| ctx.try_poll()).contains("handler fails"));
    assert!(panic_message(|| ctx.try_poll()).contains("handler fails"));
    assert!(panic_message(|| ctx.try_poll()).contains("timer fails"));
    assert!(panic_message(|| ctx.try_poll()).contains("timer fails"));
    assert_eq!(log.take(), ["one", "two"]);
    assert!(!ctx.try_poll());
}

#[test]
fn contexts_come_and_go_in_large_numbers() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let _ = AioContext::for_test().unwrap();
    let before = open();
    for _ in 0..3_000 {
        let waker = Rc::new(Cell::new(None));
        let ctx = AioContext::for_test().unwrap();
        let slot = Rc::clone(&waker);
        ctx.spawn("waits", move |co| co.suspend_with(|waker| slot.set(Some(waker))));
        ctx.schedule(|_| ());
        ctx.try_poll();
        drop(ctx);
    }
    // Tests that run beside this one open a few.
    assert!(open() < before + 500, "descriptors leak: {before} before, {} after", open());
}

#[test]
fn a_poll_takes_any_limit() {
    let _watchdog = watchdog();
    for mode in [WaitMode::Epoll, WaitMode::Ring] {
        let ctx = AioContext::test_builder().wait_mode(mode).build().unwrap();
        let (handle, (tell, told)) = (ctx.handle(), std::sync::mpsc::channel::<()>());
        let own = std::fs::read_link("/proc/thread-self").unwrap();
        let status = std::path::Path::new("/proc").join(own).join("status");
        let thread = thread::spawn(move || {
            told.recv().unwrap();
            // By now it sleeps for good, or has come back.
            let sleeps = || std::fs::read_to_string(&status).unwrap().contains("State:\tS");
            util::until(|| (0..50).all(|_| sleeps()));
            handle.schedule(|_| ());
        });
        let recorder = Recorder::with_hook(move |name| {
            if name == "aio_sleep" {
                tell.send(()).unwrap();
            }
        });
        assert!(recorder.record(|| ctx.poll_timeout(Duration::MAX)), "{mode:?}");
        thread.join().unwrap();
    }
}

#[test]
fn a_loop_gives_back_the_memory_of_stacks_that_were_not_needed_for_a_while() {
    let _watchdog = watchdog();
    for mode in [WaitMode::Epoll, WaitMode::Ring] {
        let ctx = AioContext::test_builder().wait_mode(mode).build().unwrap();
        ctx.run(|co| co.yield_now());
        assert!(coblk_coroutine::has_idle_memory());
        let handle = ctx.handle();
        let recorder = Recorder::with_hook(move |name| {
            if name == "aio_release_idle_memory" {
                handle.notify();
            }
        });
        // It sleeps without a limit, so nothing but its own patience ends that.
        recorder.record(|| ctx.poll());
        assert_eq!(recorder.containing("aio_sleep timeout_ns").len(), 0, "{mode:?}");
        assert_eq!(recorder.containing("aio_release_idle_memory").len(), 1, "{mode:?}");
    }
}

#[test]
fn a_limited_sleep_is_ended_when_stacks_were_not_needed_for_a_while() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    ctx.run(|co| co.yield_now());
    let recorder = Recorder::new();
    recorder.record(|| ctx.poll_timeout(Duration::from_hours(1)));
    assert_eq!(recorder.containing("aio_release_idle_memory").len(), 0);
    recorder.record(|| ctx.poll_timeout(Duration::from_millis(1)));
    assert_eq!(recorder.containing("aio_release_idle_memory").len(), 1);
}

#[test]
fn a_loop_that_needs_its_stacks_sleeps_without_a_limit() {
    let _watchdog = watchdog();
    for mode in [WaitMode::Epoll, WaitMode::Ring] {
        let ctx = AioContext::test_builder().wait_mode(mode).build().unwrap();
        let (sleeps, slept) = channel();
        let recorder = Recorder::with_hook(move |name| {
            if name == "aio_sleep" {
                sleeps.send(()).unwrap();
            }
        });
        let slept = Rc::new(RefCell::new(Some(slept)));
        // An idle stack, besides the one that is used each time.
        ctx.spawn("leaves its stack", |co| co.yield_now());
        ctx.run(|co| co.yield_now());
        assert!(coblk_coroutine::has_idle_memory());
        let start = Instant::now();
        recorder.record(|| {
            for _ in 0..100 {
                ctx.run(|co| {
                    let told = slept.take().unwrap();
                    let told = co.context().thread_pool().submit_co(co, || {
                        told.recv().unwrap();
                        told
                    });
                    slept.replace(Some(told));
                });
            }
        });
        assert!(recorder.containing("aio_sleep").len() >= 100);
        assert_eq!(recorder.containing("aio_sleep timeout_ns").len(), 0, "{mode:?}");
        let armings = recorder.containing("aio_arm_idle_timer").len() as u64;
        assert!((1..=2 + start.elapsed().as_secs()).contains(&armings), "{mode:?}: {armings}");
    }
}
