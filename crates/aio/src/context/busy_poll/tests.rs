//! What a loop looks at.

use super::*;

#[test]
fn the_kernel_is_asked_every_eighth_time_while_handlers_are_looked_at() {
    let polling = Polling::new(PollParams::default());
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
        assert!(!polling.any_busy(inner, ready + hook::HOOK_IDLE));
        assert_eq!((polling.hooks.borrow().len(), begun.get()), (1, 1), "not idle for too long");
        assert!(!polling.any_busy(inner, ready + hook::HOOK_IDLE + Duration::from_millis(1)));
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
    polling.rules.learn(WaitFor::Others, 0, 4_000, false);
    polling.look_for(inner, Instant::now(), None);
    assert!(begun.get() == 1 && polling.may_skip_events(), "it looks");
    pays.set(false);
    polling.pass(inner, false);
    assert_eq!((begun.get(), polling.may_skip_events()), (0, false));
    polling.activate(&ctx, &hook());
    assert!(polling.hooks.borrow().is_empty(), "it does not pay to look at it");
}

/// Counts how often it is asked.
struct Asked(Rc<Cell<u32>>);

impl BusyPoll for Asked {
    fn is_busy(&self, _: &AioContext) -> bool {
        self.0.set(self.0.get() + 1);
        false
    }

    fn ready(&self, _: &AioContext) {
        unreachable!("it is never busy");
    }
}

#[test]
fn c46_no_handler_is_polled_while_a_thread_that_gave_work_needs_the_cpu() {
    let ctx = AioContext::for_test().unwrap();
    let (inner, asked) = (ctx.inner(), Rc::new(Cell::new(0)));
    let hook = PollHook::new(Box::new(Asked(Rc::clone(&asked))));
    inner.polling.activate(&ctx, &hook);
    let rounds_with_a_look = || {
        let looks = (0..100).filter(|_| {
            let before = asked.get();
            // As a thread would that schedules something, here.
            inner.shared.poster.publish();
            inner.polling.look(inner, Instant::now(), None);
            asked.get() > before
        });
        looks.count()
    };
    // But for those in which the thread is moved to another CPU in the middle.
    assert!(rounds_with_a_look() < 50);
    ctx.set_poll_params(PollParams::new(Duration::from_micros(10)));
    inner.polling.rules.learn(WaitFor::Others, 0, 4_000, false);
    assert_eq!(rounds_with_a_look(), 100, "what was set is done");
}

#[test]
fn c46_no_handler_is_polled_while_a_job_of_ours_needs_the_cpu() {
    let ctx = AioContext::for_test().unwrap();
    let (inner, asked) = (ctx.inner(), Rc::new(Cell::new(0)));
    let hook = PollHook::new(Box::new(Asked(Rc::clone(&asked))));
    inner.polling.activate(&ctx, &hook);
    let rounds_with_a_look = || {
        let looks = (0..100).filter(|_| {
            let before = asked.get();
            // As the worker that runs it would, here.
            inner.shared.worker.publish();
            inner.polling.look(inner, Instant::now(), None);
            asked.get() > before
        });
        looks.count()
    };
    inner.co_jobs.set(1);
    // But for those in which the thread is moved to another CPU in the middle.
    assert!(rounds_with_a_look() < 50);
    // What was set is done.
    ctx.set_poll_params(PollParams::new(Duration::from_micros(10)));
    inner.polling.rules.learn(WaitFor::Worker, 0, 10_000, false);
    assert_eq!(rounds_with_a_look(), 100);
    inner.co_jobs.set(0);
}
