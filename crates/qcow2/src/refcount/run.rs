//! The run: clusters behind all in use that are counted before they are allocated.
//!
//! A commit that writes refcounts anyway counts some more clusters. When these are allocated no refcount changes, and
//! the next commit has none to write, nor to sync before its links. So a flush after first writes is one sync.
//!
//! # What holds
//!
//! * Clusters of the run have count 1 in memory, and nothing refers to them. They leak if the program ends without
//!   a close; a close, a check and whatever has the mapping stand still [end](Refcounts::end_run) the run.
//! * A commit that counts a run writes the counts as it writes others. If it fails they are dirty, as others are,
//!   and the next commit writes them before its links. So an allocation from the run asks for no commit to have ended.
//! * Where the run ends at the tail, what follows can be allocated together with it.

use std::ops::Range;

use super::owed::GivenUp;
use super::{Need, Refcounts};

/// Clusters of the first run.
const FIRST_CLUSTERS: u64 = 8;
/// The longest run in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// See the head of the file.
#[derive(Default)]
pub(super) struct Run {
    /// What is left of it.
    left: Range<u64>,
    /// How long the next one is; it doubles as often as one was used up.
    next: u64,
    /// Clusters were allocated behind it.
    is_used_up: bool,
}

impl Refcounts {
    /// Takes 1 to `most` clusters from the run, and from behind it; they are counted by the caller.
    pub(super) fn in_run(&mut self, least: u64, most: u64) -> Result<Option<Range<u64>>, Need> {
        let Range { start, end } = self.run.left;
        if start == end || end - start < least && self.tail != Some(end) {
            return Ok(None);
        }
        if end - start >= most {
            return Ok(Some(start..start + most));
        }
        let behind = match self.tail == Some(end) {
            true => self.at_tail(1, most - (end - start))?,
            false => None,
        };
        let run = match behind {
            Some(behind) if behind.start == end => start..behind.end,
            _ => start..end,
        };
        Ok((run.end - run.start >= least).then_some(run))
    }

    /// Clusters are allocated. Returns those of them that are not counted yet.
    pub(super) fn leave_run(&mut self, clusters: &Range<u64>) -> Range<u64> {
        if clusters.start != self.run.left.start || self.run.left.is_empty() {
            return clusters.clone();
        }
        let counted = clusters.end.min(self.run.left.end);
        self.run.left.start = counted;
        counted..clusters.end
    }

    /// The run is used up, and others were allocated.
    pub(super) fn miss_run(&mut self) {
        self.run.is_used_up |= self.run.left.is_empty();
    }

    /// Counts more clusters, with a commit that writes refcounts.
    pub(super) fn extend_run(&mut self) {
        if !std::mem::take(&mut self.run.is_used_up) || self.is_limited {
            return;
        }
        let max = (MAX_BYTES >> self.geometry.cluster_bits()).max(1);
        self.run.next = (self.run.next * 2).clamp(FIRST_CLUSTERS.min(max), max);
        let Some(tail) = self.tail else { return };
        // Within what one block counts, which is in memory, as it counts the cluster before.
        let index = tail / self.per_block;
        if tail % self.per_block == 0 || self.needs_host_space(index) {
            return;
        }
        let max_end = self.range_of(index).end.min(self.limit).min(tail + self.run.next);
        let Some(block) = self.blocks.get(&index) else { return };
        let first = self.range_of(index).start;
        let is_free = |cluster: &u64| {
            block.free.get((cluster - first) as usize)
                && self.owed.first_closed(&(*cluster..cluster + 1)).is_none()
        };
        let end = (tail..max_end).take_while(is_free).last().map_or(tail, |last| last + 1);
        if end == tail || self.check_free(&(tail..end)).is_err() {
            return;
        }
        for cluster in tail..end {
            self.change(cluster, |_| 1);
        }
        self.run.left = tail..end;
        self.tail = Some(end);
        self.make_ahead(end);
    }

    /// Ends the run: what is left of it is free.
    pub(crate) fn end_run(&mut self) {
        let left = std::mem::take(&mut self.run.left);
        self.run.is_used_up = false;
        if left.is_empty() {
            return;
        }
        if self.tail == Some(left.end) {
            self.tail = Some(left.start);
        }
        self.lower(GivenUp { clusters: left, discard: None });
    }

    /// Whether a host offset is the next of the run.
    pub(super) fn is_next_of_run(&self, host: u64) -> bool {
        !self.run.left.is_empty() && host >> self.geometry.cluster_bits() == self.run.left.start
    }

    #[cfg(test)]
    pub(super) fn run(&self) -> Range<u64> {
        self.run.left.clone()
    }
}
