//! What the hot paths promise: no allocation in steady state. Alone in its binary, because it
//! counts for the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use coblk_aio::sync::CoMutex;
use coblk_aio::{AioContext, CoWaker, IoThread, ThreadPool};

struct Counting;

/// By all threads.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// By this thread.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    OWN.set(OWN.get() + 1);
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Warms `action` up, and then counts what 1000 of it allocate on this thread.
fn allocations(mut action: impl FnMut()) -> usize {
    (0..1000).for_each(|_| action());
    let before = OWN.get();
    (0..1000).for_each(|_| action());
    OWN.get() - before
}

/// One test, so that nothing else runs beside it.
#[test]
fn hot_paths_allocate_nothing_in_steady_state() {
    let pool = ThreadPool::new(2, 2).unwrap();
    let ctx = AioContext::test_builder().thread_pool(pool).build().unwrap();
    callbacks(&ctx);
    wakes(&ctx);
    jobs(&ctx);
    calls(&ctx);
}

fn callbacks(ctx: &AioContext) {
    let spawned = Rc::new(Cell::new(0));
    let count = allocations(|| {
        let spawned = Rc::clone(&spawned);
        ctx.spawn("short", move |_| spawned.set(spawned.get() + 1));
    });
    assert_eq!((count, spawned.get()), (0, 2000), "spawn");

    let bh = ctx.bottom_half("bh", |_| ());
    let count = allocations(|| {
        bh.schedule();
        assert!(ctx.try_poll());
    });
    assert_eq!(count, 0, "bottom half");

    let remote = bh.remote();
    let count = allocations(|| {
        remote.schedule();
        assert!(ctx.try_poll());
    });
    assert_eq!(count, 0, "bottom half through the remote list");

    let timer = ctx.timer(|_| ());
    let count = allocations(|| {
        timer.arm_after(Duration::from_secs(1));
        timer.anticipate_at_ns(0);
        assert!(ctx.poll());
    });
    assert_eq!(count, 0, "timer");
}

fn wakes(ctx: &AioContext) {
    let stop = Rc::new(Cell::new(false));
    let stopped = Rc::clone(&stop);
    ctx.spawn("reschedules", move |co| {
        while !stopped.get() {
            co.yield_now();
        }
    });
    let count = allocations(|| assert!(ctx.try_poll()));
    assert_eq!(count, 0, "yield_now");
    stop.set(true);
    ctx.try_poll();

    let slot: Rc<Cell<Option<CoWaker>>> = Rc::default();
    let own = Rc::clone(&slot);
    ctx.spawn("waits", move |co| {
        loop {
            co.suspend_with(|waker| own.set(Some(waker)));
        }
    });
    let count = allocations(|| slot.take().unwrap().wake());
    assert_eq!(count, 0, "wake at home");

    let mutex = Rc::new(CoMutex::new(true));
    for _ in 0..3 {
        let mutex = Rc::clone(&mutex);
        ctx.spawn("contends", move |co| {
            while *mutex.lock(co) {
                let _guard = mutex.lock(co);
                co.yield_now();
            }
        });
    }
    let count = allocations(|| assert!(ctx.try_poll()));
    assert_eq!(count, 0, "contended mutex");
    ctx.run(|co| *mutex.lock(co) = false);
    while ctx.try_poll() {}

    let (to_thread, wakers): (SyncSender<CoWaker>, _) = sync_channel(1);
    let thread = thread::spawn(move || wakers.into_iter().for_each(CoWaker::wake));
    let count = allocations(|| {
        to_thread.send(slot.take().unwrap()).unwrap();
        assert!(ctx.poll());
    });
    assert!(count <= 2, "wake from another thread: {count}"); // what the channel itself needs
    drop(to_thread);
    thread.join().unwrap();
}

fn jobs(ctx: &AioContext) {
    let submitted: Rc<Cell<usize>> = Rc::default();
    let count = Rc::clone(&submitted);
    ctx.spawn("submits", move |co| {
        for _ in 0..2000 {
            let value = co.context().thread_pool().submit_co(co, || 1);
            count.set(count.get() + value);
        }
    });
    ctx.run_until(|| submitted.get() >= 1000);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    ctx.run_until(|| submitted.get() == 2000);
    // By all threads. A worker allocates once in its life, when it first has to park; that may
    // well happen here.
    let count = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(count <= 8, "1000 times submit_co: {count} allocations");
}

fn calls(ctx: &AioContext) {
    let thread = IoThread::new("there").unwrap();
    let (called, home) = (Rc::new(Cell::new(0)), thread.handle().clone());
    let count = Rc::clone(&called);
    ctx.spawn("calls", move |co| {
        for _ in 0..2000 {
            let value = co.call_at(&home, "call", |there| {
                there.yield_now();
                1
            });
            count.set(count.get() + value.unwrap());
        }
    });
    ctx.run_until(|| called.get() >= 1000);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    ctx.run_until(|| called.get() == 2000);
    let count = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(count, 0, "1000 times call_at, by both threads");
}
