//! Locks on ranges of a node, against requests and each other.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, Co, CoWaker, IoVector, IoVectorMut};
use coblk_block::{
    Access, AfterWrite, BlockBackend, BlockLimits, BlockNode, ReadFlags, Tracking, WriteFlags,
    WriteKind, ZeroFlags,
};

use crate::util;
use crate::util::disk::{Disk, OnDisk, Op, Verdict};
use crate::util::errno;

const LENGTH: u64 = 1 << 16;

struct Scene {
    ctx: AioContext,
    disk: Arc<Disk>,
    backend: Rc<BlockBackend>,
    tracking: Option<Rc<Tracking>>,
    done: Rc<RefCell<Vec<&'static str>>>,
    holder: Rc<RefCell<Option<CoWaker>>>,
}

impl Scene {
    fn new(request_alignment: u32) -> Scene {
        Scene::with_limits(BlockLimits { request_alignment, ..BlockLimits::default() })
    }

    fn with_limits(limits: BlockLimits) -> Scene {
        let ctx = AioContext::for_test().unwrap();
        let disk = Disk::new(LENGTH, limits);
        let node = BlockNode::new("disk", OnDisk(Arc::clone(&disk)));
        let backend = Rc::new(BlockBackend::new(&ctx, "drive", Arc::clone(&node)));
        let tracking = Some(Rc::new(node.track(&node.drain(&ctx))));
        Scene { ctx, disk, backend, tracking, done: Rc::default(), holder: Rc::default() }
    }

    /// Starts a request, and polls until all wait or are done.
    fn start(
        &self,
        name: &'static str,
        request: impl FnOnce(&BlockBackend, &Co<'_>) -> io::Result<()> + 'static,
    ) {
        let (backend, done) = (Rc::clone(&self.backend), Rc::clone(&self.done));
        self.ctx.spawn(name, move |co| {
            request(&backend, co).unwrap();
            done.borrow_mut().push(name);
        });
        self.settle();
    }

    fn read(&self, name: &'static str, offset: u64, flags: ReadFlags) {
        self.start(name, move |backend, co| {
            let mut target = [0; 512];
            backend.co_preadv_with(co, offset, &mut IoVectorMut::from(&mut target[..]), flags)
        });
    }

    fn write(&self, name: &'static str, offset: u64, flags: WriteFlags) {
        self.start(name, move |backend, co| {
            backend.co_pwritev(co, offset, &IoVector::from(&[1; 512][..]), flags)
        });
    }

    /// One request of each kind, at `offset`.
    fn start_all(&self, offset: u64) {
        self.read("read", offset, ReadFlags::empty());
        self.write("write", offset, WriteFlags::empty());
        self.start("zeroes", move |backend, co| {
            backend.co_pwrite_zeroes(co, offset, 512, ZeroFlags::empty())
        });
        self.start("discard", move |backend, co| backend.co_pdiscard(co, offset, 512));
    }

    /// Locks 4096..8192 until [`let_go`](Self::let_go).
    fn hold(&self, access: Access) {
        let tracking = Rc::clone(self.tracking.as_ref().unwrap());
        let (done, holder) = (Rc::clone(&self.done), Rc::clone(&self.holder));
        self.ctx.spawn("lock", move |co| {
            let _lock = tracking.co_lock_range(co, 4096..8192, access);
            done.borrow_mut().push("locked");
            co.suspend_with(|waker| *holder.borrow_mut() = Some(waker));
        });
        self.settle();
    }

    fn let_go(&self) {
        self.holder.borrow_mut().take().expect("a lock").wake();
        self.settle();
    }

    fn settle(&self) {
        while self.ctx.try_poll() {}
    }

    fn done(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.done.borrow_mut())
    }
}

#[test]
fn a_lock_keeps_out_what_its_kind_says() {
    const ALL: [&str; 4] = ["read", "write", "zeroes", "discard"];
    for (access, pass) in
        [(Access::Read, 4), (Access::Write, 4), (Access::ExcludeWrites, 1), (Access::ExcludeAll, 0)]
    {
        // Of bytes, and of blocks that requests are padded to.
        for (alignment, inside) in [(1, 4096 - 511), (1, 8191), (1024, 4096), (1024, 7168)] {
            let scene = Scene::new(alignment);
            scene.hold(access);
            assert_eq!(scene.done(), ["locked"]);
            scene.start_all(0);
            scene.start_all(8192);
            assert_eq!(scene.done(), [ALL, ALL].concat(), "{access:?}: elsewhere");
            scene.start_all(inside);
            // Of the later ones each is by itself: they keep no other out.
            let mut passed = scene.done();
            if alignment > 1 {
                // No whole block: nothing to discard.
                passed.retain(|name| *name != "discard");
                // A write that is padded excludes other writes by itself.
                let pass = if access == Access::Write { 1 } else { pass };
                assert_eq!(passed, &ALL[..3.min(pass)], "{access:?} at {inside}");
            } else {
                assert_eq!(passed, &ALL[..pass], "{access:?} at {inside}");
            }
            scene.let_go();
            passed.extend(scene.done().into_iter().filter(|it| alignment == 1 || *it != "discard"));
            passed.sort_unstable();
            let mut all = ALL[..if alignment == 1 { 4 } else { 3 }].to_vec();
            all.sort_unstable();
            assert_eq!(passed, all);
        }
    }
}

