//! Reads of formats that only say where bytes are.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coblk_aio::{AioContext, Co, IoVectorMut};
use coblk_block::{
    BlockBackend, BlockLimits, BlockNode, Child, ChildRole, Filter, Piece, ReadFlags, ReadMap,
    co_read_mapped,
};

use crate::util;
use crate::util::disk::{Disk, OnDisk, Op, Verdict};
use crate::util::mapped::{Cluster, Mapped, Pass};
use crate::util::{Seed, errno};

/// A disk whose bytes are all different from those of its neighbours and of other disks.
fn disk(number: u64, length: u64, request_alignment: u32) -> (Arc<Disk>, Vec<u8>) {
    let disk = Disk::new(length, BlockLimits { request_alignment, ..BlockLimits::default() });
    let byte = |at: u64| (at * 7 + number * 31 + at / 256 + 1) as u8;
    let data: Vec<u8> = (0..length).map(byte).collect();
    disk.set(&data);
    (disk, data)
}

fn read(
    backend: &BlockBackend,
    ctx: &AioContext,
    offset: u64,
    bytes: usize,
) -> io::Result<Vec<u8>> {
    let mut target = vec![0xAA; bytes];
    backend.preadv(ctx, offset, &mut IoVectorMut::from(&mut target))?;
    Ok(target)
}

/// What a layer reads as, over what its backing file reads as.
fn model(table: &[Cluster], cluster: u64, file: &[u8], backing: &[u8]) -> Vec<u8> {
    let byte = |of: &[u8], at: u64| of.get(at as usize).copied().unwrap_or(0);
    let bytes = table.iter().zip(0..).flat_map(|(place, index)| {
        (0..cluster).map(move |at| match place {
            Cluster::File(start) => byte(file, start + at),
            Cluster::Zero => 0,
            Cluster::Backing => byte(backing, index * cluster + at),
        })
    });
    bytes.collect()
}

fn table(random: &mut fastrand::Rng, clusters: usize, cluster: u64, file: u64) -> Vec<Cluster> {
    let mut table: Vec<Cluster> = Vec::new();
    for _ in 0..clusters {
        let next = match (random.u32(..8), table.last()) {
            (0..3, Some(Cluster::File(at))) => Cluster::File(at + cluster),
            // Some end behind the file's end, or begin there.
            (0..4, _) => Cluster::File(random.u64(..file / 16 + 4) * 16),
            (4, _) => Cluster::Zero,
            _ => Cluster::Backing,
        };
        table.push(next);
    }
    table
}

