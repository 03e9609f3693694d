//! Contract lines 54 to 65: the worker pool. Line 55 is kept by the types: see the `compile_fail`
//! test of `ThreadPool`.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use coblk_aio::{AioContext, DEFAULT_MAX_THREADS, ThreadPool, ThreadPoolLimitsError};
use util::{Gate, Log, Slot, context, gated, until, watchdog};

#[test]
fn c54_a_completion_runs_from_a_bottom_half_at_home() {
    let _watchdog = watchdog();
    let ctx = context(1, 1);
    let (home, log) = (thread::current().id(), Log::new());
    let ran = Arc::new(AtomicBool::new(false));
    let said = log.clone();
    ctx.thread_pool().submit_aio(
        &ctx,
        {
            let ran = Arc::clone(&ran);
            move || {
                assert_ne!(thread::current().id(), home);
                ran.store(true, Ordering::Release);
                7
            }
        },
        move |_, result| {
            assert_eq!(thread::current().id(), home);
            said.add(format!("{}", result.unwrap()));
        },
    );
    until(|| ran.load(Ordering::Acquire));
    assert!(log.take().is_empty(), "never before a poll");
    assert!(ctx.poll());
    assert_eq!(log.take(), ["7"]);
}

#[test]
fn c54_a_coroutine_goes_on_at_home() {
    let _watchdog = watchdog();
    let ctx = context(0, 4);
    let home = thread::current().id();
    let text = String::from("borrowed");
    let len = ctx.run(|co| {
        let len = ctx.thread_pool().submit_co(co, || {
            assert_ne!(thread::current().id(), home);
            text.len()
        });
        assert_eq!(thread::current().id(), home);
        assert!(co.has_suspended());
        len
    });
    assert_eq!(len, text.len());
}

#[test]
fn c56_the_default_is_0_to_64_threads() {
    let pool = ThreadPool::new(0, DEFAULT_MAX_THREADS).unwrap();
    assert_eq!((DEFAULT_MAX_THREADS, pool.threads()), (64, 0));
    // No other test of this file submits to the process's pool.
    assert_eq!(ThreadPool::global().threads(), 0);
    assert_eq!(ThreadPool::global().limits(), (0, 64));
}

#[test]
fn c57_a_thread_starts_only_when_none_is_idle() {
    let _watchdog = watchdog();
    let ctx = context(0, 8);
    let pool = ctx.thread_pool();
    for _ in 0..100 {
        ctx.run(|co| pool.submit_co(co, || ()));
        // At once: so the next job, which may come right after, starts no second thread.
        assert_eq!(pool.idle_threads(), 1);
    }
    assert_eq!(pool.threads(), 1);
}

#[test]
fn c57_a_burst_starts_a_thread_for_each_job_up_to_the_maximum() {
    let _watchdog = watchdog();
    let ctx = context(1, 5);
    let pool = ctx.thread_pool();
    until(|| pool.idle_threads() == 1);
    let (gate, (started, ids)) = (Gate::default(), channel());
    for _ in 0..7 {
        // The one idle worker may not even have been scheduled by the kernel yet; having been
        // given a job it does not count as idle.
        pool.submit_aio(&ctx, gated(&started, &gate), |_, result| result.unwrap());
    }
    assert_eq!(pool.threads(), 5);
    let mut ids: Vec<_> = (0..5).map(|_| ids.recv().unwrap()).collect();
    ids.sort_by_key(|id| format!("{id:?}"));
    ids.dedup();
    assert_eq!(ids.len(), 5, "five jobs run at once");
    gate.open();
}

