//! [`AioContext`]: one thread's event loop.
//!
//! This file is about making a context, putting work on it, and ending it. The other files are its parts:
//!
//! * `poll`: what happens in one [`poll`](AioContext::poll), and `turn`: its time;
//! * `shield`: what becomes of a panic;
//! * `clock`: what time it is;
//! * `bottom_half`, `timer`, `fd_handler`, `busy_poll`: what a poll runs;
//! * `patience`: when it gives back the memory of idle stacks;
//! * `foreign_wait`: the context in another loop;
//! * `handle`: the context as other threads see it;
//! * `link`: the way from a registration to the context, and `here`: the contexts of one thread;
//! * `number`: which of the process's contexts it is, and `per_context`: values for each;
//! * `debug_map`: where a debugger finds it.
//!
//! They are one knot: each part stores callbacks that are given the context, and the context has each part.

pub(crate) mod bottom_half;
mod builder;
mod busy_poll;
mod clock;
mod debug_map;
mod fd_handler;
mod foreign_wait;
mod handle;
mod here;
mod link;
mod number;
mod patience;
mod per_context;
mod poll;
mod shield;
mod testing;
mod timer;
mod turn;

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::io;
use std::mem::{ManuallyDrop, offset_of};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use coblk_coroutine::{Coroutine, CoroutineState};

use crate::co::{Co, Release, Shares, TaskList};
use crate::home::Home;
use crate::panics::{self, Culprit, Panics, call_reporting};
use crate::ring::{Ring, WaitMode};
use crate::simulation::Simulation;
use crate::sys;
use crate::thread_pool::{ThreadPool, owed};
use crate::trace_event;
use crate::waiting::Presence;
use bottom_half::BhQueues;
use busy_poll::Polling;
use fd_handler::FdHandlers;
pub(crate) use link::ContextLink;
use number::ContextNumber;
use patience::Patience;
use timer::TimerList;
use turn::TurnClock;

pub use bottom_half::{BottomHalf, RemoteBottomHalf};
pub use builder::AioContextBuilder;
pub use busy_poll::{BusyPoll, PollParams, WaitStats};
pub use fd_handler::{EventHandler, FdHandler, FdInterest, Readiness};
pub use foreign_wait::Wait;
pub use handle::AioHandle;
pub(crate) use here::wait_until;
pub use number::MAX_CONTEXTS;
pub use per_context::PerContext;
pub use timer::Timer;
pub use turn::Batch;

/// An event loop and everything that is bound to its thread.
///
/// The thread that creates it is its home. Everything runs there, in [`poll`](Self::poll): bottom
/// halves, descriptor handlers, timers, coroutines. Other threads reach it through its
/// [`handle`](Self::handle).
///
/// ```
/// use coblk_aio::AioContext;
///
/// let ctx = AioContext::new()?;
/// let sum = ctx.run(|co| {
///     let pool = co.context().thread_pool();
///     // Each of these runs on a worker thread; the loop goes on meanwhile.
///     pool.submit_co(co, || 20) + pool.submit_co(co, || 22)
/// });
/// assert_eq!(sum, 42);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// It stays on its thread, which is what makes it safe to poll (contract: C42):
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<coblk_aio::AioContext>();
/// ```
///
/// # Dropping
/// waits for the jobs given to [`ThreadPool::submit_aio`] and runs their callbacks (contract:
/// C65), then unwinds the coroutines that are still suspended, then deletes everything else.
/// Bottom halves that still have an owner are reported by name (contract: C39). A context must not
/// be dropped from inside one of its own coroutines; if it is, it is leaked, with an error event.
///
/// # Fork
/// A context, its handles and a [`ThreadPool`] belong to the process that made them. In a process
/// that is forked from it their use panics with a message that says so, and dropping them does
/// nothing. So fork before the first of them is made, or call exec next.
#[repr(transparent)]
pub struct AioContext {
    inner: NonNull<Inner>,
}

