//! What jobs leave behind when they are over: well, with an error, or unwound.

mod util;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::drivers::Null;
use coblk_block::{BackendOptions, BlockNode, NewBitmap, Operation, Parent};
use coblk_jobs::{
    Backup, BitmapMode, Commit, CopyMode, Job, JobEvent, JobOptions, JobStatus, Jobs, Mirror,
    Stream,
};
use util::chain::Chain;
use util::disk::{Op, Verdict};
use util::stage::{GRANULE, LENGTH, Stage, stage};
use util::until;

/// How many handles of the two nodes there are. The guest has as many of the one that it is on.
fn handles(stage: &Stage) -> usize {
    [&stage.source_node, &stage.target_node].map(Arc::strong_count).iter().sum()
}

fn kept() -> JobOptions {
    JobOptions::new("j", "copy").auto_dismiss(false)
}

/// A job that is kept when it is over, in either way, has no handle of a node.
fn keeps_none(start: impl Fn(&Stage) -> Rc<Job>, end: impl Fn(&Stage, &Rc<Job>)) {
    let stage = stage();
    let before = handles(&stage);
    let job = start(&stage);
    end(&stage, &job);
    stage.until(&job, JobStatus::Concluded);
    stage.settle();
    assert_eq!(handles(&stage), before);
    stage.jobs.dismiss(&stage.ctx, "j").unwrap();
    assert_eq!(handles(&stage), before);
}

#[test]
fn j16_a_job_that_is_over_keeps_no_node() {
    let mirror = |stage: &Stage| stage.try_start(stage.mirror(), kept()).unwrap();
    let complete = |stage: &Stage, job: &Rc<Job>| {
        stage.until(job, JobStatus::Ready);
        stage.jobs.complete("j").unwrap();
    };
    keeps_none(mirror, complete);
    keeps_none(mirror, |stage, _| stage.cancel(true));
    let backup = |stage: &Stage| {
        let nodes = (Arc::clone(&stage.source_node), Arc::clone(&stage.target_node));
        let backup = Backup::new(nodes.0, nodes.1);
        stage.ctx.run(|co| backup.co_start(co, &stage.jobs, kept(), &stage.blockdevs)).unwrap()
    };
    keeps_none(backup, |_, _| {});
    keeps_none(backup, |stage, _| stage.cancel(true));
}

/// What is looked at when jobs tell that they have ended.
type Look = Rc<RefCell<Option<Box<dyn Fn()>>>>;

/// Jobs that have `look` called, once, when one tells that it has ended, in whatever way.
fn looking() -> (Rc<Jobs>, Look) {
    let look = Look::default();
    let own = Rc::clone(&look);
    let jobs = Jobs::new(move |_, event| {
        if matches!(event, JobEvent::Completed { .. } | JobEvent::Cancelled(_)) {
            let look = own.take().expect("it ends once");
            look();
        }
    });
    (jobs, look)
}

/// That no job keeps another from a node.
fn is_let_go(node: &Arc<BlockNode>) {
    for operation in [Operation::Job, Operation::Resize, Operation::Replace] {
        assert_eq!(node.blocked_reason(operation), None, "{}", node.name());
    }
    let is_other = |parent: &Parent| !matches!(parent, Parent::Node { .. });
    let users = node.parents().into_iter().filter(is_other).count();
    assert!(users <= 1, "{} has {users} users, and one guest at most", node.name());
}

