//! Adaptive busy polling: a loop that expects work soon looks for it a while before it sleeps,
//! because waking a sleeping thread costs far more than a short wait (contract: C45 to C48).
//!
//! What it looks at: the list that workers and other threads push to, and the *busy hooks* of
//! descriptor handlers, such as "has the guest put something into the ring".
//!
//! How long it looks adapts to how long it had to wait: up to a maximum, so an idle loop sleeps.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::context::{AioContext, Inner};
use crate::ring::Ring;

/// How long an [`IoThread`](crate::IoThread)'s context polls at most (contract: C48).
pub const DEFAULT_POLL_MAX: Duration = Duration::from_nanos(32_768);
/// The first polling time (contract: C46).
const POLL_START_NS: u64 = 4_000;
/// Factor by which the polling time grows, unless told otherwise.
const POLL_GROW: u64 = 2;
/// A handler that was not ready for so long is not polled any more (contract: C46).
const HOOK_IDLE: Duration = Duration::from_secs(7);

type Busy = Box<dyn Fn(&AioContext) -> bool>;
type Ready = Box<dyn Fn(&AioContext)>;

/// The busy-poll half of a descriptor handler. The two hooks come together: one without the other
/// cannot be written (contract: C45).
pub(crate) struct PollHook {
    busy: Busy,
    ready: Ready,
    /// On the list of hooks to look at.
    active: Cell<bool>,
    last_ready: Cell<Instant>,
    /// Found ready by the last look, to be called in the dispatch phase.
    pending: Cell<bool>,
    /// Inside `ready`, which a nested poll must not enter again (contract: C47).
    running: Cell<bool>,
}

impl PollHook {
    pub(crate) fn new(busy: Busy, ready: Ready) -> Rc<PollHook> {
        Rc::new(PollHook {
            busy,
            ready,
            active: Cell::new(false),
            last_ready: Cell::new(Instant::now()),
            pending: Cell::new(false),
            running: Cell::new(false),
        })
    }
}

/// Polling parameters and state of one context.
pub(crate) struct Polling {
    max_ns: Cell<u64>,
    grow: Cell<u64>,
    /// 0: start again from nothing when polling does not pay.
    shrink: Cell<u64>,
    /// How long the next look takes at most.
    now_ns: Cell<u64>,
    hooks: RefCell<Vec<Rc<PollHook>>>,
}

impl Polling {
    pub(crate) fn new(max: Duration) -> Polling {
        let polling = Polling {
            max_ns: Cell::new(0),
            grow: Cell::new(POLL_GROW),
            shrink: Cell::new(0),
            now_ns: Cell::new(0),
            hooks: RefCell::new(Vec::new()),
        };
        polling.set(max, 0, 0);
        polling
    }

    pub(crate) fn set(&self, max: Duration, grow: u32, shrink: u32) {
        self.max_ns.set(u64::try_from(max.as_nanos()).unwrap_or(u64::MAX));
        self.grow.set(if grow == 0 { POLL_GROW } else { u64::from(grow) });
        self.shrink.set(u64::from(shrink));
        self.now_ns.set(0);
    }

    #[inline]
    pub(crate) fn is_enabled(&self) -> bool {
        self.max_ns.get() > 0
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.max_ns.get()
    }

    /// How long the next look takes at most, in nanoseconds.
    pub(crate) fn current_ns(&self) -> u64 {
        self.now_ns.get()
    }

    /// Starts looking at a handler that has been ready once.
    pub(crate) fn activate(&self, hook: &Rc<PollHook>) {
        hook.last_ready.set(Instant::now());
        if self.is_enabled() && !hook.active.replace(true) {
            self.hooks.borrow_mut().push(Rc::clone(hook));
        }
    }

    pub(crate) fn forget(&self, hook: &Rc<PollHook>) {
        hook.active.set(false);
        hook.pending.set(false);
        self.hooks.borrow_mut().retain(|other| !Rc::ptr_eq(other, hook));
    }

