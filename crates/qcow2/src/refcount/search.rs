//! Where clusters are allocated: near a goal, in gaps that are known, behind all that are in use, and only
//! then in blocks that have to be read for it.

use std::ops::Range;

use super::block::Block;
use super::{Need, Refcounts};
use crate::layout::Corruption;
use crate::metadata::Metadata;

/// Blocks that one allocation looks for a gap in, while there is space behind all clusters in use.
const MAX_LOOKS: usize = 32;

/// What is known about the free clusters of a block, also while it is not in memory.
#[derive(Clone, Debug)]
pub(super) struct Gap {
    /// Clusters with count 0.
    free: u64,
    /// No run of free clusters is longer.
    longest: u64,
    /// Where the next search begins, from the first cluster of the block on.
    cursor: u64,
}

impl Gap {
    pub(super) fn new(free: u64) -> Gap {
        Gap { free, longest: free, cursor: 0 }
    }

    pub(super) fn used(&mut self, clusters: u64) {
        self.free -= clusters;
        self.longest = self.longest.min(self.free);
    }

    pub(super) fn freed(&mut self, clusters: u64) {
        self.free += clusters;
        self.longest = self.free;
    }

    /// There may be free clusters that searches have not seen.
    pub(super) fn reopen(&mut self) {
        self.longest = self.free;
    }

    pub(super) fn free(&self) -> u64 {
        self.free
    }
}

impl Refcounts {
    /// Allocates 1 to `clusters` clusters that follow each other: at the host offset `goal`, if they are free.
    /// Returns their host bytes.
    pub(crate) fn allocate(
        &mut self,
        clusters: u64,
        goal: Option<u64>,
    ) -> Result<Range<u64>, Need> {
        let (most, tail) = (clusters.clamp(1, self.per_block), self.begin()?);
        let mut found = match goal {
            Some(goal) if self.is_next_of_run(goal) => self.in_run(1, most)?,
            Some(goal) => self.near(goal >> self.geometry.cluster_bits(), most),
            None => None,
        };
        if found.is_none() {
            found = self.in_gaps(tail, most, most, MAX_LOOKS)?;
        }
        let run = match found {
            Some(run) => run,
            None => self.behind_all(1, most)?,
        };
        self.take(run)
    }

    /// Allocates `clusters` clusters that follow each other, for metadata. Returns their host offset.
    pub(crate) fn allocate_exact(&mut self, clusters: u64, kind: Metadata) -> Result<u64, Need> {
        let (clusters, tail) = (clusters.max(1), self.begin()?);
        let fits = clusters <= self.per_block;
        let found = match fits {
            true => self.in_gaps(tail, clusters, clusters, MAX_LOOKS)?,
            false => None,
        };
        let run = match found {
            Some(run) => run,
            None => self.behind_all(clusters, clusters)?,
        };
        let host = self.take(run)?;
        self.metadata.insert(host.clone(), kind);
        Ok(host.start)
    }

    /// Clusters of the run, or behind all that are in use; where that cannot be, wherever there are some.
    fn behind_all(&mut self, least: u64, most: u64) -> Result<Range<u64>, Need> {
        if let Some(run) = self.in_run(least, most)? {
            return Ok(run);
        }
        if let Some(run) = self.at_tail(least, most)? {
            return Ok(run);
        }
        self.end_run();
        match least <= self.per_block {
            true => self.in_scarcity(least, most),
            false => Err(self.nothing()),
        }
    }

    /// The cluster behind all that are in use.
    fn begin(&mut self) -> Result<u64, Need> {
        if let Some(corruption) = &self.corruption {
            return Err(Need::Corrupt(corruption.clone()));
        }
        // One made ahead is to be durable before it is needed.
        match self.block_without_space().filter(|_| !self.is_limited) {
            Some(need) => Err(need),
            None => self.find_tail(),
        }
    }

    pub(super) fn find_tail(&mut self) -> Result<u64, Need> {
        if let Some(tail) = self.tail {
            return Ok(tail);
        }
        // Blocks of what is behind the end of the file do not make it longer.
        let end = self.end.div_ceil(self.geometry.cluster_bytes());
        let mut tail = end;
        for index in (0..(end / self.per_block + 1).min(self.table.len() as u64)).rev() {
            if let Some(block) = self.block(index)? {
                let used = block.free.last_clear().map_or(0, |last| last as u64 + 1);
                tail = self.range_of(index).start + used;
                break;
            }
        }
        self.tail = Some(tail);
        Ok(tail)
    }

    /// Free clusters that begin with `cluster`.
    fn near(&self, cluster: u64, most: u64) -> Option<Range<u64>> {
        let index = cluster / self.per_block;
        let block = self.blocks.get(&index)?;
        let range = self.range_of(index);
        if !block.free.get((cluster - range.start) as usize) {
            return None;
        }
        let within = cluster..range.end.min(self.limit).min(cluster + most);
        self.run_in(block, &range, within, 1, most).ok().filter(|run| run.start == cluster)
    }

