//! Snapshots without entries that say zeroes, which version 2 does not know.
//!
//! Tables with such entries are not changed: others take their places, which share all the rest of what is mapped. For
//! each snapshot in turn:
//!
//! ```text
//! new tables, with zeroes as data where something lies below | counts up, new L1 table, new snapshot table | header |
//! counts down
//! ```
//!
//! Each step is durable before the next, as for [other changes](super) of snapshots, and so is what a crash leaves. A
//! table that several snapshots share is made once. A new table, and a new cluster, has a reference of its own until
//! all is done: so it stays if the snapshot that leads to it first fails.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use coblk_aio::{Co, IoVector};

use crate::image::Image;
use crate::layout::{L2Entry, Snapshot, l1_offset};
use crate::metadata::Metadata;
use crate::origin::Whose;

/// Most zeroes that are written at once, in bytes, or one cluster.
const PIECE_BYTES: u64 = 1 << 20;

/// What has been made for snapshots, and is given back when this is dropped, but for the references that snapshots
/// have by then.
struct Made<'a> {
    image: &'a Image,
    /// What lies below is seen where nothing is mapped.
    has_backing: bool,
    /// New tables, by the offset and the L1 index of those that they take the place of.
    tables: BTreeMap<(u64, u64), u64>,
    clusters: Vec<Range<u64>>,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        self.clusters.iter().for_each(|range| self.image.give_back(range));
    }
}

impl Image {
    /// Has no entry of a snapshot say zeroes. The caller has the turn of snapshots, and no entry of the disk says
    /// zeroes.
    ///
    /// # Errors
    /// ECANCELED; ENOSPC; EINVAL if a refcount is at its maximum; those of reading and writing. Snapshots read as
    /// before then.
    pub(crate) fn co_expand_snapshots(&self, co: &Co<'_>, has_backing: bool) -> io::Result<()> {
        let count = self.snapshots().len();
        if count == 0 {
            return Ok(());
        }
        let marked = self.co_mark(co)?;
        let (tables, clusters) = Default::default();
        let mut made = Made { image: self, has_backing, tables, clusters };
        let expanded =
            (0..count).try_for_each(|index| self.co_expand_snapshot(co, index, &mut made));
        drop(made);
        self.co_settle(co)?;
        // The disk may have become the only owner of something.
        self.co_restore_flags(co)?;
        marked.co_end(co)?;
        expanded
    }

    fn co_expand_snapshot(&self, co: &Co<'_>, index: usize, made: &mut Made<'_>) -> io::Result<()> {
        let mut snapshots = self.snapshots().clone();
        let Snapshot { l1_offset, l1_entries, .. } = snapshots[index];
        let (whose, place) = (Whose::Snapshot(l1_offset), self.place_of_l1(l1_offset, l1_entries));
        let old = self.co_l1_of(co, &snapshots[index])?;
        let new = made.co_l1(co, &old, whose)?;
        if new == old {
            return Ok(());
        }
        let bytes = new.iter().flat_map(|word| word.to_be_bytes()).collect();
        let l1 = self.co_write_new_table(co, bytes, Metadata::INACTIVE_L1)?;
        if let Some(refcounts) = &mut self.lock().refcounts {
            refcounts.origin_mut().has_made_snapshot(l1.start);
        }
        let new_whose = Whose::Snapshot(l1.start);
        let added = self.co_add_references(co, &new, new_whose);
        added.inspect_err(|_| self.give_back(&l1))?;
        snapshots[index].l1_offset = l1.start;
        if let Err(error) = self.co_store_snapshots(co, snapshots) {
            // The header may lead to them, but for the first step.
            if error.is_before_header {
                self.give_back(&l1);
                self.co_drop_references(co, &new, new_whose)?;
            }
            return Err(error.error);
        }
        self.co_drop_references(co, &old, whose)?;
        self.give_up(place);
        Ok(())
    }
}

