//! [`Budget`]: the memory that all clients of a server share, in all contexts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk_aio::RemoteBottomHalf;

/// All that larger buffers may take together, in bytes.
pub const SHARED: usize = 128 << 20;
/// A client may hold as much as is left, divided by this.
const SHARE: usize = 2;
/// Bytes of unused buffers that are kept, by all contexts together.
const IDLE: usize = 32 << 20;

/// How much larger buffers may still take, and what the contexts of a server tell each other about that.
/// Any thread.
pub struct Budget {
    left: AtomicUsize,
    /// How many contexts keep unused buffers.
    pools: AtomicUsize,
    /// Has each of them look after its memory.
    attendants: Mutex<Vec<(u64, RemoteBottomHalf)>>,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            left: AtomicUsize::new(SHARED),
            pools: AtomicUsize::new(0),
            attendants: Mutex::default(),
        }
    }
}

impl Budget {
    /// Takes `bytes` for a client that holds `held`. False if that is more than its share.
    pub fn take(&self, held: usize, bytes: usize) -> bool {
        // Nothing but the count goes from one thread to another here.
        let rest = |left| (SHARE * (held + bytes) <= left).then(|| left - bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).is_ok()
    }

    pub fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// Whether one of the contexts may keep so many bytes of unused buffers.
    pub fn may_keep(&self, bytes: usize) -> bool {
        bytes * self.pools.load(Ordering::Relaxed).max(1) <= IDLE
    }

    /// One context more, whose attendant this is; the others may keep less from now on.
    pub fn join(&self, number: u64, attendant: RemoteBottomHalf) {
        let mut attendants = self.attendants();
        attendants.push((number, attendant));
        self.pools.store(attendants.len(), Ordering::Relaxed);
        drop(attendants);
        self.tell_others(number);
    }

    pub fn leave(&self, number: u64) {
        let mut attendants = self.attendants();
        attendants.retain(|(other, _)| *other != number);
        self.pools.store(attendants.len(), Ordering::Relaxed);
    }

    /// Has all contexts but one look after their memory.
    pub fn tell_others(&self, number: u64) {
        let attendants = self.attendants();
        let others = attendants.iter().filter(|(other, _)| *other != number);
        others.for_each(|(_, attendant)| attendant.schedule());
    }

    fn attendants(&self) -> MutexGuard<'_, Vec<(u64, RemoteBottomHalf)>> {
        self.attendants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_half_of_what_others_leave() {
        let budget = Budget::default();
        assert!(budget.take(0, SHARED / 4) && budget.left() == SHARED / 4 * 3);
        assert!(!budget.take(SHARED / 4, SHARED / 4));
        assert!(budget.take(0, SHARED / 4));
        budget.give_back(SHARED / 2);
        assert!(budget.left() == SHARED && !budget.take(0, SHARED / 2 + 1));
    }

    #[test]
    fn takers_of_several_threads_take_no_more_than_there_is() {
        let budget = Budget::default();
        let taken = std::thread::scope(|scope| {
            let take = || (0..1000).filter(|_| budget.take(0, 1 << 20)).count();
            let threads = [scope.spawn(take), scope.spawn(take)];
            threads.map(|thread| thread.join().unwrap())
        });
        // The last one leaves as much as it takes.
        let taken = taken.iter().sum::<usize>();
        assert_eq!((taken, budget.left()), (127, 1 << 20));
    }
}
