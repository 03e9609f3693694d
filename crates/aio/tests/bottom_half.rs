//! Contract lines 29 to 39: bottom halves.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use coblk_aio::{AioContext, BottomHalf, RemoteBottomHalf};

use crate::util::{Log, OnDrop, Recorder, panic_message, watchdog};

/// A bottom half that logs its name.
fn logging(ctx: &AioContext, log: &Log, name: &'static str) -> BottomHalf {
    let log = log.clone();
    ctx.bottom_half(name, move |_| log.add(name))
}

/// A bottom half that counts its runs.
fn counting(ctx: &AioContext) -> (BottomHalf, Rc<Cell<usize>>) {
    let runs = Rc::new(Cell::new(0));
    let count = Rc::clone(&runs);
    (ctx.bottom_half("counting", move |_| count.set(count.get() + 1)), runs)
}

#[test]
fn c29_a_bottom_half_never_runs_inside_schedule() {
    let ctx = AioContext::for_test().unwrap();
    let (bh, runs) = counting(&ctx);
    bh.schedule();
    bh.remote().schedule();
    ctx.handle().schedule(|_| panic!("ran inside schedule, or at the drop"));
    assert_eq!(runs.get(), 0);
    drop(ctx);
    assert_eq!(runs.get(), 0);
}

#[test]
fn c30_scheduled_twice_before_a_poll_it_runs_once() {
    let ctx = AioContext::for_test().unwrap();
    let (bh, runs) = counting(&ctx);
    bh.schedule();
    bh.schedule();
    bh.remote().schedule();
    while ctx.try_poll() {}
    assert_eq!(runs.get(), 1);
    bh.schedule();
    assert!(ctx.try_poll());
    assert_eq!(runs.get(), 2);
}

#[test]
fn c31_scheduled_from_its_own_callback_it_runs_in_the_next_poll() {
    let ctx = AioContext::for_test().unwrap();
    let runs = Rc::new(Cell::new(0));
    let slot: Rc<RefCell<Option<BottomHalf>>> = Rc::default();
    let bh = ctx.bottom_half("again", {
        let (runs, slot) = (Rc::clone(&runs), Rc::clone(&slot));
        move |_| {
            runs.set(runs.get() + 1);
            match runs.get() {
                1 => slot.borrow().as_ref().unwrap().schedule(),
                2 => slot.borrow().as_ref().unwrap().remote().schedule(),
                _ => {}
            }
        }
    });
    *slot.borrow_mut() = Some(bh);
    slot.borrow().as_ref().unwrap().schedule();
    for expected in 1..=3 {
        assert!(ctx.try_poll());
        assert_eq!(runs.get(), expected);
    }
    assert!(!ctx.try_poll());
    slot.take();
}

#[test]
fn c32_cancelled_it_does_not_run_and_poll_reports_no_progress() {
    let ctx = AioContext::for_test().unwrap();
    let (bh, runs) = counting(&ctx);
    bh.schedule();
    bh.cancel();
    assert!(!ctx.try_poll());
    bh.remote().schedule();
    bh.cancel();
    assert!(!ctx.try_poll());
    assert_eq!(runs.get(), 0);
}

#[test]
fn c32_cancelled_and_scheduled_again_it_runs_once() {
    let ctx = AioContext::for_test().unwrap();
    let (bh, runs) = counting(&ctx);
    bh.schedule();
    bh.cancel();
    bh.schedule();
    assert!(ctx.try_poll());
    assert!(!ctx.try_poll());
    assert_eq!(runs.get(), 1);
}

#[test]
fn c33_deleted_while_scheduled_it_never_runs() {
    let ctx = AioContext::for_test().unwrap();
    for by_remote in [false, true] {
        let (bh, runs) = counting(&ctx);
        let remote = bh.remote();
        if by_remote {
            remote.schedule()
        } else {
            bh.schedule()
        }
        drop(bh);
        assert!(!ctx.try_poll());
        remote.schedule();
        assert!(!ctx.try_poll());
        assert_eq!((runs.get(), Rc::strong_count(&runs)), (0, 1), "the closure is dropped too");
    }
}

