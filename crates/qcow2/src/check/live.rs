//! The repair of an image that a node has open, beside its requests.
//!
//! ```text
//! hold     changes of entries wait; all that was changed is in the file, and what was given up is free. Requests
//!          that have found something else have ended. An image that is not used any more, as it is corrupt, forgets
//!          what it has not written
//! repair   the file, as that of an image that no node writes
//! anew     tables are read again, and changes go on. An image without corruptions is used again
//! ```
//!
//! Reads, and writes in place, go on all the while. They reach only clusters that entries lead to: a repair leaves
//! these where they are, and takes new space among those that nothing leads to.

use std::io;

use coblk_aio::Co;
use coblk_block::{CheckReport, Repair};

use super::{Check, CheckOptions, co_check_store, repair};
use crate::image::Image;
use crate::source::ImageError;

impl Image {
    /// Repairs the image. Then the node goes on with what the file has.
    ///
    /// # Errors
    /// As of [`co_check_with`](super::co_check_with); and if the image cannot be read or written afterwards, which
    /// is not used any more then.
    pub(crate) fn co_repair(&self, co: &Co<'_>, repair: Repair) -> io::Result<CheckReport> {
        // It may change the disk.
        if self.check_alive().is_ok() {
            self.co_begin_change(co)?;
        }
        // L1 tables and the header are changed by one at a time.
        let _turn = self.snapshot_turn.lock(co);
        let options = CheckOptions::new(repair);
        let is_usable =
            |check: &Check| check.report.corruptions == 0 && check.report.check_errors == 0;
        let mend = || co_check_store(co, &self.file, &options);
        Ok(self.co_beside_requests(co, mend, is_usable)?.report)
    }

    /// Has refcounts of another width, `2^order` bits.
    ///
    /// # Errors
    /// EINVAL, with a text, if a refcount does not fit, or the image is not sound; ECANCELED; those of reading and
    /// writing. The image is as before then.
    pub(crate) fn co_change_width(
        &self,
        co: &Co<'_>,
        order: u32,
        progress: &dyn Fn(u64, u64),
    ) -> io::Result<()> {
        self.check_alive()?;
        let change = || repair::co_change_width(co, &self.file, order, progress);
        self.co_beside_requests(co, change, |()| true)
    }

    /// Has `change` write to the tables of the file; then the node goes on with what the file has. An image that is
    /// not used any more is used again if the outcome `is_usable`.
    fn co_beside_requests<R>(
        &self,
        co: &Co<'_>,
        change: impl FnOnce() -> Result<R, ImageError>,
        is_usable: impl FnOnce(&R) -> bool,
    ) -> io::Result<R> {
        let is_alive = self.check_alive().is_ok();
        let held = match is_alive {
            true => self.co_hold_unmarked(co)?,
            false => self.co_hold_dead(co),
        };
        held.co_pass_requests(co)?;
        let changed = self.co_change_file(co, is_alive, change, is_usable);
        drop(held);
        changed
    }

    /// Has `change` write to the tables of the file of an image whose mapping is held, and which no request reaches
    /// that has found something before. Then the node goes on with what the file has, if the image `is_alive`, or
    /// the outcome `is_usable`.
    ///
    /// # Errors
    /// Those of `change`, which may have written something before: the file is read anew all the same. If it cannot
    /// be the image is not used any more.
    pub(crate) fn co_change_file<R>(
        &self,
        co: &Co<'_>,
        is_alive: bool,
        change: impl FnOnce() -> Result<R, ImageError>,
        is_usable: impl FnOnce(&R) -> bool,
    ) -> io::Result<R> {
        // What it has read by then is not what is counted afterwards.
        self.survey.co_end(co);
        let mut turn = Turn { image: self, is_usable: false };
        let changed = change();
        let read = self.co_read_anew(co, true);
        turn.is_usable = read.is_ok() && (is_alive || changed.as_ref().is_ok_and(is_usable));
        drop(turn);
        let changed = changed?;
        read?;
        Ok(changed)
    }
}

/// A change of the file. If it ends with its coroutine the file is not what is in memory, and the image is not used
/// any more.
struct Turn<'a> {
    image: &'a Image,
    is_usable: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.image.set_alive(self.is_usable);
        self.image.survey.resume();
    }
}
