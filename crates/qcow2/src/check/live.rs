//! The check, and the repair, of an image that a node has open, beside its requests.
//!
//! A check ends when a drain of the node begins, and so does a repair that is not between two of its writes: the drain
//! waits for it, and so may requests that the drain waits for. The layer has it begin again, and adds up what was
//! mended. So a drain waits for the writes of a repair, and not for the checks before and after them.
//!
//! This is as safe as a crash at that moment and another repair, which finds nothing worse than was there before: all
//! writes of a pass are durable and whole when the repair ends, nothing that is in memory was decided from what the
//! file had before it, and the node reads the tables anew. Bits that say that the image is dirty or corrupt stay until
//! a check finds it sound; an image that was given up stays so.
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

use std::cell::Cell;
use std::io;

use coblk_aio::Co;
use coblk_block::{CheckReport, Repair};

use super::store::Store;
use super::{Check, CheckOptions, co_check_source, co_check_store, repair};
use crate::image::Image;
use crate::source::{ImageError, Source};

/// The file of an open image, for what gives way to drains unless it is between two writes.
struct Yielding<'a> {
    image: &'a Image,
    is_writing: Cell<bool>,
}

impl Yielding<'_> {
    fn new(image: &Image) -> Yielding<'_> {
        Yielding { image, is_writing: Cell::new(false) }
    }

    fn to_write(&self) -> &dyn Store {
        self.is_writing.set(true);
        &self.image.file
    }
}

impl Source for Yielding<'_> {
    fn end(&self) -> u64 {
        self.image.file.end()
    }

    fn co_read_inside(&self, co: &Co<'_>, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.image.file.co_read_inside(co, offset, target)
    }

    fn co_go_on(&self, co: &Co<'_>) -> io::Result<()> {
        if self.image.survey.is_held() && !self.is_writing.get() {
            return Err(io::Error::from_raw_os_error(libc::EINTR));
        }
        self.image.file.co_go_on(co)
    }
}

impl Store for Yielding<'_> {
    fn co_grow(&self, co: &Co<'_>, end: u64) -> io::Result<()> {
        self.to_write().co_grow(co, end)
    }

    fn co_write_inside(&self, co: &Co<'_>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.to_write().co_write_inside(co, offset, bytes)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        Store::co_flush(&self.image.file, co)
    }

    fn co_punch(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.to_write().co_punch(co, offset, bytes)
    }

    fn rest(&self) {
        self.is_writing.set(false);
    }
}

impl Image {
    /// Checks the image.
    ///
    /// # Errors
    /// As of [`co_check`](super::co_check); EINTR if it is in the way of a drain.
    pub(crate) fn co_look(&self, co: &Co<'_>) -> io::Result<CheckReport> {
        // A snapshot that is being made has counts, and no owner yet; and what is checked is in the file, and stays
        // as it is meanwhile.
        let _turn = self.co_turn(co)?;
        let file = Yielding::new(self);
        file.co_go_on(co)?;
        let _held = self.is_written().then(|| self.co_hold_unmarked(co)).transpose()?;
        Ok(co_check_source(co, &file)?.report)
    }

    /// Repairs the image. Then the node goes on with what the file has.
    ///
    /// # Errors
    /// As of [`co_check_with`](super::co_check_with); EINTR if it is in the way of a drain, and is not
    /// between two writes; and if the image cannot be read or written afterwards, which is not used any more then.
    pub(crate) fn co_repair(&self, co: &Co<'_>, repair: Repair) -> io::Result<CheckReport> {
        // The disk reads as before, so bitmaps need no mark, for which a cluster would be taken: one that only seems to
        // be free, perhaps.
        //
        // L1 tables and the header are changed by one at a time.
        let _turn = self.co_turn(co)?;
        let options = CheckOptions::new(repair);
        let is_usable =
            |check: &Check| check.report.corruptions == 0 && check.report.check_errors == 0;
        let file = Yielding::new(self);
        file.co_go_on(co)?;
        let mend = || co_check_store(co, &file, &options);
        Ok(self.co_beside_requests(co, mend, is_usable)?.report)
    }

    /// Has refcounts of another width, `2^order` bits. Gives way to drains until it writes.
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
        self.co_interruptible(co, |gives_way| {
            let file = Yielding::new(self);
            file.is_writing.set(!gives_way);
            file.co_go_on(co)?;
            let change = || repair::co_change_width(co, &file, order, progress);
            self.co_beside_requests(co, change, |()| true)
        })
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
        // What is read of the file from here on may be neither what it was nor what it will be.
        self.survey.co_end(co);
        let _blocks = self.block_turn.lock(co);
        let mut turn = Turn::new(self);
        self.co_await_header(co);
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

impl Turn<'_> {
    /// The survey has ended, and refcount blocks are read by none.
    fn new(image: &Image) -> Turn<'_> {
        image.rewrites.step();
        Turn { image, is_usable: false }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.image.set_alive(self.is_usable);
        self.image.rewrites.step();
        // Those that wait to read a block look again at which one.
        self.image.block_loads.add();
        self.image.survey.resume();
    }
}
