//! Contract lines 66 to 69: mutex and queue. Line 67 is kept by the guard: see the `compile_fail` test
//! of `CoMutex`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use coblk_aio::AioContext;
use coblk_aio::sync::{
    CoMutex, CoMutexGuard, CoQueue, CoRwLock, CoRwLockReadGuard, CoRwLockWriteGuard, CoSleep,
    SharedResource,
};

use crate::util::{Log, contend, panic_message, settle, watchdog};

#[test]
fn c66_a_mutex_is_handed_over_in_order_when_the_unlocker_suspends() {
    let ctx = AioContext::for_test().unwrap();
    let (log, mutex) = (Log::new(), Rc::new(CoMutex::new(0)));
    let held = Rc::new(CoQueue::new());
    let (said, own, hold) = (log.clone(), Rc::clone(&mutex), Rc::clone(&held));
    ctx.spawn("owner", move |co| {
        let guard = own.lock(co);
        hold.wait(co);
        drop(guard);
        assert!(own.is_locked() && own.try_lock().is_none(), "it belongs to the next already");
        said.add("unlocked");
        co.yield_now();
        said.add("owner ends");
    });
    for name in ["a", "b", "c"] {
        let (said, own) = (log.clone(), Rc::clone(&mutex));
        ctx.spawn(name, move |co| {
            let mut guard = own.lock(co);
            *guard += 1;
            said.add(format!("{name} {}", *guard));
        });
    }
    assert!(log.take().is_empty());
    assert!(held.wake_one());
    assert_eq!(log.take(), ["unlocked", "a 1", "b 2", "c 3"]);
    settle(&ctx);
    assert_eq!(log.take(), ["owner ends"]);
    assert!(!mutex.is_locked());
    assert_eq!(*mutex.try_lock().unwrap(), 3);
}

#[test]
fn c66_nobody_overtakes_a_waiter() {
    let ctx = AioContext::for_test().unwrap();
    let (log, mutex) = (Log::new(), Rc::new(CoMutex::new(())));
    for name in ["a", "b"] {
        let (said, own) = (log.clone(), Rc::clone(&mutex));
        ctx.spawn(name, move |co| {
            for _ in 0..3 {
                let guard = own.lock(co);
                said.add(name);
                co.yield_now();
                drop(guard);
                // Comes back at once, and has to queue all the same.
            }
        });
    }
    settle(&ctx);
    assert_eq!(log.take(), ["a", "b", "a", "b", "a", "b"]);
}

#[test]
fn c67_a_guard_unlocks_also_by_a_panic() {
    let ctx = AioContext::for_test().unwrap();
    let mutex = Rc::new(CoMutex::new(1));
    let own = Rc::clone(&mutex);
    let message = panic_message(|| {
        ctx.spawn("fails", move |co| {
            let _guard = own.lock(co);
            panic!("while locked");
        })
    });
    assert_eq!((message.as_str(), mutex.is_locked()), ("while locked", false));
    assert_eq!(Rc::into_inner(mutex).unwrap().into_inner(), 1);
}

fn exact_counter(threads: usize) {
    const ROUNDS: u64 = 500;
    let counter = Arc::new(CoMutex::new(0u64));
    let shared = Arc::clone(&counter);
    contend(threads, 4, move |co| {
        for round in 0..ROUNDS {
            let mut guard = shared.lock(co);
            let value = *guard;
            // Held across suspensions, and not only for an instant.
            if round % 8 == 0 {
                co.yield_now();
            }
            *guard = value + 1;
        }
    });
    assert_eq!(*counter.try_lock().unwrap(), threads as u64 * 4 * ROUNDS);
}

#[test]
fn c68_a_counter_contended_from_2_threads_is_exact() {
    exact_counter(2);
}

#[test]
fn c68_a_counter_contended_from_5_threads_is_exact() {
    exact_counter(5);
}

