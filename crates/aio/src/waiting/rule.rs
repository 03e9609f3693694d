//! One kind of wait, and what was learnt of it.
//!
//! The rule looks at the mean of the recent waits, where a long one counts as four limits, so that a night
//! without work is forgotten within ten requests. While the mean is not above the limit, a wait is spent
//! looking, up to the limit.
//!
//! # A sleep does not keep the door shut
//!
//! A wait that was slept through ends with the thread's own wake-up, which a thread that looks does not pay. So
//! that much is taken off before it is learnt. Otherwise there are two steady states: one that looks, as the
//! waits are short, and one that sleeps, as they look long because of it.
//!
//! # A look has to pay
//!
//! If the other side is on the same CPU, and is no thread of ours, that is not to be seen: each look is in vain,
//! and work comes as soon as the thread sleeps. If work comes at a steady rate, a late wake-up makes the next
//! wait shorter than the one that a look would meet. So the looks are counted, and one in vain outweighs
//! [`VAIN`] that found something. When the balance is spent there is a rest, twice as long each time, up to
//! [`MAX_REST`] waits; a full balance ends that.

use std::cell::Cell;

use super::WakeCost;

/// A long wait counts as so many limits.
const LONG: u64 = 4;
/// The mean is over about so many waits.
const WINDOW: u64 = 8;
/// So many looks that find something are worth one in vain.
const VAIN: u32 = 2;
/// The balance at its fullest.
const MAX_BALANCE: u32 = 16;
/// The balance after a rest.
const FRESH_BALANCE: u32 = 4;
/// Waits of the first rest.
const FIRST_REST: u32 = 16;
/// Waits of the longest rest.
const MAX_REST: u32 = 1024;

/// How one thread waits for one kind of thing. Belongs to that thread.
///
/// Of each wait it is asked [`limit_ns`](Self::limit_ns) once, and then told how the wait ended.
#[derive(Debug)]
pub(crate) struct WaitRule {
    mean_ns: Cell<u64>,
    /// Looks that found something, less those in vain.
    balance: Cell<u32>,
    /// Waits that are left of a rest.
    rest: Cell<u32>,
    next_rest: Cell<u32>,
}

impl WaitRule {
    /// It begins with a look.
    pub(crate) const fn new() -> WaitRule {
        WaitRule {
            mean_ns: Cell::new(0),
            balance: Cell::new(MAX_BALANCE),
            rest: Cell::new(0),
            next_rest: Cell::new(FIRST_REST),
        }
    }

    /// How long the wait that begins now may be spent looking, in nanoseconds. Zero: sleep at once.
    #[inline]
    pub(crate) fn limit_ns(&self, cost: &WakeCost) -> u64 {
        if self.rest.get() > 0 {
            self.rest.set(self.rest.get() - 1);
            return 0;
        }
        self.peek_ns(cost)
    }

    /// What [`limit_ns`](Self::limit_ns) would say if there were no rest.
    pub(crate) fn peek_ns(&self, cost: &WakeCost) -> u64 {
        let longest_ns = Self::longest_ns(cost);
        if self.mean_ns.get() <= longest_ns { longest_ns } else { 0 }
    }

    /// How long a thread may look at most, in nanoseconds. The other side may have slept, too, until our
    /// last answer: then its own wake-up comes first, and the time that it needs besides.
    #[inline]
    pub(crate) fn longest_ns(cost: &WakeCost) -> u64 {
        cost.ns() + cost.ns() / 2
    }

    /// The wait was over while the thread looked.
    #[inline]
    pub(crate) fn found(&self, waited_ns: u64, cost: &WakeCost) {
        if self.balance.get() < MAX_BALANCE {
            self.balance.set(self.balance.get() + 1);
        } else {
            self.next_rest.set(FIRST_REST);
        }
        self.learn(waited_ns, cost);
    }

    /// The thread slept, after it had looked for `looked_ns`, and the wait took `waited_ns` in all.
    pub(crate) fn slept(&self, looked_ns: u64, waited_ns: u64, cost: &WakeCost) {
        self.learn(waited_ns.saturating_sub(cost.ns()).max(looked_ns), cost);
        if looked_ns == 0 {
            return;
        }
        if let Some(balance) = self.balance.get().checked_sub(VAIN) {
            return self.balance.set(balance);
        }
        self.balance.set(FRESH_BALANCE);
        self.rest.set(self.next_rest.get());
        self.next_rest.set((self.next_rest.get() * 2).min(MAX_REST));
    }

    #[inline]
    fn learn(&self, waited_ns: u64, cost: &WakeCost) {
        let waited_ns = waited_ns.min(LONG * Self::longest_ns(cost));
        self.mean_ns.set((self.mean_ns.get() * (WINDOW - 1) + waited_ns) / WINDOW);
    }
}
