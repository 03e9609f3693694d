//! [`Space`]: which clusters of a new file are in use, and where their refcounts are.
//!
//! It hands out clusters in the order in which QEMU does, so that a new image has every table where QEMU puts
//! it. All counts are 0 or 1: a new image shares nothing. Numbers of clusters, not bytes, throughout.

use std::collections::BTreeMap;

use super::{FormatError, Geometry, MAX_OFFSET, MAX_REFCOUNT_TABLE_BYTES, RefcountWidth};

/// Bytes of an entry of the refcount table.
const TABLE_ENTRY_BYTES: u64 = 8;

/// The clusters of a file that is being filled.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    geometry: Geometry,
    width: RefcountWidth,
    /// Runs of clusters in use: begin and end. They neither overlap nor touch.
    used: BTreeMap<u64, u64>,
    /// Where a search begins.
    hint: u64,
    /// The cluster of each refcount block, 0 where there is none.
    blocks: Vec<u64>,
    /// The refcount table: its first cluster, and how many it has.
    table: (u64, u64),
}

impl Space {
    /// That of a file with a header, a refcount table and a refcount block, in this order.
    pub(crate) fn new(geometry: Geometry, width: RefcountWidth) -> Space {
        let used = BTreeMap::from([(0, 3)]);
        Space { geometry, width, used, hint: 3, blocks: vec![2], table: (1, 1) }
    }

    fn per_block(&self) -> u64 {
        self.width.per_block(self.geometry)
    }

    fn entries_per_cluster(&self) -> u64 {
        self.geometry.cluster_bytes() / TABLE_ENTRY_BYTES
    }

    /// The refcount table: its first cluster, and how many it has.
    pub(crate) fn table(&self) -> (u64, u64) {
        self.table
    }

