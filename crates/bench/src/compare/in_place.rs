//! `compare in-place`: up to how many reads in a turn of the loop are better made in place, and from
//! how many on better through the ring. A row for each way to read: ours is the default, and its peers
//! are other numbers.

use std::fs::File as HostFile;
use std::io;
use std::path::Path;

use coblk::AioContext;
use coblk::drivers::{Engine, File};
use rustix::fs::{Advice, fadvise};

use super::args::{self, CommonArgs};
use super::{BLOCK_BYTES, OurBench, add_ring, generated, guest_requests};
use crate::image::Image;
use crate::measure::{Contest, Plan};
use crate::peers::bare::{self, Call};
use crate::peers::uring::Ring;
use crate::progress::Progress;
use crate::report::{At, Report, Row};
use crate::workload::{Job, Pattern, ReadWrite};
use crate::works::Unit;

/// The numbers that are compared; the last is all of them.
const NUMBERS: [u32; 5] = [0, 8, 16, 32, u32::MAX];

/// A way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// What the page cache has, so many at a time.
    Cached(usize),
    /// The same, from a guest.
    Guest(usize),
    /// At random what the page cache does not have, so many at a time.
    Cold(usize),
}

impl Way {
    const ALL: [Way; 12] = [
        Way::Cached(1),
        Way::Cached(4),
        Way::Cached(8),
        Way::Cached(16),
        Way::Cached(32),
        Way::Cached(64),
        Way::Guest(1),
        Way::Guest(8),
        Way::Guest(32),
        Way::Guest(64),
        Way::Cold(1),
        Way::Cold(64),
    ];

    fn name(self) -> String {
        match self {
            Way::Cached(depth) => format!("in place page cache QD{depth}"),
            Way::Guest(depth) => format!("in place virtio page cache QD{depth}"),
            Way::Cold(depth) => format!("in place cold randread QD{depth}"),
        }
    }

    fn depth(self) -> usize {
        let (Way::Cached(depth) | Way::Guest(depth) | Way::Cold(depth)) = self;
        depth
    }

    fn job(self) -> Job {
        let kind = if matches!(self, Way::Cold(_)) { ReadWrite::RandRead } else { ReadWrite::Read };
        let pattern = Pattern { kind, read_percent: 100 };
        Job { pattern, ..Job::sequential_reads(self.depth(), u64::MAX) }
    }
}

/// Measures the rows.
///
/// # Errors
/// If no row is wanted, there is no io_uring, or a request fails.
pub fn run(arguments: &CommonArgs, plan: &Plan, report: &mut Report) -> io::Result<()> {
    let ways = args::wanted(Way::ALL.to_vec(), &arguments.only, |way| way.name())?;
    crate::engine::Engine::IoUring.check()?;
    let image = arguments.image(plan)?;
    let progress = Progress::new(ways.len());
    for way in ways {
        progress.now(&way.name());
        report.add(measure(way, &image, arguments, plan, &progress)?)?;
        progress.step();
    }
    Ok(())
}

fn measure(
    way: Way,
    image: &Image,
    arguments: &CommonArgs,
    plan: &Plan,
    progress: &Progress,
) -> io::Result<Row> {
    if !matches!(way, Way::Cold(_)) {
        image.warm()?;
    }
    let ours = bench(way, image.path(), None)?;
    let mut contest = Contest::new(way.name(), Unit::NsPerOp, ours);
    if let Some(count) = arguments.count {
        contest = contest.ops(count);
    }
    for number in NUMBERS {
        let name = if number == u32::MAX { "all".to_owned() } else { number.to_string() };
        contest = contest.peer(format!("{name} a turn"), bench(way, image.path(), Some(number))?);
    }
    if !matches!(way, Way::Cold(_)) {
        let call = Call::Preadv2Nowait;
        let floor = bare::sequential(image.path(), BLOCK_BYTES, way.depth(), false, call)?;
        let ring = Ring::new(image.path(), BLOCK_BYTES, way.depth(), false, false);
        contest = add_ring(contest.peer(call.name(), floor), ring);
    }
    let mut row = contest.run(plan, || progress.tick())?;
    row.at = Some(At::Depth(way.depth()));
    Ok(row)
}

fn bench(way: Way, image: &Path, a_turn: Option<u32>) -> io::Result<OurBench> {
    let ctx = AioContext::test_builder().name("bench").build()?;
    let options = File::options().read_only(true).engine(Engine::IoUring);
    let options = a_turn.map_or(options, |max| options.in_place_reads_a_turn(max));
    let driver = options.open(image).map_err(io::Error::other)?;
    let mut reads = match way {
        Way::Guest(depth) => guest_requests(ctx, driver, depth)?,
        _ => generated(ctx, driver, &way.job())?,
    };
    if !matches!(way, Way::Cold(_)) {
        return Ok(reads);
    }
    let file = HostFile::open(image)?;
    Ok(Box::new(move |ops| {
        fadvise(&file, 0, None, Advice::DontNeed)?;
        reads(ops)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names = Way::ALL.map(Way::name).to_vec();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Way::ALL.len());
    }
}
