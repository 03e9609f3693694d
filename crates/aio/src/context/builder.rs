//! Making a context.

use std::cell::{Cell, OnceCell};
use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bottom_half::BhQueues;
use super::busy_poll::{PollParams, Polling};
use super::clock::Clock;
use super::debug_map;
use super::fd_handler::FdHandlers;
use super::here;
use super::number::ContextNumber;
use super::patience::Patience;
use super::timer::TimerList;
use super::turn::TurnClock;
use super::{AioContext, ContextLink, Inner};
use crate::co::{Shares, TaskList};
use crate::home::Home;
use crate::panics::{PanicPolicy, Panics};
use crate::ring::{Ring, WaitMode};
use crate::simulation::{Simulation, SimulationOptions};
use crate::sys;
use crate::thread_pool::ThreadPool;
use crate::waiting::Presence;

/// How a context is made; see [`AioContext::builder`].
#[derive(Debug, Default)]
#[must_use = "it makes no context before it is built"]
pub struct AioContextBuilder {
    name: Option<String>,
    thread_pool: Option<ThreadPool>,
    poll_params: PollParams,
    wait_mode: WaitMode,
    simulation: Option<SimulationOptions>,
    on_panic: PanicPolicy,
    calls_in_place: bool,
}

impl AioContextBuilder {
    /// A name for events and messages.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The worker pool it submits to, instead of the process's.
    pub fn thread_pool(mut self, pool: ThreadPool) -> Self {
        self.thread_pool = Some(pool);
        self
    }

    /// Whether what coroutines give to the worker pool runs on the loop's own thread instead, and holds up
    /// everything else of this context meanwhile: for programs that have a thread for each thing that they do
    /// at a time, where handing over is all cost. What is submitted with a callback still goes to the pool.
    pub fn calls_in_place(mut self, calls_in_place: bool) -> Self {
        self.calls_in_place = calls_in_place;
        self
    }

    /// How long the loop may look for work before it sleeps at most; see [`PollParams`]. Zero turns it off;
    /// without this it is as long as pays (contract: C48).
    pub fn poll_max(mut self, max: Duration) -> Self {
        self.poll_params = PollParams::new(max);
        self
    }

    /// How the loop looks for work before it sleeps, as [`AioContext::set_poll_params`] sets it later.
    pub fn poll_params(mut self, params: PollParams) -> Self {
        self.poll_params = params;
        self
    }

    /// Whether the loop may, or must, wait in an io_uring; [`WaitMode::Auto`] without this.
    pub fn wait_mode(mut self, mode: WaitMode) -> Self {
        self.wait_mode = mode;
        self
    }

    /// A simulated context: workers, ring and clock are replaced by what a seed decides.
    pub fn simulated(mut self, options: SimulationOptions) -> Self {
        self.simulation = Some(options);
        self
    }

    /// What becomes of a panic of what the loop runs: callbacks of bottom halves, timers,
    /// descriptors and jobs, busy-poll hooks, coroutines.
    pub fn on_panic(mut self, policy: PanicPolicy) -> Self {
        self.on_panic = policy;
        self
    }

    /// Makes the context, with the calling thread as its home.
    ///
    /// # Errors
    /// If the process has no descriptors left, or [`MAX_CONTEXTS`](crate::MAX_CONTEXTS) contexts; or if
    /// [`WaitMode::Ring`] is asked for where there is no io_uring.
    pub fn build(self) -> io::Result<AioContext> {
        let number = ContextNumber::take()?;
        let fds = FdHandlers::new()?;
        let waker = fds.new_waker()?;
        let patience = Patience::new(&fds)?;
        let wait_mode = self.wait_mode;
        let ring = OnceCell::new();
        if wait_mode == WaitMode::Ring {
            let _ = ring.set(Some(Ring::new(fds.epoll(), true)?));
        }
        let simulation = self.simulation.map(|options| Rc::new(Simulation::new(options)));
        let clock = match &simulation {
            None => Clock::Real(Instant::now()),
            Some(simulation) => Clock::Manual(simulation.clock()),
        };
        let name = self.name.unwrap_or_else(|| "main".to_owned());
        let inner = Box::new(Inner {
            me: ManuallyDrop::new(AioContext { inner: NonNull::dangling() }),
            link: ContextLink::new(),
            shared: Arc::new(Home::new(name, waker)),
            queues: Rc::new(BhQueues::new()),
            timers: Rc::new(TimerList::new(clock)),
            fds,
            polling: Polling::new(self.poll_params),
            patience,
            presence: Presence::new(),
            ring,
            wait_mode,
            simulation,
            tasks: TaskList::new(),
            coarse_ns: Cell::new(sys::coarse_clock_ns()),
            turn: TurnClock::new(),
            panics: Panics::new(self.on_panic),
            thread_pool: self.thread_pool.unwrap_or_else(ThreadPool::global),
            shares: Shares::default(),
            calls_in_place: self.calls_in_place,
            aio_jobs: Cell::new(0),
            co_jobs: Cell::new(0),
            number,
        });
        let inner = NonNull::from(Box::leak(inner));
        // SAFETY: just leaked, and the address is known nowhere else. Nothing reads `me` before.
        unsafe { (*inner.as_ptr()).me = ManuallyDrop::new(AioContext { inner }) };
        let ctx = AioContext { inner };
        ctx.inner().link.inner.set(Some(inner));
        here::register(&ctx.inner().link);
        debug_map::register(inner.addr().get(), ctx.name());
        Ok(ctx)
    }
}
