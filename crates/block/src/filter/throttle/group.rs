//! [`ThrottleGroup`]: the limits that nodes share, and which request passes next.
//!
//! For each direction, one of the waiting requests is the leader: it alone looks at the buckets,
//! and sleeps, on a timer of its own context, until it may pass. When it passes it makes another
//! one the leader: the oldest of the next member that has one. All others sleep without a timer.
//!
//! While requests of a direction wait, there is a leader among them. A waker is taken out of the
//! queue, under the lock, by the thread that will wake it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coblk_aio::{AioHandle, Co, CoWaker, Timer, trace_event};

use super::bucket::{Buckets, Direction};
use super::limits::{ThrottleError, ThrottleLimits};

/// Limits that any number of nodes share, from any number of contexts. A handle: clones are the
/// same group. Any thread.
///
/// In simulated contexts time is theirs; a group does not serve both those and others.
#[derive(Clone)]
pub struct ThrottleGroup {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    /// The beginning of time, outside of simulations.
    start: Instant,
    state: Mutex<State>,
}

struct State {
    limits: ThrottleLimits,
    buckets: Buckets,
    /// In the order of their ids.
    members: Vec<Member>,
    /// By direction.
    leaders: [Option<Ticket>; 2],
    /// The member that had the last leader, by direction.
    last_member: [MemberId; 2],
    last_id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MemberId(u64);

struct Member {
    id: MemberId,
    /// It is drained: requests pass at once.
    released: bool,
    /// Requests that wait, by direction, oldest first.
    queues: [VecDeque<Waiter>; 2],
}

/// Names a request that waits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ticket {
    number: u64,
    member: MemberId,
    direction: Direction,
}

struct Waiter {
    number: u64,
    home: AioHandle,
    /// There while it sleeps and no thread has taken it to wake it.
    waker: Option<CoWaker>,
}

impl Waiter {
    /// The way to wake it from anywhere, also under other people's locks: not at once.
    fn take_wake(&mut self) -> Option<(AioHandle, CoWaker)> {
        self.waker.take().map(|waker| (self.home.clone(), waker))
    }
}

fn wake_later(wakes: impl IntoIterator<Item = (AioHandle, CoWaker)>) {
    for (home, waker) in wakes {
        home.schedule(move |_| waker.wake());
    }
}

/// The next step of a waiting request.
enum Turn {
    Pass,
    /// Sleeps: the leader for this long, others until they are woken.
    Sleep(Option<Duration>),
}

