//! L1 and L2 tables: what they refer to, and whether they are what they may be.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::Checker;
use super::counts::Kind;
use super::repair;
use crate::layout::{
    COPIED, CompressedCluster, L1_RESERVED, L2_RESERVED, L2Entry, SubclusterKind, l1_offset,
};
use crate::tables as image_tables;

/// The L2 tables, by their offsets, and how often L1 entries lead to them.
pub(super) type Pointers = BTreeMap<u64, Pointer>;

#[derive(Clone, Copy, Default)]
pub(super) struct Pointer {
    /// Entries of all L1 tables.
    all: u64,
    /// Entries of the active one.
    active: u64,
    /// The last of those.
    index: u64,
    /// The L1 table, by its number, that led here last.
    last: u32,
}

impl Pointer {
    /// Whether the table is part of the disk as it is now.
    pub(super) fn is_active(&self) -> bool {
        self.active > 0
    }

    /// Whether it is at more than one place of the disk, which is wrong.
    pub(super) fn is_in_disk_often(&self) -> bool {
        self.active > 1
    }

    /// How often L1 entries lead to it.
    pub(super) fn times(&self) -> u64 {
        self.all
    }
}

/// The sums of one L2 table that is part of the disk.
#[derive(Default)]
struct Figures {
    allocated: u64,
    fragmented: u64,
    compressed: u64,
    /// Where the next cluster is expected.
    next: Option<u64>,
}

impl Figures {
    /// Adds data at a range of the file, and returns how many clusters that is.
    fn add_run(&mut self, host: Range<u64>, cluster_bits: u32) -> u64 {
        let clusters = (host.end - host.start) >> cluster_bits;
        self.allocated += clusters;
        if self.next.is_some_and(|next| next != host.start) {
            self.fragmented += 1;
        }
        self.next = Some(host.end);
        clusters
    }
}

impl Checker<'_, '_> {
    /// Counts an L1 table that is referred to `times` times, and the L2 tables that it leads to.
    pub(super) fn count_l1(
        &mut self,
        (offset, entries): (u64, u32),
        times: u64,
        is_active: bool,
    ) -> io::Result<()> {
        let entries = u64::from(entries);
        self.l1_tables += 1;
        let what = || format!("L1 table at {offset:#x}");
        self.count(offset, entries * 8, times, Kind::Structure, what)?;
        let read = image_tables::co_words(self.co, self.file, offset, entries);
        let table = match read {
            Ok(table) => table,
            Err(error) => {
                let what = || format!("L1 table at {offset:#x}: {error}");
                self.plan.blind.get_or_insert_with(what);
                self.check.fail(1, what);
                return Ok(());
            }
        };
        for (entry, index) in table.into_iter().zip(0..).filter(|(entry, _)| *entry != 0) {
            if entry & L1_RESERVED != 0 {
                let what = || format!("L1 entry {index} ({entry:#018x}) with reserved bits");
                self.check.corrupt(times, what);
            }
            match l1_offset(entry, self.geometry) {
                Ok(None) => {}
                Ok(Some(table)) => {
                    self.count_l2_table(table, times, is_active.then_some((index, entry)))?
                }
                Err(corruption) => self.check.corrupt(times, || corruption.to_string()),
            }
        }
        Ok(())
    }

    fn count_l2_table(
        &mut self,
        table: u64,
        times: u64,
        active: Option<(u64, u64)>,
    ) -> io::Result<()> {
        let cluster = self.geometry.cluster_bytes();
        self.count(table, cluster, times, Kind::Table, || format!("L2 table at {table:#x}"))?;
        if let Some((_, entry)) = active {
            self.check_flag(entry, table, "L1 entry")?;
        }
        if table >= self.end {
            return Ok(());
        }
        let pointer = self.pointers.entry(table).or_default();
        pointer.all = pointer.all.saturating_add(times);
        let is_second = pointer.last == self.l1_tables;
        pointer.last = self.l1_tables;
        if let Some((index, _)) = active {
            (pointer.active, pointer.index) = (pointer.active.saturating_add(1), index);
        }
        if is_second {
            // A write through one entry would change what the other one has.
            self.counts.set_mixed(table >> self.geometry.cluster_bits());
        }
        Ok(())
    }

    /// Checks whether the flag COPIED is set as the refcount of its cluster says.
    pub(super) fn check_flag(&mut self, entry: u64, offset: u64, what: &str) -> io::Result<()> {
        let number = offset >> self.geometry.cluster_bits();
        let Some(refcount) = self.refcounts.co_get(self.co, self.file, number) else {
            // It is counted where refcounts are compared.
            return Ok(());
        };
        if (entry & COPIED != 0) != (refcount == 1) {
            self.wrong_flags += 1;
            self.check.find(|| format!("{what} {entry:#018x}: COPIED, and refcount is {refcount}"));
        }
        Ok(())
    }

