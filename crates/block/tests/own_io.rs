//! What a driver does by itself is waited for by drains, and waits for them.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, Co};
use coblk_block::drivers::Null;
use coblk_block::filters::blklogwrites::{BlkLogWrites, ReplayLog, WriteLog};
use coblk_block::{BlockLimits, BlockNode};

use crate::util::disk::{Disk, OnDisk, Op, Verdict};

struct Scene {
    ctx: AioContext,
    disk: Arc<Disk>,
    /// Where the log is, and the filter that writes it.
    below: Arc<BlockNode>,
    filter: Arc<BlockNode>,
    log: WriteLog,
}

fn scene() -> Scene {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(1 << 20, BlockLimits::default());
    let below = BlockNode::new("log", OnDisk(Arc::clone(&disk)));
    let image = BlockNode::new("image", Null::new(1 << 20));
    let driver = ctx.run(|co| BlkLogWrites::create(co, image, Arc::clone(&below))).unwrap();
    let log = driver.log().clone();
    let filter = BlockNode::new("filter", driver);
    disk.take_ops();
    Scene { ctx, disk, below, filter, log }
}

impl Scene {
    fn hold(&self) {
        self.disk.judge(|op| if op == Op::Flush { Verdict::Go } else { Verdict::Hold });
    }

    fn start(&self, run: impl FnOnce(&Co<'_>) + 'static) -> Rc<Cell<bool>> {
        let done = Rc::new(Cell::new(false));
        let seen = Rc::clone(&done);
        self.ctx.spawn("start", move |co| {
            run(co);
            seen.set(true);
        });
        self.settle();
        done
    }

    fn settle(&self) {
        while self.ctx.try_poll() {}
    }

    /// `own` is on its way: a drain of `node` waits for it. And it waits for a drain.
    #[track_caller]
    fn counts<D: 'static>(
        &self,
        drain: impl FnOnce(&Co<'_>) -> D + Clone + 'static,
        own: impl FnOnce(&Co<'_>) + Clone + 'static,
    ) {
        self.hold();
        let done = self.start(own.clone());
        assert_eq!(self.disk.held(), 1);
        let drained = Rc::new(Cell::new(None));
        let (section, begin) = (Rc::clone(&drained), drain);
        let is_drained = self.start(move |co| section.set(Some(begin(co))));
        assert!(!is_drained.get(), "a drain does not wait");
        self.disk.judge(|_| Verdict::Go);
        assert!(self.disk.release());
        self.settle();
        assert!(is_drained.get());
        self.disk.take_ops();
        // What is to come of it waits by now, and so does what begins.
        let again = self.start(own);
        assert_eq!((again.get(), self.disk.take_ops()), (false, vec![]), "it goes on in a drain");
        drop(drained.take());
        self.settle();
        assert!(done.get() && again.get() && !self.disk.take_ops().is_empty());
    }
}

#[test]
fn a_mark_in_a_log_counts_at_the_filter_and_below() {
    for below in [false, true] {
        let scene = scene();
        let node = if below { &scene.below } else { &scene.filter };
        let (node, log) = (Arc::clone(node), scene.log.clone());
        scene.counts(move |co| node.co_drain(co), move |co| log.co_mark(co, "here").unwrap());
        let (node, log) = (Arc::clone(&scene.below), scene.log.clone());
        scene.counts(
            move |co| node.co_drain(co),
            move |co| {
                log.co_mark(co, "there").unwrap();
                log.co_publish(co).unwrap();
            },
        );
    }
}

#[test]
fn a_new_log_is_begun_where_nothing_is_drained() {
    let scene = scene();
    let (node, log) = (Arc::clone(&scene.below), Arc::clone(&scene.below));
    scene.counts(
        move |co| node.co_drain(co),
        move |co| {
            let image = BlockNode::new("image", Null::new(1 << 20));
            drop(BlkLogWrites::create(co, image, log).unwrap());
        },
    );
}

#[test]
fn a_replay_counts_at_the_log_and_at_the_image() {
    let scene = scene();
    scene.ctx.run(|co| scene.log.co_mark(co, "one").unwrap());
    scene.ctx.run(|co| scene.log.co_publish(co).unwrap());
    let (node, log) = (Arc::clone(&scene.below), Arc::clone(&scene.below));
    scene.counts(
        move |co| node.co_drain(co),
        move |co| {
            let mut log = ReplayLog::open(co, log).unwrap();
            assert!(log.co_next(co).unwrap().is_some());
        },
    );
    // The image is the disk of another scene.
    let (source, image) = (scene, self::scene());
    let backend = coblk_block::BlockBackend::new(&source.ctx, "drive", Arc::clone(&source.filter));
    let zeroes = coblk_aio::IoVector::from(&[0; 512][..]);
    backend.pwritev(&source.ctx, 0, &zeroes, coblk_block::WriteFlags::empty()).unwrap();
    backend.flush(&source.ctx).unwrap();
    let (node, log) = (Arc::clone(&image.below), Arc::clone(&source.below));
    let target = Arc::clone(&image.below);
    image.counts(
        move |co| node.co_drain(co),
        move |co| {
            let mut log = ReplayLog::open(co, log).unwrap();
            assert_eq!(log.co_apply_next(co, 2, &target).unwrap(), 2);
        },
    );
}

#[test]
fn looking_for_the_length_waits_for_a_drain() {
    let scene = scene();
    let section = scene.below.drain(&scene.ctx);
    let node = Arc::clone(&scene.below);
    let done = scene.start(move |co| _ = node.co_refresh_length(co).unwrap());
    assert!(!done.get());
    drop(section);
    scene.settle();
    assert!(done.get());
}
