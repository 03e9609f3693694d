//! A check of a whole image: every reference to a cluster is counted, and compared with its refcount.
//!
//! ```text
//! mod.rs       what refers to what: header, tables, snapshots, bitmaps
//! options.rs   what a check is asked for, and its outcome
//! tables.rs    L1 and L2 tables
//! snapshots.rs those of snapshots
//! runs.rs      clusters that follow each other
//! refcounts.rs the refcounts of the image, and the comparison
//! counts.rs    the references
//! repair/      mends what was found
//! store.rs     the file that a repair writes to
//! dirty.rs     what the opening of a dirty image for writes does first
//! live.rs      the check, and the repair, of an image that a node has open
//! ```
//!
//! A check does not change the image. Each L2 table is read once, however many L1 entries lead to it, and
//! what it refers to counts for each of them. Memory is bounded: 4 bytes a cluster that is used, in pieces.

mod counts;
mod dirty;
mod live;
mod options;
mod refcounts;
mod repair;
mod runs;
mod snapshots;
mod store;
mod tables;

use std::io;

use coblk_aio::Co;
use coblk_block::{BlockBackend, Repair};

use crate::layout::{
    BitmapTableEntry, EntryRules, Geometry, Header, Incompatible, Purpose, Snapshot,
};
use crate::source::{ImageError, Source};
use crate::tables as image_tables;
use counts::{Counts, Kind};
pub(crate) use dirty::co_repair_dirty;
use options::Progress;
pub use options::{Check, CheckOptions};
use refcounts::Refcounts;
use store::Store;
use tables::Pointers;

/// Checks the image that `file` has, which may be one that cannot be opened. Nothing else writes to it
/// meanwhile.
///
/// # Errors
/// If it is no image, or not one that can be checked; ENOMEM and EFBIG if the check would need more than is
/// allowed.
pub fn co_check(co: &Co<'_>, file: &BlockBackend) -> Result<Check, ImageError> {
    co_check_source(co, file)
}

/// [`co_check`], and a repair if the options say so: what [`Repair`] names is mended, and a second check
/// follows. Its figures are those of the outcome, beside the counts of what was mended. When no corruptions
/// are left, the image is marked as neither corrupt nor dirty.
///
/// The order of writes is such that the image is at no time worse than before, so the repair may be
/// interrupted and done again. `file` has to be writable, and to grow if refcounts are rebuilt.
///
/// # Errors
/// As of [`co_check`]. ECANCELED when the coroutine is not [wanted](Co::is_wanted) any more. EIO if the
/// tables cannot be read that say which clusters are in use: then nothing is written; or if refcounts have to
/// be rebuilt, and corruptions are not to be mended. Those of writes, after which the image is not worse
/// than before.
pub fn co_check_with(
    co: &Co<'_>,
    file: &BlockBackend,
    options: &CheckOptions<'_>,
) -> Result<Check, ImageError> {
    co_check_store(co, file, options)
}

pub(crate) fn co_check_source(co: &Co<'_>, file: &dyn Source) -> Result<Check, ImageError> {
    co_check_part(co, file, &Progress::whole(&|_, _| ()))
}

/// [`co_check_with`], of any file.
pub(crate) fn co_check_store(
    co: &Co<'_>,
    file: &dyn Store,
    options: &CheckOptions<'_>,
) -> Result<Check, ImageError> {
    match options.repair {
        Repair::None => co_check_part(co, file, &Progress::whole(options.progress)),
        Repair::Leaks | Repair::All => repair::co_repair(co, file, options),
    }
}

fn co_check_part(
    co: &Co<'_>,
    file: &dyn Source,
    progress: &Progress<'_>,
) -> Result<Check, ImageError> {
    let (header, _) = image_tables::co_header(co, file)?;
    header.check(Purpose::Check)?;
    let mut checker = Checker::new(co, file, header, *progress)?;
    checker.count_all()?;
    checker.compare()?;
    progress.tell(1, 1);
    Ok(checker.finish())
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
    /// L1 tables that were read.
    l1_tables: u32,
    check: Check,
    /// Wrong COPIED flags. They are not counted if refcounts could not be read.
    wrong_flags: u64,
    /// What a repair has to know besides.
    plan: Plan,
    progress: Progress<'a>,
}

