//! Where a thread runs.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys;

/// No CPU has that number.
const NOWHERE: u32 = u32::MAX;

/// The CPU that a thread ran on when it last said so. Read and written without a read-modify-write; an old
/// answer costs time and nothing else.
#[derive(Debug)]
pub(crate) struct Place(AtomicU32);

impl Place {
    /// One that no thread has published yet. It is nowhere.
    pub(crate) const fn new() -> Place {
        Place(AtomicU32::new(NOWHERE))
    }

    /// Publishes the CPU of the calling thread.
    #[inline]
    pub(crate) fn publish(&self) {
        self.set(sys::current_cpu());
    }

    /// Whether the thread that published last did so on the CPU that the calling thread runs on now.
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        self.is(sys::current_cpu())
    }

    /// [`is_here`](Self::is_here), and if so, it is nowhere from now on.
    #[inline]
    pub(crate) fn take_if_here(&self) -> bool {
        let is_here = self.is_here();
        if is_here {
            self.set(NOWHERE);
        }
        is_here
    }

    #[inline]
    fn set(&self, cpu: u32) {
        // Others read it while they spin: the line is not taken from them for nothing.
        if self.0.load(Ordering::Relaxed) != cpu {
            self.0.store(cpu, Ordering::Relaxed);
        }
    }

    #[inline]
    fn is(&self, cpu: u32) -> bool {
        cpu != NOWHERE && self.0.load(Ordering::Relaxed) == cpu
    }

    /// A place as if a thread had published that CPU.
    #[cfg(test)]
    pub(crate) fn on(cpu: u32) -> Place {
        let place = Place::new();
        place.set(cpu);
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_that_of_the_last_publisher() {
        let place = Place::new();
        assert!(!place.is(0) && !place.is(NOWHERE), "not published yet");
        place.set(3);
        assert!(place.is(3) && !place.is(0));
        place.set(0);
        assert!(place.is(0) && !place.is(3));
        place.set(NOWHERE);
        assert!(!place.take_if_here());
        let taken = (0..100).filter(|_| {
            place.publish();
            let taken = place.take_if_here();
            assert!(!taken || !place.is_here(), "taken once");
            taken
        });
        assert!(taken.count() > 50, "but for those in which this thread is moved in the middle");
        // A thread that is not told where it runs does not take another one for its neighbour.
        place.set(NOWHERE);
        assert!(!place.is(NOWHERE));
    }
}
