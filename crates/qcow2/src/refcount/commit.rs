//! What a commit writes of refcounts, as of one instant, and what is left if it fails.

use std::collections::BTreeSet;

use super::Refcounts;
use super::block::Block;
use super::grow::NewTable;
use super::owed::GivenUp;
use crate::layout::block_offset;

/// Copies of what changed, for one commit: host offsets, and bytes to be written there.
#[derive(Debug, Default)]
pub(crate) struct RefcountPlan {
    /// Blocks, and the table if it is new; durable before anything else of the commit.
    pub(crate) stage1: Vec<(u64, Vec<u8>)>,
    /// Entries of the table.
    pub(crate) entries: Vec<(u64, Vec<u8>)>,
    /// Whether `entries` and `table` are to be durable before links of this commit. Else entries go with
    /// them, and there is no table.
    pub(crate) entries_are_needed: bool,
    /// Offset and clusters of the table, for the header to lead to.
    pub(crate) table: Option<(u64, u32)>,
    /// Set by the commit once stage 1 is durable.
    pub(crate) stage1_is_durable: bool,
    unlinked: Vec<GivenUp>,
    indices: BTreeSet<u64>,
    /// A new table is among stage 1.
    has_new_table: bool,
}

impl Refcounts {
    /// Copies what a commit that begins now has to write, and takes what was given up until now.
    pub(crate) fn begin_commit(&mut self) -> RefcountPlan {
        self.extend_run();
        let mut plan = RefcountPlan {
            unlinked: std::mem::take(&mut self.owed.unlinked),
            indices: &self.dirty_entries - &self.without_space,
            table: self.new_table.as_ref().map(|it| (it.offset, it.clusters)),
            ..RefcountPlan::default()
        };
        self.dirty_entries = &self.dirty_entries & &self.without_space;
        self.owed.dropping = std::mem::take(&mut self.owed.dropped);
        let has_space = |it: &(&u64, &mut Block)| !self.without_space.contains(it.0);
        for (index, block) in self.blocks.iter_mut().filter(has_space) {
            let entry = self.table.get(*index as usize).copied();
            let Some(offset) = entry.and_then(block_offset) else { continue };
            let parts = block.begin_commit().into_iter();
            plan.stage1.extend(parts.map(|(at, bytes)| (offset + at, bytes)));
        }
        plan.entries_are_needed =
            plan.table.is_some() || plan.indices.iter().any(|index| self.counts_others(*index));
        match &self.new_table {
            // Nothing leads to it: it may have entries of blocks that become durable with it.
            Some(new) if !new.is_durable => {
                let entries = (0..self.table.len()).map(|index| self.entry_on_file(index));
                let bytes = entries.flat_map(u64::to_be_bytes).collect();
                plan.stage1.push((new.offset, bytes));
                plan.has_new_table = true;
            }
            _ => plan.entries = self.entries(&plan.indices),
        }
        plan
    }

    /// Whether a new block counts more than itself.
    fn counts_others(&self, index: u64) -> bool {
        let used = |index| self.blocks.get(&index).map(|block| self.per_block - block.free.count());
        let own = self.table.get(index as usize).copied().and_then(block_offset);
        let is_own =
            |offset| self.range_of(index).contains(&(offset >> self.geometry.cluster_bits()));
        used(index) > Some(u64::from(own.is_some_and(is_own)))
    }

    /// What a commit writes of the table.
    fn entry_on_file(&self, index: usize) -> u64 {
        if self.needs_host_space(index as u64) { 0 } else { self.table[index] }
    }

    /// The units of the table that have some entries.
    fn entries(&self, indices: &BTreeSet<u64>) -> Vec<(u64, Vec<u8>)> {
        let offset = self.new_table.as_ref().map_or(self.table_offset, |it| it.offset);
        let per_unit = self.unit.min(self.geometry.cluster_bytes()) / 8;
        let units: BTreeSet<u64> = indices.iter().map(|index| index / per_unit).collect();
        let unit = |unit: u64| {
            let first = (unit * per_unit) as usize;
            let entries = first..self.table.len().min(first + per_unit as usize);
            let entries = entries.map(|index| self.entry_on_file(index));
            (offset + unit * per_unit * 8, entries.flat_map(u64::to_be_bytes).collect())
        };
        units.into_iter().map(unit).collect()
    }

    /// Ends a commit. If it is done, its links and unlinkings are durable, and counts fall. If not, all that
    /// it was to write is unknown on file, and waits for the next one.
    pub(crate) fn end_commit(&mut self, plan: RefcountPlan, is_done: bool) {
        for block in self.blocks.values_mut() {
            block.end_commit(is_done);
        }
        let is_current = |new: &&mut NewTable| plan.table == Some((new.offset, new.clusters));
        if let Some(new) = self.new_table.as_mut().filter(is_current) {
            new.is_durable |= plan.has_new_table && (plan.stage1_is_durable || is_done);
        }
        let dropping = std::mem::take(&mut self.owed.dropping);
        if !is_done {
            dropping.iter().for_each(|clusters| self.owed.dropped.insert(clusters));
            self.dirty_entries.extend(plan.indices);
            let later = std::mem::replace(&mut self.owed.unlinked, plan.unlinked);
            self.owed.unlinked.extend(later);
            return;
        }
        if let Some((offset, clusters)) = plan.table {
            (self.table_offset, self.table_clusters) = (offset, clusters);
            self.new_table.take_if(|new| new.offset == offset);
        }
        self.end_dropped(dropping);
        for given_up in plan.unlinked {
            self.lower_or_park(given_up);
        }
    }

    /// Whether a commit has nothing to write and nothing to lower.
    pub(crate) fn is_clean(&self) -> bool {
        let is_written = |index: &u64| !self.without_space.contains(index);
        self.blocks.iter().all(|(index, block)| !block.is_changed() || !is_written(index))
            && !self.dirty_entries.iter().any(is_written)
            && self.new_table.is_none()
            && self.owed.unlinked.is_empty()
            && self.owed.lowers.is_empty()
    }

    /// Whether so much has changed that a commit should not wait for a flush.
    pub(crate) fn wants_commit(&self) -> bool {
        self.has_many_unlinked() || !self.has_room()
    }
}
