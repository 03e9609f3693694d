//! Bitmaps from the image into memory.

use std::io;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{Bitmaps, DirtyBits, NewBitmap};

use crate::layout::{Bitmap, BitmapFlags, BitmapTableEntry, FormatError, Geometry};
use crate::source::{ImageError, Source};
use crate::tables;

/// Bits in a word of a bitmap in memory.
const WORD_BYTES: usize = 8;

/// Loads the bitmaps of a directory, for a disk of so many bytes, into `set`. Those that are in use are
/// inconsistent, and without bits.
///
/// # Errors
/// Those of reading; if a table makes no sense, or lies behind the end of the file.
pub(crate) fn co_load(
    co: &Co<'_>,
    file: &dyn Source,
    (geometry, disk_bytes): (Geometry, u64),
    directory: &[Bitmap],
    set: &Arc<Bitmaps>,
) -> Result<(), ImageError> {
    for entry in directory {
        let is_in_use = entry.flags.contains(BitmapFlags::IN_USE);
        let mut new = NewBitmap::new(entry.name.clone(), 1 << entry.granularity_bits);
        new.is_persistent = true;
        new.is_recording = !is_in_use && entry.flags.contains(BitmapFlags::AUTO);
        let bitmap = set.add(new, disk_bytes).map_err(io::Error::other)?;
        if is_in_use {
            bitmap.set_inconsistent();
        } else {
            co_load_bits(co, file, geometry, entry, bitmap.bits())?;
        }
    }
    Ok(())
}

fn co_load_bits(
    co: &Co<'_>,
    file: &dyn Source,
    geometry: Geometry,
    entry: &Bitmap,
    bits: &DirtyBits,
) -> Result<(), ImageError> {
    let cluster = geometry.cluster_bytes();
    let per_cluster = cluster / WORD_BYTES as u64;
    let words = bits.granules().div_ceil(64);
    let table = tables::co_words(co, file, entry.table_offset, entry.table_entries.into())?;
    let invalid = |why| {
        let name = &entry.name;
        ImageError::from(FormatError::invalid(format!("bitmap '{name}': {why}")))
    };
    if (table.len() as u64) < words.div_ceil(per_cluster) {
        return Err(invalid("its table ends behind the end of the file"));
    }
    let mut buffer = vec![0; cluster as usize];
    for (index, word) in (0..words.div_ceil(per_cluster)).zip(table) {
        let first = index * per_cluster;
        let here = first..words.min(first + per_cluster);
        match BitmapTableEntry::parse(word, geometry) {
            None => return Err(invalid("an entry of its table makes no sense")),
            Some(BitmapTableEntry::All(false)) => {}
            Some(BitmapTableEntry::All(true)) => here.for_each(|word| bits.set_word(word, !0)),
            Some(BitmapTableEntry::Stored(offset)) => {
                let needed = (here.end - here.start) * WORD_BYTES as u64;
                // What is missing would read as clean.
                if offset.checked_add(needed).is_none_or(|end| end > file.end()) {
                    return Err(invalid("its bits lie behind the end of the file"));
                }
                let bytes = &mut buffer[..needed as usize];
                file.co_read_at(co, offset, bytes)?;
                for (word, bytes) in here.zip(bytes.as_chunks::<WORD_BYTES>().0) {
                    bits.set_word(word, u64::from_le_bytes(*bytes));
                }
            }
        }
    }
    Ok(())
}