#[test]
fn a_mutex_handed_to_a_coroutine_that_is_unwound_goes_on_to_the_next() {
    let _watchdog = watchdog();
    let mutex = Arc::new(CoMutex::new(0));
    let ctx = AioContext::for_test().unwrap();
    let guard = mutex.try_lock().unwrap();
    // A coroutine of another context waits, is given the lock, and never learns of it.
    let (waits, is_waiting) = channel();
    let (go_on, end) = channel::<()>();
    let own = Arc::clone(&mutex);
    let thread = thread::spawn(move || {
        let ctx = AioContext::for_test().unwrap();
        ctx.spawn("unwound", move |co| {
            let _guard = own.lock(co);
            unreachable!("its context ends first");
        });
        waits.send(()).unwrap();
        end.recv().unwrap();
    });
    is_waiting.recv().unwrap();
    let own = Arc::clone(&mutex);
    let (log, said) = {
        let log = Log::new();
        (log.clone(), log)
    };
    ctx.spawn("next", move |co| {
        let _guard = own.lock(co);
        said.add("locked");
    });
    drop(guard);
    assert!(!ctx.try_poll());
    go_on.send(()).unwrap();
    thread.join().unwrap();
    settle(&ctx);
    assert_eq!(log.take(), ["locked"]);
    assert!(!mutex.is_locked());
}

#[test]
fn a_coroutine_unwound_while_it_waits_leaves_the_list() {
    let mutex = Arc::new(CoMutex::new(0));
    let guard = mutex.try_lock().unwrap();
    for _ in 0..3 {
        let ctx = AioContext::for_test().unwrap();
        let own = Arc::clone(&mutex);
        ctx.spawn("unwound", move |co| drop(own.lock(co)));
    }
    drop(guard);
    assert!(!mutex.is_locked());
}