    /// The first run of free clusters of a block that counts those of `range`, of `least` to `most`; if there
    /// is none, how long the longest is.
    fn run_in(
        &self,
        block: &Block,
        range: &Range<u64>,
        within: Range<u64>,
        least: u64,
        most: u64,
    ) -> Result<Range<u64>, u64> {
        let (mut at, mut longest) = (within.start, 0);
        while at < within.end {
            let start = range.start + block.free.next_set((at - range.start) as usize) as u64;
            if start >= within.end {
                break;
            }
            let max_end = within.end.min(start.saturating_add(most));
            let end = block.free.next_clear_before(
                (start - range.start) as usize,
                (max_end - range.start) as usize,
            );
            let end = range.start + end as u64;
            let mut from = start;
            while from < end {
                let closed = self.owed.first_closed(&(from..end));
                let until = closed.as_ref().map_or(end, |closed| closed.start);
                if until - from >= least {
                    return Ok(from..until);
                }
                longest = longest.max(until - from);
                from = closed.map_or(end, |closed| closed.end);
            }
            at = end;
        }
        Err(longest)
    }

    /// A run of free clusters below the tail, in blocks that were read. At most `looks` blocks are looked at.
    fn in_gaps(
        &mut self,
        tail: u64,
        least: u64,
        most: u64,
        looks: usize,
    ) -> Result<Option<Range<u64>>, Need> {
        let from = self.gap_cursor;
        let around = self.gaps.range(from..).chain(self.gaps.range(..from));
        let seen: Vec<u64> = around.take(looks).map(|(index, _)| *index).collect();
        for index in seen {
            self.gap_cursor = index;
            if self.gaps.get(&index).is_none_or(|gap| gap.longest < least) {
                continue;
            }
            if let Some(run) = self.in_gap(index, tail, least, most)? {
                return Ok(Some(run));
            }
        }
        self.gap_cursor += 1;
        Ok(None)
    }

    fn in_gap(
        &mut self,
        index: u64,
        tail: u64,
        least: u64,
        most: u64,
    ) -> Result<Option<Range<u64>>, Need> {
        let range = self.range_of(index);
        let end = range.end.min(self.limit).min(tail.max(range.start));
        self.block(index)?;
        let (Some(block), Some(gap)) = (self.blocks.get(&index), self.gaps.get(&index)) else {
            return Ok(None);
        };
        let cursor = (range.start + gap.cursor).min(end);
        let mut found = self.run_in(block, &range, cursor..end, least, most);
        if let Err(behind) = found {
            // A run may reach over the place where the search began.
            let before = self.run_in(block, &range, range.start..end, least, most);
            found = before.map_err(|before| before.max(behind));
        }
        if let Some(gap) = self.gaps.get_mut(&index) {
            match &found {
                Ok(run) => gap.cursor = run.end - range.start,
                Err(longest) => gap.longest = *longest,
            }
        }
        Ok(found.ok())
    }

    /// The file cannot grow: reads block by block until there is a gap.
    fn in_scarcity(&mut self, least: u64, most: u64) -> Result<Range<u64>, Need> {
        if let Some(run) = self.in_gaps(u64::MAX, least, most, usize::MAX)? {
            return Ok(run);
        }
        for index in self.blocks_of(&(0..self.limit)) {
            if index >= self.table.len() as u64 {
                break;
            }
            if self.gaps.contains_key(&index) {
                continue;
            }
            if self.block(index)?.is_none() && !self.fill_hole(index)? {
                continue;
            }
            if let Some(run) = self.in_gap(index, u64::MAX, least, most)? {
                return Ok(run);
            }
        }
        Err(self.nothing())
    }

    /// Why there is no space.
    fn nothing(&self) -> Need {
        if self.can_free() { Need::Commit } else { Need::Space }
    }

    /// Counts clusters that were found free.
    pub(super) fn take(&mut self, run: Range<u64>) -> Result<Range<u64>, Need> {
        self.check_free(&run)?;
        let mut blocks = self.blocks_of(&run);
        if let Some(index) = blocks.find(|index| self.without_space.contains(index)) {
            return Err(self.host_space(index));
        }
        for cluster in self.leave_run(&run) {
            let count = self.change(cluster, |_| 1);
            debug_assert_eq!(count, Some(1));
        }
        let host = self.bytes(&run);
        self.end = self.end.max(host.end);
        if let Some(tail) = self.tail.filter(|tail| *tail < run.end) {
            self.miss_run();
            // What was stepped over is a gap from here on.
            self.reopen(&(tail..run.start.max(tail)));
            self.tail = Some(run.end);
        }
        self.make_ahead(run.end);
        Ok(host)
    }

    /// Checks that clusters with count 0 have no metadata.
    pub(super) fn check_free(&mut self, run: &Range<u64>) -> Result<(), Need> {
        let host = self.bytes(run);
        let kinds = self.metadata.overlap(host.clone(), Metadata::all());
        if kinds.is_empty() {
            return Ok(());
        }
        let what = format_args!(
            "refcount 0 of {}, in the {} bytes at {:#x}",
            kinds.describe(),
            host.end - host.start,
            host.start
        );
        let corruption = Corruption::new(what, Some(host.start));
        self.corruption.get_or_insert(corruption.clone());
        Err(Need::Corrupt(corruption))
    }
}
