//! [`Owed`]: what slots owe: promises to writes, and words that are not in the file yet.
//!
//! A slot that owes something keeps its slice. At most half of the slots of a set do, so a read always finds
//! one that does not.

use std::ops::Range;

/// What one slot owes.
#[derive(Clone, Copy, Default)]
struct Debt {
    /// Writes that are about to change words.
    promises: u32,
    /// Units that were changed, one bit each.
    dirty: u64,
    /// Units that a commit writes.
    committing: u64,
}

impl Debt {
    fn is_nothing(self) -> bool {
        self.promises == 0 && self.dirty | self.committing == 0
    }
}

/// Why a slot cannot be promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// A commit gives slots back.
    OfDirty,
    /// Other writes do, when they end.
    OfPromises,
}

/// What all slots owe; part of the image's state.
pub(crate) struct Owed {
    debts: Vec<Debt>,
    ways: usize,
    /// Slots with units that were changed; some of them perhaps not any more.
    dirty: Vec<u32>,
}

impl Owed {
    pub(super) fn new(slots: usize, ways: usize) -> Owed {
        Owed { debts: vec![Debt::default(); slots], ways, dirty: Vec::new() }
    }

    /// Whether another slice may be put into a slot.
    #[inline]
    pub(super) fn is_free(&self, slot: usize) -> bool {
        self.debts[slot].is_nothing()
    }

    /// Whether no slot owes anything.
    pub(super) fn is_free_of_all(&self) -> bool {
        self.debts.iter().all(|debt| debt.is_nothing())
    }

    /// Whether a slot may be promised.
    ///
    /// # Errors
    /// What has to be waited for.
    pub(crate) fn check_promise(&self, slot: usize) -> Result<(), Full> {
        if !self.debts[slot].is_nothing() {
            return Ok(());
        }
        let first = slot - slot % self.ways;
        let set = &self.debts[first..first + self.ways];
        if set.iter().filter(|debt| !debt.is_nothing()).count() < self.ways / 2 {
            return Ok(());
        }
        let has_dirty = set.iter().any(|debt| debt.dirty | debt.committing != 0);
        Err(if has_dirty { Full::OfDirty } else { Full::OfPromises })
    }

    /// A write is about to change words of a slot, which keeps its slice.
    pub(crate) fn promise(&mut self, slot: usize) {
        self.debts[slot].promises += 1;
    }

    /// The write has ended.
    pub(crate) fn drop_promise(&mut self, slot: usize) {
        self.debts[slot].promises -= 1;
    }

    /// Units of a slot were changed.
    pub(super) fn mark(&mut self, slot: usize, units: Range<u32>) {
        let debt = &mut self.debts[slot];
        if debt.dirty == 0 {
            self.dirty.push(slot as u32);
        }
        let below = |end: u32| u64::MAX.checked_shr(64 - end).unwrap_or(0);
        debt.dirty |= below(units.end) & !below(units.start);
    }

    /// Whether no unit waits for a commit.
    pub(crate) fn is_clean(&self) -> bool {
        self.debts.iter().all(|debt| debt.dirty | debt.committing == 0)
    }

    /// Takes the slots with changed units, and these as bits: a commit writes them.
    pub(crate) fn take_dirty(&mut self) -> Vec<(usize, u64)> {
        let mut taken = Vec::with_capacity(self.dirty.len());
        for slot in std::mem::take(&mut self.dirty) {
            let debt = &mut self.debts[slot as usize];
            let units = std::mem::take(&mut debt.dirty);
            if units != 0 {
                debt.committing |= units;
                taken.push((slot as usize, units));
            }
        }
        taken
    }

    /// The commit has ended. If it has failed what is in the file is not known: all is dirty again.
    pub(crate) fn end_commit(&mut self, slots: &[(usize, u64)], is_done: bool) {
        for (slot, units) in slots {
            let debt = &mut self.debts[*slot];
            // What was forgotten meanwhile stays so.
            let units = debt.committing & units;
            debt.committing &= !units;
            if !is_done && units != 0 {
                if debt.dirty == 0 {
                    self.dirty.push(*slot as u32);
                }
                debt.dirty |= units;
            }
        }
    }

    /// Changes of a slot need not be written: its table is given up.
    pub(super) fn forget(&mut self, slot: usize) {
        let debt = &mut self.debts[slot];
        (debt.dirty, debt.committing) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q195_at_most_half_of_a_set_owes_something() {
        let mut owed = Owed::new(16, 8);
        for slot in 0..4 {
            assert_eq!(owed.check_promise(slot), Ok(()));
            owed.promise(slot);
        }
        assert_eq!(owed.check_promise(5), Err(Full::OfPromises));
        // Those that owe already, and those of another set.
        assert_eq!((owed.check_promise(0), owed.check_promise(8)), (Ok(()), Ok(())));
        owed.mark(0, 0..64);
        assert_eq!(owed.check_promise(5), Err(Full::OfDirty));
        owed.drop_promise(1);
        assert_eq!(owed.check_promise(5), Ok(()));
    }

    #[test]
    fn q196_a_commit_that_fails_leaves_everything_dirty() {
        let mut owed = Owed::new(2, 2);
        owed.mark(1, 1..3);
        let taken = owed.take_dirty();
        assert_eq!(taken, [(1, 0b110)]);
        assert!(!owed.is_free(1) && owed.take_dirty().is_empty() && !owed.is_clean());
        // Changed meanwhile.
        owed.mark(1, 2..4);
        owed.end_commit(&taken, false);
        let taken = owed.take_dirty();
        assert_eq!(taken, [(1, 0b1110)]);
        owed.end_commit(&taken, true);
        assert!(owed.is_free(1) && owed.is_clean());
        owed.mark(0, 0..64);
        assert_eq!(owed.take_dirty(), [(0, u64::MAX)]);
    }
}
