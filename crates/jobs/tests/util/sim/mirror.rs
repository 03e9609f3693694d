//! Mirrors of one disk to another.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::BlockNode;
use coblk_jobs::{CopyMode, Job, JobChange, JobOptions, Mirror, OnError};
use fastrand::Rng;

use super::faulty::Disks;
use super::{End, Kind, World};

/// The numbers of the disks.
const SOURCE: usize = 0;
const TARGET: usize = 1;

pub struct OfMirror {
    source: Arc<BlockNode>,
    target: Arc<BlockNode>,
    /// Guests write to both.
    is_active: Cell<bool>,
}

impl Kind for OfMirror {
    const NAME: &'static str = "mirror";

    fn build(disks: &mut Disks, _: &mut Rng) -> (OfMirror, Arc<BlockNode>) {
        let (disk, source) = disks.add("source");
        disk.fill(1);
        let (_, target) = disks.add("target");
        let is_active = Cell::default();
        (OfMirror { source: Arc::clone(&source), target, is_active }, source)
    }

    fn start(
        &self,
        co: &Co<'_>,
        world: &World<Self>,
        options: JobOptions,
        rng: &mut Rng,
    ) -> Result<Rc<Job>, String> {
        let policies = [OnError::Ignore, OnError::Stop, OnError::Ignore, OnError::Report];
        let mode = [CopyMode::Background, CopyMode::WriteBlocking][rng.usize(..2)];
        // A pending one changes to it.
        self.is_active.set(mode == CopyMode::WriteBlocking || !world.plan.auto_finalize);
        let mirror = Mirror::new(Arc::clone(&self.source), Arc::clone(&self.target))
            .granularity(512 << rng.u32(..5))
            .buffer(2048 << rng.u32(..5))
            .copy_mode(mode)
            .contexts(world.other_contexts().into_iter().take(rng.usize(..3)))
            .on_source_error(policies[rng.usize(..4)])
            .on_target_error(policies[rng.usize(..4)]);
        let started = mirror.co_start(co, &world.jobs, options, &world.blockdevs);
        started.map_err(|error| error.to_string())
    }

    fn disturb(&self, world: &World<Self>, _: &mut Rng) {
        self.is_active.set(true);
        let _ = world.jobs.change("j", &JobChange::new("mirror", "write-blocking"));
    }

    fn target(&self) -> usize {
        TARGET
    }

    fn holds_guests(&self) -> bool {
        self.is_active.get()
    }

    fn disk_of(&self, node: &str) -> Option<usize> {
        Some(if node == "target" { TARGET } else { SOURCE })
    }

    fn check(&self, world: &World<Self>, end: End) {
        let place = if end == End::Completed { "target" } else { "source" };
        for guest in world.guests() {
            assert_eq!(guest.backend.node().unwrap().name(), place, "{end:?}");
        }
        let [source, target] = [SOURCE, TARGET].map(|disk| &world.disks[disk]);
        if end == End::Softly && world.is_exact() {
            assert!(target.durable() == source.data(), "the copy is another");
        }
    }
}
