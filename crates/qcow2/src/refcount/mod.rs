//! [`Refcounts`]: which clusters of the image file are in use, and how often.
//!
//! It does no I/O: it says what has to be read, and what a commit has to write. All of it is called under one
//! lock, for short.
//!
//! ```text
//! mod.rs       counts, and the blocks that are in memory
//! block        one block
//! search       where clusters are allocated
//! grow         new blocks, and a larger table
//! host         space on the host
//! run          clusters that are counted before they are allocated
//! shrink       the end of the file
//! survey       blocks that were not read yet
//! owed         references that were given up: lowered, quarantined, free
//! commit       what a commit writes, and what it leaves if it fails
//! bits, ranges sets of numbers
//! ```
//!
//! # What holds, whatever fails
//!
//! * A refcount on file is never lower than the references on file. A count rises in memory before there is a
//!   link, and a commit makes it durable before the link. It falls in memory after a commit has made the
//!   unlinking durable, so only later commits write it.
//! * A cluster is free, or in use, or in quarantine: its count is 0, and requests that found it before may
//!   still read it, or it is being punched. Only a grace ends the quarantine.
//! * A block, and its count of itself, is durable before the entry of the table that leads to it, and that
//!   before a link to what the block counts.
//! * Clusters with metadata are not handed out, whatever their refcount is.

mod bits;
mod block;
mod commit;
mod grow;
mod host;
mod owed;
mod ranges;
mod run;
mod search;
mod shrink;
mod survey;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use block::Block;
pub(crate) use commit::RefcountPlan;
use grow::NewTable;
pub(crate) use owed::Discard;
use owed::Owed;
use run::Run;
use search::Gap;

use crate::layout::{Corruption, Geometry, MAX_OFFSET, RefcountWidth, block_offset};
use crate::metadata::{Metadata, MetadataSet};
use crate::origin::Origin;
use ranges::Ranges;

/// Blocks that are in memory at least.
const MIN_BLOCKS: usize = 4;

/// What has to be done before a call can succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The block with this number, a cluster at `offset`, is to be read and [`loaded`](Refcounts::loaded).
    Block { index: u64, offset: u64 },
    /// A new block, a cluster at `offset`, is to have its space on the host, and to read as zeroes; then
    /// [`has_host_space`](Refcounts::has_host_space) is called. Nothing else is written there before.
    HostSpace { index: u64, offset: u64 },
    /// A commit, and then a grace, would give space.
    Commit,
    /// A commit would give memory for a block.
    Memory,
    /// There is no space: ENOSPC.
    Space,
    /// Offsets, or the refcount table, would become too large: EFBIG.
    TooBig,
    /// A refcount is at its maximum: EINVAL.
    Overflow,
    /// The image is corrupt, and nothing can be allocated in it.
    Corrupt(Corruption),
}

/// What [`Refcounts`] are made of.
pub(crate) struct RefcountParts {
    pub(crate) geometry: Geometry,
    pub(crate) width: RefcountWidth,
    /// Bytes that writes of blocks and tables are aligned to: a power of two, 512 at least.
    pub(crate) unit: u64,
    pub(crate) table_offset: u64,
    pub(crate) table_clusters: u32,
    /// The table as far as it is in the file.
    pub(crate) table: Vec<u64>,
    /// Where the file ends, in bytes.
    pub(crate) file_end: u64,
    /// Where a file ends that cannot grow, in bytes.
    pub(crate) limit: Option<u64>,
    /// Memory for blocks that have not changed, in bytes.
    pub(crate) cache_bytes: u64,
    pub(crate) metadata: Arc<MetadataSet>,
}

/// The refcounts of an image file. See the head of the file.
pub(crate) struct Refcounts {
    geometry: Geometry,
    width: RefcountWidth,
    per_block: u64,
    unit: u64,
    metadata: Arc<MetadataSet>,
    table: Vec<u64>,
    table_offset: u64,
    table_clusters: u32,
    /// A table that takes the place of that in the header.
    new_table: Option<NewTable>,
    /// Entries of the table that differ from the file, or may.
    dirty_entries: BTreeSet<u64>,
    blocks: BTreeMap<u64, Block>,
    /// New blocks that may have no space on the host: they count nothing, and are not written.
    without_space: BTreeSet<u64>,
    max_blocks: usize,
    /// Counts uses of blocks.
    clock: u64,
    /// That count when blocks were [cleaned](Self::clean) last.
    cleaned: u64,
    /// Blocks that were read, and where in them may be free clusters.
    gaps: BTreeMap<u64, Gap>,
    /// The block that gaps were found in last.
    gap_cursor: u64,
    /// Blocks from here on may not have been read.
    unread: u64,
    /// The cluster behind all that are in use, once the last block was read.
    tail: Option<u64>,
    /// Clusters from here on cannot be had.
    limit: u64,
    /// Those that a file has at most that cannot grow.
    max_end: u64,
    /// The host had no space.
    is_limited: bool,
    /// Where the file ends, at least, in bytes.
    end: u64,
    /// Clusters from here on read as zeroes, but those that were used.
    virgin_from: u64,
    touched: Ranges,
    owed: Owed,
    /// Blocks that are behind the end of the file as it was opened: there are none, and they do not come to
    /// be there.
    lost: Ranges,
    origin: Origin,
    run: Run,
    /// What was found wrong when it was too late to refuse.
    corruption: Option<Corruption>,
}

