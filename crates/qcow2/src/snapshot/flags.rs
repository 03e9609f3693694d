//! COPIED flags: they say what the disk shares with no snapshot.

use std::io;
use std::sync::atomic::Ordering;

use coblk_aio::Co;

use crate::image::Image;
use crate::layout::{COPIED, L2Entry, OFFSET_MASK};
use crate::link::Obstacle;
use crate::space::Patience;
use crate::state::State;

impl Image {
    /// Clears the flags of all tables of an L1 table in the file; in memory they are clear.
    pub(super) fn co_clear_flags(&self, co: &Co<'_>, l1: &[u64]) -> io::Result<()> {
        for word in l1 {
            let table = word & OFFSET_MASK;
            if table != 0 {
                self.co_give_way(co);
                self.co_clear_flags_of(co, table)?;
            }
        }
        // The L1 table as well.
        self.co_settle(co)?;
        self.file.co_flush(co)
    }

    /// Sets the flags of the disk by refcounts, while its mapping changes, or not. They become durable with the next
    /// commit. Counts of 1 are durable, or a crash is repaired.
    ///
    /// # Errors
    /// Those of reading, and of commits.
    pub(super) fn co_restore_flags(&self, co: &Co<'_>) -> io::Result<()> {
        for index in 0..self.l1.entries() {
            // A write may have made another table meanwhile, whose slices had no flags.
            while !self.co_restore_table(co, index)? {}
        }
        Ok(())
    }

    /// Sets the flags of one table; `false` if it is another one by now.
    fn co_restore_table(&self, co: &Co<'_>, index: u64) -> io::Result<bool> {
        let table = self.l1.get(index) & OFFSET_MASK;
        let Some(start) = self.geometry.l1_start(index).filter(|_| table != 0) else {
            return Ok(true);
        };
        if self.co_with_refcounts(co, |it| it.count(table))? != 1 {
            return Ok(true);
        }
        let slice_bytes = self.slice_entries() << self.geometry.cluster_bits();
        let end = self.geometry.l1_start(index + 1).unwrap_or(u64::MAX);
        let mut at = start;
        while at < end {
            self.co_give_way(co);
            self.co_restore_slice(co, at)?;
            at = at.saturating_add(slice_bytes);
        }
        let mut state = self.lock();
        let word = self.l1.get(index);
        if word & OFFSET_MASK != table {
            return Ok(false);
        }
        if word & COPIED == 0 {
            self.l1.set(index, word | COPIED);
            state.mark_l1(index);
        }
        Ok(true)
    }

    /// Sets the flags of the entries of a slice.
    fn co_restore_slice(&self, co: &Co<'_>, start: u64) -> io::Result<()> {
        let (mut patience, mut place) = (Patience::default(), 0);
        loop {
            self.co_have_slice(co, start)?;
            let mut guard = self.lock();
            match self.restore_slice(&mut guard, start, &mut place) {
                Ok(()) => return Ok(()),
                Err(obstacle) => self.co_overcome(co, guard, obstacle, &mut patience)?,
            }
        }
    }

    /// Sets the flags of entries from a place in the slice on, which goes as far as refcounts are in memory.
    fn restore_slice(
        &self,
        state: &mut State,
        start: u64,
        place: &mut usize,
    ) -> Result<(), Obstacle> {
        if self.l1.get(self.geometry.l1_index(start)) == 0 {
            return Ok(());
        }
        let Some(slot) = self.cache.find(self.slice(start)) else { return Err(Obstacle::Look) };
        let Some(refcounts) = &mut state.refcounts else { return Ok(()) };
        state.owed.check_promise(slot).map_err(Obstacle::Full)?;
        let words = self.cache.words(slot);
        let step = (self.geometry.l2_entry_bytes() / 8) as usize;
        let (mut changes, mut result) = (Vec::new(), Ok(()));
        while *place < words.len() {
            let entry = L2Entry { word: words[*place].load(Ordering::Relaxed), bitmap: 0 };
            let has_place = !entry.is_compressed() && entry.offset() != 0;
            let is_own = match refcounts.count(entry.offset()) {
                _ if !has_place => false,
                Ok(count) => count == 1,
                Err(need) => {
                    result = Err(need.into());
                    break;
                }
            };
            if is_own != (entry.word & COPIED != 0) {
                changes.push((*place, entry.word ^ COPIED));
            }
            *place += step;
        }
        if let (Some(first), Some(last)) = (changes.first(), changes.last()) {
            self.cache.change(&mut state.owed, slot, first.0..last.0 + 1, |target| {
                let stores = |(place, word): &(usize, u64)| {
                    target[*place].store(*word, Ordering::Relaxed);
                };
                changes.iter().for_each(stores);
            });
        }
        result
    }

    /// Clears the flags of a table in the file.
    fn co_clear_flags_of(&self, co: &Co<'_>, table: u64) -> io::Result<()> {
        let entries = self.co_table(co, table)?;
        let mut is_changed = false;
        let mut bytes = Vec::with_capacity(self.geometry.cluster_bytes() as usize);
        for entry in entries {
            let word = entry.word & !COPIED;
            is_changed |= word != entry.word;
            bytes.extend(word.to_be_bytes());
            if self.geometry.is_extended() {
                bytes.extend(entry.bitmap.to_be_bytes());
            }
        }
        match is_changed {
            true => self.co_write_metadata(co, table, &bytes),
            false => Ok(()),
        }
    }
}
