//! Runs of one job under guests, on two or three simulated contexts of one thread: a seed is a run.
//!
//! ```text
//! mirror, backup, chain  kinds of jobs
//! layer    images above each other
//! plan     what a seed says: which request has a fault, and which command comes with it
//! faulty   disks whose requests are counted, and meet the fault
//! guest    writes at random, and knows what it must read
//! world    contexts, disks, guests, and the job
//! events   whether a job has told what jobs tell
//! ```
//!
//! A kind of job implements [`Kind`] and calls [`run_seeds`]: it says which nodes there are, how the job starts, and
//! what holds when it is over. All else is the same for all kinds: that the job ends, within a second of a forced
//! cancellation if its target hangs; that guests read what they have written; that no coroutine and no user of a node
//! is left, and that events come as they must.

pub mod backup;
pub mod chain;
pub mod events;
pub mod faulty;
pub mod guest;
pub mod layer;
pub mod mirror;
pub mod plan;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Once};

use coblk_aio::Co;
use coblk_block::BlockNode;
use coblk_jobs::{Job, JobOptions};
use fastrand::Rng;

use faulty::Disks;
pub use plan::{Command, Fault, Plan};
pub use world::World;

/// The longest block of the disks, in bytes: a torn request ends at a border of one.
pub const BLOCK: u64 = 512;

/// How a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Completed,
    /// Completed, though softly cancelled.
    Softly,
    Failed,
    Cancelled,
}

/// A kind of job.
pub trait Kind: Sized + 'static {
    /// For failures.
    const NAME: &'static str;
    /// Length of the disks, in bytes.
    const LENGTH: u64 = 32 << 10;

    /// Whether guests discard.
    const DISCARDS: bool = true;

    /// Makes the nodes, and returns that on which the guests are.
    fn build(disks: &mut Disks, rng: &mut Rng) -> (Self, Arc<BlockNode>);

    /// Starts the job.
    fn start(
        &self,
        co: &Co<'_>,
        world: &World<Self>,
        options: JobOptions,
        rng: &mut Rng,
    ) -> Result<Rc<Job>, String>;

    /// What the job may be asked for besides, at any time.
    fn disturb(&self, _world: &World<Self>, _rng: &mut Rng) {}

    /// The disk that may hang, and must not hold up a forced cancellation.
    fn target(&self) -> usize;

    /// Whether guests wait for the target, as is meant.
    fn holds_guests(&self) -> bool;

    /// Which disk has what guests have written while they are on a node of that name; `None` if it is not one alone.
    fn disk_of(&self, node: &str) -> Option<usize>;

    /// Guests have stopped, and have read what they have written. `end` says how the job has ended.
    fn check(&self, world: &World<Self>, end: End);
}

/// Runs the seeds of a kind: as many as `COBLK_SEEDS` says, from `COBLK_SEED_FROM` on, or `COBLK_SEED` alone.
pub fn run_seeds<K: Kind>(default: u64) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("COBLK_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("COBLK_SEED_FROM").unwrap_or(0);
            first..first + number("COBLK_SEEDS").unwrap_or(default)
        }
    };
    for seed in seeds {
        if let Err(why) = run::<K>(seed) {
            let plan = Plan::new(seed, &mut Rng::with_seed(seed));
            panic!("{}, COBLK_SEED={seed}: {why}; {plan:?}", K::NAME);
        }
    }
}

/// Runs of a kind whose target answers nothing any more from one of its requests on, of each of the first `requests`
/// in turn: a forced cancellation, and the end of all jobs, take a second at most, and guests go on.
pub fn run_silent<K: Kind>(requests: u64) {
    for at in 0..requests {
        for command in [Command::Cancel, Command::Quit, Command::Drain(Some(0))] {
            let mut rng = Rng::with_seed(at);
            let mut plan = Plan::new(at, &mut rng);
            (plan.at, plan.fault, plan.command) = (at, (Fault::Hang, u64::MAX), command);
            if let Err(why) = caught(|| World::<K>::run_plan(plan, rng)) {
                panic!("{}, {command:?} at request {at}: {why}", K::NAME);
            }
        }
    }
}

/// Each step that keeps writes is needed: without it one of so many runs fails.
#[cfg(feature = "test-rules")]
#[track_caller]
pub fn is_needed<K: Kind>(rule: coblk_jobs::Rule, seeds: u64) {
    coblk_jobs::leave_out(Some(rule));
    let found = first_failing::<K>(seeds);
    coblk_jobs::leave_out(None);
    let (seed, why) = found.unwrap_or_else(|| panic!("{}: {rule:?} is not missed", K::NAME));
    println!("{}, {rule:?}: seed {seed}: {}", K::NAME, why.lines().next().unwrap_or_default());
}

/// The first of so many seeds that fails, and how.
pub fn first_failing<K: Kind>(seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| run::<K>(seed).err().map(|why| (seed, why)))
}

/// Runs one seed; returns what is wrong.
pub fn run<K: Kind>(seed: u64) -> Result<(), String> {
    caught(|| World::<K>::run(seed))
}

fn caught(run: impl FnOnce()) -> Result<(), String> {
    be_quiet_about_told_panics();
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        text.unwrap_or_else(|| "a panic without text".to_owned())
    })
}

/// Panics that a plan has ordered are not printed.
fn be_quiet_about_told_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let text = info.payload().downcast_ref::<&str>();
            if text.is_none_or(|text| *text != plan::PANIC) {
                before(info);
            }
        }));
    });
}