/// What a context consists of. Lives at one address for as long as the context, because suspended
/// coroutines point to it.
pub(crate) struct Inner {
    /// A second handle on ourselves, so that callbacks and coroutines can be given an
    /// `&AioContext` that stays valid when the owner moves its own.
    pub(crate) me: ManuallyDrop<AioContext>,
    link: Rc<ContextLink>,
    pub(crate) shared: Arc<Home>,
    pub(crate) queues: Rc<BhQueues>,
    pub(crate) timers: Rc<TimerList>,
    pub(crate) fds: FdHandlers,
    pub(crate) polling: Polling,
    pub(crate) patience: Patience,
    presence: Presence,
    /// Made when it is first asked for; `None` inside if there is no io_uring to be had.
    ring: OnceCell<Option<Rc<Ring>>>,
    wait_mode: WaitMode,
    pub(crate) simulation: Option<Rc<Simulation>>,
    tasks: TaskList,
    coarse_ns: Cell<i64>,
    pub(crate) turn: TurnClock,
    pub(crate) panics: Panics,
    thread_pool: ThreadPool,
    pub(crate) shares: Shares,
    /// Coroutines make blocking calls on this thread.
    pub(crate) calls_in_place: bool,
    /// Jobs from `submit_aio` whose callbacks have not run.
    pub(crate) aio_jobs: Cell<usize>,
    /// Jobs of coroutines that are not home.
    pub(crate) co_jobs: Cell<usize>,
    /// Given back last.
    number: ContextNumber,
}

impl Inner {
    /// For a debugger.
    pub(crate) const FIRST_TASK_OFFSET: usize = offset_of!(Inner, tasks) + TaskList::LIVE_OFFSET;

    #[inline]
    pub(crate) fn me(&self) -> &AioContext {
        &self.me
    }

    #[inline]
    pub(crate) fn shared(&self) -> &Arc<Home> {
        &self.shared
    }

    #[inline]
    pub(crate) fn tasks(&self) -> &TaskList {
        &self.tasks
    }

    /// When this turn of the loop began, on a clock that ticks every few milliseconds: to know a
    /// coroutine's age without asking for the time at each spawn.
    #[inline]
    pub(crate) fn coarse_ns(&self) -> i64 {
        self.coarse_ns.get()
    }

    #[inline]
    pub(crate) fn refresh_coarse_clock(&self) {
        self.coarse_ns.set(sys::coarse_clock_ns());
    }

    /// The ring, if it has been made.
    #[inline]
    pub(crate) fn made_ring(&self) -> Option<&Ring> {
        self.ring.get()?.as_deref()
    }

    #[inline]
    pub(crate) fn bh(&self) -> &BhQueues {
        &self.queues
    }
}

