//! What a loop looks at: the hooks of descriptor handlers.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{AioContext, OnDrop};

/// A handler that was not ready for so long is not polled any more (contract: C46).
pub(super) const HOOK_IDLE: Duration = Duration::from_secs(7);

/// The busy-poll half of a descriptor handler: how a loop that polls adaptively sees, without a
/// system call or by a short one, that there is something to do. All of it is called on the home thread.
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

/// A [`BusyPoll`], and what the loop remembers of it.
pub(crate) struct PollHook {
    pub(super) poll: Box<dyn BusyPoll>,
    /// Between `begin` and `end`.
    pub(super) begun: Cell<bool>,
    /// To be looked at.
    pub(super) active: Cell<bool>,
    /// On the list of hooks. One that is no longer active stays there until no loop over the list
    /// is under way.
    pub(super) listed: Cell<bool>,
    pub(super) last_ready: Cell<Instant>,
    /// Found ready by the last look, to be called in the dispatch phase.
    pub(super) pending: Cell<bool>,
    /// Inside `ready`, which a nested poll must not enter again (contract: C47).
    pub(super) running: Cell<bool>,
    /// Has panicked when it was asked.
    pub(super) faulty: Cell<bool>,
    /// Its handler is gone.
    pub(super) removed: Cell<bool>,
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
    pub(super) fn is_idle(&self, ctx: &AioContext, now: Instant) -> bool {
        now.saturating_duration_since(self.last_ready.get()) > HOOK_IDLE || !self.poll.pays(ctx)
    }

    pub(super) fn begin(&self, ctx: &AioContext) {
        if !self.begun.replace(true) {
            self.poll.begin(ctx);
        }
    }

    pub(super) fn end(&self, ctx: &AioContext) {
        if self.begun.replace(false) {
            self.poll.end(ctx);
            self.ended_in_ready.set(self.running.get());
        }
    }

    pub(super) fn run(&self, ctx: &AioContext) {
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
