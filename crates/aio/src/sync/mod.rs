//! Locks and waits for coroutines: they suspend the coroutine, never the thread.
//!
//! * [`CoMutex`] and [`CoRwLock`] guard data; [`CoQueue`] waits for a condition on it.
//! * [`CoSleep`] is a sleep that can be cut short; [`Co::sleep`](crate::Co::sleep) and
//!   [`Co::timeout`](crate::Co::timeout) are for everyday use.
//! * [`SharedResource`] hands out shares of an amount; [`TaskPool`] runs a bounded number of
//!   coroutines at once.
//!
//! Except for the task pool, which belongs to one context, coroutines of any contexts may contend.
//! All but [`SharedResource`] are FIFO, and none of them loses what it hands over when the coroutine that is to
//! have it is unwound instead: it goes on to the next one.
//!
//! Inside each is a list of waiters (`waiters.rs`) under a lock of the standard library, which is
//! held for a few instructions and never while a coroutine runs.

mod mutex;
mod queue;
mod rwlock;
mod shared_resource;
mod sleep;
mod task_pool;
mod waiters;

pub use mutex::{CoMutex, CoMutexGuard};
pub use queue::CoQueue;
pub use rwlock::{CoRwLock, CoRwLockReadGuard, CoRwLockWriteGuard};
pub use shared_resource::{ResourceShare, SharedResource, SharedResourceError};
pub use sleep::{CoSleep, TimedOut};
pub use task_pool::TaskPool;
