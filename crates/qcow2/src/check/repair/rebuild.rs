//! Refcounts that are written anew, and with them the snapshot table, if it has to be.
//!
//! All that is written lies in clusters that nothing refers to, neither old table nor old blocks; one sector
//! of the header then leads to all of it at once. The new refcounts are those of the image that the
//! header leads to: what is old has none there.

use std::collections::BTreeSet;
use std::ops::Range;

use super::header::co_set;
use super::{Fixed, Repairer};
use crate::check::counts::{Counts, Kind};
use crate::layout::{FormatError, MAX_REFCOUNT_TABLE_BYTES};
use crate::source::ImageError;

/// Where the header has offset and clusters of the refcount table, then number and offset of snapshots, then
/// features and the width of refcounts.
const POINTERS_AT: usize = 48;
/// Length of an entry of the refcount table.
const ENTRY_BYTES: u64 = 8;

/// Where the new structures are to be, as numbers of clusters.
pub(super) struct Places {
    table: Range<u64>,
    /// The numbers of the blocks, and their clusters.
    blocks: Vec<(u64, u64)>,
    snapshots: Option<NewSnapshots>,
}

/// A snapshot table that is written.
struct NewSnapshots {
    count: u32,
    clusters: Range<u64>,
    bytes: Vec<u8>,
}

impl Repairer<'_, '_> {
    /// Finds room for all that is to be written anew, and counts it instead of what it replaces.
    ///
    /// # Errors
    /// EIO if something refers to clusters behind the end of the file that would come to be in it, or has the
    /// header as a table. EFBIG if the refcount table would be too large.
    pub(super) fn plan_rebuild(&mut self) -> Result<Places, ImageError> {
        if self.checker.counts.is_mixed(0) {
            let why = "refcounts cannot be written anew, as the header is used as something else";
            return Err(FormatError::io(why).into());
        }
        self.checker.forget_refcounts();
        let snapshots = self.place_snapshots()?;
        let places = Places { snapshots, ..self.place()? };
        let all = || places.table.clone().chain(places.blocks.iter().map(|it| it.1));
        for place in all() {
            self.checker.counts.add(place, 1, Kind::Structure)?;
        }
        let snapshots = places.snapshots.iter().flat_map(|it| it.clusters.clone());
        if all().chain(snapshots).any(|place| place >= self.checker.plan.first_behind) {
            let why = "refcounts cannot be written anew, as entries lead to where they would be, \
                       behind the end of the file";
            return Err(FormatError::io(why).into());
        }
        Ok(places)
    }

    /// Writes all refcounts anew. Durable on return.
    pub(super) fn co_rebuild(&mut self, places: &Places) -> Result<(), ImageError> {
        let cluster = self.checker.geometry.cluster_bytes();
        let mut table = vec![0; ((places.table.end - places.table.start) * cluster) as usize];
        for (number, place) in &places.blocks {
            self.co_go_on()?;
            let block = self.block(*number)?;
            self.file.co_write_at(self.co, place * cluster, &block)?;
            let at = (number * ENTRY_BYTES) as usize;
            table[at..at + 8].copy_from_slice(&(place * cluster).to_be_bytes());
        }
        self.file.co_write_at(self.co, places.table.start * cluster, &table)?;
        if let Some(new) = &places.snapshots {
            self.file.co_write_at(self.co, new.clusters.start * cluster, &new.bytes)?;
        }
        // All of it is there before the header leads to it.
        self.file.co_flush(self.co)?;
        let header = &mut self.checker.header;
        header.refcount_table_offset = places.table.start * cluster;
        header.refcount_table_clusters = (places.table.end - places.table.start) as u32;
        if let Some(new) = &places.snapshots {
            header.snapshots = new.count;
            header.snapshots_offset = new.clusters.start * cluster;
        }
        let mut pointers = header.refcount_table_offset.to_be_bytes().to_vec();
        pointers.extend(header.refcount_table_clusters.to_be_bytes());
        pointers.extend(header.snapshots.to_be_bytes());
        pointers.extend(header.snapshots_offset.to_be_bytes());
        if header.version >= 3 {
            // Up to the width: all of it lies in one sector.
            pointers.extend(header.incompatible.bits().to_be_bytes());
            pointers.extend(header.compatible.bits().to_be_bytes());
            pointers.extend(header.autoclear.bits().to_be_bytes());
            pointers.extend(header.refcount_order.to_be_bytes());
        }
        co_set(self.co, self.file, POINTERS_AT, &pointers)?;
        self.file.co_flush(self.co)?;
        let Fixed { corruptions, leaks, .. } = &mut self.fixed;
        *corruptions += self.checker.plan.refcounts + self.checker.plan.snapshots;
        *leaks += self.checker.check.report.leaks;
        Ok(())
    }

