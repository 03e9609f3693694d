//! Entries of L1 and L2 tables.

use std::io;

use super::Repairer;
use super::patch::{bytes_of, co_write_changes};
use crate::check::refcounts::Refcounts;
use crate::layout::{COMPRESSED, COPIED, EntryRules, L2Entry, OFFSET_MASK, SubclusterKind};
use crate::tables;

/// Whether an entry has no data, and refers to what is no cluster.
pub(in crate::check) fn is_unaligned_zero(rules: &EntryRules, entry: L2Entry) -> bool {
    let has_data = || match rules.geometry.is_extended() {
        true => entry.bitmap as u32 != 0,
        false => rules.kind(entry, 0) != Ok(SubclusterKind::ZeroStored),
    };
    let is_aligned = rules.geometry.is_aligned(entry.offset());
    !rules.is_v2 && !is_aligned && !entry.is_compressed() && !has_data()
}

/// The same zeroes, without a place. Subclusters that read as the backing file still do.
fn without_place(rules: &EntryRules, entry: L2Entry) -> L2Entry {
    let word = if rules.geometry.is_extended() { 0 } else { 1 };
    L2Entry { word, bitmap: entry.bitmap }
}

impl Repairer<'_, '_> {
    /// Takes the place from entries that the check has left out.
    pub(super) fn co_mend_entries(&mut self) -> io::Result<()> {
        let mut is_changed = false;
        for table in std::mem::take(&mut self.checker.plan.unaligned) {
            self.co_go_on()?;
            let rules = self.checker.rules;
            let step = (rules.geometry.l2_entry_bytes() / 8) as usize;
            let fixed = self.co_change_table(table, |words, _| {
                let mut fixed = 0;
                for words in words.chunks_exact_mut(step) {
                    let bitmap = words.get(1).copied().unwrap_or(0);
                    let entry = L2Entry { word: words[0], bitmap };
                    if is_unaligned_zero(&rules, entry) {
                        words[0] = without_place(&rules, entry).word;
                        fixed += 1;
                    }
                }
                Ok(fixed)
            })?;
            is_changed |= fixed > 0;
        }
        if is_changed { self.file.co_flush(self.co) } else { Ok(()) }
    }

    /// Sets COPIED in the active tables as refcounts are, which are durable.
    pub(super) fn co_mend_flags(&mut self) -> io::Result<()> {
        let header = &self.checker.header;
        self.checker.refcounts = Refcounts::co_new(self.co, self.file, header)?;
        let mut fixed = self.co_mend_l1_flags()?;
        let tables = std::mem::take(&mut self.checker.pointers);
        for (table, _) in tables.iter().filter(|(_, pointer)| pointer.is_active()) {
            self.co_go_on()?;
            let step = (self.checker.geometry.l2_entry_bytes() / 8) as usize;
            fixed += self.co_change_table(*table, |words, it| {
                let mut fixed = 0;
                for word in words.iter_mut().step_by(step) {
                    fixed += u64::from(it.co_mend_flag(word, true)?);
                }
                Ok(fixed)
            })?;
        }
        self.checker.pointers = tables;
        if fixed > 0 { self.file.co_flush(self.co) } else { Ok(()) }
    }

    fn co_mend_l1_flags(&mut self) -> io::Result<u64> {
        let header = &self.checker.header;
        let (offset, entries) = (header.l1_offset, u64::from(header.l1_entries));
        if !self.checker.is_writable(offset, entries * 8) {
            return Ok(0);
        }
        let old = tables::co_words(self.co, self.file, offset, entries)?;
        let mut new = old.clone();
        let mut fixed = 0;
        for word in &mut new {
            fixed += u64::from(self.co_mend_flag(word, false)?);
        }
        self.co_write_table(offset, (&old, &new), fixed)
    }

    /// Changes the words of an L2 table by `change`, which returns how many corruptions that mends; so does
    /// this, or 0 if the table cannot be written.
    fn co_change_table(
        &mut self,
        offset: u64,
        change: impl FnOnce(&mut [u64], &mut Self) -> io::Result<u64>,
    ) -> io::Result<u64> {
        let bytes = self.checker.geometry.cluster_bytes();
        if !self.checker.is_writable_table(offset) {
            return Ok(0);
        }
        let old = tables::co_words(self.co, self.file, offset, bytes / 8)?;
        let mut new = old.clone();
        let fixed = change(&mut new, self)?;
        self.co_write_table(offset, (&old, &new), fixed)
    }

    fn co_write_table(
        &mut self,
        offset: u64,
        (old, new): (&[u64], &[u64]),
        fixed: u64,
    ) -> io::Result<u64> {
        if fixed > 0 {
            let (old, new) = (bytes_of(old), bytes_of(new));
            co_write_changes(self.co, self.file, offset, (&old, &new))?;
            self.fixed.corruptions += fixed;
        }
        Ok(fixed)
    }

    /// Makes COPIED of an entry right, and returns whether it was wrong.
    fn co_mend_flag(&mut self, word: &mut u64, is_l2: bool) -> io::Result<bool> {
        let checker = &mut self.checker;
        let offset = *word & OFFSET_MASK;
        let is_in_data_file = is_l2 && checker.rules.has_data_file;
        let is_nowhere = offset == 0 && !is_in_data_file;
        if is_nowhere || is_l2 && *word & COMPRESSED != 0 {
            return Ok(false);
        }
        let is_copied = if is_in_data_file {
            // Such entries have no refcount. At 0 the flag is what tells them from none.
            offset != 0 || *word & COPIED != 0
        } else {
            if !checker.geometry.is_aligned(offset) && !is_l2 {
                return Ok(false);
            }
            let cluster = offset >> checker.geometry.cluster_bits();
            let Some(refcount) = checker.refcounts.co_get(self.co, self.file, cluster) else {
                return Ok(false);
            };
            // Where there are more references than can be counted, none is to be written through.
            if refcount == 1 && checker.counts.get(cluster) > 1 {
                return Ok(false);
            }
            refcount == 1
        };
        if (*word & COPIED != 0) == is_copied {
            return Ok(false);
        }
        *word ^= COPIED;
        Ok(true)
    }
}
