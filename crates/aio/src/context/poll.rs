//! One poll of the loop, phase by phase (contract: C40, C41).

use std::io;
use std::time::{Duration, Instant};

use super::{AioContext, Inner};
use crate::panics;
use crate::ring::Ring;
use crate::run_list::{Node, Runner};
use crate::sys;
use crate::thread_pool::owed;
use crate::trace_event;

/// How long a poll waits at most, in place of any longer limit: longer than a kernel's clock and the
/// calculation with it take is not a time that anything comes back from.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

impl AioContext {
    /// Runs one iteration of the loop: waits until something is ready, then runs bottom halves,
    /// descriptor handlers and timers, in this order. Returns whether any of them ran (contract:
    /// C40, C41). It also returns, and without progress, when it was notified, and may when a
    /// signal came.
    ///
    /// May be called from inside a callback, and from inside a coroutine: a nested poll first runs
    /// what the outer one has left (contract: C36). A coroutine that polls is not suspended, so it
    /// is not resumed meanwhile; coroutines that it has woken run before the poll, and its callbacks
    /// run as outside of any coroutine.
    ///
    /// # Panics
    /// With [`PanicPolicy::Stop`](crate::PanicPolicy::Stop), with what a callback or a coroutine
    /// panics with. What was scheduled behind it is not lost: the next poll runs it.
    pub fn poll(&self) -> bool {
        self.poll_at_most(None)
    }

    /// A [`poll`](Self::poll) that does not wait: runs what is ready.
    ///
    /// # Panics
    /// As [`poll`](Self::poll).
    pub fn try_poll(&self) -> bool {
        self.poll_at_most(Some(Duration::ZERO))
    }

    /// A [`poll`](Self::poll) that waits for `timeout` at most; for loops that must come back. That
    /// the time is up counts as no progress.
    ///
    /// # Panics
    /// As [`poll`](Self::poll).
    pub fn poll_timeout(&self, timeout: Duration) -> bool {
        self.poll_at_most(Some(timeout))
    }

    /// One poll that waits at most that long, `None` for as long as it takes.
    #[inline]
    fn poll_at_most(&self, limit: Option<Duration>) -> bool {
        // Whatever needs a longer time comes back anyway.
        let limit = limit.map(|limit| limit.min(MAX_WAIT));
        if coblk_coroutine::in_coroutine() {
            return self.poll_in_coroutine(limit);
        }
        self.poll_outside(limit)
    }

    /// The coroutine does not suspend while it polls. So those that it has woken run now, and those
    /// that callbacks wake, as outside of any coroutine, at once.
    #[cold]
    fn poll_in_coroutine(&self, limit: Option<Duration>) -> bool {
        let policy = self.inner().panics.policy;
        coblk_coroutine::serve_woken(|name, payload| panics::keep_or_report(name, payload, policy));
        coblk_coroutine::outside(|| self.poll_outside(limit))
    }

    #[inline]
    fn poll_outside(&self, limit: Option<Duration>) -> bool {
        let inner = self.inner();
        inner.shared.assert_own_process();
        // What a turn around this one has submitted, or one of another context of this thread.
        owed::settle();
        inner.wait(limit);
        let _turn = inner.turn.begin();
        let bottom_halves = inner.run_bottom_halves();
        let handlers = inner.polling.dispatch(inner.me()) | inner.fds.dispatch(inner.me());
        let timers = inner.timers.run_due(inner.me());
        if limit == Some(Duration::ZERO) {
            // The next wait of the thread may be elsewhere.
            owed::pay();
        }
        bottom_halves | handlers | timers
    }
}

