//! Which mapping an image shows: that of its disk, or that of a snapshot, which is only read.

use super::find;
use crate::image::Shown;
use crate::layout::{FormatError, Header, MAX_L1_BYTES, Snapshot};

impl Shown {
    /// That of the disk, or of the snapshot with an id, or else with a name.
    ///
    /// # Errors
    /// EINVAL if there is no such snapshot; those of an L1 table that cannot be.
    pub(crate) fn new(
        header: &Header,
        snapshots: &[Snapshot],
        wanted: Option<String>,
    ) -> Result<Shown, FormatError> {
        let Some(wanted) = wanted else {
            return Ok(Shown {
                snapshot: None,
                l1_offset: header.l1_offset,
                l1_entries: header.l1_entries,
                disk_bytes: header.disk_bytes(),
            });
        };
        let Some(snapshot) = find(snapshots, &wanted) else {
            return Err(FormatError::invalid(format!("there is no snapshot '{wanted}'")));
        };
        let Snapshot { l1_offset, l1_entries, disk_bytes, .. } = *snapshot;
        let (geometry, bytes) = (header.geometry()?, u64::from(l1_entries) * 8);
        geometry.check_table("L1 table of the snapshot", l1_offset, bytes, MAX_L1_BYTES)?;
        let disk_bytes = disk_bytes.unwrap_or(header.disk_bytes());
        if geometry.l1_entries(disk_bytes)? > u64::from(l1_entries) {
            return Err(FormatError::invalid("L1 table of the snapshot is too small"));
        }
        let disk_bytes = disk_bytes - disk_bytes % crate::layout::SECTOR_BYTES as u64;
        Ok(Shown { snapshot: Some(wanted), l1_offset, l1_entries, disk_bytes })
    }
}
