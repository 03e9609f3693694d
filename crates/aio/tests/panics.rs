//! Panics of what a loop runs: each kind, with either policy, and what comes behind it.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::sync::{CoMutex, TaskPool};
use coblk_aio::{AioContext, BusyPoll, EventNotifier, FdInterest, IoThread, PanicPolicy};

use crate::util;
use crate::util::{Log, OnDrop, Recorder, Slot, context, panic_message, settle, watchdog};

fn reporting() -> AioContext {
    AioContext::new().unwrap()
}

/// The reports of one run that contain `what`.
fn reports(recorder: &Recorder, what: &str) -> usize {
    let all = recorder.containing("a panic: the loop goes on");
    all.iter().filter(|event| event.contains(what)).count()
}

#[test]
fn the_loop_goes_on_behind_whatever_panics() {
    let _watchdog = watchdog();
    let recorder = Recorder::new();
    recorder.record(|| {
        let (ctx, log) = (reporting(), Log::new());
        let add = |what: &'static str| {
            let log = log.clone();
            move || log.add(what)
        };
        let behind = add("bottom half");
        let bhs = [
            ctx.bottom_half("bad half", |_| panic!("one")),
            ctx.bottom_half("good", move |_| behind()),
        ];
        bhs.iter().for_each(|bh| bh.schedule());
        ctx.schedule(|_| panic!("two"));
        let behind = add("closure");
        ctx.schedule(move |_| behind());
        let timers = [ctx.timer(|_| panic!("three")), {
            let behind = add("timer");
            ctx.timer(move |_| behind())
        }];
        timers.iter().for_each(|timer| timer.arm_at_ns(0));
        let notifiers = [EventNotifier::new().unwrap(), EventNotifier::new().unwrap()];
        let behind = add("handler");
        let _handlers = [
            ctx.event_handler(&notifiers[0], |_| panic!("four")).unwrap(),
            ctx.event_handler(&notifiers[1], move |_| behind()).unwrap(),
        ];
        notifiers.iter().for_each(|notifier| notifier.set().unwrap());
        assert!(ctx.poll());
        assert_eq!(log.take(), ["bottom half", "closure", "handler", "timer"]);
        assert!(!ctx.try_poll());
    });
    for (culprit, message) in [
        ("bottom half 'bad half'", "one"),
        ("a scheduled callback", "two"),
        ("a timer", "three"),
        ("the handler of descriptor", "four"),
    ] {
        let found = recorder.containing(culprit);
        assert!(found.len() == 1 && found[0].contains(message), "{culprit}: {found:?}");
    }
}

#[test]
fn a_panic_of_a_coroutine_reaches_neither_its_spawner_nor_its_waker() {
    let recorder = Recorder::new();
    recorder.record(|| {
        let (ctx, slot) = (reporting(), Slot::default());
        ctx.spawn("at once", |_| panic!("before it suspends"));
        let own = slot.clone();
        ctx.spawn("later", move |co| {
            own.wait(co);
            panic!("after it was woken");
        });
        slot.take().wake();
        let own = slot.clone();
        ctx.spawn("in another's", move |co| {
            own.wait(co);
            panic!("woken by a coroutine");
        });
        assert_eq!(ctx.run(|_| slot.take().wake()), ());
        assert!(ctx.coroutines().is_empty());
    });
    for name in ["at once", "later", "in another's"] {
        assert_eq!(reports(&recorder, &format!("coroutine '{name}'")), 1);
    }
}

#[test]
fn a_panic_of_a_job_is_told_to_its_callback() {
    let _watchdog = watchdog();
    let recorder = Recorder::new();
    recorder.record(|| {
        let (ctx, log) = (reporting(), Log::new());
        let (told, done) = (log.clone(), Rc::new(Cell::new(0)));
        let (first, second) = (Rc::clone(&done), Rc::clone(&done));
        let fails = || panic!("job fails");
        ctx.thread_pool().submit_aio(&ctx, fails, move |_, result: std::io::Result<()>| {
            told.add(result.unwrap_err().to_string());
            first.set(first.get() + 1);
            panic!("callback fails");
        });
        let count = move |_: &AioContext, _| second.set(second.get() + 1);
        ctx.thread_pool().submit_aio(&ctx, || (), count);
        ctx.run_until(|| done.get() == 2);
        assert_eq!(log.take(), ["the job panicked: job fails"]);
    });
    assert!(reports(&recorder, "callback fails") == 1);
}

