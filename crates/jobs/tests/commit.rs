//! Commit: a backing file gets what the images above it have.

mod util;

use std::rc::Rc;

use coblk_block::BackendOptions;
use coblk_jobs::{Commit, CommitError, Job, JobOptions, JobStatus, OnError};
use coblk_tests::recorded::{Disturbance, Kind};
use util::chain::{CLUSTER, Chain, LENGTH};
use util::{take, without_pauses};

fn options() -> JobOptions {
    JobOptions::new("j", "commit")
}

trait Commits {
    fn commit(&self, top: &str, base: &str) -> Commit;
    fn try_start(&self, commit: Commit, options: JobOptions) -> Result<Rc<Job>, CommitError>;
    fn start(&self, commit: Commit) -> Rc<Job>;
}

impl Commits for Chain {
    fn commit(&self, top: &str, base: &str) -> Commit {
        Commit::new(self.node(top), self.node(base)).unwrap()
    }

    fn try_start(&self, commit: Commit, options: JobOptions) -> Result<Rc<Job>, CommitError> {
        self.ctx.run(|co| commit.co_start(co, &self.jobs, options, &self.blockdevs))
    }

    fn start(&self, commit: Commit) -> Rc<Job> {
        self.try_start(commit, options()).unwrap()
    }
}

const SUCCESS: [&str; 7] =
    ["created", "running", "waiting", "pending", "COMPLETED", "concluded", "null"];

#[test]
fn j93_images_between_are_left_out() {
    let chain = Chain::new(&["base", "low", "high", "top"], 1);
    let commit = chain.commit("high", "base").backing_file("base");
    assert!(!commit.is_active());
    let job = chain.start(commit);
    chain.until(&job, JobStatus::Null);
    assert_eq!(without_pauses(take(&chain.told)), SUCCESS);
    assert_eq!((job.progress().current(), job.progress().rest()), (LENGTH, 0));
    assert_eq!(chain.names("top"), ["top", "base"]);
    assert_eq!(chain.header("top"), Some(("base".to_owned(), "qcow2".to_owned())));
    chain.check("top");
    chain.is_free();
}

#[test]
fn j37_a_commit_goes_over_all_of_the_disk_and_what_is_below_is_done() {
    let mut chain = Chain::new(&["base"], 4);
    chain.add("mid", Some("base"), LENGTH);
    chain.add("top", Some("mid"), LENGTH);
    let guest = chain.guest("mid");
    chain.ctx.run(|co| guest.co_write(co, 3 * CLUSTER, &[7; 512])).unwrap();
    drop(guest);
    let commit = chain.commit("mid", "base").backing_file("base");
    let job = chain.try_start(commit, options().auto_finalize(false)).unwrap();
    let progress = || {
        let info = chain.jobs.all().remove(0);
        (info.current_progress, info.total_progress)
    };
    chain.until(&job, JobStatus::Pending);
    assert_eq!(progress(), (LENGTH, LENGTH), "one cluster was copied, and the others are done");
    chain.ctx.run(|co| chain.jobs.co_finalize(co, "j")).unwrap();
    // Of an active one the rest is what is marked, as of a mirror.
    let guest = chain.guest("top");
    chain.ctx.run(|co| guest.co_write(co, 5 * CLUSTER, &[7; 512])).unwrap();
    let job = chain.start(chain.commit("top", "base"));
    chain.until(&job, JobStatus::Ready);
    assert_eq!(progress(), (CLUSTER, CLUSTER));
}

#[test]
fn j93_the_base_grows_and_shows_nothing_behind_the_end_of_the_top() {
    let (short, long) = (LENGTH - 5 * CLUSTER, LENGTH);
    for lengths in [[short, long, long], [long, short, long]] {
        let [base, mid, top] = lengths;
        let chain = Chain::of_lengths(&[("base", base), ("mid", mid), ("top", top)], 2);
        // What is behind the end of the image between reads as zeroes.
        let mut chain = chain;
        chain.disk = chain.read("top");
        let job = chain.start(chain.commit("mid", "base").backing_file("base"));
        chain.until(&job, JobStatus::Null);
        assert_eq!(without_pauses(take(&chain.told)), SUCCESS);
        assert_eq!(chain.names("top"), ["top", "base"]);
        assert_eq!(chain.node("base").length(), base.max(mid));
        chain.check("top");
        chain.is_free();
    }
}

