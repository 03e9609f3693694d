//! [`World`]: one run, from its seed to its end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coblk_aio::{AioContext, AioHandle, Co, CoWaker, SimulationOptions};
use coblk_block::{BackendOptions, BlockLimits, BlockNode, Blockdevs, DrainedSection, Parent};
use coblk_jobs::{Job, JobOptions, JobStatus, Jobs};
use fastrand::Rng;

use super::super::disk::Disk;
use super::super::{Told, jobs, take};
use super::faulty::{Disks, Moments, lock};
use super::guest::Guest;
use super::plan::{Command, Ending, Fault, Plan};
use super::{End, Kind, events};

const GUESTS: u64 = 3;
const MS: i64 = 1_000_000;
/// For how long a run may go on, on the simulated clock.
const MAX_NS: i64 = 300_000 * MS;
/// Within that time a forced cancellation is over.
const CANCELLED_IN_NS: i64 = 1_000 * MS;
/// Polls of a context at one moment.
const MAX_POLLS: u32 = 100_000;

pub struct World<K> {
    pub kind: K,
    pub plan: Plan,
    contexts: RefCell<Vec<AioContext>>,
    pub jobs: Rc<Jobs>,
    pub blockdevs: Blockdevs,
    pub disks: Vec<Arc<Disk>>,
    pub nodes: Vec<Arc<BlockNode>>,
    guests: RefCell<Vec<Rc<Guest>>>,
    told: Told,
    moments: Arc<Mutex<Moments>>,
    job: RefCell<Option<Rc<Job>>>,
    /// How the command that starts the job has ended.
    started: RefCell<Option<Result<(), String>>>,
    sections: RefCell<Vec<DrainedSection>>,
    now_ns: Cell<i64>,
    /// When the command was given, and when all is let go again.
    moment_ns: Cell<Option<i64>>,
    calm_ns: Cell<i64>,
    /// When the job was cancelled by force.
    cancelled_ns: Cell<Option<i64>>,
    /// It was told to end.
    is_ending: Cell<bool>,
    is_finalizing: Cell<bool>,
    /// The guests rest from before a soft cancellation up to the end.
    is_exact: Cell<bool>,
    stop: Rc<Cell<bool>>,
    hold: Rc<Cell<bool>>,
    pub rng: RefCell<Rng>,
}

/// Runs are one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Ends the contexts, whose coroutines have handles to the world.
struct Unwound<K: Kind>(Rc<World<K>>);

impl<K: Kind> Drop for Unwound<K> {
    fn drop(&mut self) {
        self.0.sections.take();
        drop(self.0.contexts.take());
    }
}

/// What runs outside of the world's own coroutines.
impl<K: Kind> World<K> {
    pub fn run(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::new(seed, &mut rng);
        World::<K>::run_plan(plan, rng);
    }

    pub fn run_plan(plan: Plan, rng: Rng) {
        // Changes of the graph wait for those of all threads.
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (world, top) = World::<K>::new(plan, rng);
        let world = Rc::new(world);
        let _unwound = Unwound(Rc::clone(&world));
        world.open_guests(&top);
        lock(&world.moments).is_counting = true;
        world.spawn("start", |co, world| {
            let mut rng = world.rng.borrow_mut().fork();
            let options = JobOptions::new("j", K::NAME).auto_finalize(world.plan.auto_finalize);
            let started = world.kind.start(co, world, options, &mut rng);
            let started = started.map(|job| drop(world.job.replace(Some(job))));
            world.started.replace(Some(started));
        });
        while !world.is_over() {
            world.step();
            if world.look() {
                return world.unwind();
            }
        }
        world.end();
    }

    fn new(plan: Plan, mut rng: Rng) -> (World<K>, Arc<BlockNode>) {
        let alignment = [1, 512][rng.usize(..2)];
        let limits = BlockLimits { request_alignment: alignment, ..BlockLimits::default() };
        let mut disks = Disks::new((K::LENGTH, limits), plan.at, plan.fault);
        let (kind, top) = K::build(&mut disks, &mut rng);
        let (jobs, told) = jobs();
        let mut simulated = || {
            let options = SimulationOptions::new(rng.u64(..));
            AioContext::test_builder().simulated(options).build().unwrap()
        };
        let contexts = (0..plan.contexts).map(|_| simulated()).collect::<Vec<_>>();
        let world = World {
            kind,
            plan,
            contexts: RefCell::new(contexts),
            jobs,
            told,
            blockdevs: Blockdevs::new(coblk_block::drivers()),
            disks: disks.all,
            nodes: disks.nodes,
            guests: RefCell::default(),
            moments: disks.moments,
            job: RefCell::default(),
            started: RefCell::default(),
            sections: RefCell::default(),
            now_ns: Cell::new(0),
            moment_ns: Cell::default(),
            calm_ns: Cell::new(i64::MAX),
            cancelled_ns: Cell::default(),
            is_ending: Cell::default(),
            is_finalizing: Cell::default(),
            is_exact: Cell::default(),
            stop: Rc::default(),
            hold: Rc::default(),
            rng: RefCell::new(rng),
        };
        (world, top)
    }

