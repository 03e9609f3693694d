//! Contract line 71: sleeping, and waiting with a limit.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use coblk_aio::sync::{CoQueue, CoSleep, TimedOut};
use coblk_aio::{AioContext, Co};

use crate::util::{Log, OnDrop, panic_message, watchdog};

const LONG: Duration = Duration::from_secs(100_000);

#[test]
fn c71_a_sleep_lasts_as_long_as_asked() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    ctx.run(|co| {
        let begin_ns = co.context().now_ns();
        co.sleep(Duration::from_millis(2));
        assert!(co.context().now_ns() - begin_ns >= 2_000_000);
        assert!(!CoSleep::new().sleep(co, Duration::ZERO), "nobody woke it");
    });
}

#[test]
fn c71_a_sleep_can_be_woken_early() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let sleep = CoSleep::new();
    let (early, own) = (Rc::new(Cell::new(None)), sleep.clone());
    let seen = Rc::clone(&early);
    ctx.spawn("sleeps", move |co| {
        for _ in 0..2 {
            seen.set(Some(own.sleep(co, LONG)));
        }
    });
    assert_eq!(early.take(), None);
    sleep.wake();
    assert_eq!(early.take(), Some(true));
    thread::spawn({
        let sleep = sleep.clone();
        move || sleep.wake()
    })
    .join()
    .unwrap();
    assert!(ctx.poll());
    assert_eq!(early.take(), Some(true));
}

#[test]
fn c71_waking_a_non_sleeper_is_a_no_op() {
    let ctx = AioContext::for_test().unwrap();
    let sleep = CoSleep::new();
    sleep.wake();
    let own = sleep.clone();
    ctx.run(move |co| {
        assert!(!own.sleep(co, Duration::from_micros(1)), "an earlier wake is not kept");
    });
    sleep.wake();
    assert!(!ctx.try_poll());
}

#[test]
fn c71_one_who_was_unwound_in_its_sleep_does_not_keep_the_place() {
    let sleep = CoSleep::new();
    let doomed = AioContext::for_test().unwrap();
    let own = sleep.clone();
    doomed.spawn("unwound", move |co| _ = own.sleep(co, LONG));
    let ctx = AioContext::for_test().unwrap();
    let own = sleep.clone();
    let message = panic_message(|| ctx.run(|co| own.sleep(co, LONG)));
    assert_eq!(message, "'run' sleeps where somebody does already");
    drop(doomed);
    assert!(!ctx.run(|co| own.sleep(co, Duration::from_micros(1))));
}

#[test]
fn c71_a_timeout_of_0_runs_in_line() {
    let ctx = AioContext::for_test().unwrap();
    ctx.run(|co| {
        let own = coblk_coroutine::current().unwrap().id();
        let other = co.timeout(Duration::ZERO, "c71", |co| {
            co.yield_now();
            (coblk_coroutine::current().unwrap().id(), co.name())
        });
        assert_eq!(other, Ok((own, "run")));
    });
}

#[test]
fn c71_what_ends_in_time_gives_its_result() {
    let ctx = AioContext::for_test().unwrap();
    ctx.run(|co| {
        assert_eq!(co.timeout(LONG, "at once", |_| 1), Ok(1));
        let later = co.timeout(LONG, "later", |co| {
            co.yield_now();
            String::from("later")
        });
        assert_eq!(later.unwrap(), "later");
    });
}

#[test]
fn c71_a_timeout_does_not_cancel_what_it_timed() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let (log, go_on) = (Log::new(), Rc::new(CoQueue::new()));
    let (said, queue) = (log.clone(), Rc::clone(&go_on));
    let dropped = OnDrop({
        let log = log.clone();
        move || log.add("result dropped")
    });
    let outcome = ctx.run(move |co| {
        co.timeout(Duration::from_micros(10), "slow", move |co| {
            queue.wait(co);
            said.add("ended all the same");
            dropped
        })
        .map(|_| ())
    });
    assert_eq!(outcome, Err(TimedOut));
    assert_eq!(std::io::Error::from(TimedOut).raw_os_error(), Some(libc::ETIMEDOUT));
    assert!(log.take().is_empty());
    assert!(go_on.wake_one());
    assert_eq!(log.take(), ["ended all the same", "result dropped"]);
}

#[test]
fn c71_a_panic_goes_to_whoever_waits() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let message = panic_message(|| {
        ctx.run(|co| {
            co.timeout(LONG, "fails", |co| {
                co.yield_now();
                panic!("in time");
            })
        })
    });
    assert_eq!(message, "in time");
    let go_on = Rc::new(CoQueue::new());
    let queue = Rc::clone(&go_on);
    ctx.run(|co| {
        co.timeout(Duration::from_micros(10), "fails", move |co| {
            queue.wait(co);
            panic!("too late");
        })
    })
    .unwrap_err();
    assert_eq!(panic_message(|| go_on.wake_one()), "too late");
}

#[test]
fn a_context_may_end_with_sleepers_and_timeouts() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    for name in ["a", "b"] {
        let (outer, inner) = (log.clone(), log.clone());
        ctx.spawn(name, move |co| {
            let _outer = OnDrop(|| outer.add("outer"));
            let _ = co.timeout(LONG, "inner", move |co| {
                let _inner = OnDrop(|| inner.add("inner"));
                co.sleep(LONG);
            });
        });
    }
    drop(ctx);
    let mut said = log.take();
    said.sort();
    assert_eq!(said, ["inner", "inner", "outer", "outer"]);
}

#[test]
fn c71_the_time_of_an_earlier_sleep_does_not_end_a_later_one() {
    let ctx = AioContext::for_test().unwrap();
    let (sleep, log) = (CoSleep::new(), Log::new());
    let nap = |name: &'static str, duration| {
        let (sleep, log) = (sleep.clone(), log.clone());
        move |co: &Co<'_>| log.add(format!("{name} {}", sleep.sleep(co, duration)))
    };
    ctx.spawn("earlier", nap("earlier", Duration::ZERO));
    let (remote, later) = (sleep.clone(), nap("later", LONG));
    // Woken from afar the first one is resumed in the next poll. Its timer is due in this one, when
    // the second one sleeps already.
    ctx.schedule(move |ctx| {
        thread::spawn(move || remote.wake()).join().unwrap();
        ctx.spawn("later", later);
    });
    while ctx.try_poll() {}
    assert_eq!(log.take(), ["earlier true"]);
    sleep.wake();
    assert_eq!(log.take(), ["later true"]);
}
