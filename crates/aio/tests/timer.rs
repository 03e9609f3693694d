//! Contract lines 50 to 53: timers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coblk_aio::{AioContext, Timer};

use crate::util;
use crate::util::{Log, OnDrop, Recorder, watchdog};

fn logging(ctx: &AioContext, log: &Log, name: &'static str) -> Timer {
    let log = log.clone();
    ctx.timer(move |_| log.add(name))
}

/// Waits without a poll until the context's clock has passed an instant.
fn sleep_past(ctx: &AioContext, deadline_ns: i64) {
    while ctx.now_ns() <= deadline_ns {
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn c50_a_timer_fires_when_it_is_due_and_not_before() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let fired_ns = Rc::new(Cell::new(0));
    let timer = ctx.timer({
        let fired_ns = Rc::clone(&fired_ns);
        move |ctx| fired_ns.set(ctx.now_ns())
    });
    let deadline_ns = ctx.now_ns() + 5_000_000;
    timer.arm_at_ns(deadline_ns);
    assert!(!ctx.try_poll() || ctx.now_ns() >= deadline_ns);
    ctx.run_until(|| fired_ns.get() != 0);
    assert!(fired_ns.get() >= deadline_ns);
}

#[test]
fn c50_it_is_removed_before_its_callback_which_may_arm_it_again() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let slot: Rc<RefCell<Option<Timer>>> = Rc::default();
    let timer = ctx.timer({
        let (log, slot) = (log.clone(), Rc::clone(&slot));
        move |_| {
            let timer = slot.borrow();
            let timer = timer.as_ref().unwrap();
            log.add(format!("armed {}", timer.is_armed()));
            timer.arm_at_ns(-1);
            log.add(format!("armed {}", timer.is_armed()));
        }
    });
    timer.arm_at_ns(-1);
    *slot.borrow_mut() = Some(timer);
    for _ in 0..3 {
        // Armed for now by its own callback it fires once a poll, not forever in one.
        assert!(ctx.poll());
        assert_eq!(log.take(), ["armed false", "armed true"]);
    }
    slot.take();
    assert!(!ctx.try_poll());
}

#[test]
fn c51_equal_deadlines_fire_in_the_order_of_arming() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let timers = ["a", "b", "c", "d"].map(|name| logging(&ctx, &log, name));
    let deadline_ns = ctx.now_ns();
    for index in [2, 0, 3, 1] {
        timers[index].arm_at_ns(deadline_ns);
    }
    timers[0].arm_at_ns(deadline_ns); // goes to the end
    assert!(ctx.try_poll());
    assert_eq!(log.take(), ["c", "d", "b", "a"]);
}

#[test]
fn c51_different_deadlines_fire_in_their_order() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let timers = ["1", "2", "3"].map(|name| logging(&ctx, &log, name));
    for (index, deadline_ns) in [(2, 30), (0, 10), (1, 20)] {
        timers[index].arm_at_ns(deadline_ns);
    }
    assert!(ctx.poll());
    assert_eq!(log.take(), ["1", "2", "3"]);
}

#[test]
fn c51_a_negative_deadline_means_now() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let (first, second) = (logging(&ctx, &log, "first"), logging(&ctx, &log, "second"));
    first.arm_at_ns(-1);
    second.arm_at_ns(i64::MIN);
    assert!(ctx.poll());
    assert_eq!(log.take(), ["first", "second"], "now is now, for both");
}

#[test]
fn c51_a_new_earliest_timer_shortens_the_wait() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let (far, near) = (logging(&ctx, &log, "far"), logging(&ctx, &log, "near"));
    far.arm_after(Duration::from_secs(100_000));
    near.arm_after(Duration::from_millis(1));
    assert!(ctx.poll());
    assert_eq!(log.take(), ["near"]);
}

#[test]
fn c52_anticipate_only_moves_a_timer_earlier() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let timer = logging(&ctx, &log, "fired");
    let far_ns = ctx.now_ns() + 1_000_000_000_000;
    timer.anticipate_at_ns(far_ns);
    assert!(timer.is_armed(), "arms one that is not armed");
    timer.anticipate_at_ns(0);
    timer.anticipate_at_ns(far_ns);
    assert!(ctx.try_poll());
    assert_eq!(log.take(), ["fired"]);
    assert!(!timer.is_armed());
}