    fn open_guests(self: &Rc<Self>, top: &Arc<BlockNode>) {
        let part = K::LENGTH / GUESTS / super::BLOCK * super::BLOCK;
        for number in 0..GUESTS {
            let contexts = self.contexts.borrow();
            let ctx = &contexts[number as usize % contexts.len()];
            let (world, top) = (Rc::clone(self), Arc::clone(top));
            let rng = self.rng.borrow_mut().fork();
            ctx.spawn("guest begins", move |co| {
                let options = BackendOptions::new("guests").share_rw(true);
                let backend = options.co_open(co, top).unwrap();
                let part = number * part..(number + 1) * part;
                let mut data = vec![0; (part.end - part.start) as usize];
                backend.co_read(co, part.start, &mut data).unwrap();
                let guest = Rc::new(Guest {
                    backend,
                    durable: RefCell::new(vec![None; data.len()]),
                    part,
                    expected: RefCell::new(data),
                    changing: RefCell::new(0..0),
                    changed_ns: Cell::new(co.context().now_ns()),
                    discards: K::DISCARDS,
                    stop: Rc::clone(&world.stop),
                    has_stopped: Cell::new(false),
                    hold: Rc::clone(&world.hold),
                    rests: Cell::new(false),
                });
                guest.start(co.context(), rng);
                world.guests.borrow_mut().push(guest);
            });
        }
        self.until(|| self.guests.borrow().len() as u64 == GUESTS);
    }