#[test]
fn a_loop_that_stops_has_lost_nothing() {
    let ctx = AioContext::builder().on_panic(PanicPolicy::Stop).build().unwrap();
    let (log, slot) = (Log::new(), Slot::default());
    for name in ["first", "second"] {
        let log = log.clone();
        ctx.schedule(move |_| {
            log.add(name);
            panic!("{name} fails");
        });
    }
    let (own, said) = (slot.clone(), log.clone());
    ctx.spawn("coroutine", move |co| {
        own.wait(co);
        said.add("coroutine");
        panic!("coroutine fails");
    });
    for name in ["first", "second"] {
        assert_eq!(panic_message(|| ctx.try_poll()), format!("{name} fails"));
    }
    let waker = slot.take();
    ctx.schedule(move |_| waker.wake());
    assert_eq!(panic_message(|| ctx.try_poll()), "coroutine fails");
    assert!(!ctx.try_poll());
    assert_eq!(log.take(), ["first", "second", "coroutine"]);
}

/// Panics when it is asked as many times as it says; has work once.
struct Faulty {
    faults: Cell<u32>,
    ready: Rc<Cell<u32>>,
    begun: Rc<Cell<i32>>,
}

impl BusyPoll for Faulty {
    fn is_busy(&self, _: &AioContext) -> bool {
        let left = self.faults.get();
        self.faults.set(left.saturating_sub(1));
        assert_eq!(left, 0, "asked");
        false
    }
    fn ready(&self, _: &AioContext) {
        self.ready.set(self.ready.get() + 1);
    }
    fn begin(&self, _: &AioContext) {
        self.begun.set(self.begun.get() + 1);
    }
    fn end(&self, _: &AioContext) {
        self.begun.set(self.begun.get() - 1);
    }
}

#[test]
fn a_busy_poll_hook_that_panics_is_let_go_and_its_work_done_once() {
    let _watchdog = watchdog();
    let recorder = Recorder::new();
    let (ready, begun) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    recorder.record(|| {
        let ctx = AioContext::builder().poll_max(Duration::from_secs(1)).build().unwrap();
        // A little wait teaches it to look.
        while ctx.poll_time().is_zero() {
            ctx.poll_timeout(Duration::from_micros(50));
        }
        let notifier = Rc::new(EventNotifier::new().unwrap());
        let faulty = Faulty {
            faults: Cell::new(u32::MAX),
            ready: Rc::clone(&ready),
            begun: Rc::clone(&begun),
        };
        let own = Rc::clone(&notifier);
        let callback = move |_: &AioContext, _| drop(own.test_and_clear());
        let handler = ctx.polled_fd_handler(&*notifier, FdInterest::Read, callback, faulty);
        let _handler = handler.unwrap();
        notifier.set().unwrap();
        ctx.run_until(|| ready.get() == 1);
        settle(&ctx);
        ctx.poll_timeout(Duration::from_micros(100));
        assert_eq!((ready.get(), begun.get()), (1, 0));
    });
    assert_eq!(reports(&recorder, "a busy-poll hook"), 1);
}

#[test]
fn a_task_pool_says_that_a_task_has_panicked() {
    let ctx = reporting();
    let message = panic_message(|| {
        ctx.run(|co| {
            let pool = TaskPool::<()>::new(2);
            pool.start(co, "fails", |co| {
                co.yield_now();
                panic!("task fails");
            });
            pool.start(co, "does not", |_| Ok(()));
            pool.wait_all(co)
        })
    });
    assert_eq!(message, "a task has panicked: task fails");
}

#[test]
fn the_time_of_a_turn_does_not_stand_still_after_a_panic() {
    let ctx = AioContext::for_test().unwrap();
    let first_ns = Rc::new(Cell::new(0));
    let seen = Rc::clone(&first_ns);
    ctx.schedule(move |ctx| {
        seen.set(ctx.turn_ns());
        panic!("after it has asked");
    });
    panic_message(|| ctx.try_poll());
    while ctx.now_ns() == first_ns.get() {}
    assert!(ctx.turn_ns() > first_ns.get());
}

