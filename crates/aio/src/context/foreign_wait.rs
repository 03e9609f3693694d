//! A context in another loop, which waits in its place.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use super::{AioContext, Inner};
use crate::thread_pool::owed;

/// What another loop waits for in the place of a context: until [`AsFd`] of the context is readable, and
/// for [`timeout`](Self::timeout) at most. See [`AioContext::prepare_wait`].
#[must_use = "a context is woken from other threads while this lives"]
pub struct Wait<'a> {
    ctx: &'a AioContext,
    timeout: Option<Duration>,
}

impl Wait<'_> {
    /// How long the wait may last: `None` for as long as it takes, zero if there is something to do
    /// now. A loop whose clock is coarser rounds up.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

impl fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let context = self.ctx.name();
        f.debug_struct("Wait").field("context", &context).field("timeout", &self.timeout).finish()
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let inner = self.ctx.inner();
        inner.presence.wakes();
        // What has ended the wait is taken from the kernel, or the descriptor would stay readable.
        if let Err(error) = inner.fds.wait(Some(Duration::ZERO)) {
            tracing::error!(context = self.ctx.name(), %error, "waiting for descriptors failed");
        }
        inner.refresh_coarse_clock();
        inner.shared.accept_notifications();
    }
}

/// The descriptor that another loop waits for, until it is readable: an epoll descriptor.
///
/// It is readable only while a [`Wait`] says that it is meant, and to read from it is an error.
impl AsFd for AioContext {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: mio's descriptor stays open for as long as the context, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.inner().fds.epoll()) }
    }
}

impl AioContext {
    /// Prepares a wait of another loop, in which this context is a guest: from here on what other
    /// threads put on the context makes its descriptor readable. Home thread.
    ///
    /// A turn of such a loop is
    ///
    /// 1. [`try_poll`](Self::try_poll), as long as that makes progress, or once;
    /// 2. `prepare_wait`;
    /// 3. a wait until the context's descriptor is readable, for [`Wait::timeout`] at most, and for
    ///    whatever else the loop waits for;
    /// 4. the drop of what `prepare_wait` has returned.
    ///
    /// Nothing may be put on the context by its own thread between 2 and 4: that does not end the
    /// wait. In a simulated context there is nothing to wait for, and the timeout is zero.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coblk_aio::AioContext;
    /// use mio::{Events, Interest, Poll, Token, unix::SourceFd};
    /// use std::os::fd::{AsFd, AsRawFd};
    ///
    /// let ctx = AioContext::new()?;
    /// let answer = ctx.handle().spawn("question", |_| 42);
    ///
    /// let mut poll = Poll::new()?;
    /// let mut events = Events::with_capacity(16);
    /// let fd = ctx.as_fd().as_raw_fd();
    /// poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
    /// while !answer.is_finished() {
    ///     let wait = ctx.prepare_wait();
    ///     poll.poll(&mut events, wait.timeout())?;
    ///     drop(wait);
    ///     ctx.try_poll();
    /// }
    /// assert_eq!(answer.wait(), Ok(42));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Panics
    /// Inside a coroutine, which would hold up the loop; in a process that was forked from the one
    /// that made the context.
    pub fn prepare_wait(&self) -> Wait<'_> {
        assert!(!coblk_coroutine::in_coroutine(), "prepare_wait called inside a coroutine");
        let inner = self.inner();
        inner.shared.assert_own_process();
        owed::pay();
        let timeout = inner.prepare_foreign_wait().unwrap_or_else(|error| {
            tracing::error!(context = self.name(), %error, "preparing a wait failed");
            Some(Duration::ZERO)
        });
        Wait { ctx: self, timeout }
    }
}

impl Inner {
    /// How long another loop may wait.
    fn prepare_foreign_wait(&self) -> io::Result<Option<Duration>> {
        if self.simulation.is_some() {
            return Ok(Some(Duration::ZERO));
        }
        let mut limit = None;
        if let Some(ring) = self.made_ring() {
            if let Some(signal) = ring.signal_completions()? {
                self.fds.watch_as_waker(signal.as_raw_fd())?;
            }
            ring.submit()?;
            self.reap(ring);
            limit = ring.retry_after();
        }
        let busy = self.polling.end(self);
        self.patience.before_sleep(self.coarse_ns());
        if !self.shared.prepare_sleep() || busy {
            return Ok(Some(Duration::ZERO));
        }
        let timers = self.sleep_timeout();
        self.presence.sleeps();
        Ok(timers.into_iter().chain(limit).min())
    }
}