    /// Runs something in a coroutine of the main context.
    pub fn spawn(self: &Rc<Self>, name: &'static str, what: impl FnOnce(&Co<'_>, &Self) + 'static) {
        let world = Rc::clone(self);
        self.contexts.borrow()[0].spawn(name, move |co| what(co, &world));
    }

    /// A little time passes, for all contexts.
    fn step(&self) {
        // The longer nothing new is done to the job, the less has to be seen.
        let since_ns = self.now_ns.get() - self.moment_ns.get().unwrap_or(0);
        let end_ns = self.now_ns.get() + self.plan.tick_ns + since_ns / 64;
        self.now_ns.set(end_ns);
        for ctx in &*self.contexts.borrow() {
            let mut polls = 0;
            while ctx.now_ns() < end_ns {
                let left = u64::try_from(end_ns - ctx.now_ns()).unwrap_or(0);
                ctx.poll_timeout(Duration::from_nanos(left));
                polls += 1;
                assert!(polls < MAX_POLLS, "a context spins: {:?}", self.coroutines());
            }
        }
        assert!(end_ns < MAX_NS, "it hangs: {:?}, {:?}", self.coroutines(), self.told.borrow());
    }

    fn until(&self, done: impl Fn() -> bool) {
        while !done() {
            self.step();
        }
    }

    fn coroutines(&self) -> Vec<(&'static str, &'static str)> {
        let contexts = self.contexts.borrow();
        let all = contexts.iter().flat_map(|ctx| ctx.coroutines());
        all.map(|it| (it.name, it.waits_for)).collect()
    }

    fn status(&self) -> Option<JobStatus> {
        self.job.borrow().as_ref().map(|job| job.status())
    }

    fn is_over(&self) -> bool {
        let has_failed = self.started.borrow().as_ref().is_some_and(Result::is_err);
        has_failed || self.status() == Some(JobStatus::Null)
    }

    /// Whether all coroutines are to be unwound.
    fn look(self: &Rc<Self>) -> bool {
        let has_come = lock(&self.moments).has_come;
        if has_come && self.moment_ns.get().is_none() {
            self.moment_ns.set(Some(self.now_ns.get()));
            let micros = self.rng.borrow_mut().i64(1..20_000);
            let after_ns = if self.plan.fault.0 == Fault::Hang { 2_000 * MS } else { 0 };
            self.calm_ns.set(self.now_ns.get() + after_ns + micros * 1_000);
            if self.plan.command == Command::Unwind {
                return true;
            }
            self.command();
        }
        if self.hangs_elsewhere() {
            // From then on its time counts.
            self.cancelled_ns.set(self.cancelled_ns.get().map(|_| self.now_ns.get()));
        }
        if let (Some(since_ns), false) = (self.cancelled_ns.get(), self.is_over()) {
            let is_held_up = self.now_ns.get() - since_ns > CANCELLED_IN_NS;
            let (told, all) = (self.told.borrow(), self.coroutines());
            assert!(!is_held_up, "a cancellation takes long: {told:?}, {all:?}, {:?}", self.plan);
        }
        if self.rng.borrow_mut().u8(..16) == 0 {
            self.look_at_durable();
        }
        self.look_at_guests();
        if self.now_ns.get() > self.calm_ns.get() || self.now_ns.get() > 10_000 * MS {
            self.let_go();
        }
        self.lead_to_end();
        false
    }

    /// What a loss of power would leave at this moment.
    fn look_at_durable(&self) {
        for guest in &*self.guests.borrow() {
            let disk = guest.backend.node().and_then(|node| self.kind.disk_of(node.name()));
            if let Some(disk) = disk {
                let part = guest.part.start as usize..guest.part.end as usize;
                guest.compare_durable(&self.disks[disk].durable()[part]);
            }
        }
    }

    /// A target that does not answer holds no guest up that need not wait for it.
    fn look_at_guests(&self) {
        let is_silent = self.plan.fault == (Fault::Hang, u64::MAX)
            && lock(&self.moments).disk() == Some(self.kind.target());
        if !is_silent || self.kind.holds_guests() || !self.sections.borrow().is_empty() {
            return;
        }
        for guest in &*self.guests.borrow() {
            let waited_ns = self.now_ns.get() - guest.changed_ns.get();
            let (at, told) = (guest.part.start, self.told.borrow());
            assert!(waited_ns < 1_000 * MS, "the guest at {at} waits: {told:?}");
        }
    }

    /// Whether something waits for a disk that holds a job up rightly.
    fn hangs_elsewhere(&self) -> bool {
        let moments = lock(&self.moments);
        !moments.held.is_empty() && moments.disk() != Some(self.kind.target())
    }

    fn command(self: &Rc<Self>) {
        let rng = self.rng.borrow_mut().fork();
        match self.plan.command {
            Command::None | Command::Unwind => {}
            Command::Pause => drop(self.jobs.pause("j")),
            Command::Cancel => self.cancel(true),
            Command::CancelSoftly => self.cancel(false),
            Command::Complete => drop(self.jobs.complete("j")),
            Command::Speed => drop(self.jobs.set_speed("j", 100_000)),
            Command::Drain(disk) => self.spawn("drain", move |co, world| {
                let of = |(number, _): &(usize, _)| disk.is_none_or(|disk| disk == *number);
                for (_, node) in world.nodes.iter().enumerate().rev().filter(of) {
                    let section = node.co_drain(co);
                    world.sections.borrow_mut().push(section);
                }
            }),
            Command::Other => self.kind.disturb(self, &mut rng.clone()),
            Command::Quit => {
                self.cancelled_ns.set(self.status().map(|_| self.now_ns.get()));
                self.spawn("quit", |co, world| world.jobs.co_end(co));
            }
        }
    }

    fn cancel(self: &Rc<Self>, forced: bool) {
        if forced && self.status().is_some() {
            self.cancelled_ns.set(Some(self.now_ns.get()));
        }
        self.spawn("cancel", move |co, world| drop(world.jobs.co_cancel(co, "j", forced)));
    }

    /// Whatever was held, paused or limited is not any more.
    fn let_go(&self) {
        let held = {
            let mut moments = lock(&self.moments);
            moments.is_over = true;
            std::mem::take(&mut moments.held)
        };
        held.into_iter().for_each(CoWaker::wake);
        let _ = self.jobs.set_speed("j", 0);
        let _ = self.jobs.resume("j");
        self.sections.borrow_mut().clear();
    }

    /// The job is told to end when it can.
    fn lead_to_end(self: &Rc<Self>) {
        let is_calm = lock(&self.moments).is_over || self.moment_ns.get().is_none();
        match self.status() {
            Some(JobStatus::Ready) if !self.is_ending.get() && self.has_worked() && is_calm => {
                self.tell_to_end();
            }
            Some(JobStatus::Running)
                if self.plan.ending == Ending::Cancel && is_calm && !self.is_ending.get() =>
            {
                let worked_ns = self.now_ns.get() - self.moment_ns.get().unwrap_or(0);
                if self.moment_ns.get().is_some() && worked_ns > 50 * MS {
                    self.is_ending.set(true);
                    self.cancel(true);
                }
            }
            Some(JobStatus::Pending) if !self.is_finalizing.get() => {
                self.is_finalizing.set(true);
                let micros = self.rng.borrow_mut().u64(1..5_000);
                self.spawn("finalize", move |co, world| {
                    co.sleep(Duration::from_micros(micros));
                    let _ = world.jobs.co_finalize(co, "j");
                });
            }
            _ => {}
        }
    }

    /// Whether the moment has come, or will not.
    fn has_worked(&self) -> bool {
        self.moment_ns.get().is_some() || self.now_ns.get() > 30 * MS
    }

    fn tell_to_end(self: &Rc<Self>) {
        match self.plan.ending {
            Ending::Complete => {
                let _ = self.jobs.complete("j");
            }
            Ending::Cancel => {
                self.is_ending.set(true);
                self.cancel(true);
            }
            Ending::CancelSoftly => {
                self.hold.set(true);
                if self.guests.borrow().iter().all(|guest| guest.rests.get()) {
                    self.is_exact.set(true);
                    self.is_ending.set(true);
                    self.cancel(false);
                }
            }
        }
    }

    /// How the job has ended, by what it has told.
    fn how(&self, told: &[String]) -> Option<End> {
        let last = told.iter().rev().find_map(|event| {
            let (word, rest) = event.split_once(' ').unwrap_or((event, ""));
            match (word, rest) {
                ("COMPLETED", "") => Some(End::Completed),
                ("COMPLETED", _) => Some(End::Failed),
                ("CANCELLED", _) => Some(End::Cancelled),
                _ => None,
            }
        })?;
        let is_soft = self.job.borrow().as_ref().is_some_and(|job| job.is_soft_cancelled());
        Some(if last == End::Completed && is_soft { End::Softly } else { last })
    }

    /// The job is over: what it has left.
    fn end(self: &Rc<Self>) {
        let told = take(&self.told);
        if let Some(fault) = events::fault(&told) {
            panic!("{fault}");
        }
        self.let_go();
        let later_ns = self.now_ns.get() + 20 * MS;
        self.until(|| self.now_ns.get() > later_ns);
        // What a drain has drained meanwhile.
        self.let_go();
        self.stop.set(true);
        let guests = self.guests.borrow().clone();
        self.until(|| guests.iter().all(|guest| guest.has_stopped.get()));
        if let Some(end) = self.how(&told) {
            self.kind.check(self, end);
        }
        // A request to the target that a job has left behind keeps it in use, and a worker may be slow.
        self.until(|| self.coroutines().is_empty());
        let is_of_job = |parent: &Parent| match parent {
            Parent::Backend { name } => name != "guests",
            Parent::User { .. } => true,
            Parent::Node { name, .. } => name.starts_with('#'),
            _ => false,
        };
        let left = self.nodes.iter().flat_map(|node| node.parents()).find(is_of_job);
        assert!(left.is_none(), "a job has left {left:?}; {told:?}");
    }

    /// Has guests begin nothing, and waits until nothing of theirs is under way.
    pub fn co_rest_guests(&self, co: &Co<'_>) {
        self.hold.set(true);
        while !self.guests.borrow().iter().all(|guest| guest.rests.get()) {
            co.sleep(Duration::from_micros(100));
        }
    }

    pub fn let_guests_go_on(&self) {
        self.hold.set(false);
    }

    /// The contexts of guests that are not the job's.
    pub fn other_contexts(&self) -> Vec<AioHandle> {
        self.contexts.borrow()[1..].iter().map(AioContext::handle).collect()
    }

    /// Whether the contents at a soft cancellation are those of now.
    pub fn is_exact(&self) -> bool {
        self.is_exact.get()
    }

    pub fn guests(&self) -> Vec<Rc<Guest>> {
        self.guests.borrow().clone()
    }

    /// All contexts end, with what is under way there. What guests have written is where they were.
    fn unwind(self: Rc<Self>) {
        let guests = self.guests.take();
        let place = |guest: &Rc<Guest>| guest.backend.node().unwrap().name().to_owned();
        let places: Vec<_> = guests.iter().map(place).collect();
        drop(self.contexts.take());
        for (guest, place) in guests.iter().zip(&places) {
            if let Some(disk) = self.kind.disk_of(place) {
                let part = guest.part.start as usize..guest.part.end as usize;
                guest.compare("unwound", &self.disks[disk].data()[part]);
            }
        }
    }
}
