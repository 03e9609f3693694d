//! Images that give up all that they have.

use std::io;

use coblk_aio::Co;

use crate::clear::Clear;
use crate::image::Image;
use crate::layout::{Autoclear, FormatError};

impl Image {
    /// Drops all mappings: the disk reads as the backing file then, or as zeroes. L2 tables
    /// stay, as requests may be using them. After a crash each cluster is as before, or dropped.
    ///
    /// # Errors
    /// EINVAL if the data file is raw, as it has all that the disk has; those of writing.
    pub(crate) fn co_empty(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_begin_change(co)?;
        // L1 tables are changed by one at a time.
        let _turn = self.snapshot_turn.lock(co);
        if self.header().autoclear.contains(Autoclear::RAW_DATA_FILE) {
            let why = "an image whose data file is raw cannot be emptied";
            return Err(FormatError::invalid(why).into());
        }
        let end = self.disk_bytes().next_multiple_of(self.geometry.cluster_bytes());
        self.co_clear(co, 0..end, Clear::Dropped)?;
        self.co_settle(co)?;
        self.co_pass_grace(co);
        self.co_drop_empty_blocks(co)?;
        self.co_settle(co)?;
        self.co_pass_grace(co);
        // A write that takes new clusters must not find them cut off.
        let held = self.co_hold_unmarked(co)?;
        self.co_cut_file(co)?;
        drop(held);
        self.co_flush_files(co)
    }
}
