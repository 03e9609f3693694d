//! Where bytes of the disk are: L1, a slice of an L2 table, runs of one kind.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::Co;
use coblk_block::DebugEvent;

use crate::image::Image;
use crate::layout::{
    CompressedCluster, Corruption, EntryRules, L2Entry, MAX_OFFSET, SubclusterKind, l1_offset,
};
use crate::source::Source;

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
}

impl Run {
    fn unallocated(bytes: u64) -> Run {
        Run { bytes, kind: SubclusterKind::Unallocated, host: 0, word: 0 }
    }
}

impl Image {
    /// Finds the first bytes of a range within the disk: a run that ends with the range, or with the slice
    /// of its L2 table.
    ///
    /// # Errors
    /// EIO for a corrupt entry, and those of reading the table.
    pub(crate) fn co_find(&self, co: &Co<'_>, range: Range<u64>) -> io::Result<Run> {
        let geometry = self.geometry;
        let index = geometry.l1_index(range.start);
        let entry = usize::try_from(index).ok().and_then(|index| self.l1.get(index));
        let entry = entry.map_or(0, |entry| entry.load(Ordering::Relaxed));
        let table = l1_offset(entry, geometry).map_err(|error| self.corrupt(&error))?;
        let Some(table) = table else {
            let end = geometry.l1_start(index + 1).unwrap_or(u64::MAX).min(range.end);
            return Ok(Run::unallocated(end - range.start));
        };
        let slice_entries = self.slice_bytes / geometry.l2_entry_bytes();
        let slice = range.start >> geometry.cluster_bits() >> slice_entries.ilog2();
        let look = |words: &[AtomicU64]| find_in_slice(&self.rules, words, range.clone());
        let found = match self.cache.look(slice, look) {
            Some(found) => found,
            None => {
                let in_table = geometry.l2_index(range.start) / slice_entries;
                let place = table + in_table * self.slice_bytes;
                self.cache
                    .co_look(co, slice, look, |target| self.co_load(co, table, place, target))?
            }
        };
        let run = found.map_err(|error| self.corrupt(&error))?;
        self.check_end(run)
    }

    /// Reads a slice at `place` of the table at `table`.
    fn co_load(&self, co: &Co<'_>, table: u64, place: u64, target: &mut [u8]) -> io::Result<()> {
        if table >= self.end_behind(table) {
            let what = format_args!("L2 table at {table:#x} behind the end of the file");
            return Err(self.corrupt(&Corruption::new(what, Some(table))));
        }
        self.file.debug_event(DebugEvent::L2Load);
        self.file.co_read_at(co, place, target)
    }

    /// Cuts a run where the file ends, with the cluster that it ends in.
    #[inline]
    fn check_end(&self, run: Run) -> io::Result<Run> {
        if run.kind != SubclusterKind::Data || self.data_file.is_some() {
            return Ok(run);
        }
        let end = self.end_behind(run.host);
        if run.host >= end {
            let what = format_args!("cluster at {:#x} behind the end of the file", run.host);
            return Err(self.corrupt(&Corruption::new(what, Some(run.host))));
        }
        let there = end.next_multiple_of(self.geometry.cluster_bytes()) - run.host;
        Ok(Run { bytes: run.bytes.min(there), ..run })
    }

    /// The place of a compressed cluster.
    ///
    /// # Errors
    /// EIO if it cannot be one.
    pub(crate) fn compressed(&self, run: Run) -> io::Result<CompressedCluster> {
        let place = CompressedCluster::parse(run.word, self.geometry);
        if place.offset >= self.end_behind(place.offset) || place.offset >= MAX_OFFSET {
            let what = format_args!(
                "compressed cluster at {:#x} behind the end of the file",
                place.offset
            );
            return Err(self.corrupt(&Corruption::new(what, Some(place.offset))));
        }
        Ok(place)
    }
}

/// The entry `index` of a slice.
#[inline]
fn entry(rules: &EntryRules, words: &[AtomicU64], index: usize) -> Option<L2Entry> {
    let word = |at: usize| words.get(at).map(|word| word.load(Ordering::Relaxed));
    match rules.geometry.is_extended() {
        false => Some(L2Entry { word: word(index)?, bitmap: 0 }),
        true => Some(L2Entry { word: word(index * 2)?, bitmap: word(index * 2 + 1)? }),
    }
}

/// The run at the beginning of a range, in the words of its slice.
fn find_in_slice(
    rules: &EntryRules,
    words: &[AtomicU64],
    range: Range<u64>,
) -> Result<Run, Corruption> {
    let geometry = rules.geometry;
    // A power of two, as all that is not divided by here.
    let entries = words.len() as u64 * 8 >> geometry.l2_entry_bits();
    let mut index = (geometry.l2_index(range.start) & entries.wrapping_sub(1)) as usize;
    let mut cluster = geometry.cluster_start(range.start);
    let mut current = entry(rules, words, index).unwrap_or_default();
    rules.check(current, cluster)?;
    let mut subcluster = geometry.subcluster(range.start);
    let kind = rules.kind(current, subcluster)?;
    let host = if kind.is_stored() { current.offset() + (range.start - cluster) } else { 0 };
    let word = current.word;
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
    Ok(Run { bytes: bytes.min(wanted), kind, host, word })
}

#[cfg(test)]
mod tests;
