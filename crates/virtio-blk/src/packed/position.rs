//! Places in a packed ring: [`Position`].

use virtio_bindings::virtio_ring::{VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED};

const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
/// Of the 16 bits of a position, the one that holds the wrap counter.
const WRAP: u16 = 1 << 15;

/// A descriptor of the ring, and the wrap counter of the side that comes to it. It says which marks a
/// descriptor has there that is available, or used, in this round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u16,
    pub(crate) wrap: bool,
}

impl Position {
    /// Where both sides of a new ring begin.
    pub(crate) const START: Position = Position { index: 0, wrap: true };

    /// From 16 bits: the index, and the wrap counter above it.
    pub(crate) fn from_bits(bits: u16) -> Position {
        Position { index: bits & !WRAP, wrap: bits & WRAP != 0 }
    }

    pub(crate) fn bits(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// `count` descriptors on, at most `size` of them.
    #[inline]
    pub(crate) fn advance(self, count: u16, size: u16) -> Position {
        let index = self.index + count;
        if index >= size {
            return Position { index: index - size, wrap: !self.wrap };
        }
        Position { index, ..self }
    }

    /// `count` descriptors back, at most `size` of them.
    pub(crate) fn go_back(self, count: u16, size: u16) -> Position {
        // As far from the other end, a round before.
        let forward = Position { wrap: !self.wrap, ..self };
        forward.advance(size - count, size)
    }

    /// How many descriptors lie between `earlier` and this; `None` if more than there are.
    pub(crate) fn distance_from(self, earlier: Position, size: u16) -> Option<u16> {
        if self.wrap == earlier.wrap {
            return self.index.checked_sub(earlier.index);
        }
        let distance = (size - earlier.index).checked_add(self.index)?;
        (distance <= size).then_some(distance)
    }

    /// Whether the driver has made a descriptor with these flags available here.
    #[inline]
    pub(crate) fn is_available(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.available_marks()
    }

    /// Whether the device has used a descriptor with these flags here.
    pub(crate) fn is_used(self, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.used_marks()
    }

    #[inline]
    pub(crate) fn available_marks(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    #[inline]
    pub(crate) fn used_marks(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }

    /// Whether a descriptor with these flags was used or made available after a round at least.
    pub(crate) fn has_used_mark(flags: u16) -> bool {
        flags & USED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_forth_and_back_and_their_distance_agree() {
        for size in [1, 4, 7, 32768] {
            for index in [0, 1, size / 2, size - 1] {
                for wrap in [false, true] {
                    let at = Position { index: index.min(size - 1), wrap };
                    assert_eq!(Position::from_bits(at.bits()), at);
                    for count in [0, 1, size / 2, size] {
                        let count = count.min(size);
                        let there = at.advance(count, size);
                        assert!(there.index < size);
                        assert_eq!(there.go_back(count, size), at, "{count} of {size} from {at:?}");
                        assert_eq!(there.distance_from(at, size), Some(count));
                    }
                }
            }
        }
        let (low, high) = (Position { index: 2, wrap: true }, Position { index: 3, wrap: true });
        assert_eq!(low.distance_from(high, 8), None);
        assert_eq!(Position { wrap: false, ..high }.distance_from(low, 8), None);
    }

    #[test]
    fn c92_a_descriptor_is_available_or_used_in_one_round_alone() {
        for wrap in [false, true] {
            let (at, other) = (Position { index: 0, wrap }, Position { index: 0, wrap: !wrap });
            for rest in [0, 7] {
                let (available, used) = (at.available_marks() | rest, at.used_marks() | rest);
                assert!(at.is_available(available) && !at.is_used(available));
                assert!(at.is_used(used) && !at.is_available(used));
                assert!(!other.is_available(available) && !other.is_used(used));
                assert!(!other.is_available(used) && !other.is_used(available));
            }
        }
    }
}
