//! Backups whose guests are in contexts of other threads, and readers of an instant in a third.

mod util;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoThread};
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockLimits, BlockNode, Blockdevs};
use coblk_jobs::{Backup, CopyBeforeWrite, JobOptions, JobStatus, SnapshotAccess};
use util::disk::{Disk, OnDisk, Verdict};
use util::{jobs, take};

const CLUSTER: u64 = 64 << 10;
const BLOCK: u64 = 4096;
const GUESTS: u64 = 2;
const LENGTH: u64 = 24 * CLUSTER;

/// What a guest has to do with the test.
struct Shared {
    node: Arc<BlockNode>,
    options: BackendOptions,
    is_over: AtomicBool,
    opened: AtomicU64,
    rounds: AtomicU64,
}

impl Shared {
    fn new(node: Arc<BlockNode>) -> Arc<Shared> {
        let (is_over, opened, rounds) = Default::default();
        let options = BackendOptions::new("guests").share_rw(true);
        Arc::new(Shared { node, options, is_over, opened, rounds })
    }

    fn written(&self, ctx: &AioContext, count: u64) {
        let end = self.rounds.load(Ordering::SeqCst) + count;
        wait_until(ctx, || self.rounds.load(Ordering::SeqCst) >= end);
    }
}

/// Writes rounds of numbers to every other block: clusters are those of both guests.
fn guest(co: &Co<'_>, shared: &Shared, number: u64) {
    let backend = shared.options.co_open(co, Arc::clone(&shared.node)).unwrap();
    shared.opened.fetch_add(1, Ordering::SeqCst);
    let blocks = LENGTH / BLOCK / GUESTS;
    let mut round = 0;
    while !shared.is_over.load(Ordering::SeqCst) {
        round += 1;
        let at = (round * 29 % blocks * GUESTS + number) * BLOCK;
        backend.co_write(co, at, &vec![round as u8; BLOCK as usize]).unwrap();
        shared.rounds.fetch_add(1, Ordering::SeqCst);
    }
    backend.co_close(co).unwrap();
}

fn wait_until(ctx: &AioContext, condition: impl Fn() -> bool) {
    ctx.run(|co| {
        while !condition() {
            co.sleep(Duration::from_millis(1));
        }
    });
}

fn start_guests(threads: &[IoThread], shared: &Arc<Shared>) -> Vec<coblk_aio::JoinHandle<()>> {
    let guests = threads.iter().zip(0..).map(|(thread, number)| {
        let shared = Arc::clone(shared);
        thread.handle().spawn("guest", move |co| guest(co, &shared, number))
    });
    guests.collect()
}

fn threads() -> [IoThread; GUESTS as usize] {
    [(); GUESTS as usize].map(|()| IoThread::new("guest").unwrap())
}

#[test]
fn j142_a_backup_under_guests_of_other_threads_is_the_source_at_its_start() {
    let ctx = AioContext::for_test().unwrap();
    let threads = threads();
    for round in 0..6 {
        let disk = || Disk::new(LENGTH, BlockLimits::default());
        let (source, target) = (disk(), disk());
        let node = |name: &str, disk: &Arc<Disk>| BlockNode::new(name, OnDisk(Arc::clone(disk)));
        let (source_node, target_node) = (node("source", &source), node("target", &target));
        let shared = Shared::new(Arc::clone(&source_node));
        let guests = start_guests(&threads, &shared);
        wait_until(&ctx, || shared.opened.load(Ordering::SeqCst) == GUESTS);
        shared.written(&ctx, 20);
        let (jobs, told) = jobs();
        let blockdevs = Blockdevs::new(coblk_block::drivers());
        // Guests drive most of the copies, or few of them.
        let options = JobOptions::new("j", "backup").speed([1, 0][round % 2]);
        let (job, instant) = ctx.run(|co| {
            let _drained = source_node.co_drain(co);
            let instant = source.data();
            let backup = Backup::new(Arc::clone(&source_node), target_node).max_workers(2);
            let handles = threads.iter().map(|thread| thread.handle().clone());
            let backup = backup.contexts(handles.take(round % 3));
            (backup.co_start(co, &jobs, options, &blockdevs).unwrap(), instant)
        });
        shared.written(&ctx, 100);
        // It may be over.
        let _ = jobs.set_speed("j", 0);
        ctx.run_until(|| job.status() == JobStatus::Null);
        shared.written(&ctx, 20);
        shared.is_over.store(true, Ordering::SeqCst);
        ctx.run(|co| guests.into_iter().for_each(|guest| co.block_on(guest).unwrap()));
        assert!(take(&told).contains(&"COMPLETED".to_owned()));
        assert!(target.data() == instant, "round {round}");
        assert!(source.data() != instant);
    }
}

#[test]
fn j128_a_backup_copies_in_other_contexts_too() {
    let ctx = AioContext::for_test().unwrap();
    let threads = threads();
    let disk = || Disk::new(64 * CLUSTER, BlockLimits::default());
    let (source, target) = (disk(), disk());
    source.fill(7);
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let own = Arc::clone(&seen);
    target.judge(move |_| {
        own.lock().unwrap().insert(std::thread::current().id());
        Verdict::Go
    });
    let node = |name: &str, disk: &Arc<Disk>| BlockNode::new(name, OnDisk(Arc::clone(disk)));
    let (jobs, _) = jobs();
    let blockdevs = Blockdevs::new(coblk_block::drivers());
    let backup = Backup::new(node("source", &source), node("target", &target));
    let backup = backup.max_workers(1).max_chunk(CLUSTER);
    let backup = backup.contexts(threads.iter().map(|thread| thread.handle().clone()));
    let options = JobOptions::new("j", "backup");
    let job = ctx.run(|co| backup.co_start(co, &jobs, options, &blockdevs)).unwrap();
    ctx.run_until(|| job.status() == JobStatus::Null);
    assert!(target.data() == source.data());
    assert!(seen.lock().unwrap().len() > 1);
}

#[test]
fn j77_readers_and_guests_of_several_threads_do_not_disturb_each_other() {
    let ctx = AioContext::for_test().unwrap();
    let threads = threads();
    let mut drivers = coblk_block::drivers();
    drivers.add::<CopyBeforeWrite>();
    drivers.add::<SnapshotAccess>();
    let blockdevs = Blockdevs::new(drivers);
    for name in ["source", "target"] {
        let disk = Disk::new(LENGTH, BlockLimits::default());
        disk.fill(0xEE);
        blockdevs.adopt(BlockNode::new(name, OnDisk(disk))).unwrap();
    }
    let open = |text: &str| blockdevs.open(&ctx, NodeOptions::from_keyval(text).unwrap()).unwrap();
    let filter = open("copy-before-write,node-name=cbw,file=source,target=target");
    let access = open("snapshot-access,node-name=access,file=cbw");
    let shared = Shared::new(filter);
    let guests = start_guests(&threads, &shared);
    let reader = BackendOptions::new("reader").read_only(true).share_rw(true);
    let reader = reader.open(&ctx, access).unwrap();
    ctx.run(|co| {
        let mut data = vec![0; LENGTH as usize];
        for round in 0..30 {
            data.fill(0);
            let from = round * BLOCK;
            reader.co_read(co, from, &mut data[from as usize..]).unwrap();
            assert!(data[from as usize..].iter().all(|byte| *byte == 0xEE), "round {round}");
        }
    });
    shared.written(&ctx, 200);
    shared.is_over.store(true, Ordering::SeqCst);
    ctx.run(|co| guests.into_iter().for_each(|guest| co.block_on(guest).unwrap()));
}