#[test]
fn c58_an_idle_worker_above_the_minimum_ends() {
    let _watchdog = watchdog();
    let pool = ThreadPool::with_idle_timeout(1, 8, Duration::from_millis(5)).unwrap();
    let ctx = AioContext::test_builder().thread_pool(pool.clone()).build().unwrap();
    for _ in 0..3 {
        let (gate, (started, ids)) = (Gate::default(), channel());
        for _ in 0..6 {
            pool.submit_aio(&ctx, gated(&started, &gate), |_, result| result.unwrap());
        }
        (0..6).for_each(|_| assert!(ids.recv().is_ok()));
        assert!(pool.threads() >= 6);
        gate.open();
        until(|| pool.threads() == 1);
        // The one at the minimum stays, and works.
        ctx.run(|co| pool.submit_co(co, || ()));
        assert!(pool.threads() >= 1);
        until(|| pool.threads() == 1 && pool.idle_threads() == 1);
    }
}

#[test]
fn c58_jobs_that_come_while_workers_end_are_not_lost() {
    let _watchdog = watchdog();
    // Workers give up at once, so each job races with the end of the worker before it.
    for max in [1, 2, 4] {
        let pool = ThreadPool::with_idle_timeout(0, max, Duration::from_nanos(1)).unwrap();
        let ctx = AioContext::test_builder().thread_pool(pool.clone()).build().unwrap();
        ctx.run(|co| {
            for round in 0..5_000 {
                assert_eq!(pool.submit_co(co, || round), round);
            }
        });
        until(|| pool.threads() == 0);
    }
}

#[test]
fn c59_raising_the_minimum_starts_workers_at_once() {
    let pool = ThreadPool::new(0, 8).unwrap();
    assert_eq!(pool.threads(), 0);
    pool.set_limits(3, 8).unwrap();
    assert_eq!(pool.threads(), 3);
    pool.set_limits(5, 8).unwrap();
    assert_eq!(pool.threads(), 5);
}

#[test]
fn c59_workers_above_a_lower_maximum_end() {
    let _watchdog = watchdog();
    let pool = ThreadPool::new(8, 8).unwrap();
    let ctx = AioContext::test_builder().thread_pool(pool.clone()).build().unwrap();
    pool.set_limits(0, 2).unwrap();
    until(|| pool.threads() == 2);
    ctx.run(|co| assert_eq!(pool.submit_co(co, || 1), 1));
    assert!(pool.threads() <= 2);
}

#[test]
fn c59_busy_workers_above_a_lower_maximum_end_without_taking_work() {
    let _watchdog = watchdog();
    let ctx = context(0, 4);
    let pool = ctx.thread_pool();
    let (gate, (started, ids)) = (Gate::default(), channel());
    for _ in 0..4 {
        pool.submit_aio(&ctx, gated(&started, &gate), |_, result| result.unwrap());
    }
    let first: Vec<_> = (0..4).map(|_| ids.recv().unwrap()).collect();
    pool.set_limits(0, 1).unwrap();
    let barrier = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    for _ in 0..50 {
        let (running, most, started) = (Arc::clone(&barrier), Arc::clone(&most), started.clone());
        pool.submit_aio(
            &ctx,
            move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                started.send(thread::current().id()).unwrap();
                thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
            },
            |_, result| result.unwrap(),
        );
    }
    gate.open();
    let later: Vec<_> = (0..50).map(|_| ids.recv().unwrap()).collect();
    until(|| pool.threads() == 1);
    assert!(later.iter().all(|id| *id == later[0] && first.contains(id)), "one worker did it all");
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[test]
fn c60_limits_that_make_no_sense_are_errors() {
    assert_eq!(ThreadPool::new(0, 0).err(), Some(ThreadPoolLimitsError::MaxZero));
    let error = ThreadPool::new(3, 2).err().unwrap();
    assert_eq!(error, ThreadPoolLimitsError::MinAboveMax { min: 3, max: 2 });
    assert_eq!(error.to_string(), "thread pool: minimum of 3 threads is above the maximum of 2");
    let pool = ThreadPool::new(1, 2).unwrap();
    pool.set_limits(0, 0).unwrap_err();
    pool.set_limits(9, 3).unwrap_err();
    assert_eq!((pool.threads(), pool.limits()), (1, (1, 2)), "nothing has changed");
}

