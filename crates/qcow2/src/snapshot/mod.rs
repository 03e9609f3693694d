//! Internal snapshots: create, apply, delete.
//!
//! ```text
//! mod.rs      the three operations, step by step
//! hold        the mapping stands still for a moment, or meanwhile
//! references  counts of all that an L1 table leads to
//! flags       COPIED flags of the disk
//! expand      tables of snapshots without zeroes, for version 2
//! shown       a snapshot that is read instead of the disk
//! ```
//!
//! # Order
//!
//! ```text
//! create  flags cleared | counts up, copy of L1, new snapshot table | header
//! apply   counts up | new L1 without flags | header | counts down | flags set
//! delete  snapshot table without it | header | counts down | flags set
//! ```
//!
//! Each step is durable before the next, so a crash leaves clusters that leak, or flags that are clear where
//! they need not be, and nothing else. An image of version 3 has the dirty bit meanwhile: the next program that
//! opens it for writes repairs that.
//!
//! # What goes on meanwhile
//!
//! In version 3 writes wait until a snapshot has its instant, and no longer. What holds from then on:
//!
//! * In memory no table of the disk has the flag. So writes take new tables and clusters, and what the instant has
//!   is not written to: neither data nor tables.
//! * Counts do not fall: what writes give up is parked until the header leads to the snapshot, with all of its counts
//!   durable. So nothing that it has is free, or used again.
//! * New tables and clusters are the disk's alone, and their flags are right from the beginning.
//!
//! Deleting one stops no writes. Its counts fall when nothing on file leads to it; flags are set entry by entry, in the
//! cache, under the lock of all changes. Other operations on the whole image, and checks, wait.
//!
//! While a snapshot is applied they wait for the switch of the header alone: the counts before it are those of what the
//! snapshot keeps, and those after it of what the disk does not lead to any more.
//!
//! All three [give way](crate::giving_way) to drains, but where the mapping stands still.
//!
//! In version 2, where no crash is repaired, it does so until the end.

mod expand;
mod flags;
mod hold;
mod references;
mod shown;

use std::io;
use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use coblk_aio::Co;

use crate::image::Image;
use crate::layout::{
    COPIED, FormatError, MAX_L1_BYTES, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS, Snapshot, l1_offset,
};
use crate::metadata::Metadata;
use crate::origin::Whose;
use crate::state::wake_all;
use crate::tables;
pub(crate) use hold::Held;

impl Image {
    /// The snapshots, in the order of their table.
    pub(crate) fn snapshots(&self) -> MutexGuard<'_, Vec<Snapshot>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what the disk has under a name, and returns the id of that.
    ///
    /// # Errors
    /// ENOTSUP if data is in a file of its own, EINVAL if a refcount is at its maximum, EFBIG beyond the
    /// limits of the format; those of reading and writing.
    pub(crate) fn co_create(&self, co: &Co<'_>, name: &str) -> io::Result<String> {
        self.check_alive()?;
        if self.rules.has_data_file {
            let why = "an image with an external data file cannot have snapshots";
            return Err(FormatError::unsupported(why).into());
        }
        if name.len() > u16::MAX.into() {
            return Err(FormatError::invalid("the name of the snapshot is too long").into());
        }
        let _turn = self.co_turn(co)?;
        // What is in the file by now need not be written in the pause.
        self.co_commit_and_free(co)?;
        let marked = self.co_mark(co)?;
        let held = self.co_hold_unmarked(co)?;
        held.co_stop_writes(co);
        let l1: Vec<u64> = (0..self.l1.entries()).map(|index| self.l1.get(index)).collect();
        let held = self.end_pause(held);
        let parked = Parked::new(self);
        let created = self.co_create_of(co, name, &l1);
        drop(parked);
        if created.is_err() {
            self.co_settle(co)?;
            self.co_restore_flags(co)?;
        }
        drop(held);
        marked.co_end(co)?;
        created
    }

