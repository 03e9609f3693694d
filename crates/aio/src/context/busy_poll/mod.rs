//! Adaptive busy polling: a loop that expects work soon looks for it a while before it sleeps,
//! because waking a sleeping thread costs far more than a short wait (contract: C45 to C48).
//!
//! What it looks at: completions of the ring, the list that workers and other threads push to, and
//! the [`BusyPoll`]s of descriptor handlers, such as "has the guest put something into the ring".
//!
//! How long it looks adapts to how long it had to wait: up to a maximum, so an idle loop sleeps.

mod params;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{AioContext, Inner};
use crate::panics::{Culprit, call_reporting, drop_reporting};
use crate::ring::Ring;

pub use params::PollParams;

/// How long an [`IoThread`](crate::IoThread)'s context polls at most (contract: C48).
pub const DEFAULT_POLL_MAX: Duration = Duration::from_nanos(32_768);
/// The first polling time (contract: C46).
const POLL_START_NS: u64 = 4_000;
/// Factor by which the polling time grows, unless told otherwise.
const POLL_GROW: u64 = 2;
/// Turns of which one asks the kernel for events, while the loop looks for work by itself and finds
/// it each time.
const ASK_EVERY: u32 = 8;
/// A handler that was not ready for so long is not polled any more (contract: C46).
const HOOK_IDLE: Duration = Duration::from_secs(7);

/// The busy-poll half of a descriptor handler: how a loop that polls adaptively sees, without a
/// system call, that there is something to do. All of it is called on the home thread.
///
/// What says that there is work and what does the work come together; one without the other does
/// not compile (contract: C45):
///
/// ```compile_fail
/// struct Half;
/// impl coblk_aio::BusyPoll for Half {
///     fn is_busy(&self, _: &coblk_aio::AioContext) -> bool { true }
/// }
/// ```
pub trait BusyPoll {
    /// Whether there is something to do. Asked often; must be cheap, and not poll.
    fn is_busy(&self, ctx: &AioContext) -> bool;

    /// Whether asking is worth its time at present. If not, the loop does not ask before the
    /// descriptor has been ready once more, and leaves it to the kernel to tell of that.
    fn pays(&self, _ctx: &AioContext) -> bool {
        true
    }

    /// Does it. A nested poll never enters it again (contract: C47).
    fn ready(&self, ctx: &AioContext);

    /// The loop looks by itself from now on: the other side need not notify. Must not poll.
    fn begin(&self, _ctx: &AioContext) {}

    /// The loop is about to sleep, or the handler is removed: the other side must notify again. A
    /// loop that is about to sleep looks once more afterwards, so what came in between is not missed.
    /// Must not poll.
    fn end(&self, _ctx: &AioContext) {}
}

/// What is named when a hook panics.
const ASKED: Culprit = Culprit::Other("a busy-poll hook");

/// A [`BusyPoll`], and what the loop remembers of it.
pub(crate) struct PollHook {
    poll: Box<dyn BusyPoll>,
    /// Between `begin` and `end`.
    begun: Cell<bool>,
    /// To be looked at.
    active: Cell<bool>,
    /// On the list of hooks. One that is no longer active stays there until no loop over the list
    /// is under way.
    listed: Cell<bool>,
    last_ready: Cell<Instant>,
    /// Found ready by the last look, to be called in the dispatch phase.
    pending: Cell<bool>,
    /// Inside `ready`, which a nested poll must not enter again (contract: C47).
    running: Cell<bool>,
    /// Has panicked when it was asked.
    faulty: Cell<bool>,
    /// Its handler is gone.
    removed: Cell<bool>,
    /// Ended by a nested poll inside `ready`, which could not look once more.
    ended_in_ready: Cell<bool>,
}