/// A context whose one worker waits at a gate, so that what is submitted next stays queued.
fn blocked() -> (AioContext, Gate) {
    let ctx = context(1, 1);
    let (gate, (started, ids)) = (Gate::default(), channel());
    ctx.thread_pool().submit_aio(&ctx, gated(&started, &gate), |_, result| result.unwrap());
    ids.recv().unwrap();
    (ctx, gate)
}

#[test]
fn c61_jobs_run_and_complete_in_order() {
    let _watchdog = watchdog();
    let (ctx, gate) = blocked();
    let order = Arc::new(Mutex::new(Vec::new()));
    let completed: Rc<RefCell<Vec<usize>>> = Rc::default();
    // More than the channel holds, so that the overflow list takes part.
    for index in 0..20_000 {
        let (order, completed) = (Arc::clone(&order), Rc::clone(&completed));
        ctx.thread_pool().submit_aio(
            &ctx,
            move || order.lock().unwrap().push(index),
            move |_, _| completed.borrow_mut().push(index),
        );
    }
    gate.open();
    ctx.run_until(|| completed.borrow().len() == 20_000);
    assert!(order.lock().unwrap().iter().copied().eq(0..20_000));
    assert!(completed.borrow().iter().copied().eq(0..20_000));
}

#[test]
fn c62_a_queued_job_can_be_cancelled() {
    let _watchdog = watchdog();
    let (ctx, gate) = blocked();
    let (log, dropped) = (Log::new(), Arc::new(()));
    let said = log.clone();
    let capture = Arc::clone(&dropped);
    let job = ctx.thread_pool().submit_aio(
        &ctx,
        move || {
            drop(capture);
            unreachable!("cancelled");
        },
        move |_, result: std::io::Result<()>| {
            said.add(format!("{:?}", result.unwrap_err().raw_os_error()));
        },
    );
    assert!(job.cancel());
    assert!(!job.cancel(), "only once");
    assert!(log.take().is_empty());
    gate.open();
    let mut polls = Vec::new();
    ctx.run_until(|| {
        polls.extend(log.take());
        !polls.is_empty()
    });
    assert_eq!(polls, [format!("{:?}", Some(libc::ECANCELED))]);
    assert!(!job.cancel(), "without effect on one that has completed");
    assert_eq!(Arc::strong_count(&dropped), 1);
}

#[test]
fn c63_cancelling_a_running_job_changes_nothing() {
    let _watchdog = watchdog();
    let ctx = context(0, 1);
    let (gate, (started, ids)) = (Gate::default(), channel());
    let result = Rc::new(Cell::new(0));
    let job = ctx.thread_pool().submit_aio(
        &ctx,
        {
            let work = gated(&started, &gate);
            move || {
                work();
                42
            }
        },
        {
            let result = Rc::clone(&result);
            move |_, value| result.set(value.unwrap())
        },
    );
    ids.recv().unwrap();
    assert!(!job.cancel());
    gate.open();
    ctx.run_until(|| result.get() == 42);
    assert!(!job.cancel());
}

#[test]
fn c62_c63_cancel_races_with_a_worker() {
    let _watchdog = watchdog();
    let ctx = context(2, 2);
    let (ran, outcomes) = (Arc::new(AtomicUsize::new(0)), Rc::new(Cell::new((0, 0))));
    let mut cancelled = 0;
    for _ in 0..5_000 {
        let (ran, outcomes) = (Arc::clone(&ran), Rc::clone(&outcomes));
        let job = ctx.thread_pool().submit_aio(
            &ctx,
            move || ran.fetch_add(1, Ordering::Relaxed),
            move |_, result| {
                let (done, cancelled) = outcomes.get();
                outcomes.set(match result {
                    Ok(_) => (done + 1, cancelled),
                    Err(_) => (done, cancelled + 1),
                });
            },
        );
        cancelled += usize::from(job.cancel());
        ctx.try_poll();
    }
    let sum = |(done, cancelled): (usize, usize)| done + cancelled;
    ctx.run_until(|| sum(outcomes.get()) == 5_000);
    assert_eq!(outcomes.get(), (ran.load(Ordering::Relaxed), cancelled));
}