/// How many blocks have room in so many bytes.
fn max_blocks(bytes: u64, cluster: u64) -> usize {
    usize::try_from(bytes / cluster).unwrap_or(usize::MAX).max(MIN_BLOCKS)
}

impl Refcounts {
    pub(crate) fn new(parts: RefcountParts) -> Refcounts {
        let RefcountParts { geometry, width, metadata, mut table, .. } = parts;
        let cluster = geometry.cluster_bytes();
        table.resize((u64::from(parts.table_clusters) * cluster / 8) as usize, 0);
        let limit = parts.limit.unwrap_or(MAX_OFFSET).min(MAX_OFFSET) >> geometry.cluster_bits();
        let mut refcounts = Refcounts {
            geometry,
            width,
            per_block: width.per_block(geometry),
            unit: parts.unit,
            metadata,
            table,
            table_offset: parts.table_offset,
            table_clusters: parts.table_clusters,
            new_table: None,
            dirty_entries: BTreeSet::new(),
            blocks: BTreeMap::new(),
            without_space: BTreeSet::new(),
            max_blocks: max_blocks(parts.cache_bytes, cluster),
            clock: 0,
            cleaned: 0,
            gaps: BTreeMap::new(),
            gap_cursor: 0,
            unread: 0,
            tail: None,
            limit,
            max_end: limit,
            is_limited: false,
            end: parts.file_end,
            virgin_from: parts.file_end.div_ceil(cluster),
            touched: Ranges::default(),
            owed: Owed::default(),
            lost: Ranges::default(),
            origin: Origin::new(parts.file_end, cluster),
            run: Run::default(),
            corruption: None,
        };
        refcounts.add_metadata();
        refcounts
    }

    /// The clusters of the table and of the blocks are metadata; of blocks no two are one. Those of blocks
    /// behind the end of the file are, too: nothing that is handed out is taken for a block then.
    fn add_metadata(&mut self) {
        let bytes = u64::from(self.table_clusters) * self.geometry.cluster_bytes();
        let range = self.table_offset..self.table_offset.saturating_add(bytes);
        self.metadata.insert(range, Metadata::REFCOUNT_TABLE);
        for index in 0..self.table.len() as u64 {
            let offset = block_offset(self.table[index as usize]);
            let is_behind = |it: &u64| self.geometry.is_aligned(*it) && *it < MAX_OFFSET;
            if let (Err(_), Some(offset)) = (self.block_offset(index), offset.filter(is_behind)) {
                self.lost.insert(index..index + 1);
                self.metadata.insert(self.cluster_at(offset), Metadata::REFCOUNT_BLOCK);
            }
            if let Ok(Some(offset)) = self.block_offset(index) {
                let kinds = self.metadata.insert(self.cluster_at(offset), Metadata::REFCOUNT_BLOCK);
                if !kinds.is_empty() {
                    let what =
                        format_args!("refcount block {index} overlaps with {}", kinds.describe());
                    self.corruption.get_or_insert(Corruption::new(what, Some(offset)));
                }
            }
        }
    }

    /// Which entries may lead behind the end of the file as it was opened.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// [`origin`](Self::origin), to be told of what was made.
    pub(crate) fn origin_mut(&mut self) -> &mut Origin {
        &mut self.origin
    }

    /// The host bytes of the cluster at an offset.
    fn cluster_at(&self, offset: u64) -> Range<u64> {
        offset..offset + self.geometry.cluster_bytes()
    }

    /// The host bytes of clusters.
    fn bytes(&self, clusters: &Range<u64>) -> Range<u64> {
        clusters.start << self.geometry.cluster_bits()..clusters.end << self.geometry.cluster_bits()
    }

