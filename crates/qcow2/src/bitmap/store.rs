//! Bitmaps from memory into the image.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use coblk_aio::Co;
use coblk_block::{DirtyBitmap, DirtyBits};

use crate::image::{Hurdle, Image};
use crate::layout::{Bitmap, BitmapFlags, BitmapTableEntry, data_bytes};
use crate::metadata::Metadata;
use crate::tables;

/// An entry of a table without a cluster: all bits are set.
const ALL_SET: u64 = 1;

impl Image {
    /// Stores the bitmaps in memory, so that the image says of them that they are not in use. No write comes
    /// any more, or it [marks](Self::co_begin_change) them again.
    ///
    /// # Errors
    /// Those of writing. The image says as before that they are in use then, or has all of them.
    pub(crate) fn co_store_bitmaps(&self, co: &Co<'_>) -> io::Result<()> {
        if !self.bitmaps.needs_store() {
            return Ok(());
        }
        let _turn = self.co_turn(co)?;
        let old = self.bitmaps.directory().clone();
        let mut written = Vec::new();
        let prepared = self.co_prepare_store(co, &old, &mut written);
        let (new, replaced) = prepared.inspect_err(|_| {
            written.iter().for_each(|range| self.give_back(range));
        })?;
        // A write that came now would have to mark them.
        self.raise_hurdle(Hurdle::UNMARKED);
        self.co_store_directory(co, new)?;
        self.give_up_all(&replaced);
        Ok(())
    }

    /// Writes bits and tables, durably. Returns a directory of them, and the clusters that only the old
    /// directory leads to.
    fn co_prepare_store(
        &self,
        co: &Co<'_>,
        old: &[Bitmap],
        written: &mut Vec<Range<u64>>,
    ) -> io::Result<(Vec<Bitmap>, BTreeSet<u64>)> {
        let (mut new, mut kept) = (Vec::new(), Vec::new());
        for bitmap in self.bitmaps.persistent() {
            let name = bitmap.name().unwrap_or_default();
            let before = old.iter().find(|it| it.name == name);
            match before.filter(|_| bitmap.is_inconsistent()) {
                Some(before) => {
                    // As it is until it is removed.
                    let flags = before.flags | BitmapFlags::IN_USE;
                    new.push(Bitmap { flags, ..before.clone() });
                    kept.push(name);
                }
                None => new.push(self.co_store_one(co, name, &bitmap, written)?),
            }
        }
        let is_replaced = |it: &&Bitmap| !kept.contains(&it.name);
        let replaced: Vec<Bitmap> = old.iter().filter(is_replaced).cloned().collect();
        let replaced = self.co_clusters_of(co, &replaced)?;
        self.co_commit(co)?;
        Ok((new, replaced))
    }

    /// Writes the bits of a bitmap, and a table of them.
    fn co_store_one(
        &self,
        co: &Co<'_>,
        name: String,
        bitmap: &DirtyBitmap,
        written: &mut Vec<Range<u64>>,
    ) -> io::Result<Bitmap> {
        let bits = bitmap.bits();
        let granularity = bits.granularity();
        let cluster = self.geometry.cluster_bytes();
        let entries = data_bytes(self.disk_bytes(), granularity, self.geometry) / cluster;
        let mut flags = BitmapFlags::empty();
        flags.set(BitmapFlags::AUTO, bitmap.is_recording());
        flags.set(BitmapFlags::IN_USE, bitmap.is_inconsistent());
        let mut table = Vec::with_capacity(entries as usize * 8);
        for index in 0..entries {
            let entry = match cluster_of(bits, index, cluster) {
                Bits::Clear => 0,
                Bits::Set => ALL_SET,
                Bits::Some(bytes) => {
                    let range = self.co_write_new_table(co, bytes, Metadata::empty())?;
                    written.push(range.clone());
                    range.start
                }
            };
            table.extend(entry.to_be_bytes());
        }
        let range = self.co_write_new_table(co, table, Metadata::empty())?;
        written.push(range.clone());
        Ok(Bitmap {
            name,
            table_offset: range.start,
            table_entries: entries as u32,
            flags,
            granularity_bits: granularity.trailing_zeros() as u8,
        })
    }

    /// The clusters of tables and bits that bitmaps of the directory have.
    pub(super) fn co_clusters_of(
        &self,
        co: &Co<'_>,
        bitmaps: &[Bitmap],
    ) -> io::Result<BTreeSet<u64>> {
        let cluster = self.geometry.cluster_bytes();
        let mut clusters = BTreeSet::new();
        for bitmap in bitmaps {
            let entries = u64::from(bitmap.table_entries);
            let table = tables::co_words(co, &self.file, bitmap.table_offset, entries)?;
            let stored = table.iter().filter_map(|word| {
                match BitmapTableEntry::parse(*word, self.geometry) {
                    Some(BitmapTableEntry::Stored(offset)) => Some(offset),
                    Some(BitmapTableEntry::All(_)) | None => None,
                }
            });
            clusters.extend(stored);
            let end = bitmap.table_offset + entries * 8;
            clusters.extend((bitmap.table_offset..end).step_by(cluster as usize));
        }
        // An image may claim anything. What is known to be another thing stays.
        clusters.retain(|start| {
            let is_free =
                self.metadata.overlap(*start..start + cluster, Metadata::all()).is_empty();
            if !is_free {
                tracing::warn!(offset = start, "a bitmap of an image overlaps its metadata");
            }
            is_free && start + cluster <= self.file.length().next_multiple_of(cluster)
        });
        Ok(clusters)
    }
}

/// The bits that one cluster has.
enum Bits {
    Clear,
    Set,
    Some(Vec<u8>),
}

fn cluster_of(bits: &DirtyBits, index: u64, cluster: u64) -> Bits {
    let words = index * cluster / 8..(index + 1) * cluster / 8;
    let (mut any, mut all) = (0, !0);
    for word in words.clone().map(|word| bits.word(word)) {
        any |= word;
        all &= word;
        if any != 0 && all != !0 {
            return Bits::Some(words.flat_map(|word| bits.word(word).to_le_bytes()).collect());
        }
    }
    if any == 0 { Bits::Clear } else { Bits::Set }
}
