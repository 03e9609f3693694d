//! A check of a whole image: every reference to a cluster is counted, and compared with its refcount.
//!
//! ```text
//! mod.rs       what refers to what: header, tables, snapshots, bitmaps
//! tables.rs    L1 and L2 tables
//! refcounts.rs the refcounts of the image, and the comparison
//! counts.rs    the references
//! store.rs     the file that a repair writes to
//! dirty.rs     what the opening of a dirty image for writes does first
//! ```
//!
//! The image is not changed. Each L2 table is read once, however many L1 entries lead to it, and what it
//! refers to counts for each of them. Memory is bounded: 4 bytes a cluster that is used, in pieces.

mod counts;
mod dirty;
mod refcounts;
mod store;
mod tables;

use std::io;

use coblk_aio::Co;
use coblk_block::{BlockBackend, CheckReport};

use crate::layout::{
    BitmapTableEntry, EntryRules, FormatError, Geometry, Header, Incompatible, MAX_L1_BYTES,
    Purpose, Snapshot,
};
use crate::source::{ImageError, Source};
use crate::tables as image_tables;
use counts::Counts;
#[expect(unused_imports, reason = "images are not written yet")]
pub(crate) use dirty::co_repair_dirty;
use refcounts::Refcounts;
use tables::Pointers;

/// Most findings that are kept as texts.
const MAX_FINDINGS: usize = 1000;
/// Most entries of the L1 tables of all snapshots that are read.
const MAX_L1_ENTRIES: u64 = 1 << 28;

/// The outcome of a check.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Check {
    /// The figures.
    pub report: CheckReport,
    /// What was found, in words, as far as there is room.
    pub findings: Vec<String>,
}

impl Check {
    fn find(&mut self, what: impl FnOnce() -> String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(what());
        }
    }

    /// Counts corruptions.
    fn corrupt(&mut self, times: u64, what: impl FnOnce() -> String) {
        self.report.corruptions = self.report.corruptions.saturating_add(times);
        self.find(what);
    }

    /// Counts places that could not be checked.
    fn fail(&mut self, times: u64, what: impl FnOnce() -> String) {
        self.report.check_errors = self.report.check_errors.saturating_add(times);
        self.find(what);
    }
}

/// Checks the image that `file` has, which may be one that cannot be opened. Nothing else writes to it
/// meanwhile.
///
/// # Errors
/// If it is no image, or not one that can be checked; ENOMEM and EFBIG if the check would need more than is
/// allowed.
pub fn co_check(co: &Co<'_>, file: &BlockBackend) -> Result<Check, ImageError> {
    co_check_source(co, file)
}

pub(crate) fn co_check_source(co: &Co<'_>, file: &dyn Source) -> Result<Check, ImageError> {
    let (header, _) = image_tables::co_header(co, file)?;
    header.check(Purpose::Check)?;
    let mut checker = Checker::new(co, file, header)?;
    checker.count_all()?;
    checker.count_blocks()?;
    checker.compare()?;
    Ok(checker.check)
}

struct Checker<'a, 'co> {
    co: &'a Co<'co>,
    file: &'a dyn Source,
    header: Box<Header>,
    geometry: Geometry,
    rules: EntryRules,
    /// Where the file ends.
    end: u64,
    counts: Counts,
    refcounts: Refcounts,
    pointers: Pointers,
    check: Check,
    /// Wrong COPIED flags. They are not counted if refcounts could not be read.
    wrong_flags: u64,
}

impl<'a, 'co> Checker<'a, 'co> {
    fn new(
        co: &'a Co<'co>,
        file: &'a dyn Source,
        header: Box<Header>,
    ) -> Result<Checker<'a, 'co>, ImageError> {
        let geometry = header.geometry()?;
        let has_data_file = header.incompatible.contains(Incompatible::DATA_FILE);
        Ok(Checker {
            co,
            file,
            geometry,
            rules: EntryRules { geometry, is_v2: header.version == 2, has_data_file },
            end: file.end(),
            counts: Counts::default(),
            refcounts: Refcounts::co_new(co, file, &header)?,
            pointers: Pointers::default(),
            check: Check::default(),
            wrong_flags: 0,
            header,
        })
    }

