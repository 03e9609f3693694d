//! What is in a block, so that a wrong one is noticed: its offset, the run that wrote it, how often
//! that run had written it before, and a pattern made from all three that fills the rest.
//!
//! A block that came from another offset, from an earlier write, or from two writes at once differs
//! from what is expected in the stamp or in the pattern.

use std::fmt;
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

const MAGIC: u64 = u64::from_le_bytes(*b"coblk\0v1");
/// Magic, run, offset, generation.
const STAMP_WORDS: usize = 4;
const WORD_BYTES: usize = 8;

/// Instead of a generation: a write failed, so the block may hold anything.
const LOST: u32 = u32::MAX;

/// What a block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    run: u64,
    offset: u64,
    generation: u64,
}

/// What a block is expected to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// What this run wrote last.
    Stamp(Stamp),
    /// Nothing was ever written here: zeroes.
    Zeroes,
    /// It is not known. If it carries a stamp of any run, it has to fit.
    Anything,
}

/// What a look at a block has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It holds what it should.
    Good,
    /// It was there before, and carries no stamp: nothing can be said of it.
    Unknown,
}

/// A block that does not hold what it should.
#[derive(Clone, Debug)]
pub struct Mismatch {
    offset: u64,
    expected: Expected,
    found: String,
}

/// Keeps account of what each block of the image should hold.
pub struct Verifier {
    run: u64,
    block_bytes: u64,
    /// How often this run has written each block; 0 for never, or `LOST`.
    generations: Vec<u32>,
    /// Blocks that this run has not written are zeroes.
    born_zero: bool,
}

impl Verifier {
    /// For an image of `blocks` blocks; `born_zero` if all of it reads as zeroes now.
    pub fn new(blocks: usize, block_bytes: u64, born_zero: bool) -> Verifier {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = mix(since_1970.as_nanos() as u64 ^ u64::from(process::id()).rotate_left(32));
        Verifier { run, block_bytes, generations: vec![0; blocks], born_zero }
    }

    /// Fills `data` with what is about to be written to a block. Until the write has completed,
    /// no other request may read or write that block.
    pub fn stamp_next(&mut self, block: usize, data: &mut [u8]) {
        self.generations[block] = self.generations[block].wrapping_add(1).max(1);
        fill(data, &self.stamp_of(block));
    }

    /// The write to a block has failed.
    pub fn forget(&mut self, block: usize) {
        self.generations[block] = LOST;
    }

    /// Checks what was read from a block.
    ///
    /// # Errors
    /// If it is not what was written.
    pub fn check(&self, block: usize, data: &[u8]) -> Result<Checked, Box<Mismatch>> {
        let expected = match (self.generations[block], self.born_zero) {
            (0, true) => Expected::Zeroes,
            (0, false) => Expected::Anything,
            (LOST, _) => return Ok(Checked::Unknown),
            _ => Expected::Stamp(self.stamp_of(block)),
        };
        let offset = block as u64 * self.block_bytes;
        check(data, offset, expected)
            .map_err(|found| Box::new(Mismatch { offset, expected, found }))
    }

    /// The blocks that this run has written.
    pub fn written(&self) -> impl Iterator<Item = usize> {
        let written =
            self.generations.iter().enumerate().filter(|(_, generation)| **generation > 0);
        written.map(|(block, _)| block)
    }

    fn stamp_of(&self, block: usize) -> Stamp {
        Stamp {
            run: self.run,
            offset: block as u64 * self.block_bytes,
            generation: u64::from(self.generations[block]),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block at offset {}: expected ", self.offset)?;
        match self.expected {
            Expected::Stamp(stamp) => write!(f, "write {} of this run", stamp.generation)?,
            Expected::Zeroes => write!(f, "zeroes, as it was never written")?,
            Expected::Anything => write!(f, "a block as some run wrote it")?,
        }
        write!(f, ", found {}", self.found)
    }
}

/// Checks a block; if it is wrong, says what is there.
fn check(data: &[u8], offset: u64, expected: Expected) -> Result<Checked, String> {
    let found = read_stamp(data);
    match (expected, found) {
        (Expected::Zeroes, _) if data.iter().all(|byte| *byte == 0) => Ok(Checked::Good),
        (Expected::Anything, None) => Ok(Checked::Unknown),
        (Expected::Anything, Some(stamp)) if stamp.offset == offset => check_pattern(data, &stamp),
        (Expected::Stamp(stamp), Some(found)) if stamp == found => check_pattern(data, &stamp),
        (Expected::Stamp(Stamp { run, .. }), Some(found)) if run != found.run => {
            Err(format!("a block of another run, written for offset {}", found.offset))
        }
        (_, Some(found)) => Err(format!("write {}, for offset {}", found.generation, found.offset)),
        (_, None) if data.iter().all(|byte| *byte == 0) => Err("zeroes".to_owned()),
        (_, None) => Err(format!("something else, beginning with {:02x?}", &data[..8])),
    }
}

fn check_pattern(data: &[u8], stamp: &Stamp) -> Result<Checked, String> {
    let (words, _) = data.as_chunks::<WORD_BYTES>();
    let mut expected = first_word(stamp);
    let mut differing = 0u64;
    for word in &words[STAMP_WORDS..] {
        differing |= u64::from_le_bytes(*word) ^ expected;
        expected = next_word(expected);
    }
    if differing == 0 {
        return Ok(Checked::Good);
    }
    let mut expected = first_word(stamp);
    let position = words[STAMP_WORDS..].iter().position(|word| {
        let same = u64::from_le_bytes(*word) == expected;
        expected = next_word(expected);
        !same
    });
    let byte = (position.unwrap_or(0) + STAMP_WORDS) * WORD_BYTES;
    Err(format!("its stamp, but other data from byte {byte} on"))
}

fn fill(data: &mut [u8], stamp: &Stamp) {
    let (words, _) = data.as_chunks_mut::<WORD_BYTES>();
    let (head, rest) = words.split_at_mut(STAMP_WORDS);
    for (word, value) in head.iter_mut().zip([MAGIC, stamp.run, stamp.offset, stamp.generation]) {
        *word = value.to_le_bytes();
    }
    let mut value = first_word(stamp);
    for word in rest {
        *word = value.to_le_bytes();
        value = next_word(value);
    }
}

fn read_stamp(data: &[u8]) -> Option<Stamp> {
    let (words, _) = data.as_chunks::<WORD_BYTES>();
    let word = |index: usize| words.get(index).map(|word| u64::from_le_bytes(*word));
    (word(0)? == MAGIC).then_some(())?;
    Some(Stamp { run: word(1)?, offset: word(2)?, generation: word(3)? })
}

fn first_word(stamp: &Stamp) -> u64 {
    mix(stamp.run ^ mix(stamp.offset ^ mix(stamp.generation)))
}

/// Adding an odd number: no two words of a block are alike, and a compiler can do many at once.
fn next_word(word: u64) -> u64 {
    word.wrapping_add(0x9e37_79b9_7f4a_7c15)
}

/// Spreads the bits of a number over all 64.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    value ^ (value >> 32)
}
