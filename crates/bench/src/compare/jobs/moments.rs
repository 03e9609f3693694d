//! Rows of commands to a job, and of a job that has nothing to do.

use std::io;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Stage;
use super::side::{Contents, Medium, Side};
use crate::measure::{Bench, Lap};
use crate::report::Row;
use crate::works::Unit;

/// A row. An operation is a command, or a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A mirror that copies is cancelled by force.
    Cancel,
    /// One that is ready is completed: from the command to its end.
    Pivot,
    /// One that is ready, and whose guests do nothing: how often the daemon sleeps anew.
    Idle,
}

impl Work {
    pub const ALL: [Work; 3] = [Work::Cancel, Work::Pivot, Work::Idle];

    pub fn name(self) -> &'static str {
        match self {
            Work::Cancel => "mirror, cancelled while it copies",
            Work::Pivot => "mirror, completed when it is ready",
            Work::Idle => "mirror ready and idle: wake-ups",
        }
    }

    pub fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        let unit = if self == Work::Idle { Unit::WakeUpsPerS } else { Unit::NsPerOp };
        let idle = Duration::from_secs(if stage.plan.quick { 1 } else { 5 });
        let laps = |side| self.laps(side, idle);
        stage.run(stage.contest(self.name().to_owned(), unit, 1, laps)?)
    }

    fn laps<'a>(self, mut side: Side, idle: Duration) -> Bench<'a> {
        let mut is_made = false;
        Box::new(move |_| {
            if !is_made {
                side.make("source", Medium::Memory, Contents::Data)?;
                side.make("target", Medium::Memory, Contents::Data)?;
                is_made = true;
            }
            side.add("source", Medium::Memory)?;
            side.add("target", Medium::Memory)?;
            let lap = self.lap(&mut side, idle)?;
            side.remove(&["source", "target"])?;
            Ok(lap)
        })
    }

    fn lap(self, side: &mut Side, idle: Duration) -> io::Result<Lap> {
        if self == Work::Cancel {
            side.mirror(&[])?;
            return side.lap(1, Side::cancel);
        }
        side.mirror(&[])?;
        side.until_ready()?;
        if self == Work::Pivot {
            return side.lap(1, |side| {
                side.daemon.execute("block-job-complete", json!({"device": "j"}))?;
                side.until_gone()
            });
        }
        // Threads that copies have left behind end.
        std::thread::sleep(Duration::from_secs(2));
        let (before, start) = (side.daemon.sleeps()?, Instant::now());
        std::thread::sleep(idle);
        let sleeps = side.daemon.sleeps()?.saturating_sub(before);
        let per_s = sleeps as f64 / start.elapsed().as_secs_f64();
        side.cancel()?;
        Ok(Lap { ops: 1, wall_ns: per_s, ..Lap::default() })
    }
}
