//! Changes of an image as a whole and a loss of power at any moment: another version, another width of refcounts,
//! and an image that is emptied. The disk reads as before all the while, or as before or empty by the cluster.

use std::fs;
use std::num::NonZero;
use std::sync::Arc;

use coblk_aio::{AioContext, Co};
use coblk_block::options::NodeOptions;
use coblk_block::{Amend, BackendOptions, BlockBackend, BlockNode, Blockdevs, Repair, ZeroFlags};
use coblk_qapi::Deferred;
use coblk_qcow2::Qcow2;
use coblk_qcow2::check::{Check, CheckOptions, co_check, co_check_with};
use coblk_qcow2::layout::Header;
use coblk_tests::random::{Random, seeds};
use coblk_tests::recorded::{Behaviour, RecordedFile, Recorder, Survivors};
use coblk_tests::survey::in_memory;
use serde_json::{Value, json};

use crate::util::Stand;

const SIZE: usize = 300 << 10;
const BELOW: u8 = 0xbb;

/// A node on an image whose file is recorded, over a backing file, or not.
struct Opened {
    blockdevs: Blockdevs,
    node: Arc<BlockNode>,
}

impl Opened {
    /// `snapshot` is shown, which is only read then; `None`: the disk.
    fn new(
        ctx: &AioContext,
        file: &RecordedFile,
        has_backing: bool,
        is_read_only: bool,
        snapshot: Option<&str>,
    ) -> Opened {
        let mut drivers = coblk_block::drivers();
        drivers.add::<Qcow2>();
        let blockdevs = Blockdevs::new(drivers);
        blockdevs.adopt(BlockNode::new("file", file.clone())).unwrap();
        let base = in_memory(vec![vec![BELOW; SIZE]]).remove(0);
        blockdevs.adopt(BlockNode::new("base", base)).unwrap();
        let mut options = json!({
            "driver": "qcow2", "node-name": "disk", "file": "file", "read-only": is_read_only,
        });
        options["backing"] = if has_backing { json!("base") } else { Value::Null };
        if let Some(snapshot) = snapshot {
            options["x-snapshot"] = json!(snapshot);
        }
        let options = NodeOptions::from_value(options).unwrap();
        let node = blockdevs.open(ctx, options).unwrap();
        Opened { blockdevs, node }
    }

    fn close(self, ctx: &AioContext) {
        drop(self.node);
        for name in ["disk", "file", "base"] {
            self.blockdevs.close(ctx, name).unwrap();
        }
    }
}

