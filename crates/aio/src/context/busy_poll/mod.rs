//! Adaptive busy polling: a loop that expects work soon looks for it a while before it sleeps,
//! because waking a sleeping thread costs far more than a short wait (contract: C45 to C48).
//!
//! What it looks at: completions of the ring, the list that workers and other threads push to, and
//! the [`BusyPoll`]s of descriptor handlers, such as "has the guest put something into the ring".
//!
//! How long it looks is a matter of what a wake-up costs and of how long its waits were of late
//! ([`waiting`](crate::waiting)), so an idle loop sleeps; or of a maximum that was set ([`PollParams`]).
//! While a job of its own is with a worker on its own CPU, or if a thread there has just given it work, a loop
//! does not look at all.

mod hook;
mod params;
mod rules;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{AioContext, Inner};
use crate::panics::{Culprit, call_reporting, drop_reporting};
use crate::ring::Ring;
use crate::waiting::{may_spin, spin, spin_while};

pub use hook::BusyPoll;
pub(crate) use hook::PollHook;
pub use params::PollParams;
use rules::Rules;
pub(crate) use rules::WaitFor;
pub use rules::WaitStats;

/// Turns of which one asks the kernel for events, while the loop looks for work by itself and finds
/// it each time.
const ASK_EVERY: u32 = 8;
/// What is named when a hook panics.
const ASKED: Culprit = Culprit::Other("a busy-poll hook");

/// Polling parameters and state of one context.
pub(crate) struct Polling {
    rules: Rules,
    hooks: RefCell<Vec<Rc<PollHook>>>,
    /// Loops over `hooks` that are under way: none of them may be moved.
    visits: Cell<usize>,
    /// The list holds hooks that are no longer active.
    stale: Cell<bool>,
    /// Hooks may be between their `begin` and `end`: nothing else tells the loop of their work.
    begun: Cell<bool>,
    /// Turns since the kernel was last asked for events.
    unasked: Cell<u32>,
}

impl Polling {
    pub(crate) fn new(params: PollParams) -> Polling {
        Polling {
            rules: Rules::new(params),
            hooks: RefCell::new(Vec::new()),
            visits: Cell::new(0),
            stale: Cell::new(false),
            begun: Cell::new(false),
            unasked: Cell::new(0),
        }
    }

    pub(crate) fn set(&self, params: PollParams) {
        self.rules.set(params);
    }

    #[inline]
    pub(crate) fn is_enabled(&self) -> bool {
        self.rules.is_enabled()
    }

    /// Whether [`look`](Self::look) comes before a sleep. Also when it has been turned off in the
    /// middle: then it ends what it has begun.
    #[inline]
    pub(crate) fn is_used(&self) -> bool {
        self.is_enabled() || self.begun.get()
    }

    /// Whether the loop sleeps at once while the ring is deep. Not if a maximum was set: then it looks.
    #[inline]
    pub(crate) fn sleeps_at_depth(&self) -> bool {
        self.rules.minds_others()
    }

    /// How long any look takes at most, in nanoseconds.
    pub(crate) fn max_ns(&self) -> u64 {
        self.rules.max_ns()
    }

    /// How long the next look takes at most while no job and no request is out, in nanoseconds.
    pub(crate) fn current_ns(&self) -> u64 {
        self.rules.current_ns()
    }

    pub(crate) fn stats(&self) -> WaitStats {
        self.rules.stats()
    }

    /// The loop is about to sleep.
    #[inline]
    pub(crate) fn count_sleep(&self) {
        self.rules.count_sleep();
    }

    /// Starts looking at a handler that has been ready once.
    pub(crate) fn activate(&self, ctx: &AioContext, hook: &Rc<PollHook>) {
        hook.last_ready.set(Instant::now());
        if self.is_enabled() && hook.poll.pays(ctx) {
            hook.active.set(true);
            if !hook.listed.replace(true) {
                self.hooks.borrow_mut().push(Rc::clone(hook));
            }
        }
    }

    /// Ends looking at a handler that is removed.
    pub(crate) fn forget(&self, ctx: &AioContext, hook: &PollHook) {
        hook.removed.set(true);
        hook.active.set(false);
        hook.pending.set(false);
        self.drop_inactive();
        hook.end(ctx);
    }

    /// The context ends: tells all that the loop looks no more.
    pub(crate) fn close(&self, ctx: &AioContext) {
        self.begun.set(false);
        for hook in self.hooks.take() {
            hook.active.set(false);
            call_reporting(ctx.name(), ASKED, || hook.end(ctx));
            drop_reporting(ctx.name(), hook);
        }
    }

