//! Space behind all clusters in use, with the blocks that count it, and a larger refcount table.
//!
//! A new block lies in the range that it counts wherever that can be. Where a run of clusters fills whole
//! ranges, their blocks lie before it, and are counted as it is. Either way nothing recurses: what is needed
//! is reckoned first, and then made.

use std::ops::Range;

use super::block::Block;
use super::search::Gap;
use super::{Need, Refcounts};
use crate::layout::MAX_REFCOUNT_TABLE_BYTES;
use crate::metadata::Metadata;

/// Clusters before the end of what a block counts from which on there is the next block.
const AHEAD: u64 = 64;

/// A refcount table that the header does not lead to yet, or may not.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewTable {
    pub(super) offset: u64,
    pub(super) clusters: u32,
    /// Its content is on file, and the header may lead to it.
    pub(super) is_durable: bool,
}

/// What lies where behind the tail: blocks, a table, and then the clusters that are wanted.
struct Layout {
    start: u64,
    /// Numbers of the blocks there are none of.
    blocks: Vec<u64>,
    table_clusters: u64,
    end: u64,
}

impl Layout {
    fn extra(&self) -> u64 {
        self.blocks.len() as u64 + self.table_clusters
    }
}

impl Refcounts {
    /// A run of `least` to `most` clusters behind all that are in use; `None` if the file ends there.
    pub(super) fn at_tail(&mut self, least: u64, most: u64) -> Result<Option<Range<u64>>, Need> {
        let old = self.find_tail()?;
        let mut start = old;
        let layout = loop {
            let Some(layout) = self.layout(start, least)? else { return Ok(None) };
            match self.last_used_in(&(layout.start..layout.end))? {
                Some(used) => start = used + 1,
                None => break layout,
            }
        };
        if !layout.blocks.is_empty() && !self.has_room() {
            return Err(Need::Memory);
        }
        self.check_free(&(layout.start..layout.end))?;
        self.make(&layout);
        self.reopen(&(old..start));
        self.tail = Some(layout.end - least);
        let first = layout.end - least;
        let index = first / self.per_block;
        let max_end = self.range_of(index).end.min(self.limit).min(first + most);
        let mut end = layout.end;
        let is_free = |it: &Self, cluster| {
            let at = (cluster - it.range_of(index).start) as usize;
            it.blocks.get(&index).is_some_and(|block| block.free.get(at))
        };
        while end < max_end
            && is_free(self, end)
            && self.owed.first_closed(&(end..end + 1)).is_none()
        {
            end += 1;
        }
        Ok(Some(first..end))
    }

    /// What a run of `clusters` clusters from `start` on needs; `None` if the file ends there.
    fn layout(&self, start: u64, clusters: u64) -> Result<Option<Layout>, Need> {
        let mut layout = Layout { start, blocks: Vec::new(), table_clusters: 0, end: 0 };
        loop {
            let extra = layout.extra();
            layout.end = start + extra + clusters;
            if layout.end > self.limit {
                return Ok(None);
            }
            layout.table_clusters = self.larger_table((layout.end - 1) / self.per_block + 1)?;
            layout.blocks.clear();
            for index in self.blocks_of(&(start..layout.end)) {
                if self.block_offset(index)?.is_none() {
                    layout.blocks.push(index);
                }
            }
            if layout.extra() == extra {
                return Ok(Some(layout));
            }
        }
    }

    /// Clusters of a table for `entries` entries; 0 if the one there is does.
    fn larger_table(&self, entries: u64) -> Result<u64, Need> {
        let has = self.table.len() as u64;
        if entries <= has {
            return Ok(0);
        }
        let cluster = self.geometry.cluster_bytes();
        let (needed, max) = ((entries * 8).div_ceil(cluster), MAX_REFCOUNT_TABLE_BYTES / cluster);
        match needed <= max {
            true => Ok(needed.max(2 * has * 8 / cluster).min(max)),
            false => Err(Need::TooBig),
        }
    }