    /// Counts what all L2 tables refer to. Each is read once.
    pub(super) fn count_tables(&mut self) -> io::Result<()> {
        let pointers = std::mem::take(&mut self.pointers);
        let all = pointers.len() as u64;
        for ((table, pointer), done) in pointers.iter().zip(0..) {
            self.co_go_on()?;
            self.progress.tell(done, all);
            let words = self.geometry.cluster_bytes() / 8;
            match image_tables::co_words(self.co, self.file, *table, words) {
                Ok(words) => {
                    if self.count_l2(&words, *pointer)? {
                        self.plan.unaligned.push(*table);
                    }
                }
                Err(error) => {
                    let what = || format!("L2 table at {table:#x}: {error}");
                    self.plan.blind.get_or_insert_with(what);
                    self.check.fail(1, what);
                }
            }
        }
        self.pointers = pointers;
        Ok(())
    }

    /// Counts what a table refers to. Returns whether entries are left out, as they are to be mended.
    fn count_l2(&mut self, words: &[u64], pointer: Pointer) -> io::Result<bool> {
        let mut is_to_be_mended = false;
        let mut figures = Figures::default();
        let guest = self.geometry.l1_start(pointer.index).unwrap_or(0);
        let step = (self.geometry.l2_entry_bytes() / 8) as usize;
        // Where entries begin that are not among those of the last run.
        let mut behind = 0;
        for (entry, number) in words.chunks(step).zip(0_u64..) {
            if number < behind {
                continue;
            }
            if let Some(run) = self.count_run(&words[number as usize * step..], pointer)? {
                behind = number + figures.add_run(run, self.geometry.cluster_bits());
                continue;
            }
            let second = |words: &[u64]| words.get(1).copied().unwrap_or(0);
            let entry = L2Entry { word: entry[0], bitmap: second(entry) };
            if entry == L2Entry::default() {
                continue;
            }
            let guest = guest.saturating_add(number << self.geometry.cluster_bits());
            if self.plan.mends_entries && repair::is_unaligned_zero(&self.rules, entry) {
                is_to_be_mended = true;
            } else if entry.is_compressed() {
                self.count_compressed(entry, pointer, &mut figures)?;
            } else {
                self.count_plain(entry, guest, pointer, &mut figures)?;
            }
        }
        let report = &mut self.check.report;
        report.allocated_clusters += figures.allocated * pointer.active;
        report.fragmented_clusters += figures.fragmented * pointer.active;
        report.compressed_clusters += figures.compressed * pointer.active;
        Ok(is_to_be_mended)
    }

    fn count_compressed(
        &mut self,
        entry: L2Entry,
        pointer: Pointer,
        figures: &mut Figures,
    ) -> io::Result<()> {
        let L2Entry { word, bitmap } = entry;
        if word & COPIED != 0 {
            let what = || format!("compressed cluster {word:#018x} with COPIED");
            self.check.corrupt(pointer.all, what);
        }
        if self.rules.has_data_file || bitmap != 0 {
            let what = || format!("compressed cluster {word:#018x} that cannot be one");
            self.check.corrupt(pointer.all, what);
            return Ok(());
        }
        // Such clusters are never where their predecessors end.
        figures.allocated += 1;
        figures.fragmented += 1;
        figures.compressed += 1;
        let place = CompressedCluster::parse(word, self.geometry);
        let what = || format!("compressed cluster at {:#x}", place.offset);
        self.count(place.offset, place.bytes, pointer.all, Kind::Compressed, what)
    }

    fn count_plain(
        &mut self,
        entry: L2Entry,
        guest: u64,
        pointer: Pointer,
        figures: &mut Figures,
    ) -> io::Result<()> {
        let (word, offset, times) = (entry.word, entry.offset(), pointer.all);
        if word & L2_RESERVED != 0 {
            self.check.corrupt(times, || format!("L2 entry {word:#018x} with reserved bits"));
        }
        let kinds = 0..self.geometry.subclusters();
        if let Some(Err(corruption)) =
            kinds.map(|it| self.rules.kind(entry, it)).find(|kind| kind.is_err())
        {
            self.check.corrupt(times, || format!("L2 entry {word:#018x}: {corruption}"));
        }
        let kind = self.rules.kind(entry, 0);
        let is_stored = kind.map_or(offset != 0, SubclusterKind::is_stored);
        if !is_stored {
            return Ok(());
        }
        let end = offset.saturating_add(self.geometry.cluster_bytes());
        figures.add_run(offset..end, self.geometry.cluster_bits());
        if let Err(corruption) = self.rules.check(entry, guest)
            && corruption.offset.is_some()
        {
            self.check.corrupt(times, || corruption.to_string());
        }
        if self.rules.has_data_file {
            if pointer.active > 0 && word & COPIED == 0 {
                self.wrong_flags += pointer.active;
            }
            return Ok(());
        }
        let cluster = self.geometry.cluster_bytes();
        let what = || format!("cluster at {offset:#x}");
        self.count(offset, cluster, times, Kind::Data, what)?;
        for _ in 0..pointer.active.min(1) {
            let before = self.wrong_flags;
            self.check_flag(word, offset, "L2 entry")?;
            // The table is part of the disk as often as that.
            let found = self.wrong_flags - before;
            self.wrong_flags += found * (pointer.active - 1);
        }
        Ok(())
    }
}
