//! Memory of stacks: of a process that locks it, of stacks that are idle, and of none that is left.

mod util;

use std::cell::Cell;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;

use coblk_coroutine::*;
use util::{dies_in_child, succeeds_in_child};

fn lock_memory(which: libc::c_int) {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::mlockall(which) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Memory that the process has locked, in KiB.
fn locked_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// One that has used 256 KiB of its stack, and is suspended; and where that was.
fn deep() -> (Coroutine, usize) {
    let address = Rc::new(Cell::new(0));
    let told = Rc::clone(&address);
    let coroutine = Coroutine::new("deep", move |suspender| {
        told.set(use_stack());
        suspender.suspend();
    });
    coroutine.resume();
    (coroutine, address.get())
}

#[inline(never)]
fn use_stack() -> usize {
    let mut frame = [1_u8; 256 << 10];
    black_box(&mut frame);
    frame.as_ptr().addr()
}

/// Whether there is memory behind the page of an address.
fn is_resident(address: usize) -> bool {
    let mut page = 0_u8;
    let start = std::ptr::without_provenance_mut::<u8>(address & !4095);
    // SAFETY: asks about a mapping, and there is room for one byte a page.
    assert_eq!(unsafe { libc::mincore(start.cast(), 4096, &mut page) }, 0);
    page & 1 == 1
}

#[test]
fn a_coroutine_locks_its_own_stack_at_most() {
    succeeds_in_child("a_coroutine_locks_its_own_stack_at_most", || {
        lock_memory(libc::MCL_FUTURE);
        let before = locked_kib();
        let (coroutine, _) = deep();
        let grown_kib = locked_kib() - before;
        assert!(grown_kib <= 2 << 10, "one coroutine locks {grown_kib} KiB");
        coroutine.resume();
        drop(coroutine);
        assert_eq!(trim_pool(), 1);
        // The same memory serves again.
        deep().0.resume();
    });
}

#[test]
fn stacks_are_made_after_the_process_has_locked_its_memory() {
    succeeds_in_child("stacks_are_made_after_the_process_has_locked_its_memory", || {
        let first = deep();
        lock_memory(libc::MCL_CURRENT | libc::MCL_FUTURE);
        let more: Vec<_> = (0..10).map(|_| deep()).collect();
        for (coroutine, _) in more.iter().chain([&first]) {
            coroutine.resume();
        }
    });
}

#[test]
fn idle_stacks_give_back_what_lies_deep() {
    succeeds_in_child("idle_stacks_give_back_what_lies_deep", || {
        // So many that the pool of the process has some too.
        let all: Vec<_> = (0..500).map(|_| deep()).collect();
        let addresses: Vec<_> = all.iter().map(|(_, address)| *address).collect();
        for (coroutine, _) in all {
            coroutine.resume();
        }
        let resident = || addresses.iter().filter(|address| is_resident(**address)).count();
        assert!(pool_stats().idle_shared > 0);
        assert_eq!((resident(), has_idle_memory()), (500, true));
        release_idle_memory();
        assert_eq!((resident(), has_idle_memory()), (0, false));
        // What has been used since is given back again, and nothing that is in use.
        let (in_use, address) = deep();
        deep().0.resume();
        assert!(has_idle_memory());
        release_idle_memory();
        assert_eq!((resident(), has_idle_memory()), (1, false));
        assert!(is_resident(address));
        in_use.resume();
    });
}

#[test]
fn a_stack_that_is_there_is_found_by_the_next_coroutine() {
    succeeds_in_child("a_stack_that_is_there_is_found_by_the_next_coroutine", || {
        ensure_stack().unwrap();
        assert_eq!((pool_stats().allocated, pool_stats().idle_in_thread), (1, 1));
        ensure_stack().unwrap();
        let coroutine = Coroutine::new("has a stack", |_| ());
        assert_eq!(pool_stats().allocated, 1);
        coroutine.resume();
    });
}

fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if frame[0] == u64::MAX { 0 } else { recurse(depth + 1) + black_box(frame)[63] }
}

#[test]
fn c16_an_overflow_ends_the_process_as_such_though_nothing_reads_its_report() {
    let name = "c16_an_overflow_ends_the_process_as_such_though_nothing_reads_its_report";
    let death = dies_in_child(name, || {
        // SAFETY: two new descriptors, of which one becomes standard error; SIGPIPE is as a host
        // program in C has it.
        unsafe {
            let mut ends = [0; 2];
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            libc::close(ends[0]);
            libc::dup2(ends[1], libc::STDERR_FILENO);
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        let coroutine = Coroutine::new("unheard", |_| {
            black_box(recurse(0));
        });
        coroutine.resume();
    });
    let Some((status, _)) = death else { return };
    assert_eq!(status.signal(), Some(libc::SIGSEGV));
}
