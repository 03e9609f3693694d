//! Misses: slices of L2 tables come into the cache.

use std::io;
use std::sync::atomic::AtomicU64;

use coblk_aio::Co;
use coblk_block::DebugEvent;

use crate::image::Image;
use crate::layout::{COPIED, Corruption, L2Entry, l1_offset};
use crate::origin::Whose;
use crate::refcount::Refcounts;
use crate::source::Source;
use crate::state::State;

/// What a slice is read from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A part of the table at this offset.
    Table(u64),
    /// There is no table, or a new one with nothing in it.
    Zeroes,
}

/// The place of the table of a slice, and whether the table is shared with snapshots.
type Found = Result<(Place, bool), Corruption>;

impl Image {
    /// What `look` finds in the words of a slice of the table of `index`, which is read if it is not there.
    /// Waits for that slice alone.
    pub(super) fn co_load<R>(
        &self,
        co: &Co<'_>,
        index: u64,
        slice: u64,
        look: impl Fn(&[AtomicU64]) -> R,
    ) -> io::Result<R> {
        let load = self.cache.load(slice);
        let mut bytes = load.co_turn(co);
        // No memory that was kept is zeroed again.
        bytes.resize(self.cache.slice_bytes() as usize, 0);
        loop {
            let rewrites = self.rewrites.count();
            let found = {
                let state = self.lock();
                if let Some(slot) = self.cache.find(slice) {
                    return Ok(look(self.cache.words(slot)));
                }
                self.place(&state, index)
            };
            let (place, is_shared) = match found {
                Ok(found) => found,
                Err(error) => return Err(self.co_corrupt(co, &error)),
            };
            match place {
                Place::Table(table) => self.co_read_slice(co, table, slice, &mut bytes)?,
                Place::Zeroes => bytes.fill(0),
            }
            if is_shared {
                self.strip_copied(&mut bytes);
            }
            let reach = self.reach(self.entries_of(&bytes));
            let state = self.lock();
            // Another table may be there by now, or another content.
            if self.place(&state, index) != Ok((place, is_shared))
                || self.rewrites.count() != rewrites
            {
                continue;
            }
            if let Err(error) = self.check_reach(&state, slice, reach) {
                drop(state);
                return Err(self.co_corrupt(co, &error));
            }
            let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
            let slot = self.cache.fill(&state.owed, slice, words);
            let found = look(self.cache.words(slot));
            drop(state);
            self.cleaner.arm();
            return Ok(found);
        }
    }

    /// What slices below an L1 entry are read from.
    fn place(&self, state: &State, index: u64) -> Found {
        let entry = self.l1.get(index);
        if let Some(table) = state.pending.get(&index) {
            // The copies of its entries share what they map.
            return Ok((table.old.map_or(Place::Zeroes, Place::Table), true));
        }
        let table = l1_offset(entry, self.geometry)?;
        if let (Some(table), Some(refcounts)) = (table, &state.refcounts) {
            let bytes = table..table + self.geometry.cluster_bytes();
            refcounts.origin().check_table(index, &bytes, Whose::Disk)?;
        }
        Ok((table.map_or(Place::Zeroes, Place::Table), entry & COPIED == 0))
    }

    /// Where the last of the clusters ends that entries lead to; 0 if there is none.
    pub(crate) fn reach(&self, entries: impl Iterator<Item = L2Entry>) -> u64 {
        if self.rules.has_data_file {
            return 0;
        }
        entries.filter_map(|it| self.clusters_of(it)).map(|it| it.end).max().unwrap_or(0)
    }

    /// Checks a slice that was read for the disk, whose entries [reach](Self::reach) so far. An image that is
    /// not written has all of its entries checked when they are used, as its file does not become longer.
    pub(crate) fn check_reach(
        &self,
        state: &State,
        slice: u64,
        reach: u64,
    ) -> Result<(), Corruption> {
        let origin = state.refcounts.as_ref().map(Refcounts::origin);
        origin.map_or(Ok(()), |it| it.check_slice(slice, reach, Whose::Disk))
    }

    /// The entries of a table, or of a part of one, as the file has it.
    pub(crate) fn entries_of(&self, table: &[u8]) -> impl Iterator<Item = L2Entry> {
        let word = |entry: &[u8], at| {
            entry.as_chunks::<8>().0.get(at).map_or(0, |word| u64::from_be_bytes(*word))
        };
        let entries = table.chunks(self.geometry.l2_entry_bytes() as usize);
        entries.map(move |it| L2Entry { word: word(it, 0), bitmap: word(it, 1) })
    }

    fn co_read_slice(
        &self,
        co: &Co<'_>,
        table: u64,
        slice: u64,
        target: &mut [u8],
    ) -> io::Result<()> {
        if table >= self.end_behind(table) {
            let what = format_args!("L2 table at {table:#x} behind the end of the file");
            return Err(self.co_corrupt(co, &Corruption::new(what, Some(table))));
        }
        let per_table = self.geometry.cluster_bytes() / self.cache.slice_bytes();
        self.file.debug_event(DebugEvent::L2Load);
        self.file.co_read_at(co, table + slice % per_table * self.cache.slice_bytes(), target)
    }
}
