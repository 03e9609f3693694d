//! [`Claims`]: no two requests in flight change the same byte.
//!
//! A request that was in flight when its connection was lost is sent again on the next one. The server may have
//! carried it out already, so that it happens twice. That does no harm if nothing newer has been written to its
//! range meanwhile. So a write, and all else that changes bytes, claims its range before it is sent for the
//! first time, and keeps the claim until it is answered or has failed; a later one that meets it waits. Between
//! the first sending of a request and the last, nothing newer is sent to its range: the order in which requests
//! are sent again does not matter.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use coblk_aio::Co;
use coblk_aio::sync::CoQueue;

#[derive(Default)]
pub struct Claims {
    ranges: RefCell<Vec<Range<u64>>>,
    given_back: CoQueue,
    /// Requests that wait there.
    waiting: Cell<usize>,
}

/// A range that is claimed until it is dropped.
pub struct Claim<'a> {
    claims: &'a Claims,
    range: Range<u64>,
}

impl Claims {
    /// Claims a range that is not empty, when no other claim meets it.
    pub fn co_claim(&self, co: &Co<'_>, range: Range<u64>) -> Claim<'_> {
        while self.is_met(&range) {
            self.waiting.set(self.waiting.get() + 1);
            let _waiting = Waiting(&self.waiting);
            self.given_back.wait(co);
        }
        self.ranges.borrow_mut().push(range.clone());
        Claim { claims: self, range }
    }

    fn is_met(&self, range: &Range<u64>) -> bool {
        let ranges = self.ranges.borrow();
        ranges.iter().any(|it| it.start < range.end && range.start < it.end)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut ranges = self.claims.ranges.borrow_mut();
        if let Some(at) = ranges.iter().position(|it| *it == self.range) {
            ranges.swap_remove(at);
        }
        drop(ranges);
        // Those that still meet another one wait again.
        if self.claims.waiting.get() > 0 {
            self.claims.given_back.wake_all();
        }
    }
}

struct Waiting<'a>(&'a Cell<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
