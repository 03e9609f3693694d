//! A worker of the job's context: one copy after the other.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use coblk_aio::{AioContext, Co};
use coblk_block::Entered;

use super::engine::Engine;
use super::piece::{CopyError, Scratch};
use super::spill::Spilled;
use crate::JobFailure;

impl Engine {
    /// A worker, until the engine is stopped.
    pub(super) fn co_work(self: &Rc<Self>, co: &Co<'_>) {
        let node = self.target.node();
        let alignment = node.limits().memory_alignment;
        match Scratch::new(self.chunk, alignment.max(4096)) {
            Ok(mut scratch) => {
                while !self.is_stopped.get() {
                    if !self.co_copy_one(co, &mut scratch) {
                        // What is busy, or done by others, is for their ends to tell.
                        if self.earliest_ns(co.context()).is_some() {
                            self.job.kick();
                        }
                        self.resting.wait(co);
                    }
                }
            }
            Err(error) => self.fail(JobFailure::Io(error)),
        }
    }

    fn may_begin(&self, ctx: &AioContext) -> bool {
        !self.is_stopped.get()
            && !self.job.should_pause()
            && self.failure.borrow().is_none()
            && self.granules.todo() > 0
            && self.active.get() < self.pace.workers()
            && self.earliest_ns(ctx).is_none()
    }

    /// Copies one chunk. False if there is nothing that may be copied now.
    fn co_copy_one(self: &Rc<Self>, co: &Co<'_>, scratch: &mut Scratch) -> bool {
        if !self.may_begin(co.context()) {
            return false;
        }
        let Some(backend) = self.source.borrow().clone() else { return false };
        let entered = backend.co_enter_both(co, &self.target.backend());
        // The source is free before the target is written.
        drop(backend);
        let (source, target) = match entered {
            Ok(both) => both,
            Err(error) => {
                self.fail(JobFailure::Io(error));
                return false;
            }
        };
        // It may have waited at the gates.
        if !self.may_begin(co.context()) {
            return false;
        }
        let rate = self.job.rate();
        let most = rate.chunk(self.plan.unit, self.pace.chunk()) / self.plan.granularity;
        let active = Active::count(&self.active);
        let Some(claim) = self.common.claim(most.max(1)) else { return false };
        let range = self.common.bytes(&claim);
        let mut spilled = self.common.spilled(&claim);
        rate.sent(co.context().now_ns(), range.end - range.start);
        self.pace.sent(co.context().now_ns());
        if self.granules.todo() > 0 {
            self.call_worker(co.context());
        }
        match self.co_carry_out(co, &range, (source, &mut spilled, target), scratch) {
            Ok(()) => {
                rate.give_back(range.end - range.start - scratch.bytes_written());
                self.succeeded();
                claim.end();
                spilled.into_iter().for_each(|spilled| spilled.co_let_go(co, &range));
                self.job.progress().add(range.end - range.start);
                if self.plan.manner.discards_source {
                    self.co_discard_source(co, &range);
                }
            }
            Err(error) => {
                // It is to be copied again before the policy acts.
                drop(claim);
                self.failed(co.context(), &error);
            }
        }
        drop(active);
        if self.granules.todo() == 0 || self.job.should_pause() {
            self.job.kick();
        }
        true
    }

    pub(super) fn succeeded(&self) {
        self.failing_since_ns.set(None);
        self.job.request_succeeded();
    }

    fn co_carry_out(
        &self,
        co: &Co<'_>,
        range: &Range<u64>,
        (source, spilled, mut target): (Entered, &mut Option<Spilled>, Entered),
        scratch: &mut Scratch,
    ) -> Result<(), CopyError> {
        self.common.co_read(co, scratch, (source, spilled), range)?;
        if self.is_stopped.get() {
            // The end of the job waits for the source alone.
            self.job.kick();
        }
        scratch.co_write(co, &mut target, range)
    }

    /// Discards what was copied, with no claim held: it may wait for a drain.
    fn co_discard_source(&self, co: &Co<'_>, range: &Range<u64>) {
        let Some(source) = self.source.borrow().clone() else { return };
        // A hint: what is not discarded is there twice.
        if let Err(error) = source.co_pdiscard(co, range.start, range.end - range.start) {
            tracing::debug!(offset = range.start, %error, "what was copied is not discarded");
        }
    }
}

/// A worker that may have a claim.
struct Active<'a>(&'a Cell<u64>);

impl Active<'_> {
    fn count(active: &Cell<u64>) -> Active<'_> {
        active.set(active.get() + 1);
        Active(active)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
