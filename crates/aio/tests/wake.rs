//! Contract lines 12 and 21 to 28: coroutines on a context, and waking them. Line 25 is kept by
//! `CoWaker` being consumed: see its `compile_fail` test.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use coblk_aio::{AioContext, AioHandle, CoWaker};

use crate::util::{Log, Random, Slot, panic_message, watchdog};

/// Spawns a coroutine that waits in the slot `times` and logs each time it goes on.
fn waiting(ctx: &AioContext, log: &Log, name: &'static str, times: usize) -> Slot {
    let slot = Slot::default();
    let (own, log) = (slot.clone(), log.clone());
    ctx.spawn(name, move |co| {
        for _ in 0..times {
            own.wait(co);
            log.add(co.name());
        }
    });
    slot
}

#[test]
fn c12_a_coroutine_knows_its_context() {
    let ctx = AioContext::test_builder().name("home").build().unwrap();
    let slot = Slot::default();
    let own = slot.clone();
    ctx.spawn("c12", move |co| {
        assert_eq!((co.context().name(), co.name()), ("home", "c12"));
        assert!(!co.has_suspended());
        own.wait(co);
        assert!(co.has_suspended());
        assert_eq!(co.context().name(), "home");
    });
    let ctx = Box::new(ctx); // the owner may move it
    slot.take().wake();
    drop(ctx);
}

#[test]
fn c21_a_wake_goes_to_the_context_the_coroutine_belongs_to() {
    let _watchdog = watchdog();
    let (send_waker, wakers) = channel::<CoWaker>();
    let (send_log, log) = channel();
    let owner = thread::spawn(move || {
        let ctx = AioContext::test_builder().name("owner").build().unwrap();
        ctx.run(|co| {
            let home = thread::current().id();
            co.suspend_with(|waker| send_waker.send(waker).unwrap());
            send_log
                .send((co.context().name().to_owned(), thread::current().id() == home))
                .unwrap();
        });
    });
    // Woken by a coroutine of another context, on another thread.
    let ctx = AioContext::test_builder().name("other").build().unwrap();
    ctx.run(|_| wakers.recv().unwrap().wake());
    assert_eq!(log.recv().unwrap(), ("owner".to_owned(), true));
    owner.join().unwrap();
}

#[test]
fn c22_same_context_outside_a_coroutine_it_is_entered_at_once() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let slot = waiting(&ctx, &log, "woken", 2);
    slot.take().wake();
    assert_eq!(log.take(), ["woken"]);
    // Also from a callback of the loop.
    let own = slot.clone();
    let said = log.clone();
    ctx.schedule(move |_| {
        own.take().wake();
        said.add("callback goes on");
    });
    ctx.try_poll();
    assert_eq!(log.take(), ["woken", "callback goes on"]);
}

#[test]
fn c23_same_context_inside_a_coroutine_it_is_queued() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let slots = [waiting(&ctx, &log, "first", 1), waiting(&ctx, &log, "second", 1)];
    let (pause, said) = (Slot::default(), log.clone());
    let own = pause.clone();
    ctx.spawn("waker", move |co| {
        slots[0].take().wake();
        slots[1].take().wake();
        said.add("waker suspends");
        own.wait(co);
        said.add("waker ends");
    });
    assert_eq!(log.take(), ["waker suspends", "first", "second"]);
    pause.take().wake();
    assert_eq!(log.take(), ["waker ends"]);
}

#[test]
fn c23_waking_oneself_fails_loudly() {
    let ctx = AioContext::for_test().unwrap();
    let message = panic_message(|| ctx.spawn("narcissus", |co| co.suspend_with(CoWaker::wake)));
    assert_eq!(message, "coroutine 'narcissus' tried to wake itself");
    // And does no harm: the coroutine may even go on.
    let log = Log::new();
    ctx.spawn("narcissus", {
        let log = log.clone();
        move |co| {
            assert!(catch_unwind(AssertUnwindSafe(|| co.suspend_with(CoWaker::wake))).is_err());
            co.yield_now();
            log.add("went on");
        }
    });
    assert!(ctx.try_poll());
    assert_eq!(log.take(), ["went on"]);
}

#[test]
fn c24_from_another_thread_it_runs_from_a_bottom_half_in_order() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let slots: Vec<_> =
        ["a", "b", "c", "d"].iter().map(|name| waiting(&ctx, &log, name, 1)).collect();
    let wakers: Vec<_> = [2, 0, 3, 1].iter().map(|index: &usize| slots[*index].take()).collect();
    thread::spawn(move || wakers.into_iter().for_each(CoWaker::wake)).join().unwrap();
    assert!(log.take().is_empty(), "not before a poll");
    assert!(ctx.poll());
    assert_eq!(log.take(), ["c", "a", "d", "b"]);
}

#[test]
fn c26_a_worker_threads_wake_is_served_by_one_blocking_poll() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    for _ in 0..100 {
        let waker = waiting(&ctx, &log, "woken", 1).take();
        let thread = thread::spawn(move || waker.wake());
        assert!(ctx.poll());
        assert_eq!(log.take(), ["woken"]);
        assert!(!ctx.try_poll());
        thread.join().unwrap();
    }
}

