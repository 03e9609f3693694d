//! One poll of the loop, phase by phase (contract: C40, C41).

use std::time::Duration;

use crate::context::{AioContext, Inner};
use crate::node::Node;
use crate::trace_event;

/// How long a blocking poll waits at most while idle bottom halves are scheduled (contract: C38).
const IDLE_BH_TIMEOUT: Duration = Duration::from_millis(10);

impl AioContext {
    /// Runs one iteration of the loop: waits (if `blocking`, and if nothing is ready), then runs
    /// bottom halves, descriptor handlers and timers, in this order. Returns whether any of them
    /// ran; idle bottom halves do not count (contract: C40, C41). A blocking poll also returns, and
    /// without progress, when it was notified, and may when a signal came.
    ///
    /// May be called from inside a callback, and from inside a coroutine: a nested poll first runs
    /// what the outer one has left (contract: C36).
    ///
    /// # Panics
    /// With what a callback or a coroutine panics with. What was scheduled behind it is not lost:
    /// the next poll runs it.
    pub fn poll(&self, blocking: bool) -> bool {
        self.poll_at_most(if blocking { None } else { Some(Duration::ZERO) })
    }

    /// A blocking [`poll`](Self::poll) that waits for `timeout` at most; for loops that must come
    /// back. That the time is up counts as no progress.
    pub fn poll_timeout(&self, timeout: Duration) -> bool {
        self.poll_at_most(Some(timeout))
    }

    /// One poll that waits at most that long, `None` for as long as it takes.
    #[inline]
    fn poll_at_most(&self, limit: Option<Duration>) -> bool {
        let inner = self.inner();
        inner.wait(limit);
        let bottom_halves = inner.run_bottom_halves();
        let handlers = inner.fds.dispatch(inner.me());
        let timers = inner.timers.run_due(inner.me());
        bottom_halves | handlers | timers
    }
}

impl Inner {
    /// Sleeps if allowed, and collects descriptor events.
    #[inline]
    fn wait(&self, limit: Option<Duration>) {
        let mut timeout = match limit {
            Some(Duration::ZERO) => limit,
            None => self.sleep_timeout(),
            Some(limit) => Some(self.sleep_timeout().map_or(limit, |timeout| timeout.min(limit))),
        };
        if timeout == Some(Duration::ZERO) {
            self.collect_events(Duration::ZERO);
            self.shared.accept_notifications();
            return;
        }
        loop {
            if !self.shared.prepare_sleep() {
                self.collect_events(Duration::ZERO);
                self.shared.accept_notifications();
                return;
            }
            trace_event!("aio_sleep", timeout_ns = timeout.map(|it| it.as_nanos() as u64));
            let kicked = self.collect_events(timeout);
            let notified = self.shared.accept_notifications();
            // Woken for something that has been served already: see `shared.rs`. With a limit of
            // its own the caller counts on coming back, and loops anyway.
            if !kicked || notified || limit.is_some() || self.shared.has_remote() {
                return;
            }
            timeout = self.sleep_timeout();
            if timeout == Some(Duration::ZERO) {
                return;
            }
        }
    }

    /// Waits in the kernel. Returns whether the waker, and nothing else, ended that.
    #[inline]
    fn collect_events(&self, timeout: impl Into<Option<Duration>>) -> bool {
        let timeout = timeout.into();
        if timeout == Some(Duration::ZERO) && self.fds.is_empty() {
            return false;
        }
        self.fds.wait(timeout).unwrap_or_else(|error| {
            // epoll itself is broken. Bottom halves and timers still work; do not spin on it.
            tracing::error!(context = %self.shared.name, %error, "waiting for descriptors failed");
            std::thread::sleep(Duration::from_millis(1));
            false
        })
    }

    /// How long the loop may sleep: `None` for ever.
    fn sleep_timeout(&self) -> Option<Duration> {
        let queues = &self.queues;
        if !queues.pending.is_empty()
            || !queues.running.is_empty()
            || self.shared.has_remote()
            || self.fds.has_ready()
        {
            return Some(Duration::ZERO);
        }
        let timeout = self.timers.timeout();
        if queues.idle.is_empty() {
            return timeout;
        }
        Some(timeout.map_or(IDLE_BH_TIMEOUT, |timeout| timeout.min(IDLE_BH_TIMEOUT)))
    }

    fn run_bottom_halves(&self) -> bool {
        let running = &self.queues.running;
        running.append(&self.queues.pending);
        self.shared.take_remote(running);
        running.append(&self.queues.idle);
        let mut progress = false;
        while let Some(node) = running.pop() {
            // SAFETY: just taken from the list, by the home thread.
            progress |= unsafe { Node::run(node, self.me()) };
        }
        progress
    }
}