#[test]
fn contexts_may_end_while_others_contend() {
    let _watchdog = watchdog();
    for round in 0..30 {
        let mutex = Arc::new(CoMutex::new(0u64));
        let threads: Vec<_> = (0..3)
            .map(|index| {
                let mutex = Arc::clone(&mutex);
                thread::spawn(move || {
                    let ctx = AioContext::for_test().unwrap();
                    for _ in 0..4 {
                        let mutex = Arc::clone(&mutex);
                        ctx.spawn("contends", move |co| {
                            loop {
                                *mutex.lock(co) += 1;
                                co.yield_now();
                            }
                        });
                    }
                    (0..20 + round + index * 10)
                        .for_each(|_| _ = ctx.poll_timeout(Duration::from_micros(100)));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(mutex.try_lock().is_some(), "round {round}: the lock got lost");
    }
}

#[test]
fn c69_waiting_releases_the_lock_and_takes_it_again() {
    let ctx = AioContext::for_test().unwrap();
    let shared = Rc::new((CoMutex::new(0), CoQueue::new()));
    let log = Log::new();
    let (said, own) = (log.clone(), Rc::clone(&shared));
    ctx.spawn("waits", move |co| {
        let (mutex, queue) = &*own;
        let mut guard = mutex.lock(co);
        while *guard == 0 {
            guard = queue.wait_locked(co, guard);
            assert!(mutex.is_locked());
            said.add(format!("sees {}", *guard));
        }
    });
    let (mutex, queue) = &*shared;
    assert!(!mutex.is_locked() && !queue.is_empty());
    assert!(queue.wake_one(), "woken for nothing it waits again");
    *mutex.try_lock().unwrap() = 5;
    assert!(queue.wake_one());
    assert_eq!(log.take(), ["sees 0", "sees 5"]);
    assert!(queue.is_empty() && !mutex.is_locked());
}

#[test]
fn c69_next_on_an_empty_queue_says_so() {
    let queue = CoQueue::new();
    assert!(!queue.wake_one() && queue.is_empty());
    queue.wake_all();
}

#[test]
fn c69_waiters_are_woken_in_order_and_can_requeue_to_the_front() {
    let ctx = AioContext::for_test().unwrap();
    let shared = Rc::new((CoMutex::new(()), CoQueue::new()));
    let log = Log::new();
    for name in ["a", "b", "c"] {
        let (said, own) = (log.clone(), Rc::clone(&shared));
        ctx.spawn(name, move |co| {
            let guard = own.1.wait_locked(co, own.0.lock(co));
            said.add(name);
            if name == "a" {
                let _guard = own.1.requeue_locked(co, guard);
                said.add("a again");
            }
        });
    }
    for expected in ["a", "a again", "b", "c"] {
        assert!(shared.1.wake_one());
        assert_eq!(log.take(), [expected]);
    }
    assert!(!shared.1.wake_one());
}

#[test]
fn c69_wake_all_wakes_those_who_wait_now() {
    let ctx = AioContext::for_test().unwrap();
    let queue = Rc::new(CoQueue::new());
    let log = Log::new();
    for name in ["a", "b"] {
        let (said, own) = (log.clone(), Rc::clone(&queue));
        ctx.spawn(name, move |co| {
            for _ in 0..2 {
                own.wait(co);
                said.add(name);
            }
        });
    }
    for _ in 0..2 {
        queue.wake_all();
        assert_eq!(log.take(), ["a", "b"]);
    }
}

#[test]
fn c69_a_bounded_queue_between_threads_loses_nothing() {
    const ITEMS: u64 = 2_000;
    struct Channel {
        items: CoMutex<(Vec<u64>, u64)>,
        changed: CoQueue,
    }
    let channel = Arc::new(Channel { items: CoMutex::default(), changed: CoQueue::new() });
    let shared = Arc::clone(&channel);
    contend(3, 2, move |co| {
        // Each puts one and takes one, over and over; of which thread is left to chance.
        for item in 1..=ITEMS {
            let mut guard = shared.items.lock(co);
            while guard.0.len() >= 3 {
                guard = shared.changed.wait_locked(co, guard);
            }
            guard.0.push(item);
            shared.changed.wake_all();
            drop(guard);
            let mut guard = shared.items.lock(co);
            while guard.0.is_empty() {
                guard = shared.changed.wait_locked(co, guard);
            }
            let taken = guard.0.pop().unwrap();
            guard.1 += taken;
            shared.changed.wake_all();
        }
    });
    let items = channel.items.try_lock().unwrap();
    assert_eq!((items.0.len(), items.1), (0, 6 * (ITEMS * (ITEMS + 1) / 2)));
}

#[test]
fn a_wake_that_an_unwound_waiter_cannot_use_goes_on_to_the_next() {
    let _watchdog = watchdog();
    let queue = Arc::new(CoQueue::new());
    let (waits, is_waiting) = channel();
    let (go_on, end) = channel::<()>();
    let own = Arc::clone(&queue);
    let thread = thread::spawn(move || {
        let ctx = AioContext::for_test().unwrap();
        ctx.spawn("unwound", move |co| own.wait(co));
        waits.send(()).unwrap();
        end.recv().unwrap();
    });
    is_waiting.recv().unwrap();
    let ctx = AioContext::for_test().unwrap();
    let woken = Rc::new(Cell::new(false));
    let (own, seen) = (Arc::clone(&queue), Rc::clone(&woken));
    ctx.spawn("next", move |co| {
        own.wait(co);
        seen.set(true);
    });
    assert!(queue.wake_one());
    go_on.send(()).unwrap();
    thread.join().unwrap();
    settle(&ctx);
    assert!(woken.get());
}

#[test]
fn locks_cross_threads_as_far_as_their_content_does() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<CoMutex<Cell<u8>>>();
    sync::<CoMutex<Cell<u8>>>();
    send::<CoMutexGuard<'_, Cell<u8>>>();
    sync::<CoMutexGuard<'_, u8>>();
    send::<CoRwLock<Cell<u8>>>();
    sync::<CoRwLock<u8>>();
    send::<CoRwLockReadGuard<'_, u8>>();
    send::<CoRwLockWriteGuard<'_, u8>>();
    sync::<CoQueue>();
    sync::<CoSleep>();
    sync::<SharedResource>();
}

#[test]
fn c11_a_coroutine_that_ends_holds_no_lock() {
    let ctx = AioContext::for_test().unwrap();
    let mutex = Rc::new(CoMutex::new(0));
    let locked = Rc::clone(&mutex);
    ctx.spawn("ends with a guard", move |co| {
        let mut guard = locked.lock(co);
        *guard += 1;
        // However it ends, its guards go with its frame.
    });
    assert!(!mutex.is_locked());
    assert_eq!(ctx.run(|co| *mutex.lock(co)), 1);
}
