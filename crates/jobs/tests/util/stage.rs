//! A mirror of one disk in memory to another, with a guest.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::AioContext;
use coblk_block::{BackendOptions, BlockBackend, BlockLimits, BlockNode, Blockdevs};
use coblk_jobs::{Job, JobOptions, JobStatus, Jobs, Mirror, MirrorError};

use super::disk::{Disk, OnDisk};
use super::{Told, jobs, simulated, until};

pub const GRANULE: u64 = 64 << 10;
pub const LENGTH: u64 = 32 * GRANULE;

pub struct Stage {
    pub ctx: AioContext,
    pub jobs: Rc<Jobs>,
    pub told: Told,
    pub blockdevs: Blockdevs,
    pub source: Arc<Disk>,
    pub target: Arc<Disk>,
    pub source_node: Arc<BlockNode>,
    pub target_node: Arc<BlockNode>,
    pub guest: BlockBackend,
}

pub fn stage() -> Stage {
    stage_of(LENGTH)
}

pub fn stage_of(length: u64) -> Stage {
    let node = |name: &str, disk: &Arc<Disk>| BlockNode::new(name, OnDisk(Arc::clone(disk)));
    stage_with(length, node)
}

/// A stage whose nodes, `source` and `target`, `make` makes.
pub fn stage_with(length: u64, make: impl Fn(&str, &Arc<Disk>) -> Arc<BlockNode>) -> Stage {
    let ctx = simulated(1);
    let (jobs, told) = jobs();
    let (source, target) =
        (Disk::new(length, BlockLimits::default()), Disk::new(length, BlockLimits::default()));
    let (source_node, target_node) = (make("source", &source), make("target", &target));
    let guest = BackendOptions::new("guest").open(&ctx, Arc::clone(&source_node)).unwrap();
    let blockdevs = Blockdevs::new(coblk_block::drivers());
    Stage { ctx, jobs, told, blockdevs, source, target, source_node, target_node, guest }
}

impl Stage {
    pub fn mirror(&self) -> Mirror {
        Mirror::new(Arc::clone(&self.source_node), Arc::clone(&self.target_node))
    }

    pub fn try_start(&self, mirror: Mirror, options: JobOptions) -> Result<Rc<Job>, MirrorError> {
        self.ctx.run(|co| mirror.co_start(co, &self.jobs, options, &self.blockdevs))
    }

    pub fn start(&self, mirror: Mirror) -> Rc<Job> {
        self.try_start(mirror, JobOptions::new("j", "mirror")).unwrap()
    }

    pub fn until(&self, job: &Job, status: JobStatus) {
        until(&self.ctx, || job.status() == status);
    }

    pub fn settle(&self) {
        while self.ctx.try_poll() {}
    }

    pub fn write(&self, offset: u64, byte: u8, bytes: u64) {
        let data = vec![byte; bytes as usize];
        self.ctx.run(|co| self.guest.co_write(co, offset, &data)).unwrap();
    }

    pub fn cancel(&self, forced: bool) {
        self.ctx.run(|co| self.jobs.co_cancel(co, "j", forced)).unwrap();
    }

    /// The time that something takes, on the simulated clock.
    pub fn takes(&self, what: impl FnOnce()) -> Duration {
        let begin = self.ctx.now_ns();
        what();
        Duration::from_nanos((self.ctx.now_ns() - begin).unsigned_abs())
    }

    pub fn guest_is_on(&self) -> String {
        self.guest.node().unwrap().name().to_owned()
    }

    /// Nothing of a job is left at the nodes.
    pub fn is_free(&self) -> bool {
        self.source_node.parents().len() + self.target_node.parents().len() == 1
            && self.blockdevs.nodes().is_empty()
    }
}
