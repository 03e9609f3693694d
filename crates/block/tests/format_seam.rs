//! What a format needs of the layer, each through a format that is not of this crate.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::options::{DriverOptions, NodeRef, NodeRefOrNull};
use coblk_block::{
    AfterWrite, Amend, BlockBackend, BlockDriver, BlockLimits, BlockNode, Blockdevs, Child,
    ChildRole, ChildSlot, CreateError, DebugEvent, Driver, EdgeId, Extent, ImageFormat, Measure,
    Measures, OpenError, Opening, Preallocation, ReadFlags, Truncate, WriteFlags, WriteKind,
};
use coblk_qapi::{Deferred, Size};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::util::bench::Bench;
use crate::util::errno;

const CLUSTER: u64 = 4096;
const LENGTH: u64 = 4 * CLUSTER;

/// Stores clusters in its file one after the other, in the order in which they are first written; its
/// table is in memory.
struct Toy {
    file: Child,
    backing: ChildSlot,
    /// The place of a cluster in the file, by its place for the guest, and whether it is compressed.
    table: Mutex<BTreeMap<u64, (u64, bool)>>,
    asked: Mutex<Vec<Truncate>>,
    compat: Mutex<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct ToyOptions {
    file: NodeRef,
    backing: Option<NodeRefOrNull>,
}

impl DriverOptions for ToyOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
    }
    fn visit_slots(&mut self, visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>)) {
        visit("backing", &mut self.backing);
    }
}

impl Driver for Toy {
    const NAMES: &'static [&'static str] = &["toy"];
    type Options = ToyOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &ToyOptions) -> Result<Toy, OpenError> {
        let backing = options.backing.as_ref().and_then(NodeRefOrNull::node);
        Ok(Toy {
            file: opening.co_child("file", ChildRole::IMAGE, &options.file)?,
            backing: opening.co_slot("backing", ChildRole::COW, backing)?,
            table: Mutex::default(),
            asked: Mutex::default(),
            compat: Mutex::new("0.10".to_owned()),
        })
    }
}

impl Toy {
    /// The place of a cluster, which is allocated if it has none.
    fn place(&self, offset: u64, compressed: bool) -> u64 {
        let mut table = self.table.lock().unwrap();
        let next = table.len() as u64 * CLUSTER;
        table.entry(offset / CLUSTER).or_insert((next, compressed)).0 + offset % CLUSTER
    }

    fn find(&self, offset: u64) -> Option<(u64, bool)> {
        let found = self.table.lock().unwrap().get(&(offset / CLUSTER)).copied();
        found.map(|(place, compressed)| (place + offset % CLUSTER, compressed))
    }
}

/// Requests of these tests are in one cluster.
impl BlockDriver for Toy {
    fn format_name(&self) -> &'static str {
        "toy"
    }
    fn length(&self) -> u64 {
        LENGTH
    }
    fn limits(&self) -> BlockLimits {
        BlockLimits { write_flags: WriteFlags::COMPRESSED, ..BlockLimits::default() }
    }
    fn children(&self) -> Vec<EdgeId> {
        vec![self.file.id(), self.backing.id()]
    }
    fn image(&self) -> Option<&dyn ImageFormat> {
        Some(self)
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.file.debug_event(DebugEvent::L2Load);
        match (self.find(offset), self.backing.get()) {
            (Some((place, _)), _) => self.file.co_preadv(co, place, target, flags),
            (None, Some(backing)) => backing.co_preadv(co, offset, target, flags),
            (None, None) => {
                target.fill_from(0, 0);
                Ok(())
            }
        }
    }
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let compressed = flags.contains(WriteFlags::COMPRESSED);
        self.file.debug_event(DebugEvent::ClusterAlloc);
        let place = self.place(offset, compressed);
        self.file.co_pwritev_growing(co, place, source, WriteFlags::empty())
    }
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.file.co_flush(co)
    }
    fn co_block_status(&self, _: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let bytes = bytes.min(CLUSTER - offset % CLUSTER);
        Ok(match self.find(offset) {
            Some((_, true)) => Extent { compressed: true, ..Extent::data(bytes) },
            Some((place, false)) => Extent::data(bytes).stored_at(Some("file"), place),
            None => Extent::unallocated(bytes),
        })
    }
    fn co_truncate(&self, _: &Co<'_>, _: u64, how: Truncate) -> io::Result<()> {
        self.asked.lock().unwrap().push(how);
        Ok(())
    }
}

#[derive(Deserialize)]
struct AmendOptions {
    compat: String,
}