#[test]
fn a_lock_waits_for_earlier_requests_and_later_ones_for_it() {
    let scene = Scene::new(1);
    scene.disk.judge(|op| match op {
        Op::Read(4096, _) => Verdict::Hold,
        _ => Verdict::Go,
    });
    scene.read("first", 4096, ReadFlags::empty());
    scene.hold(Access::ExcludeAll);
    scene.write("later", 5000, WriteFlags::empty());
    assert!(scene.done().is_empty() && scene.holder.borrow().is_none());
    assert!(scene.disk.release());
    scene.settle();
    assert_eq!(scene.done(), ["first", "locked"]);
    scene.let_go();
    assert_eq!(scene.done(), ["later"]);
}

#[test]
fn a_serialising_request_is_alone_in_its_range() {
    let scene = Scene::new(1);
    scene.disk.judge(|_| Verdict::Hold);
    scene.read("read", 0, ReadFlags::SERIALISING);
    scene.read("after", 511, ReadFlags::empty());
    scene.write("write", 2000, WriteFlags::SERIALISING);
    scene.write("over it", 1600, WriteFlags::empty());
    assert_eq!(scene.disk.held(), 2);
    while scene.disk.release() {
        scene.settle();
    }
    assert_eq!(scene.done(), ["read", "write", "after", "over it"]);
}

/// Through its lock a holder changes the range in every way while requests to it wait, and the lock keeps
/// them out until it goes.
#[test]
fn a_holder_reads_and_writes_under_its_own_lock() {
    for alignment in [1, 512] {
        let scene = Scene::new(alignment);
        let (tracking, done) =
            (Rc::clone(scene.tracking.as_ref().unwrap()), Rc::clone(&scene.done));
        let holder = Rc::clone(&scene.holder);
        scene.ctx.spawn("holder", move |co| {
            let lock = tracking.co_lock_range(co, 4096..8192, Access::ExcludeAll);
            co.suspend_with(|waker| *holder.borrow_mut() = Some(waker));
            let source = [7; 1000];
            // Not whole blocks, as padding reads and writes what lies around.
            lock.co_pwritev(co, 4200, &IoVector::from(&source[..]), WriteFlags::empty()).unwrap();
            lock.co_pwrite_zeroes(co, 5000, 100, ZeroFlags::empty()).unwrap();
            lock.co_pdiscard(co, 7168, 1024).unwrap();
            let mut target = [1; 4096];
            let target_vector = &mut IoVectorMut::from(&mut target[..]);
            lock.co_preadv(co, 4096, target_vector, ReadFlags::SERIALISING).unwrap();
            assert_eq!((target[103], target[104], target[903], target[904]), (0, 7, 7, 0));
            assert_eq!((target[3071], target[3072]), (0, util::disk::DISCARDED));
            done.borrow_mut().push("holder");
        });
        scene.settle();
        scene.read("read", 4096, ReadFlags::empty());
        scene.write("write", 8191, WriteFlags::empty());
        assert!(scene.done().is_empty());
        scene.let_go();
        assert_eq!(scene.done(), ["holder", "read", "write"]);
    }
}

#[test]
fn under_a_lock_a_request_does_what_the_lock_covers() {
    let scene = Scene::new(512);
    let tracking = Rc::clone(scene.tracking.as_ref().unwrap());
    scene.start("holder", move |_, co| {
        let write = |range: std::ops::Range<u64>, access, offset, bytes| {
            let lock = tracking.co_lock_range(co, range, access);
            let source = vec![1; bytes];
            let source = IoVector::from(&source[..]);
            match lock.co_pwritev(co, offset, &source, WriteFlags::empty()) {
                Ok(()) => 0,
                refused => errno(refused),
            }
        };
        let exclude = Access::ExcludeWrites;
        assert_eq!(write(1024..2048, exclude, 1024, 1024), 0);
        assert_eq!(write(1024..2048, exclude, 1024, 1025), libc::EINVAL);
        assert_eq!(write(1024..2048, exclude, 1023, 100), libc::EINVAL);
        // Its last block reaches beyond the lock.
        assert_eq!(write(1024..2040, exclude, 1024, 1000), libc::EINVAL);
        // Blocks that are read, changed and written need other writers kept out.
        assert_eq!(write(1024..2048, Access::Write, 1024, 512), 0);
        assert_eq!(write(1024..2048, Access::Write, 1024, 500), libc::EINVAL);
        assert_eq!(write(1024..2048, Access::Read, 1024, 512), libc::EINVAL);
        assert_eq!(write(0..u64::MAX, exclude, LENGTH, 1), libc::EIO);
        Ok(())
    });
    assert_eq!(scene.done(), ["holder"]);
}

