//! The simulated mode: one seed is one run.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coblk_aio::sys::faults::Faults;
use coblk_aio::{AioContext, IoVector, SimulationOptions, sys};

fn simulated(options: SimulationOptions) -> AioContext {
    AioContext::test_builder().simulated(options).build().unwrap()
}

/// Runs twenty coroutines that submit jobs, and a timer; returns what happened in which order, and
/// the digest.
fn run(seed: u64) -> (Vec<(u32, u32)>, u64) {
    let ctx = simulated(SimulationOptions::new(seed));
    let order = Rc::new(RefCell::new(Vec::new()));
    let left = Rc::new(Cell::new(21));
    for who in 0..20 {
        let (order, left) = (Rc::clone(&order), Rc::clone(&left));
        ctx.spawn("submitter", move |co| {
            for step in 0..10 {
                let answer = co.context().thread_pool().submit_co(co, || who * 100 + step);
                order.borrow_mut().push((who, answer));
            }
            left.set(left.get() - 1);
        });
    }
    let timer = ctx.timer({
        let (left, order) = (Rc::clone(&left), Rc::clone(&order));
        move |_| {
            left.set(left.get() - 1);
            order.borrow_mut().push((u32::MAX, 0));
        }
    });
    timer.arm_after(Duration::from_micros(300));
    ctx.run_until(|| left.get() == 0);
    (order.take(), ctx.simulation().unwrap().digest())
}

#[test]
fn the_same_seed_replays_the_same_run() {
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

#[test]
fn another_seed_is_another_run() {
    let runs: std::collections::HashSet<_> = (0..20).map(|seed| run(seed).1).collect();
    assert_eq!(runs.len(), 20);
}

#[test]
fn the_clock_jumps_instead_of_waiting() {
    let ctx = simulated(SimulationOptions::new(1));
    let fired = Rc::new(Cell::new(false));
    let timer = ctx.timer({
        let fired = Rc::clone(&fired);
        move |_| fired.set(true)
    });
    timer.arm_after(Duration::from_secs(3600));
    ctx.run_until(|| fired.get());
    assert_eq!(ctx.now_ns(), 3_600_000_000_000);
}

#[test]
fn faults_come_by_seed() {
    let file = tempfile::tempfile().unwrap();
    let write_fifty = |seed| {
        let faults = Faults::default().short_per_mille(300).interrupted_per_mille(300);
        let ctx = simulated(SimulationOptions::new(seed).faults(faults));
        ctx.run(|co| {
            let write = || sys::pwritev(file.as_fd(), &IoVector::from(&[7u8; 1000][..]), 0);
            (0..50)
                .map(|_| co.context().thread_pool().submit_co(co, write))
                .map(|result| result.map_err(|error| error.raw_os_error()))
                .collect::<Vec<_>>()
        })
    };
    let results = write_fifty(3);
    assert_eq!(results, write_fifty(3));
    assert_ne!(results, write_fifty(4));
    for expected in [Err(Some(libc::EINTR)), Err(Some(libc::EAGAIN)), Ok(1000)] {
        assert!(results.contains(&expected), "no {expected:?} in {results:?}");
    }
    assert!(results.iter().any(|result| matches!(result, Ok(1..1000))));
    // Outside a simulated job nothing is injected.
    for _ in 0..100 {
        let written = sys::pwritev(file.as_fd(), &IoVector::from(&[7u8; 1000][..]), 0);
        assert_eq!(written.unwrap(), 1000);
    }
}

#[test]
fn a_context_may_end_while_simulated_jobs_wait() {
    let ctx = simulated(SimulationOptions::new(9));
    let ran = Arc::new(AtomicBool::new(false));
    let in_job = Arc::clone(&ran);
    ctx.spawn("never finished", move |co| {
        co.context().thread_pool().submit_co(co, move || in_job.store(true, Ordering::SeqCst));
    });
    drop(ctx);
    assert!(!ran.load(Ordering::SeqCst), "the job was withdrawn");
}
