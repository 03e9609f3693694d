//! Flags of requests: which of them reach a driver, and what becomes of the others.

use std::io;
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::drivers::{File, Null, Raw};
use coblk_block::{
    BlockBackend, BlockDriver, BlockLimits, BlockNode, Child, ChildRole, EdgeId, Preallocation,
    ReadFlags, Truncate, WriteFlags,
};

use crate::util::errno;

const LENGTH: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Read(ReadFlags),
    Write(WriteFlags),
    Flush,
    Truncate(Truncate),
}

/// Says what it was asked for.
struct Recorder {
    limits: BlockLimits,
    backing: Option<Child>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Recorder {
    fn note(&self, asked: Asked) -> io::Result<()> {
        self.asked.lock().unwrap().push(asked);
        Ok(())
    }
}

impl BlockDriver for Recorder {
    fn format_name(&self) -> &'static str {
        "recorder"
    }
    fn length(&self) -> u64 {
        LENGTH
    }
    fn limits(&self) -> BlockLimits {
        self.limits
    }
    fn children(&self) -> Vec<EdgeId> {
        self.backing.iter().map(Child::id).collect()
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.note(Asked::Read(flags))
    }
    fn co_pwritev(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.note(Asked::Write(flags))
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        self.note(Asked::Flush)
    }
    fn co_truncate(&self, _: &Co<'_>, _: u64, how: Truncate) -> io::Result<()> {
        self.note(Asked::Truncate(how))
    }
}

/// A backend on a recorder that takes some flags, with a `raw` between, and perhaps a backing file of
/// so many bytes below.
struct Scene {
    ctx: AioContext,
    backend: BlockBackend,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scene {
    fn new(read_flags: ReadFlags, write_flags: WriteFlags, backing: Option<u64>) -> Scene {
        let ctx = AioContext::for_test().unwrap();
        let asked = Arc::default();
        let backing = backing.map(|length| {
            Child::new("backing", ChildRole::COW, BlockNode::new("backing", Null::new(length)))
        });
        let limits = BlockLimits { read_flags, write_flags, ..BlockLimits::default() };
        let recorder = Recorder { limits, backing, asked: Arc::clone(&asked) };
        let node = BlockNode::new("raw", Raw::new(BlockNode::new("recorder", recorder)));
        Scene { backend: BlockBackend::new(&ctx, "drive", node), ctx, asked }
    }

    fn read(&self, flags: ReadFlags) -> io::Result<Vec<Asked>> {
        let mut target = [0; 512];
        let mut target = IoVectorMut::from(&mut target[..]);
        self.ctx.run(|co| self.backend.co_preadv_with(co, 0, &mut target, flags))?;
        Ok(std::mem::take(&mut self.asked.lock().unwrap()))
    }

    fn write(&self, flags: WriteFlags) -> io::Result<Vec<Asked>> {
        let source = IoVector::from(&[1; 512][..]);
        self.ctx.run(|co| self.backend.co_pwritev(co, 0, &source, flags))?;
        Ok(std::mem::take(&mut self.asked.lock().unwrap()))
    }

    fn truncate(&self, length: u64, how: Truncate) -> Vec<Asked> {
        self.ctx.run(|co| self.backend.co_truncate_with(co, length, how)).unwrap();
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

#[test]
fn a_driver_gets_the_flags_that_it_takes() {
    let scene = Scene::new(ReadFlags::all(), WriteFlags::all(), Some(LENGTH));
    for flags in ReadFlags::all().iter().chain([ReadFlags::all(), ReadFlags::empty()]) {
        assert_eq!(scene.read(flags).unwrap(), [Asked::Read(flags)]);
    }
    for flags in WriteFlags::all().iter().chain([WriteFlags::all(), WriteFlags::empty()]) {
        assert_eq!(scene.write(flags).unwrap(), [Asked::Write(flags)]);
    }
}

#[test]
fn flags_that_change_nothing_are_dropped() {
    let scene = Scene::new(ReadFlags::empty(), WriteFlags::empty(), None);
    let copied = ReadFlags::COPY_ON_READ | ReadFlags::PREFETCH;
    assert_eq!(scene.read(copied).unwrap(), [Asked::Read(ReadFlags::empty())]);
    let plain = Asked::Write(WriteFlags::empty());
    assert_eq!(scene.write(WriteFlags::UNCHANGED).unwrap(), [plain]);
    // Durable writes are flushed after, whatever else they ask for.
    let durable = WriteFlags::UNCHANGED | WriteFlags::FUA;
    assert_eq!(scene.write(durable).unwrap(), [plain, Asked::Flush]);
}

#[test]
fn flags_that_cannot_be_done_are_refused() {
    let scene = Scene::new(ReadFlags::PREFETCH, WriteFlags::FUA, Some(LENGTH));
    assert_eq!(errno(scene.read(ReadFlags::COPY_ON_READ)), libc::ENOTSUP);
    assert_eq!(errno(scene.read(ReadFlags::SERIALISING)), libc::ENOTSUP);
    assert_eq!(errno(scene.write(WriteFlags::COMPRESSED | WriteFlags::FUA)), libc::ENOTSUP);
    assert_eq!(errno(scene.write(WriteFlags::SERIALISING)), libc::ENOTSUP);
    assert!(scene.asked.lock().unwrap().is_empty());
}

#[test]
fn what_a_backing_file_has_beyond_the_end_stays_out_of_sight() {
    let how = Truncate { exact: true, preallocation: Preallocation::Falloc, zero: false };
    let shorter = Scene::new(ReadFlags::empty(), WriteFlags::empty(), Some(LENGTH));
    assert_eq!(shorter.truncate(2 * LENGTH, how), [Asked::Truncate(how)]);
    let longer = Scene::new(ReadFlags::empty(), WriteFlags::empty(), Some(LENGTH + 1));
    let zeroed = Truncate { zero: true, ..how };
    assert_eq!(longer.truncate(2 * LENGTH, how), [Asked::Truncate(zeroed)]);
    assert_eq!(longer.truncate(LENGTH, how), [Asked::Truncate(how)]);
}

#[test]
fn a_file_allocates_space_for_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    // It ends within a sector.
    std::fs::write(&path, [7; 700]).unwrap();
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("file", File::options().open(&path).unwrap());
    let backend = BlockBackend::new(&ctx, "drive", node);
    let allocated = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&path).unwrap().blocks() * 512
    };
    let resize = |length, preallocation| {
        let how = Truncate { preallocation, ..Truncate::default() };
        ctx.run(|co| backend.co_truncate_with(co, length, how))
    };
    for (length, how) in [(3 << 20, Preallocation::Falloc), (7 << 20, Preallocation::Full)] {
        resize(length, how).unwrap();
        assert_eq!(backend.length().unwrap(), length);
        assert!(allocated() >= length, "{how:?}: {} bytes", allocated());
    }
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes[..700] == [7; 700] && bytes[700..].iter().all(|byte| *byte == 0));
    assert_eq!(bytes.len(), 7 << 20);
    // Neither is done half.
    assert_eq!(errno(resize(8 << 20, Preallocation::Metadata)), libc::ENOTSUP);
    assert_eq!(errno(resize(1 << 20, Preallocation::Full)), libc::ENOTSUP);
    assert_eq!((backend.length().unwrap(), allocated() >= 7 << 20), (7 << 20, true));
    // As long as it is: there is nothing to allocate.
    resize(7 << 20, Preallocation::Full).unwrap();
}
