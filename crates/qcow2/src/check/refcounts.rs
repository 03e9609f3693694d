//! [`Refcounts`]: those of the image, and how they compare with the references.

use std::collections::VecDeque;
use std::io;

use coblk_aio::Co;

use super::Checker;
use crate::layout::{Geometry, Header, RefcountWidth, block_offset};
use crate::source::Source;
use crate::tables as image_tables;

/// Most memory for blocks that are kept, in bytes; two are kept in any case.
const MAX_BLOCK_BYTES: u64 = 16 << 20;

/// The refcounts of an image.
pub(super) struct Refcounts {
    table: Vec<u64>,
    width: RefcountWidth,
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

    fn per_block(&self) -> u64 {
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
        let (number, index) = (cluster / self.per_block(), cluster % self.per_block());
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

    fn co_block(&mut self, co: &Co<'_>, file: &dyn Source, offset: u64) -> io::Result<&[u8]> {
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

impl Checker<'_, '_> {
    /// Counts the blocks of refcounts, after everything else: each is referred to once.
    pub(super) fn count_blocks(&mut self) -> io::Result<()> {
        let cluster = self.geometry.cluster_bytes();
        for number in 0..self.refcounts.table.len() as u64 {
            match self.refcounts.block(number) {
                Block::None => {}
                Block::Unaligned => {
                    self.check.corrupt(1, || format!("refcount block {number} is unaligned"));
                }
                Block::At(offset) if offset >= self.end.next_multiple_of(cluster) => {
                    let what = || format!("refcount block {number} is behind the end of the file");
                    self.check.corrupt(1, what);
                }
                Block::At(offset) => {
                    self.count(offset, cluster, 1, || format!("refcount block {number}"))?;
                    let count = self.counts.get(offset / cluster);
                    if count != 1 {
                        let what = || format!("refcount block {number} is used {count} times");
                        self.check.corrupt(1, what);
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares all references with the refcounts.
    pub(super) fn compare(&mut self) -> io::Result<()> {
        let in_file = self.end.div_ceil(self.geometry.cluster_bytes());
        let (end, per_block) = (in_file.max(self.counts.end()), self.refcounts.per_block());
        let width = self.refcounts.width;
        let mut used_end = 0;
        for number in 0..self.refcounts.table.len() as u64 {
            let first = number * per_block;
            if first >= end {
                break;
            }
            let clusters = first..(first + per_block).min(end);
            let offset = match self.refcounts.block(number) {
                Block::None => continue,
                Block::At(offset) => Some(offset),
                Block::Unaligned => None,
            };
            if !self.co.is_wanted() {
                return Err(io::Error::from_raw_os_error(libc::ECANCELED));
            }
            let read = offset.map(|it| self.refcounts.co_block(self.co, self.file, it));
            let Some(Ok(block)) = read else {
                let unread = clusters.end - clusters.start;
                self.check.fail(unread, || format!("refcount block {number} cannot be read"));
                continue;
            };
            if self.counts.is_empty(&clusters) && block.iter().all(|byte| *byte == 0) {
                continue;
            }
            let all = clusters.map(|it| (it, width.get(block, (it - first) as usize)));
            // Most clusters are as they should be.
            let count = |cluster| self.counts.get(cluster);
            let mut differ = Vec::new();
            for (cluster, refcount) in all {
                let count = count(cluster);
                if refcount | count != 0 {
                    used_end = used_end.max(cluster + 1);
                }
                // Counts end at the largest value that they can have.
                if refcount.min(u32::MAX.into()) != count {
                    differ.push((cluster, refcount, count));
                }
            }
            differ.into_iter().for_each(|it| self.differ(it));
        }
        let without: Vec<u64> = self.clusters_without_a_block(per_block);
        for cluster in without {
            used_end = used_end.max(cluster + 1);
            self.differ((cluster, 0, self.counts.get(cluster)));
        }
        let report = &mut self.check.report;
        // An image has a header in any case.
        report.image_end_offset = Some(used_end.max(1) * self.geometry.cluster_bytes());
        if report.check_errors == 0 {
            report.corruptions = report.corruptions.saturating_add(self.wrong_flags);
        }
        Ok(())
    }

    /// Clusters with references whose block there is none of.
    fn clusters_without_a_block(&self, per_block: u64) -> Vec<u64> {
        let is_without =
            |cluster: &u64| matches!(self.refcounts.block(cluster / per_block), Block::None);
        self.counts.iter().filter(is_without).collect()
    }

    fn differ(&mut self, (cluster, refcount, count): (u64, u64, u64)) {
        if refcount < count {
            let what = || format!("cluster {cluster}: refcount {refcount}, and {count} references");
            self.check.corrupt(1, what);
        } else {
            self.check.report.leaks += 1;
            let what =
                || format!("cluster {cluster} leaks: refcount {refcount}, {count} references");
            self.check.find(what);
        }
    }
}
