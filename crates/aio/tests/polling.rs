//! Adaptive polling (contract: C45 to C48). The arithmetic of the polling time is tested at the
//! foot of `context/busy_poll`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::{AioContext, BusyPoll, EventNotifier, FdHandler, FdInterest, IoThread, PollParams};

/// A context that looks for work for a long time once it has waited a little.
fn polling_context() -> AioContext {
    let ctx = AioContext::test_builder().poll_max(Duration::from_secs(1)).build().unwrap();
    ctx.set_poll_params(PollParams::new(Duration::from_secs(1)).grow(1_000_000).shrink(1));
    for _ in 0..2 {
        ctx.poll_timeout(Duration::from_millis(1));
    }
    assert!(ctx.poll_time() > Duration::from_millis(1), "{:?}", ctx.poll_time());
    ctx
}

/// Hooks made of closures. Counts in `begun` how often the loop began to look, less how often it
/// ended that.
struct Hooks {
    busy: Box<dyn Fn() -> bool>,
    ready: Box<dyn Fn(&AioContext)>,
    begun: Rc<Cell<i32>>,
}

impl BusyPoll for Hooks {
    fn is_busy(&self, _: &AioContext) -> bool {
        (self.busy)()
    }

    fn ready(&self, ctx: &AioContext) {
        (self.ready)(ctx);
    }

    fn begin(&self, _: &AioContext) {
        self.begun.set(self.begun.get() + 1);
    }

    fn end(&self, _: &AioContext) {
        self.begun.set(self.begun.get() - 1);
    }
}

/// A handler on `notifier` that counts calls of its callback and its two hooks; `busy` is what the
/// busy hook says.
fn watch(
    ctx: &AioContext,
    notifier: &EventNotifier,
    busy: &Rc<Cell<bool>>,
    begun: &Rc<Cell<i32>>,
) -> (FdHandler<EventNotifier>, [Rc<Cell<u32>>; 3]) {
    let counts: [Rc<Cell<u32>>; 3] = Default::default();
    let add = |count: &Rc<Cell<u32>>| {
        let count = Rc::clone(count);
        move || count.set(count.get() + 1)
    };
    let [on_fd, on_busy, on_ready] = [add(&counts[0]), add(&counts[1]), add(&counts[2])];
    let (own, says, clears) = (notifier.try_clone().unwrap(), Rc::clone(busy), Rc::clone(busy));
    let hooks = Hooks {
        busy: Box::new(move || {
            on_busy();
            says.get()
        }),
        ready: Box::new(move |_| {
            clears.set(false);
            on_ready();
        }),
        begun: Rc::clone(begun),
    };
    let callback = move |_: &AioContext, _| {
        own.test_and_clear().unwrap();
        on_fd();
    };
    let own = notifier.try_clone().unwrap();
    (ctx.polled_fd_handler(own, FdInterest::Read, callback, hooks).unwrap(), counts)
}

#[test]
fn c46_a_handler_is_polled_after_its_first_readiness() {
    let ctx = polling_context();
    let (notifier, busy) = (EventNotifier::new().unwrap(), Rc::new(Cell::new(false)));
    let begun = Rc::default();
    let (_watched, [on_fd, on_busy, on_ready]) = watch(&ctx, &notifier, &busy, &begun);
    ctx.poll_timeout(Duration::from_micros(100));
    assert_eq!(on_busy.get(), 0, "not ready yet, so not looked at");
    notifier.set().unwrap();
    ctx.run_until(|| on_fd.get() == 1);
    busy.set(true);
    ctx.run_until(|| on_ready.get() == 1);
    assert!(on_busy.get() > 0);
    assert_eq!(on_fd.get(), 1, "no descriptor event was needed");
}

#[test]
fn c46_the_other_side_is_told_before_the_loop_sleeps() {
    let ctx = polling_context();
    let (notifier, busy) = (EventNotifier::new().unwrap(), Rc::new(Cell::new(false)));
    let begun = Rc::new(Cell::new(0));
    let (_watched, [on_fd, _, on_ready]) = watch(&ctx, &notifier, &busy, &begun);
    notifier.set().unwrap();
    ctx.run_until(|| on_fd.get() == 1);
    let look = |ready: u32| {
        busy.set(true);
        ctx.poll();
        assert_eq!((begun.get(), on_ready.get()), (1, ready), "it goes on looking");
    };
    look(1);
    // A loop that has other work does not look for any, but must not forget what no event will tell.
    busy.set(true);
    ctx.schedule(|_| ());
    ctx.poll();
    assert_eq!((begun.get(), on_ready.get()), (1, 2));
    // A poll that may not wait may be followed by anything. What came before the end is seen.
    busy.set(true);
    ctx.try_poll();
    assert_eq!((begun.get(), on_ready.get()), (0, 3));
    look(4);
    // Nor does it sleep on a promise when it stops looking at all.
    ctx.set_poll_params(PollParams::never());
    ctx.poll_timeout(Duration::from_micros(1));
    assert_eq!(begun.get(), 0);
    assert_eq!((on_fd.get(), on_ready.get()), (1, 4));
}

