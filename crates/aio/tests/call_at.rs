//! Calls from one context to another.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use coblk_aio::{AioContext, AioHandle, Co, CoWaker, IoThread, JoinError};

use crate::util::{OnDrop, Random, contend, panic_message, settle, until, watchdog};

/// Suspends until the end: the waker is kept.
fn wait_for_ever(co: &Co<'_>, waker: &Mutex<Option<CoWaker>>) {
    co.suspend_with(|own| *waker.lock().unwrap() = Some(own));
    unreachable!("its waker is not used");
}

#[test]
fn a_call_borrows_runs_there_and_returns() {
    let _watchdog = watchdog();
    let thread = IoThread::new("there").unwrap();
    let ctx = AioContext::for_test().unwrap();
    let mut lent = vec![1, 2, 3];
    let sum = ctx.run(|co| {
        let names = co.call_at(thread.handle(), "add", |there| {
            // It may suspend.
            there.yield_now();
            lent.push(4);
            (there.name(), there.context().name().to_owned(), there.context().handle())
        });
        assert_eq!(names.unwrap(), ("add", "there".to_owned(), thread.handle().clone()));
        lent.iter().sum::<i32>()
    });
    assert_eq!(sum, 10);
}

#[test]
fn a_call_to_its_own_context_is_a_call() {
    let ctx = AioContext::for_test().unwrap();
    ctx.run(|co| {
        let home = co.context().handle();
        let not_send = Rc::new(co.id());
        let own = *not_send;
        assert_eq!(co.call_at(&home, "call", |there| there.id() == own), Ok(true));
        assert!(!co.has_suspended());
    });
}

#[test]
fn a_panic_goes_on_in_the_caller() {
    let _watchdog = watchdog();
    let thread = IoThread::new("there").unwrap();
    let ctx = AioContext::for_test().unwrap();
    let message = panic_message(|| {
        ctx.run(|co| co.call_at(thread.handle(), "call", |_| -> () { panic!("of the call") }))
    });
    assert_eq!(message, "of the call");
    assert_eq!(ctx.run(|co| co.call_at(thread.handle(), "call", |_| 7)), Ok(7));
    assert!(!thread.is_finished());
}

#[test]
fn a_context_that_is_gone_is_an_error() {
    let ctx = AioContext::for_test().unwrap();
    let gone = AioContext::for_test().unwrap().handle();
    let lent = Arc::new(());
    let own = Arc::clone(&lent);
    let answer = ctx.run(|co| co.call_at(&gone, "call", move |_| drop(own)));
    assert_eq!(answer, Err(JoinError::ContextGone));
    assert_eq!(Arc::strong_count(&lent), 1, "what was not called is dropped");
}

#[test]
fn a_context_that_ends_ends_its_calls() {
    let _watchdog = watchdog();
    let thread = IoThread::new("there").unwrap();
    let ctx = AioContext::for_test().unwrap();
    let (home, unwound) = (thread.handle().clone(), AtomicBool::new(false));
    let waker = Arc::new(Mutex::<Option<CoWaker>>::default());
    let (ended, kept) = (Cell::new(Some(thread)), Arc::clone(&waker));
    ctx.spawn("end it", move |co| {
        while kept.lock().unwrap().is_none() {
            co.yield_now();
        }
        drop(ended.take());
    });
    let answer = ctx.run(|co| {
        co.call_at(&home, "call", |there| {
            let _unwound = OnDrop(|| unwound.store(true, Ordering::SeqCst));
            wait_for_ever(there, &waker);
        })
    });
    assert_eq!(answer, Err(JoinError::ContextGone));
    assert!(unwound.into_inner());
}

/// The caller's frame stays until the other coroutine, which borrows from it, is gone.
#[test]
fn a_caller_that_is_unwound_unwinds_the_call() {
    let _watchdog = watchdog();
    let thread = IoThread::new("there").unwrap();
    let ctx = AioContext::for_test().unwrap();
    let (home, log) = (thread.handle().clone(), Arc::new(Mutex::new(Vec::new())));
    let (waker, said) = (Arc::new(Mutex::<Option<CoWaker>>::default()), Arc::clone(&log));
    let began = Arc::clone(&waker);
    ctx.spawn("caller", move |co| {
        let _frame = OnDrop(|| said.lock().unwrap().push("caller"));
        let _ = co.call_at(&home, "call", |there| {
            let _frame = OnDrop(|| said.lock().unwrap().push("call"));
            wait_for_ever(there, &waker);
        });
        unreachable!("unwound");
    });
    until(|| began.lock().unwrap().is_some());
    drop(ctx);
    assert_eq!(*log.lock().unwrap(), ["call", "caller"]);
    assert!(!thread.is_finished());
}

