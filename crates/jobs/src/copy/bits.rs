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

    /// The first granule of a range whose bit is set, or is clear. Costs a load for 64 that are not meant.
    pub(crate) fn next(&self, range: Range<u64>, is_set: bool) -> Option<u64> {
        let mut at = range.start;
        while at < range.end {
            let word = self.0.get((at / 64) as usize).map_or(0, |it| it.load(Ordering::SeqCst));
            let meant = (if is_set { word } else { !word }) >> (at % 64);
            if meant != 0 {
                return Some(at + u64::from(meant.trailing_zeros())).filter(|it| *it < range.end);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Where the first granules of a range end that are like the first one.
    pub(crate) fn run_end(&self, range: &Range<u64>) -> u64 {
        self.next(range.clone(), !self.has(range.start)).unwrap_or(range.end)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_next_one_is_found_wherever_it_is() {
        let bits = GranuleBits::try_new(300).unwrap();
        let set = [0, 63, 64, 127, 130, 131, 255, 299];
        set.iter().for_each(|it| bits.set(&(*it..*it + 1), true));
        for from in 0..300 {
            for end in [from, from + 1, from + 64, 299, 300] {
                for is_set in [true, false] {
                    let slowly = (from..end.min(300)).find(|it| set.contains(it) == is_set);
                    let found = bits.next(from..end.min(300), is_set);
                    assert_eq!(found, slowly, "{from}..{end} {is_set}");
                }
            }
        }
        assert_eq!((bits.run_end(&(1..300)), bits.run_end(&(130..300))), (63, 132));
        assert_eq!(bits.run_end(&(130..131)), 131);
        let none = GranuleBits::default();
        assert_eq!((none.next(5..70, true), none.next(5..70, false)), (None, Some(5)));
    }
}
