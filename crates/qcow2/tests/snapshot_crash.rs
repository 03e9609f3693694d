//! Snapshots and a loss of power at any moment: the disk and each snapshot are as before an operation, or as
//! after it, and no reference is without its count.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockBackend, BlockNode, Blockdevs, Repair};
use coblk_qcow2::Qcow2;
use coblk_qcow2::check::{Check, CheckOptions, co_check, co_check_with};
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, RecordedFile, Recorder, Survivors};
use coblk_tests::survey::in_memory;
use serde_json::{Value, json};

use crate::util::Stand;

const SIZE: usize = 200 << 10;

/// The disk, and the snapshots by their ids.
#[derive(Clone, PartialEq)]
struct Bytes {
    disk: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
}

/// What was there before an operation, and after it.
struct Operation {
    what: String,
    begun: u64,
    before: Bytes,
    after: Bytes,
    /// Others wrote meanwhile.
    is_beside: bool,
    /// What each snapshot may have that was made beside writes.
    beside: BTreeMap<String, [Vec<u8>; 2]>,
}

impl Operation {
    /// Whether an image may have this after a crash. What was written beside an operation is old or new, on the disk
    /// and in the snapshot that it made.
    fn is_right(&self, found: &Bytes) -> bool {
        let is_either = |bytes: &[u8], old: &[u8], new: &[u8]| {
            let both = old.chunks(512).zip(new.chunks(512));
            bytes.chunks(512).zip(both).all(|(now, (old, new))| now == old || now == new)
        };
        let (before, after) = (&self.before, &self.after);
        [before, after].into_iter().any(|side| {
            let is_same = |(id, bytes): (&String, &Vec<u8>)| match self.beside.get(id) {
                Some([old, new]) => is_either(bytes, old, new),
                None => side.snapshots.get(id) == Some(bytes),
            };
            let is_disk = match self.is_beside {
                true => is_either(&found.disk, &before.disk, &after.disk),
                false => found.disk == side.disk,
            };
            is_disk
                && found.snapshots.keys().eq(side.snapshots.keys())
                && found.snapshots.iter().all(is_same)
        })
    }
}

/// Other bytes for some sectors.
fn change(random: &mut Random, disk: &mut [u8]) {
    for _ in 0..6 {
        let at = random.below(SIZE as u64 - 9000) as usize / 512 * 512;
        let end = at + (random.below(16) as usize + 1) * 512;
        random.fill(&mut disk[at..end]);
    }
}

/// Writes the pieces of `new` that differ from `old`, in a coroutine of its own.
fn write_beside(
    ctx: &AioContext,
    backend: &BlockBackend,
    (old, new): (&[u8], &[u8]),
    is_done: &Rc<Cell<bool>>,
) {
    let differs = |at: &usize| old[at * 512..(at + 1) * 512] != new[at * 512..(at + 1) * 512];
    let sectors: Vec<usize> = (0..SIZE / 512).filter(differs).collect();
    let pieces = sectors.chunk_by(|a, b| a + 1 == *b).map(|piece| {
        let (start, end) = (piece[0] * 512, (piece[piece.len() - 1] + 1) * 512);
        (start, new[start..end].to_vec())
    });
    let (pieces, backend): (Vec<_>, _) = (pieces.collect(), backend.clone());
    let is_done = Rc::clone(is_done);
    ctx.spawn("writer", move |co| {
        for (at, data) in pieces {
            backend.co_write(co, at as u64, &data).unwrap();
            backend.co_flush(co).unwrap();
        }
        is_done.set(true);
    });
}

/// A node on an image whose file is recorded.
struct Opened {
    blockdevs: Blockdevs,
    node: Arc<BlockNode>,
}

impl Opened {
    fn new(ctx: &AioContext, file: &RecordedFile, more: Value) -> Result<Opened, String> {
        let mut drivers = coblk_block::drivers();
        drivers.add::<Qcow2>();
        let blockdevs = Blockdevs::new(drivers);
        let file = BlockNode::new("file", file.clone());
        blockdevs.adopt(file).map_err(|error| error.to_string())?;
        let mut options = json!({"driver": "qcow2", "node-name": "disk", "file": "file"});
        let members = more.as_object().unwrap().clone();
        members.into_iter().for_each(|(name, value)| options[name] = value);
        let options = NodeOptions::from_value(options).unwrap();
        let node = blockdevs.open(ctx, options).map_err(|error| error.to_string())?;
        Ok(Opened { blockdevs, node })
    }

