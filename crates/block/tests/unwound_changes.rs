//! Changes whose driver panics, or whose coroutine is unwound, when a part of them is made: what was changed is
//! flushed, marked in bitmaps, and told to hooks.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::{
    AfterWrite, BlockBackend, BlockDriver, BlockLimits, BlockNode, DirtyBitmap, ImageFormat,
    ImageInfo, NewBitmap, ReadFlags, WriteFlags, WriteKind, ZeroFlags,
};

use crate::util::disk::{Disk, OnDisk, Op, Verdict};

const PLAIN: WriteFlags = WriteFlags::empty();
const LENGTH: u64 = 64 << 10;
const GRANULE: u64 = 512;

/// A change of several requests to the driver.
struct Change {
    make: fn(&Co<'_>, &BlockBackend) -> io::Result<()>,
    alignment: u32,
    told: (Range<u64>, WriteKind),
    /// The bytes that bitmaps have afterwards, in whole granules.
    marked: Range<u64>,
}

fn write(co: &Co<'_>, backend: &BlockBackend) -> io::Result<()> {
    backend.co_pwritev(co, 100, &IoVector::from(&[7; 4000][..]), PLAIN)
}

fn zero(co: &Co<'_>, backend: &BlockBackend) -> io::Result<()> {
    backend.co_pwrite_zeroes(co, 100, 4000, ZeroFlags::empty())
}

fn discard(co: &Co<'_>, backend: &BlockBackend) -> io::Result<()> {
    backend.co_pdiscard(co, 512, 4096)
}

/// The last is of one request, of which the driver may have done anything.
fn grow(co: &Co<'_>, backend: &BlockBackend) -> io::Result<()> {
    backend.co_truncate(co, LENGTH + 512)
}

fn changes() -> [Change; 6] {
    let change = |make, alignment, told, marked| Change { make, alignment, told, marked };
    [
        change(write as _, 1, (100..4100, WriteKind::Write), 0..4608),
        change(write, 512, (100..4100, WriteKind::Write), 0..4608),
        change(zero, 1, (100..4100, WriteKind::Zeroes), 0..4608),
        change(zero, 512, (100..4100, WriteKind::Zeroes), 0..4608),
        change(discard, 512, (512..4608, WriteKind::Discard), 512..4608),
        change(grow, 1, (LENGTH..LENGTH + 512, WriteKind::Truncate), 0..0),
    ]
}

/// Notes what it is told; panics afterwards, if it is to.
#[derive(Default)]
struct Notes {
    told: Mutex<Vec<(Range<u64>, WriteKind, bool)>>,
    panics: bool,
}

impl AfterWrite for Notes {
    fn wrote(&self, range: Range<u64>, kind: WriteKind, succeeded: bool) {
        self.told.lock().unwrap().push((range, kind, succeeded));
        assert!(!self.panics, "a hook panics");
    }
}

struct Scene {
    ctx: AioContext,
    disk: Arc<Disk>,
    node: Arc<BlockNode>,
    bitmap: Arc<DirtyBitmap>,
}

/// Of a node that is flushed, on a disk of ones.
fn scene(alignment: u32) -> Scene {
    let limits = BlockLimits {
        request_alignment: alignment,
        max_transfer: 1024,
        max_pwrite_zeroes: 1024,
        max_pdiscard: 1024,
        ..BlockLimits::default()
    };
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(LENGTH, limits);
    disk.fill(1);
    let node = BlockNode::new("disk", OnDisk(Arc::clone(&disk)));
    node.set_discard_enabled(true);
    let new = NewBitmap::new("b".to_owned(), GRANULE);
    let bitmap = ctx.run(|co| node.co_add_bitmap(co, new)).unwrap();
    let scene = Scene { ctx, disk, node, bitmap };
    scene.flush();
    scene
}

impl Scene {
    /// In a context of its own.
    fn flush(&self) {
        let ctx = AioContext::for_test().unwrap();
        let backend = BlockBackend::new(&ctx, "flusher", Arc::clone(&self.node));
        backend.flush(&ctx).unwrap();
    }

    fn backend(&self) -> BlockBackend {
        BlockBackend::new(&self.ctx, "drive", Arc::clone(&self.node))
    }

    /// The second request to the disk, or the only one of a change of length, has this verdict.
    fn judge_second(&self, verdict: Verdict) {
        let mut requests = 0;
        self.disk.judge(move |op| {
            requests += 1;
            let is_meant = requests == 2 || matches!(op, Op::Truncate(_));
            if is_meant { verdict } else { Verdict::Go }
        });
    }

