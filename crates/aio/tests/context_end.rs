//! How a context, and what runs in it, comes to an end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use coblk_aio::{AioContext, CoWaker};

use crate::util::{Log, OnDrop, Slot, panic_message, watchdog};

#[test]
fn a_context_that_ends_unwinds_its_coroutines() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let slot = Slot::default();
    let (own, said) = (slot.clone(), log.clone());
    let in_closure = OnDrop({
        let log = log.clone();
        move || log.add("closure")
    });
    ctx.spawn("suspended", move |co| {
        let _in_closure = &in_closure;
        let _in_frame = OnDrop(|| said.add("frame"));
        own.wait(co);
        unreachable!();
    });
    drop(ctx);
    assert_eq!(log.take(), ["frame", "closure"]);
    // The waker is still there, and without effect.
    slot.take().wake();
}

#[test]
fn a_context_dropped_by_a_panic_unwinds_its_coroutines() {
    let log = Log::new();
    let message = panic_message(|| {
        let ctx = AioContext::for_test().unwrap();
        let said = log.clone();
        ctx.spawn("suspended", move |co| {
            let _in_frame = OnDrop(|| said.add("frame"));
            Slot::default().wait(co);
        });
        let (slot, said) = (Slot::default(), log.clone());
        ctx.spawn("suspended", move |co| {
            let _in_frame = OnDrop(|| said.add("frame"));
            slot.wait(co);
        });
        panic!("the owner fails");
    });
    assert_eq!((message.as_str(), log.take().len()), ("the owner fails", 2));
}

#[test]
fn a_coroutine_unwound_may_hold_the_wakers_of_others() {
    for _ in 0..20 {
        let ctx = AioContext::for_test().unwrap();
        let slots: Vec<Slot> = (0..10).map(|_| Slot::default()).collect();
        for index in 0..slots.len() {
            let (own, next) = (slots[index].clone(), slots[(index + 1) % slots.len()].clone());
            ctx.spawn("ring", move |co| {
                let _holds = OnDrop(|| match index % 3 {
                    0 => drop(next.0.take()),
                    1 => next.0.take().into_iter().for_each(CoWaker::wake),
                    _ => {}
                });
                own.wait(co);
            });
        }
        drop(ctx);
    }
}

#[test]
fn wakers_used_or_dropped_on_other_threads_while_the_context_ends() {
    let _watchdog = watchdog();
    for round in 0..300 {
        let ctx = AioContext::for_test().unwrap();
        let slots: Vec<Slot> = (0..8).map(|_| Slot::default()).collect();
        let frames = Rc::new(());
        for slot in &slots {
            let (own, frame) = (slot.clone(), Rc::clone(&frames));
            ctx.spawn("races", move |co| {
                let _frame = &frame;
                own.wait(co);
            });
        }
        let mut threads: Vec<_> = Vec::new();
        for half in slots.chunks(4) {
            let wakers: Vec<_> = half.iter().map(Slot::take).collect();
            threads.push(thread::spawn(move || {
                for (index, waker) in wakers.into_iter().enumerate() {
                    if index % 4 == 3 { drop(waker) } else { waker.wake() }
                }
            }));
        }
        if round % 2 == 0 {
            // A dropped waker may make this panic; that is no business of this test.
            let _ = catch_unwind(AssertUnwindSafe(|| ctx.try_poll()));
        }
        drop(ctx);
        assert_eq!(Rc::strong_count(&frames), 1, "every coroutine has ended");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn a_closed_context_drops_what_it_is_given() {
    let ctx = AioContext::for_test().unwrap();
    let handle = ctx.handle();
    assert!(!handle.is_closed());
    drop(ctx);
    assert!(handle.is_closed());
    let witness = Arc::new(());
    let (one, two) = (Arc::clone(&witness), Arc::clone(&witness));
    handle.schedule(move |_| drop(one));
    handle.spawn("never", move |_| drop(two));
    handle.notify();
    assert_eq!(Arc::strong_count(&witness), 1);
}

#[test]
fn run_borrows_and_carries_results_and_panics() {
    let ctx = AioContext::for_test().unwrap();
    let mut local = 0;
    let text = ctx.run(|co| {
        co.yield_now();
        local += 1;
        "done".to_owned()
    });
    assert_eq!((local, text.as_str()), (1, "done"));
    let message = panic_message(|| {
        ctx.run(|co| {
            co.yield_now();
            panic!("inside run");
        })
    });
    assert_eq!(message, "inside run");
    let message = panic_message(|| ctx.run(|co| co.context().run(|_| ())));
    assert_eq!(message, "AioContext::run called inside a coroutine");
}

#[test]
fn run_that_is_left_by_somebody_elses_panic_leaves_nothing_behind() {
    // Another coroutine, woken by the one that `run` runs, panics when that one suspends. The
    // panic leaves `run`, whose coroutine borrows from our frame and must not stay.
    let ctx = AioContext::for_test().unwrap();
    let slot = Slot::default();
    let own = slot.clone();
    ctx.spawn("fails", move |co| {
        own.wait(co);
        panic!("another one fails");
    });
    let log = Log::new();
    let late = Slot::default();
    let message = panic_message(|| {
        let in_frame = OnDrop(|| log.add("frame"));
        ctx.run(|co| {
            let _in_frame = in_frame;
            slot.take().wake();
            late.wait(co);
            unreachable!("the frame that this borrows from is gone");
        })
    });
    assert_eq!(message, "another one fails");
    assert_eq!(log.take(), ["frame"]);
    late.take().wake();

    // The same, in a poll.
    ctx.schedule(|_| panic!("a callback fails"));
    let message = panic_message(|| ctx.run(|co| late.wait(co)));
    assert_eq!(message, "a callback fails");
    late.take().wake();
    assert!(!ctx.try_poll());
}