    /// Counts the clusters of a range of bytes, as often as that is referred to.
    fn count(
        &mut self,
        offset: u64,
        bytes: u64,
        times: u64,
        what: impl FnOnce() -> String,
    ) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let cluster = self.geometry.cluster_bytes();
        let end = offset.checked_add(bytes).filter(|end| end.saturating_sub(self.end) < cluster);
        let Some(end) = end else {
            self.check.corrupt(times, || format!("{} ends behind the end of the file", what()));
            return Ok(());
        };
        for number in offset / cluster..=(end - 1) / cluster {
            self.counts.add(number, times)?;
        }
        Ok(())
    }

    fn count_all(&mut self) -> Result<(), ImageError> {
        let cluster = self.geometry.cluster_bytes();
        self.check.report.total_clusters = self.header.disk_bytes().div_ceil(cluster);
        self.count(0, cluster, 1, || "the header".to_owned())?;
        let (l1, entries) = (self.header.l1_offset, self.header.l1_entries);
        self.count_l1((l1, entries), 1, true)?;
        self.count_snapshots()?;
        self.count_tables()?;
        self.count_bitmaps()?;
        if let Some(luks) = self.header.extensions.luks(self.geometry)? {
            self.count(luks.offset, luks.bytes, 1, || "the encryption header".to_owned())?;
        }
        let bytes = u64::from(self.header.refcount_table_clusters) * cluster;
        let offset = self.header.refcount_table_offset;
        Ok(self.count(offset, bytes, 1, || "the refcount table".to_owned())?)
    }

    fn count_snapshots(&mut self) -> Result<(), ImageError> {
        let offset = self.header.snapshots_offset;
        let bounds = |it: &Self| {
            let bytes = u64::from(it.header.snapshots) * 40;
            let max = u64::from(crate::layout::MAX_SNAPSHOTS) * 40;
            it.geometry.check_table("snapshot table", offset, bytes, max)
        };
        let read = match bounds(self) {
            Ok(()) => image_tables::co_snapshots(self.co, self.file, &self.header, true),
            Err(error) => Err(error.into()),
        };
        let (snapshots, bytes) = match read {
            Ok(read) => read,
            Err(ImageError::Format(error)) => {
                self.check.corrupt(1, || error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.count(offset, bytes, 1, || "the snapshot table".to_owned())?;
        self.count_l1_of(&snapshots)
    }

    fn count_l1_of(&mut self, snapshots: &[Snapshot]) -> Result<(), ImageError> {
        let mut tables = Vec::new();
        for snapshot in snapshots {
            let name = || String::from_utf8_lossy(&snapshot.id).into_owned();
            if snapshot.is_extra_too_long()
                || self.header.version >= 3 && snapshot.is_extra_too_short()
            {
                self.check.corrupt(1, || format!("snapshot '{}': wrong extra data", name()));
            }
            let bytes = u64::from(snapshot.l1_entries) * 8;
            let place = snapshot.l1_offset;
            match self.geometry.check_table("its L1 table", place, bytes, MAX_L1_BYTES) {
                Ok(()) => tables.push((place, snapshot.l1_entries)),
                Err(error) => {
                    self.check.corrupt(1, || format!("snapshot '{}': {error}", name()));
                }
            }
        }
        // Snapshots of a hostile image may share one table.
        tables.sort_unstable();
        let mut entries = 0;
        for same in tables.chunk_by(|one, other| one == other) {
            entries += u64::from(same[0].1);
            if entries > MAX_L1_ENTRIES {
                return Err(
                    FormatError::too_big("the L1 tables of all snapshots are too large").into()
                );
            }
            self.count_l1(same[0], same.len() as u64, false)?;
        }
        Ok(())
    }

    fn count_bitmaps(&mut self) -> Result<(), ImageError> {
        let bitmaps = match image_tables::co_bitmaps(self.co, self.file, &self.header) {
            Ok(bitmaps) => bitmaps,
            Err(ImageError::Format(error)) => {
                self.check.corrupt(1, || error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let extension = self.header.extensions.bitmaps(self.geometry)?;
        if let Some(directory) = extension.filter(|_| !bitmaps.is_empty()) {
            let (offset, bytes) = (directory.directory_offset, directory.directory_bytes);
            self.count(offset, bytes, 1, || "the bitmap directory".to_owned())?;
        }
        for bitmap in bitmaps {
            let (offset, entries) = (bitmap.table_offset, u64::from(bitmap.table_entries));
            let name = || format!("the table of bitmap '{}'", bitmap.name);
            self.count(offset, entries * 8, 1, name)?;
            for entry in image_tables::co_words(self.co, self.file, offset, entries)? {
                match BitmapTableEntry::parse(entry, self.geometry) {
                    Some(BitmapTableEntry::All(_)) => {}
                    Some(BitmapTableEntry::Stored(offset)) => {
                        let data = || format!("data of bitmap '{}'", bitmap.name);
                        self.count(offset, self.geometry.cluster_bytes(), 1, data)?;
                    }
                    None => {
                        let what = || format!("{}: invalid entry {entry:#018x}", name());
                        self.check.corrupt(1, what);
                    }
                }
            }
        }
        Ok(())
    }
}
