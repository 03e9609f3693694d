//! [`AioHandle`]: a context as other threads see it.

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;

use coblk_coroutine::CoroutineState;

use super::AioContext;
use super::bottom_half;
use crate::co::Co;
use crate::home::Home;
use crate::join::{JoinError, JoinHandle, Promise, promise};
use crate::panics::Culprit;

/// Puts work on a context from any thread. Cheap to clone; does not keep the context alive.
#[derive(Clone)]
pub struct AioHandle {
    shared: Arc<Home>,
}

impl AioHandle {
    pub(crate) fn new(shared: Arc<Home>) -> AioHandle {
        AioHandle { shared }
    }

    /// Runs `callback` on the home thread, in the next poll, and wakes that thread if it sleeps.
    /// If the context is gone, drops `callback`.
    pub fn schedule(&self, callback: impl FnOnce(&AioContext) + Send + 'static) {
        // SAFETY: `one_shot` gives a new node; the list owns it from here on. If
        // it is discarded on another thread, `callback` is `Send`.
        unsafe { self.shared.schedule(bottom_half::one_shot(callback)) };
    }

    /// Runs `entry` in a coroutine of that context, from its next poll on. What it returns comes
    /// back through the [`JoinHandle`], a future; dropping that does not end the coroutine.
    pub fn spawn<R: Send + 'static>(
        &self,
        name: &'static str,
        entry: impl FnOnce(&Co<'_>) -> R + Send + 'static,
    ) -> JoinHandle<R> {
        let (promise, handle) = promise(&self.shared);
        self.schedule(move |ctx| ctx.spawn_promised(name, entry, promise));
        handle
    }

    /// Makes the loop return from its wait, or not begin it (contract: C43).
    pub fn notify(&self) {
        self.shared.notify();
    }

    /// Whether the calling thread is the context's own.
    pub fn is_home_thread(&self) -> bool {
        self.shared.is_home_thread()
    }

    /// Whether the context is gone, so that work given to it is dropped.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    pub(crate) fn shared(&self) -> &Arc<Home> {
        &self.shared
    }

    pub(crate) fn is_own_process(&self) -> bool {
        self.shared.is_own_process()
    }

    /// The context's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}

/// Two handles are equal if they are of one context.
impl PartialEq for AioHandle {
    fn eq(&self, other: &AioHandle) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for AioHandle {}

impl fmt::Debug for AioHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AioHandle").field("context", &self.name()).finish()
    }
}

impl AioContext {
    /// [`spawn`](Self::spawn), with a handle on the coroutine: for its result, and to end it. It costs
    /// an allocation, which `spawn` does not.
    ///
    /// ```
    /// let ctx = coblk_aio::AioContext::new()?;
    /// let sum = ctx.spawn_join("sum", |co| co.context().thread_pool().submit_co(co, || 20 + 22));
    /// assert_eq!(ctx.run(|co| co.block_on(sum)), Ok(42));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// Without a stack for it the handle says [`JoinError::NoMemory`].
    ///
    /// # Panics
    /// With [`PanicPolicy::Stop`](crate::PanicPolicy::Stop), if `entry` panics before it first suspends.
    #[must_use = "without a handle, `spawn` is cheaper"]
    pub fn spawn_join<R: Send + 'static>(
        &self,
        name: &'static str,
        entry: impl FnOnce(&Co<'_>) -> R + 'static,
    ) -> JoinHandle<R> {
        let (promise, handle) = promise(self.inner().shared());
        self.spawn_promised(name, entry, promise);
        handle
    }

    fn spawn_promised<R: 'static>(
        &self,
        name: &'static str,
        entry: impl FnOnce(&Co<'_>) -> R + 'static,
        promise: Promise<R>,
    ) {
        if promise.is_aborted() {
            return;
        }
        if let Err(error) = self.ensure_stack() {
            tracing::error!(coroutine = name, %error, "no stack for a spawned coroutine");
            return promise.fulfil(Err(JoinError::NoMemory));
        }
        self.spawn(name, move |co| {
            promise.begun(co.id());
            match co.catch_unwind(|| entry(co)) {
                Ok(value) => promise.fulfil(Ok(value)),
                Err(panic) => {
                    promise.fulfil(Err(JoinError::Panicked));
                    // The loop's policy is for this, too.
                    resume_unwind(panic);
                }
            }
        });
    }

    /// Ends the coroutine with that id, unless it runs or has ended.
    pub(crate) fn abort(&self, id: u64) {
        let Some(coroutine) = self.inner().tasks().find(id) else { return };
        if coroutine.state() == CoroutineState::Suspended {
            coroutine.take_back_wake();
            let culprit = Culprit::Coroutine(coroutine.name());
            self.inner().panics.blaming(culprit, || coroutine.unwind());
        }
    }
}

impl<R: Send + 'static> JoinHandle<R> {
    /// Ends the coroutine, if it has not ended, in its context's next poll: it is unwound from where it is
    /// suspended, so its destructors run, and the result is [`JoinError::Aborted`]. One that has not begun
    /// never does. What its destructors wait for, as for a job that a worker has begun, it still waits for.
    /// A coroutine that polls its context by itself is not suspended, and goes on.
    ///
    /// # Aborts
    /// The process, if the coroutine is suspended in a destructor that runs because of a panic of its own.
    pub fn abort(&self) {
        let home = self.mark_aborted();
        let id = self.id_later();
        AioHandle::new(Arc::clone(home)).schedule(move |ctx| {
            if let Some(id) = id() {
                ctx.abort(id);
            }
        });
    }
}
