//! [`Bounces`]: memory that copies go through, kept for the next copy. New memory costs a fault a page.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk_aio::AlignedBuffer;

/// Bytes that are kept at most.
const MAX_KEPT: usize = 8 << 20;

/// Buffers that no copy has, 8 MiB at most. Any thread.
#[derive(Default)]
pub(super) struct Bounces(Mutex<Vec<AlignedBuffer>>);

impl Bounces {
    fn free(&self) -> MutexGuard<'_, Vec<AlignedBuffer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `bytes` bytes or more, with any contents.
    pub(super) fn take(&self, bytes: usize, alignment: usize) -> io::Result<AlignedBuffer> {
        let fits = |buffer: &AlignedBuffer| {
            buffer.len() >= bytes && buffer.as_ptr().addr().is_multiple_of(alignment)
        };
        let mut free = self.free();
        if let Some(at) = free.iter().position(fits) {
            return Ok(free.swap_remove(at));
        }
        drop(free);
        AlignedBuffer::new(bytes, alignment)
    }

    /// Has it kept, if there are not enough.
    pub(super) fn give_back(&self, buffer: AlignedBuffer) {
        let mut free = self.free();
        if free.iter().map(|buffer| buffer.len()).sum::<usize>() + buffer.len() <= MAX_KEPT {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_fits_is_used_again() {
        let bounces = Bounces::default();
        let buffer = bounces.take(65536, 4096).unwrap();
        let at = buffer.as_ptr();
        bounces.give_back(buffer);
        assert_ne!(bounces.take(131_072, 4096).unwrap().as_ptr(), at);
        assert_eq!(bounces.take(512, 512).unwrap().as_ptr(), at);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let bounces = Bounces::default();
        let taken: Vec<_> = (0..20).map(|_| bounces.take(1 << 20, 4096).unwrap()).collect();
        taken.into_iter().for_each(|buffer| bounces.give_back(buffer));
        assert_eq!(bounces.free().len(), 8);
    }
}
