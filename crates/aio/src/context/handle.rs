//! [`AioHandle`]: a context as other threads see it.

use std::panic::resume_unwind;
use std::sync::Arc;

use super::AioContext;
use super::bottom_half;
use crate::co::Co;
use crate::home::Home;
use crate::spawned::{SpawnError, Spawned, promise};

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
        // SAFETY: `one_shot` gives a node that nobody else has; the list owns it from here on. If
        // it is discarded on another thread, `callback` is `Send`.
        unsafe { self.shared.schedule(bottom_half::one_shot(callback)) };
    }

    /// Runs `entry` in a coroutine of that context, from its next poll on. What it returns comes
    /// back through [`Spawned`], a future; dropping that does not stop the coroutine.
    pub fn spawn<R: Send + 'static>(
        &self,
        name: &'static str,
        entry: impl FnOnce(&Co<'_>) -> R + Send + 'static,
    ) -> Spawned<R> {
        let (promise, spawned) = promise();
        self.schedule(move |ctx| {
            let spawned = ctx.ensure_stack();
            if let Err(error) = spawned {
                tracing::error!(coroutine = name, %error, "no stack for a spawned coroutine");
                return promise.fulfil(Err(SpawnError::NoMemory));
            }
            ctx.spawn(name, move |co| match co.catch_unwind(|| entry(co)) {
                Ok(value) => promise.fulfil(Ok(value)),
                Err(panic) => {
                    promise.fulfil(Err(SpawnError::Panicked));
                    // The loop's policy is for this, too.
                    resume_unwind(panic);
                }
            });
        });
        spawned
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

    pub(crate) fn is_own_process(&self) -> bool {
        self.shared.is_own_process()
    }

    /// The context's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}
