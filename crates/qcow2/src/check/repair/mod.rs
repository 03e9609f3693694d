//! Mends what a check has found.
//!
//! ```text
//! mod.rs      the order of all, and what is counted
//! patch.rs    writes the sectors of a table that differ
//! header.rs   what any writer does first: bits and bitmaps that are not known to be right
//! entries.rs  L1 and L2 entries: COPIED, zeroes that refer to something
//! lower.rs    refcounts that are mended where they are
//! rebuild.rs  refcounts and snapshot table that are written anew
//! width.rs    refcounts of another width
//! ```
//!
//! # The order of writes
//!
//! A crash keeps any part of what was written since the last flush, whole sectors. After each, for every
//! cluster: it lacks no more references in its refcount than before the repair; no entry says wrongly COPIED
//! that did not before; what the guest and the snapshots read is as before. So:
//!
//! ```text
//! flush               what was read, and is decided upon, is durable
//! entries             zeroes that refer to something become zeroes; nothing else refers to less
//!   flush
//! refcounts, mended   each is old or new, and the new one is that of the references
//! or written anew     only into clusters that nothing refers to, old table and blocks included
//!   flush             then the header leads to them: fields of one sector
//!   flush
//! COPIED              is set where a refcount of 1 is durable and right; cleared elsewhere
//!   flush
//! second check        then the bits dirty and corrupt are cleared, if it finds no corruption
//!   flush
//! ```
//!
//! A cluster that two kinds of owners share is not written to, whatever it is.

mod entries;
mod header;
mod lower;
mod patch;
mod rebuild;
#[cfg(test)]
mod tests;
mod width;

use std::io;

use coblk_aio::Co;
use coblk_block::{Mended, Repair};

pub(super) use entries::is_unaligned_zero;
pub(super) use width::co_change_width;

use super::options::Progress;
use super::store::Store;
use super::{Check, CheckOptions, Checker, co_check_part};
use crate::layout::{FormatError, Purpose};
use crate::source::ImageError;
use crate::tables as image_tables;

/// Most ranges of leaks whose space is given back.
const MAX_PUNCHED: usize = 1 << 16;

/// See [`co_check_with`](super::co_check_with).
pub(super) fn co_repair(
    co: &Co<'_>,
    file: &dyn Store,
    options: &CheckOptions<'_>,
) -> Result<Check, ImageError> {
    let [first, second] = Progress::halves(options.progress);
    file.co_flush(co)?;
    header::co_begin(co, file)?;
    file.rest();
    let mut fixed = Fixed::default();
    let mut found = co_pass(co, file, options.repair, &first, &mut fixed)?;
    if found.is_shared_no_more {
        // What old refcounts or snapshots had a share of can be mended now.
        let again = co_pass(co, file, options.repair, &first, &mut fixed);
        found.check = again.map_err(|error| fixed.told_in(error))?.check;
    }
    let found = found.check;
    let mut check = co_check_part(co, file, &second).map_err(|error| fixed.told_in(error))?;
    check.report.corruptions_fixed = fixed.corruptions;
    check.report.leaks_fixed = fixed.leaks;
    let remaining = std::mem::take(&mut check.findings);
    found.findings.into_iter().chain(remaining).for_each(|it| check.find(|| it));
    if check.report.corruptions == 0 && check.report.check_errors == 0 {
        header::co_mark_clean(co, file)?;
    }
    Ok(check)
}

/// What one pass has found.
struct Pass {
    check: Check,
    /// Tables with owners that cannot share them may have lost one.
    is_shared_no_more: bool,
}

/// Checks, and mends once.
fn co_pass(
    co: &Co<'_>,
    file: &dyn Store,
    repair: Repair,
    progress: &Progress<'_>,
    fixed: &mut Fixed,
) -> Result<Pass, ImageError> {
    let mut checker = co_count(co, file, repair == Repair::All, progress)?;
    if checker.plan.unaligned.iter().any(|table| !checker.is_writable_table(*table)) {
        // What is not mended counts.
        checker = co_count(co, file, false, progress)?;
    }
    checker.compare()?;
    // Refcounts or snapshots come to be elsewhere, and leave what they had a share of.
    let plan = &checker.plan;
    let is_moved = plan.must_rebuild || repair == Repair::All && plan.new_snapshots.is_some();
    let is_shared_no_more = is_moved && plan.has_mixed;
    let mut repairer = Repairer { checker, co, file, fixed: std::mem::take(fixed) };
    let outcome = repairer.co_mend(repair);
    let Repairer { checker, fixed: mended, .. } = repairer;
    *fixed = mended;
    outcome?;
    file.rest();
    Ok(Pass { check: checker.check, is_shared_no_more })
}

