//! Nodes remember how long they are, and whether they are read-only, until that may be another.

mod util;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::{AioContext, Co, IoThread, IoVector, IoVectorMut};
use coblk_block::drivers::Raw;
use coblk_block::{
    BackendOptions, BlockBackend, BlockDriver, BlockNode, ReadFlags, Truncate, WriteFlags,
};

/// Counts how often it is asked for its length, and whether it is read-only.
struct Counts {
    length: AtomicU64,
    asked: Arc<AtomicUsize>,
}

impl BlockDriver for Counts {
    fn format_name(&self) -> &'static str {
        "counts"
    }
    fn length(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.length.load(Ordering::SeqCst)
    }
    fn is_read_only(&self) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        false
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        target.fill_from(0, 0);
        Ok(())
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
    fn co_truncate(&self, co: &Co<'_>, length: u64, _: Truncate) -> io::Result<()> {
        co.yield_now();
        self.length.store(length, Ordering::SeqCst);
        Ok(())
    }
    /// Its storage grows by itself.
    fn co_refresh_length(&self, _: &Co<'_>) -> io::Result<u64> {
        Ok(self.length.fetch_add(512, Ordering::SeqCst) + 512)
    }
}

fn disk(length: u64) -> (Arc<BlockNode>, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let driver = Counts { length: length.into(), asked: Arc::clone(&asked) };
    (BlockNode::new("disk", driver), asked)
}

/// The tests of this file run one at a time: a change of any graph makes the next request ask anew.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The disk below three others.
fn chain(disk: &Arc<BlockNode>) -> Arc<BlockNode> {
    (0..3).fold(Arc::clone(disk), |below, _| BlockNode::new("above", Raw::new(below)))
}

#[test]
fn requests_do_not_ask_down_the_chain() {
    let _alone = alone();
    const ROUNDS: usize = 10_000;
    let ctx = AioContext::for_test().unwrap();
    let (disk, asked) = disk(1 << 20);
    let backend = BlockBackend::new(&ctx, "drive", chain(&disk));
    let before = asked.load(Ordering::SeqCst);
    for _ in 0..ROUNDS {
        backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut [0; 512][..])).unwrap();
    }
    let reads = asked.load(Ordering::SeqCst);
    for _ in 0..ROUNDS {
        backend.pwritev(&ctx, 0, &IoVector::from(&[1; 512][..]), WriteFlags::empty()).unwrap();
    }
    let writes = asked.load(Ordering::SeqCst);
    // Each of the four levels asks once a request otherwise, of writes both.
    assert!(reads - before < ROUNDS / 100, "{} questions for {ROUNDS} reads", reads - before);
    assert!(writes - reads < ROUNDS / 100, "{} questions for {ROUNDS} writes", writes - reads);
}

#[test]
fn a_chain_is_as_long_as_what_is_at_its_end() {
    let _alone = alone();
    let ctx = AioContext::for_test().unwrap();
    let (first, _) = disk(1 << 20);
    let top = chain(&first);
    let below = BlockBackend::new(&ctx, "below", Arc::clone(&first));
    assert_eq!(top.length(), 1 << 20);
    for length in [1 << 16, 1 << 21] {
        below.truncate(&ctx, length).unwrap();
        assert_eq!((first.length(), top.length()), (length, length));
    }
    ctx.run(|co| first.co_refresh_length(co)).unwrap();
    let length = (1 << 21) + 512;
    assert_eq!((first.length(), top.length()), (length, length));
    // An edge turns, far below.
    let (second, _) = disk(4096);
    first.replace(&ctx, &second).unwrap();
    assert_eq!((first.length(), top.length()), (length, 4096));
    let drive = BackendOptions::new("drive").open(&ctx, Arc::clone(&top)).unwrap();
    let end = drive.preadv(&ctx, 4096, &mut IoVectorMut::from(&mut [0; 512][..]));
    assert_eq!(util::errno(end), libc::EIO);
    drive.truncate(&ctx, 8192).unwrap();
    drive.preadv(&ctx, 4096, &mut IoVectorMut::from(&mut [0; 512][..])).unwrap();
}

/// Another thread never sees a chain shorter than it was known to be.
#[test]
fn no_thread_sees_a_length_of_before() {
    let _alone = alone();
    const STEP: u64 = 512;
    let thread = IoThread::new("grows").unwrap();
    let (disk, _) = disk(STEP);
    let top = chain(&disk);
    let (known, done) = (Arc::new(AtomicU64::new(STEP)), Arc::new(AtomicBool::new(false)));
    let (told, ended) = (Arc::clone(&known), Arc::clone(&done));
    let grows = thread.handle().spawn("grow", move |co| {
        let backend = BlockBackend::new(co.context(), "below", disk);
        for length in (1..2000).map(|step| step * STEP) {
            backend.co_truncate(co, length).unwrap();
            told.store(length, Ordering::SeqCst);
        }
        ended.store(true, Ordering::SeqCst);
    });
    while !done.load(Ordering::SeqCst) {
        let known = known.load(Ordering::SeqCst);
        let length = top.length();
        assert!(length >= known, "{length} bytes, and there were {known}");
    }
    grows.wait().unwrap();
}