impl ThrottleGroup {
    /// Makes a group called `name`, for messages and commands.
    ///
    /// # Errors
    /// If the limits make no sense, see [`ThrottleLimits::check`].
    pub fn new(
        name: impl Into<String>,
        limits: ThrottleLimits,
    ) -> Result<ThrottleGroup, ThrottleError> {
        limits.check()?;
        let state = State {
            limits,
            buckets: Buckets::new(&limits),
            members: Vec::new(),
            leaders: [None, None],
            last_member: [MemberId(0); 2],
            last_id: 0,
        };
        let (name, start) = (name.into(), Instant::now());
        Ok(ThrottleGroup { shared: Arc::new(Shared { name, start, state: Mutex::new(state) }) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its limits.
    pub fn limits(&self) -> ThrottleLimits {
        self.lock().limits
    }

    /// Changes the limits; what has passed before is forgotten.
    ///
    /// # Errors
    /// If the limits make no sense. Those in force stay.
    pub fn set_limits(&self, limits: ThrottleLimits) -> Result<(), ThrottleError> {
        limits.check()?;
        let mut state = self.lock();
        state.limits = limits;
        state.buckets = Buckets::new(&limits);
        let leaders = state.leaders;
        let wakes: Vec<_> =
            leaders.into_iter().flatten().filter_map(|it| state.take_wake(it)).collect();
        drop(state);
        wake_later(wakes);
        Ok(())
    }

    /// How many requests are throttled now, of all members.
    pub fn waiting(&self) -> usize {
        self.lock().members.iter().flat_map(|member| &member.queues).map(VecDeque::len).sum()
    }

    /// Whether a node is in it.
    pub fn has_members(&self) -> bool {
        !self.lock().members.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ns(&self, co: &Co<'_>) -> i64 {
        match co.context().simulation() {
            Some(_) => co.context().now_ns(),
            None => i64::try_from(self.shared.start.elapsed().as_nanos()).unwrap_or(i64::MAX),
        }
    }

    pub(super) fn join(&self) -> MemberId {
        let mut state = self.lock();
        let id = MemberId(state.next_number());
        state.members.push(Member { id, released: false, queues: Default::default() });
        id
    }

    /// The member has no requests any more.
    pub(super) fn leave(&self, member: MemberId) {
        self.lock().members.retain(|it| it.id != member);
    }

    /// Lets all requests of a member pass at once, those that wait included, or no longer. May be
    /// called under other people's locks: runs no coroutine.
    pub(super) fn set_released(&self, member: MemberId, released: bool) {
        let mut state = self.lock();
        let Some(member) = state.member(member) else { return };
        member.released = released;
        let waiters = member.queues.iter_mut().flatten();
        let wakes: Vec<_> =
            if released { waiters.filter_map(Waiter::take_wake).collect() } else { Vec::new() };
        drop(state);
        wake_later(wakes);
    }

    /// Returns when a request may pass, and counts it.
    pub(super) fn pass(&self, co: &Co<'_>, member: MemberId, direction: Direction, bytes: u64) {
        let ticket = {
            let mut state = self.lock();
            if state.passes_at_once(member, direction, self.now_ns(co)) {
                return state.buckets.pour(direction, bytes);
            }
            state.enqueue(member, direction, co.context().handle())
        };
        trace_event!("throttle_group_wait", group = self.name(), bytes);
        let queued = Queued { group: self, ticket };
        self.wait_for_turn(co, ticket);
        self.lock().buckets.pour(direction, bytes);
        if let Some((_, waker)) = queued.take_off() {
            waker.wake();
        }
    }

    fn wait_for_turn(&self, co: &Co<'_>, ticket: Ticket) {
        loop {
            let now_ns = self.now_ns(co);
            let mut state = self.lock();
            let Turn::Sleep(delay) = state.turn(ticket, now_ns) else { return };
            let _timer = delay.map(|delay| self.wake_after(co, ticket, delay));
            // The lock is held until the waker is stored: a change of the leader meanwhile finds
            // it.
            co.suspend_for("a throttle group", |waker| {
                if let Some(waiter) = state.waiter(ticket) {
                    waiter.waker = Some(waker);
                }
                drop(state);
            });
        }
    }

    fn wake_after(&self, co: &Co<'_>, ticket: Ticket, delay: Duration) -> Timer {
        let group = self.clone();
        let timer = co.context().timer(move |_| {
            let wake = group.lock().take_wake(ticket);
            if let Some((_, waker)) = wake {
                waker.wake();
            }
        });
        timer.arm_after(delay);
        timer
    }
}

impl State {
    fn next_number(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn member(&mut self, id: MemberId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    fn waiter(&mut self, ticket: Ticket) -> Option<&mut Waiter> {
        let queue = &mut self.member(ticket.member)?.queues[ticket.direction as usize];
        queue.iter_mut().find(|waiter| waiter.number == ticket.number)
    }

    fn take_wake(&mut self, ticket: Ticket) -> Option<(AioHandle, CoWaker)> {
        self.waiter(ticket)?.take_wake()
    }

    fn is_released(&mut self, member: MemberId) -> bool {
        self.member(member).is_none_or(|member| member.released)
    }

    /// Whether a request passes without waiting. It overtakes none that waits.
    fn passes_at_once(&mut self, member: MemberId, direction: Direction, now_ns: i64) -> bool {
        let first = self.leaders[direction as usize].is_none();
        first && self.buckets.wait_ns(direction, now_ns) == 0 || self.is_released(member)
    }

    fn enqueue(&mut self, member: MemberId, direction: Direction, home: AioHandle) -> Ticket {
        let ticket = Ticket { number: self.next_number(), member, direction };
        if let Some(member) = self.member(member) {
            let waiter = Waiter { number: ticket.number, home, waker: None };
            member.queues[direction as usize].push_back(waiter);
        }
        self.leaders[direction as usize].get_or_insert(ticket);
        ticket
    }

    fn turn(&mut self, ticket: Ticket, now_ns: i64) -> Turn {
        if self.is_released(ticket.member) {
            return Turn::Pass;
        }
        if self.leaders[ticket.direction as usize] != Some(ticket) {
            return Turn::Sleep(None);
        }
        match self.buckets.wait_ns(ticket.direction, now_ns) {
            0 => Turn::Pass,
            wait_ns => Turn::Sleep(Some(Duration::from_nanos(wait_ns))),
        }
    }

    /// Takes a request off its queue. If it was the leader, another one is now, which the caller
    /// wakes.
    fn take_off(&mut self, ticket: Ticket) -> Option<(AioHandle, CoWaker)> {
        let Ticket { number, member, direction } = ticket;
        if let Some(member) = self.member(member) {
            member.queues[direction as usize].retain(|waiter| waiter.number != number);
        }
        if self.leaders[direction as usize] != Some(ticket) {
            return None;
        }
        self.last_member[direction as usize] = member;
        let next = self.next_leader(direction);
        self.leaders[direction as usize] = next;
        self.take_wake(next?)
    }

    /// The oldest request of the member whose turn it is.
    fn next_leader(&self, direction: Direction) -> Option<Ticket> {
        let last = self.last_member[direction as usize];
        let after = self.members.partition_point(|member| member.id <= last);
        let (before, behind) = self.members.split_at(after);
        behind.iter().chain(before).find_map(|member| {
            let number = member.queues[direction as usize].front()?.number;
            Some(Ticket { number, member: member.id, direction })
        })
    }
}

/// A request on a queue. Dropped there, because its coroutine is unwound, it leaves as well.
struct Queued<'a> {
    group: &'a ThrottleGroup,
    ticket: Ticket,
}

impl Queued<'_> {
    /// What its destructor does, but the caller wakes the new leader, at once.
    fn take_off(self) -> Option<(AioHandle, CoWaker)> {
        // The destructor finds it gone.
        self.group.lock().take_off(self.ticket)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let wake = self.group.lock().take_off(self.ticket);
        wake_later(wake);
    }
}