    /// The last cluster of some that is in use, or closed. Of ranges that are filled all those with a block that is not
    /// in memory count as used: a long run reads no blocks for it.
    fn last_used_in(&mut self, clusters: &Range<u64>) -> Result<Option<u64>, Need> {
        let mut last = self.owed.first_closed(clusters).map(|closed| closed.end - 1);
        for index in self.blocks_of(clusters) {
            let range = self.range_of(index);
            let is_filled = clusters.start < range.start && range.end < clusters.end;
            if is_filled && !self.blocks.contains_key(&index) {
                let used = self.block_offset(index)?.map(|_| range.end - 1);
                last = last.max(used);
                continue;
            }
            let Some(block) = self.block(index)? else { continue };
            let mut at = clusters.start.max(range.start) - range.start;
            let end = clusters.end.min(range.end) - range.start;
            loop {
                at = block.free.next_clear_before(at as usize, end as usize) as u64;
                if at >= end {
                    break;
                }
                last = last.max(Some(range.start + at));
                at += 1;
            }
        }
        Ok(last)
    }

    fn make(&mut self, layout: &Layout) {
        let table_at = layout.start + layout.blocks.len() as u64;
        if layout.table_clusters > 0 {
            self.make_table(table_at, layout.table_clusters);
        }
        for (at, index) in (layout.start..).zip(&layout.blocks) {
            self.make_block(*index, at);
        }
        // All blocks are there: one may count another.
        for cluster in layout.start..layout.start + layout.extra() {
            let count = self.change(cluster, |_| 1);
            debug_assert_eq!(count, Some(1));
        }
        let end = self.bytes(&(layout.start..layout.start + layout.extra())).end;
        self.end = self.end.max(end);
    }

    /// Makes a block without counting it.
    fn make_block(&mut self, index: u64, cluster: u64) {
        let host = self.bytes(&(cluster..cluster + 1));
        // Nothing goes from memory for it: what is allocated now is counted in blocks that are there.
        let bytes = vec![0; self.geometry.cluster_bytes() as usize];
        let block = Block::new(self.width, bytes, self.unit as usize, true);
        self.blocks.insert(index, block);
        self.gaps.insert(index, Gap::new(self.per_block));
        self.table[index as usize] = host.start;
        self.dirty_entries.insert(index);
        self.without_space.insert(index);
        self.metadata.insert(host, Metadata::REFCOUNT_BLOCK);
    }

    /// Begins a larger table without counting it. The one before it is given up.
    fn make_table(&mut self, cluster: u64, clusters: u64) {
        let old = match &self.new_table {
            Some(new) => (new.offset, new.clusters),
            None => (self.table_offset, self.table_clusters),
        };
        let bytes = u64::from(old.1) * self.geometry.cluster_bytes();
        self.give_up(old.0..old.0.saturating_add(bytes), super::Discard::Keep);
        let host = self.bytes(&(cluster..cluster + clusters));
        self.table.resize(((host.end - host.start) / 8) as usize, 0);
        self.metadata.insert(host.clone(), Metadata::REFCOUNT_TABLE);
        self.new_table =
            Some(NewTable { offset: host.start, clusters: clusters as u32, is_durable: false });
    }

    /// Makes the block that comes after the one that counts the cluster before `end`, if it is soon needed.
    /// So its entry is durable before there are links that need it, and their commit syncs no more for it.
    pub(super) fn make_ahead(&mut self, end: u64) {
        let index = end.saturating_sub(1) / self.per_block;
        let range = self.range_of(index);
        let is_soon = range.end - end < AHEAD.min(self.per_block / 4) && self.tail == Some(end);
        let next = index + 1;
        let is_missing = self.table.get(next as usize) == Some(&0);
        if is_soon && is_missing && range.end < self.limit && self.has_room() {
            let cluster = range.end..range.end + 1;
            let is_free = self.metadata.overlap(self.bytes(&cluster), Metadata::all()).is_empty();
            if is_free && self.owed.first_closed(&cluster).is_none() {
                self.make_own(next);
            }
        }
    }

    /// Makes a block whose first cluster is its own.
    fn make_own(&mut self, index: u64) {
        let cluster = self.range_of(index).start;
        self.make_block(index, cluster);
        self.change(cluster, |_| 1);
        self.end = self.end.max(self.bytes(&(cluster..cluster + 1)).end);
    }

    /// Makes the block of a range without one, where the file cannot grow. `false` if it has no place there.
    pub(super) fn fill_hole(&mut self, index: u64) -> Result<bool, Need> {
        let range = self.range_of(index);
        let own = range.start..range.start + 1;
        if own.end >= self.limit || self.owed.first_closed(&own).is_some() {
            return Ok(false);
        }
        if !self.has_room() {
            return Err(Need::Memory);
        }
        self.check_free(&own)?;
        self.make_own(index);
        Ok(true)
    }
}
