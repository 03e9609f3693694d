//! The end of an image that was written: nothing is left to be written, nothing leaks.

use std::io;

use coblk_aio::Co;
use coblk_block::Truncate;

use crate::image::Image;
use crate::refcount::Refcounts;

/// How many commits a change needs at most until the file has all of it: what the first unlinks the second
/// lowers, which may free a refcount block. Those that lower what more blocks count than the cache holds are not
/// among them.
const MAX_COMMITS: u32 = 8;

impl Image {
    /// Writes all that is to be written, durably.
    ///
    /// # Errors
    /// Those of writing. What is left is still to be written then.
    pub(crate) fn co_settle(&self, co: &Co<'_>) -> io::Result<()> {
        // What comes next may change references to it in other ways.
        {
            let mut state = self.lock();
            state.packer = None;
            if let Some(refcounts) = &mut state.refcounts {
                refcounts.end_run();
            }
        }
        self.co_end_reserve(co);
        let (mut left, mut least) = (MAX_COMMITS, usize::MAX);
        while left > 0 && !self.lock().is_clean() {
            self.co_commit_and_free(co)?;
            // A commit lowers what the blocks in memory count; others wait for the next.
            let owed = self.lock().refcounts.as_ref().map_or(0, Refcounts::owed_blocks);
            (left, least) = if owed < least { (MAX_COMMITS, owed) } else { (left - 1, least) };
        }
        Ok(())
    }

    /// Writes all, bitmaps too, and has the file end behind the last cluster that is used.
    ///
    /// # Errors
    /// EBUSY if a change of the whole image waits for the end of a drained section; those of writing.
    pub(crate) fn co_finish(&self, co: &Co<'_>) -> io::Result<()> {
        if !self.is_written() || self.check_alive().is_err() {
            return Ok(());
        }
        self.check_turn()?;
        self.co_store_bitmaps(co)?;
        self.co_settle(co)?;
        if self.has_grown() { self.co_cut_file(co) } else { Ok(()) }
    }

    /// Has the file end behind the last cluster that is used. What was freed there is durably so, and no
    /// request is in flight that has found it before.
    ///
    /// # Errors
    /// Those of reading refcounts.
    pub(crate) fn co_cut_file(&self, co: &Co<'_>) -> io::Result<()> {
        loop {
            let used = self.lock().refcounts.as_mut().map(|it| it.last_used());
            match used {
                None => return Ok(()),
                Some(Err(need)) => self.co_load_need(co, need)?,
                Some(Ok(end)) => {
                    // The space ahead of writes does no harm if it stays; neither does a last cluster
                    // that is not all there, but not every other reader takes it.
                    let result = match end < self.file.length() {
                        true => self.co_shorten_file(co, end),
                        false => self.file.co_grow(co, end, Truncate::default()),
                    };
                    if let Err(error) = result {
                        tracing::debug!(%error, "the file of an image cannot be cut, or filled up");
                    }
                    self.look_at_end();
                    return Ok(());
                }
            }
        }
    }
}
