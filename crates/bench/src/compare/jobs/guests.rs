//! Rows of a guest that writes while a job works.

use std::io;

use serde_json::json;

use super::Stage;
use super::side::{Contents, Medium, Side};
use crate::measure::{Bench, Lap};
use crate::report::{At, Row};
use crate::stats::Percentiles;
use crate::workload::nbd::NbdClient;
use crate::workload::{Job, Pattern, ReadWrite};
use crate::works::Unit;

/// Writes a lap.
const WRITES: u64 = 20_000;
/// The speed of the job, in bytes a second: it works as long as a lap takes.
const SPEED: u64 = 100 << 20;
/// That of a backup. Each write to what is not copied yet makes a copy beside it.
const BACKUP_SPEED: u64 = 20 << 20;

/// What goes on beside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    Nothing,
    Mirror,
    /// One in write-blocking mode that is ready.
    Active,
    Backup,
}

/// A row. An operation is a write of 4 KiB at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    beside: Beside,
    depth: usize,
}

impl Work {
    pub fn all() -> Vec<Work> {
        let beside = [Beside::Nothing, Beside::Mirror, Beside::Active, Beside::Backup];
        let of = |depth| beside.into_iter().map(move |beside| Work { beside, depth });
        [1, 16].into_iter().flat_map(of).collect()
    }

    pub fn name(self) -> String {
        let beside = match self.beside {
            Beside::Nothing => "no job",
            Beside::Mirror => "mirror at 100 MiB/s",
            Beside::Active => "write-blocking mirror",
            Beside::Backup => "backup at 20 MiB/s",
        };
        format!("guest writes QD{} beside {beside}", self.depth)
    }

    pub fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        let writes = if stage.plan.quick { WRITES / 100 } else { WRITES };
        let laps = |side| self.laps(side, writes);
        let contest = stage.contest(self.name(), Unit::NsPerOp, writes, laps)?;
        let mut row = stage.run(contest)?;
        row.at = Some(At::Depth(self.depth));
        Ok(row)
    }

    fn laps<'a>(self, mut side: Side, writes: u64) -> Bench<'a> {
        let mut is_made = false;
        Box::new(move |_| {
            if !is_made {
                side.make("source", Medium::Memory, Contents::Data)?;
                is_made = true;
            }
            side.make("target", Medium::Memory, Contents::Empty)?;
            side.add("source", Medium::Memory)?;
            side.add("target", Medium::Memory)?;
            let socket = side.path("guest.sock", Medium::Memory);
            let address = json!({"type": "unix", "data": {"path": socket}});
            side.daemon.execute("nbd-server-start", json!({"addr": address}))?;
            let export = json!({
                "type": "nbd", "id": "e", "node-name": "source", "name": "disk", "writable": true,
            });
            side.daemon.execute("block-export-add", export)?;
            let lap = self.lap(&mut side, &socket, writes)?;
            if self.beside != Beside::Nothing {
                side.cancel()?;
            }
            side.daemon.execute("nbd-server-stop", json!({}))?;
            side.daemon.until(|event| event["event"] == "BLOCK_EXPORT_DELETED")?;
            side.remove(&["source", "target"])?;
            let _ = std::fs::remove_file(&socket);
            Ok(lap)
        })
    }

    fn lap(self, side: &mut Side, socket: &std::path::Path, writes: u64) -> io::Result<Lap> {
        let job = Job {
            pattern: Pattern { kind: ReadWrite::RandWrite, read_percent: 0 },
            latency: true,
            ..Job::sequential_writes(self.depth, side.length)
        };
        let mut client = NbdClient::connect(socket, "disk", &job)?;
        match self.beside {
            Beside::Nothing => {}
            Beside::Mirror => side.mirror(&[("speed", json!(SPEED))])?,
            Beside::Backup => side.backup(&[("speed", json!(BACKUP_SPEED))])?,
            Beside::Active => {
                side.mirror(&[("copy-mode", json!("write-blocking"))])?;
                side.until_ready()?;
            }
        }
        let lap = side.lap(writes, |_| client.run(writes))?;
        Ok(Lap { latency: Percentiles::of(&client.take_latencies()), ..lap })
    }
}
