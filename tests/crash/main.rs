//! What was acknowledged as durable outlives the process, and a loss of power.
//!
//! A writer (`writer.rs`) is killed with SIGKILL at random moments. The kernel keeps what a killed
//! process has written, flushed or not; so the same is done over a log of all writes, from which
//! the worst that a loss of power could leave is built for every moment at which something was
//! acknowledged. `COBLK_SEEDS` sets the number of rounds in each of four ways.

mod ext4;
mod files;
mod round;
mod write_log;

use std::collections::BTreeSet;
use std::path::Path;

use coblk::block::filters::blklogwrites::ReplayLog;
use coblk::drivers::File;
use coblk::{AioContext, BlockNode};
use coblk_tests::image_dir;
use coblk_tests::images::sparse_image;
use coblk_tests::random::{Random, seeds};
use coblk_tests::sectors::verify;
use round::{IMAGE_BYTES, Log, Point, Remains, WAYS};
use write_log::WriteLog;

/// Rounds in each way, unless the environment asks for more.
const ROUNDS: u64 = 5;
/// Images for each moment in which a random choice of what was not durable survives besides.
const CHOICES: usize = 1;

#[test]
fn flushed_data_outlives_a_killed_writer() {
    let dir = image_dir!();
    for way in WAYS {
        for seed in seeds(ROUNDS) {
            let left = round::run(dir.path(), way, seed, Log::None);
            let acknowledged = left.points.last().expect("something acknowledged");
            let image = std::fs::read(&left.image).expect("the image");
            if let Err(fault) = verify(&image, seed, &acknowledged.required) {
                panic!("{way:?}, seed {seed}: {fault}");
            }
        }
    }
}

#[test]
fn flushed_data_outlives_a_loss_of_power_at_any_moment() {
    let dir = image_dir!();
    for way in WAYS {
        for seed in seeds(ROUNDS) {
            let left = round::run(dir.path(), way, seed, Log::Writes);
            if let Err(fault) = survey(&left, seed) {
                panic!("{way:?}, seed {seed}: {fault}");
            }
        }
    }
}

#[test]
fn two_readings_of_a_log_agree_at_every_flush() {
    let dir = image_dir!();
    for way in WAYS {
        replays_agree(dir.path(), &round::run(dir.path(), way, 2, Log::Writes));
    }
}

#[test]
fn a_lying_flush_is_caught() {
    let dir = image_dir!();
    for way in WAYS {
        let left = round::run(dir.path(), way, 1, Log::Lie);
        let fault = survey(&left, 1).expect_err("a loss of power that loses nothing");
        assert!(fault.contains("acknowledged"), "{way:?}: {fault}");
    }
}

/// Looks at every moment at which something was acknowledged.
fn survey(left: &Remains, seed: u64) -> Result<(), String> {
    let log = WriteLog::read(&left.log)?;
    let mut random = Random::new(seed);
    for (moment, Point { log_entries, required }) in left.points.iter().enumerate() {
        let fault = |fault| format!("at acknowledgement {moment}, {log_entries} entries: {fault}");
        if *log_entries > log.len() {
            return Err(fault(format!("the log has {} entries", log.len())));
        }
        let worst = log.after_power_loss(IMAGE_BYTES, *log_entries, || false);
        verify(&worst, seed, required).map_err(fault)?;
        for _ in 0..CHOICES {
            let some = || random.below(2) == 0;
            let image = log.after_power_loss(IMAGE_BYTES, *log_entries, some);
            verify(&image, seed, required).map_err(fault)?;
        }
    }
    Ok(())
}

/// Our own replay makes the same image at every flush as the reading of the log by its bytes does.
fn replays_agree(dir: &Path, left: &Remains) {
    let log = WriteLog::read(&left.log).expect("a log");
    let points: BTreeSet<usize> = log.flush_points().into_iter().chain([log.len()]).collect();
    let replayed = sparse_image(dir, "replayed.img", IMAGE_BYTES as u64);
    let ctx = AioContext::for_test().expect("a context");
    let open = |path: &Path| BlockNode::new("file", File::options().open(path).expect("a file"));
    let (ours, image) = (open(&left.log), open(&replayed));
    ctx.run(|co| {
        let mut ours = ReplayLog::open(co, ours).expect("a log");
        assert_eq!(ours.entries(), log.len() as u64);
        let mut done = 0;
        for point in points {
            let applied = ours.co_apply_next(co, (point - done) as u64, &image).expect("entries");
            assert_eq!(applied, (point - done) as u64);
            done = point;
            let content = std::fs::read(&replayed).expect("the replayed image");
            let expected = log.after_power_loss(IMAGE_BYTES, point, || true);
            assert!(content == expected, "after {point} entries the two replays differ");
        }
    });
}
