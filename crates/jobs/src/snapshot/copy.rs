//! A copy that a guest drives, before it writes.
//!
//! ```text
//! memory -> claim -> read, as a part of the guest's request -> write to the target, in a coroutine of its own
//!        -> say that the target has it -> wait for reads of the instant -> end of the claim -> the guest goes on
//! ```
//!
//! Where old bytes may be held, the guest goes on as soon as they are read: the write to the target goes on by itself,
//! and reads of the instant find them in memory until the target has them. A write that fails then breaks the instant,
//! as the guest may have written over what is to be copied.
//!
//! The write has a coroutine and a buffer of its own, as the guest may have to go on while the target does not answer.
//! It passes no gate, as it is part of a guest's request that has passed one; a drain of the target waits for it.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use coblk_aio::{Co, Timer};
use coblk_block::{Child, OwnRequests, WriteFlags};

use super::keeper::{Keeper, OnCbwError};
use crate::copy::pace::Latency;
use crate::copy::piece::{Scratch, Shape};
use crate::copy::waiters::For;
use crate::rules::{Rule, holds};

/// Longest copy, in bytes, unless a cluster is longer.
const MAX_COPY: u64 = 1 << 20;
/// Memory of copies that guests drive, in bytes. One may have more.
const MAX_IN_FLIGHT: u64 = 128 << 20;

impl Keeper {
    /// Returns when a range of the node may be written.
    ///
    /// # Errors
    /// If old bytes cannot be copied, and that is to fail the write.
    #[inline]
    pub(super) fn co_keep(
        self: &Arc<Self>,
        co: &Co<'_>,
        (node, target): (&Child, &Child),
        range: Range<u64>,
    ) -> io::Result<()> {
        let granules = self.granules_of(&range);
        match self.granules.is_idle(granules.clone()) {
            true => Ok(()),
            false => Latency::of(self.plan.waits.as_ref(), co, || {
                self.co_keep_granules(co, (node, target), granules)
            }),
        }
    }

