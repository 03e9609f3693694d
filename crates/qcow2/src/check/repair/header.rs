//! The header of an image that is repaired. Each change is one of one sector.

use std::io;

use coblk_aio::Co;

use crate::check::store::Store;
use crate::layout::{Autoclear, Header, Incompatible, SECTOR_BYTES};
use crate::source::ImageError;
use crate::tables;

/// Where features are: incompatible, and autoclear ones.
const INCOMPATIBLE_AT: usize = 72;
const AUTOCLEAR_AT: usize = 88;
/// The extension that says where bitmaps are.
const BITMAPS: u32 = 0x2385_2875;

/// Does what every writer of an image does first. Autoclear features that are not known are cleared. If
/// bitmaps are not those of the data, their extension goes, so that nothing leads to what is then a leak.
pub(super) fn co_begin(co: &Co<'_>, file: &dyn Store) -> Result<(), ImageError> {
    let (header, bytes) = tables::co_header(co, file)?;
    header.check(crate::layout::Purpose::Check)?;
    let mut is_changed = false;
    let known = Autoclear::BITMAPS | Autoclear::RAW_DATA_FILE;
    if !known.contains(header.autoclear) {
        let bits = (header.autoclear & known).bits();
        co_set(co, file, AUTOCLEAR_AT, &bits.to_be_bytes())?;
        is_changed = true;
    }
    // One that is not the last stays: without its feature it means nothing.
    if !header.autoclear.contains(Autoclear::BITMAPS)
        && let Some(at) = last_extension(&header, &bytes, BITMAPS)
    {
        // The mark of the end of the list.
        co_set(co, file, at, &[0; 8])?;
        is_changed = true;
    }
    if is_changed {
        file.co_flush(co)?;
    }
    Ok(())
}

/// Where the last extension begins in cluster 0, if it is one of this type.
fn last_extension(header: &Header, cluster: &[u8], kind: u32) -> Option<usize> {
    let mut at = header.header_bytes();
    let mut last = None;
    for extension in header.extensions.iter() {
        last = Some((at, extension.kind));
        at += 8 + extension.data.len().next_multiple_of(8);
    }
    let (at, last) = last?;
    let is_there = cluster.get(at..at + 4) == Some(&kind.to_be_bytes());
    (last == kind && is_there && at % 8 == 0).then_some(at)
}

/// Clears the bits that keep an image from being written.
pub(super) fn co_mark_clean(co: &Co<'_>, file: &dyn Store) -> Result<(), ImageError> {
    let (header, _) = tables::co_header(co, file)?;
    let marks = Incompatible::DIRTY | Incompatible::CORRUPT;
    if header.incompatible.intersects(marks) {
        // What was mended is durable already.
        let bits = header.incompatible.difference(marks).bits();
        co_set(co, file, INCOMPATIBLE_AT, &bits.to_be_bytes())?;
        file.co_flush(co)?;
    }
    Ok(())
}

/// Sets bytes of cluster 0, in one sector.
pub(super) fn co_set(co: &Co<'_>, file: &dyn Store, at: usize, new: &[u8]) -> io::Result<()> {
    let mut sector = [0; SECTOR_BYTES];
    let (start, within) = (at - at % SECTOR_BYTES, at % SECTOR_BYTES);
    file.co_read_at(co, start as u64, &mut sector)?;
    sector[within..within + new.len()].copy_from_slice(new);
    file.co_write_at(co, start as u64, &sector)
}
