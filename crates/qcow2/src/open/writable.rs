//! What an opening for writes does beyond one for reads: it repairs, clears flags, and reads refcounts.

use std::collections::BTreeSet;

use coblk_aio::Co;
use coblk_block::Child;

use crate::check;
use crate::header_io::co_write_cluster;
use crate::layout::{
    Autoclear, FormatError, Header, Incompatible, MAX_L1_BYTES, MAX_SNAPSHOT_L1_BYTES, Purpose,
    Snapshot, l1_offset,
};
use crate::metadata::{Metadata, MetadataSet};
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
/// known are cleared, bitmaps that are not those of the data are dropped. The file is held.
pub(super) fn co_prepare(
    co: &Co<'_>,
    file: &Child,
    header: &mut Box<Header>,
    cluster: &mut Vec<u8>,
) -> Result<(), ImageError> {
    if !needs_preparation(header) {
        return Ok(());
    }
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

/// Tables that are known when an image is opened.
pub(super) struct Known<'a> {
    pub(super) header: &'a Header,
    pub(super) l1: &'a [u64],
    pub(super) snapshots: &'a [Snapshot],
}

/// Enters what is known of metadata. Refcounts enter their own.
pub(super) fn note_metadata(
    set: &MetadataSet,
    known: Known<'_>,
    snapshot_bytes: u64,
) -> Result<(), ImageError> {
    let Known { header, l1, snapshots } = known;
    let geometry = header.geometry()?;
    let cluster = geometry.cluster_bytes();
    set.insert(0..cluster, Metadata::MAIN_HEADER);
    let note = |offset: u64, bytes: u64, kind| {
        if bytes > 0 {
            set.insert(offset..offset.saturating_add(bytes), kind);
        }
    };
    note(header.l1_offset, u64::from(header.l1_entries) * 8, Metadata::ACTIVE_L1);
    note(header.snapshots_offset, snapshot_bytes, Metadata::SNAPSHOT_TABLE);
    // Many may have the same table, or one that none can have.
    let tables: BTreeSet<_> = snapshots.iter().map(|it| (it.l1_offset, it.l1_entries)).collect();
    let tables = tables.into_iter().map(|(offset, entries)| (offset, u64::from(entries) * 8));
    let is_table =
        |it: &(u64, u64)| geometry.check_table("L1 table", it.0, it.1, MAX_L1_BYTES).is_ok();
    let tables: Vec<_> = tables.filter(is_table).collect();
    if tables.iter().map(|it| it.1).sum::<u64>() > MAX_SNAPSHOT_L1_BYTES {
        let why = "the L1 tables of all snapshots are too large";
        return Err(FormatError::too_big(why).into());
    }
    for (offset, bytes) in tables {
        note(offset, bytes, Metadata::INACTIVE_L1);
    }
    if let Some(bitmaps) = header.extensions.bitmaps(geometry)? {
        note(bitmaps.directory_offset, bitmaps.directory_bytes, Metadata::BITMAP_DIRECTORY);
    }
    for entry in l1 {
        // What cannot be one is found when it is used.
        if let Ok(Some(table)) = l1_offset(*entry, geometry) {
            note(table, cluster, Metadata::ACTIVE_L2);
        }
    }
    Ok(())
}