/// Chains of layers of different lengths, with filters here and there, in which some layers keep their map
/// to themselves.
#[test]
fn random_maps_read_as_the_model_says() {
    for seed in 0..60 {
        let _seed = Seed(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let ctx = util::simulated(seed);
        let (mut node, mut expected): (Option<Arc<BlockNode>>, Vec<u8>) = (None, Vec::new());
        for number in 0..random.u64(1..6) {
            let cluster = 16 << random.u32(..4);
            let file_length = random.u64(1..3000);
            let (file, data) = disk(number, file_length, 1 << random.u32(..10));
            let file = BlockNode::new("file", OnDisk(file));
            let clusters = random.usize(1..40);
            let table = table(&mut random, clusters, cluster, file_length);
            expected = model(&table, cluster, &data, &expected);
            let mut layer = Mapped::new(cluster, table, &file, node.as_ref());
            layer.is_shown = random.u32(..4) > 0;
            let layer = BlockNode::new(format!("layer{number}"), layer);
            node = Some(if random.bool() { Pass::node("filter", &layer) } else { layer });
        }
        let backend = BlockBackend::new(&ctx, "drive", node.expect("a layer"));
        for _ in 0..40 {
            let start = random.usize(..=expected.len());
            let end = random.usize(start..=expected.len());
            let got = read(&backend, &ctx, start as u64, end - start).unwrap();
            assert!(got == expected[start..end], "{start}..{end}");
        }
    }
}

struct Scene {
    ctx: AioContext,
    disk: Arc<Disk>,
    data: Vec<u8>,
    node: Arc<BlockNode>,
    seen: Arc<util::mapped::Seen>,
    backend: Rc<BlockBackend>,
    result: Rc<RefCell<Option<io::Result<Vec<u8>>>>>,
}

const CLUSTER: u64 = 512;

impl Scene {
    /// A layer of so many clusters, each in a piece of its own.
    fn new(clusters: u64) -> Scene {
        let ctx = AioContext::for_test().unwrap();
        let (disk, data) = disk(0, 2 * clusters * CLUSTER, 1);
        let file = BlockNode::new("file", OnDisk(Arc::clone(&disk)));
        let table = (0..clusters).map(|index| Cluster::File(2 * index * CLUSTER)).collect();
        let layer = Mapped::new(CLUSTER, table, &file, None);
        let seen = Arc::clone(&layer.seen);
        let node = BlockNode::new("layer", layer);
        let backend = Rc::new(BlockBackend::new(&ctx, "drive", Arc::clone(&node)));
        Scene { ctx, disk, data, node, seen, backend, result: Rc::default() }
    }

    /// Begins to read all of it, and polls until that waits or is done.
    fn start(&self) {
        let (backend, result) = (Rc::clone(&self.backend), Rc::clone(&self.result));
        let bytes = self.node.length() as usize;
        self.ctx.spawn("read", move |co| {
            let mut target = vec![0; bytes];
            let read = backend.co_preadv(co, 0, &mut IoVectorMut::from(&mut target));
            *result.borrow_mut() = Some(read.map(|()| target));
        });
        self.settle();
    }

    fn settle(&self) {
        while self.ctx.try_poll() {}
    }

    fn inside(&self) -> usize {
        self.seen.inside.load(Ordering::SeqCst)
    }
}

/// As many as there may be at once, each within a call of the driver; the next one follows when one is done.
#[test]
fn pieces_are_read_at_once_within_their_drivers_calls() {
    let scene = Scene::new(20);
    scene.disk.judge(|_| Verdict::Hold);
    scene.start();
    assert_eq!((scene.disk.held(), scene.inside()), (8, 8));
    let mut left = 20;
    while scene.disk.release() {
        left -= 1;
        scene.settle();
        assert!(scene.inside() == scene.disk.held() && scene.disk.held() <= left.min(8));
    }
    let expected: Vec<u8> = scene.data.chunks(512).step_by(2).flatten().copied().collect();
    assert!(left == 0 && scene.result.take().unwrap().unwrap() == expected);
}

#[test]
fn a_hit_is_looked_up_once_and_read_in_place() {
    let scene = Scene::new(4);
    let got = read(&scene.backend, &scene.ctx, 600, 400).unwrap();
    assert_eq!(got, scene.data[1024 + 88..][..400]);
    assert_eq!(scene.seen.lookups.load(Ordering::SeqCst), 1);
    assert_eq!(scene.disk.take_ops(), [Op::Read(1024 + 88, 400)]);
}

/// The read fails when its other pieces have ended: they are a part of it.
#[test]
fn an_error_in_one_piece_fails_the_read_after_the_others() {
    for failing in [0, 3, 9] {
        let scene = Scene::new(10);
        scene.disk.judge(move |op| match op {
            Op::Read(at, _) if at == 2 * failing * CLUSTER => Verdict::Fail(libc::ENXIO),
            _ => Verdict::Hold,
        });
        scene.start();
        while scene.disk.held() > 0 {
            assert!(scene.result.borrow().is_none());
            scene.disk.release();
            scene.settle();
        }
        assert_eq!(errno(scene.result.take().unwrap()), libc::ENXIO);
        assert_eq!(scene.inside(), 0);
    }
}

#[test]
fn a_drain_waits_for_all_pieces() {
    let scene = Scene::new(4);
    scene.disk.judge(|_| Verdict::Hold);
    scene.start();
    let (node, drained) = (Arc::clone(&scene.node), Rc::new(RefCell::new(false)));
    let done = Rc::clone(&drained);
    scene.ctx.spawn("drain", move |co| {
        let _section = node.co_drain(co);
        *done.borrow_mut() = true;
    });
    scene.settle();
    while scene.disk.held() > 0 {
        assert!(!*drained.borrow());
        scene.disk.release();
        scene.settle();
    }
    assert!(*drained.borrow() && scene.result.take().unwrap().is_ok());
}

#[test]
fn a_context_that_ends_takes_the_pieces_along() {
    let Scene { ctx, disk, node, seen, backend, .. } = {
        let scene = Scene::new(10);
        scene.disk.judge(|_| Verdict::Hold);
        scene.start();
        assert_eq!(scene.inside(), 8);
        scene
    };
    drop(backend);
    drop(ctx);
    assert_eq!(seen.inside.load(Ordering::SeqCst), 0);
    // Nothing is counted any more.
    drop(node.drain(&AioContext::for_test().unwrap()));
    disk.judge(|_| Verdict::Go);
}

/// Behind the end of a shorter backing file there are zeroes, also for one request across that end.
#[test]
fn a_shorter_backing_file_ends_in_zeroes() {
    let ctx = AioContext::for_test().unwrap();
    let (base, data) = disk(1, 700, 512);
    let base = BlockNode::new("base", OnDisk(base));
    let file = BlockNode::new("file", OnDisk(disk(2, 512, 1).0));
    let layer = Mapped::new(512, vec![Cluster::Backing; 4], &file, Some(&base));
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("layer", layer));
    let got = read(&backend, &ctx, 100, 1900).unwrap();
    assert!(got[..600] == data[100..] && got[600..].iter().all(|byte| *byte == 0));
    assert_eq!(read(&backend, &ctx, 1000, 10).unwrap(), [0; 10]);
}

