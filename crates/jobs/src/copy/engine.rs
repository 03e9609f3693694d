//! [`Engine`]: the workers that copy for a job, and what they wait for.
//!
//! The job's main coroutine calls workers when there is something to do that may be done now; a worker that
//! has claimed calls the next one. So no more work than there is work, and one that finds nothing rests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::sync::CoQueue;
use coblk_aio::{AioContext, AioHandle, Co};
use coblk_block::{BlockBackend, ErrorAction, RequestKind};

use super::granules::Granules;
use super::guests::Guests;
use super::pace::Pace;
use super::piece::CopyError;
use super::plan::Plan;
use super::station::{Common, Failed, co_serve};
use super::target::{Pending, Target};
use crate::{Job, JobFailure, OnError};

/// For how long the end of a job waits for its target.
const MOMENT_NS: i64 = 500_000_000;
/// For how long what guests copy is not looked at, while it is too early for a copy of the job's.
const REST_NS: i64 = 10_000_000;
/// For how long nothing but errors may come before a soft cancellation fails.
const MAX_FAILING_NS: i64 = 10_000_000_000;

/// The copies of one job. Home thread.
pub(crate) struct Engine {
    pub(super) job: Rc<Job>,
    pub(super) granules: Arc<Granules>,
    guests: Arc<Guests>,
    /// Until the engine is stopped.
    pub(super) source: RefCell<Option<BlockBackend>>,
    pub(super) target: Rc<Target>,
    pub(super) plan: Plan,
    pub(super) chunk: u64,
    pub(super) pace: Pace,
    pub(super) common: Arc<Common>,
    /// Contexts that are to have a station.
    contexts: RefCell<Vec<AioHandle>>,
    /// Those that are there.
    stations: Cell<u64>,
    /// Workers that rest.
    pub(super) resting: CoQueue,
    workers: Cell<u64>,
    /// Workers that have passed the gates, and have not ended their claims.
    pub(super) active: Cell<u64>,
    pub(super) is_stopped: Cell<bool>,
    /// No copy begins before that, in nanoseconds of the context's clock.
    retry_ns: Cell<i64>,
    /// Since when there are nothing but errors.
    pub(super) failing_since_ns: Cell<Option<i64>>,
    pub(super) failure: RefCell<Option<JobFailure>>,
}

impl Engine {
    /// For a job that copies what `granules` say from a backend of its own to a target.
    pub(crate) fn new(
        job: &Rc<Job>,
        (granules, guests): (&Arc<Granules>, &Arc<Guests>),
        source: BlockBackend,
        target: &Rc<Target>,
        plan: Plan,
    ) -> Rc<Engine> {
        let buffer = plan.buffer.max(plan.granularity);
        let (most, longest) = (plan.manner.max_workers, plan.manner.max_chunk);
        let longest = longest.max(plan.granularity);
        let chunk = (buffer / most).clamp(plan.granularity, longest);
        let chunk = chunk / plan.granularity * plan.granularity;
        let shape = plan.shape();
        let sizes = (plan.granularity, chunk);
        let common = Common::new((granules, guests), job.progress(), sizes, (shape, &plan.manner));
        let at_once = ((buffer / chunk).clamp(1, most), chunk, plan.unit.min(chunk));
        let pace = Pace::new(plan.manner.latency.clone(), at_once);
        Rc::new(Engine {
            job: Rc::clone(job),
            granules: Arc::clone(granules),
            guests: Arc::clone(guests),
            source: RefCell::new(Some(source)),
            target: Rc::clone(target),
            chunk,
            pace,
            common,
            contexts: RefCell::default(),
            stations: Cell::new(0),
            plan,
            resting: CoQueue::new(),
            workers: Cell::new(0),
            active: Cell::new(0),
            is_stopped: Cell::new(false),
            retry_ns: Cell::new(0),
            failing_since_ns: Cell::new(None),
            failure: RefCell::default(),
        })
    }

    /// Has workers in these contexts, too, once there is much to copy.
    pub(crate) fn set_contexts(&self, contexts: Vec<AioHandle>) {
        self.contexts.replace(contexts);
    }

    /// Whether a worker may have a claim.
    fn is_active(&self) -> bool {
        self.active.get() > 0 || self.common.is_active()
    }

    /// Whether nothing is to be copied and nothing under way.
    pub(crate) fn is_clean(&self) -> bool {
        self.granules.todo() == 0 && self.granules.busy() == 0 && !self.is_active()
    }

    /// Whether nothing is left for the workers; guests may be at work at both nodes.
    pub(crate) fn is_copied(&self) -> bool {
        self.granules.todo() == 0 && !self.is_active()
    }