    #[inline(never)]
    fn co_keep_granules(
        self: &Arc<Self>,
        co: &Co<'_>,
        edges: (&Child, &Child),
        granules: Range<u64>,
    ) -> io::Result<()> {
        let limit = Limit::new(co, self);
        let mut next = granules.start;
        while let Some(first) = self.granules.first_pending(next..granules.end) {
            // What was before it is kept.
            next = first;
            if self.lets_go() {
                return Ok(());
            }
            if self.is_held(first) {
                next = first + 1;
                continue;
            }
            let copied = if limit.is_over(co) {
                Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
            } else if self.granules.is_busy(first) {
                if !holds(Rule::GuestsWait) {
                    return Ok(());
                }
                let is_free = || !self.granules.is_busy(first) || self.is_held(first);
                let is_over = || is_free() || self.ends_wait(co, &limit);
                self.guests.waiters.co_wait(co, is_over);
                continue;
            } else {
                self.co_copy(co, edges, first..granules.end, &limit)
            };
            match copied {
                Err(error) if self.plan.on_error == OnCbwError::BreakGuestWrite => {
                    return if self.lets_go() { Ok(()) } else { Err(error) };
                }
                Err(error) => self.break_instant(&error),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Whether a guest that waits for anything is to look again.
    fn ends_wait(&self, co: &Co<'_>, limit: &Limit) -> bool {
        self.lets_go() || limit.is_over(co)
    }

    /// Claims granules as [`claim_from`](crate::copy::granules::Granules::claim_from) does, up to one whose old bytes
    /// are in the spill: that is to be copied still, and guests have written over it perhaps.
    fn claim_unspilled(&self, start: u64, most: u64) -> Option<Range<u64>> {
        let claimed = self.granules.claim_from(start, most)?;
        let spill = self.spill().filter(|_| holds(Rule::SpilledStays));
        let Some(spill) = spill else { return Some(claimed) };
        let end = claimed.clone().find(|granule| spill.has(*granule)).unwrap_or(claimed.end);
        if end < claimed.end {
            self.granules.fail(end..claimed.end);
            self.guests.claim_ended();
        }
        (claimed.start < end).then_some(claimed.start..end)
    }

    /// Copies the first granules of a range, or nothing if a claim of another came first. Also returns when the wait
    /// for the target ends early; the copy then goes on by itself.
    fn co_copy(
        self: &Arc<Self>,
        co: &Co<'_>,
        (mut node, target): (&Child, &Child),
        granules: Range<u64>,
        limit: &Limit,
    ) -> io::Result<()> {
        let most = (MAX_COPY / self.plan.granule).clamp(1, granules.end - granules.start);
        let memory = most * self.plan.granule;
        let Some(memory) = Memory::co_take(self, co, memory, limit) else { return Ok(()) };
        let Some(claimed) = self.claim_unspilled(granules.start, most) else { return Ok(()) };
        let told = Told::default();
        let mut claim = Claim {
            keeper: Arc::clone(self),
            granules: Some(claimed.clone()),
            told: Arc::clone(&told),
            hold: None,
        };
        let range = self.bytes_of(&claimed);
        let target = target.node();
        let alignment = node.limits().memory_alignment.max(target.limits().memory_alignment);
        let mut scratch = Scratch::new(range.end - range.start, alignment)?;
        let shape = Shape {
            cluster: self.plan.target_cluster,
            length: self.plan.length,
            flags: self.plan.flags,
            keeps_all: true,
        };
        scratch.co_read(co, &mut node, &range, shape).map_err(|failed| failed.error)?;
        if let Some(sums) = self.sums() {
            sums.note(&range, &scratch);
        }
        let scratch = Arc::new(scratch);
        let hold = Hold::take(self, &claimed, range.end - range.start);
        let is_held = hold.is_some();
        if is_held {
            if let Some(reads) = &self.reads {
                reads.co_hold(co, &range, &scratch);
            }
            // From here on the node may be written.
            claim.hold = hold;
            self.set_held(&claimed, true);
            self.guests.waiters.wake_for(For::Claims);
        }
        let own = (target.own_requests(), self.spill().map(|spill| spill.own_requests()));
        co.context().spawn("copy before write", move |co| {
            claim.co_write(co, (&scratch, &range), own);
            drop((scratch, memory));
        });
        let is_over = || is_held || told.get().is_some() || self.ends_wait(co, limit);
        while !is_over() {
            self.guests.waiters.co_wait_for(co, copy_of_guest(&told), is_over);
        }
        match told.get() {
            Some(Some(error)) => Err(copy_of(error)),
            // Without a result the caller finds out why.
            Some(None) | None => Ok(()),
        }
    }
}

fn copy_of(error: &io::Error) -> io::Error {
    io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))
}

/// How long a guest waits. Wakes it at its end.
struct Limit {
    end_ns: Option<i64>,
    _timer: Option<Timer>,
}

impl Limit {
    fn new(co: &Co<'_>, keeper: &Arc<Keeper>) -> Limit {
        let Some(timeout) = keeper.plan.timeout else {
            return Limit { end_ns: None, _timer: None };
        };
        let timeout_ns = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
        let end_ns = co.context().now_ns().saturating_add(timeout_ns);
        let waits = Arc::clone(keeper);
        let timer = co.context().timer(move |_| waits.guests.waiters.wake());
        timer.arm_at_ns(end_ns);
        Limit { end_ns: Some(end_ns), _timer: Some(timer) }
    }