    fn close(self, ctx: &AioContext) {
        drop(self.node);
        self.blockdevs.close(ctx, "disk").unwrap();
        self.blockdevs.close(ctx, "file").unwrap();
    }
}

/// What an image has.
fn read(ctx: &AioContext, file: &RecordedFile) -> Result<Bytes, String> {
    let read_one = |more: Value| {
        let opened = Opened::new(ctx, file, more)?;
        let node = Arc::clone(&opened.node);
        let ids = ctx.run(|co| node.co_image(co)?.co_snapshots(co)).map_err(|it| it.to_string())?;
        let backend = BlockBackend::read_only(ctx, "reader", node);
        let mut bytes = vec![0xee; SIZE];
        let result = ctx.run(|co| backend.co_read(co, 0, &mut bytes));
        drop(backend);
        opened.close(ctx);
        result.map_err(|error| format!("reading: {error}"))?;
        Ok::<_, String>((bytes, ids))
    };
    let (disk, ids) = read_one(json!({"read-only": true}))?;
    let mut snapshots = BTreeMap::new();
    for snapshot in ids {
        let (bytes, _) = read_one(json!({"read-only": true, "x-snapshot": snapshot.id}))?;
        snapshots.insert(snapshot.id, bytes);
    }
    Ok(Bytes { disk, snapshots })
}

fn check(ctx: &AioContext, file: &RecordedFile, repair: Repair) -> Check {
    let node = BlockNode::new("image", file.clone());
    let options = BackendOptions::new("check").read_only(repair == Repair::None);
    let backend = options.open(ctx, node).unwrap();
    let check = ctx.run(|co| match repair {
        Repair::None => co_check(co, &backend),
        _ => co_check_with(co, &backend, &CheckOptions::new(repair)),
    });
    check.unwrap()
}

/// Judges what a crash has left: `None` if all is well.
fn fault(ctx: &AioContext, operation: &Operation, image: Vec<u8>) -> Option<String> {
    let is_marked = image[7] == 2 || image[79] & 1 != 0;
    let files = in_memory(vec![image]);
    let found = check(ctx, &files[0], Repair::None);
    let faults = found.report.corruptions + found.report.check_errors;
    if faults > 0 && !is_marked {
        return Some(format!("corrupt, and not marked so: {:?}", found.findings));
    }
    // Flags may be wrong, and nothing else.
    let is_uncounted = |it: &&String| it.contains("references") && !it.contains("leaks");
    if let Some(found) = found.findings.iter().find(is_uncounted) {
        return Some(found.clone());
    }
    let is_right = |bytes: &Bytes| operation.is_right(bytes);
    for repair in [Repair::None, Repair::All] {
        if repair == Repair::All {
            check(ctx, &files[0], repair);
            let left = check(ctx, &files[0], Repair::None);
            if left.report.corruptions + left.report.check_errors + left.report.leaks > 0 {
                return Some(format!("after a repair: {:?}", left.findings));
            }
        }
        match read(ctx, &files[0]) {
            Ok(bytes) if is_right(&bytes) => {}
            Ok(bytes) => {
                let is_old = |old: &Bytes| old.disk == bytes.disk;
                let (before, after) = (is_old(&operation.before), is_old(&operation.after));
                let ids: Vec<_> = bytes.snapshots.keys().collect();
                return Some(format!(
                    "{repair:?}: disk as before {before}, after {after}, {ids:?}"
                ));
            }
            Err(error) => return Some(error),
        }
    }
    None
}