#[test]
fn c47_the_ready_hook_is_not_entered_by_a_nested_poll() {
    let ctx = polling_context();
    let notifier = EventNotifier::new().unwrap();
    let (depth, deepest) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let own = notifier.try_clone().unwrap();
    let started = Rc::new(Cell::new(false));
    let on_event = Rc::clone(&started);
    let in_ready = (Rc::clone(&depth), Rc::clone(&deepest));
    let callback = move |_: &AioContext, _| {
        own.test_and_clear().unwrap();
        on_event.set(true);
    };
    let hooks = Hooks {
        busy: Box::new(|| true),
        ready: Box::new(move |ctx| {
            in_ready.0.set(in_ready.0.get() + 1);
            in_ready.1.set(in_ready.1.get().max(in_ready.0.get()));
            ctx.poll_timeout(Duration::from_micros(200));
            in_ready.0.set(in_ready.0.get() - 1);
        }),
        begun: Rc::default(),
    };
    let watched = ctx.polled_fd_handler(&notifier, FdInterest::Read, callback, hooks).unwrap();
    notifier.set().unwrap();
    ctx.run_until(|| started.get() && deepest.get() > 0);
    assert_eq!((depth.get(), deepest.get()), (0, 1));
    drop(watched);
    ctx.try_poll();
}

/// Runs a closure when it is told that the loop no longer looks; has nothing to do but at first, so
/// that the loop looks again.
struct AtEnd<F: Fn(&AioContext)>(Rc<Cell<bool>>, F);

impl<F: Fn(&AioContext)> BusyPoll for AtEnd<F> {
    fn is_busy(&self, _: &AioContext) -> bool {
        self.0.get()
    }

    fn ready(&self, ctx: &AioContext) {
        self.0.set(false);
        // A nested poll that may not wait ends the look.
        ctx.try_poll();
    }

    fn end(&self, ctx: &AioContext) {
        (self.1)(ctx);
    }
}

/// Watches `notifier` with `at_end`, which has been ready and is busy again.
fn look_with(
    ctx: &AioContext,
    notifier: &EventNotifier,
    busy: &Rc<Cell<bool>>,
    at_end: impl Fn(&AioContext) + 'static,
) -> FdHandler<EventNotifier> {
    let own = notifier.try_clone().unwrap();
    let callback = move |_: &AioContext, _| {
        own.test_and_clear().unwrap();
    };
    let hooks = AtEnd(Rc::clone(busy), at_end);
    let own = notifier.try_clone().unwrap();
    let watched = ctx.polled_fd_handler(own, FdInterest::Read, callback, hooks).unwrap();
    notifier.set().unwrap();
    while !ctx.try_poll() {}
    watched
}

#[test]
fn c46_what_the_end_of_a_look_schedules_is_not_slept_over() {
    let ctx = AioContext::test_builder().poll_max(Duration::from_micros(100)).build().unwrap();
    let (notifier, busy) = (EventNotifier::new().unwrap(), Rc::new(Cell::new(false)));
    let (ran, count) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (on_bh, ends) = (Rc::clone(&ran), Rc::clone(&count));
    let _watched = look_with(&ctx, &notifier, &busy, move |ctx| {
        ends.set(ends.get() + 1);
        let on_bh = Rc::clone(&on_bh);
        ctx.schedule(move |_| on_bh.set(on_bh.get() + 1));
    });
    // The first sleeps teach it to look; then each look ends in a bottom half and no sleep.
    while count.get() == 0 {
        ctx.poll_timeout(Duration::from_micros(50));
    }
    ctx.run_until(|| ran.get() == count.get());
}

#[test]
fn c47_what_comes_while_a_nested_poll_ends_the_look_is_seen() {
    let ctx = polling_context();
    let (notifier, busy) = (EventNotifier::new().unwrap(), Rc::new(Cell::new(false)));
    let (more, ends) = (Rc::clone(&busy), Rc::new(Cell::new(0)));
    let count = Rc::clone(&ends);
    let _watched = look_with(&ctx, &notifier, &busy, move |_| {
        // Just before the other side would have notified again.
        more.set(count.replace(count.get() + 1) == 0);
    });
    busy.set(true);
    ctx.poll();
    assert_eq!((ends.get(), busy.get()), (1, true), "the nested poll ended the look");
    ctx.poll();
    assert!(!busy.get(), "what came then was found, and not slept over");
}

