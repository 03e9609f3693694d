//! Requests in flight that others may have to wait for (contract: C80).
//!
//! A write that is not whole blocks reads the blocks it touches, changes them and writes them back.
//! Another write to the same blocks in between would be undone. So it asks for its blocks to be
//! [`Access::ExcludeWrites`]. Two ordinary writes may overlap: which of them wins is the client's
//! business. The writer of padded blocks puts back the bytes around its own range as they were, so a
//! reader finds there what it would have found anyway.
//!
//! Where blocks are single bytes there is nothing to pad, and reads exclude no write: neither is
//! tracked, unless a user of [range locks](crate::BlockNode::track) asks for that.
//!
//! # Why waiting ends
//!
//! Range and kind of a request are known when it comes, and never change; it has one lock on a node.
//! Under the mutex it takes its place in the order of arrival and counts the earlier requests that it
//! conflicts with. It waits for these alone. So each request waits for earlier ones only, and the
//! earliest for none. That also makes it first come, first served.
//!
//! A request that ends, or that is unwound while it waits, gives one count back to each later one
//! that it conflicted with; a request whose count comes to zero is woken.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk_aio::{Co, CoWaker, trace_event};
use slab::Slab;

/// What a request does to a range, and which others may do something there at the same time; the later
/// ones here allow what the earlier ones do, and keep more out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// It reads, and keeps no other out.
    Read,
    /// It writes, and keeps no other out.
    Write,
    /// It does anything. Others may read, and do nothing else.
    ExcludeWrites,
    /// It does anything, and all others are kept out.
    ExcludeAll,
}

impl Access {
    fn excludes(self, other: Access) -> bool {
        match self {
            Access::Read | Access::Write => false,
            Access::ExcludeWrites => other != Access::Read,
            Access::ExcludeAll => true,
        }
    }

    fn is_excluding(self) -> bool {
        matches!(self, Access::ExcludeWrites | Access::ExcludeAll)
    }
}

/// The tracked requests of one node. Any thread; the lock is held for a few comparisons.
#[derive(Default)]
pub(crate) struct TrackedRequests {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    requests: Slab<Request>,
    /// Place in the order of arrival of the next request.
    next: u64,
    /// How many exclude others. While none does, a request looks at none.
    excluding: usize,
    /// How many wait. While none does, a request that ends looks at none.
    waiting: usize,
}

struct Request {
    range: Range<u64>,
    access: Access,
    arrival: u64,
    /// Earlier ones that it still waits for.
    conflicts: usize,
    /// There if, and only if, it waits.
    waker: Option<CoWaker>,
}

impl Request {
    fn conflicts_with(&self, other: &Request) -> bool {
        (self.access.excludes(other.access) || other.access.excludes(self.access))
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

impl TrackedRequests {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for every earlier request that conflicts; later ones wait until the guard is dropped.
    pub(crate) fn begin(&self, co: &Co<'_>, range: Range<u64>, access: Access) -> Tracked<'_> {
        let mut state = self.lock();
        let (key, conflicts) = state.add(range, access);
        // From here on the request is given up if this coroutine is unwound.
        let tracked = Tracked { requests: self, key };
        if conflicts > 0 {
            trace_event!("tracked_request_wait", conflicts);
            // The lock is held until the waker is stored: a request that ends meanwhile finds it.
            co.suspend_for("an overlapping request", |waker| {
                state.requests[key].waker = Some(waker);
                state.waiting += 1;
                drop(state);
            });
        }
        tracked
    }

    /// How many are tracked.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().requests.len()
    }
}

impl State {
    /// Adds a request; returns its key, and how many it has to wait for.
    fn add(&mut self, range: Range<u64>, access: Access) -> (usize, usize) {
        let arrival = self.next;
        self.next += 1;
        let mut request = Request { range, access, arrival, conflicts: 0, waker: None };
        self.excluding += usize::from(access.is_excluding());
        if self.excluding > 0 {
            request.conflicts =
                self.requests.iter().filter(|(_, earlier)| request.conflicts_with(earlier)).count();
        }
        let conflicts = request.conflicts;
        (self.requests.insert(request), conflicts)
    }

    /// Removes a request; returns the wakers to call when the lock is released.
    fn remove(&mut self, key: usize) -> Vec<CoWaker> {
        let mut gone = self.requests.remove(key);
        self.excluding -= usize::from(gone.access.is_excluding());
        let mut free = Vec::new();
        if gone.waker.take().is_some() {
            // Unwound while it waited. Its waker leads nowhere any more.
            self.waiting -= 1;
        }
        if self.waiting == 0 {
            return free;
        }
        for (_, later) in &mut self.requests {
            if later.arrival > gone.arrival && later.conflicts_with(&gone) {
                later.conflicts -= 1;
                if later.conflicts == 0 {
                    free.extend(later.waker.take());
                    self.waiting -= 1;
                }
            }
        }
        free
    }
}

/// A tracked request; it ends when this is dropped.
pub(crate) struct Tracked<'a> {
    requests: &'a TrackedRequests,
    key: usize,
}

impl Drop for Tracked<'_> {
    fn drop(&mut self) {
        let free = self.requests.lock().remove(self.key);
        for waker in free {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests;