#[test]
fn c64_a_completion_may_poll_nested_and_sees_others() {
    let _watchdog = watchdog();
    let ctx = context(0, 2);
    let log = Log::new();
    let both = Arc::new(Barrier::new(2));
    for index in 0..2 {
        let (both, said) = (Arc::clone(&both), log.clone());
        let count = Cell::new(0);
        ctx.thread_pool().submit_aio(
            &ctx,
            move || both.wait().is_leader(),
            move |ctx, result| {
                result.unwrap();
                said.add(format!("begin {index}"));
                let seen = || {
                    let all = said.take();
                    all.iter().for_each(|what| said.add(what.clone()));
                    all.iter().filter(|what| what.starts_with("begin")).count() == 2
                };
                ctx.run_until(seen);
                count.set(count.get() + 1);
                said.add(format!("end {index}"));
            },
        );
    }
    assert!(ctx.poll());
    let said = log.take();
    assert_eq!(said.len(), 4);
    assert!(said[0].starts_with("begin") && said[1].starts_with("begin"), "{said:?}");
    assert!(said[2][4..] == said[1][6..], "the inner one ends first: {said:?}");
}

#[test]
fn c65_a_context_that_ends_waits_for_its_jobs_and_completes_them() {
    let _watchdog = watchdog();
    for max in [1, 4] {
        let ctx = context(0, max);
        let ran = Arc::new(AtomicUsize::new(0));
        let completed = Rc::new(Cell::new(0));
        for _ in 0..500 {
            let (ran, completed) = (Arc::clone(&ran), Rc::clone(&completed));
            ctx.thread_pool().submit_aio(
                &ctx,
                move || ran.fetch_add(1, Ordering::Relaxed),
                move |_, _| completed.set(completed.get() + 1),
            );
        }
        drop(ctx);
        assert_eq!((ran.load(Ordering::Relaxed), completed.get()), (500, 500));
    }
}

#[test]
fn c65_a_pool_that_ends_first_runs_what_is_queued() {
    let _watchdog = watchdog();
    let ctx = context(0, 1);
    let other = ThreadPool::new(0, 3).unwrap();
    let (ran, completed) = (Arc::new(AtomicUsize::new(0)), Rc::new(Cell::new(0)));
    for _ in 0..10_000 {
        let (ran, completed) = (Arc::clone(&ran), Rc::clone(&completed));
        other.submit_aio(
            &ctx,
            move || ran.fetch_add(1, Ordering::Relaxed),
            move |_, _| completed.set(completed.get() + 1),
        );
    }
    drop(other);
    assert_eq!((ran.load(Ordering::Relaxed), completed.get()), (10_000, 0));
    ctx.run_until(|| completed.get() == 10_000);
}

#[test]
fn c65_a_pool_ends_promptly_whatever_its_idle_time() {
    let _watchdog = watchdog();
    // With a worker that took another one's message to stop, this would take until the watchdog.
    for _ in 0..200 {
        let pool = ThreadPool::with_idle_timeout(8, 8, Duration::from_secs(100_000)).unwrap();
        drop(pool);
    }
}

#[test]
fn c65_jobs_panicked_or_not_a_context_ends_completely() {
    let _watchdog = watchdog();
    let ctx = context(0, 2);
    let completed = Rc::new(Cell::new(0));
    for index in 0..10 {
        let count = Rc::clone(&completed);
        ctx.thread_pool().submit_aio(
            &ctx,
            move || assert!(index % 3 != 0, "job {index} fails"),
            move |_, result| {
                let message = result.err().map(|error| error.to_string());
                let expected = format!("the job panicked: job {index} fails");
                assert_eq!(message, (index % 3 == 0).then_some(expected));
                count.set(count.get() + 1);
            },
        );
    }
    let frame = Rc::clone(&completed);
    ctx.spawn("suspended", move |co| {
        let _frame = &frame;
        Slot::default().wait(co);
    });
    drop(ctx);
    assert_eq!(completed.get(), 10, "the callback of a job that panicked is told so");
    assert_eq!(Rc::strong_count(&completed), 1, "nothing is leaked");
}
