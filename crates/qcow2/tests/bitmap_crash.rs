//! Bitmaps in an image, and a loss of power at any moment, or a request to the file that fails: a bitmap that
//! can be used marks all that has changed, and the image is not corrupt.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, BlockBackend, BlockNode, BlockdevError, Blockdevs, DirtyBitmap, NewBitmap,
};
use coblk_qcow2::Qcow2;
use coblk_qcow2::check::{Check, co_check};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, Disturbance, Kind, RecordedFile, Recorder, Survivors};
use coblk_tests::survey::in_memory;
use coblk_tests::tools;
use serde_json::json;

use crate::util::Stand;

const SIZE: usize = 256 << 10;
const GRANULE: usize = 4096;
/// Moments of a run at which the power is lost.
const MOMENTS: u64 = 120;

/// What the disk had when each bitmap was made.
type Bases = BTreeMap<String, Vec<u8>>;

/// A node on an image whose file is recorded.
struct Opened {
    blockdevs: Blockdevs,
    node: Arc<BlockNode>,
}

impl Opened {
    fn new(ctx: &AioContext, file: &RecordedFile, read_only: bool) -> Result<Opened, String> {
        let mut drivers = coblk_block::drivers();
        drivers.add::<Qcow2>();
        let blockdevs = Blockdevs::new(drivers);
        let file = BlockNode::new("file", file.clone());
        blockdevs.adopt(file).map_err(|error| error.to_string())?;
        let options = json!({"driver": "qcow2", "node-name": "disk", "file": "file",
            "read-only": read_only});
        let options = NodeOptions::from_value(options).unwrap();
        let node = blockdevs.open(ctx, options).map_err(|error| error.to_string())?;
        Ok(Opened { blockdevs, node })
    }

    fn close(self, ctx: &AioContext) -> Result<(), BlockdevError> {
        drop(self.node);
        self.blockdevs.close(ctx, "disk")?;
        self.blockdevs.close(ctx, "file")
    }

    fn write(&self, ctx: &AioContext, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        let backend = BackendOptions::new("writer").open(ctx, Arc::clone(&self.node)).unwrap();
        ctx.run(|co| backend.co_write(co, at, bytes))
    }

    fn bitmaps(&self) -> Vec<Arc<DirtyBitmap>> {
        self.node.bitmaps().list()
    }

    fn add(&self, ctx: &AioContext, name: &str) {
        let mut new = NewBitmap::new(name.to_owned(), GRANULE as u64);
        new.is_persistent = true;
        ctx.run(|co| self.node.co_add_bitmap(co, new)).unwrap();
    }
}

fn check(ctx: &AioContext, file: &RecordedFile) -> Check {
    let node = BlockNode::new("image", file.clone());
    let backend = BackendOptions::new("check").read_only(true).open(ctx, node).unwrap();
    ctx.run(|co| co_check(co, &backend)).unwrap()
}

/// Judges an image: `None` if all is well. Else what is wrong. Counts bitmaps that can be used.
fn fault(ctx: &AioContext, image: Vec<u8>, bases: &Bases, usable: &mut u64) -> Option<String> {
    let files = in_memory(vec![image]);
    let found = check(ctx, &files[0]);
    if found.report.corruptions + found.report.check_errors > 0 {
        return Some(format!("corrupt: {:?}", found.findings));
    }
    let opened = match Opened::new(ctx, &files[0], true) {
        Ok(opened) => opened,
        Err(error) => return Some(error),
    };
    let mut disk = vec![0xee; SIZE];
    let backend = BlockBackend::read_only(ctx, "reader", Arc::clone(&opened.node));
    ctx.run(|co| backend.co_read(co, 0, &mut disk)).unwrap();
    drop(backend);
    let mut fault = None;
    for bitmap in opened.bitmaps().iter().filter(|bitmap| !bitmap.is_inconsistent()) {
        *usable += 1;
        let name = bitmap.name().unwrap();
        let granules = disk.chunks(GRANULE).zip(bases[&name].chunks(GRANULE)).enumerate();
        let changed = granules.filter(|(_, (now, then))| now != then).map(|(at, _)| at * GRANULE);
        for at in changed {
            if !bitmap.bits().is_dirty(at as u64) {
                fault = Some(format!("'{name}' does not know of {at:#x}"));
            }
        }
    }
    drop(opened.close(ctx));
    fault
}

fn new_image(stand: &Stand, options: &str, seed: u64) -> (Recorder, RecordedFile) {
    let path = stand.create("image.qcow2", options, &SIZE.to_string());
    let granularity = GRANULE.to_string();
    tools::run("qemu-img", ["bitmap", "--add", "-g", &granularity, tools::text(&path), "a"]);
    let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
    let file = recorder.add_file(fs::read(path).unwrap());
    (recorder, file)
}

