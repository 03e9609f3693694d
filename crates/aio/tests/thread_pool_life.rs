//! The worker pool under load, and jobs, pools and contexts that end in every order.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use coblk_aio::{AioContext, ThreadPool};
use util::{Gate, OnDrop, Slot, context, gated, panic_message, until, watchdog};

#[test]
fn a_job_submitted_while_the_context_unwinds_its_coroutines_completes() {
    let _watchdog = watchdog();
    let ctx = context(0, 2);
    let completed = Rc::new(Cell::new(0));
    let count = Rc::clone(&completed);
    ctx.spawn("submits when unwound", move |co| {
        let _late = OnDrop(|| {
            let count = Rc::clone(&count);
            let ctx = co.context();
            ctx.thread_pool().submit_aio(ctx, || (), move |_, _| count.set(count.get() + 1));
        });
        Slot::default().wait(co);
    });
    drop(ctx);
    assert_eq!((completed.get(), Rc::strong_count(&completed)), (1, 1));
}

#[test]
fn panics_of_jobs_go_on_in_the_coroutine() {
    let _watchdog = watchdog();
    let ctx = context(0, 2);
    let pool = ctx.thread_pool();
    let message = panic_message(|| ctx.run(|co| pool.submit_co(co, || panic!("job fails"))));
    assert_eq!(message, "job fails");
    // The worker lives on.
    until(|| pool.idle_threads() == 1);
    assert_eq!(ctx.run(|co| pool.submit_co(co, || 1)), 1);
    assert_eq!(pool.threads(), 1);
    pool.submit_aio(&ctx, || panic!("callback job fails"), |_, _: std::io::Result<()>| ());
    assert_eq!(panic_message(|| ctx.poll()), "callback job fails");
}

#[test]
fn a_context_that_ends_waits_for_the_job_of_a_suspended_coroutine() {
    let _watchdog = watchdog();
    for round in 0..20 {
        let ctx = context(0, 1);
        let finished = Arc::new(AtomicBool::new(false));
        let result = Arc::new(String::from("result"));
        let (seen, kept) = (Arc::clone(&finished), Arc::clone(&result));
        let (gate, (started, ids)) = (Gate::default(), channel());
        let job = gated(&started, &gate);
        ctx.spawn("has a job", move |co| {
            let local = [round; 64];
            let _result = co.context().thread_pool().submit_co(co, || {
                job();
                assert_eq!(local, [round; 64], "the frame is still there");
                seen.store(true, Ordering::Release);
                kept
            });
            unreachable!("unwound");
        });
        if round % 2 == 0 {
            ids.recv().unwrap();
        }
        gate.open();
        drop(ctx);
        assert!(finished.load(Ordering::Acquire));
        assert_eq!(Arc::strong_count(&result), 1, "the result is dropped, not leaked");
    }
}

#[test]
fn a_context_that_ends_takes_back_jobs_whose_completion_has_arrived() {
    let _watchdog = watchdog();
    for _ in 0..20 {
        let ctx = context(0, 4);
        for _ in 0..20 {
            ctx.spawn("has a job", |co| {
                co.context().thread_pool().submit_co(co, || ());
                Slot::default().wait(co);
            });
        }
        ctx.schedule(|_| panic!("leaves completions on the list"));
        let _ = panic_message(|| ctx.try_poll());
    }
}

#[test]
fn twenty_thousand_jobs_at_once_from_coroutines() {
    const COUNT: usize = 20_000;
    let _watchdog = watchdog();
    let ctx = context(0, 4);
    let done = Rc::new(Cell::new(0));
    for index in 0..COUNT {
        let done = Rc::clone(&done);
        ctx.spawn("job", move |co| {
            assert_eq!(co.context().thread_pool().submit_co(co, || index * 2), index * 2);
            done.set(done.get() + 1);
        });
    }
    ctx.run_until(|| done.get() == COUNT);
}