#[test]
fn c53_a_timer_slept_past_fires_on_a_non_blocking_poll() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let timer = logging(&ctx, &log, "fired");
    let deadline_ns = ctx.now_ns() + 1_000_000;
    timer.arm_at_ns(deadline_ns);
    sleep_past(&ctx, deadline_ns);
    assert!(ctx.try_poll());
    assert_eq!(log.take(), ["fired"]);
    assert!(!ctx.try_poll());
}

#[test]
fn c53_armed_again_it_ends_a_blocking_poll() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let timer = logging(&ctx, &log, "fired");
    for _ in 0..3 {
        timer.arm_after(Duration::from_millis(1));
        assert!(ctx.poll());
        assert_eq!(log.take(), ["fired"]);
    }
}

#[test]
fn c53_ours_deadlines_are_kept_in_nanoseconds() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let recorder = Recorder::new();
    let timer = ctx.timer(|_| ());
    // A wait rounded up to milliseconds would make a hundred of these take 100 ms at the least.
    // That they can be quicker is what is asserted; how quick they are depends on the machine.
    let best = (0..100)
        .map(|_| {
            let begin = Instant::now();
            timer.arm_after(Duration::from_micros(50));
            recorder.record(|| ctx.run_until(|| !timer.is_armed()));
            begin.elapsed()
        })
        .min();
    assert!(best.unwrap() < Duration::from_millis(1), "best of 100: {best:?}");
}

#[test]
fn a_timer_may_be_dropped_from_its_own_callback() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let slot: Rc<RefCell<Option<Timer>>> = Rc::default();
    let freed = OnDrop({
        let log = log.clone();
        move || log.add("freed")
    });
    let timer = ctx.timer({
        let (log, slot) = (log.clone(), Rc::clone(&slot));
        move |_| {
            let _freed = &freed;
            drop(slot.take());
            log.add("ran");
        }
    });
    timer.arm_at_ns(0);
    *slot.borrow_mut() = Some(timer);
    assert!(ctx.try_poll());
    assert_eq!(log.take(), ["ran", "freed"]);
}

#[test]
fn a_timer_may_be_dropped_or_cancelled_from_another_ones_callback() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let victims: Rc<RefCell<Vec<Timer>>> = Rc::default();
    let killer = ctx.timer({
        let victims = Rc::clone(&victims);
        move |_| {
            victims.borrow()[0].cancel();
            drop(victims.borrow_mut().remove(1));
        }
    });
    killer.arm_at_ns(0);
    for name in ["cancelled", "dropped"] {
        let timer = logging(&ctx, &log, name);
        timer.arm_at_ns(0);
        victims.borrow_mut().push(timer);
    }
    assert!(ctx.try_poll());
    assert!(log.take().is_empty());
    victims.borrow()[0].arm_at_ns(0);
    assert!(ctx.try_poll());
    assert_eq!(log.take(), ["cancelled"], "can be armed again");
    victims.take();
}

#[test]
fn a_timer_may_outlive_its_context() {
    let ctx = AioContext::for_test().unwrap();
    let timer = ctx.timer(|_| ());
    timer.arm_at_ns(0);
    drop(ctx);
    timer.arm_after(Duration::ZERO);
    timer.cancel();
}

#[test]
fn many_timers_armed_and_cancelled_at_random_fire_as_a_model_says() {
    let ctx = AioContext::for_test().unwrap();
    let mut random = util::Random::new(7);
    let fired: Rc<RefCell<Vec<usize>>> = Rc::default();
    let timers: Vec<_> = (0..200)
        .map(|index| {
            let fired = Rc::clone(&fired);
            ctx.timer(move |_| fired.borrow_mut().push(index))
        })
        .collect();
    for _ in 0..20 {
        // (deadline, age) by timer: the model.
        let mut model = vec![None; timers.len()];
        // All deadlines are far from now and then moved, together, to the past.
        for age in 0..2_000 {
            let index = random.below(timers.len());
            if random.below(3) == 0 {
                timers[index].cancel();
                model[index] = None;
            } else {
                let deadline_ns = 1_000_000_000_000 + random.below(50) as i64;
                timers[index].arm_at_ns(deadline_ns);
                model[index] = Some((deadline_ns, age));
            }
        }
        let mut order: Vec<_> = (0..timers.len()).filter(|index| model[*index].is_some()).collect();
        order.sort_by_key(|index| model[*index]);
        let now_ns = ctx.now_ns();
        assert!(!ctx.try_poll());
        for index in &order {
            timers[*index].anticipate_at_ns(now_ns);
        }
        assert!(ctx.try_poll());
        assert_eq!(fired.take(), order);
        assert!(timers.iter().all(|timer| !timer.is_armed()));
    }
}