#[test]
fn c28_random_wakes_over_five_contexts_lose_no_coroutine() {
    const CONTEXTS: usize = 5;
    const ROUNDS: usize = 2_000;
    let _watchdog = watchdog();
    // Each coroutine leaves its waker in a random slot, and wakes the one that it finds there.
    let slots: Arc<Vec<Mutex<Option<CoWaker>>>> =
        Arc::new((0..CONTEXTS).map(|_| Mutex::default()).collect());
    let woken = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..CONTEXTS)
        .map(|index| {
            let (slots, woken) = (Arc::clone(&slots), Arc::clone(&woken));
            thread::spawn(move || {
                let ctx = AioContext::for_test().unwrap();
                let mut random = Random::new(index as u64 + 1);
                ctx.run(|co| {
                    for _ in 0..ROUNDS {
                        co.suspend_with(|waker| {
                            let slot = &slots[random.below(CONTEXTS)];
                            let previous = slot.lock().unwrap().replace(waker);
                            previous.into_iter().for_each(CoWaker::wake);
                        });
                        woken.fetch_add(1, Ordering::Relaxed);
                    }
                });
            })
        })
        .collect();
    // When all sleep, one of them must be woken from outside for the others to go on.
    while !threads.iter().all(thread::JoinHandle::is_finished) {
        for slot in slots.iter() {
            let waker = slot.lock().unwrap().take();
            waker.into_iter().for_each(CoWaker::wake);
        }
        thread::yield_now();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(woken.load(Ordering::Relaxed), CONTEXTS * ROUNDS);
}

#[test]
fn a_wake_from_another_thread_before_the_suspend_is_not_lost() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    ctx.run(|co| {
        for _ in 0..100 {
            co.suspend_with(|waker| thread::spawn(move || waker.wake()).join().unwrap());
        }
    });
}

#[test]
fn a_wake_served_by_a_poll_inside_register_is_not_lost() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let said = log.clone();
    ctx.spawn("polls in register", move |co| {
        co.suspend_with(|waker| {
            thread::spawn(move || waker.wake()).join().unwrap();
            assert!(co.context().poll());
        });
        said.add("woken");
        co.yield_now();
        said.add("goes on");
    });
    while ctx.try_poll() {}
    assert_eq!(log.take(), ["woken", "goes on"]);
}

#[test]
fn a_coroutine_that_is_entered_may_be_woken_by_one_that_it_spawned() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let said = log.clone();
    ctx.spawn("parent", move |co| {
        co.suspend_with(|waker| co.context().spawn("child", move |_| waker.wake()));
        said.add("parent woken");
    });
    while ctx.try_poll() {}
    assert_eq!(log.take(), ["parent woken"]);
}

#[test]
fn a_dropped_waker_is_loud() {
    let ctx = AioContext::for_test().unwrap();
    let slot = Slot::default();
    let own = slot.clone();
    ctx.spawn("orphan", move |co| own.wait(co));
    drop(slot.take());
    let expected = "coroutine 'orphan': its waker was dropped, nobody can wake it any more";
    assert_eq!(panic_message(|| ctx.try_poll()), expected);

    let own = slot.clone();
    ctx.spawn("orphan", move |co| own.wait(co));
    let waker = slot.take();
    thread::spawn(move || drop(waker)).join().unwrap();
    assert_eq!(panic_message(|| ctx.poll()), expected);

    let message = panic_message(|| ctx.spawn("orphan", |co| co.suspend_with(drop)));
    assert_eq!(message, expected, "at once, if nobody can wake it any more");
    assert!(!ctx.try_poll());
}

#[test]
fn reschedule_lets_everything_else_that_is_ready_run_first() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    for name in ["a", "b"] {
        let log = log.clone();
        ctx.spawn(name, move |co| {
            for _ in 0..2 {
                log.add(co.name());
                co.yield_now();
            }
        });
    }
    while ctx.try_poll() {}
    assert_eq!(log.take(), ["a", "b", "a", "b"]);
}

#[test]
fn a_waker_that_survives_a_failed_register_is_reported() {
    // It must not wake a later suspension: there is none before it is gone.
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let stray = Slot::default();
    let (own, said) = (stray.clone(), log.clone());
    ctx.spawn("careless", move |co| {
        let attempt = |action: &dyn Fn()| said.add(panic_message(action));
        attempt(&|| {
            co.suspend_with(|waker| {
                own.0.set(Some(waker));
                panic!("register fails");
            });
        });
        attempt(&|| co.yield_now());
        attempt(&|| co.suspend_with(drop));
        let waker = own.take();
        thread::spawn(move || waker.wake()).join().unwrap();
        // The wake finds it waiting for something else, and must not end that either.
        assert_eq!(co.context().thread_pool().submit_co(co, || 5), 5);
        while co.context().try_poll() {}
        co.yield_now();
        said.add("usable again");
    });
    ctx.run_until(|| stray.0.take().is_none() && Rc::strong_count(&stray.0) == 1);
    let said = log.take();
    assert_eq!(
        (said.len(), said[0].as_str(), said[3].as_str()),
        (4, "register fails", "usable again")
    );
    let expected = "coroutine 'careless' suspends while the waker of another suspension is out";
    assert_eq!(said[1..3], [expected, expected]);
}