#[test]
fn c34_deleting_from_its_own_callback_is_safe() {
    let ctx = AioContext::for_test().unwrap();
    let slot: Rc<RefCell<Option<BottomHalf>>> = Rc::default();
    let (log, text) = (Log::new(), String::from("closure still there"));
    let bh = ctx.bottom_half("self", {
        let (slot, log) = (Rc::clone(&slot), log.clone());
        move |_| {
            slot.borrow().as_ref().unwrap().schedule();
            drop(slot.take());
            log.add(text.clone());
        }
    });
    bh.schedule();
    *slot.borrow_mut() = Some(bh);
    assert!(ctx.try_poll());
    assert!(!ctx.try_poll(), "deleted after it scheduled itself");
    assert_eq!(log.take(), ["closure still there"]);
}

#[test]
fn c34_deleting_many_from_one_callback_is_safe() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let all: Rc<RefCell<Vec<BottomHalf>>> = Rc::default();
    for index in 0..10 {
        let (all, log) = (Rc::clone(&all), log.clone());
        let bh = ctx.bottom_half("many", {
            let all = Rc::clone(&all);
            move |_| {
                log.add(format!("{index}"));
                let doomed = std::mem::take(&mut *all.borrow_mut());
                drop(doomed);
            }
        });
        bh.schedule();
        all.borrow_mut().push(bh);
    }
    assert!(ctx.try_poll());
    assert_eq!(log.take(), ["0"]);
    assert!(!ctx.try_poll());
}

#[test]
fn c35_a_one_shot_frees_itself() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let freed = OnDrop({
        let log = log.clone();
        move || log.add("freed")
    });
    ctx.schedule({
        let log = log.clone();
        move |_| {
            let _freed = &freed;
            log.add("ran");
        }
    });
    assert!(ctx.try_poll());
    assert_eq!(log.take(), ["ran", "freed"]);
    assert!(!ctx.try_poll());
}

#[test]
fn c35_a_one_shot_that_never_runs_is_freed_with_its_context() {
    let ctx = AioContext::for_test().unwrap();
    let (log, witness) = (Log::new(), Arc::new(()));
    let freed = OnDrop({
        let log = log.clone();
        move || log.add("freed")
    });
    ctx.schedule(move |_| drop(freed));
    let remote = Arc::clone(&witness);
    let handle = ctx.handle();
    thread::spawn(move || handle.schedule(move |_| drop(remote))).join().unwrap();
    drop(ctx);
    assert_eq!(log.take(), ["freed"]);
    assert_eq!(Arc::strong_count(&witness), 1);
}

#[test]
fn c36_a_nested_poll_runs_what_is_left_of_the_outer_slice_first() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let late = logging(&ctx, &log, "late");
    let outer = ctx.bottom_half("outer", {
        let log = log.clone();
        move |ctx| {
            log.add("outer begins");
            late.schedule();
            assert!(ctx.try_poll());
            log.add("outer ends");
        }
    });
    let (second, third) = (logging(&ctx, &log, "second"), logging(&ctx, &log, "third"));
    outer.schedule();
    second.schedule();
    third.schedule();
    assert!(ctx.try_poll());
    assert_eq!(log.take(), ["outer begins", "second", "third", "late", "outer ends"]);
    assert!(!ctx.try_poll());
}

#[test]
fn c36_nested_polls_may_be_deep() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    for depth in 0..20 {
        let log = log.clone();
        ctx.schedule(move |ctx| {
            log.add(format!("{depth}"));
            ctx.try_poll();
            log.add(format!("{depth}"));
        });
    }
    assert!(ctx.try_poll());
    let expected: Vec<_> = (0..20).chain((0..20).rev()).map(|it| it.to_string()).collect();
    assert_eq!(log.take(), expected);
}

#[test]
fn c37_bottom_halves_of_one_thread_run_in_order() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let bhs: Vec<_> = ["a", "b", "c", "d"].map(|name| logging(&ctx, &log, name)).into();
    for order in [[0, 1, 2, 3], [3, 1, 0, 2]] {
        order.iter().for_each(|index: &usize| bhs[*index].schedule());
        ctx.try_poll();
        assert_eq!(log.take(), order.map(|index| bhs[index].name()));
    }
    let remotes: Vec<RemoteBottomHalf> = bhs.iter().map(BottomHalf::remote).collect();
    thread::spawn(move || [2, 0, 3, 1].map(|index: usize| remotes[index].schedule()))
        .join()
        .unwrap();
    ctx.try_poll();
    assert_eq!(log.take(), ["c", "a", "d", "b"]);
}

