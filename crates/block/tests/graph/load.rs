//! Changes of the graph while several contexts send requests: none is lost, and none goes where it
//! should not.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use coblk_aio::{AioContext, SimulationOptions};
use coblk_block::filters::blkdebug::{BlkDebug, Rules};
use coblk_block::{BlockBackend, BlockNode, RequestKind};

use crate::tagged::{Tagged, co_read};

/// Reads by all contexts, and what they may see now: bit n for tag n.
#[derive(Default)]
struct Load {
    allowed: AtomicU64,
    stop: AtomicBool,
    reads: AtomicU64,
}

impl Load {
    /// Begins four readers of `node` in `ctx`. Each tells when it has ended.
    fn begin(self: &Arc<Self>, ctx: &AioContext, node: &Arc<BlockNode>) -> Rc<Cell<usize>> {
        let backend = BlockBackend::new(ctx, "load", Arc::clone(node));
        let ended = Rc::new(Cell::new(0));
        for _ in 0..4 {
            let (load, backend, ended) = (Arc::clone(self), backend.clone(), Rc::clone(&ended));
            ctx.spawn("load", move |co| {
                while !load.stop.load(Ordering::SeqCst) {
                    // Allowed when it begins, or when it ends.
                    let before = load.allowed.load(Ordering::SeqCst);
                    let tag = co_read(co, &backend).expect("a read");
                    let allowed = before | load.allowed.load(Ordering::SeqCst);
                    assert!(allowed & 1 << tag != 0, "a read of node {tag}, allowed: {allowed:b}");
                    load.reads.fetch_add(1, Ordering::SeqCst);
                    co.yield_now();
                }
                ended.set(ended.get() + 1);
            });
        }
        ended
    }

    /// A context on a thread of its own that sends requests to `node` until told to stop.
    fn thread(self: &Arc<Self>, node: &Arc<BlockNode>) -> std::thread::JoinHandle<()> {
        let (load, node) = (Arc::clone(self), Arc::clone(node));
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let ctx = AioContext::for_test().expect("a context");
            let ended = load.begin(&ctx, &node);
            drop(node);
            ready.send(()).expect("the test waits");
            ctx.run_until(|| ended.get() == 4);
        });
        is_ready.recv().expect("a thread that runs");
        thread
    }

    /// Polls until this many reads more have been done.
    fn go_on(&self, ctx: &AioContext, reads: u64) {
        let target = self.reads.load(Ordering::SeqCst) + reads;
        while self.reads.load(Ordering::SeqCst) < target {
            ctx.try_poll();
            std::thread::yield_now();
        }
    }
}

#[test]
fn nodes_are_replaced_under_load_from_three_contexts() {
    let ctx = AioContext::for_test().unwrap();
    let disks = [Tagged::new(0), Tagged::new(1), Tagged::new(2)];
    let nodes = disks.each_ref().map(|disk| disk.node("disk"));
    let filter = BlockNode::new("filter", BlkDebug::new(nodes[0].clone(), Rules::new(1)));
    let load = Arc::new(Load::default());
    load.allowed.store(1, Ordering::SeqCst);
    let threads = [load.thread(&nodes[0]), load.thread(&filter)];
    let ended = load.begin(&ctx, &nodes[0]);
    let mut now = 0;
    for turn in 0..60 {
        load.go_on(&ctx, 20);
        // Never the same one.
        let next = (now + 1 + turn % 2) % 3;
        load.allowed.store(1 << now | 1 << next, Ordering::SeqCst);
        disks[next].set_quiet(false);
        nodes[now].replace(&ctx, &nodes[next]).unwrap();
        disks[now].set_quiet(true);
        load.allowed.store(1 << next, Ordering::SeqCst);
        now = next;
    }
    load.go_on(&ctx, 20);
    load.stop.store(true, Ordering::SeqCst);
    ctx.run_until(|| ended.get() == 4);
    threads.into_iter().for_each(|thread| thread.join().expect("a thread that ends well"));
    let served: u64 = disks.iter().map(Tagged::served).sum();
    assert_eq!(served, load.reads.load(Ordering::SeqCst), "each read went to one disk");
    assert!(disks.iter().all(|disk| disk.violations() == 0), "a read of a node that was replaced");
}

