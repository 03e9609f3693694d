//! Operations of a format on its whole image.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::{
    Access, AfterWrite, BackingName, BlockBackend, BlockDriver, BlockLimits, BlockNode,
    CheckReport, Child, ChildRole, EdgeId, Filter, Image, ImageFormat, ImageInfo, ImageSnapshot,
    ReadFlags, Repair, SpecificInfo, WriteFlags, WriteKind,
};

use crate::util::disk::{Disk, OnDisk, Op, Verdict};
use crate::util::errno;

const LENGTH: u64 = 1 << 12;

/// A format whose guest sees the bytes of the file as they are. Its snapshots are copies in memory.
struct Format {
    file: Child,
    read_only: bool,
    /// Whether it has no operation of its own.
    defaults: bool,
    calls: Calls,
    /// How many of the next checks end as if a drain had begun.
    interruptions: Arc<AtomicU32>,
    snapshots: Mutex<Vec<(ImageSnapshot, Vec<u8>)>>,
}

type Calls = Arc<Mutex<Vec<String>>>;

impl Format {
    fn called(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }
}

impl BlockDriver for Format {
    fn format_name(&self) -> &'static str {
        "test-format"
    }
    fn length(&self) -> u64 {
        self.file.length()
    }
    fn limits(&self) -> BlockLimits {
        BlockLimits::passing_on()
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn children(&self) -> Vec<EdgeId> {
        vec![self.file.id()]
    }
    fn image(&self) -> Option<&dyn ImageFormat> {
        Some(if self.defaults { &Defaults } else { self })
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.file.co_preadv(co, offset, target, flags)
    }
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.file.co_pwritev(co, offset, source, flags)
    }
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.file.co_flush(co)
    }
}

struct Defaults;

impl ImageFormat for Defaults {}

impl ImageFormat for Format {
    fn info(&self) -> io::Result<ImageInfo> {
        let mut info = ImageInfo::new(self.length());
        info.cluster_size = Some(512);
        info.dirty = true;
        info.backing = Some(BackingName::new("base.img", Some("raw".into())));
        info.specific = Some(SpecificInfo::new("test", serde_json::json!({ "compat": "1.1" })));
        Ok(info)
    }
    /// There is one leak and one corruption.
    fn co_check(&self, co: &Co<'_>, repair: Repair) -> io::Result<CheckReport> {
        self.called(format!("check {repair:?}"));
        self.file.co_read(co, 0, &mut [0; 512])?;
        let left = self.interruptions.load(Ordering::Relaxed);
        if left > 0 {
            self.interruptions.store(left - 1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EINTR));
        }
        let mut report = CheckReport::default();
        report.leaks_fixed = (repair != Repair::None).into();
        report.corruptions_fixed = (repair == Repair::All).into();
        report.leaks = 1 - report.leaks_fixed;
        report.corruptions = 1 - report.corruptions_fixed;
        Ok(report)
    }
    fn co_change_backing(&self, _: &Co<'_>, backing: Option<&BackingName>) -> io::Result<()> {
        self.called(format!("backing {:?}", backing.map(|it| &it.name)));
        Ok(())
    }
    fn co_snapshots(&self, _: &Co<'_>) -> io::Result<Vec<ImageSnapshot>> {
        Ok(self.snapshots.lock().unwrap().iter().map(|it| it.0.clone()).collect())
    }
    fn co_create_snapshot(&self, co: &Co<'_>, name: &str) -> io::Result<String> {
        let mut bytes = vec![0; self.length() as usize];
        self.file.co_read(co, 0, &mut bytes)?;
        let mut snapshots = self.snapshots.lock().unwrap();
        let id = (snapshots.len() + 1).to_string();
        snapshots.push((ImageSnapshot::new(&*id, name, self.length()), bytes));
        Ok(id)
    }
    fn co_delete_snapshot(&self, _: &Co<'_>, id: &str) -> io::Result<()> {
        self.snapshots.lock().unwrap().retain(|it| it.0.id != id);
        Ok(())
    }
    fn co_apply_snapshot(&self, co: &Co<'_>, id: &str) -> io::Result<()> {
        let find = |it: &&(ImageSnapshot, Vec<u8>)| it.0.id == id;
        let bytes = self.snapshots.lock().unwrap().iter().find(find).map(|it| it.1.clone());
        let bytes = bytes.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        self.file.co_write(co, 0, &bytes)?;
        self.file.co_flush(co)
    }
}