/// Counts all references; those of entries that can be mended are left out if they will be.
fn co_count<'a, 'co>(
    co: &'a Co<'co>,
    file: &'a dyn Store,
    mends_entries: bool,
    progress: &Progress<'a>,
) -> Result<Checker<'a, 'co>, ImageError> {
    let (header, _) = image_tables::co_header(co, file)?;
    header.check(Purpose::Check)?;
    let mut checker = Checker::new(co, file, header, *progress)?;
    checker.plan.mends_entries = mends_entries;
    checker.count_all()?;
    Ok(checker)
}

/// What was mended.
#[derive(Default)]
struct Fixed {
    corruptions: u64,
    leaks: u64,
    /// Leaks without references, as ranges of clusters.
    freed: Vec<std::ops::Range<u64>>,
}

impl Fixed {
    /// An error, which tells what was mended before if it is an interruption.
    fn told_in(&self, error: ImageError) -> ImageError {
        match error {
            ImageError::Io(error) if error.kind() == io::ErrorKind::Interrupted => {
                let mended = Mended { corruptions: self.corruptions, leaks: self.leaks };
                io::Error::new(io::ErrorKind::Interrupted, mended).into()
            }
            error => error,
        }
    }

    fn free(&mut self, cluster: u64) {
        let has_room = self.freed.len() < MAX_PUNCHED;
        match self.freed.last_mut() {
            Some(last) if last.end == cluster => last.end += 1,
            _ if has_room => self.freed.push(cluster..cluster + 1),
            _ => {}
        }
    }
}

/// A repair, and the check that it follows.
struct Repairer<'a, 'co> {
    checker: Checker<'a, 'co>,
    co: &'a Co<'co>,
    file: &'a dyn Store,
    fixed: Fixed,
}

impl Checker<'_, '_> {
    /// Whether none of the clusters of a table has another owner that cannot share it.
    fn is_writable(&self, offset: u64, bytes: u64) -> bool {
        let cluster = self.geometry.cluster_bytes();
        let mut clusters = offset / cluster..(offset + bytes).div_ceil(cluster);
        clusters.all(|it| self.counts.get(it) > 0 && !self.counts.is_mixed(it))
    }

    /// [`is_writable`](Self::is_writable), of an L2 table.
    fn is_writable_table(&self, offset: u64) -> bool {
        self.is_writable(offset, self.geometry.cluster_bytes())
    }
}

impl Repairer<'_, '_> {
    fn co_mend(&mut self, repair: Repair) -> Result<(), ImageError> {
        if let Some(why) = &self.checker.plan.blind {
            let why = format!("not repaired, as it is not known what is in use: {why}");
            return Err(FormatError::io(why).into());
        }
        let mends_all = repair == Repair::All;
        // Corruptions that are found at the end, beside those of the snapshot table.
        let (report, plan) = (&self.checker.check.report, &self.checker.plan);
        let is_known = report.check_errors == 0 && report.corruptions == plan.snapshots;
        let is_sound = is_known && !plan.has_mixed;
        let must_rebuild = plan.must_rebuild;
        if must_rebuild && !mends_all {
            let why = "refcounts have to be written anew: that mends corruptions, not leaks alone";
            return Err(FormatError::io(why).into());
        }
        let has_snapshots = mends_all && plan.new_snapshots.is_some();
        let is_new = must_rebuild || has_snapshots;
        // What can fail does so before the first write.
        let places = is_new.then(|| self.plan_rebuild()).transpose()?;
        self.co_mend_entries()?;
        match places {
            Some(places) => self.co_rebuild(&places)?,
            None => self.co_mend_refcounts(mends_all)?,
        }
        if mends_all || is_sound {
            self.co_mend_flags()?;
        }
        if is_sound {
            self.co_punch();
        }
        Ok(())
    }

    /// Gives the space of leaks back to the host. Without corruptions nothing can be missed that they
    /// might have had.
    fn co_punch(&mut self) {
        let cluster = self.checker.geometry.cluster_bytes();
        for clusters in std::mem::take(&mut self.fixed.freed) {
            let (start, end) = (clusters.start * cluster, clusters.end * cluster);
            let end = end.min(self.file.end());
            // It is a hint.
            let _ = self.file.co_punch(self.co, start, end.saturating_sub(start));
        }
    }

    fn co_go_on(&self) -> io::Result<()> {
        self.checker.co_go_on()
    }
}