impl Inner {
    /// Sleeps if allowed, and collects descriptor events.
    #[inline]
    fn wait(&self, limit: Option<Duration>) {
        if let Some(simulation) = &self.simulation {
            if limit != Some(Duration::ZERO) && !self.has_work() {
                simulation.sleep(limit, self.timers.next_deadline_ns());
            }
            simulation.run_due(&self.queues.pending);
            self.shared.accept_notifications();
            return;
        }
        if let Some(ring) = self.made_ring() {
            self.reap(ring);
        }
        let timeout = match limit {
            Some(Duration::ZERO) => limit,
            None => self.sleep_timeout(),
            Some(limit) => Some(self.sleep_timeout().map_or(limit, |timeout| timeout.min(limit))),
        };
        let waited = if timeout == Some(Duration::ZERO) {
            self.polling.pass(self, limit == timeout);
            if limit == timeout { self.collect_events() } else { self.collect_in_passing() }
        } else if self.polling.is_used() {
            self.poll_then_sleep(timeout, limit.is_some())
        } else {
            self.sleep(timeout, limit.is_some())
        };
        if let Err(error) = waited {
            // epoll itself is broken. Bottom halves and timers still work; do not spin on it.
            tracing::error!(context = %self.shared.name, %error, "waiting for descriptors failed");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.refresh_coarse_clock();
        self.shared.accept_notifications();
    }

    /// Completed requests become bottom halves.
    #[inline]
    pub(super) fn reap(&self, ring: &Ring) {
        // Whether descriptors are ready is found out by asking epoll itself, in every phase that
        // does not sleep.
        ring.reap(&self.queues.pending);
    }

    /// What is ready now. Costs nothing while no descriptor is watched and no request is queued.
    fn collect_events(&self) -> io::Result<()> {
        if let Some(ring) = self.made_ring() {
            ring.submit()?;
            self.reap(ring);
        }
        if !self.fds.is_empty() {
            self.fds.wait(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// [`collect_events`](Self::collect_events), in a turn that has work without them. While handlers
    /// are looked at without the kernel's help, the kernel is asked now and then only: that costs
    /// about as much as a short request.
    fn collect_in_passing(&self) -> io::Result<()> {
        if self.polling.may_skip_events() {
            if let Some(ring) = self.made_ring() {
                ring.submit()?;
                self.reap(ring);
            }
            return Ok(());
        }
        self.collect_events()
    }

    /// `limited`: the caller has set a limit, and not only timers have.
    fn sleep(&self, mut timeout: Option<Duration>, limited: bool) -> io::Result<()> {
        loop {
            self.patience.before_sleep(self.coarse_ns());
            if !self.shared.prepare_sleep() {
                return self.collect_events();
            }
            trace_event!("aio_sleep", timeout_ns = timeout.map(|it| it.as_nanos() as u64));
            let kicked = self.block(timeout)?;
            let notified = self.shared.accept_notifications();
            // Woken by the timer of idle stacks, or for something that has been served already: see
            // `home.rs`. With a limit of its own the caller counts on coming back, and loops anyway.
            if !kicked || notified || limited || self.has_work() {
                return Ok(());
            }
            self.refresh_coarse_clock();
            timeout = self.sleep_timeout();
            if timeout == Some(Duration::ZERO) {
                return Ok(());
            }
        }
    }

    /// The only place where a loop is suspended by the kernel. Returns whether the waker, and no other
    /// descriptor, ended that.
    fn block(&self, timeout: Option<Duration>) -> io::Result<bool> {
        owed::pay();
        let since_ns = sys::clock_ns();
        self.polling.count_sleep();
        self.presence.sleeps();
        let kicked = match self.made_ring() {
            Some(ring) if ring.is_waiter() => self.sleep_in_ring(ring, timeout),
            _ => self.fds.wait(timeout),
        };
        self.presence.wakes();
        self.shared.woken.take(since_ns);
        self.patience.after_sleep(since_ns);
        self.shared.place.publish();
        kicked
    }

    /// One system call submits what is queued and waits for everything (design decision D7).
    /// Returns whether the waker, and no other descriptor, ended that.
    fn sleep_in_ring(&self, ring: &Ring, timeout: Option<Duration>) -> io::Result<bool> {
        ring.sleep(timeout)?;
        let epoll_ready = ring.reap(&self.queues.pending);
        if epoll_ready { self.fds.wait(Some(Duration::ZERO)) } else { Ok(false) }
    }

    /// Looks for work for a while, sleeps if there is none, and learns from how long it took.
    fn poll_then_sleep(&self, timeout: Option<Duration>, limited: bool) -> io::Result<()> {
        if self.polling.sleeps_at_depth() && self.made_ring().is_some_and(Ring::is_deep) {
            return self.sleep_at_depth(timeout, limited);
        }
        let start = Instant::now();
        if let Some(ring) = self.made_ring() {
            ring.submit()?;
        }
        let look = self.polling.look(self, start, timeout);
        let timeout = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        // What the hooks of handlers have scheduled is work too.
        let (waited, slept) = if look.found || self.has_work() {
            (self.collect_in_passing(), false)
        } else if timeout == Some(Duration::ZERO) {
            (self.collect_events(), false)
        } else {
            (self.sleep(timeout, limited), true)
        };
        self.polling.learn(&look, slept.then(|| start.elapsed()));
        waited
    }

    /// With many requests in the ring, one system call submits and sleeps: nothing is learnt from that.
    fn sleep_at_depth(&self, timeout: Option<Duration>, limited: bool) -> io::Result<()> {
        if self.polling.end(self) || self.has_work() {
            self.collect_in_passing()
        } else {
            self.sleep(timeout, limited)
        }
    }

    /// Whether something can be run now.
    pub(crate) fn has_work(&self) -> bool {
        let queues = &self.queues;
        !queues.pending.is_empty()
            || !queues.running.is_empty()
            || self.shared.has_remote()
            || self.fds.has_ready()
            || self.polling.has_pending()
    }

    /// How long the loop may sleep: `None` forever.
    pub(super) fn sleep_timeout(&self) -> Option<Duration> {
        if self.has_work() {
            return Some(Duration::ZERO);
        }
        self.timers.timeout()
    }

    fn run_bottom_halves(&self) -> bool {
        let running = &self.queues.running;
        running.append(&self.queues.pending);
        self.shared.take_remote(running);
        if running.is_empty() {
            return false;
        }
        let mut progress = false;
        let panicked = self.shield(|| {
            while let Some(node) = running.pop() {
                // SAFETY: just taken from the list, by the home thread.
                progress |= unsafe { Node::run(node, Runner::new(self.me())) };
            }
        });
        progress | panicked
    }
}
