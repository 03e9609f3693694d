//! Numbers of contexts, and what is kept by them. The tests of this file share one process's numbers, so
//! they run one after the other.

mod util;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use coblk_aio::{AioContext, IoThread, MAX_CONTEXTS, PerContext};
use util::watchdog;

static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn numbers_are_dense_and_given_again() {
    let _alone = alone();
    let contexts = [(); 3].map(|()| AioContext::for_test().unwrap());
    assert_eq!(contexts.each_ref().map(AioContext::number), [0, 1, 2]);
    let [first, second, _third] = contexts;
    drop(second);
    let anew = AioContext::for_test().unwrap();
    assert_eq!((first.number(), anew.number()), (0, 1));
}

#[test]
fn one_context_too_many_is_an_error() {
    let _alone = alone();
    let mut contexts: Vec<_> = (0..MAX_CONTEXTS).map(|_| AioContext::for_test().unwrap()).collect();
    let refused = AioContext::for_test().unwrap_err();
    assert_eq!(refused.to_string(), "there are 256 contexts, as many as there may be");
    assert!(IoThread::new("one too many").is_err());
    drop(contexts.pop());
    contexts.push(AioContext::for_test().unwrap());
    assert_eq!(contexts[MAX_CONTEXTS - 1].number(), MAX_CONTEXTS - 1);
}

/// A context that could not be made has not kept its number.
#[test]
fn a_context_that_fails_gives_its_number_back() {
    let _alone = alone();
    let message = util::panic_message(|| {
        let _ctx = AioContext::for_test().unwrap();
        panic!("while it lives");
    });
    assert_eq!(message, "while it lives");
    assert_eq!(AioContext::for_test().unwrap().number(), 0);
}

#[test]
fn each_context_has_its_own_value() {
    let _alone = alone();
    let counts = PerContext::<Cell<u64>>::new();
    let contexts: Vec<_> = (0..20).map(|_| AioContext::for_test().unwrap()).collect();
    for (ctx, value) in contexts.iter().zip(1..) {
        assert_eq!(counts.get(ctx).replace(value), 0);
    }
    for (ctx, value) in contexts.iter().zip(1..) {
        assert_eq!(counts.get(ctx).get(), value);
        let line = std::ptr::from_ref(counts.get(ctx)).addr() / 64;
        let others = contexts.iter().filter(|other| other.number() != ctx.number());
        assert!(
            others.map(|it| std::ptr::from_ref(counts.get(it)).addr() / 64).all(|it| it != line)
        );
    }
}

/// With plain loads and stores, on as many threads as there are values, and as contexts come and go.
#[test]
fn no_count_is_lost_when_numbers_go_from_thread_to_thread() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 200;
    let _alone = alone();
    let _watchdog = watchdog();
    let counts = PerContext::<Cell<u64>>::new();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let ctx = AioContext::for_test().unwrap();
                    let count = counts.get(&ctx);
                    count.set(count.get() + 1);
                }
            });
        }
    });
    let contexts: Vec<_> = (0..THREADS).map(|_| AioContext::for_test().unwrap()).collect();
    assert_eq!(contexts.iter().map(|ctx| counts.get(ctx).get()).sum::<u64>(), THREADS * ROUNDS);
}

#[test]
fn all_values_are_seen_where_any_thread_may() {
    let _alone = alone();
    let sums = PerContext::<AtomicU64>::new();
    let here = AioContext::for_test().unwrap();
    sums.get(&here).store(40, Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            let there = AioContext::for_test().unwrap();
            sums.get(&there).store(2, Ordering::Relaxed);
        });
    });
    assert_eq!(sums.iter().map(|it| it.load(Ordering::Relaxed)).collect::<Vec<_>>(), [40, 2]);
}
