//! The snapshot table, and the L1 tables that it leads to.

use super::Checker;
use super::counts::Kind;
use crate::layout::{FormatError, MAX_L1_BYTES, MAX_SNAPSHOT_L1_BYTES, MAX_SNAPSHOTS, Snapshot};
use crate::source::ImageError;
use crate::tables;

impl Checker<'_, '_> {
    pub(super) fn count_snapshots(&mut self) -> Result<(), ImageError> {
        let offset = self.header.snapshots_offset;
        let (snapshots, bytes) = match self.read_snapshots() {
            Ok(read) => read,
            Err(ImageError::Format(error)) => {
                self.check.corrupt(1, || error.to_string());
                self.plan.blind.get_or_insert_with(|| error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let what = || "the snapshot table".to_owned();
        self.count(offset, bytes, 1, Kind::Structure, what)?;
        self.count_l1_of(&snapshots)?;
        self.plan.snapshots_bytes = bytes;
        if self.plan.snapshots > 0 {
            self.plan.new_snapshots = Some(snapshots);
        }
        Ok(())
    }

    fn read_snapshots(&mut self) -> Result<(Vec<Snapshot>, u64), ImageError> {
        let mut header = self.header.clone();
        let overhanging = header.snapshots.saturating_sub(MAX_SNAPSHOTS);
        if overhanging > 0 && self.plan.mends_entries {
            header.snapshots = MAX_SNAPSHOTS;
            let what = || format!("there are {overhanging} snapshots too many");
            self.check.corrupt(overhanging.into(), what);
            self.plan.snapshots += u64::from(overhanging);
        }
        let [bytes, max] = [header.snapshots, MAX_SNAPSHOTS].map(|it| u64::from(it) * 40);
        self.geometry.check_table("snapshot table", header.snapshots_offset, bytes, max)?;
        tables::co_snapshots(self.co, self.file, &header, true)
    }

    fn count_l1_of(&mut self, snapshots: &[Snapshot]) -> Result<(), ImageError> {
        let mut tables = Vec::new();
        for snapshot in snapshots {
            let name = || String::from_utf8_lossy(&snapshot.id).into_owned();
            if snapshot.is_extra_too_long()
                || self.header.version >= 3 && snapshot.is_extra_too_short()
            {
                self.check.corrupt(1, || format!("snapshot '{}': wrong extra data", name()));
                self.plan.snapshots += 1;
            }
            let bytes = u64::from(snapshot.l1_entries) * 8;
            let place = snapshot.l1_offset;
            match self.geometry.check_table("its L1 table", place, bytes, MAX_L1_BYTES) {
                Ok(()) => tables.push((place, snapshot.l1_entries)),
                Err(error) => {
                    self.check.corrupt(1, || format!("snapshot '{}': {error}", name()));
                }
            }
        }
        // Snapshots of a hostile image may share one table.
        tables.sort_unstable();
        let distinct = || tables.chunk_by(|one, other| one == other);
        if distinct().map(|same| u64::from(same[0].1) * 8).sum::<u64>() > MAX_SNAPSHOT_L1_BYTES {
            let why = "the L1 tables of all snapshots are too large";
            return Err(FormatError::too_big(why).into());
        }
        for same in distinct() {
            self.co_go_on()?;
            self.count_l1(same[0], same.len() as u64, false)?;
        }
        Ok(())
    }
}
