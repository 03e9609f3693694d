//! [`Hold`]: copies that guests do not wait for, once the old bytes are in memory.
//!
//! Where a lost copy breaks the instant and not the guest's write, a guest need not wait for the target. It goes on
//! when the old bytes have been read, as long as not too many are held; reads of the instant find them there. A copy
//! whose write fails then breaks the instant.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::Co;
use coblk_block::BlockNode;

use super::copy::Memory;
use super::keeper::Keeper;
use crate::copy::piece::Scratch;

/// Old bytes in memory that are on their way to the target.
pub(super) struct Held {
    pub(super) range: Range<u64>,
    pub(super) scratch: Scratch,
    _memory: Memory,
}

/// Those of one instant. Any thread.
#[derive(Default)]
pub(super) struct Hold {
    list: Mutex<Vec<Arc<Held>>>,
    bytes: AtomicU64,
}

impl Hold {
    fn list(&self) -> MutexGuard<'_, Vec<Arc<Held>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Those that have the byte at an offset, or else the offset of the next ones.
    pub(super) fn find(&self, offset: u64) -> Result<Arc<Held>, Option<u64>> {
        let list = self.list();
        match list.iter().find(|held| held.range.contains(&offset)) {
            Some(held) => Ok(Arc::clone(held)),
            None => Err(list.iter().map(|held| held.range.start).filter(|it| *it > offset).min()),
        }
    }

    /// The ranges that are held.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        self.list().iter().map(|held| held.range.clone()).collect()
    }

    fn add(&self, held: &Arc<Held>) {
        self.list().push(Arc::clone(held));
    }
}

/// That bytes are held. Dropped, they are not.
pub(super) struct OnHold {
    keeper: Arc<Keeper>,
    held: Option<Arc<Held>>,
    bytes: u64,
    /// A guest has gone on, and the target does not have them.
    is_owed: bool,
}

impl OnHold {
    /// Takes a share of what may be held.
    pub(super) fn try_new(keeper: &Arc<Keeper>, bytes: u64) -> Option<OnHold> {
        let most = keeper.plan.hold;
        let fits = |held: u64| (bytes <= most.saturating_sub(held)).then_some(held + bytes);
        let taken = &keeper.hold.bytes;
        taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).ok()?;
        Some(OnHold { keeper: Arc::clone(keeper), held: None, bytes, is_owed: false })
    }

    /// Holds bytes that were read, and waits for reads of the instant that take them from the node.
    pub(super) fn co_hold(
        &mut self,
        co: &Co<'_>,
        range: &Range<u64>,
        (scratch, memory): (Scratch, Memory),
    ) {
        let held = Arc::new(Held { range: range.clone(), scratch, _memory: memory });
        self.held = Some(Arc::clone(&held));
        match &self.keeper.reads {
            Some(reads) => reads.co_hold(co, range, || self.keeper.hold.add(&held)),
            None => self.keeper.hold.add(&held),
        }
    }

    /// Writes them to the target, in a coroutine of its own. The guest goes on.
    pub(super) fn write(mut self, co: &Co<'_>, target: &Arc<BlockNode>) {
        self.is_owed = true;
        let mut own = target.own_requests();
        co.context().spawn("copy of held bytes", move |co| {
            let mut on_hold = self;
            let Some(held) = on_hold.held.clone() else { return };
            let written = held.scratch.co_write(co, &mut own, &held.range);
            drop(own);
            let keeper = &on_hold.keeper;
            match written {
                Ok(()) => {
                    if let Some(reads) = &keeper.reads {
                        reads.mark_copied(&held.range);
                    }
                    keeper.progress.add(on_hold.bytes);
                }
                Err(failed) => keeper.break_instant(&failed.error),
            }
            on_hold.is_owed = false;
        });
    }
}

impl Drop for OnHold {
    fn drop(&mut self) {
        if self.is_owed {
            // Of a coroutine that has panicked.
            self.keeper.break_instant(&std::io::Error::from_raw_os_error(libc::EIO));
        }
        let hold = &self.keeper.hold;
        if let Some(held) = self.held.take() {
            hold.list().retain(|known| !Arc::ptr_eq(known, &held));
        }
        hold.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        self.keeper.guests.waiters.wake();
        // It may wait for that to be complete.
        self.keeper.guests.wake_job();
    }
}