    /// Looks for work until there is some or time is up; whether there is.
    pub(crate) fn look(&self, inner: &Inner, timeout: Option<Duration>) -> bool {
        if self.now_ns.get() == 0 {
            return false;
        }
        let limit = Duration::from_nanos(self.now_ns.get());
        let limit = timeout.map_or(limit, |timeout| timeout.min(limit));
        let start = Instant::now();
        loop {
            let completed = inner.made_ring().is_some_and(Ring::has_completions);
            if completed || inner.shared.has_work() || self.any_busy(inner, start) {
                return true;
            }
            if start.elapsed() >= limit {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn any_busy(&self, inner: &Inner, now: Instant) -> bool {
        let mut found = false;
        let mut idle = false;
        let mut index = 0;
        // The list is not borrowed while a hook runs: it may change the list.
        loop {
            let Some(hook) = self.hooks.borrow().get(index).cloned() else { break };
            index += 1;
            if hook.running.get() {
                continue;
            }
            if (hook.busy)(inner.me()) {
                hook.last_ready.set(now);
                hook.pending.set(true);
                found = true;
            } else {
                idle |= now.saturating_duration_since(hook.last_ready.get()) > HOOK_IDLE;
            }
        }
        if idle {
            self.let_go_of_idle(now);
        }
        found
    }

    #[cold]
    fn let_go_of_idle(&self, now: Instant) {
        self.hooks.borrow_mut().retain(|hook| {
            let keep = now.saturating_duration_since(hook.last_ready.get()) <= HOOK_IDLE;
            hook.active.set(keep);
            keep
        });
    }

    /// Calls the ready hooks of what the last look found.
    pub(crate) fn dispatch(&self, ctx: &AioContext) -> bool {
        if !self.is_enabled() {
            return false;
        }
        let mut progress = false;
        let mut index = 0;
        loop {
            let Some(hook) = self.hooks.borrow().get(index).cloned() else { return progress };
            index += 1;
            if hook.pending.replace(false) && !hook.running.replace(true) {
                let _ended = OnDrop(|| hook.running.set(false));
                (hook.ready)(ctx);
                progress = true;
            }
        }
    }

    /// Adapts to a wait that took `waited` in all (contract: C46).
    pub(crate) fn adapt(&self, waited: Duration) {
        let (waited_ns, now_ns) = (waited.as_nanos(), self.now_ns.get());
        let max_ns = self.max_ns.get();
        if waited_ns <= u128::from(now_ns) {
            // Polling was long enough.
        } else if waited_ns > u128::from(max_ns) {
            // Even the longest polling would have been in vain.
            self.now_ns.set(now_ns.checked_div(self.shrink.get()).unwrap_or(0));
        } else {
            let longer = if now_ns == 0 { POLL_START_NS } else { now_ns * self.grow.get() };
            self.now_ns.set(longer.min(max_ns));
        }
    }
}

/// Runs a closure when it goes out of scope, also by unwinding.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c46_polling_time_starts_at_4us_doubles_to_the_maximum_and_resets() {
        let polling = Polling::new(Duration::from_nanos(20_000));
        assert_eq!(polling.current_ns(), 0);
        let mut seen = Vec::new();
        for _ in 0..5 {
            polling.adapt(Duration::from_nanos(19_999));
            seen.push(polling.current_ns());
        }
        assert_eq!(seen, [4_000, 8_000, 16_000, 20_000, 20_000]);
        polling.adapt(Duration::from_micros(1));
        assert_eq!(polling.current_ns(), 20_000, "it paid");
        polling.adapt(Duration::from_millis(1));
        assert_eq!(polling.current_ns(), 0, "it did not pay");
    }

    #[test]
    fn c46_polling_time_grows_and_shrinks_by_the_factors_given() {
        let polling = Polling::new(Duration::ZERO);
        polling.set(Duration::from_nanos(100_000), 3, 2);
        polling.adapt(Duration::from_nanos(50_000));
        polling.adapt(Duration::from_nanos(50_000));
        assert_eq!(polling.current_ns(), 12_000);
        polling.adapt(Duration::from_secs(1));
        assert_eq!(polling.current_ns(), 6_000);
    }
}
