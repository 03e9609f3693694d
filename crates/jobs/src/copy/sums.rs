//! [`Sums`]: CRC-32C of what was read, by granules, to tell whether a copy has the same.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::bits::GranuleBits;
use super::piece::Scratch;

/// The sums of granules that were read. Any thread; one at a time notes a granule, which it has claimed.
pub(crate) struct Sums {
    /// Bytes a granule.
    granularity: u64,
    /// Bytes of all.
    length: u64,
    sums: Box<[AtomicU32]>,
    known: GranuleBits,
}

/// Granules in a row with one sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SumRun {
    /// Where they begin, in bytes.
    pub(crate) offset: u64,
    /// How many there are.
    pub(crate) granules: u64,
    pub(crate) sum: u32,
}

impl Sums {
    /// # Errors
    /// Without memory.
    pub(crate) fn try_new(length: u64, granularity: u64) -> io::Result<Sums> {
        let count = length.div_ceil(granularity);
        let mut sums = Vec::new();
        sums.try_reserve_exact(count as usize)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        sums.resize_with(count as usize, || AtomicU32::new(0));
        let known = GranuleBits::try_new(count)?;
        Ok(Sums { granularity, length, sums: sums.into(), known })
    }

    fn count(&self) -> u64 {
        self.sums.len() as u64
    }

    /// Bytes a granule.
    pub(crate) fn granularity(&self) -> u64 {
        self.granularity
    }

    /// Bytes of all.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    fn bytes_of(&self, granules: &Range<u64>) -> Range<u64> {
        granules.start * self.granularity..(granules.end * self.granularity).min(self.length)
    }

    /// Notes whole granules, as they were read. The first reading counts: what a later one finds, of bytes that were
    /// kept elsewhere meanwhile, has to be the same.
    pub(crate) fn note(&self, range: &Range<u64>, read: &Scratch) {
        for granule in range.start / self.granularity..range.end.div_ceil(self.granularity) {
            if self.known.has(granule) {
                continue;
            }
            let bytes = self.bytes_of(&(granule..granule + 1));
            let sum = read.crc32c(range.start, &bytes);
            self.sums[granule as usize].store(sum, Ordering::Relaxed);
            self.known.set(&(granule..granule + 1), true);
        }
    }

    /// The first bytes behind `at` that were noted, up to `most`, or a granule.
    pub(crate) fn next(&self, at: u64, most: u64) -> Option<Range<u64>> {
        let first = self.known.next(at.div_ceil(self.granularity)..self.count(), true)?;
        let limit = (first + (most / self.granularity).max(1)).min(self.count());
        Some(self.bytes_of(&(first..self.known.run_end(&(first..limit)))))
    }

    /// Where bytes that begin with a granule, at `offset`, are not those that were read.
    pub(crate) fn first_difference(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let granules = bytes.chunks(self.granularity as usize);
        let sums = &self.sums[(offset / self.granularity) as usize..];
        let differs = |(granule, sum): (&[u8], &AtomicU32)| {
            crc32c::crc32c(granule) != sum.load(Ordering::Relaxed)
        };
        let place = granules.zip(sums).position(differs)?;
        Some(offset + place as u64 * self.granularity)
    }

    /// All that were noted, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = SumRun> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = self.known.next(next..self.count(), true)?;
            let of = |granule: u64| self.sums[granule as usize].load(Ordering::Relaxed);
            let sum = of(first);
            let same = |it: &u64| self.known.has(*it) && of(*it) == sum;
            next = first + (first..self.count()).take_while(same).count() as u64;
            let offset = first * self.granularity;
            Some(SumRun { offset, granules: next - first, sum })
        })
    }
}
