//! [`SharedResource`]: an amount that coroutines take shares of.

use std::fmt;
use std::sync::Mutex;

use super::waiters::{Place, Unwound, WaitList, Waiters, lock};
use crate::co::Co;

/// An amount, such as bytes of memory for copies in flight, of which coroutines take shares and
/// wait when too little is left.
pub struct SharedResource {
    total: u64,
    state: Mutex<State>,
}

struct State {
    available: u64,
    /// Each with the share it wants.
    waiters: Waiters<u64>,
}

/// More was asked for than there will ever be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedResourceError {
    /// The share asked for.
    pub asked: u64,
    /// All there is.
    pub total: u64,
}

impl fmt::Display for SharedResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shared resource: {} asked for, of a total of {}", self.asked, self.total)
    }
}

impl std::error::Error for SharedResourceError {}

impl SharedResource {
    /// All of `total` is there to be taken.
    pub const fn new(total: u64) -> SharedResource {
        let state = State { available: total, waiters: Waiters::new() };
        SharedResource { total, state: Mutex::new(state) }
    }

    /// Takes a share; waits until that much is left.
    ///
    /// A share is not held back for a larger one: a smaller one may be had at once although a
    /// larger one is waited for.
    ///
    /// # Errors
    /// If `amount` is more than the total: it would wait forever (contract: C72).
    pub fn take(&self, co: &Co<'_>, amount: u64) -> Result<ResourceShare<'_>, SharedResourceError> {
        if amount > self.total {
            return Err(SharedResourceError { asked: amount, total: self.total });
        }
        let mut state = lock(&self.state);
        if state.available >= amount {
            state.available -= amount;
        } else {
            WaitList { mutex: &self.state, waiters: |state| &mut state.waiters }.wait(
                co,
                state,
                (amount, Place::Back),
                || (),
                |how| {
                    if how == Unwound::Served {
                        self.give_back(amount);
                    }
                },
            );
        }
        Ok(ResourceShare { resource: self, amount })
    }

    /// Takes a share if that much is left now.
    pub fn try_take(&self, amount: u64) -> Option<ResourceShare<'_>> {
        let mut state = lock(&self.state);
        state.available = state.available.checked_sub(amount)?;
        Some(ResourceShare { resource: self, amount })
    }

    /// What is left, at this moment.
    pub fn available(&self) -> u64 {
        lock(&self.state).available
    }

    /// All there is.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns a share, and wakes those who now fit, in the order in which they came.
    fn give_back(&self, amount: u64) {
        let mut state = lock(&self.state);
        state.available += amount;
        let State { available, waiters } = &mut *state;
        let served = waiters.serve(|wants| {
            let fits = *wants <= *available;
            if fits {
                *available -= *wants;
            }
            fits
        });
        drop(state);
        served.wake();
    }
}

/// A share of a [`SharedResource`]. Dropping it returns it.
#[must_use = "dropping it returns the share"]
pub struct ResourceShare<'a> {
    resource: &'a SharedResource,
    amount: u64,
}

impl ResourceShare<'_> {
    /// How much it is.
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for ResourceShare<'_> {
    fn drop(&mut self) {
        self.resource.give_back(self.amount);
    }
}

impl fmt::Debug for SharedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedResource")
            .field("available", &self.available())
            .field("total", &self.total)
            .finish()
    }
}

impl fmt::Debug for ResourceShare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResourceShare").field("amount", &self.amount).finish()
    }
}
