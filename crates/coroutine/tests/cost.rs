//! What a coroutine may cost: no allocation once warm, a page of memory while it is suspended.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Instant;

use coblk_coroutine::*;

mod util;

use util::succeeds_in_child;

/// Counts the allocations of the thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A request's life, with a wake-up and a nested coroutine.
fn request(number: usize) {
    let payload = [number; 16];
    let coroutine = Coroutine::new("request", move |suspender| {
        let inner = Coroutine::new("inner", |suspender| suspender.suspend());
        inner.resume();
        inner.queue_wake("request");
        suspender.suspend();
        assert_eq!(payload[15], number);
    });
    assert_eq!(coroutine.resume(), CoroutineState::Suspended);
    assert_eq!(coroutine.resume(), CoroutineState::Terminated);
}

#[test]
fn nothing_is_allocated_in_steady_state() {
    request(0);
    let before = ALLOCATIONS.get();
    (0..10_000).for_each(request);
    assert_eq!(ALLOCATIONS.get() - before, 0);
}

#[test]
fn a_limit_on_address_space_is_an_error() {
    succeeds_in_child("a_limit_on_address_space_is_an_error", || {
        // Less than the first chunk that the arena asks for, so it has to do with less.
        let limit = (status_kib("VmSize") + (100 << 10)) as u64 * 1024;
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: of this process, which is for this test only.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        let mut coroutines = Vec::with_capacity(1000);
        let error = loop {
            match Coroutine::try_new("c", |suspender| suspender.suspend()) {
                Ok(coroutine) => coroutines.push(coroutine),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        assert!(coroutines.len() > 90, "{}", coroutines.len());
        coroutines.pop();
        assert!(Coroutine::try_new("c", |_| ()).is_ok());
    });
}

/// Run it with `cargo test -p coblk-coroutine --release --test cost -- --ignored --nocapture`. It
/// needs 6 GiB of memory: 4 KiB for each coroutine, and 2 KiB of page tables.
#[test]
#[ignore = "takes 6 GiB of memory"]
fn a_million_suspended_coroutines() {
    const COUNT: usize = 1_000_000;
    let mut coroutines = Vec::with_capacity(COUNT);
    Coroutine::new("warm up", |_| ()).resume();
    let (memory, start) = (status_kib("VmRSS"), Instant::now());
    for number in 0..COUNT {
        let coroutine = Coroutine::new("suspended", move |suspender| {
            let local = std::hint::black_box([number; 16]);
            suspender.suspend();
            assert_eq!(local[15], number);
        });
        coroutine.resume();
        coroutines.push(coroutine);
    }
    let created = start.elapsed();
    let vector_kib = COUNT * size_of::<Coroutine>() / 1024;
    let each = (status_kib("VmRSS") - memory - vector_kib) as f64 / COUNT as f64;
    let mappings = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let start = Instant::now();
    coroutines.drain(..).for_each(|coroutine| {
        coroutine.resume();
    });
    println!(
        "{each:.2} KiB each, {} KiB of page tables, {mappings} mappings; \
         created in {created:?}, ended in {:?}",
        status_kib("VmPTE"),
        start.elapsed()
    );
    if cfg!(not(coblk_ucontext)) {
        assert!(each <= 4.3, "{each} KiB each");
    }
    if pool_stats().guard == Some(GuardKind::Marker) {
        assert!(mappings < 1000, "{mappings} mappings");
    }
}

/// A line of /proc/self/status.
fn status_kib(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