/// What a check notes for a repair.
#[derive(Default)]
struct Plan {
    /// Whether entries without data that are not aligned are to become zeroes, so that they refer to
    /// nothing.
    mends_entries: bool,
    /// The L2 tables that have such entries.
    unaligned: Vec<u64>,
    /// Corruptions of the snapshot table.
    snapshots: u64,
    /// The length of the snapshot table in bytes.
    snapshots_bytes: u64,
    /// The snapshots, if the table is to be written anew.
    new_snapshots: Option<Vec<Snapshot>>,
    /// Corruptions that go when all refcounts are written anew.
    refcounts: u64,
    /// Whether owners have clusters that they cannot share.
    has_mixed: bool,
    /// Whether refcounts cannot be mended where they are.
    must_rebuild: bool,
    /// The first cluster behind the end of the file that something refers to.
    first_behind: u64,
    /// Why it is not known what is in use, if so.
    blind: Option<String>,
}

impl<'a, 'co> Checker<'a, 'co> {
    fn new(
        co: &'a Co<'co>,
        file: &'a dyn Source,
        header: Box<Header>,
        progress: Progress<'a>,
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
            l1_tables: 0,
            check: Check::default(),
            wrong_flags: 0,
            plan: Plan { first_behind: u64::MAX, ..Plan::default() },
            progress,
            header,
        })
    }

    /// Counts the clusters of a range of bytes, as often as that is referred to.
    fn count(
        &mut self,
        offset: u64,
        bytes: u64,
        times: u64,
        kind: Kind,
        what: impl FnOnce() -> String,
    ) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let cluster = self.geometry.cluster_bytes();
        let end = offset.checked_add(bytes).filter(|end| end.saturating_sub(self.end) < cluster);
        let Some(end) = end else {
            let what = format!("{} ends behind the end of the file", what());
            if offset >= self.end {
                self.plan.first_behind = self.plan.first_behind.min(offset / cluster);
            } else if kind != Kind::Compressed {
                // What is there of it is in use, and not counted.
                self.plan.blind.get_or_insert_with(|| what.clone());
            }
            self.check.corrupt(times, || what);
            return Ok(());
        };
        let bits = self.geometry.cluster_bits();
        for number in offset >> bits..=(end - 1) >> bits {
            self.counts.add(number, times, kind)?;
        }
        Ok(())
    }

    fn count_all(&mut self) -> Result<(), ImageError> {
        let cluster = self.geometry.cluster_bytes();
        self.check.report.total_clusters = self.header.disk_bytes().div_ceil(cluster);
        self.count(0, cluster, 1, Kind::Structure, || "the header".to_owned())?;
        let (l1, entries) = (self.header.l1_offset, self.header.l1_entries);
        self.count_l1((l1, entries), 1, true)?;
        self.count_snapshots()?;
        self.count_tables()?;
        self.count_bitmaps()?;
        if let Some(luks) = self.header.extensions.luks(self.geometry)? {
            let what = || "the encryption header".to_owned();
            self.count(luks.offset, luks.bytes, 1, Kind::Structure, what)?;
        }
        Ok(self.count_refcounts()?)
    }

    /// Says whether the check is to go on.
    fn co_go_on(&self) -> io::Result<()> {
        self.file.co_go_on(self.co)
    }

    /// The check, when all is compared.
    fn finish(mut self) -> Check {
        if self.check.report.check_errors == 0 {
            let corruptions = &mut self.check.report.corruptions;
            *corruptions = corruptions.saturating_add(self.wrong_flags);
        }
        self.check
    }

    fn count_bitmaps(&mut self) -> Result<(), ImageError> {
        let bitmaps = match image_tables::co_bitmaps(self.co, self.file, &self.header) {
            Ok(bitmaps) => bitmaps,
            Err(ImageError::Format(error)) => {
                self.check.corrupt(1, || error.to_string());
                self.plan.blind.get_or_insert_with(|| error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let extension = self.header.extensions.bitmaps(self.geometry)?;
        if let Some(directory) = extension.filter(|_| !bitmaps.is_empty()) {
            let (offset, bytes) = (directory.directory_offset, directory.directory_bytes);
            let what = || "the bitmap directory".to_owned();
            self.count(offset, bytes, 1, Kind::Structure, what)?;
        }
        for bitmap in bitmaps {
            self.co_go_on()?;
            let (offset, entries) = (bitmap.table_offset, u64::from(bitmap.table_entries));
            let name = || format!("the table of bitmap '{}'", bitmap.name);
            self.count(offset, entries * 8, 1, Kind::Structure, name)?;
            for entry in image_tables::co_words(self.co, self.file, offset, entries)? {
                match BitmapTableEntry::parse(entry, self.geometry) {
                    Some(BitmapTableEntry::All(_)) => {}
                    Some(BitmapTableEntry::Stored(offset)) => {
                        let data = || format!("data of bitmap '{}'", bitmap.name);
                        let bytes = self.geometry.cluster_bytes();
                        self.count(offset, bytes, 1, Kind::Structure, data)?;
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
