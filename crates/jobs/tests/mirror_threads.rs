//! Mirrors whose guests are in contexts of other threads.

mod util;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use coblk_aio::{AioContext, Co, IoThread, JoinHandle};
use coblk_block::{BackendOptions, BlockLimits, BlockNode, Blockdevs};
use coblk_jobs::{CopyMode, JobChange, JobOptions, JobStatus, Mirror};
use util::disk::{Disk, OnDisk};
use util::{jobs, take};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 16;
const GUESTS: u64 = 2;
const LENGTH: u64 = GUESTS * BLOCKS * BLOCK;

/// What a guest has to do with the test.
struct Shared {
    node: Arc<BlockNode>,
    options: BackendOptions,
    is_over: AtomicBool,
    opened: AtomicU64,
    rounds: AtomicU64,
}

/// Writes rounds of numbers to its blocks; returns the last numbers.
fn guest(co: &Co<'_>, shared: &Shared, number: u64) -> Vec<u64> {
    let backend = shared.options.co_open(co, Arc::clone(&shared.node)).unwrap();
    shared.opened.fetch_add(1, Ordering::SeqCst);
    let mut last = vec![0; BLOCKS as usize];
    let mut round = 0;
    while !shared.is_over.load(Ordering::SeqCst) {
        round += 1;
        let block = round * 5 % BLOCKS;
        let at = (block * GUESTS + number) * BLOCK;
        backend.co_write(co, at, &round.to_le_bytes()).unwrap();
        last[block as usize] = round;
        shared.rounds.fetch_add(1, Ordering::SeqCst);
        // Slower and slower, so that the copy comes up with it on any machine.
        co.sleep(std::time::Duration::from_micros(500 + round * 10));
    }
    backend.co_close(co).unwrap();
    last
}

fn wait_until(ctx: &AioContext, condition: impl Fn() -> bool) {
    ctx.run(|co| {
        while !condition() {
            co.sleep(std::time::Duration::from_millis(1));
        }
    });
}

fn run(ctx: &AioContext, threads: &[IoThread], mode: CopyMode, changes: bool) {
    let (source, target) =
        (Disk::new(LENGTH, BlockLimits::default()), Disk::new(LENGTH, BlockLimits::default()));
    let node = |name: &str, disk: &Arc<Disk>| BlockNode::new(name, OnDisk(Arc::clone(disk)));
    let (source_node, target_node) = (node("source", &source), node("target", &target));
    let (is_over, opened, rounds) = Default::default();
    let options = BackendOptions::new("guests");
    let shared =
        Arc::new(Shared { node: Arc::clone(&source_node), options, is_over, opened, rounds });
    let guests = threads.iter().zip(0..).map(|(thread, number)| {
        let shared = Arc::clone(&shared);
        thread.handle().spawn("guest", move |co| guest(co, &shared, number))
    });
    let guests: Vec<JoinHandle<Vec<u64>>> = guests.collect();
    // Below a mirror none may begin to write.
    wait_until(ctx, || shared.opened.load(Ordering::SeqCst) == GUESTS);
    let (jobs, told) = jobs();
    let blockdevs = Blockdevs::new(coblk_block::drivers());
    // Neighbours of different guests are in one granule.
    let mirror = Mirror::new(source_node, target_node).granularity(4 * BLOCK).copy_mode(mode);
    let options = JobOptions::new("j", "mirror");
    let job = ctx.run(|co| mirror.co_start(co, &jobs, options, &blockdevs)).unwrap();
    let written = |count: u64| {
        let end = shared.rounds.load(Ordering::SeqCst) + count;
        wait_until(ctx, || shared.rounds.load(Ordering::SeqCst) >= end);
    };
    written(200);
    if changes {
        jobs.change("j", &JobChange::new("mirror", "write-blocking")).unwrap();
    }
    ctx.run_until(|| {
        let _ = jobs.complete("j");
        job.status() == JobStatus::Null
    });
    assert!(take(&told).contains(&"COMPLETED".to_owned()));
    written(200);
    shared.is_over.store(true, Ordering::SeqCst);
    let data = |guests: Vec<JoinHandle<Vec<u64>>>| {
        ctx.run(|co| {
            let last: Vec<_> =
                guests.into_iter().map(|guest| co.block_on(guest).unwrap()).collect();
            (last, target.data())
        })
    };
    let (last, data) = data(guests);
    for (number, last) in last.iter().enumerate() {
        for (block, round) in last.iter().enumerate() {
            let at = (block * GUESTS as usize + number) * BLOCK as usize;
            assert_eq!(data[at..at + 8], round.to_le_bytes(), "block {block} of guest {number}");
        }
    }
}

#[test]
fn j142_guests_of_other_threads_lose_nothing_at_the_pivot() {
    let ctx = AioContext::for_test().unwrap();
    let threads = [(); GUESTS as usize].map(|()| IoThread::new("guest").unwrap());
    for round in 0..6 {
        let mode = [CopyMode::Background, CopyMode::WriteBlocking][round % 2];
        run(&ctx, &threads, mode, round % 3 == 0);
    }
}
