//! Coroutines and futures, in both directions (design decision D13), and contexts on threads.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use coblk_aio::{AioContext, IoThread, JoinError};

/// A future that is ready once it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<(bool, Option<Waker>)>>);

impl Gate {
    fn open(&self) {
        let waker = {
            let mut state = self.0.lock().unwrap();
            state.0 = true;
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for Gate {
    type Output = &'static str;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock().unwrap();
        if state.0 {
            return Poll::Ready("open");
        }
        state.1 = Some(context.waker().clone());
        Poll::Pending
    }
}

#[test]
fn a_coroutine_waits_for_a_future_woken_by_another_thread() {
    let ctx = AioContext::for_test().unwrap();
    let gate = Gate::default();
    let opener = gate.clone();
    let thread = std::thread::spawn(move || opener.open());
    assert_eq!(ctx.run(|co| co.block_on(gate)), "open");
    thread.join().unwrap();
}

#[test]
fn a_future_is_woken_under_a_lock_that_it_wants() {
    let ctx = AioContext::for_test().unwrap();
    let gate = Gate::default();
    let opener = gate.clone();
    ctx.schedule(move |_| {
        let mut state = opener.0.lock().unwrap();
        state.0 = true;
        // On the coroutine's own thread, outside of coroutines, and with the lock held.
        state.1.take().expect("it waits").wake();
    });
    assert_eq!(ctx.run(|co| co.block_on(gate)), "open");
}

#[test]
fn a_future_may_wake_itself_while_it_is_polled() {
    let ctx = AioContext::for_test().unwrap();
    let mut polls = 0;
    let future = std::future::poll_fn(move |context| {
        polls += 1;
        context.waker().wake_by_ref();
        if polls < 1000 { Poll::Pending } else { Poll::Ready(polls) }
    });
    assert_eq!(ctx.run(|co| co.block_on(future)), 1000);
}

#[test]
fn a_future_may_be_woken_by_another_coroutine() {
    let ctx = AioContext::for_test().unwrap();
    let gate = Gate::default();
    let opener = gate.clone();
    let answer = ctx.run(|co| {
        co.context().spawn("opener", move |co| {
            co.yield_now();
            opener.open();
        });
        co.block_on(gate)
    });
    assert_eq!(answer, "open");
}

#[test]
fn a_spawned_coroutine_is_a_future() {
    let thread = IoThread::new("io").unwrap();
    let ctx = AioContext::for_test().unwrap();
    let spawned = thread.handle().spawn("sum", |co| {
        let pool = co.context().thread_pool();
        pool.submit_co(co, || 40) + pool.submit_co(co, || 2)
    });
    assert_eq!(ctx.run(|co| co.block_on(spawned)), Ok(42));
}

#[test]
fn a_panic_and_the_end_of_the_context_reach_who_waits() {
    let thread = IoThread::new("io").unwrap();
    let panicked = thread.handle().spawn("bad", |_| panic!("on purpose"));
    assert_eq!(panicked.wait(), Err::<(), _>(JoinError::Panicked));
    let hanging = thread.handle().spawn("never", |co| co.suspend_with(std::mem::forget));
    let after = thread.handle().clone();
    drop(thread);
    assert_eq!(hanging.wait(), Err(JoinError::ContextGone));
    assert_eq!(after.spawn("late", |_| ()).wait(), Err(JoinError::ContextGone));
    assert!(after.is_closed());
}

#[test]
fn io_threads_wake_each_other() {
    let threads: Vec<IoThread> =
        (0..3).map(|n| IoThread::new(&format!("io{n}")).unwrap()).collect();
    let handles: Vec<_> = threads.iter().map(|thread| thread.handle().clone()).collect();
    // A token goes round the threads; each hop is a spawn there and a wake back.
    let spawned = threads[0].handle().spawn("ring", move |co| {
        (0..300).map(|hop| co.block_on(handles[hop % 3].spawn("hop", move |_| hop)).unwrap()).sum()
    });
    assert_eq!(spawned.wait(), Ok((0..300).sum::<usize>()));
}