    /// Takes off the list what is no longer looked at, unless a loop over it is under way, which
    /// would then skip others. Whether the list is empty now.
    fn drop_inactive(&self) -> bool {
        let mut dropped = Vec::new();
        let mut hooks = self.hooks.borrow_mut();
        self.stale.set(self.visits.get() > 0);
        if !self.stale.get() {
            dropped.extend(hooks.extract_if(.., |hook| !hook.active.get()));
            dropped.iter().for_each(|hook| hook.listed.set(false));
        }
        let is_empty = hooks.iter().all(|hook| !hook.active.get());
        drop(hooks);
        // Not under the borrow: the destructors may come back here.
        drop(dropped);
        is_empty
    }

    /// Whether the last look has found something that has not been dispatched: after a panic.
    pub(crate) fn has_pending(&self) -> bool {
        self.begun.get() && self.hooks.borrow().iter().any(|hook| hook.pending.get())
    }

    /// Looks for work until there is some or the look has to end. If it has found none, the loop may
    /// sleep.
    pub(crate) fn look(&self, inner: &Inner, start: Instant, timeout: Option<Duration>) -> Look {
        let mut look = self.look_for(inner, start, timeout);
        look.found = look.found || self.end_look(inner);
        look
    }

    /// The wait is over that `look` was for. `slept`: it took so long in all, because the loop slept.
    #[inline]
    pub(crate) fn learn(&self, look: &Look, slept: Option<Duration>) {
        let waited = slept.unwrap_or(look.took);
        self.rules.learn(look.what, ns(look.took), ns(waited), slept.is_some());
    }

    /// Whether a turn that has work need not ask the kernel for more. Only one in which handlers are
    /// looked at, and only so many in a row: there are descriptors without a [`BusyPoll`] too.
    #[inline]
    pub(crate) fn may_skip_events(&self) -> bool {
        let unasked = self.unasked.get() + 1;
        let skips = self.begun.get() && unasked < ASK_EVERY;
        self.unasked.set(if skips { unasked } else { 0 });
        skips
    }

    /// Called instead of [`look`](Self::look) when the poll will not block. `ends`: the poll is a
    /// non-blocking one, so the next wait may be elsewhere, and the other sides must notify again.
    #[inline]
    pub(crate) fn pass(&self, inner: &Inner, ends: bool) {
        if self.begun.get() {
            let _ = if ends { self.end_look(inner) } else { self.any_busy(inner, Instant::now()) };
        }
    }

    /// The loop is not going to look for some time: ends what a look has begun. Whether there is work
    /// now.
    pub(crate) fn end(&self, inner: &Inner) -> bool {
        self.end_look(inner)
    }

    fn look_for(&self, inner: &Inner, start: Instant, timeout: Option<Duration>) -> Look {
        let what = inner.waits_for();
        let limit = Duration::from_nanos(self.rules.limit_ns(what));
        let limit = timeout.map_or(limit, |timeout| timeout.min(limit));
        let worker = (what == WaitFor::Worker).then_some(&inner.shared.worker);
        let minds_others = self.rules.minds_others();
        // A thread that has put something on our list here runs on once we sleep, and may put more.
        let poster_is_here = inner.shared.poster.take_if_here();
        let is_needed = (what == WaitFor::Others && poster_is_here) || !may_spin(worker);
        if limit.is_zero() || (minds_others && is_needed) {
            return Look { what, took: Duration::ZERO, found: false };
        }
        // A worker that looks for jobs does not do it on this CPU.
        inner.shared.place.publish();
        self.for_each_hook(inner, |hook| hook.begin(inner.me()));
        self.begun.set(!self.hooks.borrow().is_empty());
        let look = || self.finds(inner, start).then_some(());
        let found = match minds_others {
            true => spin(start, limit, worker, look),
            false => spin_while(start, limit, || true, look),
        };
        Look { what, took: start.elapsed(), found: found.is_some() }
    }

    /// Whether there is work now.
    #[inline]
    fn finds(&self, inner: &Inner, now: Instant) -> bool {
        // The hooks first: other work must not keep them from being asked, for nothing else tells
        // of theirs.
        let busy = self.begun.get() && self.any_busy(inner, now);
        busy || inner.shared.has_work() || inner.made_ring().is_some_and(Ring::has_completions)
    }