impl ImageFormat for Toy {
    fn co_amend(&self, co: &Co<'_>, amend: Amend<'_>) -> io::Result<()> {
        let options: AmendOptions = amend
            .options
            .take()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        if options.compat == "2.0" && !amend.force {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        (amend.progress)(0, 2);
        co.yield_now();
        (amend.progress)(2, 2);
        *self.compat.lock().unwrap() = options.compat;
        Ok(())
    }
    fn co_make_empty(&self, co: &Co<'_>) -> io::Result<()> {
        self.file.debug_event(DebugEvent::EmptyImagePrepare);
        self.table.lock().unwrap().clear();
        self.file.co_truncate(co, 0, Truncate::default())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ToyMeasure {
    size: Option<Size>,
}

/// A table of 8 bytes a cluster, and the clusters.
impl Measures for Toy {
    const NAME: &'static str = "toy";
    type Options = ToyMeasure;

    fn co_measure(
        co: &Co<'_>,
        options: ToyMeasure,
        source: Option<&BlockBackend>,
    ) -> Result<Measure, CreateError> {
        let size = options.size.map_or(0, |Size(bytes)| bytes);
        let Some(source) = source else { return Ok(Measure::new(size / CLUSTER * 8, size)) };
        let (length, mut data) = (source.node().unwrap().length(), 0);
        for offset in (0..length).step_by(CLUSTER as usize) {
            let found = source.co_status_above(co, None, offset, CLUSTER);
            data += u64::from(found.map_err(CreateError::of_driver)?.extent.data) * CLUSTER;
        }
        let table = length / CLUSTER * 8;
        Ok(Measure::new(table + data, table + length))
    }
}

fn bench() -> Bench {
    let mut drivers = coblk_block::drivers();
    drivers.add::<Toy>();
    drivers.add_measures::<Toy>();
    let bench = Bench { blockdevs: Arc::new(Blockdevs::new(drivers)), ..Bench::new() };
    for name in ["top", "base"] {
        std::fs::write(bench.dir.path().join(name), "").unwrap();
    }
    bench
}

/// A toy whose file is `name`, and its node.
fn open(bench: &Bench, name: &str, more: &str) -> (Arc<BlockNode>, BlockBackend) {
    let file = bench.dir.path().join(name).to_str().unwrap().to_owned();
    let line = format!("toy,node-name={name},file.driver=file,file.filename={file}{more}");
    let node = bench.open(&line).unwrap();
    (Arc::clone(&node), BlockBackend::new(&bench.ctx, "drive", node))
}

fn write(bench: &Bench, backend: &BlockBackend, at: u64, byte: u8, flags: WriteFlags) {
    let bytes = vec![byte; CLUSTER as usize];
    backend.pwritev(&bench.ctx, at, &IoVector::from(&bytes[..]), flags).unwrap();
}

fn read(bench: &Bench, backend: &BlockBackend, at: u64) -> io::Result<u8> {
    let mut byte = [9];
    backend.preadv(&bench.ctx, at, &mut IoVectorMut::from(&mut byte[..])).map(|()| byte[0])
}

fn toy(node: &BlockNode) -> &Toy {
    let driver: &dyn std::any::Any = node.driver();
    driver.downcast_ref().unwrap()
}

#[test]
fn status_tells_depth_place_compression_and_the_end() {
    let bench = bench();
    let (_, base) = open(&bench, "base", "");
    let (_, top) = open(&bench, "top", ",backing=base");
    write(&bench, &base, 2 * CLUSTER, 2, WriteFlags::empty());
    write(&bench, &top, 0, 1, WriteFlags::COMPRESSED);
    write(&bench, &top, 3 * CLUSTER, 3, WriteFlags::empty());
    let status = |at: u64| {
        let found = bench.ctx.run(|co| top.co_status_above(co, None, at, LENGTH - at)).unwrap();
        let Extent { bytes, data, zero, allocated, compressed, end, stored, .. } = found.extent;
        let place = stored.map(|it| (it.child, it.offset));
        (found.depth, bytes, [data, zero, allocated, compressed, end], place)
    };
    let at = |offset| Some((Some("file"), offset));
    assert_eq!(status(0), (1, CLUSTER, [true, false, true, true, false], None));
    // Nothing is there in either.
    assert_eq!(status(CLUSTER), (2, CLUSTER, [false, true, false, false, false], None));
    let inner = 2 * CLUSTER + 100;
    assert_eq!(status(inner), (2, CLUSTER - 100, [true, false, true, false, false], at(100)));
    let last = 3 * CLUSTER;
    assert_eq!(status(last), (1, CLUSTER, [true, false, true, false, true], at(CLUSTER)));
}

#[test]
fn compressed_writes_reach_a_format_and_are_refused_by_others() {
    let bench = bench();
    let (node, top) = open(&bench, "top", "");
    write(&bench, &top, CLUSTER, 7, WriteFlags::COMPRESSED);
    assert_eq!(toy(&node).find(CLUSTER), Some((0, true)));
    let raw = bench.open("raw,node-name=raw,file=top").unwrap();
    let above = BlockBackend::new(&bench.ctx, "above", raw);
    write(&bench, &above, 2 * CLUSTER, 7, WriteFlags::COMPRESSED);
    assert_eq!(toy(&node).find(2 * CLUSTER), Some((CLUSTER, true)));
    let null = BlockBackend::new(&bench.ctx, "null", bench.open("null-co,node-name=n").unwrap());
    let refused = null.pwritev(&bench.ctx, 0, &IoVector::from(&[1][..]), WriteFlags::COMPRESSED);
    assert_eq!(errno(refused), libc::ENOTSUP);
}

#[test]
fn a_truncate_has_its_preallocation_and_is_exact_and_of_zeroes() {
    let bench = bench();
    let (node, top) = open(&bench, "top", "");
    let how = Truncate { exact: true, preallocation: Preallocation::Metadata, zero: true };
    bench.ctx.run(|co| top.co_truncate_with(co, 2 * LENGTH, how)).unwrap();
    assert_eq!(*toy(&node).asked.lock().unwrap(), [how]);
}

#[test]
fn writes_extend_a_child_and_never_make_it_shorter() {
    let bench = bench();
    let (node, top) = open(&bench, "top", "");
    assert_eq!(toy(&node).file.length(), 0);
    // All at once: each is allocated its place first, and writes in any order.
    for place in [3, 0, 2, 1] {
        let data = vec![place as u8 + 1; CLUSTER as usize];
        top.aio_pwritev(&bench.ctx, place * CLUSTER, data, WriteFlags::empty(), |_, result, _| {
            result.unwrap();
        });
    }
    bench.ctx.run_until(|| top.in_flight() == 0);
    assert_eq!(toy(&node).file.length(), LENGTH);
    for place in 0..4 {
        assert_eq!(read(&bench, &top, place * CLUSTER).unwrap(), place as u8 + 1);
    }
    let file = &toy(&node).file;
    bench.ctx.run(|co| {
        file.co_grow(co, 1, Truncate::default()).unwrap();
        assert_eq!(file.length(), LENGTH, "it is longer already");
        file.co_grow(co, LENGTH + 512, Truncate::default()).unwrap();
        assert_eq!(file.length(), LENGTH + 512);
        let one = IoVector::from(&[1][..]);
        let beyond = file.co_pwritev_growing(co, u64::MAX, &one, WriteFlags::empty());
        assert_eq!(errno(beyond), libc::EFBIG);
    });
    // The second one is asked while the child is shorter than that, and has its turn when it is longer.
    let done = Rc::new(Cell::new(0));
    for length in [LENGTH + 4096, LENGTH + 1024] {
        let (node, done) = (Arc::clone(&node), Rc::clone(&done));
        bench.ctx.spawn("grow", move |co| {
            toy(&node).file.co_grow(co, length, Truncate::default()).unwrap();
            done.set(done.get() + 1);
        });
    }
    bench.ctx.run_until(|| done.get() == 2);
    assert_eq!(file.length(), LENGTH + 4096);
    let path = bench.dir.path().join("base");
    let line = format!(
        "toy,node-name=ro,read-only=on,file.driver=file,file.filename={}",
        path.to_str().unwrap()
    );
    let node = bench.open(&line).unwrap();
    let grown = bench.ctx.run(|co| toy(&node).file.co_grow(co, 1, Truncate::default()));
    assert_eq!(errno(grown), libc::EPERM);
}

#[test]
fn an_image_is_amended() {
    let bench = bench();
    let (node, _) = open(&bench, "top", "");
    let amend = |options: Value, force: bool| {
        let Value::Object(options) = options else { panic!("an object") };
        let told = Mutex::new(Vec::new());
        let progress = |done, all| told.lock().unwrap().push((done, all));
        let mut amend = Amend::new(Deferred::new(options));
        (amend.force, amend.progress) = (force, &progress);
        let amended = bench.ctx.run(|co| node.co_image(co)?.co_amend(co, amend));
        (amended.map_err(|error| error.to_string()), told.into_inner().unwrap())
    };
    assert_eq!(amend(json!({"compat": "1.1"}), false), (Ok(()), vec![(0, 2), (2, 2)]));
    assert_eq!(*toy(&node).compat.lock().unwrap(), "1.1");
    let refused = |text: &str| (Err(text.to_owned()), vec![]);
    assert_eq!(amend(json!({}), false), refused("Parameter 'compat' is missing"));
    let unexpected = json!({"compat": "1.1", "size": 5});
    assert_eq!(amend(unexpected, false), refused("Parameter 'size' is unexpected"));
    assert_eq!(amend(json!({"compat": "2.0"}), false).1, []);
    assert_eq!(amend(json!({"compat": "2.0"}), true).0, Ok(()));
}

#[derive(Default)]
struct Told(Mutex<Vec<(Range<u64>, WriteKind, bool)>>);

impl AfterWrite for Told {
    fn wrote(&self, range: Range<u64>, kind: WriteKind, succeeded: bool) {
        self.0.lock().unwrap().push((range, kind, succeeded));
    }
}

#[test]
fn an_emptied_image_reads_as_its_backing_file_and_users_of_changes_are_told() {
    let bench = bench();
    let (_, base) = open(&bench, "base", "");
    let (node, top) = open(&bench, "top", ",backing=base");
    write(&bench, &base, 0, 2, WriteFlags::empty());
    write(&bench, &top, 0, 1, WriteFlags::empty());
    assert_eq!(read(&bench, &top, 0).unwrap(), 1);
    let told = Arc::<Told>::default();
    let hook = bench.ctx.run(|co| node.co_add_after_write(co, Arc::clone(&told) as _));
    bench.ctx.run(|co| node.co_image(co)?.co_make_empty(co)).unwrap();
    assert_eq!((read(&bench, &top, 0).unwrap(), toy(&node).file.length()), (2, 0));
    assert_eq!(*told.0.lock().unwrap(), [(0..LENGTH, WriteKind::Empty, true)]);
    drop(hook);
}

/// Neither is done to a node that is read-only, nor by a format that has no such operation.
#[test]
fn amend_and_empty_are_refused_where_they_cannot_be() {
    let bench = bench();
    let path = bench.image();
    let line = format!("toy,node-name=ro,read-only=on,file.driver=file,file.filename={path}");
    let node = bench.open(&line).unwrap();
    let amend = || Amend::new(Deferred::default());
    bench.ctx.run(|co| {
        assert_eq!(errno(node.co_image(co).unwrap().co_amend(co, amend())), libc::EPERM);
        assert_eq!(errno(node.co_image(co).unwrap().co_make_empty(co)), libc::EPERM);
        struct None;
        impl ImageFormat for None {}
        assert_eq!(errno(None.co_amend(co, amend())), libc::ENOTSUP);
        assert_eq!(errno(None.co_make_empty(co)), libc::ENOTSUP);
    });
}

#[test]
fn images_are_measured_before_they_are_made() {
    let bench = bench();
    let (_, top) = open(&bench, "top", "");
    write(&bench, &top, CLUSTER, 7, WriteFlags::empty());
    let measure = |options: Value, source: Option<&BlockBackend>| {
        let Value::Object(options) = options else { panic!("an object") };
        let drivers = bench.blockdevs.drivers();
        let measured = bench.ctx.run(|co| drivers.co_measure(co, options, source));
        measured.map(|it| (it.required, it.fully_allocated)).map_err(|error| error.to_string())
    };
    assert_eq!(measure(json!({"driver": "toy", "size": 1 << 20}), None), Ok((2048, 1 << 20)));
    assert_eq!(measure(json!({"driver": "toy"}), Some(&top)), Ok((32 + CLUSTER, 32 + LENGTH)));
    assert_eq!(measure(json!({"driver": "raw", "size": 1000}), None), Ok((1024, 1024)));
    assert_eq!(measure(json!({"driver": "raw"}), Some(&top)), Ok((LENGTH, LENGTH)));
    let refused = |text: &str| Err(text.to_owned());
    assert_eq!(measure(json!({"driver": "raw"}), None), refused("Parameter 'size' is missing"));
    assert_eq!(measure(json!({"size": 1}), None), refused("Parameter 'driver' is missing"));
    let unknown = "Parameter 'driver' does not accept value 'file'; there is raw, toy";
    assert_eq!(measure(json!({"driver": "file"}), None), refused(unknown));
    let unexpected = json!({"driver": "toy", "sise": 1});
    assert_eq!(measure(unexpected, None), refused("Parameter 'sise' is unexpected"));
}

#[test]
fn steps_of_a_format_fail_by_qemus_names() {
    for (event, reads, writes) in [("l2_load", false, true), ("cluster_alloc", true, false)] {
        let bench = bench();
        let path = bench.dir.path().join("top").to_str().unwrap().to_owned();
        let line = format!(
            "toy,node-name=t,file.driver=blkdebug,file.image.driver=file,file.image.filename={path},\
             file.inject-error.0.event={event},file.inject-error.0.once=on"
        );
        let node = bench.open(&line).unwrap();
        let backend = BlockBackend::new(&bench.ctx, "drive", Arc::clone(&node));
        toy(&node).place(0, false);
        bench.ctx.run(|co| toy(&node).file.co_grow(co, LENGTH, Truncate::default())).unwrap();
        assert_eq!(read(&bench, &backend, 0).is_ok(), reads, "{event}");
        let bytes = IoVector::from(&[1; 16][..]);
        let written = backend.pwritev(&bench.ctx, 0, &bytes, WriteFlags::empty());
        assert_eq!(written.is_ok(), writes, "{event}");
    }
}