#[test]
fn a_filter_comes_and_goes_under_load_from_three_contexts() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(0);
    let node = disk.node("disk");
    let rules = Rules::new(1);
    let load = Arc::new(Load::default());
    load.allowed.store(1, Ordering::SeqCst);
    let threads = [load.thread(&node), load.thread(&node)];
    let ended = load.begin(&ctx, &node);
    let seen = || rules.kind_counts(RequestKind::Read).requests;
    for _ in 0..40 {
        // A request that began before may end, and be counted, after.
        let filter = BlockNode::new("filter", BlkDebug::new(node.clone(), rules.clone()));
        let before = seen();
        load.go_on(&ctx, 10);
        assert_eq!(seen(), before, "a filter that is not inserted sees nothing");
        node.insert_above(&ctx, &filter).unwrap();
        let served = disk.served();
        load.go_on(&ctx, 30);
        // Counted in this order: others are passing.
        let passed = disk.served() - served;
        assert!(seen() - before >= passed, "what passed was seen");
        assert!(seen() > before);
        filter.remove(&ctx).unwrap();
        assert_eq!(Arc::strong_count(&filter), 1, "nobody uses it any more");
    }
    load.stop.store(true, Ordering::SeqCst);
    ctx.run_until(|| ended.get() == 4);
    threads.into_iter().for_each(|thread| thread.join().expect("a thread that ends well"));
    assert_eq!(disk.served(), load.reads.load(Ordering::SeqCst));
}

#[test]
fn changes_of_several_threads_come_one_after_the_other() {
    let disks = [Tagged::new(0), Tagged::new(1)];
    let nodes = Arc::new([disks[0].node("a"), disks[1].node("b")]);
    let load = Arc::new(Load::default());
    load.allowed.store(3, Ordering::SeqCst);
    let readers = [load.thread(&nodes[0]), load.thread(&nodes[1])];
    let changers: Vec<_> = (0..2)
        .map(|index| {
            let nodes = Arc::clone(&nodes);
            std::thread::spawn(move || {
                let ctx = AioContext::for_test().unwrap();
                for turn in 0..50 {
                    let old = (index + turn) % 2;
                    nodes[old].replace(&ctx, &nodes[1 - old]).unwrap();
                    drop(nodes[old].drain(&ctx));
                }
            })
        })
        .collect();
    changers.into_iter().for_each(|thread| thread.join().expect("a thread that ends well"));
    load.stop.store(true, Ordering::SeqCst);
    readers.into_iter().for_each(|thread| thread.join().expect("a thread that ends well"));
    let served = disks[0].served() + disks[1].served();
    assert_eq!(served, load.reads.load(Ordering::SeqCst));
}

#[test]
fn seeded_changes_in_a_simulated_context() {
    for seed in 0..50 {
        let options = SimulationOptions::new(seed);
        let ctx = AioContext::test_builder().simulated(options).build().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let disks = [Tagged::new(0), Tagged::new(1), Tagged::new(2)];
        let nodes = disks.each_ref().map(|disk| disk.node("disk"));
        let load = Arc::new(Load::default());
        load.allowed.store(1, Ordering::SeqCst);
        let ended = load.begin(&ctx, &nodes[0]);
        let mut now = 0;
        for _ in 0..20 {
            load.go_on(&ctx, random.u64(0..5));
            let next = random.usize(0..3);
            load.allowed.store(1 << now | 1 << next, Ordering::SeqCst);
            // With a filter between, or without.
            let target = if random.bool() {
                BlockNode::new("filter", BlkDebug::new(nodes[next].clone(), Rules::new(seed)))
            } else {
                Arc::clone(&nodes[next])
            };
            let held = nodes[now].drain(&ctx);
            let busy = disks[now].in_flight();
            drop(held);
            assert_eq!(busy, 0, "seed {seed}");
            if now != next {
                nodes[now].replace(&ctx, &target).unwrap();
                // What stood between goes again.
                let _ = target.remove(&ctx);
            }
            load.allowed.store(1 << next, Ordering::SeqCst);
            assert_eq!(nodes[next].graph_faults(), [""; 0], "seed {seed}");
            now = next;
        }
        load.stop.store(true, Ordering::SeqCst);
        ctx.run_until(|| ended.get() == 4);
        let served: u64 = disks.iter().map(Tagged::served).sum();
        assert_eq!(served, load.reads.load(Ordering::SeqCst), "seed {seed}");
    }
}
