//! COPIED flags: they say what the disk shares with no snapshot.

use std::io;

use coblk_aio::Co;

use crate::image::Image;
use crate::layout::{COPIED, OFFSET_MASK};

impl Image {
    /// Clears the flags of all tables of the disk in the file; in memory they are clear.
    pub(super) fn co_clear_flags(&self, co: &Co<'_>) -> io::Result<()> {
        for index in 0..self.l1.entries() {
            let table = self.l1.get(index) & OFFSET_MASK;
            if table != 0 {
                self.co_set_flags_of(co, table, |_| Ok(false))?;
            }
        }
        // The L1 table as well.
        self.co_settle(co)?;
        self.file.co_flush(co)
    }

    /// Sets the flags of the disk by refcounts. The mapping stands still.
    pub(super) fn co_set_flags(&self, co: &Co<'_>) -> io::Result<()> {
        // A count of 1 is durable before a flag says so.
        self.co_settle(co)?;
        for index in 0..self.l1.entries() {
            let word = self.l1.get(index);
            let table = word & OFFSET_MASK;
            if table == 0 {
                continue;
            }
            let count = |host| self.co_with_refcounts(co, |it| it.count(host));
            let is_own = count(table)? == 1;
            if is_own {
                // Tables that are shared have no flags.
                self.co_set_flags_of(co, table, |host| Ok(count(host)? == 1))?;
            }
            let new = if is_own { word | COPIED } else { word & !COPIED };
            if new != word {
                let mut state = self.lock();
                self.l1.set(index, new);
                state.mark_l1(index);
            }
        }
        self.cache.clear(&self.lock().owed);
        self.co_settle(co)
    }

    /// Sets the flags in a table in the file as `is_own` says of their clusters.
    fn co_set_flags_of(
        &self,
        co: &Co<'_>,
        table: u64,
        is_own: impl Fn(u64) -> io::Result<bool>,
    ) -> io::Result<()> {
        let entries = self.co_table(co, table)?;
        let mut is_changed = false;
        let mut bytes = Vec::with_capacity(self.geometry.cluster_bytes() as usize);
        for entry in entries {
            let has_flag = match entry.is_compressed() || entry.offset() == 0 {
                true => false,
                false => is_own(entry.offset())?,
            };
            let flag = if has_flag { COPIED } else { 0 };
            let word = entry.word & !COPIED | flag;
            is_changed |= word != entry.word;
            bytes.extend(word.to_be_bytes());
            if self.geometry.is_extended() {
                bytes.extend(entry.bitmap.to_be_bytes());
            }
        }
        match is_changed {
            true => self.co_write_metadata(co, table, &bytes),
            false => Ok(()),
        }
    }
}
