//! The one rule for waiting: how long a thread looks for work by itself before it sleeps.
//!
//! A thread that sleeps has to be woken, which takes far longer than a short wait: the CPU that it slept on
//! has to leave its idle state. A thread that looks (*spins*) notices at once, and takes a CPU meanwhile. The
//! classical answer is *ski rental*: look for as long as a wake-up costs, then sleep. The price is at
//! most a small multiple of what it would be if the length of the wait were known before. If
//! the waits of late were longer than that, do not look at all.
//!
//! * [`WakeCost`] is what a wake-up costs on this machine, measured as threads are woken.
//! * [`WaitRule`] is one kind of wait of one thread: it learns how long these waits are.
//! * [`Place`] is the CPU of a thread: one that looks on the CPU that the other side needs waits for itself.
//! * [`Presence`] counts the threads that are awake: those that look are no more than there are CPUs.
//! * [`spin`] looks, and gives up as soon as one of these says so.
//!
//! A spinning thread never calls `sched_yield`: a stranger on that CPU may take a whole time slice then.
//! Nothing of this is a system call or an atomic read-modify-write, but for what comes with a sleep.

mod place;
mod presence;
mod rule;
#[cfg(test)]
mod simulation;
mod spin;
mod wake_cost;

pub(crate) use place::Place;
pub(crate) use presence::Presence;
pub(crate) use rule::WaitRule;
pub(crate) use spin::{may_spin, spin, spin_while};
pub(crate) use wake_cost::{WakeCost, WakeStamp};