struct Scene {
    ctx: AioContext,
    disk: Arc<Disk>,
    node: Arc<BlockNode>,
    calls: Calls,
    interruptions: Arc<AtomicU32>,
}

fn scene_of(read_only: bool, defaults: bool) -> Scene {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(LENGTH, BlockLimits::default());
    let file = BlockNode::new("file", OnDisk(Arc::clone(&disk)));
    let file = Child::new("file", ChildRole::IMAGE, file);
    let calls = Calls::default();
    let (seen, snapshots) = (Arc::clone(&calls), Mutex::default());
    let interruptions = Arc::<AtomicU32>::default();
    let interrupted = Arc::clone(&interruptions);
    let driver =
        Format { file, read_only, defaults, calls: seen, interruptions: interrupted, snapshots };
    Scene { ctx, disk, node: BlockNode::new("image", driver), calls, interruptions }
}

fn scene() -> Scene {
    scene_of(false, false)
}

impl Scene {
    fn run<T>(&self, run: impl FnOnce(&Co<'_>, &Image<'_>) -> T) -> T {
        self.ctx.run(|co| run(co, &self.node.co_image(co).unwrap()))
    }

    /// Why there is no way to the operations.
    #[track_caller]
    fn refusal(&self) -> i32 {
        self.ctx.run(|co| errno(self.node.co_image(co).map(drop)))
    }
}

#[test]
fn operations_that_a_format_leaves_out_are_not_supported() {
    scene_of(false, true).run(|co, image| {
        assert_eq!(errno(image.info()), libc::ENOTSUP);
        for repair in [Repair::None, Repair::Leaks, Repair::All] {
            assert_eq!(errno(image.co_check(co, repair)), libc::ENOTSUP);
        }
        assert_eq!(errno(image.co_change_backing(co, None)), libc::ENOTSUP);
        assert_eq!(errno(image.co_snapshots(co)), libc::ENOTSUP);
        assert_eq!(errno(image.co_create_snapshot(co, "a")), libc::ENOTSUP);
        assert_eq!(errno(image.co_delete_snapshot(co, "1")), libc::ENOTSUP);
        assert_eq!(errno(image.co_apply_snapshot(co, "1")), libc::ENOTSUP);
    });
}

#[test]
fn a_description_and_reports_arrive_as_the_format_made_them() {
    let scene = scene();
    scene.run(|co, image| {
        let info = image.info().unwrap();
        assert_eq!((info.virtual_size, info.cluster_size), (LENGTH, Some(512)));
        assert!(info.dirty && !info.corrupt && !info.encrypted);
        assert_eq!(info.backing, Some(BackingName::new("base.img", Some("raw".into()))));
        let specific = info.specific.unwrap();
        assert_eq!((specific.kind, specific.data["compat"].as_str()), ("test", Some("1.1")));
        for (repair, fixed) in
            [(Repair::None, (0, 0)), (Repair::Leaks, (1, 0)), (Repair::All, (1, 1))]
        {
            let report = image.co_check(co, repair).unwrap();
            assert_eq!((report.leaks_fixed, report.corruptions_fixed), fixed);
            assert_eq!((report.leaks, report.corruptions), (1 - fixed.0, 1 - fixed.1));
        }
        image.co_change_backing(co, Some(&BackingName::new("other", None))).unwrap();
    });
    let calls = ["check None", "check Leaks", "check All", "backing Some(\"other\")"];
    assert_eq!(*scene.calls.lock().unwrap(), calls);
}

#[test]
fn a_read_only_node_is_checked_and_not_changed() {
    let scene = scene_of(true, false);
    scene.run(|co, image| {
        image.info().unwrap();
        assert_eq!(image.co_check(co, Repair::None).unwrap().leaks, 1);
        assert_eq!(image.co_snapshots(co).unwrap(), []);
        assert_eq!(errno(image.co_check(co, Repair::Leaks)), libc::EPERM);
        assert_eq!(errno(image.co_check(co, Repair::All)), libc::EPERM);
        assert_eq!(errno(image.co_change_backing(co, None)), libc::EPERM);
        assert_eq!(errno(image.co_create_snapshot(co, "a")), libc::EPERM);
        assert_eq!(errno(image.co_delete_snapshot(co, "1")), libc::EPERM);
        assert_eq!(errno(image.co_apply_snapshot(co, "1")), libc::EPERM);
    });
    assert_eq!(*scene.calls.lock().unwrap(), ["check None"]);
}