#[test]
fn a_guard_that_a_panic_drops_does_not_run_the_next_owner_inside_of_it() {
    let (ctx, mutex) = (reporting(), Rc::new(CoMutex::new(())));
    let ran = Rc::new(Cell::new(false));
    let guard = mutex.try_lock().unwrap();
    let (next, seen) = (Rc::clone(&mutex), Rc::clone(&ran));
    ctx.spawn("next owner", move |co| {
        let _guard = next.lock(co);
        seen.set(!std::thread::panicking());
        panic!("of the next owner");
    });
    let caught = catch_unwind(AssertUnwindSafe(move || {
        let _guard = guard;
        panic!("of the owner");
    }));
    assert!(caught.is_err() && !ran.get());
    assert!(ctx.try_poll() && ran.get());
    assert!(!mutex.is_locked());
}

#[test]
fn a_coroutine_that_catches_its_unwinding_may_suspend_again() {
    let (ctx, slot) = (reporting(), Slot::default());
    let caught = Rc::new(Cell::new(0));
    let (own, count) = (slot.clone(), Rc::clone(&caught));
    ctx.spawn("catches", move |co| {
        for way in 0..4 {
            let result = catch_unwind(AssertUnwindSafe(|| match way {
                // A waker of this suspension stays out, here and on a list.
                0 | 2 => own.wait(co),
                1 => co.yield_now(),
                _ => co.sleep(Duration::from_secs(1000)),
            }));
            // It is unwound each time, and not told off for suspending.
            let unwound = result.is_err_and(|panic| coblk_coroutine::is_forced_unwind(&*panic));
            count.set(count.get() + u32::from(unwound));
        }
    });
    drop(ctx);
    assert_eq!(caught.get(), 4);
    // The last waker of all is of no use, and does no harm.
    slot.take().wake();
}

#[test]
fn a_context_ends_alike_while_the_thread_panics() {
    let ended = Rc::new(Cell::new(0));
    let (own, slot) = (Rc::clone(&ended), Slot::default());
    let message = panic_message(move || {
        let ctx = reporting();
        ctx.spawn("catches", move |co| {
            for _ in 0..3 {
                let caught = catch_unwind(AssertUnwindSafe(|| slot.wait(co)));
                own.set(own.get() + u32::from(caught.is_err()));
            }
        });
        panic!("of the thread");
    });
    assert_eq!((message.as_str(), ended.get()), ("of the thread", 3));
    assert_eq!(Rc::strong_count(&ended), 1, "nothing is leaked");
}

#[test]
fn a_panic_of_a_destructor_at_the_end_loses_no_other() {
    let log = Log::new();
    let fails = |name: &'static str| {
        let log = log.clone();
        OnDrop(move || {
            log.add(name);
            panic!("{name} fails");
        })
    };
    let ctx = reporting();
    let keep = |what: OnDrop<_>| {
        move |_: &AioContext| {
            let _kept = &what;
        }
    };
    let bhs = ["half 1", "half 2"].map(|name| ctx.bottom_half("half", keep(fails(name))));
    let timers = ["timer 1", "timer 2"].map(|name| ctx.timer(keep(fails(name))));
    for name in ["closure 1", "closure 2"] {
        let what = fails(name);
        ctx.schedule(move |_| drop(what));
    }
    let notifier = EventNotifier::new().unwrap();
    let handlers = ["handler 1", "handler 2"]
        .map(|name| ctx.event_handler(&notifier, keep(fails(name))).unwrap());
    drop(ctx);
    let mut said = log.take();
    said.sort();
    let expected = ["closure 1", "closure 2", "half 1", "half 2", "handler 1", "handler 2"];
    assert_eq!(said[..6], expected);
    assert_eq!(said[6..], ["timer 1", "timer 2"]);
    // They may outlive their context.
    timers[0].arm_at_ns(0);
    drop((bhs, timers, handlers));
}

