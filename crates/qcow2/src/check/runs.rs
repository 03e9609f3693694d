//! Runs: clusters that follow each other in the file as they do on the disk. Most of an image is such, and
//! they are counted together.

use std::io;
use std::ops::Range;

use super::Checker;
use super::counts::Kind;
use super::tables::Pointer;
use crate::layout::{COPIED, MAX_OFFSET, OFFSET_MASK};

impl Checker<'_, '_> {
    /// Counts the clusters that the first of some entries refer to, where nothing can be wrong but counts: they
    /// have data and their flag, lie within the file, and follow each other. Returns the range of the file that
    /// they are; `None` if the first entry is another one.
    pub(super) fn count_run(
        &mut self,
        words: &[u64],
        pointer: Pointer,
    ) -> io::Result<Option<Range<u64>>> {
        let (cluster, bits) = (self.geometry.cluster_bytes(), self.geometry.cluster_bits());
        let Some(first) = words.first().copied().filter(|word| word & COPIED != 0) else {
            return Ok(None);
        };
        let offset = first & OFFSET_MASK;
        let is_plain = first == offset | COPIED && offset != 0 && self.geometry.is_aligned(offset);
        if !is_plain
            || self.geometry.is_extended()
            || self.rules.has_data_file
            || pointer.is_in_disk_often()
        {
            return Ok(None);
        }
        let there = self.end.min(MAX_OFFSET).saturating_sub(offset) >> bits;
        let follow =
            words.iter().zip(0..there).take_while(|(word, at)| **word == first + at * cluster);
        let clusters = offset >> bits..(offset >> bits) + follow.count() as u64;
        if clusters.is_empty() {
            return Ok(None);
        }
        self.counts.add_run(clusters.clone(), pointer.times(), Kind::Data)?;
        if pointer.is_active() {
            self.check_flags(clusters.clone())?;
        }
        Ok(Some(clusters.start << bits..clusters.end << bits))
    }

    /// Checks the flags of clusters whose entries have it.
    fn check_flags(&mut self, mut clusters: Range<u64>) -> io::Result<()> {
        while !clusters.is_empty() {
            clusters.start += self.refcounts.co_ones(self.co, self.file, clusters.clone());
            if !clusters.is_empty() {
                let offset = clusters.start << self.geometry.cluster_bits();
                self.check_flag(offset | COPIED, offset, "L2 entry")?;
                clusters.start += 1;
            }
        }
        Ok(())
    }
}
