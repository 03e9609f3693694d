//! [`Spawned`]: the result of a coroutine, for another thread or another runtime.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::loom::lock;

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