/// A drain waits for what is done under a lock, which passes the closed gate: requests that the drain waits
/// for may wait for the lock.
#[test]
fn a_holder_goes_on_while_its_node_is_drained() {
    let scene = Scene::new(1);
    let node = scene.backend.node().unwrap();
    let (tracking, done) = (Rc::clone(scene.tracking.as_ref().unwrap()), Rc::clone(&scene.done));
    let holder = Rc::clone(&scene.holder);
    scene.disk.judge(|_| Verdict::Hold);
    scene.ctx.spawn("holder", move |co| {
        let lock = tracking.co_lock_range(co, 0..512, Access::ExcludeAll);
        co.suspend_with(|waker| *holder.borrow_mut() = Some(waker));
        lock.co_pwritev(co, 0, &IoVector::from(&[1; 512][..]), WriteFlags::empty()).unwrap();
        done.borrow_mut().push("holder");
    });
    scene.settle();
    scene.write("write", 0, WriteFlags::empty());
    let done = Rc::clone(&scene.done);
    scene.ctx.spawn("drain", move |co| {
        let _drained = node.co_drain(co);
        done.borrow_mut().push("drained");
    });
    scene.settle();
    scene.let_go();
    assert_eq!((scene.disk.held(), scene.done().len()), (1, 0));
    assert!(scene.disk.release());
    scene.settle();
    assert!(scene.disk.release());
    scene.settle();
    assert_eq!(scene.done(), ["holder", "write", "drained"]);
}

/// Zeroes have one lock on all of their range: another user of it finds all of them there, or none, and
/// users of changes have been told.
#[test]
fn a_lock_after_zeroes_finds_them_complete_and_told() {
    struct Told(std::sync::Mutex<Vec<WriteKind>>);
    impl AfterWrite for Told {
        fn wrote(&self, _: std::ops::Range<u64>, kind: WriteKind, _: bool) {
            self.0.lock().unwrap().push(kind);
        }
    }
    let limits = BlockLimits { pwrite_zeroes_alignment: 4096, ..BlockLimits::default() };
    let scene = Scene::with_limits(limits);
    let node = scene.backend.node().unwrap();
    let told = Arc::new(Told(std::sync::Mutex::default()));
    let hook = Arc::clone(&told) as _;
    let _hook = scene.ctx.run(|co| node.co_add_after_write(co, hook)).unwrap();
    scene.disk.fill(1);
    scene.disk.judge(|_| Verdict::Hold);
    // The driver zeroes 4096..8192; what is around that is written.
    scene.start("zeroes", |backend, co| {
        backend.co_pwrite_zeroes(co, 4000, 4300, ZeroFlags::empty())
    });
    let (tracking, done) = (Rc::clone(scene.tracking.as_ref().unwrap()), Rc::clone(&scene.done));
    let (disk, seen) = (Arc::clone(&scene.disk), Arc::clone(&told));
    scene.ctx.spawn("lock", move |co| {
        let _lock = tracking.co_lock_range(co, 4096..8192, Access::ExcludeAll);
        assert_eq!(*seen.0.lock().unwrap(), [WriteKind::Zeroes]);
        assert!(disk.data()[4000..8300].iter().all(|byte| *byte == 0));
        done.borrow_mut().push("locked");
    });
    scene.settle();
    for _ in 0..3 {
        assert_eq!(scene.done(), [""; 0]);
        assert!(scene.disk.release());
        scene.settle();
    }
    assert_eq!(scene.done(), ["zeroes", "locked"]);
}

#[test]
fn without_tracking_requests_cannot_serialise_and_lock_nothing() {
    let mut scene = Scene::new(1);
    scene.hold(Access::ExcludeAll);
    let node = scene.backend.node().unwrap();
    let second = node.track(&node.drain(&scene.ctx));
    drop(scene.tracking.take());
    scene.write("held", 4096, WriteFlags::empty());
    assert_eq!(scene.done(), ["locked"]);
    // The lock's coroutine has one more.
    scene.let_go();
    assert_eq!(scene.done(), ["held"]);
    drop(second);
    let mut target = [0; 512];
    let mut target = IoVectorMut::from(&mut target[..]);
    let alone = ReadFlags::SERIALISING;
    let read = scene.ctx.run(|co| scene.backend.co_preadv_with(co, 0, &mut target, alone));
    assert_eq!(errno(read), libc::ENOTSUP);
}
