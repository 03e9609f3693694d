//! Images that give up all that they have.
//!
//! ```text
//! slow    entries are dropped one by one, as by discards. L2 tables stay where they are
//! fast    mark       the dirty bit: refcounts may be wrong from here on
//!         L1         all of it becomes zeroes, in the file and then in memory: requests see an empty image
//!         tables     a refcount table and a block behind the header, for nothing else than is there then
//!         header     one sector leads to them, and to an L1 table behind them
//!         cut        the file ends behind that; then the bit is cleared
//! ```
//!
//! Each step is durable before the next. A crash leaves entries as they were, or an empty image: with the dirty bit,
//! which has the next opening write refcounts that are right.

use std::io;

use coblk_aio::Co;

use crate::clear::Clear;
use crate::image::Image;
use crate::layout::{Autoclear, Crypt, FormatError, Header, Incompatible, RefcountWidth};
use crate::source::ImageError;

/// Clusters of header, refcount table, and refcount block.
const FIRST_CLUSTERS: u64 = 3;

impl Image {
    /// Drops all mappings: the disk reads as the backing file then, or as zeroes. After a crash each cluster is as
    /// before, or dropped.
    ///
    /// # Errors
    /// EINVAL if the data file is raw, as it has all that the disk has; those of writing.
    pub(crate) fn co_empty(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_begin_change(co)?;
        // L1 tables are changed by one at a time.
        let _turn = self.co_turn(co)?;
        if self.header().autoclear.contains(Autoclear::RAW_DATA_FILE) {
            let why = "an image whose data file is raw cannot be emptied";
            return Err(FormatError::invalid(why).into());
        }
        match self.can_begin_anew()? {
            true => self.co_begin_anew(co),
            false => self.co_drop_all(co),
        }
    }

    /// Drops entry by entry, and [gives way](crate::giving_way) to drains between tables. L2 tables stay, as requests
    /// may be using them.
    fn co_drop_all(&self, co: &Co<'_>) -> io::Result<()> {
        let end = self.disk_bytes().next_multiple_of(self.geometry.cluster_bytes());
        let mut at = 0;
        while at < end {
            self.co_give_way(co);
            let next = self.geometry.l1_start(self.geometry.l1_index(at) + 1);
            let part = at..next.unwrap_or(u64::MAX).min(end);
            at = part.end;
            self.co_clear(co, part, Clear::Dropped)?;
        }
        self.co_settle(co)?;
        self.co_pass_grace(co);
        self.co_give_way(co);
        self.co_drop_empty_blocks(co)?;
        self.co_settle(co)?;
        self.co_pass_grace(co);
        // A write that takes new clusters must not find them cut off.
        let held = self.co_hold_unmarked(co)?;
        self.co_cut_file(co)?;
        drop(held);
        self.co_flush_files(co)
    }

    /// Whether nothing but mappings is in the file, and all that is left has refcounts in one block.
    fn can_begin_anew(&self) -> Result<bool, FormatError> {
        let header = self.header();
        let cluster = self.geometry.cluster_bytes();
        let l1_bytes = u64::from(header.l1_entries) * 8;
        let clusters = FIRST_CLUSTERS + l1_bytes.div_ceil(cluster);
        let width = RefcountWidth::new(header.refcount_order)?;
        // The old L1 table has to stay zeroes while table and block are written.
        let l1 = header.l1_offset..header.l1_offset.saturating_add(l1_bytes);
        Ok(header.version >= 3
            && header.snapshots == 0
            && !header.extensions.has_bitmaps()
            && header.crypt()? == Crypt::None
            && self.data_file.is_none()
            && !l1.is_empty()
            && l1.start >= FIRST_CLUSTERS * cluster
            && clusters <= width.per_block(self.geometry))
    }

    fn co_begin_anew(&self, co: &Co<'_>) -> io::Result<()> {
        let held = self.co_hold(co)?;
        let begin = || -> Result<(), ImageError> {
            self.co_empty_l1(co)?;
            // Reads that have found something end before it is overwritten.
            held.co_pass_requests(co)?;
            Ok(self.co_write_first_tables(co)?)
        };
        // If that fails the image is dirty, and repaired as it is read.
        let emptied = self.co_change_file(co, true, begin, |()| true);
        drop(held);
        emptied
    }

    /// Drops all tables, in the file, and in memory.
    fn co_empty_l1(&self, co: &Co<'_>) -> io::Result<()> {
        let header = self.header();
        let bytes = u64::from(header.l1_entries) * 8;
        self.co_write_metadata(co, header.l1_offset, &vec![0; bytes as usize])?;
        self.file.co_flush(co)?;
        let state = self.lock();
        self.l1.replace(&[]);
        self.cache.clear(&state.owed);
        self.inflated.clear();
        Ok(())
    }

    /// Writes what an empty image has, and nothing else.
    fn co_write_first_tables(&self, co: &Co<'_>) -> io::Result<()> {
        let (header, cluster) = (self.header(), self.geometry.cluster_bytes());
        let l1_bytes = u64::from(header.l1_entries) * 8;
        let clusters = FIRST_CLUSTERS + l1_bytes.div_ceil(cluster);
        let width = RefcountWidth::new(header.refcount_order)?;
        let [mut table, mut block] = [0, 1].map(|_| vec![0; cluster as usize]);
        table[..8].copy_from_slice(&(2 * cluster).to_be_bytes());
        for index in 0..clusters {
            width.set(&mut block, index as usize, 1)?;
        }
        self.co_write_metadata(co, 2 * cluster, &block)?;
        let l1 = vec![0; ((clusters - FIRST_CLUSTERS) * cluster) as usize];
        self.co_write_metadata(co, FIRST_CLUSTERS * cluster, &l1)?;
        self.co_write_metadata(co, cluster, &table)?;
        self.file.co_flush(co)?;
        self.co_update_header(co, |header: &mut Header| {
            (header.refcount_table_offset, header.refcount_table_clusters) = (cluster, 1);
            header.l1_offset = FIRST_CLUSTERS * cluster;
        })?;
        // A device stays as long as it is, and may have anything there.
        if let Err(error) = self.co_shorten_file(co, clusters * cluster) {
            tracing::debug!(%error, "the file of an image cannot be cut");
        }
        self.file.co_flush(co)?;
        self.co_update_header(co, |header: &mut Header| {
            header.incompatible.remove(Incompatible::DIRTY);
        })
    }
}
