//! [`Coverage`]: which bytes of a read have come.

use std::ops::Range;

use smallvec::SmallVec;

/// Pieces that do not touch. A server cuts a read at the borders of its extents, and sends them in order.
const MAX_PIECES: usize = 1024;

/// The bytes of a read that chunks have brought. Chunks come in any order, and never twice.
#[derive(Default)]
pub struct Coverage {
    /// Sorted; they neither overlap nor touch.
    pieces: SmallVec<[Range<u64>; 2]>,
}

impl Coverage {
    /// Adds a range that is not empty. False if a part of it has come before, or there are too many pieces.
    #[must_use]
    pub fn add(&mut self, range: Range<u64>) -> bool {
        let at = self.pieces.partition_point(|piece| piece.end < range.start);
        let Some(next) = self.pieces.get_mut(at) else {
            self.pieces.push(range);
            return self.pieces.len() <= MAX_PIECES;
        };
        if next.end == range.start {
            next.end = range.end;
            let end = next.end;
            return match self.pieces.get(at + 1) {
                Some(after) if after.start < end => false,
                Some(after) if after.start == end => {
                    let after = self.pieces.remove(at + 1);
                    self.pieces[at].end = after.end;
                    true
                }
                _ => true,
            };
        }
        if next.start < range.end {
            return false;
        }
        if next.start == range.end {
            next.start = range.start;
        } else {
            self.pieces.insert(at, range);
        }
        self.pieces.len() <= MAX_PIECES
    }

    /// Whether all of a range has come.
    pub fn is_all(&self, range: Range<u64>) -> bool {
        self.pieces.as_slice() == [range]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_in_any_order_is_all_and_no_byte_comes_twice() {
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = [false; 24];
            let mut coverage = Coverage::default();
            while bytes.contains(&false) {
                let start = random.usize(..bytes.len());
                let range = start..random.usize(start + 1..=bytes.len());
                let is_new = !bytes[range.clone()].contains(&true);
                let mut next = Coverage { pieces: coverage.pieces.clone() };
                assert_eq!(next.add(range.start as u64..range.end as u64), is_new, "seed {seed}");
                if is_new {
                    bytes[range].fill(true);
                    coverage = next;
                }
                assert_eq!(coverage.is_all(0..24), !bytes.contains(&false), "seed {seed}");
            }
        }
    }

    #[test]
    fn pieces_are_bounded() {
        let mut coverage = Coverage::default();
        let taken = (0..5000).take_while(|at| coverage.add(at * 2..at * 2 + 1)).count();
        assert_eq!(taken, MAX_PIECES);
    }
}
