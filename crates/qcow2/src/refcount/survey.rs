//! Blocks that no allocation has needed yet: what is free in them is found in the background.

use super::search::Gap;
use super::{Need, Refcounts};

impl Refcounts {
    /// Whether there may be a block that was never read.
    pub(crate) fn has_unread(&self) -> bool {
        self.unread < self.table.len() as u64
    }

    /// A block that was never read, to be read and [told](Self::surveyed); `None` if there is none.
    pub(crate) fn next_unread(&mut self) -> Option<Need> {
        while self.has_unread() {
            let index = self.unread;
            if !self.gaps.contains_key(&index)
                && let Ok(Some(offset)) = self.block_offset(index)
            {
                return Some(Need::Block { index, offset });
            }
            self.unread += 1;
        }
        None
    }

    /// Notes how many clusters are free in a block that was read; `None`: it cannot be, and they stay unknown. If it
    /// came to memory meanwhile, all is known.
    pub(crate) fn surveyed(&mut self, index: u64, free: Option<u64>) {
        if let Some(free) = free {
            self.gaps.entry(index).or_insert_with(|| Gap::new(free));
        }
        self.unread = self.unread.max(index + 1);
    }
}
