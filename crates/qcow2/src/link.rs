//! [`Change`]: entries of L2 tables that are about to change.
//!
//! A change locks its range of the disk, has its slice promised, and may have clusters of the file; it has
//! all of that at one moment, or nothing. Between its beginning and the [link](Change::link) nothing is held
//! that others wait for but these. A change that is dropped before gives back what it has.

use std::io;
use std::ops::Range;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use coblk_aio::Co;
use coblk_block::DebugEvent;

use crate::cache::Full;
use crate::image::Image;
use crate::layout::{COPIED, CompressedCluster, Corruption, L2Entry, l1_offset};
use crate::live::Freed;
use crate::map::entry;
use crate::refcount::{Discard, Need};
use crate::rules::Rule;
use crate::source::Source;
use crate::space::Patience;
use crate::state::{Packer, PendingTable, State, wake_all};

/// What keeps a change from beginning. Nothing has been taken.
pub(crate) enum Obstacle {
    /// The slice is not in the cache, or nothing has to be changed: look again.
    Look,
    /// A locked range begins here.
    Locked(u64),
    /// There is no slot for another slice that is changed.
    Full(Full),
    /// What the refcounts need.
    Need(Need),
    /// A cluster for a table.
    Table,
    /// The entry cannot be.
    Corrupt(Corruption),
    /// It cannot be done by a change of entries.
    Unsupported,
}

impl From<Need> for Obstacle {
    fn from(need: Need) -> Obstacle {
        Obstacle::Need(need)
    }
}

impl From<Corruption> for Obstacle {
    fn from(corruption: Corruption) -> Obstacle {
        Obstacle::Corrupt(corruption)
    }
}

/// Entries that are about to change, and what is held for that.
pub(crate) struct Change<'a> {
    image: &'a Image,
    /// The range of the disk that is locked.
    pub(crate) locked: Range<u64>,
    slot: usize,
    /// The place of the first entry in its slice.
    first: usize,
    /// The entries as they are.
    pub(crate) old: Vec<L2Entry>,
    /// New clusters in the file.
    pub(crate) taken: Option<Range<u64>>,
    /// Whole clusters are locked. Else others may change other subclusters meanwhile.
    is_whole: bool,
    is_over: bool,
}

impl Image {
    /// The slot of the slice of an offset, whose table is the image's own: a new one is made if need be.
    pub(crate) fn slot_to_change(&self, state: &mut State, offset: u64) -> Result<usize, Obstacle> {
        let (index, slice) = (self.geometry.l1_index(offset), self.slice(offset));
        let old = self.l1.get(index);
        let table = l1_offset(old, self.geometry)?;
        let there = self.cache.find(slice);
        if table.is_some() && there.is_none() {
            return Err(Obstacle::Look);
        }
        if table.is_none() || old & COPIED == 0 {
            // Where the mapping stands still no table is made either.
            if let Some(start) = state.locks.conflict(&(offset..offset + 1)) {
                return Err(Obstacle::Locked(start));
            }
            self.make_table(state, index, table)?;
        }
        Ok(there.unwrap_or_else(|| {
            self.cleaner.arm();
            self.cache.fill(&state.owed, slice, std::iter::repeat(0))
        }))
    }

    /// Makes a table, in memory: a copy of a shared one, or an empty one.
    fn make_table(&self, state: &mut State, index: u64, old: Option<u64>) -> Result<(), Obstacle> {
        let Some(refcounts) = &mut state.refcounts else {
            return Err(Corruption::new("a table of an image that is read-only", None).into());
        };
        let Some(new) = state.reserve.pop() else { return Err(Obstacle::Table) };
        if let Some(old) = old {
            let discard = self.options.discard(Freed::Other);
            refcounts.give_up(old..old + self.geometry.cluster_bytes(), discard);
        }
        refcounts.origin_mut().has_made_table(index);
        self.l1.set(index, new | COPIED);
        state.pending.insert(index, PendingTable { new, old });
        state.mark_l1(index);
        Ok(())
    }

    /// The entries of `clusters` clusters from an offset on, within one slice.
    pub(crate) fn entries(&self, slot: usize, offset: u64, clusters: usize) -> Vec<L2Entry> {
        let first = self.place_in_slice(offset);
        let words = self.cache.words(slot);
        let entries = (first..first + clusters).map(|index| entry(&self.rules, words, index));
        entries.map_while(|entry| entry).collect()
    }