    /// Asks to be notified again, and looks once more; whether there is work now.
    fn end_look(&self, inner: &Inner) -> bool {
        if !self.begun.replace(false) {
            return false;
        }
        self.for_each_hook(inner, |hook| hook.end(inner.me()));
        self.any_busy(inner, Instant::now())
    }

    fn any_busy(&self, inner: &Inner, now: Instant) -> bool {
        let mut found = false;
        let mut idle = false;
        self.for_each_hook(inner, |hook| {
            if hook.running.get() {
                return;
            }
            if hook.poll.is_busy(inner.me()) {
                hook.last_ready.set(now);
                hook.pending.set(true);
                found = true;
            } else {
                idle |= hook.is_idle(inner.me(), now);
            }
        });
        if idle {
            found |= self.let_go_of_idle(inner, now);
        }
        found
    }

    /// Forgets who has had nothing for long; its descriptor brings it back. Whether one of them
    /// has something after all, now that it has been told to notify again.
    #[cold]
    fn let_go_of_idle(&self, inner: &Inner, now: Instant) -> bool {
        let mut found = false;
        self.for_each_hook(inner, |hook| {
            if !hook.is_idle(inner.me(), now) {
                return;
            }
            hook.end(inner.me());
            if !hook.running.get() && hook.poll.is_busy(inner.me()) {
                hook.last_ready.set(now);
                hook.pending.set(true);
                found = true;
            } else {
                hook.active.set(false);
            }
        });
        if self.drop_inactive() {
            // The loop looks no more: only the kernel tells of work.
            self.begun.set(false);
        }
        found
    }

    /// Asks all hooks. One that panics is not asked any more.
    fn for_each_hook(&self, inner: &Inner, mut ask: impl FnMut(&PollHook)) {
        let panicked = self.visit_all(inner, |hook| {
            let fault = OnDrop(|| {
                hook.active.set(false);
                hook.faulty.set(true);
            });
            ask(hook);
            std::mem::forget(fault);
        });
        if panicked {
            self.let_go_of_faulty(inner);
        }
    }

    /// Its descriptor brings a hook back that has panicked. It may have been about to find
    /// something, so its work is done once.
    #[cold]
    fn let_go_of_faulty(&self, inner: &Inner) {
        let faulty: Vec<_> =
            self.hooks.borrow().iter().filter(|hook| hook.faulty.take()).cloned().collect();
        self.drop_inactive();
        for hook in faulty {
            let asked = Rc::clone(&hook);
            inner.me().schedule(move |ctx| {
                if !hook.removed.get() && !hook.running.get() {
                    hook.run(ctx);
                }
            });
            inner.shield(|| inner.panics.blaming(ASKED, || asked.end(inner.me())));
        }
    }

    /// The list is not borrowed while a hook runs: it may change the list. Whether one has panicked;
    /// then the others were visited all the same.
    fn visit_all(&self, inner: &Inner, mut visit: impl FnMut(&PollHook)) -> bool {
        self.visits.set(self.visits.get() + 1);
        let _left = OnDrop(|| {
            self.visits.set(self.visits.get() - 1);
            if self.visits.get() == 0 && self.stale.get() {
                self.drop_inactive();
            }
        });
        let mut index = 0;
        inner.shield(|| {
            inner.panics.blaming(ASKED, || {
                loop {
                    let Some(hook) = self.hooks.borrow().get(index).cloned() else { return };
                    index += 1;
                    if hook.active.get() {
                        visit(&hook);
                    }
                }
            });
        })
    }

    /// Calls the ready hooks of what the last look found.
    #[inline]
    pub(crate) fn dispatch(&self, ctx: &AioContext) -> bool {
        if self.hooks.borrow().is_empty() {
            return false;
        }
        let mut progress = false;
        self.visit_all(ctx.inner(), |hook| {
            if hook.pending.replace(false) && !hook.running.get() {
                progress = true;
                hook.run(ctx);
            }
        });
        progress
    }
}

impl Inner {
    /// What a wait that begins now is for.
    #[inline]
    fn waits_for(&self) -> WaitFor {
        if self.co_jobs.get() + self.aio_jobs.get() > 0 {
            WaitFor::Worker
        } else if self.made_ring().is_some_and(Ring::has_in_flight) {
            WaitFor::Ring
        } else {
            WaitFor::Others
        }
    }
}

/// A look before a sleep.
pub(crate) struct Look {
    what: WaitFor,
    /// Zero if there was none.
    took: Duration,
    /// There is work.
    pub(crate) found: bool,
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs a closure when it goes out of scope, also by unwinding.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests;