    #[track_caller]
    fn check(&self, change: &Change) {
        self.disk.judge(|_| Verdict::Go);
        self.disk.take_ops();
        self.flush();
        assert_eq!(self.disk.take_ops(), [Op::Flush], "{:?}", change.told);
        assert_eq!(self.disk.durable(), self.disk.data(), "{:?}", change.told);
        let mut marked = self.bitmap.bits().dirty_ranges(0..LENGTH);
        let wanted = Some(change.marked.clone()).filter(|range| !range.is_empty());
        assert_eq!((marked.next(), marked.next()), (wanted, None), "{:?}", change.told);
    }
}

#[test]
fn c79_what_is_changed_when_a_driver_panics_is_flushed_and_marked() {
    for change in changes() {
        let scene = scene(change.alignment);
        let backend = scene.backend();
        scene.judge_second(Verdict::Panic);
        let made = scene.ctx.run(|co| co.catch_unwind(|| (change.make)(co, &backend)));
        assert!(made.is_err(), "{:?}", change.told);
        scene.check(&change);
    }
}

#[test]
fn c79_what_is_changed_when_a_context_ends_is_flushed_and_marked() {
    for change in changes() {
        let scene = scene(change.alignment);
        scene.judge_second(Verdict::Hold);
        let other = AioContext::for_test().unwrap();
        let backend = BlockBackend::new(&other, "other", Arc::clone(&scene.node));
        let make = change.make;
        other.spawn("change", move |co| {
            let _ = make(co, &backend);
            unreachable!("it is unwound");
        });
        other.run_until(|| scene.disk.held() == 1);
        drop(other);
        scene.check(&change);
    }
}

/// A hook that panics in turn keeps neither flushes nor bitmaps from what they need, and ends no process.
#[test]
fn hooks_are_told_once_of_a_change_whose_driver_panics() {
    let twice = [false, true].map(|panics| changes().map(|change| (change, panics)));
    for (change, panics) in twice.into_iter().flatten() {
        let scene = scene(change.alignment);
        let backend = scene.backend();
        let notes = Arc::new(Notes { panics, ..Notes::default() });
        let add = |co: &Co<'_>| scene.node.co_add_after_write(co, Arc::clone(&notes) as _);
        let _hook = scene.ctx.run(add).unwrap();
        scene.judge_second(Verdict::Panic);
        let made = scene.ctx.run(|co| co.catch_unwind(|| (change.make)(co, &backend)));
        assert!(made.is_err(), "{:?}", change.told);
        let (range, kind) = change.told.clone();
        assert_eq!(*notes.told.lock().unwrap(), [(range, kind, false)]);
        scene.check(&change);
    }
}

/// One that panics when the driver has returned is not told once more.
#[test]
fn a_hook_that_panics_is_told_once() {
    let scene = scene(1);
    let backend = scene.backend();
    let notes = Arc::new(Notes { panics: true, ..Notes::default() });
    let add = |co: &Co<'_>| scene.node.co_add_after_write(co, Arc::clone(&notes) as _);
    let _hook = scene.ctx.run(add).unwrap();
    assert!(scene.ctx.run(|co| co.catch_unwind(|| write(co, &backend))).is_err());
    assert_eq!(*notes.told.lock().unwrap(), [(100..4100, WriteKind::Write, true)]);
}

/// An image that keeps bitmaps, in theory: what is to be stored waits for ever, or panics.
struct Keeper {
    panics: bool,
}

impl ImageFormat for Keeper {
    fn info(&self) -> io::Result<ImageInfo> {
        Ok(ImageInfo::new(LENGTH))
    }

    fn check_new_bitmap(&self, _: &str, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn co_note_bitmaps(&self, co: &Co<'_>) -> io::Result<()> {
        assert!(!self.panics, "the image panics");
        co.suspend_for("nothing", std::mem::forget);
        Ok(())
    }
}

impl BlockDriver for Keeper {
    fn format_name(&self) -> &'static str {
        "keeper"
    }

    fn length(&self) -> u64 {
        LENGTH
    }

    fn image(&self) -> Option<&dyn ImageFormat> {
        Some(self)
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        Ok(())
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A change of bitmaps that does not come to its end has changed none.
#[test]
fn bitmaps_are_as_before_when_a_change_of_them_is_unwound() {
    for panics in [false, true] {
        let ctx = AioContext::for_test().unwrap();
        let node = BlockNode::new("image", Keeper { panics });
        // It is stored at first when it is persistent.
        let old = ctx.run(|co| node.co_add_bitmap(co, NewBitmap::new("old".to_owned(), GRANULE)));
        let old = old.unwrap();
        old.set_persistent(true);
        for adds in [true, false] {
            let (node, old) = (Arc::clone(&node), Arc::clone(&old));
            ctx.spawn("change", move |co| {
                let changed = co.catch_unwind(|| {
                    if adds {
                        let mut new = NewBitmap::new("new".to_owned(), GRANULE);
                        new.is_persistent = true;
                        node.co_add_bitmap(co, new).map(drop)
                    } else {
                        node.co_record_bitmap(co, &old, false)
                    }
                });
                assert!(changed.is_err(), "it has come to its end");
            });
        }
        while ctx.try_poll() {}
        let is_under_way = !panics;
        assert_eq!(node.bitmaps().find("new").is_ok(), is_under_way);
        assert_eq!(old.is_recording(), !is_under_way);
        drop(ctx);
        assert!(node.bitmaps().find("new").is_err(), "a bitmap that was not added");
        assert!(old.is_recording(), "a bitmap that was not disabled");
    }
}
