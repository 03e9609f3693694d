//! How long a loop looks, and at what.

use super::*;

#[test]
fn c46_polling_time_starts_at_4us_doubles_to_the_maximum_and_resets() {
    let polling = Polling::new(Duration::from_nanos(20_000));
    assert_eq!(polling.current_ns(), 0);
    let mut seen = Vec::new();
    for _ in 0..5 {
        polling.adapt(Duration::from_nanos(19_999));
        seen.push(polling.current_ns());
    }
    assert_eq!(seen, [4_000, 8_000, 16_000, 20_000, 20_000]);
    polling.adapt(Duration::from_micros(1));
    assert_eq!(polling.current_ns(), 20_000, "it paid");
    polling.adapt(Duration::from_millis(1));
    assert_eq!(polling.current_ns(), 0, "it did not pay");
}

#[test]
fn c46_polling_time_grows_and_shrinks_by_the_factors_given() {
    let polling = Polling::new(Duration::ZERO);
    polling.set(PollParams::new(Duration::from_nanos(100_000)).grow(3).shrink(2));
    polling.adapt(Duration::from_nanos(50_000));
    polling.adapt(Duration::from_nanos(50_000));
    assert_eq!(polling.current_ns(), 12_000);
    polling.adapt(Duration::from_secs(1));
    assert_eq!(polling.current_ns(), 6_000);
}

#[test]
fn the_kernel_is_asked_every_eighth_time_while_handlers_are_looked_at() {
    let polling = Polling::new(Duration::from_millis(1));
    assert!(!polling.may_skip_events(), "nobody looks");
    polling.begun.set(true);
    let skips: Vec<bool> = (0..16).map(|_| polling.may_skip_events()).collect();
    assert_eq!(skips.iter().filter(|skips| !**skips).count(), 2);
    polling.begun.set(false);
    assert!(!polling.may_skip_events());
}

/// Is never busy; counts its beginnings less its ends, and pays or not.
struct Never(Rc<Cell<i32>>, Rc<Cell<bool>>);

impl BusyPoll for Never {
    fn is_busy(&self, _: &AioContext) -> bool {
        false
    }

    fn ready(&self, _: &AioContext) {
        unreachable!("it is never busy");
    }

    fn pays(&self, _: &AioContext) -> bool {
        self.1.get()
    }

    fn begin(&self, _: &AioContext) {
        self.0.set(self.0.get() + 1);
    }

    fn end(&self, _: &AioContext) {
        self.0.set(self.0.get() - 1);
    }
}

#[test]
fn c46_a_handler_that_is_idle_for_7_s_is_let_go() {
    let ctx = AioContext::test_builder().poll_max(Duration::from_millis(1)).build().unwrap();
    let (inner, begun) = (ctx.inner(), Rc::new(Cell::new(0)));
    let never = Never(Rc::clone(&begun), Rc::new(Cell::new(true)));
    let (polling, hook) = (&inner.polling, PollHook::new(Box::new(never)));
    for _ in 0..2 {
        polling.activate(&ctx, &hook);
        assert_eq!(polling.hooks.borrow().len(), 1);
        hook.begin(&ctx);
        let ready = hook.last_ready.get();
        assert!(!polling.any_busy(inner, ready + HOOK_IDLE));
        assert_eq!((polling.hooks.borrow().len(), begun.get()), (1, 1), "not idle for too long");
        assert!(!polling.any_busy(inner, ready + HOOK_IDLE + Duration::from_millis(1)));
        assert_eq!((polling.hooks.borrow().len(), begun.get()), (0, 0));
    }
}

#[test]
fn the_kernel_is_asked_every_time_once_no_handler_pays() {
    let ctx = AioContext::test_builder().poll_max(Duration::from_millis(1)).build().unwrap();
    let (inner, begun, pays) = (ctx.inner(), Rc::new(Cell::new(0)), Rc::new(Cell::new(true)));
    let polling = &inner.polling;
    let hook = || PollHook::new(Box::new(Never(Rc::clone(&begun), Rc::clone(&pays))));
    polling.activate(&ctx, &hook());
    polling.now_ns.set(1);
    polling.look_for(inner, None);
    assert!(begun.get() == 1 && polling.may_skip_events(), "it looks");
    pays.set(false);
    polling.pass(inner, false);
    assert_eq!((begun.get(), polling.may_skip_events()), (0, false));
    polling.activate(&ctx, &hook());
    assert!(polling.hooks.borrow().is_empty(), "it does not pay to look at it");
}