    /// What is to be copied and what is under way, in bytes.
    pub(crate) fn rest(&self) -> u64 {
        let granules = self.granules.todo() + self.granules.busy();
        (granules * self.plan.granularity).min(self.plan.length)
    }

    /// Copies until nothing is to be copied and nothing under way, copies that guests drive included, however
    /// short that time may be. Pauses with the job, in states that know a pause. A step of the job's main
    /// coroutine.
    ///
    /// # Errors
    /// If the job is cancelled, or a request has failed and its policy is to report that.
    pub(crate) fn co_converge(self: &Rc<Self>, co: &Co<'_>) -> Result<(), JobFailure> {
        self.co_copy_until(co, || self.is_clean(), || false)
    }

    /// [`co_converge`](Self::co_converge), but does not wait for guests that write to both nodes, as these may never
    /// rest; and returns early if `is_over` when the job is kicked.
    ///
    /// # Errors
    /// As of [`co_converge`](Self::co_converge).
    pub(crate) fn co_catch_up(
        self: &Rc<Self>,
        co: &Co<'_>,
        is_over: impl Fn() -> bool,
    ) -> Result<(), JobFailure> {
        self.co_copy_until(co, || self.is_copied(), is_over)
    }

    fn co_copy_until(
        self: &Rc<Self>,
        co: &Co<'_>,
        is_done: impl Fn() -> bool,
        is_over: impl Fn() -> bool,
    ) -> Result<(), JobFailure> {
        // While it is too early for a copy, what guests do wakes the job now and then, and not each time.
        let mut has_looked = false;
        loop {
            self.check(co.context())?;
            if is_over() {
                return Ok(());
            }
            if self.job.should_pause() {
                self.common.allow(false);
                if !self.is_active() && self.job.can_pause() {
                    self.job.co_pause_point(co)?;
                } else {
                    self.job.co_wait(co, None);
                }
            } else if self.granules.todo() > 0 {
                match self.earliest_ns(co.context()).filter(|_| has_looked) {
                    Some(until_ns) => {
                        let soon_ns = co.context().now_ns() + REST_NS;
                        self.job.co_wait(co, Some(until_ns.min(soon_ns)));
                    }
                    None => {
                        self.guests.want_end();
                        let until_ns = self.call_worker(co.context());
                        self.job.co_wait(co, until_ns);
                    }
                }
                has_looked = !has_looked;
            } else {
                self.guests.want_end();
                if is_done() {
                    return Ok(());
                }
                self.job.co_wait(co, None);
            }
        }
    }