#[test]
fn c39_a_context_that_ends_with_a_live_bottom_half_says_which() {
    let recorder = Recorder::new();
    let bh = recorder.record(|| {
        let ctx = AioContext::test_builder().name("doomed").build().unwrap();
        let deleted = ctx.bottom_half("deleted in time", |_| ());
        drop(deleted);
        ctx.bottom_half("forgotten", |_| ())
    });
    let said = recorder.containing("ends with a bottom half");
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("doomed") && said[0].contains("forgotten"), "{}", said[0]);
    bh.schedule();
    bh.remote().schedule();
    bh.cancel();
}

#[test]
fn a_panic_leaves_the_rest_scheduled() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let bad = ctx.bottom_half("bad", |_| panic!("a bad callback"));
    let (good, late) = (logging(&ctx, &log, "good"), logging(&ctx, &log, "late"));
    bad.schedule();
    good.schedule();
    assert_eq!(panic_message(|| ctx.try_poll()), "a bad callback");
    late.schedule();
    assert!(ctx.poll());
    assert_eq!(log.take(), ["good", "late"]);
    bad.schedule();
    assert_eq!(panic_message(|| ctx.try_poll()), "a bad callback", "still usable");
}

#[test]
fn a_closure_may_own_other_bottom_halves_and_itself_be_dropped_by_them() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let inner = logging(&ctx, &log, "inner");
    inner.schedule();
    let on_drop = OnDrop({
        let (other, log) = (logging(&ctx, &log, "from a destructor"), log.clone());
        move || {
            other.schedule();
            log.add("dropped");
        }
    });
    let outer = ctx.bottom_half("outer", move |_| {
        let _ = (&inner, &on_drop);
    });
    drop(outer);
    assert_eq!(log.take(), ["dropped"]);
    assert!(!ctx.try_poll(), "all of them are deleted");
}

#[test]
fn remote_schedules_are_never_lost_in_a_storm() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 20_000;
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let posted = Arc::new(AtomicUsize::new(0));
    let seen = Rc::new(Cell::new(0));
    let bhs: Vec<_> = (0..THREADS)
        .map(|_| {
            let (posted, seen) = (Arc::clone(&posted), Rc::clone(&seen));
            ctx.bottom_half("storm", move |_| {
                seen.set(seen.get() + posted.swap(0, Ordering::AcqRel));
            })
        })
        .collect();
    let one_shots = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..THREADS)
        .map(|index| {
            // Each thread uses its own bottom half and a neighbour's.
            let remotes = [bhs[index].remote(), bhs[(index + 1) % THREADS].remote()];
            let (posted, one_shots) = (Arc::clone(&posted), Arc::clone(&one_shots));
            let handle = ctx.handle();
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    posted.fetch_add(1, Ordering::AcqRel);
                    remotes[round % 2].schedule();
                    if round % 16 == 0 {
                        let one_shots = Arc::clone(&one_shots);
                        handle.schedule(move |_| {
                            one_shots.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                }
            })
        })
        .collect();
    // Blocks whenever there is nothing to do: a lost notification would hang here.
    ctx.run_until(|| {
        seen.get() == THREADS * ROUNDS
            && one_shots.load(Ordering::Relaxed) == THREADS * ROUNDS.div_ceil(16)
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_context_may_end_while_other_threads_schedule() {
    let _watchdog = watchdog();
    for _ in 0..200 {
        let ctx = AioContext::for_test().unwrap();
        let (bh, runs) = counting(&ctx);
        let (remote, handle) = (bh.remote(), ctx.handle());
        let closed = Arc::new(AtomicBool::new(false));
        let witness = Arc::new(());
        let thread = thread::spawn({
            let (closed, witness) = (Arc::clone(&closed), Arc::clone(&witness));
            move || {
                let mut last_lap = false;
                loop {
                    remote.schedule();
                    let witness = Arc::clone(&witness);
                    handle.schedule(move |_| drop(witness));
                    handle.notify();
                    if last_lap {
                        return;
                    }
                    last_lap = closed.load(Ordering::Acquire);
                }
            }
        });
        ctx.poll();
        drop(bh);
        drop(ctx);
        closed.store(true, Ordering::Release);
        thread.join().unwrap();
        assert_eq!(Arc::strong_count(&witness), 1, "every closure was run or dropped");
        assert!(runs.get() <= 1);
    }
}
