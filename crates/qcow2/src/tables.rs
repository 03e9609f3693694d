//! Reads headers and tables whole. What lies behind the end of the file is not allocated.

use std::io;
use std::sync::Arc;

use coblk_aio::Co;

use crate::layout::{
    Autoclear, Bitmap, FormatError, Header, MAX_SNAPSHOT_TABLE_BYTES, RefcountWidth, SECTOR_BYTES,
    Snapshot, parse_directory,
};
use crate::metadata::MetadataSet;
use crate::refcount::{RefcountParts, Refcounts};
use crate::source::{ImageError, Source};

/// How much of a table of unknown length is read at once, at first.
const FIRST_BYTES: usize = 64 << 10;

/// Cluster 0 as it is in the file, and what it says.
pub(crate) fn co_header(
    co: &Co<'_>,
    file: &dyn Source,
) -> Result<(Box<Header>, Vec<u8>), ImageError> {
    let mut prefix = [0; Header::PREFIX_BYTES];
    file.co_read_at(co, 0, &mut prefix)?;
    let bytes = Header::cluster_bytes(&prefix)?;
    let cluster = co_bytes(co, file, 0, bytes)?;
    Ok((Box::new(Header::parse(&cluster)?), cluster))
}

/// `bytes` bytes from `offset` on; callers bound them.
fn co_bytes(co: &Co<'_>, file: &dyn Source, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::new();
    let no_memory = |_| io::Error::from(io::ErrorKind::OutOfMemory);
    buffer.try_reserve_exact(bytes as usize).map_err(no_memory)?;
    buffer.resize(bytes as usize, 0);
    file.co_read_at(co, offset, &mut buffer)?;
    Ok(buffer)
}

/// The words of a table of `words` words at `offset`. Those behind the end of the file are 0, and left out.
pub(crate) fn co_words(
    co: &Co<'_>,
    file: &dyn Source,
    offset: u64,
    words: u64,
) -> io::Result<Vec<u64>> {
    let there = file.end().saturating_sub(offset).div_ceil(8).min(words);
    let bytes = co_bytes(co, file, offset, there * 8)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

/// The snapshots of an image, and the length of their table in bytes. With extra data that is too long they
/// are refused, unless `takes_all`.
pub(crate) fn co_snapshots(
    co: &Co<'_>,
    file: &dyn Source,
    header: &Header,
    takes_all: bool,
) -> Result<(Vec<Snapshot>, u64), ImageError> {
    let (mut snapshots, mut buffer, mut at) = (Vec::new(), Vec::new(), 0);
    let start = header.snapshots_offset;
    let there = file.end().saturating_sub(start);
    while snapshots.len() < header.snapshots as usize {
        match Snapshot::parse(buffer.get(at..).unwrap_or_default()) {
            Ok((snapshot, _)) if snapshot.is_extra_too_long() && !takes_all => {
                return Err(FormatError::too_big("too much extra data in a snapshot").into());
            }
            Ok((snapshot, len)) => {
                snapshots.push(snapshot);
                at += len;
            }
            Err(_) if buffer.len() as u64 >= MAX_SNAPSHOT_TABLE_BYTES => {
                return Err(FormatError::too_big("snapshot table is too large").into());
            }
            Err(_) if buffer.len() as u64 >= there => {
                let why = "snapshot table ends behind the end of the file";
                return Err(FormatError::invalid(why).into());
            }
            Err(_) => {
                let more = (buffer.len().max(FIRST_BYTES) as u64).min(there - buffer.len() as u64);
                let next = co_bytes(co, file, start + buffer.len() as u64, more)?;
                buffer.extend(next);
            }
        }
    }
    Ok((snapshots, at as u64))
}

/// The bitmaps of an image, if they are those of its data.
pub(crate) fn co_bitmaps(
    co: &Co<'_>,
    file: &dyn Source,
    header: &Header,
) -> Result<Vec<Bitmap>, ImageError> {
    let geometry = header.geometry()?;
    let Some(extension) = header.extensions.bitmaps(geometry)? else { return Ok(Vec::new()) };
    if !header.autoclear.contains(Autoclear::BITMAPS) {
        return Ok(Vec::new());
    }
    let (offset, bytes) = (extension.directory_offset, extension.directory_bytes);
    if offset.saturating_add(bytes) > file.end().saturating_add(geometry.cluster_bytes()) {
        let why = "bitmap directory ends behind the end of the file";
        return Err(FormatError::invalid(why).into());
    }
    let directory = co_bytes(co, file, offset, bytes)?;
    Ok(parse_directory(&directory, extension.count, geometry, header.disk_bytes())?)
}

/// The refcounts of an image, with memory for `bytes` bytes of them; they are written in blocks of `unit`
/// bytes.
pub(crate) fn co_refcounts(
    co: &Co<'_>,
    file: &dyn Source,
    header: &Header,
    metadata: &Arc<MetadataSet>,
    (unit, bytes): (u64, u64),
) -> Result<Refcounts, ImageError> {
    let geometry = header.geometry()?;
    let table_bytes = u64::from(header.refcount_table_clusters) * geometry.cluster_bytes();
    let table = co_words(co, file, header.refcount_table_offset, table_bytes / 8)?;
    Ok(Refcounts::new(RefcountParts {
        geometry,
        width: RefcountWidth::new(header.refcount_order)?,
        unit: unit.max(SECTOR_BYTES as u64),
        table_offset: header.refcount_table_offset,
        table_clusters: header.refcount_table_clusters,
        table,
        file_end: file.end(),
        limit: None,
        cache_bytes: bytes,
        metadata: Arc::clone(metadata),
    }))
}
