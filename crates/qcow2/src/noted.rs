//! Clusters with metadata, as far as they are known before an image is written.

use std::collections::BTreeSet;

use crate::layout::{
    FormatError, Header, MAX_L1_BYTES, MAX_SNAPSHOT_L1_BYTES, Snapshot, l1_offset,
};
use crate::metadata::{Metadata, MetadataSet};
use crate::source::ImageError;

/// Tables that are known when an image is opened, or its refcounts are loaded anew.
pub(crate) struct Known<'a> {
    pub(crate) header: &'a Header,
    pub(crate) l1: &'a [u64],
    pub(crate) snapshots: &'a [Snapshot],
}

/// Enters what is known of metadata. Refcounts enter their own.
pub(crate) fn note_metadata(set: &MetadataSet, known: Known<'_>) -> Result<(), ImageError> {
    let Known { header, l1, snapshots } = known;
    let mut snapshot_table = Vec::new();
    snapshots.iter().for_each(|it| it.encode(header.disk_bytes(), &mut snapshot_table));
    let snapshot_bytes = snapshot_table.len() as u64;
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
