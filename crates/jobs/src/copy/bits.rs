//! [`GranuleBits`]: a bit a granule. Any thread.

use std::io;
use std::ops::Range;

use super::atomics::{AtomicU64, Ordering};

/// A bit for each of so many granules, all clear at first. Of none, each is clear.
#[derive(Default)]
pub(crate) struct GranuleBits(Box<[AtomicU64]>);

impl GranuleBits {
    /// # Errors
    /// Without memory.
    pub(crate) fn try_new(count: u64) -> io::Result<GranuleBits> {
        let words = count.div_ceil(64) as usize;
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        bits.resize_with(words, || AtomicU64::new(0));
        Ok(GranuleBits(bits.into()))
    }

    /// Sets the bits of a range, or clears them.
    pub(crate) fn set(&self, range: &Range<u64>, is_set: bool) {
        for granule in range.clone() {
            let (word, bit) = (&self.0[(granule / 64) as usize], 1 << (granule % 64));
            match is_set {
                true => word.fetch_or(bit, Ordering::SeqCst),
                false => word.fetch_and(!bit, Ordering::SeqCst),
            };
        }
    }

    pub(crate) fn has(&self, granule: u64) -> bool {
        let word = self.0.get((granule / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::SeqCst) >> (granule % 64) & 1 != 0)
    }

    /// Where the first granules of a range end that are like the first one.
    pub(crate) fn run_end(&self, range: &Range<u64>) -> u64 {
        let first = self.has(range.start);
        range.clone().find(|granule| self.has(*granule) != first).unwrap_or(range.end)
    }
}