/// What a driver must not say fails the read, and nothing else.
#[test]
fn a_map_that_leads_nowhere_is_an_error() {
    let ctx = AioContext::for_test().unwrap();
    let file = BlockNode::new("file", OnDisk(disk(2, 512, 1).0));
    let other = Child::new("other", ChildRole::IMAGE, Arc::clone(&file));
    let mut layer = Mapped::new(512, vec![Cluster::File(0)], &file, None);
    // The map names an edge that the driver does not list.
    let listed = std::mem::replace(&mut layer.file, other);
    let broken = Unlisted { layer, listed };
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("layer", broken));
    assert_eq!(errno(read(&backend, &ctx, 0, 512)), libc::EIO);
}

/// Nor does a map hide that nothing was read: a request that failed would show what was there before.
#[test]
fn an_error_that_a_map_keeps_to_itself_is_one() {
    let ctx = AioContext::for_test().unwrap();
    let (below, data) = disk(3, 4 * 512, 1);
    let file = BlockNode::new("file", OnDisk(Arc::clone(&below)));
    let table = vec![Cluster::File(1024), Cluster::File(0)];
    let layer = BlockNode::new("layer", Silent(Mapped::new(512, table, &file, None)));
    let backend = BlockBackend::new(&ctx, "drive", layer);
    assert_eq!(read(&backend, &ctx, 0, 512).unwrap(), data[1024..][..512]);
    for bytes in [512, 1024] {
        below.judge(|_| Verdict::Fail(libc::ENXIO));
        assert_eq!(errno(read(&backend, &ctx, 0, bytes)), libc::EIO, "{bytes} bytes");
    }
}

struct Silent(Mapped);

impl ReadMap for Silent {
    fn co_map(
        &self,
        co: &Co<'_>,
        range: Range<u64>,
        read: &mut dyn FnMut(Piece) -> io::Result<()>,
    ) -> io::Result<()> {
        let _ = self.0.co_map(co, range, read);
        Ok(())
    }
}

impl Filter for Silent {
    fn name(&self) -> &'static str {
        "silent"
    }
    fn child(&self) -> &Child {
        &self.0.file
    }
    fn length(&self) -> u64 {
        self.0.length
    }
    fn read(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        co_read_mapped(co, self, &[self.0.file.edge()], offset, target)
    }
}

struct Unlisted {
    layer: Mapped,
    listed: Child,
}

impl coblk_block::BlockDriver for Unlisted {
    fn format_name(&self) -> &'static str {
        "unlisted"
    }
    fn length(&self) -> u64 {
        self.layer.length
    }
    fn children(&self) -> Vec<coblk_block::EdgeId> {
        vec![self.listed.id()]
    }
    fn co_preadv(
        &self,
        co: &coblk_aio::Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: coblk_block::ReadFlags,
    ) -> io::Result<()> {
        coblk_block::co_read_mapped(co, &self.layer, &[self.listed.edge()], offset, target)
    }
    fn co_pwritev(
        &self,
        _: &coblk_aio::Co<'_>,
        _: u64,
        _: &coblk_aio::IoVector<'_>,
        _: coblk_block::WriteFlags,
    ) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }
    fn co_flush(&self, _: &coblk_aio::Co<'_>) -> io::Result<()> {
        Ok(())
    }
}
