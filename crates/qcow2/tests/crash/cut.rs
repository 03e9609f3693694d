//! The file of an image is cut beside a write that takes new clusters: the write is not cut off.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, Co};
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, BlockBackend, BlockNode, Blockdevs, Child, ChildRole, Filter, Truncate,
};
use coblk_qcow2::Qcow2;
use coblk_tests::recorded::{Behaviour, Disturbance, Kind, Moment, RecordedFile, Recorder};
use serde_json::json;

use crate::simulated;
use crate::util::shape::{Shape, shape};

const SHAPE: Shape = shape("cluster_size=4k", 8, 512);
const CLUSTER: usize = 4096;
/// The clusters that are written meanwhile: more than there is room for between others.
const NEW: std::ops::Range<u64> = 3..11;
const NEW_BYTES: usize = (NEW.end - NEW.start) as usize * CLUSTER;
/// In simulated time: what a write takes that waits for nothing.
const PATIENCE: Duration = Duration::from_millis(100);

/// Makes its child shorter when it is flushed. Backends drain a disk before they do so; drivers need not.
struct Cutter(Child);

impl Filter for Cutter {
    fn name(&self) -> &'static str {
        "cutter"
    }
    fn child(&self) -> &Child {
        &self.0
    }
    fn flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.0.co_truncate(co, 32 * CLUSTER as u64, Truncate::default())
    }
}

/// A disk, and a node above it.
fn open(ctx: &AioContext, file: RecordedFile) -> (Blockdevs, [Arc<BlockNode>; 2]) {
    let mut drivers = coblk_block::drivers();
    drivers.add::<Qcow2>();
    let blockdevs = Blockdevs::new(drivers);
    blockdevs.adopt(BlockNode::new("file", file)).unwrap();
    let options = json!({"driver": "qcow2", "node-name": "disk", "file": "file"});
    let disk = blockdevs.open(ctx, NodeOptions::from_value(options).unwrap());
    let disk = disk.unwrap_or_else(|error| panic!("{error}"));
    let child = Child::new("file", ChildRole::FILTERED, Arc::clone(&disk));
    (blockdevs, [disk, BlockNode::new("above", Cutter(child))])
}

fn spawn(ctx: &AioContext, work: impl FnOnce(&Co<'_>) + 'static) -> Rc<Cell<bool>> {
    let done = Rc::new(Cell::new(false));
    let is_done = Rc::clone(&done);
    ctx.spawn("work", move |co| {
        work(co);
        is_done.set(true);
    });
    done
}

fn wait(ctx: &AioContext, most: Duration, is_over: impl Fn() -> bool) -> bool {
    let give_up = ctx.now_ns() + most.as_nanos() as i64;
    ctx.run(|co| {
        while !is_over() && ctx.now_ns() < give_up {
            co.sleep(Duration::from_micros(20));
        }
    });
    is_over()
}

fn backend(ctx: &AioContext, node: &Arc<BlockNode>) -> Rc<BlockBackend> {
    let options = BackendOptions::new("user").share_rw(true);
    Rc::new(options.open(ctx, Arc::clone(node)).unwrap())
}

/// Makes the file shorter.
type Cut = fn(&Co<'_>, &BlockNode, &BlockBackend);

fn run(seed: u64, moment: Moment, cut: Cut) {
    let ctx = simulated(seed);
    let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
    let file = recorder.add_file(SHAPE.create(seed).remove(0));
    let (blockdevs, [disk, above]) = open(&ctx, file);
    let user = backend(&ctx, &disk);
    ctx.run(|co| {
        for index in (0..64).filter(|index| !NEW.contains(index)) {
            user.co_write(co, index * CLUSTER as u64, &[index as u8; CLUSTER]).unwrap();
        }
        user.co_flush(co).unwrap();
    });
    // Nothing but the cut makes the file shorter, and nothing makes it longer.
    recorder.disturb(Disturbance::hold(moment, 0).of(Kind::Truncate));
    let (node, other, cutter) = (Arc::clone(&disk), Rc::clone(&user), backend(&ctx, &above));
    let is_cut = spawn(&ctx, move |co| cut(co, &node, &cutter));
    let is_held = || recorder.held() > 0;
    assert!(wait(&ctx, Duration::from_secs(10), is_held), "the file is cut");
    let is_written = spawn(&ctx, move |co| {
        other.co_write(co, NEW.start * CLUSTER as u64, &[0xaa; NEW_BYTES]).unwrap();
        other.co_flush(co).unwrap();
    });
    wait(&ctx, PATIENCE, || is_written.get());
    recorder.calm();
    recorder.release();
    let is_over = || is_cut.get() && is_written.get();
    assert!(wait(&ctx, Duration::from_secs(10), is_over), "a request hangs");
    let mut read = vec![0; NEW_BYTES];
    ctx.run(|co| user.co_read(co, NEW.start * CLUSTER as u64, &mut read))
        .expect("what was written");
    assert!(read == [0xaa; NEW_BYTES], "a write was cut off");
    drop((user, disk, above));
    for name in ["disk", "file"] {
        blockdevs.close(&ctx, name).unwrap();
    }
}

fn all(cut: Cut) {
    for moment in [Moment::Before, Moment::After] {
        for seed in 0..4 {
            run(seed, moment, cut);
        }
    }
}

#[test]
fn q160_a_write_beside_a_cut_of_the_file_is_not_cut_off() {
    all(|co, node, _| node.co_image(co).unwrap().co_make_empty(co).unwrap());
}

#[test]
fn q118_a_write_beside_a_disk_that_becomes_shorter_is_not_cut_off() {
    all(|co, _, backend| backend.co_flush(co).unwrap());
}
