//! Space on the host: new blocks have it before they count anything, and what the file cannot have more of is
//! not asked for again and again.

use super::search::Gap;
use super::{Need, Refcounts};
use crate::layout::block_offset;

impl Refcounts {
    /// What a block without space needs.
    pub(crate) fn host_space(&self, index: u64) -> Need {
        let entry = self.table.get(index as usize).copied();
        Need::HostSpace { index, offset: entry.and_then(block_offset).unwrap_or_default() }
    }

    /// What a block needs that has no space, if there is one.
    pub(crate) fn block_without_space(&self) -> Option<Need> {
        self.without_space.first().map(|index| self.host_space(*index))
    }

    /// Whether a block has no space.
    pub(crate) fn needs_host_space(&self, index: u64) -> bool {
        self.without_space.contains(&index)
    }

    /// A block has space, and reads as zeroes.
    pub(crate) fn has_host_space(&mut self, index: u64) {
        self.without_space.remove(&index);
    }

    /// The host had no space at `host` bytes. If the file was never used there, or behind, it counts as one that
    /// ends there, until [`lift_limit`](Self::lift_limit).
    pub(crate) fn limit_to(&mut self, host: u64) {
        self.is_limited = true;
        self.end_run();
        let cluster = host >> self.geometry.cluster_bits();
        if cluster >= self.virgin_from {
            self.limit = self.limit.min(cluster);
        }
    }

    /// The host may have space. Returns whether it had none before.
    pub(crate) fn lift_limit(&mut self) -> bool {
        self.limit = self.max_end;
        let was_limited = std::mem::take(&mut self.is_limited);
        if was_limited {
            // Searches have looked before the limit alone.
            self.gaps.values_mut().for_each(Gap::reopen);
        }
        was_limited
    }

    /// Whether commits, and the end of requests, make clusters free.
    pub(crate) fn can_free(&self) -> bool {
        !self.owed.unlinked.is_empty()
            || !self.owed.lowers.is_empty()
            || self.owed.has_closed()
            || self.has_quarantine()
    }
}
