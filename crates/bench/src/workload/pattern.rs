//! Which request comes next: fio's `rw=`.

use std::io;
use std::str::FromStr;

/// fio's words for the kind and order of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadWrite {
    /// Reads, one after the other.
    Read,
    /// Writes, one after the other.
    Write,
    /// Reads anywhere.
    RandRead,
    /// Writes anywhere.
    RandWrite,
    /// Reads and writes, one after the other.
    Rw,
    /// Reads and writes anywhere.
    RandRw,
}

impl ReadWrite {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            ReadWrite::Read => "read",
            ReadWrite::Write => "write",
            ReadWrite::RandRead => "randread",
            ReadWrite::RandWrite => "randwrite",
            ReadWrite::Rw => "rw",
            ReadWrite::RandRw => "randrw",
        }
    }

    /// Whether it writes.
    pub fn writes(self) -> bool {
        !matches!(self, ReadWrite::Read | ReadWrite::RandRead)
    }

    fn is_random(self) -> bool {
        matches!(self, ReadWrite::RandRead | ReadWrite::RandWrite | ReadWrite::RandRw)
    }
}

impl FromStr for ReadWrite {
    type Err = String;

    fn from_str(word: &str) -> Result<ReadWrite, String> {
        let all = [
            ReadWrite::Read,
            ReadWrite::Write,
            ReadWrite::RandRead,
            ReadWrite::RandWrite,
            ReadWrite::Rw,
            ReadWrite::RandRw,
        ];
        let found = all.into_iter().find(|it| it.name() == word);
        found.ok_or_else(|| format!("'{word}' is none of {}", all.map(ReadWrite::name).join(", ")))
    }
}

/// Kind and order, and the share of reads where there are both.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// Kind and order.
    pub kind: ReadWrite,
    /// Of 100 requests of a mix, how many are reads.
    pub read_percent: u8,
}

/// What one request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// Says which request comes next.
pub(super) struct Offsets {
    pattern: Pattern,
    blocks: u64,
    block_bytes: u64,
    next_block: u64,
    /// Blocks from the beginning of a request to that of the next.
    step: u64,
    random: u64,
}

impl Offsets {
    pub(super) fn new(
        pattern: Pattern,
        range_bytes: u64,
        block_bytes: u64,
        seed: u64,
    ) -> io::Result<Offsets> {
        let blocks = range_bytes.checked_div(block_bytes).unwrap_or(0);
        if blocks == 0 {
            let message = format!("a request of {block_bytes} bytes does not fit {range_bytes}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // Spread, so that neighbouring seeds do not begin alike; and a xorshift must not be 0.
        let random = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        Ok(Offsets { pattern, blocks, block_bytes, next_block: 0, step: 1, random })
    }

    /// Those that go one after the other are so many bytes apart, of which whole blocks count.
    pub(super) fn with_step(self, bytes: u64) -> Offsets {
        let step = (bytes / self.block_bytes).clamp(1, self.blocks);
        Offsets { step, ..self }
    }

    #[inline]
    pub(super) fn next(&mut self) -> (Kind, u64) {
        let block = if self.pattern.kind.is_random() {
            self.random_below(self.blocks)
        } else {
            let block = self.next_block;
            // Wraps at the end, as `qemu-img bench` does.
            let next = block + self.step;
            self.next_block = if next >= self.blocks { next - self.blocks } else { next };
            block
        };
        (self.kind(), block * self.block_bytes)
    }

    #[inline]
    fn kind(&mut self) -> Kind {
        let read = match self.pattern.kind {
            ReadWrite::Read | ReadWrite::RandRead => true,
            ReadWrite::Write | ReadWrite::RandWrite => false,
            _ => self.random_below(100) < u64::from(self.pattern.read_percent),
        };
        if read { Kind::Read } else { Kind::Write }
    }

    #[inline]
    fn random_below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The high half of a product: as even as the modulus, without a division.
        ((u128::from(self.random) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(kind: ReadWrite, range_bytes: u64) -> Offsets {
        Offsets::new(Pattern { kind, read_percent: 70 }, range_bytes, 4096, 7).unwrap()
    }

    #[test]
    fn fio_words() {
        assert_eq!("randrw".parse(), Ok(ReadWrite::RandRw));
        assert_eq!("read".parse(), Ok(ReadWrite::Read));
        let message = "trim".parse::<ReadWrite>().unwrap_err();
        assert!(message.contains("'trim' is none of read, write,"));
    }

    #[test]
    fn sequential_wraps() {
        let mut offsets = offsets(ReadWrite::Write, 3 * 4096 + 17);
        let all: Vec<_> = (0..5).map(|_| offsets.next()).collect();
        assert_eq!(all.iter().map(|it| it.1 / 4096).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
        assert!(all.iter().all(|it| it.0 == Kind::Write));
    }

    #[test]
    fn steps_wrap_too() {
        let mut offsets = offsets(ReadWrite::Write, 5 * 4096).with_step(2 * 4096 + 17);
        let all: Vec<_> = (0..6).map(|_| offsets.next().1 / 4096).collect();
        assert_eq!(all, [0, 2, 4, 1, 3, 0]);
    }

    #[test]
    fn random_stays_inside_and_mixes() {
        let mut offsets = offsets(ReadWrite::RandRw, 64 * 4096);
        let all: Vec<_> = (0..10_000).map(|_| offsets.next()).collect();
        assert!(all.iter().all(|it| it.1 < 64 * 4096 && it.1 % 4096 == 0));
        let reads = all.iter().filter(|it| it.0 == Kind::Read).count();
        assert!((6500..7500).contains(&reads), "{reads}");
        let first_block = all.iter().filter(|it| it.1 == 0).count();
        assert!((80..240).contains(&first_block), "{first_block}");
    }
}