#[test]
fn requests_run_during_a_check_and_a_drain_waits_for_it() {
    let scene = scene();
    let (ctx, disk, node) = (&scene.ctx, &scene.disk, &scene.node);
    let backend = BlockBackend::new(ctx, "drive", Arc::clone(node));
    let of_the_check = Op::Read(0, 512);
    disk.judge(move |op| if op == of_the_check { Verdict::Hold } else { Verdict::Go });
    let (checked, drained) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (image, seen) = (Arc::clone(node), Rc::clone(&checked));
    ctx.spawn("check", move |co| {
        image.co_image(co).unwrap().co_check(co, Repair::None).unwrap();
        seen.set(true);
    });
    ctx.run_until(|| disk.held() == 1);
    ctx.run(|co| {
        backend.co_write(co, 700, &[7; 10]).unwrap();
        let mut back = [0; 10];
        backend.co_read(co, 700, &mut back).unwrap();
        assert_eq!(back, [7; 10]);
    });
    let (image, seen, before) = (Arc::clone(node), Rc::clone(&drained), Rc::clone(&checked));
    ctx.spawn("drain", move |co| {
        let _section = image.co_drain(co);
        assert!(before.get(), "the check comes first");
        seen.set(true);
    });
    while ctx.try_poll() {}
    assert!(!checked.get() && !drained.get());
    assert!(disk.release());
    ctx.run_until(|| drained.get());
}

#[test]
fn a_check_that_ends_for_a_drain_begins_again_after_it() {
    let scene = scene();
    let (ctx, disk, node) = (&scene.ctx, &scene.disk, &scene.node);
    let of_the_check = Op::Read(0, 512);
    disk.judge(move |op| if op == of_the_check { Verdict::Hold } else { Verdict::Go });
    scene.interruptions.store(1, Ordering::Relaxed);
    let (checked, drained) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (image, seen) = (Arc::clone(node), Rc::clone(&checked));
    ctx.spawn("check", move |co| {
        let report = image.co_image(co).unwrap().co_check(co, Repair::None).unwrap();
        assert_eq!((report.leaks, report.corruptions), (1, 1));
        seen.set(true);
    });
    ctx.run_until(|| disk.held() == 1);
    let (image, seen, before) = (Arc::clone(node), Rc::clone(&drained), Rc::clone(&checked));
    let calls = Arc::clone(&scene.calls);
    ctx.spawn("drain", move |co| {
        let section = image.co_drain(co);
        assert!(!before.get(), "the drain comes first");
        assert_eq!(calls.lock().unwrap().len(), 1);
        seen.set(true);
        drop(section);
    });
    while ctx.try_poll() {}
    assert!(!drained.get());
    disk.judge(|_| Verdict::Go);
    assert!(disk.release());
    ctx.run_until(|| checked.get());
    assert!(drained.get());
    assert_eq!(*scene.calls.lock().unwrap(), ["check None", "check None"]);
}

#[test]
fn a_check_that_is_interrupted_again_and_again_fails() {
    let scene = scene();
    scene.interruptions.store(u32::MAX, Ordering::Relaxed);
    scene.run(|co, image| {
        assert_eq!(errno(image.co_check(co, Repair::All)), libc::EBUSY);
    });
    assert_eq!(scene.calls.lock().unwrap().len(), 16);
    drop(scene.node.drain(&scene.ctx));
}

#[test]
fn an_operation_waits_for_the_end_of_a_drain() {
    let scene = scene();
    let section = scene.node.drain(&scene.ctx);
    let (node, checked) = (Arc::clone(&scene.node), Rc::new(Cell::new(false)));
    let seen = Rc::clone(&checked);
    scene.ctx.spawn("check", move |co| {
        node.co_image(co).unwrap().co_check(co, Repair::None).unwrap();
        seen.set(true);
    });
    while scene.ctx.try_poll() {}
    assert!(!checked.get() && scene.calls.lock().unwrap().is_empty());
    drop(section);
    scene.ctx.run_until(|| checked.get());
}

