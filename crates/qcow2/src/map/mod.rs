//! Where bytes of the disk are: L1, a slice of an L2 table, runs of one kind.

mod data;
mod l1;
mod load;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::Co;

use crate::image::Image;
use crate::layout::{
    COPIED, CompressedCluster, Corruption, EntryRules, L2Entry, MAX_OFFSET, SubclusterKind,
    l1_offset,
};
pub(crate) use l1::L1;

/// The first bytes of a range that are of one kind, and in one piece if they have a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// How many bytes: at least one.
    pub(crate) bytes: u64,
    pub(crate) kind: SubclusterKind,
    /// The place of the first of them, if the kind [has one](SubclusterKind::is_stored).
    pub(crate) host: u64,
    /// The entry of a compressed cluster.
    pub(crate) word: u64,
    /// The clusters are this image's alone: they may be written where they are.
    pub(crate) is_own: bool,
}

/// What a run is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// For reads.
    Read,
    /// For writes: all clusters of a run may be written where they are, or none.
    Write,
}

impl Run {
    fn unallocated(bytes: u64) -> Run {
        Run { bytes, kind: SubclusterKind::Unallocated, host: 0, word: 0, is_own: false }
    }
}

impl Image {
    /// Finds the first bytes of a range within the disk: a run that ends with the range, or with the slice
    /// of its L2 table. What it tells is true for as long as the caller's pin of the epoch, taken before,
    /// lives: no cluster is used for something else.
    ///
    /// # Errors
    /// EIO for a corrupt entry, and those of reading the table.
    pub(crate) fn co_find(&self, co: &Co<'_>, range: Range<u64>, what: Look) -> io::Result<Run> {
        let geometry = self.geometry;
        let index = geometry.l1_index(range.start);
        let entry = self.l1.get(index);
        let table = match l1_offset(entry, geometry) {
            Ok(table) => table,
            Err(error) => return Err(self.co_corrupt(co, &error)),
        };
        if table.is_none() {
            let end = geometry.l1_start(index + 1).unwrap_or(u64::MAX).min(range.end);
            return Ok(Run::unallocated(end - range.start));
        }
        let slice = self.slice(range.start);
        let is_own = entry & COPIED != 0;
        let look =
            |words: &[AtomicU64]| find_in_slice(&self.rules, words, range.clone(), (what, is_own));
        let found = match self.cache.look(slice, look) {
            Some(found) => found,
            None => self.co_load(co, index, slice, look)?,
        };
        match found.and_then(|run| self.check_end(run)) {
            Ok(run) => Ok(run),
            Err(error) => Err(self.co_corrupt(co, &error)),
        }
    }

    /// The number of the slice of an offset.
    #[inline]
    pub(crate) fn slice(&self, offset: u64) -> u64 {
        offset >> self.geometry.cluster_bits() >> self.slice_entries().ilog2()
    }

    /// Where the slice of an offset ends on the disk.
    pub(crate) fn slice_end(&self, offset: u64) -> u64 {
        let clusters = (self.slice(offset) + 1) * self.slice_entries();
        clusters.saturating_mul(self.geometry.cluster_bytes())
    }

    /// Has the slice of an offset in the cache, if there is a table.
    pub(crate) fn co_have_slice(&self, co: &Co<'_>, offset: u64) -> io::Result<()> {
        let (index, slice) = (self.geometry.l1_index(offset), self.slice(offset));
        let is_there = self.l1.get(index) == 0 || self.cache.look(slice, |_| ()).is_some();
        if is_there { Ok(()) } else { self.co_load(co, index, slice, |_| ()) }
    }

    /// Entries of a slice.
    #[inline]
    pub(crate) fn slice_entries(&self) -> u64 {
        self.cache.slice_bytes() >> self.geometry.l2_entry_bits()
    }

