//! [`Epochs`]: how long a freed cluster may still be in use by requests that have found it before.
//!
//! A request pins the image from its look-up to the end of the I/O that comes of it. The pin is counted in a
//! cell of the request's context, under the parity of the epoch that the request has seen: a load and a store
//! of memory that no other thread writes. To advance, one thread passes the heavy side of a barrier, and then
//! looks whether pins of the parity before this one are left anywhere. If there are none, the next epoch begins.
//!
//! # Why two advances are a grace
//!
//! An entry is unlinked, and then the epoch advances twice. A pin that was counted before a heavy barrier is
//! seen behind it, so both parities were seen without any pin from before the unlinking. A pin that is counted
//! later finds the entry unlinked, even one with a parity that is old by then: it passes the light side of the
//! barrier between its count and its look-up.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::sys::ProcessBarrier;
use coblk_aio::{Co, PerContext};

/// Pins of a context, by parity. Only the thread of the context writes them.
#[derive(Default)]
struct Cell {
    pins: [AtomicU64; 2],
}

/// Counts the requests that may use what was found in an image. Any thread.
pub(crate) struct Epochs {
    epoch: AtomicU64,
    cells: PerContext<Cell>,
    barrier: ProcessBarrier,
}

/// What was found in an image is not reused while this is there. It belongs to the thread of its context.
pub(crate) struct Pin<'a> {
    pins: &'a AtomicU64,
    _not_send: PhantomData<*const ()>,
}

impl Epochs {
    pub(crate) fn new() -> Epochs {
        let barrier = ProcessBarrier::new();
        Epochs { epoch: AtomicU64::new(0), cells: PerContext::new(), barrier }
    }

    /// Begins to use what look-ups find from here on.
    #[inline]
    pub(crate) fn pin<'a>(&'a self, co: &'a Co<'_>) -> Pin<'a> {
        let parity = self.epoch.load(Ordering::Relaxed) & 1;
        let pins = &self.cells.get(co.context()).pins[parity as usize];
        pins.store(pins.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.barrier.light();
        Pin { pins, _not_send: PhantomData }
    }

    /// Begins the next epoch, unless pins of the one before this are left. What was unlinked before two
    /// advances is used by no request. One caller at a time: under the lock of what is unlinked.
    pub(crate) fn try_advance(&self) -> bool {
        if !self.barrier.heavy() {
            return false;
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        let before = ((epoch + 1) & 1) as usize;
        // What the requests have read was read before their pins went.
        let is_left = self.cells.iter().any(|cell| cell.pins[before].load(Ordering::Acquire) != 0);
        if !is_left {
            self.epoch.store(epoch + 1, Ordering::Relaxed);
        }
        !is_left
    }
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        self.pins.store(self.pins.load(Ordering::Relaxed) - 1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use coblk_aio::AioContext;

    use super::*;

    #[test]
    fn q188_a_pin_holds_back_the_second_advance() {
        let ctx = AioContext::for_test().unwrap();
        ctx.run(|co| {
            let epochs = Epochs::new();
            assert!(epochs.try_advance());
            let pin = epochs.pin(co);
            // Pins of this epoch do not hold back its end, and those that begin later nothing.
            assert!(epochs.try_advance());
            let later = epochs.pin(co);
            assert!(!epochs.try_advance());
            drop(pin);
            assert!(epochs.try_advance());
            assert!(!epochs.try_advance());
            drop(later);
            assert!(epochs.try_advance() && epochs.try_advance());
        });
    }

    #[test]
    fn q188_a_pin_of_another_context_counts() {
        let ctx = AioContext::for_test().unwrap();
        ctx.run(|co| {
            let epochs = Epochs::new();
            let pin = epochs.pin(co);
            assert!(thread::scope(|scope| scope.spawn(|| epochs.try_advance()).join().unwrap()));
            assert!(!thread::scope(|scope| scope.spawn(|| epochs.try_advance()).join().unwrap()));
            drop(pin);
        });
    }

    /// Readers find a cluster by an entry and use it; a writer moves the entry from cluster to cluster, and
    /// takes each again two advances after it was unlinked.
    #[test]
    fn q188_no_reader_meets_another_owner() {
        const CLUSTERS: u64 = 64;
        let (epochs, entry, is_over) = (Epochs::new(), AtomicU64::new(0), AtomicBool::new(false));
        let owners: Vec<AtomicU64> = (0..CLUSTERS).map(|_| AtomicU64::new(0)).collect();
        let faults = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let ctx = AioContext::for_test().unwrap();
                    ctx.run(|co| {
                        while !is_over.load(Ordering::Relaxed) {
                            let _pin = epochs.pin(co);
                            let found = entry.load(Ordering::Acquire);
                            let owner = &owners[(found % CLUSTERS) as usize];
                            for _ in 0..20 {
                                let owner = owner.load(Ordering::Relaxed);
                                if owner != found / CLUSTERS {
                                    faults.lock().unwrap().push((found, owner));
                                }
                            }
                        }
                    });
                });
            }
            let (mut free, mut lists) = ((1..CLUSTERS).collect::<Vec<_>>(), [vec![], vec![]]);
            let mut linked = 0;
            for owner in 1..20_000 {
                while free.is_empty() {
                    if epochs.try_advance() {
                        let [fresh, old] = &mut lists;
                        free.append(old);
                        std::mem::swap(fresh, old);
                    } else {
                        thread::yield_now();
                    }
                }
                let cluster = free.swap_remove(owner as usize % free.len());
                owners[cluster as usize].store(owner, Ordering::Relaxed);
                entry.store(owner * CLUSTERS + cluster, Ordering::Release);
                lists[0].push(linked);
                linked = cluster;
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(*faults.lock().unwrap(), []);
    }
}
