//! Children that come and go while several contexts send requests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use coblk_aio::{AioContext, IoVector};
use coblk_block::{BlockBackend, BlockNode, WriteFlags};

use crate::movable::{Copies, Overlay};
use crate::tagged::{Tagged, co_read};

#[derive(Default)]
struct Load {
    /// What reads may see now: bit n for tag n, the last for no child.
    allowed: AtomicU64,
    stop: AtomicBool,
    reads: AtomicU64,
}

fn bit(tag: u8) -> u64 {
    1 << tag.min(63)
}

/// Reads and writes of `node` on a thread of their own, until told to stop.
fn thread(load: &Arc<Load>, node: &Arc<BlockNode>) -> JoinHandle<()> {
    let (load, node) = (Arc::clone(load), Arc::clone(node));
    let (ready, is_ready) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let ctx = AioContext::for_test().unwrap();
        let backend = BlockBackend::new(&ctx, "load", node);
        ready.send(()).unwrap();
        ctx.run(|co| {
            while !load.stop.load(Ordering::SeqCst) {
                // Allowed when it begins, or when it ends.
                let before = load.allowed.load(Ordering::SeqCst);
                let tag = co_read(co, &backend).expect("a read");
                let allowed = before | load.allowed.load(Ordering::SeqCst);
                assert!(allowed & bit(tag) != 0, "a read of {tag}, allowed: {allowed:b}");
                let source = IoVector::from(&[0; 512][..]);
                backend.co_pwritev(co, 0, &source, WriteFlags::empty()).expect("a write");
                load.reads.fetch_add(1, Ordering::SeqCst);
                co.yield_now();
            }
        });
    });
    is_ready.recv().expect("a thread that runs");
    thread
}

impl Load {
    fn go_on(&self, reads: u64) {
        let target = self.reads.load(Ordering::SeqCst) + reads;
        while self.reads.load(Ordering::SeqCst) < target {
            std::thread::yield_now();
        }
    }

    /// Makes a change after which reads see `tag` and nothing else.
    fn change(&self, tag: u8, change: impl FnOnce()) {
        self.go_on(10);
        self.allowed.fetch_or(bit(tag), Ordering::SeqCst);
        change();
        self.allowed.store(bit(tag), Ordering::SeqCst);
    }

    fn end(&self, threads: Vec<JoinHandle<()>>) {
        self.stop.store(true, Ordering::SeqCst);
        threads.into_iter().for_each(|thread| thread.join().expect("a thread that ends well"));
    }
}

#[test]
fn a_backing_file_comes_and_goes_under_load_from_two_contexts() {
    let ctx = AioContext::for_test().unwrap();
    let disks = [Tagged::new(1), Tagged::new(2)];
    let nodes = disks.each_ref().map(|disk| disk.node("disk"));
    let overlay = Overlay::node("overlay", &Tagged::new(0).node("file"), None);
    let above = Overlay::node("above", &Tagged::new(0).node("file"), Some(&overlay));
    let load = Arc::new(Load::default());
    load.allowed.store(bit(99), Ordering::SeqCst);
    let threads = vec![thread(&load, &overlay), thread(&load, &above)];
    for turn in 0..30 {
        let set = |child| ctx.run(|co| overlay.co_set_child(co, "backing", child)).unwrap();
        disks.iter().for_each(|disk| disk.set_quiet(false));
        load.change(1 + turn % 2, || set(Some(&nodes[usize::from(turn % 2)])));
        load.change(99, || set(None));
        disks.iter().for_each(|disk| disk.set_quiet(true));
        assert_eq!(overlay.graph_faults(), [""; 0]);
    }
    load.go_on(10);
    load.end(threads);
    assert!(disks.iter().all(|disk| disk.violations() == 0), "a request of a detached child");
    assert!(disks.iter().all(|disk| disk.served() > 0));
}

#[test]
fn copies_come_and_go_under_load_from_two_contexts() {
    let ctx = AioContext::for_test().unwrap();
    let nodes = [1, 2, 3].map(|tag| Tagged::new(tag).node("disk"));
    let copies = Copies::node("copies", 1, &[&nodes[0]]);
    let load = Arc::new(Load::default());
    load.allowed.store(bit(1), Ordering::SeqCst);
    let threads = vec![thread(&load, &copies), thread(&load, &copies)];
    let (mut first, mut tag) = ("children.0".to_owned(), 1);
    for turn in 0..30 {
        let next = usize::from(tag) % 3;
        load.go_on(5);
        let added = ctx.run(|co| copies.co_add_child(co, &nodes[next])).unwrap();
        tag = 1 + u8::try_from(next).unwrap();
        load.change(tag, || ctx.run(|co| copies.co_remove_child(co, &first)).unwrap());
        first = added;
        assert_eq!((copies.graph_faults(), nodes[next].graph_faults()), (vec![], vec![]), "{turn}");
    }
    load.end(threads);
}

#[test]
fn changes_of_one_slot_by_several_threads_come_one_after_the_other() {
    let nodes = [1, 2].map(|tag| Tagged::new(tag).node("disk"));
    let overlay = Overlay::node("overlay", &Tagged::new(0).node("file"), None);
    let load = Arc::new(Load::default());
    load.allowed.store(bit(1) | bit(2) | bit(99), Ordering::SeqCst);
    let reader = thread(&load, &overlay);
    let changers: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (overlay, node) = (Arc::clone(&overlay), Arc::clone(node));
            std::thread::spawn(move || {
                let ctx = AioContext::for_test().unwrap();
                for _ in 0..50 {
                    // Refused where the other one has come first.
                    let _ = ctx.run(|co| overlay.co_attach(co, "backing", &node));
                    let _ = ctx.run(|co| overlay.co_detach(co, "backing"));
                    drop(node.drain(&ctx));
                }
            })
        })
        .collect();
    changers.into_iter().for_each(|thread| thread.join().expect("a thread that ends well"));
    load.end(vec![reader]);
    assert_eq!(overlay.graph_faults(), [""; 0]);
    let free = nodes.iter().all(|node| Arc::strong_count(node) == 1);
    assert_eq!(overlay.children().len(), if free { 1 } else { 2 });
}
