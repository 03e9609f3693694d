//! References of all that an L1 table leads to, in bulk.

use std::io;
use std::ops::Range;

use coblk_aio::Co;

use crate::image::Image;
use crate::layout::{Corruption, L2Entry, l1_offset};
use crate::live::Freed;
use crate::metadata::Metadata;
use crate::origin::Whose;
use crate::refcount::{Need, Refcounts};
use crate::source::Source;
use crate::space::Patience;

/// Clusters whose counts change under the lock at one time: they are in few refcount blocks.
const MAX_CLUSTERS: u64 = 32;

impl Image {
    /// Does something with the refcounts, and what they need for it.
    pub(super) fn co_with_refcounts<T>(
        &self,
        co: &Co<'_>,
        mut what: impl FnMut(&mut Refcounts) -> Result<T, Need>,
    ) -> io::Result<T> {
        let mut patience = Patience::default();
        loop {
            let mut state = self.lock();
            let Some(refcounts) = &mut state.refcounts else {
                return Err(io::Error::from_raw_os_error(libc::EROFS));
            };
            let need = match what(refcounts) {
                Ok(done) => return Ok(done),
                Err(need) => need,
            };
            drop(state);
            self.co_satisfy(co, need, &mut patience)?;
        }
    }

    /// Allocates space for a table of `bytes` bytes, and writes it there. It is durable, and counted, with the
    /// next commit.
    pub(crate) fn co_write_new_table(
        &self,
        co: &Co<'_>,
        mut table: Vec<u8>,
        kind: Metadata,
    ) -> io::Result<Range<u64>> {
        if table.is_empty() {
            return Ok(0..0);
        }
        let cluster = self.geometry.cluster_bytes();
        table.resize(table.len().next_multiple_of(cluster as usize), 0);
        let clusters = table.len() as u64 / cluster;
        let start = self.co_with_refcounts(co, |it| it.allocate_exact(clusters, kind))?;
        let range = start..start + table.len() as u64;
        self.co_write_metadata(co, start, &table).inspect_err(|_| self.give_back(&range))?;
        Ok(range)
    }

    /// Has tables that were [written](Self::co_write_new_table) durable. A commit does not sync if it has nothing to
    /// write, as when the clusters of a table were counted before.
    pub(crate) fn co_sync_tables(&self, co: &Co<'_>) -> io::Result<()> {
        self.file.co_flush(co)
    }

    /// Gives back clusters that nothing on file leads to.
    pub(crate) fn give_back(&self, range: &Range<u64>) {
        if let Some(refcounts) = self.lock().refcounts.as_mut().filter(|_| !range.is_empty()) {
            refcounts.give_back(range.clone());
        }
    }

    /// Gives up clusters that nothing on file leads to any more, durably.
    pub(crate) fn give_up(&self, range: Range<u64>) {
        let discard = self.options.discard(Freed::Snapshot);
        if let Some(refcounts) = self.lock().refcounts.as_mut().filter(|_| !range.is_empty()) {
            refcounts.give_up(range, discard);
        }
    }

    /// Adds a reference to each table that an L1 table leads to, and to all that these map; to all or to none.
    pub(super) fn co_add_references(
        &self,
        co: &Co<'_>,
        l1: &[u64],
        whose: Whose,
    ) -> io::Result<()> {
        let mut added = 0;
        let result = self.co_for_each_range(co, (l1, whose), |range| {
            self.co_with_refcounts(co, |it| it.add_reference(range.clone()))?;
            added += 1;
            Ok(true)
        });
        if result.is_err() {
            let undone = self.co_for_each_range(co, (l1, whose), |range| {
                if added == 0 {
                    return Ok(false);
                }
                added -= 1;
                self.give_back(&range);
                Ok(true)
            });
            if let Err(error) = undone {
                tracing::warn!(%error, "clusters of an image leak, as a snapshot could not be undone");
            }
        }
        result
    }

    /// Gives up a reference to each table that an L1 table led to, and to all that these map.
    pub(super) fn co_drop_references(
        &self,
        co: &Co<'_>,
        l1: &[u64],
        whose: Whose,
    ) -> io::Result<()> {
        self.co_for_each_range(co, (l1, whose), |range| {
            self.give_up(range);
            let wants_commit = self.lock().refcounts.as_ref().is_some_and(|it| it.wants_commit());
            if wants_commit {
                self.co_commit(co)?;
            }
            Ok(true)
        })
    }

    /// The entries of an L2 table in the file.
    pub(super) fn co_table(&self, co: &Co<'_>, table: u64) -> io::Result<Vec<L2Entry>> {
        if table >= self.end_behind(table) {
            let what = format_args!("L2 table at {table:#x} behind the end of the file");
            return Err(self.co_corrupt(co, &Corruption::new(what, Some(table))));
        }
        let mut bytes = vec![0; self.geometry.cluster_bytes() as usize];
        self.file.co_read_at(co, table, &mut bytes)?;
        Ok(self.entries_of(&bytes).collect())
    }

    /// Checks that the table of an L1 entry, and what it maps, may be where they are.
    pub(super) fn check_origin(
        &self,
        index: u64,
        table: u64,
        entries: &[L2Entry],
        whose: Whose,
    ) -> Result<(), Corruption> {
        let slices = entries.chunks(self.slice_entries() as usize);
        let reaches: Vec<u64> = slices.map(|it| self.reach(it.iter().copied())).collect();
        let first = index * reaches.len() as u64;
        let state = self.lock();
        let Some(refcounts) = &state.refcounts else { return Ok(()) };
        let bytes = table..table + self.geometry.cluster_bytes();
        refcounts.origin().check_table(index, &bytes, whose)?;
        let mut slices = (first..).zip(reaches);
        slices.try_for_each(|(slice, reach)| refcounts.origin().check_slice(slice, reach, whose))
    }

    /// Calls `each` for the tables that an L1 table leads to, and for what they map, as ranges of host bytes;
    /// always the same ones in the same order, while the tables do not change. `Ok(false)` ends it.
    fn co_for_each_range(
        &self,
        co: &Co<'_>,
        (l1, whose): (&[u64], Whose),
        mut each: impl FnMut(Range<u64>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let max_bytes = MAX_CLUSTERS * self.geometry.cluster_bytes();
        for (word, index) in l1.iter().zip(0..) {
            let table = l1_offset(*word, self.geometry);
            let Some(table) = table.map_err(|error| self.co_corrupt(co, &error))? else { continue };
            self.co_give_way(co);
            let mut run = table..table + self.geometry.cluster_bytes();
            let start = self.geometry.l1_start(index).unwrap_or(u64::MAX);
            let guests = (0..).map(|it| start.saturating_add(it << self.geometry.cluster_bits()));
            let entries = self.co_table(co, table)?;
            let origin = self.check_origin(index, table, &entries, whose);
            origin.map_err(|error| self.co_corrupt(co, &error))?;
            for (entry, guest) in entries.into_iter().zip(guests) {
                self.rules.check(entry, guest).map_err(|error| self.co_corrupt(co, &error))?;
                let Some(range) = self.clusters_of(entry) else { continue };
                if range.start == run.end && range.end - run.start <= max_bytes {
                    run.end = range.end;
                } else if !each(std::mem::replace(&mut run, range))? {
                    return Ok(());
                }
            }
            if !each(run)? {
                return Ok(());
            }
        }
        Ok(())
    }
}