    fn is_over(&self, co: &Co<'_>) -> bool {
        self.end_ns.is_some_and(|end_ns| co.context().now_ns() >= end_ns)
    }
}

/// A share of the memory of copies that guests drive.
struct Memory {
    keeper: Arc<Keeper>,
    bytes: u64,
}

impl Memory {
    /// Waits until there is some. `None` if the wait ends early.
    fn co_take(keeper: &Arc<Keeper>, co: &Co<'_>, bytes: u64, limit: &Limit) -> Option<Memory> {
        let in_flight = &keeper.in_flight;
        let fits =
            |taken: u64| (taken == 0 || taken + bytes <= MAX_IN_FLIGHT).then_some(taken + bytes);
        while in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_err() {
            if keeper.ends_wait(co, limit) {
                return None;
            }
            let is_over =
                || fits(in_flight.load(Ordering::SeqCst)).is_some() || keeper.ends_wait(co, limit);
            keeper.guests.waiters.co_wait_for(co, For::Memory, is_over);
        }
        Some(Memory { keeper: Arc::clone(keeper), bytes })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.keeper.in_flight.fetch_sub(self.bytes, Ordering::SeqCst);
        self.keeper.guests.waiters.wake_for(For::Memory);
    }
}

/// How a copy has ended, once it has: `None` inside if well.
type Told = Arc<OnceLock<Option<io::Error>>>;

/// What the guest of a copy waits for.
fn copy_of_guest(told: &Told) -> For {
    For::Copy(Arc::as_ptr(told).addr())
}

/// A claim of a guest. Dropped, it has failed.
struct Claim {
    keeper: Arc<Keeper>,
    granules: Option<Range<u64>>,
    told: Told,
    hold: Option<Hold>,
}

/// Old bytes in memory whose guests have gone on. Dropped when the target has them, or they are lost.
struct Hold {
    keeper: Arc<Keeper>,
    granules: Range<u64>,
    bytes: u64,
}

impl Hold {
    /// `None` if there is no place.
    fn take(keeper: &Arc<Keeper>, granules: &Range<u64>, bytes: u64) -> Option<Hold> {
        let fits = |held: u64| (held + bytes <= keeper.plan.hold).then_some(held + bytes);
        keeper.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).ok()?;
        Some(Hold { keeper: Arc::clone(keeper), granules: granules.clone(), bytes })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.keeper.set_held(&self.granules, false);
        if let Some(reads) = &self.keeper.reads {
            reads.release(&self.keeper.bytes_of(&self.granules));
        }
        self.keeper.held.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

impl Claim {
    /// Writes what was read to the spill, if there is one, and else, or if that fails, to the target.
    fn co_write(
        self,
        co: &Co<'_>,
        (scratch, range): (&Scratch, &Range<u64>),
        (mut target, spill): (OwnRequests, Option<OwnRequests>),
    ) {
        if let Some(mut spill) = spill {
            match scratch.co_write_with(co, &mut spill, range, WriteFlags::empty()) {
                Ok(()) => return self.be_spilled(),
                Err(failed) => {
                    tracing::debug!(offset = range.start, error = %failed.error, "the spill fails");
                }
            }
        }
        let written = scratch.co_write(co, &mut target, range);
        drop(target);
        match written {
            Ok(()) => self.co_succeed(co, range),
            Err(failed) => self.fail(failed.error),
        }
    }

    /// The spill has its bytes, which are to be copied still.
    fn be_spilled(mut self) {
        if let (Some(granules), Some(spill)) = (self.granules.take(), self.keeper.spill()) {
            spill.put(&granules);
            self.keeper.granules.fail(granules);
        }
        let _ = self.told.set(None);
        self.keeper.guests.wake_job();
    }

    /// The target has its bytes.
    fn co_succeed(mut self, co: &Co<'_>, range: &Range<u64>) {
        if let Some(reads) = &self.keeper.reads {
            reads.co_publish(co, range);
        }
        self.keeper.progress.add(range.end - range.start);
        let _ = self.told.set(None);
        if let Some(granules) = self.granules.take() {
            self.keeper.granules.end(granules);
        }
    }

    fn fail(self, error: io::Error) {
        let _ = self.told.set(Some(error));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Of a coroutine that has panicked. The guest is told before it is woken.
        let told = self.told.get_or_init(|| Some(io::Error::from_raw_os_error(libc::EIO)));
        if let Some(granules) = self.granules.take() {
            if let (Some(_), Some(error), true) = (&self.hold, told, holds(Rule::LostFails)) {
                // Before others take the granule for one that has its old bytes still.
                self.keeper.break_instant(error);
            }
            self.keeper.granules.fail(granules);
        }
        drop(self.hold.take());
        self.keeper.guests.waiters.wake_for(copy_of_guest(&self.told));
        self.keeper.guests.claim_ended();
    }
}