    /// Cuts a run where the file ends, with the cluster that it ends in.
    #[inline]
    fn check_end(&self, run: Run) -> Result<Run, Corruption> {
        if run.kind != SubclusterKind::Data || self.data_file.is_some() {
            return Ok(run);
        }
        let (end, cluster) = (self.end_behind(run.host), self.geometry.cluster_bytes());
        if run.host - run.host % cluster >= end {
            let what = format_args!("cluster at {:#x} behind the end of the file", run.host);
            return Err(Corruption::new(what, Some(run.host)));
        }
        let there = end.next_multiple_of(cluster) - run.host;
        Ok(Run { bytes: run.bytes.min(there), ..run })
    }

    /// The place of a compressed cluster.
    ///
    /// # Errors
    /// EIO if it cannot be one.
    pub(crate) fn co_compressed(&self, co: &Co<'_>, run: Run) -> io::Result<CompressedCluster> {
        let place = CompressedCluster::parse(run.word, self.geometry);
        if place.offset >= self.end_behind(place.offset) || place.offset >= MAX_OFFSET {
            let what = format_args!(
                "compressed cluster at {:#x} behind the end of the file",
                place.offset
            );
            return Err(self.co_corrupt(co, &Corruption::new(what, Some(place.offset))));
        }
        Ok(place)
    }
}

/// The entry `index` of a slice.
#[inline]
pub(crate) fn entry(rules: &EntryRules, words: &[AtomicU64], index: usize) -> Option<L2Entry> {
    let word = |at: usize| words.get(at).map(|word| word.load(Ordering::Relaxed));
    match rules.geometry.is_extended() {
        false => Some(L2Entry { word: word(index)?, bitmap: 0 }),
        true => Some(L2Entry { word: word(index * 2)?, bitmap: word(index * 2 + 1)? }),
    }
}

/// The run at the beginning of a range, in the words of its slice; the table may be the image's own.
fn find_in_slice(
    rules: &EntryRules,
    words: &[AtomicU64],
    range: Range<u64>,
    (what, is_own): (Look, bool),
) -> Result<Run, Corruption> {
    let geometry = rules.geometry;
    // A power of two, as all that is not divided by here.
    let entries = (words.len() as u64 * 8) >> geometry.l2_entry_bits();
    let mut index = (geometry.l2_index(range.start) & entries.wrapping_sub(1)) as usize;
    let mut cluster = geometry.cluster_start(range.start);
    let mut current = entry(rules, words, index).unwrap_or_default();
    rules.check(current, cluster)?;
    let mut subcluster = geometry.subcluster(range.start);
    let kind = rules.kind(current, subcluster)?;
    let host = if kind.is_stored() { current.offset() + (range.start - cluster) } else { 0 };
    let word = current.word;
    let is_own = is_own && word & COPIED != 0;
    let wanted = range.end - range.start;
    let size = geometry.subcluster_bytes();
    let mut bytes = if kind == SubclusterKind::Compressed {
        geometry.cluster_bytes() - (range.start - cluster)
    } else {
        size - (range.start & (size - 1))
    };
    while bytes < wanted && kind != SubclusterKind::Compressed {
        subcluster += 1;
        if subcluster == geometry.subclusters() {
            (subcluster, index) = (0, index + 1);
            cluster = cluster.saturating_add(geometry.cluster_bytes());
            let Some(next) = entry(rules, words, index) else { break };
            // What is wrong behind the run is found when it is asked for.
            let goes_on = rules.check(next, cluster).is_ok()
                && (what == Look::Read || (next.word ^ word) & COPIED == 0)
                && (!kind.is_stored()
                    || next.offset() == current.offset() + geometry.cluster_bytes());
            if !goes_on {
                break;
            }
            current = next;
        }
        if rules.kind(current, subcluster) != Ok(kind) {
            break;
        }
        bytes += size;
    }
    Ok(Run { bytes: bytes.min(wanted), kind, host, word, is_own })
}

#[cfg(test)]
mod tests;
