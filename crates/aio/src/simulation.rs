//! The simulated mode of a context: one thread, a manual clock, and everything that would come in
//! an order of its own in an order drawn from a seed.
//!
//! Worker jobs and ring requests wait on a list with a due time drawn from the seed. A poll runs
//! those that are due, on the home thread, in drawn order; a blocking poll with nothing to do moves
//! the clock to whatever is due next. While a simulated job runs, the system calls of
//! [`sys`](crate::sys) fail and fall short as often as [`Faults`] say. So one seed is one run,
//! event for event, and a failing seed can be run again ([`Simulation::digest`] tells whether two
//! runs were the same).
//!
//! What comes from outside is not simulated: other threads, and descriptors.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use crate::run_list::LocalList;
use crate::sys::faults::{self, Faults};
use crate::thread_pool::JobHeader;
use crate::trace_event;

/// Seed and parameters of a simulated context;
/// [`AioContextBuilder::simulated`](crate::AioContextBuilder::simulated) takes it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[must_use = "they have no effect before a context is built with them"]
pub struct SimulationOptions {
    /// One seed, one run.
    pub seed: u64,
    /// Longest time that a job usually takes, on the simulated clock.
    pub max_delay: Duration,
    /// Of 1000 jobs, how many take a hundred times as long.
    pub slow_per_mille: u16,
    /// How often system calls go wrong.
    pub faults: Faults,
}

impl SimulationOptions {
    /// Delays up to 200 us, one in 50 a hundred times as long; no faults.
    pub fn new(seed: u64) -> SimulationOptions {
        SimulationOptions {
            seed,
            max_delay: Duration::from_micros(200),
            slow_per_mille: 20,
            faults: Faults::default(),
        }
    }

    /// Longest time that a job usually takes, on the simulated clock.
    pub fn max_delay(self, max_delay: Duration) -> SimulationOptions {
        SimulationOptions { max_delay, ..self }
    }

    /// Of 1000 jobs, how many take a hundred times as long.
    pub fn slow_per_mille(self, slow_per_mille: u16) -> SimulationOptions {
        SimulationOptions { slow_per_mille, ..self }
    }

    /// How often system calls go wrong.
    pub fn faults(self, faults: Faults) -> SimulationOptions {
        SimulationOptions { faults, ..self }
    }
}

/// A job that waits for its time.
struct Waiting {
    job: NonNull<JobHeader>,
    due_ns: i64,
    number: u64,
}

/// The simulated world of one context. Home thread only.
pub struct Simulation {
    options: SimulationOptions,
    random: RefCell<fastrand::Rng>,
    now_ns: Rc<Cell<i64>>,
    waiting: RefCell<Vec<Waiting>>,
    jobs: Cell<u64>,
    digest: Cell<u64>,
}

impl Simulation {
    pub(crate) fn new(options: SimulationOptions) -> Simulation {
        Simulation {
            options,
            random: RefCell::new(fastrand::Rng::with_seed(options.seed)),
            now_ns: Rc::default(),
            waiting: RefCell::new(Vec::new()),
            jobs: Cell::new(0),
            digest: Cell::new(options.seed),
        }
    }

    /// The seed, to print when a test fails.
    pub fn seed(&self) -> u64 {
        self.options.seed
    }

    /// A number that two runs share if the same events happened in the same order at the same
    /// simulated times.
    pub fn digest(&self) -> u64 {
        self.digest.get()
    }

    /// A random number below `bound`, from the same seed; for workloads.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().u64(..bound)
    }

    /// The clock that it moves.
    pub(crate) fn clock(&self) -> Rc<Cell<i64>> {
        Rc::clone(&self.now_ns)
    }

    /// Takes a job in a worker's, or the ring's, place.
    pub(crate) fn submit(&self, job: NonNull<JobHeader>) {
        let number = self.jobs.get();
        self.jobs.set(number + 1);
        let due_ns = self.now_ns.get() + self.draw_delay_ns();
        self.note(1, number);
        self.waiting.borrow_mut().push(Waiting { job, due_ns, number });
    }

    fn draw_delay_ns(&self) -> i64 {
        let mut random = self.random.borrow_mut();
        let most = i64::try_from(self.options.max_delay.as_nanos()).unwrap_or(i64::MAX / 200);
        let delay_ns = random.i64(0..=most);
        if random.u16(..1000) < self.options.slow_per_mille { delay_ns * 100 } else { delay_ns }
    }

    /// In place of a sleep for at most `limit`: moves the clock to what comes next, a job or the
    /// timer that is due at `timer_ns`, or to where the limit is up.
    pub(crate) fn sleep(&self, limit: Option<Duration>, timer_ns: Option<i64>) {
        let limit_ns = limit.map(|limit| {
            let limit_ns = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX);
            self.now_ns.get().saturating_add(limit_ns)
        });
        let job_ns = self.waiting.borrow().iter().map(|waiting| waiting.due_ns).min();
        if let Some(next_ns) = job_ns.into_iter().chain(timer_ns).chain(limit_ns).min() {
            self.now_ns.set(self.now_ns.get().max(next_ns));
        }
    }

    /// Runs the jobs that are due, and puts each on `home`.
    pub(crate) fn run_due(&self, home: &LocalList) {
        while let Some(job) = self.take_due() {
            self.note(2, job.number);
            trace_event!("simulated_job", number = job.number);
            let _faults = faults::inject(self.options.faults, self.random.borrow_mut().fork());
            // SAFETY: it was submitted to us and not to a worker, so it is ours to run, once.
            unsafe { JobHeader::run_at_home(job.job, home) };
        }
    }

    /// One of the jobs that are due, drawn at random.
    fn take_due(&self) -> Option<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        let due = |waiting: &Waiting| waiting.due_ns <= self.now_ns.get();
        let count = waiting.iter().filter(|job| due(job)).count();
        if count == 0 {
            return None;
        }
        let chosen = self.random.borrow_mut().usize(..count);
        let index = waiting.iter().enumerate().filter(|(_, job)| due(job)).nth(chosen)?.0;
        Some(waiting.remove(index))
    }

    /// Takes a job back that has not run: its coroutine is being unwound.
    pub(crate) fn withdraw(&self, job: NonNull<JobHeader>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let before = waiting.len();
        waiting.retain(|other| other.job != job);
        waiting.len() < before
    }

    /// Mixes an event into the digest.
    fn note(&self, kind: u64, number: u64) {
        let mut digest = self.digest.get();
        for word in [kind, number, self.now_ns.get() as u64] {
            digest = (digest ^ word).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(29);
        }
        self.digest.set(digest);
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("seed", &self.seed())
            .field("digest", &self.digest())
            .finish_non_exhaustive()
    }
}