/// With two contexts on one thread none is polled while the other ends. A call that has not begun by then
/// never does.
#[test]
fn a_call_is_taken_back_from_a_context_of_the_same_thread() {
    let _watchdog = watchdog();
    for begins in [false, true] {
        let (caller, other) = (AioContext::for_test().unwrap(), AioContext::for_test().unwrap());
        let (home, began) = (other.handle(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&began);
        caller.spawn("caller", move |co| {
            let waker = Mutex::default();
            let _ = co.call_at(&home, "call", |there| {
                seen.store(true, Ordering::SeqCst);
                wait_for_ever(there, &waker);
            });
        });
        if begins {
            settle(&other);
        }
        assert_eq!(began.load(Ordering::SeqCst), begins);
        drop(caller);
        settle(&other);
        assert_eq!(began.load(Ordering::SeqCst), begins);
        assert!(other.coroutines().is_empty());
    }
}

/// A call that calls back, from a context that has another on the caller's thread: when the caller goes,
/// each thread waits for the other.
#[test]
fn calls_back_and_forth_are_taken_back() {
    let _watchdog = watchdog();
    let thread = IoThread::new("there").unwrap();
    let (caller, other) = (AioContext::for_test().unwrap(), AioContext::for_test().unwrap());
    let (there, back) = (thread.handle().clone(), other.handle());
    let waker = Arc::new(Mutex::<Option<CoWaker>>::default());
    let began = Arc::clone(&waker);
    caller.spawn("caller", move |co| {
        let _ = co.call_at(&there, "call", |there| {
            let _ = there.call_at(&back, "call back", |here| wait_for_ever(here, &waker));
        });
    });
    until(|| {
        settle(&other);
        began.lock().unwrap().is_some()
    });
    drop(caller);
    assert!(other.coroutines().is_empty());
}

/// Both contexts end at once, each with calls that run in the other.
#[test]
fn two_contexts_that_call_each_other_end_together() {
    let _watchdog = watchdog();
    for _ in 0..50 {
        let (to_first, from_second) = channel::<AioHandle>();
        let (to_second, from_first) = channel::<AioHandle>();
        let (both, running) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
        let threads = [(to_first, from_first), (to_second, from_second)].map(|(tell, ask)| {
            let (both, running) = (Arc::clone(&both), Arc::clone(&running));
            thread::spawn(move || {
                let ctx = AioContext::for_test().unwrap();
                tell.send(ctx.handle()).unwrap();
                let other = ask.recv().unwrap();
                for _ in 0..3 {
                    let (other, running) = (other.clone(), Arc::clone(&running));
                    ctx.spawn("caller", move |co| {
                        let waker = Mutex::default();
                        let _ = co.call_at(&other, "call", |there| {
                            running.fetch_add(1, Ordering::SeqCst);
                            wait_for_ever(there, &waker);
                        });
                    });
                }
                while running.load(Ordering::SeqCst) < 6 {
                    ctx.try_poll();
                }
                both.wait();
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// The thread that ends another waits for it, and has what that one's coroutines wait for.
#[test]
fn a_thread_that_is_joined_takes_its_calls_back() {
    let _watchdog = watchdog();
    let thread = IoThread::new("caller").unwrap();
    let ctx = AioContext::for_test().unwrap();
    let (home, waker) = (ctx.handle(), Arc::new(Mutex::<Option<CoWaker>>::default()));
    let began = Arc::clone(&waker);
    let answer = thread
        .handle()
        .spawn("caller", move |co| co.call_at(&home, "call", |here| wait_for_ever(here, &waker)));
    ctx.run_until(|| began.lock().unwrap().is_some());
    drop(thread);
    assert!(ctx.coroutines().is_empty());
    assert_eq!(answer.wait(), Err(JoinError::ContextGone));
}

#[test]
fn many_calls_between_contexts_all_return() {
    const THREADS: usize = 4;
    const CALLS: usize = 200;
    let homes: Arc<Mutex<Vec<AioHandle>>> = Arc::default();
    let all_there = Arc::new(Barrier::new(THREADS));
    let (ended, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&calls);
    contend(THREADS, 1, move |co| {
        homes.lock().unwrap().push(co.context().handle());
        all_there.wait();
        let homes = homes.lock().unwrap().clone();
        let mut random = Random::new(co.id());
        for call in 0..CALLS {
            let home = &homes[random.below(THREADS)];
            let (suspends, calls) = (random.below(2) == 1, &*count);
            let answer = co.call_at(home, "call", move |there| {
                if suspends {
                    there.yield_now();
                }
                calls.fetch_add(1, Ordering::Relaxed);
                call
            });
            assert_eq!(answer, Ok(call));
        }
        // Others may still call here.
        ended.fetch_add(1, Ordering::SeqCst);
        while ended.load(Ordering::SeqCst) < THREADS {
            co.yield_now();
        }
    });
    assert_eq!(calls.load(Ordering::SeqCst), THREADS * CALLS);
}
