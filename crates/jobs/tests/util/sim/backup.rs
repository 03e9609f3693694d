//! Backups of one disk to another.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::Co;
use coblk_block::BlockNode;
use coblk_jobs::{Backup, Job, JobOptions, OnCbwError, OnError};
use fastrand::Rng;

use super::faulty::Disks;
use super::{End, Kind, World};

/// The numbers of the disks.
const SOURCE: usize = 0;
const TARGET: usize = 1;

pub struct OfBackup {
    source: Arc<BlockNode>,
    target: Arc<BlockNode>,
    spill: Arc<BlockNode>,
    /// Of the job, for failures.
    options: RefCell<String>,
    /// What the copy is to be.
    instant: RefCell<Vec<u8>>,
}

impl Kind for OfBackup {
    const NAME: &'static str = "backup";
    /// Four clusters.
    const LENGTH: u64 = 256 << 10;

    fn build(disks: &mut Disks, _: &mut Rng) -> (OfBackup, Arc<BlockNode>) {
        let (disk, source) = disks.add("source");
        disk.fill(1);
        let (_, target) = disks.add("target");
        let (_, spill) = disks.add("spill");
        spill.set_discard_enabled(true);
        let (options, instant) = Default::default();
        (OfBackup { source: Arc::clone(&source), target, spill, options, instant }, source)
    }

    fn start(
        &self,
        co: &Co<'_>,
        world: &World<Self>,
        options: JobOptions,
        rng: &mut Rng,
    ) -> Result<Rc<Job>, String> {
        let policies = [OnError::Ignore, OnError::Stop, OnError::Ignore, OnError::Report];
        let on_cbw_error = [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot][rng.usize(..2)];
        let mut backup = Backup::new(Arc::clone(&self.source), Arc::clone(&self.target))
            .on_source_error(policies[rng.usize(..4)])
            .on_target_error(policies[rng.usize(..4)])
            .on_cbw_error(on_cbw_error)
            .max_workers(1 + rng.u64(..4))
            .max_chunk(64 << 10);
        let mut told = format!("{on_cbw_error:?}");
        if on_cbw_error == OnCbwError::BreakSnapshot && rng.bool() {
            told += ", hold";
            backup = backup.hold(64 << 10);
        } else if rng.bool() {
            told += ", spill";
            backup = backup.spill(Arc::clone(&self.spill));
        }
        if rng.bool() {
            told += ", verify";
            backup = backup.verify(true);
        } else if rng.bool() {
            told += ", large granules";
            backup = backup.min_cluster_size(64 << 10);
        }
        if rng.u8(..4) == 0 {
            backup = backup.guest_latency(Duration::from_micros(200));
        }
        self.options.replace(told);
        // So that there is one instant to compare with.
        world.co_rest_guests(co);
        self.instant.replace(world.disks[SOURCE].data());
        let started = backup.co_start(co, &world.jobs, options, &world.blockdevs);
        world.let_guests_go_on();
        started.map_err(|error| error.to_string())
    }

    fn target(&self) -> usize {
        TARGET
    }

    fn holds_guests(&self) -> bool {
        true
    }

    fn disk_of(&self, _: &str) -> Option<usize> {
        Some(SOURCE)
    }

    fn check(&self, world: &World<Self>, end: End) {
        for guest in world.guests() {
            assert_eq!(guest.backend.node().unwrap().name(), "source", "{end:?}");
        }
        if end == End::Completed {
            let (copy, instant) = (world.disks[TARGET].durable(), self.instant.borrow());
            let differs = |at: &usize| copy[*at] != instant[*at];
            if let Some(at) = (0..copy.len()).find(differs) {
                let count = (0..copy.len()).filter(differs).count();
                let (found, wanted) = (copy[at], instant[at]);
                let (plan, options) = (&world.plan, self.options.borrow());
                panic!(
                    "byte {at} of the copy is {found}, not {wanted}, and {count} in all: {options}, {plan:?}"
                );
            }
        }
    }
}