    fn place_snapshots(&mut self) -> Result<Option<NewSnapshots>, ImageError> {
        let checker = &mut self.checker;
        let Some(snapshots) = checker.plan.new_snapshots.take() else { return Ok(None) };
        let cluster = checker.geometry.cluster_bytes();
        let mut bytes = Vec::new();
        let disk_bytes = checker.header.disk_bytes();
        snapshots.iter().for_each(|it| it.encode(disk_bytes, &mut bytes));
        let old = checker.header.snapshots_offset / cluster;
        (old..old + checker.plan.snapshots_bytes.div_ceil(cluster))
            .for_each(|it| checker.counts.forget(it));
        let clusters = (bytes.len() as u64).div_ceil(cluster);
        let place = find_free(&checker.counts, 0, clusters);
        for cluster in place.clone() {
            checker.counts.add(cluster, 1, Kind::Structure)?;
        }
        bytes.resize((clusters * cluster) as usize, 0);
        Ok(Some(NewSnapshots { count: snapshots.len() as u32, clusters: place, bytes }))
    }

    /// The refcounts of a block.
    fn block(&self, number: u64) -> Result<Vec<u8>, ImageError> {
        let checker = &self.checker;
        let (per_block, width) = (checker.refcounts.per_block(), checker.refcounts.width);
        let mut block = vec![0; checker.geometry.cluster_bytes() as usize];
        let clusters = number * per_block..(number + 1) * per_block;
        let first = clusters.start;
        for cluster in checker.counts.range(clusters) {
            width.set(&mut block, (cluster - first) as usize, checker.wanted(cluster))?;
        }
        Ok(block)
    }

    /// Finds room for a table and the blocks that are needed, those that count themselves included.
    fn place(&self) -> Result<Places, ImageError> {
        let checker = &self.checker;
        let (counts, per_block) = (&checker.counts, checker.refcounts.per_block());
        let cluster = checker.geometry.cluster_bytes();
        let mut needed: BTreeSet<u64> = counts.iter().map(|it| it / per_block).collect();
        loop {
            let entries = needed.last().map_or(1, |last| last + 1);
            let bytes = (entries * ENTRY_BYTES).next_multiple_of(cluster);
            if bytes > MAX_REFCOUNT_TABLE_BYTES {
                return Err(FormatError::too_big("the new refcount table is too large").into());
            }
            let table = find_free(counts, 0, bytes / cluster);
            let mut next = 0;
            let mut blocks = Vec::new();
            for number in &needed {
                let mut place = find_free(counts, next, 1);
                if table.contains(&place.start) {
                    place = find_free(counts, table.end, 1);
                }
                next = place.end;
                blocks.push((*number, place.start));
            }
            let places = table.clone().chain(blocks.iter().map(|it| it.1));
            let before = needed.len();
            needed.extend(places.map(|it| it / per_block));
            if needed.len() == before {
                return Ok(Places { table, blocks, snapshots: None });
            }
        }
    }
}

/// The first `clusters` clusters in a row from `from` on that nothing refers to.
fn find_free(counts: &Counts, from: u64, clusters: u64) -> Range<u64> {
    let mut start = from;
    loop {
        match (start..start + clusters).rev().find(|it| !counts.is_free(*it)) {
            None => return start..start + clusters,
            Some(used) => start = used + 1,
        }
    }
}
