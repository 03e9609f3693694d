//! [`JoinHandle`]: the result of a coroutine, and the way to end it, for any thread.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::home::Home;
use crate::loom::lock;
use crate::thread_pool::owed;

/// Why a coroutine has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// It panicked; what its context does about that is its
    /// [`PanicPolicy`](crate::PanicPolicy).
    Panicked,
    /// There was no memory for its stack.
    NoMemory,
    /// Its context ended before it did.
    ContextGone,
    /// It was ended by [`JoinHandle::abort`].
    Aborted,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panicked => "the coroutine panicked",
            Self::NoMemory => "there is no memory for the coroutine's stack",
            Self::ContextGone => "the context ended before the coroutine did",
            Self::Aborted => "the coroutine was aborted",
        })
    }
}

impl std::error::Error for JoinError {}

/// No memory is `OutOfMemory`, the rest `Other`. The error itself is kept inside.
impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> io::Error {
        let kind = match error {
            JoinError::NoMemory => io::ErrorKind::OutOfMemory,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

struct Slot<R> {
    result: Option<Result<R, JoinError>>,
    waker: Option<Waker>,
}

/// No coroutine has this id.
const NOT_STARTED: u64 = 0;

struct Shared<R> {
    slot: Mutex<Slot<R>>,
    ready: Condvar,
    /// The coroutine's id, once it has begun.
    id: AtomicU64,
    aborted: AtomicBool,
    /// There is a result, which may have been taken.
    finished: AtomicBool,
}

/// A coroutine that was spawned with a result: a future, or something to [`wait`](Self::wait) for.
/// Dropping it does not end the coroutine; [`abort`](Self::abort) does. Any thread.
///
/// Made by [`AioContext::spawn_join`](crate::AioContext::spawn_join) and
/// [`AioHandle::spawn`](crate::AioHandle::spawn).
pub struct JoinHandle<R> {
    shared: Arc<Shared<R>>,
    home: Arc<Home>,
}

impl<R> fmt::Debug for JoinHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            .field("context", &self.home.name)
            .field("is_finished", &self.is_finished())
            .finish()
    }
}

/// The coroutine's end of it. Dropped without a result, it reports that the coroutine was aborted, or
/// that the context is gone.
pub(crate) struct Promise<R> {
    shared: Arc<Shared<R>>,
}

pub(crate) fn promise<R>(home: &Arc<Home>) -> (Promise<R>, JoinHandle<R>) {
    let shared = Arc::new(Shared {
        slot: Mutex::new(Slot { result: None, waker: None }),
        ready: Condvar::new(),
        id: AtomicU64::new(NOT_STARTED),
        aborted: AtomicBool::new(false),
        finished: AtomicBool::new(false),
    });
    let handle = JoinHandle { shared: Arc::clone(&shared), home: Arc::clone(home) };
    (Promise { shared }, handle)
}

impl<R> Promise<R> {
    /// The coroutine with that id has begun.
    pub(crate) fn begun(&self, id: u64) {
        self.shared.id.store(id, Ordering::Relaxed);
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.shared.aborted.load(Ordering::Relaxed)
    }

    pub(crate) fn fulfil(self, result: Result<R, JoinError>) {
        self.put(result);
    }

    fn put(&self, result: Result<R, JoinError>) {
        let waker = {
            let mut slot = lock(&self.shared.slot);
            if self.shared.finished.swap(true, Ordering::Release) {
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
        let aborted = self.is_aborted();
        self.put(Err(if aborted { JoinError::Aborted } else { JoinError::ContextGone }));
    }
}

impl<R> JoinHandle<R> {
    /// Blocks the calling thread until the coroutine has ended.
    ///
    /// # Errors
    /// If the coroutine panicked, had no stack or was aborted, or if its context ended first.
    ///
    /// # Panics
    /// On the context's own thread, which would wait for itself, unless the coroutine has ended. There
    /// [`Co::block_on`](crate::Co::block_on) waits for a handle.
    pub fn wait(self) -> Result<R, JoinError> {
        assert!(
            self.is_finished() || !self.home.is_home_thread(),
            "JoinHandle::wait called on the thread of the context '{}'",
            self.home.name
        );
        // The coroutine may wait for a job of this thread.
        owed::pay();
        let mut slot = lock(&self.shared.slot);
        loop {
            if let Some(result) = slot.result.take() {
                return result;
            }
            slot = self.shared.ready.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the coroutine has ended.
    pub fn is_finished(&self) -> bool {
        self.shared.finished.load(Ordering::Acquire)
    }

    /// Marks the coroutine as aborted; the context to tell of that.
    pub(crate) fn mark_aborted(&self) -> &Arc<Home> {
        self.shared.aborted.store(true, Ordering::Relaxed);
        &self.home
    }
}

impl<R: Send + 'static> JoinHandle<R> {
    /// The coroutine's id, once it has begun; to be called on its thread, later.
    pub(crate) fn id_later(&self) -> impl FnOnce() -> Option<u64> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            let id = shared.id.load(Ordering::Relaxed);
            let is_live = id != NOT_STARTED && !shared.finished.load(Ordering::Acquire);
            is_live.then_some(id)
        }
    }
}

impl<R> Future for JoinHandle<R> {
    type Output = Result<R, JoinError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = lock(&self.shared.slot);
        if let Some(result) = slot.result.take() {
            return Poll::Ready(result);
        }
        slot.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