#[test]
fn j16_mirrors_and_backups_have_let_go_of_all_when_they_tell_their_end() {
    for is_mirror in [true, false] {
        for is_cancelled in [false, true] {
            let mut stage = stage();
            let (jobs, look) = looking();
            stage.jobs = jobs;
            let new = NewBitmap::new("b".to_owned(), GRANULE);
            stage.ctx.run(|co| stage.source_node.co_add_bitmap(co, new)).unwrap();
            stage.write(0, 1, LENGTH);
            let nodes = [Arc::clone(&stage.source_node), Arc::clone(&stage.target_node)];
            let place = if is_mirror && !is_cancelled { "target" } else { "source" };
            let (guest, count) = (stage.guest.clone(), if is_cancelled { LENGTH } else { 0 });
            *look.borrow_mut() = Some(Box::new(move || {
                nodes.iter().for_each(is_let_go);
                assert_eq!(guest.node().unwrap().name(), place);
                let info = nodes[0].bitmaps().find("b").unwrap().info();
                let expected = (false, true, if is_mirror { LENGTH } else { count });
                assert_eq!((info.is_busy, info.is_recording, info.count), expected);
            }));
            // One that is kept holds no more than one that goes.
            let options = kept().auto_finalize(!is_cancelled);
            let job = if is_mirror {
                stage.try_start(stage.mirror(), options).unwrap()
            } else {
                let nodes = (Arc::clone(&stage.source_node), Arc::clone(&stage.target_node));
                let backup = Backup::new(nodes.0, nodes.1).bitmap("b", BitmapMode::OnSuccess);
                let start =
                    |co: &Co<'_>| backup.co_start(co, &stage.jobs, options, &stage.blockdevs);
                stage.ctx.run(start).unwrap()
            };
            if is_mirror {
                stage.until(&job, JobStatus::Ready);
                stage.jobs.complete("j").unwrap();
            }
            if is_cancelled {
                stage.until(&job, JobStatus::Pending);
                stage.cancel(true);
            }
            stage.until(&job, JobStatus::Concluded);
            assert!(look.borrow().is_none(), "it has told nothing");
        }
    }
}

#[test]
fn j16_streams_and_commits_have_let_go_of_all_when_they_tell_their_end() {
    for kind in ["stream", "commit", "active"] {
        for is_cancelled in [false, true] {
            let mut chain = Chain::new(&["base", "mid", "top"], 5);
            let (jobs, look) = looking();
            chain.jobs = jobs;
            let nodes = ["base", "mid", "top"].map(|name| chain.node(name));
            let names: &[&str] = match (kind, is_cancelled) {
                (_, true) => &["top", "mid", "base"],
                ("stream", _) => &["top"],
                ("commit", _) => &["top", "base"],
                _ => &["base"],
            };
            let guest = chain.guest("top");
            let own = guest.clone();
            *look.borrow_mut() = Some(Box::new(move || {
                nodes.iter().for_each(is_let_go);
                let found = own.node().unwrap().chain();
                let found: Vec<_> = found.iter().map(|node| node.name().to_owned()).collect();
                assert_eq!(found, names);
            }));
            let options = JobOptions::new("j", "copy").auto_dismiss(false);
            let options = options.auto_finalize(!is_cancelled);
            let (jobs, blockdevs) = (&chain.jobs, &chain.blockdevs);
            let job = chain.ctx.run(|co| {
                let text = |error: &dyn std::error::Error| error.to_string();
                if kind == "stream" {
                    let stream = Stream::new(chain.node("top"));
                    return stream.co_start(co, jobs, options, blockdevs).map_err(|it| text(&it));
                }
                let top = if kind == "commit" { "mid" } else { "top" };
                let mut commit = Commit::new(chain.node(top), chain.node("base")).unwrap();
                if kind == "commit" {
                    commit = commit.backing_file("base");
                }
                commit.co_start(co, jobs, options, blockdevs).map_err(|it| text(&it))
            });
            let job = job.unwrap();
            if kind == "active" {
                chain.until(&job, JobStatus::Ready);
                chain.jobs.complete("j").unwrap();
            }
            if is_cancelled {
                chain.until(&job, JobStatus::Pending);
                chain.ctx.run(|co| chain.jobs.co_cancel(co, "j", true)).unwrap();
            }
            chain.until(&job, JobStatus::Concluded);
            assert!(look.borrow().is_none(), "it has told nothing");
        }
    }
}

/// The third write to the target panics in its driver.
fn panic_in_the_third_write(stage: &Stage) {
    let mut writes = 0;
    stage.target.judge(move |op| {
        writes += u32::from(matches!(op, Op::Write(..)));
        if writes == 3 { Verdict::Panic } else { Verdict::Go }
    });
}