    /// The refcount blocks: number and cluster.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..).zip(self.blocks.iter().copied()).filter(|(_, cluster)| *cluster != 0)
    }

    /// The content of a refcount block.
    pub(crate) fn block(&self, index: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.geometry.cluster_bytes() as usize];
        let (start, end) = (index * self.per_block(), (index + 1) * self.per_block());
        let before = self.used.range(..start).next_back().map(|(_, end)| (start, *end));
        let within = self.used.range(start..end).map(|(start, end)| (*start, *end));
        for (from, to) in before.into_iter().chain(within) {
            for cluster in from..to.min(end) {
                // 1 fits into every width.
                let _ = self.width.set(&mut bytes, (cluster - start) as usize, 1);
            }
        }
        bytes
    }

    /// Where the last cluster in use ends.
    pub(crate) fn end(&self) -> u64 {
        self.used.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// Takes `clusters` clusters that follow each other, and returns the first.
    ///
    /// # Errors
    /// EFBIG if the file or its refcount table would be too large.
    pub(crate) fn allocate(&mut self, clusters: u64) -> Result<u64, FormatError> {
        loop {
            let at = self.find(clusters)?;
            if self.take(at, clusters)? {
                return Ok(at);
            }
        }
    }

    /// Takes up to `clusters` clusters from `at` on, as far as they are free, and returns how many.
    ///
    /// # Errors
    /// As of [`allocate`](Self::allocate).
    pub(crate) fn allocate_at(&mut self, at: u64, clusters: u64) -> Result<u64, FormatError> {
        loop {
            let free = self.free_from(at).min(clusters);
            if free == 0 || self.take(at, free)? {
                return Ok(free);
            }
        }
    }

    /// Puts a refcount table, with what is missing of blocks, at the end of the file, so that they count
    /// `clusters` more clusters behind them; returns the first of those.
    ///
    /// # Errors
    /// As of [`allocate`](Self::allocate).
    pub(crate) fn reserve(&mut self, clusters: u64) -> Result<u64, FormatError> {
        self.replace_table(self.end(), clusters, None)
    }

    /// How many clusters are free from `at` on.
    fn free_from(&self, at: u64) -> u64 {
        if self.used_until(at) > at {
            return 0;
        }
        self.used.range(at..).next().map_or(u64::MAX, |(start, _)| start - at)
    }

    /// The end of the run that has `at`, or `at` if it is free.
    fn used_until(&self, at: u64) -> u64 {
        self.used.range(..=at).next_back().map_or(at, |(_, end)| at.max(*end))
    }

    /// Looks for free clusters that follow each other, from the hint on; the next search begins behind them.
    fn find(&mut self, clusters: u64) -> Result<u64, FormatError> {
        let mut at = self.used_until(self.hint);
        while self.free_from(at) < clusters {
            at = self.used_until(at + self.free_from(at));
        }
        self.hint = at + clusters;
        if self.hint > MAX_OFFSET >> self.geometry.cluster_bits() {
            return Err(FormatError::too_big("the image would be too large for its clusters"));
        }
        Ok(at)
    }

    fn mark(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end);
        if let Some((before, until)) = self.used.range(..=start).next_back()
            && *until == start
        {
            start = *before;
        }
        if let Some(until) = self.used.remove(&end) {
            end = until;
        }
        self.used.insert(start, end);
    }

    fn free(&mut self, start: u64, end: u64) {
        if let Some((before, until)) = self.used.range(..=start).next_back() {
            let (before, until) = (*before, *until);
            self.used.remove(&before);
            if before < start {
                self.used.insert(before, start);
            }
            if end < until {
                self.used.insert(end, until);
            }
        }
        self.hint = self.hint.min(start);
    }

    /// Counts clusters. False if a block was missing: it is there now, maybe in these clusters, and the
    /// search has to be made again.
    fn take(&mut self, at: u64, clusters: u64) -> Result<bool, FormatError> {
        let end = at + clusters;
        for index in at / self.per_block()..=(end - 1) / self.per_block() {
            if self.blocks.get(index as usize).is_none_or(|block| *block == 0) {
                self.add_block(at.max(index * self.per_block()))?;
                // The next search looks at the same clusters first.
                self.hint = self.hint.min(at);
                return Ok(false);
            }
        }
        self.mark(at, end);
        Ok(true)
    }

    /// Makes the block that counts `cluster`, or one that it needs itself.
    fn add_block(&mut self, cluster: u64) -> Result<(), FormatError> {
        let index = cluster / self.per_block();
        let block = self.find(1)?;
        if block / self.per_block() == index {
            self.mark(block, block + 1);
        } else if !self.take(block, 1)? {
            return Ok(());
        }
        if index < self.table.1 * self.entries_per_cluster() {
            self.set_block(index, block);
            return Ok(());
        }
        // A larger table goes to clusters that no block counts yet, with blocks of its own.
        let blocks = (cluster + 1).max(block).div_ceil(self.per_block());
        self.replace_table(blocks * self.per_block(), 0, Some((index, block)))?;
        Ok(())
    }

    fn set_block(&mut self, index: u64, cluster: u64) {
        let index = index as usize;
        if self.blocks.len() <= index {
            self.blocks.resize(index + 1, 0);
        }
        self.blocks[index] = cluster;
    }

    /// Makes a new refcount table at `start`, behind blocks that are missing to count all up to its end and
    /// `clusters` more. With a `block` that made the table grow, it becomes half as large again as it must
    /// be. Returns where it ends.
    fn replace_table(
        &mut self,
        start: u64,
        clusters: u64,
        block: Option<(u64, u64)>,
    ) -> Result<u64, FormatError> {
        let counted = refcount_clusters(
            self.geometry,
            self.width,
            u128::from(start) + u128::from(clusters),
            block.is_some(),
        );
        let per_cluster = self.entries_per_cluster();
        let max = u128::from(MAX_REFCOUNT_TABLE_BYTES / TABLE_ENTRY_BYTES);
        let wanted = counted.blocks + if block.is_some() { counted.blocks.div_ceil(2) } else { 0 };
        if wanted.next_multiple_of(per_cluster.into()) > max {
            return Err(FormatError::too_big("the refcount table would be too large"));
        }
        let (all, wanted) = (counted.blocks as u64, wanted as u64);
        let table_clusters = wanted.div_ceil(per_cluster);
        self.blocks.truncate((table_clusters * per_cluster) as usize);
        if let Some((index, cluster)) = block {
            self.set_block(index, cluster);
        }
        let mut next = start;
        for index in start / self.per_block()..all {
            if self.blocks.get(index as usize).is_none_or(|block| *block == 0) {
                self.set_block(index, next);
                next += 1;
            }
        }
        let end = next + table_clusters;
        self.mark(start, end);
        let (old, old_clusters) = std::mem::replace(&mut self.table, (next, table_clusters));
        self.free(old, old + old_clusters);
        Ok(end)
    }
}

/// Clusters that refcounts take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefcountClusters {
    /// Blocks.
    pub(crate) blocks: u128,
    /// Those of the table.
    pub(crate) table: u128,
}

/// The clusters of refcounts of a file that has `clusters` others: they count themselves, too. With `spare`
/// there is room for half a table more.
pub(crate) fn refcount_clusters(
    geometry: Geometry,
    width: RefcountWidth,
    clusters: u128,
    spare: bool,
) -> RefcountClusters {
    let per_block = u128::from(width.per_block(geometry));
    let per_table = u128::from(geometry.cluster_bytes() / TABLE_ENTRY_BYTES);
    let settle = |clusters: u128| {
        let mut counted = RefcountClusters { blocks: 0, table: 0 };
        loop {
            let blocks = (clusters + counted.blocks + counted.table).div_ceil(per_block);
            let next = RefcountClusters { blocks, table: blocks.div_ceil(per_table) };
            if next == counted {
                return counted;
            }
            counted = next;
        }
    };
    let counted = settle(clusters);
    if spare { settle(clusters + counted.table.div_ceil(2)) } else { counted }
}
