//! Waiting for a future inside a coroutine.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use super::{Co, CoWaker};
use crate::loom::lock;

/// What a future's waker knows of the coroutine that polls it.
enum Waiting {
    /// It runs, and has not been woken since it last polled.
    Running,
    /// It was woken, and shall poll again.
    Woken,
    /// It is suspended.
    Suspended(CoWaker),
}

struct CoroutineWake(Mutex<Waiting>);

impl Wake for CoroutineWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = std::mem::replace(&mut *lock(&self.0), Waiting::Woken);
        if let Waiting::Suspended(waker) = before {
            // The waker may be used under a lock that the future then wants.
            waker.wake_later();
        }
    }
}

impl Co<'_> {
    /// Runs a future to its end, suspending this coroutine whenever the future has to wait. The
    /// loop goes on meanwhile. The future may be woken from any thread, and goes on from a bottom
    /// half, never inside the call that wakes it.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let wake = Arc::new(CoroutineWake(Mutex::new(Waiting::Running)));
        let waker = Waker::from(Arc::clone(&wake));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            let mut state = lock(&wake.0);
            if matches!(*state, Waiting::Running) {
                // The lock is given up once the way back is stored, so no wake comes between.
                self.suspend_for("a future", move |waker| *state = Waiting::Suspended(waker));
                state = lock(&wake.0);
            }
            *state = Waiting::Running;
        }
    }
}
