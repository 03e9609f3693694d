//! What an opening for writes does beyond one for reads: it repairs, clears flags, and reads refcounts.

use coblk_aio::Co;
use coblk_block::{BackendOptions, BlockBackend, Child, Permissions};

use crate::check;
use crate::header_io::co_write_cluster;
use crate::layout::{Autoclear, FormatError, Header, Incompatible, Purpose};
use crate::source::ImageError;
use crate::tables;

/// Features that a writer need not clear: it knows them.
const KNOWN: Autoclear = Autoclear::BITMAPS.union(Autoclear::RAW_DATA_FILE);

/// Whether the header has to be changed before an image is written.
pub(crate) fn needs_preparation(header: &Header) -> bool {
    let is_stale =
        header.extensions.has_bitmaps() && !header.autoclear.contains(Autoclear::BITMAPS);
    !KNOWN.contains(header.autoclear)
        || is_stale
        || header.incompatible.contains(Incompatible::DIRTY)
}

/// Has an image ready to be written, before anything else is: a dirty one is repaired, features that are not
/// known are cleared, bitmaps that are not those of the data are dropped.
pub(super) fn co_prepare(
    co: &Co<'_>,
    file: &Child,
    header: &mut Box<Header>,
    cluster: &mut Vec<u8>,
) -> Result<(), ImageError> {
    if !needs_preparation(header) {
        return Ok(());
    }
    let lock = co_lock(co, file)?;
    // Another process may have been at it until now.
    (*header, *cluster) = tables::co_header(co, file)?;
    header.check(Purpose::Write)?;
    let prepared = co_prepare_locked(co, file, header, cluster);
    if let Err(error) = lock.co_close(co) {
        tracing::warn!(%error, "an image is still locked");
    }
    prepared
}

/// Keeps other processes from the file until the node has users that do so.
fn co_lock(co: &Co<'_>, file: &Child) -> Result<BlockBackend, ImageError> {
    let changes = Permissions::WRITE | Permissions::RESIZE;
    let held = Permissions::CONSISTENT_READ | changes;
    let backend = BackendOptions::new("opening of an image");
    let backend = backend.permissions(held, Permissions::all() - changes);
    let opened = backend.co_open(co, file.node());
    opened.map_err(|error| FormatError::no_access(error.to_string()).into())
}

fn co_prepare_locked(
    co: &Co<'_>,
    file: &Child,
    header: &mut Box<Header>,
    cluster: &mut Vec<u8>,
) -> Result<(), ImageError> {
    if header.incompatible.contains(Incompatible::DIRTY) {
        check::co_repair_dirty(co, file)?;
        (*header, *cluster) = tables::co_header(co, file)?;
        header.check(Purpose::Write)?;
    }
    let mut new = Header::clone(header);
    new.autoclear &= KNOWN;
    if new.extensions.has_bitmaps() && !new.autoclear.contains(Autoclear::BITMAPS) {
        tracing::warn!("bitmaps of the image were not kept up to date, and are dropped");
        new.extensions.remove_bitmaps();
        for wanted in new.encode_over(cluster)? {
            co_write_cluster(co, file, cluster, &wanted)?;
            *cluster = wanted;
        }
    } else {
        let mut wanted = cluster.clone();
        new.write_fields(&mut wanted);
        if wanted != *cluster {
            co_write_cluster(co, file, cluster, &wanted)?;
        }
        *cluster = wanted;
    }
    **header = new;
    Ok(())
}
