//! [`Refcounts`]: those of the image, and how they compare with the references.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use coblk_aio::Co;

use super::Checker;
use super::counts::{Kind, MAX_COUNT};
use crate::layout::{Geometry, Header, RefcountWidth, block_offset};
use crate::source::Source;
use crate::tables as image_tables;

/// Most memory for blocks that are kept, in bytes; two are kept in any case.
const MAX_BLOCK_BYTES: u64 = 16 << 20;

/// The refcounts of an image.
pub(super) struct Refcounts {
    pub(super) table: Vec<u64>,
    pub(super) width: RefcountWidth,
    geometry: Geometry,
    /// Blocks by their offsets, the last used first.
    blocks: VecDeque<(u64, Vec<u8>)>,
}

/// Where a block is.
enum Block {
    /// Nowhere: all its refcounts are 0.
    None,
    At(u64),
    /// Its offset is none.
    Unaligned,
}

impl Refcounts {
    pub(super) fn co_new(co: &Co<'_>, file: &dyn Source, header: &Header) -> io::Result<Refcounts> {
        let words = u64::from(header.refcount_table_clusters) << header.cluster_bits >> 3;
        Ok(Refcounts {
            table: image_tables::co_words(co, file, header.refcount_table_offset, words)?,
            width: RefcountWidth::new(header.refcount_order)?,
            geometry: header.geometry()?,
            blocks: VecDeque::new(),
        })
    }

    pub(super) fn per_block(&self) -> u64 {
        self.width.per_block(self.geometry)
    }

    fn block(&self, number: u64) -> Block {
        let entry = usize::try_from(number).ok().and_then(|number| self.table.get(number));
        match entry.and_then(|entry| block_offset(*entry)) {
            None => Block::None,
            Some(offset) if self.geometry.is_aligned(offset) => Block::At(offset),
            Some(_) => Block::Unaligned,
        }
    }

    /// The refcount of a cluster; `None` if it cannot be read.
    pub(super) fn co_get(&mut self, co: &Co<'_>, file: &dyn Source, cluster: u64) -> Option<u64> {
        // A power of two.
        let per_block = self.per_block();
        let (number, index) = (cluster >> per_block.ilog2(), cluster & (per_block - 1));
        match self.block(number) {
            Block::None => Some(0),
            Block::Unaligned => None,
            Block::At(offset) => {
                let width = self.width;
                let block = self.co_block(co, file, offset).ok()?;
                Some(width.get(block, index as usize))
            }
        }
    }

    /// How many of the first of some clusters have the refcount 1, of those whose block is that of the first.
    pub(super) fn co_ones(&mut self, co: &Co<'_>, file: &dyn Source, clusters: Range<u64>) -> u64 {
        let (width, per_block) = (self.width, self.per_block());
        let number = clusters.start >> per_block.ilog2();
        let Block::At(offset) = self.block(number) else { return 0 };
        let first = clusters.start & (per_block - 1);
        let end = per_block.min(first + (clusters.end - clusters.start));
        let Ok(block) = self.co_block(co, file, offset) else { return 0 };
        (first..end).take_while(|at| width.get(block, *at as usize) == 1).count() as u64
    }

    /// The block at `offset`.
    pub(super) fn co_block(
        &mut self,
        co: &Co<'_>,
        file: &dyn Source,
        offset: u64,
    ) -> io::Result<&[u8]> {
        // Most clusters come one after the other.
        if self.blocks.front().is_some_and(|(at, _)| *at == offset) {
            return Ok(&self.blocks[0].1);
        }
        let found = self.blocks.iter().position(|(at, _)| *at == offset);
        let block = match found.and_then(|at| self.blocks.remove(at)) {
            Some(block) => block,
            None => {
                let mut bytes = vec![0; self.geometry.cluster_bytes() as usize];
                file.co_read_at(co, offset, &mut bytes)?;
                (offset, bytes)
            }
        };
        let most = (MAX_BLOCK_BYTES / self.geometry.cluster_bytes()).clamp(2, 64) as usize;
        self.blocks.truncate(most - 1);
        self.blocks.push_front(block);
        Ok(&self.blocks[0].1)
    }
}

/// A cluster whose refcount may not be what it should be.
struct Compared {
    cluster: u64,
    refcount: u64,
    count: u64,
    is_mixed: bool,
}