/// Operations on an image, one after another.
fn play(
    ctx: &AioContext,
    recorder: &Recorder,
    file: &RecordedFile,
    (seed, is_beside): (u64, bool),
) -> Vec<Operation> {
    let opened = Opened::new(ctx, file, json!({})).unwrap();
    let node = Arc::clone(&opened.node);
    let backend = BackendOptions::new("writer").open(ctx, Arc::clone(&node)).unwrap();
    let mut random = Random::new(seed);
    let mut bytes = Bytes { disk: vec![0; SIZE], snapshots: BTreeMap::new() };
    let (mut operations, mut beside) = (Vec::new(), BTreeMap::new());
    let all: &[&str] = match is_beside {
        true => &["create", "create", "delete", "create", "delete"],
        false => &["create", "create", "apply", "delete", "create", "apply", "delete"],
    };
    for what in all.iter().copied() {
        for _ in 0..5 {
            let at = random.below(SIZE as u64 - 20_000) as usize;
            let end = at + random.below(20_000) as usize + 1;
            random.fill(&mut bytes.disk[at..end]);
            ctx.run(|co| backend.co_write(co, at as u64, &bytes.disk[at..end])).unwrap();
        }
        backend.flush(ctx).unwrap();
        let (begun, before) = (recorder.tick(), bytes.clone());
        let ids: Vec<String> = bytes.snapshots.keys().cloned().collect();
        let id =
            ids.get(random.below(ids.len().max(1) as u64) as usize).cloned().unwrap_or_default();
        let is_done = Rc::new(Cell::new(!is_beside));
        if is_beside {
            change(&mut random, &mut bytes.disk);
            write_beside(ctx, &backend, (&before.disk, &bytes.disk), &is_done);
        }
        match what {
            "create" => {
                let create =
                    ctx.run(|co| node.co_image(co)?.co_create_snapshot(co, "of some moment"));
                let id = create.unwrap();
                if is_beside {
                    beside.insert(id.clone(), [before.disk.clone(), bytes.disk.clone()]);
                }
                bytes.snapshots.insert(id, bytes.disk.clone());
            }
            "apply" => {
                ctx.run(|co| node.co_image(co)?.co_apply_snapshot(co, &id)).unwrap();
                bytes.disk.clone_from(&bytes.snapshots[&id]);
            }
            _ => {
                ctx.run(|co| node.co_image(co)?.co_delete_snapshot(co, &id)).unwrap();
                bytes.snapshots.remove(&id);
            }
        }
        ctx.run_until(|| is_done.get());
        let (what, allowed) = (format!("{what} {id}"), beside.clone());
        let after = bytes.clone();
        operations.push(Operation { what, begun, before, after, is_beside, beside: allowed });
        // What follows is none of its.
        operations.push(Operation {
            what: "after it".to_owned(),
            begun: recorder.tick(),
            before: bytes.clone(),
            after: bytes.clone(),
            is_beside: false,
            beside: beside.clone(),
        });
    }
    drop((backend, node));
    opened.close(ctx);
    operations
}

fn run(options: &str, seed: u64, moments: u64, is_beside: bool) {
    let stand = Stand::new();
    let path = stand.create("image.qcow2", options, &SIZE.to_string());
    let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
    let file = recorder.add_file(fs::read(path).unwrap());
    let ctx = AioContext::for_test().unwrap();
    let operations = play(&ctx, &recorder, &file, (seed, is_beside));
    let mut random = Random::new(seed);
    let mut images = 0;
    for pair in operations.windows(2).step_by(2) {
        let (operation, begun) = (&pair[0], pair[0].begun);
        let all = pair[1].begun - begun;
        for number in 0..all.min(moments) {
            let moment = if all <= moments { begun + number } else { begun + random.below(all) };
            let point = recorder.crash_at(moment);
            let unsettled = point.unsettled();
            let mut judge = |mut survivors: Survivors<'_>, name: &str| {
                images += 1;
                let mut files = point.files(&mut survivors);
                if let Some(fault) = fault(&ctx, operation, files.remove(0)) {
                    let what = &operation.what;
                    let requests: Vec<_> = unsettled.iter().map(|it| point.describe(*it)).collect();
                    panic!(
                        "{options}, seed {seed}, {what}, {name} at {moment}: {fault}; {requests:#?}"
                    );
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
    }
    println!("{options}, seed {seed}: {images} images");
    assert!(images > 100);
    stand.end();
}

#[test]
fn q156_q157_q158_a_crash_leaves_each_snapshot_as_before_or_as_after() {
    for seed in seeds(1) {
        run("cluster_size=4k", seed, 12, false);
        run("cluster_size=512,refcount_bits=64", seed, 12, false);
    }
}

#[test]
fn q158_a_crash_beside_writes_leaves_each_snapshot_as_before_or_as_after() {
    for seed in seeds(2) {
        run("cluster_size=4k", seed, 12, true);
        run("cluster_size=512,refcount_bits=64", seed, 12, true);
    }
}

#[test]
fn q156_q157_a_crash_leaves_each_snapshot_of_version_2_as_before_or_as_after() {
    for seed in seeds(1) {
        run("compat=0.10,cluster_size=4k", seed, 12, false);
    }
}