    fn place_in_slice(&self, offset: u64) -> usize {
        (self.geometry.l2_index(offset) % self.slice_entries()) as usize
    }

    /// Begins a change. The range is not locked, the slot may be promised, and `old` are its entries.
    pub(crate) fn begin_change(
        &self,
        state: &mut State,
        slot: usize,
        locked: Range<u64>,
        old: Vec<L2Entry>,
        taken: Option<Range<u64>>,
    ) -> Change<'_> {
        state.owed.promise(slot);
        state.locks.lock(&locked);
        let first = self.place_in_slice(locked.start);
        let is_whole = [locked.start, locked.end].iter().all(|it| self.geometry.is_aligned(*it));
        Change { image: self, locked, slot, first, old, taken, is_whole, is_over: false }
    }

    /// Does what lets a change begin that could not. The caller looks at everything again.
    ///
    /// # Errors
    /// If it cannot begin.
    pub(crate) fn co_overcome(
        &self,
        co: &Co<'_>,
        state: MutexGuard<'_, State>,
        obstacle: Obstacle,
        patience: &mut Patience,
    ) -> io::Result<()> {
        match obstacle {
            Obstacle::Look => Ok(()),
            Obstacle::Locked(start) => {
                self.co_wait_for_range(co, state, start);
                Ok(())
            }
            Obstacle::Full(Full::OfPromises) => {
                self.co_wait_for_change(co, state);
                Ok(())
            }
            Obstacle::Full(Full::OfDirty) => {
                drop(state);
                self.co_commit(co)
            }
            Obstacle::Need(need) => {
                drop(state);
                self.co_satisfy(co, need, patience)
            }
            Obstacle::Table => {
                drop(state);
                self.co_reserve_table(co, patience)
            }
            Obstacle::Unsupported => Err(io::Error::from_raw_os_error(libc::ENOTSUP)),
            Obstacle::Corrupt(error) => {
                drop(state);
                Err(self.co_corrupt(co, &error))
            }
        }
    }

    /// Does what the refcounts need.
    ///
    /// # Errors
    /// If it cannot be done.
    pub(crate) fn co_load_need(&self, co: &Co<'_>, need: Need) -> io::Result<()> {
        let errno = match need {
            Need::Block { index, offset } => return self.co_load_block(co, index, offset),
            Need::HostSpace { index, offset } => {
                return self.co_have_block_space(co, index, offset);
            }
            Need::Commit => return self.co_commit_and_free(co),
            Need::Memory => return self.co_commit(co),
            Need::Space => libc::ENOSPC,
            Need::TooBig => libc::EFBIG,
            Need::Overflow => libc::EINVAL,
            Need::Corrupt(error) => return Err(self.co_corrupt(co, &error)),
        };
        Err(io::Error::from_raw_os_error(errno))
    }

    /// Reads a refcount block. One is read at a time, and a coroutine that has waited looks whether it was that one.
    fn co_load_block(&self, co: &Co<'_>, index: u64, offset: u64) -> io::Result<()> {
        let before = self.block_loads.count();
        let _turn = self.block_turn.lock(co);
        if self.block_loads.count() != before {
            return Ok(());
        }
        if offset >= self.end_behind(offset) {
            let what = format_args!("refcount block at {offset:#x} behind the end of the file");
            return Err(self.co_corrupt(co, &Corruption::new(what, Some(offset))));
        }
        let mut bytes = vec![0; self.geometry.cluster_bytes() as usize];
        self.file.debug_event(DebugEvent::RefblockLoad);
        self.file.co_read_at(co, offset, &mut bytes)?;
        let loaded = {
            let mut state = self.lock();
            state.refcounts.as_mut().map_or(Ok(()), |it| it.loaded(index, &bytes))
        };
        self.block_loads.add();
        loaded.map_err(|error| self.co_corrupt(co, &error))
    }
}

