//! Writes the sectors of a table that differ.

use std::io;

use coblk_aio::Co;

use crate::check::store::Store;
use crate::layout::Header;

/// Writes those sectors of `new` that differ from `old`, the bytes that the file has at `offset`. Returns
/// whether there are any.
pub(super) fn co_write_changes(
    co: &Co<'_>,
    file: &dyn Store,
    offset: u64,
    (old, new): (&[u8], &[u8]),
) -> io::Result<bool> {
    let mut written = 0..0;
    let mut is_changed = false;
    let mut co_write = |range: &std::ops::Range<usize>| match range.is_empty() {
        true => Ok(()),
        false => {
            is_changed = true;
            file.co_write_at(co, offset + range.start as u64, &new[range.clone()])
        }
    };
    // Neighbours are written at once.
    for sector in Header::changed_sectors(old, new) {
        if sector.start == written.end {
            written.end = sector.end;
        } else {
            co_write(&written)?;
            written = sector;
        }
    }
    co_write(&written)?;
    Ok(is_changed)
}

/// The bytes of the words of a table.
pub(super) fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}
