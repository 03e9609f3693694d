//! What can be run: closures of every size and alignment, on new stacks and on used ones.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use coblk_coroutine::*;

mod util;

use util::{Dropped, panic_message};

/// Runs a closure that holds a value, and returns where in memory the value was when it ran.
fn run_with<T: Copy + PartialEq + std::fmt::Debug + 'static>(value: T) -> usize {
    let (place, expected) = (Rc::new(Cell::new(0)), Box::new(value));
    let dropped = Dropped::default();
    let coroutine = {
        let (place, token) = (place.clone(), dropped.token());
        Coroutine::new("c", move |suspender| {
            let _token = token;
            suspender.suspend();
            assert_eq!(value, *expected);
            place.set(std::ptr::from_ref(&value).addr());
        })
    };
    coroutine.resume();
    assert_eq!(dropped.times(), 0);
    coroutine.resume();
    assert_eq!(dropped.times(), 1);
    place.get()
}

#[test]
fn closures_of_every_size_run() {
    run_with(());
    run_with(1_u8);
    run_with([2_u64; 28]);
    run_with([3_u64; 30]);
    run_with([4_u64; 31]);
    run_with([5_u64; 200]);
    run_with([6_u8; 10_000]);
}

#[test]
fn over_aligned_closures_are_aligned() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(align(16))]
    struct Aligned16(u8);
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(align(64))]
    struct Aligned64(u8);
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(align(4096))]
    struct Aligned4096(u8);
    for _ in 0..10 {
        assert_eq!(run_with(Aligned16(1)) % 16, 0);
        assert_eq!(run_with(Aligned64(2)) % 64, 0);
        assert_eq!(run_with(Aligned4096(3)) % 4096, 0);
    }
}

#[test]
fn a_handle_is_one_pointer_wide() {
    assert_eq!(size_of::<Coroutine>(), size_of::<usize>());
    assert_eq!(size_of::<Option<Coroutine>>(), size_of::<usize>());
}

#[test]
fn ids_are_unique() {
    let ids = || (0..1000).map(|_| Coroutine::new("c", |_| ()).id()).collect::<Vec<_>>();
    let mut all = ids();
    all.extend(std::thread::spawn(ids).join().unwrap());
    all.extend(ids());
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 3000);
}

#[test]
fn borrowing_closures_run_to_their_end() {
    let mut sum = 0;
    // SAFETY: the coroutine terminates before `sum` is used again.
    let coroutine = unsafe { Coroutine::new_unchecked("c", |_| sum += 1) };
    assert_eq!(coroutine.resume(), CoroutineState::Terminated);
    drop(coroutine);
    assert_eq!(sum, 1);
}

#[test]
fn the_suspender_of_a_caller_does_not_suspend_its_callee() {
    let outer = Coroutine::new("outer", |outer| {
        // SAFETY: the inner coroutine terminates while `outer` is borrowed.
        let inner = unsafe {
            Coroutine::new_unchecked("inner", |_| {
                assert!(panic_message(|| outer.suspend()).contains("yielding to no one"));
            })
        };
        assert_eq!(inner.resume(), CoroutineState::Terminated);
    });
    assert_eq!(outer.resume(), CoroutineState::Terminated);
}

#[test]
fn deep_frames_and_floating_point_survive_a_suspend() {
    fn descend(suspender: &Suspender, depth: u32) -> f64 {
        let here = f64::from(depth).sqrt();
        if depth == 0 {
            suspender.suspend();
            return 0.0;
        }
        here + descend(suspender, depth - 1)
    }
    let expected: f64 = (1..=100).rev().map(f64::from).map(f64::sqrt).rev().sum();
    let coroutines: Vec<_> = (0..10)
        .map(|_| {
            Coroutine::new("c", move |suspender| {
                assert!((descend(suspender, 100) - expected).abs() < 1e-9);
            })
        })
        .collect();
    for expected in [CoroutineState::Suspended, CoroutineState::Terminated] {
        assert!(coroutines.iter().all(|coroutine| coroutine.resume() == expected));
    }
}

#[test]
fn waking_outside_a_coroutine_fails() {
    let coroutine = Coroutine::new("c", |_| ());
    let message = panic_message(|| coroutine.queue_wake("nobody"));
    assert_eq!(message, "nobody: wake of 'c' queued outside a coroutine");
}

/// Idle coroutines go from thread to thread through the shared pool. Whatever they ran before, on
/// whichever thread, they work.
#[test]
fn idle_coroutines_work_on_other_threads() {
    thread_local! {
        static RUNS: Cell<usize> = const { Cell::new(0) };
    }
    let work = |thread: usize| {
        for round in 1..=20 {
            let coroutines: Vec<_> = (0..200 * (1 + thread % 4))
                .map(|number| {
                    Coroutine::new("c", move |suspender| {
                        suspender.suspend();
                        RUNS.set(RUNS.get() + 1);
                        assert_ne!(number % 100, 99, "some of them panic");
                    })
                })
                .collect();
            for coroutine in &coroutines {
                assert_eq!(coroutine.resume(), CoroutineState::Suspended);
            }
            // The first half of them is unwound, the second half goes on.
            for coroutine in coroutines.into_iter().skip(100 * (1 + thread % 4)) {
                let outcome = catch_unwind(AssertUnwindSafe(|| coroutine.resume()));
                assert!(matches!(outcome, Ok(CoroutineState::Terminated) | Err(_)));
            }
            assert_eq!(RUNS.get(), round * 100 * (1 + thread % 4));
        }
    };
    for _ in 0..3 {
        let threads = (0..8).map(|thread| std::thread::spawn(move || work(thread)));
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    }
}