    /// The clusters that a range of host bytes touches.
    fn clusters(&self, host: &Range<u64>) -> Range<u64> {
        let first = host.start >> self.geometry.cluster_bits();
        first..host.end.div_ceil(self.geometry.cluster_bytes()).max(first)
    }

    /// The clusters that a block counts.
    fn range_of(&self, index: u64) -> Range<u64> {
        index * self.per_block..(index + 1) * self.per_block
    }

    /// The numbers of the blocks that count some clusters.
    fn blocks_of(&self, clusters: &Range<u64>) -> Range<u64> {
        let first = clusters.start / self.per_block;
        if clusters.is_empty() {
            first..first
        } else {
            first..(clusters.end - 1) / self.per_block + 1
        }
    }

    /// Where a block is; `None` if there is none, and all its counts are 0.
    fn block_offset(&self, index: u64) -> Result<Option<u64>, Need> {
        let entry = usize::try_from(index).ok().and_then(|index| self.table.get(index));
        let Some(offset) = entry.and_then(|entry| block_offset(*entry)) else { return Ok(None) };
        let what = match offset {
            _ if !self.geometry.is_aligned(offset) => "is unaligned",
            _ if offset >= self.end.min(MAX_OFFSET) => "is behind the end of the file",
            _ if self.lost.first_in(&(index..index + 1)).is_some() => {
                "is behind the end of the file as it was opened"
            }
            _ => return Ok(Some(offset)),
        };
        let what = format_args!("refcount block {index} {what}: {offset:#x}");
        Err(Need::Corrupt(Corruption::new(what, Some(offset))))
    }

    /// The block in memory; `None` if there is none at all.
    fn block(&mut self, index: u64) -> Result<Option<&mut Block>, Need> {
        if !self.blocks.contains_key(&index) {
            let Some(offset) = self.block_offset(index)? else { return Ok(None) };
            return Err(match self.has_room() {
                true => Need::Block { index, offset },
                false => Need::Memory,
            });
        }
        Ok(self.touch(index))
    }

    /// The block, if it is in memory.
    fn touch(&mut self, index: u64) -> Option<&mut Block> {
        self.clock += 1;
        let clock = self.clock;
        let block = self.blocks.get_mut(&index)?;
        block.used = clock;
        Some(block)
    }

    /// Whether another block may be taken to memory.
    fn has_room(&self) -> bool {
        self.blocks.len() < self.max_blocks
            || self.blocks.values().filter(|it| it.is_changed()).count() < self.max_blocks
    }

    /// Takes a block that [`Need::Block`] asked for. One that is there already stays as it is.
    ///
    /// # Errors
    /// If it says that its own cluster, or that of the header, is free.
    pub(crate) fn loaded(&mut self, index: u64, bytes: &[u8]) -> Result<(), Corruption> {
        if self.blocks.contains_key(&index) {
            return Ok(());
        }
        let mut bytes = bytes.to_vec();
        bytes.resize(self.geometry.cluster_bytes() as usize, 0);
        let block = Block::new(self.width, bytes, self.unit as usize, false);
        let range = self.range_of(index);
        let own = self.table.get(index as usize).and_then(|entry| block_offset(*entry));
        let own = own.map(|offset| offset >> self.geometry.cluster_bits());
        for used in [Some(0), own].into_iter().flatten().filter(|it| range.contains(it)) {
            if block.get((used - range.start) as usize) == 0 {
                let what =
                    format_args!("refcount block {index}: cluster {used} in use has refcount 0");
                return Err(Corruption::new(what, Some(used << self.geometry.cluster_bits())));
            }
        }
        self.evict();
        let free = block.free.count();
        if self.gaps.get(&index).is_none_or(|gap| gap.free() != free) {
            self.gaps.insert(index, Gap::new(free));
        }
        self.blocks.insert(index, block);
        self.touch(index);
        self.pay(index);
        Ok(())
    }

    /// Makes room for one more block in memory.
    fn evict(&mut self) {
        while self.blocks.len() >= self.max_blocks {
            let clean = self.blocks.iter().filter(|(_, block)| !block.is_changed());
            let Some((index, _)) = clean.min_by_key(|(_, block)| block.used) else { return };
            let index = *index;
            self.blocks.remove(&index);
        }
    }

    /// Has memory for blocks of so many bytes that have not changed; gives back what is more.
    pub(crate) fn set_cache_bytes(&mut self, bytes: u64) {
        self.max_blocks = max_blocks(bytes, self.geometry.cluster_bytes());
        // One less than there may be, for the next.
        self.evict();
    }