    /// What is durable of the disk stays as it is from here on: writes take other clusters and tables, and what
    /// they give up keeps its count. If a crash is repaired they go on meanwhile.
    fn end_pause<'a>(&self, held: Held<'a>) -> Option<Held<'a>> {
        if let Some(refcounts) = &mut self.lock().refcounts {
            refcounts.park();
        }
        (self.header().version < 3).then_some(held)
    }

    /// Makes a snapshot of tables that do not change any more.
    fn co_create_of(&self, co: &Co<'_>, name: &str, l1: &[u64]) -> io::Result<String> {
        self.co_clear_flags(co, l1)?;
        self.co_add_references(co, l1, Whose::Disk)?;
        let bytes = l1.iter().flat_map(|word| word.to_be_bytes()).collect();
        let copy = self.co_write_new_table(co, bytes, Metadata::INACTIVE_L1);
        let undo = |_: &io::Error| {
            let undone = self.co_drop_references(co, l1, Whose::Disk);
            undone.unwrap_or_else(|error| tracing::warn!(%error, "clusters of an image leak"));
        };
        let copy = copy.inspect_err(undo)?;
        if let Some(refcounts) = &mut self.lock().refcounts {
            refcounts.origin_mut().has_made_snapshot(copy.start);
        }
        let mut snapshots = self.snapshots().clone();
        let snapshot = self.new_snapshot(&snapshots, name, copy.start, l1.len() as u32);
        let id = String::from_utf8_lossy(&snapshot.id).into_owned();
        snapshots.push(snapshot);
        if let Err(error) = self.co_store_snapshots(co, snapshots) {
            // The header may lead to them, but for the first step.
            if error.is_before_header {
                self.give_back(&copy);
                undo(&error.error);
            }
            return Err(error.error);
        }
        self.co_drop_vm_state(co, l1.to_vec())?;
        Ok(id)
    }

    fn new_snapshot(&self, others: &[Snapshot], name: &str, l1: u64, entries: u32) -> Snapshot {
        let number = |it: &Snapshot| std::str::from_utf8(&it.id).ok()?.parse::<u64>().ok();
        let id = others.iter().filter_map(number).max().unwrap_or(0).saturating_add(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Snapshot {
            l1_offset: l1,
            l1_entries: entries,
            id: id.to_string().into_bytes(),
            name: name.as_bytes().to_vec(),
            date_seconds: now.as_secs() as u32,
            date_nanoseconds: now.subsec_nanos(),
            vm_clock_ns: 0,
            vm_state_bytes: 0,
            disk_bytes: Some(self.disk_bytes()),
            icount: None,
            extra_bytes: 24,
            unknown_extra: Vec::new(),
        }
    }

    /// Drops what is mapped behind the disk: the state of a machine, which the new snapshot has.
    fn co_drop_vm_state(&self, co: &Co<'_>, mut l1: Vec<u64>) -> io::Result<()> {
        let first = self.geometry.l1_entries(self.disk_bytes())?;
        l1.iter_mut().take(first as usize).for_each(|word| *word = 0);
        if l1.iter().all(|word| *word == 0) {
            return Ok(());
        }
        {
            let mut state = self.lock();
            for (_, index) in l1.iter().zip(0..).filter(|(word, _)| **word != 0) {
                self.l1.set(index, 0);
                state.mark_l1(index);
            }
        }
        // What is unlinked is given up by the same commit.
        self.co_drop_references(co, &l1, Whose::Disk)?;
        self.co_settle(co)
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// ENOENT if there is none with this id; those of reading and writing.
    pub(crate) fn co_delete(&self, co: &Co<'_>, id: &str) -> io::Result<()> {
        self.check_alive()?;
        let _turn = self.co_turn(co)?;
        let mut snapshots = self.snapshots().clone();
        let snapshot = snapshots.remove(position(&snapshots, id)?);
        let l1 = self.co_l1_of(co, &snapshot)?;
        let marked = self.co_mark(co)?;
        // Flags are behind counts in a crash, which is repaired.
        let held = match self.header().version {
            0..3 => Some(self.co_hold_unmarked(co)?),
            _ => None,
        };
        self.co_store_snapshots(co, snapshots).map_err(|error| error.error)?;
        self.co_drop_references(co, &l1, Whose::Snapshot(snapshot.l1_offset))?;
        self.give_up(self.place_of_l1(snapshot.l1_offset, snapshot.l1_entries));
        self.co_settle(co)?;
        self.co_restore_flags(co)?;
        drop(held);
        marked.co_end(co)
    }

    /// Replaces what the disk has by what a snapshot has.
    ///
    /// # Errors
    /// ENOENT if there is none with this id, EINVAL if the disk has another length; those of reading and
    /// writing.
    pub(crate) fn co_apply(&self, co: &Co<'_>, id: &str) -> io::Result<()> {
        self.co_begin_change(co)?;
        let _turn = self.co_turn(co)?;
        let snapshot = {
            let snapshots = self.snapshots();
            snapshots[position(&snapshots, id)?].clone()
        };
        if snapshot.disk_bytes.is_some_and(|bytes| bytes != self.disk_bytes()) {
            let why = "the disk has another length than the snapshot";
            return Err(FormatError::invalid(why).into());
        }
        let mut l1 = self.co_l1_of(co, &snapshot)?;
        let entries = self.geometry.l1_entries(self.disk_bytes())? as usize;
        l1.resize(l1.len().max(entries), 0);
        let marked = self.co_mark(co)?;
        // The snapshot keeps its own references meanwhile.
        let whose = Whose::Snapshot(snapshot.l1_offset);
        let counted = self.co_add_references(co, &l1, whose);
        let held = self.co_hold_unmarked(co)?;
        held.co_stop_writes(co);
        let switched = counted.and_then(|()| self.co_switch(co, &l1, whose));
        let held = (self.header().version < 3).then_some(held);
        // The disk does not lead to the old tables any more, but for those that the snapshot has as well.
        let applied = switched.and_then(|old| self.co_drop_references(co, &old, Whose::Disk));
        self.co_settle(co)?;
        self.co_restore_flags(co)?;
        marked.co_end(co)?;
        drop(held);
        applied
    }

    /// Has the disk, whose mapping stands still, lead to what an L1 table leads to, and that is counted. Returns the
    /// L1 table that it had. If it fails, what was counted is given up.
    fn co_switch(&self, co: &Co<'_>, l1: &[u64], whose: Whose) -> io::Result<Vec<u64>> {
        // What was stopped is in the file: no entry of the old table waits to be written.
        let settled = self.co_settle(co);
        let bytes = l1.iter().flat_map(|word| word.to_be_bytes()).collect();
        let new = settled.and_then(|()| self.co_write_new_table(co, bytes, Metadata::ACTIVE_L1));
        let new = new.inspect_err(|_| {
            let undone = self.co_drop_references(co, l1, whose);
            undone.unwrap_or_else(|error| tracing::warn!(%error, "clusters of an image leak"));
        })?;
        self.co_settle(co)?;
        self.co_sync_tables(co)?;
        let header = self.header();
        // If this fails the header may lead to either table: both stay, and one of them leaks.
        self.co_update_header(co, |it| {
            it.l1_offset = new.start;
            it.l1_entries = l1.len() as u32;
        })?;
        let old: Vec<u64> = (0..self.l1.entries()).map(|index| self.l1.get(index)).collect();
        let cluster = self.geometry.cluster_bytes();
        for table in l1.iter().filter_map(|word| l1_offset(*word, self.geometry).ok().flatten()) {
            self.metadata.insert(table..table + cluster, Metadata::ACTIVE_L2);
        }
        {
            let state = self.lock();
            self.l1.resize(l1.len() as u64);
            self.l1.replace(l1);
            self.cache.clear(&state.owed);
        }
        self.give_up(self.place_of_l1(header.l1_offset, header.l1_entries));
        Ok(old)
    }

    /// The clusters of an L1 table.
    fn place_of_l1(&self, offset: u64, entries: u32) -> Range<u64> {
        offset..offset + u64::from(entries) * 8
    }

    /// The L1 table of a snapshot, without flags.
    fn co_l1_of(&self, co: &Co<'_>, snapshot: &Snapshot) -> io::Result<Vec<u64>> {
        let (offset, entries) = (snapshot.l1_offset, u64::from(snapshot.l1_entries));
        self.geometry.check_table("L1 table of the snapshot", offset, entries * 8, MAX_L1_BYTES)?;
        let mut l1 = tables::co_words(co, &self.file, offset, entries)?;
        l1.resize(entries as usize, 0);
        l1.iter_mut().for_each(|word| *word &= !COPIED);
        Ok(l1)
    }

    /// Writes another table of snapshots, and has the header lead to it. The old one is given up.
    fn co_store_snapshots(
        &self,
        co: &Co<'_>,
        mut snapshots: Vec<Snapshot>,
    ) -> Result<(), StoreError> {
        let early = |error| StoreError { error, is_before_header: true };
        let mut bytes = Vec::new();
        snapshots.iter().for_each(|it| it.encode(self.disk_bytes(), &mut bytes));
        let is_long = bytes.len() as u64 > MAX_SNAPSHOT_TABLE_BYTES;
        if is_long || snapshots.len() > MAX_SNAPSHOTS as usize {
            return Err(early(FormatError::too_big("there are too many snapshots").into()));
        }
        let new = self.co_write_new_table(co, bytes, Metadata::SNAPSHOT_TABLE).map_err(early)?;
        let is_there = self.co_settle(co).and_then(|()| self.co_sync_tables(co));
        is_there.map_err(|error| {
            self.give_back(&new);
            early(error)
        })?;
        let header = self.header();
        let old_bytes = self.snapshots().iter().map(Snapshot::file_bytes).sum::<u64>();
        self.co_update_header(co, |it| {
            it.snapshots_offset = new.start;
            it.snapshots = snapshots.len() as u32;
        })
        .map_err(|error| StoreError { error, is_before_header: false })?;
        snapshots.iter_mut().for_each(Snapshot::set_written);
        *self.snapshots() = snapshots;
        self.give_up(header.snapshots_offset..header.snapshots_offset + old_bytes);
        Ok(())
    }
}

/// Counts do not fall while this lives.
struct Parked<'a>(&'a Image);

impl<'a> Parked<'a> {
    fn new(image: &'a Image) -> Parked<'a> {
        Parked(image)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let Some(refcounts) = &mut state.refcounts {
            refcounts.unpark();
        }
        let waiting = state.take_waiting();
        drop(state);
        wake_all(waiting);
    }
}

/// Why another table of snapshots could not be stored.
struct StoreError {
    error: io::Error,
    /// The header leads to the old one.
    is_before_header: bool,
}

/// Where the snapshot with an id is.
fn position(snapshots: &[Snapshot], id: &str) -> io::Result<usize> {
    let found = snapshots.iter().position(|it| it.id == id.as_bytes());
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

/// The snapshot with an id, or else with a name.
fn find<'a>(snapshots: &'a [Snapshot], wanted: &str) -> Option<&'a Snapshot> {
    let wanted = wanted.as_bytes();
    let by_id = snapshots.iter().find(|it| it.id == wanted);
    by_id.or_else(|| snapshots.iter().find(|it| it.name == wanted))
}