#[test]
fn j92_an_active_commit_is_ready_and_pivots() {
    let mut chain = Chain::new(&["base", "mid", "top"], 3);
    let guest = chain.guest("top");
    let commit = chain.commit("top", "base");
    assert!(commit.is_active());
    let job = chain.start(commit);
    let data = vec![0x77; 5000];
    chain.ctx.run(|co| guest.co_write(co, 12_345, &data)).unwrap();
    chain.disk[12_345..][..5000].fill(0x77);
    chain.until(&job, JobStatus::Ready);
    chain.ctx.run(|co| guest.co_write(co, 100, &data)).unwrap();
    chain.disk[100..][..5000].fill(0x77);
    chain.jobs.complete("j").unwrap();
    chain.until(&job, JobStatus::Null);
    let told = without_pauses(take(&chain.told));
    let expected = [
        "created",
        "running",
        "ready",
        "READY",
        "waiting",
        "pending",
        "COMPLETED",
        "concluded",
        "null",
    ];
    assert_eq!(told, expected);
    assert_eq!(guest.node().unwrap().name(), "base");
    let mut back = vec![0; LENGTH as usize];
    chain.ctx.run(|co| guest.co_read(co, 0, &mut back)).unwrap();
    assert!(back == chain.disk);
    chain.ctx.run(|co| guest.co_write(co, 0, &data)).unwrap();
    drop(guest);
    chain.is_free();
}

#[test]
fn j92_a_soft_cancellation_leaves_the_graph_and_the_data_in_the_base() {
    let chain = Chain::new(&["base", "mid", "top"], 4);
    let guest = chain.guest("top");
    let job = chain.start(chain.commit("top", "base"));
    chain.until(&job, JobStatus::Ready);
    chain.ctx.run(|co| chain.jobs.co_cancel(co, "j", false)).unwrap();
    chain.until(&job, JobStatus::Null);
    assert!(take(&chain.told).contains(&"COMPLETED".to_owned()));
    assert_eq!(guest.node().unwrap().name(), "top");
    drop(guest);
    assert_eq!(chain.names("top"), ["top", "mid", "base"]);
    chain.check("top");
    chain.check("base");
    chain.is_free();
}

#[test]
fn j92_j93_a_cancelled_commit_leaves_what_the_top_reads() {
    for (top, is_active) in [("top", true), ("mid", false)] {
        let chain = Chain::new(&["base", "mid", "top"], 5);
        let guest = chain.guest("top");
        let options = options().speed(20 * CLUSTER as i64);
        let commit = match is_active {
            true => chain.commit(top, "base"),
            false => chain.commit(top, "base").backing_file("base"),
        };
        let job = chain.try_start(commit, options).unwrap();
        chain.ctx.run(|co| co.sleep(std::time::Duration::from_millis(700)));
        assert_eq!(job.status(), JobStatus::Running);
        chain.ctx.run(|co| chain.jobs.co_cancel(co, "j", true)).unwrap();
        chain.until(&job, JobStatus::Null);
        assert_eq!(guest.node().unwrap().name(), "top");
        drop(guest);
        assert_eq!(chain.names("top"), ["top", "mid", "base"]);
        assert_eq!(chain.header("top").unwrap().0, "mid");
        chain.check("top");
        chain.is_free();
    }
}

#[test]
fn j91_a_top_that_is_no_part_of_the_chain_is_refused() {
    let chain = Chain::new(&["base", "mid", "top"], 6);
    let refused = |top: &str, base: &str| {
        Commit::new(chain.node(top), chain.node(base)).unwrap_err().to_string()
    };
    assert_eq!(refused("mid", "mid"), "cannot commit an image into itself");
    assert_eq!(refused("mid", "top"), "'top' is not in this backing file chain");
    let named = chain.commit("top", "base").backing_file("x");
    let refused = chain.try_start(named, options()).unwrap_err().to_string();
    assert_eq!(refused, "'backing-file' specified, but 'top' is the active layer");
    assert!(take(&chain.told).is_empty());
}

#[test]
fn j92_a_read_only_base_is_written_and_put_back() {
    for (top, completes) in [("mid", false), ("top", true), ("top", false)] {
        let chain = Chain::new(&["base", "mid", "top"], 7);
        let base = chain.node("base");
        chain.ctx.run(|co| chain.blockdevs.co_set_read_only(co, &base, true)).unwrap();
        let guest = chain.guest("top");
        let mut commit = chain.commit(top, "base");
        if !commit.is_active() {
            commit = commit.backing_file("base");
        }
        let job = chain.start(commit);
        assert!(!base.is_read_only());
        if top == "top" {
            chain.until(&job, JobStatus::Ready);
            match completes {
                true => chain.jobs.complete("j").unwrap(),
                false => chain.ctx.run(|co| chain.jobs.co_cancel(co, "j", true)).unwrap(),
            }
        }
        chain.until(&job, JobStatus::Null);
        assert_eq!(base.is_read_only(), !completes, "{top}");
        drop(guest);
        let read = if completes { "base" } else { "top" };
        chain.check(read);
        chain.is_free();
    }
}

