//! Where coroutines and futures meet (design decision D13).
//!
//! * [`Co::block_on`] waits for any future inside a coroutine.
//! * [`Spawned`], from [`AioHandle::spawn`](crate::AioHandle::spawn), is a coroutine's result as a
//!   future, for a program with another runtime, or for a plain thread ([`Spawned::wait`]).

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::co::{Co, CoWaker};

/// Locks even if a thread panicked while it held the lock: nothing here is left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- block_on ----------------------------------------------------------------------------------

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
            // Who wakes a future may do that under a lock of his own, which the future then wants.
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

// ---- Spawned -----------------------------------------------------------------------------------

/// Why a spawned coroutine has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnError {
    /// It panicked; what its context does about that is its
    /// [`PanicPolicy`](crate::PanicPolicy).
    Panicked,
    /// There was no memory for its stack.
    NoMemory,
    /// Its context ended before it did.
    ContextGone,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panicked => "the coroutine panicked",
            Self::NoMemory => "there is no memory for the coroutine's stack",
            Self::ContextGone => "the context ended before the coroutine did",
        })
    }
}

impl std::error::Error for SpawnError {}

struct Slot<R> {
    result: Option<Result<R, SpawnError>>,
    waker: Option<Waker>,
}

struct Shared<R> {
    slot: Mutex<Slot<R>>,
    ready: Condvar,
}

/// The result of a coroutine that another thread spawned: a future, or something to
/// [`wait`](Self::wait) for. Dropping it does not stop the coroutine.
pub struct Spawned<R> {
    shared: Arc<Shared<R>>,
}

/// The coroutine's end. Dropped without a result, it reports that the context is gone.
pub(crate) struct Promise<R> {
    shared: Arc<Shared<R>>,
}

pub(crate) fn promise<R>() -> (Promise<R>, Spawned<R>) {
    let slot = Mutex::new(Slot { result: None, waker: None });
    let shared = Arc::new(Shared { slot, ready: Condvar::new() });
    (Promise { shared: Arc::clone(&shared) }, Spawned { shared })
}

impl<R> Promise<R> {
    pub(crate) fn fulfil(self, result: Result<R, SpawnError>) {
        self.put(result);
    }

    fn put(&self, result: Result<R, SpawnError>) {
        let waker = {
            let mut slot = lock(&self.shared.slot);
            if slot.result.is_some() {
                return;
            }
            slot.result = Some(result);
            slot.waker.take()
        };
        self.shared.ready.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<R> Drop for Promise<R> {
    fn drop(&mut self) {
        self.put(Err(SpawnError::ContextGone));
    }
}

impl<R> Spawned<R> {
    /// Blocks the calling thread until the coroutine has ended. Not for the context's own thread,
    /// which would wait for itself.
    ///
    /// # Errors
    /// If the coroutine panicked, or its context ended first.
    pub fn wait(self) -> Result<R, SpawnError> {
        let mut slot = lock(&self.shared.slot);
        loop {
            if let Some(result) = slot.result.take() {
                return result;
            }
            slot = self.shared.ready.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<R> Future for Spawned<R> {
    type Output = Result<R, SpawnError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = lock(&self.shared.slot);
        if let Some(result) = slot.result.take() {
            return Poll::Ready(result);
        }
        slot.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
