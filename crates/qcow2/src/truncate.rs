//! Other lengths of the disk.
//!
//! ```text
//! longer:   what is mapped behind the old end goes, as it would be seen; the L1 table, links; a commit;
//!           and only then the size
//! shorter:  the size; then what is behind it is unlinked, loses its references, and the file is cut
//! ```
//!
//! Each step is durable before the next: after a crash the disk has the old length or the new one, and at
//! most clusters behind its end leak or stay mapped, until it becomes longer again.

use std::io;
use std::ops::Range;

use coblk_aio::{Co, IoVector};
use coblk_block::{DebugEvent, Preallocation, Truncate, ZeroFlags};

use crate::clear::Clear;
use crate::image::Image;
use crate::layout::{COPIED, FormatError, L2Entry, MAX_L1_BYTES, SECTOR_BYTES, ZERO, l1_offset};
use crate::link::{Change, Obstacle};
use crate::live::Freed;
use crate::metadata::Metadata;
use crate::space::Patience;
use crate::state::{NewL1, State};

/// Most bytes of zeroes that are written at once.
const HIDDEN_BYTES: u64 = 1 << 20;

impl Image {
    /// Gives the disk another length.
    ///
    /// # Errors
    /// EINVAL for a length that is no multiple of 512; EFBIG; ENOTSUP if the image has what cannot be resized.
    /// The disk has the old length then. Those of the children: a disk that was to be shorter may be so.
    pub(crate) fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        // L1 tables are changed by one at a time.
        let _turn = self.co_turn(co)?;
        self.check_truncate(length, how)?;
        let old = self.disk_bytes();
        if length >= old {
            self.co_make_longer(co, old..length, how)
        } else {
            self.co_make_shorter(co, length)
        }
    }

    fn check_truncate(&self, length: u64, how: Truncate) -> Result<(), FormatError> {
        if !length.is_multiple_of(SECTOR_BYTES as u64) {
            return Err(FormatError::invalid("the new size must be a multiple of 512"));
        }
        if self.is_v2() && !self.snapshots().is_empty() {
            let why = "an image of version 2 with snapshots cannot be resized";
            return Err(FormatError::unsupported(why));
        }
        self.bitmaps.check_resize().map_err(|error| FormatError::unsupported(error.to_string()))?;
        if length < self.disk_bytes() && how.preallocation != Preallocation::Off {
            let why = "preallocation can't be used for shrinking an image";
            return Err(FormatError::invalid(why));
        }
        if self.geometry.l1_entries(length)? * 8 > MAX_L1_BYTES {
            return Err(FormatError::too_big("the L1 table would be too large"));
        }
        Ok(())
    }

    fn co_make_longer(&self, co: &Co<'_>, new: Range<u64>, how: Truncate) -> io::Result<()> {
        let cluster = self.geometry.cluster_bytes();
        let up = |offset: u64| {
            let too_big = || io::Error::from_raw_os_error(libc::EFBIG);
            offset.checked_next_multiple_of(cluster).ok_or_else(too_big)
        };
        let whole = up(new.start)?..up(new.end)?;
        self.co_lengthen_l1(co, self.geometry.l1_entries(new.end)?)?;
        self.co_clear(co, whole.clone(), Clear::Dropped)?;
        self.co_zero_rest(co, new.start..whole.start.min(new.end), how.zero)?;
        if how.zero
            && let Some(backing) = self.backing.node()
            && !whole.is_empty()
        {
            match self.is_v2() {
                // Clusters that get a place are zeroes there.
                true if how.preallocation != Preallocation::Off => {}
                true => self.co_hide(co, whole.start..up(backing.length())?.min(whole.end))?,
                false => {
                    self.co_clear(co, whole.clone(), Clear::Zeroes { may_unmap: false })?;
                }
            }
        }
        if let Some(data_file) = &self.data_file
            && new.end > data_file.length()
        {
            let preallocation = match how.preallocation {
                Preallocation::Metadata => Preallocation::Off,
                other => other,
            };
            let how = Truncate { preallocation, ..Truncate::default() };
            data_file.co_grow(co, new.end, how)?;
        }
        if how.preallocation != Preallocation::Off {
            self.co_preallocate(co, whole, how)?;
        }
        self.co_commit(co)?;
        self.co_flush_files(co)?;
        self.co_update_header(co, |header| header.size = new.end)?;
        self.set_disk_bytes(new.end);
        Ok(())
    }

    /// Has an L1 table of `entries` entries, or more. The next commit switches to it.
    fn co_lengthen_l1(&self, co: &Co<'_>, entries: u64) -> io::Result<()> {
        if entries <= self.l1.entries() {
            return Ok(());
        }
        let cluster = self.geometry.cluster_bytes();
        let bytes = (entries * 8).next_multiple_of(cluster);
        let entries = bytes.min(MAX_L1_BYTES) / 8;
        let mut patience = Patience::default();
        let old = loop {
            let mut guard = self.lock();
            let state = &mut *guard;
            let Some(refcounts) = &mut state.refcounts else { return Ok(()) };
            self.file.debug_event(DebugEvent::L1GrowAllocTable);
            match refcounts.allocate_exact(bytes / cluster, Metadata::ACTIVE_L1) {
                Err(need) => self.co_overcome(co, guard, need.into(), &mut patience)?,
                Ok(offset) => {
                    let header = self.header();
                    // One that is not in use yet goes.
                    let old = match state.new_l1.take() {
                        Some(old) => old,
                        None => NewL1 { offset: header.l1_offset, entries: header.l1_entries },
                    };
                    state.new_l1 = Some(NewL1 { offset, entries: entries as u32 });
                    self.l1.resize(entries);
                    break old;
                }
            }
        };
        self.file.debug_event(DebugEvent::L1GrowWriteTable);
        self.co_commit(co)?;
        if old.entries > 0 {
            let range =
                old.offset..old.offset + (u64::from(old.entries) * 8).next_multiple_of(cluster);
            let discard = self.options.discard(Freed::Other);
            if let Some(refcounts) = &mut self.lock().refcounts {
                refcounts.give_up(range, discard);
            }
        }
        Ok(())
    }

    /// Has the rest of the last cluster read as zeroes: it is not a part of the disk until now, and may have
    /// anything.
    fn co_zero_rest(&self, co: &Co<'_>, rest: Range<u64>, hides_backing: bool) -> io::Result<()> {
        if rest.is_empty() || !hides_backing && self.co_is_zero(co, rest.clone())? {
            return Ok(());
        }
        let zeroes = vec![0; (rest.end - rest.start) as usize];
        self.co_write(co, rest.start, &IoVector::from(&zeroes[..]))
    }

    /// Writes zeroes over what a longer backing file has, as no entry of version 2 says so.
    fn co_hide(&self, co: &Co<'_>, range: Range<u64>) -> io::Result<()> {
        let zeroes = vec![0; HIDDEN_BYTES.max(self.geometry.cluster_bytes()) as usize];
        let mut at = range.start;
        while at < range.end {
            if !co.is_wanted() {
                return Err(io::Error::from_raw_os_error(libc::ECANCELED));
            }
            let bytes = (range.end - at).min(zeroes.len() as u64);
            self.co_write(co, at, &IoVector::from(&zeroes[..bytes as usize]))?;
            at += bytes;
        }
        Ok(())
    }

    /// Gives clusters a place that have none.
    fn co_preallocate(&self, co: &Co<'_>, range: Range<u64>, how: Truncate) -> io::Result<()> {
        let (mut at, mut patience) = (range.start, Patience::default());
        while at < range.end {
            let part = at..range.end.min(self.slice_end(at));
            self.co_have_slice(co, at)?;
            let mut state = self.lock();
            match self.begin_preallocation(&mut state, part) {
                Err(obstacle) => self.co_overcome(co, state, obstacle, &mut patience)?,
                Ok(change) => {
                    drop(state);
                    let end = change.locked.end;
                    if self.co_give_places(co, change, how)? {
                        (at, patience) = (end, Patience::default());
                        self.co_commit_if_wanted(co)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_preallocation(
        &self,
        state: &mut State,
        mut part: Range<u64>,
    ) -> Result<Change<'_>, Obstacle> {
        let cluster = self.geometry.cluster_bytes();
        let slot = self.slot_to_change(state, part.start)?;
        if let Some(other) = state.locks.conflict(&part) {
            return Err(Obstacle::Locked(other));
        }
        state.owed.check_promise(slot).map_err(Obstacle::Full)?;
        // They have been dropped, or have the zero flag.
        let taken = self.take(state, slot, part.clone())?;
        part.end = part.start + (taken.end - taken.start);
        let clusters = ((part.end - part.start) / cluster) as usize;
        let old = self.entries(slot, part.start, clusters);
        Ok(self.begin_change(state, slot, part, old, Some(taken)))
    }

    /// Has the space of new clusters, and links them; what is read there does not change.
    fn co_give_places(&self, co: &Co<'_>, change: Change<'_>, how: Truncate) -> io::Result<bool> {
        let (cluster, is_extended) = (self.geometry.cluster_bytes(), self.geometry.is_extended());
        let Some(host) = change.taken.clone() else { return Ok(true) };
        let is_zero = self.is_virgin(host.start, change.old.len() as u64);
        if self.data_file.is_none() {
            let preallocation = match how.preallocation {
                Preallocation::Metadata => Preallocation::Off,
                other => other,
            };
            let how = Truncate { preallocation, ..Truncate::default() };
            self.co_grow_exactly(co, host.end, how)?;
        }
        // Without a flag that says so, what is read there has to be zeroes.
        let needs_zeroes = !is_zero && self.is_v2() && self.data_file.is_none();
        if needs_zeroes {
            if self.encryption.is_some() {
                return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
            }
            let flags = ZeroFlags::empty();
            self.file.co_pwrite_zeroes(co, host.start, host.end - host.start, flags)?;
        }
        let new = |index: usize, old: L2Entry| {
            let word = (host.start + index as u64 * cluster) | COPIED;
            let was_zero = old.word & ZERO != 0 || !is_zero && !needs_zeroes;
            match is_extended {
                true => L2Entry { word, bitmap: old.bitmap },
                false if was_zero => L2Entry { word: word | ZERO, bitmap: 0 },
                false => L2Entry { word, bitmap: 0 },
            }
        };
        Ok(change.link(new, Freed::Never, needs_zeroes))
    }

    fn co_make_shorter(&self, co: &Co<'_>, length: u64) -> io::Result<()> {
        let old = self.disk_bytes();
        self.co_commit(co)?;
        self.co_flush_files(co)?;
        self.co_update_header(co, |header| header.size = length)?;
        self.set_disk_bytes(length);
        let cluster = self.geometry.cluster_bytes();
        let start = length.next_multiple_of(cluster);
        // What a snapshot left behind the disk goes, too.
        let end = self.geometry.l1_start(self.l1.entries()).unwrap_or(u64::MAX);
        let end = end.max(old) & !(cluster - 1);
        self.co_clear(co, start..end.max(start), Clear::Dropped)?;
        for index in self.geometry.l1_entries(start)?..self.l1.entries() {
            self.drop_table(index);
        }
        self.co_settle(co)?;
        if let Some(data_file) = &self.data_file {
            data_file.co_truncate(co, length, Truncate::default())?;
        }
        self.co_pass_grace(co);
        self.co_drop_empty_blocks(co)?;
        self.co_settle(co)?;
        self.co_pass_grace(co);
        // A write that takes new clusters meanwhile must not find them cut off.
        let _held = self.co_hold_unmarked(co)?;
        self.co_cut_file(co)
    }

    pub(crate) fn co_drop_empty_blocks(&self, co: &Co<'_>) -> io::Result<()> {
        loop {
            let dropped =
                self.lock().refcounts.as_mut().map_or(Ok(()), |it| it.drop_empty_blocks());
            match dropped {
                Ok(()) => return Ok(()),
                Err(need) => self.co_load_need(co, need)?,
            }
        }
    }

    /// Gives up a table in which nothing is mapped.
    pub(crate) fn drop_table(&self, index: u64) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let entry = self.l1.get(index);
        let (Ok(Some(table)), Some(refcounts)) =
            (l1_offset(entry, self.geometry), &mut state.refcounts)
        else {
            return;
        };
        let discard = self.options.discard(Freed::Always);
        refcounts.give_up(table..table + self.geometry.cluster_bytes(), discard);
        self.l1.set(index, 0);
        state.pending.remove(&index);
        state.mark_l1(index);
        let per_table = self.geometry.cluster_bytes() / self.cache.slice_bytes();
        for slice in index * per_table..(index + 1) * per_table {
            self.cache.forget(&mut state.owed, slice);
        }
    }
}