#[test]
fn c46_a_handler_that_is_removed_is_told() {
    let ctx = polling_context();
    let (notifier, busy) = (EventNotifier::new().unwrap(), Rc::new(Cell::new(false)));
    let begun = Rc::new(Cell::new(0));
    let (watched, [on_fd, _, on_ready]) = watch(&ctx, &notifier, &busy, &begun);
    notifier.set().unwrap();
    ctx.run_until(|| on_fd.get() == 1);
    busy.set(true);
    ctx.run_until(|| on_ready.get() == 1);
    assert_eq!(begun.get(), 1);
    drop(watched);
    assert_eq!(begun.get(), 0);
}

#[test]
fn c48_every_context_looks_as_long_as_pays_unless_told_otherwise() {
    let longest = |ctx: &AioContext| ctx.poll_max();
    let plain = AioContext::for_test().unwrap();
    let thread = IoThread::new("io").unwrap();
    let in_thread = thread.handle().spawn("max", move |co| longest(co.context())).wait().unwrap();
    for longest in [longest(&plain), in_thread] {
        assert!((Duration::from_micros(8)..Duration::from_micros(200)).contains(&longest));
    }
    assert_eq!(plain.poll_time(), plain.poll_max(), "it looks before its first sleep");
    for _ in 0..20 {
        plain.poll_timeout(Duration::from_millis(2));
    }
    assert_eq!(plain.poll_time(), Duration::ZERO, "an idle loop does not");
    let told = AioContext::test_builder().poll_max(Duration::from_nanos(32_768)).build().unwrap();
    assert_eq!(told.poll_max(), Duration::from_nanos(32_768));
}

#[test]
fn c48_a_loop_that_is_told_to_sleep_at_once_does() {
    let ctx = AioContext::test_builder().poll_max(Duration::ZERO).build().unwrap();
    assert_eq!(ctx.poll_max(), Duration::ZERO);
    let pool = ctx.thread_pool().clone();
    let sum: u64 = ctx.run(|co| (0..1000).map(|n| pool.submit_co(co, move || n)).sum());
    for _ in 0..20 {
        ctx.poll_timeout(Duration::from_micros(10));
    }
    let stats = ctx.wait_stats();
    assert_eq!((sum, stats.active, stats.in_vain), (499_500, 0, Duration::ZERO));
    assert_eq!(ctx.poll_time(), Duration::ZERO);
}

#[test]
fn a_worker_completion_ends_the_look() {
    let ctx = polling_context();
    let sum: u64 =
        ctx.run(|co| (0..1000).map(|n| co.context().thread_pool().submit_co(co, move || n)).sum());
    assert_eq!(sum, 499_500);
}

#[test]
fn c46_every_handler_is_told_though_one_removes_itself() {
    let ctx = polling_context();
    let [busy, other_busy] = [Rc::new(Cell::new(false)), Rc::new(Cell::new(false))];
    let begun = Rc::new(Cell::new(0));
    let [notifier, other] = [EventNotifier::new().unwrap(), EventNotifier::new().unwrap()];
    let own: Rc<RefCell<Option<FdHandler<EventNotifier>>>> = Rc::default();
    let removes = Rc::clone(&own);
    // The first one goes when it is told that the loop sleeps.
    let first = look_with(&ctx, &notifier, &busy, move |_| drop(removes.take()));
    own.replace(Some(first));
    let (_second, [_, _, on_ready]) = watch(&ctx, &other, &other_busy, &begun);
    other.set().unwrap();
    while !ctx.try_poll() {}
    other_busy.set(true);
    ctx.run_until(|| on_ready.get() == 1);
    assert_eq!(begun.get(), 1, "the loop looks");
    while own.borrow().is_some() {
        ctx.poll_timeout(Duration::from_micros(50));
    }
    assert_eq!(begun.get(), 0, "it sleeps, and has said so to all");
}

#[test]
fn c46_the_other_side_is_told_when_the_context_ends() {
    let ctx = polling_context();
    let (notifier, busy) = (EventNotifier::new().unwrap(), Rc::new(Cell::new(false)));
    let begun = Rc::new(Cell::new(0));
    let (watched, [on_fd, _, on_ready]) = watch(&ctx, &notifier, &busy, &begun);
    notifier.set().unwrap();
    ctx.run_until(|| on_fd.get() == 1);
    busy.set(true);
    ctx.run_until(|| on_ready.get() == 1);
    assert_eq!(begun.get(), 1, "the loop looks");
    drop(ctx);
    assert_eq!(begun.get(), 0);
    drop(watched);
}