impl AioContext {
    /// A context with the process's worker pool.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new() -> io::Result<AioContext> {
        Self::builder().build()
    }

    /// To choose a name or a worker pool.
    pub fn builder() -> AioContextBuilder {
        AioContextBuilder::default()
    }

    #[inline]
    pub(crate) fn inner(&self) -> &Inner {
        // SAFETY: freed by `Drop` alone. The copies in `Inner::me` are handed out by reference to
        // code that runs inside the context, which ends before it does.
        unsafe { self.inner.as_ref() }
    }

    pub(crate) fn link(&self) -> Rc<ContextLink> {
        Rc::clone(&self.inner().link)
    }

    /// The name it was built with.
    pub fn name(&self) -> &str {
        &self.inner().shared.name
    }

    /// Its number, below [`MAX_CONTEXTS`]: the lowest that was free when it was made. It is given again
    /// when the context has ended; see [`PerContext`].
    #[inline]
    pub fn number(&self) -> usize {
        self.inner().number.get()
    }

    /// The way in for other threads.
    pub fn handle(&self) -> AioHandle {
        AioHandle::new(Arc::clone(&self.inner().shared))
    }

    /// The worker pool for blocking calls.
    pub fn thread_pool(&self) -> &ThreadPool {
        &self.inner().thread_pool
    }

    /// Whether file I/O can go through an io_uring; makes the ring when first asked. If the system
    /// has none, or forbids it, says so once in a warning.
    pub fn has_ring(&self) -> bool {
        self.inner().simulation.is_some() || self.ring().is_some()
    }

    /// The simulated world it runs in, if it is
    /// [simulated](AioContextBuilder::simulated).
    #[inline]
    pub fn simulation(&self) -> Option<&Simulation> {
        self.inner().simulation.as_deref()
    }

    pub(crate) fn ring(&self) -> Option<&Ring> {
        let inner = self.inner();
        let make = || {
            if inner.wait_mode == WaitMode::Epoll {
                return None;
            }
            Ring::new(inner.fds.epoll(), false)
                .inspect_err(|error| tracing::warn!(context = self.name(), %error, "no io_uring"))
                .ok()
        };
        inner.ring.get_or_init(make).as_deref()
    }

    /// The context's clock: nanoseconds since it was made, never going back.
    pub fn now_ns(&self) -> i64 {
        self.inner().timers.now_ns()
    }

    /// A bottom half; `name` is for events and messages.
    pub fn bottom_half(
        &self,
        name: &'static str,
        callback: impl Fn(&AioContext) + 'static,
    ) -> BottomHalf {
        let inner = self.inner();
        BottomHalf::new(&inner.queues, &inner.shared, name, Rc::new(callback))
    }

    /// Runs a closure once, in the next poll (contract: C35).
    pub fn schedule(&self, callback: impl FnOnce(&AioContext) + 'static) {
        // SAFETY: `one_shot` gives a new node; the list owns it from here on.
        unsafe { self.inner().queues.schedule(bottom_half::one_shot(callback)) };
    }

    /// A timer, not armed.
    pub fn timer(&self, callback: impl Fn(&AioContext) + 'static) -> Timer {
        Timer::new(&self.inner().timers, Rc::new(callback))
    }

    /// Runs `entry` in a coroutine, at once, until it suspends or ends; after that the loop goes
    /// on with it. `name` is for events and messages.
    ///
    /// A panic of `entry` is the loop's ([`PanicPolicy`](crate::PanicPolicy)).
    ///
    /// # Panics
    /// If there is no memory for a stack; see [`try_spawn`](Self::try_spawn). With
    /// [`PanicPolicy::Stop`](crate::PanicPolicy::Stop), if `entry` panics before it first suspends;
    /// a later panic reaches what resumes it, normally [`poll`](Self::poll).
    // Always inlined: the processor predicts the return of each frame around a switch of stacks for
    // the other stack, and wrongly.
    #[inline(always)]
    pub fn spawn(&self, name: &'static str, entry: impl FnOnce(&Co<'_>) + 'static) {
        // SAFETY: `entry` borrows nothing.
        let coroutine = unsafe { self.create(name, entry) };
        trace_event!("aio_coroutine_enter", coroutine = name);
        panics::resume(&coroutine, self.inner().panics.policy);
    }

    /// [`spawn`](Self::spawn), for a request that has to fail if there is no memory for it. `entry`
    /// is dropped then; a request that has to be answered may ask
    /// [`ensure_stack`](Self::ensure_stack) first.
    ///
    /// # Errors
    /// ENOMEM or its like if there is no memory for a stack.
    #[inline(always)]
    pub fn try_spawn(
        &self,
        name: &'static str,
        entry: impl FnOnce(&Co<'_>) + 'static,
    ) -> io::Result<()> {
        self.ensure_stack()?;
        self.spawn(name, entry);
        Ok(())
    }

    /// Makes sure that there is a stack for the next coroutine of this thread, so that
    /// [`spawn`](Self::spawn) finds one. Costs next to nothing if one is idle.
    ///
    /// # Errors
    /// ENOMEM or its like if there is no memory for one.
    #[inline]
    pub fn ensure_stack(&self) -> io::Result<()> {
        coblk_coroutine::ensure_stack()
    }

    /// A coroutine that has not run yet.
    ///
    /// # Safety
    /// What `entry` borrows outlives the coroutine's run.
    // Always inlined, so that a large closure is copied once less.
    #[inline(always)]
    pub(crate) unsafe fn create<'a>(
        &self,
        name: &'static str,
        entry: impl FnOnce(&Co<'_>) + 'a,
    ) -> Coroutine {
        self.inner().shared.assert_own_process();
        let task = self.inner().tasks.acquire(self.inner, name);
        // SAFETY: just acquired, and moved into the closure.
        let release = unsafe { Release::new(self.inner, task) };
        // SAFETY: passed on to the caller.
        let coroutine = unsafe {
            Coroutine::new_unchecked(name, move |suspender| {
                // What `entry` captured is gone before, also when it unwinds.
                let co = Co::new(release, suspender);
                entry(&co);
            })
        };
        // SAFETY: just acquired.
        unsafe { TaskList::adopt(task, coroutine.clone()) };
        coroutine
    }

    /// Runs `entry` in a coroutine and polls until it is done. `entry` may borrow from the caller.
    ///
    /// # Panics
    /// With what `entry` panics with. If called from inside a coroutine, where it would block the
    /// loop that it waits for.
    pub fn run<R>(&self, entry: impl FnOnce(&Co<'_>) -> R) -> R {
        assert!(!coblk_coroutine::in_coroutine(), "AioContext::run called inside a coroutine");
        let result = Cell::new(None);
        // SAFETY: `entry` and `result` are alive until this function returns, and it does not
        // return, nor unwind, before the coroutine has ended or the guard has unwound it.
        let coroutine = UnwindOnDrop(unsafe {
            self.create("run", |co| {
                result.set(Some(catch_unwind(AssertUnwindSafe(|| entry(co)))));
            })
        });
        // Not before the guard is there: this may panic on behalf of another coroutine.
        trace_event!("aio_coroutine_enter", coroutine = coroutine.0.name());
        {
            let _turn = self.inner().turn.begin();
            panics::resume(&coroutine.0, self.inner().panics.policy);
        }
        loop {
            if let Some(result) = result.take() {
                drop(coroutine);
                owed::pay();
                return result.unwrap_or_else(|panic| resume_unwind(panic));
            }
            self.poll();
        }
    }

    /// Polls until `done` says so; it is asked before each poll. Another thread that makes it so has to
    /// [`notify`](AioHandle::notify) the loop besides, or it may sleep on.
    pub fn run_until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            self.poll();
        }
        owed::pay();
    }
}

