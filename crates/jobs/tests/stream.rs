//! Stream: a node gets what its backing files have.

mod util;

use std::rc::Rc;
use std::sync::Arc;

use coblk_block::{BackendOptions, Permissions};
use coblk_jobs::{Job, JobOptions, JobStatus, OnError, Stream, StreamError};
use coblk_tests::recorded::{Disturbance, Kind};
use util::chain::{CLUSTER, Chain, LENGTH};
use util::{take, without_pauses};

fn options() -> JobOptions {
    JobOptions::new("j", "stream")
}

trait Streams {
    fn stream(&self) -> Stream;
    fn try_start(&self, stream: Stream, options: JobOptions) -> Result<Rc<Job>, StreamError>;
    fn start(&self, stream: Stream) -> Rc<Job>;
}

impl Streams for Chain {
    fn stream(&self) -> Stream {
        Stream::new(self.node("top"))
    }

    fn try_start(&self, stream: Stream, options: JobOptions) -> Result<Rc<Job>, StreamError> {
        self.ctx.run(|co| stream.co_start(co, &self.jobs, options, &self.blockdevs))
    }

    fn start(&self, stream: Stream) -> Rc<Job> {
        self.try_start(stream, options()).unwrap()
    }
}

const SUCCESS: [&str; 7] =
    ["created", "running", "waiting", "pending", "COMPLETED", "concluded", "null"];

#[test]
fn j88_j89_the_whole_chain_is_copied_and_left() {
    let chain = Chain::new(&["base", "mid", "top"], 1);
    let job = chain.start(chain.stream());
    chain.until(&job, JobStatus::Null);
    assert_eq!(without_pauses(take(&chain.told)), SUCCESS);
    assert_eq!(chain.names("top"), ["top"]);
    assert_eq!(chain.header("top"), None);
    chain.check("top");
    // What was left is as it was.
    assert_eq!(chain.names("mid"), ["mid", "base"]);
    assert!(!chain.node("mid").is_read_only());
    assert_eq!(job.progress().current(), LENGTH);
    chain.is_free();
}

#[test]
fn j89_the_base_stays_and_is_named() {
    for is_bottom in [false, true] {
        let chain = Chain::new(&["base", "low", "high", "top"], 2);
        let stream = match is_bottom {
            false => chain.stream().above(&chain.node("base")),
            true => chain.stream().down_to(&chain.node("low")),
        };
        let job = chain.start(stream.unwrap().backing_file("base"));
        chain.until(&job, JobStatus::Null);
        assert_eq!(chain.names("top"), ["top", "base"]);
        assert_eq!(chain.header("top"), Some(("base".to_owned(), "qcow2".to_owned())));
        chain.check("top");
        chain.is_free();
    }
}

#[test]
fn j37_a_stream_goes_over_all_of_the_disk_and_what_it_skips_is_done() {
    let mut chain = Chain::new(&["base"], 4);
    chain.add("top", Some("base"), LENGTH);
    // The base alone has something, and stays.
    let above = chain.stream().above(&chain.node("base")).unwrap().backing_file("base");
    let options = options().auto_finalize(false);
    let job = chain.try_start(above, options).unwrap();
    let progress = || {
        let info = chain.jobs.all().remove(0);
        (info.current_progress, info.total_progress)
    };
    chain.until(&job, JobStatus::Pending);
    assert_eq!(progress(), (0, 0), "there is nothing between");
    chain.ctx.run(|co| chain.jobs.co_finalize(co, "j")).unwrap();
    let options = JobOptions::new("j", "stream").auto_finalize(false);
    let job = chain.try_start(chain.stream(), options).unwrap();
    assert_eq!(progress().1, LENGTH);
    chain.until(&job, JobStatus::Pending);
    assert_eq!(progress(), (LENGTH, LENGTH));
}

#[test]
fn j36_j89_a_stream_that_has_nothing_to_do_succeeds() {
    let chain = Chain::new(&["base", "top"], 3);
    let lowest = Stream::new(chain.node("base"));
    let job = chain.start(lowest);
    assert_eq!((job.progress().current(), job.progress().rest()), (0, 0));
    chain.until(&job, JobStatus::Null);
    assert_eq!(take(&chain.told), SUCCESS);
    let own = chain.stream().above(&chain.node("base")).unwrap().backing_file("other");
    let job = chain.start(own);
    chain.until(&job, JobStatus::Null);
    assert_eq!(take(&chain.told), SUCCESS);
    assert_eq!(chain.header("top").unwrap().0, "other");
    assert_eq!(chain.names("top"), ["top", "base"]);
    chain.is_free();
}

