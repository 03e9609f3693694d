//! Flushes: one at a time, and none that has nothing to do (contract: C79).
//!
//! # What a flush covers
//!
//! A flush that succeeds covers every write that had completed when it was asked (design decision
//! D16). It needs the driver only if something was written since the driver's last good flush
//! began; `dirty` tells. A write sets it after it is done, or when it is unwound. A flush clears it before it calls the
//! driver, and sets it again if that fails. Say a write W completes, and then a flush F is asked:
//!
//! * F finds `dirty`: it flushes, or waits for one that begins after it was asked.
//! * F finds it clear: another flush cleared it after W had set it or had seen it set, and before it
//!   called the driver. If that flush is done, it was good, and covers W. If it still runs, F waits for
//!   its result.
//!
//! That W only looks when the flag is already set keeps the flag's cache line shared among the
//! contexts that write. It needs that W's effects are in place before W looks: they are, as W's
//! driver call has returned, and [`BlockDriver`](crate::BlockDriver) demands of drivers that this
//! is enough for a flush in any thread to see them. Look, set and clear are in one total order.
//!
//! A node is born dirty, though not by a write of its own: a process that wrote to the same storage
//! before this one may have been killed, and its clients are ours now. A flush that a client asks for
//! covers that. Closing does not ([`co_flush_own`]): no client of this node was ever promised that
//! data, the page cache keeps it whatever happens to this process, and a disk that does not answer
//! must not hold up the end of a daemon that has never written to it. QEMU goes by the same rule. A node that
//! another process has had meanwhile is as if it had been born when it came back.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk_aio::{Co, CoWaker, trace_event};

use super::RequestPath;
use crate::driver::debug_event::DebugEvent;

/// The flushes of one node. Any thread.
pub(super) struct FlushState {
    /// What may be written and not flushed: one of the three below. Goes up by stores of the highest
    /// alone, or by `fetch_max`; down to `CLEAN` in the turn of a flush.
    dirty: AtomicU8,
    turns: Mutex<Turns>,
    /// The error of the next flush, if not 0: an errno of a node that was here before.
    next_errno: AtomicI32,
}

/// Nothing is.
const CLEAN: u8 = 0;
/// What was written before the node was opened may be.
const BORN: u8 = 1;
/// A write of this node is, or the node has taken the place of another.
const WRITTEN: u8 = 2;

/// Whose turn it is. The lock is not held while the driver flushes.
#[derive(Default)]
struct Turns {
    /// The driver flushes.
    active: bool,
    /// How many flushes of the driver have begun.
    begun: u64,
    /// The latest of these that succeeded, counted from 1.
    good: u64,
    waiting: Vec<CoWaker>,
}

impl Default for FlushState {
    fn default() -> FlushState {
        FlushState {
            dirty: AtomicU8::new(BORN),
            turns: Mutex::default(),
            next_errno: AtomicI32::new(0),
        }
    }
}

/// How a flush gets its answer.
enum Turn<'a> {
    /// Everything is durable.
    Nothing,
    /// It is its turn to call the driver.
    Own(OwnTurn<'a>),
}

pub(crate) fn co_flush(path: &RequestPath, co: &Co<'_>) -> io::Result<()> {
    trace_event!("bdrv_co_flush", node = path.name());
    flush(path, co, BORN)
}

/// [`co_flush`] before a node is closed: only if something was written through it.
pub(crate) fn co_flush_own(path: &RequestPath, co: &Co<'_>) -> io::Result<()> {
    trace_event!("bdrv_co_flush", node = path.name());
    flush(path, co, WRITTEN)
}

/// A flush, if what is owed is at least `owed`.
fn flush(path: &RequestPath, co: &Co<'_>, owed: u8) -> io::Result<()> {
    path.state.flush.take_next_errno()?;
    match path.state.flush.wait_for_turn(co, owed) {
        Turn::Nothing => Ok(()),
        Turn::Own(turn) => {
            path.driver().debug_event_below(DebugEvent::FlushToOs);
            path.driver().co_write_back(co)?;
            path.driver().debug_event_below(DebugEvent::FlushToDisk);
            path.driver().co_flush(co)?;
            turn.succeeded();
            Ok(())
        }
    }
}

impl FlushState {
    /// Something was written, and the driver's call for it has returned.
    #[inline]
    pub(super) fn wrote(&self) {
        if self.dirty.load(Ordering::SeqCst) != WRITTEN {
            self.dirty.store(WRITTEN, Ordering::SeqCst);
        }
    }

    /// The node is as it was born: another process has had its storage since.
    pub(super) fn taken_over(&self) {
        self.dirty.fetch_max(BORN, Ordering::SeqCst);
    }

    pub(super) fn fail_next(&self, errno: i32) {
        self.next_errno.store(errno, Ordering::SeqCst);
    }

    fn take_next_errno(&self) -> io::Result<()> {
        match self.next_errno.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => match self.next_errno.swap(0, Ordering::SeqCst) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_turn(&self, co: &Co<'_>, owed: u8) -> Turn<'_> {
        let mut turns = self.lock();
        let begun_before = turns.begun;
        loop {
            // One that began after we were asked covers all that we are asked for.
            if turns.good > begun_before {
                return Turn::Nothing;
            }
            if !turns.active {
                // Only turns make it less, and this is the only one.
                if self.dirty.load(Ordering::SeqCst) < owed {
                    return Turn::Nothing;
                }
                let owed = self.dirty.swap(CLEAN, Ordering::SeqCst);
                turns.active = true;
                turns.begun += 1;
                return Turn::Own(OwnTurn { state: self, owed, good: false });
            }
            // The lock is held until the waker is stored: the end of the flush finds it.
            co.suspend_for("a flush", |waker| {
                turns.waiting.push(waker);
                drop(turns);
            });
            turns = self.lock();
        }
    }
}

/// The right to call the driver. Dropped without [`succeeded`](Self::succeeded), the flush is still
/// owed: each flush that waits calls the driver itself.
struct OwnTurn<'a> {
    state: &'a FlushState,
    /// What it was taken for.
    owed: u8,
    good: bool,
}

impl OwnTurn<'_> {
    fn succeeded(mut self) {
        self.good = true;
    }
}

impl Drop for OwnTurn<'_> {
    fn drop(&mut self) {
        if !self.good {
            self.state.dirty.fetch_max(self.owed, Ordering::SeqCst);
        }
        let waiting = {
            let mut turns = self.state.lock();
            turns.active = false;
            if self.good {
                turns.good = turns.begun;
            }
            std::mem::take(&mut turns.waiting)
        };
        for waker in waiting {
            waker.wake();
        }
    }
}