/// Ends a coroutine that borrows from the frame this guard lives in.
struct UnwindOnDrop(Coroutine);

impl Drop for UnwindOnDrop {
    fn drop(&mut self) {
        // A panic that this leads to, of a destructor or of a coroutine that it wakes, has nowhere
        // to go: this may be a destructor during a panic already. The hook has reported it.
        let _ = catch_unwind(AssertUnwindSafe(|| self.0.unwind()));
        if self.0.state() != CoroutineState::Terminated {
            tracing::error!(coroutine = self.0.name(), "suspends while it is unwound");
            // It would go on with references into a frame that is gone.
            std::process::abort();
        }
    }
}

impl Drop for AioContext {
    fn drop(&mut self) {
        if !self.inner().shared.is_own_process() {
            // The kernel's objects are the parent's too, and jobs will never come home.
            return;
        }
        if self.inner().tasks.any_entered() {
            tracing::error!(context = self.name(), "dropped from inside its own coroutine; leaked");
            return;
        }
        if self.inner().link.users.get() > 0 {
            tracing::error!(context = self.name(), "dropped by one of its own handlers; leaked");
            return;
        }
        if !self.wind_down() {
            tracing::error!(context = self.name(), "could not end its coroutines; leaked");
            return;
        }
        let name = &self.inner().shared.name;
        self.inner().polling.close(self);
        for name in self.inner().queues.live_names() {
            tracing::error!(context = self.name(), bottom_half = name, "ends with a bottom half");
        }
        self.inner().fds.close(name);
        self.inner().timers.close(name);
        self.inner().queues.close(name);
        self.inner().shared.close();
        self.inner().link.inner.set(None);
        here::unregister(&self.inner().link);
        owed::forget();
        debug_map::unregister(self.inner.addr().get());
        // SAFETY: leaked in `build`, freed once, here. No coroutine, callback or list refers to it
        // any more; handles and wakers hold `shared`, `queues` and `timers` on their own.
        drop(unsafe { Box::from_raw(self.inner.as_ptr()) });
    }
}

impl AioContext {
    /// Completes all jobs and unwinds all coroutines, until neither is left: callbacks may spawn
    /// and destructors may submit. False if a coroutine refuses to end.
    fn wind_down(&self) -> bool {
        loop {
            while self.inner().aio_jobs.get() > 0 {
                let culprit = Culprit::Other("a callback, at the end of the context");
                call_reporting(self.name(), culprit, || {
                    self.poll();
                });
            }
            let Some(coroutine) = self.inner().tasks.first_live() else { return true };
            // Another context's coroutine that runs now may have woken it.
            coroutine.take_back_wake();
            let culprit = Culprit::Coroutine(coroutine.name());
            call_reporting(self.name(), culprit, || coroutine.unwind());
            if coroutine.state() != CoroutineState::Terminated {
                return false;
            }
        }
    }
}

impl fmt::Debug for AioContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AioContext").field("name", &self.name()).finish_non_exhaustive()
    }
}
