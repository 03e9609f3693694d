//! When workers are woken for what a turn of a loop has submitted: at its end, or before the thread waits for
//! anything else. In each of these tests a worker sleeps, and nothing else would wake it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};

use coblk_aio::{AioContext, AioHandle, IoThread, ThreadPool};

use crate::util::{Slot, context, panic_message, until, until_the_worker_sleeps, watchdog};

/// A flag, and a job that raises it and then wakes that loop, if any.
fn flag(loop_to_wake: Option<AioHandle>) -> (Arc<AtomicBool>, impl FnOnce() + Send + use<>) {
    let raised = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&raised);
    let job = move || {
        flag.store(true, Ordering::Release);
        if let Some(handle) = loop_to_wake {
            handle.notify();
        }
    };
    (raised, job)
}

/// Runs `in_turn` in a turn of a context whose pool has one worker, and returns when it has returned.
fn in_turn(in_turn: impl FnOnce(&AioContext) + 'static) {
    let ctx = context(1, 1);
    until_the_worker_sleeps(&ctx);
    let ran = Rc::new(Cell::new(false));
    let done = Rc::clone(&ran);
    ctx.schedule(move |ctx| {
        in_turn(ctx);
        done.set(true);
    });
    ctx.run_until(|| ran.get());
}

#[test]
fn c54_a_job_that_is_submitted_outside_of_a_turn_needs_no_poll() {
    let _watchdog = watchdog();
    let ctx = context(1, 1);
    until_the_worker_sleeps(&ctx);
    let (ran, job) = flag(None);
    ctx.thread_pool().submit_aio(&ctx, job, |_, _| ());
    until(|| ran.load(Ordering::Acquire));
    // Nor one that is submitted behind a nested poll.
    in_turn(|ctx| {
        ctx.try_poll();
        let (ran, job) = flag(None);
        ctx.thread_pool().submit_aio(ctx, job, |_, _| ());
        until(|| ran.load(Ordering::Acquire));
    });
}

#[test]
fn jobs_of_one_turn_that_wait_for_each_other_run_at_the_same_time() {
    let _watchdog = watchdog();
    const JOBS: usize = 6;
    for idle in [0, 1, JOBS] {
        let ctx = context(idle, JOBS);
        until(|| ctx.thread_pool().idle_threads() == idle);
        for _ in 0..20 {
            let done = Rc::new(Cell::new(0));
            let (barrier, count) = (Arc::new(Barrier::new(JOBS)), Rc::clone(&done));
            ctx.schedule(move |ctx| {
                for _ in 0..JOBS {
                    let (barrier, count) = (Arc::clone(&barrier), Rc::clone(&count));
                    let job = move || {
                        barrier.wait();
                    };
                    ctx.thread_pool().submit_aio(ctx, job, move |_, _| count.set(count.get() + 1));
                }
            });
            ctx.run_until(|| done.get() == JOBS);
        }
    }
}

#[test]
fn a_nested_poll_wakes_the_worker_first() {
    let _watchdog = watchdog();
    in_turn(|ctx| {
        let done = Rc::new(Cell::new(false));
        let seen = Rc::clone(&done);
        ctx.thread_pool().submit_aio(ctx, || (), move |_, _| done.set(true));
        ctx.run_until(|| seen.get());
    });
}

#[test]
fn a_poll_of_another_context_of_the_thread_wakes_the_worker_first() {
    let _watchdog = watchdog();
    let other = AioContext::for_test().unwrap();
    in_turn(move |ctx| {
        let (ran, job) = flag(Some(other.handle()));
        ctx.thread_pool().submit_aio(ctx, job, |_, _| ());
        other.run_until(|| ran.load(Ordering::Acquire));
    });
}

#[test]
fn a_wait_in_another_loop_wakes_the_worker_first() {
    let _watchdog = watchdog();
    let guest = AioContext::for_test().unwrap();
    in_turn(move |ctx| {
        let (ran, job) = flag(Some(guest.handle()));
        ctx.thread_pool().submit_aio(ctx, job, |_, _| ());
        while !ran.load(Ordering::Acquire) {
            let wait = guest.prepare_wait();
            // The loop that the context is a guest of waits without polling any context.
            until(|| ran.load(Ordering::Acquire));
            drop(wait);
        }
    });
}

#[test]
fn a_job_for_a_second_pool_wakes_the_worker_of_the_first() {
    let _watchdog = watchdog();
    let second = ThreadPool::new(1, 1).unwrap();
    in_turn(move |ctx| {
        let (ran, job) = flag(None);
        ctx.thread_pool().submit_aio(ctx, job, |_, _| ());
        second.submit_aio(ctx, || (), |_, _| ());
        until(|| ran.load(Ordering::Acquire));
    });
}

#[test]
fn the_end_of_a_pool_wakes_the_worker_of_another_first() {
    let _watchdog = watchdog();
    let ends = ThreadPool::new(1, 1).unwrap();
    in_turn(move |ctx| {
        let (ran, job) = flag(None);
        let waits = move || until(|| ran.load(Ordering::Acquire));
        ends.submit_aio(ctx, waits, |_, _| ());
        ctx.thread_pool().submit_aio(ctx, job, |_, _| ());
        drop(ends);
    });
}

#[test]
fn a_wait_for_another_threads_coroutine_wakes_the_worker_first() {
    let _watchdog = watchdog();
    let thread = IoThread::new("other").unwrap();
    in_turn(move |ctx| {
        let (sender, receiver) = channel();
        ctx.thread_pool().submit_aio(ctx, move || sender.send(5).unwrap(), |_, _| ());
        let answer = thread.handle().spawn("waits for the job", move |_| receiver.recv().unwrap());
        assert_eq!(answer.wait(), Ok(5));
    });
}

#[test]
fn the_end_of_another_thread_wakes_the_worker_first() {
    let _watchdog = watchdog();
    in_turn(|ctx| {
        let thread = IoThread::new("other").unwrap();
        let ((begun, begins), (sender, receiver)) = (channel(), channel());
        let _answer = thread.handle().spawn("waits for the job", move |_| {
            begun.send(()).unwrap();
            receiver.recv().unwrap();
        });
        begins.recv().unwrap();
        ctx.thread_pool().submit_aio(ctx, move || sender.send(()).unwrap(), |_, _| ());
        thread.join().unwrap();
    });
}

#[test]
fn a_coroutine_that_is_unwound_in_the_turn_of_its_job_gets_it_back() {
    let _watchdog = watchdog();
    let ctx = context(1, 1);
    until_the_worker_sleeps(&ctx);
    let (slot, (ran, job)) = (Slot::default(), flag(None));
    let waits = slot.clone();
    let coroutine = ctx.spawn_join("has a job", move |co| {
        waits.wait(co);
        co.context().thread_pool().submit_co(co, job);
    });
    // One turn resumes it, and then ends it.
    ctx.schedule(move |_| slot.take().wake());
    coroutine.abort();
    ctx.poll();
    assert!(ran.load(Ordering::Acquire));
    assert!(coroutine.is_finished());
}

#[test]
fn c54_a_turn_that_ends_with_a_panic_wakes_the_worker() {
    let _watchdog = watchdog();
    let ctx = context(1, 1);
    until_the_worker_sleeps(&ctx);
    let (ran, job) = flag(None);
    ctx.schedule(move |ctx| {
        ctx.thread_pool().submit_aio(ctx, job, |_, _| ());
        panic!("behind the submission");
    });
    assert_eq!(panic_message(|| ctx.poll()), "behind the submission");
    until(|| ran.load(Ordering::Acquire));
}