    /// That the job goes on.
    fn check(&self, ctx: &AioContext) -> Result<(), JobFailure> {
        if self.job.is_cancelled() {
            return Err(JobFailure::Cancelled);
        }
        if let Some(error) = self.guests.take_fatal() {
            return Err(JobFailure::Io(error));
        }
        for error in self.guests.take_errors() {
            self.target_failed(ctx, &error);
        }
        if self.common.take_success() {
            self.succeeded();
        }
        for failed in self.common.take_failed() {
            match failed {
                Failed::Copy(error) => self.failed(ctx, &error),
                Failed::Panic => self.fail(JobFailure::panicked()),
            }
        }
        let has_failed_long = |since: i64| ctx.now_ns() - since > MAX_FAILING_NS;
        let is_given_up = self.job.is_soft_cancelled()
            && self.failing_since_ns.get().is_some_and(has_failed_long);
        if is_given_up {
            let text = "requests have done nothing but fail for 10 s";
            return Err(JobFailure::Text(text.to_owned()));
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// When the next copy may begin, if that is later than now.
    pub(super) fn earliest_ns(&self, ctx: &AioContext) -> Option<i64> {
        let now_ns = ctx.now_ns();
        let delay = i64::try_from(self.job.rate().delay(now_ns).as_nanos()).unwrap_or(i64::MAX);
        let at_ns = now_ns.saturating_add(delay).max(self.retry_ns.get()).max(self.pace.next_ns());
        (at_ns > now_ns).then_some(at_ns)
    }

    /// Has one more worker work, unless it is too early; returns until when.
    pub(super) fn call_worker(self: &Rc<Self>, ctx: &AioContext) -> Option<i64> {
        self.pace.look(ctx.now_ns());
        let earliest_ns = self.earliest_ns(ctx);
        self.call_stations(ctx, earliest_ns.is_none());
        if earliest_ns.is_none()
            && !self.resting.wake_one()
            && self.workers.get() < self.pace.workers()
        {
            self.workers.set(self.workers.get() + 1);
            let engine = Rc::clone(self);
            ctx.spawn("copy", move |co| {
                let pending = engine.begin();
                // The one that has called it reads first: disks like what comes in order.
                co.yield_now();
                // The hook of panics has reported it.
                if co.catch_unwind(|| engine.co_work(co)).is_err() {
                    engine.fail(JobFailure::panicked());
                }
                engine.workers.set(engine.workers.get() - 1);
                pending.into_iter().for_each(|pending| pending.co_end(co));
                engine.job.kick();
            });
        }
        earliest_ns
    }

    /// A coroutine begins that uses the target, and the spill, which the job need not wait for.
    fn begin(&self) -> Vec<Pending> {
        let spill = self.plan.manner.spill.iter().map(|(_, used)| used.begin());
        spill.chain([self.target.begin()]).collect()
    }

    /// Lets stations work, if there is more to do than workers here have at once.
    fn call_stations(self: &Rc<Self>, ctx: &AioContext, is_time: bool) {
        let is_much = self.granules.todo() * self.plan.granularity > 2 * self.chunk;
        let may_begin = is_time && !self.is_stopped.get() && self.failure.borrow().is_none();
        let is_limited = self.job.rate().speed() != 0 || !self.pace.is_full();
        self.common.allow(may_begin && !self.job.should_pause() && !is_limited);
        if is_much && may_begin {
            for context in self.contexts.take() {
                self.begin_station(ctx, &context);
            }
            if self.stations.get() > 0 {
                self.common.call();
            }
        }
    }

    /// Has workers in a context, for as long as the engine is not stopped.
    fn begin_station(self: &Rc<Self>, ctx: &AioContext, context: &AioHandle) {
        let Some(source) = self.source.borrow().as_ref().and_then(BlockBackend::node) else {
            return;
        };
        self.stations.set(self.stations.get() + 1);
        let (engine, pending) = (Rc::clone(self), self.begin());
        let (nodes, at_source) =
            ((source, Arc::clone(self.target.node())), self.common.at_source());
        let station = context.spawn("station of a job", move |co| co_serve(co, at_source, nodes));
        ctx.spawn("end of a station", move |co| {
            // Its context may have gone.
            let _ = co.block_on(station);
            engine.stations.set(engine.stations.get() - 1);
            pending.into_iter().for_each(|pending| pending.co_end(co));
            engine.job.kick();
        });
    }

    pub(super) fn failed(&self, ctx: &AioContext, error: &CopyError) {
        let policy = match error.kind {
            RequestKind::Read => self.plan.on_source_error,
            _ => self.plan.on_target_error,
        };
        self.act_on(ctx, error.kind, policy, &error.error);
    }

    /// A request to the target that is no copy has failed, such as a flush: acts by the policy.
    pub(crate) fn target_failed(&self, ctx: &AioContext, error: &std::io::Error) {
        self.act_on(ctx, RequestKind::Write, self.plan.on_target_error, error);
    }

    fn act_on(&self, ctx: &AioContext, kind: RequestKind, policy: OnError, error: &std::io::Error) {
        // The request of a job that is over.
        if self.is_stopped.get() {
            return;
        }
        let now_ns = ctx.now_ns();
        if self.failing_since_ns.get().is_none() {
            self.failing_since_ns.set(Some(now_ns));
        }
        match self.job.failed(ctx, kind, policy, error) {
            ErrorAction::Report => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.fail(JobFailure::Io(std::io::Error::from_raw_os_error(errno)));
            }
            ErrorAction::Ignore => {
                let wait = i64::try_from(self.job.retry_after().as_nanos()).unwrap_or(i64::MAX);
                self.retry_ns.set(now_ns.saturating_add(wait));
            }
            ErrorAction::Stop => {}
        }
    }

    /// When a step of the main coroutine that has failed may be tried again.
    pub(crate) fn retry_ns(&self) -> i64 {
        self.retry_ns.get()
    }

    pub(super) fn fail(&self, failure: JobFailure) {
        self.failure.borrow_mut().get_or_insert(failure);
        self.job.kick();
    }

    /// Lets no copy begin any more, and waits for those under way: for a moment, and then for those alone that
    /// may still be at the source. A step of the job's main coroutine.
    pub(crate) fn co_stop(&self, co: &Co<'_>) {
        self.is_stopped.set(true);
        self.resting.wake_all();
        self.common.stop();
        let until_ns = co.context().now_ns() + MOMENT_NS;
        while self.workers.get() > 0 || self.stations.get() > 0 {
            let is_over = co.context().now_ns() >= until_ns;
            if is_over && self.is_source_free() {
                break;
            }
            self.job.co_wait(co, Some(until_ns).filter(|_| !is_over));
        }
        self.source.take();
    }

    fn is_source_free(&self) -> bool {
        !self.common.is_at_source()
            && self.source.borrow().as_ref().is_none_or(|source| source.in_flight() == 0)
    }
}
