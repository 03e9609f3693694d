//! What a forked process does with its parent's contexts. One test, so that no other thread of this
//! program holds a lock when it forks.

mod util;

use std::panic::{AssertUnwindSafe, catch_unwind};

use coblk_aio::{AioContext, EventNotifier, IoThread, ThreadPool};
use util::{Gate, gated, panic_message};

/// Runs `code` in a forked process; whether it returned without a panic.
fn succeeds_in_fork(code: impl FnOnce()) -> bool {
    // SAFETY: the child has this thread only, calls nothing that waits for another one, and ends
    // without running what the parent has registered for its end.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let failed = catch_unwind(AssertUnwindSafe(code)).is_err();
            libc::_exit(i32::from(failed));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

#[test]
fn a_forked_process_is_told_that_a_context_is_its_parents() {
    let pool = ThreadPool::new(1, 1).unwrap();
    let ctx = AioContext::test_builder().name("ours").thread_pool(pool.clone()).build().unwrap();
    let (gate, (started, _ids)) = (Gate::default(), std::sync::mpsc::channel());
    pool.submit_aio(&ctx, gated(&started, &gate), |_, _| ());
    let (notifier, thread) = (EventNotifier::new().unwrap(), IoThread::new("io").unwrap());
    let seen = std::rc::Rc::new(std::cell::Cell::new(false));
    let tell = std::rc::Rc::clone(&seen);
    let mut handler = Some(ctx.event_handler(&notifier, move |_| tell.set(true)).unwrap());
    let (mut ctx, mut thread) = (Some(ctx), Some(thread));
    let says = "belongs to the process that this one was forked from";
    assert!(succeeds_in_fork(|| {
        let ours = ctx.as_ref().unwrap();
        let expected = format!("context 'ours' {says}");
        assert_eq!(panic_message(|| ours.try_poll()), expected);
        assert_eq!(panic_message(|| ours.spawn("child's", |_| ())), expected);
        assert_eq!(panic_message(|| ours.handle().notify()), expected);
        assert_eq!(panic_message(|| ours.handle().schedule(|_| ())), expected);
        let handle = thread.as_ref().unwrap().handle();
        assert!(panic_message(|| handle.schedule(|_| ())).contains(says));
        assert!(panic_message(|| pool.set_limits(1, 2)).contains(says));
        // None of this waits, or takes anything from the parent.
        drop(handler.take());
        drop(thread.take());
        drop(ctx.take());
    }));
    gate.open();
    let ctx = ctx.unwrap();
    notifier.set().unwrap();
    ctx.run_until(|| seen.get());
    let thread = thread.unwrap();
    assert_eq!(thread.handle().spawn("parent's", |_| 5).wait(), Ok(5));
    assert_eq!(ctx.run(|co| co.context().thread_pool().submit_co(co, || 6)), 6);
}
