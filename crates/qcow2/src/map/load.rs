//! Misses: slices of L2 tables come into the cache.

use std::io;
use std::sync::atomic::AtomicU64;

use coblk_aio::Co;
use coblk_block::DebugEvent;

use crate::image::Image;
use crate::layout::{COPIED, Corruption, l1_offset};
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
        let _turn = load.co_turn(co);
        loop {
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
            let mut bytes = vec![0; self.cache.slice_bytes() as usize];
            if let Place::Table(table) = place {
                self.co_read_slice(co, table, slice, &mut bytes)?;
            }
            if is_shared {
                self.strip_copied(&mut bytes);
            }
            let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
            let words: Vec<u64> = words.collect();
            let state = self.lock();
            // Another table may be there by now.
            if self.place(&state, index) == Ok((place, is_shared)) {
                let slot = self.cache.fill(&state.owed, slice, &words);
                let found = look(self.cache.words(slot));
                drop(state);
                self.cleaner.arm();
                return Ok(found);
            }
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
        Ok((table.map_or(Place::Zeroes, Place::Table), entry & COPIED == 0))
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