fn read(
    ctx: &AioContext,
    file: &RecordedFile,
    has_backing: bool,
    snapshot: Option<&str>,
) -> Vec<u8> {
    let opened = Opened::new(ctx, file, has_backing, true, snapshot);
    let backend = BackendOptions::new("reader").read_only(true);
    let backend = backend.open(ctx, Arc::clone(&opened.node)).unwrap();
    let mut bytes = vec![0xee; SIZE];
    ctx.run(|co| backend.co_read(co, 0, &mut bytes)).unwrap();
    drop(backend);
    opened.close(ctx);
    bytes
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

/// One change, and what may be read while it is made.
struct Change {
    create: &'static str,
    has_backing: bool,
    change: fn(&Co<'_>, &BlockNode) -> std::io::Result<()>,
    /// Snapshots that are made before; they stay as they are.
    snapshots: usize,
    /// Clusters may be empty in between.
    empties: bool,
    /// What a header has in the end.
    is_changed: fn(&Header) -> bool,
}

fn amend(co: &Co<'_>, node: &BlockNode, options: Value) -> std::io::Result<()> {
    let options = Deferred::new(options.as_object().unwrap().clone());
    node.co_image(co)?.co_amend(co, Amend::new(options))
}

/// Writes data and zeroes to random places of a disk, and notes what it has then.
fn fill(
    ctx: &AioContext,
    backend: &BlockBackend,
    random: &mut Random,
    disk: &mut [u8],
    rounds: u32,
) {
    for round in 0..rounds {
        let at = random.below(SIZE as u64 - 20_000) as usize;
        let end = at + random.below(20_000) as usize + 1;
        if round % 3 == 0 {
            disk[at..end].fill(0);
            let bytes = (end - at) as u64;
            let flags = if round % 2 == 0 { ZeroFlags::empty() } else { ZeroFlags::MAY_UNMAP };
            ctx.run(|co| backend.co_pwrite_zeroes(co, at as u64, bytes, flags)).unwrap();
        } else {
            random.fill(&mut disk[at..end]);
            ctx.run(|co| backend.co_write(co, at as u64, &disk[at..end])).unwrap();
        }
    }
}

impl Change {
    /// What a disk has that was never written.
    fn empty(&self) -> u8 {
        if self.has_backing { BELOW } else { 0 }
    }

    /// Why a crash has left what must not be.
    fn fault(
        &self,
        ctx: &AioContext,
        image: Vec<u8>,
        before: &[u8],
        snapshots: &[Vec<u8>],
    ) -> Option<String> {
        let header = match Header::parse(&image) {
            Ok(header) => header,
            Err(error) => return Some(error.to_string()),
        };
        let is_dirty = image[7] > 2 && image[79] & 1 != 0;
        let cluster = 1 << header.cluster_bits;
        let files = in_memory(vec![image]);
        for repair in [Repair::None, Repair::All] {
            let found = check(ctx, &files[0], repair);
            let faults = found.report.corruptions + found.report.check_errors;
            if faults > 0 && (!is_dirty || repair == Repair::All) {
                return Some(format!("{repair:?}: corrupt: {:?}", found.findings));
            }
            if repair == Repair::All && found.report.leaks > 0 {
                return Some(format!("leaks after a repair: {:?}", found.findings));
            }
            for (id, wanted) in (1..).zip(snapshots) {
                if read(ctx, &files[0], self.has_backing, Some(&id.to_string())) != *wanted {
                    return Some(format!("{repair:?}: snapshot {id} reads as something else"));
                }
            }
            let bytes = read(ctx, &files[0], self.has_backing, None);
            let empty = self.empty();
            let is_right = |(now, before): (&[u8], &[u8])| {
                now == before || self.empties && now.iter().all(|byte| *byte == empty)
            };
            let parts = bytes.chunks(cluster).zip(before.chunks(cluster));
            if let Some(at) = parts.clone().position(|part| !is_right(part)) {
                return Some(format!("{repair:?}: cluster {at} reads as something else"));
            }
        }
        None
    }

    fn run(&self, seed: u64, moments: u64) {
        let stand = Stand::new();
        fs::write(stand.path("base.raw"), [BELOW; SIZE]).unwrap();
        let mut options = self.create.to_owned();
        if self.has_backing {
            options += ",backing_file=base.raw,backing_fmt=raw";
        }
        let path = stand.create("image.qcow2", &options, &SIZE.to_string());
        let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
        let file = recorder.add_file(fs::read(path).unwrap());
        let ctx = AioContext::for_test().unwrap();
        let opened = Opened::new(&ctx, &file, self.has_backing, false, None);
        let node = Arc::clone(&opened.node);
        let backend = BackendOptions::new("writer").open(&ctx, Arc::clone(&node)).unwrap();
        let mut random = Random::new(seed);
        let mut disk = vec![self.empty(); SIZE];
        let snapshot = |_| {
            fill(&ctx, &backend, &mut random, &mut disk, 10);
            ctx.run(|co| node.co_image(co)?.co_create_snapshot(co, "one")).unwrap();
            disk.clone()
        };
        let snapshots: Vec<_> = (0..self.snapshots).map(snapshot).collect();
        fill(&ctx, &backend, &mut random, &mut disk, 30);
        backend.flush(&ctx).unwrap();
        let begun = recorder.tick();
        ctx.run(|co| (self.change)(co, &node)).unwrap();
        let ended = recorder.tick();
        let mut images = 0;
        for number in 0..=(ended - begun).min(moments) {
            let moment = match ended - begun <= moments {
                true => begun + number,
                false => begun + random.below(ended - begun + 1),
            };
            let point = recorder.crash_at(moment);
            let unsettled = point.unsettled();
            let mut judge = |mut survivors: Survivors<'_>, name: &str| {
                images += 1;
                let image = point.files(&mut survivors).remove(0);
                if moment == ended && matches!(survivors, Survivors::None) {
                    let header = Header::parse(&image).unwrap();
                    assert!((self.is_changed)(&header), "{}: not durable", self.create);
                }
                if let Some(fault) = self.fault(&ctx, image, &disk, &snapshots) {
                    let requests: Vec<_> = unsettled.iter().map(|it| point.describe(*it)).collect();
                    let create = self.create;
                    panic!("{create}, seed {seed}, {name} at {moment}: {fault}; {requests:#?}");
                }
            };
            judge(Survivors::None, "what is durable");
            judge(Survivors::All, "all");
            if let Some(count) = NonZero::new(unsettled.len()) {
                let one = unsettled[random.below(count.get() as u64) as usize];
                judge(Survivors::Only(one), "one request");
                judge(Survivors::AllBut(one), "all but one request");
                judge(Survivors::Torn(&mut random), "some sectors");
            }
        }
        println!("{options}, seed {seed}: {images} images");
        assert!(images > 20);
        // The node goes on.
        if self.empties {
            disk.fill(self.empty());
        }
        fill(&ctx, &backend, &mut random, &mut disk, 10);
        drop((backend, node));
        opened.close(&ctx);
        self.expect_clean(&ctx, &file, &disk, &snapshots);
        stand.end();
    }

    /// The image is clean, and has what it should have.
    fn expect_clean(
        &self,
        ctx: &AioContext,
        file: &RecordedFile,
        disk: &[u8],
        snapshots: &[Vec<u8>],
    ) {
        assert!(read(ctx, file, self.has_backing, None) == disk, "{}", self.create);
        for (id, wanted) in (1..).zip(snapshots) {
            let bytes = read(ctx, file, self.has_backing, Some(&id.to_string()));
            assert!(bytes == *wanted, "{}: snapshot {id}", self.create);
        }
        let left = check(ctx, file, Repair::None).report;
        assert_eq!((left.corruptions, left.leaks, left.check_errors), (0, 0, 0), "{}", self.create);
    }
}

#[test]
fn q151_a_crash_leaves_version_3_or_version_2() {
    for seed in seeds(1) {
        for (create, has_backing, snapshots) in [
            ("cluster_size=4k", false, 0),
            ("cluster_size=4k", true, 0),
            ("cluster_size=512", true, 0),
            ("cluster_size=4k", false, 3),
            ("cluster_size=512", true, 2),
        ] {
            let change: fn(&Co<'_>, &BlockNode) -> std::io::Result<()> =
                |co, node| amend(co, node, json!({"version": "v2"}));
            let is_changed = |header: &Header| header.version == 2;
            let empties = false;
            Change { create, has_backing, change, snapshots, empties, is_changed }.run(seed, 40);
        }
    }
}

#[test]
fn q152_a_crash_leaves_refcounts_of_the_old_width_or_of_the_new_one() {
    let wide: fn(&Co<'_>, &BlockNode) -> std::io::Result<()> =
        |co, node| amend(co, node, json!({"refcount-bits": 64}));
    let narrow: fn(&Co<'_>, &BlockNode) -> std::io::Result<()> =
        |co, node| amend(co, node, json!({"refcount-bits": 1}));
    for seed in seeds(1) {
        for create in ["cluster_size=4k", "cluster_size=512"] {
            let one = Change {
                create,
                has_backing: false,
                change: wide,
                snapshots: 0,
                empties: false,
                is_changed: |header| header.refcount_order == 6,
            };
            one.run(seed, 40);
            let is_changed = |header: &Header| header.refcount_order == 0;
            Change { change: narrow, is_changed, ..one }.run(seed, 40);
        }
    }
}

#[test]
fn q160_a_crash_leaves_clusters_as_before_or_empty() {
    let empty: fn(&Co<'_>, &BlockNode) -> std::io::Result<()> =
        |co, node| node.co_image(co)?.co_make_empty(co);
    for seed in seeds(1) {
        for (create, has_backing) in
            [("cluster_size=4k", false), ("cluster_size=4k,refcount_bits=64", true)]
        {
            let is_changed = |header: &Header| {
                let cluster = 1 << header.cluster_bits;
                (header.refcount_table_offset, header.l1_offset) == (cluster, 3 * cluster)
            };
            let (change, snapshots, empties) = (empty, 0, true);
            Change { create, has_backing, change, snapshots, empties, is_changed }.run(seed, 60);
        }
    }
}