#[test]
fn limits_change_up_and_down_under_load() {
    let _watchdog = watchdog();
    let pool = ThreadPool::with_idle_timeout(0, 8, Duration::from_micros(50)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let changer = thread::spawn({
        let (pool, stop) = (pool.clone(), Arc::clone(&stop));
        move || {
            let mut random = util::Random::new(3);
            while !stop.load(Ordering::Relaxed) {
                let max = 1 + random.below(8);
                pool.set_limits(random.below(max + 1), max).unwrap();
                thread::yield_now();
            }
        }
    });
    let submitters: Vec<_> = (0..2)
        .map(|_| {
            let pool = pool.clone();
            thread::spawn(move || {
                let ctx = AioContext::test_builder().thread_pool(pool).build().unwrap();
                let done = Rc::new(Cell::new(0));
                for _ in 0..16 {
                    let done = Rc::clone(&done);
                    ctx.spawn("load", move |co| {
                        for round in 0..400 {
                            let pool = co.context().thread_pool();
                            assert_eq!(pool.submit_co(co, || round), round);
                        }
                        done.set(done.get() + 1);
                    });
                }
                ctx.run_until(|| done.get() == 16);
            })
        })
        .collect();
    submitters.into_iter().for_each(|thread| thread.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    changer.join().unwrap();
    // The books are right after all that: the pool shrinks, grows and still works.
    pool.set_limits(0, 8).unwrap();
    until(|| pool.threads() == 0);
    assert_eq!(pool.idle_threads(), 0);
    pool.set_limits(3, 8).unwrap();
    until(|| pool.idle_threads() == 3);
    assert_eq!(pool.threads(), 3);
    pool.set_limits(0, 1).unwrap();
    until(|| pool.threads() <= 1);
}

#[test]
fn a_pool_may_be_dropped_by_one_of_its_jobs() {
    let _watchdog = watchdog();
    for _ in 0..100 {
        let ctx = context(0, 1);
        let pool = ThreadPool::new(2, 4).unwrap();
        let last = pool.clone();
        let (dropped, was_dropped): (_, Receiver<()>) = channel();
        let gate = Gate::default();
        let at_gate = gate.clone();
        pool.submit_aio(
            &ctx,
            move || {
                at_gate.pass();
                drop(last);
                dropped.send(()).unwrap();
            },
            |_, result| result.unwrap(),
        );
        drop(pool);
        gate.open();
        was_dropped.recv().unwrap();
        assert!(ctx.poll());
    }
}

#[test]
fn jobs_of_contexts_that_come_and_go() {
    let _watchdog = watchdog();
    let pool = ThreadPool::new(0, 4).unwrap();
    for _ in 0..500 {
        let ctx = AioContext::test_builder().thread_pool(pool.clone()).build().unwrap();
        for _ in 0..4 {
            pool.submit_aio(&ctx, || (), |_, result| result.unwrap());
        }
        ctx.run(|co| pool.submit_co(co, || ()));
    }
}

#[test]
fn a_worker_that_has_to_stay_sleeps_however_short_the_idle_time() {
    let _watchdog = watchdog();
    let pool = ThreadPool::with_idle_timeout(1, 1, Duration::ZERO).unwrap();
    let ctx = AioContext::test_builder().thread_pool(pool.clone()).build().unwrap();
    let status = ctx.run(|co| {
        co.context()
            .thread_pool()
            .submit_co(co, || std::fs::read_link("/proc/thread-self").unwrap())
    });
    let status = std::path::Path::new("/proc").join(status).join("status");
    // One that spins is never seen to sleep; one that sleeps is.
    let sleeps = || std::fs::read_to_string(&status).unwrap().contains("State:\tS");
    until(|| (0..50).all(|_| sleeps()));
    // With a lower minimum it ends without delay.
    pool.set_limits(0, 1).unwrap();
    until(|| pool.threads() == 0);
}