#[test]
fn inactive_and_closed_nodes_refuse() {
    let scene = scene();
    let set_active = |active| scene.ctx.run(|co| scene.node.co_set_active(co, active)).unwrap();
    set_active(false);
    assert_eq!(scene.refusal(), libc::EPERM);
    set_active(true);
    scene.run(|co, image| image.co_check(co, Repair::None).unwrap());
    scene.ctx.run(|co| scene.node.co_close(co)).unwrap();
    assert_eq!(scene.refusal(), libc::ESHUTDOWN);
}

/// Passes everything on.
struct Plain(Child);

impl Filter for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }
    fn child(&self) -> &Child {
        &self.0
    }
}

#[test]
fn protocols_and_filters_have_no_operations() {
    let mut scene = scene();
    let child = Child::new("file", ChildRole::FILTER, Arc::clone(&scene.node));
    scene.node = BlockNode::new("filter", Plain(child));
    assert_eq!(scene.refusal(), libc::ENOTSUP);
    scene.node = BlockNode::new("disk", OnDisk(Disk::new(LENGTH, BlockLimits::default())));
    assert_eq!(scene.refusal(), libc::ENOTSUP);
}

/// Notes what it is told.
#[derive(Default)]
struct Notes(Mutex<Vec<(Range<u64>, WriteKind, bool)>>);

impl AfterWrite for Notes {
    fn wrote(&self, range: Range<u64>, kind: WriteKind, succeeded: bool) {
        self.0.lock().unwrap().push((range, kind, succeeded));
    }
}

#[test]
fn an_applied_snapshot_is_told_to_users_of_changes() {
    let scene = scene();
    let notes = Arc::new(Notes::default());
    let add = |co: &Co<'_>| scene.node.co_add_after_write(co, Arc::clone(&notes) as _);
    let _hook = scene.ctx.run(add).unwrap();
    scene.disk.fill(1);
    scene.run(|co, image| {
        let id = image.co_create_snapshot(co, "first").unwrap();
        assert_eq!(image.co_snapshots(co).unwrap(), [ImageSnapshot::new(&*id, "first", LENGTH)]);
        scene.disk.fill(2);
        image.co_apply_snapshot(co, &id).unwrap();
        image.co_delete_snapshot(co, &id).unwrap();
        assert_eq!(errno(image.co_apply_snapshot(co, &id)), libc::ENOENT);
    });
    assert_eq!(scene.disk.durable(), [1; LENGTH as usize]);
    let told = [(0..LENGTH, WriteKind::Apply, true), (0..LENGTH, WriteKind::Apply, false)];
    assert_eq!(*notes.0.lock().unwrap(), told);
    assert_eq!(scene.node.describe().highest_write, 0, "nothing was written through the node");
}

/// What the file has of it by then is told as after a failure.
#[test]
fn an_applied_snapshot_whose_file_panics_is_told_to_users_of_changes() {
    let scene = scene();
    let notes = Arc::new(Notes::default());
    let add = |co: &Co<'_>| scene.node.co_add_after_write(co, Arc::clone(&notes) as _);
    let _hook = scene.ctx.run(add).unwrap();
    scene.run(|co, image| {
        let id = image.co_create_snapshot(co, "first").unwrap();
        scene.disk.judge(|_| Verdict::Panic);
        assert!(co.catch_unwind(|| image.co_apply_snapshot(co, &id)).is_err());
    });
    assert_eq!(*notes.0.lock().unwrap(), [(0..LENGTH, WriteKind::Apply, false)]);
}

#[test]
fn a_snapshot_is_applied_after_tracked_requests() {
    let scene = scene();
    let id = scene.run(|co, image| image.co_create_snapshot(co, "first").unwrap());
    scene.disk.take_ops();
    let tracking = scene.node.track(&scene.node.drain(&scene.ctx));
    let applied = Rc::new(Cell::new(false));
    scene.ctx.run(|co| {
        let lock = tracking.co_lock_range(co, 0..1, Access::Read);
        let (node, seen) = (Arc::clone(&scene.node), Rc::clone(&applied));
        co.context().spawn("apply", move |co| {
            node.co_image(co).unwrap().co_apply_snapshot(co, &id).unwrap();
            seen.set(true);
        });
        co.yield_now();
        assert!(!applied.get() && scene.disk.take_ops().is_empty());
        drop(lock);
    });
    scene.ctx.run_until(|| applied.get());
}