impl PollHook {
    pub(crate) fn new(poll: Box<dyn BusyPoll>) -> Rc<PollHook> {
        Rc::new(PollHook {
            poll,
            begun: Cell::new(false),
            active: Cell::new(false),
            listed: Cell::new(false),
            last_ready: Cell::new(Instant::now()),
            pending: Cell::new(false),
            running: Cell::new(false),
            faulty: Cell::new(false),
            removed: Cell::new(false),
            ended_in_ready: Cell::new(false),
        })
    }

    /// It has had nothing for long, or asking it does not pay.
    fn is_idle(&self, ctx: &AioContext, now: Instant) -> bool {
        now.saturating_duration_since(self.last_ready.get()) > HOOK_IDLE || !self.poll.pays(ctx)
    }

    fn begin(&self, ctx: &AioContext) {
        if !self.begun.replace(true) {
            self.poll.begin(ctx);
        }
    }

    fn end(&self, ctx: &AioContext) {
        if self.begun.replace(false) {
            self.poll.end(ctx);
            self.ended_in_ready.set(self.running.get());
        }
    }

    fn run(&self, ctx: &AioContext) {
        self.running.set(true);
        let _ended = OnDrop(|| self.running.set(false));
        self.poll.ready(ctx);
        if self.ended_in_ready.take() && self.poll.is_busy(ctx) {
            self.pending.set(true);
            // The next poll must come to it, and not sleep.
            ctx.schedule(|_| ());
        }
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
    pub(crate) fn new(max: Duration) -> Polling {
        let polling = Polling {
            max_ns: Cell::new(0),
            grow: Cell::new(POLL_GROW),
            shrink: Cell::new(0),
            now_ns: Cell::new(0),
            hooks: RefCell::new(Vec::new()),
            visits: Cell::new(0),
            stale: Cell::new(false),
            begun: Cell::new(false),
            unasked: Cell::new(0),
        };
        polling.set(PollParams::new(max));
        polling
    }

    pub(crate) fn set(&self, params: PollParams) {
        self.max_ns.set(u64::try_from(params.max.as_nanos()).unwrap_or(u64::MAX));
        self.grow.set(if params.grow == 0 { POLL_GROW } else { u64::from(params.grow) });
        self.shrink.set(u64::from(params.shrink));
        self.now_ns.set(0);
    }

    #[inline]
    pub(crate) fn is_enabled(&self) -> bool {
        self.max_ns.get() > 0
    }

    /// Whether [`look`](Self::look) comes before a sleep. Also when it has been turned off in the
    /// middle: then it ends what it has begun.
    #[inline]
    pub(crate) fn is_used(&self) -> bool {
        self.is_enabled() || self.begun.get()
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.max_ns.get()
    }

    /// How long the next look takes at most, in nanoseconds.
    pub(crate) fn current_ns(&self) -> u64 {
        self.now_ns.get()
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

    /// Looks for work until there is some or time is up; whether there is. If there is none, the
    /// loop may sleep.
    pub(crate) fn look(&self, inner: &Inner, timeout: Option<Duration>) -> bool {
        self.look_for(inner, timeout) || self.end_look(inner)
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

    fn look_for(&self, inner: &Inner, timeout: Option<Duration>) -> bool {
        if self.now_ns.get() == 0 {
            return false;
        }
        let limit = Duration::from_nanos(self.now_ns.get());
        let limit = timeout.map_or(limit, |timeout| timeout.min(limit));
        let start = Instant::now();
        self.for_each_hook(inner, |hook| hook.begin(inner.me()));
        self.begun.set(!self.hooks.borrow().is_empty());
        loop {
            // The hooks first: other work must not keep them from being asked, for nothing else tells
            // of theirs.
            let busy = self.any_busy(inner, start);
            if busy
                || inner.shared.has_work()
                || inner.made_ring().is_some_and(Ring::has_completions)
            {
                return true;
            }
            if start.elapsed() >= limit {
                return false;
            }
            std::hint::spin_loop();
        }
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
            let longer = now_ns.saturating_mul(self.grow.get()).max(POLL_START_NS);
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
mod tests;
