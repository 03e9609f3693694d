//! The end of the file: where it may be cut, and blocks that count nothing any more.

use super::{Discard, Need, Refcounts};

impl Refcounts {
    /// Gives up the last blocks, as far as they count nothing but themselves. No count waits to be lowered.
    /// The next commit makes that durable; their own clusters are not used until then.
    pub(crate) fn drop_empty_blocks(&mut self) -> Result<(), Need> {
        for index in (1..self.table.len() as u64).rev() {
            let Some(offset) = self.block_offset(index)? else { continue };
            let range = self.range_of(index);
            let cluster = offset >> self.geometry.cluster_bits();
            let per_block = self.per_block;
            let used = self.block(index)?.map_or(0, |block| per_block - block.free.count());
            let is_own = range.contains(&cluster);
            let waits = self.owed.lowers.contains_key(&index);
            let is_committing = self.blocks.get(&index).is_some_and(|it| !it.committing.is_empty());
            if used > u64::from(is_own) || waits || is_committing {
                break;
            }
            self.blocks.remove(&index);
            self.without_space.remove(&index);
            self.gaps.remove(&index);
            self.table[index as usize] = 0;
            self.dirty_entries.insert(index);
            self.tail = None;
            match is_own {
                // The count goes with the block.
                true => self.owed.dropped.insert(cluster..cluster + 1),
                false => self.give_up(self.cluster_at(offset), Discard::Keep),
            }
        }
        Ok(())
    }

    /// Nothing on file leads to blocks any more that were dropped.
    pub(super) fn end_dropped(&mut self, dropped: super::Ranges) {
        for clusters in dropped.iter() {
            self.touch_space(clusters.clone());
            self.metadata.remove(self.bytes(&clusters));
        }
    }

    /// Where the last cluster ends that is in use, in host bytes. What is behind may be cut off.
    pub(crate) fn last_used(&mut self) -> Result<u64, Need> {
        let mut index = self.find_tail()?.div_ceil(self.per_block);
        let last = (0..self.table.len() as u64).rev().find(|it| self.table[*it as usize] != 0);
        index = index.max(last.map_or(0, |last| last + 1));
        while index > 0 {
            index -= 1;
            let start = self.range_of(index).start;
            if let Some(last) = self.block(index)?.and_then(|block| block.free.last_clear()) {
                return Ok(self.bytes(&(0..start + last as u64 + 1)).end);
            }
        }
        Ok(self.geometry.cluster_bytes())
    }
}