#[test]
fn j137_a_panic_in_a_copy_fails_the_job_and_neither_guests_nor_the_daemon() {
    for is_mirror in [true, false] {
        let stage = stage();
        stage.source.fill(7);
        panic_in_the_third_write(&stage);
        let options = JobOptions::new("j", "copy").auto_dismiss(false);
        let job = if is_mirror {
            stage.try_start(stage.mirror().granularity(GRANULE).buffer(GRANULE), options).unwrap()
        } else {
            let nodes = (Arc::clone(&stage.source_node), Arc::clone(&stage.target_node));
            let backup = Backup::new(nodes.0, nodes.1).max_workers(1).max_chunk(GRANULE);
            let start = |co: &Co<'_>| backup.co_start(co, &stage.jobs, options, &stage.blockdevs);
            stage.ctx.run(start).unwrap()
        };
        stage.until(&job, JobStatus::Concluded);
        let error = stage.jobs.all().remove(0).error.expect("it has failed");
        assert!(error.contains("panic"), "{error}");
        assert_eq!((stage.guest_is_on().as_str(), stage.is_free()), ("source", true));
        stage.write(0, 9, GRANULE);
        // Another one may follow.
        stage.jobs.dismiss(&stage.ctx, "j").unwrap();
        let job = stage.start(stage.mirror());
        stage.until(&job, JobStatus::Ready);
        assert!(stage.target.data() == stage.source.data());
    }
}

/// A job in the midst of its copies, whose context ends: the graph is valid, guests of another context go on, and a
/// bitmap has all that was not backed up.
#[test]
fn j137_a_job_that_is_unwound_leaves_a_graph_that_passes_requests_and_all_bits() {
    for kind in ["background", "write-blocking", "backup"] {
        let mut stage = stage();
        stage.source.fill(7);
        let new = NewBitmap::new("b".to_owned(), GRANULE);
        let bitmap = stage.ctx.run(|co| stage.source_node.co_add_bitmap(co, new)).unwrap();
        stage.write(0, 1, LENGTH / 2);
        let elsewhere = BlockNode::new("elsewhere", Null::new(LENGTH));
        stage.guest = BackendOptions::new("none").open(&stage.ctx, elsewhere).unwrap();
        let other = util::simulated(2);
        let guest = BackendOptions::new("guest").open(&other, Arc::clone(&stage.source_node));
        let guest = guest.unwrap();
        stage.target.judge(|op| match op {
            Op::Write(at, ..) if at >= LENGTH / 4 => Verdict::Hold,
            _ => Verdict::Go,
        });
        let nodes = (Arc::clone(&stage.source_node), Arc::clone(&stage.target_node));
        let (jobs, blockdevs) = (Rc::clone(&stage.jobs), stage.blockdevs.downgrade());
        stage.ctx.spawn("start", move |co| {
            let blockdevs = blockdevs.upgrade().unwrap();
            let options = JobOptions::new("j", "copy");
            if kind == "backup" {
                let backup = Backup::new(nodes.0, nodes.1).incremental("b").max_chunk(GRANULE);
                backup.co_start(co, &jobs, options, &blockdevs).unwrap();
            } else {
                let modes = [CopyMode::Background, CopyMode::WriteBlocking];
                let mode = modes[usize::from(kind == "write-blocking")];
                let mirror = Mirror::new(nodes.0, nodes.1).copy_mode(mode).granularity(GRANULE);
                mirror.co_start(co, &jobs, options, &blockdevs).unwrap();
            }
        });
        until(&stage.ctx, || {
            while other.try_poll() {}
            stage.target.held() > 0
        });
        assert_ne!(guest.node().unwrap().name(), "source", "the filter is there");
        let source = Arc::clone(&stage.source);
        drop(stage);
        let written = other.run(|co| {
            guest.co_write(co, LENGTH - GRANULE, &[9; 512])?;
            guest.co_flush(co)
        });
        written.unwrap();
        assert_eq!(source.data()[(LENGTH - GRANULE) as usize], 9, "{kind}");
        let info = bitmap.info();
        let expected = (false, true, LENGTH / 2 + GRANULE);
        assert_eq!((info.is_busy, info.is_recording, info.count), expected, "{kind}");
    }
}