    /// Gives back the memory of blocks that were not used since the last time. Returns whether some are left.
    pub(crate) fn clean(&mut self) -> bool {
        let last = std::mem::replace(&mut self.cleaned, self.clock);
        self.blocks.retain(|_, block| block.is_changed() || block.used > last);
        !self.blocks.is_empty()
    }

    /// How many references the cluster of a host offset has.
    pub(crate) fn count(&mut self, host: u64) -> Result<u64, Need> {
        let cluster = host >> self.geometry.cluster_bits();
        let (index, at) = (cluster / self.per_block, (cluster % self.per_block) as usize);
        Ok(self.block(index)?.map_or(0, |block| block.get(at)))
    }

    /// Adds one reference to each cluster that a range of host bytes touches; to all or to none. They are in
    /// use already.
    pub(crate) fn add_reference(&mut self, host: Range<u64>) -> Result<(), Need> {
        let clusters = self.clusters(&host);
        let max = self.width.max();
        for cluster in clusters.clone() {
            match self.count(cluster << self.geometry.cluster_bits())? {
                0 => return Err(Need::Corrupt(self.unused(cluster))),
                count if count == max => return Err(Need::Overflow),
                _ => {}
            }
        }
        for cluster in clusters {
            self.change(cluster, |count| count + 1);
        }
        Ok(())
    }

    fn unused(&self, cluster: u64) -> Corruption {
        let what = format_args!("cluster {cluster} in use has refcount 0");
        Corruption::new(what, Some(cluster << self.geometry.cluster_bits()))
    }

    /// Changes the count of a cluster whose block is in memory, and returns the new one.
    fn change(&mut self, cluster: u64, change: impl FnOnce(u64) -> u64) -> Option<u64> {
        let (index, at) = (cluster / self.per_block, (cluster % self.per_block) as usize);
        let block = self.touch(index)?;
        let (old, new) = (block.get(at), change(block.get(at)));
        block.set(at, new);
        if let Some(gap) = self.gaps.get_mut(&index) {
            match (old, new) {
                (0, 1..) => gap.used(1),
                (1.., 0) => gap.freed(1),
                _ => {}
            }
        }
        Some(new)
    }

    /// Whether a cluster that was just allocated reads as zeroes, also after a crash.
    pub(crate) fn is_virgin(&self, host: u64) -> bool {
        let cluster = host >> self.geometry.cluster_bits();
        cluster >= self.virgin_from && self.touched.first_in(&(cluster..cluster + 1)).is_none()
    }

    /// Something was written to these clusters, or may have been.
    fn touch_space(&mut self, clusters: Range<u64>) {
        let clusters = clusters.start.max(self.virgin_from)..clusters.end;
        self.touched.insert(clusters);
        if self.touched.len() > MAX_TOUCHED {
            self.virgin_from = self.end.div_ceil(self.geometry.cluster_bytes());
            self.touched = Ranges::default();
        }
    }
}

/// Ranges of used space that are told from space that was never used.
const MAX_TOUCHED: usize = 4096;

#[cfg(test)]
impl Refcounts {
    /// Checks what holds in memory at any moment.
    fn check_invariants(&self) {
        for (index, block) in &self.blocks {
            let range = self.range_of(*index);
            for at in 0..block.free.len() {
                assert_eq!(
                    block.free.get(at),
                    block.get(at) == 0,
                    "cluster {}",
                    range.start + at as u64
                );
            }
            assert_eq!(
                self.gaps.get(index).map(Gap::free),
                Some(block.free.count()),
                "block {index}"
            );
        }
        for cluster in self.run() {
            let block = self.blocks.get(&(cluster / self.per_block));
            let at = (cluster % self.per_block) as usize;
            assert!(block.is_none_or(|block| block.get(at) == 1), "{cluster} of the run");
            let is_closed = self.owed.first_closed(&(cluster..cluster + 1)).is_some();
            assert!(!is_closed, "{cluster} of the run is closed");
        }
        for closed in self.owed.closed() {
            for cluster in closed {
                let block = self.blocks.get(&(cluster / self.per_block));
                let at = (cluster % self.per_block) as usize;
                assert!(
                    block.is_none_or(|block| block.free.get(at)),
                    "{cluster} is closed and in use"
                );
            }
        }
        for index in &self.dirty_entries {
            let is_dropped = self.table[*index as usize] == 0;
            assert!(self.blocks.contains_key(index) != is_dropped, "entry {index}");
        }
    }
}