#[test]
fn j95_newcomers_do_not_read_between() {
    let chain = Chain::new(&["base", "low", "mid", "top"], 8);
    let reader = || {
        let options = BackendOptions::new("reader").read_only(true);
        options.open(&chain.ctx, chain.node("low"))
    };
    let early = reader().unwrap();
    let commit = || chain.commit("mid", "base").backing_file("base");
    let refused = chain.try_start(commit(), options()).unwrap_err();
    assert!(matches!(refused, CommitError::Permission(_)), "{refused}");
    assert_eq!(take(&chain.told), ["created", "null"]);
    assert_eq!(chain.names("top"), ["top", "mid", "low", "base"]);
    drop(early);
    let job = chain.try_start(commit(), options().speed(1)).unwrap();
    assert!(reader().is_err());
    chain.ctx.run(|co| chain.jobs.co_cancel(co, "j", true)).unwrap();
    chain.until(&job, JobStatus::Null);
    drop(reader().unwrap());
    chain.check("top");
    chain.is_free();
}

#[test]
fn j38_j93_errors_that_are_ignored_are_tried_again() {
    let chain = Chain::new(&["base", "mid", "top"], 9);
    let commit = chain.commit("mid", "base").backing_file("base").on_error(OnError::Ignore);
    let job = chain.start(commit);
    chain.recorder.disturb(Disturbance::fail(libc::EIO, 3).of(Kind::Write));
    chain.until(&job, JobStatus::Null);
    let told = take(&chain.told);
    assert!(told.contains(&"ERROR write ignore".to_owned()), "{told:?}");
    assert!(told.contains(&"COMPLETED".to_owned()), "{told:?}");
    assert_eq!(chain.names("top"), ["top", "base"]);
    chain.check("top");
}

#[test]
fn j94_a_header_that_cannot_be_written_has_those_before_put_back() {
    let mut chain = Chain::new(&["base", "mid", "top"], 10);
    chain.cluster = 512;
    chain.add("other", Some("mid"), LENGTH);
    // The header of the second image above has no room for that.
    let job = chain.start(chain.commit("mid", "base").backing_file("x".repeat(450)));
    chain.until(&job, JobStatus::Null);
    let told = take(&chain.told);
    assert!(told.iter().any(|it| it.starts_with("COMPLETED ")), "{told:?}");
    assert_eq!([chain.header("top").unwrap().0, chain.header("other").unwrap().0], ["mid", "mid"]);
    assert_eq!(chain.names("top"), ["top", "mid", "base"]);
    assert_eq!(chain.names("other"), ["other", "mid", "base"]);
    chain.check("top");
    chain.is_free();
}

#[test]
fn j94_headers_are_put_back_though_that_fails_at_first() {
    // Whichever request of the end meets a fault, and those after it.
    for skip in 0..12 {
        let mut chain = Chain::new(&["base", "mid", "top"], 10);
        chain.cluster = 512;
        chain.add("other", Some("mid"), LENGTH);
        // The header of the second image above has no room for that.
        let commit = chain.commit("mid", "base").backing_file("x".repeat(450));
        let job = chain.try_start(commit, options().auto_finalize(false)).unwrap();
        chain.until(&job, JobStatus::Pending);
        let fault = Disturbance::fail(libc::EIO, skip).of(Kind::Write).of(Kind::Flush);
        chain.recorder.disturb(Disturbance { times: 4, ..fault });
        chain.ctx.run(|co| chain.jobs.co_finalize(co, "j")).unwrap();
        chain.until(&job, JobStatus::Null);
        let told = take(&chain.told);
        let failed = told.iter().find(|it| it.starts_with("COMPLETED ")).expect("it fails");
        assert!(!failed.contains("stays changed"), "{skip}: {failed}");
        let headers = [chain.header("top").unwrap().0, chain.header("other").unwrap().0];
        assert_eq!(headers, ["mid", "mid"], "{skip}");
        assert_eq!(chain.names("top"), ["top", "mid", "base"]);
        chain.check("top");
        chain.is_free();
    }
}

#[test]
fn j93_all_users_of_the_top_turn() {
    let mut chain = Chain::new(&["base", "mid", "top"], 11);
    chain.add("other", Some("mid"), LENGTH);
    let below = chain.read("mid");
    let job = chain.start(chain.commit("mid", "base").backing_file("base"));
    chain.until(&job, JobStatus::Null);
    assert_eq!(chain.names("top"), ["top", "base"]);
    assert_eq!(chain.names("other"), ["other", "base"]);
    assert_eq!(chain.header("other").unwrap().0, "base");
    chain.check("top");
    assert!(chain.read("other") == below);
    chain.is_free();
}
