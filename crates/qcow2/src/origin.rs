//! [`Origin`]: which entries may lead behind the end that the file had when its image was opened for writes.
//!
//! # What holds
//!
//! The file of an image that is written becomes longer, and its new clusters belong to the entries that this
//! node links there. An image may come with entries that lead there already: its author has made them, or its
//! file was cut off. They are corrupt, and would come to life with the growth, as second owners of clusters
//! that the node hands out. So, of the clusters behind the end at the opening:
//!
//! * a slice of an L2 table comes into the cache only if none of its entries leads there, or if this node
//!   has linked such a cluster in that slice before. By induction each entry in the cache is good: the slice
//!   had none of them when it was loaded first, and all that came later were linked by this node;
//! * a table that lies there is read only if this node has made one for that L1 entry;
//! * what a snapshot of the image as it was opened maps does not lie there, and what the disk maps does as
//!   above, before a snapshot is made, applied or deleted;
//! * a refcount block that lies there is none, unless this node has made it.
//!
//! This is looked at when a slice is loaded, and a hit pays nothing. Entries that lead to clusters within the
//! file whose refcount is 0 are not found in this way, nor are two entries that lead to one cluster: only a
//! check of the whole image finds those.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::layout::Corruption;

/// See the head of the file; a part of the [`Refcounts`].
pub(crate) struct Origin {
    /// Where the file ended, with its last cluster.
    end: u64,
    /// Slices in which this node has linked clusters behind that.
    slices: Numbers,
    /// L1 entries that this node has made a table for.
    tables: Numbers,
    /// Offsets of L1 tables of snapshots that this node has made.
    snapshots: BTreeSet<u64>,
}

/// Whose mapping an L1 table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// That of the disk.
    Disk,
    /// That of the snapshot whose L1 table has this offset.
    Snapshot(u64),
}

impl Origin {
    /// For a file that ends at `file_end`, with clusters of `cluster` bytes.
    pub(crate) fn new(file_end: u64, cluster: u64) -> Origin {
        Origin {
            end: file_end.checked_next_multiple_of(cluster).unwrap_or(u64::MAX),
            slices: Numbers::default(),
            tables: Numbers::default(),
            snapshots: BTreeSet::new(),
        }
    }

    /// Whether clusters that end at `end` bytes may lie behind the end at the opening.
    fn is_behind(&self, end: u64) -> bool {
        end > self.end
    }

    /// An entry of a slice leads to clusters that this node has allocated, which end at `end` bytes.
    pub(crate) fn has_linked(&mut self, slice: u64, end: u64) {
        if self.is_behind(end) {
            self.slices.insert(slice);
        }
    }

    /// This node has made a table for an L1 entry.
    pub(crate) fn has_made_table(&mut self, index: u64) {
        self.tables.insert(index);
    }

    /// This node has made a snapshot with the L1 table at this offset.
    pub(crate) fn has_made_snapshot(&mut self, l1_offset: u64) {
        self.snapshots.insert(l1_offset);
    }

    /// Whether all that was mapped is as it was when the image was opened.
    fn is_old(&self, whose: Whose) -> bool {
        matches!(whose, Whose::Snapshot(l1) if !self.snapshots.contains(&l1))
    }

    /// Checks that entries of a slice, whose clusters end at `end` bytes at most, may lead there.
    pub(crate) fn check_slice(&self, slice: u64, end: u64, whose: Whose) -> Result<(), Corruption> {
        let is_linked = !self.is_old(whose) && self.slices.contains(slice);
        self.check("cluster that ends", end, is_linked)
    }

    /// Checks that a table may be where it is, for an L1 entry.
    pub(crate) fn check_table(
        &self,
        index: u64,
        table: &Range<u64>,
        whose: Whose,
    ) -> Result<(), Corruption> {
        let is_made = !self.is_old(whose) && self.tables.contains(index);
        self.check("L2 table that ends", table.end, is_made)
    }

    fn check(&self, what: &str, end: u64, is_own: bool) -> Result<(), Corruption> {
        if !self.is_behind(end) || is_own {
            return Ok(());
        }
        let what =
            format_args!("{what} at {end:#x} is behind the end of the file as it was opened");
        Err(Corruption::new(what, Some(end)))
    }
}

/// A set of numbers of which many are close to each other.
#[derive(Default)]
struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    fn insert(&mut self, number: u64) {
        *self.0.entry(number / 64).or_default() |= 1 << (number % 64);
    }

    fn contains(&self, number: u64) -> bool {
        self.0.get(&(number / 64)).is_some_and(|bits| bits >> (number % 64) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 10 << 16;

    fn origin() -> Origin {
        // The last cluster is not all there.
        Origin::new(END - 5, 1 << 16)
    }

    #[test]
    fn q141_q206_what_leads_behind_the_end_was_linked_by_this_node() {
        let mut origin = origin();
        assert_eq!(origin.check_slice(7, END, Whose::Disk), Ok(()));
        let error = origin.check_slice(7, END + 1, Whose::Disk).unwrap_err();
        assert!(error.to_string().contains("behind the end"), "{error}");
        origin.has_linked(7, END);
        assert!(origin.check_slice(7, END + 1, Whose::Disk).is_err(), "linked within the file");
        origin.has_linked(7, END + 1);
        assert_eq!(origin.check_slice(7, u64::MAX, Whose::Disk), Ok(()));
        for other in [6, 8, 71, 7 + 64] {
            assert!(origin.check_slice(other, END + 1, Whose::Disk).is_err(), "{other}");
        }
        let table = END..END + (1 << 16);
        assert!(origin.check_table(3, &table, Whose::Disk).is_err());
        assert_eq!(origin.check_table(3, &(0..END), Whose::Disk), Ok(()));
        origin.has_made_table(3);
        assert_eq!(origin.check_table(3, &table, Whose::Disk), Ok(()));
    }

    #[test]
    fn q141_q155_what_an_old_snapshot_maps_lies_in_the_file_as_it_was() {
        let mut origin = origin();
        let (old, new) = (Whose::Snapshot(1 << 16), Whose::Snapshot(2 << 16));
        origin.has_made_snapshot(2 << 16);
        origin.has_linked(7, END + 1);
        origin.has_made_table(3);
        let table = END..END + (1 << 16);
        assert_eq!(origin.check_slice(7, END + 1, new), Ok(()));
        assert_eq!(origin.check_table(3, &table, new), Ok(()));
        assert!(origin.check_slice(7, END + 1, old).is_err());
        assert!(origin.check_table(3, &table, old).is_err());
    }
}