#[test]
fn j87_a_base_that_is_not_below_is_refused() {
    let chain = Chain::new(&["base", "mid", "top"], 4);
    let texts = [
        chain.stream().above(&chain.node("top")).unwrap_err().to_string(),
        chain.stream().down_to(&chain.node("base.file")).unwrap_err().to_string(),
        chain.try_start(chain.stream().backing_file("x"), options()).unwrap_err().to_string(),
    ];
    assert_eq!(
        texts,
        [
            "Node 'top' is not a backing image of 'top'",
            "Node 'base.file' is not in a chain starting from 'top'",
            "backing file specified, but streaming the entire chain",
        ]
    );
    assert!(take(&chain.told).is_empty());
}

#[test]
fn j90_a_writer_between_refuses_the_job() {
    let chain = Chain::new(&["base", "mid", "top"], 5);
    let guest = BackendOptions::new("guest").share_rw(true);
    let guest = guest.open(&chain.ctx, chain.node("top")).unwrap();
    let writer = BackendOptions::new("writer").share_rw(true);
    let writer = writer.open(&chain.ctx, chain.node("mid")).unwrap();
    let refused = chain.try_start(chain.stream(), options()).unwrap_err();
    assert!(matches!(refused, StreamError::Permission(_)), "{refused}");
    assert_eq!(take(&chain.told), ["created", "null"]);
    drop((guest, writer));
    chain.is_free();
    assert_eq!(chain.names("top"), ["top", "mid", "base"]);
}

#[test]
fn j90_nobody_writes_between_while_it_runs() {
    let chain = Chain::new(&["base", "mid", "top"], 6);
    let job = chain.start(chain.stream());
    let writer = BackendOptions::new("writer").share_rw(true);
    assert!(writer.open(&chain.ctx, chain.node("mid")).is_err());
    let reader = BackendOptions::new("reader").read_only(true);
    drop(reader.open(&chain.ctx, chain.node("mid")).unwrap());
    chain.until(&job, JobStatus::Null);
    chain.check("top");
}

#[test]
fn j90_a_read_only_node_is_written_and_put_back() {
    let chain = Chain::new(&["base", "mid", "top"], 7);
    let top = chain.node("top");
    chain.ctx.run(|co| chain.blockdevs.co_set_read_only(co, &top, true)).unwrap();
    assert!(top.is_read_only());
    let job = chain.start(chain.stream().above(&chain.node("base")).unwrap().backing_file("base"));
    assert!(!top.is_read_only());
    chain.until(&job, JobStatus::Null);
    assert!(top.is_read_only());
    assert_eq!(chain.header("top").unwrap().0, "base");
    chain.check("top");
    chain.is_free();
}

#[test]
fn j38_what_is_ignored_is_left_out_and_the_chain_stays() {
    let chain = Chain::new(&["base", "mid", "top"], 8);
    let job = chain.start(chain.stream().on_error(OnError::Ignore));
    chain.recorder.disturb(Disturbance::fail(libc::EIO, 2).of(Kind::Write));
    chain.until(&job, JobStatus::Null);
    let told = without_pauses(take(&chain.told));
    let end = ["aborting", "COMPLETED Input/output error", "concluded", "null"];
    assert_eq!(told[..2], ["created", "running"]);
    assert!(told[2..].starts_with(&["ERROR read ignore".to_owned()]), "{told:?}");
    assert!(told.ends_with(&end.map(str::to_owned)), "{told:?}");
    assert_eq!(chain.names("top"), ["top", "mid", "base"]);
    assert_eq!(chain.header("top").unwrap().0, "mid");
    chain.check("top");
    chain.is_free();
}

#[test]
fn j39_a_stopped_stream_goes_on_when_it_is_resumed() {
    let chain = Chain::new(&["base", "mid", "top"], 9);
    let job = chain.start(chain.stream().on_error(OnError::Enospc));
    chain.recorder.disturb(Disturbance::fail(libc::ENOSPC, 2).of(Kind::Write));
    chain.until(&job, JobStatus::Paused);
    chain.jobs.resume("j").unwrap();
    chain.until(&job, JobStatus::Null);
    assert_eq!(chain.names("top"), ["top"]);
    chain.check("top");
}

