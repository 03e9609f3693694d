//! Jobs that make a chain of images shorter, and a loss of power at any moment: the images that headers lead to read
//! the same, from the begin to the end.

mod util;

use std::num::NonZero;
use std::rc::Rc;

use coblk_aio::Co;
use coblk_jobs::{Commit, Job, JobOptions, JobStatus, Stream};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::Survivors;
use util::chain::{Chain, LENGTH, read_files};

const NAMES: [&str; 4] = ["base", "low", "high", "top"];

/// A job that is started on a chain of these images.
type Start = fn(&Co<'_>, &Chain) -> Rc<Job>;

/// Runs a job, and looks at what a loss of power leaves at moments while it runs. Returns how many chains it has read.
fn survey(seed: u64, moments: u64, start: Start) -> usize {
    let mut chain = Chain::new(&NAMES, seed);
    chain.add("other", Some("high"), LENGTH);
    let names: Vec<_> = chain.files.iter().map(|(name, _)| *name).collect();
    let other = chain.read("other");
    let begun = chain.recorder.tick();
    let job = chain.ctx.run(|co| start(co, &chain));
    chain.until(&job, JobStatus::Null);
    let ended = chain.recorder.tick();
    let told = util::take(&chain.told);
    assert!(told.contains(&"COMPLETED".to_owned()), "seed {seed}: {told:?}");
    let mut random = Random::new(seed);
    let mut chains = 0;
    for number in 0..=moments {
        // The last moments are those of headers and of the graph.
        let moment = match number % 3 {
            0 => begun + random.below(ended - begun + 1),
            1 => ended - random.below((ended - begun).min(60) + 1),
            _ => begun + (ended - begun) * number / moments.max(1),
        };
        let point = chain.recorder.crash_at(moment);
        let unsettled = point.unsettled();
        let mut judge = |mut survivors: Survivors<'_>, name: &str| {
            let files = point.files(&mut survivors);
            for (top, expected) in [("top", &chain.disk), ("other", &other)] {
                chains += 1;
                let fault = match read_files(&names, &files, top) {
                    Ok(found) if found == *expected => continue,
                    Ok(_) => "it reads as something else".to_owned(),
                    Err(error) => error,
                };
                let requests: Vec<_> = unsettled.iter().map(|it| point.describe(*it)).collect();
                panic!("seed {seed}, {name} at {moment} of {ended}, {top}: {fault}; {requests:#?}");
            }
        };
        judge(Survivors::None, "what is durable");
        judge(Survivors::All, "all");
        if let Some(count) = NonZero::new(unsettled.len()) {
            let one = unsettled[random.below(count.get() as u64) as usize];
            judge(Survivors::Only(one), "one request");
            judge(Survivors::AllBut(one), "all but one request");
            judge(Survivors::Torn(&mut random), "some sectors");
        }
    }
    chains
}

fn options(kind: &'static str) -> JobOptions {
    JobOptions::new("j", kind)
}

#[test]
fn j94_j144_a_crash_in_a_stream_leaves_a_chain_that_reads_the_same() {
    let all: Start = |co, chain| {
        let stream = Stream::new(chain.node("top"));
        stream.co_start(co, &chain.jobs, options("stream"), &chain.blockdevs).unwrap()
    };
    let part: Start = |co, chain| {
        let stream = Stream::new(chain.node("top")).above(&chain.node("base")).unwrap();
        let stream = stream.backing_file("base");
        stream.co_start(co, &chain.jobs, options("stream"), &chain.blockdevs).unwrap()
    };
    for seed in seeds(1) {
        for start in [all, part] {
            assert!(survey(seed, 24, start) > 100);
        }
    }
}

#[test]
fn j94_j144_a_crash_in_a_commit_leaves_a_chain_that_reads_the_same() {
    let between: Start = |co, chain| {
        let commit = Commit::new(chain.node("high"), chain.node("base")).unwrap();
        let commit = commit.backing_file("base");
        commit.co_start(co, &chain.jobs, options("commit"), &chain.blockdevs).unwrap()
    };
    let one: Start = |co, chain| {
        let commit = Commit::new(chain.node("low"), chain.node("base")).unwrap();
        let commit = commit.backing_file("base");
        commit.co_start(co, &chain.jobs, options("commit"), &chain.blockdevs).unwrap()
    };
    for seed in seeds(1) {
        for start in [between, one] {
            assert!(survey(seed, 24, start) > 100);
        }
    }
}

#[test]
fn j92_j144_a_crash_in_an_active_commit_leaves_a_chain_that_reads_the_same() {
    let active: Start = |co, chain| {
        let commit = Commit::new(chain.node("top"), chain.node("high")).unwrap();
        commit.co_start(co, &chain.jobs, options("commit"), &chain.blockdevs).unwrap()
    };
    for seed in seeds(1) {
        // The image beside reads what is committed below it: it is not part of this.
        survey_top(seed, active);
    }
}

/// [`survey`], of the top alone.
fn survey_top(seed: u64, start: Start) {
    let chain = Chain::new(&NAMES, seed);
    let begun = chain.recorder.tick();
    let job = chain.ctx.run(|co| start(co, &chain));
    chain.until(&job, JobStatus::Ready);
    chain.jobs.complete("j").unwrap();
    chain.until(&job, JobStatus::Null);
    let ended = chain.recorder.tick();
    let mut random = Random::new(seed);
    for moment in begun..=ended {
        let point = chain.recorder.crash_at(moment);
        for survivors in
            [&mut Survivors::None, &mut Survivors::All, &mut Survivors::Torn(&mut random)]
        {
            let files = point.files(survivors);
            let found = read_files(&NAMES, &files, "top");
            assert!(
                found.as_ref() == Ok(&chain.disk),
                "seed {seed}, at {moment}: {:?}",
                found.err()
            );
        }
    }
    let files = chain.recorder.contents();
    let base = read_files(&NAMES, &files, "high").unwrap();
    assert!(base == chain.disk);
}

/// A header that leads past data that is not durable is seen by these tests.
#[cfg(feature = "test-rules")]
#[test]
fn j94_data_are_durable_before_headers() {
    let tests = [
        j94_j144_a_crash_in_a_stream_leaves_a_chain_that_reads_the_same,
        j94_j144_a_crash_in_a_commit_leaves_a_chain_that_reads_the_same,
    ];
    for test in tests {
        coblk_jobs::leave_out(Some(coblk_jobs::Rule::DurableBeforeHeaders));
        let found = std::panic::catch_unwind(test);
        coblk_jobs::leave_out(None);
        assert!(found.is_err(), "it is not missed");
    }
}
