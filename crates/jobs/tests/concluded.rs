//! Jobs that are over, and are kept until they are dismissed.

mod util;

use std::rc::Rc;
use std::sync::Arc;

use coblk_jobs::{Backup, Job, JobOptions, JobStatus};
use util::stage::{Stage, stage};

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