#[test]
fn j94_a_header_that_cannot_be_written_leaves_the_chain() {
    let chain = Chain::new(&["base", "mid", "top"], 10);
    let stream = chain.stream().above(&chain.node("base")).unwrap();
    let job = chain.start(stream.backing_file("x".repeat(5000)));
    chain.until(&job, JobStatus::Null);
    let told = take(&chain.told);
    assert!(told.iter().any(|it| it.starts_with("COMPLETED ")), "{told:?}");
    assert_eq!(chain.names("top"), ["top", "mid", "base"]);
    assert_eq!(chain.header("top").unwrap().0, "mid");
    chain.check("top");
    chain.is_free();
}

#[test]
fn j88_guests_write_while_it_runs() {
    let mut chain = Chain::new(&["base", "mid", "top"], 11);
    let guest = chain.guest("top");
    let job = chain.start(chain.stream());
    for round in 0..40_u64 {
        let at = round * 7919 % (LENGTH - CLUSTER);
        let data = vec![round as u8; 3000];
        chain.ctx.run(|co| guest.co_write(co, at, &data)).unwrap();
        chain.disk[at as usize..][..3000].fill(round as u8);
        let mut back = vec![0; 9000];
        let from = at.min(LENGTH - 9000);
        chain.ctx.run(|co| guest.co_read(co, from, &mut back)).unwrap();
        assert!(back == chain.disk[from as usize..][..9000]);
    }
    chain.until(&job, JobStatus::Null);
    drop(guest);
    assert_eq!(without_pauses(take(&chain.told)), SUCCESS);
    assert_eq!(chain.names("top"), ["top"]);
    chain.check("top");
    chain.is_free();
}

#[test]
fn j35_a_limited_stream_keeps_to_its_speed() {
    let chain = Chain::new(&["base", "top"], 12);
    let job = chain.try_start(chain.stream(), options().speed(LENGTH as i64 / 4)).unwrap();
    let begin = chain.ctx.now_ns();
    chain.until(&job, JobStatus::Null);
    let seconds = (chain.ctx.now_ns() - begin) as f64 / 1e9;
    // A part of the disk is in the top, or nowhere.
    assert!((0.3..4.5).contains(&seconds), "{seconds} s");
}

#[test]
fn j104_others_leave_the_nodes_of_a_stream_alone() {
    let chain = Chain::new(&["base", "mid", "top"], 13);
    let job = chain.try_start(chain.stream(), options().speed(1)).unwrap();
    let refused = |name: &str| {
        let changed = chain.blockdevs.resize(&chain.ctx, name, 2 * LENGTH);
        changed.unwrap_err().to_string()
    };
    let text = refused("mid");
    assert!(text.contains("block device is in use by block job: stream"), "{text}");
    for (top, base) in [("top", "base"), ("mid", "base")] {
        let commit = coblk_jobs::Commit::new(chain.node(top), chain.node(base)).unwrap();
        let options = JobOptions::new("other", "commit");
        let begin =
            |co: &coblk_aio::Co<'_>| commit.co_start(co, &chain.jobs, options, &chain.blockdevs);
        let refused = chain.ctx.run(begin).unwrap_err().to_string();
        assert!(refused.contains("block device is in use by block job: stream"), "{refused}");
    }
    let moved = chain.ctx.run(|co| chain.node("top").co_set_child(co, "backing", None));
    assert!(moved.unwrap_err().to_string().contains("stream job 'j' needs it"));
    chain.ctx.run(|co| chain.jobs.co_cancel(co, "j", true)).unwrap();
    chain.until(&job, JobStatus::Null);
    assert_eq!(chain.names("top"), ["top", "mid", "base"]);
    chain.check("top");
    chain.is_free();
    let held = chain.node("top").held_permissions();
    assert_eq!(held, Permissions::empty());
    drop(Arc::clone(&chain.blockdevs));
}

#[test]
fn j89_the_base_is_what_is_below_by_the_end() {
    let mut chain = Chain::new(&["base", "mid", "top"], 14);
    let expected = chain.disk.clone();
    chain.add("other", Some("base"), LENGTH);
    let stream = chain.stream().down_to(&chain.node("mid")).unwrap().backing_file("other");
    let job = chain.try_start(stream, options().speed(1)).unwrap();
    let (mid, other) = (chain.node("mid"), chain.node("other"));
    chain.ctx.run(|co| mid.co_set_child(co, "backing", Some(&other))).unwrap();
    chain.jobs.set_speed("j", 0).unwrap();
    chain.until(&job, JobStatus::Null);
    assert_eq!(without_pauses(take(&chain.told)), SUCCESS);
    assert_eq!(chain.names("top"), ["top", "other", "base"]);
    assert_eq!(chain.header("top"), Some(("other".to_owned(), "qcow2".to_owned())));
    assert!(chain.read("top") == expected);
    drop((mid, other));
    chain.is_free();
}
