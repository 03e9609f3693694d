//! Handles on coroutines: results, aborts, errors.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::mpsc;

use coblk_aio::{AioContext, CoWaker, IoThread, JoinError};

use crate::util::{panic_message, watchdog};

/// Says when it is dropped.
struct Dropped(Rc<Cell<bool>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn a_coroutine_of_this_thread_has_a_result() {
    let ctx = AioContext::for_test().unwrap();
    let at_once = ctx.spawn_join("at once", |_| 1);
    assert!(at_once.is_finished());
    assert_eq!(at_once.wait(), Ok(1));
    let later = ctx.spawn_join("later", |co| {
        co.yield_now();
        2
    });
    assert!(!later.is_finished());
    assert_eq!(ctx.run(|co| co.block_on(later)), Ok(2));
}

#[test]
fn an_aborted_coroutine_is_unwound_in_the_next_poll() {
    let ctx = AioContext::for_test().unwrap();
    let dropped = Rc::new(Cell::new(false));
    let waker = Rc::new(Cell::new(None::<CoWaker>));
    let (guard, kept) = (Dropped(Rc::clone(&dropped)), Rc::clone(&waker));
    let hanging = ctx.spawn_join("hangs", move |co| {
        let _guard = guard;
        co.suspend_with(|waker| kept.set(Some(waker)));
    });
    hanging.abort();
    assert!(!hanging.is_finished() && !dropped.get());
    ctx.try_poll();
    assert!(hanging.is_finished() && dropped.get());
    assert_eq!(ctx.coroutines().len(), 0);
    // Without effect, as its waker.
    hanging.abort();
    ctx.try_poll();
    waker.take().expect("a waker").wake();
    assert_eq!(hanging.wait(), Err(JoinError::Aborted));
}

#[test]
fn a_coroutine_that_is_about_to_go_on_can_be_aborted() {
    let ctx = AioContext::for_test().unwrap();
    let next = ctx.spawn_join("next", |co| co.yield_now());
    // Its turn comes after the abort, which was on no list before.
    let other = ctx.spawn_join("other", |_| ());
    other.abort();
    next.abort();
    ctx.try_poll();
    ctx.try_poll();
    assert_eq!(other.wait(), Ok(()), "it had ended");
    assert!(next.is_finished());
}

#[test]
fn a_coroutine_that_has_not_begun_never_does() {
    let ctx = AioContext::for_test().unwrap();
    let handle = ctx.handle();
    let spawned = handle.spawn("never", |_| unreachable!("it was aborted"));
    spawned.abort();
    ctx.try_poll();
    assert_eq!(spawned.wait(), Err::<(), _>(JoinError::Aborted));
}

#[test]
fn an_abort_comes_from_any_thread_and_waits_for_a_job_in_hand() {
    let _alive = watchdog();
    let thread = IoThread::new("aborted").unwrap();
    let (begin, begun) = mpsc::channel();
    let (finish, finished) = mpsc::channel::<()>();
    let (end, ended) = mpsc::channel();
    let busy = thread.handle().spawn("busy", move |co| {
        co.context().thread_pool().submit_co(co, move || {
            begin.send(()).unwrap();
            finished.recv().unwrap();
            end.send(()).unwrap();
        });
    });
    begun.recv().unwrap();
    busy.abort();
    finish.send(()).unwrap();
    let result = busy.wait();
    assert!(matches!(result, Err(JoinError::Aborted) | Ok(())), "{result:?}");
    ended.try_recv().expect("the job came first");
}

#[test]
fn waiting_for_the_own_thread_says_so() {
    let ctx = AioContext::for_test().unwrap();
    let hanging = ctx.handle().spawn("hangs", |_| ());
    assert!(panic_message(|| hanging.wait()).contains("the thread of the context"));
}

#[test]
fn errors_are_io_errors() {
    let error = io::Error::from(JoinError::NoMemory);
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    let error = io::Error::from(JoinError::Aborted);
    assert_eq!(error.kind(), io::ErrorKind::Other);
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<JoinError>());
    assert_eq!(inner, Some(&JoinError::Aborted));
}
