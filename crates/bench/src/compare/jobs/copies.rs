//! Rows of whole disks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

use coblk::aio::AlignedBuffer;

use super::side::{Contents, Medium, PIECE, Side, make, stored};
use super::{LOOP, Stage};
use crate::measure::{Bench, Lap};
use crate::report::Row;
use crate::works::Unit;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Until it is ready.
    Mirror,
    Backup,
}

/// A row. An operation is a MiB of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// From a source to a target that have this.
    Copy(Copy, Shape),
    /// How many bytes the target of a disk that is half zero takes, a MiB.
    Stored,
}

type Shape = (Medium, Contents, Contents);

impl Work {
    pub fn all() -> Vec<Work> {
        let (memory, direct) = (Medium::Memory, Medium::Direct);
        let shapes = [
            (memory, Contents::Data, Contents::Empty),
            (memory, Contents::Data, Contents::Data),
            (memory, Contents::HalfZero, Contents::Empty),
            (direct, Contents::Data, Contents::Data),
        ];
        let of = |copy| shapes.into_iter().map(move |shape| Work::Copy(copy, shape));
        let copies = [Copy::Mirror, Copy::Backup].into_iter().flat_map(of);
        copies.chain([Work::Stored]).collect()
    }

    pub fn name(self) -> String {
        let Work::Copy(copy, (medium, source, target)) = self else {
            return "mirror half zero, bytes stored".to_owned();
        };
        let medium = if medium == Medium::Memory { "in memory" } else { "O_DIRECT" };
        let source = if source == Contents::HalfZero { "half zero" } else { "full" };
        let target = if target == Contents::Empty { "new file" } else { "allocated file" };
        let copy = if copy == Copy::Mirror { "mirror" } else { "backup" };
        format!("{copy} {source} to {target}, {medium}")
    }

    pub fn measure(self, stage: &Stage<'_>) -> io::Result<Row> {
        let mibs = stage.length / PIECE as u64;
        let Work::Copy(copy, shape) = self else {
            let laps = |side| Self::stored_laps(side, mibs);
            return stage.run(stage.contest(self.name(), Unit::BytesEach, mibs, laps)?);
        };
        let laps = |side| Self::laps(side, copy, shape, mibs);
        let contest = stage.contest(self.name(), Unit::NsPerOp, mibs, laps)?;
        let floor = floor(stage.length, shape)?;
        stage.run(contest.peer(LOOP, floor))
    }

    fn laps<'a>(
        mut side: Side,
        copy: Copy,
        (medium, source, target): Shape,
        mibs: u64,
    ) -> Bench<'a> {
        let mut is_made = false;
        Box::new(move |_| {
            if !is_made {
                side.make("source", medium, source)?;
                side.make("target", medium, target)?;
                is_made = true;
            } else if target == Contents::Empty {
                side.make("target", medium, target)?;
            }
            side.add("source", medium)?;
            side.add("target", medium)?;
            let lap = match copy {
                Copy::Mirror => {
                    let lap = side.lap(mibs, |side| {
                        side.mirror(&[])?;
                        side.until_ready()
                    })?;
                    side.cancel()?;
                    lap
                }
                Copy::Backup => side.lap(mibs, |side| {
                    side.backup(&[])?;
                    side.until_gone()
                })?,
            };
            side.remove(&["source", "target"])?;
            Ok(lap)
        })
    }

    /// Laps whose "time" is the space.
    fn stored_laps<'a>(side: Side, mibs: u64) -> Bench<'a> {
        let path = side.path("target", Medium::Memory);
        let kinds = (Medium::Memory, Contents::HalfZero, Contents::Empty);
        let mut laps = Self::laps(side, Copy::Mirror, kinds, mibs);
        Box::new(move |ops| {
            laps(ops)?;
            Ok(Lap { ops: mibs, wall_ns: stored(&path)? as f64, ..Lap::default() })
        })
    }
}

/// A loop that knows where data is, and makes what it has written durable.
fn floor<'a>(length: u64, (medium, source, target): Shape) -> io::Result<Bench<'a>> {
    let side = Files::new(medium)?;
    make(&side.path("source"), length, source)?;
    make(&side.path("target"), length, target)?;
    let mut buffer = AlignedBuffer::new(PIECE, 4096)?;
    Ok(Box::new(move |_| {
        if target == Contents::Empty {
            make(&side.path("target"), length, target)?;
        }
        let (from, to) = (side.open("source")?, side.open("target")?);
        let start = Instant::now();
        for number in 0..length / PIECE as u64 {
            if source == Contents::Data || number % 2 == 0 {
                from.read_exact_at(&mut buffer, number * PIECE as u64)?;
                to.write_all_at(&buffer, number * PIECE as u64)?;
            }
        }
        to.sync_data()?;
        let wall_ns = start.elapsed().as_nanos() as f64;
        Ok(Lap { ops: length / PIECE as u64, wall_ns, ..Lap::default() })
    }))
}

/// The files of a loop.
struct Files {
    directory: tempfile::TempDir,
    medium: Medium,
}

impl Files {
    fn new(medium: Medium) -> io::Result<Files> {
        Ok(Files { directory: super::side::directory(medium)?, medium })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let flags = if self.medium == Medium::Direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(self.path(name))
    }
}