/// Opens, writes, adds and removes bitmaps, closes, several times.
fn play(ctx: &AioContext, file: &RecordedFile, seed: u64) -> Bases {
    let mut random = Random::new(seed);
    let mut disk = vec![0; SIZE];
    let mut bases = Bases::from([("a".to_owned(), disk.clone())]);
    for round in 0..4 {
        let opened = Opened::new(ctx, file, false).unwrap();
        for step in 0..4 {
            let at = random.below(SIZE as u64 - 20_000) as usize;
            let end = at + random.below(20_000) as usize + 1;
            random.fill(&mut disk[at..end]);
            opened.write(ctx, at as u64, &disk[at..end]).unwrap();
            if step == 1 {
                let name = format!("{round}");
                opened.add(ctx, &name);
                bases.insert(name, disk.clone());
            }
            if step == 2 && round == 2 {
                let bitmap = opened.node.bitmaps().find("0").unwrap();
                ctx.run(|co| opened.node.co_remove_bitmap(co, &bitmap)).unwrap();
            }
        }
        opened.close(ctx).unwrap();
    }
    bases
}

fn run(options: &str, seed: u64) {
    let stand = Stand::new();
    let (recorder, file) = new_image(&stand, options, seed);
    let ctx = AioContext::for_test().unwrap();
    let begun = recorder.tick();
    let bases = play(&ctx, &file, seed);
    let mut random = Random::new(seed);
    let (mut images, mut usable) = (0, 0);
    let all = recorder.tick() - begun;
    for number in 0..MOMENTS {
        let moment = begun + all * number / MOMENTS;
        let point = recorder.crash_at(moment);
        let unsettled = point.unsettled();
        let mut judge = |mut survivors: Survivors<'_>, name: &str| {
            images += 1;
            let image = point.files(&mut survivors).remove(0);
            if let Some(fault) = fault(&ctx, image, &bases, &mut usable) {
                let requests: Vec<_> = unsettled.iter().map(|it| point.describe(*it)).collect();
                panic!("{options}, seed {seed}, {name} at {moment}: {fault}; {requests:#?}");
            }
        };
        judge(Survivors::None, "what is durable");
        judge(Survivors::All, "all");
        if let Some(count) = std::num::NonZero::new(unsettled.len()) {
            let one = unsettled[random.below(count.get() as u64) as usize];
            judge(Survivors::Only(one), "one request");
            judge(Survivors::AllBut(one), "all but one request");
            judge(Survivors::Torn(&mut random), "some sectors");
        }
    }
    println!("{options}, seed {seed}: {images} images, {usable} bitmaps that can be used");
    assert!(images > 100 && usable > images / 10);
    stand.end();
}

#[test]
fn q161_q162_q164_after_a_crash_a_bitmap_is_right_or_known_to_mean_nothing() {
    for seed in seeds(1) {
        run("cluster_size=4k", seed);
        run("cluster_size=512,refcount_bits=64", seed);
        run("cluster_size=64k", seed);
    }
}

/// A request of a close fails. The node stays open and is written again; the next close succeeds.
fn run_fault(fault: Disturbance, seed: u64) -> bool {
    let stand = Stand::new();
    let (recorder, file) = new_image(&stand, "cluster_size=4k", seed);
    let ctx = AioContext::for_test().unwrap();
    let mut disk = vec![0; SIZE];
    let opened = Opened::new(&ctx, &file, false).unwrap();
    disk[5000..6000].fill(7);
    opened.write(&ctx, 5000, &disk[5000..6000]).unwrap();
    let bases = Bases::from([("a".to_owned(), vec![0; SIZE])]);
    recorder.disturb(fault.clone());
    let closed = opened.blockdevs.close(&ctx, "disk");
    let is_met = recorder.disturbed() > 0;
    recorder.calm();
    let mut usable = 0;
    let mut judge = |what: &str| {
        for survivors in [&mut Survivors::None, &mut Survivors::All] {
            let image = recorder.crash_at(recorder.tick()).files(survivors).remove(0);
            if let Some(found) = self::fault(&ctx, image, &bases, &mut usable) {
                panic!("{fault:?}, {what}: {found}");
            }
        }
    };
    judge("after the close");
    if closed.is_err() {
        opened.write(&ctx, 100_000, &[8; 1000]).unwrap();
        judge("after a write");
        opened.blockdevs.close(&ctx, "disk").unwrap();
    }
    let Opened { blockdevs, node } = opened;
    drop(node);
    blockdevs.close(&ctx, "file").unwrap();
    judge("at the end");
    assert!(usable > 0, "{fault:?}: the bitmap is lost");
    assert!(is_met == closed.is_err() || closed.is_ok(), "{fault:?}");
    stand.end();
    is_met
}

#[test]
fn q163_a_store_that_fails_fails_the_close_and_the_next_one_has_all() {
    let mut failures = 0;
    for (kind, errno) in [(Kind::Write, libc::EIO), (Kind::Flush, libc::EIO)] {
        for skip in 0..40 {
            if !run_fault(Disturbance { times: 1, ..Disturbance::fail(errno, skip).of(kind) }, 1) {
                break;
            }
            failures += 1;
        }
    }
    println!("{failures} failures");
    assert!(failures > 5);
}
