//! Reads from the page cache in place (design decision D14).
//!
//! What is in the page cache can be read without waiting, and then the hand-over to a worker costs
//! more than the read. So a small buffered read is first tried with `RWF_NOWAIT` on the loop's own
//! thread. A file that turns out to be cold is tried ever more rarely, so that it does not pay for
//! attempts in vain.
//!
//! A ring takes many reads in one system call, which is cheaper from some number on. So where there is
//! one, small turns of the loop try, and large ones leave their reads to the ring. A turn that is half and
//! half is the worst of both, so it is the size of the last turn that decides.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use coblk_aio::{AioContext, IoVectorMut, sys, trace_event};

/// Longest read that may hold up the loop for the time of its copy.
const MAX_BYTES: usize = 64 << 10;
/// Where there is a ring: up to how many reads in a turn of the loop are tried, and in a batch of a device four
/// times as many; docs/performance.md has the measurements.
pub(super) const MAX_BEFORE_RING: u32 = 32;
/// At most one read in `1 << MAX_BACKOFF` is tried on a cold file.
const MAX_BACKOFF: u32 = 6;

/// Whether to try, learned from how it went.
#[derive(Debug)]
pub(super) struct InPlace {
    /// Misses in a row, up to `MAX_BACKOFF`.
    misses: AtomicU32,
    /// Reads to let pass before the next attempt.
    pass: AtomicU32,
}

impl InPlace {
    pub(super) fn new() -> InPlace {
        InPlace { misses: AtomicU32::new(0), pass: AtomicU32::new(0) }
    }

    /// Reads all of `target` from the page cache, or says that a worker or the ring has to. A turn of the
    /// loop tries up to `max_a_turn` reads.
    #[inline]
    pub(super) fn read(
        &self,
        ctx: &AioContext,
        max_a_turn: u32,
        file: BorrowedFd<'_>,
        target: &mut IoVectorMut<'_>,
        offset: u64,
    ) -> bool {
        let is_tried =
            target.len() <= MAX_BYTES && !self.lets_pass() && ctx.may_hold_up_turn(max_a_turn);
        if !is_tried {
            return false;
        }
        match sys::preadv_nowait(file, target, offset) {
            Ok(bytes) if bytes == target.len() => {
                trace_event!("file_read_in_place", offset, bytes);
                // Several contexts may write these hints at once; a lost one does not matter.
                if self.misses.load(Ordering::Relaxed) > 0 {
                    self.misses.store(0, Ordering::Relaxed);
                }
                true
            }
            // A part of it, or nothing: whatever there is to say of it, the full read says it.
            Ok(_) => self.miss(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(_) => self.miss(),
        }
    }

    #[inline]
    fn lets_pass(&self) -> bool {
        let pass = self.pass.load(Ordering::Relaxed);
        if pass > 0 {
            self.pass.store(pass - 1, Ordering::Relaxed);
        }
        pass > 0
    }

    #[cold]
    fn miss(&self) -> bool {
        let misses = (self.misses.load(Ordering::Relaxed) + 1).min(MAX_BACKOFF);
        self.misses.store(misses, Ordering::Relaxed);
        self.pass.store((1 << misses) - 1, Ordering::Relaxed);
        false
    }
}