#[test]
fn work_that_a_dead_context_discards_is_all_discarded() {
    let ctx = context(0, 1);
    let handle = ctx.handle();
    let spawned = std::thread::spawn(move || {
        struct Fails;
        impl Drop for Fails {
            fn drop(&mut self) {
                panic!("when it is discarded");
            }
        }
        let fails = Fails;
        handle.schedule(move |_| drop(fails));
        handle.spawn("behind it", |_| ())
    });
    let spawned = spawned.join().unwrap();
    drop(ctx);
    assert_eq!(spawned.wait(), Err(coblk_aio::JoinError::ContextGone));
}

#[test]
fn an_iothread_outlives_a_panicking_callback() {
    let _watchdog = watchdog();
    let thread = IoThread::new("io").unwrap();
    thread.handle().schedule(|_| panic!("callback fails"));
    let failed = thread.handle().spawn("fails", |_| panic!("coroutine fails"));
    assert_eq!(failed.wait(), Err::<(), _>(coblk_aio::JoinError::Panicked));
    assert_eq!(thread.handle().spawn("lives", |_| 5).wait(), Ok(5));
    assert!(!thread.is_finished());
    thread.join().unwrap();
}

#[test]
fn an_iothread_that_stops_says_with_what() {
    let _watchdog = watchdog();
    let builder = AioContext::builder().on_panic(PanicPolicy::Stop);
    let thread = IoThread::with_builder("io", builder).unwrap();
    thread.handle().schedule(|_| panic!("callback fails"));
    util::until(|| thread.is_finished());
    let panic = thread.join().unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"callback fails"));
}

#[test]
fn an_iothread_may_be_dropped_on_its_own_thread() {
    let _watchdog = watchdog();
    let thread = IoThread::new("io").unwrap();
    let handle = thread.handle().clone();
    let dropped = handle.spawn("drops it", move |_| drop(thread));
    dropped.wait().unwrap();
    util::until(|| handle.is_closed());
}

#[test]
fn threads_of_ours_block_signals() {
    let _watchdog = watchdog();
    let blocked = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("SigBlk:")).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    // Of signal 1, the lowest bit, to 15.
    let [hup, int, pipe, term] = [0, 1, 12, 14].map(|bit| 1 << bit);
    let expected = hup | int | pipe | term;
    let before = blocked();
    let thread = IoThread::new("io").unwrap();
    let of_thread = thread.handle().spawn("mask", move |_| blocked()).wait().unwrap();
    assert_eq!(of_thread & expected, expected);
    let ctx = context(1, 1);
    let of_worker = ctx.run(|co| co.context().thread_pool().submit_co(co, blocked));
    assert_eq!(of_worker & expected, expected);
    assert_eq!(blocked(), before, "the caller's own are as they were");
}

/// A coroutine that polls does not hold up what its callbacks wake.
#[test]
fn what_is_woken_in_a_poll_inside_a_coroutine_runs() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let (slots, log) = ([Slot::default(), Slot::default()], Log::new());
    for (name, slot) in ["first", "second"].into_iter().zip(&slots) {
        let (slot, log) = (slot.clone(), log.clone());
        ctx.spawn(name, move |co| {
            slot.wait(co);
            log.add(name);
        });
    }
    let said = log.clone();
    ctx.run(move |co| {
        let ctx = co.context();
        let [direct, by_callback] = slots.map(|slot| slot.take());
        direct.wake();
        ctx.schedule(move |_| by_callback.wake());
        let seen = RefCell::new(Vec::new());
        ctx.run_until(|| {
            seen.borrow_mut().extend(said.take());
            seen.borrow().len() == 2
        });
        assert_eq!(*seen.borrow(), ["first", "second"]);
    });
}

#[test]
fn a_context_that_ends_inside_another_ones_coroutine_unwinds_what_was_woken_there() {
    let outer = AioContext::for_test().unwrap();
    let token = Rc::new(());
    let kept = Rc::clone(&token);
    outer.run(move |_| {
        let (inner, slot) = (AioContext::for_test().unwrap(), Slot::default());
        let own = slot.clone();
        inner.spawn("woken", move |co| {
            let _kept = kept;
            own.wait(co);
            unreachable!("its context ends before");
        });
        slot.take().wake();
        drop(inner);
    });
    assert_eq!(Rc::strong_count(&token), 1, "nothing is leaked");
}