impl Checker<'_, '_> {
    /// Counts the refcount table and its blocks, after everything else: each is referred to once.
    pub(super) fn count_refcounts(&mut self) -> io::Result<()> {
        let cluster = self.geometry.cluster_bytes();
        let bytes = u64::from(self.header.refcount_table_clusters) * cluster;
        let what = || "the refcount table".to_owned();
        self.count(self.header.refcount_table_offset, bytes, 1, Kind::Structure, what)?;
        for number in 0..self.refcounts.table.len() as u64 {
            match self.refcounts.block(number) {
                Block::None => {}
                Block::Unaligned => {
                    self.bad_block(|| format!("refcount block {number} is unaligned"));
                }
                Block::At(offset) if offset >= self.end.next_multiple_of(cluster) => {
                    let what = || format!("refcount block {number} is behind the end of the file");
                    self.bad_block(what);
                }
                Block::At(offset) => {
                    let what = || format!("refcount block {number}");
                    self.count(offset, cluster, 1, Kind::Structure, what)?;
                    let count = self.counts.get(offset / cluster);
                    if count != 1 {
                        self.bad_block(|| format!("refcount block {number} is used {count} times"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes back what [`count_refcounts`](Self::count_refcounts) has counted.
    pub(super) fn forget_refcounts(&mut self) {
        let cluster = self.geometry.cluster_bytes();
        let table = self.header.refcount_table_offset / cluster;
        let clusters = u64::from(self.header.refcount_table_clusters);
        let is_counted =
            |offset: u64| offset.saturating_add(cluster).saturating_sub(self.end) < cluster;
        if clusters > 0 && is_counted((table + clusters - 1) * cluster) {
            (table..table + clusters).for_each(|it| self.counts.forget(it));
        }
        for number in 0..self.refcounts.table.len() as u64 {
            if let Block::At(offset) = self.refcounts.block(number)
                && offset < self.end.next_multiple_of(cluster)
                && is_counted(offset)
            {
                self.counts.forget(offset / cluster);
            }
        }
    }

    fn bad_block(&mut self, what: impl FnOnce() -> String) {
        self.check.corrupt(1, what);
        self.plan.refcounts += 1;
        self.plan.must_rebuild = true;
    }

    /// Where the clusters end that have refcounts or references.
    fn clusters_end(&self) -> u64 {
        self.end.div_ceil(self.geometry.cluster_bytes()).max(self.counts.end())
    }

    /// The blocks that there are: the range of clusters that each counts, and where it is, if anywhere.
    pub(super) fn blocks(&self) -> Vec<(Range<u64>, Option<u64>)> {
        let (end, per_block) = (self.clusters_end(), self.refcounts.per_block());
        let numbers = 0..end.div_ceil(per_block).min(self.refcounts.table.len() as u64);
        let blocks = numbers.filter_map(|number| {
            let clusters = number * per_block..((number + 1) * per_block).min(end);
            match self.refcounts.block(number) {
                Block::None => None,
                Block::At(offset) => Some((clusters, Some(offset))),
                Block::Unaligned => Some((clusters, None)),
            }
        });
        blocks.collect()
    }

    /// Where the blocks are that count clusters behind [those](Self::blocks) alone.
    pub(super) fn blocks_behind(&self) -> Vec<u64> {
        let first = self.clusters_end().div_ceil(self.refcounts.per_block());
        let numbers = first..self.refcounts.table.len() as u64;
        let blocks = numbers.filter_map(|number| match self.refcounts.block(number) {
            Block::At(offset) => Some(offset),
            Block::None | Block::Unaligned => None,
        });
        blocks.collect()
    }

    /// The refcount that a cluster should have: the references, as far as they can be counted.
    pub(super) fn wanted(&self, cluster: u64) -> u64 {
        self.counts.get(cluster).min(self.refcounts.width.max())
    }

    /// Compares all references with the refcounts.
    pub(super) fn compare(&mut self) -> io::Result<()> {
        let mut used_end = 0;
        let width = self.refcounts.width;
        for (clusters, offset) in self.blocks() {
            self.co_go_on()?;
            let read = offset.map(|it| self.refcounts.co_block(self.co, self.file, it));
            let Some(Ok(block)) = read else {
                let unread = clusters.end - clusters.start;
                self.check.fail(unread, || format!("refcounts of {clusters:?} cannot be read"));
                continue;
            };
            if self.counts.is_empty(&clusters) && block.iter().all(|byte| *byte == 0) {
                continue;
            }
            let first = clusters.start;
            // Most clusters are as they should be.
            let mut differ = Vec::new();
            for cluster in clusters {
                let refcount = width.get(block, (cluster - first) as usize);
                // Counts end at the largest value that they can have.
                let (count, is_mixed) = self.counts.look(cluster);
                if refcount | count != 0 {
                    used_end = used_end.max(cluster + 1);
                }
                if refcount.min(MAX_COUNT) != count || is_mixed {
                    differ.push(Compared { cluster, refcount, count, is_mixed });
                }
            }
            differ.into_iter().for_each(|it| self.differ(&it));
        }
        let counts = std::mem::take(&mut self.counts);
        let bits = self.refcounts.per_block().ilog2();
        let has_block = |it: &Self, number| !matches!(it.refcounts.block(number), Block::None);
        for piece in counts.pieces() {
            if (piece.start >> bits..=(piece.end - 1) >> bits).all(|it| has_block(self, it)) {
                continue;
            }
            for cluster in counts.range(piece) {
                if !has_block(self, cluster >> bits) {
                    used_end = used_end.max(cluster + 1);
                    let (count, is_mixed) = counts.look(cluster);
                    self.differ(&Compared { cluster, refcount: 0, count, is_mixed });
                }
            }
        }
        self.counts = counts;
        // An image has a header in any case.
        let end = used_end.max(1) * self.geometry.cluster_bytes();
        self.check.report.image_end_offset = Some(end);
        Ok(())
    }

    fn differ(&mut self, it: &Compared) {
        let Compared { cluster, refcount, count, is_mixed } = *it;
        let wanted = count.min(self.refcounts.width.max());
        self.plan.has_mixed |= is_mixed;
        let told = || format!("cluster {cluster}: refcount {refcount}, {count} references");
        if count > wanted {
            self.check.corrupt(count - wanted, || format!("{}: too many to count", told()));
        }
        if refcount < wanted {
            self.check.corrupt(1, told);
            self.plan.refcounts += 1;
            // A cluster that passes for free may have another owner by now; it may be a block.
            self.plan.must_rebuild |= refcount == 0;
        } else if refcount.min(MAX_COUNT) > wanted {
            self.check.report.leaks += 1;
            self.check.find(|| format!("{}: it leaks", told()));
        } else if is_mixed {
            self.check.corrupt(1, || format!("{}: owners that cannot share it", told()));
        }
    }
}
