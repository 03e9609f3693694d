//! The last range that the file system said holds data: readers of whole images ask piece by piece.
//!
//! `SEEK_HOLE` is not cheap: tmpfs walks all pages up to the next hole, and the kernel holds the lock
//! of the file's position meanwhile. The invariant: a range is remembered only as long as nothing that
//! this node did since it was seen can have made a hole or zeroes of it. Another process can, and then
//! the answer is "data" where a read finds zeroes, which is what a file system without holes says of
//! everything. Holes are never remembered: any write makes data of them.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Data that is known, and how often that was put in doubt. Any thread.
#[derive(Debug, Default)]
pub(super) struct KnownData {
    known: Mutex<Known>,
    looking: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// Empty if none is known.
    data: Range<u64>,
    /// Changes of holes so far, to tell answers that were asked for before one.
    changes: u64,
}

/// Taken before the file system is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked(u64);

impl KnownData {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of the data that `offset` is in, if that is known.
    pub(super) fn end_of(&self, offset: u64) -> Option<u64> {
        let known = self.lock();
        known.data.contains(&offset).then_some(known.data.end)
    }

    /// Held while the file system is asked. What had to wait for it looks here first: a copy that begins asks
    /// for many pieces at once, and the first answer may be theirs too.
    pub(super) fn look(&self) -> MutexGuard<'_, ()> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Call it before the file system is asked.
    pub(super) fn ask(&self) -> Asked {
        Asked(self.lock().changes)
    }

    /// The file system's answer: data. Dropped if a hole may have been made since `asked`.
    pub(super) fn remember(&self, asked: Asked, data: Range<u64>) {
        let mut known = self.lock();
        if Asked(known.changes) != asked {
            return;
        }
        let touches = data.start <= known.data.end && known.data.start <= data.end;
        known.data = match touches {
            true => data.start.min(known.data.start)..data.end.max(known.data.end),
            false => data,
        };
    }

    /// `range` may hold no data any more. Call it after the change, also after a failed one: an answer
    /// from within the change is dropped too.
    pub(super) fn forget(&self, range: Range<u64>) {
        let mut known = self.lock();
        known.changes += 1;
        if range.start < known.data.end && known.data.start < range.end {
            known.data = 0..0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_known_up_to_its_end_and_joins_what_it_touches() {
        let known = KnownData::default();
        assert_eq!(known.end_of(0), None);
        known.remember(known.ask(), 10..20);
        assert_eq!((known.end_of(9), known.end_of(10)), (None, Some(20)));
        assert_eq!((known.end_of(19), known.end_of(20)), (Some(20), None));
        known.remember(known.ask(), 20..30);
        assert_eq!(known.end_of(10), Some(30));
        known.remember(known.ask(), 50..60);
        assert_eq!((known.end_of(10), known.end_of(50)), (None, Some(60)));
    }

    #[test]
    fn a_change_makes_it_forget_what_it_touches() {
        let known = KnownData::default();
        known.remember(known.ask(), 10..20);
        known.forget(20..30);
        known.forget(0..10);
        assert_eq!(known.end_of(10), Some(20));
        known.forget(19..20);
        assert_eq!(known.end_of(10), None);
    }

    #[test]
    fn an_answer_from_before_a_change_is_dropped() {
        let known = KnownData::default();
        let asked = known.ask();
        known.forget(15..16);
        known.remember(asked, 10..20);
        assert_eq!(known.end_of(10), None);
    }
}
