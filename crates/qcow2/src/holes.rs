//! Clusters that have a place, and nothing there: an image with preallocated metadata.
//!
//! If its refcounts count far more clusters than the host has space for, the block status of data asks the file, too:
//! what is a hole there reads as zeroes. That is found out when it is first asked for, as it may read all refcount
//! blocks; QEMU has the same rule.

use std::io;
use std::sync::OnceLock;

use coblk_aio::Co;
use coblk_block::Extent;

use crate::image::Image;
use crate::layout::{RefcountWidth, SECTOR_BYTES, block_offset};
use crate::source::Source;
use crate::tables;

/// Whether the file has holes where clusters have their places; not known at first.
#[derive(Default)]
pub(crate) struct Holes(OnceLock<bool>);

impl Image {
    /// The state of data that is at `host` bytes of the file.
    ///
    /// # Errors
    /// Those of reading refcounts, and of asking the file.
    pub(crate) fn co_status_of_data(
        &self,
        co: &Co<'_>,
        extent: Extent,
        host: u64,
    ) -> io::Result<Extent> {
        if self.data_file.is_some() || !self.co_has_holes(co)? {
            return Ok(extent);
        }
        let there = self.file.length().saturating_sub(host).min(extent.bytes);
        if there == 0 {
            return Ok(Extent { zero: true, ..extent });
        }
        let inner = self.file.co_block_status(co, host, there)?;
        // Behind the end of the file there are zeroes, too. A sector that has both is data.
        let sector = SECTOR_BYTES as u64;
        let (bytes, zero) = match inner.bytes {
            bytes if inner.zero && bytes == there => (extent.bytes, true),
            bytes if inner.zero && bytes >= sector => (bytes - bytes % sector, true),
            bytes => (bytes.next_multiple_of(sector).min(extent.bytes), false),
        };
        Ok(Extent { bytes, zero, ..extent })
    }

    fn co_has_holes(&self, co: &Co<'_>) -> io::Result<bool> {
        if let Some(has_holes) = self.holes.0.get() {
            return Ok(*has_holes);
        }
        let has_holes = match self.file.node().co_allocated_bytes(co)? {
            Some(bytes) => self.co_counts_more_than(co, bytes)?,
            None => false,
        };
        Ok(*self.holes.0.get_or_init(|| has_holes))
    }

    /// Whether far more clusters are in use than fit into `bytes` bytes.
    fn co_counts_more_than(&self, co: &Co<'_>, bytes: u64) -> io::Result<bool> {
        let cluster = self.geometry.cluster_bytes();
        let there = bytes / cluster;
        let threshold = (there.saturating_mul(10) / 9).max(there + 2);
        let end = self.file.length().div_ceil(cluster);
        if end < threshold {
            return Ok(false);
        }
        let header = self.header();
        let width = RefcountWidth::new(header.refcount_order)?;
        let per_block = width.per_block(self.geometry);
        let words = u64::from(header.refcount_table_clusters) * cluster / 8;
        let words = words.min(end.div_ceil(per_block));
        let table = tables::co_words(co, &self.file, header.refcount_table_offset, words)?;
        let (mut count, mut block) = (0, vec![0; cluster as usize]);
        for offset in table.into_iter().filter_map(block_offset) {
            self.file.co_read_at(co, offset, &mut block)?;
            count += per_block - width.count_free(&block);
            if count >= threshold {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