impl Made<'_> {
    /// An L1 table that leads to new tables where old ones say zeroes. All that the old ones map is checked.
    fn co_l1(&mut self, co: &Co<'_>, old: &[u64], whose: Whose) -> io::Result<Vec<u64>> {
        let image = self.image;
        let mut new = old.to_vec();
        for (word, index) in new.iter_mut().zip(0..) {
            if !co.is_wanted() {
                return Err(io::Error::from_raw_os_error(libc::ECANCELED));
            }
            let table = l1_offset(*word, image.geometry);
            let Some(table) = table.map_err(|error| image.co_corrupt(co, &error))? else {
                continue;
            };
            if let Some(there) = self.tables.get(&(table, index)) {
                *word = *there;
                continue;
            }
            image.co_give_way(co);
            let entries = image.co_table(co, table)?;
            let origin = image.check_origin(index, table, &entries, whose);
            origin.map_err(|error| image.co_corrupt(co, &error))?;
            if entries.iter().any(|entry| entry.says_zeroes()) {
                *word = self.co_table(co, index, entries)?;
                self.tables.insert((table, index), *word);
            }
        }
        Ok(new)
    }

    /// Makes a table for an L1 index, of entries that do not say zeroes then. Returns its offset.
    fn co_table(&mut self, co: &Co<'_>, index: u64, mut entries: Vec<L2Entry>) -> io::Result<u64> {
        let image = self.image;
        let cluster = image.geometry.cluster_bytes();
        let guest = image.geometry.l1_start(index).unwrap_or(u64::MAX);
        let most = (PIECE_BYTES / cluster).max(1) as usize;
        let mut at = 0;
        while let Some(first) = entries[at..].iter().position(|entry| entry.says_zeroes()) {
            let first = at + first;
            image.co_give_way(co);
            let follow = entries[first..].iter().take(most).take_while(|it| it.says_zeroes());
            let count = follow.count();
            let places = match self.has_backing {
                false => None,
                true => {
                    let guest = guest.saturating_add(first as u64 * cluster);
                    Some(self.co_zeroes(co, guest, count as u64)?)
                }
            };
            let count = places.as_ref().map_or(count as u64, |it| (it.end - it.start) / cluster);
            for (entry, number) in entries[first..].iter_mut().zip(0..count) {
                let word = places.as_ref().map_or(0, |it| it.start + number * cluster);
                *entry = L2Entry { word, bitmap: 0 };
            }
            at = first + count as usize;
        }
        let bytes = entries.iter().flat_map(|entry| entry.word.to_be_bytes()).collect();
        let table = image.co_write_new_table(co, bytes, Metadata::INACTIVE_L2)?;
        self.clusters.push(table.clone());
        if let Some(refcounts) = &mut image.lock().refcounts {
            refcounts.origin_mut().has_made_table(index);
        }
        Ok(table.start)
    }

    /// Up to `count` new clusters that read as zeroes, for the disk from `guest` on.
    fn co_zeroes(&mut self, co: &Co<'_>, guest: u64, count: u64) -> io::Result<Range<u64>> {
        let image = self.image;
        let places = image.co_with_refcounts(co, |it| it.allocate(count, None))?;
        self.clusters.push(places.clone());
        let bytes = places.end - places.start;
        if image.is_virgin(places.start, bytes / image.geometry.cluster_bytes()) {
            image.co_grow_file(co, places.end)?;
        } else {
            let zeroes = vec![0; bytes as usize];
            image.co_write_at(co, (guest, places.start), &IoVector::from(&zeroes[..]))?;
        }
        let mut state = image.lock();
        if let Some(refcounts) = &mut state.refcounts {
            let last = guest.saturating_add(bytes - 1);
            for slice in image.slice(guest)..=image.slice(last) {
                refcounts.origin_mut().has_linked(slice, places.end);
            }
        }
        Ok(places)
    }
}
