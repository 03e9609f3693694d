//! [`ProcessBarrier`]: a memory barrier with a cheap side and a dear one.

use std::io;
use std::sync::atomic::{Ordering, compiler_fence, fence};

use libc::{c_int, c_long};

// Of linux/membarrier.h.
const PRIVATE_EXPEDITED: c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: c_int = 1 << 4;

/// A barrier between many threads that pass [`light`](Self::light) often and one that passes
/// [`heavy`](Self::heavy) now and then: what a thread did before its light side is seen behind the heavy
/// one, or the thread sees behind its light side what was done before the heavy one. It orders as two
/// sequentially consistent fences do. Any thread.
///
/// The heavy side interrupts the threads of the process that run (membarrier(2)), so the light side costs no
/// instruction. Where the kernel has no such call both sides are fences.
#[derive(Debug)]
pub struct ProcessBarrier {
    is_expedited: bool,
}

impl ProcessBarrier {
    /// A barrier. Registers the process with the kernel.
    pub fn new() -> ProcessBarrier {
        ProcessBarrier { is_expedited: membarrier(REGISTER_PRIVATE_EXPEDITED).is_ok() }
    }

    /// The side of the many.
    #[inline(always)]
    pub fn light(&self) {
        match self.is_expedited {
            true => compiler_fence(Ordering::SeqCst),
            false => fence(Ordering::SeqCst),
        }
    }

    /// The side of the one. `false` if the kernel refuses, and there was no barrier.
    #[must_use]
    pub fn heavy(&self) -> bool {
        fence(Ordering::SeqCst);
        let pass = || membarrier(PRIVATE_EXPEDITED);
        // A process that was forked off since may have to be registered again.
        let again = |_| membarrier(REGISTER_PRIVATE_EXPEDITED).and_then(|()| pass());
        !self.is_expedited || pass().or_else(again).is_ok()
    }
}

impl Default for ProcessBarrier {
    fn default() -> Self {
        Self::new()
    }
}

fn membarrier(command: c_int) -> io::Result<()> {
    // SAFETY: no memory is involved; the call takes two numbers besides the command, which are 0.
    let result: c_long = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    /// Each side says that it is there, and then looks for the other: one of the two sees it.
    fn check(barrier: &ProcessBarrier) {
        let [light, heavy, light_saw] = [const { AtomicBool::new(false) }; 3];
        let turn = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2000 {
                    turn.wait();
                    light.store(true, Ordering::Relaxed);
                    barrier.light();
                    light_saw.store(heavy.load(Ordering::Relaxed), Ordering::Relaxed);
                    turn.wait();
                }
            });
            for round in 0..2000 {
                light.store(false, Ordering::Relaxed);
                heavy.store(false, Ordering::Relaxed);
                turn.wait();
                heavy.store(true, Ordering::Relaxed);
                assert!(barrier.heavy());
                let saw = light.load(Ordering::Relaxed);
                turn.wait();
                assert!(saw || light_saw.load(Ordering::Relaxed), "neither, in round {round}");
            }
        });
    }

    #[test]
    fn one_of_two_sides_sees_the_other() {
        check(&ProcessBarrier::new());
    }

    #[test]
    fn without_the_system_call_both_sides_are_fences() {
        check(&ProcessBarrier { is_expedited: false });
    }

    #[test]
    fn the_kernel_has_the_call() {
        assert!(ProcessBarrier::new().is_expedited);
    }
}