impl Change<'_> {
    /// Whether whole clusters change.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Changes the entries, if they are still what they were; the change is over. Returns whether it has
    /// been made: if not, all is to be done again. `new` says what becomes of each entry. Of those that lead
    /// somewhere else then the old clusters are given up, and become free as `freed` says. `is_ordered`: data
    /// is to be durable before.
    pub(crate) fn link(
        mut self,
        new: impl Fn(usize, L2Entry) -> L2Entry,
        freed: Freed,
        is_ordered: bool,
    ) -> bool {
        let mut guard = self.image.lock();
        let state = &mut *guard;
        let index = self.image.geometry.l1_index(self.locked.start);
        let now = self.image.entries(self.slot, self.locked.start, self.old.len());
        let is_own = self.image.l1.get(index) & COPIED != 0;
        // In place others change other subclusters meanwhile.
        let is_same = |(now, old): (&L2Entry, &L2Entry)| {
            now.word == old.word && (!self.is_whole || now.bitmap == old.bitmap)
        };
        let is_valid = is_own && now.iter().zip(&self.old).all(is_same);
        if is_valid {
            let entries: Vec<L2Entry> = (0..).zip(&now).map(|(i, now)| new(i, *now)).collect();
            if let (Some(taken), Some(refcounts)) = (&self.taken, &mut state.refcounts) {
                let slice = self.image.cache.slice_of(self.slot);
                refcounts.origin_mut().has_linked(slice, taken.end);
            }
            self.store(state, &entries);
            let discard = self.image.options.discard(freed);
            for (old, new) in now.iter().zip(&entries) {
                self.image.give_up_entry(state, *old, *new, discard);
            }
            self.taken = None;
            state.has_ordered_data |= is_ordered;
        }
        let (image, waiting) = (self.image, self.end(state));
        drop(guard);
        image.file.debug_event(DebugEvent::L2Update);
        wake_all(waiting);
        is_valid
    }

    fn store(&self, state: &mut State, entries: &[L2Entry]) {
        let step = (self.image.geometry.l2_entry_bytes() / 8) as usize;
        let words = self.first * step..(self.first + entries.len()) * step;
        self.image.cache.change(&mut state.owed, self.slot, words.clone(), |target| {
            for (target, entry) in target[words].chunks(step).zip(entries) {
                target[0].store(entry.word, Ordering::Relaxed);
                if let Some(bitmap) = target.get(1) {
                    bitmap.store(entry.bitmap, Ordering::Relaxed);
                }
            }
        });
    }

    /// Gives everything back that it still has. Returns the coroutines that wait for that.
    #[must_use]
    fn end(&mut self, state: &mut State) -> Vec<coblk_aio::CoWaker> {
        self.is_over = true;
        if let (Some(taken), Some(refcounts)) = (self.taken.take(), &mut state.refcounts)
            && !self.image.rules.has_data_file
        {
            Packer::leave(&mut state.packer, &taken);
            refcounts.give_back(taken);
        }
        state.owed.drop_promise(self.slot);
        let mut waiting = state.locks.unlock(self.locked.start);
        waiting.extend(state.take_waiting());
        waiting
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let image = self.image;
            let mut state = image.lock();
            let waiting = self.end(&mut state);
            drop(state);
            wake_all(waiting);
        }
    }
}

impl Image {
    /// Gives up what an entry has had, unless it still has it.
    fn give_up_entry(&self, state: &mut State, old: L2Entry, new: L2Entry, discard: Discard) {
        let Some(refcounts) = &mut state.refcounts else { return };
        if self.rules.has_data_file || !new.is_compressed() && old.word == new.word {
            return;
        }
        if let Some(range) = self.clusters_of(old)
            && (old.is_compressed() || new.is_compressed() || old.offset() != new.offset())
        {
            Packer::leave(&mut state.packer, &range);
            match self.rules_omit(Rule::QuarantineUntilDurable) {
                true => refcounts.give_back(range),
                false => refcounts.give_up(range, discard),
            }
        }
    }

    /// The clusters of the file that an entry refers to.
    pub(crate) fn clusters_of(&self, entry: L2Entry) -> Option<Range<u64>> {
        let bytes = self.geometry.cluster_bytes();
        if entry.is_compressed() {
            let place = CompressedCluster::parse(entry.word, self.geometry);
            let start = self.geometry.cluster_start(place.offset);
            return Some(
                start..self.geometry.cluster_start(place.offset + place.bytes - 1) + bytes,
            );
        }
        let offset = entry.offset();
        (offset != 0).then(|| offset..offset + bytes)
    }
}
