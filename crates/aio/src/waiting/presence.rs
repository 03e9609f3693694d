//! How many threads of the process are awake, and how many CPUs there are for them.
//!
//! A thread is counted from its first wake-up, and while it does not sleep. It is awake if it works, and if it
//! spins; so a spinning thread has a CPU of its own as long as no more threads are awake than there are CPUs.
//! The count changes with a sleep alone, which is a system call anyway. A thread that waits inside a call
//! for a disk is counted as well: then fewer spin than might.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::sys;

/// Threads that are awake, and the CPUs that they may run on.
pub(super) struct Crowd {
    awake: AtomicUsize,
    /// 0 as long as it is not known.
    cpus: AtomicUsize,
}

/// The threads of this process that wait by the rule.
pub(super) static HERE: Crowd = Crowd::new();

/// The union of what the threads may run on. A thread that is tied to one CPU later leaves the others
/// in it.
static ALLOWED: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

impl Crowd {
    pub(super) const fn new() -> Crowd {
        Crowd { awake: AtomicUsize::new(0), cpus: AtomicUsize::new(0) }
    }

    #[cfg(test)]
    pub(super) fn of(awake: usize, cpus: usize) -> Crowd {
        Crowd { awake: AtomicUsize::new(awake), cpus: AtomicUsize::new(cpus) }
    }

    /// Whether each thread that is awake can have a CPU.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.awake.load(Ordering::Relaxed) <= self.cpus.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn wakes(&self) {
        self.awake.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    fn sleeps(&self) {
        self.awake.fetch_sub(1, Ordering::Relaxed);
    }

    /// The calling thread's CPUs are among those there are.
    fn join(&self) {
        // Where the kernel does not tell, there is no spinning beside another thread.
        let Ok(sys::CpuSet(own)) = sys::allowed_cpus() else {
            let _ = self.cpus.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
            return;
        };
        let words = ALLOWED.iter().zip(own);
        let all = words.map(|(word, own)| word.fetch_or(own, Ordering::Relaxed) | own);
        let cpus = all.map(|word| word.count_ones() as usize).sum();
        self.cpus.fetch_max(cpus, Ordering::Relaxed);
    }
}

/// One thread in the count. Belongs to that thread.
#[derive(Debug)]
pub(crate) struct Presence {
    counted: Cell<bool>,
}

impl Presence {
    /// The calling thread's. Not counted before it [wakes](Self::wakes) once: it may be a thread that has made
    /// a context and waits elsewhere.
    pub(crate) fn new() -> Presence {
        HERE.join();
        Presence { counted: Cell::new(false) }
    }

    /// It is about to sleep. Once is enough.
    #[inline]
    pub(crate) fn sleeps(&self) {
        if self.counted.replace(false) {
            HERE.sleeps();
        }
    }

    /// It is awake again. Once is enough.
    #[inline]
    pub(crate) fn wakes(&self) {
        if !self.counted.replace(true) {
            HERE.wakes();
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.sleeps();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_threads_spin_than_there_are_cpus() {
        assert!(
            Crowd::of(1, 1).has_room(),
            "a thread on the only CPU takes it from no other of ours"
        );
        assert!(!Crowd::of(2, 1).has_room());
        assert!(Crowd::of(4, 4).has_room() && !Crowd::of(5, 4).has_room());
    }

    #[test]
    fn a_thread_is_counted_once_while_it_is_awake() {
        // Other tests of this process are counted too, so one thread's own share is looked at.
        let presence = Presence::new();
        assert!(!presence.counted.get(), "it has not slept yet");
        assert!(HERE.cpus.load(Ordering::Relaxed) > 0);
        for counted in [true, false] {
            for _ in 0..2 {
                if counted {
                    presence.wakes()
                } else {
                    presence.sleeps()
                }
                assert_eq!(presence.counted.get(), counted);
            }
        }
    }
}