#[test]
fn suspending_inside_register_is_refused() {
    let ctx = AioContext::for_test().unwrap();
    let inner = Slot::default();
    let own = inner.clone();
    let message = panic_message(|| {
        ctx.spawn("nested", move |co| co.suspend_with(|_outer| own.wait(co)));
        while ctx.try_poll() {}
    });
    assert!(message.contains("nested"), "{message}");
    let message = panic_message(|| {
        ctx.spawn("nested", |co| co.suspend_with(|_outer| co.yield_now()));
        while ctx.try_poll() {}
    });
    assert!(message.contains("nested"), "{message}");
    assert!(!ctx.try_poll());
}

#[test]
fn a_job_inside_register_does_not_swallow_the_wake() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let sum = ctx.run(|co| {
        let mut sum = 0;
        co.suspend_with(|waker| {
            thread::spawn(move || waker.wake()).join().unwrap();
            sum = co.context().thread_pool().submit_co(co, || 42);
        });
        sum
    });
    assert_eq!(sum, 42);
}

#[test]
fn being_resumed_by_hand_does_not_end_a_wait() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let (slot, coroutine) = (Slot::default(), Rc::new(RefCell::new(None)));
    let (own, handle, said) = (slot.clone(), Rc::clone(&coroutine), log.clone());
    ctx.spawn("patient", move |co| {
        *handle.borrow_mut() = coblk_coroutine::current();
        own.wait(co);
        said.add("woken");
        co.yield_now();
        said.add("rescheduled");
        assert_eq!(co.context().thread_pool().submit_co(co, || 7), 7);
        said.add("job done");
    });
    let coroutine = coroutine.take().unwrap();
    coroutine.resume();
    assert!(log.take().is_empty());
    // Woken from a thread, and resumed by hand before the bottom half that serves the wake.
    let waker = slot.take();
    thread::spawn(move || waker.wake()).join().unwrap();
    coroutine.resume();
    assert!(log.take().is_empty());
    assert!(ctx.poll());
    assert_eq!(log.take(), ["woken"]);
    coroutine.resume();
    assert!(log.take().is_empty());
    assert!(ctx.poll());
    assert_eq!(log.take(), ["rescheduled"]);
    coroutine.resume();
    assert!(log.take().is_empty());
    assert!(ctx.poll());
    assert_eq!(log.take(), ["job done"]);
}

#[test]
fn a_coroutine_spawned_from_another_thread_runs_at_home() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let home = thread::current().id();
    let (handle, (done, ended)) = (ctx.handle(), channel());
    thread::spawn(move || {
        assert!(!handle.is_home_thread());
        handle.spawn("remote", move |co| {
            co.yield_now();
            done.send(thread::current().id()).unwrap();
        });
    })
    .join()
    .unwrap();
    assert!(ctx.handle().is_home_thread());
    let mut ran_on = None;
    ctx.run_until(|| {
        ran_on = ended.try_recv().ok();
        ran_on.is_some()
    });
    assert_eq!(ran_on, Some(home));
}

#[test]
fn two_contexts_on_one_thread_wake_each_others_coroutines() {
    let (a, b) = (AioContext::for_test().unwrap(), AioContext::for_test().unwrap());
    let log = Log::new();
    let slot = waiting(&a, &log, "of a", 2);
    slot.take().wake();
    let own = slot.clone();
    b.schedule(move |_| own.take().wake());
    b.try_poll();
    assert_eq!(log.take(), ["of a", "of a"]);
}

#[test]
fn twenty_five_thousand_coroutines_wake_each_other_across_two_threads() {
    const COUNT: usize = 25_000;
    let _watchdog = watchdog();
    let (to_b, at_b): (Sender<CoWaker>, Receiver<CoWaker>) = channel();
    let b = thread::spawn(move || at_b.into_iter().for_each(CoWaker::wake));
    let ctx = AioContext::for_test().unwrap();
    let done = Rc::new(Cell::new(0));
    for _ in 0..COUNT {
        let (to_b, done) = (to_b.clone(), Rc::clone(&done));
        ctx.spawn("one of many", move |co| {
            co.suspend_with(|waker| to_b.send(waker).unwrap());
            done.set(done.get() + 1);
        });
    }
    drop(to_b);
    ctx.run_until(|| done.get() == COUNT);
    b.join().unwrap();
}

#[test]
fn handles_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<AioHandle>();
    check::<CoWaker>();
    check::<coblk_aio::RemoteBottomHalf>();
    check::<coblk_aio::ThreadPool>();
}
